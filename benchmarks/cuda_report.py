"""Write the tables of docs/benchmarks-cuda.md from the figures of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from vae_runtime.timing import Quartiles, quartiles

from .figures import shown, table
from .targets import Target

PAGE = "benchmarks-cuda.md"
OURS, COMPILED = "vae-runtime", "torch.compile"
# The ways of vae-runtime that leave the samples on the GPU.
ON_DEVICE = (OURS, f"{OURS}, 512 at a time", f"{OURS}, one stream", f"{OURS}, host noise")

Found = Mapping[str, Any]
Cell = tuple[str, str, int]


def _cells(found: Found) -> dict[Cell, list[Mapping[str, float]]]:
    """The rounds of each model, precision and batch size."""
    cells: dict[Cell, list[Mapping[str, float]]] = {}
    for entry in found["rounds"]:
        cells.setdefault((entry["model"], entry["precision"], entry["batch"]), []).append(entry["seconds"])
    return cells


def _ratio(rounds: Iterable[Mapping[str, float]], over: str, under: str) -> Quartiles | None:
    """How long one way takes, × another, within each round."""
    return quartiles(each[over] / each[under] for each in rounds if over in each and under in each)


def cuda_targets(found: Found) -> list[Target]:
    """The targets at batch 4096 in 32 bits, each for the fastest way that leaves its samples on the GPU."""
    cells, lines = _cells(found), []
    for model, what in (("mnist", "MNIST conv"), ("transposed", "ConvTranspose to 64²"), ("nearest", "nearest to 64²")):
        rounds = cells.get((model, "fp32", 4096), [])
        values = [(value, way) for way in ON_DEVICE if (value := _ratio(rounds, COMPILED, way))]
        value, way = max(values, key=lambda each: each[0].median, default=(None, ""))
        lines.append(Target(f"sample, batch 4096, {what}: × torch.compile", value, 1.2, note=way))
    return lines


def cuda_section(found: Found) -> str:
    """Return what was measured on, the targets, a table of all ways, and what was left out."""
    noise = f"CuPy {found['cupy']} draws noise" if found["cupy"] else "without CuPy: the host draws all noise"
    parts = [
        f"{found['device']}, PyTorch {found['torch']}, ONNX Runtime {found['onnxruntime']}, {noise}. {found['date']}.",
        table(("work", "target", "measured (quartiles)", "", "fastest way"), map(_judged, cuda_targets(found))),
        "Samples a second of vae-runtime on the GPU, all at once, and how many times as fast it is as the other ways:",
    ]
    others = ("PyTorch eager", COMPILED, *ON_DEVICE[1:], f"{OURS}, to numpy")
    rows = []
    for (model, precision, batch), rounds in _cells(found).items():
        ours = [each[OURS] for each in rounds if OURS in each]
        rate = f"{batch / np.median(ours):,.0f}" if ours else "–"
        ratios = [_ratio(rounds, other, OURS) for other in others]
        share = _ratio(rounds, "noise alone, host", f"{OURS}, host noise")
        cells = [f"{each.median:.2f}" if each else "–" for each in (*ratios, share)]
        rows.append((found["titles"][model], precision, str(batch), rate, *cells))
    names = [f"× {other.removeprefix(f'{OURS}, ')}" for other in others]
    parts.append(table(("model", "precision", "batch", "samples/s", *names, "host noise's share"), rows))
    if found["skipped"]:
        parts.append("\n".join(f"- Skipped: {line}" for line in found["skipped"]))
    return "\n\n".join(parts)


def _judged(line: Target) -> tuple[str, ...]:
    words = {True: "met", False: "**not met**", None: "not measured"}
    return line.work, f"≥ {line.bound:g}", shown(line.figure), words[line.met], line.note
