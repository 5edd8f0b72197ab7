"""Trained objects of libraries for tables: ctgan's synthesizer and pyod's detectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch

import vae_runtime
from vae_export.understand.draws import Draws

from .entry import SEED, Entry


def _tvae() -> tuple[Any, dict[str, Any]]:
    import pandas as pd
    from ctgan import TVAE

    rng = np.random.default_rng(SEED)
    n = 300
    table = pd.DataFrame(
        {
            "age": rng.integers(18, 90, n),
            "income": np.where(rng.random(n) < 0.5, rng.normal(10, 1, n), rng.normal(100, 5, n)),
            'city, "home"': rng.choice(["a", "b'", "c,d"], n),
            "member": rng.choice([True, False], n),
            "code": rng.choice([1, 5, 9], n),
            "note": rng.choice(np.array(["u", None], object), n),
        }
    )
    torch.manual_seed(SEED)
    model = TVAE(
        epochs=2, batch_size=100, embedding_dim=8, compress_dims=(16,), decompress_dims=(16,), enable_gpu=False
    )
    model.fit(table, ['city, "home"', "member", "code", "note"])
    return model, {}


def _tvae_differs(model: Any, arguments: dict[str, Any], vae: vae_runtime.VAE) -> list[str]:
    """Hold the decoded rows, and tables with and without noise, against those of `TVAE.sample` for the same draws."""
    z = vae.prior(200, seed=1)
    with torch.no_grad():
        answer, sigmas = model.decoder(torch.from_numpy(z))
    fake, sigmas = torch.tanh(answer).numpy(), sigmas.detach().numpy()
    x, drawn = vae.decode(z), vae.decode(z, observe=True, seed=2)
    differ = [] if np.abs(x - fake).max() < 1e-5 else ["what is decoded"]
    noise = (drawn - x).astype(np.float64)

    def shifted() -> Iterator[Any]:
        """What numpy.random.normal draws for each column of numbers, in the order in which the library asks."""
        first = 0
        for info in model.transformer._column_transform_info_list:
            if info.column_type == "continuous":
                yield noise[:, first]
            first += info.output_dimensions

    numbers = shifted()
    with mock.patch.object(np.random, "normal", lambda mean, sigma: np.asarray(mean) + next(numbers)):
        noisy = model.transformer.inverse_transform(fake, sigmas)
    for what, rows, expected in (
        ("the table", x, model.transformer.inverse_transform(fake)),
        ("the table with noise", drawn, noisy),
    ):
        columns = vae_runtime.to_table(vae, rows)
        if list(columns) != list(expected.columns) or not all(
            _alike(columns[name], expected[name]) for name in expected.columns
        ):
            differ.append(what)
    return differ


def _alike(own: Any, expected: Any) -> bool:
    """Whether a column is the library's: a rounding apart where numbers are, as the decoded values are."""
    if own.dtype.kind != "f":
        missing = expected.isna().to_numpy()
        same = own == expected.to_numpy(object)
        return float(np.mean(np.where(missing, np.equal(own, None), same))) > 0.99
    return bool(np.allclose(own, expected.to_numpy(), rtol=1e-4, atol=1e-4))


def _detector(name: str) -> Any:
    def make() -> tuple[Any, dict[str, Any]]:
        import pyod.models.auto_encoder
        import pyod.models.vae

        torch.manual_seed(SEED)
        raw = np.random.default_rng(SEED).normal(5.0, 3.0, (120, 6))
        if name == "VAE":
            detector = pyod.models.vae.VAE(epoch_num=1, latent_dim=2, verbose=0)
        else:
            detector = pyod.models.auto_encoder.AutoEncoder(epoch_num=1, hidden_neuron_list=[8, 4], verbose=0)
        return detector.fit(raw), {"example": raw[:40]}

    return make


def _score_differs(detector: Any, arguments: dict[str, Any], vae: vae_runtime.VAE) -> list[str]:
    """Hold the norm of what a reconstruction leaves against the detector's own score."""
    raw, scaling = arguments["example"], vae.manifest.observation.normalisation
    assert scaling is not None
    x = ((raw - np.array(scaling.offset)) / np.array(scaling.divisor)).astype(np.float32)
    with Draws.constant(0.0):
        expected = detector.decision_function(raw)
    score = np.linalg.norm(x - vae.reconstruct(x), axis=1)
    return [] if np.allclose(score, expected, rtol=1e-4) else ["the score"]


ENTRIES = (
    Entry(
        "ctgan", "TVAE, fitted", _tvae, "ctgan", slow=True, differ=_tvae_differs,
        against="decode, inverse transform of its tables",
    ),
    *(
        Entry(
            "pyod", f"{name}, fitted", _detector(name), "pyod", slow=True, differ=_score_differs,
            against="decision_function",
        )
        for name in ("VAE", "AutoEncoder")
    ),
)  # fmt: skip
