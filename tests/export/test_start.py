"""Runs that begin with the weights of another one."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import re
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from launch import launched
from PIL import Image
from sklearn.datasets import load_digits

from vae_export import DataConfig, ModelConfig, TrainConfig, TrainingError, export, train
from vae_export.cli import main
from vae_export.training import checkpoint
from vae_runtime import load
from vae_runtime.errors import InputError

loop = importlib.import_module("vae_export.training.loop")

MODEL = ModelConfig(latent=4, hidden=(16,))
CONV = ModelConfig("conv", latent=4, hidden=(16,), channels=(4,))
TRAINING = TrainConfig(epochs=2, batch_size=64, learning_rate=3e-3, binarise="stochastic", threads=1)
STILL = dataclasses.replace(TRAINING, epochs=1, learning_rate=1e-30)
OWN = '''
import torch
from torch import nn


class Mine(nn.Module):
    def __init__(self, width=12):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.BatchNorm1d(width), nn.Linear(width, 8))
        self.decoder = nn.Sequential(nn.Linear(4, 64), nn.Unflatten(1, (1, 8, 8)), nn.Sigmoid())

    def encode(self, x):
        mu, log_var = self.encoder(x).chunk(2, 1)
        return mu, log_var

    def decode(self, z):
        return self.decoder(z)


def wide():
    return Mine(13)


class Scaled(Mine):
    """With a scale that is trained."""

    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))

    def decode(self, z):
        return torch.distributions.Normal(self.decoder(z), self.log_scale.exp())


class Stateful(Mine):
    def get_extra_state(self):
        return {"calls": 1}

    def set_extra_state(self, state):
        pass
'''


def run(folder, model, training, source, **changes):
    given = {name: changes.pop(name) for name in ("likelihood", "posterior") if name in changes}
    return train(folder, model, training, DataConfig(str(source), **changes), progress=False, **given)


def tuned(folder, start, source, model=MODEL, training=STILL, **changes):
    return run(folder, model, dataclasses.replace(training, start_from=str(start)), source, **changes)


def weights(folder):
    return safetensors.torch.load_file(folder / "model.safetensors")


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def base(digits_npy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("start") / "base"
    run(folder, MODEL, TRAINING, digits_npy)
    return folder


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("mine")
    sys.modules.pop("mine")


def test_the_first_weights_are_those_of_the_other_run(base, digits_npy, tmp_path):
    tuned(tmp_path / "tuned", base, digits_npy)
    assert same(weights(tmp_path / "tuned"), weights(base))
    run(tmp_path / "fresh", MODEL, STILL, digits_npy)
    assert not same(weights(tmp_path / "fresh"), weights(base))


def test_a_convolutional_run_begins_with_another_s_weights_and_changes_them(digits_npy, tmp_path):
    run(tmp_path / "base", CONV, TRAINING, digits_npy)
    tuned(tmp_path / "still", tmp_path / "base", digits_npy, CONV)
    assert same(weights(tmp_path / "still"), weights(tmp_path / "base"))
    tuned(tmp_path / "tuned", tmp_path / "base", digits_npy, CONV, TRAINING)
    changed, first = weights(tmp_path / "tuned"), weights(tmp_path / "base")
    # A bernoulli likelihood has no scale.
    assert [name for name, tensor in first.items() if torch.equal(changed[name], tensor)] == ["log_scale"]


def test_config_manifest_and_card_say_where_the_weights_come_from(base, digits_npy, tmp_path):
    decayed = dataclasses.replace(STILL, weight_decay=0.25)
    tuned(tmp_path / "tuned", base, digits_npy, training=decayed, license="CC BY-NC 4.0")
    (start,) = checkpoint.read_info(tmp_path / "tuned").starts
    first = checkpoint.read_info(base)
    assert (start.digest, start.train) == (checkpoint.weights_digest(base), first.train)
    assert (start.data, start.data_digest) == (first.provenance.name, first.provenance.digest)
    assert start.epoch == first.result.best_epoch
    np.save(tmp_path / "later.npy", (load_digits().images[300:500, None] * 15).astype(np.uint8))
    tuned(tmp_path / "third", tmp_path / "tuned", tmp_path / "later.npy", license="CC0 1.0")
    export(tmp_path / "third", tmp_path / "bundle", formats=["onnx"])
    recorded = load(tmp_path / "bundle").manifest.training
    digests = [start.digest, checkpoint.weights_digest(tmp_path / "tuned")]
    assert [each["digest"] for each in recorded["starts"]] == digests
    assert [each["train"]["weight_decay"] for each in recorded["starts"]] == [0, 0.25]
    # No path of the machine that made it.
    manifest = (tmp_path / "bundle" / "manifest.json").read_text()
    assert "start_from" not in manifest
    assert str(tmp_path) not in manifest
    lines = (tmp_path / "bundle" / "README.md").read_text().splitlines()
    first, second, then = (
        number for number, line in enumerate(lines) if re.match("- (First, on|Then, from these)", line)
    )
    assert lines[first].startswith(
        f"- First, on few (license: unknown), up to epoch {start.epoch}. Objective: the ELBO. Ad"
    )
    assert lines[first].endswith(f"seed 0. Binarization: stochastic. Weights: {digests[0]}.")
    assert lines[second].startswith(
        "- Then, from these weights, on few (license: CC BY-NC 4.0), up to epoch 1. Objective"
    )
    assert "AdamW with weight decay 0.25, batches of 64, learning rate 1e-30" in lines[second]
    assert lines[then : then + 2] == ["- Then, from these weights, as follows.", "- Objective: the ELBO."]


def test_a_run_that_was_interrupted_goes_on_to_the_same_weights(base, digits_npy, tmp_path, monkeypatch):
    training = dataclasses.replace(TRAINING, weight_decay=0.1)
    tuned(tmp_path / "whole", base, digits_npy, training=training)
    validate = loop._Training._validate

    def stop(self, epoch):
        if epoch > 1:
            raise KeyboardInterrupt
        return validate(self, epoch)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(loop._Training, "_validate", stop)
        tuned(tmp_path / "cut", base, digits_npy, training=training)
    other = tmp_path / "other"
    run(other, MODEL, dataclasses.replace(TRAINING, seed=1), digits_npy)
    for start, got in ((other, checkpoint.weights_digest(other)), ("", "")):
        with pytest.raises(TrainingError, match=rf"train\.start_from is 'sha256:[0-9a-f]*', asked for '{got}'; choose"):
            tuned(tmp_path / "cut", start, digits_npy, training=training)
    # The run that it began with may lie elsewhere by now.
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("config.json", "model.safetensors"):
        (moved / name).write_bytes((base / name).read_bytes())
    assert tuned(tmp_path / "cut", moved, digits_npy, training=training).resumed_epoch == 1
    assert same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    assert tuned(tmp_path / "cut", base, digits_npy, training=training).already_finished


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (ModelConfig(latent=5, hidden=(16,)), {}, r"the same model: model\.latent is 4, asked for 5; choose another"),
        (ModelConfig(latent=4, hidden=(16,), likelihood="gaussian"), {}, r"model\.likelihood is 'bernoulli', asked"),
        (MODEL, {"seed": 1}, r"the split of these data .*: data\.seed is 0, asked for 1; data for the test"),
        (MODEL, {"test_fraction": 0.2}, r"data\.test_fraction is 0\.1, asked for 0\.2"),
        (MODEL, {"validation_fraction": 0.2}, r"data\.validation_fraction is 0\.1, asked for 0\.2"),
        (MODEL, {"normalise": "none"}, r"of the same meaning: data\.normalise is 'unit', asked for 'none'; give"),
    ],
)
def test_what_does_not_fit_the_other_run_is_refused(base, digits_npy, tmp_path, model, changes, message):
    with pytest.raises(InputError, match=rf"^train\.start_from: .*base: expected .*{message}"):
        tuned(tmp_path / "tuned", base, digits_npy, model, TRAINING, **changes)
    assert not (tmp_path / "tuned").exists()


def test_other_data_may_be_split_otherwise(base, tmp_path):
    np.save(tmp_path / "later.npy", (load_digits().images[300:500, None] * 15).astype(np.uint8))
    tuned(tmp_path / "tuned", base, tmp_path / "later.npy", seed=1, test_fraction=0.2)
    assert same(weights(tmp_path / "tuned"), weights(base))


def test_no_run_on_the_way_may_have_seen_the_test_data(base, digits_npy, tmp_path):
    np.save(tmp_path / "later.npy", (load_digits().images[300:500, None] * 15).astype(np.uint8))
    tuned(tmp_path / "tuned", base, tmp_path / "later.npy")
    with pytest.raises(InputError, match=r"tuned: expected the split of these data .*: data\.seed is 0, asked for 1"):
        tuned(tmp_path / "third", tmp_path / "tuned", digits_npy, seed=1)
    tuned(tmp_path / "third", tmp_path / "tuned", digits_npy)


def test_other_columns_are_refused(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    columns = dict(zip("abc", np.random.default_rng(0).random((3, 90), np.float32), strict=True))
    parquet.write_table(pyarrow.table(columns), tmp_path / "x.parquet")
    run(tmp_path / "base", MODEL, TRAINING, tmp_path / "x.parquet", columns=("a", "b"))
    with pytest.raises(
        InputError, match=r"the same meaning: data\.columns is \('a', 'b'\), asked for \('b', 'a'\); give"
    ):
        tuned(tmp_path / "tuned", tmp_path / "base", tmp_path / "x.parquet", columns=("b", "a"))
    tuned(tmp_path / "tuned", tmp_path / "base", tmp_path / "x.parquet", columns=("a", "b"))


@pytest.mark.parametrize("version", [1, 2])
def test_a_run_that_split_otherwise_is_refused(base, digits_npy, tmp_path, version):
    copied = tmp_path / "base"
    copied.mkdir()
    config = {**json.loads((base / "config.json").read_text()), "format_version": version}
    (copied / "config.json").write_text(json.dumps(config))
    (copied / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes())
    with pytest.raises(
        InputError, match=rf"format_version 3\), got one of format_version {version}, .*; train it again"
    ):
        tuned(tmp_path / "tuned", copied, digits_npy)


def test_a_long_row_of_runs_ends_with_advice(base, digits_npy, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.import_module("vae_export.training.beginning"), "_MAX_STARTS", 1)
    tuned(tmp_path / "second", base, digits_npy)
    with pytest.raises(InputError, match=r"second: expected at most 1 runs that began .*; begin anew on all data"):
        tuned(tmp_path / "third", tmp_path / "second", digits_npy)


def test_the_weights_are_those_of_the_digest(base, digits_npy, tmp_path, monkeypatch):
    """Also where the file is replaced while the data are read."""
    copied = tmp_path / "base"
    copied.mkdir()
    for name in ("config.json", "model.safetensors"):
        (copied / name).write_bytes((base / name).read_bytes())

    def replaced(*arguments):
        (copied / "model.safetensors").unlink()
        return read(*arguments)

    read = loop.load
    monkeypatch.setattr(loop, "load", replaced)
    tuned(tmp_path / "tuned", copied, digits_npy)
    assert checkpoint.read_info(tmp_path / "tuned").starts[0].digest == checkpoint.weights_digest(base)
    assert same(weights(tmp_path / "tuned"), weights(base))


def test_a_name_that_is_no_utf8_is_refused():
    with pytest.raises(
        InputError, match=r"^train\.start_from: expected a name in UTF-8, got 'b\\udcff'; rename the file"
    ):
        TrainConfig(start_from="b\udcff")


def test_a_run_that_is_missing_unfinished_or_damaged_is_refused(base, digits_npy, tmp_path):
    copied = tmp_path / "base"
    copied.mkdir()
    for message in ("holds no config.json", "expected a finished run, got one that goes on", "restore", "whole safet"):
        with pytest.raises(InputError, match=rf"^train\.start_from: {copied}.*{message}"):
            tuned(tmp_path / "tuned", copied, digits_npy)
        config = json.loads((base / "config.json").read_text())
        if message.startswith("holds"):
            config["result"] = None
        elif message == "restore":
            (copied / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:-4])
        (copied / "config.json").write_text(json.dumps(config))
    assert not (tmp_path / "tuned").exists()


def test_a_run_does_not_begin_with_itself(base, digits_npy, tmp_path):
    kept = weights(base)
    for folder in (base, base / ".." / base.name):
        with pytest.raises(InputError, match=r"expected another run than the one to train, got its own folder; choose"):
            tuned(folder, base, digits_npy)
    assert same(weights(base), kept)


@pytest.mark.parametrize("start", [3, [], {"digest": 1}, {"train": {"epochs": 0}}, {"train": {}, "other": 1}])
def test_a_damaged_record_of_a_start_is_refused(base, tmp_path, start):
    config = {**json.loads((base / "config.json").read_text()), "starts": [start]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"config\.json: (starts|Start|the field 'train')"):
        checkpoint.read_info(tmp_path)


def test_the_normalization_is_that_of_the_first_run(tmp_path):
    random = np.random.default_rng(0)
    model = ModelConfig(latent=2, hidden=(8,), likelihood="gaussian")
    training = dataclasses.replace(TRAINING, binarise="none")
    for name, offset in (("first", 0.0), ("second", 5.0)):
        np.save(tmp_path / f"{name}.npy", random.normal(offset, 2, (300, 6)).astype(np.float32))
    run(tmp_path / "base", model, training, tmp_path / "first.npy", normalise="standard")
    tuned(tmp_path / "tuned", tmp_path / "base", tmp_path / "second.npy", model, training, normalise="standard")
    run(tmp_path / "fresh", model, training, tmp_path / "second.npy", normalise="standard")
    base, after, fresh = (checkpoint.read_info(tmp_path / name).found for name in ("base", "tuned", "fresh"))
    assert after.normalisation == base.normalisation != fresh.normalisation
    np.save(tmp_path / "wider.npy", random.normal(0, 2, (300, 7)).astype(np.float32))
    with pytest.raises(InputError, match=r"wider\.npy: expected observations of 6 channels or features, .* got 7"):
        tuned(tmp_path / "t", tmp_path / "base", tmp_path / "wider.npy", model, training, normalise="standard")


def test_classes_with_other_names_are_refused(tmp_path):
    random = np.random.default_rng(0)
    for name, kinds in {"pets": ("cat", "dog"), "others": ("cat", "fox")}.items():
        for kind in kinds:
            (tmp_path / name / kind).mkdir(parents=True)
            for number in range(20):
                picture = Image.fromarray(random.integers(0, 256, (4, 4), np.uint8))
                picture.save(tmp_path / name / kind / f"{number}.png")
    run(tmp_path / "base", MODEL, TRAINING, tmp_path / "pets", conditions=("label",))
    with pytest.raises(
        InputError, match=r"base: label: expected class 1 to be 'dog', as in that run, got 'fox'; choose"
    ):
        tuned(tmp_path / "tuned", tmp_path / "base", tmp_path / "others", conditions=("label",))
    tuned(tmp_path / "tuned", tmp_path / "base", tmp_path / "pets", conditions=("label",))


def test_a_module_of_the_user_s_takes_the_weights(mine, digits_npy, tmp_path):
    run(tmp_path / "base", "mine:Mine", TRAINING, digits_npy, likelihood="bernoulli", posterior="logvar")
    known = {"likelihood": "bernoulli", "posterior": "logvar", "model": "mine:Mine"}
    tuned(tmp_path / "by-name", tmp_path / "base", digits_npy, **known)
    model = mine.Mine().train()
    tuned(tmp_path / "given", tmp_path / "base", digits_npy, **{**known, "model": model})
    parameters = dict(model.named_parameters())
    for name in ("by-name", "given"):
        found = weights(tmp_path / name)
        # Running statistics follow the data, also where no weight moves.
        assert all(torch.equal(found[each], weights(tmp_path / "base")[each]) for each in parameters)
    assert model.training
    assert same(weights(tmp_path / "given"), {name: each.detach() for name, each in model.state_dict().items()})
    with pytest.raises(InputError, match=r"tensor encoder\.1\.weight: expected float32 \[13, 64\], got float32 \[12, "):
        tuned(tmp_path / "wide", tmp_path / "base", digits_npy, **{**known, "model": "mine:wide"})


def test_a_module_with_a_trained_scale_takes_the_weights(mine, digits_npy, tmp_path):
    training = dataclasses.replace(TRAINING, binarise="none")
    run(tmp_path / "base", "mine:Scaled", training, digits_npy, posterior="logvar")
    scale = weights(tmp_path / "base")["log_scale"]
    assert scale != 0
    still = dataclasses.replace(STILL, binarise="none")
    tuned(tmp_path / "tuned", tmp_path / "base", digits_npy, "mine:Scaled", still, posterior="logvar")
    assert weights(tmp_path / "tuned")["log_scale"] == scale


def test_a_module_that_is_refused_without_a_start_is_refused_with_one(mine, digits_npy, tmp_path):
    known = {"likelihood": "bernoulli", "posterior": "logvar"}
    run(tmp_path / "base", "mine:Mine", STILL, digits_npy, **known)
    with pytest.raises(InputError, match=r"^model: _extra_state: expected a tensor"):
        tuned(tmp_path / "tuned", tmp_path / "base", digits_npy, "mine:Stateful", **known)


def test_a_run_of_the_other_kind_of_model_is_refused(mine, base, digits_npy, tmp_path):
    known = {"likelihood": "bernoulli", "posterior": "logvar"}
    with pytest.raises(InputError, match=r"expected a run of a model of your own, got one of a built-in model; leave"):
        tuned(tmp_path / "tuned", base, digits_npy, "mine:Mine", **known)
    run(tmp_path / "own", mine.Mine(), STILL, digits_npy, **known)
    with pytest.raises(InputError, match=r"expected a run of a built-in model, got one of a model of your own; give"):
        tuned(tmp_path / "tuned", tmp_path / "own", digits_npy)


def test_the_command_takes_the_model_of_the_run(base, digits_npy, tmp_path, capsys):
    words = ["train", "--data", str(digits_npy), "--epochs", "1", "--threads", "1", "--start-from", str(base)]
    assert main([*words, "--out", str(tmp_path / "tuned")]) == 0
    assert checkpoint.read_info(tmp_path / "tuned").model == checkpoint.read_info(base).model
    assert main([*words, "--out", str(tmp_path / "wider"), "--latent", "5"]) == 1
    assert "error: --start-from: " in capsys.readouterr().err
    assert main([*words[:-1], str(tmp_path / "none"), "--out", str(tmp_path / "wider")]) == 1
    assert f"error: --start-from: {tmp_path / 'none'}: no such folder; give" in capsys.readouterr().err
    assert not (tmp_path / "wider").exists()


def test_a_recipe_that_begins_with_another_asks_for_its_run(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", "--recipe", "mnist-tuned", "--data", "digits", "--out", str(tmp_path / "tuned")])
    assert end.value.code == 2
    assert "--start-from: expected a run of --recipe mnist, got none" in capsys.readouterr().err
    words = ["--data", "digits", "--out", str(tmp_path / "tuned"), "--start-from", str(tmp_path / "none")]
    assert main(["train", "--recipe", "mnist-tuned", *words]) == 1
    assert f"error: --start-from: {tmp_path / 'none'}: no such folder" in capsys.readouterr().err


def test_an_empty_name_of_a_run_is_misuse(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", "--data", "digits", "--out", str(tmp_path / "tuned"), "--start-from", ""])
    assert end.value.code == 2
    assert "--start-from: expected the folder of a finished run, got ''" in capsys.readouterr().err


def test_weights_that_are_not_finite_are_refused(base, digits_npy, tmp_path):
    copied = tmp_path / "base"
    copied.mkdir()
    (copied / "config.json").write_bytes((base / "config.json").read_bytes())
    damaged = weights(base)
    name = sorted(damaged)[0]
    damaged[name].view(-1)[0] = float("nan")
    safetensors.torch.save_file(damaged, copied / "model.safetensors")
    with pytest.raises(InputError, match=rf"base: tensor {re.escape(name)}: expected finite weights, got NaN"):
        tuned(tmp_path / "tuned", copied, digits_npy)


def test_a_decay_of_more_than_all_is_refused():
    assert TrainConfig(learning_rate=0.5, weight_decay=2).weight_decay == 2
    with pytest.raises(InputError, match=r"^train\.weight_decay: expected at most 1 / learning_rate, 2, got 2\.1: a s"):
        TrainConfig(learning_rate=0.5, weight_decay=2.1)


@pytest.mark.parametrize(
    "change", [{"digest": "../x"}, {"epoch": -1}, {"data": "x\n# y"}, {"license": "\x1b[31m"}, {"epoch": True}]
)
def test_a_record_of_a_start_that_could_spoil_a_card_is_refused(base, digits_npy, tmp_path, change):
    tuned(tmp_path, base, digits_npy)
    config = json.loads((tmp_path / "config.json").read_text())
    assert checkpoint.read_info(tmp_path).starts
    config["starts"][0] |= change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"config\.json: starts.*: expected"):
        checkpoint.read_info(tmp_path)


@pytest.mark.long
def test_several_processes_begin_with_those_weights(base, digits_npy, tmp_path):
    words = ["--epochs", "1", "--batch-size", "64", "--learning-rate", "1e-30", "--binarise", "stochastic"]
    words += ["--threads", "1", "--start-from", base, "--data", digits_npy, "--out", tmp_path / "two"]
    done = launched("-m", "vae_export", "train", *map(str, words))
    assert done.returncode == 0, done.stderr
    assert same(weights(tmp_path / "two"), weights(base))


def test_weight_decay_takes_its_share_of_matrices_alone(digits_npy, tmp_path):
    """After one step: arXiv 1711.05101, algorithm 2, of weights that Adam changes as it does without the decay."""
    rate, decay = 1e-3, 0.5
    training = dataclasses.replace(TRAINING, epochs=1, batch_size=1024, learning_rate=rate)
    run(tmp_path / "first", MODEL, STILL, digits_npy)
    run(tmp_path / "plain", MODEL, training, digits_npy)
    run(tmp_path / "decayed", MODEL, dataclasses.replace(training, weight_decay=decay), digits_npy)
    first, plain, decayed = (weights(tmp_path / name) for name in ("first", "plain", "decayed"))
    for name, tensor in first.items():
        expected = rate * decay * tensor if tensor.dim() > 1 else torch.zeros_like(tensor)
        torch.testing.assert_close(plain[name] - decayed[name], expected, rtol=1e-3, atol=1e-7)


@pytest.mark.long
def test_a_model_that_ships_is_trained_in_its_steps(root, digits_npy, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(root / "models")
    data = DataConfig(str(digits_npy))
    shipped = importlib.import_module("shipped").Shipped("few", MODEL, STILL, data, ("onnx",), before=(TRAINING,))
    shipped.build(tmp_path / "runs", tmp_path)
    assert same(weights(tmp_path / "runs" / "few"), weights(tmp_path / "runs" / "few-1"))
    (start,) = load(tmp_path / "few").manifest.training["starts"]
    assert start["digest"] == checkpoint.weights_digest(tmp_path / "runs" / "few-1")
