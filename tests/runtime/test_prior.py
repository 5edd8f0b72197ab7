"""Latents of every kind of prior: the same bits however they are drawn, and of the distribution that is said."""

import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vae_runtime
from vae_runtime import BundleError, InputError, noise
from vae_runtime.prior import Mixture, draw_normal, draw_sphere

SEEDS = st.integers(-(2**63), 2**64 - 1)
STARTS = st.one_of(st.integers(0, 2**64 - 1), st.integers(2**64 - 50, 2**64 - 1))

WEIGHTS = np.array([0.5, 0.3, 0.2])
MEANS = np.array([[0.0, 1.0, -1.0], [5.0, 5.0, 5.0], [-9.0, 0.1, 3.0]])
DEVIATIONS = np.array([[1.0, 0.5, 0.1], [0.3, 0.7, 2.0], [0.0, 1.0, 1e-3]])
FACTORS = np.tril(np.arange(1.0, 28.0).reshape(3, 3, 3) / 10)
MIXTURES = [Mixture(WEIGHTS, MEANS, DEVIATIONS), Mixture(WEIGHTS, MEANS, FACTORS)]


def same(one, other):
    assert one.dtype == other.dtype
    assert one.shape == other.shape
    assert one.tobytes() == other.tobytes()


def drawn_slowly(mixture, seed, start, n, latent, temperature, truncation):
    """The rules of docs/noise.md, section 5, one number after the other in Python's doubles."""
    rows = []
    components, elements = mixture.means.shape
    for i in range(n):
        (u,) = noise.uniform(seed, (start + i) % 2**64, 1, (1,), 4 + 256 * latent)[0].tolist()
        total, chosen = 0.0, components - 1
        for component, weight in enumerate(mixture.weights.tolist()):
            total += weight
            if total > u:
                chosen = component
                break
        eps = noise.normal(seed, (start + i) % 2**64, 1, (elements,), 256 * latent, truncation)[0]
        eps = (eps * np.float32(temperature)).tolist()
        row = mixture.means[chosen].tolist()
        for d in range(elements):
            if mixture.factors.ndim == 2:
                row[d] += float(mixture.factors[chosen, d]) * eps[d]
            else:
                for e in range(elements):
                    row[d] += float(mixture.factors[chosen, d, e]) * eps[e]
        rows.append(row)
    return np.array(rows, np.float64).astype(np.float32).reshape(n, elements)


@pytest.mark.parametrize("mixture", MIXTURES, ids=["diagonal", "full"])
@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, start=STARTS, n=st.integers(1, 30), latent=st.integers(0, 9), data=st.data())
def test_a_mixture_is_drawn_as_specified_however_it_is_cut(mixture, seed, start, n, latent, data):
    temperature = data.draw(st.sampled_from([1.0, 0.5, 0.0]))
    truncation = data.draw(st.sampled_from([None, 0.7]))
    whole = mixture.draw(seed, start, n, latent, temperature, truncation)
    same(whole, drawn_slowly(mixture, seed, start, n, latent, temperature, truncation))
    cut = data.draw(st.integers(0, n))
    parts = [
        mixture.draw(seed, start, cut, latent, temperature, truncation),
        mixture.draw(seed, (start + cut) % 2**64, n - cut, latent, temperature, truncation),
    ]
    same(np.concatenate(parts), whole)


@pytest.mark.parametrize("mixture", MIXTURES, ids=["diagonal", "full"])
def test_a_mixture_has_its_moments(mixture):
    n = 200_000
    z = mixture.draw(3, 0, n).astype(np.float64)
    covariances = [np.diag(factor**2) if factor.ndim == 1 else factor @ factor.T for factor in mixture.factors]
    mean = WEIGHTS @ MEANS
    covariance = sum(
        w * (c + np.outer(m - mean, m - mean)) for w, m, c in zip(WEIGHTS, MEANS, covariances, strict=True)
    )
    spread = np.sqrt(np.diag(covariance) / n)
    assert np.all(np.abs(z.mean(axis=0) - mean) < 5 * spread)
    np.testing.assert_allclose(np.cov(z.T), covariance, atol=0.02 * covariance.max())


def test_components_are_as_frequent_as_their_weights():
    z = Mixture(WEIGHTS, np.array([[0.0], [1.0], [2.0]]), np.zeros((3, 1))).draw(1, 0, 100_000)
    found = np.bincount(z[:, 0].astype(int), minlength=3) / len(z)
    assert np.abs(found - WEIGHTS).max() < 5 * 0.5 / math.sqrt(len(z))
    # A weight of 0 is never drawn; weights that rounding left below 1 leave the rest to the last.
    z = Mixture(np.array([0.0, 0.5, 0.25]), np.array([[0.0], [1.0], [2.0]]), np.zeros((3, 1))).draw(1, 0, 100_000)
    assert set(np.unique(z)) == {1.0, 2.0}
    assert abs((z == 2).mean() - 0.5) < 0.01


def test_latents_of_a_mixture_do_not_share_draws():
    one, other = (MIXTURES[0].draw(1, 0, 2000, latent) for latent in (0, 1))
    assert abs(np.corrcoef(one[:, 1], other[:, 1])[0, 1]) < 5 / math.sqrt(2000)


@settings(max_examples=30, deadline=None)
@given(SEEDS, STARTS, st.integers(1, 30), st.sampled_from([(1,), (3,), (2, 3)]), st.integers(0, 9), st.data())
def test_a_sphere_is_drawn_as_specified_however_it_is_cut(seed, start, n, shape, latent, data):
    whole = draw_sphere(seed, start, n, shape, latent)
    eps = noise.normal(seed, start, n, shape, 256 * latent).astype(np.float64)
    for row, given_ in zip(whole, eps, strict=True):
        total = 0.0
        for e in given_.ravel().tolist():
            total += e * e
        same(row, (given_ / math.sqrt(total)).astype(np.float32))
    cut = data.draw(st.integers(0, n))
    parts = [draw_sphere(seed, start, cut, shape, latent)]
    parts.append(draw_sphere(seed, (start + cut) % 2**64, n - cut, shape, latent))
    same(np.concatenate(parts), whole)


def test_a_sphere_is_round():
    z = draw_sphere(1, 0, 100_000, (3,)).astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-6)
    # On a sphere in three dimensions each coordinate is uniform (Archimedes).
    for column in z.T:
        assert np.abs(np.sort(column) - np.linspace(-1, 1, len(column))).max() < 4 / math.sqrt(len(column))


def test_the_normal_is_noise_times_temperature():
    same(draw_normal(1, 2, 9, (4,), 256, 0.5, 1.0), noise.normal(1, 2, 9, (4,), 256, 1.0) * np.float32(0.5))


# In bundles.


@pytest.fixture
def with_prior(small_bundle, edit_manifest, resign):
    """A bundle whose latent, of shape [3], has this prior; arrays go to the file `prior.npz`."""

    def write(prior, arrays=None, content=None):
        folder = small_bundle()
        if arrays is not None:
            file = io.BytesIO()
            np.savez_compressed(file, **arrays)
            content = file.getvalue()
        if content is not None:
            (folder / "prior.npz").write_bytes(content)
            resign(folder)
        edit_manifest(folder, lambda document: document["additional_metadata"]["vae"]["latents"][0].update(prior=prior))
        return folder

    return write


def mixture_of(components=3, covariance="diagonal"):
    return {"kind": "mixture", "file": "prior.npz", "components": components, "covariance": covariance}


def arrays_of(mixture):
    return {"z/weights": mixture.weights, "z/means": mixture.means, "z/factors": mixture.factors}


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_a_vae_draws_from_its_mixture(with_prior, covariance):
    mixture = MIXTURES[covariance == "full"]
    vae = vae_runtime.load(with_prior(mixture_of(covariance=covariance), arrays_of(mixture)))
    z = vae.prior(40, seed=5, start=2**64 - 7, temperature=0.5, truncation=1.5)
    same(z, mixture.draw(5, 2**64 - 7, 40, 0, 0.5, 1.5))
    for size in (1, 7, 40):
        same(vae.sample(40, seed=5, start=2**64 - 7, temperature=0.5, truncation=1.5, batch_size=size), z)
    assert np.isfinite(vae.score(z[:2]).elbo).all()


def test_a_vae_draws_from_its_sphere(with_prior):
    vae = vae_runtime.load(with_prior({"kind": "sphere"}))
    same(vae.sample(9, seed=5, batch_size=2), draw_sphere(5, 0, 9, (3,)))
    for wrong in ({"temperature": 0.5}, {"truncation": 2.0}):
        with pytest.raises(
            InputError, match="temperature and truncation: the prior of z is uniform on a sphere and takes neither"
        ):
            vae.sample(1, **wrong)


def test_without_a_prior_there_are_no_samples_and_the_reason_is_said(with_prior):
    vae = vae_runtime.load(with_prior({"kind": "none", "reason": "it was trained by a diffusion model"}))
    for draw in (vae.prior, vae.sample):
        with pytest.raises(
            InputError,
            match=r"no prior to draw from: it was trained by a diffusion model; fit one .* \(prior=…\), or give",
        ):
            draw(1)
    z = noise.normal(0, 0, 2, (3,))
    same(vae.decode(z), z)


GOOD = arrays_of(MIXTURES[0])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"z/weights": None}, "z/weights: .* got nothing"),
        ({"z/weights": WEIGHTS.astype(np.float32)}, r"z/weights: expected float64 \[3\], got float32 \[3\]"),
        ({"z/weights": WEIGHTS[:2]}, r"z/weights: expected float64 \[3\], got float64 \[2\]"),
        ({"z/weights": np.array([0.5, 0.6, -0.1])}, "at least 0 that add up to 1, got a min of -0.1"),
        ({"z/weights": np.array([0.5, 0.6, 0.1])}, r"got a min of 0.1 and a sum of 1.2"),
        ({"z/means": MEANS[:, :2]}, r"z/means: expected float64 \[3, 3\], got float64 \[3, 2\]"),
        ({"z/means": MEANS * np.nan}, "z/means: expected finite numbers"),
        ({"z/factors": FACTORS}, r"z/factors: expected float64 \[3, 3\], got float64 \[3, 3, 3\]"),
        (
            {"z/factors": np.zeros((3000, 3000))},
            "expected at most 33554432 bytes .*, got 72000480",
        ),
        ({"z/means": np.array([None], object)}, "expected an .npz file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_prior_file_is_refused(with_prior, change, match):
    arrays = {name: array for name, array in (GOOD | change).items() if array is not None}
    vae = vae_runtime.load(with_prior(mixture_of(), arrays))
    with pytest.raises(BundleError, match=rf"prior\.npz: .*{match}.*export the bundle again"):
        vae.prior(1)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY"])
def test_a_prior_file_that_is_no_archive_is_refused(with_prior, content):
    vae = vae_runtime.load(with_prior(mixture_of(), content=content))
    with pytest.raises(BundleError, match=r"prior\.npz: expected an \.npz file"):
        vae.prior(1)


def test_an_altered_prior_file_is_refused(with_prior):
    folder = with_prior(mixture_of(), GOOD)
    vae = vae_runtime.load(folder)
    path = folder / "prior.npz"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(BundleError, match=r"prior\.npz: expected the SHA-256"):
        vae.prior(1)
