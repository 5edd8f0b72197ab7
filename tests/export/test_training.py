from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vae_export.errors import TrainingError
from vae_export.training import checkpoint, display, objective, resume, run_folder
from vae_export.training.config import DataConfig, ModelConfig, TrainConfig
from vae_export.training.loop import train
from vae_export.training.plots import curve
from vae_runtime.errors import InputError, VaeError
from vae_runtime.files import locked

module = importlib.import_module("vae_export.training.loop")

MODEL = ModelConfig(latent=4, hidden=(16,))
TRAINING = TrainConfig(
    epochs=4, batch_size=64, learning_rate=3e-3, binarise="stochastic", kl_warmup_epochs=1, importance_samples=2,
    importance_start=3, threads=1,
)  # fmt: skip


def run(folder, model=MODEL, training=TRAINING, source="digits", **fields):
    return train(folder, model, training, DataConfig(str(source), **fields), progress=False)


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def records(folder: Path) -> list[dict]:
    """Lines of `metrics.jsonl` without what is timed."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if "second" not in name} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, digits_npy) -> Path:
    """A run that was never interrupted."""
    return run(tmp_path_factory.mktemp("whole"), source=digits_npy).folder


def test_a_finished_run_has_its_files_and_figures(whole):
    assert {path.name for path in whole.iterdir()} == {
        "config.json", "model.safetensors", "metrics.jsonl", "curve.png", "samples.png", "report.html", "samples",
    }  # fmt: skip
    _, info = checkpoint.load(whole)
    assert info.model.observation_shape == (1, 8, 8)
    assert info.torch_version == torch.__version__
    lines = records(whole)
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    best = max(lines, key=lambda line: line["validation"]["bound"])
    assert info.result is not None
    assert (info.result.best_epoch, info.result.epochs, info.result.stopped_early) == (best["epoch"], 4, False)
    assert {name: getattr(info.result, name) for name in best["validation"]} == best["validation"]
    for part in ("train", "validation"):
        assert lines[-1][part]["elbo"] == pytest.approx(lines[-1][part]["reconstruction"] - lines[-1][part]["kl"])
    # before the importance-weighted epochs the bound that is trained is the ELBO; validation's is the same throughout
    assert lines[1]["train"]["bound"] == lines[1]["train"]["elbo"]
    assert all(line["train"]["bound"] > line["train"]["elbo"] for line in lines[2:])
    assert lines[0]["validation"]["bound"] > lines[0]["validation"]["elbo"]
    rates = [line["learning_rate"] for line in lines]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(TRAINING.learning_rate * TRAINING.final_learning_rate)


def test_pictures_are_pictures(whole):
    with Image.open(whole / "curve.png") as plot, Image.open(whole / "samples.png") as samples:
        assert plot.size == (960, 400)
        assert min(samples.size) > 64
        assert len(np.unique(np.asarray(samples))) > 16
    lines = records(whole)
    assert curve(lines) == (whole / "curve.png").read_bytes() != curve(lines[:-1])


def test_training_learns(tmp_path):
    training = dataclasses.replace(TRAINING, epochs=20, kl_warmup_epochs=0, importance_samples=1, learning_rate=1e-2)
    run(tmp_path, training=training)
    elbos = [line["validation"]["elbo"] for line in records(tmp_path)]
    assert elbos[-1] > elbos[0] + 1
    vae, info = checkpoint.load(tmp_path)
    x = (torch.from_numpy(checkpoint.run_data(info).test.rows(slice(None))) > 0.5).float()
    mu, logvar = vae.encode(x)
    learned = objective.elbo(x, vae.decode(mu), mu, logvar, "bernoulli").elbo.mean()
    mean = x.mean(0).clamp(1e-3, 1 - 1e-3).logit().expand_as(x)
    assert learned > objective.log_likelihood(x, mean, "bernoulli").mean() + 2


def test_the_same_seed_gives_the_same_weights(whole, digits_npy, tmp_path):
    run(tmp_path / "same", source=digits_npy)
    run(tmp_path / "other", training=dataclasses.replace(TRAINING, seed=1), source=digits_npy)
    assert digest(tmp_path / "same") == digest(whole) != digest(tmp_path / "other")
    assert records(tmp_path / "same") == records(whole)


def test_the_global_generator_and_settings_are_left_alone(digits_npy, tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run(tmp_path, training=dataclasses.replace(TRAINING, epochs=1, threads=2), source=digits_npy)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == 1
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.long
@pytest.mark.parametrize("model", [
    ModelConfig("conv", latent=3, hidden=(8,), channels=(4, 4)),
    ModelConfig(latent=3, hidden=(8,), likelihood="gaussian", learn_scale=True),
], ids=["conv", "mlp"])  # fmt: skip
def test_interrupted_after_any_write_it_ends_with_the_same_weights(model, digits_npy, tmp_path, monkeypatch):
    training = TrainConfig(
        epochs=2, batch_size=100, free_bits=0.05, gradient_clip=10, binarise="threshold", patience=5, threads=1
    )
    whole = run(tmp_path / "whole", model, training, digits_npy).folder
    write = module.write_atomic
    left = 0

    def interrupted(path, content):
        nonlocal left
        write(path, content)
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    for place in (module, checkpoint, resume, display):
        monkeypatch.setattr(place, "write_atomic", interrupted)
    # config, then state, weights, metrics and samples of two epochs, curve, samples, report, config with the result
    for writes in range(1, 14):
        folder = tmp_path / str(writes)
        left = writes
        with pytest.raises(KeyboardInterrupt):
            run(folder, model, training, digits_npy)
        assert run(folder, model, training, digits_npy).already_finished is (writes == 13)
        assert digest(folder) == digest(whole)
        assert records(folder) == records(whole)
        assert {path.name for path in folder.iterdir()} == {path.name for path in whole.iterdir()}


@pytest.mark.long
def test_killed_at_random_moments_it_ends_with_the_weights_of_a_run_never_killed(digits_npy, tmp_path):
    training = dataclasses.replace(TRAINING, epochs=60, importance_start=31)
    whole = run(tmp_path / "whole", training=training, source=digits_npy).folder
    folder = tmp_path / "killed"
    script = (
        "import sys; from vae_export.training.config import *; from vae_export.training.loop import train; "
        f"train(sys.argv[1], {MODEL!r}, {training!r}, {DataConfig(str(digits_npy))!r}, progress=False)"
    )
    moments = random.Random(0)
    epochs = []
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-W", "error", "-c", script, str(folder)], stderr=subprocess.PIPE)
        seen = len(records(folder)) if epochs else 0
        deadline = time.monotonic() + 60
        # once this process has saved an epoch of its own, some moment within the next few
        while process.poll() is None and time.monotonic() < deadline:
            if (folder / "metrics.jsonl").exists() and len(records(folder)) > seen:
                break
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors.decode()
        epochs.append(len(records(folder)))
        checkpoint.load(folder)
    assert 0 < epochs[0] < epochs[1] < epochs[2] < 60
    outcome = run(folder, training=training, source=digits_npy)
    assert outcome.resumed_epoch in (epochs[2], epochs[2] + 1)  # the state comes before its metrics
    assert digest(folder) == digest(whole)
    assert records(folder) == records(whole)
    assert not list(folder.glob(".*"))


def test_a_finished_run_says_so_and_is_left_alone(whole, digits_npy, tmp_path):
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in whole.rglob("*.*")}
    moved = shutil.copy(digits_npy, tmp_path / "moved.npy")
    for source in (digits_npy, moved):
        outcome = run(whole, source=source)
        assert outcome.already_finished
        assert outcome.info == checkpoint.read_info(whole)
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in whole.rglob("*.*")} == before


def test_another_run_in_the_folder_is_refused_with_the_difference(whole, digits_npy):
    with pytest.raises(TrainingError) as caught:
        run(whole, dataclasses.replace(MODEL, latent=5), dataclasses.replace(TRAINING, beta=2), digits_npy, seed=3)
    for difference in (
        "model.latent is 4, asked for 5",
        "train.beta is 1.0, asked for 2.0",
        "data.seed is 0, asked for 3",
    ):
        assert difference in str(caught.value)
    with pytest.raises(TrainingError, match=r"data\.digest is 'sha256:.*', asked for 'sha256:"):
        run(whole, source="digits")


def interrupt_after(epochs: int, monkeypatch):
    validate = module._Training._validate

    def stop(self, epoch):
        if epoch > epochs:
            raise KeyboardInterrupt
        return validate(self, epoch)

    monkeypatch.setattr(module._Training, "_validate", stop)


def test_a_state_that_fits_no_more_is_refused(digits_npy, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, source=digits_npy)
    state = tmp_path / "state.safetensors"
    content = state.read_bytes()
    state.write_bytes(content[:-1])
    with pytest.raises(TrainingError, match=r"state\.safetensors: expected a complete resume state"):
        run(tmp_path, source=digits_npy)
    state.write_bytes(content)
    (tmp_path / "config.json").unlink()
    with pytest.raises(TrainingError, match=r"train\.seed is 0, asked for 1"):
        run(tmp_path, training=dataclasses.replace(TRAINING, seed=1), source=digits_npy)
    assert run(tmp_path, source=digits_npy).resumed_epoch == 2


def test_a_loss_that_is_no_number_stops_and_the_last_checkpoint_stays(digits_npy, tmp_path, monkeypatch):
    weight = objective.kl_weight
    monkeypatch.setattr(objective, "kl_weight", lambda epoch, *rest: math.nan if epoch > 2.5 else weight(epoch, *rest))
    with pytest.raises(TrainingError) as caught:
        run(tmp_path, source=digits_npy)
    message = str(caught.value)
    assert "epoch 3, step 4: expected a finite loss, got nan; the checkpoint of epoch" in message
    assert "lower train.learning_rate (0.003)" in message
    vae, info = checkpoint.load(tmp_path)
    assert info.result is None
    assert all(tensor.isfinite().all() for tensor in vae.state_dict().values())
    assert len(records(tmp_path)) == 2


def test_a_learning_rate_that_explodes_is_caught(digits_npy, tmp_path):
    model = dataclasses.replace(MODEL, likelihood="gaussian")
    training = dataclasses.replace(TRAINING, learning_rate=1e6, kl_warmup_epochs=0)
    with pytest.raises(TrainingError, match=r"epoch 1, step .* finite .* there is no checkpoint yet"):
        run(tmp_path / "new" / "run", model, training, digits_npy)
    assert not (tmp_path / "new" / "run").exists()
    with pytest.raises(TrainingError, match="there is no checkpoint yet"):
        run(tmp_path / "new", model, training, digits_npy)
    # A folder that was there stays, and holds nothing that another configuration would be refused for.
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="this system does not say how much memory it has")
def test_a_model_larger_than_the_memory_is_refused_before_it_is_made(tmp_path, digits_npy):
    words = r"^model\.hidden: expected weights, gradients and moments within this machine's .* GiB of memory, got "
    with pytest.raises(InputError, match=words + r"[\d,]+\.\d GiB; lower them"):
        run(tmp_path / "run", ModelConfig(hidden=(65536,) * 60), source=digits_npy)
    with pytest.raises(InputError, match=r"model\.hidden or model\.channels: expected weights"):
        run(tmp_path / "run", ModelConfig("conv", hidden=(65536,) * 60), source=digits_npy)
    assert not (tmp_path / "run").exists()


def test_it_stops_early_when_validation_no_longer_improves(digits_npy, tmp_path):
    training = dataclasses.replace(
        TRAINING, epochs=200, learning_rate=0.03, final_learning_rate=1, importance_samples=1, patience=3
    )
    result = run(tmp_path, MODEL, training, digits_npy).info.result
    assert result is not None
    assert result.stopped_early
    assert result.epochs == result.best_epoch + 3 < 200
    bounds = [line["validation"]["bound"] for line in records(tmp_path)]
    assert max(bounds) == bounds[result.best_epoch - 1] == result.bound


def test_kl_warmup_and_beta_change_what_is_learned(digits_npy, tmp_path):
    kls = {}
    for beta in (0.0, 1.0, 5.0):
        training = dataclasses.replace(
            TRAINING, epochs=6, learning_rate=1e-2, kl_warmup_epochs=2, importance_samples=1, beta=beta
        )
        kls[beta] = run(tmp_path / str(beta), MODEL, training, digits_npy).info.result.kl
    assert kls[0.0] > 2 * kls[1.0] > 2 * kls[5.0]


def test_observations_that_are_no_images_have_no_samples_picture(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(200, 5)))
    model = dataclasses.replace(MODEL, likelihood="laplace", learn_scale=True)
    folder = run(tmp_path / "run", model, dataclasses.replace(TRAINING, binarise="none"), tmp_path / "x.npy").folder
    assert (folder / "curve.png").exists()
    assert not (folder / "samples.png").exists()
    assert checkpoint.load(folder)[0].scale != 1


def test_data_that_do_not_fit_are_refused(digits_npy, tmp_path):
    with pytest.raises(InputError, match=r"expected observations of shape \[1, 28, 28\] .*, got \[1, 8, 8\]"):
        run(tmp_path / "run", dataclasses.replace(MODEL, observation_shape=(1, 28, 28)))
    with pytest.raises(InputError, match="expected at least one observation for validation"):
        run(tmp_path / "run", source=digits_npy, validation_fraction=0)
    np.save(tmp_path / "x.npy", np.linspace(1.5, 2, 120).reshape(30, 4))
    with pytest.raises(InputError, match=r"expected values in \[0, 1\] for binarization, got "):
        run(tmp_path / "run", dataclasses.replace(MODEL, likelihood="gaussian"), source=tmp_path / "x.npy")
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(VaeError, match="file: cannot make this folder"):
        run(tmp_path / "file")


def test_progress_goes_to_stderr(digits_npy, tmp_path, capsys):
    train(tmp_path, MODEL, dataclasses.replace(TRAINING, epochs=1), DataConfig(str(digits_npy)))
    captured = capsys.readouterr()
    assert captured.out == ""
    # No terminal: each state is a line.
    assert "\r" not in captured.err
    assert captured.err.splitlines()[-1].startswith("100% ")
    assert "bound" not in captured.err
    for word in ("epoch 1/1", "ELBO", "reconstruction", "KL", "samples/s"):
        assert word in captured.err


def test_a_folder_of_other_files_is_refused_and_left_alone(tmp_path, digits_npy):
    """A bundle's folder holds samples.png and README.md, which a run would write over."""
    folder = tmp_path / "other"
    folder.mkdir()
    files = {"manifest.json": b"{}", "samples.png": b"a picture"}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=r"expected an empty folder or a run's, got one with manifest\.json"):
        train(folder, MODEL, TRAINING, DataConfig(str(digits_npy)))
    assert {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")} == files


def test_two_trainings_in_one_folder_are_refused(tmp_path, digits_npy):
    with locked(tmp_path), pytest.raises(TrainingError, match="another training is at work in this folder"):
        run(tmp_path, source=digits_npy)
    assert list(tmp_path.iterdir()) == []


def test_threads_left_open_are_those_the_run_began_with(tmp_path, digits_npy):
    outcome = run(tmp_path, training=dataclasses.replace(TRAINING, threads=1, epochs=3), source=digits_npy)
    assert outcome.info.train.threads == 1
    again = run(tmp_path, training=dataclasses.replace(TRAINING, threads=0, epochs=3), source=digits_npy)
    assert again.already_finished
    with pytest.raises(TrainingError, match=r"train\.threads is 1, asked for 2"):
        run(tmp_path, training=dataclasses.replace(TRAINING, threads=2, epochs=3), source=digits_npy)


def test_progress_names_the_bound_that_is_trained_and_is_a_bar_on_a_terminal(digits_npy, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    config = TrainConfig(epochs=2, importance_samples=2, importance_start=2, threads=1)
    train(tmp_path / "run", ModelConfig(latent=2, hidden=(4,)), config, DataConfig(str(digits_npy)))
    states = capsys.readouterr().err.split("\r")
    assert all("bound" not in state for state in states if "epoch 1/2" in state)
    assert "epoch 2/2, surrogate importance-weighted bound -" in states[-1]
    assert "surrogate ELBO -" in states[-1]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    run_folder.require_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match=r"gone: cannot write here: .*; choose a folder that exists and is writable"):
        run_folder.require_writable(tmp_path / "gone")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="this user may write everywhere")
def test_a_folder_that_may_not_be_written_is_refused_before_an_epoch(tmp_path, digits_npy):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match="cannot write here: Permission denied"):
            run(tmp_path, source=digits_npy)
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_interrupted_says_how_to_go_on(tmp_path, digits_npy, sent):
    arguments = ["train", "--data", str(digits_npy), "--out", str(tmp_path / "run"), "--threads", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "vae_export", *arguments, "--epochs", "100000"], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + sent
    assert errors.endswith(f"{tmp_path / 'run'}: the same command goes on from the last epoch\ninterrupted\n")
    assert "Traceback" not in errors


def test_labels_color_the_map_and_are_not_told_to_the_model(tmp_path):
    training = dataclasses.replace(TRAINING, epochs=1, batch_size=512)
    plain = train(tmp_path / "plain", MODEL, training, DataConfig("digits"), progress=False)
    found = train(tmp_path / "run", MODEL, training, DataConfig("digits", labels="label"), progress=False)
    assert found.info.model == plain.info.model
    assert found.info.provenance == plain.info.provenance
    assert digest(tmp_path / "run") == digest(tmp_path / "plain")
    pages = [(tmp_path / name / "report.html").read_text() for name in ("run", "plain")]
    assert ["colors are labels" in page for page in pages] == [True, False]
    # They are no part of what is trained.
    assert train(tmp_path / "run", MODEL, training, DataConfig("digits"), progress=False).already_finished
    vae, info = checkpoint.load(tmp_path / "run")
    assert checkpoint.run_data(info).test.conditions(slice(2)) == {}
    assert vae.config.conditions == {}


def test_labels_that_are_no_classes_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((60, 5), np.float32))
    np.save(tmp_path / "size.npy", np.linspace(0, 1, 60, dtype=np.float32))
    source = DataConfig(str(tmp_path / "x.npy"), labels=f"size={tmp_path / 'size.npy'}")
    with pytest.raises(InputError, match=r"expected a class for each row as data\.labels, got numbers as size; "):
        train(tmp_path / "run", MODEL, TRAINING, source, progress=False)
    assert not (tmp_path / "run").exists()
    with pytest.raises(
        InputError, match=r"data\.labels: digits has the condition label alone, got 'size'; leave it out"
    ):
        train(tmp_path / "run", MODEL, TRAINING, DataConfig("digits", labels="size"), progress=False)
    with pytest.raises(InputError, match=r"data\.conditions: expected each name once, got \['label', 'label'\]"):
        DataConfig("digits", conditions=("label",), labels="label")
