"""The hosts that conformance is asked of: how each one's driver is started, or why it is unavailable here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
_DRIVER = str(ROOT / "conformance" / "driver.py")


class Host(NamedTuple):
    """A host: its name, and a function that gives its driver's command, or a line that says why there is none."""

    name: str
    command: Callable[[], Sequence[str] | str]


def _python() -> Sequence[str]:
    return sys.executable, _DRIVER


def _oldest() -> Sequence[str] | str:
    python = ROOT / ".venvs" / "oldest" / "bin" / "python"
    return (str(python), _DRIVER) if python.exists() else "`make test-oldest` makes its environment"


def _arm64() -> Sequence[str] | str:
    work = ROOT / ".venvs" / "arm64"
    if not (work / "ready").exists():
        return "`make test-arm64` makes its environment"
    qemu = work / "qemu" / "usr" / "bin" / "qemu-aarch64-static"
    root = work / "root"
    # Its Python takes packages from the environment's PYTHONPATH alone.
    path = f"PYTHONPATH={work / 'site'}:{ROOT / 'runtime'}"
    return (
        "env", path, str(qemu), "-cpu", "cortex-a72", "-L", str(root), f"{root}/usr/bin/python3.11", _DRIVER,
    )  # fmt: skip


HOSTS = (
    Host("Python", _python),
    Host("Python, oldest numpy and ONNX Runtime", _oldest),
    Host("Python on aarch64 (emulated)", _arm64),
)
