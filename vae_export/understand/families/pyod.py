"""pyod: its detectors with a PyTorch module, which standardize the data before the module sees them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..declaration import Declaration
from .family import CODING, Family, ObjectData

# What the library adds to the standard deviation.
_EPSILON = 1e-8


def _vae(model: Any) -> Declaration:
    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = model.encode(x)
        # The loss and the sampling take the logvar within these bounds.
        return mean, logvar if model.logvar_clip is None else torch.clamp(logvar, *model.logvar_clip)

    # The loss averages the squared errors, so it is no likelihood.
    return Declaration(
        encode=encode, decode=model.decode, posterior="logvar", likelihood="none", prior="normal", axes=("feature",)
    )


MODELS = {"VAEModel": Family(_vae, (*CODING, "reparameterize"))}


def object_data(detector: Any, example: Tensor | None) -> ObjectData | None:
    """Return the standardized example of a detector, and the statistics that it is standardized with.

    None for a detector that standardizes nothing, and where no example is given, since a detector keeps no data.
    """
    mean, std = getattr(detector, "X_mean", None), getattr(detector, "X_std", None)
    if mean is None or std is None or example is None:
        return None
    offset, divisor = np.asarray(mean, np.float64), np.asarray(std, np.float64) + _EPSILON
    standardized = (example.double() - torch.from_numpy(offset)) / torch.from_numpy(divisor)
    normalisation = tuple(offset.tolist()), tuple(divisor.tolist())
    return ObjectData(standardized.float(), {}, {}, normalisation)
