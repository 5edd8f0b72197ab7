"""Read a prior that the caller gives as an object: a sampler of a library, a fitted mixture, or a distribution."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.distributions import Categorical, Distribution, Independent, MixtureSameFamily, MultivariateNormal, Normal

from vae_runtime.errors import InputError

from .declaration import Mixture
from .families.registry import sampler_prior
from .inner import module_of
from .prior import FITTED, gaussian_mixture, is_fitted

_TAKEN = (
    f"normal, none, sphere, {FITTED}, a fitted GaussianMixture of scikit-learn, a normal distribution of PyTorch or a "
    "mixture of such, or a sampler of pythae"
)


def prior_of(prior: Any, model: Any) -> str | Mixture | None:
    """Return a prior by its name or as a mixture; where none is given, that of a model which is a sampler itself.

    Args:
        prior: the argument of `export`.
        model: the model that it is for, or the object that holds it.

    Raises:
        InputError: it is none that a bundle can carry, or a sampler of another model.
        ExportError: it is a sampler that a bundle cannot carry, and the error names it.
    """
    if prior is None and not isinstance(model, nn.Module):
        return sampler_prior(model)
    if prior is None or isinstance(prior, Mixture) or prior in ("normal", "none", "sphere") or is_fitted(prior):
        return prior  # type: ignore[no-any-return]
    found: str | Mixture | None
    if isinstance(prior, Distribution):
        found = _of_distribution(prior)
    elif all(hasattr(prior, name) for name in ("weights_", "means_", "covariances_", "covariance_type")):
        found = gaussian_mixture(prior, f"a fitted {type(prior).__name__}")
    else:
        found = sampler_prior(prior)
        if found is not None and prior is not model and prior.model is not module_of(model):
            raise InputError(f"prior: this {type(prior).__name__} samples another model; pass that one as the model")
    if found is None:
        shown = repr(prior) if isinstance(prior, str) else type(prior).__name__
        raise InputError(f"prior: expected {_TAKEN}, got {shown:.99}")
    return found


def _of_distribution(prior: Distribution) -> Mixture | None:
    """The mixture of a distribution over one latent; None for another kind."""
    origin = f"a {type(prior).__name__}"
    if isinstance(prior, MixtureSameFamily) and isinstance(prior.mixture_distribution, Categorical):
        weights = _numbers(prior.mixture_distribution.probs)
        parts = _normal(prior.component_distribution)
        if parts is None or weights.ndim != 1:
            return None
        means, factors = parts
        flat = means.reshape(len(weights), -1)
        square = factors.ndim == means.ndim + 1
        return Mixture(weights, flat, factors if square else factors.reshape(flat.shape), origin)
    parts = _normal(prior)
    if parts is None:
        return None
    means, factors = parts
    square = factors.ndim == means.ndim + 1
    return Mixture(np.ones(1), means.reshape(1, -1), factors[None] if square else factors.reshape(1, -1), origin)


def _normal(prior: Distribution) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Means, and standard deviations or Cholesky factors."""
    if isinstance(prior, MultivariateNormal):
        return _numbers(prior.loc), _numbers(prior.scale_tril)
    while isinstance(prior, Independent):
        prior = prior.base_dist
    return (_numbers(prior.loc), _numbers(prior.scale)) if isinstance(prior, Normal) else None


def _numbers(tensor: Any) -> NDArray[np.float64]:
    return tensor.detach().cpu().double().numpy()  # type: ignore[no-any-return]
