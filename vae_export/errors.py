"""What the exporter and the training module raise, beside the runtime's errors."""

from __future__ import annotations

from vae_runtime.errors import VaeError

__all__ = ["ExportError", "ParityError", "TrainingError"]


class ExportError(VaeError):
    """The model could not be turned into graphs, or the bundle could not be written."""


class ParityError(ExportError):
    """A graph's numbers are not PyTorch's."""


class TrainingError(VaeError):
    """Training cannot go on: the loss is not a number, or the run folder does not fit the configuration."""
