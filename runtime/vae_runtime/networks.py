"""A bundle's two graphs: checked arrays in, arrays out, in batches. Only this module runs a session."""

from __future__ import annotations

import functools
import math
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from . import noise
from .devices import CPU
from .errors import BundleError, InputError, require_integer
from .inputs import Feed, Feeds, latent_rows, rows_of
from .likelihood import Parameters, kind_named
from .session import Call, RowSession, Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .bundle import Bundle
    from .chunks import Stream
    from .devices import Device
    from .manifest import Latent, Manifest, TensorSpec
    from .prior import Draw

    Array = NDArray[np.float32]
    RowsFeed = Callable[[int, int], Feeds]
    # Turns the outputs of a batch that begins at this row into results.
    Finish = Callable[[int, list[NDArray[Any]]], list[NDArray[Any]]]

# Enough for most of a CPU's throughput, little enough to stay in its caches.
BATCH_SIZE = 64
# Where rows are small, more of them stay there as well: up to this many, of this many bytes.
_MAX_BATCH, _BATCH_BYTES = 512, 2**17
# Bytes of an input or output of a bound call at most: calls are kept with their arrays, and large ones gain nothing.
_MAX_BYTES = 2**18
# Numbers of rows for which bound calls are kept.
_MAX_COUNTS = 16


class Networks:
    """The encoder and the decoder of a bundle on one device. May be shared by threads.

    A graph is loaded when it is first needed.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: Device,
        threads: int,
        variants: Mapping[str, str],
        max_seconds: float | None = None,
    ) -> None:
        """Take the variant of each component, as `Bundle.choose` gives them; each batch may take `max_seconds`."""
        self.device = device.name
        self.in_place = device.provider == CPU
        """Whether graphs can read and write numpy's own arrays."""
        self.variants = variants
        """The variant of each component."""
        self._bundle = bundle
        self._device = device
        self._threads = threads
        self.max_seconds = max_seconds
        """How long a graph may compute a batch; None sets no limit."""
        self.settings = device.name, device.options, device.max_memory, threads, variants, max_seconds
        """What these were made with beside the bundle."""
        self._sessions: dict[str, Session] = {}
        self._computations: dict[tuple[str, tuple[str, ...] | None], Computation] = {}
        self._lock = threading.Lock()
        self.mean = self.computation("decoder", (bundle.manifest.likelihood.mean,))
        """Computes the likelihood's mean."""

    def session(self, component: str, *, chunks: bool = False) -> Session:
        """A component's graph; with `chunks` the one that takes latents in chunks.

        Raises:
            BundleError: the component was left out, its file is damaged, or the graph is not the manifest's.
            DeviceError: the device is unavailable.
        """
        key = f"{component} in chunks" if chunks else component
        session = self._sessions.get(key)
        if session is None:
            with self._lock:
                session = self._sessions.get(key)
                if session is None:
                    variant = self.variants.get(component)
                    session = open_session(self._bundle, component, variant, self._device, self._threads, chunks=chunks)
                    session.max_seconds = self.max_seconds
                    self._sessions[key] = session
        return session

    def chunks(self, stream: Stream) -> Chunks:
        """The computation of a new stream by the decoder's graph for chunks.

        Raises:
            BundleError: as in `session`.
            DeviceError: as in `session`.
        """
        return Chunks(self.session("decoder", chunks=True), stream, self._bundle.manifest.likelihood.mean)

    def computation(self, component: str, outputs: tuple[str, ...] | None = None) -> Computation:
        """The computation of these outputs of a component, or of all."""
        key = component, outputs
        computation = self._computations.get(key)
        if computation is None:
            computation = self._computations[key] = Computation(self, self._bundle.manifest, component, outputs)
        return computation

    def observe(self, feed: Feed, n: int, seed: int, start: int, batch_size: int | None, out: Array | None) -> Array:
        """Decode `n` rows and draw an observation from the likelihood for each.

        Raises:
            InputError: there is no likelihood to draw from.
        """
        likelihood = self._bundle.manifest.likelihood
        if likelihood.kind == "none":
            raise InputError(
                "observe: the bundle has no likelihood to draw from: "
                f"{likelihood.reason or 'none was stated at export (likelihood=…)'}; leave `observe` out for the mean"
            )
        kind = kind_named(likelihood.kind)

        def draw(first: int, outputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
            parameters = Parameters(outputs[0], scale=outputs[1] if len(outputs) > 1 else likelihood.scale)
            return [kind.draw(parameters, seed, noise.advance(start, first))]

        names = (likelihood.mean, likelihood.scale_output) if likelihood.scale_output else (likelihood.mean,)
        return self.computation("decoder", names).run(feed, n, batch_size, out, draw)[0]

    @functools.cached_property
    def draw_on_device(self) -> Draw:
        """How noise is drawn for `decode_on_device`, as `prior.draw_normal` does: on the device where that can be."""
        from .device_noise import on_device  # not needed by most

        return on_device(self._device)

    def decode_on_device(self, feed: RowsFeed, n: int, batch_size: int | None) -> Any:
        """The likelihood's mean for all rows, left on the device, as an `onnxruntime.OrtValue`.

        Args:
            feed: gives the graph's inputs for any range of rows; arrays may be on the device.
            n: how many rows.
            batch_size: how many to compute at once; None computes all.

        Raises:
            DeviceError: this ONNX Runtime is too old for it.
            InputError: `batch_size` is wrong, or an answer has sizes that the manifest leaves open.
        """
        session, (name,) = self.session("decoder"), self.mean.outputs
        whole = None
        for first, last in batches(n, n if batch_size is None else batch_size):
            feeds = _contiguous(feed(first, last))
            if last - first == n:
                return session.run_on_device(name, feeds)
            if whole is None:
                whole = session.empty_on_device((n, *self.mean.fixed_shape(name)))
            session.run_on_device(name, feeds, (whole, first))
        return whole


class Computation:
    """Computes some outputs of one component, in batches. May be shared by threads.

    Where few rows go through a graph with one input, a call with arrays that are bound once spares a third of the
    time: ONNX Runtime's own wrapper, and new arrays. Calls that no thread is using are kept by their number of rows.
    """

    def __init__(self, networks: Networks, manifest: Manifest, component: str, outputs: tuple[str, ...] | None) -> None:
        tensors = {tensor.name: tensor for tensor in manifest.outputs(component)}
        self.outputs = tuple(tensors) if outputs is None else outputs
        """The names of the outputs."""
        # A proxy: in a circle, the memory of a VAE that is no longer used would stay until Python looks for circles.
        self._networks: Networks = weakref.proxy(networks)
        self._component = component
        self._results = results = [tensors[name] for name in self.outputs]
        self._feed, *others = inputs = manifest.inputs(component)
        self._in_place = networks.in_place and not any(tensor.dynamic for tensor in results)
        self._input = self._feed.name
        self._free: dict[int, list[Call]] = _Pool()
        self.max_rows = 0
        """The largest number of rows of a bound call."""
        self._batch_size = BATCH_SIZE
        if self._in_place and not self._feed.dynamic:
            row = max(math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize for tensor in (*inputs, *results))
            self._batch_size = max(BATCH_SIZE, min(_MAX_BATCH, _BATCH_BYTES // max(1, row)))
            # Bound calls go without a timer.
            if not others and networks.max_seconds is None:
                batch = 1 if component in manifest.batch_of_one else self._batch_size
                self.max_rows = min(batch, _MAX_BYTES // max(1, row))

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
        self, feed: Feed, n: int, batch_size: int | None = None, out: Array | None = None, finish: Finish | None = None
    ) -> list[NDArray[Any]]:
        """Compute the outputs for `n` rows.

        Args:
            feed: the graph's inputs in the manifest's dtypes, or a function that gives them for any range of rows.
            n: how many rows.
            batch_size: how many to compute at once; None lets this method choose.
            out: float32 [n, ...]: takes the first result, which is the decoder's mean or made by `finish`.
            finish: turns the outputs of each batch into results; it takes the batch's first row and the outputs.

        Returns:
            An array [n, ...] for each output or result.

        Raises:
            InputError: `out` or `batch_size` is wrong, or the memory does not suffice.
            VaeError: ONNX Runtime failed.
        """
        if out is not None:
            _require_buffer(out, n, self._results[0])
        # Whoever states one batch for a buffer of their own asks for many: `generate`.
        if n > self.max_rows or (batch_size is not None and (out is None or batch_size != n)):
            size = self._batch_size if batch_size is None else batch_size
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

    def bound(self, n: int, feed: NDArray[Any] | None = None) -> Call:
        """A call for `n` rows, at most `max_rows`, with new arrays but for the input's where it is given."""
        arrays = [(tensor.name, np.empty((n, *tensor.shape), tensor.dtype)) for tensor in (self._feed, *self._results)]
        if feed is not None:
            arrays[0] = self._input, feed
        return Call(self._networks.session(self._component), *arrays)

    def _run_in_place(self, feed: RowsFeed, n: int, batch_size: int, out: Array | None) -> list[NDArray[Any]]:
        """Let the graph write outputs of known shapes into the results themselves."""
        session = self._networks.session(self._component)
        results = [_empty(n, tensor.shape, tensor.dtype) for tensor in self._results] if out is None else [out]
        for first, last in batches(n, batch_size):
            parts = {name: result[first:last] for name, result in zip(self.outputs, results, strict=True)}
            session.run_into(_contiguous(feed(first, last)), parts)
        return results

    def _run_batches(
        self, feed: RowsFeed, n: int, batch_size: int, out: Array | None, finish: Finish | None
    ) -> list[NDArray[Any]]:
        """Copy each batch into results, which are allocated once the first shows the shapes that the manifest leaves
        open."""
        session = self._networks.session(self._component)
        results: list[NDArray[Any]] = []
        for first, last in batches(n, batch_size):
            parts = session.run(self.outputs, _contiguous(feed(first, last)))
            if finish is not None:
                parts = finish(first, parts)
            for part in parts:
                if len(part) != last - first:
                    raise BundleError(
                        f"{session.place}: expected {last - first} rows, the graph gives {len(part)}; export the "
                        "bundle again"
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


class Chunks:
    """Computes the likelihood's mean of one stream of latents, chunk by chunk; for one thread at a time."""

    def __init__(self, session: Session, stream: Stream, mean: str) -> None:
        """Take the graph for chunks, its description, and the name of the mean."""
        self._session, self._states = session, stream.states
        self._outputs = [mean, *(state.next for state in stream.states)]
        self._held: Feeds = {}

    def run(self, feeds: Feeds) -> Array:
        """Compute the mean for the next chunk of latents, [n, …] of the same n as those before.

        Raises:
            VaeError: ONNX Runtime failed.
        """
        if not self._held:
            n = len(next(iter(feeds.values())))
            self._held = {state.name: np.zeros((n, *state.shape), np.float32) for state in self._states}
        mean, *states = self._session.run(self._outputs, {**_contiguous(feeds), **self._held})
        self._held = {state.name: array for state, array in zip(self._states, states, strict=True)}
        return mean


class Chain:
    """Computes the decoder's mean from the encoder's mode, for few rows whose latents stay where both graphs find them.

    May be shared by threads. `max_rows` is 0 where the graphs are not such that it can be used.
    """

    def __init__(self, encoder: Computation, decoder: Computation, latent: Latent) -> None:
        self._encoder, self._decoder, self._latent = encoder, decoder, latent
        self._free: dict[int, list[tuple[Call, Call]]] = _Pool()
        fits = len(encoder.outputs) == 1 and latent.dtype == "float32"
        self.max_rows = min(encoder.max_rows, decoder.max_rows) if fits else 0
        """The largest number of rows that it takes."""

    def run(self, x: NDArray[Any]) -> Array:
        """Encode and decode checked observations.

        Raises:
            InputError: the encoder's latents are not finite.
            VaeError: ONNX Runtime failed.
        """
        free = self._free[len(x)]
        try:
            encode, decode = calls = free.pop()
        except IndexError:
            encode = self._encoder.bound(len(x))
            encode, decode = calls = encode, self._decoder.bound(len(x), encode.results[0])
        encode.feed[...] = x
        encode.run()
        latent_rows(self._latent, decode.feed)
        result = decode.compute()[0]
        free.append(calls)
        return result


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


def run_variant(
    bundle: Bundle, component: str, variant: str, device: Device, threads: int, feeds: Feeds
) -> list[NDArray[Any]]:
    """Load one variant of a component and compute all its outputs, in the order of the manifest.

    Raises:
        BundleError: the file is damaged, or the graph is not the one that the manifest describes.
        DeviceError: the device is unavailable.
        VaeError: ONNX Runtime failed.
    """
    outputs = [tensor.name for tensor in bundle.manifest.outputs(component)]
    return open_session(bundle, component, variant, device, threads).run(outputs, feeds)


def open_chunks(bundle: Bundle, variant: str, stream: Stream, device: Device, threads: int) -> Chunks:
    """Load one variant's graph for chunks, for a new stream.

    Raises:
        BundleError: the file is damaged, or the graph is not the one that the manifest describes.
        DeviceError: the device is unavailable.
    """
    session = open_session(bundle, "decoder", variant, device, threads, chunks=True)
    return Chunks(session, stream, bundle.manifest.likelihood.mean)


def open_session(
    bundle: Bundle, component: str, variant: str | None, device: Device, threads: int = 1, *, chunks: bool = False
) -> Session:  # fmt: skip
    """Load one graph of a bundle, or its graph for `chunks`, and check its inputs and outputs against the manifest.

    Raises:
        BundleError: the file is damaged, or the graph is not the one that the manifest describes.
        DeviceError: the device is unavailable.
    """
    graph = bundle.graph(component, variant, chunks=chunks)
    expected = {"input": graph.inputs, "output": graph.outputs}
    opened = RowSession if component in bundle.manifest.batch_of_one else Session
    return opened(graph.content, graph.place, device, threads, data=graph.data, expected=expected)


def _contiguous(feeds: Feeds) -> Feeds:
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
