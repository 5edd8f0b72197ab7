"""The verbs `train` and `evaluate` of `vae-export`."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vae_runtime.cli.options import Verbs, add_verb
from vae_runtime.errors import InputError, one_line

from .training.config import RECIPES, DataConfig, ModelConfig, TrainConfig
from .understand.declaration import SECOND

# Fields of DataConfig that have another name on the command line.
_DATA_FLAGS = {"source": "data", "seed": "split-seed", "license": "data-license"}


def add_pytorch_verb(
    verbs: Verbs, name: str, function: Callable[[argparse.Namespace], int | None], text: str
) -> argparse.ArgumentParser:
    """Add a verb that raises MemoryError where PyTorch, which has no such class, runs out of memory."""

    def call(options: argparse.Namespace) -> int | None:
        try:
            return function(options)
        except RuntimeError as error:
            size = re.search(r"you tried to allocate (\d+) bytes", str(error))
            if size is None:
                raise
            raise MemoryError(f"PyTorch asked for {int(size[1]) / 2**30:,.1f} GiB at once") from error

    return add_verb(verbs, name, call, text)


def add_train(verbs: Verbs) -> None:
    """Add the verb `train`."""
    verb = add_pytorch_verb(verbs, "train", _train, "train a VAE; run the same command again to resume it")
    verb.add_argument("--out", type=Path, required=True, metavar="RUN", help="the run's folder")
    verb.add_argument("--recipe", choices=sorted(RECIPES), help="take the configuration of a shipped model")
    verb.add_argument("--tensorboard", action="store_true", help="write event files to RUN/tensorboard")
    verb.add_argument(
        "--track", action="append", default=[], choices=("mlflow", "wandb"), help="log to a tracker: docs/training.md"
    )
    for title, config in (("data", DataConfig), ("model", ModelConfig), ("training", TrainConfig)):
        group = verb.add_argument_group(title)
        for field in dataclasses.fields(config):
            if field.default is not dataclasses.MISSING:  # the conditions of a model are those of the data
                _add_field(group, config, field)
    group = verb.add_argument_group("a model of your own, in place of the built-in ones (docs/training.md)")
    group.add_argument("--model", metavar="MODULE:NAME", help="a class or function that makes it; this runs its code")
    group.add_argument("--posterior", choices=SECOND, help="meaning of the encoder's second tensor")
    group.add_argument("--prior", choices=("normal",), help="train against it, whatever prior the model seems to have")
    add_methods(group)


def add_methods(group: Any) -> None:
    """Add the options that name the methods of a model of the user's."""
    for name in ("encode", "decode"):
        group.add_argument(f"--{name}", metavar="METHOD", help=f"name of the method (default {name})")


def _add_field(group: Any, config: Any, field: dataclasses.Field[Any]) -> None:
    """Add an option for a field of a configuration; None, its default, keeps the recipe's or the field's value."""
    flag = "--" + (_DATA_FLAGS.get(field.name, field.name) if config is DataConfig else field.name).replace("_", "-")
    shared = {"dest": f"{config.place}.{field.name}", "default": None}
    words, _ = field.metadata["rule"]
    text = f"{words} (default {_shown(field.default) or field.metadata['empty']})"
    if isinstance(field.default, bool):
        group.add_argument(
            flag, action=argparse.BooleanOptionalAction, help=f"default {_shown(field.default)}", **shared
        )
    elif isinstance(field.default, tuple):
        item = field.metadata.get("item", int)
        metavar = "N" if item is int else item.__name__.upper()
        group.add_argument(flag, type=item, nargs="+", metavar=metavar, help=text, **shared)
    else:
        group.add_argument(
            flag, type=type(field.default), metavar=type(field.default).__name__.upper(), help=text, **shared
        )


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return " ".join(map(str, default))
    return {True: "yes", False: "no"}.get(default, str(default)) if isinstance(default, bool) else str(default)


def _configured(options: argparse.Namespace) -> tuple[Any, ...]:
    """Return the three configurations: the recipe or the defaults, changed by the options; a bad value is misuse."""
    recipe = RECIPES.get(options.recipe)
    if getattr(options, f"{TrainConfig.place}.start_from") == "":
        options.misuse("--start-from: expected the folder of a finished run, got ''")
    bases = recipe[:3] if recipe else (_first_model(options), TrainConfig(), DataConfig())
    try:
        configs = []
        for base in bases:
            prefix = base.place + "."
            changes = {
                name.removeprefix(prefix): value
                for name, value in vars(options).items()
                if name.startswith(prefix) and value is not None
            }
            configs.append(dataclasses.replace(base, **changes))
    except InputError as error:
        options.misuse(str(error))
    if recipe and recipe.start and not getattr(options, f"{TrainConfig.place}.start_from"):
        options.misuse(f"--start-from: expected a run of --recipe {recipe.start}, got none")
    return tuple(configs)


def _first_model(options: argparse.Namespace) -> ModelConfig:
    """Return the built-in model of the run whose weights the training begins with; else the default."""
    start = getattr(options, f"{TrainConfig.place}.start_from")
    if not start or options.model is not None:
        return ModelConfig()
    from .training.checkpoint import read_info

    try:
        model = read_info(Path(start)).model
    except InputError as error:
        raise InputError(f"train.start_from: {error}") from error
    return model if isinstance(model, ModelConfig) else ModelConfig()


def _declared(options: argparse.Namespace) -> dict[str, Any]:
    """Return what is declared of a model of the user's; options of another kind of model are misuse."""
    own = {name: getattr(options, name) for name in ("posterior", "prior", "encode", "decode")}
    if options.model is None:
        for name in (name for name, value in own.items() if value is not None):
            options.misuse(f"--{name}: allowed only with --model")
        return {}
    own |= {name.removeprefix("model."): value for name, value in vars(options).items() if name.startswith("model.")}
    declared = {name: value for name, value in own.items() if value is not None}
    for name in declared.keys() & {field.name for field in dataclasses.fields(ModelConfig)} - {"likelihood", "scale"}:
        options.misuse(f"--{name.replace('_', '-')}: not allowed with --model, which decides it itself")
    return declared


def _train(options: argparse.Namespace) -> None:
    declared, (model, training, source) = _declared(options), _configured(options)
    from .training.loop import train
    from .training.processes import started_by, started_first
    from .training.run_folder import STATE

    recorders = (["tensorboard"] if options.tensorboard else []) + list(dict.fromkeys(options.track))
    wanted = model if options.model is None else options.model
    command = started_by(options.arguments)
    try:
        outcome = train(options.out, wanted, training, source, **declared, recorders=recorders, command=command)
    except KeyboardInterrupt:
        if not started_first():
            raise SystemExit(1) from None
        if (options.out / STATE).exists():
            print(one_line(f"{options.out}: the same command goes on from the last epoch"), file=sys.stderr)
        raise
    if not started_first():
        return
    result = outcome.info.result
    state = "already finished" if outcome.already_finished else "finished"
    if outcome.resumed_epoch and not outcome.already_finished:
        state += f", resumed from epoch {outcome.resumed_epoch}"
    print(one_line(f"{options.out}: {state}"))
    if result:
        stopped = ", stopped early" if result.stopped_early else ""
        print(
            f"best epoch {result.best_epoch} of {result.epochs}{stopped}: validation {_surrogate(outcome.info)}ELBO "
            f"{result.elbo:.2f} nats (reconstruction {result.reconstruction:.2f}, KL {result.kl:.2f})"
        )


def _surrogate(info: Any) -> str:
    return "surrogate " if info.surrogate else ""


def add_evaluate(verbs: Verbs) -> None:
    """Add the verb `evaluate`."""
    text = "measure a run on its test data: ELBO, importance-weighted bound, active units"
    verb = add_pytorch_verb(verbs, "evaluate", _evaluate, text)
    verb.add_argument("run", type=Path, help="the run's folder")
    verb.add_argument(
        "--importance-samples", type=int, default=1000, metavar="K", help="samples of the bound (default 1000)"
    )
    verb.add_argument("--limit", type=int, metavar="N", help="use only the first N test observations")
    verb.add_argument("--data", help="where the run's data are now")


def _evaluate(options: argparse.Namespace) -> None:
    for name in ("importance_samples", "limit"):
        value = getattr(options, name)
        if value is not None and value < 1:
            options.misuse(f"--{name.replace('_', '-')}: expected an integer of at least 1, got {value}")
    from .training.evaluation import evaluate

    evaluation = evaluate(
        options.run, importance_samples=options.importance_samples, limit=options.limit, data=options.data
    )
    for name, value in dataclasses.asdict(evaluation).items():
        kind = "surrogate " if evaluation.surrogate and name in ("elbo", "nll") else ""
        print(one_line(f"{kind + name.replace('_', ' '):28}{f'{value:.6g}' if isinstance(value, float) else value}"))
