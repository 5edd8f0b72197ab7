"""Train a VAE: configuration and data → checkpoint, with progress, pictures and resume.

A run folder holds `config.json` and `model.safetensors` (the checkpoint, see `checkpoint`), `metrics.jsonl`,
`report.html`, `curve.png`, `samples.png` and small samples by epoch (see `display`), and `state.safetensors` until
training has finished.

`state.safetensors` alone decides where an interrupted run resumes: it is replaced atomically after every epoch and
everything else is written from it. All randomness of an epoch comes from a generator seeded by (seed, epoch), so an
epoch that is repeated after an interruption repeats bit for bit.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from vae_runtime._version import __version__
from vae_runtime.errors import InputError, VaeError, counted, one_line, require_bool
from vae_runtime.files import locked, write_atomic

from ..errors import TrainingError, require_path
from ..loading import load_named
from . import checkpoint, machine, objective, own_vae, processes, resume
from .bars import bar
from .beginning import Begun, begun_with, describe, require_memory, untrained
from .checkpoint import DATA, RunInfo, Stage, TrainResult
from .config import DataConfig, ModelConfig, TrainConfig
from .data.batches import Batches, TensorBatch, augmentation, read
from .data.checks import kind_of, misfit
from .data.dataset import Dataset, load
from .descent import Batch, Descent
from .display import Display, Shown
from .look import BATCH
from .own_vae import Asked, OwnVAE
from .processes import Processes
from .randomness import binarised, generator, validated
from .recorders import Recorder, recorders_of
from .run_folder import clean, identity, require_own, require_same, require_version, require_writable
from .step import FIGURES, Modelled, Objective


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
    run_folder: str | Path,
    model: ModelConfig | nn.Module | str,
    training: TrainConfig,
    source: DataConfig,
    *,
    posterior: str | None = None,
    likelihood: str | None = None,
    scale: float | None = None,
    prior: str | None = None,
    encode: str | None = None,
    decode: str | None = None,
    dataset: Any = None,
    progress: bool = True,
    recorders: Sequence[str | Recorder] = (),
    command: str = "",
) -> Outcome:
    """Train, or resume an interrupted training, until the last epoch or until validation no longer improves.

    The checkpoint is the epoch with the best validation bound. The same arguments give the same weights on the same
    machine, however often the process was killed and started again.

    Args:
        run_folder: made if missing; a run in it must have the same configuration and data.
        model: what to build; an empty `observation_shape` is taken from the data. Or a module of your own, which is
            trained from the weights that it has, and has the best ones in the end; or `package.module:name` of a class
            or a function that makes one, whose weights `training.seed` decides.
        training: how.
        source: on what.
        posterior, likelihood, scale, encode, decode: what is known of a module of your own, as `export` takes it;
            encode and decode are names of methods.
        prior: "normal" trains a module of your own against N(0, I), also where it seems to have another prior.
        dataset: a Dataset or a DataLoader of PyTorch, or any other iterable of rows, which `source.source` then names.
            It is gone through once. The rows are x, or (x, condition, …), or mappings.
        progress: show a bar on stderr, and what was recognized of a module.
        recorders: take the figures of each epoch: `tensorboard`, `mlflow`, `wandb`, or objects with the methods of
            `training.recorders.Recorder`. One that cannot begin refuses a fresh run; one that fails later is shown once
            on stderr, and training goes on without it.
        command: what the report says made the run; empty: this call.

    Raises:
        InputError: the data cannot be used, or do not fit the model.
        ExportError: a module of your own cannot be understood, or is none that this trains; the error says what to do.
        TrainingError: the folder holds another run, or the loss is not finite; the last good checkpoint stays.
    """
    folder = require_path("run_folder", run_folder)
    for name, value, kind in (
        ("model", model, (ModelConfig, nn.Module, str)),
        ("training", training, TrainConfig),
        ("source", source, DataConfig),
    ):
        if not isinstance(value, kind):
            named = "ModelConfig, a module or its name" if isinstance(kind, tuple) else kind.__name__
            raise InputError(f"{name}: expected a {named}, got {type(value).__name__}")
    require_bool("progress", progress)
    if training.start_from and Path(training.start_from).resolve() == folder.resolve():
        raise InputError(
            f"train.start_from: {training.start_from}: expected another run than the one to train, got its own folder; "
            "choose another folder for the new run"
        )
    shown = Shown(progress, recorders_of(recorders), command)
    given = {"posterior": posterior, "likelihood": likelihood, "scale": scale, "prior": prior}
    given |= {"encode": encode, "decode": decode}
    asked = own_vae.asked(model, {name: value for name, value in given.items() if value is not None})
    with processes.joined() as group:
        device = machine.find_device(training.device, group.local_rank, group.count)
        training = replace(training, device=device.type if group.count > 1 else str(device))
        configs = (asked, training, source, dataset)
        if group.is_first:
            return _train_first(folder, configs, group, device, shown)
        # Waits until the first process has converted data that have to be. The folder may be on its machine alone.
        found = group.from_first(None)
        loaded = _loaded(configs, folder / DATA if (folder / DATA).exists() else None, False)
        return _train(folder, found, loaded, group, device, Shown(bar=False))


_Configs = tuple[ModelConfig | Asked, TrainConfig, DataConfig, Any]


def _train_first(folder: Path, configs: _Configs, group: Processes, device: torch.device, shown: Shown) -> Outcome:
    """Make and lock the folder, read the data, and train."""
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot make this folder: {error.strerror}; choose another") from error
    try:
        with locked(folder):
            found = checkpoint.read_info(folder) if (folder / "config.json").exists() else None
            if found:
                require_version(folder, found)
            else:
                require_own(folder)
            if not (found and found.result):
                require_writable(folder)
            loaded = _loaded(configs, folder / DATA, shown.bar)
            return _train(folder, group.from_first(found), loaded, group, device, shown)
    except BlockingIOError as error:
        raise TrainingError(f"{folder}: another training is at work in this folder; wait for it") from error
    except BaseException as problem:
        if made:
            # Without an epoch there is nothing to go on from. Data that were refused would be refused again.
            if isinstance(problem, VaeError) and not (folder / "config.json").exists():
                shutil.rmtree(folder / DATA, ignore_errors=True)
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


class _Loaded(NamedTuple):
    """What a run begins with."""

    dataset: Dataset
    info: RunInfo
    begun: Begun | None
    own: OwnVAE | None


def _loaded(configs: _Configs, folder: Path | None, progress: bool) -> _Loaded:
    """Return the data, converted into a folder if they have to be, and what is known of the run before it begins."""
    model, training, source, given = configs
    begun = begun_with(training, source, built_in=isinstance(model, ModelConfig))
    dataset = load(source, folder, begun.standard if begun else None, given)
    if begun:
        begun.require_unseen(source, dataset.provenance.digest)
    if isinstance(model, ModelConfig):
        info = describe(model, training, source, dataset, begun)
        require_memory(info)
        return _Loaded(dataset, info, begun, None)
    few = read(dataset.train, slice(own_vae.EXAMPLES))
    x = binarised(few.x, training.binarise, generator(training.seed, "examples"))
    seed = generator(training.seed, "weights").initial_seed()
    begin = begun.fill if begun else None
    own, described = own_vae.for_run(model, x, seed, progress=progress, conditions=few.conditions, begin=begin)
    return _Loaded(dataset, describe(described, training, source, dataset, begun), begun, own)


def _train(
    folder: Path, found: RunInfo | None, loaded: _Loaded, group: Processes, device: torch.device, shown: Shown
) -> Outcome:
    dataset, info, begun, own = loaded
    if not info.train.threads:
        # Their number decides bits: a run goes on with what it began with.
        threads = found.train.threads if found else group.from_first(torch.get_num_threads())
        info = replace(info, train=replace(info.train, threads=threads))
    if found:
        require_same(folder, identity(found), identity(info))
        if found.result:
            if group.is_first:
                clean(folder)
                if own:
                    own.module.load_state_dict(checkpoint.load_weights(folder))
            return Outcome(folder, found, found.result.epochs, already_finished=True)
    if own and own.halved and info.train.compile:
        raise InputError(
            "train.compile: expected a model with encode and decode, got one with forward alone, whose halves cannot "
            "be compiled; give it these, or leave --compile out"
        )
    if own:
        own_vae.require_small_parts(own, dataset.train, info.train, group.count)
    here = Stage(1, __version__, torch.__version__, machine.named(device), group.count, info.train.compile)
    if shown.bar:
        _tell_data(info)
        of = f"{group.count} processes, each on " if group.count > 1 else ""
        print(f"training on {of}{machine.shown(device, info.train.threads)}", file=sys.stderr)
    with machine.settings(info.train.threads, device), own_vae.lent(own):
        vae = untrained(info, dataset, begun) if own is None else own
        vae.module.to(device)
        training = _Training(folder, info, dataset, group, device, vae)
        return training.run(here, found.stages if found else (), shown)


def _tell_data(info: RunInfo) -> None:
    """Say on stderr what was found in the data."""
    found, skipped = info.found, info.provenance.skipped
    if info.data.normalise == "standard" and found.normalisation:
        raw = [np.atleast_1d(each) for each in (found.normalisation.offset, found.normalisation.divisor)]
        text = "; ".join(" ".join(f"{number:.5g}" for number in each[:8]) + " …" * (len(each) > 8) for each in raw)
        print(f"data: x = (raw - offset) / divisor, offset and divisor of each channel: {text}", file=sys.stderr)
    if skipped:
        print(one_line(f"data: {counted(skipped, 'damaged row')} skipped: {'; '.join(found.skipped)}"), file=sys.stderr)


class _Training:
    def __init__(
        self, folder: Path, info: RunInfo, dataset: Dataset, group: Processes, device: torch.device, vae: Modelled
    ) -> None:
        self.folder, self.info, self.config = folder, info, info.train
        self.group, self.device = group, device
        self.kind = "surrogate " if info.surrogate else ""
        self.train, self.validation = dataset.train, dataset.validation
        self.augment = load_named(info.data.augment, "data.augment") if info.data.augment else None
        self.vae = vae
        self.descent = Descent(self.vae, self.config, group, device)
        self.measured = Objective(self.vae)
        self.steps = math.ceil(len(self.train) / self.config.batch_size)
        self.state = resume.State()

    def run(self, here: Stage, stages: tuple[Stage, ...], shown: Shown) -> Outcome:
        """Train from where the folder stands to the end.

        Args:
            here: by what this call trains.
            stages: by what the run in the folder was trained.
            shown: what is shown of it.
        """
        resumed = self._resume()
        config, state = self.config, self.state
        self.info = replace(self.info, stages=replace(here, epoch=resumed + 1).after(stages))
        if self.group.is_first and resumed and stages and stages[-1].versions != here.versions:
            logging.getLogger("vae_export").warning(
                f"{self.folder}: epochs up to {resumed} are of {stages[-1].versions}, the others will be of "
                f"{here.versions}: the weights may not be those that either would give alone"
            )
        display = Display(self.folder, self.info, self.validation, shown) if self.group.is_first else None
        with contextlib.ExitStack() as stack:
            if display:
                stack.enter_context(display)
                self._show(display)
            n = len(self.train)
            shown_by = bar(config.epochs * n, "samples", initial=state.epoch * n, shown=shown.bar)
            progress = stack.enter_context(shown_by)
            while state.epoch < config.epochs and not self._stopped_early():
                state.records.append(self._epoch(state.epoch + 1, progress))
                state.epoch += 1
                self._keep_if_best()
                if not display:
                    continue
                if state.epoch == resumed + 1:
                    checkpoint.write_info(self.folder, self.info)
                self._save()
                self._show(display)
            info = replace(self.info, result=self._result())
            self.vae.module.load_state_dict(self.state.best_weights)
            if display:
                self.vae.module.eval()
                display.end(state, info, self.vae)
                checkpoint.write_info(self.folder, info)
                clean(self.folder)
        return Outcome(self.folder, info, resumed, already_finished=False)

    def _show(self, display: Display) -> None:
        """Show where the run stands."""
        with self.descent.kept_inside():
            display.show(self.state, self.vae)

    def _stopped_early(self) -> bool:
        return 0 < self.config.patience <= self.state.epoch - self.state.best_epoch

    def _epoch(self, epoch: int, progress: tqdm[Any]) -> dict[str, Any]:
        """Train one epoch (from 1) and validate; return its line of `metrics.jsonl`."""
        config = self.config
        random = generator(config.seed, f"epoch {epoch}")
        samples = config.importance_samples if epoch >= config.importance_start else 1
        order = torch.randperm(len(self.train), generator=random)
        # What a module of the user draws by itself, such as dropout.
        torch.manual_seed(generator(config.seed, f"epoch {epoch}, process {self.group.rank}").initial_seed())
        total, seen = self._no_figures(), 0
        goals: list[Tensor] = []
        started = time.monotonic()
        self.vae.module.train()
        batches = self._batches(epoch, order)
        for step, (chosen, rows) in enumerate(zip(order.split(config.batch_size), batches, strict=True)):
            batch = self._batch(rows, len(chosen), samples, random)
            weight = objective.kl_weight(epoch - 1 + step / self.steps, config.beta, config.kl_warmup_epochs)
            rate = self._learning_rate((epoch - 1) * self.steps + step)
            goal, figures = self.descent.step(batch, weight, config.free_bits, rate)
            goals.append(goal)
            total += figures
            seen += batch.counted
            progress.update(len(chosen))
            # A look makes the program wait for a GPU.
            look = step % 10 == 0 or step == self.steps - 1
            if look or self.device.type == "cpu":
                self._require_finite(goals, epoch, step)
            if look and seen:
                progress.set_postfix_str(self._line(epoch, samples, total / seen, batches.rate), refresh=False)
        total = self.group.total(total) / len(self.train)
        seconds = time.monotonic() - started
        with self.descent.kept_inside():
            validation = self._validate(epoch)
        return {
            "epoch": epoch,
            "train": _named(total),
            "validation": validation,
            "learning_rate": self._learning_rate(epoch * self.steps),
            "seconds": round(seconds, 3),
            "samples_per_second": round(len(self.train) / max(seconds, 1e-3), 1),
            "data_samples_per_second": round(batches.rate * self.group.count, 1),
        }

    def _line(self, epoch: int, samples: int, figures: Tensor, data_rate: float) -> str:
        """Return what the bar says beside the rate of the training."""
        elbo, reconstruction, kl, bound = figures.tolist()
        weighted = f"{self.kind}importance-weighted bound {bound:.2f}, " if samples > 1 else ""
        return (
            f"epoch {epoch}/{self.config.epochs}, {weighted}{self.kind}ELBO {elbo:.2f}, reconstruction "
            f"{reconstruction:.2f}, KL {kl:.2f}, data alone {data_rate * self.group.count:,.0f}/s"
        )

    def _batches(self, epoch: int, order: Tensor) -> Batches:
        """Return this process' share of each batch of an epoch."""
        change = None
        if self.augment:
            random = generator(self.config.seed, f"augmentation of epoch {epoch}, process {self.group.rank}")
            kind = kind_of(self.info.model.likelihood, self.info.model.classes)
            wrong = partial(misfit, kind=kind, binarise=self.config.binarise)
            change = augmentation(self.augment, self.info.data.augment, wrong, random)
        shares = (each[self._share(len(each))].numpy() for each in order.split(self.config.batch_size))
        return Batches(self.train, shares, change)

    def _share(self, n: int) -> slice:
        """Return this process' rows of a batch of n, at least one."""
        mine = self.group.rows(n)
        return mine if mine.stop > mine.start else slice(0, 1)

    def _batch(self, rows: TensorBatch, n: int, samples: int, random: torch.Generator) -> Batch:
        """Return this process' share of a batch. Each process draws the numbers of all of it, so they are the same."""
        own, mine = self.group.rows(n), self._share(n)
        x = binarised(rows.x, self.config.binarise, random, mine, n)
        eps = torch.randn((samples, n, self.info.model.latent), generator=random)
        return Batch(x, eps[:, mine], own.stop - own.start, n, rows.conditions)

    def _no_figures(self) -> Tensor:
        return torch.zeros(len(FIGURES), dtype=machine.sum_dtype(self.device), device=self.device)

    def _require_finite(self, goals: list[Tensor], epoch: int, step: int) -> None:
        """Look at the objectives of the steps up to this one, and forget them."""
        values = torch.stack(goals).tolist()
        for number, value in enumerate(values, step + 2 - len(values)):
            if not math.isfinite(value):
                raise TrainingError(
                    f"{self.folder}: epoch {epoch}, step {number}: expected a finite loss, got {-value}; "
                    f"{self._advice()}"
                )
        goals.clear()

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
        """Figures of the validation data, with the same noise in every epoch; the processes share the batches."""
        # Running statistics are those of each process' rows until the first one's are taken over.
        self.group.take_over(self.vae.module.buffers())
        self.vae.module.eval()
        random = generator(self.config.seed, "validation noise")
        total = self._no_figures()
        order = np.split(np.arange(len(self.validation)), range(BATCH, len(self.validation), BATCH))
        own = iter(Batches(self.validation, order[self.group.rank :: self.group.count]))
        for number, chosen in enumerate(order):
            eps = torch.randn((self.config.importance_samples, len(chosen), self.info.model.latent), generator=random)
            if number % self.group.count == self.group.rank:
                rows = next(own)
                x = validated(rows.x, self.config, number)
                given = {name: each.to(self.device) for name, each in rows.conditions.items()}
                _, figures = self.measured(x.to(self.device), eps.to(self.device), 1.0, conditions=given)
                total += figures.to(total.dtype) * len(x)
        total = self.group.total(total)
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
            state.best_weights = self.descent.kept()

    def _save(self) -> None:
        """Switch the resume state to this epoch, then write what follows from it."""
        state = self.state
        resume.save(self.folder, state, identity(self.info), self.descent.trained)
        if state.best_epoch == state.epoch:
            checkpoint.save_weights(self.folder, state.best_weights)
        self._write_metrics()

    def _write_metrics(self) -> None:
        lines = "".join(json.dumps(record) + "\n" for record in self.state.records)
        write_atomic(self.folder / "metrics.jsonl", lines.encode())

    def _resume(self) -> int:
        """Load the state in the folder, if there is one, and return the number of epochs it has done."""
        trained, group, found = self.descent.trained, self.group, None
        if group.is_first:
            found = resume.load(self.folder, identity(self.info), trained, self.steps)
            if found:
                checkpoint.save_weights(self.folder, found.best_weights)
                self.state = found
                self._write_metrics()
        # The folder may be on the first process' machine alone.
        found, loaded = group.from_first((found, trained.state_dict() if found and group.count > 1 else None))
        if found and loaded and not group.is_first:
            self.state = found
            trained.load_state_dict(loaded)
        return self.state.epoch

    def _result(self) -> TrainResult:
        state = self.state
        return TrainResult(
            epochs=state.epoch,
            best_epoch=state.best_epoch,
            stopped_early=state.epoch < self.config.epochs,
            seconds=round(sum(record["seconds"] for record in state.records), 3),
            **state.records[state.best_epoch - 1]["validation"],
        )


def _named(figures: Tensor) -> dict[str, float]:
    return dict(zip(FIGURES, figures.tolist(), strict=True))
