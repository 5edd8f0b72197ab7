"""Where the files of a job are kept: a folder of this machine."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from .errors import VaeError
from .files import locked, write_atomic

__all__ = ["Folder", "open_store"]


class Folder:
    """A folder; files in it are whole or absent."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    def __str__(self) -> str:
        return str(self._path)

    @contextlib.contextmanager
    def held(self, *, shared: bool) -> Iterator[None]:
        """Make the folder if need be and keep other calls out of it, but for those that share it too.

        Raises:
            VaeError: it cannot be made, or another call holds it.
        """
        try:
            self._path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise VaeError(f"{self}: cannot be made: {error.strerror}; choose another place") from error
        try:
            with locked(self._path, shared=shared):
                if not shared:
                    self._clean_up()
                yield
        except BlockingIOError:
            raise VaeError(
                f"{self}: another call is at work in this folder; wait for it, or give another place"
            ) from None

    def names(self) -> list[str]:
        """The names of what is there, without hidden files."""
        try:
            return sorted(entry.name for entry in os.scandir(self._path) if not entry.name.startswith("."))
        except FileNotFoundError:
            return []

    def path(self, name: str) -> Path | None:
        """Where a file lies on this machine; None where it would have to be fetched."""
        return self._path / name

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if there is none.

        Raises:
            VaeError: it cannot be read.
        """
        try:
            return (self._path / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise VaeError(f"{self._path / name}: cannot be read: {error.strerror}") from error

    def write(self, name: str, content: bytes | Callable[[IO[bytes]], None]) -> None:
        """Write a file, whole or not at all: its content, or what writes it to the open file it is given.

        Raises:
            VaeError: it cannot be written.
        """
        write_atomic(self._path / name, content)

    def size(self, name: str) -> int | None:
        """The bytes of a file; None if there is none."""
        try:
            return (self._path / name).stat().st_size
        except OSError:
            return None

    def sha256(self, name: str) -> str:
        """The SHA-256 of a file.

        Raises:
            VaeError: it cannot be read.
        """
        try:
            with (self._path / name).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise VaeError(f"{self._path / name}: cannot be read: {error.strerror}") from error

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path / name)

    def free(self) -> int | None:
        """How many bytes may still be written; None where nobody knows."""
        return shutil.disk_usage(self._path).free

    def _clean_up(self) -> None:
        """Remove the temporary files of calls that were killed; only where no other call is at work."""
        ours = re.compile(r"\.(shard-[0-9]+\.[a-z]+|job\.json|index\.json)\.[^.]+\.tmp")
        with os.scandir(self._path) as entries:
            for left in [entry.path for entry in entries if ours.fullmatch(entry.name)]:
                with contextlib.suppress(OSError):
                    os.unlink(left)


def open_store(out: str | os.PathLike[str]) -> Folder:
    """The store at a place, which need not be there yet."""
    return Folder(out)
