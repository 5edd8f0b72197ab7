from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributions
from torch.nn import functional

from vae_export.training import objective
from vae_export.training.config import ModelConfig
from vae_export.training.model import VAE
from vae_export.training.step import Objective

LIKELIHOODS = {
    "bernoulli": lambda parameters, _: distributions.Bernoulli(logits=parameters),
    "gaussian": lambda parameters, scale: distributions.Normal(parameters, scale),
    "laplace": lambda parameters, scale: distributions.Laplace(parameters, scale),
    "poisson": lambda parameters, _: distributions.Poisson(functional.softplus(parameters)),
}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def observations(likelihood: str, *shape: int) -> torch.Tensor:
    counts = {"bernoulli": (draw(*shape) > 0).double(), "poisson": (4 * draw(*shape)).abs().round()}
    return counts.get(likelihood, draw(*shape))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("shape", [(6,), (2, 3, 4)])
@pytest.mark.parametrize("samples", [(), (7,)])
def test_log_likelihood_is_that_of_torch_distributions(likelihood, scale, shape, samples):
    x, parameters = observations(likelihood, 5, *shape), 3 * draw(*samples, 5, *shape, seed=1)
    expected = LIKELIHOODS[likelihood](parameters, scale).log_prob(x).flatten(len(samples) + 1).sum(-1)
    found = objective.log_likelihood(x, parameters, likelihood, scale)
    assert found.shape == (*samples, 5)
    torch.testing.assert_close(found, expected)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(objective.log_likelihood(x, parameters + 0.01, likelihood, scale), expected)


def test_a_bernoulli_likelihood_does_not_saturate():
    x, logits = torch.tensor([[1.0], [0.0]]), torch.tensor([[-80.0], [80.0]])
    assert objective.log_likelihood(x, logits, "bernoulli").tolist() == [-80.0, -80.0]


def test_a_poisson_likelihood_keeps_its_gradient_where_the_rate_is_0():
    x, parameters = torch.tensor([[3.0, 0.0, 3.0]]), torch.tensor([[-150.0, -150.0, 200.0]], requires_grad=True)
    found = objective.log_likelihood(x, parameters, "poisson")
    assert found.item() == pytest.approx(3 * -150 + 3 * math.log(200) - 200 - 2 * math.log(6))
    (gradient,) = torch.autograd.grad(found.sum(), parameters)
    assert gradient.tolist() == [[3.0, 0.0, pytest.approx(3 / 200 - 1)]]


@pytest.mark.parametrize("likelihood", ["gaussian", "laplace"])
def test_a_learned_scale_gets_the_right_gradient(likelihood):
    x, mean, scale = draw(4, 6), draw(4, 6, seed=1), torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(objective.log_likelihood(x, mean, likelihood, scale).sum(), scale)
    (expected,) = torch.autograd.grad(LIKELIHOODS[likelihood](mean, scale).log_prob(x).sum(), scale)
    torch.testing.assert_close(found, expected)


def test_kl_is_that_of_torch_distributions():
    mu, logvar = 2 * draw(6, 5), draw(6, 5, seed=1)
    posterior, prior = distributions.Normal(mu, (0.5 * logvar).exp()), distributions.Normal(0.0, 1.0)
    expected = distributions.kl_divergence(posterior, prior)
    torch.testing.assert_close(objective.kl_standard_normal(mu, logvar), expected)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(objective.kl_standard_normal(mu, 2 * logvar), expected)


numbers = st.floats(-8, 8, width=32)


@given(mu=numbers, logvar=numbers)
def test_kl_is_positive_but_for_the_prior_itself(mu, logvar):
    kl = objective.kl_standard_normal(torch.tensor(mu).double(), torch.tensor(logvar).double()).item()
    assert kl > 0 if abs(mu) + abs(logvar) > 1e-6 else abs(kl) < 1e-12


def test_log_normal_is_that_of_torch_distributions():
    z, mu, logvar = draw(3, 6, 5), draw(6, 5, seed=1), draw(6, 5, seed=2)
    posterior = distributions.Normal(mu, (0.5 * logvar).exp())
    torch.testing.assert_close(objective.log_normal(z, mu, logvar), posterior.log_prob(z).sum(-1))
    torch.testing.assert_close(objective.log_normal(z), distributions.Normal(0.0, 1.0).log_prob(z).sum(-1))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_elbo_is_reconstruction_less_kl(likelihood):
    x, parameters, mu, logvar = observations(likelihood, 5, 1, 2, 2), draw(5, 1, 2, 2), draw(5, 3), draw(5, 3, seed=1)
    terms = objective.elbo(x, parameters, mu, logvar, likelihood, 0.5)
    torch.testing.assert_close(terms.reconstruction, objective.log_likelihood(x, parameters, likelihood, 0.5))
    torch.testing.assert_close(terms.kl, objective.kl_standard_normal(mu, logvar).sum(1))
    torch.testing.assert_close(terms.elbo, terms.reconstruction - terms.kl)
    assert terms.elbo.shape == (5,)


def test_free_bits_are_a_floor_under_each_dimension():
    kl = torch.tensor([[0.1, 2.0, 0.0], [0.3, 4.0, 0.0]])
    assert objective.with_free_bits(kl, 0.0).item() == pytest.approx(3.2)
    assert objective.with_free_bits(kl, 0.5).item() == pytest.approx(0.5 + 3.0 + 0.5)
    kl.requires_grad_()
    objective.with_free_bits(kl, 0.5).backward()
    assert kl.grad is not None
    # within the free bits nothing pulls
    assert kl.grad.tolist() == [[0.0, 0.5, 0.0], [0.0, 0.5, 0.0]]


@given(beta=st.floats(0, 5), warmup=st.integers(0, 20), epoch=st.floats(0, 40))
def test_kl_weight_rises_to_beta_and_stays(beta, warmup, epoch):
    weight = objective.kl_weight(epoch, beta, warmup)
    assert 0 <= weight <= beta
    if epoch >= warmup:
        assert weight == beta
    else:
        assert weight == pytest.approx(beta * epoch / warmup)


def linear_gaussian():
    """x = A z + b + noise with z ~ N(0, 1): log p(x) and the exact posterior are known."""
    weights = torch.linalg.qr(draw(6, 3)).Q * torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    shift, scale, x = draw(6, seed=1), 0.3, draw(4, 6, seed=2)
    covariance = weights @ weights.T + scale**2 * torch.eye(6, dtype=torch.float64)
    log_p = distributions.MultivariateNormal(shift, covariance).log_prob(x)
    variance = 1 / (1 + weights.square().sum(0) / scale**2)
    mu = (x - shift) @ weights * variance / scale**2
    return x, weights, shift, scale, mu, variance.log().expand(4, 3), log_p


def bound(x, weights, shift, scale, mu, logvar, eps):
    z = mu + (0.5 * logvar).exp() * eps
    reconstruction = objective.log_likelihood(x, z @ weights.T + shift, "gaussian", scale)
    return objective.importance_weighted_bound(
        reconstruction, objective.log_normal(z) - objective.log_normal(z, mu, logvar)
    )


def test_with_the_exact_posterior_one_sample_gives_log_p():
    *model, log_p = linear_gaussian()
    torch.testing.assert_close(bound(*model, draw(1, 4, 3)), log_p)
    torch.testing.assert_close(bound(*model, draw(50, 4, 3)), log_p)


def test_with_another_posterior_the_bound_rises_to_log_p():
    *model, mu, logvar, log_p = linear_gaussian()
    means = [bound(*model, mu + 0.1, logvar + 0.5, draw(k, 100, 4, 3)).mean(0) for k in (1, 10, 1000)]
    gaps = [(log_p - mean).mean().item() for mean in means]
    assert gaps[0] > 3 * gaps[1] > 9 * abs(gaps[2])
    assert abs(gaps[2]) < 0.01


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20))
@settings(deadline=None)
def test_the_bound_is_the_logarithm_of_a_mean(weights):
    log_w = torch.tensor(weights, dtype=torch.float64)[:, None]
    found = objective.importance_weighted_bound(log_w, torch.zeros_like(log_w)).item()
    assert min(weights) - 1e-9 <= found <= max(weights) + 1e-9
    top = max(weights)
    assert found == pytest.approx(top + math.log(sum(math.exp(w - top) for w in weights) / len(weights)), abs=1e-9)


def test_the_weight_of_the_kl_is_that_of_the_ratio_in_the_bound():
    """The figure of the bound has it whole. Each row keeps its condition in all of its samples."""
    vae = VAE(ModelConfig(observation_shape=(5,), latent=2, hidden=(4,), conditions={"pose": {"shape": [2]}}))
    x, eps, pose = draw(6, 5).gt(0).float(), draw(3, 6, 2, seed=1).float(), 9 * draw(6, 2, seed=2).float()
    with torch.no_grad():
        mu, logvar = vae.encode(x, pose=pose)
        deviation = (0.5 * logvar).exp()
        z = mu + deviation * eps
        logits = torch.stack([vae.decode(sample, pose=pose) for sample in z])
        reconstruction = distributions.Bernoulli(logits=logits).log_prob(x).sum(-1)
        ratio = distributions.Normal(0, 1).log_prob(z).sum(-1) - distributions.Normal(mu, deviation).log_prob(z).sum(-1)
        for weight in (0.0, 0.25, 1.0):
            goal, figures = Objective(vae)(x, eps, weight, conditions={"pose": pose})
            expected = [
                ((reconstruction + by * ratio).logsumexp(0) - math.log(3)).mean().item() for by in (weight, 1.0)
            ]
            assert [goal.item(), figures[3].item()] == pytest.approx(expected, rel=1e-5)


def test_free_bits_are_of_the_mean_over_the_batch():
    kl = torch.tensor([[0.0, 4.0], [2.0, 0.0]])
    assert objective.with_free_bits(kl, 1.5).item() == 1.5 + 2.0
    assert objective.with_free_bits(kl, 0.0).item() == 1.0 + 2.0
    assert objective.with_free_bits(kl, 1.5, torch.tensor([True, False])).item() == 1.0 + 1.5


def test_free_bits_change_what_is_trained_and_no_figure():
    vae = VAE(ModelConfig(observation_shape=(5,), latent=2, hidden=(4,)))
    x, eps = draw(6, 5).gt(0).float(), draw(1, 6, 2, seed=1).float()
    (plain, figures), (goal, same) = (Objective(vae)(x, eps, 0.5, bits) for bits in (0.0, 3.0))
    assert torch.equal(figures, same)
    assert figures[0].item() == pytest.approx((figures[1] - figures[2]).item(), rel=1e-5)
    # Both dimensions cost less than 3 nats.
    assert goal.item() == pytest.approx((figures[1] - 0.5 * 6).item(), rel=1e-5)
    assert plain.item() == pytest.approx((figures[1] - 0.5 * figures[2]).item(), rel=1e-5)


@pytest.mark.parametrize("learn", [True, False])
def test_the_scale_of_a_model_is_trained_where_it_is_learned(learn):
    vae = VAE(
        ModelConfig(observation_shape=(5,), latent=2, hidden=(), likelihood="gaussian", scale=0.5, learn_scale=learn)
    )
    x, eps = draw(6, 5).float(), draw(1, 6, 2, seed=1).float()
    Objective(vae)(x, eps, 1.0)[0].backward()
    gradient = vae.log_scale.grad
    assert (gradient is not None and gradient.abs().item() > 0) == learn
