"""Observations from a named source, split into train, validation and test by seed."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import warnings
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_runtime.arrays import read_npy
from vae_runtime.errors import InputError, error_line
from vae_runtime.input_files import open_plain, require_unpacked
from vae_runtime.likelihood import KINDS, Kind

from .config import DataConfig

Observations = NDArray[np.float32]

_KINDS_OF_ANY_NUMBER = " or ".join(name for name, kind in KINDS.items() if kind.support is None)
_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
# Whatever its name, a file of another format is not opened: PostScript is code, which Pillow gives to Ghostscript.
_IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
_MAX_PIXELS = 2**22
_IDX_IMAGES = 0x00000803  # unsigned bytes, three dimensions

# Data known by their digest, whatever the file or folder is called: name, description, license.
_KNOWN = {
    "sha256:04b7e6d8b23b1f79a558a09914acb541c801bca13df2df5ffb618f39937485d6": (
        "digits",
        "1,797 handwritten digits, 8×8 grey values (Alpaydin & Kaynak, UCI Machine Learning Repository)",
        "CC BY 4.0",
    ),
    "sha256:8eab7aee30ee494e96bc5a43b1de96beb722396487b39661083ab310fbc6e599": (
        "mnist",
        "70,000 handwritten digits, 28×28 grey values (LeCun, Cortes & Burges)",
        "CC BY-SA 3.0",
    ),
}


@dataclass(frozen=True)
class Provenance:
    """The origin and the size of the data that a model was trained on."""

    name: str
    """`digits` or `mnist` where the digest is theirs, else the name of the file or folder."""
    description: str
    """One line, or empty where the data are not known."""
    license: str
    """License of the data, or `unknown`."""
    digest: str
    """`sha256:` and the hash of all observations before the split, with their shape and type."""
    train: int
    """Number of observations trained on; `validation` and `test` likewise."""
    validation: int
    test: int
    binary: bool = False
    """Every value is 0 or 1, so that a bernoulli likelihood covers the data as they are."""

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class Dataset:
    """Observations, float32 [n, *shape] each, finite; images are [C, H, W] with values in [0, 1]."""

    train: Observations
    validation: Observations
    test: Observations
    provenance: Provenance
    divisor: int
    """The divisor that brought integers into [0, 1]; 0 where the source held floats, kept as they are."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one observation."""
        return self.train.shape[1:]


@dataclass(frozen=True)
class _Source:
    """All of a source, not yet split or divided; see `Dataset.divisor`."""

    observations: NDArray[Any]
    divisor: int
    name: str
    test: NDArray[Any] | None = None


def load(config: DataConfig) -> Dataset:
    """Read a source and split it; the same configuration and files give the same arrays.

    Sources: `digits` (scikit-learn's, in the package); a folder with MNIST's IDX files, gzipped or not, whose own test
    set is kept; a `.npy` file (uint8 becomes [0, 1], floats stay as they are); a folder of images of one size (grey
    stays one channel, color three, with transparency four).

    Raises:
        InputError: the source is missing, empty, damaged, of mixed sizes, holds NaN or infinity, or leaves nothing to
            train on.
    """
    source = _read(config.source)
    parts = [source.observations] if source.test is None else [source.observations, source.test]
    digest = _digest(parts)
    name, description, license = _KNOWN.get(digest, (source.name, "", "unknown"))

    n = len(source.observations)
    order = np.random.Generator(np.random.PCG64(config.seed)).permutation(n)
    n_test = 0 if source.test is not None else round(n * config.test_fraction)
    n_validation = round((n - n_test) * config.validation_fraction)
    n_train = n - n_test - n_validation
    if n_train < 1:
        raise InputError(
            f"{config.source}: expected at least one observation to train on, got {n} in all, {n_test} of them for "
            f"test and {n_validation} for validation; give more data or lower the fractions"
        )
    validation, test, train = np.split(order, [n_validation, n_validation + n_test])
    return Dataset(
        train=_divided(source.observations[np.sort(train)], source.divisor),
        validation=_divided(source.observations[np.sort(validation)], source.divisor),
        test=_divided(source.observations[np.sort(test)] if source.test is None else source.test, source.divisor),
        provenance=Provenance(
            name, description, license, digest, n_train, n_validation,
            n_test if source.test is None else len(source.test),
            binary=all(bool(np.isin(part, (0, source.divisor or 1)).all()) for part in parts),
        ),
        divisor=source.divisor,
    )  # fmt: skip


def require_kind(observations: Observations, kind: Kind, place: str) -> None:
    """Refuse values that a likelihood is not defined for.

    Args:
        observations: of any shape.
        kind: the kind of likelihood.
        place: where the observations come from.

    Raises:
        InputError: there is one; the message states the first such value and its index.
    """
    misfit = kind.misfit(observations)
    if misfit:
        remedy = "save counts as floats (uint8 become [0, 1])" if kind.counts else "scale the data"
        raise InputError(f"{place}: {misfit}; {remedy}, or choose {_KINDS_OF_ANY_NUMBER}")


def require_range(observations: Observations, support: tuple[float, float], place: str, purpose: str) -> None:
    """Refuse values outside a range.

    Args:
        observations: of any shape.
        support: the min and the max allowed.
        place: where the observations come from.
        purpose: the part of the configuration that needs the range.

    Raises:
        InputError: there is one; the message states the first such value and its index.
    """
    low, high = support
    outside = (observations < low) | (observations > high)
    if outside.any():
        index = _first(outside)
        raise InputError(
            f"{place}: expected values in [{low:g}, {high:g}] for {purpose}, got {observations[index]:g} at "
            f"{list(index)}; scale the data, or choose {_KINDS_OF_ANY_NUMBER} without binarisation"
        )


def _digest(parts: list[NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part.dtype.str}{part.shape}".encode())
        digest.update(np.ascontiguousarray(part).data)
    return f"sha256:{digest.hexdigest()}"


def _divided(values: NDArray[Any], divisor: int) -> Observations:
    divided: Observations = np.divide(values, np.float32(divisor or 1), dtype=np.float32)
    return divided


def _read(source: str) -> _Source:
    if source == "digits":
        return _digits()
    path = Path(source)
    if path.is_file():
        if path.suffix != ".npy":
            raise InputError(f"{path}: expected a .npy file or a folder; convert it with numpy.save")
        return _npy(path)
    if not path.is_dir():
        raise InputError(
            f"{path}: no such file or folder; give `digits`, a .npy file, or a folder with IDX files or images"
        )
    if any(path.glob("*-images?idx3-ubyte*")):
        return _mnist(path)
    return _images(path)


def _digits() -> _Source:
    from sklearn.datasets import load_digits

    images = load_digits().images.astype(np.uint8)
    return _Source(images[:, None], 16, "digits")


def _npy(path: Path) -> _Source:
    values = read_npy(path)
    if values.ndim < 2 or not values.size:
        raise InputError(f"{path}: expected an array [n, *shape] with at least one value, got {list(values.shape)}")
    if values.dtype == np.uint8:
        return _Source(values, 255, path.stem)
    if values.dtype.kind != "f":
        raise InputError(f"{path}: expected uint8 or floating-point values, got {values.dtype}; convert them")
    with np.errstate(over="ignore"):
        observations = values.astype(np.float32)
    finite = np.isfinite(observations)
    if not finite.all():
        index = _first(~finite)
        raise InputError(
            f"{path}: expected finite float32 values, got {values[index]} at {list(index)}; drop or correct it"
        )
    return _Source(observations, 0, path.stem)


def _mnist(folder: Path) -> _Source:
    train, test = (_idx(_idx_path(folder, part)) for part in ("train", "t10k"))
    if train.shape[1:] != test.shape[1:]:
        raise InputError(
            f"{folder}: expected training and test images of one size, got {list(train.shape[1:])} and "
            f"{list(test.shape[1:])}; take both from one data set"
        )
    return _Source(train, 255, folder.name, test=test)


def _idx_path(folder: Path, part: str) -> Path:
    for separator in "-.":
        for suffix in ("", ".gz"):
            path = folder / f"{part}-images{separator}idx3-ubyte{suffix}"
            if path.is_file():
                return path
    raise InputError(f"{folder}: expected {part}-images-idx3-ubyte or the same with .gz, got neither; add the file")


def _idx(path: Path) -> NDArray[np.uint8]:
    """Images of an IDX file, uint8 [n, 1, H, W]: big-endian magic, three sizes, then bytes."""
    try:
        with open_plain(path) as file:
            packed = os.fstat(file.fileno()).st_size
            opened: Any = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
            header = opened.read(16)
            if len(header) < 16:
                raise InputError(f"{path}: expected an IDX header of 16 bytes, got {len(header)}; fetch it again")
            magic, n, height, width = struct.unpack(">4I", header)
            if magic != _IDX_IMAGES:
                raise InputError(
                    f"{path}: expected magic number {_IDX_IMAGES:#010x} (images), got {magic:#010x}; take the images "
                    "file"
                )
            size = n * height * width
            if not size:
                raise InputError(f"{path}: expected at least one image, got {n} of {height}×{width}; take another file")
            require_unpacked(size, packed)
            # One byte more shows a file that is too long.
            content = opened.read(size + 1)
    except InputError:
        raise
    except (OSError, EOFError, ValueError, zlib.error) as error:
        form = "gzip" if path.suffix == ".gz" else "IDX"
        raise InputError(f"{path}: expected a whole {form} file: {error_line(error)}; fetch it again") from error
    if len(content) != size:
        got = f"{16 + len(content)}{' or more' if len(content) > size else ''}"
        raise InputError(
            f"{path}: expected {n} images of {height}×{width}, {16 + size} bytes, got {got}; fetch it again"
        )
    return np.frombuffer(content, np.uint8).reshape(n, 1, height, width)


def _images(folder: Path) -> _Source:
    from PIL import Image, UnidentifiedImageError

    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _IMAGE_SUFFIXES)
    if not paths:
        raise InputError(f"{folder}: expected IDX files or images, got neither; add some, or give another folder")
    images: list[NDArray[np.uint8]] = []
    packed = unpacked = 0
    for path in paths:
        try:
            with open_plain(path) as file, warnings.catch_warnings():
                # Pillow's own, of bombs and broken notes: what matters of them is an error here.
                warnings.simplefilter("ignore")
                packed += os.fstat(file.fileno()).st_size
                with Image.open(file, formats=_IMAGE_FORMATS) as image:
                    if image.width * image.height > _MAX_PIXELS:
                        raise ValueError(f"expected at most {_MAX_PIXELS} pixels, got {image.width}×{image.height}")
                    unpacked += image.width * image.height * len(image.getbands())
                    require_unpacked(unpacked, packed)
                    images.append(np.asarray(image.convert(_mode(image)), np.uint8))
        except UnidentifiedImageError:
            # Pillow's words name an object of Python.
            known = ", ".join(_IMAGE_FORMATS)
            raise InputError(
                f"{path}: expected an image as {known}, got another format; replace or remove it"
            ) from None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(f"{path}: expected an image: {error_line(error)}; replace or remove it") from error
        if images[-1].shape != images[0].shape:
            raise InputError(
                f"{path}: expected {_size(images[0])} as {paths[0].name} has, got {_size(images[-1])}; "
                "bring all images to one size and one number of channels"
            )
    stack = np.stack(images)
    return _Source(stack[:, None] if stack.ndim == 3 else stack.transpose(0, 3, 1, 2), 255, folder.name)


def _mode(image: Any) -> str:
    """The mode without palette that keeps all an image has: grey (L), color (RGB) or with transparency (RGBA)."""
    if image.mode[0] in "IF":
        raise ValueError(f"expected 8 bits per channel, got mode {image.mode}")
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        return "RGBA"
    return "L" if image.mode in ("1", "L") else "RGB"


def _size(image: NDArray[np.uint8]) -> str:
    height, width, *channels = image.shape
    return f"{height}×{width} with {channels[0] if channels else 1} channel(s)"


def _first(mask: NDArray[np.bool_]) -> tuple[int, ...]:
    """Index of the first true value."""
    return tuple(int(i) for i in np.unravel_index(int(mask.argmax()), mask.shape))
