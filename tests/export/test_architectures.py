"""Every built-in architecture is trained for an epoch and exported, and its bundle gives PyTorch's answers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import vae_runtime
from vae_export import DataConfig, ModelConfig, TrainConfig, check_parity, evaluate, export, train
from vae_export.cli import main
from vae_export.errors import TrainingError
from vae_export.training.checkpoint import load
from vae_export.training.model import VAE
from vae_runtime.errors import InputError

SMALL = ModelConfig("conv", latent=3, hidden=(8,), channels=(8, 16), likelihood="gaussian", activation="silu")
ATTENTIVE = dataclasses.replace(SMALL, norm="group", encoder_attention=1, decoder_attention=2)
STRONG = dataclasses.replace(ATTENTIVE, encoder_channels=(8, 16, 32), encoder_blocks=2, encoder_kernels=(3, 3))
CASES = {
    "odd": (SMALL, (5, 7, 9), ("channel", "height", "width")),
    "strong": (STRONG, (3, 13, 10), ("channel", "height", "width")),
    "series": (ATTENTIVE, (2, 21), ("channel", "time")),
    "volume": (ATTENTIVE, (1, 3, 6, 5), ("channel", "depth", "height", "width")),
}


@pytest.mark.long
@pytest.mark.parametrize(("model", "shape", "axes"), CASES.values(), ids=CASES)
def test_a_trained_architecture_exports_with_parity(model, shape, axes, tmp_path):
    x = np.random.default_rng(0).normal(size=(60, *shape)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    train(
        run, model, TrainConfig(epochs=1, batch_size=16, threads=1), DataConfig(str(tmp_path / "x.npy")), progress=False
    )
    export(run, bundle, formats=("onnx",))
    assert vae_runtime.verify(bundle).passed
    vae = vae_runtime.load(bundle)
    assert vae.manifest.observation.axes == axes
    trained, _ = load(run)
    latents = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    with torch.inference_mode():
        expected = trained.decode(torch.from_numpy(latents)).numpy()
    np.testing.assert_allclose(vae.decode(latents), expected, atol=1e-5)
    verification, report = check_parity(run, bundle)
    assert verification.passed
    assert report.passed


@pytest.mark.long
@pytest.mark.parametrize("model", [ModelConfig(latent=3, hidden=(8,)), ATTENTIVE], ids=["mlp", "conv"])
def test_a_conditional_architecture_exports_with_parity(model, tmp_path):
    kinds = {"label": {"classes": 3}, "pose": {"shape": [2]}}
    random = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        made = VAE(dataclasses.replace(model, observation_shape=(2, 9, 7), conditions=kinds)).eval()
        for weight in made.parameters():
            weight += 0.1 * torch.randn(weight.shape)
    x = torch.rand(30, 2, 9, 7, generator=random)
    given = {"label": torch.arange(30) % 3, "pose": torch.randn(30, 2, generator=random)}
    export(
        made, tmp_path / "bundle", example=x.round(), conditions=given, class_names=["a", "b", "c"], formats=("onnx",)
    )
    vae = vae_runtime.load(tmp_path / "bundle")
    z = torch.randn(4, 3, generator=random)
    for label in range(3):
        chosen = {"label": torch.full((4,), label), "pose": given["pose"][:4]}
        with torch.inference_mode():
            expected = made.mean(made.decode(z, **chosen)).numpy()
        arrays = {name: value.numpy() for name, value in chosen.items()}
        np.testing.assert_allclose(vae.decode(z.numpy(), conditions=arrays), expected, atol=1e-5)
        # Another label gives another answer.
        other = vae.decode(z.numpy(), conditions=arrays | {"label": (arrays["label"] + 1) % 3})
        assert np.abs(other - expected).max() > 1e-3


@pytest.mark.long
@pytest.mark.parametrize(
    "model", [ModelConfig(latent=3, hidden=(16,)), dataclasses.replace(ATTENTIVE, likelihood="bernoulli")],
    ids=["mlp", "conv"],
)  # fmt: skip
def test_a_conditional_run_trains_and_exports(model, tmp_path):
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    training = TrainConfig(epochs=2, threads=1, accumulate=2, importance_samples=2, importance_start=2)
    outcome = train(run, model, training, DataConfig("digits", conditions=("label",)), progress=False)
    assert outcome.info.model.conditions == {"label": {"classes": 10}}
    assert train(run, model, training, DataConfig("digits", conditions=("label",)), progress=False).already_finished
    figures = evaluate(run, importance_samples=3, limit=50, progress=False)
    assert figures.nll > 0
    export(run, bundle, formats=("onnx",))
    assert vae_runtime.verify(bundle).passed
    vae = vae_runtime.load(bundle)
    (condition,) = vae.manifest.conditions
    assert condition.classes == tuple("0123456789")
    z = np.zeros((10, 3), np.float32)
    trained, _ = load(run)
    with torch.inference_mode():
        expected = trained.mean(trained.decode(torch.from_numpy(z), label=torch.arange(10))).numpy()
    answer = vae.decode(z, conditions={"label": np.arange(10)})
    np.testing.assert_allclose(answer, expected, atol=1e-5)
    assert np.abs(answer[0] - answer[1]).max() > 1e-3
    verification, report = check_parity(run, bundle)
    assert verification.passed
    assert report.passed


def test_conditions_are_those_of_the_data(tmp_path):
    given = DataConfig("digits", conditions=("label",))
    small, training = ModelConfig(latent=2, hidden=(4,)), TrainConfig(epochs=1, batch_size=500, threads=1)
    with pytest.raises(InputError, match=r'model\.conditions\), got {"label": {"classes": 10}}; change model'):
        train(tmp_path, dataclasses.replace(small, conditions={"label": {"classes": 3}}), training, given)
    info = train(tmp_path, small, training, given, progress=False).info
    assert info.model.conditions == {"label": {"classes": 10}}
    assert train(tmp_path, info.model, training, given, progress=False).already_finished
    with pytest.raises(TrainingError, match=r"data\.conditions"):
        train(tmp_path, small, training, DataConfig("digits"), progress=False)


def test_numbers_of_an_array_condition_a_model(tmp_path):
    random = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", random.random((60, 3), dtype=np.float32))
    np.save(tmp_path / "pose.npy", random.random((60, 2), dtype=np.float32))
    np.save(tmp_path / "kind.npy", np.arange(60) % 4)
    conditions = (f"pose={tmp_path / 'pose.npy'}", f"kind={tmp_path / 'kind.npy'}")
    with pytest.raises(InputError, match=r"data\.license: expected printable text, got 'CC0\\n1.0'"):
        DataConfig(str(tmp_path / "x.npy"), license="CC0\n1.0")
    source = DataConfig(str(tmp_path / "x.npy"), conditions=conditions, license="CC0 1.0")
    small, training = ModelConfig(latent=2, hidden=(4,)), TrainConfig(epochs=1, threads=1)
    run = tmp_path / "run"
    info = train(run, small, training, source, progress=False).info
    assert info.model.conditions == {"kind": {"classes": 4}, "pose": {"shape": [2]}}
    assert {"conditions.layers.0.weight", "conditions.layers.1.weight"} <= load(run)[0].state_dict().keys()
    with pytest.raises(InputError, match=r"class_names: kind: expected 4 names, one for each class, got 5"):
        export(run, tmp_path / "bundle", class_names=list("abcde"), formats=("onnx",))
    with pytest.raises(InputError, match=r"class_names: pose: expected an integer condition"):
        export(run, tmp_path / "bundle", class_names={"pose": ["a"]}, formats=("onnx",))
    arguments = ["export", str(run), "--out", str(tmp_path / "bundle"), "--formats", "onnx", "--class-names"]
    assert main([*arguments, "bone,skin"]) == 1
    assert not (tmp_path / "bundle").exists()
    assert main([*arguments, "bone,skin,air,fat"]) == 0
    named = {each.name: each.classes for each in vae_runtime.load(tmp_path / "bundle").manifest.conditions}
    assert named == {"kind": ("bone", "skin", "air", "fat"), "pose": None}
    assert "License of the data: CC0 1.0." in (tmp_path / "bundle" / "README.md").read_text(encoding="utf-8")
