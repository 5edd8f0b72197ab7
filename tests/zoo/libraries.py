"""Further models of other libraries for docs/compatibility.md, in `make zoo` and the slow tests alone."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .entry import SEED, Entry, made

Maker = Callable[[], tuple[Any, dict[str, Any]]]


def refused(family: str, name: str, make: Maker, reason: str, library: str) -> Entry:
    """A model that must be refused for this reason."""
    return Entry(family, name, make, library, expect=f"refused: {reason}", slow=True)


# diffusers.


def shifted(model: Any, w: Tensor) -> Tensor:
    """As FluxPipeline and StableDiffusionPipeline before vae.decode."""
    return w / model.config.scaling_factor + (getattr(model.config, "shift_factor", None) or 0.0)


def normalized(model: Any, w: Tensor) -> Tensor:
    """As the pipelines of Wan, QwenImage and Mochi before vae.decode."""
    mean, std = (
        torch.tensor(getattr(model.config, name)).view(1, -1, *(1,) * (w.dim() - 2))
        for name in ("latents_mean", "latents_std")
    )
    return w * std / getattr(model.config, "scaling_factor", 1.0) + mean


def buffered(model: Any, w: Tensor) -> Tensor:
    """As LTXPipeline before vae.decode."""
    from diffusers import LTXPipeline

    given = model.latents_mean, model.latents_std, model.config.scaling_factor
    return LTXPipeline._denormalize_latents(w, *given)  # type: ignore[no-any-return]


def _library_class(name: str) -> Any:
    import diffusers
    import diffusers.models.autoencoders

    return getattr(diffusers, name, None) or getattr(diffusers.models.autoencoders, name)


def _diffusers(
    name: str, shape: tuple[int, ...], n: int = 2, *, half: bool = False, zeros: bool = True, **config: Any
) -> Maker:
    def make() -> tuple[Any, dict[str, Any]]:
        model, x = made(lambda: _library_class(name)(**config), shape, n)
        if not zeros:
            # As after training; fresh weights of zero, or nearly so, would make the block do nothing.
            generator = torch.Generator().manual_seed(SEED)
            for weight in model.parameters():
                if weight.dim() > 1 and weight.abs().max() < 1e-3:
                    weight.data.normal_(generator=generator)
        return model.half() if half else model, {"example": 2 * x - 1}

    return make


def _described(name: str, shape: tuple[int, ...], *, title: str = "", **given: Any) -> Entry:
    """An entry of diffusers; `encode`, `decode` and `unscaled` go to it, the rest to the model's config."""
    asked = {
        "encode": lambda m, x, c: m.encode(x).latent_dist,
        "decode": lambda m, z, c: m.decode(z[0]).sample,
        **{key: given.pop(key) for key in ("encode", "decode", "unscaled", "more_libraries") if key in given},
    }
    return Entry("diffusers", title or name, _diffusers(name, shape, **given), "diffusers", slow=True, **asked)


def _diffusers_refused(name: str, reason: str, **config: Any) -> Entry:
    return refused("diffusers", name, _diffusers(name, (3, 16, 16), **config), reason, "diffusers")


_KL = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
}
_IN_FLOAT = {
    "encode": lambda m, x, c: m.float().encode(x).latent_dist,
    "decode": lambda m, z, c: m.float().decode(z[0]).sample,
}
_LTX = {
    "latent_channels": 8,
    "block_out_channels": (8,) * 4,
    "layers_per_block": (1,) * 5,
    "spatio_temporal_scaling": (True,) * 4,
    "patch_size": 1,
}


def _row_by_row(function: Callable[[Any, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Ask for one row at a time, where the library takes no more."""

    def rows(model: Any, given: Tensor | tuple[Tensor, ...], _: Mapping[str, Tensor]) -> Tensor:
        value = given if isinstance(given, Tensor) else given[0]
        return torch.cat([function(model, row) for row in value.split(1)])

    return rows


DIFFUSERS = (
    _described(
        "AutoencoderKL",
        (3, 16, 16),
        title="AutoencoderKL, Stable Diffusion XL",
        **_KL,
        force_upcast=True,
        scaling_factor=0.13025,
        unscaled=shifted,
    ),
    _described(
        "AutoencoderKL",
        (3, 16, 16),
        title="AutoencoderKL, Flux",
        **_KL,
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        unscaled=shifted,
    ),
    _described("AutoencoderKL", (3, 16, 16), title="AutoencoderKL, weights in float16", **_KL, half=True, **_IN_FLOAT),
    _described(
        "AutoencoderKLHunyuanImage",
        (3, 16, 16),
        **{"in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": (32, 64)},
        **{"layers_per_block": 1, "spatial_compression_ratio": 2, "sample_size": 32},
        scaling_factor=0.75289,
        unscaled=shifted,
    ),
    _described(
        "AutoencoderKLHunyuanImageRefiner",
        (3, 5, 32, 32),
        latent_channels=4,
        block_out_channels=(8, 8, 16, 16, 16),
        layers_per_block=1,
    ),
    _described(
        "AutoencoderKLKVAE", (3, 16, 16), channels=32, num_enc_blocks=1, num_dec_blocks=1, z_channels=4, ch_mult=(1, 2)
    ),
    _described(
        "AutoencoderKLMagvit",
        (3, 9, 16, 16),
        **{"latent_channels": 4, "block_out_channels": (8,) * 4, "layers_per_block": 1, "norm_num_groups": 4},
        down_block_types=("SpatialDownBlock3D", *("SpatialTemporalDownBlock3D",) * 3),
        up_block_types=("SpatialUpBlock3D", *("SpatialTemporalUpBlock3D",) * 3),
    ),
    _described(
        "AutoencoderKLLTX2Video",
        (3, 9, 16, 16),
        **_LTX,
        **{"decoder_block_out_channels": (16, 32, 64), "decoder_layers_per_block": (1,) * 4, "patch_size_t": 1},
        **{"upsample_residual": (False,) * 3, "upsample_factor": (1,) * 3, "decoder_causal": False},
        unscaled=buffered,
        more_libraries=("transformers",),
    ),
    _described(
        "AutoencoderKLLTX2Audio",
        (2, 9, 16),
        **{"base_channels": 16, "output_channels": 2, "ch_mult": (1, 2, 4), "num_res_blocks": 1, "in_channels": 2},
        **{"resolution": 32, "latent_channels": 2, "mel_bins": 16},
    ),
    _described(
        "Kandinsky6SRVAE",
        (3, 5, 16, 16),
        **{"latent_channels": 4, "layers_per_block": 1},
        encoder_block_out_channels=(8, 16, 32),
        decoder_block_out_channels=(8, 16, 32),
    ),
    _described(
        "AutoencoderKLKVAEAudio",
        (1, 256),
        **{"encoder_dim": 8, "encoder_rates": [2, 4], "latent_dim": 32, "codebook_dim": 8, "decoder_dim": 32},
        **{"decoder_rates": [4, 2], "num_channels": 1, "attn_num_heads": 4},
    ),
    _described(
        "AutoencoderKLMiniMaxH3Audio",
        (1, 256),
        **{"encoder_dim": 8, "encoder_rates": (2, 4), "latent_dim": 32, "latent_channels": 8, "decoder_dim": 32},
        **{"num_attention_heads": 4, "decoder_rates": (4, 2), "decoder_kernel_sizes": (8, 4)},
    ),
    _described(
        "AutoencoderSAME",
        (2, 256),
        zeros=False,
        **{"audio_channels": 2, "patch_size": 8, "encoder_channels": 16, "encoder_c_mults": [2], "latent_dim": 8},
        **{"encoder_strides": [4], "encoder_transformer_depths": [1], "dim_heads": 8, "ff_mult": 2},
        encode=lambda m, x, c: m.encode(x).latents,
    ),
    _described(
        "LongCatAudioDiTVae",
        (1, 64),
        **{"in_channels": 1, "channels": 16, "c_mults": [1, 2], "strides": [2, 4], "latent_dim": 4},
        **{"encoder_latent_dim": 8, "downsampling_ratio": 8},
        encode=lambda m, x, c: m.encode(x, sample_posterior=False).latents,
    ),
    _described(
        "AutoencoderRAE",
        (3, 16, 16),
        more_libraries=("transformers",),
        **{"encoder_type": "mae", "encoder_hidden_size": 64, "encoder_patch_size": 4, "encoder_num_hidden_layers": 1},
        **{"decoder_hidden_size": 64, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 4},
        **{"decoder_intermediate_size": 64, "patch_size": 4, "encoder_input_size": 16, "image_size": 16},
        encode=lambda m, x, c: m.encode(x).latent,
    ),
    _described(
        "AutoencoderKLQwenImage21",
        (4, 1, 32, 32),
        **{"base_dim": 8, "decoder_base_dim": 8, "z_dim": 4, "dim_mult": [1, 1, 1], "num_res_blocks": 1},
        **{"temperal_downsample": [False, True], "latents_mean": [0.5] * 4, "latents_std": [2.0] * 4},
        unscaled=normalized,
    ),
    _described(
        "AutoencoderKLHunyuanVideo15",
        (3, 5, 32, 32),
        **{"latent_channels": 4, "block_out_channels": (16,) * 5, "layers_per_block": 1},
        encode=_row_by_row(lambda m, x: m.encode(x).latent_dist.mean),
        decode=_row_by_row(lambda m, z: m.decode(z).sample),
        unscaled=shifted,
    ),
    _described(
        "AutoencoderKLKVAEVideo",
        (3, 5, 16, 16),
        **{"ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "z_channels": 4, "temporal_compress_times": 2},
    ),
    _described(
        "AutoencoderKLMiniMaxH3",
        # It gives back 17 n + 5 frames.
        (3, 22, 16, 16),
        **{"latent_channels": 4, "block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4},
        **{"spatial_downsample_factors": (2, 2), "temporal_downsample_factors": (2, 2), "decoder_num_layers": 1},
        **{"decoder_num_attention_heads": 2, "decoder_attention_head_dim": 16},
        **{"latents_mean": (0.5,) * 4, "latents_std": (2.0,) * 4},
        unscaled=normalized,
    ),
    _described(
        "AutoencoderVidTok",
        # Its decode takes at least four frames of latents.
        (3, 16, 16, 16),
        **{"ch": 32, "ch_mult": [1, 2, 2, 2], "z_channels": 4, "num_res_blocks": 1, "is_causal": False},
        decode=lambda m, z, c: m.decode(z[0]),
    ),
    _described(
        "Cosmos3AVAEAudioTokenizer",
        (2, 2560),
        **{"normalize_volume": False, "enc_dim": 8, "enc_intermediate_dim": 16, "enc_num_layers": 1},
        **{"enc_num_blocks": 1, "enc_latent_dim": 8, "vocoder_input_dim": 4, "dec_dim": 16, "dec_c_mults": (1, 2)},
        **{"dec_strides": (2, 4), "enc_c_mults": (1, 2), "enc_strides": (2, 4), "enc_n_fft": 16, "enc_hop_length": 4},
        decode=lambda m, z, c: m.decode(z[0]),
    ),
    _diffusers_refused(
        "AutoencoderKLAllegro",
        "the library encodes and decodes it in blended tiles alone",
        **{"latent_channels": 4, "block_out_channels": (8,) * 4, "layers_per_block": 1, "norm_num_groups": 2},
        down_block_types=("AllegroDownBlock3D",) * 4,
        up_block_types=("AllegroUpBlock3D",) * 4,
    ),
    _diffusers_refused(
        "ConsistencyDecoderVAE",
        "its decoder is a diffusion model",
        **{"encoder_block_out_channels": (8, 16), "encoder_down_block_types": ("DownEncoderBlock2D",) * 2},
        **{"encoder_layers_per_block": 1, "encoder_norm_num_groups": 4, "decoder_add_attention": False},
        **{"decoder_block_out_channels": (8, 16), "decoder_layers_per_block": 1, "decoder_norm_num_groups": 4},
        decoder_down_block_types=("ResnetDownsampleBlock2D",) * 2,
        decoder_up_block_types=("ResnetUpsampleBlock2D",) * 2,
    ),
    _diffusers_refused(
        "MMAudioVocoder",
        "it is a vocoder",
        **{"num_mels": 8, "upsample_initial_channel": 32, "upsample_rates": (2,), "upsample_kernel_sizes": (4,)},
        **{"resblock_kernel_sizes": (3,), "resblock_dilation_sizes": ((1, 3, 5),)},
    ),
    _diffusers_refused(
        "MiniMaxMusic3Vocoder",
        "it is a vocoder",
        **{"latent_channels": 8, "decoder_input_dim": 16, "decoder_hidden_dim": 32, "upsampling_ratios": (2, 2)},
    ),
)


# transformers: its codecs of images.


def _images(package: str, name: str, **config: Any) -> Maker:
    def make() -> tuple[Any, dict[str, Any]]:
        import importlib

        parts = (
            importlib.import_module(f"transformers.models.{package}.{what}_{package}")
            for what in ("modeling", "configuration")
        )
        modeling, configuration = parts

        def model() -> Any:
            built = getattr(modeling, name)(getattr(configuration, f"{name}Config")(**config))
            # What a fresh model makes of an image lies so near together that all of it has one code.
            built.quantize.embedding.weight.data.normal_()
            for layer, factor in ((built.encoder.conv_out, 300.0), (built.quant_conv, 10.0)):
                getattr(layer, "conv", layer).weight.data.mul_(factor)
            return built

        built, x = made(model, (3, 16, 16), 2)
        return built, {"example": x}

    return make


_SMALL_VQ = {
    "embed_dim": 8,
    "num_embeddings": 16,
    "latent_channels": 8,
    "base_channels": 32,
    "channel_multiplier": [1, 2],
    "num_res_blocks": 1,
}


def _emu3_encode(model: Any, x: Tensor, _: Mapping[str, Tensor]) -> Tensor:
    codes = model.encode(x, torch.tensor([x.shape[2:]] * len(x)))
    return torch.stack([each.squeeze(0) for each in getattr(codes, "image_tokens", codes)])


TRANSFORMERS = (
    Entry(
        "transformers",
        "JanusVQVAE",
        _images("janus", "JanusVQVAE", **_SMALL_VQ, num_patches=8),
        "transformers",
        encode=lambda m, x, c: m.encode(x).image_tokens.reshape(len(x), -1),
        decode=lambda m, z, c: m.decode(z[0]),
        slow=True,
    ),
    Entry(
        "transformers",
        "Emu3VQVAE",
        _images(
            "emu3",
            "Emu3VQVAE",
            **{"codebook_size": 16, "embed_dim": 4, "latent_channels": 4, "base_channels": 32, "num_res_blocks": 1},
            **{"channel_multiplier": [1, 1], "hidden_size": 32, "temporal_downsample_factor": 2},
        ),
        "transformers",
        encode=_emu3_encode,
        decode=lambda m, z, c: m.decode(z[0]),
        slow=True,
    ),
    refused(
        "transformers",
        "ChameleonVQVAE",
        _images("chameleon", "ChameleonVQVAE", **_SMALL_VQ, resolution=16),
        "the library has its encoder alone",
        "transformers",
    ),
)


# MONAI.


def _monai(name: str, shape: tuple[int, ...], conditions: Mapping[str, Tensor] | None = None, **config: Any) -> Maker:
    def make() -> tuple[Any, dict[str, Any]]:
        import monai.networks.nets

        model, example = made(lambda: getattr(monai.networks.nets, name)(**config), shape)
        if name == "VQVAE":
            # The codebook of a fresh model lies far from what its encoder gives.
            codebook = model.quantizer.quantizer.embedding.weight
            with torch.no_grad():
                found = model.encode(example).movedim(1, -1).flatten(0, -2)
            codebook.data.copy_(found[:: len(found) // len(codebook)][: len(codebook)])
        return model, {"example": example, **({"conditions": conditions} if conditions else {})}

    return make


MONAI = (
    Entry(
        "monai",
        "VQVAE, 3-D",
        _monai(
            "VQVAE",
            (1, 8, 8, 8),
            **{"spatial_dims": 3, "in_channels": 1, "out_channels": 1, "num_res_layers": 1, "num_embeddings": 16},
            **{"channels": (8, 16), "num_res_channels": (8, 16), "embedding_dim": 8},
            downsample_parameters=((2, 4, 1, 1),) * 2,
            upsample_parameters=((2, 4, 1, 1, 0),) * 2,
        ),
        "monai",
        encode=lambda m, x, c: m.index_quantize(x),
        decode=lambda m, z, c: m.decode_samples(z[0]),
        slow=True,
    ),
    Entry(
        "monai",
        "VarFullyConnectedNet",
        _monai(
            "VarFullyConnectedNet",
            (12,),
            **{"in_channels": 12, "out_channels": 12, "latent_size": 4},
            **{"encode_channels": (16,), "decode_channels": (16,)},
        ),
        "monai",
        encode=lambda m, x, c: m.encode_forward(x),
        decode=lambda m, z, c: m.decode_forward(z[0]),
        slow=True,
    ),
    Entry(
        "monai",
        "AutoEncoder",
        _monai(
            "AutoEncoder", (1, 16, 16), spatial_dims=2, in_channels=1, out_channels=1, channels=(4, 8), strides=(2, 2)
        ),
        "monai",
        encode=lambda m, x, c: m.intermediate(m.encode(x)),
        decode=lambda m, z, c: m.decode(z[0]),
        slow=True,
    ),
    Entry(
        "monai",
        "SPADEAutoencoderKL",
        _monai(
            "SPADEAutoencoderKL",
            (1, 16, 16),
            # A map of segments, one-hot.
            conditions={"seg": torch.eye(3)[torch.arange(8 * 256).reshape(8, 16, 16) % 7 % 3].movedim(-1, 1)},
            **{"spatial_dims": 2, "label_nc": 3, "channels": (8, 16), "attention_levels": (False, False)},
            **{"latent_channels": 4, "norm_num_groups": 4, "num_res_blocks": 1, "spade_intermediate_channels": 8},
        ),
        "monai",
        decode=lambda m, z, c: m.decode(z[0], c["seg"]),
        encode=lambda m, x, c: m.encode(x),
        slow=True,
    ),
)


# pythae: its samplers.


def _pythae_sampler(name: str, model: str = "VAE", **options: Any) -> Maker:
    def make() -> tuple[Any, dict[str, Any]]:
        import pythae.models
        import pythae.samplers

        config = {"input_dim": (1, 8, 8), "latent_dim": 4}
        built, x = made(
            lambda: getattr(pythae.models, model)(getattr(pythae.models, f"{model}Config")(**config)), (1, 8, 8), 64
        )
        settings = getattr(pythae.samplers, f"{name}Config", None)
        sampler = getattr(pythae.samplers, name)(built, *([settings(**options)] if settings else []))
        if name == "GaussianMixtureSampler":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(SEED)
                sampler.fit(x / x.max())
        return sampler, {"example": x[:8]}

    return make


def _sampled(name: str, **options: Any) -> Entry:
    return Entry(
        "pythae",
        name,
        _pythae_sampler(name, **options),
        "pythae",
        encode=lambda s, x, c: s.model.encoder(x).embedding,
        decode=lambda s, z, c: s.model.decoder(z[0]).reconstruction,
        slow=True,
    )


PYTHAE = (
    _sampled("NormalSampler"),
    _sampled("GaussianMixtureSampler", n_components=3),
    _sampled("VAMPSampler", model="VAMP"),
    refused("pythae", "MAFSampler", _pythae_sampler("MAFSampler"), "MAFSampler", "pythae"),
)


# Lightning.


def _lightning(*, loaded: bool) -> Maker:
    """A VAE as lightning-bolts has it: an encoder, two layers, and the draw inside of `forward`."""

    def make() -> tuple[Any, dict[str, Any]]:
        import lightning

        class LitVAE(lightning.LightningModule):
            def __init__(self, width: int = 32, latent: int = 4) -> None:
                super().__init__()
                self.save_hyperparameters()
                self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU())
                self.decoder = nn.Sequential(
                    nn.Linear(latent, width), nn.ReLU(), nn.Linear(width, 64), nn.Unflatten(1, (1, 8, 8))
                )
                self.fc_mu, self.fc_var = nn.Linear(width, latent), nn.Linear(width, latent)

            def forward(self, x: Tensor) -> Tensor:
                h = self.encoder(x)
                _, _, z = self.sample(self.fc_mu(h), self.fc_var(h))
                return self.decoder(z)  # type: ignore[no-any-return]

            def sample(self, mu: Tensor, log_var: Tensor) -> tuple[Any, Any, Tensor]:
                p = torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))
                q = torch.distributions.Normal(mu, torch.exp(log_var / 2))
                return p, q, q.rsample()

            def training_step(self, batch: Tensor, index: int) -> Tensor:
                loss = (self(batch) - batch).square().mean()
                self.log("loss", loss)
                return loss

            def configure_optimizers(self) -> Any:
                return torch.optim.Adam(self.parameters())

        model, example = made(LitVAE, (1, 8, 8))
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            trainer = lightning.Trainer(
                **{"default_root_dir": folder, "max_steps": 2, "accelerator": "cpu", "logger": False},
                **{"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False},
            )
            trainer.fit(model, torch.utils.data.DataLoader(example, batch_size=4))
            if loaded:
                trainer.save_checkpoint(Path(folder) / "last.ckpt")
                model = LitVAE.load_from_checkpoint(Path(folder) / "last.ckpt", weights_only=False)
        return model.eval(), {"example": example}

    return make


LIGHTNING = tuple(
    Entry(
        "lightning",
        name,
        _lightning(loaded=loaded),
        "lightning",
        encode=lambda m, x, c: m.fc_mu(m.encoder(x)),
        decode=lambda m, z, c: m.decoder(z[0]),
        slow=True,
    )
    for name, loaded in (
        ("LightningModule, attached to its trainer", False),
        ("LightningModule, from load_from_checkpoint", True),
    )
)
ENTRIES = (*DIFFUSERS, *TRANSFORMERS, *MONAI, *PYTHAE, *LIGHTNING)
