"""MNIST's IDX files: a folder with training and test images, and their labels if they are there."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_runtime.errors import InputError, counted, error_line
from vae_runtime.input_files import open_plain, require_unpacked

from ..part import Condition, Rows
from ..source import Addressed

_IMAGES, _LABELS = 0x00000803, 0x00000801  # unsigned bytes; three dimensions, one dimension


def idx(folder: Path, labels: bool) -> Addressed:
    """Read the images of a folder with their own test set.

    Args:
        folder: with `train-images-idx3-ubyte`, `t10k-images-idx3-ubyte`, or the same with .gz.
        labels: read `train-labels-idx1-ubyte` and `t10k-labels-idx1-ubyte` too, as the condition `label`.

    Raises:
        InputError: a file is missing or damaged, or does not fit the others.
    """
    train, test = (_images(_path(folder, part, "images", 3)) for part in ("train", "t10k"))
    if train.shape[1:] != test.shape[1:]:
        raise InputError(
            f"{folder}: expected training and test images of one size, got {list(train.shape[1:])} and "
            f"{list(test.shape[1:])}; take both from one data set"
        )
    own = [_labels(folder, part, len(images)) if labels else {} for part, images in (("train", train), ("t10k", test))]
    return Addressed(Rows(folder.name, train, 255, own[0]), Rows(folder.name, test, 255, own[1]))


def _labels(folder: Path, part: str, n: int) -> dict[str, Condition]:
    path = _path(folder, part, "labels", 1)
    content = _content(path, _LABELS, 1, "label")
    if len(content) != n:
        raise InputError(
            f"{path}: expected {counted(n, 'label')}, as many as images, got {len(content)}; take both from one set"
        )
    classes = tuple(map(str, range(int(content.max()) + 1)))
    return {"label": Condition(content.astype(np.int64), classes)}


def _images(path: Path) -> NDArray[np.uint8]:
    """Images of an IDX file, uint8 [n, 1, H, W]."""
    return _content(path, _IMAGES, 3, "image")[:, None]


def _path(folder: Path, part: str, what: str, axes: int) -> Path:
    for separator in "-.":
        for suffix in ("", ".gz"):
            path = folder / f"{part}-{what}{separator}idx{axes}-ubyte{suffix}"
            if path.is_file():
                return path
    name = f"{part}-{what}-idx{axes}-ubyte"
    raise InputError(f"{folder}: expected {name} or the same with .gz, got neither; add the file")


def _content(path: Path, expected: int, axes: int, what: str) -> NDArray[np.uint8]:
    """The bytes of an IDX file, of as many axes: big-endian magic, the sizes, then bytes."""
    start = 4 + 4 * axes
    try:
        with open_plain(path) as file:
            packed = os.fstat(file.fileno()).st_size
            opened: Any = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
            header = opened.read(start)
            if len(header) < start:
                raise InputError(f"{path}: expected an IDX header of {start} bytes, got {len(header)}; fetch it again")
            magic, *shape = struct.unpack(f">{1 + axes}I", header)
            if magic != expected:
                raise InputError(
                    f"{path}: expected magic number {expected:#010x} ({what}s), got {magic:#010x}; take the {what}s "
                    "file"
                )
            size = math.prod(shape)
            of = f" of {'×'.join(map(str, shape[1:]))}" if axes > 1 else ""
            if not size:
                raise InputError(f"{path}: expected at least one {what}, got {shape[0]}{of}; take another file")
            require_unpacked(size, packed)
            # One byte more shows a file that is too long.
            content = opened.read(size + 1)
    except InputError:
        raise
    except (OSError, EOFError, ValueError, zlib.error) as error:
        form = "gzip" if path.suffix == ".gz" else "IDX"
        raise InputError(f"{path}: expected a whole {form} file: {error_line(error)}; fetch it again") from error
    if len(content) != size:
        got = f"{start + len(content)}{' or more' if len(content) > size else ''}"
        raise InputError(f"{path}: expected {shape[0]} {what}s{of}, {start + size} bytes, got {got}; fetch it again")
    return np.frombuffer(content, np.uint8).reshape(shape)
