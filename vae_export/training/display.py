"""Show a run while it goes on: its pictures, its report, and what recorders take of it."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from vae_runtime.errors import InputError, VaeError, error_line, one_line
from vae_runtime.files import write_atomic
from vae_runtime.image import grid, png
from vae_runtime.input_files import open_plain, read_json

from ..errors import TrainingError
from ..understand.state import modes_kept
from .checkpoint import RunInfo
from .config import ModelConfig
from .data.batches import TensorBatch, read
from .data.part import Part
from .look import BATCH, ROWS, drawn, look_at, samples
from .plots import curve
from .randomness import validated
from .recorders import Recorder, Run
from .report import Content, report
from .resume import State
from .run_folder import RECORDED, SAMPLES
from .step import Modelled

# Seconds between pictures of a run under way.
_SECONDS = 60.0


def is_pictured(epoch: int) -> bool:
    """Return whether samples of an epoch are kept: 1, 2, 5, 10, 20, 50 and so on, whatever the time they take."""
    while epoch % 10 == 0 and epoch:
        epoch //= 10
    return epoch in (1, 2, 5)


@dataclass(frozen=True)
class Shown:
    """What a caller asks to be shown."""

    bar: bool = True
    """A bar on stderr."""
    recorders: Sequence[Recorder] = ()
    """They take the figures of each epoch."""
    command: str = ""
    """What made the run, for the report; empty: a call of `train`."""


class Display:
    """What is shown of a run.

    Args:
        folder: of the run.
        info: what the run is.
        validation: the part whose first rows are looked at.
        shown: what the caller asks for.
    """

    def __init__(self, folder: Path, info: RunInfo, validation: Part, shown: Shown) -> None:
        self.folder, self.info, self.validation = folder, info, validation
        self.command = shown.command or called(folder, info)
        self._ledger: dict[str, Any] = {}
        self._takers = [_Taker(each, folder, self._ledger) for each in shown.recorders]
        self._begun = False
        self._drawn = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: object) -> None:
        """Tell recorders of a training that stops before its end."""
        self._end_recorders()

    def show(self, state: State, vae: Modelled) -> None:
        """Show where the run stands: at its beginning, and after each epoch that is saved, with the model then.

        What was lost when a run was killed is made up for when it goes on.
        """
        if not self._begun:
            self._begin(resumed=state.epoch > 0)
            self._begun = True
        if not state.epoch:
            return
        pictures = self._pictured(state.epoch, vae) if is_pictured(state.epoch) else {}
        for taker in self._takers:
            taker.take(state.records, pictures)
        if time.monotonic() - self._drawn > _SECONDS:
            with _best(vae, state):
                self.draw(state, vae)
            self._drawn = time.monotonic()

    def end(self, state: State, info: RunInfo, vae: Modelled) -> None:
        """Show the end of a training, whose result is in `info`, with the best model in evaluation mode."""
        self.info = info
        self.draw(state, vae)
        self._end_recorders()

    def _end_recorders(self) -> None:
        """End what recorders take: with the result, or None before the end."""
        for taker in self._takers:
            taker.end(asdict(self.info.result) if self.info.result else None)

    def _begin(self, *, resumed: bool) -> None:
        info = self.info
        settings = {
            "model": info.model.to_json(),
            "train": info.train.to_json(),
            "data": info.data.to_json(),
            "provenance": info.provenance.to_json(),
        }
        config = {
            name: " ".join(map(str, value)) if isinstance(value, list) else value
            for name, value in _flat(settings, ".").items()
        }
        if resumed:
            self._ledger.update(_ledger(self.folder))
        for taker in self._takers:
            taker.begin(config, resumed=resumed)

    @torch.no_grad()
    def draw(self, state: State, vae: Modelled) -> None:
        """Write `curve.png`, `report.html` and, where observations are images, `samples.png`: of the best weights."""
        write_atomic(self.folder / "curve.png", curve(state.records, surrogate=self.info.surrogate))
        seed = self.info.train.seed
        with contextlib.suppress(InputError):  # observations that are no images have curves and tables alone
            write_atomic(self.folder / "samples.png", png(grid(drawn(vae, 64, seed, self.validation).cpu().numpy())))
        content = Content(
            name=self.folder.resolve().name,
            info=self.info,
            records=state.records,
            best_epoch=state.best_epoch,
            command=self.command,
            look=look_at(vae, first_rows(self.validation, self.info), *labels_of(self.validation)),
            samples=self._kept(),
            best_samples=samples(vae, seed, self.validation),
        )
        write_atomic(self.folder / "report.html", report(content))

    def _pictured(self, epoch: int, vae: Modelled) -> dict[str, NDArray[np.uint8]]:
        """Keep small samples of an epoch."""
        with _evaluated(vae):
            picture = samples(vae, self.info.train.seed, self.validation)
        if picture is None:
            return {}
        try:
            (self.folder / SAMPLES).mkdir(exist_ok=True)
        except OSError as error:
            raise VaeError(
                f"{self.folder / SAMPLES}: expected a folder, or room to make it: {error_line(error)}; remove what is "
                "there, or free some space"
            ) from error
        write_atomic(self.folder / SAMPLES / f"{epoch:06}.png", png(picture, min_side=1))
        return {"samples": picture}

    def _kept(self) -> dict[int, bytes]:
        """Return the samples that are kept, by epoch."""
        found = {}
        for path in sorted((self.folder / SAMPLES).glob("[0-9]*.png")):
            with open_plain(path) as file:
                found[int(path.stem)] = file.read()
        return found


@contextlib.contextmanager
def _evaluated(vae: Modelled) -> Iterator[None]:
    """Use the model in evaluation mode inside the block."""
    with modes_kept(vae.module):
        vae.module.eval()
        yield


@contextlib.contextmanager
def _best(vae: Modelled, state: State) -> Iterator[None]:
    """Use the best weights so far inside the block, in evaluation mode."""
    current = {name: tensor.clone() for name, tensor in vae.module.state_dict().items()}
    vae.module.load_state_dict(state.best_weights)
    try:
        with _evaluated(vae):
            yield
    finally:
        vae.module.load_state_dict(current)


class _Taker:
    """A recorder of a run, what of the run it has taken, and what becomes of its failures."""

    def __init__(self, recorder: Recorder, folder: Path, ledger: dict[str, Any]) -> None:
        self.recorder, self.folder, self.ledger = recorder, folder, ledger
        self.epochs = 0
        self.failed, self.open = False, False

    def begin(self, config: Mapping[str, Any], *, resumed: bool) -> None:
        """Begin; a failure refuses a fresh run and is shown in a run that goes on."""
        name = self.recorder.name
        known, self.epochs = self.ledger.get(name, ({}, 0))
        try:
            known = dict(self.recorder.begin(Run(self.folder, config, known, self.epochs)))
            self.open = True
            self._write(known)
        except VaeError:
            raise
        except Exception as error:
            if resumed:
                self._show(error)
                return
            raise TrainingError(
                f"{name}: expected it to begin a run: {error_line(error)}; nothing was trained yet: correct it, or "
                f"leave {name} out"
            ) from error

    def take(self, records: Sequence[Mapping[str, Any]], pictures: Mapping[str, NDArray[np.uint8]]) -> None:
        """Take all epochs that are new to the recorder; the pictures are of the last."""
        for record in records[self.epochs :]:
            if self.failed:
                return
            number = record["epoch"]
            figures = {name: float(value) for name, value in _flat(record, "/").items() if name != "epoch"}
            try:
                self.recorder.epoch(number, figures, pictures if number == len(records) else {})
                self.epochs = number
                self._write(self.ledger[self.recorder.name][0])
            except Exception as error:
                self._show(error)

    def end(self, result: Mapping[str, Any] | None) -> None:
        """End once, if it has begun and not failed."""
        if self.failed or not self.open:
            return
        self.open = False
        try:
            self.recorder.end(result)
        except Exception as error:
            self._show(error)

    def _write(self, known: Mapping[str, Any]) -> None:
        self.ledger[self.recorder.name] = (known, self.epochs)
        content = {name: {"known": known, "epochs": epochs} for name, (known, epochs) in self.ledger.items()}
        write_atomic(self.folder / RECORDED, (json.dumps(content, indent=2) + "\n").encode())

    def _show(self, error: Exception) -> None:
        self.failed = True
        text = (
            f"warning: {self.recorder.name} took epochs up to {self.epochs} and failed: {error_line(error)}; training "
            "goes on without it; metrics.jsonl has all, and a run that is resumed sends what is missing"
        )
        tqdm.write(one_line(text), file=sys.stderr)


def _ledger(folder: Path) -> dict[str, tuple[dict[str, Any], int]]:
    """Return what each recorder has taken, by its name: by what it knows the run, and the number of epochs."""
    path = folder / RECORDED
    try:
        return {name: (dict(each["known"]), int(each["epochs"])) for name, each in read_json(path).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise TrainingError(
            f"{path}: expected what recorders have taken: {error_line(error)}; delete the file to record the run anew"
        ) from error


def first_rows(validation: Part, info: RunInfo) -> TensorBatch:
    """Return the first validation observations as the model sees them, float32 [n, *shape], with their conditions."""
    batch = read(validation, slice(0, ROWS))
    parts = [validated(x, info.train, number) for number, x in enumerate(batch.x.split(BATCH))]
    return replace(batch, x=torch.cat(parts))


def labels_of(validation: Part) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """Return the classes of the first validation rows, by their labels or the first condition of classes; the names."""
    source = validation.source
    for each in (source.labels, *source.conditions.values()):
        if each and each.values.dtype == np.int64 and each.values.ndim == 1:
            return np.asarray(each.values[validation.numbers[:ROWS]]), each.classes
    return None, ()


def called(folder: Path, info: RunInfo) -> str:
    """Return the call of `train` that makes a run, without the arguments that have their defaults."""
    model = info.model
    built_in = [model] if isinstance(model, ModelConfig) else []
    own = [] if isinstance(model, ModelConfig) else [repr(model.factory) if model.factory else f"{model.title}(…)"]
    declared = {} if isinstance(model, ModelConfig) else model.declared
    configs = []
    for config in (*built_in, info.train, info.data):
        default = type(config)()
        changed = [
            f"{item.name}={getattr(config, item.name)!r}"
            for item in fields(config)
            if getattr(config, item.name) != getattr(default, item.name)
        ]
        configs.append(f"{type(config).__name__}({', '.join(changed)})")
    given = [f"{name}={value!r}" for name, value in declared.items()]
    return f"train({', '.join([repr(str(folder)), *own, *configs, *given])})"


def _flat(tree: Mapping[str, Any], separator: str) -> dict[str, Any]:
    """Return the leaves of nested objects by their joined names."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found |= {f"{name}{separator}{inner}": each for inner, each in _flat(value, separator).items()}
        else:
            found[name] = value
    return found
