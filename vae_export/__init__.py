"""Train a Variational Autoencoder in PyTorch and export it to ONNX and TorchScript with proven parity.

from vae_export import DataConfig, ModelConfig, TrainConfig, export, train

train("run", ModelConfig(latent=8), TrainConfig(epochs=50), DataConfig("digits"))
export("run", "bundle")
"""

from typing import TYPE_CHECKING, Any

from vae_runtime._version import __version__

if TYPE_CHECKING:
    from .errors import ExportError, ParityError, TrainingError
    from .exporting import Exported, export
    from .parity.bundle import check_parity
    from .parity.report import ParityReport
    from .training.config import DataConfig, ModelConfig, TrainConfig
    from .training.evaluation import Evaluation, evaluate
    from .training.loop import train
    from .training.model import VAE, reparameterize

__all__ = [
    "VAE",
    "DataConfig",
    "Evaluation",
    "ExportError",
    "Exported",
    "ModelConfig",
    "ParityError",
    "ParityReport",
    "TrainConfig",
    "TrainingError",
    "__version__",
    "check_parity",
    "evaluate",
    "export",
    "reparameterize",
    "train",
]

_ROOMS = (
    "exporting",
    "errors",
    "parity.bundle",
    "parity.report",
    "training.config",
    "training.evaluation",
    "training.loop",
    "training.model",
)


def __getattr__(name: str) -> Any:
    # Imported when first asked for: PyTorch takes seconds, which `vae-export --help` need not wait for.
    if name in __all__:
        import importlib

        for room in _ROOMS:
            module = importlib.import_module(f"{__name__}.{room}")
            if name in module.__all__:
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
