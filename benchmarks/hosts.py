"""Measure the runtimes in C and in JavaScript: the first beside Python, the noise of the other beside Math.random."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import environments
from .capacity import first_sample, python_first
from .contenders import CONTENDERS
from .processes import Process
from .runs import ROOT, Run

PYTHONS = ("naive", "ours-fp32")
PROGRAM = ROOT / "out" / "c" / "gcc" / "bench"
LIBRARY = "libvae_runtime.so"
NOISE = ROOT / "runtime" / "js" / "scripts" / "bench.mjs"


def compare_hosts(run: Run) -> None:
    """Time cold starts and single samples of Python and of C in turns, all on the ONNX Runtime of one environment."""
    model = next((name for name in run.found["models"] if name in ("mlp", "tiny")), None)
    if model is None:
        return
    if not PROGRAM.exists():
        run.skip("vae-runtime in C", "its program is missing: `make test-c` builds it", work="other languages")
        return
    python = environments.python_of("runtime", here=run.options.quick)
    library = _library(environments.site_packages(python))
    if library is None:
        run.skip("vae-runtime in C", "the wheel of this ONNX Runtime has no shared library", work="other languages")
        return
    folder = run.data / model
    latent = tuple(run.found["models"][model]["latent_shape"])
    program = [str(PROGRAM), str(library), str(folder / "bundle")]
    starts: dict[str, Callable[[int], list[str]]] = {
        name: functools.partial(python_first, python, name, str(folder), latent) for name in PYTHONS
    }
    starts["c"] = lambda ready: [*program, str(ready)]
    calls = {name: _python(run, python, name, str(folder)) for name in PYTHONS}
    calls["c"] = Process([*program, "2"], ROOT, run.environment(1))
    seconds = 0.02 if run.options.quick else 0.3
    try:
        for number in range(1 if run.options.quick else 3 * run.options.rounds):
            taken: dict[str, dict[str, float]] = {}
            for name in run.random.sample(list(starts), len(starts)):
                taken[name] = first_sample(run, name, starts[name])
            for name in run.random.sample(list(calls), len(calls)):
                taken[name]["sample"] = _median(calls[name], name, str(folder), seconds)
            title = run.found["models"][model]["title"]
            entry = {"round": number, "model": title, "sizes": _sizes(library), "load": os.getloadavg()[0]}
            run.found["hosts"].append({**entry, "hosts": taken})
    finally:
        for process in calls.values():
            process.close()


def compare_noise(run: Run) -> None:
    """Time a number of the noise in JavaScript beside one of Math.random and the Box-Muller transform, in Node."""
    node = shutil.which("node")
    if node is None or not (ROOT / "runtime" / "js" / "dist").exists():
        run.skip("vae-runtime in JavaScript", "`make test-js` builds it", work="other languages")
        return
    for _ in range(1 if run.options.quick else run.options.rounds):
        done = subprocess.run([node, str(NOISE), "--json"], check=True, capture_output=True, encoding="utf-8")
        run.found["javascript"].append(json.loads(done.stdout))


def _python(run: Run, python: Path, name: str, folder: str) -> Process:
    process = run.worker(name, 1, python)
    process.ask(do="open", folder=folder)
    process.ask(do="prepare", folder=folder, work=_work(name), batch=1)
    return process


def _work(name: str) -> str:
    # The naive program calls the graph alone, without any noise.
    return "decode" if name == "naive" else "sample"


def _median(process: Process, name: str, folder: str, seconds: float) -> float:
    order: dict[str, Any] = {"rows": 1, "seconds": seconds}
    if name in CONTENDERS:
        order = {"do": "measure", "folder": folder, "work": _work(name), "batch": 1, "seconds": seconds}
    return float(process.ask(**order)["median"])


def _library(site: Path) -> Path | None:
    return next(iter(sorted((site / "onnxruntime" / "capi").glob("libonnxruntime.so.*"))), None)


def _sizes(library: Path) -> dict[str, int]:
    """Return the bytes of the library in C and of ONNX Runtime's."""
    return {"c": (PROGRAM.parent / LIBRARY).stat().st_size, "onnxruntime": library.stat().st_size}
