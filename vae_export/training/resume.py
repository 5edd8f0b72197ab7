"""The progress of a run after an epoch, and `state.safetensors`, which keeps it for a run that goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
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
from .checkpoint import separate
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


@dataclass
class Trained:
    """All that changes with each step of a training."""

    model: nn.Module
    optimizer: torch.optim.Adam
    scaler: torch.amp.GradScaler
    average: dict[str, Tensor] = field(default_factory=dict)
    """Averages of the model's parameters over the steps; empty where there are none."""

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state."""
        state = {name: each.state_dict() for name, each in (("model", self.model), ("scaler", self.scaler))}
        return {**state, "optimizer": self.optimizer.state_dict(), "average": self.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a whole state."""
        self.model.load_state_dict(state["model"])
        self.scaler.load_state_dict(state["scaler"])
        self.optimizer.load_state_dict(state["optimizer"])
        weights = dict(self.model.named_parameters())
        self.average = {name: tensor.to(weights[name].device) for name, tensor in state["average"].items()}


def save(folder: Path, state: State, identity: dict[str, Any], trained: Trained) -> None:
    """Replace the resume state of a run by that of this epoch.

    Args:
        folder: of the run.
        state: the progress.
        identity: of the run, which must be equal when it goes on.
        trained: after the epoch.
    """
    optimizer = trained.optimizer
    tensors = {f"model.{name}": tensor for name, tensor in trained.model.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in state.best_weights.items()}
    tensors |= {f"average.{name}": tensor for name, tensor in trained.average.items()}
    moments = {name: optimizer.state[weight] for name, weight in _moved(trained)}
    tensors |= {f"{key}.{name}": of[key] for name, of in moments.items() for key in MOMENTS}
    metadata = {
        "identity": json.dumps(identity),
        "epoch": str(state.epoch),
        "best_epoch": str(state.best_epoch),
        "records": json.dumps(state.records),
        "steps": json.dumps({name: of["step"].item() for name, of in moments.items()}),
        "scaler": json.dumps(trained.scaler.state_dict()),
    }
    write_atomic(folder / STATE, safetensors.torch.save(separate(tensors), metadata))


def _moved(trained: Trained) -> Iterator[tuple[str, nn.Parameter]]:
    """Give the weights that the optimizer has moments of: those that are trained, and have had a gradient."""
    for name, weight in trained.model.named_parameters():
        if trained.optimizer.state.get(weight):
            yield name, weight


def load(folder: Path, identity: dict[str, Any], trained: Trained, steps: int) -> State | None:
    """Fill what is trained from the resume state of a run, and return its progress; None if there is none.

    Args:
        folder: of the run.
        identity: of the run that is asked for.
        trained: takes weights, moments and averages.
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
            weights = trained.model.state_dict()
            own = [name for name in file.keys() if name.partition(".")[2] in weights]  # noqa: SIM118 (not a mapping)
            tensors = {name: file.get_tensor(name) for name in own}
        found, records = json.loads(metadata["identity"]), json.loads(metadata["records"])
        epoch, best_epoch = int(metadata["epoch"]), int(metadata["best_epoch"])
        require_same(folder, found, identity)
        for name, tensor in weights.items():
            tensor.copy_(tensors[f"model.{name}"])
        # A version that did not write the steps made the same number of all weights.
        made = json.loads(metadata["steps"]) if "steps" in metadata else dict.fromkeys(weights, epoch * steps)
        _load_moments(trained, tensors, made)
        trained.scaler.load_state_dict(json.loads(metadata.get("scaler", "{}")))
        for name, weight in trained.model.named_parameters():
            if f"average.{name}" in tensors:
                trained.average[name] = torch.zeros_like(weight).copy_(tensors[f"average.{name}"])
        best = {name.removeprefix("best."): tensor for name, tensor in tensors.items() if name.startswith("best.")}
        bound = records[best_epoch - 1]["validation"]["bound"]
    except TrainingError:
        raise
    except Exception as error:  # whatever a damaged file leads to
        raise TrainingError(
            f"{path}: expected a complete resume state: {error_line(error)}; delete the file to start over"
        ) from error
    return State(epoch, records, best_epoch, bound, best)


def _load_moments(trained: Trained, tensors: Mapping[str, Tensor], steps: Mapping[str, float]) -> None:
    for name, weight in trained.model.named_parameters():
        if weight.requires_grad and name in steps:
            # copies into memory laid out as the weight's, so that each sum runs in the order it would have
            moments = {key: torch.zeros_like(weight).copy_(tensors[f"{key}.{name}"]) for key in MOMENTS}
            step = torch.tensor(float(steps[name]), device=weight.device)
            trained.optimizer.state[weight] = {"step": step, **moments}
