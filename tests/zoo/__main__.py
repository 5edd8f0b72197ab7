"""Export every model of the zoo and write docs/compatibility.md: `make zoo`, or `PYTHONPATH=tests python -m zoo`.

Each model is exported in a process of its own, so that a failure or a peak of memory is that model's alone. With
--optimum PYTHON, an interpreter that has optimum-onnx, that exporter is run on the models it can be asked for.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from vae_export.understand.families.diffusers import REFUSED

from .models import ENTRIES, Entry
from .truth import differences

ROOT = Path(__file__).parents[2]
# What a library's package is called, where it is not called as its module.
_PACKAGES = {"scvi": "scvi-tools", "vector_quantize_pytorch": "vector-quantize-pytorch"}
# Long enough for Stable Diffusion's autoencoder on two cores.
_TIMEOUT = 1800
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
    parser.add_argument("--results", type=Path, help="a file for the results by model; those in it are taken from it")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(_export(ENTRIES[arguments.one])))
        return 0
    results = []
    known = json.loads(arguments.results.read_text()) if arguments.results and arguments.results.exists() else {}
    for number, entry in enumerate(ENTRIES):
        if arguments.only not in str(entry):
            continue
        print(f"{entry}: ", end="", flush=True)
        result = known.get(str(entry)) or _in_a_process([sys.executable, "-m", "zoo", "--one", str(number)])
        if arguments.results:
            known[str(entry)] = result
            arguments.results.write_text(json.dumps(known, indent=1))
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

    try:
        model, arguments = entry.make()
        with tempfile.TemporaryDirectory() as folder:
            begun = time.perf_counter()
            exported = vae_export.export(model, Path(folder) / "out", **arguments)
            seconds = time.perf_counter() - begun
            report = vae_runtime.verify(exported.path)
            if not report.passed:
                return {"failed": f"verify: {report}"}
            vae = vae_runtime.load(exported.path)
            differ = differences(entry, model, arguments, vae, exported.parity.max_abs)
    except (vae_export.ExportError, vae_export.ParityError) as error:
        return {"failed": " ".join(str(error).split())}
    if differ:
        return {"failed": f"the bundle is not what the library gives: {', '.join(differ)}"}
    manifest = vae.manifest
    lines = [line.removeprefix("checked: ") for line in exported.recognised if line.startswith("checked: ")]
    latents = [latent for latent in manifest.latents if latent.posterior.outputs]
    return {
        "seconds": seconds,
        "error": exported.parity.max_abs,
        "prior": sorted({_prior(latent) for latent in latents}),
        "scaled": sorted({_scaled(latent) for latent in latents} - {""}),
        "tiles": [_tiles(tiles) for tiles in manifest.tiles],
        "dynamic": {name: str(sizes) for name, sizes in manifest.observation.dynamic.items()},
        "row_by_row": list(manifest.batch_of_one),
        "hints": sorted(set(arguments) - {"example", "observations"}),
        "checked": [
            *(line.partition(",")[0] for line in lines),
            *(entry.against, *(["pipeline"] if entry.unscaled else [])),
        ],
    }


def _prior(latent: Any) -> str:
    if latent.posterior.kind == "codes":
        return "none, codes"
    return f"{latent.prior.kind}, assumed" if latent.prior.assumed else str(latent.prior.kind)


def _scaled(latent: Any) -> str:
    """How another model takes the latents, where it does not take them as they are."""
    parts = [
        "per channel" if isinstance(value, (tuple, list)) else f"{value:.5g}" for value in (latent.scale, latent.shift)
    ]
    return "" if parts == ["1", "0"] else parts[0] if parts[1] in ("0", parts[0]) else "; ".join(parts)


def _tiles(tiles: Any) -> str:
    if not tiles.halo:
        return f"{tiles.component} no"
    halos = sorted(set(tiles.halo.values()))
    return f"{tiles.component} halo {', '.join(map(str, halos))}"


def _optimum(entry: Entry, python: str | None) -> str:
    cls = entry.name.partition(",")[0]
    if python is None or entry.library != "diffusers" or cls not in _OPTIMUM:
        return ""
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
    """Return text for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def _document(results: list[tuple[Entry, dict[str, Any]]], optimum: str | None) -> str:
    versions = ", ".join(f"{name} {_version(name)}" for name in ("torch", "onnx", "onnxscript", "onnxruntime"))
    exported = [(entry, result) for entry, result in results if "failed" not in result]
    others = sorted((pair for pair in exported if pair[0].library), key=lambda pair: pair[0].family)
    own = [pair for pair in exported if not pair[0].library]
    refused = [pair for pair in results if "failed" in pair[1]]
    lines = [
        "# Compatibility",
        "",
        f"Written by `make zoo`, with {versions}: {len(others)} models of other",
        f"libraries, {len(own)} of our own, and {len(refused)} that are refused.",
        _BRING_YOUR_OWN,
        "",
        *_INTRODUCTION,
        "",
        "## Models of other libraries",
        "",
        *_table(others),
        "",
        *_optimum_lines(results, optimum),
        "",
        "## Refused, with the reason",
        "",
        "| model | version | reason |",
        "|---|---|---|",
    ]
    for entry, result in refused:
        reason = _plain(result["failed"])
        lines.append(f"| {entry} | {_library(entry)} | {reason if result['as_expected'] else f'**fails**: {reason}'} |")
    tried = {entry.name for entry, _ in results}
    left = [str(entry) for entry in ENTRIES if entry.name not in tried]
    lines += [
        f"| diffusers: {name} | diffusers {_version('diffusers')} | {_plain(reason)} |"
        for name, reason in REFUSED.items()
        if name not in tried
    ]
    lines += [
        *(["", f"Not measured for this page: {'; '.join(left)}."] if left else []),
        "",
        "## Models of our own",
        "",
        "Written for the tests, as people write them.",
        "",
        *_table(own),
        "",
    ]
    return "\n".join(lines)


_BRING_YOUR_OWN = "[Bring your own model](bring-your-own.md) says how a model is understood."
_INTRODUCTION = """\
Every model is a class of its library as it is, small, with random weights (an object that a library trains is trained),
exported by one call of `vae_export.export`. A row means that the graphs gave what eager PyTorch gives, at batch sizes,
sizes of the dynamic axes and latents that were not traced, and that the bundle passed `verify`.

- *call*: *first* where `export(model, out, example=x)` was enough, else the arguments beside these.
- *prior*: what `sample` draws from; *assumed* where nothing in the model speaks for another. With *none*, `sample`
  refuses and says why, such as that another model supplies the latents.
- *scale; shift*: other models take (z − shift) · scale.
- *dynamic axes*: their proven sizes. The batch takes any size: *row by row* where the graph takes one row alone.
- *error*: the largest absolute difference from PyTorch in float64, of ONNX and TorchScript.
- *seconds*: of the export, on the machine that wrote this page: two busy cores.
- *tiles*: the halo of exact tiles, in latents, or *no* where an answer depends on the whole.
- *meaning checked against*: what the bundle was compared with, beside its own graphs. The export runs the model's own
  *forward* with the same noise, and its own sampler. This page asks *encode and decode* of the library, as its users
  call them: the mean and, where the library gives it, the standard deviation of the posterior, and what is decoded.
  *Pipeline* stands for the formula by which its pipeline makes latents that decode takes.""".splitlines()


def _table(results: list[tuple[Entry, dict[str, Any]]]) -> list[str]:
    columns = (
        "model", "version", "call", "prior", "scale; shift", "dynamic axes", "error", "seconds", "tiles",
        "meaning checked against",
    )  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for entry, result in results:
        by_sizes: dict[str, list[str]] = {}
        for axis, sizes in result["dynamic"].items():
            by_sizes.setdefault(sizes, []).append(axis)
        sizes_of = [f"{', '.join(axes)} {sizes}" for sizes, axes in by_sizes.items()]
        # The results of an older run may not say it.
        sizes_of += [f"{component} row by row" for component in result.get("row_by_row", ())]
        cells = (
            str(entry),
            _library(entry),
            ", ".join(f"`{hint}`" for hint in result["hints"]) or "first",
            "; ".join(result["prior"]),
            "; ".join(result["scaled"]) or "–",
            "; ".join(sizes_of) or "–",
            f"{result['error']:.1e}",
            f"{result['seconds']:.0f}",
            ", ".join(result["tiles"]) or "–",
            ", ".join(result["checked"]),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _optimum_lines(results: list[tuple[Entry, dict[str, Any]]], python: str | None) -> list[str]:
    """What optimum-onnx makes of the few models that it has a configuration for."""
    text = (
        "optimum-onnx, which exports the parts of diffusers' pipelines, has configurations for two of these classes: "
        f"{' and '.join(_OPTIMUM)}."
    )
    if python is None:
        return [text]
    figures = "; ".join(f"{entry.name}: {result['optimum']}" for entry, result in results if result["optimum"])
    return [f"{text} With {_optimum_versions(python)}: {figures}."]


def _library(entry: Entry) -> str:
    return f"{_package(entry.library)} {_version(entry.library)}" if entry.library else "–"


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
