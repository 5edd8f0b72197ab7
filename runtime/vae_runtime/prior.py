"""Draw latents from a prior, with the same bits on every platform.

docs/noise.md, section 5, specifies each kind: every sum is taken in a stated order, elementwise, since matrix products
and fused multiply-adds differ between machines.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import noise
from .errors import BundleError, InputError, require_number
from .records import Record, record

if TYPE_CHECKING:
    # Imported for types alone: a device that samples starts without them.
    from numpy.typing import NDArray

    from .bundle import Bundle
    from .manifest import Latent

    Array = NDArray[np.float32]
    Shapes = tuple[tuple[int, ...], ...]
    # As in `inputs`, which needs this module.
    Feeds = dict[str, NDArray[Any]]
    Feed = Feeds | Callable[[int, int], Feeds]
    # Takes and returns what `draw_normal` does; the array may be on a device.
    Draw = Callable[[int, int, int, Sequence[int], int, float, float | None], Any]

# The highest temperature; far beyond it latents leave float32's range.
MAX_TEMPERATURE = 1e6
# Rows of noise drawn ahead for calls that take one index of a seed after the other, and the numbers in them at most.
_AHEAD, _MAX_AHEAD = 128, 2**14
_LOG_2PI = math.log(2 * math.pi)
# How far from 1 the weights' sum may be, by rounding.
_ROUNDING = 1e-6


def draw_normal(
    seed: int | None, start: int, n: int, shape: Sequence[int], stream: int,
    temperature: float = 1.0, truncation: float | None = None,
) -> Array:  # fmt: skip
    """Standard-normal noise of vnoise-1, scaled.

    Args:
        seed: None takes a fresh one.
        start: index of the first.
        n: how many.
        shape: of one.
        stream: see `noise.stream_of`.
        temperature: what the noise is multiplied by, 0 … 1e6.
        truncation: the noise's bound before that; see `noise.normal`.

    Returns:
        float32 [n, *shape].

    Raises:
        InputError: an argument is out of its range.
    """
    temperature = require_number("temperature", temperature, 0, MAX_TEMPERATURE)
    eps = noise.normal(noise.new_seed() if seed is None else seed, start, n, shape, stream, truncation)
    if temperature != 1:
        eps *= np.float32(temperature)
    return eps


class Prior:
    """The priors of a bundle's latents. May be shared by threads."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._latents = latents = bundle.manifest.latents
        self.shapes: Shapes = tuple(latent.shape for latent in latents)
        """The usual shape of each latent."""
        self._mixtures: dict[str, Mixture] = {}
        draws_ahead = len(latents) == 1 and latents[0].prior.kind == "normal"
        self._count_ahead = min(_AHEAD, _MAX_AHEAD // max(1, math.prod(latents[0].shape))) if draws_ahead else 0
        # Seed, index of the first, and the rows drawn ahead; seed and index that would follow on the last call's.
        self._ahead: tuple[int, int, Array] = (0, 0, np.empty((0, *latents[0].shape), np.float32))
        self._next: tuple[int, int] | None = None

    def draw(
        self, seed: int, start: int, n: int, shapes: Shapes, temperature: float = 1.0, truncation: float | None = None,
        draw: Draw = draw_normal,
    ) -> dict[str, Array]:  # fmt: skip
        """Draw every latent.

        Args:
            seed: of vnoise-1.
            start: index of the first: row i is sample `start + i` of the seed.
            n: how many.
            shapes: of each latent; `shapes` of this object are the usual ones.
            temperature: scales the noise, 0 … 1e6.
            truncation: bounds the noise before that; see `noise.normal`.
            draw: draws latents whose prior is standard normal, as `draw_normal`; their arrays are of its kind.

        Returns:
            float32 [n, *shape] by the latents' names.

        Raises:
            InputError: an argument is out of its range, or a latent has no prior to draw from.
        """
        return {
            latent.name: self.draw_one(number, seed, start, n, shapes[number], temperature, truncation, draw)
            for number, latent in enumerate(self._latents)
        }

    def feed(
        self, rows: Feeds, seed: int, start: int, n: int, shapes: Shapes, temperature: float, truncation: float | None
    ) -> Feed:
        """Add the latents of `n` rows to other arrays [n, ...]: few rows are drawn now, many when they are needed.

        The arrays are to be read only: later calls may give the same memory. Other arguments are as of `draw`.
        """
        if (
            n < self._count_ahead and shapes is self.shapes and truncation is None
            and type(temperature) is float and temperature == 1 and type(seed) is int and type(start) is int
        ):  # fmt: skip
            feeds: Feeds = {self._latents[0].name: self._rows_ahead(seed, start, n)}
            if rows:
                feeds.update(rows)
            return feeds

        # No closure: its variables would slow down the way above.
        return functools.partial(self._feed_part, rows, seed, start, shapes, temperature, truncation)

    def feed_by(
        self, draw: Draw, rows: Feeds, seed: int, start: int, shapes: Shapes, temperature: float,
        truncation: float | None,
    ) -> Callable[[int, int], Feeds]:  # fmt: skip
        """As `feed`, with latents that `draw` draws, as `draw_normal` does, wherever its arrays are."""
        return functools.partial(self._feed_part, rows, seed, start, shapes, temperature, truncation, draw=draw)

    def _feed_part(
        self, rows: Feeds, seed: int, start: int, shapes: Shapes, temperature: float, truncation: float | None,
        first: int, last: int, draw: Draw = draw_normal,
    ) -> Feeds:  # fmt: skip
        latents = self.draw(seed, noise.advance(start, first), last - first, shapes, temperature, truncation, draw)
        return {**latents, **{name: array[first:last] for name, array in rows.items()}}

    def draw_one(
        self, number: int, seed: int, start: int, n: int, shape: tuple[int, ...], temperature: float = 1.0,
        truncation: float | None = None, draw: Draw = draw_normal,
    ) -> Array:  # fmt: skip
        """Draw the latent of this number in the manifest; arguments as of `draw`."""
        latent = self._latents[number]
        kind = latent.prior.kind
        if kind == "normal":
            stream = noise.stream_of(noise.PRIOR, number)
            drawn: Array = draw(seed, start, n, shape, stream, temperature, truncation)
            return drawn
        if kind == "mixture":
            if shape != latent.shape:
                raise InputError(
                    f"latent_shape of {latent.name}: expected {list(latent.shape)}, for which the prior was fitted, "
                    f"got {list(shape)}"
                )
            mixture = self.mixture(latent)
            return mixture.draw(seed, start, n, number, temperature, truncation).reshape(n, *shape)
        if kind == "sphere":
            if temperature != 1 or truncation is not None:
                raise InputError(
                    f"temperature and truncation: the prior of {latent.name} is uniform on a sphere and takes neither, "
                    f"got {temperature} and {truncation}; leave them out"
                )
            return draw_sphere(seed, start, n, shape, number)
        # A prior is fitted to latents of one size, and codes have none.
        fitting = latent.posterior.kind != "codes" and not latent.dynamic
        raise InputError(
            f"{latent.name}: the bundle has no prior to draw from: {latent.prior.reason or 'no reason is given'}; "
            f"{'fit one at export (prior=…), or ' if fitting else ''}give latents to decode()"
        )

    def mixture(self, latent: Latent) -> Mixture:
        """The parameters of a latent's mixture, read when they are first needed.

        Raises:
            BundleError: the file is damaged, or is not the one that the manifest describes.
        """
        mixture = self._mixtures.get(latent.name)
        if mixture is None:
            file = str(latent.prior.file)
            mixture = read_mixture(latent, self._bundle.read(file), self._bundle.place(file))
            self._mixtures[latent.name] = mixture
        return mixture

    def _rows_ahead(self, seed: int, start: int, n: int) -> Array:
        """Standard-normal rows; where calls take one index of a seed after the other, many are drawn at once."""
        seed_ahead, first, rows = self._ahead
        offset = start - first
        # Rows drawn ahead go on at 0 after the last index, 2**64 - 1, beyond which no call may begin.
        if seed_ahead == seed and offset >= 0 and offset + n <= len(rows) and start < 2**64:
            return rows[offset : offset + n]
        shape = self.shapes[0]
        following = self._next == (seed, start) or (seed_ahead == seed and offset == len(rows) > 0)
        self._next = (seed, start + n)
        if following:
            rows = noise.normal(seed, start, self._count_ahead, shape, noise.PRIOR)
            self._ahead = (seed, start, rows)
            return rows[:n]
        return noise.normal(seed, start, n, shape, noise.PRIOR)


@record(frozen=True)
class Mixture(Record):
    """A mixture of K normal distributions over latents of D elements.

    `weights` float64 [K]; `means` float64 [K, D]; `factors` float64: [K, D], standard deviations, or [K, D, D],
    matrices L with the covariance L·Lᵀ.
    """

    weights: NDArray[np.float64]
    means: NDArray[np.float64]
    factors: NDArray[np.float64]

    def draw(
        self, seed: int, start: int, n: int, latent: int = 0, temperature: float = 1.0, truncation: float | None = None
    ) -> Array:
        """Draw latents: a component for each, then the mean plus the factor times noise.

        Args:
            seed: of vnoise-1.
            start: index of the first: row i is sample `start + i` of the seed.
            n: how many.
            latent: the number of the latent in the manifest.
            temperature: scales the noise about the component's mean, 0 … 1e6.
            truncation: bounds that noise; see `noise.normal`.

        Returns:
            float32 [n, D].

        Raises:
            InputError: an argument is out of its range.
        """
        components, elements = self.means.shape
        eps = draw_normal(
            seed, start, n, (elements,), noise.stream_of(noise.PRIOR, latent), temperature, truncation
        ).astype(np.float64)
        u = noise.uniform(seed, start, n, (1,), noise.stream_of(noise.CHOICE, latent))[:, 0]
        # Added one by one, so that the order of the sum is certain.
        cumulative = np.array(list(itertools.accumulate(self.weights.tolist())))
        chosen = np.minimum(np.searchsorted(cumulative, u.astype(np.float64), side="right"), components - 1)
        z: NDArray[np.float64] = self.means[chosen]
        if self.factors.ndim == 2:
            z += self.factors[chosen] * eps
            return z.astype(np.float32)
        for component in np.unique(chosen):
            rows = np.nonzero(chosen == component)[0]
            part, given, factor = z[rows], eps[rows], self.factors[component]
            for element in range(elements):
                part += factor[:, element] * given[:, element, None]
            z[rows] = part
        return z.astype(np.float32)

    def log_prob(self, z: NDArray[np.float64]) -> NDArray[np.float64]:
        """log p(z) in nats: float64 [n, D] → [n]; minus infinity where a component has no spread."""
        terms = np.empty((len(z), len(self.weights)))
        with np.errstate(divide="ignore", invalid="ignore"):
            for component, (mean, factor) in enumerate(zip(self.means, self.factors, strict=True)):
                diagonal = factor if factor.ndim == 1 else np.diagonal(factor)
                away = z - mean
                eps = away / factor if factor.ndim == 1 else np.linalg.solve(factor, away.T).T
                terms[:, component] = -0.5 * (eps**2 + _LOG_2PI).sum(axis=1) - np.log(np.abs(diagonal)).sum()
            terms = np.where(np.isnan(terms), -np.inf, terms) + np.log(self.weights)
        largest = terms.max(axis=1, keepdims=True)
        largest[~np.isfinite(largest)] = 0.0
        with np.errstate(divide="ignore"):
            total: NDArray[np.float64] = np.log(np.exp(terms - largest).sum(axis=1)) + largest[:, 0]
        return total


def draw_sphere(seed: int, start: int, n: int, shape: Sequence[int], latent: int = 0) -> Array:
    """Draw latents uniformly from the unit sphere: normal noise over its length (Muller, CACM 2(4), 1959).

    Args:
        seed: of vnoise-1.
        start: index of the first: row i is sample `start + i` of the seed.
        n: how many.
        shape: of one latent; its elements together are a point of the sphere.
        latent: the number of the latent in the manifest.

    Returns:
        float32 [n, *shape].

    Raises:
        InputError: an argument is out of its range.
    """
    eps = noise.normal(seed, start, n, (math.prod(shape),), noise.stream_of(noise.PRIOR, latent)).astype(np.float64)
    squares = np.zeros(n)
    # One by one: numpy's own sum has another order on other machines.
    for element in eps.T:
        squares += element * element
    points: Array = (eps / np.sqrt(squares)[:, None]).astype(np.float32)
    return points.reshape(n, *shape)


def read_mixture(latent: Latent, content: bytes, place: str) -> Mixture:
    """The parameters of a latent's mixture, held against the manifest.

    Args:
        latent: what the manifest says of it.
        content: the bytes of the prior's file, an .npz file.
        place: what to call the file in errors.

    Raises:
        BundleError: the file is damaged, or an array is missing, of another shape or dtype, or no such parameter.
    """
    prior, elements = latent.prior, math.prod(latent.shape)
    if prior.components is None:
        raise InputError(f"{latent.name}: expected a prior with components, got {prior}")
    count = prior.components
    factors = (count, elements) if prior.covariance == "diagonal" else (count, elements, elements)
    shapes = {"weights": (count,), "means": (count, elements), "factors": factors}
    expected = {f"{latent.name}/{name}": ("float64", shape) for name, shape in shapes.items()}
    from .arrays import unpack_npz  # not needed on the start-up path

    stored = unpack_npz(content, place, expected)
    arrays = {name: stored[f"{latent.name}/{name}"] for name in shapes}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise BundleError(
                f"{place}: {latent.name}/{name}: expected finite numbers, got NaN or infinity; export the bundle again"
            )
    weights = arrays["weights"]
    if weights.min() < 0 or abs(weights.sum() - 1) > _ROUNDING:
        raise BundleError(
            f"{place}: {latent.name}/weights: expected numbers of at least 0 that add up to 1, got a min of "
            f"{weights.min():g} and a sum of {weights.sum():g}; export the bundle again"
        )
    return Mixture(weights, arrays["means"], arrays["factors"])
