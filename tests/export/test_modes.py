"""Modules of the user's whose training mode differs, or whose conditions do nothing yet."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import vae_runtime
from vae_export import export
from vae_export.errors import ExportError
from vae_export.training import checkpoint
from vae_export.training.config import DataConfig, TrainConfig
from vae_export.training.loop import train
from vae_runtime.errors import InputError

TRAINING = TrainConfig(epochs=2, batch_size=64, learning_rate=3e-3, threads=1)


class Base(nn.Module):
    """As people write it, with logits."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.1))
        self.mu, self.log_var = nn.Linear(32, 4), nn.Linear(32, 4)
        self.head = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 64), nn.Unflatten(1, (1, 8, 8)))

    def encode(self, x):
        h = self.body(x)
        return self.mu(h), self.log_var(h)

    def decode(self, z):
        return torch.sigmoid(self.head(z))

    def forward(self, x):
        mu, log_var = self.encode(x)
        return self.decode(mu + torch.randn_like(mu) * torch.exp(0.5 * log_var)), mu, log_var


class OtherSecond(Base):
    """In training, the second tensor is the standard deviation."""

    def encode(self, x):
        mu, log_var = super().encode(x)
        return mu, torch.exp(0.5 * log_var) if self.training else log_var

    def forward(self, x):
        mu, second = self.encode(x)
        std = second if self.training else torch.exp(0.5 * second)
        return self.decode(mu + torch.randn_like(mu) * std)


class LogitsInTraining(Base):
    def decode(self, z):
        return self.head(z) if self.training else torch.sigmoid(self.head(z))


class LogitsWithDropout(Base):
    def decode(self, z):
        y = self.head(functional.dropout(z, 0.2, self.training))
        return y if self.training else torch.sigmoid(y)


class Normalized(nn.BatchNorm1d):
    """A class of the user's that is PyTorch's layer."""


class LogitsWithNormalization(LogitsWithDropout):
    def __init__(self):
        super().__init__()
        self.normalized = Normalized(4)

    def decode(self, z):
        y = self.head(self.normalized(z))
        return y if self.training else torch.sigmoid(y)


class NoisyInTraining(Base):
    """Adds noise to the observation and counts in training mode; `shift` is what it does beside."""

    def __init__(self, shift=4.0):
        super().__init__()
        self.shift = shift
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def encode(self, x):
        if not self.training:
            return super().encode(x)
        self.steps += 1
        mu, log_var = super().encode(x + 0.05 * torch.randn_like(x))
        return mu, log_var - self.shift


class ClampInEvaluation(Base):
    def decode(self, z):
        return self.head(z) if self.training else self.head(z).clamp(0, 0.1)


class FailsInTraining(Base):
    def encode(self, x):
        if self.training:
            raise RuntimeError("not like this")
        return super().encode(x)


class OwnDropout(Base):
    """Draws in training mode, as dropout does."""

    def encode(self, x):
        h = functional.dropout(self.body(x), 0.2, self.training)
        return self.mu(h), self.log_var(h)


class OwnStatistics(Base):
    """Keeps a mean in training mode, as batch normalization does."""

    def __init__(self):
        super().__init__()
        self.register_buffer("center", torch.zeros(1, 8, 8))

    def encode(self, x):
        if self.training:
            with torch.no_grad():
                self.center.lerp_(x.mean(0), 0.1)
            return super().encode(x - x.mean(0))
        return super().encode(x - self.center)


class DrawsInTraining(Base):
    """encode and decode are parts of a forward that samples in training mode alone."""

    encode = decode = None

    def forward(self, x):
        h = self.body[:3](x)
        mu, log_var = self.mu(h), self.log_var(h)
        z = mu + torch.exp(0.5 * log_var) * torch.randn_like(mu) if self.training else mu
        return torch.sigmoid(self.head(z)), mu, log_var


class Conditional(Base):
    """Both halves take the label. Which of them reads it, and from which weights on, differs."""

    def __init__(self, encoder=None, decoder=None):
        super().__init__()
        self.of_encoder, self.of_decoder = nn.Embedding(10, 64), nn.Embedding(10, 4)
        self.reads = (encoder, decoder)
        for embedding, first in ((self.of_encoder, encoder), (self.of_decoder, decoder)):
            if first == 0:
                nn.init.zeros_(embedding.weight)

    def encode(self, x, label):
        if self.reads[0] is not None:
            x = x + self.of_encoder(label).view(x.shape)
        return super().encode(x)

    def decode(self, z, label):
        return super().decode(z if self.reads[1] is None else z + self.of_decoder(label))

    def forward(self, x, label):
        mu, log_var = self.encode(x, label)
        return self.decode(mu + torch.randn_like(mu) * torch.exp(0.5 * log_var), label), mu, log_var


def run(folder, model, source="digits", conditions=(), **declared):
    return train(folder, model, TRAINING, DataConfig(str(source), conditions=conditions), progress=False, **declared)


BERNOULLI = {"likelihood": "bernoulli"}
GAUSSIAN = {"likelihood": "gaussian", "scale": 0.3}


@pytest.mark.parametrize(
    ("module", "declared", "message"),
    [
        (OtherSecond, BERNOULLI, "encode: expected the values of evaluation mode in training mode, got others, up to"),
        (LogitsInTraining, GAUSSIAN, "decode: expected the values of evaluation mode in training mode, got others"),
        (LogitsInTraining, BERNOULLI, "decode: fails in training mode: .* expected the sigmoid of evaluation mode"),
        (LogitsWithDropout, GAUSSIAN, "decode: expected the values of evaluation mode in training mode, got others"),
        (LogitsWithNormalization, GAUSSIAN, "decode: expected the values of evaluation mode in training mode"),
        (NoisyInTraining, BERNOULLI, "encode: expected the values of evaluation mode in training mode, got others"),
        (ClampInEvaluation, GAUSSIAN, "decode: expected the values .*; let it answer alike in both modes, or pass"),
        (
            FailsInTraining,
            BERNOULLI,
            "encode: fails in training mode: RuntimeError: not like this; let it answer alike",
        ),
    ],
)
def test_a_function_of_another_meaning_in_training_mode_is_refused(module, declared, message, tmp_path):
    with pytest.raises(ExportError, match=message):
        run(tmp_path / "run", module(), **declared)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("module", [OwnDropout, OwnStatistics, lambda: NoisyInTraining(shift=0.0)])
def test_what_draws_or_keeps_statistics_in_training_mode_is_trained(module, tmp_path):
    torch.manual_seed(0)
    assert run(tmp_path / "run", module(), **BERNOULLI).info.result is not None


def test_a_forward_that_samples_in_training_mode_alone_is_trained_and_exported(tmp_path):
    torch.manual_seed(0)
    module = DrawsInTraining()
    before = module.log_var.weight.clone()
    run(tmp_path / "run", module, **BERNOULLI)
    assert not torch.equal(module.log_var.weight, before)
    export(tmp_path / "run", tmp_path / "bundle", model=module, formats=("onnx",))
    vae = vae_runtime.load(tmp_path / "bundle")
    x = np.random.default_rng(0).random((5, 1, 8, 8), np.float32)
    with torch.no_grad():
        reconstruction, mu, log_var = module.eval()(torch.from_numpy(x))
    posterior = vae.encode(x)
    np.testing.assert_allclose(posterior.mean, mu, atol=1e-5)
    np.testing.assert_allclose(posterior.logvar, log_var, atol=1e-5)
    np.testing.assert_allclose(vae.decode(posterior.mean), reconstruction, atol=1e-5)


def test_halves_of_a_forward_are_not_compiled(tmp_path):
    training = dataclasses.replace(TRAINING, compile=True)
    with pytest.raises(
        InputError, match=r"train.compile: expected a model with encode and decode.*leave --compile out"
    ):
        train(tmp_path / "run", DrawsInTraining(), training, DataConfig("digits"), progress=False, **BERNOULLI)


@pytest.mark.parametrize(
    ("encoder", "decoder", "read"),
    [
        (0, None, {"encoder"}),
        pytest.param(None, 1, {"decoder"}, marks=pytest.mark.long),
        pytest.param(0, 0, {"encoder", "decoder"}, marks=pytest.mark.long),
    ],
)
def test_a_condition_that_does_nothing_yet_is_trained(encoder, decoder, read, tmp_path):
    torch.manual_seed(0)
    module = Conditional(encoder, decoder)
    before = {name: weight.clone() for name, weight in module.named_parameters()}
    run(tmp_path / "run", module, conditions=("label",), prior="normal", **BERNOULLI)
    for half in ("encoder", "decoder"):
        weight = f"of_{half}.weight"
        assert torch.equal(before[weight], module.get_parameter(weight)) == (half not in read)
    loaded, _ = checkpoint.load(tmp_path / "run", Conditional(encoder, decoder))
    export(tmp_path / "run", tmp_path / "bundle", model=loaded, formats=("onnx",))
    vae = vae_runtime.load(tmp_path / "bundle")
    (condition,) = vae.manifest.conditions
    assert set(condition.components) == read
    label = np.arange(4)
    z = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    given = {"conditions": {"label": label}} if "decoder" in read else {}
    with torch.no_grad():
        expected = module.eval().decode(torch.from_numpy(z), torch.from_numpy(label))
    np.testing.assert_allclose(vae.decode(z, **given), expected, atol=1e-5)


def test_a_condition_that_no_half_reads_is_refused_at_the_export(tmp_path):
    module = Conditional()
    run(tmp_path / "run", module, conditions=("label",), prior="normal", **BERNOULLI)
    with pytest.raises(ExportError, match="condition 'label': encode and decode do not depend on it; leave it out"):
        export(tmp_path / "run", tmp_path / "bundle", model=module)
