"""The table of sources: find the one that a configuration names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from vae_runtime.errors import InputError

from ...config import DataConfig
from ..source import Addressed, Stream
from .digits import digits
from .hub import hub
from .idx import idx
from .images import images
from .npy import npy
from .parquet import parquet
from .torch_data import torch_data
from .webdataset import webdataset

_KNOWN = (
    "`digits`, a .npy or .parquet file, tar files, a folder with IDX files, Parquet files or images, hf:NAME, or "
    "package.module:name"
)


def open_source(config: DataConfig, given: Any = None) -> Addressed | Stream:
    """Return the source of a configuration. A stream has read nothing yet.

    Args:
        config: the source.
        given: a Dataset or a DataLoader of PyTorch in its place, which the source then only names.

    Raises:
        InputError: it is missing, damaged, or has none of the conditions that are asked for.
    """
    if given is not None:
        return torch_data(config.source, config.places(), config.columns, given)
    if config.source == "digits":
        _label_alone(config)
        return digits()
    places, path = config.places(), Path(config.source)
    if config.source.startswith("hf:"):
        return hub(config.source.removeprefix("hf:"), places, config.columns)
    if path.name.endswith((".tar", ".tar.gz", ".tgz")):
        return webdataset(config.source, places, config.columns)
    if path.suffix == ".parquet" or (path.is_dir() and any(path.glob("*.parquet"))):
        return parquet(_present(path), places, config.columns)
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", config.source) and not path.exists():
        return torch_data(config.source, places, config.columns)
    if config.columns:
        raise InputError(f"data.columns: {config.source} has none; leave them out")
    if path.is_file():
        if path.suffix != ".npy":
            raise InputError(f"{path}: expected a .npy or .parquet file, tar files or a folder; convert it")
        return npy(path, places)
    if not _present(path).is_dir():
        raise InputError(f"{path}: expected a file or a folder, got a pipe or a device; save the data as a file")
    labels = _label_alone(config)
    if any(path.glob("*-images?idx3-ubyte*")):
        return idx(path, labels)
    return images(path, labels, config.workers)


def _present(path: Path) -> Path:
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give {_KNOWN}")
    return path


def _label_alone(config: DataConfig) -> bool:
    """Return whether the condition `label` is asked for, and refuse any other."""
    told = {text.partition("=")[0] for text in config.conditions}
    for name, place in config.places().items():
        if (name, place) != ("label", "label"):
            raise InputError(
                f"data.{'conditions' if name in told else 'labels'}: {config.source} has the condition label alone, "
                f"got {name!r:.99}; leave it out"
            )
    return bool(config.places())
