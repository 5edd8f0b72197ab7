import hashlib
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_export import noise as twin
from vae_runtime import noise

SEEDS = st.integers(-(2**63), 2**64 - 1)
STARTS = st.integers(0, 2**64 - 1)
STREAMS = st.integers(0, 2**32 - 1)
SHAPES = st.lists(st.integers(1, 7), min_size=0, max_size=3).map(tuple)


@pytest.fixture(scope="module")
def vectors(root):
    return json.loads((root / "tests" / "data" / "vnoise1_vectors.json").read_text(encoding="utf-8"))


def bits(values):
    return np.asarray(values).view(np.uint32)


def same_bits(seed, start, n, shape, stream):
    ours = twin.normal(seed, start, n, shape, stream)
    assert ours.dtype == torch.float32
    assert ours.shape == (n, *shape)
    return np.array_equal(bits(ours.numpy()), bits(noise.normal(seed, start, n, shape, stream)))


@given(seed=SEEDS, start=STARTS, n=st.integers(1, 9), shape=SHAPES, stream=STREAMS)
@settings(max_examples=150, deadline=None)
def test_torch_draws_the_bits_that_numpy_draws(seed, start, n, shape, stream):
    assert same_bits(seed, start, n, shape, stream)


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1])
@pytest.mark.parametrize("start", [0, 2**32 - 1, 2**32, 2**63 - 1, 2**64 - 2])
@pytest.mark.parametrize("stream", [0, 1, 2**31, 2**32 - 1])
def test_the_ends_of_the_ranges(seed, start, stream):
    assert same_bits(seed, start, 4, (5,), stream)


def test_many_numbers_at_once_reach_every_part_of_the_table():
    """A million numbers: tails down to one in 10⁵ and every level of the table but the last, which is rarer."""
    z = twin.normal(3, 0, 64, (128, 128))
    assert np.array_equal(bits(z.numpy()), bits(noise.normal(3, 0, 64, (128, 128))))
    assert z.abs().max() > 4.5


@given(low=st.integers(0, 2**13), sign=st.booleans())
@settings(max_examples=100, deadline=None)
def test_the_far_tail_agrees_too(low, sign):
    """The words that chance hardly ever draws, straight into both quantile functions."""
    words = np.array([[low | (sign << 31), 2**19 - 1 - low, 2**25 - 1 - low, 2**31 - 1 - low]], np.uint32)
    ours = twin._normal_of_words(torch.from_numpy(words.astype(np.int64)))
    theirs = np.empty(words.shape, np.float32)
    noise._normal_of_words(words, theirs)
    assert np.array_equal(bits(ours.numpy()), bits(theirs))
    assert np.isfinite(theirs).all()


@pytest.mark.parametrize("number", range(6))
def test_the_published_draws(vectors, number):
    case = vectors["noise"][number]
    z = twin.normal(int(case["seed"]), int(case["first_index"]), case["n"], case["shape"], case["stream"]).numpy()
    assert hashlib.sha256(z.astype("<f4").tobytes()).hexdigest() == case["sha256_le_f32"]
    head = z.ravel()[: len(case["head"])].astype(np.float64)
    assert (head * 2**21).tolist() == case["head"]


def test_the_published_words(vectors):
    words, fixed = np.array(vectors["word_to_fixed"]).T
    z = twin._normal_of_words(torch.from_numpy(words))
    assert (z.double() * 2**21).tolist() == fixed.tolist()
    assert len(vectors["noise"]) == 6


def test_the_draw_notices_another_argument():
    """The comparison can fail: each argument matters to the bits."""
    reference = bits(noise.normal(1, 2, 3, (4,), 5))
    for arguments in [(2, 2, 3, (4,), 5), (1, 3, 3, (4,), 5), (1, 2, 3, (4,), 6)]:
        assert not np.array_equal(bits(twin.normal(*arguments).numpy()), reference)
