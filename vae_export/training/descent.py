"""One step of a training: the gradients of a batch, in parts and over processes, and the change of the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vae_runtime.errors import error_line

from ..errors import TrainingError
from . import machine
from .config import TrainConfig
from .processes import Processes
from .resume import Trained
from .step import FIGURES, Modelled, Objective


class Batch(NamedTuple):
    """The rows of a step's batch that are this process' share."""

    x: Tensor
    """Observations, float32 [rows, *shape], at least one."""
    eps: Tensor
    """Noise, float32 [k, rows, latent]."""
    counted: int
    """How many of these rows count: all, or 0 where a process without a share has one for the sake of its networks."""
    n: int
    """Rows of the whole batch, of all processes."""
    conditions: Mapping[str, Tensor]
    """By name, each [rows, …]."""


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Say what to do about a step that PyTorch cannot compile, or whose gradients it waits for in vain."""
    try:
        yield
    except RuntimeError as error:
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise TrainingError(
                f"train.compile: expected a step that PyTorch can compile: {error_line(error)}; leave it out"
            ) from error
        if "finished reduction" in str(error):
            raise TrainingError(
                "model: expected every batch to use the same weights, as DistributedDataParallel needs it; let encode "
                "and decode use all of them always, or train in one process"
            ) from error
        raise


def _optimizer(module: torch.nn.Module, config: TrainConfig) -> torch.optim.Adam:
    """Return AdamW, which is Adam where nothing decays; biases, gains and scales, of one axis or none, do not."""
    trained = [weight for weight in module.parameters() if weight.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [weight for weight in trained if weight.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [weight for weight in trained if weight.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.learning_rate, fused=True)


class Descent:
    """Makes steps: each process computes the gradients of its rows, and all make the same change to the weights.

    Args:
        vae: on the device, with the weights to begin with.
        config: how.
        group: the processes; each has a VAE of the same weights.
        device: where.
    """

    def __init__(self, vae: Modelled, config: TrainConfig, group: Processes, device: torch.device) -> None:
        self._config, self._group, self._device = config, group, device
        self._objective = Objective(vae, machine.PRECISIONS[config.precision])
        self._module: torch.nn.Module = self._objective
        if config.compile:
            self._module.compile()
        if group.count > 1:
            ids = [device.index] if device.type == "cuda" else None
            self._module = DistributedDataParallel(self._module, device_ids=ids)
        self._averaged = get_ema_multi_avg_fn(config.ema)
        self.trained = Trained(
            vae.module,
            _optimizer(vae.module, config),
            torch.amp.GradScaler(device.type, enabled=config.precision == "float16"),
        )

    @_explained()
    def step(self, batch: Batch, weight: float, free_bits: float, rate: float) -> tuple[Tensor, Tensor]:
        """Change the weights by the gradients of a batch.

        Args:
            batch: this process' rows.
            weight: of the KL term.
            free_bits: see `objective.with_free_bits`.
            rate: Adam's step size.

        Returns:
            The objective before the step, and the sums of its figures over the rows that count, [4].

        Raises:
            TrainingError: PyTorch cannot compile the step, or a model leaves out weights that other processes wait for.
        """
        parts = self._parts(batch)
        costing = self._costing(parts, batch.n, free_bits)
        trained = self.trained
        trained.optimizer.zero_grad()
        goal = torch.zeros((), device=self._device)
        sums = torch.zeros(len(FIGURES), dtype=machine.sum_dtype(self._device), device=self._device)
        for number, part in enumerate(parts, 1):
            # Gradients travel once, with the last part.
            with contextlib.nullcontext() if number == len(parts) else self._apart():
                part_goal, figures = self._module(part.x, part.eps, weight, free_bits, costing, part.conditions)
                share = part.counted / batch.n
                # DDP divides the sum over processes by their number.
                trained.scaler.scale(-part_goal * (share * self._group.count)).backward()
            goal += part_goal.detach() * (part.counted / max(1, batch.counted))
            sums += figures.to(sums.dtype) * part.counted
        self._descend(rate)
        return goal, sums

    def _parts(self, batch: Batch) -> list[Batch]:
        """Divide a batch into the parts that are computed one after the other, on the device."""
        x = batch.x.to(self._device, non_blocking=True)
        eps = batch.eps.to(self._device, non_blocking=True)
        given = {name: rows.to(self._device, non_blocking=True) for name, rows in batch.conditions.items()}
        if batch.counted == 0 or self._config.accumulate == 1:
            return [Batch(x, eps, batch.counted, batch.n, given)]
        count = self._config.accumulate
        pieces = zip(x.tensor_split(count), eps.tensor_split(count, dim=1), strict=True)
        split = {name: rows.tensor_split(count) for name, rows in given.items()}
        return [
            Batch(rows, noise, len(rows), batch.n, {name: of[number] for name, of in split.items()})
            for number, (rows, noise) in enumerate(pieces)
            if len(rows)
        ]

    @torch.no_grad()
    def _costing(self, parts: list[Batch], n: int, free_bits: float) -> Tensor | None:
        """Return which latent dimensions cost more than the free bits, by the means of the whole batch."""
        if not free_bits or (self._config.accumulate == 1 and self._group.count == 1):
            return None
        means = [self._objective.kl(part.x, part.conditions).mean(0) * (part.counted / n) for part in parts]
        return self._group.total(torch.stack(means).sum(0)) >= free_bits

    def _apart(self) -> contextlib.AbstractContextManager[None]:
        module = self._module
        return module.no_sync() if isinstance(module, DistributedDataParallel) else contextlib.nullcontext()

    def kept(self) -> dict[str, Tensor]:
        """Return a copy of the weights that are validated and kept: their average, where there is one."""
        # Not name by name: tied weights have several, of which the average knows one.
        with self.kept_inside():
            return {name: tensor.detach().clone() for name, tensor in self.trained.model.state_dict().items()}

    @contextlib.contextmanager
    def kept_inside(self) -> Iterator[None]:
        """Let the model have the weights that are kept inside the block."""
        weights = dict(self.trained.model.named_parameters())
        average = self.trained.average
        with torch.no_grad():
            before = {name: weights[name].detach().clone() for name in average}
            for name, tensor in average.items():
                weights[name].copy_(tensor)
            try:
                yield
            finally:
                for name, tensor in before.items():
                    weights[name].copy_(tensor)

    def _descend(self, rate: float) -> None:
        model, optimizer, scaler = self.trained.model, self.trained.optimizer, self.trained.scaler
        for group in optimizer.param_groups:
            group["lr"] = rate
        if self._config.gradient_clip:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), self._config.gradient_clip)
        scaler.step(optimizer)
        scaler.update()
        if self._config.ema:
            self._average()

    @torch.no_grad()
    def _average(self) -> None:
        average = self.trained.average
        weights = {name: weight.detach() for name, weight in self.trained.model.named_parameters()}
        if average:
            self._averaged(list(average.values()), [weights[name] for name in average], 0)
        else:
            # The weights after the first step, so that those before it have no part in the average.
            average |= {name: weight.clone() for name, weight in weights.items()}
