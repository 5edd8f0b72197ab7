"""Refuse a decode that depends on what an earlier call left in the model, such as the skips of the last encode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ExportError
from .draws import Draws
from .functions import Functions, another, tensors_in
from .posterior import SAME, distance


class Memory:
    """What the modules of a model hold, to see what calls leave there.

    Args:
        model: its attributes are read now, and again by `changed`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._held = dict(_held(model))

    def changed(self) -> list[str]:
        """Return the names of the attributes that are others now, or were written into."""
        names = []
        for name, held in _held(self._model):
            before = self._held.get(name)
            if (
                before is None
                or len(before) != len(held)
                or any(not _same(a, b) for a, b in zip(before, held, strict=True))
            ):
                names.append(name)
        return names


def require_no_memory(functions: Functions, latents: Sequence[Tensor], changed: Sequence[str]) -> None:
    """Require that decode gives the same for the same latents, whatever was encoded before.

    Args:
        functions: encode and decode.
        latents: those of the example.
        changed: the attributes that calls leave behind; without any, nothing is run.

    Raises:
        ExportError: decode depends on an earlier call.
    """
    if not changed:
        return
    example = functions.example
    other = another(example)[: max(1, len(example) // 2)]
    conditions = {name: tensor[: len(other)] for name, tensor in functions.encode_conditions.items()}

    def decoded() -> list[Tensor]:
        return tensors_in(functions.decoded(latents, Draws.constant(0.0)))

    try:
        functions.encoded(Draws.constant(0.0))
        own, again = decoded(), decoded()
    except Exception:
        # A function that fails is explained where it is understood.
        return
    _require_same(own, again, "an earlier call of decode", changed)
    try:
        with Draws.constant(0.0):
            functions.encode(other.clone(), **conditions)
    except Exception:
        return
    try:
        after = decoded()
    except Exception:
        after = []
    _require_same(own, after, "the last call of encode", changed)


def _require_same(own: Sequence[Tensor], after: Sequence[Tensor], call: str, changed: Sequence[str]) -> None:
    pairs = list(zip(own, after, strict=False))
    alike = len(own) == len(after) and all(a.shape == b.shape for a, b in pairs)
    if alike and all(torch.equal(a, b) or distance(a.float(), b.float()) <= SAME for a, b in pairs):
        return
    raise ExportError(
        f"decode: its answer to the same latents depends on what {call} left in the model ({names_of(changed)}), and a "
        "bundle's decoder gets the latents and conditions alone; make that a condition, or pass decode=, a function "
        "that does without it"
    )


def names_of(changed: Sequence[str]) -> str:
    """Return the first few of these names in words."""
    return ", ".join(changed[:4]) + (f" and {len(changed) - 4} more" if len(changed) > 4 else "")


def _held(model: nn.Module) -> Iterator[tuple[str, list[tuple[Any, int]]]]:
    """The values of each attribute of each module, those in a container one by one, and how often each was written."""
    for prefix, module in model.named_modules():
        weights = {**module._parameters, **module._buffers}
        for name, value in {**vars(module), **weights}.items():
            if name in ("_parameters", "_buffers", "_modules"):
                continue
            values = (
                value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
            )
            yield f"{prefix}.{name}".lstrip("."), [(each, _version(each)) for each in values]


def _version(value: Any) -> int:
    return value._version if isinstance(value, Tensor) and not value.is_inference() else 0


def _same(a: tuple[Any, int], b: tuple[Any, int]) -> bool:
    if a[0] is b[0]:
        return a[1] == b[1]
    return not isinstance(a[0], Tensor) and isinstance(a[0], (int, float, str, bool)) and a[0] == b[0]
