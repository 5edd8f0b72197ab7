"""Load a user's model from its module, and its weights from a file or a folder of the library that wrote them."""

from __future__ import annotations

import importlib
import inspect
import io
import os
import pickle
import pickletools
import sys
import types
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import safetensors.torch
import torch
from torch import nn

from vae_runtime.errors import InputError, error_line, one_line
from vae_runtime.input_files import open_plain, open_safetensors


def load_named(spec: str, what: str) -> Any:
    """Import an object of the user's.

    The module is looked for in the working directory too, as `python -m` does; importing it runs its code.

    Args:
        spec: "package.module:name".
        what: what it is for, in errors.

    Raises:
        InputError: it is missing, or its module cannot be imported.
    """
    package, sign, name = spec.partition(":")
    if not sign or not package or not name:
        raise InputError(f"{what}: expected package.module:name, got {spec!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        target: Any = importlib.import_module(package)
        for part in name.split("."):
            target = getattr(target, part)
    except AttributeError:
        raise InputError(f"{what}: {package} has no {name}; give the name of a class or function in it") from None
    except Exception as error:  # whatever the module's own code raises
        raise InputError(
            f"{what}: {package} cannot be imported: {type(error).__name__}: {one_line(error)}; give "
            "a module that Python imports in this folder"
        ) from error
    return target


def load_model(spec: str, weights: Path | None) -> nn.Module:
    """Make a model and load its state.

    The module is looked for in the working directory too, as `python -m` does; importing it runs its code.

    Args:
        spec: "package.module:name", where the name is of a class or a function that is called without arguments, or of
            an existing module.
        weights: .safetensors, or a file of torch.save, of which tensors, numbers and texts alone are read (no other
            object is unpickled); or a folder that the class's `from_pretrained` or `load_from_folder` reads, or that
            holds one such file.

    Raises:
        InputError: something is missing, damaged, or does not fit the model.
    """
    target = load_named(spec, "model")
    if weights is not None and weights.is_dir():
        folder_reader = next((r for r in _FOLDER_READERS if callable(getattr(target, r, None))), None)
        if folder_reader:
            return _from_folder(target, folder_reader, spec, weights)
    checkpoint = {} if weights is None else _read_checkpoint(_weights_file(weights))
    model = target if isinstance(target, nn.Module) else _call(target, spec, checkpoint)
    if not isinstance(getattr(model, "module", model), nn.Module) and not isinstance(model, nn.Module):
        raise InputError(f"model: {spec}: expected a torch.nn.Module, got {type(model).__name__}")
    if weights is not None:
        _load_state(model, _state_of(checkpoint, weights), weights)
    return model


# Methods of a class that read a folder which its library wrote.
_FOLDER_READERS = ("from_pretrained", "load_from_folder")
# Bytes of the pickle in a file of weights: far above the names and shapes of any real model's.
_MAX_PICKLE = 2**20
# Each takes a microsecond or two; a tensor takes some forty.
_MAX_STEPS = 2**17
_TOO_LONG = f"expected a pickle of at most {_MAX_STEPS} steps, got more; save model.state_dict() alone"
_TOO_LARGE = f"expected a pickle of at most {_MAX_PICKLE} bytes, got more; save model.state_dict() alone"
_LFS = b"version https://git-lfs.github.com/spec/"
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


def _from_folder(target: Any, reader: str, spec: str, folder: Path) -> nn.Module:
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            continue
        try:
            _refuse_pointer(path)
        except OSError as error:
            raise InputError(f"{path}: {error_line(error)}; put the file there, or remove it") from None
    # transformers and diffusers would otherwise take a folder that is missing files for a name on their hub.
    local = {"local_files_only": True} if reader == "from_pretrained" else {}
    try:
        model = getattr(target, reader)(str(folder), **local)
    except Exception as error:
        raise InputError(f"{folder}: {spec}.{reader} fails: {type(error).__name__}: {one_line(error)[:300]}") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"model: {spec}.{reader}: expected a torch.nn.Module, got {type(model).__name__}")
    return model


def _weights_file(path: Path) -> Path:
    """The path itself, or the only file of weights in a folder."""
    if not path.is_dir() or path.suffix in _SUFFIXES:
        return path
    files = [child for child in sorted(path.iterdir()) if child.suffix in _SUFFIXES]
    if len(files) != 1:
        names = ", ".join(child.name for child in files) or "none"
        raise InputError(f"{path}: expected one file of weights in this folder, got {names}; give the file")
    return files[0]


def _call(target: Any, spec: str, checkpoint: Any) -> Any:
    """Call a class or a function without arguments, or with those that a Lightning checkpoint recorded."""
    if not callable(target):
        raise InputError(f"model: {spec}: expected a class or a function, got {type(target).__name__}")
    try:
        return target(**_hyper_parameters(target, checkpoint))
    except (Exception, SystemExit) as error:
        raise InputError(
            f"model: {spec}() fails: {type(error).__name__}: {one_line(error)}; give a function without arguments "
            "that makes the model"
        ) from error


def _hyper_parameters(target: Any, checkpoint: Any) -> dict[str, Any]:
    """The arguments of a class that Lightning's save_hyperparameters wrote into a checkpoint."""
    recorded = checkpoint.get("hyper_parameters") if isinstance(checkpoint, Mapping) else None
    if not isinstance(recorded, Mapping):
        return {}
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return {}
    everything = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters)
    names = {parameter.name for parameter in parameters}
    taken = {
        name: value
        for name, value in recorded.items()
        if name in names or (everything and isinstance(name, str) and not name.startswith("_"))
    }
    unread = [name for name, value in taken.items() if isinstance(value, _Unread)]
    if unread:
        raise InputError(f"hyper_parameters: {', '.join(unread)} are objects, which are not unpickled")
    return taken


class _Unread(dict[Any, Any]):
    """Stands for an object of a class that is not unpickled: it takes whatever the file gives it and runs nothing."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Take an item."""

    def extend(self, values: Any) -> None:
        """Take items."""


class _Unpickler(pickle._Unpickler):
    """Read tensors and plain values alone; every other object becomes an `_Unread`.

    The class in Python: the one in C takes the memory that a number in the file names.
    """

    _ALLOWED: ClassVar = {
        ("collections", "OrderedDict"),
        ("builtins", "set"),
        ("torch", "Size"),
        ("torch", "device"),
        ("torch.serialization", "_get_layout"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_parameter"),
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return a class that the file names, if it is one of tensors or plain values."""
        known = (module, name) in self._ALLOWED
        if known or (
            module == "torch" and (name.endswith("Storage") or isinstance(getattr(torch, name, 0), torch.dtype))
        ):
            return super().find_class(module, name)
        # Lightning's hyperparameters, which are a dictionary.
        return dict if name == "AttributeDict" else _Unread


def _refuse_pointer(path: Path) -> None:
    """Refuse what is no plain file, and the short text that a checkout without git-lfs has in place of a large one."""
    with open_plain(path) as file:
        pointer = os.fstat(file.fileno()).st_size < 1024 and file.read().startswith(_LFS)
    if pointer:
        raise InputError(f"{path}: this is a pointer of git-lfs, not the file itself; run `git lfs pull` in its folder")


def _read_checkpoint(path: Path) -> Any:
    """Read what a file of weights holds, without running code from it."""
    try:
        _refuse_pointer(path)
        if path.suffix == ".safetensors":
            open_safetensors(path).close()
            return safetensors.torch.load_file(path)
        zipped = zipfile.is_zipfile(path)
        if zipped:
            _require_records(path)
        with warnings.catch_warnings():
            # Warnings about pickle's protocol: a file that torch.save did not write raises an error below.
            warnings.simplefilter("ignore")
            try:
                if not zipped:
                    with _OldFile(path) as file:
                        if file.peek(2).startswith(b"PK"):
                            # PyTorch takes it for an archive by its beginning alone.
                            raise ValueError("expected a whole archive, got one without its end")
                        return torch.load(file, map_location="cpu", weights_only=True)
                # Mapped, tensors lie within the file: read, PyTorch takes their sizes on trust.
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except pickle.UnpicklingError:
                if not zipped:
                    raise
                reader = types.SimpleNamespace(Unpickler=_Unpickler, load=None, __name__="reader")
                checkpoint = torch.load(path, map_location="cpu", weights_only=False, pickle_module=reader, mmap=True)
                if isinstance(checkpoint, _Unread):
                    raise
                return checkpoint
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give the model's weights") from None
    except pickle.UnpicklingError as error:
        # PyTorch's own message is a page on how to run what the file holds.
        raise InputError(
            f"{path}: expected .safetensors or torch.save(model.state_dict(), …), got other objects, which are "
            "not unpickled; save model.state_dict() alone"
        ) from error
    except InputError:
        raise
    except Exception as error:  # the readers let through what their parts raise
        raise InputError(
            f"{path}: expected .safetensors or torch.save(model.state_dict(), …): "
            f"{error_line(error)[:300].rstrip('. ')}; give a file that one of them wrote"
        ) from error


class _OldFile(io.BufferedReader):
    """A file of torch.save before 1.6, whose pickles have a limit; PyTorch reads the tensors past this class."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._count, self._reads = 0, 0

    def read(self, size: int | None = -1) -> bytes:
        """Read the next bytes of a pickle."""
        content = super().read(size)
        self._count += len(content)
        self._reads += 1
        if self._count > _MAX_PICKLE:
            raise ValueError(_TOO_LARGE)
        # A step begins with a read.
        if self._reads > _MAX_STEPS:
            raise ValueError(_TOO_LONG)
        return content


def _require_records(path: Path) -> None:
    """Refuse an archive that PyTorch did not write: its records are not compressed, and its pickle is small."""
    with zipfile.ZipFile(path) as archive:
        for item in archive.infolist():
            if item.compress_type != zipfile.ZIP_STORED or item.file_size != item.compress_size:
                raise ValueError(f"{item.filename!r:.99}: expected a record that is not compressed")
            if item.filename.endswith(".pkl"):
                if item.file_size > _MAX_PICKLE:
                    raise ValueError(_TOO_LARGE)
                if any(number == _MAX_STEPS for number, _ in enumerate(pickletools.genops(archive.read(item)))):
                    raise ValueError(_TOO_LONG)


def _state_of(checkpoint: Any, path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by name."""
    state = checkpoint
    # Lightning and many training scripts keep the weights under one of these names.
    for key in ("state_dict", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    named = isinstance(state, dict) and all(isinstance(name, str) for name in state)
    if not named or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path}: expected tensors by name, as model.state_dict() gives them; save that")
    return dict(state)


def _load_state(model: Any, state: dict[str, torch.Tensor], path: Path) -> None:
    """Load weights, whatever prefix their names have.

    Raises:
        InputError: they are not the model's, or those of several models fit.
    """
    expected = model.state_dict() if isinstance(model, nn.Module) else {}
    if expected and expected.keys() != state.keys():
        state = _without_prefix(state, expected, path)
    try:
        model.load_state_dict(state)
    except Exception as error:  # a model may load its state in its own way
        raise InputError(
            f"{path}: these weights are not the model's: {error_line(error).rstrip('. ')}; give those of this model"
        ) from error


def _without_prefix(
    state: dict[str, torch.Tensor], expected: Mapping[str, torch.Tensor], path: Path
) -> dict[str, torch.Tensor]:
    """The weights below the one prefix where they are the model's, such as "net." or "module."; else all of them.

    torch.compile adds "_orig_mod." in the middle of names too. A wrapper may have a prefix that the weights lack.
    """
    state = {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items()}
    prefixes = {""}
    for name in state:
        parts = name.split(".")
        prefixes |= {".".join(parts[:count]) + "." for count in range(1, len(parts))}
    fits = {}
    for prefix in sorted(prefixes):
        below = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        if below.keys() == expected.keys() and all(below[name].shape == expected[name].shape for name in expected):
            fits[prefix] = below
    if len(fits) > 1:
        raise InputError(f"{path}: the weights of several models fit, {', '.join(fits)}; save those of one alone")
    if fits:
        return next(iter(fits.values()))
    prefix = next(iter(expected)).partition(".")[0] + "."
    longer = {f"{prefix}{name}": tensor for name, tensor in state.items()}
    return longer if longer.keys() == expected.keys() else state
