"""The formulas of scores, in nats, in float64, as pure functions of arrays.

The ELBO is from Kingma & Welling, arXiv 1312.6114; the importance-weighted bound from Burda et al., arXiv 1509.00519.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import noise
from .answers import kind_of
from .computation import BATCH_SIZE, batches
from .errors import InputError, counted, require_bool, require_integer
from .held_out import p_values, why_no_p_value
from .inputs import rows_of
from .likelihood import Kind, Parameters, kind_named
from .manifest import Likelihood, Manifest
from .posterior import Encoder, Encoding, Posterior, why_no_distribution

if TYPE_CHECKING:
    from .inputs import Feeds, Inputs
    from .networks import Networks
    from .prior import Prior

Floats = NDArray[np.float64]

# What an encoder gives, by the latents' names.
Parts = Mapping[str, "Posterior | Encoding"]

_LOG_2PI = math.log(2 * math.pi)
# Numbers of an observation that are scored at once: their terms, in float64, then stay near the caches.
_SCORED = 2**20
# Numbers of the importance samples of one observation, which are drawn at once: 4 GiB.
MAX_DRAWN = 2**30


# Scores that are means over the values of an observation; all others are in nats.
PER_VALUE = ("mse", "mae")


@dataclass(frozen=True, eq=False)
class Scores:
    """How well a VAE explains observations: float64 [n] each, in nats per observation where not said otherwise.

    Where there is no likelihood, no posterior distribution or no prior with a density, only `mse` and `mae` are there;
    the rest is None, and `reason` says why.
    """

    elbo: Floats | None
    """The evidence lower bound, reconstruction − kl, with one posterior sample."""
    reconstruction: Floats | None
    """log p(x|z) of that sample."""
    kl: Floats | None
    """KL(q(z|x) ‖ p(z)) of all latents together: analytic where the prior is one normal with a diagonal covariance, and
    else log q(z|x) − log p(z) of the sample, whose expectation it is."""
    kl_per_dimension: Floats | Mapping[str, Floats] | None
    """Its terms, [n, *latent shape]; of several latents by name; None where it is not analytic."""
    log_likelihood: Floats | None
    """The importance-weighted bound of log p(x) with k samples; None where no k was given."""
    mse: Floats | None
    """Mean squared difference between x and its reconstruction through the posterior's mean, per value; None where the
    decoder's answer has another shape than x."""
    mae: Floats | None
    """Mean absolute difference, likewise."""
    reason: str | None = None
    p_value: Floats | None = None
    """The share of held-out observations that score as low as this one or lower, 1 / (n + 1) … 1 (`held_out`); None
    where the bundle has no held-out scores, or others than these: `p_value_reason` says why."""
    p_value_reason: str | None = None
    contributions: Floats | None = None
    """The terms of `reconstruction`, one for each value of x, [n, *observation shape]: the lower a term, the worse this
    value is explained; None where they were not asked for or there is no ELBO."""

    def __repr__(self) -> str:
        columns = [
            f"{name} {_shapes_of(value)}"
            for name, value in vars(self).items()
            if value is not None and not isinstance(value, str)
        ]
        return f"<Scores: {', '.join(columns)}{f'; no elbo: {self.reason}' if self.reason else ''}>"


def _shapes_of(value: Floats | Mapping[str, Floats]) -> str:
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {list(part.shape)}' for name, part in value.items())}}}"
    return str(list(value.shape))


@dataclass(frozen=True)
class Scorer:
    """Scores checked observations with the networks of one VAE."""

    manifest: Manifest
    networks: Networks
    inputs: Inputs
    encoder: Encoder
    prior: Prior
    seed: int
    """Seed of vnoise-1, for the samples of the posteriors."""

    def score(
        self, x: NDArray[Any], rows: Feeds, k: int | None, start: int, batch_size: int | None,
        progress: Callable[[int, int], object] | None, contributions: bool = False,
    ) -> Scores:  # fmt: skip
        """Score in batches; `rows` holds the conditions of both components, the rest is as in `VAE.score`."""
        n, reason = len(x), _why_no_elbo(self.manifest)
        require_bool("contributions", contributions)
        if reason is None:
            misfit = kind_of(self.manifest).misfit(x)
            if misfit:
                raise InputError(f"{self.manifest.observation.name}: {misfit}; give observations as in training")
        if k is not None:
            k = self._importance_samples(k)
        values = max(1, x[0].size, math.prod(self.manifest.likelihood.shape or ()))
        size = max(1, min(BATCH_SIZE, _SCORED // values)) if batch_size is None else batch_size
        rows_from = rows_of(rows, n)
        columns: dict[str, list[Floats]] = {}
        terms: dict[str, list[Floats]] = {}
        for first, last in batches(n, size):
            part, part_rows, index = x[first:last], rows_from(first, last), noise.advance(start, first)
            q = self.encoder.encode(part, part_rows, None, 0, size)
            scores = self._errors(part, q, part_rows, size)
            if reason is None:
                q = self.encoder.encode(part, part_rows, self.seed, index, size) if self.inputs.encoder_noise else q
                scores |= self._bounds(part, q, part_rows, k, index, size, contributions)
                for name, part_terms in self._kl_terms(q).items():
                    terms.setdefault(name, []).append(part_terms)
            for name, column in scores.items():
                columns.setdefault(name, []).append(column)
            if progress is not None:
                progress(last, n)
        whole = {name: np.concatenate(parts) for name, parts in columns.items()}
        per_latent = {name: np.concatenate(parts) for name, parts in terms.items()}
        elbo = whole["reconstruction"] - whole["kl"] if reason is None else None
        p_value, why = self._p_value(elbo, whole.get("log_likelihood"), k)
        return Scores(
            elbo=elbo,
            reconstruction=whole.get("reconstruction"),
            kl=whole.get("kl"),
            kl_per_dimension=(per_latent or None) if self.inputs.has_several else next(iter(per_latent.values()), None),
            log_likelihood=whole.get("log_likelihood"),
            mse=whole.get("mse"),
            mae=whole.get("mae"),
            reason=reason,
            p_value=p_value,
            p_value_reason=why,
            contributions=whole.get("contributions"),
        )

    def _p_value(self, elbo: Floats | None, bound: Floats | None, k: int | None) -> tuple[Floats | None, str | None]:
        """The p-values, or the reason why there are none."""
        held_out, (_, why) = self.manifest.scores, reasons_of(self.manifest, self.networks.variants, k, self.seed)
        score = elbo if held_out is None or held_out.kind == "elbo" else bound
        if held_out is None or score is None or why:
            return None, why
        return p_values(held_out, score), None

    def _importance_samples(self, k: int) -> int:
        """Check the number of importance samples."""
        k = require_integer("k", k, 1, 10**6)
        if self.inputs.encoder_noise or any(not latent.posterior.outputs for latent in self.manifest.latents):
            raise InputError(
                "k: importance samples are drawn for VAEs whose encoder and decoder take no noise of their own; "
                "leave `k` out, the ELBO is a bound of log p(x) too"
            )
        numbers = sum(math.prod(latent.shape) for latent in self.manifest.latents)
        if k * numbers > MAX_DRAWN:
            raise InputError(
                f"k: expected at most {MAX_DRAWN // numbers} for latents of {counted(numbers, 'number')}, got {k}"
            )
        return k

    def _errors(self, x: NDArray[Any], q: Parts, rows: Feeds, size: int) -> dict[str, Floats]:
        """The columns `mse` and `mae`, of the reconstruction through the modes; none where shapes differ."""
        mean = self.manifest.likelihood.mean
        z = {name: part.mode() for name, part in q.items()}
        decoded = self._decode(z, rows, (mean,), size)[mean]
        if decoded.shape != x.shape:
            return {}
        error = (x.astype(np.float64) - decoded).reshape(len(x), -1)
        return {"mse": np.square(error).mean(axis=1), "mae": np.abs(error).mean(axis=1)}

    def _bounds(
        self, x: NDArray[Any], q: Parts, rows: Feeds, k: int | None, start: int, size: int, contributions: bool
    ) -> dict[str, Floats]:
        """The columns `reconstruction` and `kl`, with k `log_likelihood`, and on demand `contributions`."""
        z: Feeds = {name: part.sample(seed=self.seed, start=start) for name, part in q.items()}
        terms = self._log_likelihood_terms(x, z, rows, size, seed=self.seed, start=start)
        columns = {"reconstruction": terms.reshape(len(x), -1).sum(axis=1), "kl": self._kl(q, z)}
        if contributions:
            columns["contributions"] = terms
        if k is not None:
            weights = np.empty((len(x), k))
            together = max(1, size // k)
            for first in range(0, len(x), together):
                some = slice(first, first + together)
                parts = {
                    name: Posterior(part.mean[some], part.std[some], part.logvar[some], part.latent)
                    for name, part in q.items()
                    if isinstance(part, Posterior)
                }
                some_rows = {name: row[some] for name, row in rows.items()}
                weights[some] = self._log_weights(x[some], parts, some_rows, k, noise.advance(start, first), size)
            columns["log_likelihood"] = importance_weighted_bound(weights)
        return columns

    def _kl(self, q: Parts, z: Feeds) -> Floats:
        """The column `kl`; `z` holds a sample of each posterior, by name."""
        terms = self._kl_terms(q)
        total = np.zeros(len(next(iter(z.values()))))
        for name, part in q.items():
            if name in terms:
                total += terms[name].reshape(len(total), -1).sum(axis=1)
            else:
                total += part.log_prob(z[name]) - self._log_prior(name, z[name])
        return total

    def _kl_terms(self, q: Parts) -> dict[str, Floats]:
        """The KL's terms for each number of a latent whose prior is one normal with a diagonal covariance."""
        terms = {}
        for latent in self.manifest.latents:
            part = q.get(latent.name)
            if not isinstance(part, Posterior):
                continue
            if latent.prior.kind == "normal":
                terms[latent.name] = part.kl_per_dimension()
            elif latent.prior.components == 1 and latent.prior.covariance == "diagonal":
                mixture = self.prior.mixture(latent)
                mean, std = (array[0].reshape(latent.shape) for array in (mixture.means, mixture.factors))
                terms[latent.name] = normal_kl(part, mean, std)
        return terms

    def _log_prior(self, name: str, z: NDArray[Any]) -> Floats:
        """log p(z), float64 [n], nats."""
        latent = next(latent for latent in self.manifest.latents if latent.name == name)
        if latent.prior.kind == "normal":
            return log_standard_normal(z)
        return self.prior.mixture(latent).log_prob(z.astype(np.float64).reshape(len(z), -1))

    def _log_weights(
        self, x: NDArray[Any], q: Mapping[str, Posterior], rows: Feeds, k: int, start: int, size: int
    ) -> Floats:
        """log p(x|z) + log p(z) − log q(z|x) of k importance samples, float64 [n, k]; `size` or so decoded at once."""
        n = len(x)
        eps = {
            name: noise.normal(
                self.seed, start, n, (k, *part.mean.shape[1:]), noise.stream_of(noise.IMPORTANCE, part.latent)
            )
            for name, part in q.items()
        }
        chunk, weights = max(1, size // n), np.empty((n, k))
        for first in range(0, k, chunk):
            count = min(chunk, k - first)
            z: Feeds = {}
            total = np.zeros(n * count)
            for name, part in q.items():
                mean, std, logvar = (np.repeat(array, count, axis=0) for array in (part.mean, part.std, part.logvar))
                drawn = mean + std * eps[name][:, first : first + count].reshape(mean.shape)
                total += self._log_prior(name, drawn) - Posterior(mean, std, logvar).log_prob(drawn)
                z[name] = drawn
            repeated = {name: np.repeat(row, count, axis=0) for name, row in rows.items()}
            terms = self._log_likelihood_terms(np.repeat(x, count, axis=0), z, repeated, size)
            total += terms.reshape(n * count, -1).sum(axis=1)
            weights[:, first : first + count] = total.reshape(n, count)
        return weights

    def _log_likelihood_terms(
        self, x: NDArray[Any], z: Feeds, rows: Feeds, size: int, *, seed: int | None = None, start: int = 0
    ) -> Floats:
        """log p of each value of x, float64 [n, *shape]; the seed draws latents that are noise of the decoder."""
        likelihood = self.manifest.likelihood
        names = tuple(name for name in (likelihood.logits or likelihood.mean, likelihood.scale_output) if name)
        answers = self._decode(z, rows, names, size, seed=seed, start=start)
        return log_likelihood_terms(x, answers, likelihood, kind_of(self.manifest))

    def _decode(
        self, z: Feeds, rows: Feeds, outputs: tuple[str, ...], size: int, *, seed: int | None = None, start: int = 0
    ) -> Feeds:
        feeds, n = self.inputs.decoder_of_checked(z, rows, seed, start)
        return dict(zip(outputs, self.networks.computation("decoder", outputs).run(feeds, n, size), strict=True))


def usual_seed(manifest: Manifest) -> int:
    """The seed of the bundle's held-out scores, or a fresh one where it has none."""
    return noise.new_seed() if manifest.scores is None else manifest.scores.seed


def reasons_of(
    manifest: Manifest, variants: Mapping[str, str], k: int | None, seed: int
) -> tuple[str | None, str | None]:
    """Why there is no ELBO, and why there are no p-values; None where there are.

    Args:
        manifest: of the bundle.
        variants: those in use, by component.
        k: the number of importance samples, if any.
        seed: of the posterior's samples.
    """
    reason = _why_no_elbo(manifest)
    return reason, reason or why_no_p_value(manifest.scores, variants, k, seed)


def _why_no_elbo(manifest: Manifest) -> str | None:
    """Why there is no ELBO; None where there is one."""
    likelihood = manifest.likelihood
    if likelihood.kind == "none":
        return likelihood.reason or "no likelihood was stated at export (likelihood=…)"
    if likelihood.shape not in (None, manifest.observation.shape) and not likelihood.has_classes:
        return f"the decoder's answer has the shape {list(likelihood.shape or ())}, not that of an observation"
    for latent in manifest.latents:
        if latent.posterior.kind != "normal" and latent.posterior.outputs:
            return f"{latent.name}: {why_no_distribution(latent)}"
        if latent.prior.kind not in ("normal", "mixture"):
            why = f", {latent.prior.reason}" if latent.prior.reason else ""
            return f"{latent.name}: the KL needs a prior with a density, and the prior is {latent.prior.kind}{why}"
    return None


def normal_kl(q: Posterior, mean: Floats, std: Floats) -> Floats:
    """The terms of KL(q ‖ N(mean, std²)) in nats, float64 [n, *latent shape]; all are at least 0 but for rounding.

    Args:
        q: the posterior.
        mean, std: of the prior, float64 [*latent shape].
    """
    own_mean, own_std, logvar = (part.astype(np.float64) for part in (q.mean, q.std, q.logvar))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (own_std**2 + (own_mean - mean) ** 2) / std**2
        terms: Floats = 0.5 * (ratio - 1.0 + 2 * np.log(std) - logvar)
    return terms


def log_likelihood(x: NDArray[Any], answers: Mapping[str, NDArray[Any]], likelihood: Likelihood) -> Floats:
    """log p(x|z), float64 [n], in nats: `log_likelihood_terms` summed over the observation."""
    total: Floats = log_likelihood_terms(x, answers, likelihood).reshape(len(x), -1).sum(axis=1)
    return total


def log_likelihood_terms(
    x: NDArray[Any], answers: Mapping[str, NDArray[Any]], likelihood: Likelihood, kind: Kind | None = None
) -> Floats:
    """log p of each value of x, with all constants.

    Args:
        x: observations [n, *shape]; under a bernoulli in [0, 1], where only 0 and 1 make it a likelihood; under a
            poisson counts; under a logistic levels of the observation's range; under a categorical classes.
        answers: the decoder's outputs by name, [n, *shape], under a categorical [n, *shape, K]: the logits, or else the
            mean and, if an output holds it, the scale.
        likelihood: says which output is what.
        kind: of the likelihood, for these observations; by default the one of its name.

    Returns:
        float64 [n, *shape], nats.

    Raises:
        InputError: no kind has its name.
    """
    values = {name: answer.astype(np.float64) for name, answer in answers.items()}
    parameters = Parameters(
        mean=values.get(likelihood.mean),
        logits=values.get(likelihood.logits or ""),
        scale=values.get(likelihood.scale_output or "", likelihood.scale),
    )
    kind = kind_named(likelihood.kind) if kind is None else kind
    return kind.log_prob(x.astype(np.float64), parameters)


def log_standard_normal(z: NDArray[Any]) -> Floats:
    """log N(z; 0, 1), summed over all axes but the first: [n, *shape] → float64 [n], nats."""
    terms = -0.5 * (_LOG_2PI + z.astype(np.float64) ** 2)
    total: Floats = terms.reshape(len(z), -1).sum(axis=1)
    return total


def importance_weighted_bound(log_weights: Floats) -> Floats:
    """log 1/k Σ_i w_i, a lower bound of log p(x) (arXiv 1509.00519, equation 8).

    Args:
        log_weights: log p(x|z_i) + log p(z_i) − log q(z_i|x), float64 [n, k].

    Returns:
        float64 [n], nats per observation.
    """
    greatest = log_weights.max(axis=1, keepdims=True)
    # Where no weight is finite there is nothing to take out.
    greatest[~np.isfinite(greatest)] = 0.0
    with np.errstate(divide="ignore"):
        total = np.log(np.exp(log_weights - greatest).sum(axis=1)) + greatest[:, 0]
    bound: Floats = total - math.log(log_weights.shape[1])
    return bound
