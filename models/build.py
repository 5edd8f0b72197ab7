"""Rebuild the bundles that ship: train, evaluate and export each recipe. Called by `make models`.

A training that was interrupted goes on. One that is finished is kept under out/models with its figures, and is only
exported again.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from conditional import build as build_conditional

import vae_runtime
from vae_export import Exported, evaluate, export, train
from vae_export.graphs.variants import VARIANTS
from vae_export.training.config import RECIPES
from vae_export.training.evaluation import read_evaluation
from vae_runtime.errors import InputError, VaeError
from vae_runtime.files import write_atomic
from vae_runtime.image import grid, png

HERE = Path(__file__).parent
RUNS = HERE.parent / "out" / "models"
IMPORTANCE_SAMPLES = 1000
# The variants side by side, for docs/variants.md, and what their differences from fp32 are multiplied by.
PICTURE = HERE.parent / "docs" / "images" / "variants.png"
COLUMNS, ROWS, AMPLIFIED = 4, 8, {"fp16": 1000, "int8": 10}


def main() -> int:
    """Rebuild what can be rebuilt; 1 if something is missing or failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", type=Path, help="the folder with MNIST's IDX files")
    options = parser.parse_args()
    try:
        build("digits")
        shown(build_conditional(HERE / "digits-conditional"))
        if options.mnist is None:
            print(
                "error: models/mnist was not rebuilt: MNIST is missing; say make models MNIST=DIR, its folder",
                file=sys.stderr,
            )
            return 1
        build("mnist", str(options.mnist))
        picture(HERE / "mnist")
    except VaeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def build(name: str, source: str | None = None) -> None:
    """Train, evaluate and export one recipe into models/<name>."""
    recipe = RECIPES[name]
    data = replace(recipe.data, source=source) if source else recipe.data
    run = RUNS / name
    train(run, recipe.model, recipe.train, data)
    if not measured(run):
        evaluate(run, importance_samples=IMPORTANCE_SAMPLES, data=source)
    exported = export(run, HERE / name, data=source, variants=VARIANTS, name=name, license="Apache-2.0", force=True)
    shown(exported)


def shown(exported: Exported) -> None:
    """Say what was written, and what was left out."""
    for refusal in exported.refused:
        print(f"{refusal.component}/{refusal.variant}: left out: {refusal.reason}", file=sys.stderr)
    print(f"{exported.path}: {exported.digest}")


def picture(bundle: Path) -> None:
    """Draw the same latents through every variant, and how the variants differ from fp32, amplified around grey."""
    x = {name: vae_runtime.load(bundle, variant=name).sample(COLUMNS * ROWS, seed=0) for name in VARIANTS}
    parts = [*x.values(), *(0.5 + AMPLIFIED[name] * (x[name] - x["fp32"]) for name in VARIANTS[1:])]
    gap = np.ones((ROWS, 1, *x["fp32"].shape[1:]), np.float32)
    sheets = [part.clip(0, 1).reshape(ROWS, COLUMNS, *part.shape[1:]) for part in parts]
    side_by_side = np.concatenate([piece for sheet in sheets for piece in (sheet, gap)][:-1], axis=1)
    columns = side_by_side.shape[1]
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    flat = side_by_side.reshape(-1, *x["fp32"].shape[1:])
    write_atomic(PICTURE, png(grid(flat, columns=columns, value_range=(0.0, 1.0))))


def measured(run: Path) -> bool:
    """Whether the figures of these very weights are there already; on MNIST they take some twenty minutes."""
    try:
        evaluation = read_evaluation(run)
    except InputError:
        return False
    return evaluation is not None and evaluation.importance_samples == IMPORTANCE_SAMPLES


if __name__ == "__main__":
    sys.exit(main())
