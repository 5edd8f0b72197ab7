"""Check observations, latents and conditions against the manifest, and name them as the graphs' inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from . import noise
from .errors import InputError, require_integer
from .manifest import Condition, Latent, Manifest, Observation, Sizes
from .ranges import Bounds, all_finite, all_within

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from .prior import Prior

# One latent's array, or arrays by the latents' names.
Latents: TypeAlias = "ArrayLike | Mapping[str, ArrayLike]"
# Values by the conditions' names: one for all rows, an array [n, ...], or names of classes.
Conditions: TypeAlias = "Mapping[str, Any] | None"
LatentShape: TypeAlias = "Sequence[int] | Mapping[str, Sequence[int]] | None"
# A graph's inputs by name; and these, or a function that gives them for the rows from `first` to `last` - 1.
Feeds: TypeAlias = "dict[str, NDArray[Any]]"
Feed: TypeAlias = "Feeds | Callable[[int, int], Feeds]"
_FLOAT32 = np.dtype(np.float32)


class Inputs:
    """The inputs of a VAE's two graphs, made from checked arguments of its methods."""

    def __init__(self, manifest: Manifest, prior: Prior) -> None:
        self._observation = manifest.observation
        self._latents = manifest.latents
        self._conditions = manifest.conditions
        self._prior = prior
        self.has_several = len(manifest.latents) > 1
        """Whether latents are taken and given in mappings."""
        self.encoder_noise = any(latent.posterior.noise for latent in manifest.latents)
        """Whether the encoder takes noise, since some latents depend on samples of others."""
        one_latent = len(manifest.latents) == 1 and not manifest.conditions
        self._alone = manifest.latents[0] if one_latent else None
        """The latent, where it is the decoder's one input."""
        self._taken = {
            component: tuple(c for c in manifest.conditions if component in c.components)
            for component in ("encoder", "decoder")
        }

    def latents(self, z: Latents) -> Feeds:
        """Latents by name; of several, only those that are given.

        Raises:
            InputError: a name is unknown, or an array is refused by `latent_rows`.
        """
        if type(z) is np.ndarray or not isinstance(z, Mapping):
            if self.has_several:
                raise InputError(
                    f"z: expected a mapping from the names {_names(self._latents)} to arrays, got {type(z).__name__}"
                )
            only = self._latents[0]
            return {only.name: latent_rows(only, z)}
        _require_known("z", z, self._latents)
        return {latent.name: latent_rows(latent, z[latent.name]) for latent in self._latents if latent.name in z}

    def conditions(self, component: str | None, conditions: Conditions, n: int) -> Feeds:
        """The conditions that a component takes, or with None every condition, [n, *shape] each.

        Raises:
            InputError: a name is unknown, a condition is missing, or a value is refused by `condition_rows`.
        """
        if conditions is None and not self._conditions:
            return {}
        conditions = {} if conditions is None else conditions
        if not isinstance(conditions, Mapping):
            raise InputError(f"conditions: expected a mapping from names to values, got {type(conditions).__name__}")
        _require_known("conditions", conditions, self._conditions)
        rows = {c.name: condition_rows(c, conditions[c.name], n) for c in self._conditions if c.name in conditions}
        needed = self._conditions if component is None else self._taken[component]
        for condition in needed:
            if condition.name not in rows:
                kind = f"one of its {len(condition.classes)} classes" if condition.classes else condition.dtype
                raise InputError(
                    f"conditions: expected {condition.name!r} ({kind}, shape {list(condition.shape)}), got nothing; "
                    f"give conditions={{{condition.name!r}: …}}"
                )
        return {condition.name: rows[condition.name] for condition in needed}

    def shapes(self, latent_shape: LatentShape) -> tuple[tuple[int, ...], ...]:
        """The shape of each latent.

        Raises:
            InputError: a name is unknown, or a shape is refused by `other_shape`.
        """
        if latent_shape is None:
            return self._prior.shapes
        if isinstance(latent_shape, Mapping):
            shapes: Mapping[str, Sequence[int]] = latent_shape
        elif self.has_several:
            raise InputError(
                f"latent_shape: expected a mapping from the names {_names(self._latents)} to shapes, got "
                f"{latent_shape!r}"
            )
        else:
            shapes = {self._latents[0].name: latent_shape}
        _require_known("latent_shape", shapes, self._latents)
        return tuple(
            other_shape(latent, shapes[latent.name]) if latent.name in shapes else latent.shape
            for latent in self._latents
        )

    def decoder(self, z: Latents, conditions: Conditions, seed: int | None, start: int) -> tuple[Feeds, int]:
        """The decoder's inputs and their number of rows; latents that are its noise may be missing from `z`.

        Raises:
            InputError: a latent or a condition is missing or wrong.
        """
        alone = self._alone
        if alone is not None and conditions is None and type(z) is np.ndarray:
            rows = latent_rows(alone, z)
            return {alone.name: rows}, len(rows)
        feeds = self.latents(z)
        if self.has_several or not feeds:
            missing = [each.name for each in self._latents if each.posterior.outputs and each.name not in feeds]
            if missing or not feeds:
                listed = ", ".join(missing) or _names(self._latents)
                raise InputError(f"z: {listed} is missing; give every latent by name")
            counts = {name: len(array) for name, array in feeds.items()}
            if len(set(counts.values())) > 1:
                raise InputError(f"z: expected as many rows of each latent, got {counts}")
            self._fill_noise(feeds, seed, start)
        n = len(next(iter(feeds.values())))
        if self._conditions or conditions is not None:
            feeds.update(self.conditions("decoder", conditions, n))
        return feeds, n

    def decoder_of_checked(self, z: Feeds, rows: Feeds, seed: int | None, start: int) -> tuple[Feeds, int]:
        """As `decoder`, of latents and conditions that are checked; `rows` may hold the encoder's conditions too."""
        feeds = dict(z)
        self._fill_noise(feeds, seed, start)
        feeds.update({condition.name: rows[condition.name] for condition in self._taken["decoder"]})
        return feeds, len(next(iter(feeds.values())))

    def encoder(self, x: NDArray[Any], rows: Feeds, seed: int | None, start: int) -> Feed:
        """The encoder's inputs, of checked observations and conditions.

        Where the encoder takes noise, a function gives them for any range of rows: noise is drawn with a seed, and
        zeros without one.
        """
        feeds = {self._observation.name: x}
        for condition in self._taken["encoder"]:
            feeds[condition.name] = rows[condition.name]
        if not self.encoder_noise:
            return feeds
        given = rows_of(feeds, len(x))
        noises = self._noises(x.shape[1:])

        def feed(first: int, last: int) -> Feeds:
            part = dict(given(first, last))
            for name, (stream, shape) in noises.items():
                part[name] = (
                    np.zeros((last - first, *shape), np.float32)
                    if seed is None
                    else noise.normal(seed, noise.advance(start, first), last - first, shape, stream)
                )
            return part

        return feed

    def rescaled(self, z: Latents, change: Callable[[Any, Any, Any], Any]) -> NDArray[Any] | Feeds:
        """Change latents with the scale and the shift of the manifest; codes stay as they are.

        Args:
            z: latents, as `latents` takes them.
            change: takes an array of latents, the scale and the shift.

        Returns:
            Arrays by name where `z` is a mapping, else one array.
        """
        parts = self.latents(z)
        for latent in self._latents:
            if latent.name in parts and latent.posterior.kind != "codes":
                scale, shift = (
                    np.asarray(numbers, np.float32).reshape(-1, *[1] * (len(latent.shape) - 1))
                    for numbers in (latent.scale, latent.shift)
                )
                parts[latent.name] = change(parts[latent.name], scale, shift)
        return parts if isinstance(z, Mapping) else parts[self._latents[0].name]

    def _fill_noise(self, feeds: Feeds, seed: int | None, start: int) -> None:
        """Add the latents that are the decoder's noise, where missing: drawn from the prior; without a seed zeros."""
        if len(feeds) == len(self._latents):
            return
        n = len(next(iter(feeds.values())))
        for number, latent in enumerate(self._latents):
            if latent.name not in feeds:
                sizes = {
                    axis: feeds[other.name].shape[1 + index]
                    for other in self._latents
                    if other.name in feeds
                    for index, axis in enumerate(other.axes)
                }
                shape = _with_sizes(latent, sizes)
                feeds[latent.name] = (
                    np.zeros((n, *shape), np.float32)
                    if seed is None
                    else self._prior.draw_one(number, seed, start, n, shape)
                )

    def _noises(self, observation: tuple[int, ...]) -> dict[str, tuple[int, tuple[int, ...]]]:
        """The stream and the shape of each noise that the encoder takes for observations of a shape."""
        usual, axes = self._observation.shape, self._observation.axes
        noises = {}
        for number, latent in enumerate(self._latents):
            if latent.posterior.noise:
                sizes = {}
                for axis, at_encode, at_export in zip(axes, observation, usual, strict=True):
                    if axis in latent.dynamic:
                        # Latents grow in proportion to observations.
                        sizes[axis] = latent.shape[latent.axes.index(axis)] * at_encode // at_export
                stream = noise.stream_of(noise.POSTERIOR, number)
                noises[latent.posterior.noise] = stream, _with_sizes(latent, sizes)
        return noises


def rows_of(feeds: Feeds, n: int) -> Callable[[int, int], Feeds]:
    """A function that gives the rows from `first` to `last` - 1 of arrays with `n` rows."""

    def rows(first: int, last: int) -> Feeds:
        return feeds if last - first == n else {name: array[first:last] for name, array in feeds.items()}

    return rows


def observation_rows(observation: Observation, value: ArrayLike) -> NDArray[Any]:
    """Check observations and give them as an array [n, *shape] of the manifest's dtype.

    Any integers, and bools as 0 and 1, serve for int64, and any floats for float32.

    Raises:
        InputError: another dtype, a shape that is not the manifest's or not proven, or a value out of range or beyond
            float32's.
    """
    shape, bounds = observation.shape, observation.range
    if (
        type(value) is np.ndarray
        and value.dtype is _FLOAT32
        and observation.dtype == "float32"
        and value.shape[1:] == shape
        and value.size
        and all_within(value, bounds)
    ):
        return value
    return _rows(observation.name, value, observation.dtype, shape, observation.axes, observation.dynamic, bounds)


def latent_rows(latent: Latent, value: ArrayLike) -> NDArray[Any]:
    """Check latents and give them as an array [n, *shape] of the manifest's dtype.

    Any integers below the size of the codebook, and bools, serve for codes, and any floats for float32.

    Raises:
        InputError: another dtype, a shape that is not the manifest's or not proven, or a value out of range or beyond
            float32's.
    """
    # The general check takes numbers whose squares overflow, too.
    if (
        type(value) is np.ndarray
        and value.dtype is _FLOAT32
        and latent.dtype == "float32"
        and value.shape[1:] == latent.shape
        and value.size
        and all_finite(value)
    ):
        return value
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
        raise InputError(f"{place}: expected a sequence of sizes, got {shape!r}") from None
    problem = _misfit(sizes, latent.shape, latent.axes, latent.dynamic)
    if problem:
        wanted = _wanted("", latent.shape, latent.axes, latent.dynamic)
        raise InputError(f"{place}: expected {wanted}, got {list(sizes)}{problem}")
    return sizes


def condition_rows(condition: Condition, value: Any, n: int) -> NDArray[Any]:
    """A condition for each of `n` rows.

    Args:
        condition: what the manifest says of it.
        value: an array [n, *shape], or one value of that shape for every row; where the classes have names, also a name
            or a sequence of names. Python's numbers, any integers, bools and any floats are taken; arrays of integers
            and bools are not taken for float32.
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
        raise InputError(f"{name}: expected {wanted}, got no array: {error}") from error
    if classes and array.dtype.kind == "U":
        array = _numbers_of(name, array, classes)
    of_python = not isinstance(value, (np.ndarray, np.generic)) and array.dtype.kind in "iu"
    if condition.dtype == "float32" and of_python:
        array = array.astype(np.float32)
    array = _typed(name, array, condition.dtype, wanted)
    if array.shape not in (shape, (n, *shape)):
        raise InputError(f"{name}: expected {wanted}, got {list(array.shape)}")
    _require_within(name, array, (0, len(classes) - 1) if classes else condition.range, "choose another value")
    return np.broadcast_to(array, (n, *shape)) if array.shape == shape else array


def _names(specifications: Sequence[Latent] | Sequence[Condition]) -> str:
    return ", ".join(each.name for each in specifications)


def _require_known(place: str, values: Mapping[str, Any], known: Sequence[Latent] | Sequence[Condition]) -> None:
    names = {each.name for each in known}
    for name in values:
        if name not in names:
            listed = f"one of {_names(known)}" if known else "none"
            raise InputError(f"{place}: expected {listed}, got {name!r}; the bundle's manifest has no such name")


def _with_sizes(latent: Latent, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """A latent's shape with these sizes of its dynamic axes; a size that is not named is the usual one."""
    if not latent.dynamic:
        return latent.shape
    return tuple(
        sizes.get(axis, usual) if axis in latent.dynamic else usual
        for axis, usual in zip(latent.axes, latent.shape, strict=True)
    )


def _numbers_of(name: str, names: NDArray[Any], classes: tuple[str, ...]) -> NDArray[np.int64]:
    numbers = {each: number for number, each in enumerate(classes)}
    for each in names.ravel().tolist():
        if each not in numbers:
            raise InputError(f"{name}: expected one of the classes {_listed(classes)}, got {each!r}")
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
        raise InputError(f"{name}: expected {wanted}, got no array: {error}") from error
    # The usual array needs no description of the expected one.
    if array.dtype != np.dtype(dtype) or array.shape[1:] != shape or not array.ndim:
        wanted = _wanted(dtype, shape, axes, dynamic)
        array = _typed(name, array, dtype, wanted, bounds)
        if not _misfit(array.shape, shape, axes, dynamic):
            got = list(array.shape)
            raise InputError(f"{name}: expected {wanted}, got {got}; add the batch axis: {name}[None]")
        problem = _misfit(array.shape[1:], shape, axes, dynamic, 1) if array.ndim else "; give rows of it"
        if problem:
            raise InputError(f"{name}: expected {wanted}, got {list(array.shape)}{problem}")
    if len(array) == 0:
        raise InputError(f"{name}: expected at least one row, got {list(array.shape)}")
    _require_within(name, array, bounds, "scale or clean the data")
    return array


def _typed(name: str, array: NDArray[Any], dtype: str, wanted: str, bounds: Bounds = None) -> NDArray[Any]:
    if array.dtype == np.dtype(dtype):
        return array
    if dtype == "int64":
        if array.dtype.kind in "iub" and (array.dtype != np.uint64 or not array.size or array.max() < 2**63):
            return array.astype(np.int64)
        raise InputError(f"{name}: expected {wanted}, got dtype {array.dtype}; give integers")
    if array.dtype.kind == "f":
        return _as_float32(name, array)
    scaling = f" (scaled to {bounds[0]:g} … {bounds[1]:g})" if bounds and array.dtype.kind in "ui" else ""
    numbers = array.dtype.kind in "iub"
    advice = f"convert with .astype('float32'){scaling}" if numbers else "give numbers, such as q.mode() or q.sample()"
    raise InputError(f"{name}: expected {wanted}, got dtype {array.dtype}; {advice}")


def _as_float32(name: str, array: NDArray[Any]) -> NDArray[np.float32]:
    """Floats of another width as float32, NumPy's default float64 above all.

    Raises:
        InputError: a finite number is beyond the range of float32.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        converted = array.astype(np.float32)
    wrong = np.isinf(converted) & np.isfinite(array)
    if wrong.any():
        index = tuple(int(i) for i in np.argwhere(wrong)[0])
        place = f"{name}{list(index)}" if index else name
        raise InputError(
            f"{place}: expected numbers within float32's range of ±{np.finfo(np.float32).max:g}, got "
            f"{_number(array[index])}; scale the data"
        )
    return converted


def _require_within(name: str, array: NDArray[Any], bounds: Bounds, advice: str) -> None:
    low, high = bounds if bounds else (-np.inf, np.inf)
    if not array.size:
        return
    lowest, highest = array.min(), array.max()
    if not (lowest >= low and highest <= high and np.isfinite(lowest) and np.isfinite(highest)):
        wrong = ~(np.isfinite(array) & (array >= low) & (array <= high))
        index = tuple(int(i) for i in np.argwhere(wrong)[0])
        within = f"values from {_number(low)} to {_number(high)}" if bounds else "finite values"
        place = f"{name}{list(index)}" if index else name
        raise InputError(f"{place}: expected {within}, got {_number(array[index])}; {advice}")


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, (float, np.floating)) else str(value)


def _misfit(
    sizes: tuple[int, ...], shape: tuple[int, ...], axes: tuple[str, ...], dynamic: Mapping[str, Sizes], first: int = 0
) -> str | None:
    """Return the end of the message on sizes that do not fit a shape; None if they fit. Axes count from `first`."""
    if sizes == shape:
        return None
    if len(sizes) != len(shape):
        return "; give as many axes"
    for axis, (size, usual) in enumerate(zip(sizes, shape, strict=True)):
        proven = dynamic.get(axes[axis]) if axes else None
        if proven is None and size != usual:
            return f"; axis {axis + first} must be {usual}, is {size}"
        if proven is not None and size not in proven:
            tile = ", divide it with `tile`," if size > proven.max else ","
            return f"; {axes[axis]} {size} was not proven, {proven} is: choose such a size{tile} or export for others"
    return None


def _wanted(
    dtype: str, shape: tuple[int, ...], axes: tuple[str, ...] = (), dynamic: Mapping[str, Sizes] | None = None,
    n: str = "n",
) -> str:  # fmt: skip
    """Describe an expected array: "float32 [n, 1, height, 8]"; without a dtype a shape alone, without rows."""
    dynamic = dynamic or {}
    sizes = [axes[i] if axes and axes[i] in dynamic else str(size) for i, size in enumerate(shape)]
    proven = "; ".join(f"{axis} {dynamic[axis]}" for axis in axes if axis in dynamic)
    return (f"{dtype} [{', '.join([n, *sizes])}]" if dtype else f"[{', '.join(sizes)}]") + (
        f" ({proven})" if proven else ""
    )
