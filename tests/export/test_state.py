"""Exporting leaves a model, and PyTorch, exactly as they came: after success, after a refusal, after an exception."""

import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import vae_export
from vae_export import ExportError
from vae_export.state import unchanged


class Everything(nn.Module):
    """Batch normalisation, dropout, a recurrent layer, tied weights, a cache, mixed modes and hooks."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.drop = nn.BatchNorm1d(6), nn.Dropout(0.3)
        self.body, self.gru = nn.Linear(6, 8), nn.GRU(8, 4, batch_first=True)
        self.head, self.tied = nn.Linear(2, 6), nn.Linear(2, 6)
        self.tied.weight = self.head.weight
        self.cache, self.calls = None, []
        self.fail = False

    def encode(self, x):
        if self.fail:
            raise RuntimeError("a fault of the model's own")
        h = self.drop(self.body(self.norm(x)))
        self.cache = h
        self.calls.append(len(x))
        return self.gru(h[:, None])[0][:, 0].chunk(2, 1)

    def decode(self, z):
        return self.head(z) + 0.5 * self.tied(z)

    def forward(self, x):
        mu, logvar = self.encode(x)
        return self.decode(mu + torch.randn_like(mu) * torch.exp(0.5 * logvar))


class Refused(Everything):
    def decode(self, z):
        return super().decode(z) if z.sum() > 0 else super().decode(-z)


X = torch.rand(5, 6, generator=torch.Generator().manual_seed(1))


def prepared(cls):
    """A model in a state that nobody would choose."""
    model = cls().train()
    model.body.eval()
    model.gru.weight_ih_l0.requires_grad_(False)
    model(X)
    seen = []
    handles = [
        model.head.register_forward_hook(lambda module, given, result: seen.append("forward")),
        model.body.register_full_backward_hook(lambda module, inner, outer: seen.append("backward")),
    ]
    return model, handles, seen


def state_of(model):
    """All that can be seen of a model and of the generators, by value and by identity."""
    return {
        "modes": [module.training for module in model.modules()],
        "tensors": {
            name: (tensor.detach().clone(), tensor.dtype, tensor.data_ptr(), id(tensor), tensor.requires_grad)
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
        },
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "hooks": [(id(m._forward_hooks), len(m._forward_hooks), len(m._backward_hooks)) for m in model.modules()],
        "flat": [id(weight) for weight in model.gru._flat_weights],
        "cache": (id(model.cache), list(model.calls), id(model.calls)),
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].copy(),
        "python": random.getstate(),
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "validation": torch.distributions.Distribution._validate_args,
        "functions": (torch.randn_like, torch.randn, torch.nn.functional.dropout, torch.Tensor.normal_),
        "filters": list(warnings.filters),
    }


def same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    return one == other


def differences(before, after):
    return [name for name in before if not same(before[name], after[name])]


@pytest.mark.parametrize("case", ["exported", "refused", "failed"])
def test_all_is_as_it_came(case, tmp_path):
    model, handles, seen = prepared(Refused if case == "refused" else Everything)
    model.fail = case == "failed"
    before = state_of(model)
    if case == "exported":
        vae_export.export(model, tmp_path / "bundle", example=X, formats=("onnx", "torchscript"))
    else:
        with pytest.raises(ExportError, match="a fault of the model's own" if case == "failed" else "torch.where"):
            vae_export.export(model, tmp_path / "bundle", example=X)
    assert differences(before, state_of(model)) == []
    assert model.tied.weight is model.head.weight
    # The hooks still work, and their handles still take them away.
    model.fail = False
    seen.clear()
    model.encode(X)[0].sum().backward()
    model.head(torch.zeros(1, 2))
    assert sorted(seen) == ["backward", "forward"]
    for handle in handles:
        handle.remove()
    seen.clear()
    model.encode(X)[0].sum().backward()
    model.head(torch.zeros(1, 2))
    assert seen == []


def test_the_outputs_are_as_before(tmp_path):
    model, _, _ = prepared(Everything)
    model.eval()
    torch.manual_seed(5)
    before = model(X)
    vae_export.export(model, tmp_path / "bundle", example=X, formats=("onnx",))
    torch.manual_seed(5)
    assert torch.equal(model(X), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_models_of_other_precisions_export_as_float32(dtype, tmp_path):
    model = Everything().eval().to(dtype)
    before = state_of(model)
    exported = vae_export.export(model, tmp_path / "bundle", example=X, formats=("onnx",))
    assert exported.parity.passed
    assert differences(before, state_of(model)) == []
    assert {tensor.dtype for tensor in model.parameters()} == {dtype}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda model: model.norm.running_mean.add_(1),
        lambda model: model.train(),
        lambda model: setattr(model, "cache", 3),
        lambda model: model.calls.append(1),
        lambda model: torch.rand(1),
        lambda model: random.random(),
        lambda model: torch.set_default_dtype(torch.float64),
        lambda model: setattr(model.body.weight, "data", model.body.weight.data.double()),
    ],
)
def test_whatever_is_changed_meanwhile_is_put_back(spoil):
    """And without that care, it would be seen."""
    model, _, _ = prepared(Everything)
    before = state_of(model)
    with unchanged(model):
        spoil(model)
    assert differences(before, state_of(model)) == []
    with torch.no_grad():
        spoil(model)
    try:
        assert differences(before, state_of(model)) != [] or model.training
    finally:
        torch.set_default_dtype(torch.float32)
