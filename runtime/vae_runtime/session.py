"""One loaded graph on one device."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .devices import CPU, CUDA, Device, import_onnxruntime, open_on, session_options
from .errors import BundleError, DeviceError, VaeError, error_line
from .graph_check import check_graph
from .prepared import Prepared

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from .manifest import TensorSpec
    from .ranges import Check

    Tensors = Mapping[str, tuple[str, tuple[int | str | None, ...]]]

_ORT_TYPES = {"float32": "tensor(float)", "int64": "tensor(int64)"}
# Bytes of a tensor that ONNX Runtime may compute of constants, beside 16 for each byte of the files.
_MAX_FOLDED = 2**20
# Values of a row, inputs and outputs together, up to which ONNX Runtime plans its memory ahead.
_MAX_PLANNED = 2**13
# Bytes of a graph from which on the memory that loading has freed is given back.
_LARGE = 2**24
# The operators of networks whose layers are vectors, of 8 bits too.
_DENSE = frozenset(
    b"Add Cast Clip Concat Constant DequantizeLinear Div DynamicQuantizeLinear Elu Exp Flatten Gelu Gemm Identity "
    b"LeakyRelu MatMul MatMulInteger Mul Neg PRelu QuantizeLinear Relu Reshape Selu Sigmoid Slice Softplus Split Sqrt "
    b"Squeeze Sub Tanh Unsqueeze".split()
)
# The names of ONNX Runtime's levels of optimization, each with those before it.
OPTIMIZATIONS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")


class Session:
    """A loaded graph: it takes arrays by name and returns arrays by name. Threads may share it."""

    _batch: int | None = None
    """The size of axis 0 of the graph's inputs and outputs; None where it is dynamic."""
    max_seconds: float | None = None
    """How long a call may take; it ends between two nodes. None sets no limit."""

    def __init__(
        self,
        content: bytes | Path | Prepared,
        place: str,
        device: Device,
        threads: int = 1,
        data: Mapping[str, bytes] | None = None,
        expected: Mapping[str, Sequence[TensorSpec]] | None = None,
    ) -> None:
        """Load a graph.

        Args:
            content: the ONNX file's bytes; or its path, which takes less memory, if nobody else can write there; or the
                graph as this machine has prepared it.
            place: what to call the graph in errors, usually its path.
            device: where it runs.
            threads: intra-op threads.
            data: the bytes of each file of weights that the graph may refer to, by name; other weights are inline.
            expected: the tensors that a manifest names under "input" and "output"; None checks nothing.

        Raises:
            BundleError: ONNX Runtime does not load the graph, the graph refers to a file that is not in `data`, or its
                inputs or outputs are not as expected.
            DeviceError: ONNX Runtime opened the session on another device.
        """
        data = data or {}
        tensors = [tensor for tensors in (expected or {}).values() for tensor in tensors]
        elements = sum(math.prod(tensor.shape) for tensor in tensors)
        if isinstance(content, Prepared):
            content.require_intact()
            operators, size = content.operators, 0
        elif not isinstance(content, bytes):
            import mmap  # not needed on the start-up path

            with content.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                operators = check_graph(mapped, place, data, elements)
                size = len(mapped)
        else:
            operators = check_graph(content, place, data, elements)
            size = len(content)
        if threads > 1:
            _require_own_threads(place, threads)
        options = session_options(place, threads, data)
        # What ONNX Runtime computes of constants as it loads a graph: weights of 4 bits become eight times as large.
        # Versions that do not know this limit ignore it.
        size += sum(map(len, data.values()))
        folded = _MAX_FOLDED + 16 * size
        options.add_session_config_entry("optimization.constant_folding_max_output_size_in_bytes", str(folded))
        dynamic = any(tensor.dynamic for tensor in tensors)
        # A plan spares a small graph a twentieth of its time. From the second call of each size on, it takes all its
        # memory at once, beside that of the first call.
        if dynamic or elements > _MAX_PLANNED:
            options.enable_mem_pattern = False
        source = content if isinstance(content, bytes) else str(content)
        if isinstance(content, Prepared):
            options.graph_optimization_level = import_onnxruntime().GraphOptimizationLevel.ORT_DISABLE_ALL
            source = content.path
        self.raw = open_on(device, source, options, place, roomy=dynamic or size >= _LARGE)
        if size >= _LARGE:
            _give_back()
        # The method that ONNX Runtime's own calls after checks that concern other devices.
        self._run: Callable[..., Any] = getattr(self.raw, "_sess", self.raw).run
        self.place = place
        self.is_dense = operators <= _DENSE
        """Whether the graph is one of layers between vectors, so that a row takes little memory on its way."""
        self._max_memory = device.max_memory
        # ONNX Runtime would make new ones for each call, a tenth of the time of a small graph. It only reads them.
        self.run_options = import_onnxruntime().RunOptions()
        """The options of every call without a limit of time."""
        on_cuda = device.provider == CUDA
        self._memory = ("cuda", int(device.options.get("device_id", 0))) if on_cuda else ("cpu", 0)
        self.inputs = {item.name: (item.type, tuple(item.shape)) for item in self.raw.get_inputs()}
        self.outputs = {item.name: (item.type, tuple(item.shape)) for item in self.raw.get_outputs()}
        if expected is not None:
            _require_described(place, expected, {"input": self.inputs, "output": self.outputs}, self._batch)

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Compute the named outputs from the named inputs.

        Raises:
            VaeError: ONNX Runtime failed, for example for lack of memory.
        """
        try:
            with self._limited() as limits:
                results: list[NDArray[Any]] = self.raw.run(list(outputs), dict(feeds), limits)
        except Exception as error:
            raise self._failure(error) from error
        return results

    def run_into(self, feeds: Mapping[str, NDArray[Any]], results: Mapping[str, NDArray[Any]]) -> None:
        """Compute the named outputs into arrays of their shapes; only on the CPU, since bound memory is numpy's.

        All arrays are C-contiguous and have the graph's dtypes.

        Raises:
            VaeError: ONNX Runtime failed, for example because an output has another shape.
        """
        binding = self.raw.io_binding()
        for name, array in feeds.items():
            _bind(binding.bind_input, name, array)
        for name, array in results.items():
            _bind(binding.bind_output, name, array)
        try:
            with self._limited() as limits:
                self._run_bound(binding, limits)
        except Exception as error:
            raise self._failure(error) from error

    def _run_bound(self, binding: Any, limits: Any) -> None:
        try:
            run, bound = self.raw._sess.run_with_iobinding, binding._iobinding
        except AttributeError:
            run, bound = self.raw.run_with_iobinding, binding
        # ONNX Runtime's own method asks options for an entry that these lack: 40 µs, as long as a small graph takes.
        run(bound, limits)

    def run_at_once(self, outputs: Sequence[str], name: str, array: NDArray[Any]) -> list[NDArray[Any]]:
        """As `run` of one input, C-contiguous, on the CPU and without a limit of time, but in less time."""
        try:
            results: list[NDArray[Any]] = self._run(outputs, {name: array}, self.run_options)
        except Exception as error:
            raise self._failure(error) from error
        return results

    def run_on_device(
        self, output: str, feeds: Mapping[str, Any], into: tuple[Any, int] | None = None
    ) -> Any:  # fmt: skip
        """Compute one output and leave it on the device; upload, graph and output share the session's stream.

        Args:
            output: its name.
            feeds: numpy's arrays by name, C-contiguous, and float32 arrays on the device with
                `__cuda_array_interface__`, which are complete or made on the session's stream.
            into: a value of `empty_on_device`, and its row at which the output begins.

        Returns:
            An `onnxruntime.OrtValue`, which other libraries take by DLPack; `into`'s where it is given.

        Raises:
            DeviceError: the values of this ONNX Runtime do not support DLPack.
            VaeError: ONNX Runtime failed, for example for lack of memory.
        """
        runtime = import_onnxruntime()
        if not hasattr(runtime.OrtValue, "__dlpack__"):
            raise DeviceError(
                "on_device: expected an ONNX Runtime whose values other libraries take by DLPack, got "
                f"{runtime.__version__}; install a newer one, or leave on_device out"
            )
        binding = self.raw.io_binding()
        try:
            for name, array in feeds.items():
                if isinstance(array, np.ndarray):
                    binding.bind_cpu_input(name, array)
                else:
                    there = array.__cuda_array_interface__
                    binding.bind_input(name, *self._memory, np.float32, there["shape"], there["data"][0])
            if into is None:
                binding.bind_output(output, *self._memory)
            else:
                whole, first = into
                shape = [len(next(iter(feeds.values()))), *whole.shape()[1:]]
                offset = first * math.prod(shape[1:]) * np.dtype(np.float32).itemsize
                binding.bind_output(output, *self._memory, np.float32, shape, whole.data_ptr() + offset)
            with self._limited() as limits:
                self._run_bound(binding, limits)
            binding.synchronize_outputs()
        except Exception as error:
            raise self._failure(error) from error
        return binding.get_outputs()[0] if into is None else into[0]

    def empty_on_device(self, shape: Sequence[int]) -> Any:
        """Memory of the device for float32 numbers of a shape, as an `onnxruntime.OrtValue`.

        Raises:
            VaeError: the device has no such memory.
        """
        create = import_onnxruntime().OrtValue.ortvalue_from_shape_and_type
        try:
            return create(list(shape), np.float32, *self._memory)
        except Exception as error:
            raise self._failure(error) from error

    @contextlib.contextmanager
    def _limited(self) -> Iterator[Any]:
        """Give the options of a call, which a timer tells to end where there is a limit."""
        if self.max_seconds is None:
            yield self.run_options
            return
        options = import_onnxruntime().RunOptions()
        timer = threading.Timer(self.max_seconds, setattr, (options, "terminate", True))
        timer.daemon = True
        timer.start()
        try:
            yield options
        finally:
            timer.cancel()

    def _failure(self, error: Exception) -> VaeError:
        message = error_line(error)
        if self.max_seconds is not None and "terminate" in message:
            advice = "compute fewer rows at a time, or allow more"
            return VaeError(f"{self.place}: expected an answer within max_seconds={self.max_seconds:g}; {advice}")
        if self._max_memory is not None and ("vailable memory" in message or "allocate memory" in message):
            expected = f"expected at most max_memory={self._max_memory} bytes between operators"
            return VaeError(f"{self.place}: {expected}; compute fewer rows at a time, or allow more")
        # Mostly an index into a table of embeddings.
        out_of_range = "out of" in message and "memory" not in message
        in_range = "give integers from the range that the model was trained on"
        advice = in_range if out_of_range else "compute fewer rows at a time, or with more memory"
        return VaeError(f"{self.place}: ONNX Runtime failed: {message}; {advice}")


def _give_back() -> None:
    """Give the system the memory that loading a graph has freed, which can be more than its weights: glibc keeps it."""
    import ctypes  # not needed on the start-up path

    with contextlib.suppress(OSError, TypeError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


@functools.cache
def _threaded_process() -> int:
    """The process that first opened a session of several threads; a fork keeps what its parent found."""
    return os.getpid()


def _require_own_threads(place: str, threads: int) -> None:
    """Refuse threads in a process that was forked from one with such a session: ONNX Runtime would wait forever."""
    if _threaded_process() != os.getpid():
        raise DeviceError(
            f"{place}: expected threads=1, since this process was forked from one that uses ONNX Runtime with several "
            f"threads, got {threads}; give threads=1, or start processes by spawn"
        )


class RowSession(Session):
    """A loaded graph that takes a batch of one: a larger batch runs row by row."""

    _batch = 1

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """As `Session.run`."""
        rows = [super(RowSession, self).run(outputs, row) for row in _rows(feeds)]
        return rows[0] if len(rows) == 1 else [np.concatenate(parts) for parts in zip(*rows, strict=True)]

    def run_into(self, feeds: Mapping[str, NDArray[Any]], results: Mapping[str, NDArray[Any]]) -> None:
        """As `Session.run_into`."""
        for row, part in zip(_rows(feeds), _rows(results), strict=True):
            super().run_into(row, part)

    def run_on_device(
        self, output: str, feeds: Mapping[str, Any], into: tuple[Any, int] | None = None
    ) -> Any:  # fmt: skip
        """As `Session.run_on_device`."""
        rows = list(_rows(feeds))
        if into is None:
            # The first answer has the sizes that the manifest may leave open. Every row is then written into one array.
            first = super().run_on_device(output, rows[0])
            if len(rows) == 1:
                return first
            into = self.empty_on_device([len(rows), *first.shape()[1:]]), 0
        whole, start = into
        for number, row in enumerate(rows, start):
            super().run_on_device(output, row, (whole, number))
        return whole


def _rows(arrays: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Divide arrays by name into batches of one."""
    for row in range(len(next(iter(arrays.values())))):
        yield {name: array[row : row + 1] for name, array in arrays.items()}


def _require_described(
    place: str, expected: Mapping[str, Sequence[TensorSpec]], graph: Mapping[str, Tensors], batch: int | None
) -> None:
    """Raise BundleError unless a graph has the expected inputs and outputs."""
    for kind, tensors in expected.items():
        actual = graph[kind]
        names = {tensor.name for tensor in tensors}
        if names != actual.keys():
            raise BundleError(
                f"{place}: expected the {kind}s {sorted(names)!s:.300} of the manifest, the graph has "
                f"{sorted(actual)!s:.300}; export the bundle again"
            )
        for tensor in tensors:
            dtype, sizes = actual[tensor.name]
            if dtype != _ORT_TYPES[tensor.dtype] or not _fits(tensor, sizes, batch):
                shown = [
                    str(batch or "batch"),
                    *("dynamic" if i in tensor.dynamic else str(s) for i, s in enumerate(tensor.shape)),
                ]
                raise BundleError(
                    f"{place}: {kind} {tensor.name}: expected {tensor.dtype} [{', '.join(shown)}] as in the "
                    f"manifest, the graph has {dtype} {list(sizes)}; export the bundle again"
                )


def _fits(tensor: TensorSpec, sizes: Sequence[Any], batch: int | None) -> bool:
    """Whether a graph's sizes are the batch and the tensor's; a dynamic axis has no number."""
    expected = [batch, *(None if i in tensor.dynamic else size for i, size in enumerate(tensor.shape))]
    return [size if isinstance(size, int) else None for size in sizes] == expected


class Call:
    """A call of a graph on the CPU whose arrays are bound once; for one thread at a time."""

    __slots__ = ("_copies", "_run", "_session", "feed", "is_sound", "results")

    def __init__(
        self, session: Session, is_sound: Check, feed: tuple[str, NDArray[Any]], *results: tuple[str, NDArray[Any]]
    ) -> None:
        """Bind the names and arrays of an input and of outputs, C-contiguous and of the graph's dtypes.

        `is_sound` says whether the graph may see what is in the input's array.
        """
        binding = session.raw.io_binding()
        # Keep the arrays alive: ONNX Runtime binds their addresses.
        self.feed = feed[1]
        self.is_sound = is_sound
        self.results = [array for _, array in results]
        self._copies = [array.copy for array in self.results]
        _bind(binding.bind_input, *feed)
        for result in results:
            _bind(binding.bind_output, *result)
        self._session = session
        try:
            # ONNX Runtime's own method calls this, after checks that concern other devices.
            self._run = functools.partial(session.raw._sess.run_with_iobinding, binding._iobinding, session.run_options)
        except AttributeError:
            self._run = functools.partial(session.raw.run_with_iobinding, binding, session.run_options)

    def run(self) -> None:
        """Compute the outputs for the input in `feed`, into the arrays that are bound.

        Raises:
            VaeError: ONNX Runtime failed.
        """
        try:
            self._run()
        except Exception as error:
            raise self._session._failure(error) from error

    def compute(self) -> list[NDArray[Any]]:
        """Compute the outputs for the input in `feed`, as arrays of the caller's own.

        Raises:
            VaeError: ONNX Runtime failed.
        """
        # As `run`, without another call: this is the path of a microsecond.
        try:
            self._run()
        except Exception as error:
            raise self._session._failure(error) from error
        copies = self._copies
        # New arrays in the graph's place would have to be bound, which takes longer than to copy some 100 KiB.
        return [copies[0]()] if len(copies) == 1 else [copy() for copy in copies]

    def compute_into(self, out: NDArray[Any]) -> None:
        """Compute the first output for the input in `feed`, and copy it into an array of its shape.

        To bind that array would cost ONNX Runtime more than the copy does.

        Raises:
            VaeError: ONNX Runtime failed.
        """
        self.run()
        out[...] = self.results[0]


def _bind(bind: Callable[..., None], name: str, array: NDArray[Any]) -> None:
    bind(name, "cpu", 0, array.dtype.type, array.shape, array.__array_interface__["data"][0])


def optimized(content: bytes, data: Mapping[str, bytes], level: str, place: str) -> bytes:
    """Return a graph as ONNX Runtime optimizes it at a level.

    Args:
        content: the ONNX file's bytes.
        data: the bytes of the files of weights that the graph may refer to, by name.
        level: one of OPTIMIZATIONS.
        place: what to call the graph in errors.

    Raises:
        BundleError: ONNX Runtime does not load the graph, or cannot write the result.
    """
    import tempfile  # not needed on the start-up path

    check_graph(content, place, data)
    runtime = import_onnxruntime()
    with tempfile.TemporaryDirectory(prefix="vae-runtime-") as folder:
        path = os.path.join(folder, "model.onnx")
        options = session_options(place, 1, data)
        options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, level)
        options.optimized_model_filepath = path
        try:
            runtime.InferenceSession(content, options, providers=[CPU])
            with open(path, "rb") as file:
                return file.read()
        except Exception as error:
            raise BundleError(
                f"{place}: ONNX Runtime {runtime.__version__} gives no optimized graph: {error_line(error)}; pack "
                "without --operators"
            ) from error
