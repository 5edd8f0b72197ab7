"""Train a Variational Autoencoder in PyTorch and export it to ONNX and TorchScript with proven parity."""

from vae_runtime import __version__

__all__ = ["__version__"]
