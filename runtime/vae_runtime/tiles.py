"""Encode and decode in tiles: the values of the undivided arrays, in memory that the tile bounds.

Each tile is computed with a halo around it, as wide as the component's receptive field, which the export measured. At a
border of the whole the tile has no halo, so that it sees the border that the undivided array has.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .errors import InputError, require_integer
from .posterior import Encoding, Posterior

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from .manifest import Manifest, Sizes

    Array = NDArray[np.float32]

# "auto", the size of a tile in values of an observation, or its sizes by axis.
Tile: TypeAlias = "int | str | Mapping[str, int]"
# How many values of an observation's dynamic axes "auto" computes at once, without the halo.
_AUTO = 2**18


@dataclass(frozen=True)
class _Axis:
    """One axis that is divided; sizes are those of the latent."""

    latent: int
    """The number of the axis in an array of latents, whose axis 0 is the batch."""
    observation: int
    ratio: int
    """Values of an observation for each of the latent."""
    halo: int
    step: int
    """What borders of tiles are multiples of."""
    size: int
    """The size of a tile without its halo."""
    min: int


@dataclass(frozen=True)
class _Span:
    """A tile along one axis: from `first` to `last`, with its halo from `start` to `stop`."""

    first: int
    last: int
    start: int
    stop: int


def of_any_size(manifest: Manifest) -> Manifest:
    """Return the manifest as tiles see it: dynamic axes of the whole have no largest size."""

    def unbounded(dynamic: Mapping[str, Sizes]) -> dict[str, Sizes]:
        return {axis: replace(sizes, max=2**31) for axis, sizes in dynamic.items()}

    latents = tuple(replace(latent, dynamic=unbounded(latent.dynamic)) for latent in manifest.latents)
    observation = replace(manifest.observation, dynamic=unbounded(manifest.observation.dynamic))
    return replace(manifest, latents=latents, observation=observation)


def decode_in_tiles(
    manifest: Manifest, decode: Callable[[NDArray[Any]], Array], z: Any, tile: Tile, observe: bool, out: Array | None
) -> Array:
    """Give the likelihood's mean for each latent, by a call of `decode` for each tile; the rest as of `VAE.decode`.

    Raises:
        InputError: the decoder cannot be divided, and the message says why; or an argument is wrong.
    """
    if observe:
        raise InputError("observe: expected with undivided answers, got a tile; leave observe or tile out")
    axes = _axes(manifest, "decoder", tile)
    latents = _array("z", z, len(manifest.latent.shape))
    result = out
    for spans in _tiles(axes, [latents.shape[axis.latent] for axis in axes]):
        part = decode(latents[_region(latents, axes, [(span.start, span.stop) for span in spans])])
        if result is None or result is out:
            shape = list(part.shape)
            for axis in axes:
                shape[axis.observation] = latents.shape[axis.latent] * axis.ratio
            result = _result(shape, part.dtype) if result is None else _checked(result, shape)
        inner = _region(part, axes, _within(spans), observed=True)
        result[_region(result, axes, [(span.first, span.last) for span in spans], observed=True)] = part[inner]
    assert result is not None
    return result


def encode_in_tiles(
    manifest: Manifest, encode: Callable[[NDArray[Any]], Any], x: ArrayLike, tile: Tile
) -> Posterior | Encoding:
    """Give the posterior of each observation, by a call of `encode` for each tile; the rest as of `VAE.encode`.

    Raises:
        InputError: the encoder cannot be divided, and the message says why; or an argument is wrong.
    """
    axes = _axes(manifest, "encoder", tile)
    rows = _array("x", x, len(manifest.observation.shape))
    for axis in axes:
        size = rows.shape[axis.observation]
        if size % axis.ratio:
            name = manifest.observation.axes[axis.observation - 1]
            raise InputError(f"x: {name}: expected a multiple of {axis.ratio}, got {size}; cut or pad it")
    results: dict[str, NDArray[Any]] = {}
    whole = [rows.shape[axis.observation] // axis.ratio for axis in axes]
    for spans in _tiles(axes, whole):
        q = encode(rows[_region(rows, axes, [(span.start, span.stop) for span in spans], observed=True)])
        parts = {"value": q.value} if isinstance(q, Encoding) else _parts(q)
        for name, part in parts.items():
            if name not in results:
                shape = list(part.shape)
                for axis, size in zip(axes, whole, strict=True):
                    shape[axis.latent] = size
                results[name] = _result(shape, part.dtype)
            place = _region(part, axes, [(span.first, span.last) for span in spans])
            results[name][place] = part[_region(part, axes, _within(spans))]
    if isinstance(q, Encoding):
        return Encoding(results["value"], q.reason)
    return Posterior(results["mean"], results["std"], results["logvar"])


def _parts(q: Any) -> dict[str, NDArray[Any]]:
    return {"mean": q.mean, "std": q.std, "logvar": q.logvar}


def _axes(manifest: Manifest, component: str, tile: Tile) -> list[_Axis]:
    """The axes along which a component is divided into tiles of this size."""
    field = next((each for each in manifest.tiles if each.component == component), None)
    if field is None or not field.halo:
        reason = "no axis of the bundle is dynamic" if field is None else field.reason
        raise InputError(f"tile: the {component} cannot be divided: {reason}; leave tile out")
    sizes = _sizes(tile, list(field.halo))
    latent, observation = manifest.latent, manifest.observation
    axes = []
    for name, halo in field.halo.items():
        place, other = latent.axes.index(name), observation.axes.index(name)
        proven = latent.dynamic[name]
        ratio = observation.shape[other] // latent.shape[place]
        step = proven.step
        # A tile with its halo, which begins and ends at multiples of the step, is of a proven size.
        largest = (proven.max - 2 * (halo + step)) // step * step
        if largest < step:
            raise InputError(
                f"tile: {name}: a tile with its halo is larger than {proven.max * ratio}, the largest proven size; "
                "export the bundle again with a larger example"
            )
        size = max(step, min(sizes[name] // ratio // step * step, largest))
        axes.append(_Axis(place + 1, other + 1, ratio, halo, step, size, proven.min))
    return axes


def _sizes(tile: Tile, names: list[str]) -> dict[str, int]:
    """The size of a tile by axis, in values of an observation."""
    if isinstance(tile, Mapping):
        unknown = sorted(set(tile) - set(names))
        if unknown:
            raise InputError(f"tile: expected sizes of {', '.join(names)}, got {unknown[0]!r}; name one of these axes")
        return {name: require_integer("tile", tile.get(name, 2**31), 1, 2**31) for name in names}
    if tile == "auto":
        return dict.fromkeys(names, int(_AUTO ** (1 / len(names))))
    if isinstance(tile, str):
        raise InputError(f'tile: expected "auto", a size, or sizes by axis, got {tile!r}')
    return dict.fromkeys(names, require_integer("tile", tile, 1, 2**31))


def _tiles(axes: list[_Axis], whole: list[int]) -> Iterator[tuple[_Span, ...]]:
    """The tiles of an array of these sizes, one after the other."""
    return itertools.product(*(_spans(axis, size) for axis, size in zip(axes, whole, strict=True)))


def _spans(axis: _Axis, whole: int) -> list[_Span]:
    spans = []
    for first in range(0, whole, axis.size):
        last = min(first + axis.size, whole)
        start = max(0, first - axis.halo) // axis.step * axis.step
        stop = min(whole, -(-(last + axis.halo) // axis.step) * axis.step)
        if stop - start < axis.min:
            # A small rest goes on into its neighbor.
            start = max(0, stop - axis.min) // axis.step * axis.step
            stop = min(whole, max(stop, start + axis.min))
        spans.append(_Span(first, last, start, stop))
    return spans


def _within(spans: Sequence[_Span]) -> list[tuple[int, int]]:
    """Where each tile lies in itself with its halo."""
    return [(span.first - span.start, span.last - span.start) for span in spans]


def _region(
    array: NDArray[Any], axes: Sequence[_Axis], ends: Sequence[tuple[int, int]], *, observed: bool = False
) -> tuple[slice, ...]:
    """The part of an array of latents, or of observations, between these ends of each axis, in values of the latent."""
    region = [slice(None)] * array.ndim
    for axis, (first, last) in zip(axes, ends, strict=True):
        ratio = axis.ratio if observed else 1
        region[axis.observation if observed else axis.latent] = slice(first * ratio, last * ratio)
    return tuple(region)


def _array(name: str, value: ArrayLike, rank: int) -> NDArray[Any]:
    if isinstance(value, Mapping):
        raise InputError(f"{name}: expected one array, got arrays by name; leave tile out")
    array = np.asarray(value)
    if array.ndim != rank + 1 or not len(array):
        raise InputError(f"{name}: expected {rank + 1} axes, the first for rows, got the shape {list(array.shape)}")
    return array


def _result(shape: list[int], dtype: Any) -> NDArray[Any]:
    try:
        return np.empty(shape, dtype)
    except (MemoryError, ValueError):
        size = math.prod(shape) * np.dtype(dtype).itemsize / 2**30
        raise InputError(f"tile: the result of shape {shape} needs {size:.1f} GiB; give fewer rows at a time") from None


def _checked(out: Array, shape: list[int]) -> Array:
    if not isinstance(out, np.ndarray) or out.dtype != np.float32 or list(out.shape) != shape:
        got = f"{out.dtype} {list(out.shape)}" if isinstance(out, np.ndarray) else type(out).__name__
        raise InputError(f"out: expected a writeable float32 array {shape}, got {got}")
    if not out.flags.writeable:
        raise InputError("out: expected a writeable array, got one that is read-only")
    return out
