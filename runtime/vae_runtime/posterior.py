"""The latents of observations as an encoder gives them: a distribution of each, or the latent itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import noise
from .computation import Chain
from .errors import InputError
from .prior import draw_normal

if TYPE_CHECKING:
    from .inputs import Feeds, Inputs
    from .manifest import Latent
    from .networks import Networks

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Drawn:
    """The noise that an encoder was given where latents depend on samples of others: of `seed` from `start` on.

    Without a seed it was zeros: samples are means.
    """

    seed: int | None
    start: int


@dataclass(frozen=True, eq=False, init=False)
class Posterior:
    """q(z|x), a diagonal normal for each observation of a batch; every array is float32 [batch, *latent shape].

    `std` comes out of the encoder's graph, since exp differs between platforms. `latent` is the number of the latent
    in the manifest; `drawn` is set where the encoder drew samples on its way.
    """

    mean: Array
    std: Array
    logvar: Array
    latent: int = 0
    drawn: Drawn | None = None

    def __init__(self, mean: Array, std: Array, logvar: Array, latent: int = 0, drawn: Drawn | None = None) -> None:
        # A third of the time that the generated method takes, which shows beside a small graph.
        own = self.__dict__
        own["mean"], own["std"], own["logvar"], own["latent"], own["drawn"] = mean, std, logvar, latent, drawn

    def __repr__(self) -> str:
        return f"<Posterior: mean, std and logvar {self.mean.dtype} {list(self.mean.shape)}>"

    @property
    def var(self) -> Array:
        """The variance, std²."""
        variance: Array = np.square(self.std)
        return variance

    def mode(self) -> Array:
        """The most probable latents: the means."""
        return self.mean

    def sample(self, *, seed: int | None = None, start: int = 0, temperature: float = 1.0) -> Array:
        """Draw one latent for each observation: mean + std · eps (Kingma & Welling, arXiv 1312.6114).

        Args:
            seed: of vnoise-1; None takes a fresh one, or that of `encode` where the encoder drew samples on its way.
            start: the index of the first observation: row i uses sample `start + i` of the seed.
            temperature: scales eps, 0 … 1e6.

        Returns:
            float32 [batch, *latent shape]; the same bits wherever mean and std are the same bits.

        Raises:
            InputError: an argument is out of its range, or is not what `encode` drew with.
        """
        if self.drawn is not None:
            seed, start = self._as_drawn(self.drawn, seed, start, temperature)
        stream = noise.stream_of(noise.POSTERIOR, self.latent)
        eps = draw_normal(seed, start, len(self.mean), self.mean.shape[1:], stream, temperature)
        # Two rounded operations: a fused multiply-add would give other bits elsewhere.
        np.multiply(self.std, eps, out=eps)
        return np.add(self.mean, eps, out=eps)

    def kl(self) -> NDArray[np.float64]:
        """KL(q(z|x) ‖ standard normal) in nats, float64 [batch] (Kingma & Welling, arXiv 1312.6114, appendix B)."""
        terms = self.kl_per_dimension()
        total: NDArray[np.float64] = terms.reshape(len(terms), -1).sum(axis=1)
        return total

    def kl_per_dimension(self) -> NDArray[np.float64]:
        """The terms of `kl`, float64 [batch, *latent shape]; all are at least 0 but for rounding."""
        mean, std, logvar = (part.astype(np.float64) for part in (self.mean, self.std, self.logvar))
        terms: NDArray[np.float64] = 0.5 * (mean**2 + std**2 - 1.0 - logvar)
        return terms

    def log_prob(self, z: ArrayLike) -> NDArray[np.float64]:
        """log q(z|x), the log density of one latent for each observation, in nats.

        Args:
            z: [batch, *latent shape].

        Returns:
            float64 [batch].

        Raises:
            InputError: the shape is another.
        """
        latents = np.asarray(z)
        if latents.shape != self.mean.shape:
            raise InputError(f"z: expected the shape {list(self.mean.shape)}, got {list(latents.shape)}")
        mean, logvar = self.mean.astype(np.float64), self.logvar.astype(np.float64)
        terms = -0.5 * (math.log(2 * math.pi) + logvar + (latents - mean) ** 2 * np.exp(-logvar))
        total: NDArray[np.float64] = terms.reshape(len(terms), -1).sum(axis=1)
        return total

    def _as_drawn(self, drawn: Drawn, seed: int | None, start: int, temperature: float) -> tuple[int, int]:
        if drawn.seed is None:
            raise InputError(
                "sample: the encoder takes samples of some latents to find others, and encode() without a seed gave it "
                "the means; call encode(x, seed=…) and then sample()"
            )
        given = (drawn.seed, drawn.start) if seed is None and start in (0, drawn.start) else (seed, start)
        if given != (drawn.seed, drawn.start) or temperature != 1:
            raise InputError(
                f"sample: expected seed {drawn.seed}, start {drawn.start} and temperature 1, with which encode() drew "
                "the samples that other latents depend on; call sample() without arguments, or encode again"
            )
        return drawn.seed, drawn.start


@dataclass(frozen=True, eq=False)
class Encoding:
    """The latents of a batch of observations where there is no distribution: codes, or a deterministic autoencoder's.

    `value` is [batch, *latent shape], int64 for codes and float32 else; `reason` says why there is no distribution.
    """

    value: NDArray[Any]
    reason: str

    def __repr__(self) -> str:
        return f"<Encoding: value {self.value.dtype} {list(self.value.shape)}; no distribution: {self.reason}>"

    def mode(self) -> NDArray[Any]:
        """The latents themselves."""
        return self.value

    def sample(self, *, seed: int | None = None, start: int = 0, temperature: float = 1.0) -> Array:
        """Raise InputError: there is nothing to draw."""
        raise self._refusal("sample")

    def kl(self) -> NDArray[np.float64]:
        """Raise InputError: there is no distribution."""
        raise self._refusal("kl")

    def kl_per_dimension(self) -> NDArray[np.float64]:
        """Raise InputError: there is no distribution."""
        raise self._refusal("kl_per_dimension")

    def log_prob(self, z: ArrayLike) -> NDArray[np.float64]:
        """Raise InputError: there is no distribution."""
        raise self._refusal("log_prob")

    def _refusal(self, what: str) -> InputError:
        return InputError(f"{what}: there is no posterior distribution: {self.reason}; take mode()")


class Posteriors(Mapping[str, "Posterior | Encoding"]):
    """The posteriors of several latents, by name; read-only."""

    def __init__(self, parts: Mapping[str, Posterior | Encoding]) -> None:
        self._parts = dict(parts)

    def __getitem__(self, name: str) -> Posterior | Encoding:
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}: {type(part).__name__} {list(part.mode().shape)}" for name, part in self.items())
        return f"<Posteriors {shown}>"

    def mode(self) -> dict[str, NDArray[Any]]:
        """The most probable latents, by name."""
        return {name: part.mode() for name, part in self.items()}

    def sample(self, *, seed: int | None = None, start: int = 0, temperature: float = 1.0) -> dict[str, Array]:
        """Draw of every latent as `Posterior.sample` does, all of one seed; by name.

        Raises:
            InputError: an argument is out of its range, or a latent has no distribution.
        """
        if seed is None and not any(isinstance(part, Posterior) and part.drawn for part in self.values()):
            seed = noise.new_seed()
        return {name: part.sample(seed=seed, start=start, temperature=temperature) for name, part in self.items()}

    def kl(self) -> NDArray[np.float64]:
        """The sum of every latent's KL to the standard normal, float64 [batch], in nats.

        Raises:
            InputError: a latent has no distribution.
        """
        total: NDArray[np.float64] = np.sum([part.kl() for part in self.values()], axis=0)
        return total


class Encoder:
    """Encodes checked observations: the graph's outputs, by latent. May be shared by threads."""

    def __init__(self, networks: Networks, inputs: Inputs, latents: Sequence[Latent]) -> None:
        self._inputs, self._latents = inputs, latents
        self._parameters = networks.computation("encoder")
        modes = tuple(str(each.posterior.mu or each.posterior.value) for each in latents if each.posterior.outputs)
        self.chain = Chain(networks.computation("encoder", modes), networks.mean, latents[0])
        """The way from observations through the modes, for few rows."""
        # The latent's name and number; the places of mean, std and logvar, or of the value, among the outputs.
        self._plan: list[tuple[str, int, tuple[int, ...]]] = []
        outputs = self._parameters.outputs
        for number, latent in enumerate(latents):
            q = latent.posterior
            names = (q.mu, q.std, q.logvar) if q.kind == "normal" else (q.value,) if q.value else ()
            if names:
                self._plan.append((latent.name, number, tuple(outputs.index(str(name)) for name in names)))
        # The arguments of the one posterior.
        q = latents[0].posterior
        names = (str(q.mu), str(q.std), str(q.logvar))
        plain = len(latents) == 1 and q.kind == "normal"
        self._one = networks.computation("encoder", names) if plain else None

    def encode(
        self, x: NDArray[Any], rows: Feeds, seed: int | None, start: int, batch_size: int | None
    ) -> dict[str, Posterior | Encoding]:
        """Give the posteriors by the latents' names.

        Args:
            x: observations [n, *observation shape].
            rows: the conditions, [n, ...] each.
            seed: draws the noise that an encoder may take; None takes zeros.
            start: index of the first observation.
            batch_size: how many to encode at once.
        """
        feed = self._inputs.encoder(x, rows, seed, start)
        outputs = self._parameters.run(feed, len(x), batch_size)
        drawn = Drawn(seed, start) if self._inputs.encoder_noise else None
        parts: dict[str, Posterior | Encoding] = {}
        for name, number, places in self._plan:
            if len(places) == 3:
                mean, std, logvar = places
                parts[name] = Posterior(outputs[mean], outputs[std], outputs[logvar], number, drawn)
            else:
                parts[name] = Encoding(outputs[places[0]], why_no_distribution(self._latents[number]))
        return parts

    def direct(self, x: Any) -> Posterior | None:
        """As `posterior`, of a caller's array, unchecked, where it is few rows that are right as they stand; else None.

        Raises:
            VaeError: ONNX Runtime failed.
        """
        outputs = self._one.direct(x) if self._one else None
        if outputs is None:
            return None
        mean, std, logvar = outputs
        return Posterior(mean, std, logvar)

    def posterior(
        self, x: NDArray[Any], rows: Feeds, seed: int | None, start: int, batch_size: int | None
    ) -> Posterior | Encoding | Posteriors:
        """Give the posterior of one latent, or of several latents the mapping; arguments as of `encode`."""
        parts = self.encode(x, rows, seed, start, batch_size)
        return Posteriors(parts) if self._inputs.has_several else parts[self._latents[0].name]


def why_no_distribution(latent: Latent) -> str:
    """Why a latent has no posterior distribution."""
    codes = "the encoder gives codes" if latent.posterior.kind == "codes" else "the encoder gives the latent itself"
    return latent.posterior.reason or codes
