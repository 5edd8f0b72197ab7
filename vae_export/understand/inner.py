"""Find the model that is meant in an object, or in a module, that holds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vae_runtime.errors import InputError

from ..errors import ExportError
from .draws import Draws
from .families.registry import family_of
from .functions import conditions_taken, sampling, tensors_in
from .posterior import SAME, distance

# Where objects keep the module that they train and apply.
_NAMES = ("module", "model", "net", "network", "vae", "autoencoder")


def module_of(model: Any) -> nn.Module:
    """Return the module that a user's object is, wraps or holds, and require values for its weights.

    Raises:
        InputError: it is none and holds none, or several; it is scripted; or its weights have no values yet.
    """
    module = model if isinstance(model, nn.Module) else _held(model)
    # torch.compile and DataParallel, in any order, wrap the module that is meant.
    while isinstance(module, nn.Module) and (wrapped := _wrapped(module)) is not None:
        module = wrapped
    if isinstance(module, torch.jit.ScriptModule):
        raise InputError(
            "model: expected a torch.nn.Module, got a ScriptModule; pass the module from before torch.jit.script"
        )
    if not isinstance(module, nn.Module):
        raise InputError(f"model: expected a torch.nn.Module or the folder of a run, got {type(model).__name__}")
    for key, tensor in (*module.named_parameters(), *module.named_buffers()):
        if nn.parameter.is_lazy(tensor) or tensor.is_meta:
            raise InputError(
                f"model: {key} has no values yet; run the model once, or load its weights, before the export"
            )
    return module


def _wrapped(module: nn.Module) -> Any:
    """Return the module in a wrapper of PyTorch's own; None for any other module."""
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return module.module
    return getattr(module, "_orig_mod", None)


def _held(model: Any) -> Any:
    """The module that an object holds, by one of the usual names or as the only one."""
    for name in _NAMES:
        module = getattr(model, name, None)
        if isinstance(module, nn.Module):
            return module
    modules = {name: value for name, value in getattr(model, "__dict__", {}).items() if isinstance(value, nn.Module)}
    if len(modules) > 1:
        raise InputError(
            f"model: expected a torch.nn.Module, got {type(model).__name__}, which holds {', '.join(modules)}; pass "
            "the one that has encode and decode, or a module of both"
        )
    return next(iter(modules.values()), None)


def inner_model(model: nn.Module, example: Tensor, conditions: Mapping[str, Tensor]) -> tuple[nn.Module, str | None]:
    """Return the only child of a module that has encode and decode where the module itself has none, and its name.

    A module whose own `forward` does something else than the child's is meant itself.

    Args:
        model: in evaluation mode, float32, on the CPU.
        example: observations [n, …].
        conditions: values [n, …] by name.
    """
    if _is_known(model) or any(_has(model, half) for half in ("encode", "decode")):
        return model, None
    children = [(name, child) for name, child in model.named_children() if _is_autoencoder(child)]
    if len(children) != 1:
        return model, None
    name, child = children[0]
    try:
        own = _answers(model, example, conditions)
    except Exception:
        # It has no forward, or one that needs more than an observation.
        return child, name
    try:
        inner = _answers(child, example, conditions)
    except Exception:
        return model, None
    same = all(any(a.shape == b.shape and distance(a.float(), b.float()) <= SAME for b in inner) for a in own)
    return (child, name) if same else (model, None)


def _answers(model: nn.Module, example: Tensor, conditions: Mapping[str, Tensor]) -> list[Tensor]:
    """The tensors that `forward` returns, with every normal draw set to 1."""
    with sampling(model, False), Draws.constant(1.0), torch.no_grad():
        return tensors_in(model(example.clone(), **conditions_taken(model, conditions)))


def _is_autoencoder(module: nn.Module) -> bool:
    return _is_known(module) or all(_has(module, half) for half in ("encode", "decode"))


def _is_known(module: nn.Module) -> bool:
    """Whether a module declares itself or is of a known family, if only to be refused."""
    try:
        return callable(getattr(module, "__vae_export__", None)) or family_of(module) is not None
    except ExportError:
        return True


def _has(module: nn.Module, half: str) -> bool:
    return any(callable(getattr(module, name, None)) for name in (half, f"{half}r", half[:3]))
