import hashlib
import importlib
import json
import math
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vae_runtime import noise
from vae_runtime.errors import InputError

ROOT = Path(__file__).parents[2]
PACKAGE = Path(noise.__file__).parent
SPECIFICATION = (ROOT / "docs" / "noise.md").read_text(encoding="utf-8")
VECTORS = json.loads((ROOT / "tests" / "data" / "vnoise1_vectors.json").read_text(encoding="utf-8"))
TABLE = np.frombuffer((PACKAGE / "vnoise1_table.bin").read_bytes(), "<i4")
QUANTILE, DIFFERENCE = TABLE[:32768], TABLE[32768:]

EXAMPLES, REFERENCE_CODE = re.findall(r"^```python\n(.*?)^```$", SPECIFICATION, re.MULTILINE | re.DOTALL)
REFERENCE: dict[str, Any] = {}
exec(compile(REFERENCE_CODE, "docs/noise.md", "exec"), REFERENCE)

Draw = Callable[..., NDArray[Any]]
DRAWS: list[Draw] = [noise.normal, noise.uniform, noise.words]

SEEDS = st.integers(-(2**63), 2**64 - 1) | st.sampled_from([0, 1, -1, 2**32, 2**63, 2**64 - 1, -(2**63)])
STARTS = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**32 - 2, 2**63 - 1, 2**64 - 1, 2**64 - 3])
STREAMS = st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, 2, 3, 256])
SHAPES = st.lists(st.integers(1, 5), max_size=3).map(tuple)


def equal(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether two arrays hold the same bits."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# Against what others computed.


def test_the_vectors_are_those_of_this_specification() -> None:
    assert VECTORS["spec"] == noise.SPEC
    assert VECTORS["table_sha256"] == noise.TABLE_SHA256
    assert len(VECTORS["noise"]) >= 5


# What `_SMALL` and `_FEW` are where all goes by numpy, by long integers and numpy, and by Python alone.
PATHS = ((0, 0), (10**9, 0), (10**9, 10**9))


def normals(words) -> np.ndarray:
    out = np.empty((1, len(words)), np.float32)
    noise._normal_of_words(np.array([words], np.uint32), out)
    return out[0]


@pytest.mark.parametrize(("word", "fixed"), VECTORS["word_to_fixed"])
def test_word_to_normal(word: int, fixed: int) -> None:
    assert noise._fixed_of_word(word) == fixed
    assert REFERENCE["fixed"](word, QUANTILE.tolist(), DIFFERENCE.tolist()) == fixed
    (z,) = normals([word])
    assert z == fixed * 2.0**-21


@pytest.mark.parametrize("case", VECTORS["noise"])
def test_vectors(case: dict[str, Any]) -> None:
    z = noise.normal(int(case["seed"]), int(case["first_index"]), case["n"], case["shape"], case["stream"])
    assert z.shape == (case["n"], *case["shape"])
    assert z.dtype == np.float32
    assert (z.ravel()[: len(case["head"])] * 2.0**21).tolist() == case["head"]
    assert hashlib.sha256(z.astype("<f4").tobytes()).hexdigest() == case["sha256_le_f32"]


# Salmon et al., Random123 1.x, kat_vectors: philox4x32, 10 rounds.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers_of_philox(counter: str, key: str, answer: str) -> None:
    c, k, wanted = ([int(word, 16) for word in words.split()] for words in (counter, key, answer))
    block, sample = np.array([[c[0]]], np.uint64), np.array([[c[2] | c[3] << 32]], np.uint64)
    found = noise.philox(block, c[1], sample, noise.round_keys(k[0] | k[1] << 32))
    assert found.dtype == np.uint32
    assert found.tolist() == [wanted]
    assert list(REFERENCE["philox"](c, k)) == wanted


def test_known_answer_of_the_public_words() -> None:
    for n in (1, 100):
        assert [f"{word:08x}" for word in noise.words(0, 0, n, (4,))[0]] == KNOWN_ANSWERS[0][2].split()


@given(SEEDS, STARTS, STREAMS, SHAPES, st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_equals_the_reference_of_the_specification(
    seed: int, start: int, stream: int, shape: tuple[int, ...], n: int
) -> None:
    elements = range(math.prod(shape))
    wanted = [[REFERENCE["word"](seed, stream, start + i, element) for element in elements] for i in range(n)]
    assert noise.words(seed, start, n, shape, stream).reshape(n, -1).tolist() == wanted
    q, d = QUANTILE.tolist(), DIFFERENCE.tolist()
    fixed = [[REFERENCE["fixed"](word, q, d) for word in row] for row in wanted]
    assert (noise.normal(seed, start, n, shape, stream).reshape(n, -1) * 2.0**21).tolist() == fixed
    assert REFERENCE["z"](seed, stream, start, 0, q, d) == fixed[0][0] * 2.0**-21
    uniform = [[(word >> 8) * 2.0**-24 for word in row] for row in wanted]
    assert noise.uniform(seed, start, n, shape, stream).reshape(n, -1).tolist() == uniform


@pytest.mark.parametrize("n", [1, 100])
@pytest.mark.parametrize("constant", ["_MULTIPLIER_0", "_MULTIPLIER_1", "_WEYL_0", "_WEYL_1"])
def test_a_wrong_constant_is_found_out(monkeypatch: pytest.MonkeyPatch, constant: str, n: int) -> None:
    wanted = REFERENCE["word"](0, 0, 0, 0)
    assert noise.words(0, 0, n, (1,))[0, 0] == wanted
    monkeypatch.setattr(noise, constant, getattr(noise, constant) ^ 2)
    assert noise.words(0, 0, n, (1,))[0, 0] != wanted


def test_the_examples_of_the_specification() -> None:
    given: dict[str, Any] = {}
    exec(compile(EXAMPLES, "docs/noise.md", "exec"), given)
    assert given["eps"].shape == (1000, 16)
    assert equal(given["third"], given["eps"][2:3])
    assert equal(given["short"], given["eps"][:, :8])
    assert not np.any(given["other"] == given["eps"])
    assert 1.9 < np.abs(given["near"]).max() <= 2
    assert equal(given["u"], (given["w"] >> 8).astype(np.float32) * np.float32(2**-24))
    assert 0 <= given["seed"] < 2**53


# The table.


def test_the_table_is_the_quantile_function_rounded() -> None:
    scale, unit = 2.0**21, NormalDist()

    def entry(level: int, i: int) -> int:
        tail = (i * 2 ** (18 - 6 * level) + 0.5) / 2**32  # exact in a double
        return 0 if tail >= 0.5 else math.floor(scale * -unit.inv_cdf(tail) + 0.5)

    for level in range(4):
        first = 0 if level == 3 else 128
        wanted = [0] * first + [entry(level, i) for i in range(first, 8193)]
        assert QUANTILE[8192 * level : 8192 * (level + 1)].tolist() == wanted[:8192]
        steps = [0] * 8192 if level == 3 else [a - b for a, b in pairwise(wanted)]
        steps[:first] = [0] * first
        assert DIFFERENCE[8192 * level : 8192 * (level + 1)].tolist() == steps


def test_the_table_keeps_the_specified_bounds() -> None:
    assert hashlib.sha256(TABLE.tobytes()).hexdigest() == noise.TABLE_SHA256
    assert QUANTILE.max() < 2**24
    assert np.all(DIFFERENCE >= 0)
    assert DIFFERENCE.max() * 0x7FFF < 2**31
    assert noise._fixed_of_word(0) == QUANTILE.max() == 13291661
    assert 6.3379 < 13291661 * 2.0**-21 <= 6.338
    assert noise._fixed_of_word(0x7FFFFFFF) == 1


def copied(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The noise module of a second package, with files of its own."""
    package = folder / name
    package.mkdir()
    (package / "__init__.py").touch()
    for file in ("_version.py", "errors.py", "native.py", "noise.py", "vnoise1_table.bin"):
        shutil.copyfile(PACKAGE / file, package / file)
    monkeypatch.syspath_prepend(str(folder))
    return importlib.import_module(f"{name}.noise")


def test_a_copied_package_draws_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = copied(tmp_path, "whole_copy", monkeypatch)
    assert equal(module.normal(1, 2, 30, (4,)), noise.normal(1, 2, 30, (4,)))


@pytest.mark.parametrize("n", [1, 100])
@pytest.mark.parametrize("change", ["flip", "cut", "extend", "empty"])
def test_a_damaged_table_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, n: int) -> None:
    module = copied(tmp_path, f"copy_{change}_{n}", monkeypatch)
    path = Path(module.__file__).parent / "vnoise1_table.bin"
    content = bytearray(path.read_bytes())
    if change == "flip":
        content[200_001] ^= 1
    content = {"flip": content, "cut": content[:-1], "extend": content + b"\0", "empty": b""}[change]
    path.write_bytes(content)
    errors = importlib.import_module(f"copy_{change}_{n}.errors")
    with pytest.raises(errors.BundleError) as caught:
        module.normal(0, 0, n, (4,))
    found = hashlib.sha256(content).hexdigest()
    assert str(caught.value) == (
        f"{path}: expected sha256 {noise.TABLE_SHA256} for vnoise-1, got {found}; install vae-runtime again"
    )
    module.uniform(0, 0, n, (4,))  # needs no table


# What a number depends on.


@given(SEEDS, STARTS, STREAMS, SHAPES, st.integers(1, 40), st.data())
@settings(max_examples=60, deadline=None)
@example(0, 2**64 - 2, 0, (4,), 5, None)
def test_a_sample_is_the_same_however_it_is_drawn(
    seed: int, start: int, stream: int, shape: tuple[int, ...], n: int, data: Any
) -> None:
    cut = data.draw(st.integers(0, n)) if data else 2
    index = data.draw(st.integers(0, n - 1)) if data else 3
    for draw in DRAWS:
        whole = draw(seed, start, n, shape, stream)
        assert whole.shape == (n, *shape)
        parts = [
            draw(seed, start, cut, shape, stream),
            draw(seed, (start + cut) % 2**64, n - cut, shape, stream),
        ]
        assert equal(np.concatenate(parts), whole)
        assert equal(draw(seed, (start + index) % 2**64, 1, shape, stream)[0], whole[index])


@given(SEEDS, STARTS, STREAMS, st.integers(1, 30), st.integers(0, 70), st.integers(0, 70))
@settings(max_examples=60, deadline=None)
def test_a_shorter_sample_is_the_start_of_a_longer_one(
    seed: int, start: int, stream: int, n: int, short: int, further: int
) -> None:
    for draw in DRAWS:
        longer = draw(seed, start, n, (short + further,), stream)
        assert equal(draw(seed, start, n, (short,), stream), longer[:, :short].copy())


def test_sixteen_numbers_are_the_start_of_thirty_two() -> None:
    assert equal(noise.normal(5, 9, 50, (16,)), noise.normal(5, 9, 50, (32,))[:, :16].copy())


@given(SEEDS, STARTS, STREAMS, st.sampled_from([(), (1,), (2, 3), (3, 2), (6,), (1, 3, 1, 2)]))
@settings(max_examples=40, deadline=None)
def test_a_shape_only_folds_the_elements(seed: int, start: int, stream: int, shape: tuple[int, ...]) -> None:
    flat = noise.normal(seed, start, 5, (math.prod(shape),), stream)
    assert equal(noise.normal(seed, start, 5, shape, stream), flat.reshape(5, *shape))


@given(SEEDS, STARTS, STREAMS, st.integers(1, 30), st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_the_path_for_few_numbers_gives_the_same_bits(
    seed: int, start: int, stream: int, n: int, elements: int
) -> None:
    for draw in DRAWS:
        results = []
        for small, few in PATHS:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(noise, "_SMALL", small)
                patch.setattr(noise, "_FEW", few)
                results.append(draw(seed, start, n, (elements,), stream))
        assert equal(results[0], results[1])
        assert equal(results[0], results[2])


@pytest.mark.parametrize("chunk", [1, 3, 8, 1000])
@pytest.mark.parametrize(("n", "elements"), [(1, 100), (7, 64), (50, 4), (33, 13)])
def test_the_size_of_a_chunk_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, chunk: int, n: int, elements: int
) -> None:
    wanted = noise.normal(3, 2**64 - 5, n, (elements,), 7)
    monkeypatch.setattr(noise, "_CHUNK", chunk)
    assert equal(noise.normal(3, 2**64 - 5, n, (elements,), 7), wanted)


def test_a_draw_of_several_chunks_equals_its_parts() -> None:
    elements = 4 * noise._CHUNK + 5
    wide = noise.normal(11, 0, 2, (elements,))
    assert equal(wide[1], noise.normal(11, 1, 1, (elements,))[0])
    tall = noise.normal(11, 0, noise._CHUNK + 3, (4,))
    assert equal(tall[-5:], noise.normal(11, noise._CHUNK - 2, 5, (4,)))
    assert equal(tall[:2], wide[:, :4].copy())


@pytest.mark.parametrize("n", [5, 100])
def test_indices_wrap_at_two_to_the_64(n: int) -> None:
    around = noise.normal(4, 2**64 - 2, n, (5,))
    assert equal(around[:2], noise.normal(4, 2**64 - 2, 2, (5,)))
    assert equal(around[2:], noise.normal(4, 0, n - 2, (5,)))


@given(st.integers(-(2**63), -1))
@settings(max_examples=30, deadline=None)
def test_a_negative_seed_is_its_twos_complement(seed: int) -> None:
    for n in (2, 40):
        assert equal(noise.normal(seed, 0, n, (4,)), noise.normal(seed + 2**64, 0, n, (4,)))


def test_every_part_of_the_address_changes_the_numbers() -> None:
    addresses = [(0, 0, 0), (1, 0, 0), (2**32, 0, 0), (2**63, 0, 0), (0, 1000, 0), (0, 2**32, 0), (0, 2**63, 0)]
    addresses += [(0, 0, stream) for stream in (1, 2, 3, 256, 2**31)]
    draws = [noise.words(seed, start, 10, (40,), stream) for seed, start, stream in addresses]
    assert len(np.unique(np.stack(draws))) == len(addresses) * 400


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_a_word_is_mapped_symmetrically_and_monotonically(one: int, other: int) -> None:
    fixed = noise._fixed_of_word(one)
    assert 1 <= abs(fixed) < 2**24
    assert (fixed < 0) == (one >= 2**31)
    assert noise._fixed_of_word(one ^ 0x80000000) == -fixed
    near, far = sorted([one & 0x7FFFFFFF, other & 0x7FFFFFFF])
    assert noise._fixed_of_word(near) >= noise._fixed_of_word(far)
    assert normals([one, one ^ 0x80000000]).tolist() == [fixed * 2.0**-21, -fixed * 2.0**-21]


def test_the_levels_of_the_table_meet() -> None:
    edges = [edge + offset for edge in (2**13, 2**19, 2**25) for offset in range(-300, 300)]
    fixed = [noise._fixed_of_word(m) for m in edges]
    assert fixed == sorted(fixed, reverse=True)
    assert normals(edges).tolist() == [y * 2.0**-21 for y in fixed]


@given(SEEDS, STARTS)
@settings(max_examples=20, deadline=None)
def test_uniform_is_in_zero_to_one_from_the_same_words(seed: int, start: int) -> None:
    for n in (2, 200):
        u, word = noise.uniform(seed, start, n, (5,)), noise.words(seed, start, n, (5,))
        assert u.dtype == np.float32
        assert u.min() >= 0
        assert u.max() < 1
        assert np.array_equal(u.astype(np.float64) * 2**24, word >> 8)


def test_uniform_of_the_greatest_word_is_below_one() -> None:
    greatest = 2**32 - 1
    u = np.empty((1, 1), np.float32)
    noise._uniform_of_words(np.array([[greatest]], np.uint32), u)
    assert u[0, 0] == np.float32(1 - 2**-24)
    assert noise._uniform_of_few([greatest]) == [1 - 2**-24]


# What the numbers are like.


def test_moments() -> None:
    z = noise.normal(2024, 0, 50_000, (20,)).astype(np.float64)
    # five standard errors of a million numbers
    assert abs(z.mean()) < 5e-3
    assert abs((z**2).mean() - 1) < 5 * math.sqrt(2) * 1e-3
    assert abs((z**3).mean()) < 5 * math.sqrt(15) * 1e-3
    assert abs((z**4).mean() - 3) < 5 * math.sqrt(96) * 1e-3
    correlation = np.corrcoef(z.T) - np.eye(20)
    assert np.abs(correlation).max() < 5 / math.sqrt(50_000)
    u = noise.uniform(2024, 0, 50_000, (20,)).astype(np.float64)
    assert abs(u.mean() - 0.5) < 5e-3 / math.sqrt(12)


def test_the_distribution_function_is_within_the_specified_error() -> None:
    word = np.random.default_rng(0).integers(0, 2**31, 20_000, np.uint64)
    word = np.concatenate([word >> np.uint64(shift) for shift in (0, 6, 12, 18, 26)])
    z = normals(word)
    tail = (word.astype(np.float64) + 0.5) / 2**32
    error = [abs(0.5 * math.erfc(x / math.sqrt(2)) - p) for x, p in zip(z.tolist(), tail.tolist(), strict=True)]
    assert 1e-8 < max(error) <= 2.9e-7


def test_every_normal_is_a_multiple_of_the_unit() -> None:
    z = noise.normal(8, 0, 1000, (7,))
    assert all(Fraction(x) % Fraction(1, 2**21) == 0 for x in z.ravel().tolist())
    assert not np.any(z == 0)


# Truncated.

TRUNCATIONS = st.floats(0.01, 8) | st.sampled_from([0.01, 1, 2.0, 4.8604, 6.3, 6.338, 6.34, 1e6])


@given(SEEDS, STARTS, st.integers(1, 6), st.integers(1, 20), TRUNCATIONS)
@settings(max_examples=60, deadline=None)
def test_truncated_noise_equals_the_reference_on_both_paths(
    seed: int, start: int, n: int, elements: int, truncation: float
) -> None:
    q, d = QUANTILE.tolist(), DIFFERENCE.tolist()
    words = noise.words(seed, start, n, (elements,)).tolist()
    if elements * n > 30:
        words = [row[:2] for row in words]
    wanted = [[REFERENCE["fixed"](REFERENCE["truncated"](w, truncation, q, d), q, d) for w in row] for row in words]
    for small, few in PATHS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(noise, "_SMALL", small)
            patch.setattr(noise, "_FEW", few)
            z = noise.normal(seed, start, n, (elements,), truncation=truncation)
        assert np.abs(z).max() <= truncation
        assert (z[:, : len(wanted[0])] * 2.0**21).tolist() == wanted


@given(SEEDS, STARTS, STREAMS, st.integers(1, 40), st.integers(1, 9), TRUNCATIONS, st.data())
@settings(max_examples=40, deadline=None)
def test_truncated_noise_depends_on_its_address_alone(
    seed: int, start: int, stream: int, n: int, elements: int, truncation: float, data: Any
) -> None:
    whole = noise.normal(seed, start, n, (elements,), stream, truncation)
    cut = data.draw(st.integers(0, n))
    parts = [
        noise.normal(seed, start, cut, (elements,), stream, truncation),
        noise.normal(seed, (start + cut) % 2**64, n - cut, (elements,), stream, truncation),
    ]
    assert equal(np.concatenate(parts), whole)
    assert equal(noise.normal(seed, start, n, (1,), stream, truncation), whole[:, :1].copy())
    plain = noise.normal(seed, start, n, (elements,), stream)
    assert np.array_equal(np.sign(plain), np.sign(whole))
    assert np.all(np.abs(whole) <= np.abs(plain))


@given(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1), TRUNCATIONS)
@settings(max_examples=200, deadline=None)
def test_truncation_keeps_the_order_and_the_sign(one: int, other: int, truncation: float) -> None:
    nearest = noise._nearest_tail(math.floor(truncation * 2**21))
    near, far = sorted([one, other])
    moved = [noise._truncated_word(word, nearest) for word in (near, far)]
    assert nearest <= moved[0] <= moved[1] < 2**31
    assert noise._truncated_word(near | 2**31, nearest) == moved[0] | 2**31
    assert noise._truncated_words(np.array([near, far | 2**31], np.uint32), nearest).tolist() == [
        moved[0], moved[1] | 2**31,
    ]  # fmt: skip


@pytest.mark.parametrize("bound", [1, 2, 20_971, 2**21, 5 * 2**21, 13291660])
def test_the_nearest_tail_is_the_first_within_the_bound(bound: int) -> None:
    nearest = noise._nearest_tail(bound)
    assert noise._fixed_of_word(nearest) <= bound < noise._fixed_of_word(nearest - 1)


def test_a_truncation_beyond_the_farthest_number_changes_nothing() -> None:
    assert noise._nearest_tail(13291661) == 0
    for n in (1, 1000):
        for truncation in (6.34, 7, 1e6):
            assert equal(noise.normal(3, 0, n, (7,), 0, truncation), noise.normal(3, 0, n, (7,)))
    assert not equal(noise.normal(3, 0, 1000, (7,), 0, 1.0), noise.normal(3, 0, 1000, (7,)))


@pytest.mark.parametrize("truncation", [0.01, 0.3, 1.0, 2.0, 3.5])
def test_truncated_noise_has_the_truncated_distribution(truncation: float) -> None:
    z = np.sort(noise.normal(12, 0, 100_000, (4,), 0, truncation).ravel())
    low = math.erf(-truncation / math.sqrt(2))
    wanted = np.array([(math.erf(x / math.sqrt(2)) - low) / (-2 * low) for x in z[::100].tolist()])
    found = np.arange(len(z))[::100] / len(z)
    # Kolmogorov: a distance above 2 / √n has a probability below 0.001.
    assert np.abs(found - wanted).max() < 2 / math.sqrt(len(z))


@pytest.mark.parametrize("wrong", [0, -1, 0.009, 1.1e6, math.nan, math.inf, "2", [2.0]])
def test_a_wrong_truncation_is_refused(wrong: Any) -> None:
    with pytest.raises(InputError, match=r"^truncation: expected a number from 0\.01 to 1e\+06, got"):
        noise.normal(0, 0, 1, (4,), truncation=wrong)


# How it may be called.


def test_threads_draw_the_same_bits() -> None:
    noise._table.cache_clear()
    wanted = [noise.normal(6, start, 500, (33,)) for start in range(16)]
    noise._table.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(lambda start: noise.normal(6, start, 500, (33,)), range(16)))
    assert all(map(equal, drawn, wanted))


def test_nothing_is_drawn_of_nothing() -> None:
    for draw in DRAWS:
        assert draw(0, 0, 0, (3,)).shape == (0, 3)
        assert draw(0, 0, 3, (0, 4)).shape == (3, 0, 4)
        assert draw(0, 0, 3, ()).shape == (3,)


@pytest.mark.parametrize("n", [3, 100])
def test_numpys_integers_are_taken(n: int) -> None:
    wanted = noise.normal(2**64 - 1, 2**64 - 1, n, (4,), 3)
    found = noise.normal(np.uint64(2**64 - 1), np.uint64(2**64 - 1), np.int16(n), (np.int32(4),), np.uint8(3))
    assert equal(found, wanted)
    assert equal(noise.normal(np.int64(-1), 2**64 - 1, n, np.array([4]), 3), wanted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 2**64}, f"seed: expected {-(2**63)} … {2**64 - 1}, got {2**64}"),
        ({"seed": -(2**63) - 1}, f"seed: expected {-(2**63)} … {2**64 - 1}, got {-(2**63) - 1}"),
        ({"seed": 1.0}, "seed: expected an integer, got 1.0"),
        ({"seed": "1"}, "seed: expected an integer, got '1'"),
        ({"seed": None}, "seed: expected an integer, got None"),
        ({"start": -1}, f"start: expected 0 … {2**64 - 1}, got -1"),
        ({"start": 2**64}, f"start: expected 0 … {2**64 - 1}, got {2**64}"),
        ({"start": np.float32(1)}, "start: expected an integer"),
        ({"n": -1}, "n: expected 0 … "),
        ({"n": 2.5}, "n: expected an integer, got 2.5"),
        ({"n": 2**48 + 1}, "n: expected 0 … "),
        ({"n": 2**47, "shape": (2**20,)}, "n: "),
        ({"shape": (-1,)}, "shape[0]: expected 0 … "),
        ({"shape": (4, 1.5)}, "shape[1]: expected an integer, got 1.5"),
        ({"shape": (2**20, 2**20)}, f"shape: expected at most 2**34 elements in one sample, got {2**40}"),
        ({"shape": (2**34 + 1,)}, "shape[0]: expected 0 … "),
        ({"shape": (0, 2**34, 2**34)}, f"shape: expected at most 2**34 elements in one sample, got {2**68}"),
        ({"stream": -1}, "stream: expected 0 … 4294967295, got -1"),
        ({"stream": 2**32}, "stream: expected 0 … 4294967295, got 4294967296"),
        ({"stream": "prior"}, "stream: expected an integer, got 'prior'"),
    ],
)
@pytest.mark.parametrize("draw", DRAWS)
def test_a_bad_argument_is_named(draw: Draw, changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"seed": 0, "start": 0, "n": 1, "shape": (4,), "stream": 0}
    draw(**arguments)
    with pytest.raises(InputError) as caught:
        draw(**(arguments | changes))
    assert str(caught.value).startswith(message)


def test_streams_of_purposes_and_latents() -> None:
    purposes = [noise.PRIOR, noise.POSTERIOR, noise.OBSERVATION, noise.IMPORTANCE, noise.CHOICE]
    assert purposes == [0, 1, 2, 3, 4]
    streams = [noise.stream_of(purpose, latent) for latent in range(3) for purpose in purposes]
    assert streams == [0, 1, 2, 3, 4, 256, 257, 258, 259, 260, 512, 513, 514, 515, 516]


def test_new_seeds_differ_and_any_language_can_hold_them() -> None:
    seeds = {noise.new_seed() for _ in range(100)}
    assert len(seeds) == 100
    assert all(0 <= seed < 2**53 for seed in seeds)
    assert max(seeds) > 2**50
