"""What an epoch keeps, validates and draws: the best weights, figures of all rows with one noise, augmentation."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from vae_export.errors import TrainingError
from vae_export.training import checkpoint
from vae_export.training.config import DataConfig, ModelConfig, TrainConfig
from vae_export.training.data.batches import read
from vae_export.training.data.dataset import load
from vae_export.training.look import BATCH
from vae_export.training.loop import train
from vae_export.training.randomness import binarised, generator
from vae_export.training.step import Objective

MODEL = ModelConfig(latent=4, hidden=(16,))
TRAINING = TrainConfig(epochs=4, batch_size=16, learning_rate=0.03, final_learning_rate=1, threads=1)
STILL = dataclasses.replace(TRAINING, learning_rate=1e-30, epochs=3, batch_size=512, binarise="stochastic")
"""No weight changes."""


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 8))
        self.decoder = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 64), nn.Unflatten(1, (1, 8, 8)))

    def encode(self, x):
        return self.encoder(x).chunk(2, 1)

    def decode(self, z):
        return self.decoder(z)


class Settings:
    """A recorder that notes PyTorch's settings during a training, has the last pictures, and may stop it."""

    name = "settings"

    def __init__(self, stopping: int = 0) -> None:
        self.stopping, self.seen, self.pictures = stopping, set(), {}

    def begin(self, run):
        return {}

    def epoch(self, number, figures, pictures):
        self.pictures = dict(pictures)
        self.seen.add((torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()))
        if number == self.stopping:
            raise KeyboardInterrupt

    def end(self, result):
        pass


def few(digits_npy) -> DataConfig:
    """Some 50 rows to train on, which a model soon knows too well."""
    return DataConfig(str(digits_npy), validation_fraction=0.8)


def bounds(folder: Path) -> list[float]:
    return [json.loads(line)["validation"]["bound"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_the_best_epoch_is_kept_when_a_run_goes_on_from_a_later_one(digits_npy, tmp_path):
    whole = train(tmp_path / "whole", MODEL, TRAINING, few(digits_npy), progress=False).info.result
    assert whole.best_epoch == 1 + int(np.argmax(bounds(tmp_path / "whole"))) == 2
    assert (whole.epochs, whole.stopped_early) == (4, False)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", MODEL, TRAINING, few(digits_npy), progress=False, recorders=[Settings(stopping=3)])
    outcome = train(tmp_path / "run", MODEL, TRAINING, few(digits_npy), progress=False)
    assert outcome.resumed_epoch == 3
    assert outcome.info.result.best_epoch == 2
    assert outcome.info.result.bound == whole.bound == max(bounds(tmp_path / "run"))
    assert bounds(tmp_path / "run") == bounds(tmp_path / "whole")
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_a_module_has_the_best_weights_in_the_end_also_of_a_run_that_had_finished(digits_npy, tmp_path):
    torch.manual_seed(0)
    own, again = Dense(), Dense()
    data, given = few(digits_npy), {"posterior": "logvar", "likelihood": "gaussian", "prior": "normal"}
    # Without a weight of the KL, it soon costs more than is won.
    training = dataclasses.replace(TRAINING, learning_rate=0.01, beta=0)
    result = train(tmp_path, own, training, data, progress=False, **given).info.result
    assert result.best_epoch < result.epochs
    assert same(own.state_dict(), weights(tmp_path))
    before = weights(tmp_path)
    assert train(tmp_path, again, training, data, progress=False, **given).already_finished
    assert same(again.state_dict(), before)
    assert same(weights(tmp_path), before)


def test_validation_is_the_same_in_each_epoch_and_of_each_row_alike(tmp_path):
    """The second part of the validation data has fewer rows than the first."""
    data = DataConfig("digits", validation_fraction=0.25, conditions=("label",))
    training = dataclasses.replace(STILL, seed=1, importance_samples=2, batch_size=370)
    train(tmp_path, MODEL, training, data, progress=False)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    lines, trained = [record["validation"] for record in records], records[0]["train"]
    assert lines[0] == lines[1] == lines[2]
    vae, info = checkpoint.load(tmp_path)
    part = checkpoint.run_data(info).validation
    assert BATCH < len(part) < 2 * BATCH
    random, total = generator(1, "validation noise"), torch.zeros(4, dtype=torch.float64)
    for number in range(2):
        rows = read(part, slice(number * BATCH, min((number + 1) * BATCH, len(part))))
        eps = torch.randn((2, len(rows.x), 4), generator=random)
        seen = (torch.rand(rows.x.shape, generator=generator(1, f"binarise validation {number}")) < rows.x).float()
        total += Objective(vae)(seen, eps, 1.0, conditions=rows.conditions)[1].double() * len(rows.x)
    assert list(lines[0].values()) == pytest.approx((total / len(part)).tolist(), rel=1e-6)
    # The figures of training are means over its rows, too, of which the last of four batches has fewer.
    for name in ("elbo", "reconstruction", "kl"):
        assert trained[name] == pytest.approx(lines[0][name], rel=0.1)


def test_training_data_are_binarised_as_those_of_an_evaluation():
    x = torch.tensor([[0.0, 0.25, 0.499, 0.501, 0.75, 1.0]]).repeat(4000, 1)
    assert binarised(x[:1], "threshold", generator(0, "x")).tolist() == [[0, 0, 0, 1, 1, 1]]
    assert binarised(x, "none", generator(0, "x")) is x
    drawn = binarised(x, "stochastic", generator(0, "x"))
    assert set(drawn.unique().tolist()) == {0, 1}
    assert drawn.mean(0).tolist() == pytest.approx(x[0].tolist(), abs=0.03)
    assert torch.equal(binarised(x[7:9], "stochastic", generator(0, "x"), slice(7, 9), 4000), drawn[7:9])


class Noting(Dense):
    """Notes the mode in which it encodes so many rows."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, bool]] = []

    def encode(self, x):
        self.seen.append((len(x), self.training))
        return super().encode(x)


def test_rows_are_trained_on_in_training_mode_and_validated_in_evaluation_mode(digits_npy, tmp_path):
    own, data = Noting(), DataConfig(str(digits_npy))
    declared = {"posterior": "logvar", "likelihood": "gaussian", "prior": "normal"}
    train(tmp_path, own, dataclasses.replace(STILL, epochs=2), data, progress=False, **declared)
    trained, validated = (len(part) for part in (load(data).train, load(data).validation))
    assert [mode for rows, mode in own.seen if rows == trained] == [True, True]
    assert {mode for rows, mode in own.seen if rows == validated} == {False}
    assert own.training


def test_figures_of_validation_that_are_no_numbers_end_a_training(tmp_path):
    """A single row is so large that its square is infinite, and only validation has it."""
    x = np.random.default_rng(0).normal(size=(80, 3)).astype(np.float32)
    model = ModelConfig(latent=2, hidden=(), likelihood="gaussian")
    for number in range(100):
        x[0, 0] = 1e30 * (1 + number)
        np.save(tmp_path / "x.npy", x)
        if 0 in load(DataConfig(str(tmp_path / "x.npy"))).validation.numbers:
            break
    training = dataclasses.replace(STILL, binarise="none")
    words = r"epoch 1, step 1: expected finite validation figures, got an ELBO of -?(inf|nan); there is no checkpoint"
    with pytest.raises(TrainingError, match=words):
        train(tmp_path / "run", model, training, DataConfig(str(tmp_path / "x.npy")), progress=False)
    assert not (tmp_path / "run").exists()


AUGMENT = """
import torch

drawn = []


def noted(x, random):
    drawn.append(torch.rand((), generator=random).item())
    return x
"""


def test_what_augmentation_draws_differs_from_epoch_to_epoch_and_follows_from_the_seed(
    digits_npy, tmp_path, monkeypatch
):
    (tmp_path / "noting.py").write_text(AUGMENT)
    monkeypatch.syspath_prepend(tmp_path)
    data = DataConfig(str(digits_npy), augment="noting:noted")
    for number, seed in enumerate((0, 0, 1)):
        training = dataclasses.replace(STILL, seed=seed, epochs=2)
        train(tmp_path / str(number), MODEL, training, data, progress=False)
    drawn = sys.modules.pop("noting").drawn
    assert len(drawn) == 6
    assert drawn[:2] == drawn[2:4]
    assert len(set(drawn)) == 4


def test_an_epoch_is_shown_by_the_average_of_the_weights(digits_npy, tmp_path):
    """The weights that are trained are the same with an average and without."""
    shown = []
    for ema in (0.0, 0.9):
        folder, settings = tmp_path / str(len(shown)), Settings()
        training = dataclasses.replace(TRAINING, epochs=1, ema=ema)
        train(folder, MODEL, training, DataConfig(str(digits_npy)), progress=False, recorders=[settings])
        shown.append(settings.pictures)
    plain, average = shown
    assert plain.keys() == average.keys() != set()
    for name, picture in plain.items():
        assert not np.array_equal(picture, average[name])


def test_a_training_has_its_threads_and_deterministic_algorithms(digits_npy, tmp_path):
    before, settings = torch.get_num_threads(), Settings()
    training = dataclasses.replace(STILL, threads=before + 1)
    train(tmp_path, MODEL, training, DataConfig(str(digits_npy)), progress=False, recorders=[settings])
    assert settings.seen == {(before + 1, True)}
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (before, False)
