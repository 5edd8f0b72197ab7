"""A run goes on to the same weights wherever its folder is, and says by which versions and where it was trained."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil

import pytest
import torch

import vae_export.sources
from vae_export.card import run_card
from vae_export.training import checkpoint
from vae_export.training.checkpoint import Stage
from vae_export.training.config import DataConfig, ModelConfig, TrainConfig
from vae_export.training.loop import train
from vae_runtime._version import __version__
from vae_runtime.bundle import open_bundle
from vae_runtime.errors import InputError

module = importlib.import_module("vae_export.training.loop")

STAGE = Stage(1, __version__, torch.__version__, "cpu", 1, False)


def run(folder, source, epochs=3):
    model, training = ModelConfig(latent=4, hidden=(16,)), TrainConfig(epochs=epochs, batch_size=64, threads=1)
    return train(folder, model, training, DataConfig(str(source)), progress=False)


@pytest.fixture
def interrupted(tmp_path, digits_npy, monkeypatch):
    """A run that was interrupted in its second epoch."""
    validate = module._Training._validate

    def stop(self, epoch):
        if epoch == 2:
            raise KeyboardInterrupt
        return validate(self, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(module._Training, "_validate", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", digits_npy)
    return tmp_path / "run"


def test_a_folder_that_was_moved_goes_on_to_the_same_weights(interrupted, digits_npy, tmp_path, caplog):
    whole = run(tmp_path / "whole", digits_npy)
    (tmp_path / "else").mkdir()
    moved = shutil.move(interrupted, tmp_path / "else" / "where")
    data = shutil.copy(digits_npy, tmp_path / "else" / "data.npy")
    outcome = run(moved, data)
    assert outcome.resumed_epoch == 1
    assert outcome.info.stages == whole.info.stages == (STAGE,)
    for name in ("model.safetensors", "samples.png", "curve.png"):
        assert (moved / name).read_bytes() == (whole.folder / name).read_bytes()
    again = shutil.move(moved, tmp_path / "finished")
    assert run(again, data).already_finished
    assert caplog.records == []


def test_a_run_that_goes_on_by_another_version_says_so(interrupted, digits_npy, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(module, "__version__", "9.9.9")
    outcome = run(interrupted, digits_npy)
    words = f"epochs up to 1 are of vae-export {__version__} with PyTorch {torch.__version__}, the others will be of "
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"{interrupted}: {words}vae-export 9.9.9 with PyTorch {torch.__version__}: the weights may not be those that "
        "either would give alone"
    ]
    stages = (STAGE, dataclasses.replace(STAGE, epoch=2, vae_export="9.9.9"))
    assert outcome.info.stages == checkpoint.read_info(interrupted).stages == stages


def test_an_export_says_which_other_version_trained_the_run(tiny_run, tiny_bundle, tmp_path, caplog):
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    manifest = open_bundle(tiny_bundle).manifest
    assert manifest.training["stages"] == [dataclasses.asdict(STAGE)]
    assert vae_export.sources.run_source(folder, None, None).notes == ()
    assert caplog.records == []
    config = json.loads((folder / "config.json").read_text())
    second = {**config["stages"][0], "epoch": 2, "torch": "1.0", "processes": 2, "device": "cuda:0, a GPU"}
    (folder / "config.json").write_text(json.dumps({**config, "stages": [*config["stages"], second]}))
    source = vae_export.sources.run_source(folder, None, None)
    line = f"trained by vae-export {__version__} with PyTorch 1.0, exported by vae-export {__version__} with PyTorch "
    assert source.notes == (line + torch.__version__,)
    assert f"{folder}: {line}" in caplog.text
    info = checkpoint.read_info(folder)
    stage = f"vae-export {__version__} with PyTorch {torch.__version__} on cpu"
    files = {file.relative_to(tiny_bundle).as_posix(): 1 for file in tiny_bundle.rglob("*") if file.is_file()}
    assert (
        f"- Trained by {stage}; from epoch 2 on by vae-export {__version__} with PyTorch 1.0 on cuda:0, a GPU in 2 "
        "processes." in run_card(manifest, info, None, files, True)
    )


def test_stages_follow_each_other():
    later, elsewhere = dataclasses.replace(STAGE, epoch=5), dataclasses.replace(STAGE, epoch=5, device="cuda")
    assert STAGE.after(()) == (STAGE,)
    assert later.after((STAGE,)) == (STAGE,)
    assert elsewhere.after((STAGE,)) == (STAGE, elsewhere)
    # Epochs that were trained elsewhere and lost are trained again here.
    assert later.after((STAGE, elsewhere)) == (STAGE,)
    assert dataclasses.replace(elsewhere, epoch=1).after((STAGE,)) == (dataclasses.replace(elsewhere, epoch=1),)


def test_a_stage_that_is_none_is_refused(tiny_run, tmp_path):
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    for wrong in ([3], [{**config["stages"][0], "epoch": "1"}], [{"epoch": 1}], 7):
        (folder / "config.json").write_text(json.dumps({**config, "stages": wrong}))
        with pytest.raises(InputError, match=r"config\.json: .*; restore it or train again"):
            checkpoint.read_info(folder)
