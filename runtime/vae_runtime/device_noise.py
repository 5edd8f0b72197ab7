"""vnoise-1 drawn on a GPU by CuPy, where it is installed: the same bits as `noise`, without a copy from the host."""

from __future__ import annotations

import functools
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import noise
from .devices import CUDA
from .errors import error_line, require_number
from .prior import MAX_TEMPERATURE, draw_normal

if TYPE_CHECKING:
    from .devices import Device
    from .prior import Draw

# Philox blocks (of four words) worked on at once: some 200 bytes of the device's memory each.
_CHUNK = 2**20
# Fewer numbers are drawn on the host. A draw on a device starts some eighty kernels, whose start takes about half a
# millisecond together, in which the host draws this many. `make cuda` measures both.
MIN_NUMBERS = 2**15
# The numbers that are drawn by both before a device is trusted.
_CHECKED = 2**12


class ArrayNoise:
    """Noise by the array functions of a module: numpy's, or CuPy's for the device that is current there."""

    def __init__(self, arrays: Any) -> None:
        """Take the module; the table of the noise becomes an array of it."""
        self._arrays = arrays
        self._quantile, self._difference = (arrays.asarray(part) for part in noise.table())

    def draw(
        self, seed: int, start: int, n: int, shape: Sequence[int], stream: int, temperature: float = 1.0,
        truncation: float | None = None,
    ) -> Any:  # fmt: skip
        """Draw what `prior.draw_normal` draws for the same arguments, which it documents, bit for bit.

        Returns:
            float32 [n, *shape], an array of the module.

        Raises:
            InputError: an argument is out of its range.
        """
        temperature = require_number("temperature", temperature, 0, MAX_TEMPERATURE)
        seed, start, n, sizes, stream = noise.address(seed, start, n, shape, stream)
        nearest = 0 if truncation is None else noise.nearest_tail(truncation)
        elements, keys = math.prod(sizes), noise.round_keys(seed)
        # No module has an array of more.
        if n * elements > 2**60:
            raise noise.too_large(n, elements)
        try:
            out = self._drawn(keys, start, n, elements, stream, nearest)
        except MemoryError as error:
            raise noise.too_large(n, elements) from error
        if temperature != 1:
            out *= np.float32(temperature)
        return out.reshape(n, *sizes)

    def _drawn(self, keys: list[tuple[int, int]], start: int, n: int, elements: int, stream: int, nearest: int) -> Any:
        """The numbers of checked arguments, float32 [n, elements]."""
        arrays = self._arrays
        out = arrays.empty((n, elements), np.float32)
        for rows, columns in _chunks(n, -(-elements // 4)):
            # The indices of samples wrap.
            samples = arrays.arange(rows.start, rows.stop, dtype=np.uint64)[:, None] + np.uint64(start)
            blocks = arrays.arange(columns.start, columns.stop, dtype=np.uint64)[None, :]
            part = out[rows, 4 * columns.start : 4 * columns.stop]
            words = noise.philox(blocks, stream, samples, keys, arrays)[:, : part.shape[1]]
            part[...] = self._normal_of_words(words, nearest)
        return out

    def _normal_of_words(self, words: Any, nearest: int) -> Any:
        """The numbers of words, uint32 to float32 of the same shape; `nearest` is the nearest tail distance."""
        arrays = self._arrays
        tails = words & np.uint32(0x7FFFFFFF)
        if nearest:
            # Below 2**62: no product wraps.
            moved = tails.astype(np.uint64) * np.uint64(2**31 - nearest)
            tails = ((moved >> np.uint64(31)) + np.uint64(nearest)).astype(np.uint32)
        tails = tails.view(np.int32)
        level = (tails < 1 << 25).astype(np.int32)
        level += tails < 1 << 19
        level += tails < 1 << 13
        # Below 2**31 still: a level has six zeros more at the top.
        tails <<= 6 * level
        index = (tails >> 18) + 8192 * level
        fixed = self._quantile[index] - ((self._difference[index] * ((tails >> 3) & 0x7FFF)) >> 15)
        return arrays.where(words >> np.uint32(31) == 1, -fixed, fixed).astype(np.float32) * np.float32(2.0**-21)


def _chunks(rows: int, blocks: int) -> Iterator[tuple[slice, slice]]:
    """Divide samples and their blocks."""
    width = max(1, min(blocks, _CHUNK))
    height = max(1, _CHUNK // width)
    for row in range(0, rows, height):
        for column in range(0, blocks, width):
            yield slice(row, min(row + height, rows)), slice(column, min(column + width, blocks))


def agrees(draw: Draw, to_numpy: Callable[[Any], Any]) -> bool:
    """Whether a way to draw gives the bits of `prior.draw_normal`, also where indices wrap and noise is truncated."""
    for truncation in (None, 2.0):
        arguments = (-1, 2**64 - 3, 8, (_CHECKED // 8,), 2**32 - 1, 0.7, truncation)
        if to_numpy(draw(*arguments)).tobytes() != draw_normal(*arguments).tobytes():
            return False
    return True


def on_device(device: Device) -> Draw:
    """Return how normal noise is drawn for graphs on a device: many numbers at once on it, where that can be.

    That takes CUDA, CuPy, and the variable VAE_RUNTIME_CUPY not being 0. CuPy is imported and tried when many numbers
    are first drawn. One that fails, or that gives other bits, is warned of in the log (logger `vae_runtime`) and not
    used. Numbers are drawn on the stream that the device's option `user_compute_stream` names, on which the graph runs
    too; without one they are finished when the draw returns.

    Returns:
        A function as `prior.draw_normal`, whose array is numpy's or one with `__cuda_array_interface__`.
    """
    if device.provider != CUDA or os.environ.get("VAE_RUNTIME_CUPY") == "0":
        return draw_normal
    return _where_it_pays(functools.cache(functools.partial(_tried, device)))


def _where_it_pays(many: Callable[[], Draw]) -> Draw:
    """Draw few numbers on the host, and others by what `many` gives."""

    def draw(
        seed: int, start: int, n: int, shape: Sequence[int], stream: int, temperature: float, truncation: float | None
    ) -> Any:
        chosen = draw_normal if n * math.prod(shape) < MIN_NUMBERS else many()
        return chosen(seed, start, n, shape, stream, temperature, truncation)

    return draw


def _tried(device: Device) -> Draw:
    """The draw by CuPy if it is installed and gives the bits of the host, else the host's."""
    try:
        import cupy
    except ImportError:
        return draw_normal

    def finished(array: Any) -> Any:
        # On a stream of the caller's, numbers are drawn when it gets there.
        array.device.synchronize()
        return cupy.asnumpy(array)

    try:
        draw = _by_cupy(cupy, int(device.options["device_id"]), int(device.options.get("user_compute_stream", 0)))
        if not agrees(draw, finished):
            raise ValueError("expected the bits of vnoise-1, got others")
    except Exception as error:  # whatever a CuPy that does not fit the driver raises
        logging.getLogger("vae_runtime").warning(
            "device %s: CuPy %s: %s; noise is drawn on the host; install the CuPy of this CUDA, or set "
            "VAE_RUNTIME_CUPY=0",
            device, cupy.__version__, error_line(error),
        )  # fmt: skip
        return draw_normal
    return draw


def _by_cupy(cupy: Any, number: int, stream: int) -> Draw:
    """Draw on the device of a number, on the stream at an address; 0 takes CuPy's own, and waits for it."""
    with cupy.cuda.Device(number):
        source = ArrayNoise(cupy)
        queue = cupy.cuda.ExternalStream(stream, number) if stream else cupy.cuda.Stream(non_blocking=True)

    def draw(*arguments: Any) -> Any:
        with cupy.cuda.Device(number), queue:
            drawn = source.draw(*arguments)
            if not stream:
                queue.synchronize()
            return drawn

    return draw
