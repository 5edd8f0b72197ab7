"""One loaded graph on one device. The only file that imports onnxruntime."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .errors import BundleError, DeviceError, InputError, VaeError, error_line
from .records import Record, record

if TYPE_CHECKING:
    import logging
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["Call", "Device", "Session", "onnxruntime_version", "parse_device", "resolve_device"]

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_PROVIDER = re.compile(r"[A-Za-z0-9]+ExecutionProvider")


@record(frozen=True)
class Device(Record):
    """Where sessions run: an execution provider of ONNX Runtime with its options, under a short name."""

    name: str
    provider: str
    options: Mapping[str, str]

    def __str__(self) -> str:
        return self.name


def parse_device(text: str) -> str:
    """Check the form of a device without asking for it: "cpu", "cuda", "cuda:N", "auto" or a provider's name.

    Raises:
        InputError: the text is none of these.
    """
    if isinstance(text, str) and (
        text in ("cpu", "cuda", "auto") or re.fullmatch(r"cuda:[0-9]{1,4}", text) or _PROVIDER.fullmatch(text)
    ):
        return text
    raise InputError(f"device: cpu, cuda, cuda:N, auto or the name of an execution provider is expected, got {text!r}")


def resolve_device(text: str, provider_options: Mapping[str, Any] | None = None) -> Device:
    """Turn a device's name into an execution provider that this ONNX Runtime has. Never falls back silently.

    "auto" takes CUDA where it works and the CPU elsewhere, and logs its choice (logger `vae_runtime`).

    Raises:
        InputError: the text is no device.
        DeviceError: ONNX Runtime is missing, or it has no such provider.
    """
    parse_device(text)
    runtime = _onnxruntime()
    available = runtime.get_available_providers()
    options = {str(key): str(value) for key, value in (provider_options or {}).items()}
    if text == "auto":
        try:
            device = resolve_device("cuda", provider_options)
            _probe(device)
        except DeviceError as error:
            _logger().warning("device auto: cpu was chosen, since cuda is not there: %s", error)
            return Device("cpu", _CPU, {})
        _logger().warning("device auto: cuda was chosen")
        return device
    if text.startswith("cuda"):
        if _CUDA not in available:
            raise DeviceError(_without_cuda(runtime, text))
        _preload_cuda(runtime)
        index = text.partition(":")[2] or "0"
        # TF32 rounds the factors of a matrix product to 10 bits: three decimal digits, where parity needs six.
        return Device(text, _CUDA, {"device_id": index, "use_tf32": "0", **options})
    provider = _CPU if text == "cpu" else text
    if provider not in available:
        raise DeviceError(
            f"device {text}: this ONNX Runtime ({runtime.__version__}) has {', '.join(available)}; choose one of "
            "these, or install an ONNX Runtime that was built with it"
        )
    return Device(text, provider, options)


class Session:
    """A graph, loaded: named arrays in, named arrays out. May be shared by threads."""

    def __init__(
        self,
        content: bytes | Path,
        place: str,
        device: Device,
        threads: int = 1,
        data: Mapping[str, bytes] | None = None,
    ) -> None:
        """Load a graph.

        Args:
            content: the ONNX file's bytes; or its path, which takes less memory, where nobody else can write.
            place: what to call the graph in errors, usually its path.
            device: where it shall run.
            threads: intra-op threads.
            data: the bytes of the files of weights that the graph may refer to, by name; all others are inline.

        Raises:
            BundleError: ONNX Runtime does not take the graph, or it wants data that are not in `data`.
            DeviceError: the session came to be on another device than asked for.
        """
        runtime = _onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.load_model_format", "ONNX")
        if not isinstance(content, bytes):
            import mmap  # not needed on the start-up path

            with content.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                _check_external_data(mapped, place, data or {})
            content = str(content)  # type: ignore[assignment]
        else:
            _check_external_data(content, place, data or {})
        if data:
            if not hasattr(options, "add_external_initializers_from_files_in_memory"):
                raise BundleError(
                    f"{place}: ONNX Runtime {runtime.__version__} takes no weights from beside a graph; a newer one "
                    "does: pip install --upgrade onnxruntime (or onnxruntime-gpu, where that is installed)"
                )
            # From memory: from the disk, ONNX Runtime would take them relative to the working directory, unchecked.
            sizes = [len(part) for part in data.values()]
            options.add_external_initializers_from_files_in_memory(list(data), list(data.values()), sizes)
        try:
            self._session = _strict(runtime)(content, options, providers=[(device.provider, dict(device.options))])
        except Exception as error:
            if device.provider != _CPU and _loads_on_cpu(runtime, content, options):
                raise DeviceError(f"{place}: device {device}: {error_line(error)}; {_hint(device)}") from error
            raise BundleError(
                f"{place}: ONNX Runtime {runtime.__version__} does not load this graph: {error_line(error)}"
            ) from error
        if hasattr(self._session, "_model_bytes"):
            # Kept there to load the graph again for other providers: as much memory as all the weights.
            self._session._model_bytes = None
        in_use = self._session.get_providers()
        if in_use[0] != device.provider:
            raise DeviceError(
                f"{place}: device {device}: {device.provider} was asked for, ONNX Runtime gave {in_use[0]}; "
                + _hint(device)
            )
        self.place = place
        # Elsewhere inputs are copied to the device when they are bound, and bound memory is no memory of numpy's.
        self.in_place = device.provider == _CPU
        self._provider, self._index = device.provider, int(device.options.get("device_id", 0))
        self.inputs = {item.name: (item.type, tuple(item.shape)) for item in self._session.get_inputs()}
        self.outputs = {item.name: (item.type, tuple(item.shape)) for item in self._session.get_outputs()}

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Compute outputs from inputs, both by name.

        Raises:
            VaeError: ONNX Runtime failed, for lack of memory for instance.
        """
        try:
            results: list[NDArray[Any]] = self._session.run(list(outputs), dict(feeds))
        except Exception as error:
            raise self._failure(error) from error
        return results

    def run_into(self, feeds: Mapping[str, NDArray[Any]], results: Mapping[str, NDArray[Any]]) -> None:
        """Compute outputs into arrays of their shapes, both by name; only where `in_place`.

        All arrays are C-contiguous and of the graph's dtypes.

        Raises:
            VaeError: ONNX Runtime failed, for lack of memory or since an output has another shape.
        """
        binding = self._session.io_binding()
        for name, array in feeds.items():
            _bind(binding.bind_input, name, array)
        for name, array in results.items():
            _bind(binding.bind_output, name, array)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise self._failure(error) from error

    def run_on_device(self, output: str, feeds: Mapping[str, NDArray[Any]]) -> Any:
        """Compute one output and leave it where it was computed; upload, graph and output share the session's stream.

        Returns:
            An `onnxruntime.OrtValue`, which other libraries take by DLPack.

        Raises:
            DeviceError: this ONNX Runtime's values do not speak DLPack.
            VaeError: ONNX Runtime failed, for lack of memory for instance.
        """
        runtime = _onnxruntime()
        if not hasattr(runtime.OrtValue, "__dlpack__"):
            raise DeviceError(
                f"on_device: an ONNX Runtime whose values other libraries take by DLPack is expected, this one is "
                f"{runtime.__version__}; install a newer one, or leave on_device out"
            )
        kind, index = ("cuda", self._index) if self._provider == _CUDA else ("cpu", 0)
        binding = self._session.io_binding()
        try:
            for name, array in feeds.items():
                binding.bind_cpu_input(name, array)
            binding.bind_output(output, kind, index)
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()
        except Exception as error:
            raise self._failure(error) from error
        return binding.get_outputs()[0]

    def _failure(self, error: Exception) -> VaeError:
        said = error_line(error)
        # An index into a table of embeddings, above all.
        outside = "out of" in said and "memory" not in said
        advice = "give integers of the range that the model was trained on" if outside else "try a smaller batch size"
        return VaeError(f"{self.place}: ONNX Runtime failed: {said}; {advice}")


class Call:
    """A graph's call with arrays of its own, bound once: for one thread at a time, and only where `in_place`.

    Write into `feed`, the only array that it takes, then call `run`, which computes into `result`, the first output's
    array, and `others`.
    """

    __slots__ = ("_bind", "_name", "_run", "_session", "feed", "others", "result")

    def __init__(self, session: Session, feed: tuple[str, NDArray[Any]], *results: tuple[str, NDArray[Any]]) -> None:
        """Bind an input's and outputs' names and arrays, C-contiguous and of the graph's dtypes."""
        binding = session._session.io_binding()
        # Held: what is bound are addresses.
        (self._name, self.result), *others = results
        self.others = [array for _, array in others]
        self.feed = feed[1]
        _bind(binding.bind_input, *feed)
        for result in results:
            _bind(binding.bind_output, *result)
        self._bind = binding.bind_output
        self._session = session
        try:
            # What ONNX Runtime's own method calls, after checks that concern other devices.
            self._run = functools.partial(session._session._sess.run_with_iobinding, binding._iobinding, None)
        except AttributeError:
            self._run = functools.partial(session._session.run_with_iobinding, binding)

    def bind(self, result: NDArray[Any]) -> None:
        """Compute the first output into another array from now on."""
        self.result = result
        _bind(self._bind, self._name, result)

    def run(self) -> None:
        """Compute.

        Raises:
            VaeError: ONNX Runtime failed.
        """
        try:
            self._run()
        except Exception as error:
            raise self._session._failure(error) from error


def _bind(bind: Callable[..., None], name: str, array: NDArray[Any]) -> None:
    bind(name, "cpu", 0, array.dtype.type, array.shape, array.__array_interface__["data"][0])


def onnxruntime_version() -> str:
    """The version of ONNX Runtime.

    Raises:
        DeviceError: it is missing.
    """
    return str(_onnxruntime().__version__)


def _logger() -> logging.Logger:
    import logging  # not needed on the start-up path

    return logging.getLogger("vae_runtime")


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        one = "install one of the two: pip install 'vae-runtime[cpu]' or 'vae-runtime[gpu]'"
        advice = _installed() if len(_distributions()) == 2 else one
        raise DeviceError(f"ONNX Runtime cannot be imported ({error_line(error)}); {advice}") from error
    if not hasattr(onnxruntime, "InferenceSession"):
        raise DeviceError(f"ONNX Runtime is damaged; {_installed()}")
    return onnxruntime


def _strict(runtime: Any) -> Any:
    """ONNX Runtime's session class, but never falling back to the CPU: it would, and say so on stdout."""
    never = property(lambda self: False, lambda self, value: None)
    return type("InferenceSession", (runtime.InferenceSession,), {"_enable_fallback": never})


_preloading = threading.Lock()


def _preload_cuda(runtime: Any) -> None:
    """Let ONNX Runtime find the CUDA libraries of the nvidia-* packages, keeping what it prints off stdout."""
    if hasattr(runtime, "preload_dlls"):
        said = io.StringIO()
        # Of two threads that redirect stdout at once, one would put back the other's.
        with _preloading, contextlib.redirect_stdout(said):
            runtime.preload_dlls()
        if said.getvalue().strip():
            _logger().info("onnxruntime.preload_dlls: %s", said.getvalue().strip())


def _probe(device: Device) -> None:
    """Raise DeviceError unless a session on the device can be had, by loading the smallest graph there is."""
    Session(_IDENTITY, "device probe", device)


# Where ONNX's messages hold tensors, by field number; onnx.proto is the specification.
_HOLDS_TENSORS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "initializer", 15: "sparse"},
    "training": {1: "subgraph", 2: "subgraph"},
    "function": {7: "node", 11: "attribute"},
    "subgraph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "subgraph", 10: "tensor", 11: "subgraph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "initializer": {},
    "tensor": {},
}
_EXTERNAL_DATA = 13
_WHOLE_NUMBER = re.compile("[0-9]{1,19}")


def _check_external_data(content: Any, place: str, data: Mapping[str, bytes]) -> None:
    """Raise BundleError if a tensor's numbers are neither inline nor in `data`.

    ONNX Runtime would read them from the working directory; some versions that are supported follow an absolute path,
    and take "*/_ORT_MEM_ADDR_/*" for this process's own memory. It takes from memory what an initializer of the main
    graph refers to, and reads from the disk what one of a subgraph does.
    """
    try:
        with memoryview(content) as whole:
            tensors = list(_external_tensors(whole, "model"))
    except (IndexError, ValueError, RecursionError):
        raise BundleError(f"{place}: an ONNX graph is expected; copy or export the bundle again") from None
    if tensors and not data:
        raise BundleError(
            f"{place}: a tensor's numbers are in another file, inline ones are expected; export the bundle again"
        )
    for message, entries in tensors:
        if message != "initializer":
            raise BundleError(
                f"{place}: a tensor's numbers are in another file, which is expected of the main graph's initializers "
                "alone; export the bundle again"
            )
        found = dict(entries)
        offset, length = found.get("offset", "0"), found.get("length", "")
        right = len(found) == len(entries) and found.keys() <= {"location", "offset", "length"}
        right = right and found.get("location") in data
        right = right and bool(_WHOLE_NUMBER.fullmatch(offset) and _WHOLE_NUMBER.fullmatch(length))
        # To ONNX Runtime, the length 0 is none given.
        if not right or not 0 < int(length) <= len(data[found["location"]]) - int(offset):
            got = ", ".join(f"{key} {value!r}" for key, value in entries)
            files = " or ".join(f"{name} ({len(part)} bytes)" for name, part in data.items())
            raise BundleError(
                f"{place}: a tensor's numbers within {files} are expected, got {got[:300]}; export the bundle again"
            )


def _external_tensors(content: memoryview, message: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Each tensor with its numbers elsewhere: the kind of message it is, and its keys and values that say where."""
    entries = []
    for number, value in _fields(content):
        if number == _EXTERNAL_DATA and message in ("tensor", "initializer"):
            # A key or value that stands twice counts as protobuf counts it: the last.
            entry = dict(_fields(value))
            key, text = (bytes(entry.get(number, b"")).decode(errors="replace") for number in (1, 2))
            entries.append((key, text))
        elif number in _HOLDS_TENSORS[message]:
            yield from _external_tensors(value, _HOLDS_TENSORS[message][number])
    if entries:
        yield message, entries


def _fields(content: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The number and the content of each field of a protobuf message that has a length."""
    position = 0
    while position < len(content):
        tag, position = _varint(content, position)
        # 32 bits are what protobuf's own reader keeps of a tag
        number, kind = (tag & 0xFFFFFFFF) >> 3, tag & 7
        if kind == 0:
            _, position = _varint(content, position)
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
        elif kind == 2:
            length, position = _varint(content, position)
            yield number, content[position : position + length]
            position += length
        else:
            raise ValueError(f"wire type {kind}")


def _varint(content: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a varint of more than ten bytes")


# ONNX, IR 8, opset 18: y = Identity(x), both float32 [1].
_IDENTITY = bytes.fromhex(
    "080812003a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801"
    "620f0a0179120a0a08080112040a02080142040a001012"
)


def _loads_on_cpu(runtime: Any, content: Any, options: Any) -> bool:
    try:
        runtime.InferenceSession(content, options, providers=[_CPU])
    except Exception:
        return False
    return True


def _hint(device: Device) -> str:
    if device.provider == _CUDA:
        return (
            "check that nvidia-smi shows a GPU and that the CUDA and cuDNN libraries of its version are installed; "
            + _installed()
        )
    return "check that the provider's libraries and hardware are there; " + _installed()


def _without_cuda(runtime: Any, text: str) -> str:
    return (
        f"device {text}: ONNX Runtime {runtime.__version__} has no {_CUDA} (it has "
        f"{', '.join(runtime.get_available_providers())}); {_installed()}"
    )


def _distributions() -> dict[str, str]:
    """The versions of the ONNX Runtime distributions that are installed."""
    # Imported here: it costs more than the session, and only errors need it.
    from importlib import metadata

    found = {}
    for name in ("onnxruntime", "onnxruntime-gpu"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _installed() -> str:
    """Which ONNX Runtime distributions there are, and what to do about it."""
    found = _distributions()
    shown = " and ".join(f"{name} {version}" for name, version in found.items())
    if len(found) == 2:
        return (
            f"{shown} are both installed and overwrite each other: pip uninstall both, then pip install "
            "'vae-runtime[gpu]' or 'vae-runtime[cpu]'"
        )
    if "onnxruntime" in found:
        return f"installed is {shown}, for the CPU: pip uninstall onnxruntime, then pip install 'vae-runtime[gpu]'"
    if "onnxruntime-gpu" in found:
        return f"installed is {shown}"
    return "neither onnxruntime nor onnxruntime-gpu is installed as a package: pip install 'vae-runtime[gpu]'"
