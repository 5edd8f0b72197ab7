"""Train a Variational Autoencoder in PyTorch and export it to ONNX and TorchScript with proven parity.

from vae_export import DataConfig, ModelConfig, TrainConfig, export, train

train("run", ModelConfig(latent=8), TrainConfig(epochs=50), DataConfig("digits"))
export("run", "bundle")
"""

import sys
from types import ModuleType
from typing import Any

from vae_runtime import __version__

_ROOMS = {
    "DataConfig": "config",
    "ExportError": "errors",
    "Exported": "bundle",
    "ModelConfig": "config",
    "ParityError": "errors",
    "ParityReport": "parity",
    "TrainConfig": "config",
    "TrainingError": "errors",
    "VAE": "model",
    "evaluate": "evaluate",
    "export": "bundle",
    "prove": "bundle",
    "reparameterize": "model",
    "train": "train",
}

__all__ = [*sorted(_ROOMS), "__version__"]


def __getattr__(name: str) -> Any:
    # Imported when first asked for: PyTorch takes seconds, which `vae-export --help` need not wait for.
    if name in _ROOMS:
        import importlib

        return getattr(importlib.import_module(f"{__name__}.{_ROOMS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        # An import of the room `train` would put the module where the function of that name is offered.
        if not (name in _ROOMS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
