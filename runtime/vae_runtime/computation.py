"""Compute outputs of one graph: checked arrays in, arrays out, in batches; or a caller's array by a shorter way."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from .devices import CPU
from .errors import BundleError, InputError, counted, require_integer
from .inputs import Feed, Feeds, latent_rows, rows_of
from .ranges import all_finite, all_within, finite, within
from .session import Call, Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .devices import Device
    from .manifest import Latent, Manifest, TensorSpec

    Array = NDArray[np.float32]
    RowsFeed = Callable[[int, int], Feeds]
    # Turns the outputs of a batch that begins at this row into results.
    Finish = Callable[[int, list[NDArray[Any]]], list[NDArray[Any]]]

_ndarray, _FLOAT32 = np.ndarray, np.dtype(np.float32)
# Enough for most of a CPU's throughput, little enough to stay in its caches.
BATCH_SIZE = 64
# Where rows are small, more of them stay there as well: up to this many, of this many bytes; and of more bytes where
# rows are small on all of their way through the graph.
_MAX_BATCH, _BATCH_BYTES, _DENSE_BYTES = 512, 2**17, 2**21
# Bytes of an input or output of a bound call at most: calls are kept with their arrays, and copying takes time. Results
# that go into a buffer would have to be bound there, which takes longer.
_MAX_BYTES, _MAX_BYTES_INTO = 2**16, 2**18
# Bytes of results in memory of ONNX Runtime's own at most: it keeps that for later calls, which spares them the faults
# of new pages.
_MAX_KEPT = 2**22
# Numbers of rows for which bound calls are kept.
_MAX_COUNTS = 16
# Stands for bound calls where the rows are too large for them.
_AT_ONCE: list[Any] = []


class Computation:
    """Computes some outputs of one component, in batches. May be shared by threads.

    Where few rows go through a graph with one input, a call with arrays that are bound once spares a third of the
    time: ONNX Runtime's own wrapper, and new arrays. Calls that no thread is using are kept by their number of rows.
    For more rows, ONNX Runtime reads the array itself, and allocates the results in memory that it keeps.
    """

    def __init__(
        self, manifest: Manifest, component: str, outputs: tuple[str, ...] | None, load: Callable[[], Session],
        device: Device, max_seconds: float | None,
    ) -> None:  # fmt: skip
        """Prepare to compute these outputs of a component, or all, in the session that `load` gives."""
        tensors = {tensor.name: tensor for tensor in manifest.outputs(component)}
        self.outputs = tuple(tensors) if outputs is None else outputs
        """The names of the outputs."""
        self._load = load
        self._results = results = [tensors[name] for name in self.outputs]
        self._feed, *others = inputs = manifest.inputs(component)
        self._in_place = device.provider == CPU and not any(tensor.dynamic for tensor in results)
        self._input = self._feed.name
        # Checks of one input, which is the observation or the latent: of arrays that are bound, and of others.
        bounds = manifest.observation.range
        self._check = functools.partial(within, bounds=bounds) if component == "encoder" else finite
        self._is_sound = functools.partial(all_within, bounds=bounds) if component == "encoder" else all_finite
        self._free: dict[int, list[Call]] = _Pool()
        # The same lists by the shape of the input, where that is float32.
        self._direct: dict[tuple[int, ...], list[Call]] = {}
        self.max_rows = 0
        """The largest number of rows of a bound call."""
        self._max_into = self._max_at_once = 0
        self._batch_size = self._dense_size = BATCH_SIZE
        if self._in_place and not self._feed.dynamic:
            sizes = [math.prod(each.shape) * np.dtype(each.dtype).itemsize for each in (*results, *inputs)]
            row, kept = max(1, *sizes), max(1, sum(sizes[: len(results)]))
            self._batch_size = max(BATCH_SIZE, min(_MAX_BATCH, _BATCH_BYTES // row))
            self._dense_size = max(BATCH_SIZE, min(_MAX_BATCH, _DENSE_BYTES // row))
            # Calls of these ways go without a timer.
            if not others and max_seconds is None:
                batch = 1 if component in manifest.batch_of_one else _MAX_BATCH
                self.max_rows, self._max_into = min(batch, _MAX_BYTES // row), min(batch, _MAX_BYTES_INTO // row)
                if batch > 1 and device.max_memory is None:
                    self._max_at_once = min(batch, _MAX_KEPT // kept)

    @functools.cached_property
    def _session(self) -> Session:
        return self._load()

    @functools.cached_property
    def batch_size(self) -> int:
        """How many rows to compute at once where nobody says it."""
        is_dense = self._dense_size > self._batch_size and self._session.is_dense
        return self._dense_size if is_dense else self._batch_size

    @functools.cached_property
    def max_direct(self) -> int:
        """The largest number of rows that `direct` takes."""
        return max(self.max_rows, min(self._max_at_once, self.batch_size))

    def fixed_shape(self, output: str) -> tuple[int, ...]:
        """The shape of one row of an output.

        Raises:
            InputError: the manifest leaves sizes of it open.
        """
        (tensor,) = [tensor for tensor in self._results if tensor.name == output]
        if tensor.dynamic:
            raise InputError(
                f"batch_size: on_device decodes {output}, whose sizes are open, all at once and does not take it; "
                "leave it out"
            )
        return tensor.shape

    def run(
        self, feed: Feed, n: int, batch_size: int | None = None, out: Array | None = None,
        finish: Finish | None = None, finished: TensorSpec | None = None,
    ) -> list[NDArray[Any]]:  # fmt: skip
        """Compute the outputs for `n` rows.

        Args:
            feed: the graph's inputs in the manifest's dtypes, or a function that gives them for any range of rows.
            n: how many rows.
            batch_size: how many to compute at once; None lets this method choose.
            out: float32 [n, ...]: takes the first result, which is the decoder's mean or made by `finish`.
            finish: turns the outputs of each batch into results; it takes the batch's first row and the outputs.
            finished: what `finish` makes, where that has not the shape of the first output.

        Returns:
            An array [n, ...] for each output or result.

        Raises:
            InputError: `out` or `batch_size` is wrong, or the memory does not suffice.
            VaeError: ONNX Runtime failed.
        """
        if out is not None:
            _require_buffer(out, n, finished or self._results[0])
        # Whoever states one batch for a buffer of their own asks for many: `generate`.
        most = self.max_rows if out is None else self._max_into
        if n > most or (batch_size is not None and (out is None or batch_size != n)):
            size = self.batch_size if batch_size is None else batch_size
            if batch_size is None and out is None and n <= self.max_direct:
                array = (feed if isinstance(feed, dict) else feed(0, n))[self._input]
                results = self._session.run_at_once(self.outputs, self._input, np.ascontiguousarray(array))
                return results if finish is None else finish(0, results)
            rows = rows_of(feed, n) if isinstance(feed, dict) else feed
            if self._in_place and finish is None:
                return self._run_in_place(rows, n, size, out)
            return self._run_batches(rows, n, size, out, finish)
        free = self._free[n]
        try:
            call = free.pop()
        except IndexError:
            call = self.bound(n)
        call.feed[...] = (feed if isinstance(feed, dict) else feed(0, n))[self._input]
        if out is not None and finish is None:
            call.compute_into(out)
            free.append(call)
            return [out]
        results = call.compute()
        free.append(call)
        if finish is not None:
            results = finish(0, results)
        if out is not None:
            out[...] = results[0]
            return [out]
        return results

    def direct(self, value: Any) -> list[NDArray[Any]] | None:
        """Compute the outputs for a caller's array, unchecked, where it is few rows that are right as they stand.

        Returns:
            An array [n, ...] for each output; None where the array is to be checked and go through `run`.

        Raises:
            VaeError: ONNX Runtime failed.
        """
        free = self._direct.get(value.shape) if type(value) is _ndarray and value.dtype is _FLOAT32 else None
        if free is None:
            return self._direct_first(value)
        if free is _AT_ONCE:
            if value.flags.c_contiguous and self._is_sound(value):
                return self._session.run_at_once(self.outputs, self._input, value)
            return None
        try:
            call = free.pop()
        except IndexError:
            call = self.bound(len(value))
        call.feed[...] = value
        results = call.compute() if call.is_sound() else None
        free.append(call)
        return results

    def _direct_first(self, value: Any) -> list[NDArray[Any]] | None:
        """As `direct`, for arrays of a shape that is new, or of none that it takes."""
        if not self.fits(value) or (n := len(value)) > self.max_direct:
            return None
        if len(self._direct) >= _MAX_COUNTS:
            self._direct.clear()
        self._direct[value.shape] = self._free[n] if n <= self.max_rows else _AT_ONCE
        return self.direct(value)

    def fits(self, value: Any) -> bool:
        """Whether a caller's value has the form of the input, float32, with at least one row."""
        is_float32 = type(value) is _ndarray and value.dtype is _FLOAT32 and self._feed.dtype == "float32"
        return is_float32 and value.shape[1:] == self._feed.shape and value.size > 0

    def bound(self, n: int, feed: NDArray[Any] | None = None) -> Call:
        """A call for `n` rows, at most `max_rows`, with new arrays but for the input's where it is given."""
        arrays = [(tensor.name, np.empty((n, *tensor.shape), tensor.dtype)) for tensor in (self._feed, *self._results)]
        if feed is not None:
            arrays[0] = self._input, feed
        return Call(self._session, self._check(arrays[0][1]), *arrays)

    def _run_in_place(self, feed: RowsFeed, n: int, batch_size: int, out: Array | None) -> list[NDArray[Any]]:
        """Let the graph write outputs of known shapes into the results themselves."""
        session = self._session
        results = [_empty(n, tensor.shape, tensor.dtype) for tensor in self._results] if out is None else [out]
        for first, last in batches(n, batch_size):
            parts = {name: result[first:last] for name, result in zip(self.outputs, results, strict=True)}
            session.run_into(contiguous(feed(first, last)), parts)
        return results

    def _run_batches(
        self, feed: RowsFeed, n: int, batch_size: int, out: Array | None, finish: Finish | None
    ) -> list[NDArray[Any]]:
        """Copy each batch into results, which are allocated once the first shows the shapes that the manifest leaves
        open."""
        session = self._session
        results: list[NDArray[Any]] = []
        for first, last in batches(n, batch_size):
            parts = session.run(self.outputs, contiguous(feed(first, last)))
            if finish is not None:
                parts = finish(first, parts)
            for part in parts:
                if len(part) != last - first:
                    raise BundleError(
                        f"{session.place}: expected {counted(last - first, 'row')}, the graph gives {len(part)}; "
                        "export the bundle again"
                    )
            if not results:
                if out is None and last == n:
                    return parts
                results = [_empty(n, part.shape[1:], part.dtype) for part in parts] if out is None else [out]
                if results[0].shape[1:] != parts[0].shape[1:]:
                    raise InputError(
                        f"out: expected a float32 array {[n, *parts[0].shape[1:]]}, got {list(results[0].shape)}"
                    )
            for result, part in zip(results, parts, strict=True):
                result[first:last] = part
        return results


class Chain:
    """Computes the decoder's mean from the encoder's mode, for few rows whose latents stay where both graphs find them.

    May be shared by threads.
    """

    def __init__(self, encoder: Computation, decoder: Computation, latent: Latent) -> None:
        self._encoder, self._decoder, self._latent = encoder, decoder, latent
        self._free: dict[tuple[int, ...], list[tuple[Call, Call]]] = {}
        self._is_possible = len(encoder.outputs) == 1 and latent.dtype == "float32"

    def direct(self, x: Any) -> Array | None:
        """Encode and decode a caller's array, unchecked, where it is few rows that are right as they stand.

        Returns:
            float32 [n, ...]; None where the array is to be checked and go another way.

        Raises:
            InputError: the encoder's latents are not finite.
            VaeError: ONNX Runtime failed.
        """
        free = self._free.get(x.shape) if type(x) is _ndarray and x.dtype is _FLOAT32 else None
        if free is None:
            return self._direct_first(x)
        try:
            encode, decode = calls = free.pop()
        except IndexError:
            encode = self._encoder.bound(len(x))
            encode, decode = calls = encode, self._decoder.bound(len(x), encode.results[0])
        encode.feed[...] = x
        result = None
        if encode.is_sound():
            encode.run()
            if not decode.is_sound():
                latent_rows(self._latent, decode.feed)
            result = decode.compute()[0]
        free.append(calls)
        return result

    def _direct_first(self, x: Any) -> Array | None:
        """As `direct`, for arrays of a shape that is new, or of none that a pair of bound calls takes."""
        encoder, decoder = self._encoder, self._decoder
        if not (self._is_possible and encoder.fits(x) and len(x) <= min(encoder.max_direct, decoder.max_direct)):
            return None
        if len(x) > min(encoder.max_rows, decoder.max_rows):
            modes = encoder.direct(x)
            means = None if modes is None else decoder.direct(modes[0])
            return None if means is None else means[0]
        if len(self._free) >= _MAX_COUNTS:
            self._free.clear()
        self._free[x.shape] = []
        return self.direct(x)


class _Pool(dict[int, list[Any]]):
    """Bound calls that no thread is using, by their number of rows."""

    def __missing__(self, n: int) -> list[Any]:
        if len(self) >= _MAX_COUNTS:
            self.clear()
        return self.setdefault(n, [])


def _require_buffer(out: Array, n: int, mean: TensorSpec) -> None:
    """Check a caller's buffer against what is known before the decoder has run."""
    shape = (n, *mean.shape)
    right = isinstance(out, np.ndarray) and out.dtype == np.float32 and (out.shape == shape or mean.dynamic)
    if not (right and len(out) == n and out.flags.c_contiguous and out.flags.writeable):
        got = f"{out.dtype} {list(out.shape)}" if isinstance(out, np.ndarray) else type(out).__name__
        raise InputError(f"out: expected a writeable C-contiguous float32 array {list(shape)}, got {got}")


def contiguous(feeds: Feeds) -> Feeds:
    """Arrays as ONNX Runtime takes them."""
    # One value for all rows is a view that ONNX Runtime does not take.
    # Arrays on a device are drawn whole.
    return {
        name: np.ascontiguousarray(array) if isinstance(array, np.ndarray) else array for name, array in feeds.items()
    }


def batches(n: int, batch_size: int) -> Iterator[tuple[int, int]]:
    """The first row of each batch, and the row after its last."""
    size = require_integer("batch_size", batch_size, 1, 2**31)
    for first in range(0, n, size):
        yield first, min(first + size, n)


def _empty(n: int, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """An array for `n` rows of a shape."""
    try:
        return np.empty((n, *shape), dtype)
    except (MemoryError, ValueError):
        size = n * math.prod(shape) * np.dtype(dtype).itemsize / 2**30
        raise InputError(
            f"n: {n} of shape {list(shape)} are {size:.1f} GiB, more than this machine's memory; take fewer at a time "
            "and move `start` on"
        ) from None
