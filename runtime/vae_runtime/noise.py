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
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import native
from .errors import BundleError, InputError, counted, require_integer, require_number

if TYPE_CHECKING:
    from numpy.typing import NDArray

SPEC = "vnoise-1"
TABLE_SHA256 = "43fd00c422474ae1034c4abb7591abbeca5d0a63f1b591f1ea5b8e25eb66bc3c"

# What a draw is for (specification, section 6): the low byte of its stream.
PRIOR, POSTERIOR, OBSERVATION, IMPORTANCE, CHOICE = range(5)

_MASK32 = 0xFFFFFFFF
_MULTIPLIER_0, _MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85

# Philox blocks (of four words) worked on at once: the seven 64-bit arrays of one chunk stay in a core's L2 cache.
_CHUNK = 8192
# Up to here rounds on Python's long integers beat the fixed cost of some hundred numpy calls.
_SMALL = 192
# Numbers up to which plain Python beats numpy's fixed cost at turning words into them.
_FEW = 64
# Where a truncation may lie; below, few different numbers are left, and from 6.34 on it changes nothing.
_NARROWEST, _WIDEST = 0.01, 1e6


def new_seed() -> int:
    """A fresh seed from the operating system, below 2**53 so that any language's number and JSON can hold it."""
    return int.from_bytes(os.urandom(7), "little") >> 3


def stream_of(purpose: int, latent: int = 0) -> int:
    """The stream of a purpose (`PRIOR`, `POSTERIOR`, …) and the number of the latent it is for."""
    return purpose + 256 * latent


def advance(start: int, by: int) -> int:
    """The index `by` samples after `start`; indices wrap at 2**64."""
    # An argument out of its range is left for the draw to refuse.
    return (start + by) % 2**64 if by else start


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
        nearest = nearest_tail(bound)
        if nearest:
            truncated = _Kind(
                "normal", np.dtype(np.float32),
                lambda words, out: _normal_of_words(_truncated_words(words, nearest), out),
                lambda few: _normal_of_few([_truncated_word(word, nearest) for word in few]),
                (bound,),
            )  # fmt: skip
            return _draw(seed, start, n, shape, stream, truncated)
    return _draw(seed, start, n, shape, stream, _NORMAL)


def uniform(seed: int, start: int, n: int, shape: Sequence[int], stream: int = 0) -> NDArray[np.float32]:
    """Draw uniform noise in [0, 1), a multiple of 2**-24, from the same words as `normal` (same arguments).

    Returns:
        float32 [n, *shape].
    """
    return _draw(seed, start, n, shape, stream, _UNIFORM)


def words(seed: int, start: int, n: int, shape: Sequence[int], stream: int = 0) -> NDArray[np.uint32]:
    """Draw the Philox words themselves (same arguments as `normal`).

    Returns:
        uint32 [n, *shape].
    """
    return _draw(seed, start, n, shape, stream, _WORDS)


class _Kind(NamedTuple):
    """What is made of words: its name and the further arguments in the native core, and how Python makes it."""

    name: str
    dtype: np.dtype[Any]
    of_words: Callable[[NDArray[np.uint32], NDArray[Any]], None]
    of_few: Callable[[list[int]], Sequence[float]]
    further: tuple[float, ...] = ()


def address(
    seed: int, start: int, n: int, shape: Sequence[int], stream: int
) -> tuple[int, int, int, tuple[int, ...], int]:
    """Check the arguments of a draw, and return them as plain integers, the seed as 0 … 2**64 - 1.

    Raises:
        InputError: an argument is out of its range.
    """
    seed = require_integer("seed", seed, -(2**63), 2**64 - 1) & (2**64 - 1)
    start = require_integer("start", start, 0, 2**64 - 1)
    n = require_integer("n", n, 0, 2**48)
    stream = require_integer("stream", stream, 0, _MASK32)
    try:
        sizes = tuple(require_integer(f"shape[{axis}]", size, 0, 2**34) for axis, size in enumerate(shape))
    except TypeError:
        raise InputError(f"shape: expected a sequence of sizes, got {shape!r}") from None
    if len(sizes) > 32:
        raise InputError(f"shape: expected at most 32 axes, got {len(sizes)}")
    # Axes of no element beside huge ones count too: numpy has no array of such a shape.
    if (largest := math.prod(filter(None, sizes))) > 2**34:
        raise InputError(f"shape: expected at most 2**34 elements in one sample, got {largest}")
    return seed, start, n, sizes, stream


def too_large(n: int, elements: int) -> InputError:
    """The error of a draw for which the memory does not suffice."""
    return InputError(
        f"n: no memory for {counted(n, 'sample')} of {counted(elements, 'element')}; draw fewer at a time and move "
        "`start` on"
    )


def _draw(seed: int, start: int, n: int, shape: Sequence[int], stream: int, kind: _Kind) -> NDArray[Any]:
    seed, start, n, sizes, stream = address(seed, start, n, shape, stream)
    elements = math.prod(sizes)
    blocks = -(-elements // 4)
    try:
        out = np.empty((n, elements), kind.dtype)
    except (MemoryError, ValueError) as error:
        raise too_large(n, elements) from error
    if not out.size:
        return out.reshape(n, *sizes)
    core = native_core()
    if core is not None:
        core.draw(kind.name, seed, start, stream, out, *kind.further)
    elif n * blocks <= _SMALL:
        _fill_small(out, seed, start, stream, blocks, kind.of_words, kind.of_few)
    else:
        _fill(out, seed, start, stream, blocks, kind.of_words)
    return out.reshape(n, *sizes)


def round_keys(seed: int) -> list[tuple[int, int]]:
    """The two keys of each of Philox's ten rounds, for a seed from 0 to 2**64 - 1."""
    low, high = seed & _MASK32, seed >> 32
    return [((low + i * _WEYL_0) & _MASK32, (high + i * _WEYL_1) & _MASK32) for i in range(10)]


@functools.lru_cache(maxsize=64)
def _lanes(rows: int, blocks: int) -> tuple[int, int, int, int]:
    """Long integers of a lane of 64 bits for each block of each row: 1 in each, in each of one row, 2**32 - 1 in each,
    and the block's number."""
    row = sum(1 << 64 * block for block in range(blocks))
    every = sum(row << 64 * blocks * index for index in range(rows))
    numbers = sum(block << 64 * block for block in range(blocks))
    return every, row, every * _MASK32, sum(numbers << 64 * blocks * index for index in range(rows))


def _fill_small(
    out: NDArray[Any], seed: int, start: int, stream: int, blocks: int,
    of_words: Callable[[NDArray[np.uint32], NDArray[Any]], None], of_few: Callable[[list[int]], Sequence[float]],
) -> None:  # fmt: skip
    """All blocks at once, each in 64 bits of a long integer: a product of 32 bits by 32 stays within its own."""
    rows, elements = out.shape
    every, one_row, mask, a = _lanes(rows, blocks)
    if rows == 1:
        c, d = every * (start & _MASK32), every * (start >> 32)
    else:
        samples = [(start + row) & (2**64 - 1) for row in range(rows)]
        c = sum(one_row * (sample & _MASK32) << 64 * blocks * row for row, sample in enumerate(samples))
        d = sum(one_row * (sample >> 32) << 64 * blocks * row for row, sample in enumerate(samples))
    b = every * stream
    multiplier_0, multiplier_1 = _MULTIPLIER_0, _MULTIPLIER_1
    key_0, key_1 = seed & _MASK32, seed >> 32
    for _ in range(10):
        p, q = a * multiplier_0, c * multiplier_1
        a, b = (q >> 32 & mask) ^ b ^ every * key_0, q & mask
        c, d = (p >> 32 & mask) ^ d ^ every * key_1, p & mask
        key_0, key_1 = key_0 + _WEYL_0 & _MASK32, key_1 + _WEYL_1 & _MASK32
    size = 8 * rows * blocks
    four = b"".join([word.to_bytes(size, "little") for word in (a, b, c, d)])
    if rows * elements <= _FEW:
        in_order = np.frombuffer(four, "<u8").reshape(4, rows, blocks).transpose(1, 2, 0).reshape(rows, -1).tolist()
        for row, few in enumerate(in_order):
            out[row] = of_few(few[:elements])
        return
    words = np.frombuffer(four, "<u8").reshape(4, rows, blocks).transpose(1, 2, 0).astype(np.uint32, order="C")
    of_words(words.reshape(rows, 4 * blocks), out)


def _fill(
    out: NDArray[Any], seed: int, start: int, stream: int, blocks: int,
    of_words: Callable[[NDArray[np.uint32], NDArray[Any]], None],
) -> None:  # fmt: skip
    keys = round_keys(seed)
    n = out.shape[0]
    columns = min(blocks, _CHUNK)
    rows = max(1, _CHUNK // columns)
    for row in range(0, n, rows):
        samples = np.uint64(start) + np.arange(row, min(row + rows, n), dtype=np.uint64)[:, None]
        for column in range(0, blocks, columns):
            block = np.arange(column, min(column + columns, blocks), dtype=np.uint64)[None, :]
            words = philox(block, stream, samples, keys)
            of_words(words, out[row : row + rows, 4 * column : 4 * (column + columns)])


def philox(block: Any, stream: int, sample: Any, keys: list[tuple[int, int]], arrays: Any = np) -> Any:
    """The words of every sample and block by Philox4x32-10 (specification, section 1).

    Args:
        block: uint64 [1, blocks], their numbers.
        stream: 0 … 2**32 - 1.
        sample: uint64 [samples, 1], their indices.
        keys: of `round_keys`.
        arrays: the module whose arrays these are, numpy or one with its functions.

    Returns:
        uint32 [samples, 4 · blocks].
    """
    mask, half = np.uint64(_MASK32), np.uint64(32)
    multipliers = arrays.array([[_MULTIPLIER_0], [_MULTIPLIER_1]], np.uint64)
    shape = len(sample), block.shape[1]
    # The counter's words as the rows of two arrays, (a, c) and (b, d), so that one call of numpy works on two words.
    counter = arrays.empty((2, 2, *shape), np.uint64)
    counter[0, 0], counter[0, 1] = block, sample & mask
    counter[1, 0], counter[1, 1] = stream, sample >> half
    factors, others = counter.reshape(2, 2, -1)
    products = arrays.empty_like(factors)
    swapped = products[::-1]
    for key in arrays.array(keys, np.uint64)[:, :, None]:
        arrays.multiply(factors, multipliers, out=products)
        arrays.right_shift(swapped, half, out=factors)
        arrays.bitwise_xor(factors, others, out=factors)
        arrays.bitwise_xor(factors, key, out=factors)
        arrays.bitwise_and(swapped, mask, out=others)
    words = arrays.empty((factors.shape[1], 4), np.uint32)
    for place, word in enumerate((factors[0], others[0], factors[1], others[1])):
        words[:, place] = word
    return words.reshape(shape[0], 4 * shape[1])


def _words_of_words(words: NDArray[np.uint32], out: NDArray[np.uint32]) -> None:
    out[...] = words[:, : out.shape[1]]


def _uniform_of_few(few: list[int]) -> list[float]:
    return [(word >> 8) * 2.0**-24 for word in few]


def _uniform_of_words(words: NDArray[np.uint32], out: NDArray[np.float32]) -> None:
    numbers = (words >> np.uint32(8)).astype(np.float32)
    np.multiply(numbers[:, : out.shape[1]], np.float32(2.0**-24), out=out)


@functools.cache
def native_core() -> native.Core | None:
    """The native core, looked for once."""
    return native.load(TABLE_SHA256)


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
    digest = hashlib.sha256(content).hexdigest()
    if digest != TABLE_SHA256:
        raise BundleError(f"{path}: expected sha256 {TABLE_SHA256} for {SPEC}, got {digest}; install vae-runtime again")
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


def nearest_tail(truncation: float) -> int:
    """The nearest tail distance m0 of a truncation (specification, section 4), 0 where it changes nothing.

    Raises:
        InputError: the truncation is out of its range.
    """
    return _nearest_tail(math.floor(require_number("truncation", truncation, _NARROWEST, _WIDEST) * 2.0**21))


def _truncated_word(word: int, nearest: int) -> int:
    """The word with its tail distance moved from 0 … 2**31 - 1 to `nearest` … 2**31 - 1, evenly."""
    return word & 0x80000000 | nearest + ((word & 0x7FFFFFFF) * (2**31 - nearest) >> 31)


def _truncated_words(words: NDArray[np.uint32], nearest: int) -> NDArray[np.uint32]:
    # Below 2**62: no product wraps.
    moved = (words & np.uint32(0x7FFFFFFF)).astype(np.uint64)
    moved *= np.uint64(2**31 - nearest)
    moved >>= np.uint64(31)
    moved += np.uint64(nearest)
    return (words & np.uint32(0x80000000)) | moved.astype(np.uint32)


def _normal_of_few(few: list[int]) -> list[float]:
    both = _table()[2]
    normals = []
    for word in few:
        m = word & 0x7FFFFFFF
        if m < 1 << 25:
            normals.append(_fixed(word, both) * 2.0**-21)
            continue
        # `_fixed` of the level 0, without a call.
        i = m >> 18
        y = both[i] - (both[i + 32768] * (m >> 3 & 0x7FFF) >> 15)
        normals.append((-y if word >> 31 else y) * 2.0**-21)
    return normals


def _normal_of_words(words: NDArray[np.uint32], out: NDArray[np.float32]) -> None:
    """Normal numbers of words [rows, at least columns] into `out` [rows, columns]."""
    quantile, difference, _ = _table()
    signed = words.view(np.int32)
    tails = signed & np.int32(0x7FFFFFFF)
    index = tails >> 18
    # One word in 64 lies in a tail, where the table is finer: correct those few rather than shift all by a variable.
    rare = np.flatnonzero(index < 1 << 7)
    fraction = tails >> 3
    fraction &= 0x7FFF
    if rare.size:
        far = tails.reshape(-1)[rare]
        level = 1 + (far < 1 << 19).astype(np.int32) + (far < 1 << 13)
        far <<= 6 * level
        index.reshape(-1)[rare] = (far >> 18) + 8192 * level
        fraction.reshape(-1)[rare] = (far >> 3) & 0x7FFF
    # Every index is within the table: clipping only spares a check.
    y = difference.take(index, out=tails, mode="clip")
    y *= fraction
    y >>= 15
    np.subtract(quantile.take(index, out=fraction, mode="clip"), y, out=y)
    sign = np.right_shift(signed, 31, out=index)  # 0 or -1
    y ^= sign
    y -= sign
    numbers = y.astype(np.float32)
    np.multiply(numbers[:, : out.shape[1]], np.float32(2.0**-21), out=out)


_WORDS = _Kind("words", np.dtype(np.uint32), _words_of_words, lambda few: few)
_UNIFORM = _Kind("uniform", np.dtype(np.float32), _uniform_of_words, _uniform_of_few)
_NORMAL = _Kind("normal", np.dtype(np.float32), _normal_of_words, _normal_of_few, (0.0,))
