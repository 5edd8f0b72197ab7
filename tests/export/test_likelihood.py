"""The table of likelihoods that can be trained: it answers for every kind of the runtime, and refuses all others.

What each kind computes is held against torch.distributions in test_objective.py.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from vae_export.training import checkpoint, objective
from vae_export.training.config import DataConfig, ModelConfig, TrainConfig
from vae_export.training.likelihood import KINDS, kind_named
from vae_export.training.loop import train
from vae_export.training.model import VAE
from vae_runtime import likelihood as runtime
from vae_runtime.errors import InputError


def test_every_kind_of_the_runtime_can_be_trained():
    assert list(KINDS) == list(runtime.KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_computes_what_the_runtime_does(name):
    kind, other = kind_named(name), runtime.kind_named(name)
    assert kind.name == name
    mean = torch.tensor([[0.25, 0.5, 0.75]], dtype=torch.float64)
    mean = torch.stack([mean, 1 - mean], -1) if other.classes else mean
    parameters = kind.parameters(mean)
    torch.testing.assert_close(kind.mean(parameters), mean)
    x, scale = torch.tensor([[0.0, 1.0, 1.0]], dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    expected = other.log_prob(x.numpy(), runtime.Parameters(mean.numpy(), scale=0.5 if other.scale else None))
    np.testing.assert_allclose(kind.log_prob(x, parameters, scale).numpy(), expected)
    moved = parameters * 1.1 if other.classes else parameters + 0.1
    assert not np.allclose(kind.log_prob(x, moved, scale).numpy(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.001, 0.05, 2.0])
def test_levels_are_scored_as_the_runtime_does(dtype, scale):
    x = torch.arange(256, dtype=dtype) / 255
    for mean in (-1.0, 0.0, 0.371, 1.0):
        means = torch.full((256,), mean, dtype=dtype, requires_grad=True)
        scales = torch.tensor(scale, dtype=dtype, requires_grad=True)
        found = kind_named("logistic").log_prob(x, means, scales)
        other = runtime.Parameters(np.full(256, mean), scale=float(np.float64(scales.item())))
        expected = runtime.kind_named("logistic").log_prob(x.double().numpy(), other)
        np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-4 if dtype is torch.float32 else 1e-10)
        assert all(torch.isfinite(each).all() for each in torch.autograd.grad(found.sum(), (means, scales)))


def test_classes_are_scored_as_the_runtime_does():
    logits = 5 * torch.randn(3, 4, 2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.arange(8).reshape(4, 2) % 6
    found = objective.log_likelihood(x.float(), logits, "categorical")
    kind = runtime.kind_named("categorical").of(None, (2, 6))
    for part, terms in zip(logits, found, strict=True):
        expected = kind.log_prob(x.double().numpy(), runtime.Parameters(logits=part.numpy())).sum(1)
        np.testing.assert_allclose(terms.numpy(), expected)
    torch.testing.assert_close(found, torch.distributions.Categorical(logits=logits).log_prob(x).sum(-1))


@pytest.mark.parametrize("name", KINDS)
def test_export_is_told_the_mean_and_the_scale(name):
    classes = 3 if runtime.KINDS[name].classes else 0
    config = ModelConfig(observation_shape=(3,), latent=2, hidden=(4,), likelihood=name, classes=classes, scale=0.5)
    vae = VAE(config)
    declared, z = vae.__vae_export__(), torch.zeros(2, 2)
    answer = declared["decode"](z)
    mean = answer if isinstance(answer, torch.Tensor) else answer.probs if classes else answer.mean
    torch.testing.assert_close(mean, vae.mean(vae.decode(z)))
    assert declared["likelihood"] == name
    assert declared["scale"] == (0.5 if runtime.KINDS[name].scale else None)


@pytest.mark.parametrize("name", ["cauchy", "none", "Laplace", ""])
def test_an_unknown_kind_is_refused(name):
    with pytest.raises(InputError, match=r"^likelihood: expected one of bernoulli, gaussian, laplace.*, got "):
        kind_named(name)


def test_an_unknown_kind_is_not_trained_as_another():
    x = torch.zeros(2, 3)
    assert torch.isfinite(objective.log_likelihood(x, x, "laplace")).all()
    with pytest.raises(InputError, match=r"^likelihood: expected one of .*, got 'cauchy'"):
        objective.log_likelihood(x, x, "cauchy")
    vae = VAE(ModelConfig(observation_shape=(3,)))
    vae.config = replace(vae.config)
    object.__setattr__(vae.config, "likelihood", "cauchy")
    for use in (lambda: vae.mean(x), lambda: vae.start_from_mean(x[0])):
        with pytest.raises(InputError, match=r"^likelihood: expected one of .*, got 'cauchy'"):
            use()


@pytest.mark.parametrize(("name", "binarise", "purpose"), [
    ("bernoulli", "none", "a bernoulli likelihood"),
    ("bernoulli", "threshold", "a bernoulli likelihood"),
    ("gaussian", "stochastic", "binarization"),
])  # fmt: skip
def test_data_outside_the_range_are_refused_for_what_needs_it(tmp_path, name, binarise, purpose):
    np.save(tmp_path / "x.npy", np.arange(7, 127, dtype=np.float32).reshape(30, 4))
    model = ModelConfig(latent=2, hidden=(4,), likelihood=name)
    source = DataConfig(str(tmp_path / "x.npy"), validation_fraction=0.3)
    with pytest.raises(InputError, match=rf"expected values in \[0, 1\] for {purpose}, got [0-9]+ at \[0\]"):
        train(tmp_path / "run", model, TrainConfig(epochs=1, binarise=binarise), source, progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("dtype", "value", "words"), [
    (np.float32, 2.5, r"expected counts \(0, 1, 2, …\) .* poisson likelihood, got 2\.5 at \[1\]; save"),
    (np.float32, -1, r"expected counts .* got -1 at \[1\]"),
    (np.float32, np.nan, r"expected finite float32 values, got nan at \[2, 1\]"),
    (np.uint8, 1, r"expected counts .* got 0\.[0-9]+ at \[[0-3]\]; save counts as int32 or floats \(uint8 become"),
])  # fmt: skip
def test_data_that_are_no_counts_are_refused_under_a_poisson(tmp_path, dtype, value, words):
    x = np.arange(120).reshape(30, 4).astype(dtype)
    model, training = ModelConfig(latent=2, hidden=(4,), likelihood="poisson"), TrainConfig(epochs=1)
    source = DataConfig(str(tmp_path / "x.npy"), validation_fraction=0.1, test_fraction=0)
    if dtype is np.float32:
        np.save(tmp_path / "x.npy", x)
        train(tmp_path / "counts", model, training, source, progress=False)
    x[2, 1] = value
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(InputError, match=words):
        train(tmp_path / "run", model, training, source, progress=False)
    assert not (tmp_path / "run").exists()


def test_classes_are_counted_in_the_training_data(tmp_path):
    generator = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", generator.integers(0, 4, (60, 5)).astype(np.uint8))
    model, training = ModelConfig(latent=2, hidden=(4,), likelihood="categorical"), TrainConfig(epochs=1)
    source = DataConfig(str(tmp_path / "x.npy"), normalise="none")
    outcome = train(tmp_path / "run", model, training, source, progress=False)
    assert outcome.info.model.classes == 4
    again = train(tmp_path / "run", model, training, source, progress=False)
    assert again.already_finished
    words = r"expected classes 0 … 1 .*got 0\.0\d+ at .*; number classes from 0 on, and take uint8 as they are"
    for other, data in (
        (replace(model, classes=3), source),
        (model, DataConfig(str(tmp_path / "x.npy"))),
    ):
        expected = words if data is not source else r"expected classes 0 … 2 .*got 3 at"
        with pytest.raises(InputError, match=expected):
            train(tmp_path / "other", other, training, data, progress=False)


def test_a_decoder_starts_from_how_often_each_class_is_each_value():
    frequencies = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]])
    for architecture, shape in (("mlp", (2,)), ("conv", (2, 4, 4))):
        config = ModelConfig(architecture, shape, hidden=(4,), channels=(4,), likelihood="categorical", classes=3)
        vae = VAE(config)
        mean = frequencies.reshape(2, *[1] * (len(shape) - 1), 3).expand(*shape, 3)
        vae.start_from_mean(mean)
        last = [layer for layer in vae.decoder.modules() if hasattr(layer, "bias") and layer.bias is not None][-1]
        torch.testing.assert_close(last.bias.reshape(2, 3).softmax(-1), frequencies)
        assert vae.decode(torch.zeros(1, config.latent)).shape == (1, *shape, 3)


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_a_run_begins_with_the_mean_of_its_training_data(likelihood, tmp_path):
    """No weight changes by such a rate."""
    random = np.random.default_rng(0)
    x = np.stack([random.choice(3, 200, p=p) for p in ((0.6, 0.3, 0.1), (0.1, 0.1, 0.8))], 1).astype(np.uint8)
    np.save(tmp_path / "x.npy", x)
    model = ModelConfig(latent=2, hidden=(4,), likelihood=likelihood)
    training = TrainConfig(epochs=1, learning_rate=1e-30, threads=1)
    train(tmp_path / "run", model, training, DataConfig(str(tmp_path / "x.npy"), normalise="none"), progress=False)
    vae, info = checkpoint.load(tmp_path / "run")
    rows = torch.from_numpy(checkpoint.run_data(info).train.rows(slice(None)))
    (bias,) = [weight for name, weight in vae.named_parameters() if name == "decoder.2.bias"]
    if likelihood == "categorical":
        frequencies = torch.nn.functional.one_hot(rows.long(), 3).float().mean(0)
        torch.testing.assert_close(bias.view(2, 3).softmax(-1), frequencies)
    else:
        torch.testing.assert_close(bias, rows.mean(0))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"likelihood": "gaussian", "classes": 3}, "model.classes: a gaussian likelihood has no classes"),
        ({"likelihood": "categorical", "classes": 1}, "model.classes: expected at least 2, or 0"),
        ({"likelihood": "categorical", "learn_scale": True}, "a categorical likelihood has no scale"),
    ],
)
def test_classes_that_do_not_fit_are_refused(fields, words):
    with pytest.raises(InputError, match=words):
        ModelConfig(observation_shape=(3,), **fields)


def test_a_model_of_classes_needs_their_number():
    with pytest.raises(InputError, match=r"model\.classes: expected the number of classes, such as 10, got none"):
        VAE(ModelConfig(observation_shape=(3,), likelihood="categorical"))
