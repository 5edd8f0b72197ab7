"""Lay out observations as pictures, and write them as PNG; only writing needs the extra `image` (Pillow)."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, VaeError


def grid(
    x: NDArray[np.float32], *, columns: int | None = None, value_range: tuple[float, float] | None = None
) -> NDArray[np.uint8]:
    """Lay observations out as one picture, row by row, a dark line between them.

    Args:
        x: float32 [n, H, W] or [n, C, H, W] with C = 1 (gray), 3 (RGB) or 4 (RGBA).
        columns: pictures in a row; by default, about as many as rows.
        value_range: the values shown darkest and brightest; by default, the minimum and the maximum. Values beyond
            are clipped.

    Returns:
        uint8 [height, width] or [height, width, C].

    Raises:
        InputError: the observations are not pictures, or not finite.
    """
    require_finite(x)
    images = x[:, None] if x.ndim == 3 else x
    if not len(x):
        raise InputError("observations: expected at least one, got none")
    if images.ndim != 4 or images.shape[1] not in (1, 3, 4):
        raise InputError(
            "observations: expected pictures, [H, W] or [C, H, W] with C = 1, 3 or 4, got the shape "
            f"{list(x.shape[1:])}; write them as .npy"
        )
    low, high = value_range or (float(images.min()), float(images.max()))
    high = high if high > low else low + 1.0
    n, channels, height, width = images.shape
    across = min(columns or math.ceil(math.sqrt(n)), n)
    down = -(-n // across)
    levels = np.rint(np.clip((images - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    canvas = np.full((down * (height + 1) - 1, across * (width + 1) - 1, channels), 64, np.uint8)
    for index, image in enumerate(levels):
        top, left = index // across * (height + 1), index % across * (width + 1)
        canvas[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    return canvas[..., 0] if channels == 1 else canvas


def require_finite(x: NDArray[np.float32]) -> None:
    """Refuse observations with NaN or infinity, as a decoder gives them for latents far beyond the prior.

    Raises:
        InputError: the message names the first row.
    """
    finite = np.isfinite(x).all(axis=tuple(range(1, x.ndim)))
    if not finite.all():
        raise InputError(
            f"observations[{finite.argmin()}]: expected finite values, got NaN or infinity; give latents nearer to the "
            "prior, or a lower temperature"
        )


def pairs(
    x: NDArray[np.float32],
    reconstructions: NDArray[np.float32],
    *,
    columns: int = 10,
    value_range: tuple[float, float] | None = None,
) -> NDArray[np.uint8]:
    """Lay observations out as `grid` does, each with its reconstruction beneath."""
    across = min(columns, len(x))
    darkest = value_range[0] if value_range else min(float(x.min()), float(reconstructions.min()))
    rows = []
    for first in range(0, len(x), across):
        for part in (x[first : first + across], reconstructions[first : first + across]):
            padding = np.full((across - len(part), *part.shape[1:]), darkest, np.float32)
            rows.append(np.concatenate([part, padding]))
    return grid(np.concatenate(rows), columns=across, value_range=value_range)


def png(picture: NDArray[np.uint8], *, min_side: int = 400) -> bytes:
    """Return a picture as the content of a PNG file.

    Args:
        picture: uint8 [height, width] or [height, width, 3 or 4].
        min_side: smaller pictures are enlarged by a whole factor to about this many pixels.

    Raises:
        VaeError: Pillow is missing.
    """
    image = require_pillow().fromarray(picture)
    factor = max(1, round(min_side / min(picture.shape[:2])))
    if factor > 1:
        image = image.resize((image.width * factor, image.height * factor), resample=0)
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def require_pillow() -> Any:
    """Return Pillow's Image module.

    Raises:
        VaeError: Pillow is not installed; the message names the extra.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise VaeError(
            "a PNG needs Pillow, which is not installed: pip install 'vae-runtime[image]', or write .npy"
        ) from error
    return Image
