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
        (lambda: ModelConfig(architecture="rnn"), "model.architecture: one of mlp, conv is expected, got 'rnn'"),
        (lambda: ModelConfig(latent=0), "model.latent: an integer from 1 to 16777216 is expected, got 0"),
        (lambda: ModelConfig(latent=True), "model.latent: an integer from 1 to 16777216 is expected, got True"),
        (lambda: ModelConfig(latent=2.0), "model.latent: an integer"),
        (lambda: ModelConfig(hidden=(3, -1)), "model.hidden: a list of integers from 1 to 16777216 is expected"),
        (lambda: ModelConfig(hidden="64"), "model.hidden: a list of integers from 1 to 16777216 is expected, got '64'"),
        (lambda: ModelConfig(scale=0), "model.scale: a number above 0 is expected, got 0"),
        (lambda: ModelConfig(learn_scale=True), "model.learn_scale: a bernoulli likelihood has no scale"),
        (lambda: ModelConfig(learn_scale=1), "model.learn_scale: true or false is expected, got 1"),
        (lambda: ModelConfig(architecture="conv", channels=(8,)), "model.channels: two numbers are expected, got [8]"),
        (lambda: TrainConfig(learning_rate=float("nan")), "train.learning_rate: a number above 0 is expected, got nan"),
        (lambda: TrainConfig(final_learning_rate=1.5), "a number of at least 0 and at most 1 is expected, got 1.5"),
        (lambda: TrainConfig(importance_samples=5, free_bits=0.1), "train.free_bits: "),
        (lambda: TrainConfig(seed=2**63), "train.seed: an integer from 0 to 9223372036854775807"),
        (lambda: TrainConfig(binarise="maybe"), "train.binarise: one of none, stochastic, threshold is expected"),
        (lambda: DataConfig(""), "data.source: a text that is not empty is expected, got ''"),
        (lambda: DataConfig.from_json({"sauce": "digits"}), "data.sauce: no such field; the fields are source, seed"),
        (lambda: DataConfig.from_json(["digits"]), "data: an object is expected, got ['digits']"),
        (
            lambda: TrainConfig.from_json({"epochs": "3"}),
            "train.epochs: an integer from 1 to 16777216 is expected, got '3'",
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
