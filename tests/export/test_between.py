"""What forward does between encode and decode holds for posteriors that the example does not give."""

import onnx
import pytest
import torch
from torch import nn
from torch.distributions import Normal
from torch.nn import functional

import vae_export
import vae_runtime
from vae_export.understand import between
from vae_export.understand.adapt import adapt
from vae_export.understand.adapted import run_module
from vae_export.understand.declaration import Declaration
from vae_export.understand.state import unchanged

X = torch.rand(6, 12, generator=torch.Generator().manual_seed(0))


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(nn.Linear(12, 16), nn.ReLU())
        self.mu, self.second, self.head = nn.Linear(16, 4), nn.Linear(16, 4), nn.Linear(4, 12)

    def encode(self, x):
        h = self.body(x)
        return self.mu(h), self.second(h)

    def decode(self, z):
        return torch.tanh(self.head(z))

    def std(self, second):
        return torch.exp(0.5 * second)

    def mean(self, mean):
        return mean

    def forward(self, x):
        mean, second = self.encode(x)
        return self.decode(self.mean(mean) + torch.randn_like(mean) * self.std(second))


class ClampedLogvar(Plain):
    def std(self, second):
        return torch.exp(0.5 * second.clamp(-4, 4))


class FloorOfStd(Plain):
    def std(self, second):
        return torch.exp(0.5 * second).clamp(min=0.01)


class ClampedSoftplus(Plain):
    def std(self, second):
        return functional.softplus(second).clamp(max=5)


class ClampedMean(Plain):
    def mean(self, mean):
        return mean.clamp(-9, 9)


class ClampedDistribution(Plain):
    def encode(self, x):
        mean, second = super().encode(x)
        return Normal(mean, functional.softplus(second))

    def forward(self, x):
        q = self.encode(x)
        return self.decode(q.loc + torch.randn_like(q.loc) * q.scale.clamp(max=5))


class InTraining(ClampedLogvar):
    def forward(self, x):
        return super().forward(x) if self.training else self.decode(self.encode(x)[0])


class Precision(Plain):
    """Its second tensor is 1 / variance."""

    def encode(self, x):
        mean, second = super().encode(x)
        return mean, functional.softplus(second) + 0.1

    def std(self, second):
        return second.rsqrt()


BOUNDED = [ClampedLogvar, FloorOfStd, ClampedSoftplus, ClampedMean, ClampedDistribution, InTraining]


class WithEpsilon(Plain):
    def std(self, second):
        return torch.exp(0.5 * second) + 1e-6


class OfAWeight(Plain):
    """Its encode returns a weight as the standard deviation."""

    def __init__(self):
        super().__init__()
        self.sigma = nn.Parameter(0.3 * torch.ones(4))

    def encode(self, x):
        return super().encode(x)[0], self.sigma.expand(len(x), 4)

    def std(self, second):
        return second


def understood(model):
    model = model.eval()
    with unchanged(model):
        return adapt(model, X, Declaration())


@pytest.mark.parametrize("cls", BOUNDED)
def test_a_bound_between_encode_and_decode_is_carried(cls):
    adapted = understood(cls())
    assert any("halves of forward" in line for line in adapted.recognised)
    model = cls().eval()
    # Observations whose posteriors reach the bounds.
    far = 60 * X - 30
    posterior = model.encode(far)
    mean, second = (posterior.loc, posterior.scale) if isinstance(posterior, Normal) else posterior
    expected = second.clamp(max=5) if isinstance(posterior, Normal) else model.std(second)
    own = model.std(second / 1e3)
    with torch.no_grad():
        mu, _, std = run_module(adapted.modules["encoder"], [far])
    torch.testing.assert_close(mu, model.mean(mean), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(std, expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(own, expected)


def test_without_the_check_a_bound_is_lost(monkeypatch):
    monkeypatch.setattr("vae_export.understand.adapt.require_between", lambda functions, adapted: None)
    adapted = understood(ClampedLogvar())
    _, _, std = run_module(adapted.modules["encoder"], [600 * X - 300])
    assert float(std.max()) > 10


@pytest.mark.parametrize("cls", [Plain, WithEpsilon, OfAWeight])
def test_what_bounds_nothing_keeps_its_own_functions(cls):
    model = cls()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapted = understood(model)
    assert not any("halves of forward" in line for line in adapted.recognised)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("meaning", ["logvar", "std", "var", "log_std", "softplus"])
def test_second_tensors_give_back_their_log_variance(meaning):
    logvar = torch.linspace(-25, 12, 50)
    found, std = between.second_to(meaning, between._second_of(meaning, logvar))
    torch.testing.assert_close(found, logvar, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(std, torch.exp(0.5 * logvar), rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("cls", [ClampedLogvar, InTraining, Precision])
def test_the_halves_of_forward_are_exported_by_the_current_exporter_alone(cls, tmp_path):
    exported = vae_export.export(cls().eval(), tmp_path / "b", example=X, formats=("onnx",))
    assert any("halves of forward" in line for line in exported.recognised)
    encoder = vae_runtime.load(tmp_path / "b").manifest.encoder["fp32"]
    assert encoder.exporter == "torch.onnx.export(dynamo=True)"
    graph = onnx.load(tmp_path / "b" / "encoder" / "fp32" / "model.onnx").graph
    weights = [tensor.name for tensor in graph.initializer if "head" in tensor.name]
    assert weights == [], "the decoder's weights are no part of the encoder"
