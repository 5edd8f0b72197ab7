"""Measure anomaly detection on scikit-learn's digits, beside pyod's VAE.

`make anomaly` runs it in the environment of `make zoo`: `PYTHONPATH=tests .venvs/zoo/bin/python -m zoo.anomaly BUNDLE`.

BUNDLE is exported from a run of the recipe `digits`, so the test data of its split are unseen. Both detectors were
trained on the same rows, and judge the same ones.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_sample_images
from sklearn.metrics import roc_auc_score

import vae_runtime
from vae_export.training.config import RECIPES
from vae_export.training.data.dataset import load as load_data

Array = NDArray[Any]
_SEEDS = 5
_THRESHOLDS = (0.01, 0.05, 0.1)


def others(test: Array) -> dict[str, Array]:
    """Rows that are no digits, as many as of the test data."""
    generator = np.random.default_rng(0)
    pictures = [picture.mean(axis=2) / 255 for picture in load_sample_images().images]
    patches = []
    for index in range(len(test)):
        picture = pictures[index % len(pictures)]
        top, left = (int(generator.integers(0, size - 8)) for size in picture.shape)
        patches.append(picture[top : top + 8, left : left + 8])
    return {
        "digits turned by 90°": np.rot90(test, 1, (2, 3)).copy(),
        "digits upside down": test[:, :, ::-1].copy(),
        "digits, two values exchanged in each line": _exchanged(test, generator),
        "patches of photographs": np.array(patches, np.float32)[:, None],
    }


def _exchanged(test: Array, generator: np.random.Generator) -> Array:
    changed = test.copy()
    for picture in changed[:, 0]:
        for row in picture:
            one, other = generator.choice(8, 2, replace=False)
            row[[one, other]] = row[[other, one]]
    return changed


def pyod_scores(train: Array, rows: list[Array]) -> list[list[Array]]:
    """The scores of pyod's VAE with its own defaults, for each of several seeds; higher is less usual."""
    from pyod.models.vae import VAE

    found = []
    for seed in range(_SEEDS):
        detector = VAE(random_state=seed, verbose=0)
        detector.fit(train.reshape(len(train), -1))
        found.append([detector.decision_function(each.reshape(len(each), -1)) for each in rows])
    return found


def main() -> int:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    options = parser.parse_args()
    data = load_data(RECIPES["digits"].data)
    train, validation, test = (part.rows(slice(None)) for part in (data.train, data.validation, data.test))
    vae = vae_runtime.load(options.bundle)
    kinds = others(test)
    unusual = pyod_scores(train, [test, *kinds.values()])
    print(f"{len(train)} rows of training, {len(validation)} of validation, {len(test)} of test")
    own: dict[str, dict[str, Array]] = {}
    for name, x in {"test": test, **kinds}.items():
        s, bound = vae.score(x), vae.score(x, k=64)
        columns = {"ELBO": s.elbo, "log-likelihood, k = 64": bound.log_likelihood, "−mse": -s.mse}
        columns["reconstruction"] = s.reconstruction
        own[name] = {key: column for key, column in columns.items() if column is not None}
    print("| other data | " + " | ".join(own["test"]) + " | pyod's VAE, mean of 5 seeds (lowest … highest) |")
    print("|---" * (2 + len(own["test"])) + "|")
    for number, name in enumerate(kinds):
        truth = np.r_[np.zeros(len(test)), np.ones(len(kinds[name]))]
        cells = [f"{roc_auc_score(truth, -np.r_[own['test'][key], own[name][key]]):.3f}" for key in own["test"]]
        theirs = [roc_auc_score(truth, np.r_[each[0], each[1 + number]]) for each in unusual]
        cells.append(f"{np.mean(theirs):.3f} ({min(theirs):.3f} … {max(theirs):.3f})")
        print(f"| {name} | {' | '.join(cells)} |")
    calibrate_and_count(options.bundle, validation, test, kinds)
    return 0


def calibrate_and_count(bundle: Path, validation: Array, test: Array, kinds: dict[str, Array]) -> None:
    """Print how many rows of each kind are called anomalies, by held-out scores of the validation data."""
    target = bundle.with_name(f"{bundle.name}-calibrated")
    vae_runtime.calibrate(bundle, validation, out=target, force=True, data="digits, validation data")
    vae = vae_runtime.load(target)
    print("| rows | " + " | ".join(f"p ≤ {threshold}" for threshold in _THRESHOLDS) + " |")
    print("|---" * (1 + len(_THRESHOLDS)) + "|")
    for name, x in {"digits, test data": test, **kinds}.items():
        p = vae.score(x).p_value
        cells = []
        for threshold in _THRESHOLDS:
            share = float(np.mean(p <= threshold))
            # Both the rows that are judged and the held-out ones were drawn at random.
            error = np.sqrt(threshold * (1 - threshold) * (1 / len(x) + 1 / len(validation)))
            cells.append(f"{100 * share:.1f} %" + (f" ± {100 * error:.1f} %" if name.endswith("test data") else ""))
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    sys.exit(main())
