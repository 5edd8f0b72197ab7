"""The .npy files that a job reads, of observations, latents and conditions: hashed once, then mapped into memory."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import require_npy
from ..errors import InputError, VaeError, error_line
from ..input_files import open_plain


def describe_file(
    path: str | os.PathLike[str], remembered: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a description of the content of an .npy file of rows, and its location.

    Args:
        path: the file.
        remembered: an earlier location of the file; if size and time of change are the same, it is not hashed again.

    Returns:
        The content: `sha256`, `shape` and `dtype`; and the location: `path`, `sha256`, `size` and `mtime_ns`.

    Raises:
        InputError: it is not an .npy file with at least one row.
    """
    try:
        place = Path(path).absolute()
        with open_plain(place) as file:
            header = require_npy(file, os.fstat(file.fileno()).st_size)
        shape, dtype = list(header[0]), header[1].name
        if not shape or not shape[0]:
            raise ValueError("it has no rows")
        stamp = _stamp(place)
        sha256 = remembered.get("sha256") if remembered and stamp.items() <= remembered.items() else None
        if not isinstance(sha256, str):
            sha256 = _sha256(place)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give an .npy file of rows") from None
    except Exception as error:  # numpy's parser raises errors of many kinds
        raise InputError(
            f"{path}: expected an .npy file of rows: {error_line(error)}; write the array with numpy.save"
        ) from None
    return {"sha256": sha256, "shape": shape, "dtype": dtype}, {"path": str(place), "sha256": sha256, **stamp}


def map_file(location: Mapping[str, Any]) -> NDArray[Any]:
    """Map the rows of a file into memory.

    Args:
        location: as of `describe_file`.

    Raises:
        VaeError: the file was removed or altered since it was hashed.
    """
    path = location["path"]
    with contextlib.suppress(Exception):  # as in `describe_file`
        rows: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
        if _stamp(Path(path)) == {key: location[key] for key in ("size", "mtime_ns")}:
            return rows
    raise VaeError(f"{path}: removed or altered since it was hashed; put it back and run the command again")


def _stamp(path: Path) -> dict[str, int]:
    """Return the attributes of a file that change with its content."""
    status = path.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
