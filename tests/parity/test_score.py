"""Scores without PyTorch are those of `vae-export evaluate`."""

import shutil

import numpy as np
import pytest

import vae_runtime


@pytest.fixture
def evaluated(tiny_run, tmp_path):
    """A copy of `tiny_run` and what `evaluate` says of it."""
    from vae_export import evaluate

    run = shutil.copytree(tiny_run, tmp_path / "run")
    return run, evaluate(run, importance_samples=20, seed=3, progress=False)


def test_scores_are_those_of_the_evaluation(evaluated, tiny_bundle):
    from vae_export.training import checkpoint

    run, evaluation = evaluated
    _, info = checkpoint.load(run)
    x = checkpoint.run_data(info, None).test.rows(slice(None))
    scores = vae_runtime.load(tiny_bundle).score(x, k=20, seed=3)
    assert len(x) == evaluation.observations
    for name in ("elbo", "reconstruction", "kl", "mse", "mae"):
        assert getattr(scores, name).mean() == pytest.approx(getattr(evaluation, name), rel=1e-5, abs=1e-4)
    assert -scores.log_likelihood.mean() == pytest.approx(evaluation.nll, rel=1e-5, abs=1e-4)
    other = vae_runtime.load(tiny_bundle).score(x, k=20, seed=4)
    assert other.elbo.mean() != pytest.approx(evaluation.elbo, rel=1e-5, abs=1e-4)


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    """A run on counts, finished after two epochs, and its bundle."""
    from vae_export import DataConfig, ModelConfig, TrainConfig, export, train

    folder = tmp_path_factory.mktemp("counts")
    generator = np.random.default_rng(0)
    rates = np.exp(1 + generator.normal(size=(600, 2)) @ (0.5 * generator.normal(size=(2, 12))))
    np.save(folder / "x.npy", generator.poisson(rates).astype(np.float32))
    model = ModelConfig(latent=2, hidden=(16,), likelihood="poisson")
    training = TrainConfig(epochs=2, learning_rate=0.01, threads=1)
    train(folder / "run", model, training, DataConfig(str(folder / "x.npy")), progress=False)
    export(folder / "run", folder / "bundle", formats=("onnx",))
    return folder


def test_counts_are_trained_exported_scored_and_drawn(counts):
    from vae_export import evaluate
    from vae_export.training import checkpoint

    evaluation = evaluate(counts / "run", importance_samples=20, seed=3, progress=False)
    test = checkpoint.run_data(checkpoint.load(counts / "run")[1]).test.rows(slice(None))
    assert vae_runtime.verify(counts / "bundle").passed
    vae = vae_runtime.load(counts / "bundle")
    assert vae.manifest.likelihood.kind == "poisson"
    assert vae.manifest.observation.range is None
    scores = vae.score(test, k=20, seed=3)
    for name in ("elbo", "reconstruction", "kl", "mse", "mae"):
        assert getattr(scores, name).mean() == pytest.approx(getattr(evaluation, name), rel=1e-5, abs=1e-4)
    assert -scores.log_likelihood.mean() == pytest.approx(evaluation.nll, rel=1e-5, abs=1e-4)

    rates, drawn = vae.sample(500, seed=5), vae.sample(500, seed=5, observe=True)
    assert drawn.dtype == np.float32
    np.testing.assert_array_equal(drawn, np.floor(drawn))
    assert 0 == drawn.min() < drawn.max()
    assert rates.min() > 0
    assert np.abs((drawn - rates).sum()) < 5 * np.sqrt(rates.sum())
    part = vae.sample(100, seed=5, start=400, observe=True, batch_size=7)
    np.testing.assert_array_equal(part, drawn[400:])
    assert "poisson likelihood" in (counts / "bundle" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("change", "words"), [
    (lambda x: x - 100, r"^x: expected counts \(0, 1, 2, …\) for a poisson likelihood, got -"),
    (lambda x: x + 0.5, r"^x: expected counts .*\.5 at \[0, 0\]; give observations as in training"),
    (lambda x: x * np.float32(np.nan), r"^x\[0, 0\]: expected finite values, got nan"),
])  # fmt: skip
def test_what_is_no_count_is_not_scored(counts, change, words):
    vae = vae_runtime.load(counts / "bundle")
    x = vae.sample(4, seed=0, observe=True)
    assert np.isfinite(vae.score(x).elbo).all()
    with pytest.raises(vae_runtime.InputError, match=words):
        vae.score(change(x))


def trained(folder, x, **model):
    """A run on observations, finished after a few epochs, what `evaluate` says of it, and its test data."""
    from vae_export import DataConfig, ModelConfig, TrainConfig, evaluate, export, train
    from vae_export.training import checkpoint

    np.save(folder / "x.npy", x)
    training = TrainConfig(epochs=3, learning_rate=0.01, threads=1)
    train(folder / "run", ModelConfig(latent=2, hidden=(16,), **model), training, DataConfig(str(folder / "x.npy")),
          progress=False)  # fmt: skip
    export(folder / "run", folder / "bundle", formats=("onnx",))
    evaluation = evaluate(folder / "run", importance_samples=20, seed=3, progress=False)
    return evaluation, checkpoint.run_data(checkpoint.load(folder / "run")[1]).test.rows(slice(None))


@pytest.mark.parametrize("architecture", ["mlp", pytest.param("conv", marks=pytest.mark.long)])
def test_levels_are_trained_exported_scored_and_drawn(tmp_path, architecture):
    generator = np.random.default_rng(0)
    x = (40 * generator.integers(0, 5, (400, 1, 1, 1)) + generator.integers(0, 30, (400, 1, 4, 4))).astype(np.uint8)
    model = {"likelihood": "logistic", "scale": 0.1, "learn_scale": True, "architecture": architecture}
    evaluation, test = trained(tmp_path, x, channels=(16, 16), **model)
    assert vae_runtime.verify(tmp_path / "bundle").passed
    vae = vae_runtime.load(tmp_path / "bundle")
    likelihood = vae.manifest.likelihood
    assert (likelihood.kind, vae.manifest.observation.range) == ("logistic", (0, 1))
    assert 0.01 < likelihood.scale < 0.5
    assert likelihood.scale != pytest.approx(0.1, rel=1e-3)
    scores = vae.score(test, k=20, seed=3)
    for name in ("elbo", "reconstruction", "kl", "mse", "mae"):
        assert getattr(scores, name).mean() == pytest.approx(getattr(evaluation, name), rel=1e-4, abs=1e-4)
    drawn = vae.sample(50, seed=5, observe=True)
    np.testing.assert_allclose(255 * drawn, np.rint(255 * drawn), atol=1e-4)
    assert np.isfinite(vae.score(drawn, seed=1).elbo).all()
    with pytest.raises(vae_runtime.InputError, match=r"x: expected the 256 levels .* logistic likelihood, got 0\.5 at"):
        vae.score(np.full_like(test, 0.5), seed=1)


@pytest.mark.parametrize("architecture", ["mlp", pytest.param("conv", marks=pytest.mark.long)])
def test_classes_are_trained_exported_scored_and_drawn(tmp_path, architecture):
    generator = np.random.default_rng(0)
    kinds = generator.integers(0, 5, (3, 2, 4, 4))
    x = np.where(generator.random((400, 2, 4, 4)) < 0.9, kinds[generator.integers(0, 3, 400)], 4).astype(np.float32)
    evaluation, test = trained(tmp_path, x, channels=(16, 16), likelihood="categorical", architecture=architecture)
    assert vae_runtime.verify(tmp_path / "bundle").passed
    vae = vae_runtime.load(tmp_path / "bundle")
    likelihood = vae.manifest.likelihood
    assert (likelihood.kind, likelihood.shape, vae.manifest.observation.range) == ("categorical", (2, 4, 4, 5), (0, 4))
    scores = vae.score(test, k=20, seed=3)
    for name in ("elbo", "reconstruction", "kl"):
        assert getattr(scores, name).mean() == pytest.approx(getattr(evaluation, name), rel=1e-4, abs=1e-4)
    assert -scores.log_likelihood.mean() == pytest.approx(evaluation.nll, rel=1e-4, abs=1e-4)
    assert (scores.mse, scores.mae) == (None, None)
    likely = vae.reconstruct(test).argmax(-1)
    assert np.square(test - likely).mean() == pytest.approx(evaluation.mse, rel=1e-4)
    probabilities, drawn = vae.sample(50, seed=5), vae.sample(50, seed=5, observe=True)
    assert probabilities.shape == (50, 2, 4, 4, 5)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    assert (drawn.shape, drawn.dtype) == ((50, 2, 4, 4), np.float32)
    buffer = np.empty((50, 2, 4, 4), np.float32)
    assert vae.sample(50, seed=5, observe=True, batch_size=7, out=buffer) is buffer
    np.testing.assert_array_equal(buffer, drawn)
    assert np.isfinite(vae.score(drawn, seed=1).elbo).all()
    with pytest.raises(vae_runtime.InputError, match=r"x: expected classes .*, got 0\.5 at \[0, 0, 0, 0\]"):
        vae.score(np.full_like(test, 0.5), seed=1)
    vae_runtime.generate(tmp_path / "bundle", tmp_path / "samples", 20, seed=5, observe=True, batch_size=10)
    np.testing.assert_array_equal(vae_runtime.open_samples(tmp_path / "samples")[:20], drawn[:20])
    assert "of 5 classes" in (tmp_path / "bundle" / "README.md").read_text(encoding="utf-8")
