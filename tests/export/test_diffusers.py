"""Each autoencoder of diffusers is described or refused by name, and what is described is the library's own."""

import importlib
import inspect
import pkgutil
import types

import pytest
import torch
from torch import nn
from zoo.models import ENTRIES

from vae_export.errors import ExportError
from vae_export.understand.families.diffusers import MODELS, REFUSED
from vae_export.understand.families.registry import family_of

# Third parties' own deprecations, at import and in their layers.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def needs_diffusers():
    return pytest.importorskip("diffusers", reason="diffusers is not installed; `make zoo` has it")


def built(name, **config):
    torch.manual_seed(0)
    return getattr(needs_diffusers(), name)(**config).eval()


# The tables against the library.


def autoencoders():
    """Every model in the library's module autoencoders, and every public model that encodes or decodes."""
    diffusers = needs_diffusers()
    from diffusers.models import autoencoders as package
    from diffusers.models.modeling_utils import ModelMixin

    modules = [
        importlib.import_module(f"{package.__name__}.{info.name}") for info in pkgutil.iter_modules(package.__path__)
    ]
    inside = [
        cls
        for module in modules
        for cls in vars(module).values()
        if inspect.isclass(cls) and cls.__module__ == module.__name__ and issubclass(cls, ModelMixin)
    ]
    public = [getattr(diffusers, name, None) for name in dir(diffusers)]
    coding = [
        cls
        for cls in public
        if inspect.isclass(cls) and issubclass(cls, ModelMixin) and (hasattr(cls, "encode") or hasattr(cls, "decode"))
    ]
    return {*inside, *coding}


def in_no_table(classes):
    return sorted({cls.__name__ for cls in classes} - {*MODELS, *REFUSED})


def test_every_autoencoder_is_described_or_refused():
    classes = autoencoders()
    assert {"AutoencoderKL", "AutoencoderKLWan", "VQModel"} <= {cls.__name__ for cls in classes}
    assert in_no_table(classes) == []
    assert not MODELS.keys() & REFUSED.keys()


def test_a_new_autoencoder_would_be_seen():
    new = type("AutoencoderKLNext", (nn.Module,), {})
    assert in_no_table({*autoencoders(), new}) == ["AutoencoderKLNext"]


# What is in no table, without the library.


def library_class(name, bases=(), **members):
    """A class of this name, as if it were the library's."""
    return type(name, bases or (nn.Module,), {"__module__": "diffusers.models.modeling_utils", **members})


def library_model(name, config=None, package="diffusers.models.autoencoders.new", **members):
    """A model of a class that derives from the library's base class."""
    cls = type(name, (library_class("ModelMixin"),), {"__module__": package, **members})
    model = cls()
    model.config = types.SimpleNamespace(**(config or {}))
    return model


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refuses_by_name(name):
    with pytest.raises(ExportError, match=rf"^diffusers {name}: {REFUSED[name][:20]}"):
        family_of(library_model(name))


def test_refuses_an_unknown_class_of_the_library():
    with pytest.raises(ExportError, match=r"diffusers AutoencoderKLNext: expected one of .*__vae_export__"):
        family_of(library_model("AutoencoderKLNext", {"scaling_factor": 2.0}))


def test_an_own_class_takes_prior_and_scale_from_its_config():
    config = {"scaling_factor": 2.0, "latents_mean": [1.0, 3.0], "latents_std": [4.0, 8.0], "latent_channels": 2}
    _, known = family_of(library_model("Mine", config, package="mine"))
    assert (known.prior, known.encode) == ("none", None)
    assert (known.latent_scale, known.latent_shift) == ([0.5, 0.25], [1.0, 3.0])


def test_an_own_class_that_replaces_decode_keeps_the_prior_of_its_config():
    base = type(library_model("AutoencoderKL"))
    model = type("Mine", (base,), {"__module__": "mine", "decode": lambda self, z: z})()
    model.config = types.SimpleNamespace(scaling_factor=2.0)
    _, known = family_of(model)
    assert (known.prior, known.decode, known.latent_scale) == ("none", None, 2.0)


def test_statistics_that_are_not_one_for_each_channel_are_said_and_not_carried():
    config = {"latents_mean": [1.0] * 6, "latents_std": [2.0] * 6, "latent_channels": 2}
    _, known = family_of(library_model("Mine", config, package="mine"))
    assert (known.latent_scale, known.latent_shift) == (1.0, 0.0)
    assert "latents_mean and latents_std, which are not one number for each channel" in known.prior_reason


@pytest.mark.parametrize(("regularizer", "posterior"), [("fsq", "none"), ("kl", "logvar")])
def test_vidtok_gives_quantized_vectors_or_a_normal(regularizer, posterior):
    q = types.SimpleNamespace(mean=torch.ones(2, 3), logvar=torch.zeros(2, 3))
    answer = (torch.full((2, 3), 0.5), torch.zeros(2)) if regularizer == "fsq" else types.SimpleNamespace(latent_dist=q)
    model = library_model("AutoencoderVidTok", encode=lambda self, x: answer)
    model.regularizer = regularizer
    _, known = family_of(model)
    encoded = known.encode(torch.zeros(2, 3))
    assert (known.posterior, known.prior) == (posterior, "none")
    assert encoded is answer[0] if regularizer == "fsq" else encoded == (q.mean, q.logvar)


# What is in the table, by the library.

BLOCKS = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "block_out_channels": (32, 32),
    "layers_per_block": 1,
}


def test_frames_are_decoded_together_where_the_example_is_a_video():
    model = built("AutoencoderKLTemporalDecoder", **BLOCKS)
    _, known = family_of(model)
    x = 2 * torch.rand(2, 3, 5, 8, 8) - 1
    with torch.no_grad():
        mean, logvar = known.encode(x)
        q = model.encode(x.transpose(1, 2).flatten(0, 1)).latent_dist
        frames = mean.transpose(1, 2).flatten(0, 1)
        torch.testing.assert_close(frames, q.mean, rtol=0, atol=0)
        torch.testing.assert_close(logvar.transpose(1, 2).flatten(0, 1), q.logvar, rtol=0, atol=0)
        own = model.decode(frames, num_frames=5).sample
        torch.testing.assert_close(known.decode(mean).transpose(1, 2).flatten(0, 1), own, rtol=0, atol=0)
        # Alone, a frame is another picture.
        assert not torch.allclose(known.decode(mean[:, :, 0]), known.decode(mean)[:, :, 0], atol=1e-3)


HUNYUAN = {"latent_channels": 4, "block_out_channels": (16,) * 5, "layers_per_block": 1}


def test_hunyuan_video_15_takes_several_rows():
    model = built("AutoencoderKLHunyuanVideo15", **HUNYUAN)
    _, known = family_of(model)
    x = 2 * torch.rand(2, 3, 5, 16, 32) - 1
    with torch.no_grad(), pytest.raises(RuntimeError, match="shape"):
        model.encode(x)
    with torch.no_grad():
        mean, _ = known.encode(x)
        for row in range(2):
            own = model.encode(x[row : row + 1]).latent_dist.mean
            torch.testing.assert_close(mean[row : row + 1], own, rtol=0, atol=1e-5)
            own = model.decode(mean[row : row + 1]).sample
            torch.testing.assert_close(known.decode(mean)[row : row + 1], own, rtol=0, atol=1e-5)


@pytest.mark.parametrize("frames", [1, 5, 17, 33, 37])
def test_kvae_video_computes_its_segments_with_convolutions_in_one_piece(frames):
    model = built(
        "AutoencoderKLKVAEVideo",
        **{"ch": 32, "ch_mult": (1, 2, 2), "num_res_blocks": 1, "z_channels": 4, "temporal_compress_times": 4},
    ).double()
    _, known = family_of(model)
    x = 2 * torch.rand(1, 3, frames, 8, 8, dtype=torch.float64) - 1
    with torch.no_grad():
        mean, _ = known.encode(x)
        torch.testing.assert_close(mean, model.encode(x).latent_dist.mean, rtol=0, atol=1e-12)
        torch.testing.assert_close(known.decode(mean), model.decode(mean).sample, rtol=0, atol=1e-12)
    assert not any("forward" in vars(layer) for layer in model.modules())


def test_mochi_normalizes_all_frames_at_once_and_keeps_its_layers():
    needs_diffusers()
    model, arguments = next(entry for entry in ENTRIES if entry.name == "AutoencoderKLMochi").make()
    _, known = family_of(model)
    norms = [layer for layer in model.modules() if hasattr(layer, "norm_layer")]
    with torch.no_grad():
        # More frames than the library normalizes at a time.
        x = torch.cat([arguments["example"]] * 2)
        assert norms[0].chunk_size < len(x) * x.shape[2]
        torch.testing.assert_close(known.encode(x)[0], model.encode(x).latent_dist.mean, rtol=0, atol=1e-6)
    assert not any("forward" in vars(layer) for layer in norms)


LTX = {
    "latent_channels": 8,
    "block_out_channels": (8,) * 4,
    "decoder_block_out_channels": (8,) * 4,
    "layers_per_block": (1,) * 5,
    "decoder_layers_per_block": (1,) * 5,
    "spatio_temporal_scaling": (True, False, False, False),
    "decoder_spatio_temporal_scaling": (True, False, False, False),
    "patch_size": 1,
    "patch_size_t": 1,
}


def by_channel(values):
    return torch.tensor(values).view(1, -1, 1, 1, 1)


@pytest.mark.parametrize("name", ["AutoencoderKLWan", "AutoencoderKLMochi", "AutoencoderKLCogVideoX"])
def test_the_latents_of_a_video_are_scaled_as_the_pipeline_scales_them(name):
    needs_diffusers()
    model, _ = next(entry for entry in ENTRIES if entry.name == name).make()
    _, known = family_of(model)
    config, latents = (
        model.config,
        torch.randn(1, getattr(model.config, "z_dim", None) or model.config.latent_channels, 2, 2, 2),
    )
    # What the pipelines write before vae.decode.
    if name == "AutoencoderKLCogVideoX":
        expected = 1 / config.scaling_factor * latents
    elif name == "AutoencoderKLWan":
        expected = latents / (1.0 / by_channel(config.latents_std)) + by_channel(config.latents_mean)
    else:
        expected = latents * by_channel(config.latents_std) / config.scaling_factor + by_channel(config.latents_mean)
    scale, shift = (
        by_channel([value] if isinstance(value, float) else value) for value in (known.latent_scale, known.latent_shift)
    )
    torch.testing.assert_close(latents / scale + shift, expected)


def test_cosmos_has_statistics_for_each_frame_too_which_are_said():
    needs_diffusers()
    model, _ = next(entry for entry in ENTRIES if entry.name == "AutoencoderKLCosmos").make()
    assert len(model.config.latents_mean) > model.config.latent_channels
    _, known = family_of(model)
    assert (known.latent_scale, known.latent_shift, known.posterior) == (1.0, 0.0, "none")
    assert "not one number for each channel" in known.prior_reason


def test_ltx_video_has_the_statistics_of_its_buffers():
    model = built("AutoencoderKLLTXVideo", **LTX)
    model.latents_mean += torch.arange(8.0)
    model.latents_std *= 4
    _, known = family_of(model)
    assert known.latent_scale == [0.25] * 8
    assert known.latent_shift == [float(channel) for channel in range(8)]


def test_ltx_video_takes_its_noise_level_as_a_condition_and_is_refused_with_one_noise_for_all():
    model = built("AutoencoderKLLTXVideo", **LTX, timestep_conditioning=True)
    _, known = family_of(model)
    z, temb = torch.randn(2, 8, 2, 4, 4), torch.tensor([0.05, 0.5])
    with torch.no_grad():
        torch.testing.assert_close(known.decode(z, temb=temb), model.decode(z, temb).sample, rtol=0, atol=0)
    with pytest.raises(ExportError, match="draws one noise for all rows of a batch"):
        family_of(built("AutoencoderKLLTXVideo", **LTX, decoder_inject_noise=(True,) * 5))


def test_longcat_audio_encodes_the_normal_that_it_samples():
    model = built(
        "LongCatAudioDiTVae",
        **{"in_channels": 1, "channels": 16, "c_mults": [1, 2], "strides": [2, 4], "latent_dim": 4},
        **{"encoder_latent_dim": 8, "downsampling_ratio": 8},
    )
    _, known = family_of(model)
    x = 2 * torch.rand(2, 1, 64) - 1
    with torch.no_grad():
        mean, std = known.encode(x)
        torch.testing.assert_close(mean, model.encode(x, sample_posterior=False).latents, rtol=0, atol=0)
        torch.manual_seed(3)
        drawn = model.encode(x).latents
        torch.manual_seed(3)
        torch.testing.assert_close(mean + std * torch.randn_like(mean), drawn, rtol=0, atol=1e-6)


def test_a_waveform_whose_decoder_gives_a_spectrogram_keeps_its_length():
    needs_diffusers()
    model, arguments = next(entry for entry in ENTRIES if entry.name == "MMAudioVAE").make()
    _, known = family_of(model)
    with torch.no_grad():
        x = arguments["example"]
        longer = torch.cat([x, x[:, :1]], dim=1)
        # A step of 1 changes no latent, so no rule says which lengths go together.
        assert known.encode(longer)[0].shape == known.encode(x)[0].shape
    assert not known.dynamic


def test_flux_2_says_what_its_batch_normalization_does():
    model = built("AutoencoderKLFlux2", **BLOCKS, up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=8)
    _, known = family_of(model)
    assert (known.latent_scale, known.latent_shift) == (1.0, 0.0)
    assert "patches of 2 x 2 latents, each normalized by the statistics in bn" in known.prior_reason
