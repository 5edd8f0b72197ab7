"""What a row of docs/compatibility.md is made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vae_runtime import VAE

SEED = 20


def _encode(model: Any, x: Tensor, conditions: Mapping[str, Tensor]) -> Any:
    return model.encode(x, **conditions)


def _decode(model: Any, z: tuple[Tensor, ...], conditions: Mapping[str, Tensor]) -> Any:
    return model.decode(*z, **conditions)


@dataclass(frozen=True)
class Entry:
    """A model of the table.

    `make` gives the model and the arguments of `vae_export.export`: the fewest that a user would have to give. `encode`
    and `decode` ask the model itself, as its library or its class means it to be asked: the truth that bundles are held
    against. `unscaled` is what the library's pipeline decodes for the latents of another model. `differ` replaces
    all three for a trained object: it lists what of a bundle is not what the object gives. `against` says which of the
    library's functions all this asks. `expect` starts with
    "refused: " where the export must refuse, and says what the error names. `more_libraries` are needed, too.
    """

    family: str
    name: str
    make: Callable[[], tuple[Any, dict[str, Any]]]
    library: str | None = None
    expect: str | None = None
    slow: bool = False
    encode: Callable[[Any, Tensor, Mapping[str, Tensor]], Any] = _encode
    decode: Callable[[Any, tuple[Tensor, ...], Mapping[str, Tensor]], Any] = _decode
    unscaled: Callable[[Any, Tensor], Tensor] | None = None
    differ: Callable[[Any, dict[str, Any], VAE], list[str]] | None = None
    against: str = "encode and decode"
    more_libraries: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.family}: {self.name}"


def made(make: Callable[[], Any], shape: tuple[int, ...], n: int = 8, *, normal: bool = False) -> tuple[Any, Tensor]:
    """A model with random weights and statistics, in evaluation mode, and an example, from a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = make()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                # As after training; fresh statistics would make the layer do nothing.
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 1.5)
        return model.eval(), (torch.randn if normal else torch.rand)(n, *shape)
