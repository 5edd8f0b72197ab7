"""The table of likelihoods: every kind answers the same questions, and an unknown kind is refused everywhere.

What each kind computes is held in test_score.py and test_vae.py.
"""

import dataclasses
import json
import math
from pathlib import Path

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
    if kind.classes:
        mean = np.stack([mean, 1 - mean], -1)
    shape = mean.shape[:-1] if kind.classes else mean.shape
    parameters = Parameters(mean, scale=0.5 if kind.scale else None)
    x = kind.draw(parameters, 3, 0)
    assert x.dtype == np.float32
    assert x.shape == shape
    np.testing.assert_array_equal(kind.draw(Parameters(mean[2:], scale=parameters.scale), 3, 2), x[2:])
    low, high = kind.support or (-np.inf, np.inf)
    assert low <= x.min() <= x.max() <= high
    assert kind.misfit(x) is None
    terms = kind.log_prob(x.astype(np.float64), Parameters(mean.astype(np.float64), scale=parameters.scale))
    assert terms.dtype == np.float64
    assert terms.shape == shape
    assert np.isfinite(terms).all()


# Levels and classes: all of them have the probability 1 together, and are drawn as often as it says.


def chi_squared(seen, expected):
    """The statistic of the values that are expected at least 20 times, and the bound of 5 standard deviations of it."""
    often = expected > 20
    bound = often.sum() + 5 * math.sqrt(2 * often.sum())
    return ((seen - expected)[often] ** 2 / expected[often]).sum(), bound


def levels(low, high, dtype=np.float32):
    return (low + np.arange(256) * (high - low) / 255).astype(dtype).astype(np.float64)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (-0.4242, 2.8215)])
@pytest.mark.parametrize("scale", [1e-4, 0.004, 0.1, 30.0])
def test_the_probabilities_of_levels_are_those_of_their_bins(bounds, scale):
    low, high = bounds
    kind, x, width = kind_named("logistic").of(bounds, None), levels(*bounds), high - low
    for mean in (low - width, low, low + 0.37 * width, high, high + 0.2 * width):
        spread = scale * width
        terms = kind.log_prob(x, Parameters(np.full(256, mean), scale=spread))
        assert np.isfinite(terms).all()
        assert np.exp(terms).sum() == pytest.approx(1, rel=1e-12)
        # The distribution function at the borders of the bins; beyond the first and the last there are none.
        borders = low + (np.arange(255) + 0.5) * width / 255
        below = np.concatenate([[0], 0.5 + 0.5 * np.tanh((borders - mean) / spread / 2), [1]])
        np.testing.assert_allclose(np.exp(terms), np.diff(below), atol=1e-12)


def test_far_levels_keep_their_digits():
    kind = kind_named("logistic")
    terms = kind.log_prob(levels(0, 1), Parameters(np.full(256, 0.0), scale=0.001))
    # Far above the mean, each level is exp(-step / scale) as probable as the one before.
    np.testing.assert_allclose(np.diff(terms[100:-1]), -1 / 255 / 0.001, rtol=1e-9)


def test_what_lies_off_the_levels_is_refused_and_has_no_probability():
    kind = kind_named("logistic")
    x = np.array([0.0, 1.0, np.float32(77 / 255), 0.5, -1 / 255, 256 / 255, np.nan, np.inf])
    assert kind.outside(x).tolist() == [False] * 3 + [True] * 5
    terms = kind.log_prob(x, Parameters(np.full(8, 0.5), scale=0.1))
    assert np.isneginf(terms).tolist() == [False] * 3 + [True] * 5
    assert kind.misfit(x) == (
        "expected the 256 levels 0 + k · 0.00392157 up to 1 for a logistic likelihood, got 0.5 at [3]"
    )
    for bounds in ((0.0, 1.0), (-1.0, 1.0), (-0.4242, 2.8215)):
        assert kind.of(bounds, None).misfit(levels(*bounds)) is None
    with pytest.raises(InputError, match="expected a range of the observations, whose ends are the first and the last"):
        kind.of(None, None)


@pytest.mark.parametrize(("mean", "scale"), [(0.5, 0.1), (0.02, 0.01), (0.999, 0.05), (0.3, 3.0), (-0.2, 0.2)])
def test_drawn_levels_have_their_probabilities(mean, scale):
    kind, n = kind_named("logistic"), 100_000
    drawn = kind.draw(Parameters(np.full((n, 1), mean, np.float32), scale=scale), 4, 0)
    assert kind.misfit(drawn) is None
    seen = np.bincount(np.rint(255 * drawn[:, 0]).astype(np.int64), minlength=256)

    def distance(mean):
        return chi_squared(seen, n * np.exp(kind.log_prob(levels(0, 1), Parameters(np.full(256, mean), scale=scale))))

    statistic, bound = distance(float(np.float32(mean)))
    assert statistic < bound < distance(mean + 0.1 * scale)[0]
    assert np.isnan(kind.draw(Parameters(np.float32([[np.nan]]), scale=scale), 4, 0)).all()


PROBABILITIES = np.float32([0.4, 0.0, 0.25, 0.05, 0.3])


def test_the_probabilities_of_classes_sum_to_one():
    kind = kind_named("categorical").of(None, (5,))
    logits = 6 * noise.normal(1, 0, 50, (5,)).astype(np.float64)
    x = np.tile(np.arange(5.0), (50, 1))
    repeated = np.repeat(logits[:, np.newaxis], 5, axis=1)
    terms = kind.log_prob(x, Parameters(logits=repeated))
    np.testing.assert_allclose(np.exp(terms).sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(np.exp(terms), kind.mean_of(logits), rtol=1e-12)
    np.testing.assert_allclose(kind.log_prob(x, Parameters(mean=kind.mean_of(repeated))), terms, rtol=1e-9, atol=1e-15)
    # Logits beyond exp's range.
    large = kind.log_prob(x[:1], Parameters(logits=np.tile([1e4, 0.0, -1e4, 1e4, 0.0], (1, 5, 1))))
    np.testing.assert_allclose(large[0], [-math.log(2), -1e4, -2e4, -math.log(2), -1e4], rtol=1e-3)


def test_a_class_of_probability_0_without_logits_has_the_smallest_logarithm():
    kind = kind_named("categorical").of(None, (5,))
    terms = kind.log_prob(np.array([0.0, 1.0]), Parameters(mean=np.tile(PROBABILITIES.astype(np.float64), (2, 1))))
    np.testing.assert_allclose(terms, [math.log(np.float32(0.4)), -100])


def test_what_is_no_class_is_refused_and_has_no_probability():
    kind = kind_named("categorical").of(None, (3, 5))
    x = np.array([0.0, 4.0, 5.0, -1.0, 0.5, np.nan])
    assert kind.outside(x).tolist() == [False, False, True, True, True, True]
    terms = kind.log_prob(x, Parameters(logits=np.zeros((6, 5))))
    np.testing.assert_allclose(terms, [-math.log(5)] * 2 + [-np.inf] * 4)
    assert kind.misfit(np.array([[1, 2], [3, 5]])) == (
        "expected classes 0 … 4 for a categorical likelihood, got 5 at [1, 1]"
    )
    with pytest.raises(InputError, match="expected the decoder's answer with an axis of classes, its last, got none"):
        kind.of((0, 4), None)


def test_drawn_classes_have_their_probabilities():
    kind, n = kind_named("categorical").of(None, (5,)), 100_000
    drawn = kind.draw(Parameters(np.broadcast_to(PROBABILITIES, (n, 5))), 4, 0)
    seen = np.bincount(drawn.astype(np.int64), minlength=5)
    assert seen[1] == 0
    statistic, bound = chi_squared(seen, n * PROBABILITIES.astype(np.float64))
    assert statistic < bound < chi_squared(seen, n * np.array([0.41, 0, 0.25, 0.05, 0.29]))[0]


def test_classes_are_the_inverse_of_the_distribution_function():
    """In plain Python, as docs/noise.md has it, bit for bit; whatever the sum of the probabilities is."""
    kind, shape = kind_named("categorical").of(None, (7,)), (3, 2)
    mean = noise.uniform(1, 0, 40, (*shape, 7))
    drawn = kind.draw(Parameters(mean), 9, 2**40)
    u = noise.uniform(9, 2**40, 40, shape, noise.OBSERVATION)
    for index in np.ndindex(40, *shape):
        total, sums = 0.0, []
        for each in mean[index].tolist():
            total += each
            sums.append(total)
        assert drawn[index] == next(k for k, each in enumerate(sums) if each > float(u[index]) * total)


def test_probabilities_without_a_sum_give_no_class():
    mean = np.float32([[np.nan, 1], [np.inf, 1], [0, 0], [1, 0]])
    drawn = kind_named("categorical").draw(Parameters(mean), 0, 0)
    np.testing.assert_array_equal(drawn, [np.nan, np.nan, np.nan, 0])


def vectors(name):
    case = json.loads((Path(__file__).parents[1] / "data" / "observation_vectors.json").read_text(encoding="utf-8"))[
        name
    ]
    return case, Parameters(np.float32(case["mean"]), scale=case.get("scale"))


def test_draws_are_those_of_the_vectors():
    """The means are float32; a level is given by its number."""
    case, parameters = vectors("logistic")
    low, high = case["range"]
    drawn = kind_named("logistic").of((low, high), None).draw(parameters, int(case["seed"]), int(case["start"]))
    expected = (low + np.array(case["level"]) * (high - low) / 255).astype(np.float32)
    np.testing.assert_array_equal(drawn, expected)
    case, parameters = vectors("categorical")
    kind = kind_named("categorical").of(None, parameters.mean.shape)
    drawn = kind.draw(parameters, int(case["seed"]), int(case["start"]))
    np.testing.assert_array_equal(drawn, case["class"])
    assert (kind.draw(parameters, int(case["seed"]) + 1, int(case["start"])) != case["class"]).any()


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
