"""The hosts that conformance is asked of: how each one's driver is started, or why it is unavailable here."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
_DRIVER = str(ROOT / "conformance" / "driver.py")
_JS = ROOT / "runtime" / "js"
_CHROMIUM = os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser"


class Host(NamedTuple):
    """A host: its name, and a function that gives its driver's command, or a line that says why there is none."""

    name: str
    command: Callable[[], Sequence[str] | str]


def _python() -> Sequence[str]:
    return "env", "VAE_RUNTIME_NATIVE=0", sys.executable, _DRIVER


def _with_native(name: str, command: Callable[[Path], Sequence[str] | str]) -> Sequence[str] | str:
    """Return the command for the folder in which the native core lies, or why there is none."""
    site = ROOT / "out" / "c" / name
    if not _is_current(site / "vae_runtime_native" / "libvae_runtime.so", *_NATIVE_SOURCES):
        return "`make test-c` builds it"
    return command(site)


def _native(site: Path) -> Sequence[str]:
    return "env", "VAE_RUNTIME_NATIVE=1", f"PYTHONPATH={site}:{ROOT / 'runtime'}", sys.executable, _DRIVER, "--native"


def _oldest() -> Sequence[str] | str:
    python = ROOT / ".venvs" / "oldest" / "bin" / "python"
    if not python.exists():
        return "`make test-oldest` makes its environment"
    return "env", "VAE_RUNTIME_NATIVE=0", str(python), _DRIVER


def _arm64(native: Path | None = None) -> Sequence[str] | str:
    work = ROOT / ".venvs" / "arm64"
    if not (work / "ready").exists():
        return "`make test-arm64` makes its environment"
    qemu = work / "qemu" / "usr" / "bin" / "qemu-aarch64-static"
    root = work / "root"
    # Its Python takes packages from the environment's PYTHONPATH alone.
    path = ":".join(map(str, (work / "site", ROOT / "runtime", *([native] if native else ()))))
    return (
        "env", f"PYTHONPATH={path}", f"VAE_RUNTIME_NATIVE={int(native is not None)}", str(qemu), "-cpu", "cortex-a72",
        "-L", str(root), f"{root}/usr/bin/python3.11", _DRIVER, *(["--native"] if native else []),
    )  # fmt: skip


def library_of(site: Path | None = None) -> str | None:
    """Return the path of ONNX Runtime's shared library in a folder of packages, or this Python's; None without one."""
    if site is None:
        spec = find_spec("onnxruntime")
        if spec is None or spec.origin is None:
            return None
        site = Path(spec.origin).parents[1]
    found = sorted((site / "onnxruntime" / "capi").glob("libonnxruntime.so.*"))
    return str(found[0]) if found else None


_C_SOURCES = ("runtime/c/*.[ch]", "conformance/driver.c")
_NATIVE_SOURCES = ("runtime/c/*.[ch]", "runtime/native/*.py", "runtime/native/vae_runtime_native/*.py")


def _is_current(built: Path, *sources: str) -> bool:
    """Whether a file was built since the last change of a source that one of these patterns names."""
    changes = [path.stat().st_mtime for pattern in sources for path in ROOT.glob(pattern)]
    return built.exists() and built.stat().st_mtime >= max(changes)


def _c() -> Sequence[str] | str:
    driver, library = ROOT / "out" / "c" / "gcc" / "driver", library_of()
    if not _is_current(driver, *_C_SOURCES):
        return "`make test-c` builds its driver"
    return (str(driver), library) if library else "this ONNX Runtime's wheel has no shared library; 1.19 and newer have"


def _c_arm64() -> Sequence[str] | str:
    driver, work = ROOT / "out" / "c" / "aarch64" / "driver", ROOT / ".venvs" / "arm64"
    if not (work / "ready").exists():
        return "`make test-arm64` makes its environment"
    if not _is_current(driver, *_C_SOURCES):
        return "`make test-c` builds its driver"
    library = library_of(work / "site")
    qemu = work / "qemu" / "usr" / "bin" / "qemu-aarch64-static"
    return (str(qemu), "-cpu", "cortex-a72", "-L", str(work / "root"), str(driver), str(library))


def _javascript(driver: str, *arguments: str) -> Callable[[], Sequence[str] | str]:
    def command() -> Sequence[str] | str:
        node = shutil.which("node")
        built = _is_current(_JS / "dist" / "index.js", "runtime/js/src/**/*.ts") and (_JS / "node_modules").exists()
        if node is None or not built:
            return "`make test-js` builds it, with Node 20 or newer"
        if "chromium" in driver and not any(map(shutil.which, _CHROMIUM)):
            return "install Chromium, or name it by the variable CHROMIUM"
        return node, str(_JS / "conformance" / driver), *arguments

    return command


HOSTS = (
    Host("Python", _python),
    Host("Python with the native core", lambda: _with_native("native", _native)),
    Host("Python, oldest numpy and ONNX Runtime", _oldest),
    Host("Python on aarch64 (emulated)", _arm64),
    Host("Python with the native core, on aarch64 (emulated)", lambda: _with_native("native-aarch64", _arm64)),
    Host("C on x86-64", _c),
    Host("C on aarch64 (emulated)", _c_arm64),
    Host("Node, onnxruntime-node", _javascript("node.mjs", "onnxruntime-node")),
    Host("Node, onnxruntime-web", _javascript("node.mjs", "onnxruntime-web")),
    Host("Chromium, onnxruntime-web", _javascript("chromium.mjs")),
)
