"""Tables: 30 measurements of cell nuclei, as scikit-learn ships them; benign samples are normal, malignant are not."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from shipped import Shipped
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score

import vae_runtime
from vae_export import DataConfig, ModelConfig, TrainConfig
from vae_export.training import checkpoint
from vae_runtime.files import write_atomic

NAME = "breast-cancer"


def prepared(runs: Path) -> Shipped:
    """Write the logarithms of the benign samples for training, and return the model of them."""
    benign, malignant = samples()
    source = runs / f"{NAME}.npy"
    source.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(source, lambda file: np.save(file, benign))
    return Shipped(
        NAME,
        ModelConfig(observation_shape=(30,), latent=6, hidden=(64, 32), activation="silu", likelihood="gaussian",
                    scale=0.5, learn_scale=True),
        TrainConfig(epochs=400, batch_size=32, learning_rate=1e-3, kl_warmup_epochs=20, patience=60, threads=1),
        DataConfig(
            str(source), normalise="standard", test_fraction=0.35, validation_fraction=0.15, license="CC BY 4.0"
        ),
        description=(
            "A showcase of p-values, not for diagnosis: the logarithms of 1 + each of the 30 features of "
            "scikit-learn's breast_cancer (Breast Cancer Wisconsin, Diagnostic, UCI, CC BY 4.0) in its order, trained "
            "on benign samples alone; models/breast_cancer.py"
        ),
        figures=lambda bundle: figures(bundle, runs / NAME, malignant),
    )  # fmt: skip


def samples() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the logarithms of 1 + the features of the benign and of the malignant samples, float32 [n, 30]."""
    found = load_breast_cancer()
    x = np.log1p(found.data).astype(np.float32)
    return x[found.target == 1], x[found.target == 0]


def figures(bundle: Path, run: Path, malignant: NDArray[np.float32]) -> str:
    """Return in words how well scores tell malignant from benign samples that were not trained on.

    The error is that of Hanley and McNeil (Radiology 143, 1982), equation 1.
    """
    vae = vae_runtime.load(bundle)
    benign = checkpoint.run_data(checkpoint.load(run)[1], None, run).test.rows(slice(None))
    normal = vae.manifest.observation.normalisation
    assert normal is not None
    others = ((malignant - normal.offset) / normal.divisor).astype(np.float32)
    scores = [vae.score(x, seed=0) for x in (benign, others)]
    elbo = np.concatenate([each.elbo for each in scores])
    area = float(roc_auc_score(np.repeat([0, 1], [len(benign), len(others)]), -elbo))
    p = scores[1].p_value
    assert p is not None
    return (
        f"Told by the ELBO, {len(others)} malignant from the {len(benign)} benign test samples: AUROC {area:.3f} ± "
        f"{_error(area, len(others), len(benign)):.3f}; {(p <= 0.05).mean():.0%} of the malignant have a p-value of at "
        "most 0.05"
    )


def _error(area: float, positive: int, negative: int) -> float:
    one, other = area / (2 - area) - area**2, 2 * area**2 / (1 + area) - area**2
    return math.sqrt((area * (1 - area) + (positive - 1) * one + (negative - 1) * other) / (positive * negative))
