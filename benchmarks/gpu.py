"""What needs an NVIDIA GPU: the tests of the CUDA path, `verify` on it, and the benchmark, which writes its page.

    make cuda
    make cuda ORT_CUDA=DIR CUDA="--models mlp"

Without a GPU it says so, and succeeds. It imports the standard library alone, since it finds out what else is there.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from .carried import CarriedError, package_folder

ROOT = Path(__file__).parents[1]
# What the tests, the models of the benchmark and its contenders import; onnxruntime is asked for apart.
NEEDED = ("hypothesis", "matplotlib", "numpy", "onnx", "onnxscript", "PIL", "pytest", "safetensors", "sklearn", "torch",
          "tqdm")  # fmt: skip
TESTS = (
    "tests/runtime/test_session.py", "tests/runtime/test_device_noise.py", "tests/runtime/test_networks.py",
    "tests/runtime/test_batch_of_one.py", "tests/runtime/test_noise.py", "tests/parity/test_noise.py",
)  # fmt: skip
MODELS = ("models/digits", "models/digits-conditional", "models/mnist")


def gpus() -> tuple[list[str], str]:
    """Return the names of this machine's NVIDIA GPUs, and why there are none."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except OSError:
        return [], "no nvidia-smi that can be run"
    except subprocess.TimeoutExpired:
        return [], "no answer of nvidia-smi within a minute"
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines() or [f"exit status {done.returncode}"]
        return [], f"nvidia-smi that says: {said[-1]}"
    names = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return names, "nvidia-smi that lists none"


def problem(environment: Mapping[str, str]) -> str | None:
    """Return what this interpreter lacks, with the next step, or None."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return (
            f"expected the packages {', '.join(NEEDED)} in {sys.executable}, got none of {', '.join(missing)}; install "
            "them, or take another interpreter: make cuda PYTHON=…"
        )
    for code, what, step in (
        ("import torch; assert torch.cuda.is_available()", "PyTorch with CUDA", "install PyTorch for this GPU's CUDA"),
        ("import onnxruntime as o; assert 'CUDAExecutionProvider' in o.get_available_providers()",
         "ONNX Runtime with CUDA", "install onnxruntime-gpu, or carry it: make cuda ORT_CUDA=DIR"),
    ):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=dict(environment)
        )
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
            return f"expected {what} in {sys.executable}, got {said}; {step}"
    return None


def commands(more: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Return what is run, in order, each with its name."""
    python = sys.executable
    verify = [
        (f"verify {model}", [python, "-m", "vae_runtime", "verify", model, "--device", "cuda"]) for model in MODELS
    ]
    tests = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
    return [*verify, ("the tests", tests), ("the benchmark", [python, "-m", "benchmarks.cuda", "--build", *more])]


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything, and return the exit status: 0 where it passed or there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--onnxruntime", type=Path, help="the folder of an ONNX Runtime that was carried here")
    options, more = parser.parse_known_args(argv)
    names, reason = gpus()
    if not names:
        print(f"cuda: skipped: expected an NVIDIA GPU, got {reason}")
        return 0
    print(f"cuda: {', '.join(names)}", flush=True)
    path = [str(ROOT / "runtime"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        if options.onnxruntime is not None:
            path.insert(0, str(package_folder(options.onnxruntime.resolve(), ROOT / "out" / "cuda")))
    except (CarriedError, OSError) as error:
        print(f"cuda: {error}", file=sys.stderr)
        return 1
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    lacking = problem(environment)
    if lacking:
        print(f"cuda: {lacking}", file=sys.stderr)
        return 1
    for name, command in commands(more):
        print(f"cuda: {name}", flush=True)
        if subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode:
            print(f"cuda: {name}: failed; see above", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
