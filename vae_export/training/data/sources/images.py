"""A folder of pictures of one size, in one folder or in a folder for each class, read by several processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vae_runtime.errors import InputError
from vae_runtime.input_files import require_unpacked

from ..pictures import SUFFIXES, read_picture
from ..source import Batch, Damaged, Stream

# Pictures that one task of a process reads: few enough to hold at once, enough to outweigh their way back.
_TASK = 32
_Read = tuple[NDArray[np.uint8], int] | str


def images(folder: Path, labels: bool, workers: int) -> Stream:
    """Read the pictures of a folder in the order of their names, as uint8 [C, H, W].

    Args:
        folder: with pictures, or with folders of pictures, each of a class.
        labels: give the name of a picture's folder as the condition `label`.
        workers: processes that read; 1: this one.

    Raises:
        InputError: there is no picture, or some lie beside folders of classes; or labels are asked for and there are no
            such folders.
    """
    paths = _pictures(folder)
    inner = [path for each in sorted(folder.iterdir()) if each.is_dir() for path in _pictures(each)]
    if paths and inner:
        raise InputError(
            f"{folder}: expected pictures, or a folder of pictures for each class, got both: {paths[0].name} and "
            f"{inner[0].relative_to(folder)}; move one of them away"
        )
    classed = not paths
    paths = paths or inner
    if not paths:
        raise InputError(
            f"{folder}: expected images, IDX files or Parquet files, got none of them; add some, or give another folder"
        )
    if labels and not classed:
        raise InputError(
            f"{folder}: expected a folder for each class, whose name is the label, got pictures; move them, or leave "
            "out the condition"
        )
    classes = sorted({path.parent.name for path in paths}) if labels else []
    return Stream(folder.name, _items(paths, classes, workers), {"label": classes} if labels else {})


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


def _items(paths: list[Path], classes: list[str], workers: int) -> Iterator[Batch | Damaged]:
    number = {name: index for index, name in enumerate(classes)}
    packed = unpacked = 0
    for path, read in zip(paths, _read_all(paths, workers), strict=True):
        if isinstance(read, str):
            yield Damaged(str(path), read)
            continue
        picture, size = read
        packed, unpacked = packed + size, unpacked + picture.nbytes
        try:
            require_unpacked(unpacked, packed)
        except ValueError as error:
            raise InputError(f"{path}: {error}; remove such pictures") from None
        labels = {"label": np.array([number[path.parent.name]])} if classes else {}
        yield Batch(str(path), picture[None], labels)


def _read_all(paths: list[Path], workers: int) -> Iterator[_Read]:
    tasks = [paths[start : start + _TASK] for start in range(0, len(paths), _TASK)]
    workers = min(workers, len(tasks))
    if workers == 1:
        for task in tasks:
            yield from _read(task)
        return
    # Not forked: this process has threads of PyTorch.
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        waiting: deque[Future[list[_Read]]] = deque()
        try:
            # A few tasks ahead, so that memory does not grow with the number of pictures.
            for task in tasks:
                waiting.append(pool.submit(_read, task))
                if len(waiting) > 2 * workers:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _read(paths: Iterable[Path]) -> list[_Read]:
    """Read pictures; a text in the place of one says what is wrong with it."""
    results: list[_Read] = []
    for path in paths:
        try:
            results.append(read_picture(path))
        except ValueError as error:
            results.append(str(error))
    return results
