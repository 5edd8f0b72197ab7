"""Sample, encode, decode and score exported Variational Autoencoders with numpy and ONNX Runtime.

    import vae_runtime

    vae = vae_runtime.load("models/mnist")
    x = vae.sample(16, seed=0)

Needs numpy; ONNX Runtime comes by the extra `cpu` or `gpu`. PyTorch is never imported.
"""

from .errors import BundleError, DeviceError, InputError, VaeError
from .noise import new_seed
from .posterior import Encoding, Posterior, Posteriors
from .score import Scores
from .vae import VAE, interpolate, load, traverse
from .verify import Report, verify

__version__ = "0.1.0"

__all__ = [
    "VAE",
    "BundleError",
    "DeviceError",
    "Encoding",
    "InputError",
    "Posterior",
    "Posteriors",
    "Report",
    "Scores",
    "VaeError",
    "__version__",
    "interpolate",
    "load",
    "new_seed",
    "traverse",
    "verify",
]
