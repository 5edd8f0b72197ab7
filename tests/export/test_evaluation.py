from __future__ import annotations

import importlib
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from torch import distributions

from vae_export.training import checkpoint
from vae_export.training.config import DataConfig, ModelConfig, TrainConfig
from vae_export.training.data.dataset import load
from vae_export.training.evaluation import binarise, evaluate, read_evaluation
from vae_export.training.model import VAE
from vae_runtime import noise
from vae_runtime.errors import InputError


def measured(run, **arguments):
    return evaluate(run, **{"importance_samples": 10, "progress": False, **arguments})


def differences(one, other) -> set[str]:
    """Fields that differ by more than rounding."""
    there = asdict(other)
    return {
        name
        for name, value in asdict(one).items()
        if there[name] != (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value)
    }


@pytest.fixture
def linear_run(tmp_path: Path):
    """A run with x = A z + b + noise of scale 0.5 and its exact posterior; gives folder, VAE, data and exact log p."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.linalg.qr(torch.randn(6, 3, generator=generator)).Q * torch.tensor([2.0, 1.0, 0.04])
    shift, scale = torch.randn(6, generator=generator), 0.5
    covariance = weights @ weights.T + scale**2 * torch.eye(6)
    marginal = distributions.MultivariateNormal(shift, covariance)
    torch.manual_seed(0)
    np.save(tmp_path / "x.npy", marginal.sample((4000,)).numpy())

    model = ModelConfig(observation_shape=(6,), latent=3, hidden=(), likelihood="gaussian", scale=scale)
    config = DataConfig(str(tmp_path / "x.npy"), test_fraction=0.5)
    vae = VAE(model)
    variance = 1 / (1 + weights.square().sum(0) / scale**2)
    gain = (weights * variance / scale**2).T
    with torch.no_grad():
        encoder, decoder = vae.encoder[1], vae.decoder[0]
        encoder.weight.copy_(torch.cat([gain, torch.zeros(3, 6)]))
        encoder.bias.copy_(torch.cat([-gain @ shift, variance.log()]))
        decoder.weight.copy_(weights)
        decoder.bias.copy_(shift)
    dataset = load(config)
    info = checkpoint.RunInfo(model, TrainConfig(), config, dataset.provenance, torch.__version__)
    checkpoint.write_info(tmp_path, info)
    checkpoint.save_weights(tmp_path, vae.state_dict())
    return tmp_path, vae, dataset, marginal.log_prob(torch.from_numpy(dataset.test.rows(slice(None))))


def test_figures_are_exact_where_the_exact_ones_are_known(linear_run):
    folder, vae, dataset, log_p = linear_run
    result = measured(folder, importance_samples=1)
    # with the exact posterior every sample's weight is p(x)
    assert result.nll == pytest.approx(-log_p.mean().item(), abs=1e-4)
    assert result.standard_error == pytest.approx(log_p.std().item() / len(log_p) ** 0.5, rel=1e-3)
    # and the ELBO is p(x) too, but for the noise of the one sample in its reconstruction term
    assert result.elbo == pytest.approx(-result.nll, abs=0.1)
    assert result.elbo == pytest.approx(result.reconstruction - result.kl)
    # the third column explains next to nothing, so its posterior mean hardly moves
    assert (result.active_units, result.latent) == (2, 3)
    with torch.inference_mode():
        x = torch.from_numpy(dataset.test.rows(slice(None)))
        error = (x - vae.decode(vae.encode(x)[0])).double()
    assert result.mse == pytest.approx(error.square().mean().item(), rel=1e-5)
    assert result.mae == pytest.approx(error.abs().mean().item(), rel=1e-5)


def test_dimensions_are_active_above_a_variance_of_a_hundredth(linear_run):
    folder, vae, dataset, _ = linear_run
    with torch.no_grad():
        means = vae.encode(torch.from_numpy(dataset.test.rows(slice(None))))[0]
        factors = (torch.tensor([0.5, 0.011, 0.009]) / means.var(0, correction=0)).sqrt()
        vae.encoder[1].weight[:3] *= factors[:, None]
        vae.encoder[1].bias[:3] *= factors
    checkpoint.save_weights(folder, vae.state_dict())
    assert measured(folder, importance_samples=1).active_units == 2


def test_with_a_wrong_posterior_more_samples_come_nearer(linear_run):
    folder, vae, _, log_p = linear_run
    with torch.no_grad():
        vae.encoder[1].bias[3:] += 1.0
    checkpoint.save_weights(folder, vae.state_dict())
    gaps = [measured(folder, importance_samples=k, limit=300).nll + log_p[:300].mean().item() for k in (1, 10, 500)]
    assert gaps[0] > 2 * gaps[1] > 4 * abs(gaps[2])
    assert abs(gaps[2]) < 0.01


def test_the_result_is_written_with_its_protocol(digits_run):
    result = measured(digits_run.folder)
    assert json.loads((digits_run.folder / "evaluation.json").read_text()) == asdict(result)
    assert result.data_digest == digits_run.info.provenance.digest
    assert -result.nll > result.elbo
    assert result.protocol() == "165 test observations of digits, binarization stochastic, 10 importance samples"


def test_a_surrogate_is_called_one(digits_run, tmp_path):
    vae, info = checkpoint.load(digits_run.folder)
    checkpoint.write_info(tmp_path, replace(info, train=replace(info.train, binarise="none")))
    checkpoint.save_weights(tmp_path, vae.state_dict())
    result = measured(tmp_path)
    assert result.surrogate
    assert result.protocol().endswith("surrogate: gray values under a bernoulli likelihood")
    assert not measured(digits_run.folder).surrogate


def test_figures_follow_the_seed(digits_run):
    first, again, other = (measured(digits_run.folder, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert {"seed", "elbo", "nll", "mse"} <= differences(first, other)


@pytest.mark.parametrize("chunk", [64, 1000, 64 * 13])
def test_figures_do_not_depend_on_the_chunks(digits_run, chunk, monkeypatch):
    whole = measured(digits_run.folder, limit=30)
    monkeypatch.setattr(importlib.import_module("vae_export.training.evaluation"), "_CHUNK", chunk)
    assert not differences(whole, measured(digits_run.folder, limit=30))
    assert differences(whole, measured(digits_run.folder, limit=29))


def test_noise_is_addressed_by_the_index_of_the_observation(digits_run):
    vae, info = checkpoint.load(digits_run.folder)
    x = torch.from_numpy(binarise(checkpoint.run_data(info).test.rows(slice(3)), "stochastic", 7))
    mu, logvar = vae.encode(x)
    eps = torch.from_numpy(noise.normal(7, 0, 3, (5, 6), noise.IMPORTANCE)).transpose(0, 1)
    z = mu + (0.5 * logvar).exp() * eps
    log_w = (
        distributions.Bernoulli(logits=vae.decode(z.flatten(0, 1)).unflatten(0, (5, 3))).log_prob(x).sum((2, 3, 4))
        + distributions.Normal(0.0, 1.0).log_prob(z).sum(2)
        - distributions.Normal(mu, (0.5 * logvar).exp()).log_prob(z).sum(2)
    )
    expected = torch.logsumexp(log_w, 0).mean().item() - np.log(5)
    assert measured(digits_run.folder, importance_samples=5, limit=3, seed=7).nll == pytest.approx(-expected, rel=1e-5)


def test_binarisation():
    x = np.array([[0.0, 0.25, 0.5, 0.75, 1.0]], np.float32).repeat(4000, 0)
    drawn = binarise(x, "stochastic", 3)
    assert set(np.unique(drawn)) == {0, 1}
    assert drawn.dtype == np.float32
    np.testing.assert_allclose(drawn.mean(0), x[0], atol=0.03)
    assert (drawn[:, 0].max(), drawn[:, 4].min()) == (0, 1)
    assert np.array_equal(drawn[:7], binarise(x[:7], "stochastic", 3))
    assert not np.array_equal(drawn, binarise(x, "stochastic", 4))
    assert binarise(x[:1], "threshold", 0).tolist() == [[0, 0, 0, 1, 1]]
    assert binarise(x, "none", 0) is x


def test_bad_arguments_are_refused(digits_run, digits_npy, tmp_path):
    for arguments in ({"importance_samples": 0}, {"limit": 0}):
        with pytest.raises(InputError, match=": expected 1 … 2147483648, got 0"):
            measured(digits_run.folder, **arguments)
    with pytest.raises(InputError, match=r"expected the run's data .*, got sha256"):
        measured(digits_run.folder, data=str(digits_npy))
    with pytest.raises(InputError, match=r"holds no config\.json; give the folder of a run"):
        measured(tmp_path)
    checkpoint.write_info(tmp_path, replace(digits_run.info, data=replace(digits_run.info.data, test_fraction=0)))
    checkpoint.save_weights(tmp_path, checkpoint.load(digits_run.folder)[0].state_dict())
    with pytest.raises(InputError, match="expected at least one test observation, got none"):
        measured(tmp_path)


def test_figures_of_other_weights_are_refused(digits_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(digits_run.folder, run)
    evaluate(run, importance_samples=2, limit=3, progress=False)
    assert read_evaluation(run).importance_samples == 2
    weights = safetensors.numpy.load_file(run / "model.safetensors")
    name = next(iter(weights))
    safetensors.numpy.save_file({**weights, name: weights[name] * 2}, run / "model.safetensors")
    with pytest.raises(InputError, match=r"evaluation\.json: expected figures of these weights .* evaluate again"):
        read_evaluation(run)


def test_places_that_cannot_be_are_refused(linear_run, tmp_path):
    with pytest.raises(InputError, match="data: expected the place of the run's data, got ''; give their file"):
        measured(linear_run[0], data="")
    with pytest.raises(InputError, match=r"run_folder: expected the path of a folder, got '.*a.x00b'; no name has a"):
        measured(tmp_path / "a\0b")
