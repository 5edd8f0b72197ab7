"""The machine that makes a shard: decoded bytes depend on it, latents do not."""

from __future__ import annotations

import contextlib
import functools
import platform
from pathlib import Path

from ..devices import onnxruntime_version

# Instruction sets by which ONNX Runtime chooses its kernels.
_FEATURES = ("avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "asimd", "asimddp",
             "i8mm", "sve", "bf16")  # fmt: skip


def describe_machine(device: str) -> dict[str, str]:
    """Return the version of ONNX Runtime, the processor's instruction sets and the device."""
    return {**_software_and_processor(), "device": device}


@functools.cache
def _software_and_processor() -> dict[str, str]:
    features = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
        flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
        features = " ".join(flag for flag in _FEATURES if flag in flags.partition(":")[2].split())
    return {"onnxruntime": onnxruntime_version(), "processor": f"{platform.machine()} {features}".strip()}
