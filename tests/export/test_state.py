"""Exporting leaves a model, and PyTorch, exactly as they came: after success, after a refusal, after an exception."""

import collections
import copy
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import vae_export
import vae_runtime
from vae_export import ExportError
from vae_export.understand.state import fitting_threads, unchanged


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
    model(X).sum().backward()
    seen = []
    handles = [
        model.head.register_forward_hook(lambda module, given, result: seen.append("forward")),
        model.norm.register_forward_pre_hook(lambda module, given: seen.append("before")),
        model.body.register_full_backward_hook(lambda module, inner, outer: seen.append("backward")),
    ]
    return model, handles, seen


def state_of(model):
    """All that can be seen of a model and of the generators, by value and by identity."""
    return {
        "modes": [module.training for module in model.modules()],
        "tensors": {
            name: (
                *(tensor.detach().clone(), tensor.dtype, tensor.device, tensor.data_ptr(), id(tensor)),
                *(tensor.requires_grad, id(tensor.grad), tensor.grad if tensor.grad is None else tensor.grad.clone()),
            )
            for name, tensor in (
                *model.named_parameters(remove_duplicate=False),
                *model.named_buffers(remove_duplicate=False),
            )
        },
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "hooks": [
            (id(hooks), list(hooks))
            for module in model.modules()
            for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        ],
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
            vae_export.export(model, tmp_path / "bundle", example=X, formats=("onnx",))
    assert differences(before, state_of(model)) == []
    assert model.tied.weight is model.head.weight
    # The hooks still work, and their handles still take them away.
    model.fail = False
    seen.clear()
    model.encode(X)[0].sum().backward()
    model.head(torch.zeros(1, 2))
    assert sorted(seen) == ["backward", "before", "forward"]
    for handle in handles:
        handle.remove()
    seen.clear()
    model.encode(X)[0].sum().backward()
    model.head(torch.zeros(1, 2))
    assert seen == []


@pytest.mark.long
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", ["exported", "refused", "failed"])
def test_the_outputs_are_as_before(case, training, tmp_path):
    cls = Refused if case == "refused" else Everything
    (model, _, _), (untouched, _, _) = prepared(cls), prepared(cls)
    model.fail = case == "failed"
    if case == "exported":
        vae_export.export(model, tmp_path / "bundle", example=X, formats=("onnx",))
    else:
        with pytest.raises(ExportError):
            vae_export.export(model, tmp_path / "bundle", example=X)
    model.fail = False
    for each in (model, untouched):
        each.train(training)
    # Twice: in training mode the first changes the running statistics.
    for _ in range(2):
        answers = []
        for each in (model, untouched):
            torch.manual_seed(5)
            answers.append(each(X))
        assert torch.equal(*answers)
    assert torch.equal(model.norm.running_mean, untouched.norm.running_mean)
    with torch.no_grad():
        model.head.bias[0] += 1e-6
    torch.manual_seed(5)
    assert not torch.equal(model(X), answers[1])


def test_an_interruption_leaves_it_too(tmp_path):
    class Interrupted(Everything):
        def encode(self, x):
            if not self.training:
                raise KeyboardInterrupt
            return super().encode(x)

    model, _, _ = prepared(Interrupted)
    before = state_of(model)
    with pytest.raises(KeyboardInterrupt):
        vae_export.export(model, tmp_path / "bundle", example=X)
    assert differences(before, state_of(model)) == []
    assert not list(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_the_user_set_in_pytorch_stays(validate, dtype, tmp_path):
    distribution = torch.distributions.Distribution
    model, _, _ = prepared(Everything)
    usual = distribution._validate_args
    try:
        torch.set_default_dtype(dtype)
        distribution.set_default_validate_args(validate)
        with torch.set_grad_enabled(validate):
            before = state_of(model)
            vae_export.export(model, tmp_path / "bundle", example=X, formats=("onnx",))
            assert differences(before, state_of(model)) == []
        assert before["validation"] == validate
        assert (before["dtype"], before["gradients"]) == (dtype, validate)
    finally:
        torch.set_default_dtype(torch.float32)
        distribution.set_default_validate_args(usual)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.bfloat16,
        pytest.param(torch.float64, marks=pytest.mark.long),
        pytest.param(torch.float16, marks=pytest.mark.long),
    ],
)
def test_models_of_other_precisions_export_as_float32(dtype, tmp_path):
    model = Everything().eval().to(dtype)
    before = state_of(model)
    exported = vae_export.export(model, tmp_path / "bundle", example=X, formats=("onnx",))
    assert exported.parity.passed
    vae = vae_runtime.load(exported.path)
    assert {t.dtype for c in ("encoder", "decoder") for t in vae.manifest.inputs(c)} == {"float32"}
    with torch.no_grad():
        mean = copy.deepcopy(model).float().encode(X)[0].numpy()
    np.testing.assert_allclose(vae.encode(X.numpy()).mean, mean, atol=1e-5)
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
        assert differences(before, state_of(model)) != []
    finally:
        torch.set_default_dtype(torch.float32)


def without_a_hook(model):
    model.head._forward_hooks.clear()


def untied(model):
    model.tied.weight = nn.Parameter(model.tied.weight.detach().clone())


@pytest.mark.parametrize(
    ("name", "alter"),
    [
        ("modes", lambda model, patch: model.drop.eval()),
        ("tensors", lambda model, patch: model.norm.running_var.mul_(1.0000001)),
        ("tensors", lambda model, patch: model.body.bias.requires_grad_(False)),
        ("tensors", lambda model, patch: setattr(model.body.weight, "data", model.body.weight.data.clone())),
        ("tensors", lambda model, patch: model.body.weight.grad.add_(1)),
        ("tensors", lambda model, patch: untied(model)),
        ("attributes", lambda model, patch: setattr(model.head, "note", 1)),
        ("hooks", lambda model, patch: without_a_hook(model)),
        ("flat", lambda model, patch: model.gru._flat_weights.reverse()),
        ("cache", lambda model, patch: setattr(model, "cache", model.cache.clone())),
        ("torch", lambda model, patch: torch.rand(1)),
        ("numpy", lambda model, patch: np.random.rand(1000)),
        ("python", lambda model, patch: random.random()),
        ("functions", lambda model, patch: patch.setattr(torch, "randn_like", torch.randn_like.__call__)),
        ("filters", lambda model, patch: warnings.simplefilter("ignore")),
    ],
)
def test_any_difference_would_be_seen(name, alter, monkeypatch):
    model, _, _ = prepared(Everything)
    with warnings.catch_warnings(), torch.random.fork_rng():
        before = state_of(model)
        alter(model, monkeypatch)
        assert name in differences(before, state_of(model))


# What a model does to itself while it is asked.


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.mu, self.logvar, self.head = nn.Linear(6, 3), nn.Linear(6, 3), nn.Linear(3, 6)
        self.count, self.notes = torch.zeros(1), {"seen": []}
        self.register_buffer("links", torch.eye(6))
        self.note = lambda: None

    def encode(self, x):
        self.note()
        return self.mu(x), self.logvar(x)

    def decode(self, z):
        return self.head(z)


def changes_itself(note):
    model = Small()
    model.note = lambda: note(model)
    with torch.no_grad(), unchanged(model):
        model.encode(X)
    return model


def clamp(model):
    with torch.no_grad():
        model.mu.weight.clamp_(min=0)


def test_a_parameter_that_the_model_changes_in_place_is_put_back():
    model = changes_itself(clamp)
    assert torch.equal(model.mu.weight, Small().mu.weight)
    model.encode(X)
    assert not torch.equal(model.mu.weight, Small().mu.weight)


@pytest.mark.parametrize("note", [lambda m: m.count.add_(1), lambda m: m.notes["seen"].append(1)])
def test_what_the_model_keeps_beside_its_buffers_is_put_back(note):
    model = changes_itself(note)
    assert model.count == 0
    assert model.notes == {"seen": []}
    with torch.no_grad():
        model.encode(X)
    assert model.count == 1 or model.notes == {"seen": [1]}


def test_a_model_with_a_sparse_buffer_is_put_back():
    model, untouched = Small().train(), Small().train()
    model.links = model.links.to_sparse()
    validate = torch.distributions.Distribution._validate_args
    state = torch.get_rng_state()
    try:
        with unchanged(model):
            torch.rand(1)
    finally:
        found = torch.distributions.Distribution._validate_args
        torch.distributions.Distribution.set_default_validate_args(validate)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == [m.training for m in untouched.modules()]
    assert found == validate


class Checkpointing(Small):
    """Its last step is a checkpoint of the older kind, which PyTorch's exporters fail on."""

    def decode(self, z):
        return torch.utils.checkpoint.checkpoint(super().decode, z, use_reentrant=True)


def test_a_checkpoint_calls_its_function_meanwhile(tmp_path):
    own = torch.utils.checkpoint.CheckpointFunction.apply
    vae_export.export(Checkpointing(), tmp_path / "bundle", example=X, posterior="logvar")
    assert own == torch.utils.checkpoint.CheckpointFunction.apply
    z = torch.randn(3, *vae_runtime.load(tmp_path / "bundle").latents[0].shape)
    with torch.no_grad():
        expected = Small().eval().decode(z).numpy()
    np.testing.assert_allclose(vae_runtime.load(tmp_path / "bundle").decode(z.numpy()), expected, atol=1e-6)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_the_mode_of_a_scripted_module_is_put_back():
    model = Small()
    model.head = torch.jit.script(model.head)
    model.train()
    with unchanged(model):
        assert not model.head.training
    assert model.head.training


def test_autocast_around_an_export_changes_nothing(tmp_path):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        vae_export.export(Small(), tmp_path / "bundle", example=X, posterior="logvar", formats=("onnx",))
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(
    ("kept", "note"),
    [
        (np.zeros(1), lambda kept: kept.__iadd__(1)),
        (collections.Counter(), lambda kept: kept.update("a")),
        (collections.defaultdict(list), lambda kept: kept["a"].append(1)),
        (collections.deque(), lambda kept: kept.append(1)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_model_keeps_in_other_containers_is_put_back(kept, note):
    before = copy.deepcopy(kept)
    model = Small()
    model.kept, model.note = kept, lambda: note(model.kept)
    with torch.no_grad(), unchanged(model):
        model.encode(X)
    assert model.kept == before


def test_a_buffer_that_the_model_resizes_is_put_back():
    model = changes_itself(lambda model: model.links.resize_(7, 7))
    assert torch.equal(model.links, torch.eye(6))


def test_a_model_with_a_sparse_buffer_is_exported_or_refused(tmp_path):
    model = Small()
    model.links = model.links.to_sparse()
    model.encode = lambda x: (model.mu(torch.sparse.mm(model.links, x.T).T), model.logvar(x))
    try:
        vae_export.export(model, tmp_path / "bundle", example=X, posterior="logvar", formats=("onnx",))
    except ExportError:
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("pixels", "threads"), [(16, 1), (2**20, 2)])
def test_a_small_model_runs_in_one_thread_and_the_number_is_restored(pixels, threads):
    model, before = nn.Linear(64, 128), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ZeroDivisionError), fitting_threads(model, torch.zeros(3, 1, pixels)):
            1 / (torch.get_num_threads() - threads)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
