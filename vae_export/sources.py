"""Read the source of an export: the folder of a run, or a model with its examples."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from vae_runtime._version import __version__
from vae_runtime.columns import Column
from vae_runtime.errors import InputError, counted
from vae_runtime.manifest import Manifest, Normalisation

from .card import run_card
from .graphs.measurement import Observations
from .graphs.variants import CALIBRATED, MEASURED
from .training import checkpoint
from .training.checkpoint import RunInfo
from .training.data.batches import at_least_two, read
from .training.data.dataset import Dataset
from .training.data.part import Part
from .training.evaluation import binarise, read_evaluation
from .training.own_model import OwnModel
from .training.own_vae import again
from .understand.checks import class_names_of, observation_range
from .understand.declaration import Declaration
from .understand.edges import at_edge
from .understand.families.registry import decoder_data, object_data
from .understand.inner import module_of
from .understand.observation import require_axes

Array = NDArray[Any]

# Graphs are compared on so many observations. Further ones only serve to fit a prior.
EXAMPLES = 64
# The scores of so many held-out observations are measured.
HELD_OUT = 10_000
# Classes that a manifest names, at most.
_MAX_NAMED = 1000


@dataclass(frozen=True)
class Source:
    """A model to export, from a run or from a caller, with its data and its texts."""

    model: nn.Module
    example: Tensor
    declaration: Declaration
    conditions: Mapping[str, Tensor]
    classes: Mapping[str, Sequence[str]]
    observations: Tensor
    measured: Observations
    calibration: Observations
    name: str
    description: str
    normalisation: Normalisation | None = None
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    card: Callable[[Manifest, Mapping[str, int], bool], str] | None = None
    held_out: Observations | None = None
    """Observations that the model was not trained on, whose scores the bundle keeps."""
    holder: Any = None
    """The caller's object, if it is no module but holds one."""
    notes: tuple[str, ...] = ()
    """Lines on where the data came from."""
    latents: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    """Examples of the latents by name for a decoder alone; `example` and `observations` are then the first of them."""
    table: tuple[Column, ...] = ()
    """The columns of the table whose rows the observations are."""


@dataclass(frozen=True)
class Examples:
    """The data that the caller of `export` gives with a model."""

    example: ArrayLike | Tensor | None = None
    conditions: Mapping[str, ArrayLike | Tensor] | None = None
    class_names: Sequence[str] | Mapping[str, Sequence[str]] | None = None
    observations: ArrayLike | Tensor | None = None
    latents: ArrayLike | Tensor | Mapping[str, ArrayLike | Tensor] | None = None


def require_no_model_arguments(declaration: Declaration, examples: Examples) -> None:
    """Refuse what only a model takes, where a run is exported.

    Raises:
        InputError: the first such argument that was given.
    """
    values = {name: value for record in (declaration, examples) for name, value in vars(record).items()}
    for name, value in values.items():
        if value is not None and name != "class_names":
            raise InputError(f"{name}: expected nothing for a run, which states it itself; leave it out")


def run_source(
    run: Path,
    data: str | None,
    name: str | None,
    model: nn.Module | None = None,
    class_names: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
) -> Source:
    """Return the source of a run's folder.

    Args:
        run: the folder.
        data: where its data are now, if they were moved.
        name: of the bundle; by default that of the data.
        model: the module of a run whose model was given in Python without a name.
        class_names: names of classes in the place of those of the data.

    Raises:
        InputError: the run or its data are missing or damaged.
    """
    vae, info = checkpoint.load(run, model)
    evaluation = read_evaluation(run)
    dataset = checkpoint.run_data(info, data, run)
    part, unseen = _unseen(dataset, info)
    few = read(part, slice(max(EXAMPLES, MEASURED)))
    observations, how = few.x, info.train.binarise
    binarised = "" if how == "none" else f", binarized: {how}" + (", seed 0" if how == "stochastic" else "")
    held_out = _seen(part, HELD_OUT, how, unseen + binarised)
    shape = info.model.observation_shape
    axes = {1: ("feature",), 2: ("height", "width"), 3: ("channel", "height", "width")}
    numbered = tuple(f"axis_{number}" for number in range(1, len(shape) + 1))
    declaration = Declaration(
        prior="normal",
        # Those of convolutions follow from the layers.
        axes=None if _has_convolutions(vae) else axes.get(len(shape), numbered),
        range=observation_range(info.model.likelihood, (0.0, 1.0) if dataset.unit else None, None),
    )
    if isinstance(info.model, OwnModel):
        again(vae, info.model, observations, few.conditions)
        declaration, kind = declaration.over(info.model.declaration), info.model.title
    else:
        kind = f"{info.model.architecture} VAE"
    conditions = _few(few.conditions)
    return Source(
        model=vae,
        example=at_least_two(observations[:EXAMPLES]),
        declaration=declaration,
        conditions=conditions,
        classes=_class_names(dataset, class_names_of(class_names, _arrays(conditions))),
        observations=observations,
        measured=dataclasses.replace(held_out.first(MEASURED), description=unseen),
        calibration=_seen(dataset.train, CALIBRATED, how, f"{info.provenance.name}, training data"),
        held_out=held_out,
        name=name or info.provenance.name,
        description=f"{kind} trained on {info.provenance.name}",
        normalisation=dataset.normalisation,
        training=_training(info, sum(parameter.numel() for parameter in vae.parameters())),
        notes=_other_version(run, info),
        metrics=asdict(evaluation) if evaluation else {},
        card=lambda manifest, sizes, picture: run_card(manifest, info, evaluation, sizes, picture),
    )


def _has_convolutions(model: nn.Module) -> bool:
    return any(isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) for layer in model.modules())


def model_source(model: Any, declaration: Declaration, examples: Examples, name: str | None) -> Source:
    """Return the source of a model.

    Raises:
        InputError: an argument is invalid.
        ExportError: no bundle carries what the object has.
    """
    own = decoder_data(model)
    module = module_of(model)
    if own is not None:
        latents = own.latents if examples.latents is None else examples.latents
        source = _decoder_source(None, module, declaration, dataclasses.replace(examples, latents=latents), name)
        named = type(model).__name__
        return dataclasses.replace(
            source,
            declaration=declaration.over(own.declaration),
            name=name or named,
            description=f"{named}, exported from PyTorch",
            notes=(own.note,),
            table=own.table,
        )
    if examples.latents is not None:
        return _decoder_source(model, module, declaration, examples, name)
    examples, notes, normalisation = _with_own_data(model, examples)
    if examples.example is None:
        raise InputError(
            "example: expected observations [n, …], got nothing; pass some with example=, or latents= for a decoder "
            "alone"
        )
    x = _tensor("example", examples.example)
    if declaration.axes:
        require_axes(declaration.axes, x.shape[1:])
    conditions = _conditions(examples.conditions, len(x))
    real = x if examples.observations is None else _tensor("observations", examples.observations)
    if not (x.is_floating_point() or real.is_floating_point()) and torch.equal(real, real.to(x.dtype).to(real.dtype)):
        real = real.to(x.dtype)
    if real.shape[1:] != x.shape[1:] or real.dtype != x.dtype:
        raise InputError(
            f"observations: expected {_kind(x)}, as the example has, got {_kind(real)}; pass rows of the same shape"
        )
    if examples.observations is not None and conditions:
        raise InputError("observations: only without conditions; pass all rows as the example and the conditions")
    classes = class_names_of(examples.class_names, _arrays(conditions))
    calibration, measured = _halves(real, conditions, ())
    compared = x if examples.observations is None else torch.cat([x, real])
    return _source(
        model, module, conditions, name,
        example=at_least_two(compared[:EXAMPLES]),
        declaration=declaration,
        classes=classes,
        observations=real,
        measured=measured,
        calibration=calibration,
        notes=notes,
        normalisation=normalisation,
    )  # fmt: skip


def _decoder_source(
    model: Any, module: nn.Module, declaration: Declaration, examples: Examples, name: str | None
) -> Source:
    """Return the source of a decoder alone.

    Raises:
        InputError: an argument is invalid, or one that needs an encoder.
    """
    needing = {
        "example": examples.example, "observations": examples.observations, "encode": declaration.encode,
        "posterior": declaration.posterior, "dynamic": declaration.dynamic,
    }  # fmt: skip
    for argument, value in needing.items():
        if value is not None:
            raise InputError(f"{argument}: expected nothing for a decoder alone, which takes latents; leave it out")
    given: Mapping[str, Any] = examples.latents if isinstance(examples.latents, Mapping) else {"z": examples.latents}
    latents = {key: _tensor(f"latents[{key!r}]" if len(given) > 1 else "latents", rows) for key, rows in given.items()}
    if not latents:
        raise InputError("latents: expected examples of at least one latent, got none")
    first = next(iter(latents.values()))
    conditions = _conditions(examples.conditions, len(first), "the latents have")
    for key, rows in latents.items():
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", key) or key == "x" or key in conditions:
            raise InputError(f"latents: expected names of letters, digits and '_' that nothing else has, got {key!r}")
        if len(rows) != len(first) or rows.dim() < 2:
            raise InputError(f"latents[{key!r}]: expected [{len(first)}, …] as the first, got {list(rows.shape)}")
    calibration, measured = _halves(first, conditions, tuple(latents.values()))
    return _source(
        model, module, conditions, name,
        example=first,
        declaration=declaration,
        classes=class_names_of(examples.class_names, _arrays(conditions)),
        observations=first,
        measured=measured,
        calibration=calibration,
        latents=_few(latents),
    )  # fmt: skip


def _source(
    model: Any, module: nn.Module, conditions: Mapping[str, Tensor], name: str | None, **given: Any
) -> Source:  # fmt: skip
    """Return the source of a module, which the user's object `model` is or holds, with these further fields."""
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return Source(
        model=module,
        conditions=_few(conditions),
        name=name or type(module).__name__,
        description=f"{type(module).__name__}, exported from PyTorch",
        training={"parameters": parameters, "torch": torch.__version__},
        holder=None if isinstance(model, nn.Module) else model,
        **given,
    )


def _with_own_data(model: Any, examples: Examples) -> tuple[Examples, tuple[str, ...], Normalisation | None]:
    """Add the data that a trained object holds, a line that says so, and its normalization.

    What the caller gives comes first.
    """
    given = None if examples.example is None else _tensor("example", examples.example)
    own = object_data(model, given)
    if own is None:
        return examples, (), None
    conditions = {**own.conditions, **dict(examples.conditions or {})}
    names: dict[str, Sequence[str]] = {
        name: names for name, names in own.class_names.items() if name not in (examples.conditions or {})
    }
    listed = examples.class_names
    class_names = {**names, **(listed or {})} if listed is None or isinstance(listed, Mapping) else listed
    whose = type(model).__name__
    added = [*([] if given is not None else ["the example"]), *(conditions.keys() - (examples.conditions or {}).keys())]
    notes = [f"{', '.join(sorted(added))}: from the data of the {whose}"] if added else []
    changed = dataclasses.replace(examples, example=own.example, conditions=conditions, class_names=class_names or None)
    if own.normalisation is None:
        return changed, tuple(notes), None
    notes.append(f"example: raw data, standardized as the {whose} does; the bundle takes standardized features")
    if examples.observations is not None:
        raw = object_data(model, _tensor("observations", examples.observations))
        changed = dataclasses.replace(changed, observations=raw.example if raw else None)
    return changed, tuple(notes), Normalisation(*own.normalisation)


def _conditions(
    conditions: Mapping[str, ArrayLike | Tensor] | None, n: int, beside: str = "the example has"
) -> dict[str, Tensor]:
    if conditions is not None and not isinstance(conditions, Mapping):
        raise InputError(
            f'conditions: expected arrays by name, such as {{"label": y}}, got {type(conditions).__name__}'
        )
    tensors = {key: _tensor(f"conditions[{key!r}]", value) for key, value in (conditions or {}).items()}
    for key, tensor in tensors.items():
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", key):
            raise InputError(f"conditions: expected names of letters, digits and '_', got {key!r}")
        if len(tensor) != n:
            raise InputError(f"conditions[{key!r}]: expected {counted(n, 'row')}, as {beside}, got {len(tensor)}")
    return tensors


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, Array]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _halves(
    x: Tensor, conditions: Mapping[str, Tensor], latents: tuple[Tensor, ...]
) -> tuple[Observations, Observations]:
    """Divide observations for calibration and measurement: every other one each; a single one serves for both."""
    # Every other: the first half may be of other classes.
    first, second = (slice(0, None, 2), slice(1, None, 2)) if len(x) > 1 else (slice(None), slice(None))

    def some(part: slice, what: str) -> Observations:
        inputs = {name: at_edge(rows[part]).numpy() for name, rows in conditions.items()}
        return Observations(at_edge(x[part]).numpy(), inputs, what, tuple(at_edge(z[part]).numpy() for z in latents))

    return some(first, "the caller's"), some(second, "the caller's, " + ("others" if len(x) > 1 else "the same"))


def _tensor(what: str, value: ArrayLike | Tensor) -> Tensor:
    """Return a copy [n, ...] on the CPU: floats as float32, integers and bools in their own dtype."""
    try:
        tensor = value.detach().cpu() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{what}: expected a tensor or an array of numbers: {error}") from error
    if tensor.is_complex():
        raise InputError(f"{what}: expected real numbers, got {tensor.dtype}")
    if tensor.layout != torch.strided:
        layout = str(tensor.layout).removeprefix("torch.")
        raise InputError(f"{what}: expected a dense tensor, got the layout {layout}; pass {what}.to_dense()")
    # PyTorch computes almost nothing with unsigned integers of more than one byte.
    if tensor.is_floating_point() or tensor.dtype in (torch.uint16, torch.uint32, torch.uint64):
        tensor = at_edge(tensor)
    if tensor.dim() == 0 or not tensor.numel():
        raise InputError(f"{what}: expected at least one row [n, …], got {list(tensor.shape)}")
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise InputError(f"{what}: expected finite numbers, got NaN or infinity; clean it")
    # A copy: the model may change it.
    return tensor.clone(memory_format=torch.contiguous_format)


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {['n', *tensor.shape[1:]]}".replace("'", "")


def _few(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return as many rows of each as a model is understood by."""
    return {name: at_least_two(rows[:EXAMPLES]) for name, rows in tensors.items()}


def _class_names(dataset: Dataset, given: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """Return the names of the classes of a run's conditions: those given, those of the data, or numbers."""
    counts = {name: kind["classes"] for name, kind in dataset.kinds().items() if "classes" in kind}
    for name, names in given.items():
        if len(names) != counts[name]:
            raise InputError(
                f"class_names: {name}: expected {counts[name]} names, one for each class, got {len(names)}"
            )
    return {
        name: given.get(name) or dataset.classes[name] or tuple(map(str, range(count)))
        for name, count in counts.items()
        if count <= _MAX_NAMED
    }


def _unseen(dataset: Dataset, info: RunInfo) -> tuple[Part, str]:
    """Return the test data, or the validation data if there are no test data, and what they are."""
    part, kind = (dataset.test, "test") if len(dataset.test) else (dataset.validation, "validation")
    return part, f"{info.provenance.name}, {kind} data"


def _seen(part: Part, n: int, how: str, description: str) -> Observations:
    """Return the first n observations of a part as the model sees them, binarized by seed 0."""
    return Observations(binarise(part.rows(slice(n)), how, 0), part.conditions(slice(n)), description)


def _training(info: RunInfo, parameters: int) -> dict[str, Any]:
    """Return the manifest's record of training, without paths of this machine."""
    model, train = info.model.to_json(), info.train.to_json()
    starts = [start.to_json() for start in info.starts]
    for each in (train, *(start["train"] for start in starts)):
        del each["start_from"]
    return {
        "data": info.provenance.to_json(),
        "split_seed": info.data.seed,
        "model": model,
        "parameters": parameters,
        "train": train,
        "surrogate": info.surrogate,
        "torch": info.torch_version,
        "starts": starts,
        "stages": [asdict(stage) for stage in info.stages],
    }


def _other_version(run: Path, info: RunInfo) -> tuple[str, ...]:
    """Say in a line, and warn, where another version than this one trained the run."""
    other = [stage for stage in info.stages if (stage.vae_export, stage.torch) != (__version__, torch.__version__)]
    if not other:
        return ()
    line = (
        f"trained by {' and '.join(dict.fromkeys(stage.versions for stage in other))}, exported by vae-export "
        f"{__version__} with PyTorch {torch.__version__}"
    )
    logging.getLogger("vae_export").warning(f"{run}: {line}: parity is proven for what this version computes")
    return (line,)
