from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vae_export.training.config import RECIPES, DataConfig, ModelConfig, TrainConfig
from vae_runtime.errors import InputError

positive = st.integers(1, 1000)
models = st.builds(
    ModelConfig,
    architecture=st.just("mlp"),
    observation_shape=st.lists(positive, max_size=4),
    latent=positive,
    hidden=st.lists(positive, max_size=4),
    activation=st.sampled_from(["relu", "elu", "silu"]),
    likelihood=st.sampled_from(["bernoulli", "gaussian", "laplace", "poisson"]),
    scale=st.floats(1e-6, 1e6),
    conditions=st.dictionaries(
        st.sampled_from(["label", "pose", "style"]),
        st.one_of(
            st.builds(lambda count: {"classes": count}, positive),
            st.builds(lambda shape: {"shape": shape}, st.lists(st.integers(1, 9), max_size=3)),
        ),
    ),
)
levels = st.lists(st.integers(4, 999), min_size=3, max_size=9)
convolutions = st.builds(
    ModelConfig,
    architecture=st.just("conv"),
    observation_shape=st.lists(st.integers(1, 99), min_size=2, max_size=4),
    channels=levels,
    encoder_channels=st.one_of(st.just(()), levels),
    encoder_kernels=st.lists(st.sampled_from([1, 3, 5, 63]), min_size=1, max_size=8),
    encoder_attention=st.integers(0, 3),
    norm=st.sampled_from(["none", "group"]),
)
trainings = st.builds(
    TrainConfig,
    epochs=positive,
    learning_rate=st.floats(1e-9, 10),
    beta=st.floats(0, 10),
    seed=st.integers(0, 2**63 - 1),
)


@given(st.one_of(models, convolutions, trainings, st.builds(DataConfig, source=st.text(min_size=1))))
def test_json_gives_back_an_equal_configuration(config):
    assert type(config).from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelConfig(architecture="rnn"), "model.architecture: expected one of mlp, conv, got 'rnn'"),
        (lambda: ModelConfig(latent=0), "model.latent: expected an integer from 1 to 65536, got 0"),
        (lambda: ModelConfig(latent=True), "model.latent: expected an integer from 1 to 65536, got True"),
        (lambda: ModelConfig(latent=2.0), "model.latent: expected an integer"),
        (lambda: ModelConfig(hidden=(3, -1)), "model.hidden: expected a list of at most 64 integers from 1 to 65536"),
        (
            lambda: ModelConfig(hidden="64"),
            "model.hidden: expected a list of at most 64 integers from 1 to 65536, got '64'",
        ),
        (lambda: ModelConfig(scale=0), "model.scale: expected a number above 0, got 0"),
        (lambda: ModelConfig(learn_scale=True), "model.learn_scale: a bernoulli likelihood has no scale"),
        (lambda: ModelConfig(learn_scale=1), "model.learn_scale: expected true or false, got 1"),
        (lambda: ModelConfig("conv", channels=()), "model.channels: expected a number for each level, got none"),
        (
            lambda: ModelConfig("conv", encoder_kernels=(3, 2), decoder_kernels=()),
            "model.encoder_kernels: expected odd sizes, at least one, got [3, 2]; "
            "model.decoder_kernels: expected odd sizes, at least one, got []",
        ),
        (
            lambda: ModelConfig("conv", encoder_channels=(8,), encoder_attention=2, decoder_attention=3),
            "model.encoder_attention: expected at most the 1 levels, got 2; "
            "model.decoder_attention: expected at most the 2 levels, got 3",
        ),
        (
            lambda: ModelConfig("conv", channels=(8, 3), norm="group"),
            "model.norm: group takes levels of at least 4 channels, got 3",
        ),
        (lambda: ModelConfig(conditions=["label"]), "model.conditions: expected an object of at most 64 names, each"),
        (lambda: ModelConfig(conditions={"label": {"classes": 0}}), "model.conditions: expected an object"),
        (lambda: ModelConfig(conditions={"label": {"classes": 2, "shape": []}}), "model.conditions: expected an"),
        (lambda: ModelConfig(conditions={"pose": {"shape": 3}}), "model.conditions: expected an object"),
        (lambda: ModelConfig(conditions={"pose": {"shape": [2**24, 2**24]}}), "model.conditions: expected an object"),
        (lambda: ModelConfig(conditions={"z": {"classes": 2}}), "not named codes, logits, logvar"),
        (lambda: ModelConfig(conditions={"a b": {"classes": 2}}), "got {'a b': {'classes': 2}}"),
        (lambda: TrainConfig(learning_rate=float("nan")), "train.learning_rate: expected a number above 0, got nan"),
        (lambda: TrainConfig(final_learning_rate=1.5), "expected a number of at least 0 and at most 1, got 1.5"),
        (lambda: TrainConfig(importance_samples=5, free_bits=0.1), "train.free_bits: "),
        (lambda: TrainConfig(seed=2**63), "train.seed: expected an integer from 0 to 9223372036854775807"),
        (lambda: TrainConfig(binarise="maybe"), "train.binarise: expected one of none, stochastic, threshold"),
        (lambda: DataConfig(""), "data.source: expected a text that is not empty, got ''"),
        (lambda: DataConfig.from_json({"sauce": "digits"}), "data.sauce: no such field; the fields are source, "),
        (lambda: DataConfig.from_json(["digits"]), "data: expected an object, got ['digits']"),
        (
            lambda: TrainConfig.from_json({"epochs": "3"}),
            "train.epochs: expected an integer from 1 to 16777216, got '3'",
        ),
    ],
)
def test_a_wrong_field_is_named_with_expected_and_got(make, message):
    with pytest.raises(InputError) as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(28,), (1, 2, 3, 4, 5)])
def test_conv_refuses_shapes_of_too_few_or_too_many_axes(shape):
    with pytest.raises(InputError, match=r"model\.observation_shape: conv takes \[C, L\], \[C, H, W\] or"):
        ModelConfig(architecture="conv", observation_shape=shape)
    assert ModelConfig(architecture="conv", observation_shape=(7, 5, 1)).observation_shape == (7, 5, 1)


def test_conditions_are_in_the_order_of_their_names():
    kinds = {"b": {"classes": 2}, "a": {"shape": (3,)}}
    assert list(ModelConfig(conditions=kinds).to_json()["conditions"].items()) == [
        ("a", {"shape": [3]}), ("b", {"classes": 2}),
    ]  # fmt: skip


def test_all_problems_are_reported_at_once():
    with pytest.raises(InputError) as caught:
        TrainConfig(epochs=0, batch_size=-1, beta="x")
    assert all(f"train.{field}: " in str(caught.value) for field in ("epochs", "batch_size", "beta"))


def test_recipes_are_named_as_the_models_that_ship():
    assert set(RECIPES) == {"digits", "mnist", "mnist-tuned", "mnist-weighted"}
    assert RECIPES["mnist"].train.binarise == "stochastic"


def test_the_steps_of_mnist_are_of_the_same_model_and_data():
    names = ("mnist", "mnist-tuned", "mnist-weighted")
    assert len({(RECIPES[name].model, RECIPES[name].data) for name in names}) == 1
    assert [RECIPES[name].start for name in names] == [None, *names[:2]]
