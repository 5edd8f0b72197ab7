from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_export.training.config import RECIPES, ModelConfig
from vae_export.training.model import VAE, reparameterize
from vae_runtime.errors import InputError

MLP = ModelConfig(observation_shape=(2, 3, 5), latent=4, hidden=(16, 8))
CONV = ModelConfig("conv", (3, 8, 12), latent=4, hidden=(16,), channels=(4, 6), activation="silu")
DEEP = ModelConfig(
    "conv", (5, 9, 7), latent=4, hidden=(16,), channels=(4, 8), encoder_channels=(4, 6, 64), encoder_kernels=(3, 3),
    encoder_attention=2, decoder_attention=1, norm="group",
)  # fmt: skip
SERIES = ModelConfig("conv", (2, 11), latent=4, hidden=(16,), channels=(4, 6), encoder_attention=1)
VOLUME = ModelConfig("conv", (1, 3, 6, 5), latent=4, hidden=(16,), channels=(4, 6), norm="group", decoder_attention=1)
ALL = pytest.mark.parametrize(
    "config", [MLP, CONV, DEEP, SERIES, VOLUME], ids=["mlp", "conv", "deep", "series", "volume"]
)
CONDITIONS = {"label": {"classes": 3}, "pose": {"shape": [2, 2]}, "age": {"shape": []}}


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def with_weights(config):
    """An untrained VAE, the same in each run, none of whose weights are 0, as residual blocks begin."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        vae = VAE(dataclasses.replace(config, activation="silu")).eval()
        for weight in vae.parameters():
            weight += 0.1 * torch.randn(weight.shape)
    return vae


def conditions(n):
    return {"label": torch.arange(n) % 3, "pose": noise(n, 2, 2), "age": noise(n)}


@ALL
@pytest.mark.parametrize("n", [1, 3])
def test_shapes(config, n):
    vae = VAE(config)
    x, eps = noise(n, *config.observation_shape), noise(n, 4)
    parameters, mu, logvar = vae(x, eps)
    assert parameters.shape == x.shape
    assert mu.shape == logvar.shape == (n, 4)
    assert torch.equal(parameters, vae.decode(reparameterize(*vae.encode(x), eps)))


@st.composite
def convolutions(draw):
    """A configuration of conv over one to three axes of any sizes."""
    levels = st.lists(st.integers(4, 9), min_size=1, max_size=4)
    channels, encoder_channels = draw(levels), draw(st.one_of(st.just([]), levels))
    kernels = st.lists(st.sampled_from([1, 3, 5]), min_size=1, max_size=3)
    return ModelConfig(
        "conv",
        (draw(st.integers(1, 6)), *draw(st.lists(st.integers(1, 11), min_size=1, max_size=3))),
        latent=3,
        hidden=draw(st.lists(st.integers(1, 9), max_size=2)),
        channels=channels,
        encoder_channels=encoder_channels,
        encoder_blocks=draw(st.integers(0, 2)),
        decoder_blocks=draw(st.integers(0, 2)),
        encoder_kernels=draw(kernels),
        decoder_kernels=draw(kernels),
        encoder_attention=draw(st.integers(0, len(encoder_channels or channels))),
        decoder_attention=draw(st.integers(0, len(channels))),
        norm=draw(st.sampled_from(["none", "group"])),
        conditions=draw(st.sampled_from([{}, CONDITIONS])),
    )


@given(config=convolutions())
@settings(max_examples=25, deadline=None)
def test_conv_takes_every_size_it_promises(config):
    vae = VAE(config)
    given = conditions(2) if config.conditions else {}
    x = noise(2, *config.observation_shape)
    mu, logvar = vae.encode(x, **given)
    assert mu.shape == logvar.shape == (2, 3)
    assert vae.decode(mu, **given).shape == x.shape
    assert VAE(ModelConfig.from_json(config.to_json())).load_state_dict(vae.state_dict())


@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=4), hidden=st.lists(st.integers(1, 9), max_size=3))
@settings(max_examples=15, deadline=None)
def test_mlp_takes_any_shape(shape, hidden):
    vae = VAE(ModelConfig(observation_shape=tuple(shape), latent=3, hidden=tuple(hidden)))
    assert vae.decode(vae.encode(noise(2, *shape))[0]).shape == (2, *shape)


def test_the_decoder_mirrors_the_encoder():
    vae = VAE(MLP)
    nets = (vae.encoder, vae.decoder)
    sizes = [[layer.in_features for layer in net if isinstance(layer, torch.nn.Linear)] for net in nets]
    assert sizes == [[30, 16, 8], [4, 8, 16]]


def test_the_encoder_may_be_deeper_than_the_decoder():
    vae = VAE(DEEP)
    levels = [[layer for layer in net if "Conv" in type(layer).__name__] for net in (vae.encoder, vae.decoder)]
    assert [layer.out_channels for layer in levels[0]] == [4, 6, 64]
    assert [layer.in_channels for layer in levels[1]] == [8, 4]
    assert vae.encoder[-3].in_features == 64  # sizes 9 and 7 end at 1 and 1
    assert vae.decoder[2].out_features == 8 * 2 * 1


def test_levels_are_written_as_two_always_were():
    """Weights of runs that were trained with two levels load."""
    sizes = {name: tuple(weight.shape) for name, weight in VAE(CONV).state_dict().items() if "weight" in name}
    assert sizes == {
        "encoder.0.weight": (4, 3, 4, 4), "encoder.1.body.1.weight": (4, 4, 3, 3),
        "encoder.1.body.3.weight": (4, 4, 1, 1), "encoder.3.weight": (6, 4, 4, 4),
        "encoder.4.body.1.weight": (6, 6, 3, 3), "encoder.4.body.3.weight": (6, 6, 1, 1),
        "encoder.7.weight": (16, 36), "encoder.9.weight": (8, 16),
        "decoder.0.weight": (16, 4), "decoder.2.weight": (36, 16),
        "decoder.4.body.1.weight": (6, 6, 3, 3), "decoder.4.body.3.weight": (6, 6, 1, 1),
        "decoder.6.weight": (6, 4, 4, 4), "decoder.7.body.1.weight": (4, 4, 3, 3),
        "decoder.7.body.3.weight": (4, 4, 1, 1), "decoder.9.weight": (4, 3, 4, 4),
    }  # fmt: skip


@pytest.mark.parametrize("attention", [0, 1])
def test_attention_lets_every_position_see_every_other(attention):
    config = ModelConfig(
        "conv", (1, 64), latent=2, hidden=(), channels=(4, 4), encoder_blocks=0, encoder_attention=attention
    )
    vae = with_weights(config)
    features = vae.encoder[: next(i for i, layer in enumerate(vae.encoder) if isinstance(layer, torch.nn.Flatten))]
    x = noise(1, 1, 64).requires_grad_()
    features(x)[0, :, 0].sum().backward()
    assert (x.grad[0, 0, -8:].abs().max() > 0) == (attention == 1)


def attention(network):
    return [layer for layer in network if hasattr(layer, "heads")]


def test_attention_is_at_the_lowest_resolutions():
    """The sizes 9 and 7 are halved to 4 and 3, 2 and 1, 1 and 1."""
    vae = VAE(DEEP)
    assert [layer.sizes for layer in attention(vae.encoder)] == [(2, 1), (1, 1)]
    assert [layer.sizes for layer in attention(vae.decoder)] == [(2, 1)]


@pytest.mark.parametrize(("channels", "heads"), [(8, 1), (48, 1), (64, 2), (96, 3)])
def test_attention_is_that_of_pytorch_with_heads_of_32_channels(channels, heads):
    vae = with_weights(ModelConfig("conv", (1, 16), latent=2, channels=(channels,), encoder_attention=1))
    (layer,) = attention(vae.encoder)
    reference = torch.nn.MultiheadAttention(channels, heads, batch_first=True)
    reference.load_state_dict(
        {
            "in_proj_weight": layer.inputs.weight, "in_proj_bias": layer.inputs.bias,
            "out_proj.weight": layer.output.weight, "out_proj.bias": layer.output.bias,
        }
    )  # fmt: skip
    x = noise(3, channels, 8)
    positions = layer.norm(x.transpose(1, 2))
    expected = x + reference(positions, positions, positions)[0].transpose(1, 2)
    torch.testing.assert_close(layer(x), expected)
    more = torch.nn.MultiheadAttention(channels, channels, batch_first=True)
    more.load_state_dict(reference.state_dict())
    assert not torch.allclose(layer(x), x + more(positions, positions, positions)[0].transpose(1, 2))


@pytest.mark.parametrize("config", [CONV, DEEP, SERIES, VOLUME], ids=["conv", "deep", "series", "volume"])
def test_blocks_and_attention_pass_features_on_until_they_have_learned(config):
    def answers(vae):
        for network, shape in ((vae.encoder, config.observation_shape), (vae.decoder, (4,))):
            x = noise(2, *shape)
            for layer in network:
                before, x = x, layer(x)
                if hasattr(layer, "body") or hasattr(layer, "heads"):
                    yield torch.equal(before, x)

    untrained, trained = list(answers(VAE(config))), list(answers(with_weights(config)))
    assert len(untrained) >= 3
    assert all(untrained)
    assert not any(trained)


def test_group_norm_takes_at_least_four_channels_together_in_at_most_32_groups():
    vae = VAE(ModelConfig("conv", (1, 32, 32), latent=2, channels=(4, 6, 12, 256), norm="group"))
    norms = [layer for layer in vae.encoder.modules() if isinstance(layer, torch.nn.GroupNorm)]
    assert {layer.num_channels: layer.num_groups for layer in norms} == {4: 1, 6: 1, 12: 3, 256: 32}


def test_group_norm_makes_features_independent_of_their_scale():
    def difference(norm):
        vae = with_weights(ModelConfig("conv", (1, 8, 8), latent=2, channels=(8,), norm=norm, encoder_blocks=0))
        torch.nn.init.zeros_(vae.encoder[0].bias)
        x = noise(1, 1, 8, 8)
        return (vae.encode(x)[0] - vae.encode(100 * x)[0]).abs().max().item()

    assert difference("group") < 1e-2 < difference("none")


@pytest.mark.parametrize("base", [MLP, CONV, SERIES, VOLUME], ids=["mlp", "conv", "series", "volume"])
@pytest.mark.parametrize("name", list(CONDITIONS))
def test_each_condition_changes_what_is_encoded_and_decoded(base, name):
    vae = with_weights(ModelConfig.from_json(base.to_json() | {"conditions": CONDITIONS}))
    x, z, given = noise(2, *base.observation_shape), noise(2, 4), conditions(2)
    other = given | {name: (given[name] + 1) % 3 if name == "label" else given[name] + 1}
    for call, value in ((vae.encode, x), (vae.decode, z)):
        before, after, again = (call(value, **conditions) for conditions in (given, other, given))
        assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(before, again, strict=True))
    eps = noise(2, 4)
    parameters, mu, logvar = vae(x, eps, **given)
    assert torch.equal(parameters, vae.decode(reparameterize(mu, logvar, eps), **given))


@pytest.mark.parametrize("base", [CONV, SERIES, VOLUME], ids=["conv", "series", "volume"])
def test_conditions_shift_each_channel_of_each_level(base):
    vae = with_weights(ModelConfig.from_json(base.to_json() | {"conditions": CONDITIONS}))
    vector = vae.conditions(conditions(2))
    for network, shape in ((vae.encoder, base.observation_shape), (vae.decoder, (4,))):
        x, shifts = noise(2, *shape), []
        for number, layer in enumerate(network):
            before, x = x, network[number : number + 1](x, vector)
            if hasattr(layer, "axes"):
                shifts.append((x - before).flatten(2))
        assert [shift.shape[1] for shift in shifts] == sorted(base.channels, reverse=network is vae.decoder)
        for shift in shifts:
            # One number for each channel and row, whatever the position.
            torch.testing.assert_close(shift, shift[:, :, :1].expand_as(shift), rtol=1e-4, atol=1e-5)
            numbers = shift[:, :, 0]
            assert (numbers.abs() > 1e-3).all()
            assert numbers.std(1).min() > 1e-2
            assert (numbers[0] - numbers[1]).abs().min() > 1e-3


def test_conditions_are_asked_for_by_name():
    vae, z = VAE(ModelConfig(observation_shape=(3,), latent=4, conditions={"label": {"classes": 3}})), noise(2, 4)
    words = r"^conditions: expected label, got none; pass each by its name$"
    with pytest.raises(InputError, match=words):
        vae.decode(z)
    with pytest.raises(InputError, match=r"expected label, got label, pose"):
        vae.encode(noise(2, 3), label=torch.tensor([0, 1]), pose=noise(2, 2))
    with pytest.raises(InputError, match=r"expected none, got label"):
        VAE(MLP).decode(z, label=torch.tensor([0, 1]))
    assert vae.decode(z, label=torch.tensor([0, 2])).shape == (2, 3)


def test_classes_are_channels_of_a_convolution_and_those_of_a_channel_stand_together():
    """The weights of a run depend on this order."""
    vae = with_weights(
        ModelConfig("conv", (2, 4, 6), latent=4, hidden=(), channels=(4,), likelihood="categorical", classes=3)
    )
    x = torch.arange(2 * 2 * 4 * 6).view(2, 2, 4, 6) % 5 % 3
    channels = torch.stack([x[:, channel] == number for channel in range(2) for number in range(3)], 1).float()
    mu, logvar = vae.encode(x.float())
    assert torch.equal(torch.cat([mu, logvar], 1), vae.encoder(channels))
    z = noise(2, 4)
    answer, channels = vae.decode(z), vae.decoder(z)
    for channel in range(2):
        for number in range(3):
            assert torch.equal(answer[:, channel, :, :, number], channels[:, 3 * channel + number])


def test_reparameterize_is_mean_plus_noise_times_deviation():
    mu, logvar = torch.tensor([[1.0, -2.0]]), torch.tensor([[4.0, 1.0]]).log()
    z = reparameterize(mu, logvar, torch.tensor([[[0.0, 0.0]], [[1.0, -1.0]]]))
    torch.testing.assert_close(z, torch.tensor([[[1.0, -2.0]], [[3.0, -3.0]]]))


@ALL
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_an_untrained_decoder_starts_from_the_mean_of_the_data(config, likelihood):
    vae = VAE(ModelConfig(**{**config.to_json(), "likelihood": likelihood}))
    mean = noise(*config.observation_shape).sigmoid()
    last = list(vae.decoder.modules())[-2 if config is MLP else -1]
    torch.nn.init.zeros_(last.weight)
    axes = tuple(range(1, mean.dim()))
    expected = mean if config is MLP else mean.mean(axes, keepdim=True).expand_as(mean)
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
    # What is exported: the scale that was learned, or the very one that was given.
    with torch.no_grad():
        vae.log_scale.fill_(math.log(0.1 if learn else 0.2500001))
    assert vae.__vae_export__()["scale"] == (pytest.approx(0.1) if learn else 0.25)


@ALL
def test_the_layout_for_cpus_changes_no_number(config):
    vae = with_weights(config)
    x = noise(2, *config.observation_shape)
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    expected = vae.encode(x)[0]
    assert vae.for_cpu() is vae
    assert all(torch.equal(tensor, before[name]) for name, tensor in vae.state_dict().items())
    torch.testing.assert_close(vae.encode(x)[0], expected)


@ALL
def test_encode_and_decode_export_with_a_dynamic_batch(config):
    vae = with_weights(config)
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
    assert parameters["mnist"] <= 2_000_000
    assert parameters["digits"] <= 100_000
