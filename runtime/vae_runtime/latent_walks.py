"""Paths between latents and along one of their dimensions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .errors import InputError, require_bool, require_integer

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[np.float32]


def interpolate(a: ArrayLike, b: ArrayLike, steps: int, *, spherical: bool = True) -> Array:
    """Give latents on the way from one to another.

    Under a normal prior in many dimensions, latents lie near a sphere. The straight line between two of them leaves it
    and passes through latents that the prior never draws; the spherical path does not (Shoemake, "Animating Rotation
    with Quaternion Curves", SIGGRAPH 1985; White, arXiv 1609.04468).

    Args:
        a: float32 [*latent shape], the first latent.
        b: float32 [*latent shape], the last.
        steps: how many latents to give, both ends included; at least 2.
        spherical: go along the sphere, with lengths that go linearly from one to the other; else straight.

    Returns:
        float32 [steps, *latent shape].

    Raises:
        InputError: the shapes differ, a number is not finite, or `steps` is below 2.
    """
    count = require_integer("steps", steps, 2, 2**31)
    require_bool("spherical", spherical)
    first, last = _finite("a", a), _finite("b", b)
    if first.shape != last.shape:
        raise InputError(f"b: expected the shape of a, {list(first.shape)}, got {list(last.shape)}")
    t = np.linspace(0.0, 1.0, count).reshape(-1, *[1] * first.ndim)
    length_a, length_b = (float(np.linalg.norm(end)) for end in (first, last))
    if spherical and length_a > 0 and length_b > 0:
        cosine = float(np.sum(first * last)) / (length_a * length_b)
        angle = math.acos(min(1.0, max(-1.0, cosine)))
        # Between parallel or opposite latents the sphere has no single shortest path: go straight.
        if 1e-6 < angle < math.pi - 1e-6:
            direction = (np.sin((1 - t) * angle) * first / length_a + np.sin(t * angle) * last / length_b) / math.sin(
                angle
            )
            return (direction * ((1 - t) * length_a + t * length_b)).astype(np.float32)
    return ((1 - t) * first + t * last).astype(np.float32)


def traverse(z: ArrayLike, dimension: int, values: ArrayLike) -> Array:
    """Copy one latent and let one of its numbers take one value after the other.

    Args:
        z: float32 [*latent shape], one latent.
        dimension: which number, counted row-major from 0.
        values: float32 [m], its values.

    Returns:
        float32 [m, *latent shape].

    Raises:
        InputError: there is no such number, or a value is not finite.
    """
    latent, steps = _finite("z", z).astype(np.float32), _finite("values", values).astype(np.float32)
    if steps.ndim != 1 or not len(steps):
        raise InputError(f"values: expected an array [m] of at least one number, got {list(steps.shape)}")
    index = require_integer("dimension", dimension, 0, latent.size - 1)
    copies = np.repeat(latent.reshape(1, -1), len(steps), axis=0)
    copies[:, index] = steps
    return copies.reshape(len(steps), *latent.shape)


def _finite(name: str, value: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(value, np.float64)
    # Written so that NaN fails.
    if not (np.abs(array) <= np.finfo(np.float32).max).all():
        raise InputError(f"{name}: expected finite numbers of float32, got others")
    return array
