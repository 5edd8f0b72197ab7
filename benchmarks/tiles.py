"""Peak memory and seconds of decoding large pictures, undivided and in tiles, beside diffusers with and without tiles.

    python -m benchmarks.tiles --data out/tiles --out out/tiles

needs diffusers. It makes autoencoders of diffusers with random weights, exports them, and prints a table in Markdown;
the figures go beside it as JSON. A fresh process decodes each picture; its memory is the peak of the whole process.
Answers are compared before they count, and what does not fit into memory or time is listed with the reason.
`python -m benchmarks --parts tiles` measures the page's model in rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vae_runtime.bundle import open_bundle
from vae_runtime.cli.main import run
from vae_runtime.cli.options import argument, integers
from vae_runtime.devices import resolve_device
from vae_runtime.errors import VaeError, error_line, one_line, require_integer
from vae_runtime.files import write_atomic
from vae_runtime.networks import Networks
from vae_runtime.tiles import of_any_size
from vae_runtime.vae import VAE

from .machine import rounded

Array = np.ndarray[Any, Any]

_KL: dict[str, Any] = {"latent_channels": 4, "layers_per_block": 2, "sample_size": 512}
# Class of diffusers, its configuration, and the height and width of the example that it is exported with.
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    "AutoencoderTiny (TAESD)": ("AutoencoderTiny", {}, 512),
    "AutoencoderKL (32, 64, 128, 128)": ("AutoencoderKL", {"block_out_channels": (32, 64, 128, 128), **_KL}, 32),
    "AutoencoderKL (128, 256, 512, 512), as in SD 1.5": (
        "AutoencoderKL", {"block_out_channels": (128, 256, 512, 512), **_KL}, 32,
    ),
    "AutoencoderKL (8, 16), to try the program": (
        "AutoencoderKL", {"block_out_channels": (8, 16), "norm_num_groups": 4, "sample_size": 32}, 16,
    ),
}  # fmt: skip
COMPARED = tuple(MODELS)[:2]
# Each way, and the way that it must agree with; tiles of diffusers are blended, and agree with none. Halved tiles have
# half the height and width that the library takes by itself.
WAYS = {
    "diffusers": None,
    "diffusers, its tiles": None,
    "diffusers, its tiles halved": None,
    "vae-runtime": "diffusers",
    "vae-runtime, exact tiles": "diffusers",
    "vae-runtime, blended tiles": "diffusers, its tiles",
    "vae-runtime, blended tiles halved": "diffusers, its tiles halved",
}
# The ways that `make bench` measures, of this model and size.
LARGE, LARGE_SIZE = tuple(MODELS)[2], 512
SMALL, SMALL_SIZE = tuple(MODELS)[3], 32
# Largest difference, of values about 1.
TOLERANCE = 1e-3


def make(name: str, data: Path) -> Path:
    """Make a model and its bundle, unless they exist, and return their folder.

    Raises:
        VaeError: diffusers is missing, or the export was refused.
    """
    folder = data / "".join(letter if letter.isalnum() else "-" for letter in name)
    if (folder / "bundle").is_dir():
        return folder
    try:
        import diffusers
    except ImportError as error:
        raise VaeError(f"diffusers: {error_line(error)}; pip install diffusers") from error
    import torch

    import vae_export

    kind, config, size = MODELS[name]
    if kind == "AutoencoderKL":
        count = len(config["block_out_channels"])
        config = {
            **config,
            "down_block_types": ("DownEncoderBlock2D",) * count,
            "up_block_types": ("UpDecoderBlock2D",) * count,
        }
    torch.manual_seed(0)
    model = getattr(diffusers, kind)(**config).eval()
    model.save_pretrained(folder / "diffusers")
    vae_export.export(model, folder / "bundle", example=torch.rand(1, 3, size, size), formats=("onnx",))
    return folder


def decode(folder: Path, way: str, size: int, threads: int) -> tuple[Array, float]:
    """Decode one picture of size × size in one way, and return it with the seconds that this took."""
    manifest = open_bundle(folder / "bundle").manifest
    usual, picture = manifest.latent.shape, manifest.observation.shape
    side = size * usual[-1] // picture[-1]
    z = np.random.default_rng(0).normal(size=(1, usual[0], side, side)).astype(np.float32)
    way_of = _theirs if way.startswith("diffusers") else _ours
    call = way_of(folder, way, threads)
    # The first call loads what is left to load.
    call(np.ascontiguousarray(z[..., :16, :16]))
    began = time.perf_counter()
    x = call(z)
    return x, time.perf_counter() - began


def _theirs(folder: Path, way: str, threads: int) -> Callable[[Array], Array]:
    import diffusers
    import torch

    torch.set_num_threads(threads)
    config = json.loads((folder / "diffusers" / "config.json").read_text(encoding="utf-8"))
    model = getattr(diffusers, config["_class_name"]).from_pretrained(folder / "diffusers").eval()
    if way != "diffusers":
        model.enable_tiling()
        # It divides batches, and so changes nothing for one picture.
        model.enable_slicing()
    if way.endswith("halved"):
        model.tile_sample_min_size //= 2
        model.tile_latent_min_size //= 2

    def call(z: Array) -> Array:
        with torch.inference_mode():
            x: Array = model.decode(torch.from_numpy(z), return_dict=False)[0].numpy()
            return x

    return call


def _ours(folder: Path, way: str, threads: int) -> Callable[[Array], Array]:
    bundle = open_bundle(folder / "bundle")
    # A VAE refuses sizes that its export has not proven. Here each answer is compared, and a small example suffices.
    bundle = dataclasses.replace(bundle, manifest=of_any_size(bundle.manifest))
    vae = VAE(bundle, Networks(bundle, resolve_device("cpu", None), threads, bundle.choose(None)))
    if way == "vae-runtime":
        return vae.decode
    if way == "vae-runtime, exact tiles":
        return partial(vae.decode, tile="auto")
    # The size of diffusers' own tiles.
    config = json.loads((folder / "diffusers" / "config.json").read_text(encoding="utf-8"))
    return partial(vae.decode, tile=config["sample_size"] // (2 if way.endswith("halved") else 1), tile_blend=True)


def exact(folder: Path) -> bool:
    """Return whether the decoder can be divided exactly."""
    manifest = open_bundle(folder / "bundle").manifest
    return any(each.component == "decoder" and each.halo for each in manifest.tiles)


def measure(
    names: Sequence[str],
    sizes: Sequence[int],
    data: Path,
    threads: int,
    memory: float,
    patience: float,
    rounds: int = 1,
) -> Iterator[dict[str, Any]]:
    """Measure each model at each size in each way, in rounds of all ways, and yield all figures after each.

    Raises:
        VaeError: a model could not be made, or an answer is wrong.
    """
    found: dict[str, Any] = {"threads": threads, "memory": memory, "cells": [], "skipped": [], "busy": []}
    for name in names:
        folder = make(name, data)
        left_out = ("blended tiles", "halved") if exact(folder) else ("exact tiles",)
        ways = [way for way in WAYS if not way.endswith(left_out)]
        for size in sizes:
            for number, way in itertools.product(range(rounds), ways):
                place = {"model": name, "size": size, "way": way, "round": number}
                busy = _busy()
                found["busy"].append(busy)
                try:
                    figures = _in_a_process(folder, way, size, threads, memory, patience)
                    print(f"{name}, {size}, {way}: {figures}", file=sys.stderr, flush=True)
                except VaeError as error:
                    found["skipped"].append({**place, "reason": str(error)})
                    print(f"{name}, {size}, {way}: {error} (skipped)", file=sys.stderr, flush=True)
                else:
                    difference = _difference(folder, way, size)
                    found["cells"].append({**place, **figures, "busy": busy, "difference": difference})
                yield found
            for answer in folder.glob("*.npy"):
                answer.unlink()


def _answer(folder: Path, way: str, size: int) -> Path:
    return folder / f"{way}-{size}.npy"


def _difference(folder: Path, way: str, size: int) -> float | None:
    """Return the largest difference from the answer of another way, if there is one.

    Raises:
        VaeError: it is too large.
    """
    other = WAYS[way]
    if other is None or not _answer(folder, other, size).is_file():
        return None
    difference = float(np.abs(np.load(_answer(folder, way, size)) - np.load(_answer(folder, other, size))).max())
    if difference > TOLERANCE:
        raise VaeError(
            f"{folder.name}, {size}, {way}: expected the answer of {other}, got one that differs by {difference:.2g}"
        )
    return rounded(difference)


def _in_a_process(
    folder: Path, way: str, size: int, threads: int, memory: float, patience: float
) -> dict[str, float]:  # fmt: skip
    """Return the seconds and the peak memory, in MiB, of a fresh process.

    Raises:
        VaeError: it failed, or took too long.
    """
    order = {"folder": str(folder), "way": way, "size": size, "threads": threads, "memory": memory}
    command = [sys.executable, "-m", "benchmarks.tiles", "--cell", json.dumps(order)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=patience, check=False, env=environment
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise VaeError(f"no answer within {patience:g} seconds") from None
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
        raise VaeError(f"within {memory:g} GiB of memory it ends with {done.returncode}: {one_line(last)[:120]}")
    figures: dict[str, float] = json.loads(lines[-1])
    return figures


def _cell(order: dict[str, Any]) -> None:
    """Decode one picture in this process, keep the answer in a file and print the figures."""
    limit = int(order["memory"] * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    folder = Path(order["folder"])
    x, seconds = decode(folder, order["way"], order["size"], order["threads"])
    with open("/proc/self/status", encoding="ascii") as file:
        peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    np.save(_answer(folder, order["way"], order["size"]), x)
    print(json.dumps({"seconds": rounded(seconds), "peak": round(peak / 1024)}))


def _busy() -> float:
    """Return the share of the processors that others use, over half a second."""

    def ticks() -> tuple[int, int]:
        with open("/proc/stat", encoding="ascii") as file:
            numbers = [int(each) for each in file.readline().split()[1:9]]
        return sum(numbers), numbers[3] + numbers[4]

    before = ticks()
    time.sleep(0.5)
    total, idle = (now - then for now, then in zip(ticks(), before, strict=True))
    return rounded(1 - idle / max(1, total))


def table(found: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    cells: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for each in found["cells"]:
        cells.setdefault((each["model"], each["way"], each["size"]), []).append(each)
    sizes = sorted({each["size"] for each in (*found["cells"], *found["skipped"])})
    low, middle, high = np.percentile(found["busy"], (25, 50, 75))
    lines = [
        f"{found['threads']} threads. Before the cells, other programs used {100 * middle:.0f} % of the processors "
        f"(quartiles {100 * low:.0f} and {100 * high:.0f} %).",
        "",
        "| model | way | " + " | ".join(f"{size}²: MiB | {size}²: s" for size in sizes) + " | largest difference |",
        "|---|---|" + "---|" * (2 * len(sizes) + 1),
    ]
    rows = dict.fromkeys((each["model"], each["way"]) for each in (*found["cells"], *found["skipped"]))
    ways = list(WAYS)
    for model, way in sorted(rows, key=lambda row: (list(MODELS).index(row[0]), ways.index(row[1]))):
        parts, differences = [], []
        for size in sizes:
            here = cells.get((model, way, size), [])
            peak, seconds = (np.median([each[key] for each in here] or [0]) for key in ("peak", "seconds"))
            parts += [f"{peak:,.0f}", f"{seconds:.3g}"] if here else ["–", "–"]
            differences += [each["difference"] for each in here if each["difference"] is not None]
        agreement = f"{max(differences):.1g} from {WAYS[way]}" if differences else ""
        lines.append(f"| {model} | {way} | {' | '.join(parts)} | {agreement} |")
    lines.append("")
    lines += dict.fromkeys(
        f"- Skipped: {each['model']}, {each['way']}, {each['size']}²: {each['reason']}" for each in found["skipped"]
    )
    return "\n".join(lines).rstrip() + "\n"


def _run(options: argparse.Namespace) -> None:
    if options.cell:
        _cell(json.loads(options.cell))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    limits = options.threads, options.memory, options.patience, options.rounds
    for found in measure(options.models, options.sizes, options.data.resolve(), *limits):
        # Kept as it grows: whoever ends a long run has the figures until then.
        write_atomic(options.out / "tiles.json", (json.dumps(found, indent=1) + "\n").encode())
        write_atomic(options.out / "tiles.md", table(found).encode())
    print(table(found), end="")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tiles", description=__doc__.splitlines()[0])
    parser.set_defaults(command=_run)
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=list(COMPARED))
    parser.add_argument("--sizes", type=integers("sizes", 8, 2**16), default=[512, 1024, 2048], help="such as 512,1024")
    parser.add_argument(
        "--data", type=Path, default=Path("out/tiles"), help="where models are kept (default out/tiles)"
    )
    parser.add_argument(
        "--threads", type=argument(lambda text: require_integer("threads", int(text), 1, 1024)), default=2,
        help="threads of each process (default 2)",
    )  # fmt: skip
    parser.add_argument(
        "--rounds", type=argument(lambda text: require_integer("rounds", int(text), 1, 1000)), default=1,
        help="rounds of all ways; the table has medians (default 1)",
    )  # fmt: skip
    parser.add_argument("--memory", type=float, default=free_memory(), help="GiB of a process (default: what is free)")
    parser.add_argument("--patience", type=float, default=300, help="seconds of a process (default 300)")
    parser.add_argument("--out", type=Path, default=Path("out/tiles"), help="the folder to write (default out/tiles)")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    return run(lambda: parser, argv)


def free_memory() -> float:
    """Return the GiB of memory that are free, less a fifth; 8 where the system does not say."""
    with contextlib.suppress(OSError, StopIteration), open("/proc/meminfo", encoding="ascii") as file:
        free = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
        return round(0.8 * free / 2**20, 1)
    return 8.0


if __name__ == "__main__":
    sys.exit(main())
