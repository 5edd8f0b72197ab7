import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import vae_runtime
from vae_export import noise as twin
from vae_export import reparameterize
from vae_export.training import checkpoint
from vae_runtime import Posterior, noise

POSTERIOR = noise.stream_of(noise.POSTERIOR)


@pytest.fixture(scope="module")
def trained(tiny_run):
    vae, info = checkpoint.load(tiny_run)
    return vae, checkpoint.run_data(info).test.rows(slice(None))


@pytest.fixture(scope="module")
def exported(tiny_bundle):
    return vae_runtime.load(tiny_bundle)


@torch.no_grad()
def through_torch(vae, x, seed, start):
    """encode, reparameterize, decode, as in training, with noise of vnoise-1."""
    mu, logvar = vae.encode(torch.from_numpy(x))
    eps = twin.normal(seed, start, len(x), mu.shape[1:], POSTERIOR)
    z = reparameterize(mu, logvar, eps)
    return z.numpy(), vae.mean(vae.decode(z)).numpy()


@pytest.mark.parametrize(("seed", "start"), [(0, 0), (1, 5), (-3, 2**40), (2**64 - 1, 2**64 - 3)])
def test_the_runtime_reparameterizes_as_training_does(trained, exported, seed, start):
    vae, x = trained
    x = x[:50]
    z, decoded = through_torch(vae, x, seed, start)
    q = exported.encode(x)
    np.testing.assert_allclose(q.sample(seed=seed, start=start), z, rtol=0, atol=1e-5)
    np.testing.assert_allclose(exported.decode(q.sample(seed=seed, start=start)), decoded, rtol=0, atol=1e-5)
    np.testing.assert_allclose(exported.reconstruct(x, seed=seed, start=start), decoded, rtol=0, atol=1e-5)


def test_another_seed_another_sample(trained, exported):
    vae, x = trained
    z, decoded = through_torch(vae, x[:50], 0, 0)
    assert np.abs(exported.encode(x[:50]).sample(seed=1) - z).max() > 1
    assert np.abs(exported.reconstruct(x[:50], seed=1) - decoded).max() > 0.01
    assert np.abs(exported.encode(x[:50]).sample(seed=0, start=1) - z).max() > 1


def test_the_mode_is_a_sample_without_noise(trained, exported):
    vae, x = trained
    with torch.no_grad():
        mu, logvar = vae.encode(torch.from_numpy(x[:50]))
        still = reparameterize(mu, logvar, torch.zeros_like(mu)).numpy()
    q = exported.encode(x[:50])
    np.testing.assert_allclose(q.mode(), still, rtol=0, atol=1e-5)
    assert np.array_equal(q.sample(seed=0, temperature=0), q.mode())


NUMBERS = st.floats(-50, 50, width=32)


@given(
    mean=arrays.arrays(np.float32, (5, 3), elements=NUMBERS),
    logvar=arrays.arrays(np.float32, (5, 3), elements=st.floats(-20, 10, width=32)),
    seed=st.integers(-(2**63), 2**64 - 1),
    start=st.integers(0, 2**64 - 1),
)
@settings(max_examples=100, deadline=None)
def test_of_the_same_mean_and_std_the_sample_has_the_same_bits(mean, logvar, seed, start):
    """Multiplied, rounded, added, rounded: a fused multiply-add would give other bits on other machines."""
    # The std that PyTorch takes, so that its exp is not in question.
    std = torch.exp(0.5 * torch.from_numpy(logvar))
    q = Posterior(mean, std.numpy(), logvar)
    eps = twin.normal(seed, start, 5, (3,), POSTERIOR)
    expected = reparameterize(torch.from_numpy(mean), torch.from_numpy(logvar), eps).numpy()
    assert np.array_equal(q.sample(seed=seed, start=start).view(np.uint32), expected.view(np.uint32))


def test_a_fused_multiply_add_would_be_noticed():
    eps = noise.normal(0, 0, 1000, (3,), POSTERIOR)
    mean, std = noise.normal(1, 0, 1000, (3,)), np.abs(noise.normal(2, 0, 1000, (3,)))
    fused = (mean.astype(np.float64) + std.astype(np.float64) * eps).astype(np.float32)
    rounded = Posterior(mean, std, 2 * np.log(std)).sample(seed=0)
    assert 0 < np.count_nonzero(fused != rounded) < rounded.size / 2
