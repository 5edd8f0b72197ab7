"""Calls that are bound once give the numbers of the general way, bit for bit, and serve only where they should."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vae_runtime
from vae_runtime import computation as module
from vae_runtime import noise
from vae_runtime.devices import resolve_device
from vae_runtime.errors import DeviceError, InputError, VaeError
from vae_runtime.manifest import Latent, LatentPosterior, Likelihood, Observation, Signature
from vae_runtime.networks import Networks
from vae_runtime.prior import draw_normal
from vae_runtime.session import Call, Session
from vae_runtime.vae import VAE

on_device = pytest.mark.skipif(
    not hasattr(onnxruntime.OrtValue, "__dlpack__"), reason="the values of this ONNX Runtime do not support DLPack"
)

# To say a batch size is to take the general way, and one above all rows changes no batch.
GENERAL = {"batch_size": 64}


def equal(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a.view(np.uint32), b.view(np.uint32))


@pytest.fixture(scope="module")
def quick_vae(digits):
    return vae_runtime.load(digits)


@given(n=st.integers(1, 80), seed=st.integers(0, 2**64 - 1))
@settings(max_examples=40, deadline=None)
def test_decoding_is_the_same(vae, n, seed):
    z = noise.normal(seed, 0, n, vae.latent_shape)
    quick, general = vae.decode(z), vae.decode(z, **GENERAL)
    assert equal(quick, general)
    assert equal(vae.decode(np.asfortranarray(z)), general)


@given(st.lists(st.tuples(st.integers(1, 300), st.booleans()), min_size=1, max_size=6), st.integers(0, 2**64 - 1))
@settings(max_examples=40, deadline=None)
def test_decoding_into_a_buffer_is_the_same(vae, calls, seed):
    """Beside arrays that calls have given away, which later calls must leave as they are."""
    given_away = []
    for n, into in calls:
        z = noise.normal(seed, 0, n, vae.latent_shape)
        buffer = np.full((n, *vae.observation_shape), np.nan, np.float32)
        found = vae.decode(z, batch_size=n, out=buffer) if into else vae.decode(z)
        assert not into or found is buffer
        given_away.append((found, vae.decode(z, batch_size=n)))
        seed = (seed + 1) % 2**64
    assert all(equal(found, wanted) for found, wanted in given_away)


@given(n=st.integers(1, 80), seed=st.integers(0, 2**64 - 1))
@settings(max_examples=40, deadline=None)
def test_reconstructing_is_the_same(vae, n, seed):
    x = np.random.default_rng(seed).random((n, *vae.observation_shape), np.float32)
    assert equal(vae.reconstruct(x), vae.reconstruct(x, **GENERAL))


@given(n=st.integers(1, 80), seed=st.integers(0, 2**64 - 1))
@settings(max_examples=40, deadline=None)
def test_encoding_is_the_same(vae, n, seed):
    x = np.random.default_rng(seed).random((n, *vae.observation_shape), np.float32)
    quick, general = vae.encode(x), vae.encode(x, **GENERAL)
    for part in ("mean", "std", "logvar"):
        assert equal(getattr(quick, part), getattr(general, part))
    assert equal(quick.sample(seed=seed), general.sample(seed=seed))


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 400), st.integers(1, 70), st.integers(1, 9)), max_size=6))
@settings(max_examples=40, deadline=None)
def test_samples_are_the_same_in_any_order(vae, runs):
    """Runs of calls that follow on one another, so that noise is drawn ahead, broken off and taken up elsewhere."""
    for seed, start, n, calls in runs:
        for call in range(calls):
            first = start + call * n
            assert equal(vae.sample(n, seed=seed, start=first), vae.sample(n, seed=seed, start=first, **GENERAL))


def test_noise_drawn_ahead_wraps_as_it_should(quick_vae):
    for start in range(2**64 - 5, 2**64):
        assert equal(quick_vae.sample(1, seed=3, start=start), quick_vae.sample(1, seed=3, start=start, **GENERAL))
    with pytest.raises(InputError, match="start: "):
        quick_vae.sample(1, seed=3, start=2**64)
    assert equal(quick_vae.sample(1, seed=3, start=0), quick_vae.sample(1, seed=3, start=0, **GENERAL))


def test_consecutive_indices_draw_ahead(quick_vae, monkeypatch):
    """What makes them fast: many calls, few draws."""
    draws = []
    normal = noise.normal
    monkeypatch.setattr(noise, "normal", lambda *arguments: (draws.append(arguments), normal(*arguments))[1])
    for start in range(1000):
        quick_vae.sample(1, seed=77, start=start)
    assert 2 <= len(draws) <= 10
    draws.clear()
    for seed in range(100, 110):
        quick_vae.sample(1, seed=seed)
    assert len(draws) == 10


@pytest.mark.parametrize("n", [1, 64, 300])
def test_results_are_the_callers_own(quick_vae, n):
    z = noise.normal(1, 0, n, quick_vae.latent_shape)
    first = quick_vae.decode(z)
    kept = first.copy()
    second = quick_vae.decode(-z)
    assert equal(first, kept)
    first[:] = 7
    assert equal(second, quick_vae.decode(-z, **GENERAL))
    assert equal(quick_vae.decode(z), kept)
    assert not np.shares_memory(first, second)
    x = np.full((n, *quick_vae.observation_shape), 0.5, np.float32)
    q = quick_vae.encode(x)
    kept = q.mean.copy()
    quick_vae.encode(1 - x / 2)
    assert equal(q.mean, kept)


def test_threads_share_it(quick_vae):
    def work(number):
        return [quick_vae.sample(1 + number % 3, seed=number % 4, start=start) for start in range(40)]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(16)))
    for number, samples in enumerate(found):
        for start, x in enumerate(samples):
            assert equal(x, quick_vae.sample(1 + number % 3, seed=number % 4, start=start, **GENERAL))


@pytest.mark.parametrize("n", [3, 300])
def test_threads_decode_and_reconstruct_in_it(quick_vae, n):
    """Each thread has arrays of its own, whether calls are bound or not."""
    x = [np.random.default_rng(seed).random((n, *quick_vae.observation_shape), np.float32) for seed in range(8)]
    wanted = [quick_vae.reconstruct(each) for each in x]

    def work(number):
        return all(equal(quick_vae.reconstruct(x[number]), wanted[number]) for _ in range(20))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n", [1, 3, 300])
def test_what_is_not_finite_is_refused(quick_vae, number, n):
    z = np.zeros((n, *quick_vae.latent_shape), np.float32)
    x = np.full((n, *quick_vae.observation_shape), 0.5, np.float32)
    quick_vae.decode(z)
    quick_vae.encode(x)
    quick_vae.reconstruct(x)
    z[-1, -1] = x[-1, ..., -1] = number
    with pytest.raises(InputError, match="finite"):
        quick_vae.decode(z)
    for refuse in (quick_vae.encode, quick_vae.reconstruct):
        with pytest.raises(InputError, match="from 0 to 1"):
            refuse(x)


def test_what_is_out_of_range_or_of_another_form_is_refused(quick_vae):
    x = np.full((1, *quick_vae.observation_shape), 0.5, np.float32)
    z = np.zeros((1, *quick_vae.latent_shape), np.float32)
    quick_vae.decode(z)
    for wrong in (x + 0.75, x - 0.75, x[0], x.astype(np.int64), x[:0]):
        for refuse in (quick_vae.encode, quick_vae.reconstruct):
            with pytest.raises(InputError):
                refuse(wrong)
    for wrong in (z[0], z[:0], z[:, :-1], z.astype(np.int64)):
        with pytest.raises(InputError):
            quick_vae.decode(wrong)
    for n in (0, -1, 1.0, "1", None):
        with pytest.raises(InputError, match="n: "):
            quick_vae.sample(n, seed=0)
    for seed in (1.0, 2**64, -(2**63) - 1, "0"):
        with pytest.raises(InputError, match="seed: "):
            quick_vae.sample(1, seed=seed)
    with pytest.raises(InputError, match="start: "):
        quick_vae.sample(1, seed=0, start=-1)


@pytest.mark.parametrize("temperature", [np.ones(2), np.ones(1), 1 + 0j, "1", None])
def test_a_temperature_that_is_no_number_is_refused(quick_vae, temperature):
    for more in ({}, GENERAL):
        with pytest.raises(InputError, match="temperature: "):
            quick_vae.sample(1, seed=0, temperature=temperature, **more)


def test_latents_of_an_encoder_that_are_not_finite_are_refused(onnx_bytes, write_bundle):
    rows = ["batch", 3]
    value, node = onnx_bytes.value, onnx_bytes.node
    encoder = onnx_bytes.model([node("Exp", ["x"], ["value"])], [value("x", rows)], [value("value", rows)])
    decoder = onnx_bytes.model([node("Sigmoid", ["z"], ["x"])], [value("z", rows)], [value("x", rows)])
    signature = Signature(
        observation=Observation("x", (3,), ("feature",)),
        latents=(Latent("z", (3,), LatentPosterior("none", value="value")),),
        likelihood=Likelihood("gaussian", scale=1.0),
    )
    inputs = {"x": noise.normal(1, 0, 2, (3,))}
    vae = vae_runtime.load(write_bundle("exp", signature, encoder, decoder, inputs))
    assert equal(vae.reconstruct(inputs["x"]), vae.reconstruct(inputs["x"], **GENERAL))
    for more in ({}, GENERAL):
        with pytest.raises(InputError, match="expected finite values"):
            vae.reconstruct(np.full((1, 3), 300, np.float32), **more)


@pytest.mark.parametrize("n", [9, 99])
def test_what_is_decoded_may_lie_where_the_result_goes(small_bundle, n):
    vae = vae_runtime.load(small_bundle())
    rows = noise.normal(4, 0, n + 1, vae.latent_shape)
    wanted = vae.decode(rows[:-1].copy())
    assert vae.latent_shape == vae.observation_shape
    assert equal(vae.decode(rows[:-1], out=rows[1:]), wanted)


class Ways:
    """The numbers of rows that went each way through graphs: bound calls, calls at once, calls into given arrays."""

    def __init__(self):
        self.bound, self.at_once, self.into = [], [], []

    def taken(self):
        """What was recorded since the last time."""
        taken = self.bound, self.at_once, self.into
        self.__init__()
        return taken


@pytest.fixture
def ways(monkeypatch):
    ways = Ways()
    run_at_once, run_into = Session.run_at_once, Session.run_into
    for name in ("run", "compute"):
        method = getattr(Call, name)
        monkeypatch.setattr(
            Call, name, lambda call, method=method: (ways.bound.append(len(call.feed)), method(call))[1]
        )

    def at_once(session, outputs, name, array):
        ways.at_once.append(len(array))
        return run_at_once(session, outputs, name, array)

    def into(session, feeds, results):
        ways.into.append(len(next(iter(feeds.values()))))
        run_into(session, feeds, results)

    monkeypatch.setattr(Session, "run_at_once", at_once)
    monkeypatch.setattr(Session, "run_into", into)
    return ways


def test_large_arrays_are_not_kept(digits, monkeypatch, ways):
    """Calls are kept with their arrays; those of a megabyte would add up."""
    monkeypatch.setattr(module, "_MAX_BYTES", 4 * 64 * 5)
    vae = vae_runtime.load(digits)
    assert np.prod(vae.observation_shape) == 64
    for n, expected in ((5, ([5], [], [])), (6, ([], [6], []))):
        z, x = np.zeros((n, *vae.latent_shape), np.float32), np.zeros((n, 1, 8, 8), np.float32)
        for call in (lambda: vae.decode(z), lambda: vae.sample(n, seed=0), lambda: vae.encode(x)):  # noqa: B023
            for _ in range(2):
                call()
                assert ways.taken() == expected
        vae.reconstruct(x)
        assert ways.taken() == tuple(2 * each for each in expected)


@pytest.mark.parametrize(("limit", "expected"), [(4 * 64 * 300, [300]), (4 * 64 * 300 - 1, [])])
def test_large_results_are_numpys_own_memory(digits, monkeypatch, ways, limit, expected):
    """ONNX Runtime keeps what it allocates for as long as the session lives."""
    monkeypatch.setattr(module, "_MAX_KEPT", limit)
    vae = vae_runtime.load(digits)
    vae.decode(np.zeros((300, *vae.latent_shape), np.float32))
    assert ways.taken() == ([], expected, [] if expected else [300])


def test_a_limit_of_memory_leaves_results_out(digits, ways):
    try:
        vae = vae_runtime.load(digits, max_memory=2**24)
    except DeviceError:
        pytest.skip("this ONNX Runtime limits one session in a process")
    vae.decode(np.zeros((300, *vae.latent_shape), np.float32))
    assert ways.taken() == ([], [], [300])


@pytest.mark.parametrize("n", [1, 300])
def test_arrays_in_any_order_of_memory_are_taken(quick_vae, n):
    z = noise.normal(3, 0, 2 * n, quick_vae.latent_shape)
    wanted = quick_vae.decode(z[::2].copy(), **GENERAL, out=np.empty((n, *quick_vae.observation_shape), np.float32))
    assert np.allclose(quick_vae.decode(z[::2]), wanted, atol=1e-6)


def test_a_batch_size_or_many_rows_take_the_general_way(quick_vae, ways):
    rows = 512  # its observations are small
    quick_vae.sample(rows, seed=0)
    assert ways.taken() == ([], [rows], [])
    quick_vae.sample(3, seed=0, batch_size=2)
    quick_vae.sample(rows + 1, seed=0)
    assert ways.taken() == ([], [], [2, 1, rows, 1])


@pytest.mark.parametrize("operator", ["Sigmoid", "Softmax"])
def test_graphs_between_vectors_take_more_rows_at_once(onnx_bytes, write_bundle, ways, operator):
    """Rows of 1024 numbers, of which 64 are the usual batch; an operator that is none of such graphs keeps that."""
    rows = ["batch", 1024]
    value, node = onnx_bytes.value, onnx_bytes.node
    encoder = onnx_bytes.model([node("Tanh", ["x"], ["value"])], [value("x", rows)], [value("value", rows)])
    decoder = onnx_bytes.model([node(operator, ["z"], ["x"])], [value("z", rows)], [value("x", rows)])
    signature = Signature(
        observation=Observation("x", (1024,), ("feature",)),
        latents=(Latent("z", (1024,), LatentPosterior("none", value="value")),),
        likelihood=Likelihood("gaussian", scale=1.0),
    )
    inputs = {"x": noise.normal(1, 0, 2, (1024,))}
    vae = vae_runtime.load(write_bundle("wide", signature, encoder, decoder, inputs))
    ways.taken()
    vae.decode(noise.normal(1, 0, 100, (1024,)))
    assert ways.taken() == (([], [100], []) if operator == "Sigmoid" else ([], [], [64, 36]))


def test_numbers_whose_squares_overflow_are_taken(quick_vae):
    z = np.full((1, *quick_vae.latent_shape), 1e25, np.float32)
    assert equal(quick_vae.decode(z), quick_vae.decode(z, **GENERAL))


def test_the_public_entry_of_onnx_runtime_serves_too(quick_vae, monkeypatch):
    """The quick one is private to ONNX Runtime, and may be gone from a later version."""

    class Public:
        def __init__(self, session):
            self.io_binding, self.run_with_iobinding = session.io_binding, session.run_with_iobinding

    vae = vae_runtime.load(quick_vae.bundle.path)
    for component in ("encoder", "decoder"):
        session = vae._networks.session(component)
        monkeypatch.setattr(session, "raw", Public(session.raw))
    x = np.random.default_rng(0).random((2, *vae.observation_shape), np.float32)
    assert equal(vae.sample(2, seed=5), quick_vae.sample(2, seed=5))
    assert equal(vae.reconstruct(x), quick_vae.reconstruct(x))


def test_a_failure_is_told(quick_vae):
    """A call whose result has no room for what the graph gives."""
    session = quick_vae._networks.session("decoder")
    z = np.zeros((2, *quick_vae.latent_shape), np.float32)
    call = Call(session, lambda: True, ("z", z), ("x", np.empty((1, *quick_vae.observation_shape), np.float32)))
    with pytest.raises(VaeError, match="ONNX Runtime failed"):
        call.compute()


def test_graphs_of_several_inputs_take_the_general_way(codes_bundle, levels_bundle, root, ways):
    for bundle in (codes_bundle(), levels_bundle(), root / "models" / "digits-conditional"):
        vae = vae_runtime.load(bundle)
        given = {c.name: 1 for c in vae.conditions}
        x = vae.decode({each.name: np.zeros((2, *each.shape), each.dtype) for each in vae.latents}, conditions=given)
        assert x.shape == (2, *vae.observation_shape)
    assert ways.taken() == ([], [], [2, 2, 2])


def test_results_may_stay_on_the_device(quick_vae):
    if not hasattr(onnxruntime.OrtValue, "__dlpack__"):
        with pytest.raises(DeviceError, match="DLPack"):
            quick_vae.sample(3, seed=1, on_device=True)
        return
    value = quick_vae.sample(3, seed=1, on_device=True)
    taken = np.from_dlpack(value)
    assert taken.ctypes.data == value.data_ptr()
    assert equal(taken, quick_vae.sample(3, seed=1))
    for name, other in (("observe", True), ("out", taken), ("batch_size", 0)):
        with pytest.raises(InputError, match=name):
            quick_vae.sample(3, seed=1, on_device=True, **{name: other})


class Elsewhere:
    """An array as other libraries show one on a device: by its address alone. Here the device is the host."""

    def __init__(self, array):
        self._array = array
        place = array.__array_interface__["data"]
        self.__cuda_array_interface__ = {"shape": array.shape, "typestr": "<f4", "data": place, "version": 3}

    def __len__(self):
        return len(self._array)

    def __getitem__(self, rows):
        return Elsewhere(self._array[rows])


def drawing_elsewhere(vae):
    """A VAE on whose device latents are drawn, and the list of how many were."""
    drawn = []

    def draw(seed, start, n, shape, *rest):
        drawn.append(n)
        return Elsewhere(draw_normal(seed, start, n, shape, *rest))

    vae._networks.draw_on_device = draw
    return vae, drawn


@on_device
@pytest.mark.parametrize("options", [{}, {"temperature": 0.5, "truncation": 1.0}, {"start": 2**64 - 4}])
def test_latents_that_are_drawn_on_the_device_stay_there(digits, quick_vae, options):
    there, drawn = drawing_elsewhere(vae_runtime.load(digits))
    for batch_size, parts in ((None, [7]), (3, [3, 3, 1]), (7, [7]), (9, [7])):
        drawn.clear()
        value = there.sample(7, seed=1, on_device=True, batch_size=batch_size, **options)
        expected = quick_vae.sample(7, seed=1, batch_size=batch_size, **options)
        assert equal(np.from_dlpack(value), expected)
        assert drawn == parts
    # What is drawn on the device does come from there.
    there._networks.draw_on_device = lambda seed, *rest: Elsewhere(draw_normal(seed + 1, *rest))
    assert not equal(np.from_dlpack(there.sample(7, seed=1, on_device=True, **options)), expected)


@on_device
def test_conditions_of_the_host_meet_latents_of_the_device(root):
    bundle = root / "models" / "digits-conditional"
    there, _ = drawing_elsewhere(vae_runtime.load(bundle))
    given_ = {condition.name: [1, 2, 3, 1, 2] for condition in there.conditions}
    for batch_size in (None, 2):
        value = there.sample(5, seed=1, conditions=given_, on_device=True, batch_size=batch_size)
        expected = vae_runtime.load(bundle).sample(5, seed=1, conditions=given_, batch_size=batch_size)
        assert equal(np.from_dlpack(value), expected)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.0, 255.0), (-1.0, 1.0), (0.5, 0.75), (0.0, 0.1), None])
def test_the_range_is_the_manifests(quick_vae, bounds):
    """At its ends, one step of a float beyond them, and at what has no place in an order."""
    bundle = quick_vae.bundle
    observation = dataclasses.replace(bundle.manifest.observation, range=bounds)
    bundle = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, observation=observation))
    vae = VAE(bundle, Networks(bundle, resolve_device("cpu"), 1, bundle.choose(None)))
    low, high = bounds or (-np.finfo(np.float32).max, np.finfo(np.float32).max)
    low32, high32 = np.float32(low), np.float32(high)
    inside = [low32, high32, np.float32((low + high) / 2)] if bounds != (0.0, 0.1) else [low32, np.float32(0.05)]
    with np.errstate(over="ignore"):
        outside = [np.nextafter(low32, np.float32(-np.inf)), np.nextafter(high32, np.float32(np.inf)), np.nan, -np.nan]
    for number, right in [*((number, True) for number in inside), *((number, False) for number in outside)]:
        x = np.full((1, *vae.observation_shape), inside[0], np.float32)
        x[0, -1, -1] = number
        if right:
            vae.encode(x)
        else:
            with pytest.raises(InputError, match="x"):
                vae.encode(x)


RELEASES = """
import gc, sys, weakref
import vae_runtime
gc.disable()
vae = vae_runtime.load(sys.argv[1])
x = vae.sample(3)
vae.reconstruct(x)
gone = [weakref.ref(each) for each in (vae, vae._networks, vae._networks.session("decoder"))]
if sys.argv[2] == "circle":
    vae._networks.circle = vae._networks
del vae
print([each() is None for each in gone])
"""


@pytest.mark.parametrize(("circle", "gone"), [("none", [True] * 3), ("circle", [True, False, False])])
def test_the_memory_of_a_vae_is_free_once_nobody_uses_it(circle, gone, python, digits, tmp_path):
    (tmp_path / "releases.py").write_text(RELEASES)
    done = python(tmp_path / "releases.py", digits, circle)
    assert done.stdout.strip() == str(gone), done.stderr


@pytest.mark.parametrize("variant", ["fp32", "fp16", "int8"])
def test_layers_between_vectors_are_dense_in_every_variant(digits, root, variant):
    for folder, dense in ((digits, True), (root / "models" / "mnist", False)):
        networks = vae_runtime.load(folder, variant=variant)._networks
        assert [networks.session(each).is_dense for each in ("encoder", "decoder")] == [dense] * 2
