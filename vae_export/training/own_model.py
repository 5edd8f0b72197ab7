"""What a run states of a model that is not built in: how it is made, and what was understood of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from vae_runtime.errors import InputError, one_line
from vae_runtime.likelihood import KINDS

from ..errors import ExportError
from ..understand.checks import check_declaration
from ..understand.declaration import Declaration

DECLARED = ("posterior", "likelihood", "scale", "prior", "encode", "decode")
"""What may be declared of a model that is trained: arguments of `train` and of `export`."""


@dataclass(frozen=True)
class OwnModel:
    """A module of the user's: the part `model` of a run's `config.json`."""

    factory: str | None
    """`package.module:name` of the function or class that makes it; None for a module that was given in Python."""
    class_name: str
    """Its class, `class` in the file."""
    observation_shape: tuple[int, ...]
    """Shape of one observation, without the batch."""
    latents: Mapping[str, tuple[int, ...]]
    """The shape of each latent, without the batch, in the order in which its decode takes them."""
    posterior: tuple[str, ...]
    """The meaning of the second tensor that its encode gives for each latent, such as logvar."""
    likelihood: str
    """Name of the kind of p(x|z)."""
    classes: int
    """Number of classes, where the likelihood is of classes; else 0."""
    scale: float | None
    """Scale of p(x|z); None where it has none, or where it is the decoder's output."""
    declared: Mapping[str, str | float]
    """What was declared, by the names in `DECLARED`; the rest was found."""
    recognised: tuple[str, ...]
    """What was found, and how, one line each."""

    @property
    def title(self) -> str:
        """Its class, without the module that it is in."""
        return self.class_name.rpartition(".")[2]

    @property
    def latent(self) -> int:
        """Number of latent dimensions, those of all latents."""
        return sum(math.prod(shape) for shape in self.latents.values())

    @property
    def meaning(self) -> dict[str, Any]:
        """What does not change with the weights, by the names of its fields."""
        names = ("observation_shape", "latents", "posterior", "likelihood", "classes")
        return {name: getattr(self, name) for name in names}

    @property
    def declaration(self) -> Declaration:
        """What was declared, in the form that an export takes."""
        return Declaration(**self.declared)  # type: ignore[arg-type]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, of which `from_json` makes an equal record."""
        return {
            "factory": self.factory,
            "class": self.class_name,
            "observation_shape": list(self.observation_shape),
            "latents": {name: list(shape) for name, shape in self.latents.items()},
            "posterior": list(self.posterior),
            "likelihood": self.likelihood,
            "classes": self.classes,
            "scale": self.scale,
            "declared": dict(self.declared),
            "recognised": list(self.recognised),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Return the record of a JSON object.

        Raises:
            InputError: a field is missing, unknown or of the wrong type.
        """
        rules: dict[str, tuple[str, Callable[[Any], bool]]] = {
            "factory": ("text or null", lambda value: value is None or isinstance(value, str)),
            "class": ("text", lambda value: isinstance(value, str)),
            "observation_shape": ("a shape", _is_shape),
            "latents": ("a shape of each", _are_shapes),
            "posterior": ("a list of texts", _are_texts),
            "likelihood": (f"one of {', '.join(KINDS)}", lambda value: isinstance(value, str) and value in KINDS),
            "classes": ("a number of classes", lambda value: type(value) is int and 0 <= value < 2**31),
            "scale": ("a positive number or null", lambda value: value is None or _is_number(value)),
            "declared": ("what can be declared of a model", _is_declared),
            "recognised": ("a list of texts", _are_texts),
        }
        for name in fields:
            if name not in rules:
                raise InputError(f"model.{one_line(name)[:99]}: no such field; the fields are {', '.join(rules)}")
        for name, (expected, fits) in rules.items():
            if name not in fields:
                raise InputError(f"model.{name}: the field is missing")
            if not fits(fields[name]):
                raise InputError(f"model.{name}: expected {expected}, got {fields[name]!r:.99}")
        return cls(
            factory=fields["factory"],
            class_name=fields["class"],
            observation_shape=tuple(fields["observation_shape"]),
            latents={name: tuple(shape) for name, shape in fields["latents"].items()},
            posterior=tuple(fields["posterior"]),
            likelihood=fields["likelihood"],
            classes=fields["classes"],
            scale=fields["scale"],
            declared=dict(fields["declared"]),
            recognised=tuple(fields["recognised"]),
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _is_shape(value: Any) -> bool:
    whole = isinstance(value, list) and all(type(size) is int and 0 < size < 2**31 for size in value)
    return whole and 0 < len(value) <= 16 and math.prod(value) < 2**44


def _are_shapes(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(map(_is_shape, value.values()))


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_declared(value: Any) -> bool:
    if not isinstance(value, dict) or not set(value) <= set(DECLARED):
        return False
    if not all(_is_number(item) if name == "scale" else isinstance(item, str) for name, item in value.items()):
        return False
    try:
        check_declaration(Declaration(**value))
    except (InputError, ExportError):
        return False
    return True
