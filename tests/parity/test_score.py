"""Scores without PyTorch are those of `vae-export evaluate`."""

import shutil

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
    x = checkpoint.run_data(info, None).test
    scores = vae_runtime.load(tiny_bundle).score(x, k=20, seed=3)
    assert len(x) == evaluation.observations
    for name in ("elbo", "reconstruction", "kl", "mse", "mae"):
        assert getattr(scores, name).mean() == pytest.approx(getattr(evaluation, name), rel=1e-5, abs=1e-4)
    assert -scores.log_likelihood.mean() == pytest.approx(evaluation.nll, rel=1e-5, abs=1e-4)
    other = vae_runtime.load(tiny_bundle).score(x, k=20, seed=4)
    assert other.elbo.mean() != pytest.approx(evaluation.elbo, rel=1e-5, abs=1e-4)
