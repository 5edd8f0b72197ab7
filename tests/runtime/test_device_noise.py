"""Noise by the array functions of a module: with numpy's it gives the published bits, and CuPy has the same ones."""

import hashlib
import importlib.util
import json
import shutil

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vae_runtime
from vae_runtime import device_noise, noise
from vae_runtime.device_noise import ArrayNoise, agrees, on_device
from vae_runtime.devices import Device
from vae_runtime.errors import InputError
from vae_runtime.prior import draw_normal

CUDA = Device("cuda", "CUDAExecutionProvider", {"device_id": "0"})
HAS_CUPY = importlib.util.find_spec("cupy") is not None
HAS_GPU = shutil.which("nvidia-smi") and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
on_gpu = pytest.mark.skipif(
    not (HAS_CUPY and HAS_GPU),
    reason="noise by CuPy is not tested here: it needs CuPy, onnxruntime-gpu and an NVIDIA GPU",
)

SEEDS = st.integers(-(2**63), 2**64 - 1)
STARTS = st.one_of(st.integers(0, 2**64 - 1), st.integers(2**64 - 9, 2**64 - 1))
SHAPES = st.lists(st.integers(0, 7), min_size=0, max_size=3).map(tuple)


@pytest.fixture(scope="module")
def source():
    return ArrayNoise(np)


@pytest.fixture(scope="module")
def vectors(root):
    return json.loads((root / "tests" / "data" / "vnoise1_vectors.json").read_text(encoding="utf-8"))


def equal(a, b):
    return a.dtype == b.dtype == np.float32 and a.shape == b.shape and a.tobytes() == b.tobytes()


@given(
    seed=SEEDS, start=STARTS, n=st.integers(0, 9), shape=SHAPES, stream=st.integers(0, 2**32 - 1),
    temperature=st.sampled_from([1.0, 0.7, 0.0, 3.0]), truncation=st.sampled_from([None, 0.01, 0.5, 2.0, 6.3, 1e6]),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_the_bits_are_those_of_the_host(source, seed, start, n, shape, stream, temperature, truncation):
    arguments = (seed, start, n, shape, stream, temperature, truncation)
    assert equal(source.draw(*arguments), draw_normal(*arguments))


@pytest.mark.parametrize("number", range(6))
def test_the_published_draws(source, vectors, number):
    case = vectors["noise"][number]
    z = source.draw(int(case["seed"]), int(case["first_index"]), case["n"], case["shape"], case["stream"])
    assert hashlib.sha256(z.astype("<f4").tobytes()).hexdigest() == case["sha256_le_f32"]
    assert (z.ravel()[: len(case["head"])].astype(np.float64) * 2**21).tolist() == case["head"]


def test_the_published_words(source, vectors):
    words, fixed = np.array(vectors["word_to_fixed"]).T
    z = source._normal_of_words(words.astype(np.uint32), 0)
    assert (z.astype(np.float64) * 2**21).tolist() == fixed.tolist()


def test_a_large_draw_is_made_in_parts(source, monkeypatch):
    whole = source.draw(3, 2**64 - 5, 11, (3, 7), 1)
    for size in (1, 3, 6, 20):
        monkeypatch.setattr(device_noise, "_CHUNK", size)
        assert equal(source.draw(3, 2**64 - 5, 11, (3, 7), 1), whole)


@pytest.mark.parametrize(
    "arguments",
    [
        (2**64, 0, 1, (2,), 0, 1.0, None),
        (1, -1, 1, (2,), 0, 1.0, None),
        (1, 0, 1, (2,), 2**32, 1.0, None),
        (1, 0, 1, (-2,), 0, 1.0, None),
        (1, 0, 1, (2,), 0, -1.0, None),
        (1, 0, 1, (2,), 0, 1.0, 0.001),
        (1, 0, 2**48, (2**33,), 0, 1.0, None),
        (1, 0, 2**30, (2**30,), 0, 1.0, None),
    ],
)
def test_arguments_are_refused_as_on_the_host(source, arguments):
    messages = []
    for draw in (source.draw, draw_normal):
        with pytest.raises(InputError) as caught:
            draw(*arguments)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_a_way_to_draw_with_other_bits_is_not_used(source):
    assert agrees(source.draw, np.asarray)

    class Saturating:
        """An array module whose products end at the largest number instead of wrapping."""

        def __getattr__(self, name):
            return getattr(np, name)

        def multiply(self, a, b, out):
            return np.minimum(a.astype(float) * b, 2.0**63, out=out, casting="unsafe")

    def off_by_one_bit(*arguments):
        z = draw_normal(*arguments)
        z.view(np.uint32)[-1, -1] ^= 1
        return z

    assert not agrees(ArrayNoise(Saturating()).draw, np.asarray)
    assert not agrees(off_by_one_bit, np.asarray)


def test_few_numbers_are_drawn_on_the_host(source):
    drawn = []

    def draw(*arguments):
        drawn.append(arguments)
        return source.draw(*arguments)

    either = device_noise._where_it_pays(lambda: draw)
    many = device_noise.MIN_NUMBERS // 4
    for n, calls in ((1, 0), (many - 1, 0), (many, 1)):
        arguments = (7, 0, n, (4,), 0, 1.0, None)
        assert equal(either(*arguments), draw_normal(*arguments))
        assert len(drawn) == calls


MANY = (7, 0, device_noise.MIN_NUMBERS, (1,), 0, 1.0, None)


@pytest.mark.skipif(HAS_CUPY, reason="CuPy is installed")
def test_the_host_draws_where_cupy_is_missing(caplog):
    assert equal(on_device(CUDA)(*MANY), draw_normal(*MANY))
    assert caplog.text == ""


def test_the_host_draws_for_the_host_and_where_that_is_asked_for(monkeypatch):
    assert on_device(Device("cpu", "CPUExecutionProvider", {})) is draw_normal
    monkeypatch.setenv("VAE_RUNTIME_CUPY", "0")
    assert on_device(CUDA) is draw_normal


@pytest.mark.skipif(not HAS_CUPY or bool(HAS_GPU), reason="it takes CuPy without an NVIDIA GPU")
def test_a_cupy_without_a_gpu_is_warned_of_once(caplog):
    draw = on_device(CUDA)
    draw(7, 0, 1, (1,), 0, 1.0, None)
    assert caplog.text == ""
    for _ in range(2):
        assert equal(draw(*MANY), draw_normal(*MANY))
    assert (
        caplog.text.count("noise is drawn on the host; install the CuPy of this CUDA, or set VAE_RUNTIME_CUPY=0") == 1
    )


@on_gpu
def test_cupy_draws_the_published_bits(vectors):
    import cupy

    draw = device_noise._by_cupy(cupy, 0, 0)
    assert agrees(draw, cupy.asnumpy)
    for case in vectors["noise"]:
        z = draw(int(case["seed"]), int(case["first_index"]), case["n"], case["shape"], case["stream"], 1.0, None)
        assert isinstance(z, cupy.ndarray)
        assert hashlib.sha256(cupy.asnumpy(z).astype("<f4").tobytes()).hexdigest() == case["sha256_le_f32"]


@on_gpu
def test_samples_of_noise_from_either_side_are_the_same(digits, monkeypatch):
    import cupy

    stream = cupy.cuda.Stream(non_blocking=True)
    n = device_noise.MIN_NUMBERS
    answers = []
    for options, variable in ((None, "0"), (None, "1"), ({"user_compute_stream": stream.ptr}, "1")):
        monkeypatch.setenv("VAE_RUNTIME_CUPY", variable)
        vae = vae_runtime.load(digits, device="cuda", provider_options=options)
        drawn = vae._networks.draw_on_device(7, 0, n, vae.latent_shape, noise.PRIOR, 1.0, None)
        assert isinstance(drawn, np.ndarray if variable == "0" else cupy.ndarray)
        for more in ({}, {"temperature": 0.5, "truncation": 1.5}, {"batch_size": n // 2 - 1}):
            x = cupy.from_dlpack(vae.sample(n, seed=7, on_device=True, **more))
            answers.append(cupy.asnumpy(x))
    for number, answer in enumerate(answers):
        np.testing.assert_allclose(answer, answers[number % 3], atol=1e-6)
    np.testing.assert_allclose(answers[2], answers[0], atol=1e-6)
