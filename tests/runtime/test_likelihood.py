"""The table of likelihoods: every kind answers the same questions, and an unknown kind is refused everywhere.

What each kind computes is held in test_score.py and test_vae.py.
"""

import dataclasses
import math

import numpy as np
import pytest

import vae_runtime
from vae_runtime import InputError, noise
from vae_runtime.devices import resolve_device
from vae_runtime.likelihood import KINDS, Parameters, kind_named
from vae_runtime.manifest import Likelihood
from vae_runtime.networks import Networks
from vae_runtime.score import log_likelihood
from vae_runtime.vae import VAE

UNKNOWN = "likelihood: expected one of bernoulli, gaussian, laplace.*, got 'cauchy'; use a version"


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_gives_numbers_of_the_shape_of_x(name):
    kind = kind_named(name)
    assert kind.name == name
    mean = np.float32([[0.25, 0.5, 0.75]] * 4)
    parameters = Parameters(mean, scale=0.5 if kind.scale else None)
    x = kind.draw(parameters, 3, 0)
    assert x.dtype == np.float32
    assert x.shape == mean.shape
    np.testing.assert_array_equal(kind.draw(Parameters(mean[2:], scale=parameters.scale), 3, 2), x[2:])
    low, high = kind.support or (-np.inf, np.inf)
    assert low <= x.min() <= x.max() <= high
    terms = kind.log_prob(x.astype(np.float64), Parameters(mean.astype(np.float64), scale=parameters.scale))
    assert terms.dtype == np.float64
    assert terms.shape == mean.shape
    assert np.isfinite(terms).all()


# The Poisson, against its probabilities in plain Python.


def probability(count, rate):
    """The exact probability of a count."""
    return math.exp(count * math.log(rate) - rate - math.lgamma(count + 1)) if rate else float(count == 0)


def quantile(uniform, rate):
    """The smallest count whose distribution function exceeds a number."""
    count, total = 0, probability(0, rate)
    while total <= uniform:
        count += 1
        total += probability(count, rate)
    return count


@pytest.mark.parametrize("rate", [1e-30, 0.3, 1.0, 30.0, 31.5, 1000.0, 1e6])
def test_log_probabilities_of_counts_are_exact(rate):
    poisson = kind_named("poisson")
    counts = np.array([0, 1, 2, 30, 31, 32, 33, 34, 100, 1000, 1_000_000], np.float64)
    expected = [float(n) * math.log(rate) - rate - math.lgamma(n + 1) for n in counts]
    found = poisson.log_prob(counts, Parameters(np.full_like(counts, rate)))
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-9)
    other = poisson.log_prob(counts, Parameters(np.full_like(counts, 1.01 * rate)))
    assert not np.allclose(other, expected, rtol=1e-6)


def test_probabilities_of_counts_sum_to_one():
    counts = np.arange(3000.0)
    for rate in (0.0, 0.1, 7.0, 2000.0):
        terms = kind_named("poisson").log_prob(counts, Parameters(np.full_like(counts, rate)))
        assert np.exp(terms).sum() == pytest.approx(1, rel=1e-10)
        assert (np.exp(terms) * counts).sum() == pytest.approx(rate, rel=1e-10)


def test_what_cannot_be_drawn_has_no_probability():
    x = np.array([0.0, 1.0, 0.5, -1.0, np.nan, np.inf])
    for rate, first in ((0.0, [0.0, -np.inf]), (1.0, [-1.0, -1.0])):
        terms = kind_named("poisson").log_prob(x, Parameters(np.full_like(x, rate)))
        np.testing.assert_array_equal(terms, [*first, *[-np.inf] * 4])
    assert kind_named("poisson").outside(x).tolist() == [False, False, True, True, True, True]


@pytest.mark.parametrize("rate", [0.0, 1e-9, 0.1, 3.0, 30.0, 63.9, 64.1, 700.0, 1023.9])
def test_counts_are_the_inverse_of_the_distribution_function(rate):
    mean = np.full((40, 5), rate, np.float32)
    drawn = kind_named("poisson").draw(Parameters(mean), 11, 3)
    uniform = noise.uniform(11, 3, 40, (5,), noise.OBSERVATION).astype(np.float64) + 2.0**-25
    expected = [quantile(u, float(mean[0, 0])) for u in uniform.ravel()]
    np.testing.assert_array_equal(drawn.ravel(), expected)


@pytest.mark.parametrize("rate", [0.5, 12.0, 900.0, 1024.0, 5000.0])
def test_drawn_counts_have_their_probabilities(rate):
    n = 100_000
    drawn = kind_named("poisson").draw(Parameters(np.full((n, 1), rate, np.float32)), 2, 0).ravel().astype(np.float64)
    np.testing.assert_array_equal(drawn, np.floor(drawn))
    assert abs(drawn.mean() - rate) < 5 * math.sqrt(rate / n)
    assert abs(drawn.var() - rate) < 5 * math.sqrt((rate + 2 * rate**2) / n)
    # Chi squared of the counts that are expected at least 100 times: its mean is their number.
    counts = np.arange(max(0, int(rate - 4 * math.sqrt(rate))), int(rate + 4 * math.sqrt(rate)) + 2)
    seen = np.bincount(drawn.astype(np.int64), minlength=counts[-1] + 1)[counts]
    often = np.array([n * probability(count, rate) > 100 for count in counts.tolist()])
    bound = often.sum() + 5 * math.sqrt(2 * often.sum())

    def distance(rate):
        expected = n * np.array([probability(count, rate) for count in counts.tolist()])
        return ((seen - expected) ** 2 / expected)[often].sum()

    assert distance(rate) < bound < distance(1.03 * rate)


@pytest.mark.parametrize("rate", [1024.0, 4321.5, 1e5])
def test_large_counts_follow_the_distribution_function(monkeypatch, rate):
    """The distribution function of the draw, found by bisection in the normal noise, against sums of probabilities."""
    mean, poisson = np.float32([[rate]]), kind_named("poisson")

    def count_at(eps):
        monkeypatch.setattr(noise, "normal", lambda *arguments: np.array([[eps]]))
        return poisson.draw(Parameters(mean), 0, 0)[0, 0]

    spread = math.sqrt(rate)
    counts = [int(rate + spread * step) for step in (-4, -2, -1, -0.1, 0, 0.5, 1, 3, 5)]
    for count in counts:
        low, high = -7.0, 7.0
        for _ in range(60):
            middle = (low + high) / 2
            above = count_at(middle) > count
            low, high = (low, middle) if above else (middle, high)
        found = 0.5 * math.erfc(-low / math.sqrt(2))
        start = max(0, int(rate - 10 * spread))
        exact = math.fsum(probability(each, rate) for each in range(start, count + 1))
        assert found == pytest.approx(exact, abs=1e-8)
        if count < rate + 4 * spread:
            assert found != pytest.approx(exact + probability(count + 1, rate), abs=1e-8)


def test_counts_at_rates_beyond_all_use():
    rates = np.float32([[0, np.nan, -1, np.inf, 1e30, np.finfo(np.float32).max]])
    drawn = kind_named("poisson").draw(Parameters(rates), 1, 0)[0]
    assert drawn[0] == 0
    assert np.isnan(drawn[1:4]).all()
    np.testing.assert_allclose(drawn[4:], rates[0, 4:], rtol=1e-6)


@pytest.mark.parametrize("name", ["cauchy", "none", "Laplace", ""])
def test_an_unknown_kind_is_refused(name):
    with pytest.raises(InputError, match=r"^likelihood: expected one of "):
        kind_named(name)


def test_an_unknown_kind_is_not_scored_as_another():
    x = np.zeros((2, 3), np.float32)
    assert np.isfinite(log_likelihood(x, {"x": x}, Likelihood("laplace", "x", scale=1.0))).all()
    with pytest.raises(InputError, match=UNKNOWN):
        log_likelihood(x, {"x": x}, Likelihood("cauchy", "x", scale=1.0))


def test_an_unknown_kind_is_not_drawn_as_another(small_bundle):
    bundle = vae_runtime.load(small_bundle("laplace", 0.5)).bundle
    cauchy = dataclasses.replace(bundle.manifest, likelihood=Likelihood("cauchy", "x", scale=0.5))
    bundle = dataclasses.replace(bundle, manifest=cauchy)
    vae = VAE(bundle, Networks(bundle, resolve_device("cpu"), 1, bundle.choose(None)))
    assert vae.sample(2, seed=0).shape == (2, 3)
    for refuse in (
        lambda: vae.sample(2, seed=0, observe=True),
        lambda: vae.decode(vae.prior(2, seed=0), observe=True),
        lambda: vae.score(noise.normal(3, 0, 4, (3,)), seed=0),
    ):
        with pytest.raises(InputError, match=UNKNOWN):
            refuse()
