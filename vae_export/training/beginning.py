"""What a run begins with: its description, its first weights, and whether this machine has the memory to train them."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch

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
from .run_folder import differences, identity


@dataclass(frozen=True)
class Begun:
    """The finished run whose weights another one begins with."""

    folder: Path
    info: RunInfo
    start: Start

    @property
    def standard(self) -> Normalisation | None:
        """The normalization that was found in its data, and is that of the model; None where the data decide it."""
        return self.info.found.normalisation if self.info.data.normalise == "standard" else None

    def followed_by(self, info: RunInfo) -> RunInfo:
        """Return the description of a run that begins with these weights.

        Raises:
            InputError: it is of another model, or saw other data in training than that run will.
        """
        first, ours = identity(self.info), identity(info)
        for name in ("factory", "class", "declared"):  # how it was made and understood; the tensors have to fit
            first["model"].pop(name, None), ours["model"].pop(name, None)
        wrong = differences("model", first["model"], ours["model"])
        if wrong:
            raise InputError(
                f"train.start_from: {self.folder}: expected a run of the same model: {'; '.join(wrong)}; choose "
                "another run, or its options of the model"
            )
        if self.info.found.classes != info.found.classes:
            wrong = differences("classes", self.info.found.classes, info.found.classes)
            raise InputError(
                f"train.start_from: {self.folder}: expected data with the same classes: {'; '.join(wrong)}; a number "
                "would mean another class; choose another run or other data"
            )
        if first["data"]["digest"] == ours["data"]["digest"]:
            wrong = [
                line for name in ("seed", "test_fraction", "validation_fraction")
                for line in differences("data", {name: first["data"][name]}, {name: ours["data"][name]})
            ]  # fmt: skip
            if wrong:
                raise InputError(
                    f"train.start_from: {self.folder}: expected the same split of the same data: {'; '.join(wrong)}; "
                    "its training data would be among the test data; give its split"
                )
        return replace(info, start=self.start)


def begun_with(training: TrainConfig, source: DataConfig, *, built_in: bool) -> Begun | None:
    """Return the run whose weights a training begins with; None if there is none.

    Args:
        training: names it.
        source: of the data that the training is on.
        built_in: whether the model to train is built in.

    Raises:
        InputError: it is no finished run, or of another kind of model, or its data were normalized in another way.
    """
    if not training.start_from:
        return None
    folder = Path(training.start_from)
    try:
        info = checkpoint.read_info(folder)
        if info.result is None:
            raise InputError(f"{folder}: expected a finished run, got one that goes on; finish it first")
        digest = checkpoint.weights_digest(folder)
    except InputError as error:
        raise InputError(f"train.start_from: {error}") from error
    if isinstance(info.model, ModelConfig) != built_in:
        kinds = ("a built-in model", "a model of your own")
        raise InputError(
            f"train.start_from: {folder}: expected a run of {kinds[not built_in]}, got one of {kinds[built_in]}; "
            f"{'leave --model out' if not built_in else 'give it again (--model)'}, or choose another run"
        )
    if wrong := differences("data", {"normalise": info.data.normalise}, {"normalise": source.normalise}):
        raise InputError(
            f"train.start_from: {folder}: expected the same normalization: {wrong[0]}; give that of the run"
        )
    epoch = info.result.best_epoch
    start = Start(digest, info.provenance.name, info.provenance.digest, epoch, info.train)
    return Begun(folder, info, start)


def describe(
    model: ModelConfig | OwnModel, training: TrainConfig, source: DataConfig, dataset: Dataset, begun: Begun | None
) -> RunInfo:
    """Return what is known of a run before it begins.

    Raises:
        InputError: the data do not fit the model, or the run whose weights it begins with is of another model, or saw
            other data in training than this one will.
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


def untrained(info: RunInfo, dataset: Dataset) -> VAE:
    """Return a built-in VAE with the weights that its run begins with.

    They are another run's, or drawn by the seed, with the mean of the data.

    Raises:
        InputError: the weights of the other run are missing or damaged.
    """
    assert isinstance(info.model, ModelConfig)
    seed = generator(info.train.seed, "weights").initial_seed()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = VAE(info.model)
    if info.train.start_from:
        checkpoint.load_into(vae, Path(info.train.start_from), checkpoint.FOREIGN)
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
