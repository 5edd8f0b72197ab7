"""Export every model of the zoo and write docs/compatibility.md: `make zoo`, or `PYTHONPATH=tests python -m zoo`.

Each model is exported in a process of its own, so that a failure or a peak of memory is that model's alone. With
--optimum PYTHON, an interpreter that has optimum-onnx, that exporter is run on the models it can be asked for.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from .models import ENTRIES, Entry

ROOT = Path(__file__).parents[2]
# What a library's package is called, where it is not called as its module.
_PACKAGES = {"scvi": "scvi-tools", "vector_quantize_pytorch": "vector-quantize-pytorch"}
# Long enough for Stable Diffusion's autoencoder on two cores.
_TIMEOUT = 1800
# Below this, the memory of an export is that of Python and PyTorch, and says nothing of the model.
_WORTH_A_RATIO = 2**26
# What optimum-onnx calls the models that it can be asked for, and what its own code makes of their forward.
_OPTIMUM = {"AutoencoderKL": "vae", "AutoencoderDC": "dcae"}
_OPTIMUM_SCRIPT = """
import json, sys, time, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import diffusers, onnxruntime, torch
from optimum.exporters.onnx import export
from optimum.exporters.tasks import TasksManager

folder, cls, kind = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
def model():
    return getattr(diffusers, cls).from_pretrained(folder / "model").eval()
x = torch.load(folder / "x.pt")
encoder, decoder, own = model(), model(), model()
def latent(x):
    return own.encode(x)["latent_dist"].parameters if kind == "vae" else own.encode(x).latent
name = "latent_parameters" if kind == "vae" else "latent_sample"
encoder.forward = (
    (lambda sample: {name: type(encoder).encode(encoder, x=sample)["latent_dist"].parameters})
    if kind == "vae" else (lambda sample: {name: type(encoder).encode(encoder, x=sample).latent})
)
decoder.forward = lambda latent_sample: type(decoder).decode(decoder, z=latent_sample)
begun = time.perf_counter()
for part, module in (("encoder", encoder), ("decoder", decoder)):
    config = TasksManager.get_exporter_config_constructor(
        model=module, exporter="onnx", library_name="diffusers", task="semantic-segmentation",
        model_type=f"{kind}-{part}",
    )
    export(module, config(module.config, int_dtype="int64", float_dtype="fp32"), folder / f"{part}.onnx", opset=18)
seconds = time.perf_counter() - begun
worst = 0.0
with torch.no_grad():
    for rows in (x, torch.cat([x, x.flip(-1)], -1)[:1]):
        z = latent(rows)
        half = z.chunk(2, 1)[0] if kind == "vae" else z
        for part, given, expected in (("encoder", rows, z), ("decoder", half, own.decode(half).sample)):
            session = onnxruntime.InferenceSession(folder / f"{part}.onnx")
            found = session.run(None, {session.get_inputs()[0].name: given.numpy()})[0]
            worst = max(worst, float((torch.from_numpy(found).double() - expected.double()).abs().max()))
print(json.dumps({"seconds": seconds, "error": worst}))
"""


def main() -> int:
    """Export all, or with --one the model of that number, for the parent process."""
    parser = argparse.ArgumentParser(prog="zoo", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "compatibility.md")
    parser.add_argument("--optimum", help="a Python that has optimum-onnx, diffusers and onnxruntime")
    parser.add_argument("--only", default="", help="only models whose name has this in it; nothing is written")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(_export(ENTRIES[arguments.one])))
        return 0
    results = []
    for number, entry in enumerate(ENTRIES):
        if arguments.only not in str(entry):
            continue
        print(f"{entry}: ", end="", flush=True)
        result = _in_a_process([sys.executable, "-m", "zoo", "--one", str(number)])
        # As a test does: what is expected to be refused must be, and for the reason that is stated.
        refused = entry.expect and entry.expect.removeprefix("refused: ") in result.get("failed", "")
        result["as_expected"] = bool(refused) if entry.expect else "failed" not in result
        result["optimum"] = _optimum(entry, arguments.optimum)
        print(result.get("failed") or f"{result['seconds']:.0f} s, error {result['error']:.1e}", flush=True)
        results.append((entry, result))
    if not arguments.only:
        arguments.out.write_text(_document(results, arguments.optimum), encoding="utf-8")
    return 0 if all(result["as_expected"] for _, result in results) else 1


def _in_a_process(command: list[str], place: Path | None = None) -> dict[str, Any]:
    """The JSON that a process prints last, or why there is none."""
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False, timeout=_TIMEOUT, cwd=place)
    except subprocess.TimeoutExpired:
        return {"failed": f"no answer within {_TIMEOUT} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        return dict(json.loads(lines[-1]))
    lines = done.stderr.strip().splitlines() or ["no message"]
    return {"failed": f"exit status {done.returncode}: {lines[-1][:300]}"}


def _export(entry: Entry) -> dict[str, Any]:
    """Export one model and verify its bundle; the facts for its row."""
    warnings.filterwarnings("ignore")
    import vae_export
    import vae_runtime
    from vae_export.understand.inner import module_of

    try:
        model, arguments = entry.make()
        module = module_of(model)
        tensors = {id(t): t for t in (*module.parameters(), *module.buffers())}.values()
        weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        before = _peak()
        with tempfile.TemporaryDirectory() as folder:
            begun = time.perf_counter()
            exported = vae_export.export(model, Path(folder) / "out", **arguments)
            seconds = time.perf_counter() - begun
            peak = _peak() - before
            report = vae_runtime.verify(exported.path)
            if not report.passed:
                return {"failed": f"verify: {report}"}
            manifest = vae_runtime.load(exported.path).manifest
    except (vae_export.ExportError, vae_export.ParityError) as error:
        return {"failed": " ".join(str(error).split())}
    exporters = {
        variant.component: str(variant.exporter).removeprefix("torch.onnx.export(").removesuffix(")")
        for variant in manifest.variants
        if variant.executor == "ort"
    }
    return {
        "weights": weights,
        "peak": peak,
        "seconds": seconds,
        "error": exported.parity.max_abs,
        "exporters": exporters,
        "dynamic": {name: str(sizes) for name, sizes in manifest.observation.dynamic.items()},
        "hints": sorted(set(arguments) - {"example", "observations"}),
    }


def _peak() -> int:
    """The most memory that this process has held, in bytes; Linux counts in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _optimum(entry: Entry, python: str | None) -> str:
    cls = entry.name.partition(",")[0]
    if entry.library != "diffusers" or cls not in _OPTIMUM:
        return "no exporter configuration"
    if python is None:
        return "not run"
    import torch

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, arguments = entry.make()
        model.save_pretrained(folder / "model")
        torch.save(arguments["example"], folder / "x.pt")
        result = _in_a_process([python, "-c", _OPTIMUM_SCRIPT, name, cls, _OPTIMUM[cls]], folder)
    if "failed" in result:
        return f"fails: {_plain(result['failed'].replace(name, '…'))}"
    return f"{result['seconds']:.0f} s, error {result['error']:.1e}"


def _plain(text: str) -> str:
    """Text for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")[:200]


def _document(results: list[tuple[Entry, dict[str, Any]]], optimum: str | None) -> str:
    libraries = ["torch", "onnx", "onnxscript", "onnxruntime", *sorted({e.library for e in ENTRIES if e.library})]
    versions = ", ".join(f"{_package(name)} {_version(name)}" for name in libraries)
    lines = [
        "# Compatibility",
        "",
        f"Written by `make zoo`, with {versions}.",
        "",
        "Every model is a class as it is, with random weights, exported by one call of `vae_export.export` with the",
        "arguments in the column *declared*, beside the example. A row means: both graphs gave what eager PyTorch",
        "gives, at batch sizes, sizes of the dynamic axes and latents that were not traced. *error* is the largest",
        "absolute difference from PyTorch in float64, of ONNX and TorchScript. *exporter* is the one of PyTorch's that",
        "served, `torch.onnx.export` with the argument shown. *memory* is how far the export went beyond the model in",
        "memory, as a multiple of its weights, where they are large enough to tell.",
        "",
        "| model | exporter | dynamic axes, proven sizes | declared | seconds | error | memory | optimum-onnx |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for entry, result in results:
        name = f"{entry.family}: {entry.name}"
        if "failed" in result:
            note = "refused, as it must be" if result["as_expected"] else "fails"
            lines.append(f"| {name} | {note}: {_plain(result['failed'])} | | | | | | {result['optimum']} |")
            continue
        dynamic = "; ".join(f"{axis} {sizes}" for axis, sizes in result["dynamic"].items()) or "–"
        declared = ", ".join(f"`{hint}`" for hint in result["hints"]) or "–"
        exporters = result["exporters"]
        exporter = (
            f"`{exporters['encoder']}`"
            if len(set(exporters.values())) == 1
            else ", ".join(f"{component} `{name}`" for component, name in exporters.items())
        )
        large = result["weights"] >= _WORTH_A_RATIO
        memory = f"{result['peak'] / result['weights']:.1f}" if large else "–"
        figures = f"{result['seconds']:.0f} | {result['error']:.1e} | {memory}"
        lines.append(f"| {name} | {exporter} | {dynamic} | {declared} | {figures} | {result['optimum']} |")
    lines += [
        "",
        "optimum-onnx exports the parts of diffusers' pipelines and has configurations for no other kind of VAE. Its",
        "figures are of the same weights, by its own functions for one part of a pipeline; its error is the largest",
        "difference from PyTorch in float32, at another batch size and width than it traced.",
        *([f"It ran with {_optimum_versions(optimum)}."] if optimum else []),
        "",
    ]
    return "\n".join(lines)


def _package(name: str) -> str:
    return _PACKAGES.get(name, name)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(_package(name)).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _optimum_versions(python: str) -> str:
    code = (
        "import importlib.metadata as m, json; "
        "print(json.dumps({n: m.version(n) for n in ('optimum-onnx', 'torch', 'diffusers', 'transformers')}))"
    )
    found = _in_a_process([python, "-c", code])
    return ", ".join(f"{name} {version.partition('+')[0]}" for name, version in found.items())


if __name__ == "__main__":
    sys.exit(main())
