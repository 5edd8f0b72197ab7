"""The machine that a run measures on: what it is, and how busy it is."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Return what the measurements are taken on."""
    about: dict[str, Any] = {
        "system": platform.system(), "architecture": platform.machine(), "python": platform.python_version(),
        "processors": os.cpu_count(), "processor": platform.processor(), "flags": [],
    }  # fmt: skip
    with contextlib.suppress(OSError, ValueError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        fields = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
        fields = {key.strip(): value.strip() for key, value in fields.items()}
        about["processor"] = fields.get("model name", about["processor"])
        wanted = {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "avx_vnni"}
        about["flags"] = sorted(wanted & set(fields.get("flags", "").split()))
        memory = Path("/proc/meminfo").read_text(encoding="ascii").split()
        about["memory"] = int(memory[1]) * 1024
    return about


def available_memory() -> float:
    """Return the share of the machine's memory that is free for new work; 1 where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = {line.split(":")[0]: int(line.split()[1]) for line in file}
        return rounded(fields["MemAvailable"] / fields["MemTotal"])
    except (OSError, KeyError, ValueError):
        return 1.0


def stolen() -> tuple[int, int]:
    """Return the ticks that a hypervisor gave to others, and all ticks; zeros where the system does not say."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            ticks = [int(each) for each in file.readline().split()[1:9]]
    except (OSError, ValueError):
        return 0, 0
    return ticks[7], sum(ticks)


def share(before: tuple[int, int], after: tuple[int, int]) -> float:
    return rounded((after[0] - before[0]) / max(1, after[1] - before[1]))


def rounded(value: float) -> float:
    """Return a value with four digits: more would be noise in the file of figures."""
    return float(f"{value:.4g}")
