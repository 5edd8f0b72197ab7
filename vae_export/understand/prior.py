"""Fit a prior to the latents of real data, so that a model without one can be sampled."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_runtime.errors import InputError, counted
from vae_runtime.manifest import LatentPrior

from ..errors import ExportError
from .declaration import Mixture

PRIOR_FILE = "prior.npz"
FITTED = "diagonal, gaussian or mixture:K"
_MIXTURE = re.compile(r"mixture:([1-9][0-9]{0,3})")
# Added to every variance, as a share of the mean variance, so that a constant dimension has a distribution too.
_RIDGE = 1e-6
# The most dimensions of a full covariance, whose factor has the square of it in numbers.
_FULL = 2048


def is_fitted(kind: object) -> bool:
    """Whether a prior of this name is fitted to data."""
    return kind in ("diagonal", "gaussian") or bool(isinstance(kind, str) and _MIXTURE.fullmatch(kind))


def fit_prior(kind: str, latent: str, z: NDArray[np.float32]) -> tuple[LatentPrior, bytes]:
    """Fit a prior by maximum likelihood; a mixture by expectation maximization (scikit-learn), seed 0.

    Args:
        kind: "diagonal", "gaussian" (full covariance) or "mixture:K" (K components of full covariance).
        latent: the latent's name.
        z: the posterior means of real data, float32 [n, ...].

    Returns:
        The prior for the manifest, and the content of its file (docs/bundle-format.md, Priors).

    Raises:
        InputError: the kind is none of these.
        ExportError: there are too few observations for it, or too many dimensions.
    """
    match = _MIXTURE.fullmatch(kind)
    if not is_fitted(kind):
        raise InputError(f"prior: expected normal, none, {FITTED}, got {kind!r}")
    flat = z.reshape(len(z), -1).astype(np.float64)
    n, dimensions = flat.shape
    components = int(match[1]) if match else 1
    full = kind != "diagonal"
    needed = 2 if not full else components * (dimensions + 1)
    if n < needed:
        raise ExportError(
            f"prior: {kind} in {counted(dimensions, 'dimension')} needs at least {needed} observations, got {n}; pass "
            'more with observations=, or prior="diagonal"'
        )
    if full and dimensions > _FULL:
        raise ExportError(
            f'prior: {kind}: expected at most {_FULL} dimensions, got {dimensions}; pass prior="diagonal"'
        )
    ridge = _RIDGE * max(float(flat.var(axis=0).mean()), 1e-12)
    if match and components > 1:
        from sklearn.mixture import GaussianMixture

        fitted = GaussianMixture(components, reg_covar=ridge, random_state=0, max_iter=200).fit(flat)
        weights, means = fitted.weights_, fitted.means_
        factors = np.linalg.cholesky(fitted.covariances_)
    else:
        weights, means = np.ones(1), flat.mean(axis=0, keepdims=True)
        if full:
            covariance = np.cov(flat, rowvar=False, bias=True).reshape(dimensions, dimensions)
            factors = np.linalg.cholesky(covariance + ridge * np.eye(dimensions))[None]
        else:
            factors = np.sqrt(flat.var(axis=0, keepdims=True) + ridge)
    return mixture_prior(latent, weights, means, factors, "full" if full else "diagonal")


def gaussian_mixture(fitted: Any, origin: str) -> Mixture:
    """The mixture of a fitted GaussianMixture of scikit-learn."""
    means = np.asarray(fitted.means_, np.float64)
    covariances = np.asarray(fitted.covariances_, np.float64)
    count, dimensions = means.shape
    kind = fitted.covariance_type
    if kind in ("full", "tied"):
        factors = np.linalg.cholesky(covariances)
        factors = factors if kind == "full" else np.broadcast_to(factors, (count, dimensions, dimensions)).copy()
    else:
        variances = covariances if kind == "diag" else np.repeat(covariances[:, None], dimensions, axis=1)
        factors = np.sqrt(variances)
    return Mixture(np.asarray(fitted.weights_, np.float64), means, np.asarray(factors, np.float64), origin)


def mixture_prior(
    latent: str, weights: NDArray[Any], means: NDArray[Any], factors: NDArray[Any], covariance: str
) -> tuple[LatentPrior, bytes]:
    """Return the prior for the manifest, and the content of its file (docs/bundle-format.md, Priors).

    Args:
        latent: the latent's name.
        weights: [K], float64.
        means: [K, D], float64.
        factors: the standard deviations [K, D] of a "diagonal" covariance, the Cholesky factors [K, D, D] of a "full".
        covariance: "diagonal" or "full".
    """
    file = io.BytesIO()
    arrays = {f"{latent}/weights": weights / weights.sum(), f"{latent}/means": means, f"{latent}/factors": factors}
    np.savez_compressed(file, allow_pickle=False, **arrays)
    return LatentPrior("mixture", PRIOR_FILE, len(weights), covariance), file.getvalue()
