"""Execution providers of ONNX Runtime, and which of its distributions pip installed."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .errors import BundleError, DeviceError, InputError, error_line, require_integer
from .records import Record, record

if TYPE_CHECKING:
    import logging

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


@record(frozen=True)
class Device(Record):
    """An execution provider of ONNX Runtime with its options, under a short name."""

    name: str
    provider: str
    options: Mapping[str, str]
    max_memory: int | None = None
    """Bytes that one session may take for the values between its operators; None sets no limit."""

    def __str__(self) -> str:
        return self.name


def parse_device(text: str) -> str:
    """Check a device's name, without asking for the device: "cpu", "cuda", "cuda:N", "auto" or a provider's name.

    Raises:
        InputError: the text is not one of these.
    """
    if isinstance(text, str) and (
        text in ("cpu", "cuda", "auto") or re.fullmatch("cuda:[0-9]{1,4}|[A-Za-z0-9]+ExecutionProvider", text)
    ):
        return text
    raise InputError(f"device: expected cpu, cuda, cuda:N, auto or the name of an execution provider, got {text!r}")


def resolve_device(
    text: str, provider_options: Mapping[str, Any] | None = None, max_memory: int | None = None
) -> Device:
    """Return the execution provider of a device's name; never fall back silently.

    "auto" chooses CUDA where it works, else the CPU, and logs its choice (logger `vae_runtime`).

    Raises:
        InputError: the text does not name a device, or the device has no such limit of memory.
        DeviceError: ONNX Runtime is missing, or lacks the provider.
    """
    parse_device(text)
    if max_memory is not None:
        require_integer("max_memory", max_memory, 2**20, 2**50)
        if text != "cpu":
            advice = 'on CUDA, give provider_options={"gpu_mem_limit": …}'
            raise InputError(f"max_memory: expected the device cpu, got {text}; {advice}")
    runtime = import_onnxruntime()
    available = runtime.get_available_providers()
    options = {str(key): str(value) for key, value in (provider_options or {}).items()}
    if text == "auto":
        try:
            device = resolve_device("cuda", provider_options)
            # Only opening a session shows whether a provider works.
            open_on(device, _IDENTITY, session_options("device probe"), "device probe")
        except DeviceError as error:
            _logger().warning("device auto: chose cpu, since cuda is unavailable: %s", error)
            return Device("cpu", CPU, {})
        _logger().warning("device auto: chose cuda")
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
    return Device(text, provider, options, max_memory)


def onnxruntime_version() -> str:
    """Return the version of ONNX Runtime.

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
        advice = "install one of the two: pip install 'vae-runtime[cpu]' or 'vae-runtime[gpu]'"
        versions = _distributions()
        if versions:
            name = next(iter(versions))
            damaged = f"found {name} {versions[name]}, which is damaged: pip install --force-reinstall {name}"
            advice = damaged if len(versions) == 1 else _installed()
        raise DeviceError(f"ONNX Runtime cannot be imported ({error_line(error)}); {advice}") from error
    if not hasattr(onnxruntime, "InferenceSession"):
        raise DeviceError(f"ONNX Runtime is damaged; {_installed()}")
    return onnxruntime


def _strict(runtime: Any) -> Any:
    """Return ONNX Runtime's session class without its fallback to the CPU, which it reports on stdout."""
    never = property(lambda self: False, lambda self, value: None)
    return type("InferenceSession", (runtime.InferenceSession,), {"_enable_fallback": never})


def preload_cuda(runtime: Any) -> None:
    """Let ONNX Runtime find the CUDA libraries of the nvidia-* packages, keeping what it prints off stdout."""
    if hasattr(runtime, "preload_dlls"):
        from .console import printing_to  # not needed on the CPU

        printed = io.StringIO()
        with printing_to(printed):
            runtime.preload_dlls()
        if printed.getvalue().strip():
            _logger().info("onnxruntime.preload_dlls: %s", printed.getvalue().strip())


def session_options(place: str, threads: int = 1, data: Mapping[str, bytes] | None = None) -> Any:
    """Return the options of every session, an `onnxruntime.SessionOptions`.

    Args:
        place: what to call the graph in errors.
        threads: intra-op threads.
        data: the bytes of the files of weights that the graph may refer to, by name.

    Raises:
        BundleError: there are such files, and this ONNX Runtime cannot take them from memory.
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
                f"{place}: ONNX Runtime {runtime.__version__} cannot load weights from a file beside a graph; a newer "
                "version can: pip install --upgrade onnxruntime (or onnxruntime-gpu, where that is installed)"
            )
        # From memory: ONNX Runtime would read them from the working directory, unchecked.
        sizes = [len(part) for part in data.values()]
        options.add_external_initializers_from_files_in_memory(list(data), list(data.values()), sizes)
    return options


def open_on(device: Device, content: bytes | str, options: Any, place: str, *, roomy: bool = False) -> Any:
    """Open ONNX Runtime's own session on a device, never on another.

    Args:
        device: an execution provider with its options.
        content: the ONNX file's bytes, or its path.
        options: an `onnxruntime.SessionOptions`.
        place: what to call the graph in errors.
        roomy: whether the values between operators may become large, so that they share one range of addresses.

    Returns:
        An `onnxruntime.InferenceSession`.

    Raises:
        BundleError: ONNX Runtime does not load the graph.
        DeviceError: the session cannot be opened on the device, or was opened on another.
    """
    runtime = import_onnxruntime()
    try:
        providers = [(device.provider, dict(device.options))]
        if device.max_memory is None and not (roomy and device.provider == CPU):
            session = _strict(runtime)(content, options, providers=providers)
        else:
            # Until the next one is registered, every session that asks for such an arena takes this one.
            with _registering:
                if device.max_memory is not None:
                    _limit_arena(runtime, device.max_memory)
                    options.add_session_config_entry("session.use_env_allocators", "1")
                elif _widen_arena(runtime):
                    options.add_session_config_entry("session.use_env_allocators", "1")
                session = _strict(runtime)(content, options, providers=providers)
                if device.max_memory is None:
                    # ONNX Runtime keeps the last one, with all its memory.
                    _widen_arena(runtime)
    except DeviceError:
        raise
    except Exception as error:
        if device.provider != CPU and _loads_on_cpu(runtime, content, options):
            raise DeviceError(f"{place}: device {device}: {error_line(error)}; {_hint(device)}") from error
        raise BundleError(
            f"{place}: ONNX Runtime {runtime.__version__} does not load this graph: {error_line(error)}"
        ) from error
    if hasattr(session, "_model_bytes"):
        # ONNX Runtime keeps it to load the graph again for other providers: as much memory as all the weights.
        session._model_bytes = None
    in_use = session.get_providers()
    if in_use[0] != device.provider:
        raise DeviceError(f"{place}: device {device}: expected {device.provider}, got {in_use[0]}; " + _hint(device))
    return session


_registering = threading.Lock()


# Bytes of addresses that a session reserves for large values: the most that ONNX Runtime takes as a number.
_RANGE = 2**31 - 2**20


def _limit_arena(runtime: Any, max_memory: int) -> None:
    """Give the next session an arena with a limit."""
    try:
        # It takes what is asked for: the other strategy doubles the arena.
        _register_arena(runtime, {"max_mem": max_memory, "arena_extend_strategy": 1})
    except Exception as error:
        raise DeviceError(
            f"max_memory: ONNX Runtime {runtime.__version__} cannot limit one session: {error_line(error)}; install a "
            "newer one, or use vae-runtime … --untrusted"
        ) from error


def _widen_arena(runtime: Any) -> bool:
    """Give the next session an arena in one range of addresses; return whether that can be.

    By itself an arena grows in parts, and values that are no longer needed leave gaps in each, together almost as much
    as the values. Linux gives memory to addresses when they are used. Where they are limited to less than 8 GiB,
    nothing is reserved.
    """
    # Older ones keep the first arena that is registered, for the whole process.
    if sys.platform != "linux" or [int(part) for part in runtime.__version__.split(".")[:2]] < [1, 23]:
        return False
    import resource  # not needed on the start-up path

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < 4 * _RANGE:
        return False
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    settings = {"initial_chunk_size_bytes": min(_RANGE, pages // 2), "max_dead_bytes_per_chunk": 2**20}
    try:
        _register_arena(runtime, settings)
    except Exception:
        return False
    return True


def _register_arena(runtime: Any, settings: Mapping[str, int]) -> None:
    """Set the arena of the sessions to come that ask for it.

    ONNX Runtime takes one for a whole process alone. A new one replaces it for the sessions to come, while those that
    are open keep theirs.
    """
    info = runtime.OrtMemoryInfo("Cpu", runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, runtime.OrtMemType.DEFAULT)
    # Below 1.23, the first stays for the whole process, and the second is refused.
    for _ in range(2):
        runtime.create_and_register_allocator(info, runtime.OrtArenaCfg(dict(settings)))


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
    """Return the versions of the ONNX Runtime distributions that are installed."""
    # Importing it costs more than opening a session, and only errors need it.
    from importlib import metadata

    versions = {}
    for name in ("onnxruntime", "onnxruntime-gpu"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _installed() -> str:
    """Return which ONNX Runtime distributions are installed, and the next step."""
    versions = _distributions()
    shown = " and ".join(f"{name} {version}" for name, version in versions.items())
    if len(versions) == 2:
        return (
            f"{shown} are both installed and overwrite each other: pip uninstall both, then pip install "
            "'vae-runtime[gpu]' or 'vae-runtime[cpu]'"
        )
    if "onnxruntime" in versions:
        return f"found {shown}, for the CPU: pip uninstall onnxruntime, then pip install 'vae-runtime[gpu]'"
    if "onnxruntime-gpu" in versions:
        return f"found {shown}"
    return "neither onnxruntime nor onnxruntime-gpu is installed as a package: pip install 'vae-runtime[gpu]'"
