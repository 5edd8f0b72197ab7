"""MONAI: its variational autoencoders whose layers `encode` and `decode` are only parts of the two.

AutoencoderKL and VQVAE need no description: what they do shows their meaning.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from ..declaration import Declaration
from .family import Family


def _fully_connected(model: Any) -> Declaration:
    # In evaluation mode `forward` decodes the mean plus the standard deviation: samples are what it is trained on.
    return Declaration(encode=model.encode_forward, decode=model.decode_forward, posterior="logvar", prior="normal")


def _convolutional(model: Any) -> Declaration:
    def decode(z: Tensor) -> Tensor:
        return model.decode_forward(z, model.use_sigmoid)  # type: ignore[no-any-return]

    return replace(_fully_connected(model), decode=decode)


_METHODS = ("encode_forward", "decode_forward", "forward")
MODELS = {
    "VarAutoEncoder": Family(_convolutional, _METHODS),
    "VarFullyConnectedNet": Family(_fully_connected, _METHODS),
}
