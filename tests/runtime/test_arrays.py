"""Files of arrays: .npy and .npz, with one set of errors."""

import io
import os
import zipfile

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


def header(text, version=1):
    length = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + text


HOSTILE = {
    "petabytes": (header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1125899906842624,)}"), "expected 4503"),
    "an overflow": (
        header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296)}"),
        "expected 73",
    ),
    "below nothing": (
        header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}"),
        r"expected at most 32 axes of at least 0, got the shape \[-1\]",
    ),
    "objects": (
        header(b"{'descr': '|O', 'fortran_order': False, 'shape': ()}"),
        "expected numbers, got Python objects",
    ),
    "a header of 4 GiB": (b"\x93NUMPY\2\0\xff\xff\xff\xff", "expected a header of at most 65536 bytes, got 4294967295"),
    "too many axes": (
        header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"1," * 40 + b")}"),
        "expected at most 32 axes",
    ),
    "a deep header": (header(b"(" * 9000), "its header is damaged; write it"),
    "a header that is cut off": (header(b"{'descr': '<f4', 'shape': (1,"), "its header is damaged; write it"),
    "a dtype that is no dtype": (
        header(b"{'descr': {'a': 1}, 'fortran_order': False, 'shape': ()}"),
        "its header is damaged; write it",
    ),
}


@pytest.mark.parametrize(("content", "words"), HOSTILE.values(), ids=HOSTILE)
def test_a_header_is_held_against_the_file_before_memory_is_taken(tmp_path, content, words):
    (tmp_path / "x.npy").write_bytes(content + b"\0" * 64)
    with pytest.raises(InputError, match=rf"x\.npy: expected an \.npy file of numbers: .*{words}"):
        read_npy(tmp_path / "x.npy")
    with zipfile.ZipFile(tmp_path / "z.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("z.npy", content + b"\0" * 64)
    with pytest.raises(InputError, match=rf"z\.npz: expected an \.npz file of numbers: .*{words}"):
        read_npz(tmp_path / "z.npz", ["z"])


def test_an_archive_unpacks_to_no_more_than_real_data(tmp_path):
    np.savez_compressed(tmp_path / "z.npz", z=np.zeros(2**24, np.float32), y=ROWS)
    with pytest.raises(InputError, match=r"z\.npz: expected an \.npz file of numbers: expected at most \d+ bytes in"):
        read_npz(tmp_path / "z.npz", ["z"])
    assert np.array_equal(read_npz(tmp_path / "z.npz", ["y"])["y"], ROWS)
    np.savez_compressed(tmp_path / "y.npz", y=np.zeros(2**22, np.float32))
    assert read_npz(tmp_path / "y.npz", ["y"])["y"].shape == (2**22,)


def test_only_plain_files_are_read(tmp_path):
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "device.npy").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "sparse.npy").write_bytes(header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (268435456,)}"))
    os.truncate(tmp_path / "sparse.npy", 2**30 + 100)
    for name, got in {"folder": "a folder", "device": "a device", "pipe": "a pipe", "sparse": "a sparse file"}.items():
        for read in (read_npy, lambda path: read_npz(path, ["x"])):
            with pytest.raises(InputError, match=f"got {got}; write it with numpy"):
                read(tmp_path / f"{name}.npy")
    np.save(tmp_path / "x.npy", ROWS)
    (tmp_path / "link.npy").symlink_to("x.npy")
    assert np.array_equal(read_npy(tmp_path / "link.npy"), ROWS)
    np.save(tmp_path / "f.npy", np.asfortranarray(ROWS))
    assert np.array_equal(read_npy(tmp_path / "f.npy"), ROWS)


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
