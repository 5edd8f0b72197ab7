"""Recorders: take the figures and pictures of a run, epoch by epoch, to TensorBoard, MLflow or Weights & Biases."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vae_runtime.errors import InputError, VaeError

Pictures = Mapping[str, NDArray[np.uint8]]
"""Pictures by name: uint8 [height, width] or [height, width, C]."""
# The project or experiment of a run whose environment names none.
_PROJECT = "vae-export"


@dataclass(frozen=True)
class Run:
    """A run as a recorder is told of it at its beginning."""

    folder: Path
    config: Mapping[str, Any]
    """Settings by dotted names, such as `model.latent`: texts, numbers and flags."""
    known: Mapping[str, Any]
    """What `begin` returned when the run was begun for the first time; empty at that time."""
    epochs: int
    """Epochs that this recorder has taken already. One more may have reached it: the process was killed just then."""


class Recorder(Protocol):
    """Takes a run's figures to some place. An exception of a method is shown once and never stops an epoch."""

    name: str
    """One word, by which a run knows what it has taken."""

    def begin(self, run: Run) -> Mapping[str, Any]:
        """Begin a run, or go on with it, and return JSON values by which it is found again.

        What is wrong here, such as a server that does not answer, refuses a fresh run, of which nothing is lost.
        """
        ...

    def epoch(self, number: int, figures: Mapping[str, float], pictures: Pictures) -> None:
        """Take an epoch's figures by name, such as `validation/elbo`, and its pictures, mostly none."""
        ...

    def end(self, result: Mapping[str, Any] | None) -> None:
        """End: with the result of the training, or with None where it stopped before its end and may go on."""
        ...


class TensorBoard:
    """Writes event files to the folder `tensorboard` of a run (extra `tensorboard`)."""

    name = "tensorboard"

    def begin(self, run: Run) -> Mapping[str, Any]:
        """Open a new event file. Readers leave out what older ones say of the epochs that this one begins with."""
        _require("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        purge = run.epochs + 1 if run.known else None
        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=purge)
        if not run.known:
            table = "\n".join(f"| {name} | {value} |" for name, value in run.config.items())
            self._writer.add_text("settings", f"| setting | value |\n|---|---|\n{table}", 0)
        return {"folder": "tensorboard"}

    def epoch(self, number: int, figures: Mapping[str, float], pictures: Pictures) -> None:
        """Write the epoch to disk at once: a process that is killed loses none."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, number)
        for name, picture in pictures.items():
            form = "HW" if picture.ndim == 2 else "HWC"
            self._writer.add_image(name, picture, number, dataformats=form)
        self._writer.flush()

    def end(self, result: Mapping[str, Any] | None) -> None:
        """Close the file."""
        self._writer.close()


class MLflow:
    """Logs to the MLflow tracking server that its environment names: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME."""

    name = "mlflow"

    def begin(self, run: Run) -> Mapping[str, Any]:
        """Make the run in its experiment, or open the one that was made before."""
        _require("mlflow", "mlflow")
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client, self._taken = MlflowClient(), 0
        if run.known:
            self._id = str(run.known["run"])
            self._client.update_run(self._id, "RUNNING")
            # An epoch is logged in one call, so one of its figures says whether it is there.
            history = self._client.get_metric_history(self._id, "learning_rate")
            self._taken = max((metric.step for metric in history), default=0)
            return run.known
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self._client.create_experiment(experiment)
        self._id = self._client.create_run(number, run_name=run.folder.resolve().name).info.run_id
        parameters = [Param(name, str(value)[:6000]) for name, value in run.config.items()]
        for start in range(0, len(parameters), 100):
            self._client.log_batch(self._id, params=parameters[start : start + 100])
        return {"run": self._id}

    def epoch(self, number: int, figures: Mapping[str, float], pictures: Pictures) -> None:
        """Log the epoch as a step, unless it is there."""
        if number <= self._taken:
            return
        from mlflow.entities import Metric

        for name, picture in pictures.items():
            self._client.log_image(self._id, picture, artifact_file=f"{name}/{number:06}.png")
        now = int(time.time() * 1000)
        self._client.log_batch(self._id, [Metric(name, value, now, number) for name, value in figures.items()])

    def end(self, result: Mapping[str, Any] | None) -> None:
        """Say how it ended."""
        for name, value in (result or {}).items():
            self._client.set_tag(self._id, f"result.{name}", str(value))
        self._client.set_terminated(self._id, "FINISHED" if result else "KILLED")


class WeightsAndBiases:
    """Logs to Weights & Biases, as its environment says: WANDB_PROJECT, WANDB_MODE, WANDB_DIR (default: the run)."""

    name = "wandb"

    def begin(self, run: Run) -> Mapping[str, Any]:
        """Make the run in its project, or go on with the one that was made before."""
        _require("wandb", "wandb")
        import wandb

        identity = str(run.known["run"]) if run.known else secrets.token_hex(4)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            dir=os.environ.get("WANDB_DIR", str(run.folder)),
            id=identity,
            resume="allow",
            name=run.folder.resolve().name,
            config=dict(run.config),
            settings=wandb.Settings(silent=True),
        )
        return {"run": identity}

    def epoch(self, number: int, figures: Mapping[str, float], pictures: Pictures) -> None:
        """Log the epoch as a step; a step that is there is left as it is."""
        import wandb

        images = {name: wandb.Image(picture) for name, picture in pictures.items()}
        self._run.log({**figures, **images}, step=number)

    def end(self, result: Mapping[str, Any] | None) -> None:
        """Finish, which sends what is left."""
        for name, value in (result or {}).items():
            self._run.summary[f"result/{name}"] = value
        self._run.finish(exit_code=0 if result else 1)


TRACKERS: dict[str, Callable[[], Recorder]] = {
    "tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WeightsAndBiases,
}  # fmt: skip
"""The recorders that have a name."""


def recorders_of(recorders: Sequence[str | Recorder]) -> tuple[Recorder, ...]:
    """Return the recorders of names or objects.

    Raises:
        InputError: no recorder has this name, it is an object without the methods, or one comes twice.
    """
    found: list[Recorder] = []
    for each in recorders:
        if isinstance(each, str) and each in TRACKERS:
            found.append(TRACKERS[each]())
        elif not isinstance(each, str) and all(hasattr(each, name) for name in ("name", "begin", "epoch", "end")):
            found.append(each)
        else:
            raise InputError(
                f"recorders: expected {', '.join(TRACKERS)} or an object with name, begin, epoch and end, "
                f"got {each!r:.99}"
            )
    names = [each.name for each in found]
    if len(set(names)) < len(names):
        raise InputError(f"recorders: expected each once, got {', '.join(names)}")
    return tuple(found)


def _require(package: str, extra: str) -> None:
    try:
        import_module(package)
    except ImportError as error:
        raise VaeError(
            f"{extra}: expected the package {package}, which cannot be imported ({error}); "
            f"pip install 'vae-export[{extra}]'"
        ) from error
