"""Files that are whole or absent: written under a temporary name, synced, renamed."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from .errors import VaeError

__all__ = ["sync_folder", "write_atomic"]


def write_atomic(path: str | os.PathLike[str], write: bytes | Callable[[IO[bytes]], None]) -> None:
    """Write a file so that the path holds its old content or all of the new, whatever interrupts it.

    Args:
        path: the file to write; its folder must exist.
        write: the content, or a function that writes it to the open binary file it is given.

    Raises:
        VaeError: the folder is missing or not writable, or the disk is full; nothing is left behind.
    """
    target = Path(path)
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    except OSError as error:
        raise VaeError(
            f"{target}: cannot write here: {error.strerror}; choose a folder that exists and is writable"
        ) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            if isinstance(write, bytes):
                file.write(write)
            else:
                write(file)
            file.flush()
            os.fsync(file.fileno())
            # mkstemp makes files private; a result has the permissions any other new file would get
            if hasattr(os, "fchmod"):
                os.fchmod(file.fileno(), 0o666 & ~_umask())
        os.replace(temporary, target)
        sync_folder(target.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise VaeError(
                f"{target}: not written: {error.strerror}; free some space or choose another place"
            ) from error
        raise


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Make a rename inside `folder` survive a power failure, where the system can (POSIX)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    # The process's mask can be read only by setting it, which races with other threads; Linux shows it in /proc.
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("Umask:"):
                    return int(line.split()[1], 8)
    except OSError:
        pass
    return 0o022
