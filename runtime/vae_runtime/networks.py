"""A bundle's two graphs, loaded when they are first needed, and what is computed of them."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from . import noise
from .answers import kind_of
from .computation import Computation, batches, contiguous
from .errors import InputError
from .inputs import Feed, Feeds
from .likelihood import Parameters
from .manifest import TensorSpec
from .prepared import Prepared, prepare
from .session import RowSession, Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .bundle import Bundle
    from .chunks import Stream
    from .computation import RowsFeed
    from .devices import Device
    from .prior import Draw

    Array = NDArray[np.float32]


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
        self.variants = variants
        """The variant of each component."""
        self._bundle = bundle
        self._device = device
        self._threads = threads
        self.max_seconds = max_seconds
        """How long a graph may compute a batch; None sets no limit."""
        self.settings = device.name, device.options, device.max_memory, threads, variants, max_seconds
        """What these were made with beside the bundle."""
        self.prepared: Mapping[str, Prepared] = {}
        """Graphs that are prepared already, by component."""
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
                    if component in self.prepared and not chunks:
                        session = open_prepared(
                            self._bundle, component, variant, self._device, self._threads, self.prepared[component]
                        )
                    else:
                        session = open_session(
                            self._bundle, component, variant, self._device, self._threads, chunks=chunks
                        )
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
            # A proxy: in a circle, the memory of a VAE that nobody uses would stay until Python looks for circles.
            networks = weakref.proxy(self)
            computation = self._computations[key] = Computation(
                self._bundle.manifest, component, outputs, lambda: networks.session(component), self._device,
                self.max_seconds,
            )  # fmt: skip
        return computation

    def observe(self, feed: Feed, n: int, seed: int, start: int, batch_size: int | None, out: Array | None) -> Array:
        """Decode `n` rows and draw an observation from the likelihood for each.

        Raises:
            InputError: there is no likelihood to draw from.
        """
        manifest = self._bundle.manifest
        likelihood = manifest.likelihood
        if likelihood.kind == "none":
            raise InputError(
                "observe: the bundle has no likelihood to draw from: "
                f"{likelihood.reason or 'none was stated at export (likelihood=…)'}; leave `observe` out for the mean"
            )
        kind = kind_of(manifest)

        def draw(first: int, outputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
            parameters = Parameters(outputs[0], scale=outputs[1] if len(outputs) > 1 else likelihood.scale)
            return [kind.draw(parameters, seed, noise.advance(start, first))]

        names = (likelihood.mean, likelihood.scale_output) if likelihood.scale_output else (likelihood.mean,)
        (drawn,) = manifest.outputs("decoder")[:1]
        if likelihood.has_classes:
            # The axis of classes is the last one.
            last = len(drawn.shape) - 1
            drawn = TensorSpec(drawn.name, drawn.dtype, drawn.shape[:last], drawn.dynamic - {last})
        return self.computation("decoder", names).run(feed, n, batch_size, out, draw, drawn)[0]

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
            feeds = contiguous(feed(first, last))
            if last - first == n:
                return session.run_on_device(name, feeds)
            if whole is None:
                whole = session.empty_on_device((n, *self.mean.fixed_shape(name)))
            session.run_on_device(name, feeds, (whole, first))
        return whole


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
        mean, *states = self._session.run(self._outputs, {**contiguous(feeds), **self._held})
        self._held = {state.name: array for state, array in zip(self._states, states, strict=True)}
        return mean


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


def open_prepared(
    bundle: Bundle, component: str, variant: str | None, device: Device, threads: int, prepared: Prepared
) -> Session:  # fmt: skip
    """Load a graph that is prepared, and check its inputs and outputs against the manifest.

    Raises:
        BundleError: its files were altered, or the graph is not the one that the manifest describes.
        DeviceError: the device is unavailable.
    """
    manifest = bundle.manifest
    expected = {"input": manifest.inputs(component), "output": manifest.outputs(component)}
    opened = RowSession if component in manifest.batch_of_one else Session
    place = bundle.place(bundle.variant(component, variant).path)
    return opened(prepared, place, device, threads, expected=expected)


def prepare_graph(bundle: Bundle, component: str, variant: str | None, folder: str) -> Prepared | None:
    """Prepare one graph of a bundle in a folder of this user's own, as `prepared.prepare` does.

    Raises:
        BundleError: the file is damaged.
    """
    graph = bundle.graph(component, variant)
    return prepare(graph.content, graph.data, graph.place, folder, component)
