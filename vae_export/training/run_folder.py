"""The folder of a run: what it may hold, and whether what it holds is the run that is asked for."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vae_runtime.errors import InputError, error_line
from vae_runtime.files import another_place

from ..errors import TrainingError
from .checkpoint import DATA, RunInfo
from .config import DataConfig, ModelConfig, TrainConfig

STATE = "state.safetensors"
"""The file from which an interrupted run goes on."""
SAMPLES = "samples"
"""The folder of small samples by epoch."""
RECORDED = "recorders.json"
"""The file that says what each recorder has taken."""
_RESULTS = ("config.json", "model.safetensors", "metrics.jsonl", "curve.png", "samples.png", "report.html", RECORDED)
# Folders of samples and of what recorders write.
_FOLDERS = (SAMPLES, "tensorboard", "wandb")


def identity(info: RunInfo) -> dict[str, Any]:
    """Return the fields that must be equal to resume a run. Data may have moved, so only their digest counts."""
    split = {name: value for name, value in info.data.to_json().items() if name not in ("source", "workers", "labels")}
    train = {name: value for name, value in info.train.to_json().items() if name not in TrainConfig.machine}
    model = info.model.to_json()
    # Words, which another version may choose otherwise.
    model.pop("recognised", None)
    return {
        "model": model,
        # The run that it began with may have moved, too.
        "train": {**train, "start_from": info.starts[-1].digest if info.starts else ""},
        "data": {**split, "split": "by content", "digest": info.provenance.digest},
    }


def _require_same_kind(folder: Path, found: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse a built-in model where the run has one of the user's, or the reverse: nearly every field differs."""
    if ("factory" in found) == ("factory" in asked):
        return
    if "factory" in found:
        name = found["factory"]
        held = f"a model of your own, {name}; give it again (--model {name})" if name else (
            "a model of your own that was given as a module; give it again, in Python"
        )  # fmt: skip
    else:
        held = f"the built-in architecture {found.get('architecture')}; leave your model out"
    raise TrainingError(f"{folder}: holds a run of {held}, or choose another folder")


def require_same(folder: Path, found: dict[str, Any], asked: dict[str, Any]) -> None:
    """Refuse to go on with another run.

    Args:
        folder: of the run.
        found, asked: the identities of the run in the folder and of the one that is asked for.

    Raises:
        TrainingError: they differ; the message lists each field.
    """
    _require_same_kind(folder, found["model"], asked["model"])
    # A version that did not have a field did what its default does.
    defaults = {config.place: config().to_json() for config in (ModelConfig, TrainConfig, DataConfig)}
    if "factory" in found["model"]:
        # A model of the user's, which has other fields.
        defaults[ModelConfig.place] = {}
    wrong = [
        line
        for section, fields in asked.items()
        for line in differences(section, {**defaults[section], **found[section]}, fields)
    ]
    if wrong:
        raise TrainingError(f"{folder}: holds another run: {'; '.join(wrong)}; choose another folder")


def differences(section: str, found: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Return a line for each field of a section that a run has another value of than was asked for."""
    return [
        f"{section}.{name} is {found.get(name)!r:.99}, asked for {value!r}"
        for name, value in asked.items()
        if found.get(name) != value
    ]


def require_version(folder: Path, found: RunInfo) -> None:
    """Refuse to go on with a run of a version that split its data otherwise.

    Raises:
        TrainingError: it is one.
    """
    if found.outdated:
        raise TrainingError(f"{folder}: {found.outdated}; choose another folder")


def require_own(folder: Path) -> None:
    """Refuse a folder with files that are not a run's.

    Raises:
        InputError: it has one.
    """
    for name in sorted(path.name for path in folder.iterdir()):
        # Names with a dot are the lock's and those of files in the making.
        if not name.startswith(".") and name not in (STATE, DATA, *_RESULTS, *_FOLDERS):
            raise InputError(f"{folder}: expected an empty folder or a run's, got one with {name}; choose another")


def require_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written, before an epoch is trained for it.

    Raises:
        InputError: it is one.
    """
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{folder}: cannot write here: {error_line(error)}; {another_place(error)}") from error


def clean(folder: Path) -> None:
    """Remove the resume state of a finished run, and files that a kill left incomplete, where that is possible."""
    leftovers = [folder / STATE, *(folder / SAMPLES).glob(".*.tmp")]
    for name in (STATE, *_RESULTS):
        leftovers += folder.glob(f".{name}.*.tmp")
    for leftover in leftovers:
        # A finished run is whole with them, and may lie where nothing can be written.
        with contextlib.suppress(OSError):
            leftover.unlink()
