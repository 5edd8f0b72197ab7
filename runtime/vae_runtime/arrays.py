"""Read .npy and .npz files of numbers with one set of errors; never unpickle anything."""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError, InputError, error_line
from .input_files import open_plain, require_unpacked

Array = NDArray[Any]

# More than any header of an .npy file.
_NPY_HEADER = 4096
# The most that every numpy has, and more bytes than it accepts.
_MAX_AXES, _MAX_HEADER = 32, 2**16
# Bytes that a small file may hold in compressed form.
_MAX_UNPACKED = 2**25


def read_npy(path: str | os.PathLike[str]) -> Array:
    """Read the array of an .npy file.

    Raises:
        InputError: there is no such file, or it does not hold an array of numbers.
    """
    return _npy(path, lambda file: np.lib.format.read_array(file, allow_pickle=False))


def map_npy(path: str | os.PathLike[str]) -> Array:
    """Map the array of an .npy file into memory; no value is read before it is asked for.

    Raises:
        InputError: there is no such file, or it does not hold an array of numbers.
    """
    return _npy(path, lambda _: np.lib.format.open_memmap(path, mode="r"))


def _npy(path: str | os.PathLike[str], read: Callable[[IO[bytes]], Array]) -> Array:
    """Return what `read` makes of an .npy file whose header fits, open at its beginning."""
    try:
        with open_plain(path) as file:
            require_npy(file, os.fstat(file.fileno()).st_size)
            array = read(file)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give an .npy file") from None
    except Exception as error:  # numpy's parser lets through what others raise
        raise InputError(
            f"{path}: expected an .npy file of numbers: {error_line(error)}; write it with numpy.save"
        ) from None
    if array.dtype.kind not in "biuf":
        raise InputError(f"{path}: expected numbers, got dtype {array.dtype!s:.99}; write them with numpy.save")
    return array


def require_npy(file: IO[bytes], size: int) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Hold the header of an .npy file against its size, and return to its beginning.

    Args:
        file: the file, at its beginning.
        size: how many bytes it has.

    Returns:
        The shape and the dtype of its array.

    Raises:
        ValueError: the file does not hold all values of an array, or holds Python objects.
    """
    if not size:
        raise ValueError("the file is empty")
    version = np.lib.format.read_magic(file)
    width = 2 if version == (1, 0) else 4
    length = int.from_bytes(file.read(width), "little")
    # numpy reads it whole, then refuses it.
    if length > _MAX_HEADER:
        raise ValueError(f"expected a header of at most {_MAX_HEADER} bytes, got {length}")
    file.seek(-width, os.SEEK_CUR)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with warnings.catch_warnings():
        # numpy warns of headers that Python 2 wrote.
        warnings.simplefilter("ignore")
        try:
            shape, _, dtype = read_header(file)
        except Exception as error:  # numpy parses it as Python, and raises what Python's parser does
            raise ValueError("its header is damaged") from error
    if dtype.hasobject:
        raise ValueError("expected numbers, got Python objects")
    # In Python's integers: numpy's would overflow.
    expected, values = math.prod(shape) * dtype.itemsize, size - file.tell()
    if min(shape, default=0) < 0 or len(shape) > _MAX_AXES:
        raise ValueError(f"expected at most {_MAX_AXES} axes of at least 0, got the shape {list(shape)!s:.99}")
    if expected > values:
        raise ValueError(f"expected {expected} bytes of values for the shape {list(shape)!s:.99}, got {values}")
    file.seek(0)
    return shape, dtype


def read_npz(path: str | os.PathLike[str], names: Iterable[str]) -> dict[str, Array]:
    """Read the named arrays of an .npz file; names that the file lacks are left out.

    Raises:
        InputError: there is no such file, or it is not an .npz file of numbers.
    """
    try:
        # Opened here: numpy would leave open a file that is not an archive.
        with open_plain(path) as file, np.load(file, allow_pickle=False) as archive:
            present = [name for name in names if name in archive.files]
            sizes = {item.filename: item.file_size for item in archive.zip.infolist()}
            require_unpacked(sum(sizes.get(f"{name}.npy", 0) for name in present), os.fstat(file.fileno()).st_size)
            for name in present:
                with archive.zip.open(f"{name}.npy") as member:
                    require_npy(member, sizes[f"{name}.npy"])
            return {name: archive[name] for name in present}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give an .npz file") from None
    except Exception as error:  # numpy, zipfile and zlib each raise their own
        raise InputError(
            f"{path}: expected an .npz file of numbers: {error_line(error)}; write it with numpy.savez"
        ) from None


def packed_limit(expected: Mapping[str, tuple[str, tuple[int, ...]]]) -> int:
    """Return how many bytes an .npz file of these arrays has at most, their dtypes and shapes by name."""
    values = sum(np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in expected.values())
    # Enough for headers, and for arrays that a later version adds.
    return 2 * values + len(expected) * 4 * _NPY_HEADER + 2**20


def unpack_npz(content: bytes, place: str, expected: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, Array]:
    """Read arrays of known dtypes and shapes from an .npz file of a bundle.

    Args:
        content: the bytes of the file.
        place: what to call the file in errors.
        expected: the dtype and the shape of each array, by its name.

    Raises:
        BundleError: the file is damaged, or an array is missing or of another dtype or shape.
    """
    import zipfile  # not needed on the start-up path

    limits = {
        name: np.dtype(dtype).itemsize * math.prod(shape) + _NPY_HEADER for name, (dtype, shape) in expected.items()
    }
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            sizes = {item.filename: item.file_size for item in archive.infolist()}
        # Never unpack more bytes than the array may have, nor reserve memory for more than there are.
        too_large = {name for name, limit in limits.items() if sizes.get(f"{name}.npy", 0) > limit}
        too_small = {
            name
            for name, limit in limits.items()
            if limit > _MAX_UNPACKED and 0 <= sizes.get(f"{name}.npy", -1) < limit - _NPY_HEADER
        }
        unpacked = sum(sizes.get(f"{name}.npy", 0) for name in expected)
        if unpacked > _MAX_UNPACKED + 256 * len(content):
            raise ValueError(f"expected at most {_MAX_UNPACKED} bytes and 256 times the file's, got {unpacked}")
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays: dict[str, Any] = {
                name: file[name] for name in expected if name in file.files and name not in too_large | too_small
            }
    except Exception as error:  # numpy, zipfile and zlib each raise their own
        raise BundleError(f"{place}: expected an .npz file: {error_line(error)}; export the bundle again") from None
    for name, (dtype, shape) in expected.items():
        array = arrays.get(name)
        if isinstance(array, np.ndarray) and array.dtype == np.dtype(dtype) and array.shape == shape:
            continue
        if array is not None and not isinstance(array, np.ndarray):
            got = "bytes that are no array"
        elif array is None:
            got = "a larger array" if name in too_large else "fewer values" if name in too_small else "nothing"
        else:
            got = f"{array.dtype} {list(array.shape)}"
        raise BundleError(f"{place}: {name}: expected {dtype} {list(shape)}, got {got}; export the bundle again")
    return arrays
