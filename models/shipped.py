"""What makes one bundle that ships, from training to export."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vae_export import DataConfig, Exported, ModelConfig, TrainConfig, evaluate, export, train
from vae_export.graphs.variants import VARIANTS
from vae_export.training.evaluation import read_evaluation
from vae_runtime.errors import InputError

IMPORTANCE_SAMPLES = 1000


@dataclass(frozen=True)
class Shipped:
    """A model that ships: the configurations of its run, and what its bundle says beside them."""

    name: str
    model: ModelConfig | str
    train: TrainConfig
    data: DataConfig
    formats: Sequence[str] | None = None
    """None: all. TorchScript is as large as fp32, so that large models leave it out."""
    class_names: Sequence[str] | None = None
    likelihood: str | None = None
    """The likelihood of a module that is no built-in one."""
    description: str | None = None
    before: Sequence[TrainConfig] = ()
    """How the weights are trained before, each in a run of its own from the weights of the one before it."""
    figures: Callable[[Path], str] | None = None
    """What is measured on the finished bundle, as words that go on the description."""

    def build(self, runs: Path, models: Path) -> None:
        """Train, unless it is done, evaluate, and export into a folder of `models`.

        Args:
            runs: where the runs are kept; one that was interrupted goes on.
            models: where the bundles are.
        """
        run, out, start = runs / self.name, models / self.name, ""
        for number, training in enumerate(self.before, 1):
            step = runs / f"{self.name}-{number}"
            train(step, self.model, replace(training, start_from=start), self.data, likelihood=self.likelihood)
            start = str(step)
        train(run, self.model, replace(self.train, start_from=start), self.data, likelihood=self.likelihood)
        if not measured(run):
            evaluate(run, importance_samples=IMPORTANCE_SAMPLES, data=self.data.source)
        exported = self._export(run, out, self.description)
        if self.figures is not None:
            exported = self._export(run, out, f"{self.description}. {self.figures(out)}")
        for refusal in exported.refused:
            print(f"{refusal.component}/{refusal.variant}: left out: {refusal.reason}", file=sys.stderr)
        print(f"{exported.path}: {exported.digest}")

    def _export(self, run: Path, out: Path, description: str | None) -> Exported:
        return export(
            run,
            out,
            data=self.data.source,
            class_names=self.class_names,
            formats=self.formats,
            variants=VARIANTS,
            name=self.name,
            description=description,
            license="Apache-2.0",
            force=True,
        )


def measured(run: Path) -> bool:
    """Whether the figures of these very weights are there already; on MNIST they take some twenty minutes."""
    try:
        evaluation = read_evaluation(run)
    except InputError:
        return False
    return evaluation is not None and evaluation.importance_samples == IMPORTANCE_SAMPLES
