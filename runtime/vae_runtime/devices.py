"""Execution providers of ONNX Runtime, and which of its distributions pip installed."""

from __future__ import annotations

import contextlib
import io
import re
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .errors import BundleError, DeviceError, InputError, error_line
from .records import Record, record

if TYPE_CHECKING:
    import logging

__all__ = [
    "CPU",
    "CUDA",
    "Device",
    "import_onnxruntime",
    "onnxruntime_version",
    "open_on",
    "parse_device",
    "resolve_device",
    "session_options",
]

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
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
    runtime = import_onnxruntime()
    available = runtime.get_available_providers()
    options = {str(key): str(value) for key, value in (provider_options or {}).items()}
    if text == "auto":
        try:
            device = resolve_device("cuda", provider_options)
            # The smallest graph there is: whether a provider works shows only when a session is opened.
            open_on(device, _IDENTITY, session_options("device probe"), "device probe")
        except DeviceError as error:
            _logger().warning("device auto: cpu was chosen, since cuda is not there: %s", error)
            return Device("cpu", CPU, {})
        _logger().warning("device auto: cuda was chosen")
        return device
    if text.startswith("cuda"):
        if CUDA not in available:
            raise DeviceError(_without_cuda(runtime, text))
        preload_cuda(runtime)
        index = text.partition(":")[2] or "0"
        # TF32 rounds the factors of a matrix product to 10 bits: three decimal digits, where parity needs six.
        return Device(text, CUDA, {"device_id": index, "use_tf32": "0", **options})
    provider = CPU if text == "cpu" else text
    if provider not in available:
        raise DeviceError(
            f"device {text}: this ONNX Runtime ({runtime.__version__}) has {', '.join(available)}; choose one of "
            "these, or install an ONNX Runtime that was built with it"
        )
    return Device(text, provider, options)


def onnxruntime_version() -> str:
    """The version of ONNX Runtime.

    Raises:
        DeviceError: it is missing.
    """
    return str(import_onnxruntime().__version__)


def _logger() -> logging.Logger:
    import logging  # not needed on the start-up path

    return logging.getLogger("vae_runtime")


def import_onnxruntime() -> Any:
    """Import ONNX Runtime.

    Raises:
        DeviceError: it is missing or damaged; the message says what to install.
    """
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


def preload_cuda(runtime: Any) -> None:
    """Let ONNX Runtime find the CUDA libraries of the nvidia-* packages, keeping what it prints off stdout."""
    if hasattr(runtime, "preload_dlls"):
        said = io.StringIO()
        # Of two threads that redirect stdout at once, one would put back the other's.
        with _preloading, contextlib.redirect_stdout(said):
            runtime.preload_dlls()
        if said.getvalue().strip():
            _logger().info("onnxruntime.preload_dlls: %s", said.getvalue().strip())


def session_options(place: str, threads: int = 1, data: Mapping[str, bytes] | None = None) -> Any:
    """Return the options that every session of ours has: an `onnxruntime.SessionOptions`.

    Args:
        place: what to call the graph in errors.
        threads: intra-op threads.
        data: the bytes of the files of weights that the graph may refer to, by name.

    Raises:
        BundleError: there are such files, which this ONNX Runtime takes from the disk alone.
    """
    runtime = import_onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.load_model_format", "ONNX")
    if data:
        if not hasattr(options, "add_external_initializers_from_files_in_memory"):
            raise BundleError(
                f"{place}: ONNX Runtime {runtime.__version__} takes no weights from beside a graph; a newer one "
                "does: pip install --upgrade onnxruntime (or onnxruntime-gpu, where that is installed)"
            )
        # From memory: from the disk, ONNX Runtime would take them relative to the working directory, unchecked.
        sizes = [len(part) for part in data.values()]
        options.add_external_initializers_from_files_in_memory(list(data), list(data.values()), sizes)
    return options


def open_on(device: Device, content: bytes | str, options: Any, place: str) -> Any:
    """Open ONNX Runtime's own session on a device, and on no other.

    Args:
        device: an execution provider with its options.
        content: the ONNX file's bytes, or its path.
        options: an `onnxruntime.SessionOptions`.
        place: what to call the graph in errors.

    Returns:
        An `onnxruntime.InferenceSession`.

    Raises:
        BundleError: ONNX Runtime does not take the graph.
        DeviceError: the session cannot be opened on the device, or came to be on another.
    """
    runtime = import_onnxruntime()
    try:
        session = _strict(runtime)(content, options, providers=[(device.provider, dict(device.options))])
    except Exception as error:
        if device.provider != CPU and _loads_on_cpu(runtime, content, options):
            raise DeviceError(f"{place}: device {device}: {error_line(error)}; {_hint(device)}") from error
        raise BundleError(
            f"{place}: ONNX Runtime {runtime.__version__} does not load this graph: {error_line(error)}"
        ) from error
    if hasattr(session, "_model_bytes"):
        # Kept there to load the graph again for other providers: as much memory as all the weights.
        session._model_bytes = None
    in_use = session.get_providers()
    if in_use[0] != device.provider:
        raise DeviceError(
            f"{place}: device {device}: {device.provider} was asked for, ONNX Runtime gave {in_use[0]}; "
            + _hint(device)
        )
    return session


# ONNX, IR 8, opset 18: y = Identity(x), both float32 [1].
_IDENTITY = bytes.fromhex(
    "080812003a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801"
    "620f0a0179120a0a08080112040a02080142040a001012"
)


def _loads_on_cpu(runtime: Any, content: Any, options: Any) -> bool:
    try:
        runtime.InferenceSession(content, options, providers=[CPU])
    except Exception:
        return False
    return True


def _hint(device: Device) -> str:
    if device.provider == CUDA:
        return (
            "check that nvidia-smi shows a GPU and that the CUDA and cuDNN libraries of its version are installed; "
            + _installed()
        )
    return "check that the provider's libraries and hardware are there; " + _installed()


def _without_cuda(runtime: Any, text: str) -> str:
    return (
        f"device {text}: ONNX Runtime {runtime.__version__} has no {CUDA} (it has "
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
