"""What a run begins with: its description, its first weights, and whether this machine has the memory to train them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor, nn

from vae_runtime.errors import InputError
from vae_runtime.likelihood import KINDS
from vae_runtime.manifest import Normalisation

from . import checkpoint, resume
from .checkpoint import Found, RunInfo, Start
from .config import DataConfig, ModelConfig, TrainConfig
from .data.checks import count_classes, kind_of, require_kind, require_range, with_conditions
from .data.dataset import Dataset
from .model import VAE
from .own_model import OwnModel
from .randomness import generator
from .run_folder import differences

_MAX_STARTS = 256


@dataclass(frozen=True)
class Begun:
    """The finished run whose weights another one begins with."""

    folder: Path
    info: RunInfo
    weights: Mapping[str, Tensor]
    starts: tuple[Start, ...]
    """Those of the run, and itself."""

    @property
    def standard(self) -> Normalisation | None:
        """The normalization that was found in its data, and is that of the model; None where the data decide it."""
        return self.info.found.normalisation if self.info.data.normalise == "standard" else None

    def fill(self, module: nn.Module) -> None:
        """Let a module take the weights.

        Raises:
            InputError: they are not finite, or not those of such a module, which is not changed.
        """
        for name, tensor in self.weights.items():
            if not tensor.isfinite().all():
                raise InputError(
                    f"train.start_from: {self.folder}: tensor {name}: expected finite weights, got NaN or infinity; "
                    "choose another run, or train it again"
                )
        checkpoint.load_into(module, self.folder, self.weights, "it is no run of the same model: choose another")

    def require_unseen(self, source: DataConfig, digest: str) -> None:
        """Refuse a split by which the weights were trained on test or validation data.

        Args:
            source: of the data of the run that begins.
            digest: of these data.

        Raises:
            InputError: the same data were split otherwise, in this run or in one that it began with.
        """
        for start in self.starts:
            wrong = differences("data", start.split, {name: getattr(source, name) for name in start.split})
            if wrong and start.data_digest == digest:
                raise InputError(
                    f"train.start_from: {self.folder}: expected the split of these data that its weights were trained "
                    f"with: {'; '.join(wrong)}; data for the test would be among those; give that split"
                )

    def followed_by(self, info: RunInfo) -> RunInfo:
        """Return the description of a run that begins with these weights.

        Raises:
            InputError: it is of another model, or its classes have other names.
        """
        first, ours = (
            each.model.to_json() if isinstance(each.model, ModelConfig) else each.model.meaning
            for each in (self.info, info)
        )
        wrong = differences("model", first, ours)
        if wrong:
            raise InputError(
                f"train.start_from: {self.folder}: expected a run of the same model: {'; '.join(wrong)}; choose "
                "another run, or its options of the model"
            )
        for name, known in self.info.found.classes.items():
            for number, (one, other) in enumerate(zip_longest(known, info.found.classes.get(name, ()))):
                if one != other:
                    raise InputError(
                        f"train.start_from: {self.folder}: {name}: expected class {number} to be {one!r:.99}, as in "
                        f"that run, got {other!r:.99}; choose other data, or train without --start-from"
                    )
        return replace(info, starts=self.starts)


def begun_with(training: TrainConfig, source: DataConfig, *, built_in: bool) -> Begun | None:
    """Return the run whose weights a training begins with; None if there is none.

    Args:
        training: names it.
        source: of the data that the training is on.
        built_in: whether the model to train is built in.

    Raises:
        InputError: it is no finished run, is damaged or of another kind of model, or its observations were made in
            another way.
    """
    if not training.start_from:
        return None
    folder = Path(training.start_from)
    try:
        info = checkpoint.read_info(folder)
        if info.result is None:
            raise InputError(f"{folder}: expected a finished run, got one that goes on; finish it first")
        if info.outdated:
            raise InputError(f"{folder}: {info.outdated}; train it again")
        if isinstance(info.model, ModelConfig) != built_in:
            kinds = ("a built-in model", "a model of your own")
            raise InputError(
                f"{folder}: expected a run of {kinds[not built_in]}, got one of {kinds[built_in]}; "
                f"{'leave --model out' if not built_in else 'give it again (--model)'}, or choose another run"
            )
        if len(info.starts) >= _MAX_STARTS:
            raise InputError(
                f"{folder}: expected at most {_MAX_STARTS} runs that began with each other's weights, got one more; "
                "begin anew on all data"
            )
        digest, weights = checkpoint.read_weights(folder)
    except InputError as error:
        raise InputError(f"train.start_from: {error}") from error
    theirs, ours = ({"normalise": data.normalise, "columns": data.columns} for data in (info.data, source))
    if wrong := differences("data", theirs, ours):
        raise InputError(
            f"train.start_from: {folder}: expected observations of the same meaning: {'; '.join(wrong)}; give what "
            "that run has"
        )
    start = Start(
        digest, info.result.best_epoch, info.provenance.name, info.provenance.digest, info.provenance.license,
        info.data.seed, info.data.validation_fraction, info.data.test_fraction, info.train,
    )  # fmt: skip
    return Begun(folder, info, weights, (*info.starts, start))


def describe(
    model: ModelConfig | OwnModel, training: TrainConfig, source: DataConfig, dataset: Dataset, begun: Begun | None
) -> RunInfo:
    """Return what is known of a run before it begins.

    Raises:
        InputError: the data do not fit the model, or the run whose weights it begins with is of another one.
    """
    model = model if model.observation_shape else replace(model, observation_shape=dataset.shape)
    if model.observation_shape != dataset.shape:
        raise InputError(
            f"{source.source}: expected observations of shape {list(model.observation_shape)} "
            f"(model.observation_shape), got {list(dataset.shape)}; change one of them"
        )
    if isinstance(model, ModelConfig):
        model = with_conditions(model, dataset.kinds(), source.source)
    if not len(dataset.validation):
        raise InputError(
            f"{source.source}: expected at least one observation for validation, got none; "
            "raise data.validation_fraction or try another data.seed"
        )
    if KINDS[model.likelihood].classes and not model.classes:
        model = replace(model, classes=count_classes(dataset.train, source.source))
    kind = kind_of(model.likelihood, model.classes)
    for part in (dataset.train, dataset.validation, dataset.test):
        require_kind(part, kind, source.source)
        if training.binarise != "none":
            require_range(part, source.source)
    found = Found(dataset.normalisation, dataset.skipped.named, dataset.classes)
    info = RunInfo(model, training, source, dataset.provenance, torch.__version__, found)
    return info if begun is None else begun.followed_by(info)


def untrained(info: RunInfo, dataset: Dataset, begun: Begun | None) -> VAE:
    """Return a built-in VAE with the weights that its run begins with.

    They are another run's, or drawn by the seed, with the mean of the data.

    Raises:
        InputError: the weights of the other run are not those of its configuration.
    """
    assert isinstance(info.model, ModelConfig)
    seed = generator(info.train.seed, "weights").initial_seed()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = VAE(info.model)
    if begun:
        begun.fill(vae)
    else:
        classes = info.model.classes
        vae.start_from_mean(torch.from_numpy(dataset.train.frequencies(classes) if classes else dataset.train.mean()))
    return vae.for_cpu()


def require_memory(info: RunInfo) -> None:
    """Refuse a model whose weights alone, as often as a training keeps them, exceed this machine's memory.

    Raises:
        InputError: it is one.
    """
    model = info.model
    assert isinstance(model, ModelConfig)
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # a system that does not say
        return
    with torch.device("meta"):
        weights = VAE(model).parameters()
    # Weights, gradients, the moments, the best weights so far, and their average.
    copies = 3 + len(resume.MOMENTS) + (info.train.ema > 0)
    size = copies * sum(weight.numel() * weight.element_size() for weight in weights)
    if size > memory:
        sizes = "model.hidden" if model.architecture == "mlp" else "model.hidden or model.channels"
        raise InputError(
            f"{sizes}: expected weights, gradients and moments within this machine's {memory / 2**30:,.1f} GiB of "
            f"memory, got {size / 2**30:,.1f} GiB; lower them"
        )
