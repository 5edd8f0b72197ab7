"""Recorders: each epoch is taken once, whatever happens between, and a failure does not end a training."""

import dataclasses
import importlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from vae_export.cli import main
from vae_export.errors import TrainingError
from vae_export.training.config import DataConfig, ModelConfig, TrainConfig
from vae_export.training.loop import train
from vae_export.training.recorders import TRACKERS, MLflow, Run, TensorBoard, recorders_of
from vae_runtime.errors import InputError, VaeError

MODEL = ModelConfig(latent=2, hidden=(8,))
TRAINING = TrainConfig(epochs=5, batch_size=256, threads=1)


class Notes:
    """A recorder that writes lines to a file, as a server that outlives the process would keep them."""

    name = "notes"

    def __init__(self, path, failing=(), stopping=()):
        self.path, self.failing, self.stopping = path, failing, stopping

    def _write(self, *line):
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")

    def lines(self, kind):
        return [line[1:] for line in map(json.loads, self.path.read_text().splitlines()) if line[0] == kind]

    def begin(self, run):
        if "begin" in self.failing:
            raise ConnectionError("no route to host")
        self._write("begin", run.known, run.epochs, dict(run.config))
        return {"number": 7}

    def epoch(self, number, figures, pictures):
        if number in self.failing:
            raise ConnectionError("no route to host")
        self._write("epoch", number, figures, {name: picture.shape for name, picture in pictures.items()})
        if number in self.stopping:
            raise KeyboardInterrupt

    def end(self, result):
        if "end" in self.failing:
            raise ConnectionError("no route to host")
        self._write("end", result)


def run(folder, source, *recorders, **fields):
    training = dataclasses.replace(TRAINING, **fields)
    return train(folder, MODEL, training, DataConfig(str(source)), progress=False, recorders=recorders)


def test_a_recorder_takes_each_epoch(digits_npy, tmp_path):
    notes = Notes(tmp_path / "notes")
    info = run(tmp_path / "run", digits_npy, notes).info
    [[known, epochs, config]] = notes.lines("begin")
    assert (known, epochs) == ({}, 0)
    assert (config["model.latent"], config["train.epochs"], config["provenance.name"]) == (2, 5, digits_npy.stem)
    assert all(isinstance(value, str | int | float) for value in config.values())
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for record, (number, figures, pictures) in zip(records, notes.lines("epoch"), strict=True):
        assert number == record["epoch"]
        assert figures["validation/elbo"] == record["validation"]["elbo"]
        assert figures["samples_per_second"] == record["samples_per_second"]
        assert list(pictures) == (["samples"] if number in (1, 2, 5) else [])
    assert notes.lines("end") == [[dataclasses.asdict(info.result)]]


def test_a_run_that_goes_on_is_taken_without_gap_or_repetition(digits_npy, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", digits_npy, Notes(tmp_path / "a"), Notes2(tmp_path / "b", stopping=(3,)))
    first = Notes(tmp_path / "a")
    assert run(tmp_path / "run", digits_npy, first, Notes2(tmp_path / "b")).resumed_epoch == 3
    assert [line[:2] for line in first.lines("begin")] == [[{}, 0], [{"number": 7}, 3]]
    assert [number for number, *_ in first.lines("epoch")] == [1, 2, 3, 4, 5]
    assert [result is None for [result] in first.lines("end")] == [True, False]
    # It was killed after it took the epoch, before the run could write so down: `Run.epochs` tells it what to expect.
    second = Notes2(tmp_path / "b")
    assert [line[:2] for line in second.lines("begin")] == [[{}, 0], [{"number": 7}, 2]]
    assert [number for number, *_ in second.lines("epoch")] == [1, 2, 3, 3, 4, 5]


class Notes2(Notes):
    name = "more"


def test_a_failure_is_shown_once_and_training_goes_on(digits_npy, tmp_path, capsys):
    notes = Notes(tmp_path / "notes", failing=(3,))
    run(tmp_path / "run", digits_npy, notes)
    run(tmp_path / "without", digits_npy)
    shown = capsys.readouterr().err.splitlines()
    assert len([line for line in shown if "notes" in line]) == 1
    assert "warning: notes took epochs up to 2 and failed: no route to host; training goes on" in shown[0]
    assert [number for number, *_ in notes.lines("epoch")] == [1, 2]
    assert notes.lines("end") == []
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "without")]
    assert weights[0] == weights[1]


def test_what_a_failure_left_out_is_made_up_for(digits_npy, tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", digits_npy, Notes(tmp_path / "a", failing=(2,)), Notes2(tmp_path / "b", stopping=(3,)))
    notes = Notes(tmp_path / "a")
    run(tmp_path / "run", digits_npy, notes)
    assert [number for number, *_ in notes.lines("epoch")] == [1, 2, 3, 4, 5]


def test_a_fresh_run_without_its_recorder_is_refused(digits_npy, tmp_path):
    with pytest.raises(TrainingError, match=r"notes: expected it to begin a run: .*no route to host; nothing was"):
        run(tmp_path / "run", digits_npy, Notes(tmp_path / "notes", failing=("begin",)))
    assert not (tmp_path / "run").exists()


def test_a_run_that_goes_on_goes_on_without_its_recorder(digits_npy, tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", digits_npy, Notes(tmp_path / "a", stopping=(2,)))
    outcome = run(tmp_path / "run", digits_npy, Notes(tmp_path / "a", failing=("begin",)))
    assert outcome.info.result.epochs == 5
    assert capsys.readouterr().err.count("warning: notes") == 1
    (tmp_path / "other").mkdir()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "other", digits_npy, Notes(tmp_path / "b", stopping=(2,)))
    (tmp_path / "other" / "recorders.json").write_text('{"notes": 1}')
    with pytest.raises(TrainingError, match=r"recorders\.json: expected what recorders have taken"):
        run(tmp_path / "other", digits_npy, Notes(tmp_path / "b"))


def test_a_failure_at_the_end_is_shown(digits_npy, tmp_path, capsys):
    run(tmp_path / "run", digits_npy, Notes(tmp_path / "notes", failing=("end",)), epochs=1)
    assert "warning: notes took epochs up to 1" in capsys.readouterr().err


@pytest.mark.parametrize(("recorders", "words"), [
    (["tensorbord"], "expected tensorboard, mlflow, wandb or an object with name, begin, epoch and end, got 'tens"),
    ([3], "got 3"),
    (["mlflow", MLflow()], "expected each once, got mlflow, mlflow"),
])  # fmt: skip
def test_other_recorders_are_refused(recorders, words):
    with pytest.raises(InputError, match=words):
        recorders_of(recorders)


@pytest.mark.parametrize("name", TRACKERS)
def test_a_library_that_is_missing_is_named_with_its_extra(name, digits_npy, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(VaeError, match=rf"{name}: expected the package {name}.*pip install 'vae-export\[{name}\]'"):
        run(tmp_path / "run", digits_npy, name)
    assert not (tmp_path / "run").exists()


def test_importing_recorders_imports_no_library():
    code = (
        "import sys, vae_export.training.loop; "
        "sys.exit(str([name for name in ('tensorboard', 'mlflow', 'wandb') if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"


def test_misuse_of_the_options_is_told(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["train", "--out", str(tmp_path / "run"), "--track", "excel"])
    assert "invalid choice: 'excel'" in capsys.readouterr().err


def scalars(folder, name="validation/elbo"):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulators.EventAccumulator(str(folder))
    found.Reload()
    return [(event.step, event.value) for event in found.Scalars(name)], found


@pytest.mark.long
def test_tensorboard_shows_each_epoch_once(digits_npy, tmp_path):
    pytest.importorskip("tensorboard")
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(folder, digits_npy, "tensorboard", Notes(tmp_path / "notes", stopping=(3,)))
    # As if it had been killed when the epoch was in the event file, before that was written down.
    ledger = json.loads((folder / "recorders.json").read_text())
    assert ledger["tensorboard"]["epochs"] == 3
    ledger["tensorboard"]["epochs"] = 2
    (folder / "recorders.json").write_text(json.dumps(ledger))
    run(folder, digits_npy, "tensorboard")
    points, found = scalars(folder / "tensorboard")
    elbos = [json.loads(line)["validation"]["elbo"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [step for step, _ in points] == [1, 2, 3, 4, 5]
    assert np.allclose([value for _, value in points], elbos)
    assert [event.step for event in found.Images("samples")] == [1, 2, 5]
    assert "settings/text_summary" in found.Tags()["tensors"]


@pytest.mark.long
def test_without_its_mark_tensorboard_would_show_an_epoch_twice(tmp_path):
    pytest.importorskip("tensorboard")
    for known, epochs in (({}, 0), ({}, 0)):
        writer = TensorBoard()
        writer.begin(Run(tmp_path, {"a": 1}, known, epochs))
        writer.epoch(1, {"validation/elbo": 1.0}, {})
        writer.end(None)
    assert [step for step, _ in scalars(tmp_path / "tensorboard")[0]] == [1, 1]
    shutil.rmtree(tmp_path / "tensorboard")
    for known, epochs in (({}, 0), ({"folder": "tensorboard"}, 0)):
        writer = TensorBoard()
        writer.begin(Run(tmp_path, {"a": 1}, known, epochs))
        writer.epoch(1, {"validation/elbo": 1.0}, {})
        writer.end(None)
    assert [step for step, _ in scalars(tmp_path / "tensorboard")[0]] == [1]


@pytest.mark.long
def test_mlflow_has_each_epoch_once(digits_npy, tmp_path, monkeypatch):
    """In MLflow's store of files, which is in maintenance, and which its environment has to allow."""
    pytest.importorskip("mlflow")
    store = (tmp_path / "store").as_uri()
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "digits")
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(folder, digits_npy, "mlflow", Notes(tmp_path / "notes", stopping=(3,)))
    ledger = json.loads((folder / "recorders.json").read_text())
    ledger["mlflow"]["epochs"] = 2
    (folder / "recorders.json").write_text(json.dumps(ledger))
    client = importlib.import_module("mlflow").MlflowClient(store)
    number = ledger["mlflow"]["known"]["run"]
    assert client.get_run(number).info.status == "KILLED"
    run(folder, digits_npy, "mlflow")
    found = client.get_run(number)
    assert found.info.status == "FINISHED"
    assert found.data.params["model.latent"] == "2"
    assert [metric.step for metric in client.get_metric_history(number, "validation/elbo")] == [1, 2, 3, 4, 5]
    assert len(client.search_runs([found.info.experiment_id])) == 1
    assert [file.path for file in client.list_artifacts(number, "samples")] == [
        f"samples/{epoch:06}.png" for epoch in (1, 2, 5)
    ]
    # Without the allowance of its environment a fresh run is refused, in MLflow's words.
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "another").as_uri())
    with pytest.raises(TrainingError, match=r"mlflow: expected it to begin a run: .*MLFLOW_ALLOW_FILE_STORE"):
        run(tmp_path / "refused", digits_npy, "mlflow")


@pytest.mark.long
def test_wandb_takes_a_run_offline(digits_npy, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "run"
    run(folder, digits_npy, "wandb")
    number = json.loads((folder / "recorders.json").read_text())["wandb"]["known"]["run"]
    [kept] = folder.glob(f"wandb/offline-run-*-{number}/run-{number}.wandb")
    assert b"validation/elbo" in kept.read_bytes()
    assert len(list(kept.parent.glob("files/media/images/samples_*.png"))) == 3
