"""WebDataset: tar files in which the files of one row lie side by side and share a name."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from vae_runtime.arrays import require_npy
from vae_runtime.errors import InputError, error_line
from vae_runtime.input_files import open_plain

from ..pictures import SUFFIXES
from ..source import Batch, Damaged, Stream
from .values import row

# Bytes of one file: far above a picture or an array of a row.
_MAX_FILE = 2**28
_Files = dict[str, bytes]


class _Member(tarfile.TarInfo):
    """The header of a file in a tar file."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Read a header; tarfile takes one that is damaged or missing for the end, unless the error is another."""
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                # What ends a tar file.
                raise
            raise tarfile.ReadError(str(error)) from None


def expanded(pattern: str) -> list[Path]:
    """Return the files of a name, in which {000..009} stands for each number between."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not found:
        return [Path(pattern)]
    first, last = found.groups()
    numbers = [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
    return [path for number in numbers for path in expanded(pattern[: found.start()] + number + pattern[found.end() :])]


def webdataset(pattern: str, conditions: Mapping[str, str], columns: Sequence[str]) -> Stream:
    """Read the rows of tar files from front to back.

    Args:
        pattern: the name of a file, or of several by braces.
        conditions: the file of each condition by its name, such as `cls`, or a field of the row's .json file.
        columns: the ending of the file that is the observation, such as `png`; empty: the picture or .npy file.

    Raises:
        InputError: a file is missing.
    """
    paths = expanded(pattern)
    if not paths:
        raise InputError(f"{pattern}: expected numbers that rise, got none between them; write {{000..009}}")
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path}: no such file; give tar files, several as shards-{{000..009}}.tar")
    name = re.sub(r"[-_.]*(\{.*?\}[-_.]*)+", "", Path(pattern).name).removesuffix("tar").rstrip(".") or "shards"
    return Stream(name, _items(paths, conditions, columns), {})


def _items(paths: list[Path], conditions: Mapping[str, str], columns: Sequence[str]) -> Iterator[Batch | Damaged]:
    for path in paths:
        for key, files in _rows(path):
            place = f"{path}: {key}"
            try:
                found = {ending: _value(ending, content) for ending, content in files.items()}
            except (ValueError, RecursionError) as error:
                yield Damaged(place, error_line(error))
                continue
            fields = found.get("json")
            found = {**(fields if isinstance(fields, dict) else {}), **found}
            own = columns or [each for each in files if f".{each.lower()}" in (*SUFFIXES, ".npy")][:1]
            if not own:
                yield Damaged(place, f"expected a picture or an .npy file, got {', '.join(files)}")
                continue
            yield row(place, found, conditions, own)


def _rows(path: Path) -> Iterator[tuple[str, _Files]]:
    """The rows of a tar file: their name, and the content of each file by what follows the first dot of its name."""
    key, files = "", _Files()
    try:
        with open_plain(path) as file, tarfile.open(fileobj=file, mode="r|*", tarinfo=_Member) as archive:
            for member in archive:
                if not member.isfile():
                    continue
                folder, sign, name = member.name.rpartition("/")
                stem, _, ending = name.partition(".")
                if folder + sign + stem != key:
                    if files:
                        yield key, files
                    key, files = folder + sign + stem, {}
                if member.size > _MAX_FILE:
                    raise InputError(f"{path}: {member.name}: expected at most {_MAX_FILE} bytes, got {member.size}")
                content = archive.extractfile(member)
                files[ending] = content.read() if content else b""
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise InputError(f"{path}: expected a whole tar file: {error_line(error)}; fetch it again") from error
    if files:
        yield key, files


def _value(ending: str, content: bytes) -> Any:
    """Return what a file of a row holds.

    Raises:
        ValueError: it is damaged.
    """
    last = ending.rpartition(".")[2].lower()
    if last == "npy":
        file = io.BytesIO(content)
        require_npy(file, len(content))
        return np.load(file, allow_pickle=False)
    if last == "json":
        return json.loads(content)
    if last in ("cls", "cls2", "index"):
        return int(content)
    return content.decode().strip() if last in ("txt", "text") else content
