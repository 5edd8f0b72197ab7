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
)
trainings = st.builds(
    TrainConfig,
    epochs=positive,
    learning_rate=st.floats(1e-9, 10),
    beta=st.floats(0, 10),
    seed=st.integers(0, 2**63 - 1),
)


@given(st.one_of(models, trainings, st.builds(DataConfig, source=st.text(min_size=1))))
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
        (lambda: ModelConfig(architecture="conv", channels=(8,)), "model.channels: expected two numbers, got [8]"),
        (lambda: TrainConfig(learning_rate=float("nan")), "train.learning_rate: expected a number above 0, got nan"),
        (lambda: TrainConfig(final_learning_rate=1.5), "expected a number of at least 0 and at most 1, got 1.5"),
        (lambda: TrainConfig(importance_samples=5, free_bits=0.1), "train.free_bits: "),
        (lambda: TrainConfig(seed=2**63), "train.seed: expected an integer from 0 to 9223372036854775807"),
        (lambda: TrainConfig(binarise="maybe"), "train.binarise: expected one of none, stochastic, threshold"),
        (lambda: DataConfig(""), "data.source: expected a text that is not empty, got ''"),
        (lambda: DataConfig.from_json({"sauce": "digits"}), "data.sauce: no such field; the fields are source, seed"),
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


@pytest.mark.parametrize("shape", [(28, 28), (5, 8, 8), (1, 8, 6), (1, 7, 8)])
def test_conv_refuses_shapes_it_cannot_halve_twice(shape):
    with pytest.raises(InputError, match=r"model\.observation_shape: conv takes \[C, H, W\]"):
        ModelConfig(architecture="conv", observation_shape=shape)


def test_all_problems_are_reported_at_once():
    with pytest.raises(InputError) as caught:
        TrainConfig(epochs=0, batch_size=-1, beta="x")
    assert all(f"train.{field}: " in str(caught.value) for field in ("epochs", "batch_size", "beta"))


def test_recipes_are_named_as_the_models_that_ship():
    assert set(RECIPES) == {"digits", "mnist"}
    assert RECIPES["mnist"].train.binarise == "stochastic"
