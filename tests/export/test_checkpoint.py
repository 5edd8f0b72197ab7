from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import safetensors.torch
import torch
from refusals import refusal

from vae_export.errors import TrainingError
from vae_export.training import checkpoint
from vae_export.training.loop import train
from vae_runtime.errors import InputError


@pytest.fixture
def folder(digits_run, tmp_path):
    """A copy of a run's checkpoint, to be damaged."""
    for name in ("config.json", "model.safetensors"):
        shutil.copy(digits_run.folder / name, tmp_path)
    return tmp_path


def refused(folder) -> str:
    message = refusal(checkpoint.load, folder)
    assert str(folder) in message
    return message


def test_a_checkpoint_gives_back_weights_and_what_is_known(digits_run, folder):
    vae, info = checkpoint.load(folder)
    assert info == digits_run.info
    assert info.provenance.name == "digits"
    assert not vae.training
    assert not any(weight.requires_grad for weight in vae.parameters())
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in vae.state_dict().items())
    again = folder / "again"
    again.mkdir()
    checkpoint.write_info(again, info)
    checkpoint.save_weights(again, vae.for_cpu().state_dict())
    for name in ("config.json", "model.safetensors"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_a_checkpoint_of_version_1_is_read(digits_run, folder):
    content = json.loads((folder / "config.json").read_text())
    content["format_version"] = 1
    del content["found"]
    content["provenance"]["licence"] = content["provenance"].pop("license")
    (folder / "config.json").write_text(json.dumps(content))
    _, info = checkpoint.load(folder)
    assert info == dataclasses.replace(digits_run.info, version=1, found=checkpoint.Found())
    assert info.provenance.license == "CC BY 4.0"
    # Its test data were others, so nothing may be measured on those of today.
    with pytest.raises(
        InputError, match=r"got one of format_version 1, made by .*, whose test data would differ; train"
    ):
        checkpoint.run_data(info)
    with pytest.raises(TrainingError, match=r"got one of format_version 1, made by an earlier version of vae-export"):
        train(folder, info.model, info.train, info.data, progress=False)


def test_a_missing_file_is_named(folder):
    (folder / "model.safetensors").unlink()
    assert "model.safetensors: No such file" in refused(folder)
    (folder / "config.json").unlink()
    assert "give the folder of a run" in refused(folder)


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_truncated_weights_are_refused(folder, size):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert "expected a whole safetensors file" in refused(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("encoder.1.bias"), "tensor encoder.1.bias: expected float32 [64], got none"),
        (
            lambda t: t.update({"encoder.1.bias": torch.zeros(65)}),
            "tensor encoder.1.bias: expected float32 [64], got float32 [65]",
        ),
        (lambda t: t.update({"log_scale": torch.tensor(1.0).half()}), "expected float32 [], got float16 []"),
        (lambda t: t.update({"more": torch.zeros(2)}), "tensor more: expected no tensor of this name, got float32 [2]"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(folder, change, message):
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path)
    assert message in refused(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c.update(format_version=4),
            "expected format_version 1 or 2 or 3, got 4; update vae-export or train again",
        ),
        (
            lambda c: c.update(format_version="1"),
            "expected format_version 1 or 2 or 3, got '1'; update vae-export or train again",
        ),
        (lambda c: c.pop("format_version"), "got None; give the folder of a run that `vae-export train` made"),
        (lambda c: c["provenance"].update(licence=c["provenance"].pop("license")), "provenance.licence: no such field"),
        (lambda c: c.pop("train"), "the field 'train' is missing"),
        (lambda c: c["model"].update(latent="6"), "model.latent: expected an integer from 1 to 65536, got '6'"),
        (lambda c: c["model"].update(width=3), "model.width: no such field"),
        (lambda c: c["provenance"].pop("digest"), "provenance.digest: the field is missing; restore it or train again"),
        (lambda c: c.update(provenance=[1]), "provenance: expected an object, got [1]"),
        (lambda c: c["result"].update(extra=1), "result.extra: no such field"),
        (lambda c: c["result"].update({"two\nlines": 1}), "result.two\\nlines: no such field"),
        (lambda c: c["result"].update(epochs="3"), "result.epochs: expected int, got '3'"),
        (lambda c: c.update(result=3), "result: expected an object, got 3; restore it or train again"),
        (lambda c: c.update(result={}), "result.epochs: the field is missing"),
        (lambda c: c.update(stages={}), "stages: expected a list, got {}"),
        (lambda c: c.update(stages=[{}]), "stages.epoch: the field is missing"),
        (lambda c: c.update(starts=[7]), "starts: expected an object, got 7"),
        (lambda c: c.pop("found"), "the field 'found' is missing"),
        (lambda c: c.update(found=[1]), "found: expected an object, got [1]"),
        (lambda c: c["found"].update(normalisation=[1]), "expected an object with offset and divisor, got [1]"),
        (lambda c: c["found"].update(classes=[1]), "found.classes: expected an object, got [1]"),
        (lambda c: c["found"].update(normalisation={"offset": "0", "divisor": 1}), "offset: expected finite numbers"),
        (lambda c: c["found"].update(normalisation={"offset": 0, "divisor": [1, 0]}), "divisor: expected finite"),
        (lambda c: c["found"].update(classes={"label": [3]}), "found: expected lists of texts, got [3]"),
    ],
)
def test_a_wrong_field_is_named(folder, change, message):
    content = json.loads((folder / "config.json").read_text())
    change(content)
    (folder / "config.json").write_text(json.dumps(content))
    assert message in refused(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "\xff"])
def test_a_config_that_is_no_object_is_refused(folder, content):
    (folder / "config.json").write_text(content, encoding="latin-1")
    refused(folder)


def test_run_data_are_those_of_the_training_wherever_they_are(digits_run, digits_npy, tmp_path):
    assert checkpoint.run_data(digits_run.info).provenance == digits_run.info.provenance
    with pytest.raises(InputError, match=r"expected the run's data \(digits, sha256:.*\), got sha256:"):
        checkpoint.run_data(digits_run.info, str(digits_npy))
    with pytest.raises(InputError, match="say with --data where the run's data are now"):
        checkpoint.run_data(digits_run.info, str(tmp_path / "gone"))


def test_surrogate_is_grey_values_under_a_bernoulli_likelihood(digits_run):
    from dataclasses import replace

    info = digits_run.info
    grey = replace(info, train=replace(info.train, binarise="none"))
    assert not info.surrogate
    assert grey.surrogate
    assert not replace(grey, model=replace(info.model, likelihood="gaussian")).surrogate
    assert not replace(grey, provenance=replace(info.provenance, binary=True)).surrogate
