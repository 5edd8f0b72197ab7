"""Measure every contender on every model; write benchmarks/results.json and, from it, docs/benchmarks.md."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vae_runtime.cli.main import run
from vae_runtime.cli.options import argument
from vae_runtime.errors import InputError, VaeError, error_line, require_integer, require_number
from vae_runtime.files import write_atomic

from . import environments, generation, report, tiles
from .comparison import compare
from .contenders import CONTENDERS
from .hosts import compare_hosts, compare_noise
from .models import COMPARED, MODELS
from .runs import ROOT, Run, say

MODELS_OF_GENERATION = ("mlp", "mnist", "tiny")
# A round takes a minute.
MAX_ROUNDS_OF_GENERATION = 5
# A round takes two minutes.
MAX_ROUNDS_OF_TILES = 3
PARTS = ("comparison", "generation", "hosts", "tiles")
# The part that finds each figure; all other figures are of the comparison.
FINDS = {"generation": "generation", "hosts": "hosts", "javascript": "hosts", "tiles": "tiles"}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the parts that the options name, in order, and return the figures.

    Raises:
        VaeError: no model could be made, or samples could not be written to files.
    """
    run = Run(options)
    if options.parts != ["tiles"]:
        run.make_models()
    if "comparison" in options.parts:
        compare(run)
    if "generation" in options.parts:
        _generate(run)
    if "hosts" in options.parts:
        compare_hosts(run)
        compare_noise(run)
    if "tiles" in options.parts:
        _decode_large(run)
    return run.found


def _decode_large(run: Run) -> None:
    """Decode a large picture undivided and in tiles, beside diffusers."""
    quick = run.options.quick
    name, size = (tiles.SMALL, tiles.SMALL_SIZE) if quick else (tiles.LARGE, tiles.LARGE_SIZE)
    found: dict[str, Any] = {"cells": [], "skipped": []}
    rounds = 1 if quick else min(run.options.rounds, MAX_ROUNDS_OF_TILES)
    memory = tiles.free_memory()
    try:
        for state in tiles.measure([name], [size], run.data / "tiles", 2, memory, 600, rounds):
            found = state
    except VaeError as error:
        run.skip("diffusers", str(error), work="large pictures")
    for each in found["skipped"]:
        run.skip(each["way"], each["reason"], work=f"large pictures, {each['model']}, {each['size']}²")
    run.found["tiles"] = found["cells"]


def _generate(run: Run) -> None:
    """Time the generation of samples to files, by processes of this machine and by Ray."""
    models = [name for name in run.options.models if name in MODELS_OF_GENERATION]
    if not models:
        return
    found: dict[str, Path | None] = {"ray": None, "native": None}
    for name in found if not run.options.quick else ():
        try:
            found[name] = environments.python_of(name)
        except (VaeError, OSError) as error:
            run.skip(name, str(error), work="samples to files")
    bundles = {name: run.data / name / "bundle" for name in models}
    rounds = 1 if run.options.quick else min(run.options.rounds, MAX_ROUNDS_OF_GENERATION)
    python = environments.python_of("runtime", here=run.options.quick)
    run.found["generation"] = generation.measure(
        bundles, rounds, python, found["ray"], run.environment(1), say, native=found["native"], quick=run.options.quick
    )


def _names(what: str, known: Sequence[str]) -> Any:
    def read(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise InputError(f"{what}: expected some of {', '.join(known)}, got {name!r}")
        return names

    return argument(read)


def _threads(text: str) -> list[int]:
    counts = [int(part) for part in text.split(",") if part.isdigit()]
    if not counts or any(count not in (1, 2) for count in counts):
        raise InputError(f"threads: expected 1, 2 or 1,2, got {text!r}")
    return counts


def _at_least(name: str, low: float, kind: type) -> Any:
    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise InputError(f"{name}: expected a number, got {text!r}") from None
        return require_number(name, value, low, 1e6) if kind is float else require_integer(name, value, int(low), 10**6)

    return argument(read)


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    options = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    options.set_defaults(command=_run)
    options.add_argument(
        "--contenders", type=_names("contenders", list(CONTENDERS)), default=list(CONTENDERS), metavar="NAMES",
        help=f"of {', '.join(CONTENDERS)}; joined by commas (default: all)",
    )  # fmt: skip
    options.add_argument(
        "--models", type=_names("models", list(MODELS)), default=list(COMPARED), metavar="NAMES",
        help=f"of {', '.join(MODELS)}; joined by commas (default: all but tiny)",
    )  # fmt: skip
    options.add_argument(
        "--parts", type=_names("parts", PARTS), default=list(PARTS), metavar="NAMES",
        help=f"of {', '.join(PARTS)} (default: all); the page keeps the figures of a part that is left out",
    )  # fmt: skip
    options.add_argument("--threads", type=argument(_threads), default=[1, 2], help="1, 2 or 1,2 (default)")
    options.add_argument("--mnist", help="the folder with MNIST's IDX files; without it scikit-learn's digits stand in")
    options.add_argument(
        "--minutes", type=_at_least("minutes", 0, float), default=7.0, help="go on with rounds for so long (default 7)"
    )
    options.add_argument(
        "--rounds", type=_at_least("rounds", 1, int), default=5, help="rounds of everything, at least (default 5)"
    )
    options.add_argument("--quick", action="store_true", help="three short rounds, to try the program")
    options.add_argument("--data", default=ROOT / "out" / "bench", help="where models are kept (default out/bench)")
    options.add_argument(
        "--out", type=Path,
        help="a folder for benchmarks.md and results.json (default: docs/benchmarks.md and benchmarks/results.json)",
    )  # fmt: skip
    return options


def _run(options: argparse.Namespace) -> None:
    if options.quick:
        options.rounds = min(options.rounds, 3)
    out, figures = report.places(options.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VaeError(f"{out}: cannot be made: {error_line(error)}; choose another place") from error
    results = measure(options)
    if len(options.parts) < len(PARTS) and figures.is_file():
        before = json.loads(figures.read_text(encoding="utf-8"))
        measured = {key for key in results if FINDS.get(key, "comparison") in options.parts}
        results = {key: (results if key in measured else before).get(key, []) for key in {**before, **results}}
    write_atomic(figures, report.dumped(results).encode())
    report.write(results, out)
    say(f"{out / report.PAGE}: written")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status."""
    return run(parser, argv)


if __name__ == "__main__":
    sys.exit(main())
