"""Small real data and runs that several tests share."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import vae_export.exporting
from vae_export.graphs.graph import Graph
from vae_export.training.config import DataConfig, ModelConfig, TrainConfig
from vae_export.training.loop import Outcome, train
from vae_export.understand.adapted import Adapted


@pytest.fixture(autouse=True)
def _validation() -> Iterator[None]:
    """PyTorch's own exporter, asked by itself, leaves the validation of distributions off for the tests after."""
    distribution = torch.distributions.Distribution
    before = distribution._validate_args
    yield
    distribution.set_default_validate_args(before)


def idx(images: np.ndarray) -> bytes:
    """The content of an IDX file of images, uint8 [n, H, W]."""
    return struct.pack(">4I", 0x803, *images.shape) + images.tobytes()


@pytest.fixture(scope="session")
def idx_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a folder with a training set of 40 and a test set of 10 digits as MNIST's files, gzipped or not."""
    pixels = (load_digits().images[:50] * 15).astype(np.uint8)

    def make(*, zipped: bool = True) -> Path:
        folder = tmp_path_factory.mktemp("idx")
        for part, images in (("train", pixels[:40]), ("t10k", pixels[40:])):
            name = f"{part}-images-idx3-ubyte"
            if zipped:
                (folder / f"{name}.gz").write_bytes(gzip.compress(idx(images)))
            else:
                (folder / name).write_bytes(idx(images))
        return folder

    return make


@pytest.fixture(scope="session")
def digits_npy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 digits, uint8 [300, 1, 8, 8], as a .npy file."""
    path = tmp_path_factory.mktemp("npy") / "few.npy"
    np.save(path, (load_digits().images[:300, None] * 15).astype(np.uint8))
    return path


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A run on the embedded digits, trained for a second or two."""
    return train(
        tmp_path_factory.mktemp("runs") / "digits",
        ModelConfig(latent=6, hidden=(64, 32)),
        TrainConfig(epochs=25, batch_size=64, learning_rate=5e-3, binarise="stochastic", threads=1),
        DataConfig("digits"),
        progress=False,
    )


@pytest.fixture
def prepared(tiny_graphs: dict[str, Graph], monkeypatch: pytest.MonkeyPatch) -> None:
    """The graphs of `tiny_run` are at hand, so that an export takes no seconds; everything else is as ever."""

    def graphs(adapted: Adapted, formats: Sequence[str] | None, folder: Path, **_: object) -> tuple[list[Graph], list]:
        names = ("torchscript",) if formats is None else formats
        return [graph for graph in tiny_graphs.values() if graph.executor == "ort" or graph.variant in names], []

    monkeypatch.setattr(vae_export.exporting, "make_graphs", graphs)
