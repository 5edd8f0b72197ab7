"""Rebuild the bundles that ship: train, evaluate and export each. Called by `make models`.

A training that was interrupted goes on. One that is finished is kept under out/models with its figures, and is only
exported again.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import breast_cancer
import conditional
import numpy as np
import pictures
from shipped import Shipped

import vae_runtime
from vae_export.graphs.variants import VARIANTS
from vae_export.training.config import RECIPES
from vae_runtime.errors import InputError, VaeError
from vae_runtime.files import write_atomic
from vae_runtime.image import grid, png

HERE = Path(__file__).parent
RUNS = HERE.parent / "out" / "models"
# The variants side by side, for docs/variants.md, and what their differences from fp32 are multiplied by.
PICTURE = HERE.parent / "docs" / "images" / "variants.png"
COLUMNS, ROWS, AMPLIFIED = 4, 8, {"fp16": 1000, "int8": 10}


def bundles(mnist: Path | None) -> Mapping[str, Callable[[], Shipped]]:
    """Return what prepares each bundle that ships, by its name."""
    return {
        "digits": lambda: Shipped("digits", *RECIPES["digits"][:3]),
        "digits-conditional": lambda: conditional.SHIPPED,
        "breast-cancer": partial(breast_cancer.prepared, RUNS),
        "pictures": partial(pictures.prepared, RUNS),
        "mnist": partial(_mnist, mnist),
    }


def main() -> int:
    """Rebuild what can be rebuilt; 1 if something is missing or failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", type=Path, help="the folder with MNIST's IDX files")
    parser.add_argument("names", nargs="*", metavar="NAME", help="bundles to rebuild (default: all)")
    options = parser.parse_args()
    prepare = bundles(options.mnist)
    if wrong := set(options.names) - set(prepare):
        parser.error(f"expected names of {', '.join(prepare)}, got {', '.join(sorted(wrong))}")
    failed = 0
    for name in options.names or prepare:
        try:
            prepare[name]().build(RUNS, HERE)
            if name == "mnist":
                picture(HERE / name)
        except VaeError as error:
            failed = 1
            print(f"error: models/{name} was not rebuilt: {error}", file=sys.stderr)
    return failed


def _mnist(folder: Path | None) -> Shipped:
    if folder is None:
        raise InputError("MNIST is missing; say make models MNIST=DIR, its folder")
    first, second, third = (RECIPES[name] for name in ("mnist", "mnist-tuned", "mnist-weighted"))
    data = replace(third.data, source=str(folder))
    return Shipped("mnist", third.model, third.train, data, formats=("onnx",), before=(first.train, second.train))


def picture(bundle: Path) -> None:
    """Draw the same latents through every variant, and how the variants differ from fp32, amplified around gray."""
    x = {name: vae_runtime.load(bundle, variant=name).sample(COLUMNS * ROWS, seed=0) for name in VARIANTS}
    parts = [*x.values(), *(0.5 + AMPLIFIED[name] * (x[name] - x["fp32"]) for name in VARIANTS[1:])]
    gap = np.ones((ROWS, 1, *x["fp32"].shape[1:]), np.float32)
    sheets = [part.clip(0, 1).reshape(ROWS, COLUMNS, *part.shape[1:]) for part in parts]
    side_by_side = np.concatenate([piece for sheet in sheets for piece in (sheet, gap)][:-1], axis=1)
    columns = side_by_side.shape[1]
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    flat = side_by_side.reshape(-1, *x["fp32"].shape[1:])
    write_atomic(PICTURE, png(grid(flat, columns=columns, value_range=(0.0, 1.0))))


if __name__ == "__main__":
    sys.exit(main())
