"""Measure a trained VAE on its test data, with figures that anybody can reproduce.

All noise is vnoise-1, addressed by the seed and the index of the test observation, so a figure does not depend on
batch sizes, and a runtime without PyTorch draws the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from vae_runtime import noise
from vae_runtime.errors import InputError, counted, error_line, require_bool, require_integer
from vae_runtime.files import write_atomic
from vae_runtime.input_files import read_json

from ..errors import require_path
from . import checkpoint, objective, own_vae
from .bars import bar
from .data.batches import TensorBatch, read
from .model import VAE, reparameterize
from .run_folder import require_writable
from .step import Modelled, answer_to

# Numbers in the decoder's answer to one chunk: its activations, some ten times as many, then stay near the caches.
_CHUNK = 2**20
ACTIVE = 0.01
"""Smallest variance over the data of a posterior mean for its dimension to count as active (arXiv 1509.00519, 5.2)."""


@dataclass(frozen=True)
class Evaluation:
    """Figures of the test data, means over observations, in nats per observation where not said otherwise."""

    data: str
    """Name of the data; `data_digest` says exactly which."""
    data_digest: str
    weights_digest: str
    """`sha256:` and the hash of the checkpoint's `model.safetensors` that was measured."""
    observations: int
    """Number of test observations measured."""
    binarisation: str
    """none, stochastic (each value drawn once, by `seed`, with its gray value as probability) or threshold."""
    surrogate: bool
    """Gray values were scored as if a bernoulli likelihood covered them: the figures are no log likelihoods."""
    seed: int
    """Seed of binarization and noise."""
    elbo: float
    """ELBO with one posterior sample and the analytic KL; `reconstruction − kl`."""
    reconstruction: float
    kl: float
    importance_samples: int
    nll: float
    """Negative log-likelihood: minus the importance-weighted bound of log p(x) (arXiv 1509.00519); its
    expectation is never too small."""
    standard_error: float
    """Standard error of `nll` over the observations."""
    mse: float
    """Mean squared difference between x and its reconstruction through the posterior mean, per value."""
    mae: float
    """Mean absolute difference, likewise."""
    active_units: int
    """Latent dimensions whose posterior mean has a variance above 0.01 over the observations."""
    latent: int
    """Number of latent dimensions."""

    def protocol(self) -> str:
        """Return the line that belongs to every figure: data, binarization and number of importance samples."""
        observations = counted(self.observations, "test observation")
        samples = counted(self.importance_samples, "importance sample")
        line = f"{observations} of {self.data}, binarization {self.binarisation}, {samples}"
        return line + (", surrogate: gray values under a bernoulli likelihood" if self.surrogate else "")


def evaluate(
    run_folder: str | Path,
    *,
    importance_samples: int = 1000,
    data: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
    model: nn.Module | None = None,
) -> Evaluation:
    """Measure the checkpoint of a run and write the figures to `evaluation.json` in its folder.

    Args:
        run_folder: what `train` made; training need not have finished.
        importance_samples: samples k of the importance-weighted bound.
        data: where the run's data are now, if not where they were.
        limit: measure the first so many test observations only.
        seed: of binarization and noise.
        progress: show a bar on stderr.
        model: the module of a run whose model was given in Python without a name; it takes the run's weights.

    Raises:
        InputError: the checkpoint cannot be read, the folder cannot be written, the data are missing or not those of
            the training, or a number is out of range.
    """
    folder = require_path("run_folder", run_folder)
    require_bool("progress", progress)
    require_integer("seed", seed, -(2**63), 2**64 - 1)
    for name, number in (("importance_samples", importance_samples), ("limit", 1 if limit is None else limit)):
        require_integer(name, number, 1, 2**31)
    module, info = checkpoint.load(folder, model)
    require_writable(folder)
    dataset = checkpoint.run_data(info, data, folder)
    if not len(dataset.test):
        raise InputError(f"{info.data.source}: expected at least one test observation, got none; split some off")
    n = min(len(dataset.test), limit or len(dataset.test))

    def rows(start: int, stop: int) -> TensorBatch:
        raw = read(dataset.test, slice(start, stop))
        x = torch.from_numpy(binarise(raw.x.numpy(), info.train.binarise, seed, start))
        return TensorBatch(x, raw.conditions)

    if isinstance(module, VAE):
        vae: Modelled = module.for_cpu()
    else:
        few = rows(0, min(n, own_vae.EXAMPLES))
        vae = own_vae.again(module, info.model, few.x, few.conditions)
    with torch.inference_mode():
        figures = _figures(vae, rows, n, importance_samples, seed, progress)
    result = Evaluation(
        data=dataset.provenance.name,
        data_digest=dataset.provenance.digest,
        weights_digest=checkpoint.weights_digest(folder),
        observations=n,
        binarisation=info.train.binarise,
        surrogate=info.surrogate,
        seed=seed,
        importance_samples=importance_samples,
        latent=info.model.latent,
        **figures,
    )
    write_atomic(folder / "evaluation.json", (json.dumps(asdict(result), indent=2, ensure_ascii=False) + "\n").encode())
    return result


def read_evaluation(run_folder: str | Path) -> Evaluation | None:
    """Return the last output of `evaluate` in a run's folder, or None if there is none.

    Raises:
        InputError: the file is damaged, or its figures are of other weights.
    """
    path = Path(run_folder) / "evaluation.json"
    try:
        fields = read_json(path)
        # Infinity and NaN can be read, and not be written again.
        json.dumps(fields, allow_nan=False)
        evaluation = checkpoint.record(Evaluation, fields, "figures")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path}: expected the output of `vae-export evaluate`: {error_line(error)}; evaluate again"
        ) from error
    digest = checkpoint.weights_digest(Path(run_folder))
    if evaluation.weights_digest != digest:
        raise InputError(
            f"{path}: expected figures of these weights ({digest}), got those of others "
            f"({evaluation.weights_digest}); evaluate again"
        )
    return evaluation


def binarise(x: NDArray[np.float32], how: str, seed: int, start: int = 0) -> NDArray[np.float32]:
    """Return observations as a model sees them that was trained with this binarization.

    Args:
        x: float32 [n, *shape] in [0, 1].
        how: none, threshold (at 0.5), or stochastic: 1 where the uniform of vnoise-1 for (seed, observation stream,
            index, position) is below the value.
        seed: of the uniforms.
        start: index of the first observation.
    """
    if how == "stochastic":
        return (noise.uniform(seed, start, len(x), x.shape[1:], noise.OBSERVATION) < x).astype(np.float32)
    return (x > 0.5).astype(np.float32) if how == "threshold" else x


def _figures(
    vae: Modelled, observations: Callable[[int, int], TensorBatch], n: int, k: int, seed: int, progress: bool
) -> dict[str, Any]:
    """Return the measured fields of `Evaluation`, of n observations [n, *shape], which are read from start to stop."""
    latent = vae.latent
    rows = max(1, _CHUNK // math.prod(observations(0, 1).x.shape[1:]))
    # few samples: many observations at a time; many samples: one observation, its samples in chunks
    together = max(1, rows // k)
    means, log_p = [], []
    sums = torch.zeros(4, dtype=torch.float64)
    with bar(n * k, "decodes", shown=progress) as decoded:
        for start in range(0, n, together):
            batch = observations(start, min(start + together, n))
            part, given = batch.x, batch.conditions
            mu, logvar = vae.posterior(part, **given)
            eps = _normal(seed, start, len(part), (latent,), noise.POSTERIOR)
            parameters, scale = vae.answer(reparameterize(mu, logvar, eps), **given)
            terms = objective.elbo(part, parameters, mu, logvar, vae.likelihood, scale)
            error = (part - vae.point(vae.answer(mu, **given)[0])).flatten(1)
            each = (terms.reconstruction, terms.kl, error.square().mean(1), error.abs().mean(1))
            sums += torch.stack(each).double().sum(1)
            means.append(mu)
            eps = _normal(seed, start, len(part), (k, latent), noise.IMPORTANCE).transpose(0, 1)
            log_p.append(_log_likelihoods(vae, batch, mu, logvar, eps, max(1, rows // len(part)), decoded))
    reconstruction, kl, mse, mae = (sums / n).tolist()
    bounds = torch.cat(log_p)
    return {
        "elbo": reconstruction - kl,
        "reconstruction": reconstruction,
        "kl": kl,
        "nll": -bounds.mean().item(),
        "standard_error": bounds.std(correction=min(1, n - 1)).item() / math.sqrt(n),
        "mse": mse,
        "mae": mae,
        "active_units": int((torch.cat(means).double().var(0, correction=0) > ACTIVE).sum()),
    }


def _normal(seed: int, start: int, n: int, shape: tuple[int, ...], stream: int) -> Tensor:
    return torch.from_numpy(noise.normal(seed, start, n, shape, stream))


def _log_likelihoods(
    vae: Modelled, batch: TensorBatch, mu: Tensor, logvar: Tensor, eps: Tensor, chunk: int, decoded: tqdm[Any]
) -> Tensor:
    """Return the importance-weighted bound of each observation [n, *shape] with noise [k, n, latent]: float64 [n].

    The decoder works on `chunk` of the k samples at a time.
    """
    reconstructions, ratios = [], []
    for part in eps.split(chunk):
        z = reparameterize(mu, logvar, part)
        parameters, scale = answer_to(vae, z, batch.conditions)
        reconstructions.append(objective.log_likelihood(batch.x, parameters, vae.likelihood, scale).double())
        ratios.append((objective.log_normal(z) - objective.log_normal(z, mu, logvar)).double())
        decoded.update(len(part) * len(batch.x))
    return objective.importance_weighted_bound(torch.cat(reconstructions), torch.cat(ratios))
