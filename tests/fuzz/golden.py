"""Golden vectors: each file is refused with a BundleError, or gives arrays of the expected dtypes and shapes."""

import io
from collections.abc import Iterator

import numpy as np

from tests.corpus.cases import goldens
from tests.fuzz import require_short
from vae_runtime.arrays import unpack_npz
from vae_runtime.errors import BundleError

_EXPECTED = {"x": ("float32", (2, 1, 8, 8)), "z": ("float32", (2, 8)), "codes": ("int64", (2, 3))}


def seeds() -> Iterator[bytes]:
    """Files of the expected arrays, packed and not, and the forged ones of the corpus that are short."""
    arrays = {name: np.ones(shape, dtype) for name, (dtype, shape) in _EXPECTED.items()}
    for save in (np.savez, np.savez_compressed):
        out = io.BytesIO()
        save(out, **arrays)
        yield out.getvalue()
    yield from (content for _, content in goldens() if len(content) < 2**15)


def words() -> set[bytes]:
    """Marks of archives and arrays."""
    marks = {b"PK\1\2", b"PK\3\4", b"PK\5\6", b"\x93NUMPY\1\0", b"\x93NUMPY\2\0", b"'descr': '<f4'", b"'|O'", b"'<i8'"}
    return marks | {b"'fortran_order': True", b"'shape': (2, 8)", b"(99999999999, )", b"x.npy", b"z.npy", b"codes.npy"}


def check(content: bytes) -> None:
    """Unpack a file."""
    try:
        arrays = unpack_npz(content, "golden.npz", _EXPECTED)
    except BundleError as error:
        require_short(error)
        return
    assert {name: (array.dtype.name, array.shape) for name, array in arrays.items()} == _EXPECTED
