"""Rebuild the bundles that ship: train, evaluate and export each recipe. Called by `make models`.

A training that was interrupted goes on. One that is finished is kept under out/models with its figures, and is only
exported again.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from conditional import build as build_conditional

from vae_export import Exported, evaluate, export, train
from vae_export.config import RECIPES
from vae_export.evaluation import read_evaluation
from vae_runtime.errors import InputError, VaeError

HERE = Path(__file__).parent
RUNS = HERE.parent / "out" / "models"
IMPORTANCE_SAMPLES = 1000


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
    exported = export(run, HERE / name, data=source, name=name, licence="Apache-2.0", force=True)
    shown(exported)


def shown(exported: Exported) -> None:
    """Say what was written."""
    print(f"{exported.path}: {exported.digest}")


def measured(run: Path) -> bool:
    """Whether the figures of these very weights are there already; on MNIST they take some twenty minutes."""
    try:
        evaluation = read_evaluation(run)
    except InputError:
        return False
    return evaluation is not None and evaluation.importance_samples == IMPORTANCE_SAMPLES


if __name__ == "__main__":
    sys.exit(main())
