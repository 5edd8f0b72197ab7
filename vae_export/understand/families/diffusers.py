"""diffusers: its autoencoders of images, videos and audio, and the reasons why some of them are refused.

`encode` and `decode` of a family are the library's own methods, undivided: without tiles and slices. Tiles change the
answer, slices do not; both only save memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import ExportError
from ..declaration import Declaration
from .family import Family

_NOT_NORMAL = "the latents are not standard normal: another model, such as a diffusion model, supplies them"
_DIVIDING = ("use_slicing", "use_tiling", "use_framewise_encoding", "use_framewise_decoding")


@dataclass(frozen=True)
class _Axes:
    """The names of the axes of observations and latents, and those that take other sizes."""

    observation: tuple[str, ...]
    latent: tuple[str, ...]
    dynamic: tuple[str, ...]


_IMAGE = _Axes(("channel", "height", "width"), ("channel", "height", "width"), ("height", "width"))
# Most causal models loop over their frames in Python, which a graph unrolls: frames are dynamic only on request.
_FRAMES = ("channel", "frame", "height", "width")
_VIDEO = _Axes(_FRAMES, _FRAMES, ("height", "width"))
_AUDIO = _Axes(("channel", "time"), ("channel", "time"), ("time",))
# Many lengths of a waveform give one length of its spectrogram.
_WAVEFORM = _Axes(("time",), ("channel", "time"), ())
# Its decoder crops what it makes to 4k + 1 frames.
_SPECTROGRAM = _Axes(("channel", "time", "frequency"), ("channel", "time", "frequency"), ())


@contextmanager
def _undivided(model: Any) -> Iterator[None]:
    """Let a model encode and decode in one piece."""
    flags = {name: True for name in _DIVIDING if vars(model).get(name)}
    vars(model).update(dict.fromkeys(flags, False))
    try:
        yield
    finally:
        vars(model).update(flags)


def _encoded(model: Any, x: Tensor) -> Any:
    """What the library's encode gives: a distribution or the latent itself."""
    with _undivided(model):
        return model.encode(x, return_dict=False)[0]


def _decoded(model: Any, z: Tensor, **further: Any) -> Tensor:
    with _undivided(model):
        return model.decode(z, return_dict=False, **further)[0]  # type: ignore[no-any-return]


def _latents_of(
    model: Any,
    axes: _Axes,
    encode: Callable[[Tensor], Any],
    decode: Callable[..., Tensor] | None = None,
    posterior: str = "logvar",
    reason: str = "",
) -> Declaration:
    """The declaration of a model whose latents another model supplies."""
    scale, shift, unscaled = _scaling(model)
    return Declaration(
        encode=encode,
        decode=decode or (lambda z: _decoded(model, z)),
        posterior=posterior,
        prior="none",
        prior_reason="; ".join(part for part in (_NOT_NORMAL, unscaled, reason) if part),
        axes=axes.observation,
        latent_axes=axes.latent,
        dynamic=axes.dynamic,
        latent_scale=scale,
        latent_shift=shift,
    )


def _scaling(model: Any) -> tuple[float | Sequence[float], float | Sequence[float], str]:
    """Scale and shift such that a diffusion model takes (z - shift) · scale, as the library's pipelines compute it.

    Some models keep the mean and the standard deviation of each channel in buffers. The last item says what a bundle
    does not carry.
    """
    config = getattr(model, "config", None)
    factor = _number(config, "scaling_factor", 1.0)
    mean, std = (_statistic(model, name) for name in ("latents_mean", "latents_std"))
    if mean is None or std is None:
        return factor, _number(config, "shift_factor", 0.0), ""
    channels = next((getattr(config, name) for name in _CHANNELS if hasattr(config, name)), len(mean))
    if len(mean) != channels:
        return 1.0, 0.0, "it normalizes them by latents_mean and latents_std, which are not one number for each channel"
    return [factor / value for value in std], mean, ""


_CHANNELS = ("z_dim", "latent_channels", "z_channels")


def _statistic(model: Any, name: str) -> list[float] | None:
    value = getattr(getattr(model, "config", None), name, None)
    if value is None:
        # The model's own attributes alone: it passes other names on to its configuration, with a warning.
        value = {**vars(model), **dict(model.named_buffers(recurse=False))}.get(name)
    return None if value is None else [float(number) for number in value]


def _number(config: Any, name: str, default: float) -> float:
    value = getattr(config, name, None)
    return default if value is None else float(value)


def _kl(model: Any, axes: _Axes, reason: str = "", **further: Any) -> Declaration:
    """A model whose encode gives a diagonal normal."""

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        q = _encoded(model, x)
        return q.mean, q.logvar

    return _latents_of(model, axes, encode, reason=reason, **further)


def _deterministic(model: Any, axes: _Axes) -> Declaration:
    """A model whose encode gives the latent itself."""
    return _latents_of(model, axes, lambda x: _encoded(model, x), posterior="none")


def _std(model: Any, axes: _Axes) -> Declaration:
    """A model whose encode gives a normal that is known by its standard deviation."""

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        q = _encoded(model, x)
        return q.mean, q.std

    return _latents_of(model, axes, encode, posterior="std")


def _cosmos(model: Any) -> Declaration:
    return _latents_of(model, _VIDEO, lambda x: _encoded(model, x).mode(), posterior="none")


def _temporal(model: Any) -> Declaration:
    """Encodes frames one by one and decodes them together; an observation may be an image or a video."""

    def frames(x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(0, 1)

    def video(x: Tensor, count: int) -> Tensor:
        return x.reshape(-1, count, *x.shape[1:]).transpose(1, 2)

    def encode(x: Tensor) -> tuple[Tensor, ...]:
        q = _encoded(model, frames(x) if x.dim() == 5 else x)
        both = (q.mean, q.logvar)
        return tuple(video(part, x.shape[2]) for part in both) if x.dim() == 5 else both

    def decode(z: Tensor) -> Tensor:
        if z.dim() == 4:
            return _decoded(model, z, num_frames=1)
        return video(_decoded(model, frames(z), num_frames=z.shape[2]), z.shape[2])

    return _latents_of(model, _IMAGE, encode, decode)


def _ltx(model: Any) -> Declaration:
    if any(model.config.decoder_inject_noise):
        raise ExportError(
            f"diffusers {type(model).__name__}: its decoder draws one noise for all rows of a batch "
            "(decoder_inject_noise), which a graph cannot hold; export a model without it"
        )

    def decode_at(z: Tensor, temb: Tensor) -> Tensor:
        return _decoded(model, z, temb=temb)

    return _kl(model, _VIDEO, decode=decode_at if model.config.timestep_conditioning else None)


@contextmanager
def _replaced(layers: Sequence[Any], method: str, make: Callable[[Any], Callable[..., Tensor]]) -> Iterator[None]:
    """Give layers another method of this name, which `make` makes of each."""
    own = [vars(layer).get(method) for layer in layers]
    for layer in layers:
        vars(layer)[method] = make(layer)
    try:
        yield
    finally:
        for layer, before in zip(layers, own, strict=True):
            if before is None:
                del vars(layer)[method]
            else:
                vars(layer)[method] = before


def _kl_with(model: Any, method: str, makers: Mapping[str, Callable[[Any], Callable[..., Tensor]]]) -> Declaration:
    """A video model whose layers with one of these attributes compute the same by another method."""
    kinds = [([layer for layer in model.modules() if hasattr(layer, name)], make) for name, make in makers.items()]

    @contextmanager
    def replaced() -> Iterator[None]:
        with ExitStack() as stack:
            for layers, make in kinds:
                stack.enter_context(_replaced(layers, method, make))
            yield

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        with replaced():
            q = _encoded(model, x)
        return q.mean, q.logvar

    def decode(z: Tensor) -> Tensor:
        with replaced():
            return _decoded(model, z)

    return _latents_of(model, _VIDEO, encode, decode)


def _hunyuan_video15(model: Any) -> Declaration:
    """The library fills its masks row by row, and they fit one observation alone: they lack an axis for the heads."""
    method = "prepare_causal_attention_mask"
    return _kl_with(model, method, {method: lambda layer: _causal_mask})


def _mochi(model: Any) -> Declaration:
    """The library normalizes eight frames at a time to save memory, which bakes in the number of rows."""
    return _kl_with(model, "forward", {"norm_layer": _normalized_frames})


def _kvae_video(model: Any) -> Declaration:
    """The library splits a convolution by its size in bytes, and writes causal ones in two parts, to save memory."""
    return _kl_with(model, "forward", {"transposed": _whole_convolution, "time_pad": _causal_convolution})


def _whole_convolution(layer: Any) -> Callable[..., Tensor]:
    def forward(x: Tensor, write_to: Tensor | None = None) -> Tensor:
        return nn.Conv3d.forward(layer, x)

    return forward


def _causal_convolution(layer: Any) -> Callable[[Tensor, dict[str, Any]], Tensor]:
    """The frames before those of x are in the cache, or are the first one; the cache keeps those that follow need."""

    def forward(x: Tensor, cache: dict[str, Any]) -> Tensor:
        height, width = layer.height_pad, layer.width_pad
        padded = functional.pad(x, (height, height, width, width, 0, 0), mode="replicate")
        before = cache["padding"]
        if before is None:
            before = padded[:, :, :1].repeat(1, 1, layer.time_pad, 1, 1)
        frames = torch.cat([before, padded], dim=2)
        stride = layer.stride[0]
        used = (int(frames.shape[2]) - layer.time_kernel_size) // stride * stride + stride
        cache["padding"] = frames[:, :, used:]
        return layer.conv(frames)  # type: ignore[no-any-return]

    return forward


def _normalized_frames(layer: Any) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        frames = x.permute(0, 2, 1, 3, 4)
        return layer.norm_layer(frames.flatten(0, 1)).reshape(frames.shape).permute(0, 2, 1, 3, 4)  # type: ignore[no-any-return]

    return forward


def _causal_mask(frames: int, pixels: int, dtype: torch.dtype, device: torch.device, **_: Any) -> Tensor:
    """A mask [frames * pixels, frames * pixels] for any number of rows: each frame sees itself and those before."""
    number = torch.arange(frames * pixels, device=device) // pixels
    later = number[None, :] > number[:, None]
    return torch.zeros(later.shape, dtype=dtype, device=device).masked_fill(later, float("-inf"))


_FLUX2 = (
    "it takes patches of {0} x {1} latents, each normalized by the statistics in bn, which the bundle does not carry"
)


def _flux2(model: Any) -> Declaration:
    return _kl(model, _IMAGE, reason=_FLUX2.format(*model.config.patch_size))


def _vq_model(model: Any) -> Declaration:
    quantize = model.quantize
    if getattr(quantize, "remap", None) is not None:
        raise ExportError(
            "diffusers VQModel: expected a quantizer without remap=, which draws unknown codes at random; export a "
            "model without it"
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
        axes=_IMAGE.observation,
        latent_axes=("height", "width"),
        dynamic=("height", "width"),
        codebook=int(quantize.embedding.num_embeddings),
    )


def _longcat(model: Any) -> Declaration:
    """Its encode draws a sample; the normal is computed as there."""

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = model.encoder(x).chunk(2, dim=1)
        return mean / model.config.scale, (functional.softplus(raw) + 1e-4) / model.config.scale

    return _latents_of(model, _AUDIO, encode, posterior="std")


def _cosmos_audio(model: Any) -> Declaration:
    if model.config.normalize_volume:
        raise ExportError(
            "diffusers Cosmos3AVAEAudioTokenizer: its encode divides by the loudest sample of the whole batch "
            "(normalize_volume), so that rows of a batch influence each other; export a model without it"
        )
    if model.encoder is None:
        raise ExportError("diffusers Cosmos3AVAEAudioTokenizer: expected an encoder, got weights without one")
    # Its encode pads a length to whole frames in Python, which a graph fixes.
    return dataclasses.replace(_std(model, _AUDIO), decode=model.decode, dynamic=())


def _rae(model: Any) -> Declaration:
    """Declare an RAE, whose encode resizes any image to one size, and normalizes and scales the latents itself."""
    latent = ("channel", "height", "width") if model.config.reshape_to_2d else ("token", "channel")
    axes = _Axes(_IMAGE.observation, latent, ())
    return dataclasses.replace(_deterministic(model, axes), latent_scale=1.0, latent_shift=0.0)


def _vidtok(model: Any) -> Declaration:
    quantized = model.regularizer == "fsq"

    def encode(x: Tensor) -> Any:
        with _undivided(model):
            output = model.encode(x)
        # The quantized vectors, which decode takes, and their indices.
        return output[0] if quantized else (output.latent_dist.mean, output.latent_dist.logvar)

    def decode(z: Tensor) -> Tensor:
        with _undivided(model):
            return model.decode(z)  # type: ignore[no-any-return]

    return _latents_of(model, _VIDEO, encode, decode, posterior="none" if quantized else "logvar")


MODELS = {
    "AsymmetricAutoencoderKL": Family(partial(_kl, axes=_IMAGE)),
    "AutoencoderDC": Family(partial(_deterministic, axes=_IMAGE)),
    "AutoencoderKL": Family(partial(_kl, axes=_IMAGE)),
    "AutoencoderKLCogVideoX": Family(partial(_kl, axes=_VIDEO)),
    "AutoencoderKLCosmos": Family(_cosmos),
    "AutoencoderKLFlux2": Family(_flux2),
    "AutoencoderKLHunyuanImage": Family(partial(_kl, axes=_IMAGE)),
    "AutoencoderKLHunyuanImageRefiner": Family(partial(_kl, axes=_VIDEO)),
    "AutoencoderKLHunyuanVideo": Family(partial(_kl, axes=_VIDEO)),
    "AutoencoderKLHunyuanVideo15": Family(_hunyuan_video15),
    "AutoencoderKLKVAE": Family(partial(_kl, axes=_IMAGE)),
    "AutoencoderKLKVAEAudio": Family(partial(_kl, axes=_AUDIO)),
    "AutoencoderKLKVAEVideo": Family(_kvae_video),
    "AutoencoderKLLTX2Audio": Family(partial(_kl, axes=_SPECTROGRAM)),
    "AutoencoderKLLTX2Video": Family(_ltx),
    "AutoencoderKLLTXVideo": Family(_ltx),
    "AutoencoderKLMagvit": Family(partial(_kl, axes=_VIDEO)),
    "AutoencoderKLMiniMaxH3": Family(partial(_kl, axes=_VIDEO)),
    "AutoencoderKLMiniMaxH3Audio": Family(partial(_std, axes=_AUDIO)),
    "AutoencoderKLMochi": Family(_mochi),
    "AutoencoderKLQwenImage": Family(partial(_kl, axes=_VIDEO)),
    "AutoencoderKLQwenImage21": Family(partial(_kl, axes=_VIDEO)),
    "AutoencoderKLTemporalDecoder": Family(_temporal),
    "AutoencoderKLWan": Family(partial(_kl, axes=_VIDEO)),
    "AutoencoderOobleck": Family(partial(_std, axes=_AUDIO)),
    "AutoencoderRAE": Family(_rae),
    "AutoencoderSAME": Family(partial(_deterministic, axes=_AUDIO)),
    "AutoencoderTiny": Family(partial(_deterministic, axes=_IMAGE)),
    "AutoencoderVidTok": Family(_vidtok),
    "Cosmos3AVAEAudioTokenizer": Family(_cosmos_audio),
    "Kandinsky6SRVAE": Family(partial(_kl, axes=_VIDEO)),
    "LongCatAudioDiTVae": Family(_longcat),
    "MMAudioVAE": Family(partial(_kl, axes=_WAVEFORM)),
    "VQModel": Family(_vq_model),
}

REFUSED = {
    "AutoencoderKLAllegro": "the library encodes and decodes it in blended tiles alone and raises NotImplementedError "
    "without them; no graph of the whole exists",
    "ConsistencyDecoderVAE": "its decoder is a diffusion model, which draws noise in every step of a loop; export the "
    "AutoencoderKL of the same latents",
    "LTX2VideoDiffusionDecoderModel": "it is a decoder without an encoder, and a diffusion model, which draws noise in "
    "every step of a loop; export AutoencoderKLLTX2Video",
    "MMAudioVocoder": "it is a vocoder: it makes audio of spectrograms and has no encoder; export it with torch.onnx",
    "MiniMaxMusic3Vocoder": "it is a vocoder: it makes audio of features and has no encoder; export it with torch.onnx",
    "RFD4ProteinaAutoencoder": "its encoder draws noise, and both halves take dictionaries of features of proteins; "
    "no family describes them",
}
"""The other models of the library's module autoencoders, each with the reason why it is refused."""


def other_model(model: Any) -> Declaration | None:
    """Return the declaration of a model that derives from the library's base classes and is in no table.

    A class of the user's own has encode and decode of its own; its config says what its latents are.

    Raises:
        ExportError: it is a model of the library itself, or derives from one that is refused.
    """
    library = [cls for cls in type(model).__mro__ if cls.__module__.partition(".")[0] == "diffusers"]
    if not any(cls.__name__ in ("ModelMixin", "AutoencoderMixin") for cls in library):
        return None
    for cls in library:
        if cls.__name__ in REFUSED:
            raise ExportError(f"diffusers {cls.__name__}: {REFUSED[cls.__name__]}")
    if type(model) in library:
        raise ExportError(
            f"diffusers {type(model).__name__}: expected one of its autoencoders that this version knows, "
            f"{', '.join(sorted(MODELS))}; set model.__vae_export__, a function that returns encode, decode, posterior "
            "and prior"
        )
    scale, shift, unscaled = _scaling(model)
    return Declaration(
        prior="none",
        prior_reason="; ".join(part for part in (_NOT_NORMAL, unscaled) if part),
        latent_scale=scale,
        latent_shift=shift,
    )
