"""Check the arguments that declare what a model is, whatever the model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_runtime.errors import InputError, require_integer
from vae_runtime.likelihood import KINDS
from vae_runtime.manifest import Condition, Likelihood, Observation

from ..errors import ExportError
from .declaration import SECOND, Declaration, Mixture
from .prior import FITTED, is_fitted

Array = NDArray[Any]


def require_likelihood(declared: str | None) -> None:
    """Raise ExportError if a declared kind is unknown."""
    if declared not in (None, "none", *KINDS):
        raise ExportError(f"likelihood: expected {', '.join(KINDS)} or none, got {declared!r:.99}")


def check_declaration(declaration: Declaration) -> None:
    """Refuse invalid numbers and names, and name the argument.

    Raises:
        InputError: a value is wrong in itself, whatever the model.
        ExportError: the likelihood is unknown.
    """
    require_likelihood(declaration.likelihood)
    if declaration.posterior not in (None, *SECOND, "codes", "none"):
        raise InputError(
            f"posterior: expected one of {', '.join(SECOND)}, codes, none, got {declaration.posterior!r:.99}"
        )
    prior = declaration.prior
    if not (isinstance(prior, Mixture) or prior in (None, "normal", "none", "sphere") or is_fitted(prior)):
        raise InputError(f"prior: expected normal, none, sphere, {FITTED}, got {prior!r:.99}")
    scale = declaration.scale
    if scale is not None and not (isinstance(scale, Real) and math.isfinite(scale) and scale > 0):
        raise InputError(f"scale: expected a positive number, got {scale!r:.99}")
    for name, value, zero in (
        ("latent_scale", declaration.latent_scale, False),
        ("latent_shift", declaration.latent_shift, True),
    ):
        if value is not None:
            numbers = _floats(value)
            if not np.isfinite(numbers).all() or (not zero and not numbers.all()):
                kind = "finite numbers" if zero else "finite numbers other than 0"
                raise InputError(f"{name}: expected {kind}, got {value!r:.99}")
    if declaration.range is not None:
        ends = _floats(declaration.range)
        if ends.shape != (2,) or not np.isfinite(ends).all() or not ends[0] < ends[1]:
            raise InputError(f"range: expected two finite numbers, min and max, got {declaration.range!r:.99}")
    if declaration.codebook is not None:
        require_integer("codebook", declaration.codebook, 1, 2**31)
    for name, names in (
        ("axes", declaration.axes),
        ("latent_axes", declaration.latent_axes),
        ("dynamic", declaration.dynamic),
    ):
        listed = isinstance(names, Iterable) and not isinstance(names, str)
        if names is not None and not (listed and all(isinstance(n, str) and n for n in names)):
            raise InputError(f"{name}: expected a sequence of names, got {names!r}")
        if names is not None and len(set(names)) < len(tuple(names)):
            raise InputError(f"{name}: expected different names, got {list(names)}")
    for name, what in (("encode", declaration.encode), ("decode", declaration.decode)):
        if what is not None and not (callable(what) or (isinstance(what, str) and what)):
            raise InputError(f"{name}: expected the name of a method or a function, got {what!r}")


def _floats(value: Any) -> NDArray[np.float64]:
    """Return a number or numbers as float64 [n]; NaN where they are none."""
    try:
        return np.asarray(value, np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError):
        return np.array([np.nan])


def observation_range(
    kind: str,
    declared: tuple[float, float] | None,
    known: tuple[float, float] | None,
    answer: tuple[int, ...] | None = None,
) -> tuple[float, float] | None:
    """Return the range of the observations under a likelihood.

    Args:
        kind: of the likelihood, or "none".
        declared: the range that was declared; it counts first, but for classes, which are counted.
        known: the range that is known otherwise, such as that of a dtype.
        answer: the shape of the decoder's answer, of which classes are an axis.
    """
    likelihood = KINDS.get(kind)
    if likelihood is not None and likelihood.classes:
        return likelihood.of(None, answer).support if answer else declared
    support = likelihood.support if likelihood else None
    own = support if support and all(map(math.isfinite, support)) else None
    # Levels are those of whatever range there is.
    others = (known, own) if likelihood is not None and likelihood.levels else (own, known)
    return declared or next((bounds for bounds in others if bounds), None)


def with_class_axis(likelihood: Likelihood, observation: Observation) -> Likelihood:
    """Return a likelihood with the names of the axes of its answer, where these are the observation's and classes."""
    if not likelihood.has_classes:
        return likelihood
    return dataclasses.replace(likelihood, axes=(*observation.axes, "class"))


def class_names_of(
    class_names: Sequence[str] | Mapping[str, Sequence[str]] | None, conditions: Mapping[str, Array]
) -> dict[str, Sequence[str]]:
    """Return the names of the classes of integer conditions, by condition.

    Args:
        class_names: names of the classes of the only integer condition, or names by condition.
        conditions: values [n, ...] by name.

    Raises:
        InputError: there is no such condition, or a name is missing or wrong.
    """
    if class_names is None:
        return {}
    whole = [name for name, array in conditions.items() if array.ndim == 1 and array.dtype.kind != "f"]
    if not isinstance(class_names, Mapping):
        if len(whole) != 1:
            raise InputError(
                f"class_names: expected exactly one integer condition of shape [n], got {whole or 'none'}; "
                + ("pass a mapping from condition to names" if whole else "give conditions=")
            )
        class_names = {whole[0]: class_names}
    found: dict[str, Sequence[str]] = {}
    for name, names in class_names.items():
        if name not in whole:
            raise InputError(f"class_names: {name}: expected an integer condition of shape [n], got {whole or 'none'}")
        if isinstance(names, str) or not all(isinstance(n, str) and n.isprintable() and n for n in names):
            raise InputError(f"class_names: {name}: expected a list of printable names, got {names!r}")
        if len(set(names)) < len(names):
            raise InputError(f"class_names: {name}: expected different names, got {list(names)}")
        values = conditions[name]
        if int(values.min()) < 0 or int(values.max()) >= len(names):
            raise InputError(
                f"class_names: {name}: expected a name for each of the classes 0 … {int(values.max())}, got "
                f"{len(names)}"
            )
        found[name] = tuple(names)
    return found


def described_condition(
    name: str, values: Array, components: Sequence[str], classes: Sequence[str] | None
) -> Condition:
    """Return the description of a condition.

    Args:
        name: its name.
        values: examples [n, ...] in their own dtype.
        components: those that take it.
        classes: the names of the values 0, 1, ..., if it has such.
    """
    integer = values.dtype.kind != "f"
    # Other integers than the example's may lie outside a table of embeddings. Bools and bytes are no indices.
    bounds = (float(min(0, int(values.min()))), float(values.max())) if integer and not classes else None
    if bounds and values.dtype in (np.bool_, np.uint8):
        bounds = 0.0, 1.0 if values.dtype == np.bool_ else 255.0
    return Condition(
        name,
        tuple(values.shape[1:]),
        "int64" if integer else "float32",
        classes=tuple(classes) if classes else None,
        range=bounds if bounds and bounds[0] < bounds[1] else None,
        components=tuple(components),
    )
