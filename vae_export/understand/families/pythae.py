"""pythae. Its encoders and decoders, the user's own or the library's, return a ModelOutput."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import ExportError
from ..declaration import Declaration, Mixture
from ..prior import gaussian_mixture
from ..state import unchanged
from .family import CODING, Family

_METHODS = (*CODING, "loss_function", "_sample_gauss")
_FLOW = "the posterior is a normalizing flow's; the latent is where the flow takes the mean of its base"
_BEFORE_STEPS = "the encoder's normal is q(z0|x), before the Hamiltonian steps, which need the decoder's gradients"


def _gauss(model: Any, **further: Any) -> Declaration:
    """VAE and what has its posterior, prior and reconstruction loss."""
    return _pythae_normal(model, "logvar", **{"prior": "normal", **_reconstruction(model), **further})


def _pythae_normal(model: Any, second: str, **further: Any) -> Declaration:
    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        output = model.encoder(x)
        return output.embedding, output.log_covariance

    return Declaration(**{"encode": encode, "decode": _pythae_decode(model), "posterior": second, **further})


def _pythae_decode(model: Any) -> Callable[[Tensor], Tensor]:
    return lambda z: model.decoder(z)["reconstruction"]


def _reconstruction(model: Any) -> dict[str, Any]:
    """The likelihood whose negative logarithm is the loss, up to a constant; scale 1 gives ½ · squared error."""
    return {"likelihood": "bernoulli"} if _is_cross_entropy(model) else {"likelihood": "gaussian", "scale": 1.0}


def _is_cross_entropy(model: Any) -> bool:
    return bool(model.model_config.reconstruction_loss == "bce")


def _squared(factor: float = 1.0) -> dict[str, Any]:
    """The same for factor · squared error."""
    return {"likelihood": "gaussian", "scale": math.sqrt(0.5 / factor)}


def _own_loss(model: Any) -> Declaration:
    """VAEGAN and MSSSIM_VAE: the reconstruction loss is no likelihood of the observation."""
    return _pythae_normal(model, "logvar", prior="normal", likelihood="none")


def _adversarial(model: Any) -> Declaration:
    if not model.deterministic_posterior:
        return _gauss(model)
    return _point(model, prior="normal", **_reconstruction(model))


def _vamp(model: Any) -> Declaration:
    return _gauss(model, prior=_vamp_prior(model, "the posteriors of the learned pseudo-inputs (VampPrior)"))


def _vamp_prior(model: Any, origin: str, bounded: bool = False) -> Mixture:
    """The mixture whose density the loss has; with `bounded` that of VAMPSampler, which takes a tanh of the logvar."""
    components = int(model.number_components)
    with torch.no_grad():
        rows = model.pseudo_inputs(torch.eye(components))
        output = model.encoder(rows.reshape(components, *model.model_config.input_dim))
        logvar = torch.tanh(output.log_covariance) if bounded else output.log_covariance
        means, stds = output.embedding.double().numpy(), torch.exp(0.5 * logvar.double()).numpy()
    return Mixture(np.full(components, 1 / components), means, stds, origin)


def _hvae(model: Any) -> Declaration:
    further: dict[str, Any] = {"prior": "normal", "posterior_reason": _BEFORE_STEPS, **_reconstruction(model)}
    if _is_cross_entropy(model):
        # This model alone takes its decoder's answer for logits.
        further["decode"] = lambda z: torch.sigmoid(model.decoder(z)["reconstruction"])
    # The library calls it log_covariance, and takes its softplus for the standard deviation.
    return _pythae_normal(model, "softplus", **further)


def _rhvae(model: Any) -> Declaration:
    return _gauss(model, posterior_reason=_BEFORE_STEPS)


def _point(model: Any, encode: Callable[[Tensor], Tensor] | None = None, **further: Any) -> Declaration:
    """A model whose encoder returns one latent and no normal."""
    return Declaration(
        encode=encode or (lambda x: model.encoder(x).embedding),
        decode=_pythae_decode(model),
        posterior="none",
        **further,
    )


def _svae(model: Any) -> Declaration:
    def encode(x: Tensor) -> Tensor:
        direction = model.encoder(x).embedding
        return direction / direction.norm(dim=-1, keepdim=True)  # type: ignore[no-any-return]

    reason = "the posterior is a von Mises-Fisher distribution on the sphere; the latent is its mean direction"
    return _point(model, encode, prior="sphere", posterior_reason=reason, **_reconstruction(model))


def _poincare(model: Any) -> Declaration:
    return _point(
        model,
        prior="none",
        prior_reason="the prior is a distribution on the Poincaré ball; fit one with prior=",
        posterior_reason="the posterior is a distribution on the Poincaré ball; the latent is its location",
        **_reconstruction(model),
    )


def _linear_flows(model: Any) -> Declaration:
    def encode(x: Tensor) -> Tensor:
        z = model.encoder(x).embedding
        for layer in model.net:
            z = layer(z).out
        return z  # type: ignore[no-any-return]

    return _point(model, encode, prior="normal", posterior_reason=_FLOW, **_reconstruction(model))


def _iaf(model: Any) -> Declaration:
    def encode(x: Tensor) -> Tensor:
        return model.iaf_flow.inverse(model.encoder(x).embedding).out  # type: ignore[no-any-return]

    return _point(model, encode, prior="normal", posterior_reason=_FLOW, **_reconstruction(model))


def _ae(model: Any) -> Declaration:
    return _point(model, **_squared())


def _rae(model: Any) -> Declaration:
    reason = "a regularized autoencoder has no prior until one is fitted to its latents; fit one with prior="
    return _point(model, prior="none", prior_reason=reason, **_squared())


def _wae(model: Any) -> Declaration:
    return _point(model, prior="normal", **_squared(float(model.reconstruction_loss_scale)))


def _vqvae(model: Any) -> Declaration:
    def codebook() -> Tensor:
        embeddings = model.quantizer.embeddings
        # The quantizer that moves its codebook by averages keeps it as a buffer.
        return embeddings.weight if isinstance(embeddings, nn.Embedding) else embeddings

    def nearest(rows: Tensor) -> Tensor:
        book = codebook()
        return ((rows**2).sum(dim=-1, keepdim=True) + (book**2).sum(dim=-1) - 2 * rows @ book.T).argmin(-1)

    def encode(x: Tensor) -> Tensor:
        embedding = model.encoder(x).embedding
        if embedding.dim() == 2:
            # The library quantizes each number of a flat embedding alone: its codebook holds numbers.
            return nearest(embedding.reshape(-1, 1)).reshape(embedding.shape)
        batch, channels, height, width = embedding.shape
        rows = embedding.permute(0, 2, 3, 1).reshape(batch * height * width, channels)
        return nearest(rows).reshape(batch, height, width)

    def decode(codes: Tensor) -> Tensor:
        quantized = functional.embedding(codes, codebook())
        quantized = quantized.squeeze(-1) if codes.dim() == 2 else quantized.permute(0, 3, 1, 2)
        return model.decoder(quantized)["reconstruction"]  # type: ignore[no-any-return]

    return Declaration(
        encode=encode,
        decode=decode,
        posterior="codes",
        prior="none",
        codebook=int(model.quantizer.num_embeddings),
        **_squared(),
    )


_DESCRIBE = {
    **dict.fromkeys(
        (
            "VAE",
            "BetaVAE",
            "BetaTCVAE",
            "DisentangledBetaVAE",
            "FactorVAE",
            "INFOVAE_MMD",
            "IWAE",
            "MIWAE",
            "PIWAE",
            "CIWAE",
        ),
        _gauss,
    ),
    **dict.fromkeys(("VAEGAN", "MSSSIM_VAE"), _own_loss),
    "Adversarial_AE": _adversarial,
    "VAMP": _vamp,
    "HVAE": _hvae,
    "RHVAE": _rhvae,
    "SVAE": _svae,
    "PoincareVAE": _poincare,
    "VAE_LinNF": _linear_flows,
    "VAE_IAF": _iaf,
    "AE": _ae,
    **dict.fromkeys(("RAE_L2", "RAE_GP"), _rae),
    "WAE_MMD": _wae,
    "VQVAE": _vqvae,
}


def _mixture_sampler(sampler: Any) -> Mixture:
    if not sampler.is_fitted:
        raise ExportError("prior: this GaussianMixtureSampler is not fitted; call its fit")
    return gaussian_mixture(sampler.gmm, "a fitted GaussianMixtureSampler")


def _vamp_sampler(sampler: Any) -> Mixture:
    with unchanged(sampler.model):
        return _vamp_prior(sampler.model, "VAMPSampler, which takes a tanh of the log-variances", bounded=True)


def _no_sampler(name: str, what: str) -> Callable[[Any], Mixture]:
    def refuse(sampler: Any) -> Mixture:
        raise ExportError(
            f"prior: {name} draws latents with {what}, which a bundle does not carry; fit a prior with "
            'prior="mixture:10" and observations=, or pass prior="none"'
        )

    return refuse


_NOT_CARRIED = {
    "MAFSampler": "a normalizing flow",
    "IAFSampler": "a normalizing flow",
    "TwoStageVAESampler": "a second VAE over the latents",
    "PixelCNNSampler": "an autoregressive network over the codes",
    "RHVAESampler": "Hamiltonian steps on a learned metric",
    "PoincareDiskSampler": "a distribution on the Poincaré ball",
}
SAMPLERS: Mapping[str, Callable[[Any], str | Mixture]] = {
    "NormalSampler": lambda sampler: "normal",
    "HypersphereUniformSampler": lambda sampler: "sphere",
    "GaussianMixtureSampler": _mixture_sampler,
    "VAMPSampler": _vamp_sampler,
    **{name: _no_sampler(name, what) for name, what in _NOT_CARRIED.items()},
    "BaseSampler": _no_sampler("this sampler", "a method of its own"),
}
MODELS = {name: Family(describe, _METHODS) for name, describe in _DESCRIBE.items()}
