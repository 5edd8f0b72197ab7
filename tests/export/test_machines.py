"""Where and how a training computes: devices, precision, parts of a batch, an average of the weights."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib
import json
import math

import pytest
import safetensors
import safetensors.torch
import torch

from vae_export.errors import TrainingError
from vae_export.training import checkpoint, machine, objective, resume
from vae_export.training.config import DataConfig, ModelConfig, TrainConfig
from vae_export.training.descent import Batch, Descent
from vae_export.training.loop import train
from vae_export.training.model import VAE, reparameterize
from vae_export.training.processes import Processes
from vae_export.training.step import Objective
from vae_runtime.errors import DeviceError, InputError

module = importlib.import_module("vae_export.training.loop")

MODEL = ModelConfig(latent=4, hidden=(16,))
TRAINING = TrainConfig(epochs=3, batch_size=64, learning_rate=3e-3, gradient_clip=50, binarise="stochastic", threads=1)


def run(folder, source, **changes):
    return train(folder, MODEL, dataclasses.replace(TRAINING, **changes), DataConfig(str(source)), progress=False)


def curve(folder):
    """The figures of training and validation, epoch by epoch."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [list(line[part].values()) for line in lines for part in ("train", "validation")]


def weights(folder):
    return safetensors.torch.load_file(folder / "model.safetensors")


def interrupted(folder, source, monkeypatch, after=1, **changes):
    """Train so many epochs, and be interrupted in the next."""
    validate = module._Training._validate

    def stop(self, epoch):
        if epoch > after:
            raise KeyboardInterrupt
        return validate(self, epoch)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(module._Training, "_validate", stop)
        run(folder, source, **changes)
    return folder / "state.safetensors"


def change_metadata(path, change):
    """Write a safetensors file anew with other metadata."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    change(metadata)
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, metadata)


def test_a_device_that_is_missing_is_refused_with_what_pytorch_says(digits_npy, tmp_path):
    missing = "cuda:99" if torch.cuda.is_available() else "cuda"
    with pytest.raises(DeviceError, match=rf"^train\.device: expected a device .*, got '{missing}.*: .*; choose anoth"):
        run(tmp_path / "run", digits_npy, device=missing)
    if not torch.backends.mps.is_available():
        with pytest.raises(DeviceError, match=r"got 'mps': .*MPS.*; choose another"):
            machine.find_device("mps")
    assert not (tmp_path / "run").exists()
    with pytest.raises(DeviceError, match=r"cpu or cuda for 2 processes.* got 'cuda:1'; leave the number"):
        machine.find_device("cuda:1", 0, 2)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CPU", "cpu:1", "", 0, None])
def test_a_name_that_is_no_devices_is_refused(name):
    with pytest.raises(InputError, match=r"^train\.device: expected one of cpu, cuda, cuda:N, mps, auto, got"):
        TrainConfig(device=name)


def test_the_run_says_what_it_computes_on(digits_npy, tmp_path, capsys):
    train(tmp_path, MODEL, dataclasses.replace(TRAINING, epochs=1), DataConfig(str(digits_npy)))
    assert "training on cpu, 1 thread" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="auto is a GPU here")
def test_auto_is_the_device_that_is_there_and_may_be_another_when_a_run_goes_on(digits_npy, tmp_path, monkeypatch):
    interrupted(tmp_path / "run", digits_npy, monkeypatch, device="auto")
    assert checkpoint.read_info(tmp_path / "run").train.device == "cpu"
    assert run(tmp_path / "run", digits_npy, device="cpu").resumed_epoch == 1
    for other in ({"precision": "bfloat16"}, {"ema": 0.9}, {"accumulate": 2}):
        with pytest.raises(TrainingError, match=rf"train\.{next(iter(other))} is .*, asked for"):
            run(tmp_path / "run", digits_npy, **other)


@pytest.mark.parametrize("free_bits", [0.0, 0.05])
def test_parts_of_a_batch_give_the_curve_of_the_whole(digits_npy, tmp_path, free_bits):
    """46 of the 234 rows at a time in 7 parts; the last batch has 4, fewer than there are parts."""
    changes = {"free_bits": free_bits, "batch_size": 46, "importance_samples": 1 if free_bits else 2}
    run(tmp_path / "whole", digits_npy, **changes)
    run(tmp_path / "parts", digits_npy, accumulate=7, **changes)
    for whole, parts in zip(curve(tmp_path / "whole"), curve(tmp_path / "parts"), strict=True):
        assert parts == pytest.approx(whole, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("wrong", ["the means of each part alone", "parts of equal weight"])
def test_parts_that_are_put_together_wrongly_are_seen(digits_npy, tmp_path, monkeypatch, wrong):
    changes = {"free_bits": 0.05, "batch_size": 60}
    run(tmp_path / "whole", digits_npy, **changes)
    if wrong == "parts of equal weight":
        parts = Descent._parts
        monkeypatch.setattr(
            Descent, "_parts", lambda self, batch: [part._replace(counted=8) for part in parts(self, batch)]
        )
    else:
        monkeypatch.setattr(Descent, "_costing", lambda self, *rest: None)
    run(tmp_path / "parts", digits_npy, accumulate=7, **changes)
    assert any(
        parts != pytest.approx(whole, rel=1e-5, abs=1e-6)
        for whole, parts in zip(curve(tmp_path / "whole"), curve(tmp_path / "parts"), strict=True)
    )


def test_the_objective_that_a_step_gives_is_that_of_all_its_parts():
    """It is what a training looks at for a number that is not finite. Each row keeps its condition."""
    random = torch.Generator().manual_seed(0)
    x, eps = torch.rand(7, 5, generator=random).round(), torch.randn(1, 7, 2, generator=random)
    given = {"pose": 9 * torch.randn(7, 2, generator=random)}
    vae = VAE(ModelConfig(observation_shape=(5,), latent=2, hidden=(), conditions={"pose": {"shape": [2]}}))
    expected = Objective(vae)(x, eps, 0.5, conditions=given)[0].item()
    for parts in (1, 3, 9):
        descent = Descent(copy.deepcopy(vae), TrainConfig(accumulate=parts), Processes(), torch.device("cpu"))
        goal, sums = descent.step(Batch(x, eps, 7, 7, given), 0.5, 0.0, 1e-3)
        assert goal.item() == pytest.approx(expected, rel=1e-5)
        assert (sums[1] - 0.5 * sums[2]).item() == pytest.approx(7 * expected, rel=1e-5)
    assert Objective(vae)(x, eps, 0.5, conditions={"pose": given["pose"].roll(1, 0)})[0].item() != pytest.approx(
        expected, rel=1e-3
    )


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_the_precision_learns_nearly_the_same_with_weights_in_float32(
    digits_npy, tmp_path, monkeypatch, precision
):
    whole = run(tmp_path / "whole", digits_npy, precision=precision, epochs=2).folder
    run(tmp_path / "float32", digits_npy, epochs=2)
    assert {tensor.dtype for tensor in weights(whole).values()} == {torch.float32}
    ours, reference = curve(whole), curve(tmp_path / "float32")
    assert ours[0] != reference[0]
    assert ours[-1] == pytest.approx(reference[-1], rel=0.02, abs=0.02)
    # With float16, the factor of the gradients goes on too.
    interrupted(tmp_path / "again", digits_npy, monkeypatch, precision=precision, epochs=2)
    run(tmp_path / "again", digits_npy, precision=precision, epochs=2)
    assert curve(tmp_path / "again") == curve(whole)
    assert all(torch.equal(tensor, weights(whole)[name]) for name, tensor in weights(tmp_path / "again").items())


def test_validation_is_in_float32_whatever_is_trained_in(digits_npy, tmp_path):
    """No weight changes by such a rate."""
    for precision in ("bfloat16", "float32"):
        run(tmp_path / precision, digits_npy, precision=precision, epochs=1, learning_rate=1e-30)
    (trained, validated), (reference, expected) = (curve(tmp_path / name) for name in ("bfloat16", "float32"))
    assert validated == expected
    assert trained != reference


def test_gradients_too_large_for_float16_are_skipped_and_the_steps_counted(digits_npy, tmp_path, monkeypatch):
    state = interrupted(tmp_path, digits_npy, monkeypatch, precision="float16", gradient_clip=0)
    with safetensors.safe_open(state, framework="pt") as file:
        metadata = file.metadata()
    scale = json.loads(metadata["scaler"])["scale"]
    made = set(json.loads(metadata["steps"]).values())
    skipped = round(torch.log2(torch.tensor(2.0**16 / scale)).item())
    assert made == {4 - skipped}  # of the 4 steps of an epoch


def test_gradients_are_clipped_at_their_own_size_in_half_the_precision(digits_npy, tmp_path, monkeypatch):
    """Not at that of the scaled ones, of which Adam would hide it."""
    sizes = []
    for precision in ("float16", "float32"):
        path = interrupted(tmp_path / precision, digits_npy, monkeypatch, precision=precision, gradient_clip=0.1)
        state = safetensors.torch.load_file(path)
        moments = [tensor.flatten() for name, tensor in sorted(state.items()) if name.startswith("exp_avg.")]
        sizes.append(torch.cat(moments).norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.5)
    assert max(sizes) < 0.1
    state = safetensors.torch.load_file(interrupted(tmp_path / "free", digits_npy, monkeypatch, gradient_clip=0))
    assert torch.cat([each.flatten() for name, each in state.items() if name.startswith("exp_avg.")]).norm() > 0.1


def test_the_factor_of_the_gradients_is_part_of_the_state(tmp_path):
    def trained(scale):
        model = torch.nn.Linear(2, 2)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(torch.zeros(()))
        return resume.Trained(model, torch.optim.Adam(model.parameters()), scaler)

    before, after = trained(8.0), trained(2.0)
    identity = {"model": {}, "train": {}, "data": {}}
    state = resume.State(1, [{"validation": {"bound": 0.0}}], 1, 0.0, before.model.state_dict())
    resume.save(tmp_path, state, identity, before)
    assert after.scaler.get_scale() == 2.0
    assert resume.load(tmp_path, identity, after, 1) is not None
    assert after.scaler.get_scale() == 8.0


def test_all_that_a_step_changes_is_taken_over_by_another_process():
    random = torch.Generator().manual_seed(0)
    x, eps = torch.rand(7, 5, generator=random).round(), torch.randn(1, 7, 2, generator=random)
    batch, config = Batch(x, eps, 7, 7, {}), TrainConfig(ema=0.5, precision="float16")

    def descent():
        vae = VAE(ModelConfig(observation_shape=(5,), latent=2, hidden=()))
        return Descent(vae, config, Processes(), torch.device("cpu"))

    first, other = descent(), descent()
    for _ in range(3):
        first.step(batch, 1.0, 0.0, 1e-2)
    other.trained.load_state_dict(copy.deepcopy(first.trained.state_dict()))
    # What follows is equal, too.
    for _ in range(2):
        kept, same = first.kept(), other.kept()
        assert all(torch.equal(tensor, same[name]) for name, tensor in kept.items())
        goals = [each.step(batch, 1.0, 0.0, 1e-2)[0] for each in (first, other)]
        assert torch.equal(*goals)
        assert first.trained.scaler.state_dict() == other.trained.scaler.state_dict()


def test_the_sums_of_the_objective_stay_in_float32():
    vae = VAE(ModelConfig(observation_shape=(4096,), latent=2, hidden=(4,)))
    random = torch.Generator().manual_seed(0)
    x, eps = torch.rand(3, 4096, generator=random).round(), torch.randn(1, 3, 2, generator=random)
    goal, figures = Objective(vae, torch.bfloat16)(x, eps, 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        mu, logvar = vae.encode(x)
        answer = vae.decode(reparameterize(mu.float(), logvar.float(), eps)[0])
    assert answer.dtype == torch.bfloat16
    assert goal.dtype == torch.float32
    expected, half = (objective.log_likelihood(x, each, "bernoulli").mean() for each in (answer.float(), answer))
    assert figures[1] == expected
    assert half != expected


def test_the_average_of_the_weights_is_validated_and_kept(digits_npy, tmp_path, monkeypatch):
    seen = []
    descend = Descent._descend

    def watched(self, rate):
        descend(self, rate)
        seen.append({name: tensor.clone() for name, tensor in self.trained.model.state_dict().items()})

    with monkeypatch.context() as patch:
        patch.setattr(Descent, "_descend", watched)
        run(tmp_path / "ema", digits_npy, ema=0.9)
    average = seen[0]
    for step in seen[1:]:
        average = {name: 0.9 * average[name] + 0.1 * step[name] for name in average}
    kept = weights(tmp_path / "ema")
    for name, tensor in kept.items():
        assert torch.allclose(tensor, average[name], rtol=1e-5, atol=1e-7)
    assert any(not torch.allclose(tensor, seen[-1][name], rtol=1e-5, atol=1e-7) for name, tensor in kept.items())
    assert checkpoint.read_info(tmp_path / "ema").train.ema == 0.9
    # The weights that are trained are those of a run without an average; what is validated is not.
    run(tmp_path / "plain", digits_npy)
    assert curve(tmp_path / "ema")[0::2] == curve(tmp_path / "plain")[0::2]
    assert curve(tmp_path / "ema")[1::2] != curve(tmp_path / "plain")[1::2]
    interrupted(tmp_path / "again", digits_npy, monkeypatch, ema=0.9)
    run(tmp_path / "again", digits_npy, ema=0.9)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in weights(tmp_path / "again").items())


def test_each_epoch_has_an_order_and_noise_of_its_own(digits_npy, tmp_path, monkeypatch):
    seen = []
    step = Descent.step
    monkeypatch.setattr(Descent, "step", lambda self, batch, *rest: seen.append(batch) or step(self, batch, *rest))
    run(tmp_path / "run", digits_npy, binarise="none", epochs=2, batch_size=512)
    run(tmp_path / "again", digits_npy, binarise="none", epochs=2, batch_size=512)
    first, second, *again = seen
    for one, other in zip((first, second), again, strict=True):
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.eps, other.eps)
    assert not torch.equal(first.x, second.x)
    assert not torch.equal(first.eps, second.eps)
    assert torch.equal(*(batch.x.flatten(1).unique(dim=0) for batch in (first, second)))


def test_the_weight_of_the_kl_and_the_rate_of_each_step_are_those_of_the_plan(digits_npy, tmp_path, monkeypatch):
    """Four steps an epoch: the weight rises over the first two epochs, and the rate falls by half a cosine."""
    seen, used = [], []
    step = Descent.step

    def watched(self, batch, *rest):
        result = step(self, batch, *rest)
        seen.append(rest)
        used.append(self.trained.optimizer.param_groups[0]["lr"])
        return result

    monkeypatch.setattr(Descent, "step", watched)
    changes = {"beta": 2.0, "kl_warmup_epochs": 2, "final_learning_rate": 0.1, "free_bits": 0.25}
    run(tmp_path, digits_npy, **changes)
    weights, bits, rates = zip(*seen, strict=True)
    assert weights == pytest.approx([*(number / 4 for number in range(8)), 2, 2, 2, 2])
    assert set(bits) == {0.25}
    expected = [3e-3 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * number / 12))) for number in range(12)]
    assert rates == pytest.approx(expected)
    assert tuple(used) == rates


def test_a_state_from_before_there_were_averages_goes_on(digits_npy, tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", digits_npy).folder
    state = interrupted(tmp_path / "run", digits_npy, monkeypatch)
    new = ("device", "precision", "accumulate", "compile", "ema")

    def older(metadata):
        del metadata["steps"], metadata["scaler"]
        identity = json.loads(metadata["identity"])
        identity["train"] = {name: value for name, value in identity["train"].items() if name not in new}
        metadata["identity"] = json.dumps(identity)

    change_metadata(state, older)
    config = tmp_path / "run" / "config.json"
    content = json.loads(config.read_text())
    content["train"] = {name: value for name, value in content["train"].items() if name not in new}
    config.write_text(json.dumps(content))
    assert run(tmp_path / "run", digits_npy).resumed_epoch == 1
    assert all(torch.equal(tensor, weights(whole)[name]) for name, tensor in weights(tmp_path / "run").items())


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_a_compiled_step_gives_the_same_curve(digits_npy, tmp_path):
    run(tmp_path / "plain", digits_npy)
    run(tmp_path / "compiled", digits_npy, compile=True)
    for plain, compiled in zip(curve(tmp_path / "plain"), curve(tmp_path / "compiled"), strict=True):
        assert compiled == pytest.approx(plain, rel=1e-4, abs=1e-5)
    descent = Descent(
        VAE(ModelConfig(observation_shape=(4,))), TrainConfig(compile=True), Processes(), torch.device("cpu")
    )
    assert descent._objective._compiled_call_impl is not None
