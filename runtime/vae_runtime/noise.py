"""vnoise-1: seeded standard-normal noise with the same bits on every platform.

A number is addressed by (seed, stream, sample, element) and never depends on how many are drawn at once. Words come
from the counter-based generator Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011);
the normal quantile is an integer table with integer interpolation, so the single floating-point step, a scaling by a
power of two, is exact. docs/noise.md is the specification.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError, InputError, require_integer, require_number

__all__ = [
    "CHOICE",
    "IMPORTANCE",
    "OBSERVATION",
    "POSTERIOR",
    "PRIOR",
    "SPEC",
    "TABLE_SHA256",
    "new_seed",
    "normal",
    "stream_of",
    "table",
    "uniform",
    "words",
]

SPEC = "vnoise-1"
TABLE_SHA256 = "43fd00c422474ae1034c4abb7591abbeca5d0a63f1b591f1ea5b8e25eb66bc3c"

# What a draw is for (specification, section 6): the low byte of its stream.
PRIOR, POSTERIOR, OBSERVATION, IMPORTANCE, CHOICE = range(5)

_MASK32 = 0xFFFFFFFF
_MULTIPLIER_0, _MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85

# Philox blocks (of four words) worked on at once: the seven 64-bit arrays of one chunk stay in a core's L2 cache.
_CHUNK = 8192
# Up to here plain Python integers beat the fixed cost of some hundred numpy calls.
_SMALL = 12
# Where a truncation may lie; below, few different numbers are left, and from 6.34 on it changes nothing.
_NARROWEST, _WIDEST = 0.01, 1e6


def new_seed() -> int:
    """A fresh seed from the operating system, below 2**53 so that any language's number and JSON can hold it."""
    return int.from_bytes(os.urandom(7), "little") >> 3


def stream_of(purpose: int, latent: int = 0) -> int:
    """The stream of a purpose (`PRIOR`, `POSTERIOR`, …) and the number of the latent it is for."""
    return purpose + 256 * latent


def normal(
    seed: int, start: int, n: int, shape: Sequence[int], stream: int = 0, truncation: float | None = None
) -> NDArray[np.float32]:
    """Draw standard-normal noise, vnoise-1.

    Args:
        seed: -2**63 … 2**64 - 1; a negative seed is its two's complement.
        start: global index of the first sample, 0 … 2**64 - 1; indices wrap at 2**64.
        n: number of samples, at least 0.
        shape: shape of one sample, row-major; at most 2**34 elements.
        stream: 0 … 2**32 - 1; see `stream_of`.
        truncation: 0.01 … 1e6: draw from the normal distribution given that no number is beyond ± this instead
            (specification, section 4).

    Returns:
        float32 [n, *shape]; row i is sample `start + i` of the seed, whatever `n` is. At most 6.338 in magnitude.

    Raises:
        InputError: an argument is out of its range.
    """
    if truncation is not None:
        bound = require_number("truncation", truncation, _NARROWEST, _WIDEST)
        nearest = _nearest_tail(math.floor(bound * 2.0**21))
        if nearest:
            return _draw(
                seed, start, n, shape, stream, np.dtype(np.float32),
                lambda word: _normal_of_words(_truncated_words(word, nearest)),
                lambda few: _normal_of_few([_truncated_word(word, nearest) for word in few]),
            )  # fmt: skip
    return _draw(seed, start, n, shape, stream, np.dtype(np.float32), _normal_of_words, _normal_of_few)


def uniform(seed: int, start: int, n: int, shape: Sequence[int], stream: int = 0) -> NDArray[np.float32]:
    """Draw uniform noise in [0, 1), a multiple of 2**-24, from the same words as `normal` (same arguments).

    Returns:
        float32 [n, *shape].
    """
    return _draw(seed, start, n, shape, stream, np.dtype(np.float32), _uniform_of_words, _uniform_of_few)


def words(seed: int, start: int, n: int, shape: Sequence[int], stream: int = 0) -> NDArray[np.uint32]:
    """Draw the Philox words themselves (same arguments as `normal`).

    Returns:
        uint32 [n, *shape].
    """
    return _draw(seed, start, n, shape, stream, np.dtype(np.uint32), lambda word: word, lambda few: few)


def _draw(
    seed: int,
    start: int,
    n: int,
    shape: Sequence[int],
    stream: int,
    dtype: np.dtype[Any],
    of_words: Callable[[NDArray[np.uint64]], NDArray[Any]],
    of_few: Callable[[list[int]], Sequence[float]],
) -> NDArray[Any]:
    seed = require_integer("seed", seed, -(2**63), 2**64 - 1) & (2**64 - 1)
    start = require_integer("start", start, 0, 2**64 - 1)
    n = require_integer("n", n, 0, 2**48)
    stream = require_integer("stream", stream, 0, _MASK32)
    try:
        sizes = tuple(require_integer(f"shape[{axis}]", size, 0, 2**34) for axis, size in enumerate(shape))
    except TypeError:
        raise InputError(f"shape: a sequence of sizes is expected, got {shape!r}") from None
    if len(sizes) > 32:
        raise InputError(f"shape: at most 32 axes are expected, got {len(sizes)}")
    elements = math.prod(sizes)
    if elements > 2**34:
        raise InputError(f"shape: at most 2**34 elements in one sample, got {elements}")
    blocks = -(-elements // 4)
    try:
        out = np.empty((n, elements), dtype)
    except (MemoryError, ValueError) as error:
        raise InputError(
            f"n: {n} samples of {elements} elements do not fit in memory; draw fewer at a time and move `start` on"
        ) from error
    if not out.size:
        return out.reshape(n, *sizes)
    if n * blocks <= _SMALL:
        _fill_small(out, seed, start, stream, blocks, of_few)
    else:
        _fill(out, seed, start, stream, blocks, of_words)
    return out.reshape(n, *sizes)


def _round_keys(seed: int) -> list[tuple[int, int]]:
    low, high = seed & _MASK32, seed >> 32
    return [((low + i * _WEYL_0) & _MASK32, (high + i * _WEYL_1) & _MASK32) for i in range(10)]


def _fill_small(
    out: NDArray[Any], seed: int, start: int, stream: int, blocks: int,
    of_few: Callable[[list[int]], Sequence[float]],
) -> None:  # fmt: skip
    keys = _round_keys(seed)
    multiplier_0, multiplier_1, mask = _MULTIPLIER_0, _MULTIPLIER_1, _MASK32
    elements = out.shape[1]
    for row in range(out.shape[0]):
        sample = (start + row) & (2**64 - 1)
        few: list[int] = []
        for block in range(blocks):
            a, b, c, d = block, stream, sample & mask, sample >> 32
            for key_0, key_1 in keys:
                p, q = a * multiplier_0, c * multiplier_1
                a, b, c, d = (q >> 32) ^ b ^ key_0, q & mask, (p >> 32) ^ d ^ key_1, p & mask
            few += (a, b, c, d)
        out[row] = of_few(few[:elements])


def _fill(
    out: NDArray[Any], seed: int, start: int, stream: int, blocks: int,
    of_words: Callable[[NDArray[np.uint64]], NDArray[Any]],
) -> None:  # fmt: skip
    keys = _round_keys(seed)
    n = out.shape[0]
    columns = min(blocks, _CHUNK)
    rows = max(1, _CHUNK // columns)
    for row in range(0, n, rows):
        sample = np.uint64(start) + np.arange(row, min(row + rows, n), dtype=np.uint64)[:, None]
        for column in range(0, blocks, columns):
            block = np.arange(column, min(column + columns, blocks), dtype=np.uint64)[None, :]
            four = _philox(block, stream, sample, keys)
            target = out[row : row + rows, 4 * column : 4 * (column + columns)]
            for word_index, word in enumerate(four):
                part = target[:, word_index::4]
                part[...] = of_words(word)[:, : part.shape[1]]


def _philox(
    block: NDArray[np.uint64], stream: int, sample: NDArray[np.uint64], keys: list[tuple[int, int]]
) -> tuple[NDArray[np.uint64], ...]:
    """The four words of every (sample, block), each a uint64 array [rows, columns] of 32-bit values."""
    mask, half = np.uint64(_MASK32), np.uint64(32)
    multiplier_0, multiplier_1 = np.uint64(_MULTIPLIER_0), np.uint64(_MULTIPLIER_1)
    a: Any = block
    b: Any = np.uint64(stream)
    c: Any = sample & mask
    d: Any = sample >> half
    # The first two rounds work on a row and a column; from then on every array is full, and is reused.
    for key_0, key_1 in keys[:2]:
        p, q = a * multiplier_0, c * multiplier_1
        a, b, c, d = (q >> half) ^ b ^ np.uint64(key_0), q & mask, (p >> half) ^ d ^ np.uint64(key_1), p & mask
    shape = np.broadcast_shapes(sample.shape, block.shape)
    a, b, c, d = (np.array(np.broadcast_to(word, shape), order="C") for word in (a, b, c, d))
    p, q = np.empty(shape, np.uint64), np.empty(shape, np.uint64)
    for key_0, key_1 in keys[2:]:
        np.multiply(a, multiplier_0, out=p)
        np.multiply(c, multiplier_1, out=q)
        np.right_shift(q, half, out=a)
        np.bitwise_xor(a, b, out=a)
        np.bitwise_xor(a, np.uint64(key_0), out=a)
        np.bitwise_and(q, mask, out=b)
        np.right_shift(p, half, out=c)
        np.bitwise_xor(c, d, out=c)
        np.bitwise_xor(c, np.uint64(key_1), out=c)
        np.bitwise_and(p, mask, out=d)
    return a, b, c, d


def _uniform_of_few(few: list[int]) -> list[float]:
    return [(word >> 8) * 2.0**-24 for word in few]


def _uniform_of_words(word: NDArray[np.uint64]) -> NDArray[np.float32]:
    return (word >> np.uint64(8)).astype(np.float32) * np.float32(2.0**-24)


def table() -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The quantile table Q and its differences D, int32 [32768] each (specification, section 3).

    Raises:
        BundleError: the package's table is damaged.
    """
    return _table()[:2]


@functools.cache
def _table() -> tuple[NDArray[np.int32], NDArray[np.int32], memoryview]:
    """The quantile table Q, its differences D, and both as one memoryview (fast to index from plain Python)."""
    path = os.path.join(os.path.dirname(__file__), "vnoise1_table.bin")
    with open(path, "rb") as file:
        content = file.read()
    found = hashlib.sha256(content).hexdigest()
    if found != TABLE_SHA256:
        raise BundleError(f"{path}: sha256 is {found}, {SPEC} needs {TABLE_SHA256}; install vae-runtime again")
    both: Any = np.frombuffer(content, "<i4").astype(np.int32)
    both.setflags(write=False)
    return both[:32768], both[32768:], memoryview(both)


def _fixed_of_word(word: int) -> int:
    """The normal number of one word, as an integer in units of 2**-21."""
    return _fixed(word, _table()[2])


def _fixed(word: int, both: memoryview) -> int:
    m = word & 0x7FFFFFFF
    level = (m < 1 << 25) + (m < 1 << 19) + (m < 1 << 13)
    t = m << 6 * level
    i = (t >> 18) + 8192 * level
    y: int = both[i] - ((both[i + 32768] * ((t >> 3) & 0x7FFF)) >> 15)
    return -y if word >> 31 else y


@functools.lru_cache(maxsize=64)
def _nearest_tail(bound: int) -> int:
    """The smallest tail distance m of which the normal number is at most `bound` (≥ 1) units of 2**-21."""
    low, high = 0, 2**31 - 1
    while low < high:
        middle = (low + high) // 2
        if _fixed_of_word(middle) <= bound:
            high = middle
        else:
            low = middle + 1
    return low


def _truncated_word(word: int, nearest: int) -> int:
    """The word with its tail distance moved from 0 … 2**31 - 1 to `nearest` … 2**31 - 1, evenly."""
    return word & 0x80000000 | nearest + ((word & 0x7FFFFFFF) * (2**31 - nearest) >> 31)


def _truncated_words(word: NDArray[np.uint64], nearest: int) -> NDArray[np.uint64]:
    # Below 2**62: no product wraps.
    moved = (word & np.uint64(0x7FFFFFFF)) * np.uint64(2**31 - nearest) >> np.uint64(31)
    return (word & np.uint64(0x80000000)) | (moved + np.uint64(nearest))


def _normal_of_few(few: list[int]) -> list[float]:
    both = _table()[2]
    return [_fixed(word, both) * 2.0**-21 for word in few]


def _normal_of_words(word: NDArray[np.uint64]) -> NDArray[np.float32]:
    quantile, difference, _ = _table()
    w = word.astype(np.uint32)
    m = (w & np.uint32(0x7FFFFFFF)).view(np.int32)
    index, fraction = m >> 18, (m >> 3) & 0x7FFF
    # One word in 64 lies in a tail, where the table is finer: mend those few rather than shift all by a variable.
    tail = np.nonzero(m < 1 << 25)
    if tail[0].size:
        far = m[tail]
        level = 1 + (far < 1 << 19).astype(np.int32) + (far < 1 << 13)
        t = far << 6 * level
        index[tail] = (t >> 18) + 8192 * level
        fraction[tail] = (t >> 3) & 0x7FFF
    y = difference.take(index)
    y *= fraction
    y >>= 15
    np.subtract(quantile.take(index), y, out=y)
    sign = w.view(np.int32) >> 31  # 0 or -1
    y ^= sign
    y -= sign
    return y.astype(np.float32) * np.float32(2.0**-21)
