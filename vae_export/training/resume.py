"""The progress of a run after an epoch, and `state.safetensors`, which keeps it for a run that goes on."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from vae_runtime.errors import error_line
from vae_runtime.files import write_atomic
from vae_runtime.input_files import open_safetensors

from ..errors import TrainingError
from .run_folder import STATE, require_same

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What Adam keeps of each weight, by its own names."""
# Bytes of the header of a resume state: some 300 for each epoch.
_MAX_HEADER = 2**24


@dataclass
class State:
    """The progress of a run after an epoch."""

    epoch: int = 0
    records: list[dict[str, Any]] = field(default_factory=list)
    """Lines of `metrics.jsonl`."""
    best_epoch: int = 0
    best_bound: float = -math.inf
    best_weights: dict[str, Tensor] = field(default_factory=dict)


def save(
    folder: Path, state: State, identity: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Replace the resume state of a run by that of this epoch.

    Args:
        folder: of the run.
        state: the progress.
        identity: of the run, which must be equal when it goes on.
        model: with the weights after the epoch.
        optimizer: with the moments of those weights that are trained.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in state.best_weights.items()}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            tensors |= {f"{key}.{name}": optimizer.state[weight][key] for key in MOMENTS}
    metadata = {
        "identity": json.dumps(identity),
        "epoch": str(state.epoch),
        "best_epoch": str(state.best_epoch),
        "records": json.dumps(state.records),
    }
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_atomic(folder / STATE, safetensors.torch.save(tensors, metadata))


def load(
    folder: Path, identity: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, steps: int
) -> State | None:
    """Fill a model and an optimizer from the resume state of a run, and return its progress; None if there is none.

    Args:
        folder: of the run.
        identity: of the run that is asked for.
        model: takes the weights.
        optimizer: takes the moments.
        steps: of one epoch.

    Raises:
        TrainingError: the state is another run's, or damaged.
    """
    path = folder / STATE
    if not path.exists():
        return None
    try:
        open_safetensors(path, _MAX_HEADER).close()
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            weights = model.state_dict()
            own = [name for name in file.keys() if name.partition(".")[2] in weights]  # noqa: SIM118 (not a mapping)
            tensors = {name: file.get_tensor(name) for name in own}
        found, records = json.loads(metadata["identity"]), json.loads(metadata["records"])
        epoch, best_epoch = int(metadata["epoch"]), int(metadata["best_epoch"])
        require_same(folder, found, identity)
        for name, tensor in weights.items():
            tensor.copy_(tensors[f"model.{name}"])
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                # copies into memory laid out as the weight's, so that each sum runs in the order it would have
                moments = {key: torch.zeros_like(weight).copy_(tensors[f"{key}.{name}"]) for key in MOMENTS}
                optimizer.state[weight] = {"step": torch.tensor(float(epoch * steps)), **moments}
        best = {name.removeprefix("best."): tensor for name, tensor in tensors.items() if name.startswith("best.")}
        bound = records[best_epoch - 1]["validation"]["bound"]
    except TrainingError:
        raise
    except Exception as error:  # whatever a damaged file leads to
        raise TrainingError(
            f"{path}: expected a complete resume state: {error_line(error)}; delete the file to start over"
        ) from error
    return State(epoch, records, best_epoch, bound, best)
