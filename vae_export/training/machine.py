"""The device that a run computes on, and PyTorch's settings while it does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from vae_runtime.errors import DeviceError, error_line

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The dtype that networks compute in, by its name in a configuration."""


def find_device(name: str, process: int = 0, processes: int = 1) -> torch.device:
    """Return the device of this name, after it has computed something.

    Args:
        name: cpu, cuda, cuda:N, mps, or auto: a GPU where PyTorch can use one, else the CPU.
        process: number of this process on its machine; `cuda` is the GPU of this number.
        processes: of the whole training.

    Raises:
        DeviceError: PyTorch cannot use it, or several processes cannot share it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if processes > 1 and name not in ("cpu", "cuda"):
        raise DeviceError(
            f"train.device: expected cpu or cuda for {processes} processes, of which each takes a device of its own, "
            f"got {name!r}; leave the number of the device out"
        )
    device = torch.device("cuda", process) if name == "cuda" else torch.device(name)
    try:
        torch.zeros(1, device=device).add_(1).item()
    except Exception as error:  # PyTorch has a class of its own for each kind of device
        # Some go on to list all that PyTorch was built with.
        reason = error_line(error).partition(". ")[0]
        raise DeviceError(
            f"train.device: expected a device that works, got {str(device)!r}: {reason}; choose another or auto"
        ) from error
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def shown(device: torch.device, threads: int) -> str:
    """Return a device as it is shown: `cpu, 2 threads`, or `cuda:0, NVIDIA H200`."""
    if device.type == "cpu":
        # Nobody is to wait for a CPU beside an idle GPU without knowing it.
        hint = "; --device cuda would take the GPU" if torch.cuda.is_available() else ""
        return f"cpu, {threads} thread{'s' if threads > 1 else ''}{hint}"
    return named(device)


def named(device: torch.device) -> str:
    """Return a device with the name of its maker: `cpu`, `cuda:0, NVIDIA H200`."""
    return f"{device}, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else str(device)


def sum_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype that figures are summed in: float64, which MPS does not have."""
    return torch.float32 if device.type == "mps" else torch.float64


@contextlib.contextmanager
def settings(threads: int, device: torch.device) -> Iterator[None]:
    """Run PyTorch with this many threads inside the block, on a CPU with deterministic algorithms.

    The state of its global generators is put back in the end.
    """
    threads_before = torch.get_num_threads()
    deterministic_before = torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads or threads_before)
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        torch.use_deterministic_algorithms(deterministic_before)
        torch.set_num_threads(threads_before)
