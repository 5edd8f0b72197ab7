"""What is known of other libraries' models by the names of their classes, without importing the libraries.

Each `encode` and `decode` calls the model's own modules in the order in which the library does, and leaves out what
samples, what wraps the answer in an object and what computes a loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import ExportError
from .declaration import Declaration

__all__ = ["family", "module_of"]

_IMAGE = ("channel", "height", "width")
_NOT_NORMAL = "the latents are not standard normal: another model, such as a diffusion model, supplies them"


def family(model: object) -> tuple[str, Declaration] | None:
    """The family that a model belongs to, and what is known of it; None where it belongs to none.

    A class derived from a known one counts as that one, unless it comes from the same library or replaces one of the
    methods that this module speaks for: then nothing is known of it.

    Args:
        model: a module, or an object that holds one, such as scvi.model.SCVI.

    Raises:
        ExportError: the model has a setting that cannot be exported as the library computes it.
    """
    mro = type(model).__mro__
    for number, known in enumerate(mro):
        library = known.__module__.partition(".")[0]
        describe, methods = _FAMILIES.get((library, known.__name__), (None, ()))
        if describe is None:
            continue
        derived = [cls for cls in mro[:number] if issubclass(cls, known)]
        if any(cls.__module__.partition(".")[0] == library for cls in derived) or any(
            name in vars(cls) for cls in derived for name in methods
        ):
            return None
        declaration = describe(module_of(model))
        return None if declaration is None else (f"{_SPELLED.get(library, library)} {known.__name__}", declaration)
    return None


def module_of(model: object) -> object:
    """The module inside of an object that holds one, such as scvi.model.SCVI; a module is returned as it is."""
    if isinstance(model, nn.Module):
        return model
    for cls in type(model).__mro__:
        if (cls.__module__.partition(".")[0], cls.__name__) == ("scvi", "SCVI"):
            return model.module  # type: ignore[attr-defined]
    return model


# diffusers. The models' own encode and decode may cut a large image into tiles, whose answer depends on the tiles, or a
# batch into rows, whose answer does not; both serve memory alone and both are left out here.


def _autoencoder_kl(model: Any) -> Declaration:
    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        h = model.encoder(x)
        if model.quant_conv is not None:
            h = model.quant_conv(h)
        mean, logvar = h.chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def decode(z: Tensor) -> Tensor:
        if model.post_quant_conv is not None:
            z = model.post_quant_conv(z)
        return model.decoder(z)  # type: ignore[no-any-return]

    scale, shift = _scaling(model.config)
    return Declaration(
        encode=encode,
        decode=decode,
        posterior="logvar",
        prior="none",
        prior_reason=_NOT_NORMAL,
        axes=_IMAGE,
        latent_axes=_IMAGE,
        dynamic=("height", "width"),
        latent_scale=scale,
        latent_shift=shift,
    )


def _scaling(config: Any) -> tuple[float | Sequence[float], float | Sequence[float]]:
    """Scale and shift such that a diffusion model takes (z - shift) · scale, as the library's pipelines compute it."""
    factor = _number(config, "scaling_factor", 1.0)
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None:
        return [factor / float(value) for value in std], [float(value) for value in mean]
    return factor, _number(config, "shift_factor", 0.0)


def _number(config: Any, name: str, default: float) -> float:
    value = getattr(config, name, None)
    return default if value is None else float(value)


def _deterministic_image(model: Any) -> Declaration:
    """AutoencoderTiny and AutoencoderDC. Their encoder gives the latent itself."""
    scale, shift = _scaling(model.config)
    return Declaration(
        encode=lambda x: model.encoder(x),
        decode=lambda z: model.decoder(z),
        posterior="none",
        prior="none",
        prior_reason=_NOT_NORMAL,
        axes=_IMAGE,
        latent_axes=_IMAGE,
        dynamic=("height", "width"),
        latent_scale=scale,
        latent_shift=shift,
    )


def _vq_model(model: Any) -> Declaration:
    quantize = model.quantize
    if getattr(quantize, "remap", None) is not None:
        raise ExportError(
            "diffusers VQModel: a quantizer without remap= is expected, since unknown codes are drawn at random; "
            "export a model without it"
        )

    def encode(x: Tensor) -> Tensor:
        h = model.quant_conv(model.encoder(x))
        batch, channels, height, width = h.shape
        rows = h.permute(0, 2, 3, 1).reshape(batch * height * width, channels)
        # The library leaves the choice of the mode to PyTorch, which takes this one beyond 25 rows or codes; the other
        # exports as an array of all differences, rows by codes by channels.
        distances = torch.cdist(rows, quantize.embedding.weight, compute_mode="use_mm_for_euclid_dist")
        return distances.argmin(dim=1).reshape(batch, height, width)

    def decode(codes: Tensor) -> Tensor:
        quantized = quantize.embedding(codes).permute(0, 3, 1, 2).contiguous()
        spatial = quantized if model.config.norm_type == "spatial" else None
        return model.decoder(model.post_quant_conv(quantized), spatial)  # type: ignore[no-any-return]

    return Declaration(
        encode=encode,
        decode=decode,
        posterior="codes",
        prior="none",
        axes=_IMAGE,
        latent_axes=("height", "width"),
        dynamic=("height", "width"),
        codebook=int(quantize.embedding.num_embeddings),
    )


def _oobleck(model: Any) -> Declaration:
    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        mean, scale = model.encoder(x).chunk(2, dim=1)
        return mean, functional.softplus(scale) + 1e-4

    return Declaration(
        encode=encode,
        decode=lambda z: model.decoder(z),
        posterior="std",
        prior="none",
        prior_reason=_NOT_NORMAL,
        axes=("channel", "time"),
        latent_axes=("channel", "time"),
        dynamic=("time",),
    )


# pythae. Encoders and decoders are the user's own or the library's; both answer with a ModelOutput.


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
    """The likelihood whose negative logarithm is the loss, up to a constant: ½ · squared error is that of scale 1."""
    if model.model_config.reconstruction_loss == "bce":
        return {"likelihood": "bernoulli"}
    return {"likelihood": "gaussian", "scale": 1.0}


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
    reason = "the prior is a mixture of the posteriors of learned pseudo-inputs (VampPrior); fit one with prior="
    return _gauss(model, prior="none", prior_reason=reason)


_BEFORE_STEPS = "the encoder's normal is q(z0|x), before the Hamiltonian steps, which need the decoder's gradients"


def _hvae(model: Any) -> Declaration:
    further: dict[str, Any] = {"prior": "normal", "posterior_reason": _BEFORE_STEPS, **_reconstruction(model)}
    if further["likelihood"] == "bernoulli":
        # Of all the library's models this one takes its decoder's answer for logits.
        further["decode"] = lambda z: torch.sigmoid(model.decoder(z)["reconstruction"])
    # The library calls it log_covariance, and takes its softplus for the standard deviation.
    return _pythae_normal(model, "softplus", **further)


def _rhvae(model: Any) -> Declaration:
    return _gauss(model, posterior_reason=_BEFORE_STEPS)


def _point(model: Any, encode: Callable[[Tensor], Tensor] | None = None, **further: Any) -> Declaration:
    """A model whose encoder gives one latent and no normal."""
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


_FLOW = "the posterior is a normalising flow's; the latent is where the flow takes the mean of its base"


def _ae(model: Any) -> Declaration:
    return _point(model, **_squared())


def _rae(model: Any) -> Declaration:
    reason = "a regularised autoencoder has no prior until one is fitted to its latents; fit one with prior="
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
            # The library quantises each number of a flat embedding alone: its codebook holds numbers.
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


# scvi-tools.


def _scvi(module: Any) -> Declaration | None:
    """scvi.module.VAE, as its inference() and generative() compute.

    Conditions, all of them only where the model uses them: batch_index int64 [n] or [n, 1]; library float32 [n, 1], the
    log of the total count; size_factor float32 [n, 1], the log of the size factor, instead of it; cont_covs float32
    [n, k]; cat_covs int64 [n, k]; y int64 [n] or [n, 1], the label.
    """
    if not module.use_observed_lib_size:
        # The library size is a latent of its own then, with a prior for each batch.
        return None
    embedded = module.batch_representation == "embedding"

    def categories(rows: int, batch_index: Tensor | None, cat_covs: Tensor | None) -> tuple[Tensor, ...]:
        further = () if cat_covs is None else torch.split(cat_covs, 1, dim=1)
        return further if embedded else (batches(rows, batch_index), *further)

    def batches(rows: int, batch_index: Tensor | None) -> Tensor:
        if batch_index is not None:
            return batch_index.reshape(-1, 1)
        if module.n_batch > 1:
            raise _missing("batch_index", "integers [n], the batch that each cell is of")
        return torch.zeros((rows, 1), dtype=torch.int64)

    def with_batch(tensor: Tensor, batch_index: Tensor | None) -> Tensor:
        if not embedded:
            return tensor
        # The name that the library registers its embedding of batches under.
        embedding = module.get_embedding("batch")
        return torch.cat([tensor, embedding(batches(tensor.shape[0], batch_index).flatten())], dim=-1)

    def encode(
        x: Tensor, batch_index: Tensor | None = None, cont_covs: Tensor | None = None, cat_covs: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        h = torch.log1p(x) if module.log_variational else x
        encoder = module.z_encoder
        if not module.encode_covariates:
            q = encoder.encoder(h)
        else:
            h = h if cont_covs is None else torch.cat((h, cont_covs), dim=-1)
            q = encoder.encoder(with_batch(h, batch_index), *categories(x.shape[0], batch_index, cat_covs))
        return encoder.mean_encoder(q), encoder.var_activation(encoder.var_encoder(q)) + encoder.var_eps

    def decode(
        z: Tensor,
        library: Tensor | None = None,
        batch_index: Tensor | None = None,
        cont_covs: Tensor | None = None,
        cat_covs: Tensor | None = None,
        size_factor: Tensor | None = None,
        y: Tensor | None = None,
    ) -> dict[str, Tensor]:
        size = size_factor if module.use_size_factor_key else library
        if size is None:
            raise (
                _missing("size_factor", "float32 [n, 1], the log of the size factor of each cell")
                if module.use_size_factor_key
                else _missing("library", "float32 [n, 1], the log of the total count of each cell")
            )
        # Of a logistic normal, z is the normal; the decoder takes its softmax.
        z = module.z_encoder.z_transformation(z)
        h = with_batch(z if cont_covs is None else torch.cat([z, cont_covs], dim=-1), batch_index)
        px_scale, px_r, px_rate, px_dropout = module.decoder(
            module.dispersion, h, size, *categories(z.shape[0], batch_index, cat_covs)
        )
        outputs = {"px_rate": px_rate}
        if module.gene_likelihood != "poisson":
            outputs["px_r"] = torch.exp(dispersion(px_r, px_rate, batch_index, y))
        if module.gene_likelihood == "zinb":
            outputs["px_dropout"] = px_dropout
        return {**outputs, "px_scale": px_scale}

    def dispersion(px_r: Tensor | None, like: Tensor, batch_index: Tensor | None, y: Tensor | None) -> Tensor:
        if module.dispersion == "gene-cell":
            assert px_r is not None
            return px_r
        if module.dispersion == "gene":
            return module.px_r.expand_as(like)  # type: ignore[no-any-return]
        if module.dispersion == "gene-batch":
            return module.px_r.T[batches(like.shape[0], batch_index).flatten()]  # type: ignore[no-any-return]
        if y is None:
            raise _missing("y", "integers [n], the label of each cell")
        return module.px_r.T[y.flatten()]  # type: ignore[no-any-return]

    return Declaration(
        encode=encode,
        decode=decode,
        posterior="var",
        likelihood="none",
        prior="normal",
        axes=("gene",),
    )


def _missing(name: str, meaning: str) -> ExportError:
    return ExportError(f"scvi-tools VAE: the condition {name} is expected, {meaning}; pass conditions={{{name!r}: …}}")


_Describe = Callable[[Any], Declaration | None]
_CODING = ("encode", "decode", "_encode", "_decode", "forward")
_PYTHAE: dict[str, _Describe] = {
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
# By library and class: what describes a model, and the methods that a derived class must not replace.
_FAMILIES: dict[tuple[str, str], tuple[_Describe, tuple[str, ...]]] = {
    ("diffusers", "AutoencoderKL"): (_autoencoder_kl, _CODING),
    ("diffusers", "AutoencoderTiny"): (_deterministic_image, _CODING),
    ("diffusers", "AutoencoderDC"): (_deterministic_image, _CODING),
    ("diffusers", "VQModel"): (_vq_model, _CODING),
    ("diffusers", "AutoencoderOobleck"): (_oobleck, _CODING),
    **{
        ("pythae", name): (describe, (*_CODING, "loss_function", "_sample_gauss")) for name, describe in _PYTHAE.items()
    },
    ("scvi", "VAE"): (_scvi, ("inference", "_regular_inference", "generative")),
    ("scvi", "SCVI"): (_scvi, ()),
}
_SPELLED = {"scvi": "scvi-tools"}
