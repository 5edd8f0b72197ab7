"""A checkpoint: `model.safetensors` (weights) and `config.json` (what they are, and what they were trained on)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from vae_runtime.errors import InputError, error_line, one_line
from vae_runtime.files import write_atomic
from vae_runtime.input_files import open_plain, open_safetensors, read_json
from vae_runtime.manifest import Normalisation

from ..loading import load_model
from ..understand.inner import module_of
from .config import DataConfig, ModelConfig, TrainConfig
from .data.dataset import Dataset, Provenance
from .data.dataset import load as load_data
from .likelihood import kind_named
from .model import VAE
from .own_model import OwnModel

_Record = TypeVar("_Record")

FORMAT_VERSION = 3
"""The version of `config.json` that is written."""
# Versions 1 and 2 split data by a permutation of their rows. In version 1 the provenance's `license` is `licence`.
_READ_VERSIONS = (1, 2, FORMAT_VERSION)
DATA = "data"
"""The folder of a run's data, where its source had to be converted."""
_FOREIGN = "it does not belong to the config.json in its folder: restore the right one, or train again"


@dataclass(frozen=True)
class TrainResult:
    """How a finished training ended. Bounds are of the validation data, in nats per observation."""

    epochs: int
    """Epochs trained."""
    best_epoch: int
    """The epoch (from 1) whose weights are the checkpoint: the one with the largest validation bound."""
    stopped_early: bool
    elbo: float
    """ELBO of the best epoch; `reconstruction − kl`."""
    reconstruction: float
    kl: float
    bound: float
    """Importance-weighted bound of the best epoch, with `importance_samples` of the training configuration."""
    seconds: float
    """Time spent in epochs, interruptions not counted."""


@dataclass(frozen=True)
class Found:
    """What a training found in its data."""

    normalisation: Normalisation | None = None
    """From raw data to the model's observations; None where they are the same."""
    skipped: tuple[str, ...] = ()
    """The first few damaged rows that were left out: the place of each, and why."""
    classes: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """The names of the classes of each condition; empty for a condition without."""

    @classmethod
    def from_json(cls, fields: Any) -> Found:
        """Return what `asdict` has made JSON values of.

        Raises:
            TypeError: a field is missing, unknown or mistyped.
        """
        _require_fields(cls, fields, "found")
        raw, skipped, classes = fields["normalisation"], fields["skipped"], fields["classes"]
        if not isinstance(classes, dict):
            raise TypeError(f"found.classes: expected an object, got {classes!r:.99}")
        for texts in (skipped, *classes.values()):
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise TypeError(f"found: expected lists of texts, got {texts!r:.99}")
        if raw is not None and (not isinstance(raw, dict) or set(raw) != {"offset", "divisor"}):
            raise TypeError(f"found.normalisation: expected an object with offset and divisor, got {raw!r:.99}")
        return cls(
            None if raw is None else Normalisation(**{name: _numbers(value, name) for name, value in raw.items()}),
            tuple(skipped),
            {str(name): tuple(names) for name, names in classes.items()},
        )


def _numbers(value: Any, name: str) -> float | tuple[float, ...]:
    """A finite number or a tuple of them; positive, if it is the divisor."""
    for number in value if isinstance(value, list) and value else [value]:
        # Not math.isfinite, which fails for an integer that no float can hold.
        fits = isinstance(number, int | float) and not isinstance(number, bool) and abs(number) < 2**127
        if not fits or (name == "divisor" and number <= 0):
            raise TypeError(f"found.normalisation.{name}: expected finite numbers, got {number!r:.99}")
    return tuple(map(float, value)) if isinstance(value, list) else float(value)


@dataclass(frozen=True)
class Stage:
    """By what the epochs of a run from one on were trained."""

    epoch: int
    """The first of them, from 1."""
    vae_export: str
    """The version of vae-export."""
    torch: str
    device: str
    processes: int
    compiled: bool

    @property
    def versions(self) -> str:
        """The versions in words."""
        return f"vae-export {self.vae_export} with PyTorch {self.torch}"

    def after(self, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        """Return the stages of a run that this one follows: without those epochs that are repeated."""
        kept = tuple(stage for stage in stages if stage.epoch < self.epoch)
        return kept if kept and replace(self, epoch=kept[-1].epoch) == kept[-1] else (*kept, self)


@dataclass(frozen=True)
class Start:
    """A finished run whose weights another run began with."""

    digest: str
    """`sha256:` and the hash of its `model.safetensors`."""
    epoch: int
    """The epoch whose weights they are."""
    data: str
    """The name of its data."""
    data_digest: str
    license: str
    """The license of its data."""
    split_seed: int
    validation_fraction: float
    test_fraction: float
    train: TrainConfig
    """How it was trained."""

    @property
    def split(self) -> dict[str, float]:
        """How its data were split, by the names of the fields of a `DataConfig`."""
        return {
            "seed": self.split_seed,
            "validation_fraction": self.validation_fraction,
            "test_fraction": self.test_fraction,
        }

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, of which `from_json` makes an equal record."""
        return {**vars(self), "train": self.train.to_json()}

    @classmethod
    def from_json(cls, fields: Any) -> Start:
        """Return the record of a JSON object.

        Raises:
            InputError, TypeError: a field is missing, unknown or mistyped.
        """
        _require_fields(cls, fields, "starts")
        try:
            train = TrainConfig.from_json(fields["train"])
        except InputError as error:
            raise InputError(f"starts: {error}") from error
        start = record(cls, {**fields, "train": train}, "starts")
        # They stand on the card of a bundle.
        if not re.fullmatch("sha256:[0-9a-f]{64}", start.digest) or start.epoch < 1:
            raise TypeError(f"starts: expected a digest and an epoch, got {start.digest!r:.99} and {start.epoch}")
        for text in (start.data, start.license):
            if not text.isprintable():
                raise TypeError(f"starts: expected printable text, got {text!r:.99}")
        return start


@dataclass(frozen=True)
class RunInfo:
    """The content of a run's `config.json`."""

    model: ModelConfig | OwnModel
    train: TrainConfig
    data: DataConfig
    provenance: Provenance
    torch_version: str
    found: Found = Found()
    result: TrainResult | None = None
    """None until training has finished."""
    version: int = FORMAT_VERSION
    """The format version of the `config.json` that was read."""
    stages: tuple[Stage, ...] = ()
    """The run in the order of its epochs: one stage, or more where it went on elsewhere or by another version."""
    starts: tuple[Start, ...] = ()
    """The runs in which the weights were trained before, in their order; it began with those of the last one."""

    @property
    def surrogate(self) -> bool:
        """Whether figures are of a surrogate: gray values under a bernoulli likelihood, which is defined on {0, 1}."""
        gray = self.train.binarise == "none" and not self.provenance.binary
        return gray and kind_named(self.model.likelihood).binary

    @property
    def outdated(self) -> str:
        """How an error describes a run whose data were split otherwise than they are now; empty for a run of today."""
        if self.version == FORMAT_VERSION:
            return ""
        return (
            f"expected a run that splits its data by their content (format_version {FORMAT_VERSION}), got one of "
            f"format_version {self.version}, made by an earlier version of vae-export"
        )


def write_info(folder: Path, info: RunInfo) -> None:
    """Write `config.json`."""
    content = {
        "format_version": FORMAT_VERSION,
        "model": info.model.to_json(),
        "train": info.train.to_json(),
        "data": info.data.to_json(),
        "provenance": asdict(info.provenance),
        "torch_version": info.torch_version,
        "starts": [start.to_json() for start in info.starts],
        "stages": [asdict(stage) for stage in info.stages],
        "found": asdict(info.found),
        "result": info.result and asdict(info.result),
    }
    write_atomic(folder / "config.json", (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def read_info(folder: Path) -> RunInfo:
    """Read `config.json`.

    Raises:
        InputError: the file is missing, no JSON, of an unknown format version, or has a missing or mistyped field.
    """
    path = folder / "config.json"
    if not path.exists():
        what = "holds no config.json" if folder.is_dir() else "no such folder"
        raise InputError(f"{folder}: {what}; give the folder of a run that `vae-export train` made")
    try:
        content: Any = read_json(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give the folder of a run that `vae-export train` made") from error
    except ValueError as error:
        raise InputError(f"{path}: expected JSON: {error_line(error)}; restore it or train again") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version not in _READ_VERSIONS:
        expected = " or ".join(map(str, _READ_VERSIONS))
        step = "update vae-export or train again"
        if version is None:
            step = "give the folder of a run that `vae-export train` made"
        raise InputError(f"{path}: expected format_version {expected}, got {version!r:.99}; {step}")
    try:
        result, provenance = content["result"], content["provenance"]
        if version == 1 and isinstance(provenance, dict) and "licence" in provenance:
            provenance["license"] = provenance.pop("licence")
        return RunInfo(
            model=_model_of(content["model"]),
            train=TrainConfig.from_json(content["train"]),
            data=DataConfig.from_json(content["data"]),
            provenance=record(Provenance, provenance, "provenance"),
            torch_version=str(content["torch_version"]),
            found=Found.from_json(content["found"]) if version == FORMAT_VERSION else Found(),
            result=None if result is None else record(TrainResult, result, "result"),
            version=version,
            stages=tuple(record(Stage, stage, "stages") for stage in _list_of(content, "stages")),
            starts=tuple(map(Start.from_json, _list_of(content, "starts"))),
        )
    except InputError as error:
        raise InputError(f"{path}: {error}; restore it or train again") from error
    except KeyError as error:
        raise InputError(f"{path}: the field {error} is missing; restore it or train again") from error
    except TypeError as error:
        raise InputError(f"{path}: {error_line(error)}; restore it or train again") from error


def _list_of(content: Mapping[str, Any], name: str) -> list[Any]:
    """A list of a `config.json`; empty where a version did not have it."""
    items = content.get(name, [])
    if not isinstance(items, list):
        raise TypeError(f"{name}: expected a list, got {items!r:.99}")
    return items


def _model_of(fields: Any) -> ModelConfig | OwnModel:
    own = isinstance(fields, dict) and "factory" in fields
    return OwnModel.from_json(fields) if own else ModelConfig.from_json(fields)


def record(kind: type[_Record], fields: Any, place: str) -> _Record:
    """Return a dataclass of text, numbers, flags and checked configurations.

    Args:
        kind: the dataclass.
        fields: the JSON object of its fields; one that has a default may be left out.
        place: what an error calls the object.

    Raises:
        TypeError: it is no object, or a field is missing, unknown or not of its declared type.
    """
    _require_fields(kind, fields, place)
    for item in dataclasses.fields(cast(Any, kind)):
        if item.name not in fields:
            continue
        value = fields[item.name]
        # JSON has one kind of number: 3 is a float too.
        kinds = {"str": (str,), "bool": (bool,), "int": (int,), "float": (int, float), "TrainConfig": (TrainConfig,)}[
            str(item.type)
        ]
        # An integer beyond any of ours could be written nowhere.
        if type(value) not in kinds or (isinstance(value, int) and abs(value) > 2**64):
            raise TypeError(f"{place}.{item.name}: expected {item.type}, got {value!r:.99}")
    return kind(**fields)


def _require_fields(kind: type, fields: Any, place: str) -> None:
    """Refuse what is no JSON object with the fields of a dataclass."""
    if not isinstance(fields, Mapping):
        raise TypeError(f"{place}: expected an object, got {fields!r:.99}")
    declared = dataclasses.fields(kind)
    names = [item.name for item in declared]
    for name in fields:
        if name not in names:
            raise TypeError(f"{place}.{one_line(name)[:99]}: no such field; the fields are {', '.join(names)}")
    for item in declared:
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and item.name not in fields:
            raise TypeError(f"{place}.{item.name}: the field is missing")


def save_weights(folder: Path, weights: dict[str, Tensor]) -> None:
    """Write `model.safetensors`."""
    write_atomic(folder / "model.safetensors", safetensors.torch.save(separate(weights)))


def separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as safetensors takes them: contiguous, and none in the memory of another, as tied weights are."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        own = tensor.contiguous()
        result[name] = own.clone() if own.data_ptr() in seen else own
        seen.add(own.data_ptr())
    return result


def weights_digest(folder: Path) -> str:
    """Return `sha256:` and the hash of `model.safetensors`.

    Raises:
        InputError: the file cannot be read.
    """
    path = folder / "model.safetensors"
    try:
        with open_plain(path) as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; train the run again, or restore the file") from error


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Read `model.safetensors`.

    Raises:
        InputError: it is missing or damaged.
    """
    return read_weights(folder)[1]


def read_weights(folder: Path) -> tuple[str, dict[str, Tensor]]:
    """Read `model.safetensors` once, and return what `weights_digest` and `load_weights` do.

    Raises:
        InputError: it is missing or damaged.
    """
    path = folder / "model.safetensors"
    try:
        with open_safetensors(path) as file:
            content = file.read()
        return f"sha256:{hashlib.sha256(content).hexdigest()}", safetensors.torch.load(content)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; restore it or train again") from error
    except (SafetensorError, ValueError) as error:
        raise InputError(
            f"{path}: expected a whole safetensors file: {error_line(error)}; restore it or train again"
        ) from error


def load(folder: str | Path, model: nn.Module | None = None) -> tuple[nn.Module, RunInfo]:
    """Load the best weights of a run, in evaluation mode, with what is known about them; a built-in model is frozen.

    Args:
        folder: of the run.
        model: the module of a run whose model is not built in, which takes the weights; without it the run's factory
            makes one, which runs its code.

    Raises:
        InputError: a file is missing or damaged, or a tensor is missing, left over, or of another shape or type; or a
            model is needed, or given for a run of a built-in one.
    """
    folder = Path(folder)
    info = read_info(folder)
    if isinstance(info.model, OwnModel):
        module = _own_module(folder, info.model, model)
        foreign = f"{info.model.factory or 'model='} gives another model than the one that was trained: restore it"
        load_into(module, folder, load_weights(folder), foreign)
        return module.eval(), info
    if model is not None:
        raise InputError(f"{folder}: model: expected none for a run of a built-in model; leave it out")
    with torch.device("meta"):  # weights that are about to be read are not drawn first
        vae = VAE(info.model)
    load_into(vae.to_empty(device="cpu"), folder, load_weights(folder), _FOREIGN)
    return vae.eval().requires_grad_(False), info


def load_into(module: nn.Module, folder: Path, tensors: Mapping[str, Tensor], foreign: str) -> None:
    """Let a module take the weights of a run.

    Args:
        module: it is not changed if the weights are not its own.
        folder: of the run, for errors.
        tensors: its weights.
        foreign: what an error says that the weights of another model are.

    Raises:
        InputError: a tensor is missing, left over, or of another shape or type.
    """
    _require_tensors(folder, module.state_dict(), tensors, foreign)
    module.load_state_dict(tensors)


def _own_module(folder: Path, recorded: OwnModel, model: nn.Module | None) -> nn.Module:
    if model is not None:
        return module_of(model)
    if recorded.factory is None:
        raise InputError(
            f"{folder}: the model of this run, {recorded.class_name}, was given in Python without a name; give it "
            "again in Python, as in export(run, bundle, model=MyVAE())"
        )
    return module_of(load_model(recorded.factory, None))


def _require_tensors(folder: Path, expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], foreign: str) -> None:
    """Refuse weights that are not those of a model; the message ends with `foreign`."""
    path = folder / "model.safetensors"
    for name, tensor in expected.items():
        got = _kind(tensors[name]) if name in tensors else "none"
        if got != _kind(tensor):
            raise InputError(f"{path}: tensor {name}: expected {_kind(tensor)}, got {got}; {foreign}")
    for name, tensor in tensors.items():
        if name not in expected:
            raise InputError(f"{path}: tensor {name}: expected no tensor of this name, got {_kind(tensor)}; {foreign}")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def run_data(info: RunInfo, source: str | None = None, run: Path | None = None) -> Dataset:
    """Load the data that a run was trained on.

    Args:
        info: the run.
        source: where they are now, if not where they were.
        run: the run's folder, which may hold its data in converted form.

    Raises:
        InputError: they are missing or damaged, or other data; or the run is of a version that split them otherwise.
    """
    if source == "":
        raise InputError("data: expected the place of the run's data, got ''; give their file or folder")
    config = info.data if source is None else replace(info.data, source=source)
    try:
        dataset = load_data(config, run / DATA if run and source is None else None, info.found.normalisation)
    except InputError as error:
        raise InputError(f"{error}; say with --data where the run's data are now") from error
    if dataset.provenance.digest != info.provenance.digest:
        raise InputError(
            f"{config.source}: expected the run's data ({info.provenance.name}, {info.provenance.digest}), got "
            f"{dataset.provenance.digest}; say with --data where they are now"
        )
    if info.outdated and dataset.test.source is dataset.train.source:
        raise InputError(f"{config.source}: {info.outdated}, whose test data would differ; train again")
    return dataset
