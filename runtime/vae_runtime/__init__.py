"""Sample, encode, decode and score exported Variational Autoencoders with numpy and ONNX Runtime.

    import vae_runtime

    vae = vae_runtime.load("models/mnist")
    x = vae.sample(16, seed=0)

Needs numpy; ONNX Runtime comes by the extra `cpu` or `gpu`. PyTorch is never imported.
"""

import os
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .errors import BundleError, DeviceError, InputError, VaeError

if TYPE_CHECKING:
    from .calibration import calibrate
    from .fleet import Event, Release, history, install, rollback, status
    from .generation.run import finish_samples, generate
    from .generation.samples import Samples, open_samples
    from .generation.verification import verify_samples
    from .latent_walks import interpolate, traverse
    from .materials import bill_of_materials
    from .noise import new_seed
    from .packing import pack
    from .posterior import Encoding, Posterior, Posteriors
    from .score import Scores
    from .tables import to_table
    from .vae import VAE, load
    from .verification import Report, verify

# Since 1.29, ONNX Runtime reports its use over the network, writes files for that under the home folder, and lets a
# forked process wait half a minute at its end. It reads this variable when it is imported; 0 lets it report.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# The module of each name, imported when the name is first used. The command line thus starts before numpy is imported,
# and ends in order when it is interrupted meanwhile.
_LATER = {
    **dict.fromkeys(("Encoding", "Posterior", "Posteriors"), "posterior"),
    "Scores": "score",
    "calibrate": "calibration",
    "to_table": "tables",
    **dict.fromkeys(("Event", "Release", "history", "install", "rollback", "status"), "fleet"),
    **dict.fromkeys(("finish_samples", "generate"), "generation.run"),
    "verify_samples": "generation.verification",
    **dict.fromkeys(("Samples", "open_samples"), "generation.samples"),
    **dict.fromkeys(("interpolate", "traverse"), "latent_walks"),
    "bill_of_materials": "materials",
    "new_seed": "noise",
    "pack": "packing",
    **dict.fromkeys(("VAE", "load"), "vae"),
    **dict.fromkeys(("Report", "verify"), "verification"),
}

__all__ = [
    "VAE",
    "BundleError",
    "DeviceError",
    "Encoding",
    "Event",
    "InputError",
    "Posterior",
    "Posteriors",
    "Release",
    "Report",
    "Samples",
    "Scores",
    "VaeError",
    "__version__",
    "bill_of_materials",
    "calibrate",
    "finish_samples",
    "generate",
    "history",
    "install",
    "interpolate",
    "load",
    "new_seed",
    "open_samples",
    "pack",
    "rollback",
    "status",
    "to_table",
    "traverse",
    "verify",
    "verify_samples",
]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_LATER[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
