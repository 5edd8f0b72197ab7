"""Modules of the user's are trained as built-in ones are where and how it is asked: averages, precision, processes."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from launch import launched

from vae_export import export
from vae_export.training import checkpoint, own_vae
from vae_export.training.config import DataConfig, TrainConfig
from vae_export.training.data.batches import read
from vae_export.training.look import BATCH
from vae_export.training.loop import train
from vae_export.training.randomness import generator
from vae_export.training.step import Objective
from vae_runtime import load
from vae_runtime.errors import InputError

TRAINING = TrainConfig(epochs=2, batch_size=60, learning_rate=3e-3, binarise="stochastic", threads=1)
MODELS = '''
import os
import signal

import torch
from torch import nn


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 8))
        self.decoder = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 64), nn.Sigmoid())
        self.unread = nn.Parameter(torch.ones(3))

    def encode(self, x):
        return self.encoder(x).chunk(2, 1)

    def decode(self, z):
        return self.decoder(z).view(-1, 1, 8, 8)

    def forward(self, x):
        mu, log_var = self.encode(x)
        return self.decode(mu + torch.randn_like(mu) * torch.exp(0.5 * log_var)), mu, log_var


class Shaped(Dense):
    """Its last layer is one that torch.compile stops at."""

    def __init__(self):
        super().__init__()
        self.decoder.append(nn.Unflatten(1, (1, 8, 8)))

    def decode(self, z):
        return self.decoder(z)


class Tied(Dense):
    """A layer with two names."""

    def __init__(self):
        super().__init__()
        self.again = self.encoder[1]


class Normed(Dense):
    def __init__(self):
        super().__init__()
        self.encoder.insert(2, nn.BatchNorm1d(16))
        self.encoder.insert(4, nn.Dropout(0.2))


class Noting(Dense):
    """Notes a number that it draws in training mode, in a file for each process."""

    def encode(self, x):
        if self.training:
            with open("drawn" + os.environ.get("RANK", "0"), "a") as file:
                print(torch.rand(()).item(), file=file)
        return super().encode(x)


def noted(x, random):
    """Changes nothing, and notes a number that it draws."""
    with open("changed" + os.environ.get("RANK", "0"), "a") as file:
        print(torch.rand((), generator=random).item(), file=file)
    return x


class Choosing(Dense):
    """Leaves a layer out where it is trained on many rows."""

    def __init__(self):
        super().__init__()
        self.more = nn.Linear(4, 4)

    def decode(self, z):
        return super().decode(z if self.training and len(z) > 8 else z + self.more(z))


class FixedEncoder(Normed):
    def __init__(self):
        super().__init__()
        self.encoder.requires_grad_(False)


class FixedDecoder(Dense):
    def __init__(self):
        super().__init__()
        self.decoder.requires_grad_(False)


class WithoutWeights(Dense):
    """Its encoder projects onto fixed directions."""

    def __init__(self):
        super().__init__()
        self.encoder, self.unread = nn.Identity(), None
        self.register_buffer("directions", torch.linalg.qr(torch.randn(64, 4))[0])

    def encode(self, x):
        mu = x.flatten(1) @ self.directions
        return mu, mu * 0 - 2


class WithoutWeightsBesideUnread(WithoutWeights):
    def __init__(self):
        super().__init__()
        self.unread = nn.Parameter(torch.zeros(2))


class HiddenFixedEncoder(FixedEncoder):
    def encode(self, x):
        with torch.no_grad():
            return super().encode(x)


class Killed(Normed):
    def train(self, mode=True):
        self.epochs = getattr(self, "epochs", 0) + mode
        if os.environ.get("KILLED") == os.environ.get("RANK", "0") and self.epochs == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().train(mode)
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Modules in a file of the working directory, `mine.py`."""
    (tmp_path / "mine.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("mine", None)


def run(folder, name, source, **changes):
    training = dataclasses.replace(TRAINING, **changes)
    return train(
        folder,
        f"mine:{name}",
        training,
        DataConfig(str(source)),
        likelihood="bernoulli",
        prior="normal",
        progress=False,
    )


def curve(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [value for line in lines for part in ("train", "validation") for value in line[part].values()]


def weights(folder):
    return safetensors.torch.load_file(folder / "model.safetensors")


@pytest.mark.usefixtures("mine")
def test_a_layer_with_two_names_is_kept_as_its_average(digits_npy, tmp_path):
    run(tmp_path / "average", "Tied", digits_npy, ema=0.9)
    run(tmp_path / "plain", "Tied", digits_npy)
    kept, last = weights(tmp_path / "average"), weights(tmp_path / "plain")
    assert torch.equal(kept["again.weight"], kept["encoder.1.weight"])
    assert not torch.allclose(kept["again.weight"], last["again.weight"], rtol=1e-3)


@pytest.mark.usefixtures("mine")
def test_the_average_is_what_is_exported(digits_npy, tmp_path):
    folder = run(tmp_path / "run", "Normed", digits_npy, ema=0.9).folder
    bundle = export(folder, tmp_path / "bundle", formats=("onnx",)).path
    module, info = checkpoint.load(folder)
    assert info.train.ema == 0.9
    z = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    with torch.no_grad():
        expected = module.decode(torch.from_numpy(z)).numpy()
    np.testing.assert_allclose(load(bundle).decode(z), expected, atol=1e-5)
    assert "average" in (bundle / "README.md").read_text()


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_the_precision_learns_nearly_the_same(digits_npy, tmp_path, precision):
    run(tmp_path / "half", "Dense", digits_npy, precision=precision)
    run(tmp_path / "whole", "Dense", digits_npy)
    assert {tensor.dtype for tensor in weights(tmp_path / "half").values()} == {torch.float32}
    assert curve(tmp_path / "half") != curve(tmp_path / "whole")
    assert curve(tmp_path / "half") == pytest.approx(curve(tmp_path / "whole"), rel=0.03, abs=0.03)


@pytest.mark.usefixtures("mine")
def test_parts_of_a_batch_give_the_curve_of_the_whole(digits_npy, tmp_path):
    run(tmp_path / "whole", "Dense", digits_npy)
    run(tmp_path / "parts", "Dense", digits_npy, accumulate=7)
    assert curve(tmp_path / "parts") == pytest.approx(curve(tmp_path / "whole"), rel=1e-5, abs=1e-6)


@pytest.mark.long
@pytest.mark.usefixtures("mine")
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_compiled_step_gives_the_same_curve(digits_npy, tmp_path):
    run(tmp_path / "plain", "Dense", digits_npy)
    run(tmp_path / "compiled", "Dense", digits_npy, compile=True)
    assert curve(tmp_path / "compiled") == pytest.approx(curve(tmp_path / "plain"), rel=1e-4, abs=1e-5)


@pytest.mark.long
@pytest.mark.usefixtures("mine")
def test_a_step_that_is_compiled_in_parts_gives_the_same_curve(digits_npy, tmp_path, python):
    run(tmp_path / "plain", "Shaped", digits_npy)
    # The command in a process of its own: here PyTorch compiles other parts.
    command = "train --out compiled --model mine:Shaped --likelihood bernoulli --prior normal --compile --epochs 2"
    options = "--batch-size 60 --learning-rate 3e-3 --binarise stochastic --threads 1 --data"
    arguments = ["-W", "default", "-m", "vae_export", *command.split(), *options.split(), digits_npy]
    done = python(*arguments, cwd=tmp_path, env={"PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == 0, done.stderr
    assert curve(tmp_path / "compiled") == pytest.approx(curve(tmp_path / "plain"), rel=1e-4, abs=1e-5)


@pytest.mark.usefixtures("mine")
def test_one_row_that_a_model_fails_on_is_found_before_it_is_trained(digits_npy, tmp_path):
    """233 of the 234 rows at a time leave one, 77 leave three, which are one and two in two parts."""
    words = (
        r"^train\.batch_size: expected at least {} rows in the last batch, got {} of 234{}; one row alone does not do: "
    )
    for size, parts, found in (
        (233, 1, words.format(2, 1, "")),
        (77, 2, words.format(4, 3, " in 2 parts")),
        (1, 1, words.format(2, 1, "")),
    ):
        with pytest.raises(
            InputError, match=found + r"encode: fails in training mode: .*more than 1 value.*; choose \d"
        ):
            run(tmp_path / "run", "Normed", digits_npy, batch_size=size, accumulate=parts)
    assert not (tmp_path / "run").exists()
    assert not run(tmp_path / "dense", "Dense", digits_npy, batch_size=233).already_finished
    size = 78
    assert not run(tmp_path / "run", "Normed", digits_npy, batch_size=size).already_finished


@pytest.mark.usefixtures("mine")
def test_what_a_module_draws_differs_from_epoch_to_epoch_and_follows_from_the_seed(digits_npy, tmp_path):
    drawn = []
    for seed in (0, 0, 1):
        folder = tmp_path / str(len(drawn))
        run(folder, "Noting", digits_npy, seed=seed, batch_size=512)
        drawn.append(Path("drawn0").read_text().split()[-2:])
        sys.modules.pop("mine", None)
    assert drawn[0] == drawn[1]
    assert len({*drawn[0], *drawn[2]}) == 4


@pytest.mark.usefixtures("mine")
def test_modes_and_frozen_weights_of_a_module_stay(digits_npy, tmp_path):
    import mine

    module = mine.Normed()
    module.encoder[2].eval()
    module.decoder[0].bias.requires_grad_(False)
    before = module.decoder[0].bias.clone()
    modes = [each.training for each in module.modules()]
    train(
        tmp_path / "run",
        module,
        TRAINING,
        DataConfig(str(digits_npy)),
        likelihood="bernoulli",
        prior="normal",
        progress=False,
    )
    assert [each.training for each in module.modules()] == modes
    assert len(set(modes)) == 2
    assert {name for name, weight in module.named_parameters() if not weight.requires_grad} == {"decoder.0.bias"}
    assert torch.equal(module.decoder[0].bias, before)


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("name", "kept", "line"),
    [
        ("FixedEncoder", "encoder.", "they are frozen (requires_grad=False): encoder.1.weight, encoder.1.bias, "),
        ("FixedDecoder", "decoder.", "they are frozen (requires_grad=False): decoder.0.weight, decoder.0.bias, "),
        ("HiddenFixedEncoder", "encoder.", "they are frozen (requires_grad=False): encoder.1.weight, encoder.1.bias, "),
        ("WithoutWeights", "directions", None),
        ("WithoutWeightsBesideUnread", "directions", None),
    ],
)
def test_one_half_of_a_module_is_trained_alone(digits_npy, tmp_path, name, kept, line):
    outcome = run(tmp_path / "run", name, digits_npy, ema=0.9)
    lines = [each for each in outcome.info.model.recognised if "frozen" in each]
    assert (not lines) if line is None else lines[0].startswith(f"not trained, since {line}")
    before, after = (
        own_vae.made(f"mine:{name}", generator(TRAINING.seed, "weights").initial_seed()).state_dict(),
        weights(tmp_path / "run"),
    )
    still = {each for each, tensor in after.items() if torch.equal(tensor, before[each])}
    statistics = {"encoder.2.running_mean", "encoder.2.running_var", "encoder.2.num_batches_tracked"}
    assert still - {"unread"} == {each for each in after if each.startswith(kept)} - statistics
    bounds = [
        json.loads(each)["validation"]["bound"] for each in (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    ]
    assert bounds[1] > bounds[0]
    export(tmp_path / "run", tmp_path / "bundle", formats=("onnx",))
    assert load(tmp_path / "bundle").sample(2, seed=0).shape == (2, 1, 8, 8)


# Several processes.


def torchrun(folder, name, source="digits", killed="", processes=2, **options):
    arguments = [f"--{option.replace('_', '-')}={value}" for option, value in options.items()]
    return launched(
        *("-m", "vae_export", "train", "--data", str(source), "--out", str(folder), "--model", f"mine:{name}"),
        *("--likelihood", "bernoulli", "--prior", "normal", "--learning-rate", "3e-3"),
        *("--binarise", "stochastic", "--threads", "1"),
        *arguments,
        processes=processes,
        KILLED=killed,
    )


@pytest.mark.long
@pytest.mark.usefixtures("mine")
def test_two_processes_give_the_curve_of_one(digits_npy, tmp_path):
    options = {"epochs": 2, "batch_size": 233, "ema": 0.9, "precision": "float32", "augment": "mine:noted"}
    done = torchrun(tmp_path / "two", "Noting", digits_npy, **options)
    assert done.returncode == 0, done.stderr
    run(tmp_path / "one", "Dense", digits_npy, batch_size=233, ema=0.9)
    assert curve(tmp_path / "two") == pytest.approx(curve(tmp_path / "one"), rel=1e-5, abs=1e-6)
    assert torch.equal(weights(tmp_path / "two")["unread"], torch.ones(3))
    # What modules draw, such as dropout, and what augmentation draws, is each process' own.
    for name, count in (("drawn", 2), ("changed", 4)):
        drawn = [Path(f"{name}{rank}").read_text().split()[-count:] for rank in (0, 1)]
        assert len({*drawn[0], *drawn[1]}) == 2 * count


@pytest.mark.long
@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize("name", ["FixedDecoder", "WithoutWeights"])
def test_one_half_is_trained_alone_in_two_processes(digits_npy, tmp_path, name):
    done = torchrun(tmp_path / "two", name, digits_npy, epochs=2, batch_size=233)
    assert done.returncode == 0, done.stderr
    run(tmp_path / "one", name, digits_npy, batch_size=233)
    assert curve(tmp_path / "two") == pytest.approx(curve(tmp_path / "one"), rel=1e-5, abs=1e-6)


@pytest.mark.long
@pytest.mark.usefixtures("mine")
def test_what_is_validated_in_two_processes_is_what_is_kept(tmp_path):
    """Running statistics are those of the first process's rows, in both."""
    done = torchrun(tmp_path / "run", "Normed", epochs=1, batch_size=128, validation_fraction=0.4)
    assert done.returncode == 0, done.stderr
    module, info = checkpoint.load(tmp_path / "run")
    x = read(checkpoint.run_data(info).validation, slice(None)).x
    assert len(x) > 2 * BATCH
    vae = own_vae.again(module, info.model, x[:8])
    random, total = generator(info.train.seed, "validation noise"), torch.zeros(4, dtype=torch.float64)
    with torch.no_grad():
        for number, rows in enumerate(x.split(BATCH)):
            eps = torch.randn((1, len(rows), 4), generator=random)
            seen = (torch.rand(rows.shape, generator=generator(0, f"binarise validation {number}")) < rows).float()
            total += Objective(vae)(seen, eps, 1.0)[1].double() * len(rows)
    assert curve(tmp_path / "run")[-4:] == pytest.approx((total / len(x)).tolist(), rel=1e-6)


@pytest.mark.long
@pytest.mark.usefixtures("mine")
def test_killed_in_two_processes_it_goes_on_to_the_same_weights(digits_npy, tmp_path):
    """Batch normalization and dropout, of which each process has its own."""
    options = {"epochs": 4, "batch_size": 61, "ema": 0.9}
    whole = torchrun(tmp_path / "whole", "Killed", digits_npy, **options)
    assert whole.returncode == 0, whole.stderr
    assert torchrun(tmp_path / "run", "Killed", digits_npy, killed="1", **options).returncode != 0
    assert not (tmp_path / "run" / "curve.png").exists()
    done = torchrun(tmp_path / "run", "Killed", digits_npy, **options)
    assert done.returncode == 0, done.stderr
    assert "resumed from epoch" in done.stdout
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(tensor, weights(tmp_path / "run")[name]), name


@pytest.mark.long
@pytest.mark.usefixtures("mine")
def test_weights_that_a_batch_leaves_out_end_several_processes_with_the_reason(digits_npy, tmp_path):
    assert not run(tmp_path / "one", "Choosing", digits_npy).already_finished
    done = torchrun(tmp_path / "two", "Choosing", digits_npy, epochs=2, batch_size=60)
    assert done.returncode != 0
    lines = re.findall(r"error: .*", done.stderr)
    assert len(lines) == 1
    assert "model: expected every batch to use the same weights" in lines[0]


@pytest.mark.long
@pytest.mark.usefixtures("mine")
def test_one_row_for_a_process_is_found_before_it_is_trained(digits_npy, tmp_path):
    done = torchrun(tmp_path / "run", "Normed", digits_npy, epochs=1, batch_size=77)
    lines = re.findall(r"error: .*", done.stderr)
    assert len(lines) == 1, done.stderr
    assert "--batch-size: expected at least 4 rows in the last batch, got 3 of 234 in 2 processes; one row" in lines[0]
    assert not Path(tmp_path / "run").exists()
