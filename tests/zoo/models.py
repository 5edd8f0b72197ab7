"""The models of docs/compatibility.md: VAEs as people write them, and those of other libraries, with random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Independent, Normal
from torch.nn import functional

from vae_export.understand.draws import Draws

from .entry import SEED as _SEED
from .entry import Entry
from .entry import made as _made
from .libraries import ENTRIES as _FURTHER
from .libraries import buffered, normalized, shifted
from .shapes import ENTRIES as _SHAPES
from .tabular import ENTRIES as _TABULAR

# Plain modules.


class Plain(nn.Module):
    """encode gives the mean and, beside it, what `second` says."""

    def __init__(self, second: str = "logvar", latent: int = 6) -> None:
        super().__init__()
        self.second = second
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU())
        self.mu, self.spread = nn.Linear(48, latent), nn.Linear(48, latent)
        self.head = nn.Sequential(nn.Linear(latent, 48), nn.ReLU(), nn.Linear(48, 64), nn.Sigmoid())

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        second = self.spread(h)
        if self.second in ("std", "var"):
            second = torch.exp(second - 1)
        return self.mu(h), second

    def decode(self, z: Tensor) -> Tensor:
        return self.head(z).view(-1, 1, 8, 8)

    def reparameterize(self, mu: Tensor, second: Tensor) -> Tensor:
        std = {
            "logvar": lambda s: torch.exp(0.5 * s),
            "log_std": torch.exp,
            "std": lambda s: s,
            "var": torch.sqrt,
            "softplus": functional.softplus,
        }[self.second](second)
        return mu + std * torch.randn_like(std)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, second = self.encode(x)
        return self.decode(self.reparameterize(mu, second)), mu, second


class MLP(nn.Module):
    """Submodules encoder and decoder alone: one tensor of 2 · latent numbers, chunked in forward."""

    def __init__(self, latent: int = 8) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2 * latent)
        )
        self.decoder = nn.Sequential(nn.Linear(latent, 64), nn.Tanh(), nn.Linear(64, 20))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, logvar = self.encoder(x).chunk(2, dim=-1)
        z = mu + torch.exp(logvar / 2) * torch.randn_like(mu)
        return self.decoder(z), mu, logvar


class ConvBatchNorm(nn.Module):
    def __init__(self, latent: int = 16) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Conv2d(3, 16, 4, 2, 1), nn.BatchNorm2d(16), nn.LeakyReLU(0.2)),
            *(nn.Conv2d(16, 32, 4, 2, 1), nn.BatchNorm2d(32), nn.LeakyReLU(0.2)),
            nn.Flatten(),
        )
        self.fc_mu, self.fc_var = nn.Linear(32 * 4 * 4, latent), nn.Linear(32 * 4 * 4, latent)
        self.decoder_input = nn.Linear(latent, 32 * 4 * 4)
        self.decoder = nn.Sequential(
            *(nn.ConvTranspose2d(32, 16, 3, 2, 1, output_padding=1), nn.BatchNorm2d(16), nn.LeakyReLU(0.2)),
            *(nn.ConvTranspose2d(16, 3, 3, 2, 1, output_padding=1), nn.Sigmoid()),
        )

    def encode(self, x: Tensor) -> list[Tensor]:
        h = self.encoder(x)
        return [self.fc_mu(h), self.fc_var(h)]

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.decoder_input(z).view(-1, 32, 4, 4))

    def forward(self, x: Tensor) -> list[Tensor]:
        mu, logvar = self.encode(x)
        z = torch.randn_like(mu) * torch.exp(0.5 * logvar) + mu
        return [self.decode(z), x, mu, logvar]


class Attention(nn.Module):
    """Over the pixels of a feature map, one head: three-dimensional queries, keys and values."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        q, k, v = self.qkv(self.norm(x).flatten(2).transpose(1, 2)).chunk(3, dim=-1)
        h = self.out(functional.scaled_dot_product_attention(q, k, v))
        return x + h.transpose(1, 2).reshape(batch, channels, height, width)


class ConvAttention(nn.Module):
    """Spatial latents, so that images of other sizes work."""

    def __init__(self, latent: int = 4) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, 2, 1), nn.GroupNorm(4, 16), nn.SiLU()),
            *(nn.Conv2d(16, 32, 3, 2, 1), Attention(32), nn.Conv2d(32, 2 * latent, 1)),
        )
        self.decoder = nn.Sequential(
            *(nn.Conv2d(latent, 32, 3, 1, 1), Attention(32), nn.Upsample(scale_factor=2)),
            *(nn.Conv2d(32, 16, 3, 1, 1), nn.GroupNorm(4, 16), nn.SiLU(), nn.Upsample(scale_factor=2)),
            nn.Conv2d(16, 3, 3, 1, 1),
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = self.encoder(x).chunk(2, dim=1)
        return mu, logvar

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)

    def forward(self, x: Tensor) -> Tensor:
        mu, logvar = self.encode(x)
        return self.decode(mu + torch.randn_like(mu) * (0.5 * logvar).exp())


# torch.distributions.


class Distributions(nn.Module):
    """encode and decode give distributions, drawn from with rsample."""

    def __init__(self, *, independent: bool = False, decoder: str = "tensor") -> None:
        super().__init__()
        self.independent, self.kind = independent, decoder
        self.body = nn.Sequential(nn.Linear(30, 40), nn.ELU())
        self.loc, self.scale = nn.Linear(40, 5), nn.Linear(40, 5)
        self.head = nn.Sequential(nn.Linear(5, 40), nn.ELU(), nn.Linear(40, 30))
        if decoder == "normal":
            self.head_scale = nn.Sequential(nn.Linear(5, 30), nn.Softplus())

    def encode(self, x: Tensor) -> Normal | Independent:
        h = self.body(x)
        q = Normal(self.loc(h), functional.softplus(self.scale(h)) + 1e-3)
        return Independent(q, 1) if self.independent else q

    def decode(self, z: Tensor) -> Any:
        if self.kind == "bernoulli":
            return Bernoulli(logits=self.head(z))
        if self.kind == "normal":
            return Normal(self.head(z), self.head_scale(z) + 0.1)
        return self.head(z)

    def forward(self, x: Tensor) -> tuple[Any, Any]:
        q = self.encode(x)
        return self.decode(q.rsample()), q


# Conditional.


class Conditional(nn.Module):
    """A label through an embedding, a vector as it is, or both, in the encoder and in the decoder."""

    def __init__(self, classes: int = 0, vector: int = 0, latent: int = 4) -> None:
        super().__init__()
        width = (8 if classes else 0) + vector
        self.embedding = nn.Embedding(classes, 8) if classes else None
        self.inner = nn.Sequential(nn.Linear(36 + width, 48), nn.ReLU(), nn.Linear(48, 2 * latent))
        self.outer = nn.Sequential(nn.Linear(latent + width, 48), nn.ReLU(), nn.Linear(48, 36), nn.Sigmoid())

    def joined(self, tensor: Tensor, label: Tensor | None, vector: Tensor | None) -> Tensor:
        parts = [tensor]
        if self.embedding is not None:
            parts.append(self.embedding(label))
        if vector is not None:
            parts.append(vector)
        return torch.cat(parts, dim=1)

    def _encode(self, x: Tensor, label: Tensor | None, vector: Tensor | None) -> tuple[Tensor, Tensor]:
        mu, logvar = self.inner(self.joined(x.flatten(1), label, vector)).chunk(2, dim=1)
        return mu, logvar

    def _decode(self, z: Tensor, label: Tensor | None, vector: Tensor | None) -> Tensor:
        return self.outer(self.joined(z, label, vector)).unflatten(1, (1, 6, 6))

    def _forward(self, x: Tensor, label: Tensor | None, vector: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        mu, logvar = self._encode(x, label, vector)
        z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
        return self._decode(z, label, vector), mu, logvar


class WithLabel(Conditional):
    def encode(self, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        return self._encode(x, label, None)

    def decode(self, z: Tensor, label: Tensor) -> Tensor:
        return self._decode(z, label, None)

    def forward(self, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self._forward(x, label, None)


class WithVector(Conditional):
    def encode(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return self._encode(x, None, c)

    def decode(self, z: Tensor, c: Tensor) -> Tensor:
        return self._decode(z, None, c)

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self._forward(x, None, c)


class WithBoth(Conditional):
    def encode(self, x: Tensor, label: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return self._encode(x, label, c)

    def decode(self, z: Tensor, label: Tensor, c: Tensor) -> Tensor:
        return self._decode(z, label, c)

    def forward(self, x: Tensor, label: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self._forward(x, label, c)


# Hierarchical.


class TwoLevels(nn.Module):
    """Two latents; with `sampled`, the second posterior depends on a draw of the first."""

    def __init__(self, *, sampled: bool = False) -> None:
        super().__init__()
        self.sampled = sampled
        self.bottom = nn.Sequential(nn.Linear(24, 32), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(32 + (6 if sampled else 0), 32), nn.ReLU())
        self.first, self.second = nn.Linear(32, 12), nn.Linear(32, 6)
        self.head = nn.Sequential(nn.Linear(6 + 3, 32), nn.ReLU(), nn.Linear(32, 24))

    def encode(self, x: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        h = self.bottom(x)
        mu1, logvar1 = self.first(h).chunk(2, dim=-1)
        if self.sampled:
            h = torch.cat([h, mu1 + torch.exp(0.5 * logvar1) * torch.randn_like(mu1)], dim=-1)
        mu2, logvar2 = self.second(self.top(h)).chunk(2, dim=-1)
        return (mu1, logvar1), (mu2, logvar2)

    def decode(self, z1: Tensor, z2: Tensor) -> Tensor:
        return self.head(torch.cat([z1, z2], dim=-1))

    def forward(self, x: Tensor) -> Tensor:
        zs = [mu + torch.exp(0.5 * logvar) * torch.randn_like(mu) for mu, logvar in self.encode(x)]
        return self.decode(*zs)


class NoisyDecoder(nn.Module):
    """The decoder adds noise of a learned strength to its features."""

    def __init__(self, latent: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 32), nn.ReLU())
        self.mu, self.logvar = nn.Linear(32, latent), nn.Linear(32, latent)
        self.up, self.out = nn.Linear(latent, 32), nn.Linear(32, 16)
        self.strength = nn.Parameter(torch.full((32,), 0.3))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        return self.mu(h), self.logvar(h)

    def decode(self, z: Tensor) -> Tensor:
        h = self.up(z)
        return self.out(torch.relu(h + self.strength * torch.randn_like(h)))

    def forward(self, x: Tensor) -> Tensor:
        mu, logvar = self.encode(x)
        return self.decode(mu + torch.exp(0.5 * logvar) * torch.randn_like(mu))


# Sequences.


class Recurrent(nn.Module):
    """A latent for every step."""

    def __init__(self, latent: int = 3) -> None:
        super().__init__()
        self.encoder_rnn = nn.GRU(5, 16, batch_first=True)
        self.mu, self.logvar = nn.Linear(16, latent), nn.Linear(16, latent)
        self.decoder_rnn, self.out = nn.GRU(latent, 16, batch_first=True), nn.Linear(16, 5)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h, _ = self.encoder_rnn(x)
        return self.mu(h), self.logvar(h)

    def decode(self, z: Tensor) -> Tensor:
        h, _ = self.decoder_rnn(z)
        return self.out(h)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, logvar = self.encode(x)
        return self.decode(mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)), mu, logvar


class Autoregressive(nn.Module):
    """One latent for a sequence of any length; the decoder feeds its own answers back for a fixed number of steps."""

    def __init__(self, latent: int = 6, steps: int = 8) -> None:
        super().__init__()
        self.steps = steps
        self.encoder_rnn = nn.LSTM(5, 16, batch_first=True)
        self.mu, self.logvar = nn.Linear(16, latent), nn.Linear(16, latent)
        self.start, self.cell, self.out = nn.Linear(latent, 16), nn.GRUCell(5 + latent, 16), nn.Linear(16, 5)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        _, (h, _) = self.encoder_rnn(x)
        return self.mu(h[-1]), self.logvar(h[-1])

    def decode(self, z: Tensor) -> Tensor:
        h = torch.tanh(self.start(z))
        y = z.new_zeros(z.shape[0], 5)
        answers = []
        for _ in range(self.steps):
            h = self.cell(torch.cat([y, z], dim=-1), h)
            y = self.out(h)
            answers.append(y)
        return torch.stack(answers, dim=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, logvar = self.encode(x)
        return self.decode(mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)), mu, logvar


# Codes, and autoencoders.


class Quantized(nn.Module):
    def __init__(self, codes: int = 32, channels: int = 8) -> None:
        super().__init__()
        self.enc = nn.Sequential(nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, channels, 4, 2, 1))
        self.codebook = nn.Embedding(codes, channels)
        self.dec = nn.Sequential(
            nn.ConvTranspose2d(channels, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, 2, 1)
        )

    def encode(self, x: Tensor) -> Tensor:
        h = self.enc(x).permute(0, 2, 3, 1)
        weight = self.codebook.weight
        distances = h.pow(2).sum(-1, keepdim=True) - 2 * h @ weight.T + weight.pow(2).sum(-1)
        return distances.argmin(-1)

    def decode(self, codes: Tensor) -> Tensor:
        return self.dec(self.codebook(codes).permute(0, 3, 1, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


class Autoencoder(nn.Module):
    def __init__(self, latent: int = 3) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(12, 32), nn.GELU(), nn.Linear(32, latent))
        self.decoder = nn.Sequential(nn.Linear(latent, 32), nn.GELU(), nn.Linear(32, 12))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


def _submodules(**kwargs: Any) -> dict[str, Any]:
    """Functions for a model that has submodules encoder and decoder in place of methods."""
    return {"encode": lambda m, x, c: m.encoder(x), "decode": lambda m, z, c: m.decoder(*z), **kwargs}


# Making them.


def _plain(cls: Callable[[], Any], shape: tuple[int, ...], **kwargs: Any) -> Callable[[], tuple[Any, dict[str, Any]]]:
    def make() -> tuple[Any, dict[str, Any]]:
        model, example = _made(cls, shape)
        return model, {"example": example, **kwargs}

    return make


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(_SEED)


_LABELS = torch.arange(8) % 5
_VECTORS = torch.randn(8, 3, generator=_generator())
# Enough to fit four components to.
_OBSERVATIONS = torch.rand(256, 12, generator=_generator())


# diffusers.


def _diffusers(
    name: str, shape: tuple[int, ...], n: int = 2, **config: Any
) -> Callable[[], tuple[Any, dict[str, Any]]]:
    def make() -> tuple[Any, dict[str, Any]]:
        import diffusers

        model, x = _made(lambda: getattr(diffusers, name)(**config), shape, n)
        if name == "VQModel":
            # A fresh codebook is so small that every code is about as near as any other; a trained one is not.
            nn.init.normal_(model.quantize.embedding.weight, generator=_generator())
        return model, {"example": 2 * x - 1}

    return make


def _vq_encode(model: Any, x: Tensor, _: Mapping[str, Tensor]) -> Tensor:
    h = model.encode(x).latents
    return model.quantize(h)[2][2].reshape(len(x), *h.shape[2:])


def _vq_decode(model: Any, z: tuple[Tensor, ...], _: Mapping[str, Tensor]) -> Tensor:
    codes = z[0]
    h = model.quantize.get_codebook_entry(codes.flatten(), (*codes.shape, model.quantize.vq_embed_dim))
    return model.decode(h, force_not_quantize=True).sample


_DIST = {"encode": lambda m, x, c: m.encode(x).latent_dist, "decode": lambda m, z, c: m.decode(z[0]).sample}
_KL_SMALL = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (16, 32),
    "norm_num_groups": 8,
}
_DIFFUSERS = (
    Entry(
        "diffusers",
        "AutoencoderKL",
        _diffusers("AutoencoderKL", (3, 16, 16), **_KL_SMALL),
        "diffusers",
        unscaled=shifted,
        **_DIST,
    ),
    Entry(
        "diffusers",
        "AutoencoderKL, Stable Diffusion 1.5",
        _diffusers(
            "AutoencoderKL",
            (3, 64, 64),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
        ),
        "diffusers",
        slow=True,
        **_DIST,
    ),
    Entry(
        "diffusers",
        "AutoencoderTiny",
        _diffusers(
            "AutoencoderTiny",
            (3, 16, 16),
            encoder_block_out_channels=(16, 16, 16),
            decoder_block_out_channels=(16, 16, 16),
            num_encoder_blocks=(1, 1, 1),
            num_decoder_blocks=(1, 1, 1),
        ),
        "diffusers",
        encode=lambda m, x, c: m.encode(x).latents,
        decode=lambda m, z, c: m.decode(z[0]).sample,
    ),
    Entry(
        "diffusers",
        "VQModel",
        _diffusers("VQModel", (3, 16, 16), num_vq_embeddings=64, **_KL_SMALL),
        "diffusers",
        encode=_vq_encode,
        decode=_vq_decode,
    ),
    Entry(
        "diffusers",
        "AutoencoderOobleck",
        _diffusers(
            "AutoencoderOobleck",
            (2, 128),
            encoder_hidden_size=16,
            downsampling_ratios=[2, 4],
            channel_multiples=[1, 2],
            decoder_channels=16,
            decoder_input_channels=8,
        ),
        "diffusers",
        **_DIST,
    ),
    Entry(
        "diffusers",
        "AutoencoderDC",
        _diffusers(
            "AutoencoderDC",
            (3, 32, 32),
            latent_channels=8,
            attention_head_dim=16,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(16, 32),
            decoder_block_out_channels=(16, 32),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
        ),
        "diffusers",
        encode=lambda m, x, c: m.encode(x).latent,
        decode=lambda m, z, c: m.decode(z[0]).sample,
    ),
)


# Its videos and audio: the configurations of its own tests, smaller.


def _autoencoder(
    name: str, shape: tuple[int, ...], *, options: Mapping[str, Any] | None = None, **config: Any
) -> Entry:
    """An autoencoder whose encode gives a distribution."""
    return Entry("diffusers", name, _diffusers(name, shape, **config), "diffusers", **{**_DIST, **(options or {})})


_LATENT = {"encode": lambda m, x, c: m.encode(x).latents}
_CAUSAL = {"dim_mult": [1, 1, 1], "num_res_blocks": 1, "temperal_downsample": [False, True]}
_EIGHTS = {"block_out_channels": (8,) * 4, "layers_per_block": 1}
_MORE_DIFFUSERS = (
    _autoencoder(
        "AsymmetricAutoencoderKL",
        (3, 16, 16),
        **{
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "down_block_out_channels": (8, 16),
            "up_block_out_channels": (8, 16),
            "norm_num_groups": 4,
        },
    ),
    _autoencoder("AutoencoderKLFlux2", (3, 16, 16), latent_channels=8, **_KL_SMALL),
    _autoencoder(
        "AutoencoderKLTemporalDecoder",
        (3, 16, 16),
        options={"decode": lambda m, z, c: m.decode(z[0], num_frames=1).sample},
        down_block_types=("DownEncoderBlock2D",) * 2,
        block_out_channels=(32, 32),
    ),
    _autoencoder("AutoencoderKLWan", (3, 5, 16, 16), options={"unscaled": normalized}, base_dim=4, **_CAUSAL),
    _autoencoder(
        "AutoencoderKLQwenImage",
        (3, 1, 16, 16),
        options={"unscaled": normalized},
        **{"base_dim": 8, "z_dim": 4, "latents_mean": [0.5] * 4, "latents_std": [2.0] * 4},
        **_CAUSAL,
    ),
    _autoencoder(
        "AutoencoderKLCogVideoX",
        (3, 9, 16, 16),
        options={"unscaled": shifted},
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        **{"latent_channels": 4, "norm_num_groups": 2},
        **_EIGHTS,
    ),
    _autoencoder(
        "AutoencoderKLLTXVideo",
        (3, 9, 16, 16),
        options={"unscaled": buffered, "more_libraries": ("transformers",)},
        **{
            "latent_channels": 8,
            "block_out_channels": (8, 8, 8, 8),
            "decoder_block_out_channels": (8, 8, 8, 8),
            "layers_per_block": (1,) * 5,
            "decoder_layers_per_block": (1,) * 5,
            "spatio_temporal_scaling": (True, True, False, False),
            "decoder_spatio_temporal_scaling": (True, True, False, False),
            "patch_size": 1,
            "patch_size_t": 1,
        },
    ),
    _autoencoder(
        "AutoencoderKLHunyuanVideo",
        (3, 9, 16, 16),
        options={"unscaled": shifted},
        latent_channels=4,
        norm_num_groups=4,
        **_EIGHTS,
    ),
    _autoencoder(
        "AutoencoderKLMochi",
        (3, 7, 16, 16),
        options={"unscaled": normalized},
        **{
            "latent_channels": 12,
            "encoder_block_out_channels": (32, 32, 32, 32),
            "decoder_block_out_channels": (32, 32, 32, 32),
            "layers_per_block": (1,) * 5,
        },
    ),
    _autoencoder(
        "AutoencoderKLCosmos",
        (3, 9, 32, 32),
        options={"encode": lambda m, x, c: m.encode(x).latent_dist.mode()},
        **{"latent_channels": 16, "resolution": 64, "attention_resolutions": (8,), "num_layers": 1},
        encoder_block_out_channels=(8,) * 4,
        decode_block_out_channels=(8,) * 4,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    ),
    _autoencoder(
        "MMAudioVAE",
        (1024,),
        **{
            "mel_bins": 16,
            "latent_channels": 8,
            "hidden_channels": 32,
            "channel_multipliers": (1, 2),
            "layers_per_block": 1,
            "n_fft": 64,
            "hop_length": 16,
        },
    ),
)


# pythae.


def _pythae(name: str, config: str, *, own: bool = False, **options: Any) -> Callable[[], tuple[Any, dict[str, Any]]]:
    def make() -> tuple[Any, dict[str, Any]]:
        import pythae.models

        def model() -> Any:
            settings = getattr(pythae.models, config)(**{"input_dim": (1, 12, 12), "latent_dim": 6, **options})
            return getattr(pythae.models, name)(settings, *(_own_networks(settings) if own else ()))

        built, example = _made(model, (1, 12, 12))
        if name == "VQVAE":
            built.quantizer.embeddings.weight.data.normal_(generator=_generator())
        return built, {"example": example}

    return make


def _own_networks(config: Any) -> tuple[nn.Module, nn.Module]:
    """Convolutional networks as pythae's documentation has its users write them."""
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(1, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
            self.embedding, self.log_var = nn.Linear(8 * 36, 6), nn.Linear(8 * 36, 6)

        def forward(self, x: Tensor) -> Any:
            h = self.layers(x)
            return ModelOutput(embedding=self.embedding(h), log_covariance=self.log_var(h))

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 8 * 36)
            self.layers = nn.Sequential(nn.ConvTranspose2d(8, 1, 4, 2, 1), nn.Sigmoid())

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.layers(self.fc(z).reshape(z.shape[0], 8, 6, 6)))

    return Encoder(), Decoder()


def _embedding(model: Any, x: Tensor, _: Mapping[str, Tensor]) -> Tensor:
    return model.encoder(x).embedding


def _in_forward(model: Any, x: Tensor, _: Mapping[str, Tensor]) -> Tensor:
    """The latent that `forward` itself decodes, without noise."""
    with Draws.constant(0.0):
        return model({"data": x}).z


def _posterior(model: Any, x: Tensor, _: Mapping[str, Tensor]) -> Normal:
    """The normal that `forward` itself draws the latent from: what each draw of 0 and of 1 gives."""
    with Draws.constant(0.0):
        mean = model({"data": x}).z
    with Draws.constant(1.0):
        return Normal(mean, model({"data": x}).z - mean)


def _log_covariance(model: Any, x: Tensor, _: Mapping[str, Tensor]) -> Normal:
    output = model.encoder(x)
    return Normal(output.embedding, torch.exp(0.5 * output.log_covariance))


def _direction(model: Any, x: Tensor, _: Mapping[str, Tensor]) -> Tensor:
    return functional.normalize(model.encoder(x).embedding, dim=-1)


def _quantized(model: Any, x: Tensor, _: Mapping[str, Tensor]) -> Tensor:
    return model({"data": x}).quantized_indices.reshape(len(x), -1)


def _reconstruction(model: Any, z: tuple[Tensor, ...], _: Mapping[str, Tensor]) -> Tensor:
    return model.decoder(z[0]).reconstruction


def _looked_up(model: Any, z: tuple[Tensor, ...], _: Mapping[str, Tensor]) -> Tensor:
    return model.decoder(model.quantizer.embeddings(z[0]).reshape(len(z[0]), -1)).reconstruction


_PYTHAE = tuple(
    Entry("pythae", title, make, "pythae", encode=encode, decode=decode)
    for title, make, encode, decode in (
        ("VAE", _pythae("VAE", "VAEConfig"), _posterior, _reconstruction),
        (
            "VAE, own networks, binary cross-entropy",
            _pythae("VAE", "VAEConfig", own=True, reconstruction_loss="bce"),
            _posterior,
            _reconstruction,
        ),
        ("BetaVAE", _pythae("BetaVAE", "BetaVAEConfig"), _posterior, _reconstruction),
        ("IWAE", _pythae("IWAE", "IWAEConfig"), _log_covariance, _reconstruction),
        ("HVAE", _pythae("HVAE", "HVAEConfig"), _embedding, _reconstruction),
        ("SVAE", _pythae("SVAE", "SVAEConfig"), _direction, _reconstruction),
        ("AE", _pythae("AE", "AEConfig"), _embedding, _reconstruction),
        ("VQVAE", _pythae("VQVAE", "VQVAEConfig", num_embeddings=32), _quantized, _looked_up),
        *(
            (name, _pythae(name, config or f"{name}Config", **options), _posterior, _reconstruction)
            for name, config, options in (
                ("BetaTCVAE", None, {}),
                ("DisentangledBetaVAE", None, {}),
                ("INFOVAE_MMD", "INFOVAE_MMD_Config", {}),
                ("VAMP", None, {"number_components": 8}),
                ("VAEGAN", None, {}),
                ("Adversarial_AE", "Adversarial_AE_Config", {}),
            )
        ),
        *(
            (name, _pythae(name, config or f"{name}Config", **options), _in_forward, _reconstruction)
            for name, config, options in (
                ("WAE_MMD", "WAE_MMD_Config", {}),
                ("RAE_L2", "RAE_L2_Config", {}),
                ("VAE_IAF", "VAE_IAF_Config", {}),
                ("VAE_LinNF", "VAE_LinNF_Config", {"flows": ["Planar", "Radial"]}),
            )
        ),
        *(
            (name, _pythae(name, f"{name}Config"), _log_covariance, _reconstruction)
            # forward of these works on parts of the batch, on copies of it, or needs gradients.
            for name in ("FactorVAE", "RHVAE", "CIWAE", "MIWAE", "PIWAE")
        ),
        ("RAE_GP", _pythae("RAE_GP", "RAE_GP_Config"), _embedding, _reconstruction),
        ("PoincareVAE", _pythae("PoincareVAE", "PoincareVAEConfig", latent_dim=2), _embedding, _reconstruction),
    )
)


# scvi-tools.


def _scvi() -> tuple[Any, dict[str, Any]]:
    from scvi.module import VAE

    model, counts = _made(lambda: VAE(n_input=40, n_batch=3, n_hidden=32, n_latent=5), (40,))
    counts = torch.floor(counts * 20)
    conditions = {"batch_index": torch.arange(8) % 3, "library": counts.sum(1, keepdim=True).log()}
    return model, {"example": counts, "conditions": conditions}


def _scvi_encode(model: Any, x: Tensor, conditions: Mapping[str, Tensor]) -> Any:
    return model.inference(x, conditions["batch_index"][:, None])["qz"]


def _scvi_decode(model: Any, z: tuple[Tensor, ...], conditions: Mapping[str, Tensor]) -> Tensor:
    return model.generative(z[0], conditions["library"], conditions["batch_index"][:, None])["px"].mu


def _scvi_trained(name: str, label: str = "") -> Callable[[], tuple[Any, dict[str, Any]]]:
    """A trained object of scvi.model with two batches, or labels; it gives the conditions itself."""

    def make() -> tuple[Any, dict[str, Any]]:
        import anndata
        import numpy as np
        import scvi

        torch.manual_seed(_SEED)
        rng = np.random.default_rng(_SEED)
        data = anndata.AnnData(rng.poisson(rng.gamma(1.0, 2.0, (90, 30))).astype(np.float32))
        data.obs["batch"] = np.where(np.arange(90) % 2, "a", "b")
        data.obs["label"] = np.where(np.arange(90) % 3, "T", "B")
        data.obsm["protein"] = rng.poisson(5.0, (90, 4)).astype(np.float32)
        keys = {"labels_key": "label"} if label == "only" else {"batch_key": "batch"}
        if label == "both":
            keys |= {"labels_key": "label", "unlabeled_category": "?"}
        if name == "TOTALVI":
            keys["protein_expression_obsm_key"] = "protein"
        if name == "PEAKVI":
            # Whether a region is accessible; its decoder gives the probability.
            data.X = (data.X > 1).astype(np.float32)
        cls = getattr(scvi.model, name)
        cls.setup_anndata(data, **keys)
        model = cls(data, n_latent=4, **({} if name == "TOTALVI" else {"n_hidden": 16}))
        # TOTALVI watches its learning rate, which needs a logger.
        logger = {} if name == "TOTALVI" else {"logger": False}
        model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False, **logger)
        model.module.eval()
        counts = torch.tensor(data.X[:8])
        conditions = {"y" if label == "only" else "batch_index": torch.arange(8) % 2}
        if name != "PEAKVI":
            total = counts.sum(1, keepdim=True)
            conditions["library"] = total if name in ("CondSCVI", "TOTALVI") else total.log()
        if name == "TOTALVI":
            conditions["proteins"] = torch.tensor(data.obsm["protein"][:8])
        return model, {"example": counts, "conditions": conditions}

    return make


def _scvi_object_encode(model: Any, x: Tensor, conditions: Mapping[str, Tensor]) -> Any:
    if "y" in conditions:
        return model.module.inference(x, conditions["y"][:, None])["qz"]
    if "proteins" in conditions:
        label = torch.zeros(len(x), 1, dtype=torch.int64)
        return model.module.inference(x, conditions["proteins"], conditions["batch_index"][:, None], label)["qz"]
    further = ([], None) if type(model).__name__ == "PEAKVI" else ()
    return model.module.inference(x, conditions["batch_index"][:, None], *further)["qz"]


def _scvi_object_decode(model: Any, z: tuple[Tensor, ...], conditions: Mapping[str, Tensor]) -> Tensor:
    if "y" in conditions:
        batch = torch.zeros(len(z[0]), dtype=torch.int64)
        answer = model.module.generative(z[0], conditions["library"], conditions["y"][:, None], batch)
    elif "proteins" in conditions:
        latent = model.module.encoder.z_transformation(z[0])
        label = torch.zeros(len(latent), 1, dtype=torch.int64)
        further = conditions["library"], conditions["batch_index"][:, None], label
        return model.module.generative(latent, *further)["px_"]["rate"]
    elif "library" in conditions:
        answer = model.module.generative(z[0], conditions["library"], conditions["batch_index"][:, None])
    else:
        return model.module.generative(z[0], z[0], conditions["batch_index"][:, None])["px"]
    return answer["px"].mu


# Codecs and quantizers.


def _random_codebooks(model: Any) -> Any:
    """Fill the codebooks that are zero until a model is trained, and mark them as filled."""
    for name, tensor in (*model.named_buffers(), *model.named_parameters()):
        if name.endswith(("embed", "embed_sum", "embed_avg")):
            tensor.data.normal_(std=0.02)
        if name.endswith(("inited", "initialized", "cluster_size", "cluster_usage")):
            tensor.data.fill_(1)
    return model


def _transformers(name: str, shape: tuple[int, ...], **config: Any) -> Callable[[], tuple[Any, dict[str, Any]]]:
    def make() -> tuple[Any, dict[str, Any]]:
        import transformers

        cls = getattr(transformers, f"{name}Model")
        model, example = _made(
            lambda: _random_codebooks(cls(getattr(transformers, f"{name}Config")(**config))), shape, 4, normal=True
        )
        return model, {"example": 0.3 * example}

    return make


def _snac() -> tuple[Any, dict[str, Any]]:
    import snac

    model, example = _made(
        lambda: snac.SNAC(
            encoder_dim=8,
            encoder_rates=[2, 4],
            decoder_dim=32,
            decoder_rates=[4, 2],
            attn_window_size=None,
            codebook_size=16,
            codebook_dim=4,
            vq_strides=[4, 2, 1],
        ),
        (1, 256),
        4,
        normal=True,
    )
    return model, {"example": 0.3 * example}


class WithQuantizer(nn.Module):
    """Layers with a quantizer of vector-quantize-pytorch among them, and no encode and decode, as in its examples."""

    def __init__(self, quantizer: Any, width: int, *, flat: bool = False) -> None:
        super().__init__()
        self.down, self.quantizer, self.up = (
            nn.Conv2d(1, width, 4, 4),
            quantizer,
            nn.ConvTranspose2d(width, 1, 4, 4),
        )
        self.flat = flat

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.down(x)
        vectors, codes, *_ = self.quantizer(h.flatten(2).transpose(1, 2) if self.flat else h)
        return self.decoded(vectors), codes

    def decoded(self, vectors: Tensor) -> Tensor:
        return self.up(vectors.transpose(1, 2).reshape(vectors.shape[0], -1, 4, 4) if self.flat else vectors)


def _quantizer(
    name: str, width: int, *, flat: bool = False, **options: Any
) -> Callable[[], tuple[Any, dict[str, Any]]]:
    def make() -> tuple[Any, dict[str, Any]]:
        import vector_quantize_pytorch

        quantizer = getattr(vector_quantize_pytorch, name)
        model, example = _made(lambda: WithQuantizer(quantizer(**options), width, flat=flat), (1, 16, 16))
        return model, {"example": 2 * example - 1}

    return make


def _quantized(name: str, lookup: str, width: int, **options: Any) -> Entry:
    return Entry(
        "vector-quantize-pytorch",
        name,
        _quantizer(name, width, **options),
        "vector_quantize_pytorch",
        encode=lambda m, x, c: m(x)[1],
        decode=lambda m, z, c: m.decoded(getattr(m.quantizer, lookup)(z[0])),
    )


def _monai(name: str, shape: tuple[int, ...], **config: Any) -> Callable[[], tuple[Any, dict[str, Any]]]:
    def make() -> tuple[Any, dict[str, Any]]:
        import monai.networks.nets

        model, example = _made(lambda: getattr(monai.networks.nets, name)(**config), shape)
        if name == "VQVAE":
            # The codebook of a fresh model lies far from what its encoder gives.
            model.quantizer.quantizer.embedding.weight.data.mul_(0.05)
        return model, {"example": example}

    return make


_MONAI_KL = {
    "in_channels": 1,
    "out_channels": 1,
    "num_res_blocks": 1,
    "channels": (8, 16),
    "attention_levels": (False, True),
    "latent_channels": 4,
    "norm_num_groups": 4,
}
_FSQ = {"levels": [5, 4, 3]}
_CODEBOOK = {"dim": 8, "codebook_size": 32}
_AUDIO_CODES = {
    "encode": lambda m, x, c: m.encode(x).audio_codes,
    "decode": lambda m, z, c: m.decode(audio_codes=z[0]).audio_values,
}
_CODECS = (
    Entry(
        "transformers",
        "EncodecModel",
        _transformers(
            "Encodec",
            (1, 256),
            num_filters=4,
            hidden_size=16,
            codebook_size=16,
            upsampling_ratios=[2, 2],
            num_lstm_layers=1,
            target_bandwidths=[24.0, 48.0],
        ),
        "transformers",
        encode=lambda m, x, c: m.encode(x).audio_codes[0],
        decode=lambda m, z, c: m.decode(z[0][None], [None]).audio_values,
    ),
    Entry(
        "transformers",
        "DacModel",
        _transformers(
            "Dac",
            (1, 256),
            encoder_hidden_size=8,
            downsampling_ratios=[2, 4],
            decoder_hidden_size=32,
            n_codebooks=2,
            codebook_size=16,
            codebook_dim=4,
        ),
        "transformers",
        **_AUDIO_CODES,
    ),
    Entry(
        "transformers",
        "MimiModel",
        _transformers(
            "Mimi",
            (1, 512),
            num_filters=4,
            hidden_size=32,
            upsampling_ratios=[2, 4],
            codebook_size=16,
            codebook_dim=16,
            num_quantizers=3,
            vector_quantization_hidden_dimension=16,
            upsample_groups=32,
            num_hidden_layers=1,
            intermediate_size=32,
            num_attention_heads=2,
            num_key_value_heads=2,
            sliding_window=16,
        ),
        "transformers",
        **_AUDIO_CODES,
    ),
    Entry(
        "snac",
        "SNAC",
        _snac,
        "snac",
        encode=lambda m, x, c: [(codes, None) for codes in m.encode(x)],
        decode=lambda m, z, c: m.decode(list(z)),
    ),
    _quantized("VectorQuantize", "get_output_from_indices", 8, **_CODEBOOK, accept_image_fmap=True),
    _quantized("ResidualVQ", "get_output_from_indices", 8, **_CODEBOOK, num_quantizers=3, flat=True),
    _quantized("FSQ", "indices_to_codes", 3, **_FSQ),
    _quantized("ResidualFSQ", "get_output_from_indices", 8, **_FSQ, dim=8, num_quantizers=2, flat=True),
    _quantized("LFQ", "indices_to_codes", 4, dim=4, codebook_size=16),
    _quantized("SimVQ", "indices_to_codes", 8, **_CODEBOOK, channel_first=True),
    *(
        Entry(
            "monai",
            f"AutoencoderKL, {dimensions}-D",
            _monai("AutoencoderKL", (1, *(8,) * dimensions), spatial_dims=dimensions, **_MONAI_KL),
            "monai",
            # It gives the mean and the standard deviation.
            encode=lambda m, x, c: Normal(*m.encode(x)),
        )
        for dimensions in (2, 3)
    ),
    Entry(
        "monai",
        "VarAutoEncoder",
        _monai(
            "VarAutoEncoder",
            (1, 16, 16),
            spatial_dims=2,
            in_shape=(1, 16, 16),
            out_channels=1,
            latent_size=5,
            channels=(4, 8),
            strides=(2, 2),
        ),
        "monai",
        encode=lambda m, x, c: m.encode_forward(x),
        decode=lambda m, z, c: m.decode_forward(z[0], m.use_sigmoid),
    ),
    Entry(
        "monai",
        "VQVAE",
        _monai(
            "VQVAE",
            (1, 16, 16),
            spatial_dims=2,
            in_channels=1,
            out_channels=1,
            channels=(8, 16),
            num_res_channels=(8, 16),
            num_res_layers=1,
            downsample_parameters=((2, 4, 1, 1),) * 2,
            upsample_parameters=((2, 4, 1, 1, 0),) * 2,
            num_embeddings=16,
            embedding_dim=8,
        ),
        "monai",
        encode=lambda m, x, c: m.index_quantize(x),
        decode=lambda m, z, c: m.decode_samples(z[0]),
    ),
)


ENTRIES: tuple[Entry, ...] = (
    Entry("plain", "encode gives (mu, logvar)", _plain(Plain, (1, 8, 8))),
    *(
        Entry("plain", f"encode gives (mu, {second})", _plain(lambda second=second: Plain(second), (1, 8, 8)))  # type: ignore[misc]
        for second in ("std", "var", "log_std", "softplus")
    ),
    Entry(
        "plain",
        "MLP, encoder gives 2 * latent",
        _plain(MLP, (20,)),
        **_submodules(encode=lambda m, x, c: m.encoder(x).chunk(2, dim=-1)),
    ),
    Entry("plain", "Conv, BatchNorm, ConvTranspose", _plain(ConvBatchNorm, (3, 16, 16))),
    Entry("plain", "GroupNorm and attention", _plain(ConvAttention, (3, 16, 16), dynamic=("height", "width"))),
    Entry("distributions", "encode gives Normal", _plain(Distributions, (30,))),
    Entry("distributions", "encode gives Independent(Normal)", _plain(lambda: Distributions(independent=True), (30,))),
    Entry("distributions", "decode gives Bernoulli", _plain(lambda: Distributions(decoder="bernoulli"), (30,))),
    Entry("distributions", "decode gives Normal", _plain(lambda: Distributions(decoder="normal"), (30,))),
    Entry("conditional", "label", _plain(lambda: WithLabel(classes=5), (1, 6, 6), conditions={"label": _LABELS})),
    Entry("conditional", "vector", _plain(lambda: WithVector(vector=3), (1, 6, 6), conditions={"c": _VECTORS})),
    Entry(
        "conditional",
        "label and vector",
        _plain(lambda: WithBoth(classes=5, vector=3), (1, 6, 6), conditions={"label": _LABELS, "c": _VECTORS}),
    ),
    Entry("hierarchical", "two latents", _plain(TwoLevels, (24,))),
    Entry(
        "hierarchical", "the second posterior takes a draw of the first", _plain(lambda: TwoLevels(sampled=True), (24,))
    ),
    Entry("hierarchical", "the decoder draws noise", _plain(NoisyDecoder, (16,))),
    Entry("sequences", "GRU, a latent for every step", _plain(Recurrent, (10, 5), dynamic=("time",))),
    Entry("sequences", "LSTM encoder, autoregressive decoder", _plain(Autoregressive, (12, 5), dynamic=("time",))),
    Entry("codes", "vector-quantized", _plain(Quantized, (1, 16, 16))),
    Entry("autoencoder", "no prior", _plain(Autoencoder, (12,)), **_submodules()),
    *(
        Entry(
            "autoencoder",
            f"prior={prior!r}",
            _plain(Autoencoder, (12,), prior=prior, observations=_OBSERVATIONS),
            **_submodules(),
        )
        for prior in ("gaussian", "diagonal", "mixture:4")
    ),
    *_SHAPES,
    *_CODECS,
    *_DIFFUSERS,
    *_MORE_DIFFUSERS,
    *_PYTHAE,
    *_FURTHER,
    *_TABULAR,
    Entry("scvi-tools", "SCVI", _scvi, "scvi", slow=True, encode=_scvi_encode, decode=_scvi_decode),
    *(
        Entry(
            "scvi-tools",
            f"{name}, trained",
            _scvi_trained(name, label),
            "scvi",
            slow=True,
            encode=_scvi_object_encode,
            decode=_scvi_object_decode,
        )
        for name, label in (
            ("SCVI", ""),
            ("LinearSCVI", ""),
            ("SCANVI", "both"),
            ("PEAKVI", ""),
            ("TOTALVI", ""),
            ("CondSCVI", "only"),
        )
    ),
)
