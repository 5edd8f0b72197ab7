from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_export.training.config import RECIPES, ModelConfig
from vae_export.training.model import VAE, reparameterize
from vae_runtime.errors import InputError

MLP = ModelConfig(observation_shape=(2, 3, 5), latent=4, hidden=(16, 8))
CONV = ModelConfig("conv", (3, 8, 12), latent=4, hidden=(16,), channels=(4, 6), activation="silu")


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("config", [MLP, CONV], ids=["mlp", "conv"])
@pytest.mark.parametrize("n", [1, 3])
def test_shapes(config, n):
    vae = VAE(config)
    x, eps = noise(n, *config.observation_shape), noise(n, 4)
    parameters, mu, logvar = vae(x, eps)
    assert parameters.shape == x.shape
    assert mu.shape == logvar.shape == (n, 4)
    assert torch.equal(parameters, vae.decode(reparameterize(*vae.encode(x), eps)))


shapes = st.tuples(st.integers(1, 4), st.integers(1, 3).map(lambda i: 4 * i), st.integers(1, 3).map(lambda i: 4 * i))


@given(shape=shapes, blocks=st.integers(0, 2), hidden=st.lists(st.integers(1, 9), max_size=2))
@settings(max_examples=15, deadline=None)
def test_conv_takes_every_size_it_promises(shape, blocks, hidden):
    config = ModelConfig(
        "conv", shape, latent=3, hidden=tuple(hidden), channels=(4, 5), encoder_blocks=blocks, decoder_blocks=blocks
    )
    vae = VAE(config)
    assert vae.decode(vae.encode(noise(2, *shape))[0]).shape == (2, *shape)


@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=4), hidden=st.lists(st.integers(1, 9), max_size=3))
@settings(max_examples=15, deadline=None)
def test_mlp_takes_any_shape(shape, hidden):
    vae = VAE(ModelConfig(observation_shape=tuple(shape), latent=3, hidden=tuple(hidden)))
    assert vae.decode(vae.encode(noise(2, *shape))[0]).shape == (2, *shape)


def test_the_decoder_mirrors_the_encoder():
    sizes = [[layer.in_features for layer in net if isinstance(layer, torch.nn.Linear)] for net in VAE(MLP).children()]
    assert sizes == [[30, 16, 8], [4, 8, 16]]


def test_reparameterize_is_mean_plus_noise_times_deviation():
    mu, logvar = torch.tensor([[1.0, -2.0]]), torch.tensor([[4.0, 1.0]]).log()
    z = reparameterize(mu, logvar, torch.tensor([[[0.0, 0.0]], [[1.0, -1.0]]]))
    torch.testing.assert_close(z, torch.tensor([[[1.0, -2.0]], [[3.0, -3.0]]]))


@pytest.mark.parametrize("config", [MLP, CONV], ids=["mlp", "conv"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_an_untrained_decoder_starts_from_the_mean_of_the_data(config, likelihood):
    vae = VAE(ModelConfig(**{**config.to_json(), "likelihood": likelihood}))
    mean = noise(*config.observation_shape).sigmoid()
    last = list(vae.decoder.modules())[-1 if config is CONV else -2]
    assert isinstance(last, torch.nn.Linear | torch.nn.ConvTranspose2d)
    torch.nn.init.zeros_(last.weight)
    expected = mean if config is MLP else mean.mean((1, 2), keepdim=True).expand_as(mean)
    before = vae.mean(vae.decode(noise(1, 4)))[0]
    vae.start_from_mean(mean)
    torch.testing.assert_close(vae.mean(vae.decode(noise(1, 4)))[0], expected)
    assert not torch.allclose(before, expected)


def test_the_mean_is_in_data_space():
    parameters = torch.tensor([[-100.0, 0.0, 100.0]])
    bernoulli, laplace = (
        VAE(ModelConfig(observation_shape=(3,), likelihood=name)) for name in ("bernoulli", "laplace")
    )
    assert bernoulli.mean(parameters).tolist() == [[0.0, 0.5, 1.0]]
    assert laplace.mean(parameters).tolist() == parameters.tolist()


@pytest.mark.parametrize("learn", [True, False])
def test_the_scale_is_learned_where_asked(learn):
    vae = VAE(ModelConfig(observation_shape=(3,), likelihood="gaussian", scale=0.25, learn_scale=learn))
    assert vae.scale.item() == pytest.approx(0.25)
    assert vae.log_scale.requires_grad is learn


@pytest.mark.parametrize("config", [MLP, CONV], ids=["mlp", "conv"])
def test_the_layout_for_cpus_changes_no_number(config):
    vae = VAE(config).eval()
    x = noise(2, *config.observation_shape)
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    expected = vae.encode(x)[0]
    assert vae.for_cpu() is vae
    assert all(torch.equal(tensor, before[name]) for name, tensor in vae.state_dict().items())
    torch.testing.assert_close(vae.encode(x)[0], expected)


@pytest.mark.parametrize("config", [MLP, CONV], ids=["mlp", "conv"])
def test_encode_and_decode_export_with_a_dynamic_batch(config):
    vae = VAE(config).eval()
    for network, shape in ((vae.encoder, config.observation_shape), (vae.decoder, (config.latent,))):
        example, other = noise(2, *shape), noise(7, *shape)
        program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.testing.assert_close(program.module()(other), network(other))
        random = [node.name for node in program.graph.nodes if "rand" in node.name or "dropout" in node.name]
        assert not random


def test_a_model_without_a_shape_is_refused():
    with pytest.raises(InputError, match=r"model\.observation_shape: expected a shape such as \[1, 28, 28\]"):
        VAE(ModelConfig())


def test_models_that_ship_are_small():
    parameters = {name: sum(p.numel() for p in VAE(recipe.model).parameters()) for name, recipe in RECIPES.items()}
    assert parameters["mnist"] <= 900_000
    assert parameters["digits"] <= 100_000
