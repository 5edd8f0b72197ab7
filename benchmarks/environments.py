"""Virtual environments of the contenders, made on demand, and what their packages take on the disk."""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from vae_runtime.errors import VaeError
from vae_runtime.files import write_atomic

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".venvs"

# Each peer alone, so that its installed size is its own; what only converts models has environments beside.
REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "runtime": ("-e", "runtime[cpu]", "editables"),
    "native": ("-e", "runtime[cpu]", "editables", "./runtime/native"),
    "ray": ("-e", "runtime[cpu,ray]", "editables"),
    "openvino": ("openvino==2026.4.1",),
    "nncf": ("openvino==2026.4.1", "nncf==3.4.0", "onnx"),
    "litert": ("ai-edge-litert==2.3.0",),
    "litert-torch": ("litert-torch==0.10.0", "torch"),
    "executorch": ("executorch==1.5.1", "torch"),
}


class EnvironmentFailure(VaeError):
    """A contender's packages cannot be installed here."""


def python_of(name: str, *, here: bool = False) -> Path:
    """Return the interpreter of an environment, and make the environment if it does not exist.

    Args:
        name: of REQUIREMENTS; "dev" is the environment that runs the benchmark.
        here: take the running interpreter for "runtime" too.

    Raises:
        EnvironmentFailure: pip failed; the message has its last line.
    """
    if name == "dev" or (here and name == "runtime"):
        return Path(sys.executable)
    folder = FOLDER / f"bench-{name}"
    python = folder / "bin" / "python"
    constraints = _constraints(name)
    wanted = "\n".join((*REQUIREMENTS[name], constraints))
    installed = folder / "installed"
    if installed.is_file() and installed.read_text(encoding="utf-8") == wanted:
        return python
    print(f"{folder.relative_to(ROOT)}: installing {' '.join(REQUIREMENTS[name])}", file=sys.stderr, flush=True)
    venv.create(folder, clear=True, with_pip=True)
    listed = folder / "constraints.txt"
    write_atomic(listed, constraints.encode())
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(listed)]
    done = subprocess.run([*command, *REQUIREMENTS[name]], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise EnvironmentFailure(f"pip install {' '.join(REQUIREMENTS[name])}: {(lines or ['failed'])[-1][:300]}")
    write_atomic(installed, wanted.encode())
    return python


def _constraints(name: str) -> str:
    """Lines of constraints.txt; for peers that need PyTorch, which may need other versions of the rest, that alone.

    It is the very build that runs here: pip would take the one for CUDA, some gigabytes, where this is one without.
    """
    if "torch" in REQUIREMENTS[name]:
        return f"torch=={metadata.version('torch')}\n"
    return "" if name == "nncf" else (ROOT / "constraints.txt").read_text(encoding="utf-8")


def site_packages(python: Path) -> Path:
    """Return the folder of an interpreter's packages."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip())


def installed(site: Path, roots: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Return the version and the bytes on the disk of distributions and all that they require, by name.

    Their requirements are followed, optional extras are not; distributions that are missing are left out.
    """
    available = {_plain(each.name): each for each in metadata.distributions(path=[str(site)])}
    found: dict[str, tuple[str, int]] = {}
    waiting = [_plain(root) for root in roots]
    while waiting:
        name = waiting.pop()
        if name in found or name not in available:
            continue
        distribution = available[name]
        files = [Path(str(file.locate())) for file in distribution.files or []]
        found[name] = (distribution.version, sum(file.stat().st_size for file in files if file.is_file()))
        for text in distribution.requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(_plain(requirement.name))
    return found


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
