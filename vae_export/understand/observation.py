"""Describe observations and conditions, and name the axes that have no name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from vae_runtime.errors import counted
from vae_runtime.manifest import Condition, Likelihood, Observation

from ..errors import ExportError
from .checks import described_condition, observation_range
from .declaration import Declaration
from .edges import range_of

_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


_CONVOLUTIONS = {nn.Conv1d: ("time",), nn.Conv2d: ("height", "width"), nn.Conv3d: ("depth", "height", "width")}


def axis_names(
    model: nn.Module, shape: Sequence[int], kind: str | None = None, whole: Sequence[int] = ()
) -> tuple[str, ...]:
    """Return the names of the axes of an observation, or a latent, that are not declared.

    Which axis holds channels follows from the model's first layer that treats one as such.

    Args:
        model: the model.
        shape: of an observation or a latent.
        kind: of a latent's posterior; None for an observation.
        whole: the shape of an observation, for a latent.
    """
    numbered = tuple(f"axis_{number}" for number in range(1, len(shape) + 1))
    first = next((module for module in model.modules() if isinstance(module, (*_CONVOLUTIONS, *_RECURRENT))), None)
    space = next((names for layer, names in _CONVOLUTIONS.items() if isinstance(first, layer)), None)
    if isinstance(first, _RECURRENT) and kind is None and len(shape) < 3:
        return ("time", "feature")[: len(shape)]
    if kind == "codes":
        return _code_axes(shape, space, whole) or (("latent",) if len(shape) == 1 else numbered)
    if space is not None and len(shape) == len(space) + 1 and len(space) != 1:
        return ("channel", *space)
    if space == ("time",) and len(shape) == 2 and (kind or getattr(first, "in_channels", None) == shape[0]):
        return ("channel", "time")
    if len(shape) == 1:
        return ("feature",) if kind is None else ("latent",)
    if len(shape) == 3:
        return ("channel", "height", "width")
    return ("height", "width") if len(shape) == 2 and kind is None else numbered


def _code_axes(shape: Sequence[int], space: tuple[str, ...] | None, whole: Sequence[int]) -> tuple[str, ...] | None:
    """The axes of codes that are laid out as the observation is, or in several levels along the time."""
    if space is None or len(whole) != len(space) + 1:
        return None
    if len(shape) == len(space) and all(a * whole[1] == b * shape[0] for a, b in zip(shape, whole[1:], strict=True)):
        return space
    if space == ("time",) and len(shape) == 2 and shape[0] != shape[1]:
        return ("level", "time") if shape[0] < shape[1] else ("time", "level")
    return None


def observation_of(model: nn.Module, example: Tensor, declaration: Declaration, likelihood: Likelihood) -> Observation:
    """Return the description of the observations that the example is made of.

    Raises:
        ExportError: the declaration names more or fewer axes than there are.
    """
    shape = tuple(example.shape[1:])
    axes = tuple(declaration.axes or axis_names(model, shape))
    require_axes(axes, shape)
    dtype = "float32" if example.is_floating_point() else "int64"
    declared = (declaration.range[0], declaration.range[1]) if declaration.range else None
    bounds = observation_range(likelihood.kind, declared, range_of(example.dtype), likelihood.shape)
    return Observation("x", shape, axes, bounds, dtype=dtype)


def require_axes(axes: Sequence[str], shape: Sequence[int]) -> None:
    """Require a name for each axis of an observation.

    Raises:
        ExportError: there are more or fewer names than axes.
    """
    if len(axes) != len(shape):
        raise ExportError(
            f"axes: expected {counted(len(shape), 'name')} for an observation {list(shape)}, got {list(axes)}"
        )


def conditions_of(
    conditions: Mapping[str, Tensor],
    by_component: Mapping[str, Mapping[str, Tensor]],
    classes: Mapping[str, Sequence[str]],
) -> tuple[Condition, ...]:
    """Return the descriptions of the conditions.

    Args:
        conditions: their values by name.
        by_component: for each component, the conditions that it takes.
        classes: the names of the values of integer conditions.
    """
    return tuple(
        described_condition(
            name,
            tensor.numpy(),
            tuple(component for component, taken in by_component.items() if name in taken),
            classes.get(name),
        )
        for name, tensor in conditions.items()
    )
