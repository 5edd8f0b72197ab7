"""Open the files that a caller names: plain files alone, whose content takes no more memory than such data need."""

from __future__ import annotations

import errno
import io
import json
import os
import stat
from typing import Any

from .places import READ, is_sparse

# Bytes that a small file may hold in compressed form, and how many times its own size a large one may.
_MAX_UNPACKED, _MAX_RATIO = 2**25, 64
_MAX_JSON, _MAX_DEPTH = 2**20, 64
# Far above the header of any real model: some 15,000 tensors.
_MAX_HEADER = 2**21
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def open_plain(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a plain file to read it.

    Raises:
        OSError: it is missing, a folder, a device, a pipe or a sparse file, or cannot be opened.
    """
    # Opening a device may have effects, and opening a pipe may wait. What was opened is looked at once more.
    _require_plain(path, os.stat(path).st_mode)
    file = open(os.open(path, READ), "rb")  # noqa: SIM115 (the caller closes it)
    try:
        status = os.fstat(file.fileno())
        _require_plain(path, status.st_mode)
        if is_sparse(file.fileno(), status):
            raise OSError(errno.EINVAL, f"expected {status.st_size} bytes, got a sparse file", str(path))
    except BaseException:
        file.close()
        raise
    return file


def _require_plain(path: str | os.PathLike[str], mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "a device")
        raise OSError(errno.EINVAL, f"expected a plain file, got {kind}", str(path))


def require_unpacked(size: int, packed: int) -> None:
    """Refuse to unpack far more bytes than real data of this compressed size have.

    Raises:
        ValueError: the bytes are too many.
    """
    limit = _MAX_UNPACKED + _MAX_RATIO * packed
    if size > limit:
        raise ValueError(f"expected at most {limit} bytes in {packed} compressed bytes, got {size}")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file of at most 1 MiB, nested at most 64 deep.

    Raises:
        OSError: the file is missing or not a plain file.
        ValueError: the file is too large, nested too deep, or no JSON.
    """
    with open_plain(path) as file:
        content = file.read(_MAX_JSON + 1)
    if len(content) > _MAX_JSON:
        raise ValueError(f"expected at most {_MAX_JSON} bytes, got more")
    try:
        document = json.loads(content)
    except RecursionError:
        raise ValueError(f"expected values nested at most {_MAX_DEPTH} deep") from None
    level, depth = [document], 0
    while level:
        if depth > _MAX_DEPTH:
            raise ValueError(f"expected values nested at most {_MAX_DEPTH} deep")
        inner = [
            value.values() if isinstance(value, dict) else value for value in level if isinstance(value, dict | list)
        ]
        level, depth = [value for values in inner for value in values], depth + 1
    # Half of a surrogate pair can be read, and not be written again.
    json.dumps(document, ensure_ascii=False).encode()
    return document


def open_safetensors(path: str | os.PathLike[str], max_header: int = _MAX_HEADER) -> io.BufferedReader:
    """Open a safetensors file whose header has a bounded size.

    Raises:
        OSError: it is missing or not a plain file.
        ValueError: its header is too large.
    """
    file = open_plain(path)
    size = int.from_bytes(file.read(8), "little")
    file.seek(0)
    if size > max_header:
        file.close()
        raise ValueError(f"expected a header of at most {max_header} bytes, got {size}")
    return file
