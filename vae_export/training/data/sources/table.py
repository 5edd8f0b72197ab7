"""The table of sources: find the one that a configuration names."""

from __future__ import annotations

from pathlib import Path

from vae_runtime.errors import InputError

from ...config import DataConfig
from ..source import Addressed, Stream
from .digits import digits
from .idx import idx
from .images import images
from .npy import npy

_KNOWN = "`digits`, a .npy file, or a folder with IDX files or images"


def open_source(config: DataConfig) -> Addressed | Stream:
    """Return the source of a configuration. A stream has read nothing yet.

    Raises:
        InputError: it is missing, damaged, or has none of the conditions that are asked for.
    """
    if config.source == "digits":
        _label_alone(config)
        return digits()
    path = Path(config.source)
    if path.is_file():
        if path.suffix != ".npy":
            raise InputError(f"{path}: expected a .npy file or a folder; convert it with numpy.save")
        return npy(path, config.places())
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder; give {_KNOWN}")
    labels = _label_alone(config)
    if any(path.glob("*-images?idx3-ubyte*")):
        return idx(path, labels)
    return images(path, labels, config.workers)


def _label_alone(config: DataConfig) -> bool:
    """Return whether the condition `label` is asked for, and refuse any other."""
    for name, place in config.places().items():
        if (name, place) != ("label", "label"):
            raise InputError(
                f"data.conditions: {config.source} has the condition label alone, got {name!r:.99}; leave it out"
            )
    return bool(config.conditions)
