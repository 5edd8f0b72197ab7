"""The quick checks of arrays say what numpy's plain functions say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vae_runtime.ranges import all_finite, all_within, finite, within

BOUNDS = [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (0.25, 0.75), (-3.0, 0.0), None]
NUMBERS = st.floats(width=32) | st.floats(-1, 1, width=32) | st.sampled_from([0.0, -0.0, 1.0, 255.0, np.nan, -np.inf])
ARRAYS = arrays(np.float32, st.integers(1, 40), elements=NUMBERS)


@given(ARRAYS)
def test_finite(array):
    expected = bool(np.isfinite(array).all())
    assert finite(array)() == expected
    # Squares that overflow may fail it.
    assert all_finite(array) == expected or (expected and np.abs(array).max() > 1e18)


@given(ARRAYS, st.sampled_from(BOUNDS))
def test_within(array, bounds):
    low, high = bounds or (-np.finfo(np.float32).max, np.finfo(np.float32).max)
    # -0.0 is as large as 0.0, but the general check alone knows that.
    expected = bool(((array >= low) & (array <= high)).all())
    refused_zero = expected and bool((np.signbit(array) & (array == 0)).any()) and low == 0
    assert within(array, bounds)() == all_within(array, bounds) == (expected and not refused_zero)


@pytest.mark.parametrize("wrong", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [3, 30])
def test_a_check_sees_what_is_in_the_array_now(wrong, size):
    array = np.full(size, 0.5, np.float32)
    checks = [finite(array), *(within(array, bounds) for bounds in BOUNDS[:4])]
    assert [check() for check in checks] == [True] * 5
    array[-1] = wrong
    assert [check() for check in checks] == [False] * 5
    array[-1] = 0.75
    assert [check() for check in checks] == [True] * 5
