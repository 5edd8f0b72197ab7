"""The table of likelihoods: every kind answers the same questions, and an unknown kind is refused everywhere.

What each kind computes is held in test_score.py and test_vae.py.
"""

import dataclasses

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
    vae = VAE(bundle, Networks(bundle, resolve_device("cpu"), 1, None))
    assert vae.sample(2, seed=0).shape == (2, 3)
    for refuse in (
        lambda: vae.sample(2, seed=0, observe=True),
        lambda: vae.decode(vae.prior(2, seed=0), observe=True),
        lambda: vae.score(noise.normal(3, 0, 4, (3,)), seed=0),
    ):
        with pytest.raises(InputError, match=UNKNOWN):
            refuse()
