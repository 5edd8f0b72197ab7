"""Refuse a model for a fault of its own where its answers mean nothing: the doubt about them only follows from it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from ..errors import ExportError
from .declaration import Declaration
from .draws import Draws
from .functions import conditions_taken, find_functions, tensors_in
from .memory import Memory, names_of
from .posterior import distance

# How far two answers to the same row may be apart, as a share of the largest magnitude.
_SAME = 1e-3


@contextlib.contextmanager
def faults_first(
    model: nn.Module, example: Tensor, conditions: Mapping[str, Tensor], declaration: Declaration
) -> Iterator[None]:
    """Raise what `require_sound` raises, where there is something, in the place of an ExportError of the block."""
    try:
        yield
    except ExportError as error:
        try:
            require_sound(model, example, conditions, declaration)
        except ExportError as fault:
            raise fault from error
        raise


def require_sound(
    model: nn.Module, example: Tensor, conditions: Mapping[str, Tensor], declaration: Declaration
) -> None:
    """Check the weights, and what `encode` and `forward` answer to the example, with every normal draw set to 1.

    Raises:
        ExportError: a weight or an answer is not finite, two runs differ, or rows of a batch influence each other.
    """
    for name, weight in model.named_parameters():
        wrong = ~torch.isfinite(weight)
        if wrong.any():
            place = f"{name}{[int(i) for i in wrong.nonzero()[0]]}"
            raise ExportError(
                f"model: {place}: expected finite weights, got {float(weight[wrong][0])}; load those of a "
                "training that did not diverge"
            )
    functions: dict[str, Callable[..., object]] = {"forward": model}
    with contextlib.suppress(ExportError):
        functions = {"encode": find_functions(model, example, conditions, declaration).encode, **functions}
    for name, function in functions.items():
        taken = conditions if name == "encode" else conditions_taken(model, conditions)
        draws = Draws.constant(1.0)

        def answers(
            rows: int,
            function: Callable[..., object] = function,
            taken: Mapping[str, Tensor] = taken,
            draws: Draws = draws,
        ) -> list[Tensor]:
            with torch.no_grad(), draws:
                found = tensors_in(function(example[:rows].clone(), **{key: c[:rows] for key, c in taken.items()}))
                return [torch.view_as_real(tensor) if tensor.is_complex() else tensor for tensor in found]

        try:
            first = answers(len(example))
            memory = Memory(model)
            second = answers(len(example))
            changed = memory.changed()
            alone = answers(1)
        except Exception:
            # Not every model has a forward that takes the example; a failing encode has a reason of its own.
            continue
        if draws.other:
            # Random functions that are seen have a reason of their own.
            continue
        _require_finite(name, first, example)
        _require_agreement(name, first, second, alone, len(example), changed)


def _require_finite(name: str, answers: list[Tensor], example: Tensor) -> None:
    for answer in answers:
        wrong = ~torch.isfinite(answer)
        if wrong.any():
            got, place = float(answer[wrong][0]), "the example"
            if answer.dim() and len(answer) == len(example):
                row = int(wrong.nonzero()[0, 0])
                low, high = (float(end) for end in torch.aminmax(example[row].float()))
                place = f"row {row} of the example, whose values lie in {low:g} … {high:g}"
            raise ExportError(
                f"{name}: expected finite numbers, got {got} for {place}; check the weights, and what {name} computes "
                "of such values"
            )


def _require_agreement(
    name: str, first: list[Tensor], second: list[Tensor], alone: list[Tensor], n: int, changed: list[str]
) -> None:
    if any(a.shape != b.shape or distance(a.float(), b.float()) > _SAME for a, b in zip(first, second, strict=False)):
        if changed:
            raise ExportError(
                f"{name}: two runs with the same noise differ, and each leaves something in the model "
                f"({names_of(changed)}) that may change the next; make that depend on self.training"
            )
        raise ExportError(
            f"{name}: two runs with the same noise differ: it draws with something else than PyTorch's functions, such "
            "as numpy's generator or a scripted function; draw with torch.randn_like"
        )
    for whole, row in zip(first, alone, strict=False):
        rows = whole.dim() > 0 and row.dim() > 0 and len(whole) == n and len(row) == 1
        if rows and whole.shape[1:] == row.shape[1:] and distance(whole[:1].float(), row.float()) > _SAME:
            raise ExportError(
                f"{name}: row 0 differs when it is run alone: rows of a batch influence each other (normalization by "
                "the batch, a mean over axis 0); make each row's result its own"
            )
