"""Color pictures of 64×64, cut from textures and photographs that scientific packages ship in their wheels."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from shipped import Shipped

from vae_export import DataConfig, ModelConfig, TrainConfig
from vae_runtime.errors import InputError
from vae_runtime.files import write_atomic

NAME = "pictures"
SIZE, SQUARES = 64, 8000
# The side of a square that is cut out and brought to SIZE: up to this many times as long.
_SCALES = (1.0, 3.0)


class Picture(NamedTuple):
    """A picture that a package ships."""

    package: str
    path: str
    license: str
    credit: str


PICTURES = (
    Picture("skimage", "data/brick.png", "CC0 1.0", "CC0Textures"),
    Picture("skimage", "data/coffee.png", "CC0 1.0", "Rachel Michetti, courtesy of Pikolo Espresso Bar"),
    Picture("skimage", "data/grass.png", "CC0 1.0", "linolafett"),
    Picture("skimage", "data/gravel.png", "CC0 1.0", "CC0Textures"),
    Picture("skimage", "data/hubble_deep_field.jpg", "public domain", "NASA"),
    Picture("skimage", "data/ihc.png", "no known copyright restrictions", "CMMI"),
    Picture("skimage", "data/retina.jpg", "CC0 1.0", "Mikael Häggström"),
    Picture("skimage", "data/rocket.jpg", "public domain", "SpaceX"),
    Picture("sklearn", "datasets/images/china.jpg", "CC BY 2.0", "danielbuechele"),
    Picture("sklearn", "datasets/images/flower.jpg", "CC BY 2.0", "vultilion"),
)
"""The pictures, with the license and the name that each package states for them."""


def cut(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Cut squares at random places and scales, some mirrored; every picture gives as many.

    Args:
        count: of squares.
        seed: the same seed and packages give the same squares.

    Returns:
        uint8 [count, 3, 64, 64].

    Raises:
        InputError: a package or a file of it is missing.
    """
    random = np.random.Generator(np.random.PCG64(seed))
    pictures = [Image.open(_place(each)).convert("RGB") for each in PICTURES]
    squares = np.empty((count, 3, SIZE, SIZE), np.uint8)
    for number, square in enumerate(squares):
        picture = pictures[number % len(pictures)]
        low, high = _SCALES
        side = min(SIZE * random.uniform(low, high), *picture.size)
        left, top = (random.uniform(0, extent - side) for extent in picture.size)
        piece = picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
        values = np.asarray(piece).transpose(2, 0, 1)
        square[:] = values[:, :, ::-1] if random.integers(2) else values
    return squares


def prepared(runs: Path) -> Shipped:
    """Cut the squares for training, unless they are there, and return the model of them."""
    source = runs / f"{NAME}.npy"
    if not source.exists():
        source.parent.mkdir(parents=True, exist_ok=True)
        squares = cut(SQUARES)
        write_atomic(source, lambda file: np.save(file, squares))
    credits = ", ".join(f"{Path(each.path).stem} ({each.credit}, {each.license})" for each in PICTURES)
    return Shipped(
        NAME,
        ModelConfig(
            architecture="conv", observation_shape=(3, SIZE, SIZE), latent=48, hidden=(96,), channels=(16, 32, 48, 48),
            activation="silu", likelihood="logistic", scale=0.1, learn_scale=True,
        ),
        TrainConfig(epochs=40, batch_size=64, learning_rate=2e-3, kl_warmup_epochs=2, gradient_clip=1000, threads=1),
        DataConfig(
            str(source), validation_fraction=0.02, test_fraction=0.05,
            license="CC0 1.0, CC BY 2.0 and public domain, as listed above",
        ),
        formats=("onnx",),
        description=(
            "A showcase of color pictures, and no claim of quality: squares of ten pictures, so that squares for test "
            f"overlap others that were trained on. The pictures come with scikit-image and scikit-learn: {credits}; "
            "models/pictures.py"
        ),
    )  # fmt: skip


def _place(picture: Picture) -> Path:
    found = importlib.util.find_spec(picture.package)
    place = Path(str(found and found.origin)).parent / picture.path
    if found is None or not place.is_file():
        raise InputError(
            f"{picture.package}: expected the package with {picture.path}, got none; install scikit-image and "
            "scikit-learn"
        )
    return place
