"""Encode and decode in tiles: the values of the undivided arrays, in memory that the tile bounds.

Each tile is computed with a halo around it, as wide as the component's receptive field, which the export measured. At a
border of the whole the tile has no halo, so that it sees the border that the undivided array has.

A component whose answers depend on the whole has no such halo. Its tiles overlap and are blended where that is asked
for, which gives other values: those of diffusers' `tiled_decode` and `tiled_encode`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .errors import InputError, require_integer, require_number
from .posterior import Encoding, Posterior

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from .manifest import Manifest, Sizes

    Array = NDArray[np.float32]

# "auto", the size of a tile in values of an observation, or its sizes by axis.
Tile: TypeAlias = "int | str | Mapping[str, int]"
# How many values of an observation's dynamic axes "auto" computes at once, without the halo.
_AUTO = 2**18
# The part of a tile that it shares with the next where tiles are blended, which is diffusers' default.
_OVERLAP = 0.25


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
    """How far the next tile is: the size of a tile without its halo, or without what it shares with the next."""
    min: int
    shared: int = 0
    """How many values of the latent a tile shares with the next, where the two are blended."""


@dataclass(frozen=True)
class _Span:
    """A tile along one axis: it gives the values from `first` to `last`, and is computed from `start` to `stop`."""

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
    manifest: Manifest,
    decode: Callable[[NDArray[Any]], Array],
    z: Any,
    tile: Tile | None,
    blend: bool | float,
    observe: bool,
    out: Array | None,
) -> Array:
    """Give the likelihood's mean for each latent, by a call of `decode` for each tile; the rest as of `VAE.decode`.

    Raises:
        InputError: the decoder cannot be divided, and the message says why; or an argument is wrong.
    """
    if observe:
        raise InputError("observe: expected with undivided answers, got a tile; leave observe or tile out")
    axes = _axes(manifest, "decoder", tile, blend)
    latents = _array("z", z, len(manifest.latent.shape))
    if out is not None and np.may_share_memory(latents, out):
        # A tile of the answer would overwrite latents that the next tiles need.
        latents = latents.copy()
    result, seams = out, _Seams(axes, observed=True)
    for spans in _tiles(axes, [latents.shape[axis.latent] for axis in axes]):
        part = decode(latents[_region(latents, axes, [(span.start, span.stop) for span in spans])])
        if result is None or result is out:
            shape = list(part.shape)
            for axis in axes:
                shape[axis.observation] = latents.shape[axis.latent] * axis.ratio
            result = _result(shape, part.dtype) if result is None else _checked(result, shape)
        place = _region(result, axes, [(span.first, span.last) for span in spans], observed=True)
        result[place] = seams.join(part, spans)
    assert result is not None
    return result


def encode_in_tiles(
    manifest: Manifest, encode: Callable[[NDArray[Any]], Any], x: ArrayLike, tile: Tile | None, blend: bool | float
) -> Posterior | Encoding:
    """Give the posterior of each observation, by a call of `encode` for each tile; the rest as of `VAE.encode`.

    What is blended are the means and the logarithms of the variances.

    Raises:
        InputError: the encoder cannot be divided, and the message says why; or an argument is wrong.
    """
    axes = _axes(manifest, "encoder", tile, blend)
    rows = _array("x", x, len(manifest.observation.shape))
    for axis in axes:
        size = rows.shape[axis.observation]
        if size % axis.ratio:
            name = manifest.observation.axes[axis.observation - 1]
            raise InputError(f"x: {name}: expected a multiple of {axis.ratio}, got {size}; cut or pad it")
    results: dict[str, NDArray[Any]] = {}
    seams: dict[str, _Seams] = {}
    whole = [rows.shape[axis.observation] // axis.ratio for axis in axes]
    for spans in _tiles(axes, whole):
        q = encode(rows[_region(rows, axes, [(span.start, span.stop) for span in spans], observed=True)])
        parts = {"value": q.value} if isinstance(q, Encoding) else _parts(q)
        for name, part in parts.items():
            if name not in results:
                shape = list(part.shape)
                for axis, size in zip(axes, whole, strict=True):
                    shape[axis.latent] = size
                results[name], seams[name] = _result(shape, part.dtype), _Seams(axes, observed=False)
            place = _region(part, axes, [(span.first, span.last) for span in spans])
            results[name][place] = seams[name].join(part, spans)
    if isinstance(q, Encoding):
        return Encoding(results["value"], q.reason)
    if seams["logvar"].blends:
        results["std"] = np.exp(results["logvar"] / 2)
    return Posterior(results["mean"], results["std"], results["logvar"])


def _parts(q: Any) -> dict[str, NDArray[Any]]:
    return {"mean": q.mean, "std": q.std, "logvar": q.logvar}


class _Seams:
    """The seams between tiles of one array, which come in the order of `_tiles`."""

    def __init__(self, axes: Sequence[_Axis], *, observed: bool) -> None:
        self._axes, self._observed = axes, observed
        self.blends = any(axis.shared for axis in axes)
        """Whether tiles are blended."""
        # By axis and place: the values of a tile, blended, that the next tile along this axis has, too.
        self._shared: dict[tuple[int, tuple[int, ...]], NDArray[Any]] = {}

    def join(self, part: NDArray[Any], spans: Sequence[_Span]) -> NDArray[Any]:
        """Return the values that a tile gives; where tiles are blended, `part` is changed in place."""
        if self.blends:
            # A tile may begin earlier than it must, to be of a proven size.
            part = self._between(part, [(span.first - span.start, span.stop - span.start) for span in spans])
            self._blend(part, tuple(span.first for span in spans), [span.last for span in spans])
            return self._between(part, [(0, span.last - span.first) for span in spans])
        return self._between(part, [(span.first - span.start, span.last - span.start) for span in spans])

    def _blend(self, part: NDArray[Any], place: tuple[int, ...], following: Sequence[int]) -> None:
        """Let the values of the tile before go over into those of this one, along one axis after the other."""
        numbers = [axis.observation if self._observed else axis.latent for axis in self._axes]
        for number in numbers:
            before = self._shared.pop((number, place), None)
            if before is not None:
                own = np.moveaxis(part, number, -1)[..., : before.shape[-1]]
                weights = np.arange(before.shape[-1]) / before.shape[-1]
                own[...] = before * (1 - weights).astype(own.dtype) + own * weights.astype(own.dtype)
        for index, number in enumerate(numbers):
            ratio = self._axes[index].ratio if self._observed else 1
            shared = np.moveaxis(part, number, -1)[..., (following[index] - place[index]) * ratio :]
            if shared.shape[-1]:
                self._shared[number, (*place[:index], following[index], *place[index + 1 :])] = shared.copy()

    def _between(self, array: NDArray[Any], ends: Sequence[tuple[int, int]]) -> NDArray[Any]:
        return array[_region(array, self._axes, ends, observed=self._observed)]


def _axes(manifest: Manifest, component: str, tile: Tile | None, blend: bool | float) -> list[_Axis]:
    """The axes along which a component is divided into tiles of this size."""
    overlap = (_OVERLAP if blend is True else require_number("tile_blend", blend, 0.01, 0.5)) if blend else None
    if tile is None:
        raise InputError("tile_blend: expected a `tile` to blend, got none; give one or leave `tile_blend` out")
    field = next((each for each in manifest.tiles if each.component == component), None)
    if field is not None and field.halo:
        sizes = _sizes(tile, list(field.halo))
        return [_exact(manifest, name, halo, sizes[name]) for name, halo in field.halo.items()]
    names = _divisible(manifest, component)
    if not names or overlap is None:
        unknown = "the export measured nothing" if names else "no axis of the bundle is dynamic"
        reason = unknown if field is None else field.reason
        remedy = "leave tile out" + (", or add `tile_blend` for tiles that change values" if names else "")
        raise InputError(f"tile: the {component} cannot be divided: {reason}; {remedy}")
    sizes = _sizes(tile, names)
    return [_blended(manifest, name, tile, sizes[name], overlap) for name in names]


def _exact(manifest: Manifest, name: str, halo: int, size: int) -> _Axis:
    """Return an axis whose tiles have a halo."""
    place, other, ratio = _places(manifest, name)
    proven = manifest.latent.dynamic[name]
    step = proven.step
    # A tile with its halo, which begins and ends at multiples of the step, is of a proven size.
    largest = (proven.max - 2 * (halo + step)) // step * step
    if largest < step:
        raise InputError(
            f"tile: {name}: a tile with its halo is larger than {proven.max * ratio}, the largest proven size; "
            "export the bundle again with a larger example"
        )
    tile = max(step, min(size // ratio // step * step, largest))
    return _Axis(place, other, ratio, halo, step, tile, proven.min)


def _blended(manifest: Manifest, name: str, tile: Tile, size: int, overlap: float) -> _Axis:
    """Return an axis whose tiles overlap; it is undivided where `tile` names other axes alone."""
    place, other, ratio = _places(manifest, name)
    proven = manifest.latent.dynamic[name]
    step, largest = proven.step, proven.max // proven.step * proven.step
    whole = size // ratio // step * step
    if tile == "auto":
        whole = max(proven.min, min(whole, largest))
    elif not (isinstance(tile, Mapping) and name not in tile) and not proven.min <= whole <= largest:
        raise InputError(
            f"tile: {name}: expected a proven size, {proven.min * ratio} … {largest * ratio}, got {size}; choose such "
            "a size, or export the bundle again with a larger example"
        )
    stride = max(step, int(whole * (1 - overlap)) // step * step)
    return _Axis(place, other, ratio, 0, step, stride, proven.min, shared=whole - stride)


def _places(manifest: Manifest, name: str) -> tuple[int, int, int]:
    """The number of an axis in arrays of latents and of observations, and how many values of the latter are one."""
    latent, observation = manifest.latent, manifest.observation
    place, other = latent.axes.index(name), observation.axes.index(name)
    return place + 1, other + 1, observation.shape[other] // latent.shape[place]


def _divisible(manifest: Manifest, component: str) -> list[str]:
    """The axes along which tiles can be blended: those whose sizes are multiples of the latent's."""
    latent, observation = manifest.latent, manifest.observation
    undivided = component == "decoder" and manifest.likelihood.shape is not None
    if len(manifest.latents) > 1 or undivided or (component == "encoder" and latent.posterior.codebook):
        return []
    names = []
    for name in observation.axes:
        if name in latent.dynamic and name in observation.dynamic:
            part, whole, ratio = latent.dynamic[name], observation.dynamic[name], _places(manifest, name)[2]
            if (whole.min, whole.step) == (part.min * ratio, part.step * ratio) and part.min % part.step == 0:
                names.append(name)
    return names


def _sizes(tile: Tile, names: list[str]) -> dict[str, int]:
    """The size of a tile by axis, in values of an observation."""
    form = f'"auto", a size, or sizes of {", ".join(names)} by name'
    if isinstance(tile, Mapping):
        unknown = sorted(set(tile) - set(names))
        if unknown:
            raise InputError(f"tile: expected sizes of {', '.join(names)}, got {unknown[0]!r}; name one of these axes")
        if not tile:
            raise InputError(f"tile: expected {form}, got none; name at least one axis")
        return {name: require_integer(f"tile: {name}", tile.get(name, 2**31), 1, 2**31) for name in names}
    if tile == "auto":
        return dict.fromkeys(names, int(_AUTO ** (1 / len(names))))
    if isinstance(tile, bool) or not hasattr(tile, "__index__"):
        raise InputError(f"tile: expected {form}, got {tile!r:.99}")
    return dict.fromkeys(names, require_integer("tile", tile, 1, 2**31))


def _tiles(axes: list[_Axis], whole: list[int]) -> Iterator[tuple[_Span, ...]]:
    """The tiles of an array of these sizes, one after the other."""
    if all(axis.shared and size <= axis.size + axis.shared for axis, size in zip(axes, whole, strict=True)):
        return iter([tuple(_Span(0, size, 0, size) for size in whole)])
    return itertools.product(*(_spans(axis, size) for axis, size in zip(axes, whole, strict=True)))


def _spans(axis: _Axis, whole: int) -> list[_Span]:
    spans = []
    for first in range(0, whole, axis.size):
        last = min(first + axis.size, whole)
        start = max(0, first - axis.halo) // axis.step * axis.step
        stop = min(whole, -(-(first + axis.size + axis.shared + axis.halo) // axis.step) * axis.step)
        if stop - start < axis.min:
            # A small rest goes on into its neighbor.
            start = max(0, stop - axis.min) // axis.step * axis.step
            stop = min(whole, max(stop, start + axis.min))
        spans.append(_Span(first, last, start, stop))
    return spans


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
