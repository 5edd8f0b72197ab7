"""Train a VAE: configuration and data → checkpoint, with progress, pictures and resume.

A run folder holds `config.json` and `model.safetensors` (the checkpoint, see `checkpoint`), `metrics.jsonl`,
`curve.png` and `samples.png`, and `state.safetensors` until training has finished.

`state.safetensors` alone decides where an interrupted run resumes: it is replaced atomically after every epoch and
everything else is written from it. All randomness of an epoch comes from a generator seeded by (seed, epoch), so an
epoch that is repeated after an interruption repeats bit for bit.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from tqdm import tqdm

from vae_runtime import noise
from vae_runtime.errors import InputError, error_line, require_bool
from vae_runtime.files import locked, write_atomic
from vae_runtime.image import grid, png
from vae_runtime.input_files import open_safetensors
from vae_runtime.likelihood import KINDS

from ..errors import TrainingError, require_path
from . import checkpoint, data, objective
from .checkpoint import RunInfo, TrainResult
from .config import DataConfig, ModelConfig, TrainConfig
from .model import VAE, reparameterize
from .plots import curve

_STATE = "state.safetensors"
_RESULTS = ("config.json", "model.safetensors", "metrics.jsonl", "curve.png", "samples.png")
# What Adam keeps of each weight, by its own names.
_MOMENTS = ("exp_avg", "exp_avg_sq")
# Bytes of the header of a resume state: some 300 for each epoch.
_MAX_HEADER = 2**24
# Observations per step of a validation pass, and seconds between pictures of a run under way.
_VALIDATION_BATCH = 250
_PICTURE_SECONDS = 60.0


@dataclass(frozen=True)
class Outcome:
    """The result of a call of `train`."""

    folder: Path
    info: RunInfo
    """Its `result` is set, since training has finished."""
    resumed_epoch: int
    """Epochs that were already done when this call began; 0 for a fresh run."""
    already_finished: bool
    """The run had finished before; nothing was done."""


def train(
    run_folder: str | Path, model: ModelConfig, training: TrainConfig, source: DataConfig, *, progress: bool = True
) -> Outcome:
    """Train, or resume an interrupted training, until the last epoch or until validation no longer improves.

    The checkpoint is the epoch with the best validation bound. The same arguments give the same weights on the same
    machine, however often the process was killed and started again.

    Args:
        run_folder: made if missing; a run in it must have the same configuration and data.
        model: what to build; an empty `observation_shape` is taken from the data.
        training: how.
        source: on what.
        progress: show a bar on stderr.

    Raises:
        InputError: the data cannot be used, or do not fit the model.
        TrainingError: the folder holds another run, or the loss is not finite; the last good checkpoint stays.
    """
    folder = require_path("run_folder", run_folder)
    for name, value, kind in (
        ("model", model, ModelConfig),
        ("training", training, TrainConfig),
        ("source", source, DataConfig),
    ):
        if not isinstance(value, kind):
            raise InputError(f"{name}: expected a {kind.__name__}, got {type(value).__name__}")
    require_bool("progress", progress)
    dataset = data.load(source)
    info = _describe(model, training, source, dataset)
    _require_memory(info.model)
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot make this folder: {error.strerror}; choose another") from error
    try:
        with locked(folder):
            return _train(folder, info, dataset, progress)
    except BlockingIOError as error:
        raise TrainingError(f"{folder}: another training is at work in this folder; wait for it") from error
    except BaseException:
        if made:
            # Without an epoch there is nothing to go on from.
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _train(folder: Path, info: RunInfo, dataset: data.Dataset, progress: bool) -> Outcome:
    found = checkpoint.read_info(folder) if (folder / "config.json").exists() else None
    if not found:
        _require_own(folder)
    if not info.train.threads:
        # Their number decides bits: a run goes on with what it began with.
        threads = found.train.threads if found else torch.get_num_threads()
        info = replace(info, train=replace(info.train, threads=threads))
    if found:
        _require_same(folder, _identity(found), _identity(info))
        if found.result:
            _clean(folder)
            return Outcome(folder, found, found.result.epochs, already_finished=True)
    with _reproducible(info.train.threads):
        return _Training(folder, info, dataset).run(progress)


def _describe(model: ModelConfig, training: TrainConfig, source: DataConfig, dataset: data.Dataset) -> RunInfo:
    model = model if model.observation_shape else replace(model, observation_shape=dataset.shape)
    if model.observation_shape != dataset.shape:
        raise InputError(
            f"{source.source}: expected observations of shape {list(model.observation_shape)} "
            f"(model.observation_shape), got {list(dataset.shape)}; change one of them"
        )
    if not len(dataset.validation):
        raise InputError(
            f"{source.source}: expected at least one observation for validation, got none; "
            "raise data.validation_fraction"
        )
    for part in (dataset.train, dataset.validation, dataset.test):
        data.require_kind(part, KINDS[model.likelihood], source.source)
        if training.binarise != "none":
            data.require_range(part, (0.0, 1.0), source.source, "binarisation")
    return RunInfo(model, training, source, dataset.provenance, torch.__version__)


def _require_memory(model: ModelConfig) -> None:
    """Refuse a model whose weights alone, as often as a training keeps them, exceed this machine's memory."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # a system that does not say
        return
    with torch.device("meta"):
        weights = VAE(model).parameters()
    # Weights, gradients, the moments, and the best weights so far.
    size = (3 + len(_MOMENTS)) * sum(weight.numel() * weight.element_size() for weight in weights)
    if size > memory:
        sizes = "model.hidden" if model.architecture == "mlp" else "model.hidden or model.channels"
        raise InputError(
            f"{sizes}: expected weights, gradients and moments within this machine's {memory / 2**30:,.1f} GiB of "
            f"memory, got {size / 2**30:,.1f} GiB; lower them"
        )


def _identity(info: RunInfo) -> dict[str, Any]:
    """Return the fields that must be equal to resume a run. Data may have moved, so only their digest counts."""
    split = info.data.to_json()
    del split["source"]
    return {
        "model": info.model.to_json(),
        "train": info.train.to_json(),
        "data": {**split, "digest": info.provenance.digest},
    }


def _require_same(folder: Path, found: dict[str, Any], asked: dict[str, Any]) -> None:
    differences = [
        f"{section}.{name} is {found[section].get(name)!r:.99}, asked for {value!r}"
        for section, fields in asked.items()
        for name, value in fields.items()
        if found[section].get(name) != value
    ]
    if differences:
        raise TrainingError(f"{folder}: holds another run: {'; '.join(differences)}; choose another folder")


def _require_own(folder: Path) -> None:
    """Raise InputError where a folder holds files that are not a run's."""
    for name in sorted(path.name for path in folder.iterdir()):
        # Names with a dot are the lock's and those of files in the making.
        if not name.startswith(".") and name not in (_STATE, *_RESULTS):
            raise InputError(f"{folder}: expected an empty folder or a run's, got one with {name}; choose another")


def _clean(folder: Path) -> None:
    """Remove the resume state of a finished run, and files that a kill left incomplete."""
    (folder / _STATE).unlink(missing_ok=True)
    for name in (_STATE, *_RESULTS):
        for leftover in folder.glob(f".{name}.*.tmp"):
            leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def _reproducible(threads: int) -> Iterator[None]:
    """Run PyTorch with this many threads and deterministic algorithms inside the block."""
    threads_before = torch.get_num_threads()
    deterministic_before = torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads or threads_before)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic_before)
        torch.set_num_threads(threads_before)


def _generator(seed: int, purpose: str) -> torch.Generator:
    """Return the random generator of a seed for one purpose."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def _binarise(x: Tensor, how: str, generator: torch.Generator) -> Tensor:
    if how == "stochastic":
        return (torch.rand(x.shape, generator=generator) < x).float()
    return (x > 0.5).float() if how == "threshold" else x


@dataclass
class _State:
    """The progress of a run after an epoch."""

    epoch: int = 0
    records: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    best_bound: float = -math.inf
    best_weights: dict[str, Tensor] = field(default_factory=dict)


class _Training:
    def __init__(self, folder: Path, info: RunInfo, dataset: data.Dataset) -> None:
        self.folder, self.info, self.config = folder, info, info.train
        self.kind = "surrogate " if info.surrogate else ""
        self.train = torch.from_numpy(dataset.train)
        self.validation = _binarise(
            torch.from_numpy(dataset.validation),
            self.config.binarise,
            _generator(self.config.seed, "binarise validation"),
        )
        self.vae = self._untrained()
        self.optimizer = torch.optim.Adam(
            [weight for weight in self.vae.parameters() if weight.requires_grad], fused=True
        )
        self.steps = math.ceil(len(self.train) / self.config.batch_size)
        self.state = _State()

    def _untrained(self) -> VAE:
        seed = _generator(self.config.seed, "weights").initial_seed()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            vae = VAE(self.info.model)
        vae.start_from_mean(self.train.mean(0))
        return vae.for_cpu()

    def run(self, progress: bool) -> Outcome:
        """Train from where the folder stands to the end."""
        resumed = self._resume()
        config, state = self.config, self.state
        pictured = time.monotonic()
        with tqdm(
            total=config.epochs * len(self.train), initial=state.epoch * len(self.train), disable=not progress,
            unit="samples", unit_scale=True, mininterval=0.2 if sys.stderr.isatty() else 30, dynamic_ncols=True,
        ) as bar:  # fmt: skip
            while state.epoch < config.epochs and not self._stopped_early():
                state.records.append(self._epoch(state.epoch + 1, bar))
                state.epoch += 1
                self._keep_if_best()
                if state.epoch == resumed + 1:
                    checkpoint.write_info(self.folder, self.info)
                self._save()
                if time.monotonic() - pictured > _PICTURE_SECONDS:
                    self._draw()
                    pictured = time.monotonic()
        self._draw()
        info = replace(self.info, result=self._result())
        checkpoint.write_info(self.folder, info)
        _clean(self.folder)
        return Outcome(self.folder, info, resumed, already_finished=False)

    def _stopped_early(self) -> bool:
        return 0 < self.config.patience <= self.state.epoch - self.state.best_epoch

    def _epoch(self, epoch: int, bar: tqdm[Any]) -> dict[str, Any]:
        """Train one epoch (from 1) and validate; return its line of `metrics.jsonl`."""
        config = self.config
        generator = _generator(config.seed, f"epoch {epoch}")
        samples = config.importance_samples if epoch >= config.importance_start else 1
        order = torch.randperm(len(self.train), generator=generator)
        total, seen = torch.zeros(4, dtype=torch.float64), 0
        started = time.monotonic()
        self.vae.train()
        for step, chosen in enumerate(order.split(config.batch_size)):
            x = _binarise(self.train[chosen], config.binarise, generator)
            eps = torch.randn((samples, len(x), self.info.model.latent), generator=generator)
            weight = objective.kl_weight(epoch - 1 + step / self.steps, config.beta, config.kl_warmup_epochs)
            goal, figures = self._objective(x, eps, weight, config.free_bits)
            self._descend(goal, epoch, step)
            total += figures * len(x)
            seen += len(x)
            bar.update(len(x))
            if step % 10 == 0:
                elbo, reconstruction, kl, _ = (total / seen).tolist()
                bar.set_postfix_str(
                    f"epoch {epoch}/{config.epochs}, {self.kind}ELBO {elbo:.2f}, reconstruction {reconstruction:.2f}, "
                    f"KL {kl:.2f}",
                    refresh=False,
                )
        seconds = time.monotonic() - started
        return {
            "epoch": epoch,
            "train": _named(total / seen),
            "validation": self._validate(epoch),
            "learning_rate": self._learning_rate(epoch * self.steps),
            "seconds": round(seconds, 3),
            "samples_per_second": round(seen / max(seconds, 1e-3), 1),
        }

    def _objective(self, x: Tensor, eps: Tensor, weight: float, free_bits: float = 0.0) -> tuple[Tensor, Tensor]:
        """Return the objective to maximize, a scalar, and the figures: float64 [4], means over the batch.

        The figures are ELBO, reconstruction, KL and bound.

        Args:
            x: observations, [n, *shape].
            eps: noise, [k, n, latent]; k > 1 makes it the importance-weighted bound.
            weight: of the KL term.
            free_bits: nats per latent dimension that cost nothing more; with k = 1 only.
        """
        vae = self.vae
        mu, logvar = vae.encode(x)
        z = reparameterize(mu, logvar, eps)
        parameters = vae.decode(z.flatten(0, 1)).unflatten(0, eps.shape[:2])
        reconstruction = objective.log_likelihood(x, parameters, vae.likelihood, vae.scale)
        kl = objective.kl_standard_normal(mu, logvar)
        elbo = reconstruction.mean() - kl.sum(-1).mean()
        if len(eps) == 1:
            goal, bound = reconstruction.mean() - weight * objective.with_free_bits(kl, free_bits), elbo
        else:
            ratio = objective.log_normal(z) - objective.log_normal(z, mu, logvar)
            goal = objective.importance_weighted_bound(reconstruction, weight * ratio).mean()
            bound = objective.importance_weighted_bound(reconstruction.detach(), ratio.detach()).mean()
        figures = torch.stack([elbo, reconstruction.mean(), kl.sum(-1).mean(), bound])
        return goal, figures.detach().double()

    def _descend(self, goal: Tensor, epoch: int, step: int) -> None:
        if not goal.isfinite():
            raise TrainingError(
                f"{self.folder}: epoch {epoch}, step {step + 1}: expected a finite loss, got {-goal.item()}; "
                f"{self._advice()}"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate((epoch - 1) * self.steps + step)
        self.optimizer.zero_grad()
        (-goal).backward()
        if self.config.gradient_clip:
            torch.nn.utils.clip_grad_norm_(self.vae.parameters(), self.config.gradient_clip)
        self.optimizer.step()

    def _advice(self) -> str:
        best = self.state.best_epoch
        return (
            f"{f'the checkpoint of epoch {best} stays' if best else 'there is no checkpoint yet'}; in another folder, "
            f"lower train.learning_rate ({self.config.learning_rate:g}) or set train.gradient_clip"
        )

    def _learning_rate(self, step: int) -> float:
        """Half a cosine from the first rate to the final fraction of it, over all steps."""
        done = step / (self.steps * self.config.epochs)
        final = self.config.final_learning_rate
        return self.config.learning_rate * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done)))

    @torch.no_grad()
    def _validate(self, epoch: int) -> dict[str, float]:
        """Figures of the validation data, with the same noise in every epoch."""
        self.vae.eval()
        generator = _generator(self.config.seed, "validation noise")
        total = torch.zeros(4, dtype=torch.float64)
        for x in self.validation.split(_VALIDATION_BATCH):
            eps = torch.randn((self.config.importance_samples, len(x), self.info.model.latent), generator=generator)
            total += self._objective(x, eps, 1.0)[1] * len(x)
        if not total.isfinite().all():
            raise TrainingError(
                f"{self.folder}: epoch {epoch}, step {self.steps}: expected finite validation figures, "
                f"got an ELBO of {total[0].item()}; {self._advice()}"
            )
        return _named(total / len(self.validation))

    def _keep_if_best(self) -> None:
        state = self.state
        bound = state.records[-1]["validation"]["bound"]
        if bound > state.best_bound:
            state.best_epoch, state.best_bound = state.epoch, bound
            state.best_weights = {name: tensor.detach().clone() for name, tensor in self.vae.state_dict().items()}

    def _save(self) -> None:
        """Switch the resume state to this epoch, then write what follows from it."""
        state = self.state
        tensors = {f"model.{name}": tensor for name, tensor in self.vae.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in state.best_weights.items()}
        for name, weight in self.vae.named_parameters():
            if weight.requires_grad:
                tensors |= {f"{key}.{name}": self.optimizer.state[weight][key] for key in _MOMENTS}
        metadata = {
            "identity": json.dumps(_identity(self.info)),
            "epoch": str(state.epoch),
            "best_epoch": str(state.best_epoch),
            "records": json.dumps(state.records),
        }
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        write_atomic(self.folder / _STATE, safetensors.torch.save(tensors, metadata))
        if state.best_epoch == state.epoch:
            checkpoint.save_weights(self.folder, state.best_weights)
        self._write_metrics()

    def _write_metrics(self) -> None:
        lines = "".join(json.dumps(record) + "\n" for record in self.state.records)
        write_atomic(self.folder / "metrics.jsonl", lines.encode())

    def _resume(self) -> int:
        """Load the state in the folder, if there is one, and return the number of epochs it has done."""
        path = self.folder / _STATE
        if not path.exists():
            return 0
        try:
            open_safetensors(path, _MAX_HEADER).close()
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata()
                weights = self.vae.state_dict()
                own = [name for name in file.keys() if name.partition(".")[2] in weights]  # noqa: SIM118 (not a mapping)
                tensors = {name: file.get_tensor(name) for name in own}
            identity, records = json.loads(metadata["identity"]), json.loads(metadata["records"])
            epoch, best_epoch = int(metadata["epoch"]), int(metadata["best_epoch"])
            _require_same(self.folder, identity, _identity(self.info))
            for name, tensor in weights.items():
                tensor.copy_(tensors[f"model.{name}"])
            for name, weight in self.vae.named_parameters():
                if weight.requires_grad:
                    # copies into memory laid out as the weight's, so that each sum runs in the order it would have
                    moments = {key: torch.zeros_like(weight).copy_(tensors[f"{key}.{name}"]) for key in _MOMENTS}
                    self.optimizer.state[weight] = {"step": torch.tensor(float(epoch * self.steps)), **moments}
            best = {name.removeprefix("best."): tensor for name, tensor in tensors.items() if name.startswith("best.")}
            bound = records[best_epoch - 1]["validation"]["bound"]
        except TrainingError:
            raise
        except Exception as error:  # whatever a damaged file leads to
            raise TrainingError(
                f"{path}: expected a complete resume state: {error_line(error)}; delete the file to start over"
            ) from error
        self.state = _State(epoch, records, best_epoch, bound, best)
        checkpoint.save_weights(self.folder, best)
        self._write_metrics()
        return epoch

    def _result(self) -> TrainResult:
        state = self.state
        return TrainResult(
            epochs=state.epoch,
            best_epoch=state.best_epoch,
            stopped_early=state.epoch < self.config.epochs,
            seconds=round(sum(record["seconds"] for record in state.records), 3),
            **state.records[state.best_epoch - 1]["validation"],
        )

    @torch.no_grad()
    def _draw(self) -> None:
        """Write `curve.png`, and `samples.png` from the best weights so far where observations are images."""
        write_atomic(self.folder / "curve.png", curve(self.state.records, surrogate=self.info.surrogate))
        vae, _ = checkpoint.load(self.folder)
        z = torch.from_numpy(noise.normal(self.config.seed, 0, 64, (self.info.model.latent,), noise.PRIOR))
        with contextlib.suppress(InputError):  # observations that are no images have a curve alone
            write_atomic(self.folder / "samples.png", png(grid(vae.mean(vae.decode(z)).numpy())))


def _named(figures: Tensor) -> dict[str, float]:
    return dict(zip(("elbo", "reconstruction", "kl", "bound"), figures.tolist(), strict=True))
