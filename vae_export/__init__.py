"""Train a Variational Autoencoder in PyTorch and export it to ONNX and TorchScript with proven parity.

from vae_export import DataConfig, ModelConfig, TrainConfig, export, train

train("run", ModelConfig(latent=8), TrainConfig(epochs=50), DataConfig("digits"))
export("run", "bundle")
"""

from typing import TYPE_CHECKING, Any

from vae_runtime._version import __version__

if TYPE_CHECKING:
    from .adopting import Adopted, adopt
    from .errors import ExportError, ParityError, TrainingError
    from .exporting import Exported, export
    from .parity.bundle import check_parity
    from .parity.report import ParityReport
    from .pushing import Pushed, push
    from .signing import sign
    from .training.config import DataConfig, ModelConfig, TrainConfig
    from .training.evaluation import Evaluation, evaluate
    from .training.loop import train
    from .training.model import VAE, reparameterize

__all__ = [
    "VAE",
    "Adopted",
    "DataConfig",
    "Evaluation",
    "ExportError",
    "Exported",
    "ModelConfig",
    "ParityError",
    "ParityReport",
    "Pushed",
    "TrainConfig",
    "TrainingError",
    "__version__",
    "adopt",
    "check_parity",
    "evaluate",
    "export",
    "push",
    "reparameterize",
    "sign",
    "train",
]

# The module of each name, imported when the name is first used: PyTorch takes seconds to import.
_MODULES = {
    **dict.fromkeys(("ExportError", "ParityError", "TrainingError"), "errors"),
    **dict.fromkeys(("Adopted", "adopt"), "adopting"),
    **dict.fromkeys(("Exported", "export"), "exporting"),
    "check_parity": "parity.bundle",
    "ParityReport": "parity.report",
    **dict.fromkeys(("Pushed", "push"), "pushing"),
    **dict.fromkeys(("DataConfig", "ModelConfig", "TrainConfig"), "training.config"),
    **dict.fromkeys(("Evaluation", "evaluate"), "training.evaluation"),
    "sign": "signing",
    "train": "training.loop",
    **dict.fromkeys(("VAE", "reparameterize"), "training.model"),
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
