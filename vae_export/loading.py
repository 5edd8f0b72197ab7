"""Load a user's model from its module, and its weights from a file."""

from __future__ import annotations

import importlib
import os
import pickle
import sys
import warnings
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from vae_runtime.errors import InputError, one_line


def load_model(spec: str, weights: Path | None) -> nn.Module:
    """Make a model and load its state.

    The module is looked for in the working directory too, as `python -m` does; importing it runs its code.

    Args:
        spec: "package.module:name", where the name is of a class or a function that is called without arguments, or of
            a module that is there already.
        weights: .safetensors, or a file of torch.save that holds tensors by name alone (nothing else is unpickled).

    Raises:
        InputError: something is missing, damaged, or does not fit the model.
    """
    package, sign, name = spec.partition(":")
    if not sign or not package or not name:
        raise InputError(f"model: expected package.module:name, got {spec!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(package)
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError:
        raise InputError(f"model: {package} has no {name}; give the name of a class or function in it") from None
    except Exception as error:  # whatever the module's own code raises
        raise InputError(f"model: {package} cannot be imported: {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(found, nn.Module):
        if not callable(found):
            raise InputError(f"model: {spec}: expected a class or a function, got {type(found).__name__}")
        try:
            found = found()
        except (Exception, SystemExit) as error:
            raise InputError(
                f"model: {spec}() fails: {type(error).__name__}: {one_line(error)}; give a function without arguments "
                "that makes the model"
            ) from error
    if not isinstance(getattr(found, "module", found), nn.Module) and not isinstance(found, nn.Module):
        raise InputError(f"model: {spec}: expected a torch.nn.Module, got {type(found).__name__}")
    if weights is not None:
        _load_weights(found, weights)
    return found  # type: ignore[no-any-return]


def _load_weights(model: nn.Module, path: Path) -> None:
    try:
        if path.suffix == ".safetensors":
            state: Any = safetensors.torch.load_file(path)
        else:
            with warnings.catch_warnings():
                # Warnings about pickle's protocol: a file that torch.save did not write raises an error below.
                warnings.simplefilter("ignore")
                state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give the model's weights") from None
    except pickle.UnpicklingError as error:
        # PyTorch's own message is a page on how to run what the file holds.
        raise InputError(
            f"{path}: expected .safetensors or torch.save(model.state_dict(), …), got other objects, which are "
            "not unpickled"
        ) from error
    except Exception as error:  # the readers let through what their parts raise
        raise InputError(
            f"{path}: expected .safetensors or torch.save(model.state_dict(), …): {one_line(error)[:300]}"
        ) from error
    # Lightning and many training scripts keep the weights under one of these names.
    for key in ("state_dict", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    named = isinstance(state, dict) and all(isinstance(name, str) for name in state)
    if not named or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path}: expected tensors by name, as model.state_dict() gives them; save that")
    # DataParallel and torch.compile add these prefixes.
    for prefix in ("module.", "_orig_mod."):
        if state and all(name.startswith(prefix) for name in state) and not hasattr(model, prefix[:-1]):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    try:
        model.load_state_dict(state)
    except Exception as error:  # a model may load its state in its own way
        raise InputError(f"{path}: these weights are not the model's: {one_line(error)[:500]}") from error
