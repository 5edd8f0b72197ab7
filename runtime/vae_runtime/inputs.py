"""Hold what is given to a graph, observations, latents and conditions, against what the manifest says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import InputError, require_integer
from .manifest import Condition, Latent, Observation, Sizes

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["condition_rows", "latent_rows", "observation_rows", "other_shape"]

Bounds = tuple[float, float] | None


def observation_rows(observation: Observation, value: ArrayLike) -> NDArray[Any]:
    """Observations, C-contiguous [n, *shape] of the manifest's dtype; any integers serve for int64.

    Raises:
        InputError: another dtype, a shape that is not the manifest's or not proven, or a value out of range.
    """
    axes, dynamic = observation.axes, observation.dynamic
    return _rows(observation.name, value, observation.dtype, observation.shape, axes, dynamic, observation.range)


def latent_rows(latent: Latent, value: ArrayLike) -> NDArray[Any]:
    """Latents, C-contiguous [n, *shape] of the manifest's dtype; codes are below the size of the codebook.

    Raises:
        InputError: another dtype, a shape that is not the manifest's or not proven, or a value out of range.
    """
    codebook = latent.posterior.codebook
    bounds = (0, codebook - 1) if codebook else None
    return _rows(latent.name, value, latent.dtype, latent.shape, latent.axes, latent.dynamic, bounds)


def other_shape(latent: Latent, shape: Sequence[int]) -> tuple[int, ...]:
    """Another shape of one latent, where its axes are dynamic.

    Raises:
        InputError: another number of axes, or a size that is not proven.
    """
    place = f"latent_shape of {latent.name}"
    try:
        sizes = tuple(require_integer(f"{place}[{axis}]", size, 1, 2**31) for axis, size in enumerate(shape))
    except TypeError:
        raise InputError(f"{place}: a sequence of sizes is expected, got {shape!r}") from None
    problem = _misfit(sizes, latent.shape, latent.axes, latent.dynamic)
    if problem:
        wanted = _wanted("", latent.shape, latent.axes, latent.dynamic)
        raise InputError(f"{place}: {wanted} is expected, got {list(sizes)}{problem}")
    return sizes


def condition_rows(condition: Condition, value: Any, n: int) -> NDArray[Any]:
    """A condition for each of `n` rows.

    Args:
        condition: what the manifest says of it.
        value: an array [n, *shape], or one value of that shape for every row; where the classes have names, also a name
            or a sequence of names. Python's numbers and any integers are taken; other floats must be float32.
        n: how many rows.

    Returns:
        float32 or int64 [n, *shape]; a read-only view where one value serves every row.

    Raises:
        InputError: another dtype or shape, no such class, or a value out of range.
    """
    name, shape, classes = condition.name, condition.shape, condition.classes
    wanted = f"{_wanted(condition.dtype, shape, n=str(n))} or one value{f' of shape {list(shape)}' if shape else ''}"
    if classes:
        wanted += f", of the classes {_listed(classes)}"
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{name}: {wanted} is expected, got no array: {error}") from error
    if classes and array.dtype.kind == "U":
        array = _numbers_of(name, array, classes)
    of_python = not isinstance(value, (np.ndarray, np.generic)) and array.dtype.kind in "iuf"
    if condition.dtype == "float32" and of_python:
        array = array.astype(np.float32)
    array = _typed(name, array, condition.dtype, wanted)
    if array.shape not in (shape, (n, *shape)):
        raise InputError(f"{name}: {wanted} is expected, got {list(array.shape)}")
    _require_within(name, array, (0, len(classes) - 1) if classes else condition.range, "choose another value")
    return np.broadcast_to(array, (n, *shape)) if array.shape == shape else array


def _numbers_of(name: str, names: NDArray[Any], classes: tuple[str, ...]) -> NDArray[np.int64]:
    numbers = {each: number for number, each in enumerate(classes)}
    for each in names.ravel().tolist():
        if each not in numbers:
            raise InputError(f"{name}: one of the classes {_listed(classes)} is expected, got {each!r}")
    return np.array([numbers[each] for each in names.ravel().tolist()], np.int64).reshape(names.shape)


def _listed(classes: tuple[str, ...]) -> str:
    shown = ", ".join(classes[:12])
    return f"{shown}, … ({len(classes)} in all)" if len(classes) > 12 else shown


def _rows(
    name: str, value: ArrayLike, dtype: str, shape: tuple[int, ...], axes: tuple[str, ...],
    dynamic: Mapping[str, Sizes], bounds: Bounds,
) -> NDArray[Any]:  # fmt: skip
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        wanted = _wanted(dtype, shape, axes, dynamic)
        raise InputError(f"{name}: {wanted} is expected, got no array: {error}") from error
    # What is as usual needs no words for what it should be.
    if array.dtype != np.dtype(dtype) or array.shape[1:] != shape or not array.ndim:
        wanted = _wanted(dtype, shape, axes, dynamic)
        array = _typed(name, array, dtype, wanted, bounds)
        if not _misfit(array.shape, shape, axes, dynamic):
            got = list(array.shape)
            raise InputError(f"{name}: {wanted} is expected, got {got}; add the batch axis: {name}[None]")
        problem = _misfit(array.shape[1:], shape, axes, dynamic) if array.ndim else "; give rows of it"
        if problem:
            raise InputError(f"{name}: {wanted} is expected, got {list(array.shape)}{problem}")
    if len(array) == 0:
        raise InputError(f"{name}: at least one row is expected, got {list(array.shape)}")
    _require_within(name, array, bounds, "scale or clean the data")
    return np.ascontiguousarray(array)


def _typed(name: str, array: NDArray[Any], dtype: str, wanted: str, bounds: Bounds = None) -> NDArray[Any]:
    if array.dtype == np.dtype(dtype):
        return array
    if dtype == "int64":
        if array.dtype.kind in "iu" and (array.dtype != np.uint64 or not array.size or array.max() < 2**63):
            return array.astype(np.int64)
        raise InputError(f"{name}: {wanted} is expected, got dtype {array.dtype}; give integers")
    scaling = f" (scaled to {bounds[0]:g} … {bounds[1]:g})" if bounds and array.dtype.kind in "ui" else ""
    raise InputError(f"{name}: {wanted} is expected, got dtype {array.dtype}; convert with .astype('float32'){scaling}")


def _require_within(name: str, array: NDArray[Any], bounds: Bounds, advice: str) -> None:
    low, high = bounds if bounds else (-np.inf, np.inf)
    if not array.size:
        return
    least, greatest = array.min(), array.max()
    if not (least >= low and greatest <= high and np.isfinite(least) and np.isfinite(greatest)):
        wrong = ~(np.isfinite(array) & (array >= low) & (array <= high))
        index = tuple(int(i) for i in np.argwhere(wrong)[0])
        within = f"values from {_number(low)} to {_number(high)}" if bounds else "finite values"
        place = f"{name}{list(index)}" if index else name
        raise InputError(f"{place}: {within} are expected, got {_number(array[index])}; {advice}")


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, (float, np.floating)) else str(value)


def _misfit(
    sizes: tuple[int, ...], shape: tuple[int, ...], axes: tuple[str, ...], dynamic: Mapping[str, Sizes]
) -> str | None:
    """What is wrong with sizes that are to be a shape: the end of an error's message; None where nothing is."""
    if sizes == shape:
        return None
    if len(sizes) != len(shape):
        return "; give as many axes"
    for axis, (size, usual) in enumerate(zip(sizes, shape, strict=True)):
        proven = dynamic.get(axes[axis]) if axes else None
        if proven is None and size != usual:
            return f"; its axis {axis} has the size {usual}"
        if proven is not None and size not in proven:
            return f"; {axes[axis]} {size} was not proven, {proven} is: choose such a size, or export for others"
    return None


def _wanted(
    dtype: str, shape: tuple[int, ...], axes: tuple[str, ...] = (), dynamic: Mapping[str, Sizes] | None = None,
    n: str = "n",
) -> str:  # fmt: skip
    """What is expected, in words: "float32 [n, 1, height, 8]"; without a dtype a shape alone, without rows."""
    dynamic = dynamic or {}
    sizes = [axes[i] if axes and axes[i] in dynamic else str(size) for i, size in enumerate(shape)]
    proven = "; ".join(f"{axis} {dynamic[axis]}" for axis in axes if axis in dynamic)
    return (f"{dtype} [{', '.join([n, *sizes])}]" if dtype else f"[{', '.join(sizes)}]") + (
        f" ({proven})" if proven else ""
    )
