"""Scores against integrals, closed forms and themselves."""

import math

import numpy as np
import pytest

import vae_runtime
from vae_runtime import InputError, Posterior, noise
from vae_runtime.manifest import Likelihood
from vae_runtime.score import importance_weighted_bound, log_likelihood, log_standard_normal

COLUMNS = ("elbo", "reconstruction", "kl", "log_likelihood", "mse", "mae")


# The formulas.


def test_the_log_likelihood_of_a_bernoulli():
    x = np.float32([[0, 1], [1, 0.25]])
    logits = np.float32([[0, 2], [-3, 0.5]])
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    wanted = (x * np.log(p) + (1 - x) * np.log(1 - p)).sum(axis=1)
    found = log_likelihood(x, {"l": logits}, Likelihood("bernoulli", "x", "l"))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    np.testing.assert_allclose(log_likelihood(x, {"x": p}, Likelihood("bernoulli", "x")), wanted, rtol=1e-6)


def test_a_bernoulli_does_not_saturate():
    x = np.float32([[0], [1], [0], [1]])
    logits = np.float32([[1e4], [-1e4], [-1e4], [1e4]])
    found = log_likelihood(x, {"l": logits}, Likelihood("bernoulli", "x", "l"))
    np.testing.assert_allclose(found, [-1e4, -1e4, 0, 0], atol=1e-12)
    # Without logits as PyTorch's binary_cross_entropy: no logarithm below -100.
    p = np.float32([[1], [0], [0], [1]])
    np.testing.assert_array_equal(log_likelihood(x, {"x": p}, Likelihood("bernoulli", "x")), [-100, -100, 0, 0])


@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
def test_densities_integrate_to_one(kind):
    t = np.linspace(-40, 40, 80_001)[:, None]
    mean = np.full_like(t, 0.7)
    for scale in (0.3, 2.0):
        for likelihood, answers in (
            (Likelihood(kind, "m", scale=scale), {"m": mean}),
            (Likelihood(kind, "m", scale_output="s"), {"m": mean, "s": np.full_like(t, scale)}),
        ):
            density = np.exp(log_likelihood(t, answers, likelihood))
            assert density.sum() * 1e-3 == pytest.approx(1, abs=1e-5)
            spread = (density * (t[:, 0] - 0.7) ** 2).sum() * 1e-3
            assert spread == pytest.approx(scale**2 * (2 if kind == "laplace" else 1), rel=1e-4)


def test_values_of_an_observation_add_up_whatever_its_shape():
    x, m = noise.normal(0, 0, 6, (2, 3)).astype(np.float64), noise.normal(1, 0, 6, (2, 3))
    likelihood = Likelihood("gaussian", "m", scale=0.5)
    flat = log_likelihood(x.reshape(6, 6), {"m": m.reshape(6, 6)}, likelihood)
    np.testing.assert_array_equal(log_likelihood(x, {"m": m}, likelihood), flat)
    each = [log_likelihood(x.reshape(6, 6)[:, [i]], {"m": m.reshape(6, 6)[:, [i]]}, likelihood) for i in range(6)]
    np.testing.assert_allclose(sum(each), flat)


def test_the_standard_normal():
    z = np.float32([[0, 0], [1, -2]])
    np.testing.assert_allclose(log_standard_normal(z), -math.log(2 * math.pi) - np.array([0, 2.5]))


def test_the_bound_is_the_logarithm_of_the_mean_weight():
    weights = np.log([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])
    np.testing.assert_allclose(importance_weighted_bound(weights), np.log([2.0, 5.0]))
    np.testing.assert_allclose(importance_weighted_bound(weights - 5000), np.log([2.0, 5.0]) - 5000)
    np.testing.assert_array_equal(importance_weighted_bound(np.full((1, 3), -np.inf)), [-np.inf])


def test_the_density_of_a_posterior():
    t = np.linspace(-12, 12, 24_001, dtype=np.float32)
    logvar = np.full_like(t, 0.8)[:, None]
    q = Posterior(np.full_like(logvar, 0.5), np.exp(logvar / 2), logvar)
    density = np.exp(q.log_prob(t[:, None]))
    assert density.sum() * 1e-3 == pytest.approx(1, abs=1e-5)
    assert (density * (t - 0.5) ** 2).sum() * 1e-3 == pytest.approx(math.exp(0.8), rel=1e-3)
    np.testing.assert_allclose(q.var[:, 0], math.exp(0.8), rtol=1e-6)
    with pytest.raises(InputError, match=r"z: expected the shape \[24001, 1\], got \[24001\]"):
        q.log_prob(t)


# Scores of whole VAEs. `small` has mu = x, var = exp(-x) and x = z, so that everything about it is known.


@pytest.fixture
def small(small_bundle):
    return vae_runtime.load(small_bundle("gaussian", 0.5))


def test_the_scores_of_a_vae_known_by_heart(small):
    x = noise.normal(3, 0, 20, (3,))
    s = small.score(x, k=5, seed=7, start=2**64 - 4)
    mean, std = x.astype(np.float64), np.exp(-x.astype(np.float64) / 2)
    z = mean + std * noise.normal(7, 2**64 - 4, 20, (3,), noise.POSTERIOR)
    constant = -math.log(0.5) - 0.5 * math.log(2 * math.pi)
    reconstruction = (-0.5 * ((x - z) / 0.5) ** 2 + constant).sum(axis=1)
    terms = 0.5 * (mean**2 + std**2 - 1 + mean)
    np.testing.assert_allclose(s.reconstruction, reconstruction, atol=1e-4)
    np.testing.assert_allclose(s.kl_per_dimension, terms, atol=1e-5)
    np.testing.assert_allclose(s.kl, terms.sum(axis=1), atol=1e-5)
    np.testing.assert_array_equal(s.elbo, s.reconstruction - s.kl)
    assert not s.mse.any()
    assert not s.mae.any()
    assert s.reason is None
    # Importance draw j of an observation is element j · D + e.
    eps = noise.normal(7, 2**64 - 4, 20, (5 * 3,), noise.IMPORTANCE).reshape(20, 5, 3)
    z = mean[:, None] + std[:, None] * eps
    log_w = (-0.5 * ((x[:, None] - z) / 0.5) ** 2 + constant).sum(axis=2)
    log_w += (-0.5 * z**2 + 0.5 * eps.astype(np.float64) ** 2 + np.log(std)[:, None]).sum(axis=2)
    wanted = np.log(np.exp(log_w).mean(axis=1))
    np.testing.assert_allclose(s.log_likelihood, wanted, atol=1e-3)
    for name in COLUMNS:
        assert getattr(s, name).shape == (20,)
        assert getattr(s, name).dtype == np.float64


def test_the_bound_converges_to_the_true_likelihood(small):
    x = np.float32([[0.2, -0.3, 0.1], [0.5, 0.0, -0.4]])
    # p(x) = N(0, 1 + 0.25) in each dimension.
    wanted = (-0.5 * x.astype(np.float64) ** 2 / 1.25 - 0.5 * math.log(2 * math.pi * 1.25)).sum(axis=1)
    found = small.score(x, k=20_000, seed=0).log_likelihood
    np.testing.assert_allclose(found, wanted, atol=0.05)
    assert np.all(small.score(np.repeat(x, 200, axis=0), seed=0).elbo.reshape(2, 200).mean(axis=1) < wanted)


@pytest.mark.parametrize("k", [10**6 + 1, 10**9])
def test_more_importance_samples_than_memory_holds_are_refused(vae, k):
    with pytest.raises(InputError, match=f"^k: expected 1 … 1000000, got {k}$"):
        vae.score(vae.sample(2, seed=0, observe=True), k=k)


def test_importance_samples_of_large_latents_are_limited(small, monkeypatch):
    monkeypatch.setattr("vae_runtime.score.MAX_DRAWN", 31)
    x = np.zeros((2, 3), np.float32)
    assert small.score(x, k=10, seed=0).log_likelihood.shape == (2,)
    with pytest.raises(InputError, match=r"^k: expected at most 10 for latents of 3 numbers, got 11$"):
        small.score(x, k=11, seed=0)


@pytest.mark.parametrize("k", [None, 1, 3, 200])
def test_scores_depend_on_batches_by_rounding_alone(vae, k):
    x = vae.sample(9, seed=3, observe=True)
    wanted = vae.score(x, k=k, seed=5)
    for size in (1, 4, 9, 300):
        found = vae.score(x, k=k, seed=5, batch_size=size)
        for name in COLUMNS if k else [name for name in COLUMNS if name != "log_likelihood"]:
            np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-4, atol=1e-4)
    part = vae.score(x[4:], k=k, seed=5, start=4)
    np.testing.assert_allclose(part.elbo, wanted.elbo[4:], rtol=1e-4)
    assert (wanted.log_likelihood is None) == (k is None)
    other = vae.score(x, k=k, seed=6)
    assert not np.array_equal(other.reconstruction, wanted.reconstruction)
    np.testing.assert_array_equal(other.kl, wanted.kl)


def test_conditions_go_with_their_rows_in_batches_and_importance_samples(root):
    vae = vae_runtime.load(root / "models" / "digits-conditional")
    labels = np.arange(6)
    x = vae.sample(6, conditions={"label": labels}, seed=1, observe=True)
    found = vae.score(x, conditions={"label": labels}, k=3, seed=2, batch_size=4)
    for row, label in enumerate(labels):
        alone = vae.score(x[row : row + 1], conditions={"label": label}, k=3, seed=2, start=row)
        for name in ("elbo", "log_likelihood", "mse"):
            np.testing.assert_allclose(getattr(found, name)[row], getattr(alone, name)[0], rtol=1e-4, atol=1e-4)
    other = vae.score(x, conditions={"label": labels[::-1]}, k=3, seed=2)
    assert np.abs(other.log_likelihood - found.log_likelihood).min() > 1e-2


def test_the_reconstruction_is_that_of_the_posterior_sample(vae):
    x = vae.sample(9, seed=3, observe=True)
    q, s = vae.encode(x), vae.score(x, seed=5)
    z = q.sample(seed=5)
    wanted = log_likelihood(x, vae.decoder_outputs(z), vae.manifest.likelihood)
    np.testing.assert_allclose(s.reconstruction, wanted, rtol=1e-5)
    error = x.astype(np.float64) - vae.reconstruct(x)
    np.testing.assert_allclose(s.mse, (error**2).mean(axis=(1, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(s.mae, np.abs(error).mean(axis=(1, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(s.kl, q.kl())


def test_more_samples_tighten_the_bound(vae):
    x = vae.sample(30, seed=3, observe=True)
    means = [vae.score(x, k=k, seed=0).log_likelihood.mean() for k in (1, 10, 100)]
    assert means == sorted(means)
    assert vae.score(x, seed=0).elbo.mean() < means[1]


def test_results_print_their_shapes(vae, codes_bundle, levels_bundle):
    x = vae.sample(3, seed=0)
    assert repr(vae.encode(x)) == "<Posterior: mean, std and logvar float32 [3, 8]>"
    assert repr(vae.score(x, k=2, seed=0)) == (
        "<Scores: elbo [3], reconstruction [3], kl [3], kl_per_dimension [3, 8], log_likelihood [3], mse [3], mae [3], "
        "p_value [3]>"
    )
    codes = vae_runtime.load(codes_bundle())
    x = np.full((2, 3), 1.5, np.float32)
    assert repr(codes.encode(x, conditions={"label": 0})) == (
        "<Encoding: value int64 [2, 3]; no distribution: the encoder gives codes>"
    )
    assert repr(codes.score(x, conditions={"label": 0})) == "<Scores: mse [2], mae [2]; no elbo: not stated>"
    levels = vae_runtime.load(levels_bundle())
    assert "kl_per_dimension {z_1: [2, 3], z_2: [2, 3]}, mse [2]" in repr(levels.score(x, seed=0))


def test_progress_is_told(vae):
    told = []
    vae.score(vae.sample(5, seed=0), batch_size=2, progress=lambda done, n: told.append((done, n)))
    assert told == [(2, 5), (4, 5), (5, 5)]


def test_without_a_seed_every_score_is_fresh_but_where_held_out_scores_have_one(vae, bundle_copy, edit_manifest):
    x = vae.sample(3, seed=0)
    assert np.array_equal(vae.score(x).reconstruction, vae.score(x, seed=vae.manifest.scores.seed).reconstruction)
    edit_manifest(bundle_copy, lambda document: document["additional_metadata"]["vae"].pop("scores"))
    bare = vae_runtime.load(bundle_copy)
    assert not np.array_equal(bare.score(x).reconstruction, bare.score(x).reconstruction)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"k": 0}, "^k: "),
        ({"k": 1.5}, "^k: "),
        ({"seed": 2**64}, "^seed: "),
        ({"start": -1}, "^start: "),
        ({"batch_size": 0}, "^batch_size: "),
        ({"conditions": {"y": 1}}, "^conditions: expected none, got 'y'"),
    ],
)
def test_wrong_arguments_are_refused(vae, arguments, match):
    with pytest.raises(InputError, match=match):
        vae.score(vae.sample(2, seed=0), **arguments)


def test_wrong_observations_are_refused(vae):
    with pytest.raises(InputError, match=r"x: expected float32 \[n, 1, 8, 8\], got dtype uint8"):
        vae.score(np.zeros((2, 1, 8, 8), np.uint8))


# What cannot be scored.


@pytest.fixture
def edited(small_bundle, edit_manifest):
    """Load a small VAE after a change of its manifest."""

    def load(change):
        folder = small_bundle()
        edit_manifest(folder, lambda document: change(document["additional_metadata"]["vae"]))
        return vae_runtime.load(folder)

    return load


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda vae: vae.update(likelihood={"kind": "none", "mean": "x"}),
            "no likelihood was stated at export (likelihood=…)",
        ),
        (lambda vae: vae.update(likelihood={"kind": "none", "mean": "x", "reason": "it is a game"}), "it is a game"),
        (
            lambda vae: vae["latents"][0].update(prior={"kind": "none", "reason": "there is none"}),
            "z: the KL needs a prior with a density, and the prior is none, there is none",
        ),
        (
            lambda vae: vae["latents"][0].update(prior={"kind": "sphere"}),
            "z: the KL needs a prior with a density, and the prior is sphere",
        ),
    ],
)
def test_where_there_is_no_elbo_the_errors_and_the_reason_are_left(edited, change, reason):
    s = edited(change).score(noise.normal(3, 0, 4, (3,)), k=3)
    assert s.reason == reason
    assert [getattr(s, name) for name in COLUMNS[:4]] == [None] * 4
    assert s.kl_per_dimension is None
    assert s.mse.tolist() == s.mae.tolist() == [0.0] * 4


# Priors that are mixtures of normals.

WEIGHTS = np.array([0.5, 0.3, 0.2])
MEANS = np.array([[0.0, 1.0, -1.0], [0.5, 0.5, 0.5], [-1.0, 0.1, 0.3]])
STDS = np.array([[1.0, 0.5, 0.7], [0.3, 0.7, 2.0], [0.9, 1.0, 0.4]])
FACTORS = np.linalg.cholesky(np.eye(3) * STDS[:, None] ** 2 + 0.1)


@pytest.fixture
def with_mixture(small_bundle, edit_manifest):
    """Load a small VAE, its answers of scale 0.5, whose prior is a mixture."""

    def load(weights, means, factors):
        folder = small_bundle()
        np.savez(folder / "prior.npz", **{"z/weights": weights, "z/means": means, "z/factors": factors})
        covariance = "diagonal" if factors.ndim == 2 else "full"
        prior = {"kind": "mixture", "file": "prior.npz", "components": len(weights), "covariance": covariance}
        edit_manifest(folder, lambda document: document["additional_metadata"]["vae"]["latents"][0].update(prior=prior))
        return vae_runtime.load(folder)

    return load


def log_density(z, weights, means, covariances):
    """The density of a mixture, as books write it."""
    total = 0.0
    for weight, mean, covariance in zip(weights, means, covariances, strict=True):
        away = z - mean
        square = np.einsum("ni,ij,nj->n", away, np.linalg.inv(covariance), away)
        total += weight * np.exp(-0.5 * square) / np.sqrt((2 * np.pi) ** 3 * np.linalg.det(covariance))
    return np.log(total)


def test_the_kl_to_one_normal_is_analytic(with_mixture):
    x = noise.normal(5, 0, 4, (3,))
    s = with_mixture(np.ones(1), MEANS[:1], STDS[:1]).score(x, seed=0)
    mean, std = x.astype(np.float64), np.exp(-x.astype(np.float64) / 2)
    terms = np.log(STDS[0] / std) + (std**2 + (mean - MEANS[0]) ** 2) / (2 * STDS[0] ** 2) - 0.5
    np.testing.assert_allclose(s.kl_per_dimension, terms, rtol=1e-5)
    np.testing.assert_allclose(s.kl, terms.sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(s.elbo, s.reconstruction - s.kl)
    standard = with_mixture(np.ones(1), np.zeros((1, 3)), np.ones((1, 3))).score(x, seed=0)
    np.testing.assert_allclose(standard.kl, Posterior(x, std.astype(np.float32), -x).kl(), rtol=1e-5)


@pytest.mark.parametrize("factors", [STDS, FACTORS], ids=["diagonal", "full"])
def test_scores_under_a_mixture(with_mixture, factors):
    covariances = [np.diag(std**2) for std in STDS] if factors.ndim == 2 else [each @ each.T for each in FACTORS]
    vae = with_mixture(WEIGHTS, MEANS, factors)
    x = 0.5 * noise.normal(5, 0, 4, (3,))
    s = vae.score(x, k=20_000, seed=0)
    q = vae.encode(x)
    z = q.sample(seed=0)
    np.testing.assert_allclose(s.kl, q.log_prob(z) - log_density(z, WEIGHTS, MEANS, covariances), rtol=1e-4)
    assert s.kl_per_dimension is None
    # The observation is the latent with noise of variance 0.25.
    exact = log_density(x, WEIGHTS, MEANS, [each + 0.25 * np.eye(3) for each in covariances])
    np.testing.assert_allclose(s.log_likelihood, exact, atol=0.03)
    other = with_mixture(WEIGHTS[::-1].copy(), MEANS, factors).score(x, k=20_000, seed=0)
    assert np.abs(other.log_likelihood - exact).max() > 0.03
