"""What is drawn, decoded, encoded and scored, and that no way of asking changes the answer."""

import copy
import math
import multiprocessing
import os
import pickle
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import vae_runtime
from vae_runtime import BundleError, InputError, Posterior, interpolate, noise
from vae_runtime.prior import MAX_TEMPERATURE

SEEDS = st.integers(-(2**63), 2**64 - 1)
STARTS = st.one_of(st.integers(0, 2**64 - 1), st.integers(2**64 - 50, 2**64 - 1))
# It has so many digits that Python itself refuses to write it.
ENDLESS = pytest.param(10**5000, id="endless")
OUT_OF_RANGE_SEEDS = [-(2**63) - 1, 2**64, 10**40, ENDLESS]
NO_INTEGERS = [1.0, 1.5, "1", None, [1], np.float32(2), math.nan, 1j]


def same(one, other):
    """Equal bit for bit: the signs of zeros count, as does the dtype."""
    assert one.dtype == other.dtype
    assert one.shape == other.shape
    assert one.tobytes() == other.tobytes()


@pytest.fixture(scope="session")
def vaes(digits, vae):
    """The same bundle on one and on two threads."""
    return [vae, vae_runtime.load(digits, threads=2)]


@pytest.fixture
def small(small_bundle):
    """A VAE of which x is z itself, so that what was decoded can be read from the sample."""
    return vae_runtime.load(small_bundle())


# Latents.


@settings(max_examples=40, deadline=None)
@given(SEEDS, STARTS, st.integers(1, 150), st.data())
@example(0, 0, 100, None)
@example(-1, 2**64 - 1, 100, None)
def test_latents_depend_on_seed_and_index_alone(vaes, seed, start, n, data):
    wanted = noise.normal(seed, start, n, (8,), noise.stream_of(noise.PRIOR))
    pieces = [1] * n if data is None else []
    while sum(pieces) < n:
        pieces.append(data.draw(st.integers(1, n - sum(pieces))))
    for vae in vaes:
        same(vae.prior(n, seed=seed, start=start), wanted)
        parts, done = [], 0
        for piece in pieces:
            parts.append(vae.prior(piece, seed=seed, start=(start + done) % 2**64))
            done += piece
        same(np.concatenate(parts), wanted)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SEEDS, STARTS, st.integers(1, 150), st.integers(1, 160), st.booleans())
@example(7, 0, 100, 7, False)
@example(7, 2**64 - 3, 100, 1, True)
def test_sample_decodes_those_latents_in_batches_of_any_size(small, seed, start, n, batch_size, observe):
    drawn = small.sample(n, seed=seed, start=start, batch_size=batch_size, observe=observe)
    same(drawn, small.sample(n, seed=seed, start=start, observe=observe))
    if not observe:
        same(drawn, small.prior(n, seed=seed, start=start))


def test_a_hundred_at_once_or_one_by_one_or_seven_by_seven(vaes):
    wanted = vaes[0].prior(100, seed=11)
    for vae in vaes:
        for size in (100, 1, 7):
            parts = [vae.prior(min(size, 100 - i), seed=11, start=i) for i in range(0, 100, size)]
            same(np.concatenate(parts), wanted)


def test_sample_is_decode_of_prior(vaes):
    for vae in vaes:
        z = vae.prior(50, seed=3)
        for size in (None, 1, 7, 50):
            x = vae.sample(50, seed=3, batch_size=size)
            same(x, vae.decode(z, batch_size=size))
            np.testing.assert_allclose(x, vaes[0].decode(z), atol=2e-6)
        assert x.shape == (50, 1, 8, 8)
        assert 0 <= x.min() < x.max() <= 1


def test_the_third_of_a_seed(small):
    same(small.sample(1, seed=0, start=2), small.sample(5, seed=0)[2:3])


def test_indices_wrap_at_the_end(small):
    for draw in (small.prior, small.sample, lambda n, **where: small.sample(n, observe=True, batch_size=1, **where)):
        across = draw(5, seed=9, start=2**64 - 2)
        same(across, np.concatenate([draw(2, seed=9, start=2**64 - 2), draw(3, seed=9, start=0)]))


@pytest.mark.parametrize(
    ("one", "other"), [(-1, 2**64 - 1), (-(2**63), 2**63), (np.int64(-5), 2**64 - 5), (np.uint8(3), 3)]
)
def test_seeds_are_64_bits(vae, one, other):
    same(vae.prior(2, seed=one), vae.prior(2, seed=other))


def test_other_seeds_give_other_latents(vae):
    assert len({vae.prior(1, seed=seed).tobytes() for seed in [*range(50), -(2**63), -1, 2**64 - 2, 2**63 - 1]}) == 54


def test_without_a_seed_every_draw_is_fresh(vae):
    for draw in (vae.prior, vae.sample, lambda n: vae.encode(np.zeros((n, 1, 8, 8), np.float32)).sample()):
        assert draw(1).tobytes() != draw(1).tobytes()


def test_without_a_seed_all_batches_of_one_call_are_of_one_seed(small, monkeypatch):
    fresh = iter(range(5, 99))
    monkeypatch.setattr(noise, "new_seed", lambda: next(fresh))
    same(small.sample(10, batch_size=2), small.prior(10, seed=5))


def test_new_seed():
    seeds = {vae_runtime.new_seed() for _ in range(200)}
    assert len(seeds) == 200
    assert all(type(seed) is int and 0 <= seed < 2**53 for seed in seeds)
    assert max(seeds) > 2**50


def test_temperature_scales_the_noise(small):
    z = small.prior(9, seed=1)
    for temperature in (0, 0.5, 1, 2, 1e6, np.float32(0.25), np.int64(3)):
        same(small.prior(9, seed=1, temperature=temperature), z * np.float32(temperature))
        same(small.sample(9, seed=1, temperature=temperature), z * np.float32(temperature))
    posterior = small.encode(z)
    same(posterior.sample(seed=1, temperature=0), posterior.mean)


@pytest.mark.parametrize(
    "wrong", [-1e-9, -1, math.nan, math.inf, 1e39, MAX_TEMPERATURE * 1.01, 10**400, "1", None, 1j, [1.0], True]
)
def test_a_wrong_temperature_is_refused(vae, wrong):
    posterior = vae.encode(vae.sample(1, seed=0))
    for draw in (
        lambda: vae.prior(1, temperature=wrong),
        lambda: vae.sample(1, temperature=wrong),
        lambda: posterior.sample(temperature=wrong),
    ):
        with pytest.raises(InputError, match="temperature: expected a number from 0 to"):
            draw()


# Draws from the likelihood.


def test_bernoulli_draws_are_0_or_1_and_have_the_mean(vae):
    # At temperature 0 all latents are the same, so that all draws are of one distribution.
    n = 4000
    mean = vae.sample(1, seed=5, temperature=0)[0].astype(np.float64)
    drawn = vae.sample(n, seed=5, temperature=0, observe=True)
    assert drawn.dtype == np.float32
    assert set(np.unique(drawn)) == {0.0, 1.0}
    spread = np.sqrt(mean * (1 - mean) / n)
    assert np.all(np.abs(drawn.mean(axis=0, dtype=np.float64) - mean) <= 5 * spread + 1e-3)
    # Neither a neighboring pixel nor a neighboring sample tells anything.
    centered = (drawn - drawn.mean(axis=0)).reshape(n, -1)
    busy = centered[:, centered.std(axis=0) > 0.3]
    busy = busy / busy.std(axis=0)
    assert np.abs(np.corrcoef(busy.T) - np.eye(busy.shape[1])).max() < 6 / math.sqrt(n)
    assert np.abs((busy[1:] * busy[:-1]).mean(axis=0)).max() < 6 / math.sqrt(n)


def test_bernoulli_draws_compare_uniform_noise_with_the_mean(vae):
    mean = vae.sample(20, seed=6)
    u = noise.uniform(6, 0, 20, (1, 8, 8), noise.stream_of(noise.OBSERVATION))
    same(vae.sample(20, seed=6, observe=True), (u < mean).astype(np.float32))


def test_draws_are_addressed_by_index(vae):
    whole = vae.sample(30, seed=4, observe=True)
    same(vae.sample(12, seed=4, start=18, observe=True, batch_size=5), whole[18:])


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_gaussian_draws(small_bundle, scale):
    vae = vae_runtime.load(small_bundle("gaussian", scale))
    eps = noise.normal(8, 0, 10, (3,), noise.stream_of(noise.OBSERVATION))
    same(vae.sample(10, seed=8, observe=True), vae.prior(10, seed=8) + np.float32(scale) * eps)
    n = 20_000
    drawn = vae.sample(n, seed=8, temperature=0, observe=True) / scale
    assert np.abs(drawn.mean(axis=0)).max() < 5 / math.sqrt(n)
    assert np.abs((drawn**2).mean(axis=0) - 1).max() < 5 * math.sqrt(2 / n)
    assert np.abs((drawn**4).mean(axis=0) - 3).max() < 5 * math.sqrt(96 / n)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_laplace_draws(small_bundle, scale):
    vae = vae_runtime.load(small_bundle("laplace", scale))
    n = 20_000
    drawn = vae.sample(n, seed=8, temperature=0, observe=True) / scale
    assert drawn.dtype == np.float32
    assert np.isfinite(drawn).all()
    # The magnitude is exponential: mean 1, second moment 2, fourth 24; its sign is fair.
    size = np.abs(drawn)
    assert np.abs(drawn.mean(axis=0)).max() < 5 * math.sqrt(2 / n)
    assert np.abs(size.mean(axis=0) - 1).max() < 5 / math.sqrt(n)
    assert np.abs((size**2).mean(axis=0) - 2).max() < 5 * math.sqrt(20 / n)
    assert np.abs((size > math.log(2)).mean(axis=0) - 0.5).max() < 5 * 0.5 / math.sqrt(n)
    same(vae.sample(40, seed=8, start=10, observe=True, batch_size=7), vae.sample(50, seed=8, observe=True)[10:])


def test_purposes_do_not_share_noise(small):
    z = small.prior(50, seed=2)
    posterior = Posterior(*(np.full((50, 3), value, np.float32) for value in (0, 1, 0)))
    draws = [z, posterior.sample(seed=2), (small.sample(50, seed=2, observe=True) - z) / np.float32(0.5)]
    correlation = np.corrcoef([draw.ravel() for draw in draws])
    assert np.abs(correlation - np.eye(3)).max() < 5 / math.sqrt(150)


# Buffers.


def test_out_is_filled_and_returned(vae):
    wanted = vae.sample(9, seed=1)
    buffer = np.full((9, 1, 8, 8), np.nan, np.float32)
    assert vae.sample(9, seed=1, out=buffer, batch_size=4) is buffer
    np.testing.assert_allclose(buffer, wanted, atol=2e-6)
    assert vae.decode(vae.prior(9, seed=1), out=buffer) is buffer
    same(buffer, wanted)


def test_a_wrong_out_is_refused(vae):
    frozen = np.zeros((9, 1, 8, 8), np.float32)
    frozen.flags.writeable = False
    for wrong in (
        np.zeros((8, 1, 8, 8), np.float32),
        np.zeros((9, 64), np.float32),
        np.zeros((9, 1, 8, 8)),
        np.zeros((18, 1, 8, 8), np.float32)[::2],
        np.zeros((9, 1, 8, 8), np.float32, order="F"),
        np.zeros((9, 1, 8, 8), ">f4"),
        frozen,
        [[0.0]],
        "out",
    ):
        for draw in (lambda out: vae.sample(9, seed=0, out=out), lambda out: vae.decode(vae.prior(9), out=out)):
            with pytest.raises(
                InputError, match=r"out: expected a writeable C-contiguous float32 array \[9, 1, 8, 8\]"
            ):
                draw(wrong)


# The posterior.


def test_the_encoder_is_what_it_should_be(small):
    x = noise.normal(3, 0, 5, (3,))
    posterior = small.encode(x)
    same(posterior.mean, x)
    same(posterior.mode(), x)
    same(posterior.logvar, -x)
    np.testing.assert_allclose(posterior.std, np.exp(-x / 2), rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(SEEDS, STARTS, st.floats(0, 1e6, width=32))
def test_a_posterior_sample_is_mean_plus_std_times_eps(seed, start, temperature):
    mean, std = noise.normal(1, 0, 6, (2, 3)), np.abs(noise.normal(2, 0, 6, (2, 3)))
    eps = noise.normal(seed, start, 6, (2, 3), noise.stream_of(noise.POSTERIOR)) * np.float32(temperature)
    product = (std * eps).astype(np.float32)
    z = Posterior(mean, std, np.log(std)).sample(seed=seed, start=start, temperature=temperature)
    same(z, (mean + product).astype(np.float32))


def test_a_row_of_a_posterior_sample_has_its_own_index(vae):
    x = vae.sample(10, seed=0)
    q = vae.encode(x)
    part = Posterior(q.mean[4:], q.std[4:], q.logvar[4:])
    same(part.sample(seed=3, start=4), q.sample(seed=3)[4:])


def test_a_posterior_is_not_changed_by_drawing(vae):
    q = vae.encode(vae.sample(3, seed=0))
    before = q.mean.copy(), q.std.copy()
    q.sample(seed=1, temperature=2)
    q.kl()
    same(q.mean, before[0])
    same(q.std, before[1])


def test_kl_is_the_integral(small):
    x = np.float32([[0, 0, 0], [1.5, 0, 0], [-2, 0.5, 3]])
    kl = small.encode(x).kl()
    assert kl.dtype == np.float64
    assert kl.shape == (3,)
    # ∫ q log(q / p) on a fine grid, one dimension at a time, mean m and variance e^-m.
    for row, value in zip(x.astype(np.float64), kl, strict=True):
        total = 0.0
        for m in row:
            std = math.exp(-m / 2)
            t = np.linspace(m - 12 * std, m + 12 * std, 20_001)
            log_q = -0.5 * ((t - m) / std) ** 2 - math.log(std)
            density = np.exp(log_q) / math.sqrt(2 * math.pi)
            total += float(np.sum(density * (log_q + 0.5 * t**2)) * (t[1] - t[0]))
        assert value == pytest.approx(total, rel=1e-5, abs=1e-6)


def test_kl_is_positive_on_real_data(vae):
    assert np.all(vae.encode(vae.sample(20, seed=0)).kl() > 0)


def test_batches_encode_alike(vaes):
    x = vaes[0].sample(50, seed=0)
    wanted = vaes[0].encode(x)
    for vae in vaes:
        for size in (1, 7, 50, 1000):
            found = vae.encode(x, batch_size=size)
            for name in ("mean", "std", "logvar"):
                assert getattr(found, name).shape == (50, 8)
                np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-5, atol=1e-5)


def test_reconstruct_goes_through_the_mean_or_a_sample(vae):
    x = vae.sample(9, seed=0)
    q = vae.encode(x)
    same(vae.reconstruct(x), vae.decode(q.mean))
    same(vae.reconstruct(x, seed=5), vae.decode(q.sample(seed=5)))
    same(vae.reconstruct(x, seed=5, start=2**64 - 1), vae.decode(q.sample(seed=5, start=2**64 - 1)))
    assert not np.array_equal(vae.reconstruct(x), vae.reconstruct(x, seed=5))
    np.testing.assert_allclose(vae.reconstruct(x, seed=5, batch_size=2), vae.reconstruct(x, seed=5), atol=1e-5)


# Arguments out of range.


@pytest.mark.parametrize("n", [0, -1, -(10**15), 10**15, 2**48, 10**20, ENDLESS, *NO_INTEGERS])
def test_n_out_of_range_is_refused(vae, n):
    for draw in (vae.prior, vae.sample):
        with pytest.raises(InputError, match=r"^n: ") as caught:
            draw(n, seed=0)
        assert len(str(caught.value)) < 300


def test_n_of_numpy_is_taken(vae):
    same(vae.prior(np.int16(3), seed=0), vae.prior(3, seed=0))


@pytest.mark.parametrize("seed", [*OUT_OF_RANGE_SEEDS, *(value for value in NO_INTEGERS if value is not None)])
def test_a_seed_out_of_range_is_refused(vae, seed):
    x = np.zeros((1, 1, 8, 8), np.float32)
    for draw in (
        lambda: vae.prior(1, seed=seed),
        lambda: vae.sample(1, seed=seed),
        lambda: vae.encode(x).sample(seed=seed),
        lambda: vae.reconstruct(x, seed=seed),
    ):
        with pytest.raises(InputError, match=r"^seed: "):
            draw()


@pytest.mark.parametrize("start", [-1, 2**64, ENDLESS, *NO_INTEGERS])
def test_a_start_out_of_range_is_refused(vae, start):
    x = np.zeros((1, 1, 8, 8), np.float32)
    for draw in (
        lambda: vae.prior(1, seed=0, start=start),
        lambda: vae.sample(3, seed=0, start=start, batch_size=1),
        lambda: vae.encode(x).sample(seed=0, start=start),
        lambda: vae.reconstruct(x, seed=0, start=start),
    ):
        with pytest.raises(InputError, match=r"^start: "):
            draw()


@pytest.mark.parametrize("size", [0, -1, 2**40, *(value for value in NO_INTEGERS if value is not None)])
def test_a_batch_size_out_of_range_is_refused(vae, size):
    x = np.zeros((1, 1, 8, 8), np.float32)
    for use in (
        lambda: vae.sample(1, batch_size=size),
        lambda: vae.encode(x, batch_size=size),
        lambda: vae.decode(vae.prior(1), batch_size=size),
        lambda: vae.reconstruct(x, batch_size=size),
    ):
        with pytest.raises(InputError, match=r"^batch_size: "):
            use()


GOOD = np.full((2, 1, 8, 8), 0.5, np.float32)


def spoiled(index, value):
    array = GOOD.copy()
    array[index] = value
    return array


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ">f4", "list"])
def test_floats_of_any_width_are_taken(vae, dtype):
    """NumPy's default is float64; it is converted to float32, and int64 is not."""

    def other(array):
        return array.tolist() if dtype == "list" else array.astype(dtype)

    x = vae.sample(3, seed=0).astype(np.float16).astype(np.float32)
    z = vae.prior(3, seed=0).astype(np.float16).astype(np.float32)
    same(vae.encode(other(x)).mean, vae.encode(x).mean)
    same(vae.reconstruct(other(x)), vae.reconstruct(x))
    same(vae.decode(other(z)), vae.decode(z))
    same(vae.scaled(other(z)), z)
    np.testing.assert_array_equal(vae.score(other(x), seed=1).elbo, vae.score(x, seed=1).elbo)


@pytest.mark.parametrize("number", [1e39, -1e300])
def test_floats_beyond_float32_are_refused_with_the_place(vae, small, number):
    z = np.zeros((2, 8))
    z[1, 2] = number
    with pytest.raises(InputError, match=r"z\[1, 2\]: expected numbers within float32's range of ±3.40282e\+38, got "):
        vae.decode(z)
    if np.finfo(np.longdouble).nmant == 63:
        # Bytes of an x87 float that are no number: numpy would warn of the conversion.
        damaged = np.frombuffer(b"\0" * 9 + b"\x10" + b"\0" * 6, np.longdouble)
        with pytest.raises(InputError, match=r"z\[0, 0\]: expected finite values, got nan"):
            vae.decode(damaged.repeat(8).reshape(1, 8))
    with pytest.raises(InputError, match=r"x\[0, 1\]: expected numbers within float32's range"):
        small.encode([[0.0, number, 0.0]])
    z[1, 2] = np.inf
    with pytest.raises(InputError, match=r"z\[1, 2\]: expected finite values, got inf"):
        vae.decode(z)
    z[1, 2] = 3.4e38
    vae.decode(z)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (GOOD.astype(np.int64), r"x: expected float32 \[n, 1, 8, 8\], got dtype int64; convert with .astype"),
        (GOOD.astype(np.uint8), r"got dtype uint8; convert with .astype\('float32'\) \(scaled to 0 … 1\)"),
        (GOOD.astype(complex), "got dtype complex128"),
        (GOOD.astype(object), "got dtype object"),
        (GOOD.astype(int).tolist(), "got dtype int64"),
        (None, "got dtype object"),
        ("x", "got dtype <U1"),
        ([[1.0], [1.0, 2.0]], "x: .* got no array"),
        (GOOD[0], r"got \[1, 8, 8\]; add the batch axis: x\[None\]"),
        (GOOD[0, 0], r"got \[8, 8\]"),
        (GOOD.reshape(2, 64), r"got \[2, 64\]"),
        (GOOD[:, :, :7], r"got \[2, 1, 7, 8\]"),
        (GOOD[None], r"got \[1, 2, 1, 8, 8\]"),
        (GOOD[:0], r"x: expected at least one row, got \[0, 1, 8, 8\]"),
        (np.float32(1), r"got \[\]"),
        (spoiled((1, 0, 3, 4), np.nan), r"x\[1, 0, 3, 4\]: expected values from 0 to 1, got nan"),
        (spoiled((0, 0, 0, 7), np.inf), r"x\[0, 0, 0, 7\]: expected values from 0 to 1, got inf"),
        (spoiled((0, 0, 7, 0), -np.inf), r"x\[0, 0, 7, 0\]: .* got -inf"),
        (spoiled((1, 0, 7, 7), 1.01), r"x\[1, 0, 7, 7\]: .* got 1.01; scale or clean the data"),
        (spoiled((0, 0, 0, 0), -0.01), r"x\[0, 0, 0, 0\]: .* got -0.01"),
    ],
)
def test_wrong_observations_are_refused_with_the_place(vae, x, message):
    for use in (vae.encode, vae.reconstruct):
        with pytest.raises(InputError, match=message):
            use(x)


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (
            np.zeros((2, 8), np.int64),
            r"z: expected float32 \[n, 8\], got dtype int64; convert with .astype\('float32'\)$",
        ),
        (np.zeros(8, np.float32), r"got \[8\]; add the batch axis: z\[None\]"),
        (np.zeros((2, 7), np.float32), r"got \[2, 7\]"),
        (np.zeros((0, 8), np.float32), r"z: expected at least one row"),
        (np.float32([[0] * 8, [0, 0, np.nan, 0, 0, 0, 0, 0]]), r"z\[1, 2\]: expected finite values, got nan"),
        (np.float32([[np.inf] + [0] * 7]), r"z\[0, 0\]: expected finite values, got inf"),
    ],
)
def test_wrong_latents_are_refused_with_the_place(vae, z, message):
    with pytest.raises(InputError, match=message):
        vae.decode(z)


def test_one_latent_may_be_given_by_its_name(vae):
    z = vae.prior(2, seed=0)
    same(vae.decode({"z": z}), vae.decode(z))
    same(vae.prior(2, seed=0, latent_shape={"z": (8,)}), z)
    with pytest.raises(InputError, match=r"^z: z is missing; give every latent by name"):
        vae.decode({})
    with pytest.raises(InputError, match=r"^z: expected one of z, got 'y'"):
        vae.decode({"y": z})


def test_views_of_any_order_are_taken(vae):
    x = vae.sample(4, seed=0)
    wanted = vae.encode(x).mean
    same(vae.encode(np.asfortranarray(x)).mean, wanted)
    same(vae.encode(np.repeat(x, 2, axis=0)[::2]).mean, wanted)


def test_a_range_is_optional(small):
    assert np.isfinite(small.encode(np.full((1, 3), 1e6, np.float32)).mean).all()


# Interpolation.


def test_interpolation_begins_and_ends_where_it_should():
    a, b = noise.normal(0, 0, 2, (2, 4))
    for spherical in (True, False):
        way = interpolate(a, b, 7, spherical=spherical)
        assert way.dtype == np.float32
        assert way.shape == (7, 2, 4)
        np.testing.assert_allclose(way[0], a, rtol=1e-6)
        np.testing.assert_allclose(way[-1], b, rtol=1e-6)
    np.testing.assert_allclose(way[3], (a + b) / 2, rtol=1e-5)


def test_the_spherical_way_keeps_its_length_and_its_pace():
    a, b = noise.normal(0, 0, 2, (8,)).astype(np.float64)
    way = interpolate(a, b, 9).astype(np.float64)
    lengths = np.linalg.norm(way, axis=1)
    np.testing.assert_allclose(lengths, np.linspace(np.linalg.norm(a), np.linalg.norm(b), 9), rtol=1e-6)
    unit = way / lengths[:, None]
    np.testing.assert_allclose(np.diff(np.sum(unit[1:] * unit[:-1], axis=1)), 0, atol=1e-6)
    assert np.linalg.norm(interpolate(a, b, 9, spherical=False)[4]) < lengths.min()


@pytest.mark.parametrize("factor", [1.0, 2.0, -1.0, 0.0, 1 + 1e-9])
def test_where_the_sphere_has_no_one_way_it_is_straight(factor):
    a = np.float32([1, 2, 3])
    way = interpolate(a, a * np.float64(factor), 5)
    np.testing.assert_allclose(way, np.linspace(1, factor, 5)[:, None] * a, atol=1e-5)


@pytest.mark.parametrize(
    ("a", "b", "steps", "message"),
    [
        ([0.0], [1.0], 1, "^steps: "),
        ([0.0], [1.0], 10**15, "^steps: "),
        ([0.0], [1.0], 2.5, "^steps: "),
        ([0.0], [1.0, 2.0], 3, r"^b: expected the shape of a, \[1\], got \[2\]"),
        ([math.nan], [1.0], 3, "^a: expected finite numbers"),
        ([0.0], [math.inf], 3, "^b: expected finite numbers"),
        ([1e39], [1.0], 3, "^a: expected finite numbers of float32"),
    ],
)
def test_what_cannot_be_interpolated_is_refused(a, b, steps, message):
    with pytest.raises(InputError, match=message):
        interpolate(a, b, steps)


# One VAE, many threads; its name.


def test_threads_may_share_a_vae(digits, vae):
    def answers(one, seed):
        x = one.sample(20, seed=seed, observe=seed % 2 == 0, batch_size=7)
        q = one.encode(x)
        return [x, q.mean, q.std, q.sample(seed=seed), q.kl(), one.reconstruct(x, seed=seed)]

    serial = [answers(vae, seed) for seed in range(64)]
    # A VAE of its own, so that the first use of the encoder is shared as well.
    shared, together = vae_runtime.load(digits), threading.Barrier(8)

    def work(first):
        together.wait()
        return [answers(shared, seed) for seed in range(first, 64, 8)]

    with ThreadPoolExecutor(8) as pool:
        for first, found in enumerate(pool.map(work, range(8))):
            for one, other in zip(found, serial[first::8], strict=True):
                for array, wanted in zip(one, other, strict=True):
                    same(array, wanted)


@pytest.mark.parametrize("wrong", ["yes", 1, 0, None, ()])
def test_a_choice_is_true_or_false(vae, digits, tmp_path, wrong):
    z = vae.prior(2, seed=0)
    for name, call in (
        ("observe", lambda: vae.sample(1, observe=wrong)),
        ("on_device", lambda: vae.sample(1, on_device=wrong)),
        ("observe", lambda: vae.stream(1, observe=wrong)),
        ("observe", lambda: vae.decode(z, observe=wrong)),
        ("spherical", lambda: interpolate(z[0], z[1], 3, spherical=wrong)),
        ("operators", lambda: vae_runtime.pack(digits, tmp_path / "p", operators=wrong)),
        ("force", lambda: vae_runtime.pack(digits, tmp_path / "p", force=wrong)),
    ):
        with pytest.raises(InputError, match=f"^{name}: expected True or False, got {re.escape(repr(wrong))}$"):
            call()


def test_a_choice_of_numpy_is_taken(vae):
    x = vae.sample(4, seed=1, observe=True)
    assert np.array_equal(vae.sample(4, seed=1, observe=np.True_), x)
    assert not np.array_equal(vae.sample(4, seed=1, observe=np.False_), x)


def test_repr_and_attributes(digits, vae):
    assert repr(vae) == "<VAE digits: latent [8] → observation [1, 8, 8], bernoulli, fp32 on cpu>"
    assert (vae.latent_shape, vae.observation_shape, vae.variant, vae.device) == ((8,), (1, 8, 8), "fp32", "cpu")
    assert vae.bundle.path == digits
    assert vae.digest == vae.bundle.digest
    assert vae.manifest is vae.bundle.manifest


def test_load_opens_the_decoder_and_the_encoder_when_needed(bundle_copy):
    (bundle_copy / "encoder/fp32/model.onnx").unlink()
    vae = vae_runtime.load(bundle_copy)
    x = vae.sample(1, seed=0)
    with pytest.raises(BundleError, match="missing"):
        vae.encode(x)
    same(vae.sample(1, seed=0), x)


def test_a_size_that_is_wrong_is_named_by_the_axis_of_the_array(digits):
    with pytest.raises(InputError, match=r"z: expected float32 \[n, 8\], got \[2, 7\]; axis 1 must be 8, is 7"):
        vae_runtime.load(digits).decode(np.zeros((2, 7), np.float32))


def test_what_is_no_array_of_numbers_gets_advice_that_it_can_follow(digits):
    vae = vae_runtime.load(digits)
    q = vae.encode(np.zeros((2, 1, 8, 8), np.float32))
    for value in (q, None, "x.npy"):
        with pytest.raises(InputError, match=r"give numbers, such as q\.mode\(\) or q\.sample\(\)"):
            vae.decode(value)


# Other processes.


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda vae: pickle.loads(pickle.dumps(vae))])
def test_a_copy_is_loaded_anew(digits, copied):
    vae = vae_runtime.load(digits, threads=2, variant="int8")
    other = copied(vae)
    assert np.array_equal(other.sample(4, seed=7), vae.sample(4, seed=7))
    assert (other.variants, other.device, other.digest) == (vae.variants, "cpu", vae.digest)
    assert other._networks is not vae._networks
    assert len(pickle.dumps(vae)) < 1000


def test_a_pickle_of_another_bundle_is_refused(bundle_copy, resign):
    kept = pickle.dumps(vae_runtime.load(bundle_copy))
    (bundle_copy / "README.md").write_text("another card")
    resign(bundle_copy)
    with pytest.raises(BundleError, match="expected the digest"):
        pickle.loads(kept)


OTHERS = """
import concurrent.futures, multiprocessing, sys
import numpy as np
import vae_runtime
vae = vae_runtime.load(sys.argv[1])
expected = vae.sample(4, seed=7)
context = multiprocessing.get_context(sys.argv[2])
with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
    print(np.array_equal(pool.submit(vae.sample, 4, seed=7).result(timeout=60), expected))
"""


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_other_processes_take_a_vae(python, digits, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system does not {method}")
    # In a process of its own: one with other threads, such as those of other tests, should not be forked.
    done = python("-W", "ignore", "-c", OTHERS, digits, method, timeout=120)
    assert (done.stdout, done.stderr) == ("True\n", "")


TELEMETRY = """
import os, sys, time, vae_runtime
vae_runtime.load(sys.argv[1]).sample(1, seed=0)
time.sleep(1)
print(os.environ["ORT_DISABLE_TELEMETRY"])
"""


@pytest.mark.parametrize(("given", "expected"), [(None, "1"), ("0", "0")])
def test_nothing_is_written_unless_the_user_wants_telemetry(python, digits, tmp_path, monkeypatch, given, expected):
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    # Continuous integration suppresses it too.
    env = {"HOME": str(tmp_path), "CI": "", **({} if given is None else {"ORT_DISABLE_TELEMETRY": given})}
    done = python("-c", TELEMETRY, digits, env=env)
    assert done.stdout.strip() == expected
    if given is None:
        assert list(tmp_path.iterdir()) == []


FORKED = """
import os, sys, vae_runtime
vae_runtime.load(sys.argv[1], threads=2).sample(1, seed=0)
child = os.fork()
if child == 0:
    try:
        vae_runtime.load(sys.argv[1], threads=2)
    except vae_runtime.DeviceError as error:
        print(error, flush=True)
    print(vae_runtime.load(sys.argv[1]).sample(1, seed=0).shape, flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_threads_after_a_fork_are_refused_instead_of_waiting_forever(python, digits):
    done = python("-W", "ignore", "-c", FORKED, digits, timeout=60)
    lines = done.stdout.splitlines()
    assert "expected threads=1, since this process was forked" in lines[0]
    assert lines[1:] == ["(1, 1, 8, 8)"]
