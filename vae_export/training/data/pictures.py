"""Read one picture as an observation, of formats that run no code, with bounded memory."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from vae_runtime.errors import error_line
from vae_runtime.input_files import open_plain, require_unpacked

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
"""Names of files that are taken for pictures."""
# Whatever its name, a file of another format is not opened: PostScript is code, which Pillow gives to Ghostscript.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
_MAX_PIXELS = 2**22


def read_picture(path: Path) -> tuple[NDArray[np.uint8], int]:
    """Return a picture of a file, uint8 [C, H, W], and how many bytes it has in the file.

    Raises:
        ValueError: it is no picture, damaged, or too large.
    """
    try:
        with open_plain(path) as file:
            packed = os.fstat(file.fileno()).st_size
            return decoded(file, packed), packed
    except OSError as error:
        raise ValueError(f"expected an image: {error_line(error)}") from error


def decoded(file: IO[bytes], packed: int) -> NDArray[np.uint8]:
    """Return the picture that an open file holds, uint8 [C, H, W].

    Args:
        file: the content.
        packed: how many bytes it has.

    Raises:
        ValueError: it is no picture, damaged, or too large, or has several frames.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            # Pillow's own, of bombs and broken notes: what matters of them is an error here.
            warnings.simplefilter("ignore")
            with Image.open(file, formats=_FORMATS) as image:
                if image.width * image.height > _MAX_PIXELS:
                    raise ValueError(f"expected at most {_MAX_PIXELS} pixels, got {image.width}×{image.height}")
                # Pillow drops the lower 8 of 16 bits of a color without a word.
                if ";16" in str(image.tile):
                    raise ValueError("expected 8 bits per channel, got 16")
                require_unpacked(image.width * image.height * len(image.getbands()), packed)
                return values(image)
    except UnidentifiedImageError:
        # Pillow's words name an object of Python.
        raise ValueError(f"expected an image as {', '.join(_FORMATS)}, got another format") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"expected an image: {error_line(error)}") from error


def values(image: Any) -> NDArray[np.uint8]:
    """Return the values of a picture of Pillow, uint8 [C, H, W].

    Raises:
        ValueError: it has more than 8 bits for a channel, or several frames.
    """
    # The further pictures in a photo of a telephone, an MPO, are beside the one that it is.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise ValueError(f"expected one frame, got a {image.format} of several; save each as a file, or only one")
    pixels = np.asarray(image.convert(_mode(image)), np.uint8)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _mode(image: Any) -> str:
    """The mode without palette that keeps all an image has: gray (L), color (RGB) or with transparency (RGBA)."""
    if image.mode[0] in "IF":
        raise ValueError(f"expected 8 bits per channel, got mode {image.mode}")
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        return "RGBA"
    return "L" if image.mode in ("1", "L") else "RGB"
