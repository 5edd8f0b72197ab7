"""Files of arrays: .npy and .npz, with one set of errors."""

import io

import numpy as np
import pytest

from vae_runtime.arrays import read_npy, read_npz, unpack_npz
from vae_runtime.errors import BundleError, InputError

ROWS = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_an_array_comes_back_as_it_was_written(tmp_path):
    np.save(tmp_path / "x.npy", ROWS)
    read = read_npy(tmp_path / "x.npy")
    assert read.dtype == ROWS.dtype
    assert np.array_equal(read, ROWS)
    assert np.array_equal(read_npy(str(tmp_path / "x.npy")), ROWS)


def test_the_arrays_that_are_asked_for_come_from_an_archive(tmp_path):
    np.savez(tmp_path / "z.npz", a=ROWS, b=ROWS + 1, c=ROWS + 2)
    read = read_npz(tmp_path / "z.npz", ["c", "a", "d"])
    assert list(read) == ["c", "a"]
    assert np.array_equal(read["c"], ROWS + 2)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.array(["a", "b"]), "expected numbers, got dtype <U1"),
        (np.array([None], object), r"expected an \.npy file of numbers"),
        (b"", r"expected an \.npy file of numbers"),
        (b"\x93NUMPY\x01\x00", r"expected an \.npy file of numbers"),
        (None, r"no such file; give an \.npy file"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused(tmp_path, value, words):
    path = tmp_path / "x.npy"
    if isinstance(value, bytes):
        path.write_bytes(value)
    elif value is not None:
        np.save(path, value, allow_pickle=True)
    with pytest.raises(InputError, match=rf"x\.npy: {words}"):
        read_npy(path)


@pytest.mark.parametrize(("value", "words"), [(b"PK", r"expected an \.npz file of numbers"), (None, "no such file")])
def test_what_is_no_archive_is_refused(tmp_path, value, words):
    if value is not None:
        (tmp_path / "z.npz").write_bytes(value)
    with pytest.raises(InputError, match=rf"z\.npz: {words}"):
        read_npz(tmp_path / "z.npz", ["z"])


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ({"x": ROWS}, None),
        ({"x": ROWS, "more": ROWS}, None),
        ({}, r"x: expected float32 \[2, 3\], got nothing"),
        ({"x": ROWS.astype(np.float64)}, r"x: expected float32 \[2, 3\], got float64 \[2, 3\]"),
        ({"x": ROWS.T}, r"x: expected float32 \[2, 3\], got float32 \[3, 2\]"),
        ({"x": np.zeros(10**6, np.float32)}, r"x: expected float32 \[2, 3\], got a larger array"),
        ({"x": np.array([None], object)}, r"expected an \.npz file"),
    ],
)
def test_arrays_of_a_bundle_are_held_against_what_is_expected(stored, words):
    content = io.BytesIO()
    np.savez_compressed(content, **stored)

    def unpack():
        return unpack_npz(content.getvalue(), "bundle/golden.npz", {"x": ("float32", (2, 3))})

    if words is None:
        assert list(unpack()) == ["x"]
        assert np.array_equal(unpack()["x"], ROWS)
    else:
        with pytest.raises(BundleError, match=rf"bundle/golden\.npz: {words}"):
            unpack()
