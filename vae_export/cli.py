"""The command `vae-export`."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vae_runtime._version import __version__
from vae_runtime.cli.main import run
from vae_runtime.errors import InputError

from .training.config import RECIPES, DataConfig, ModelConfig, TrainConfig
from .understand.declaration import SECOND

__all__ = ["main"]

# Of the data's configuration, what has another name on the command line.
_DATA_FLAGS = {"source": "data", "seed": "split-seed"}
POSTERIORS = (*SECOND, "codes", "none")
LIKELIHOODS = ("bernoulli", "gaussian", "laplace")
# What `export` takes of a model under the same name.
_MODEL_ARGUMENTS = (
    *("posterior", "likelihood", "scale", "prior", "axes", "latent_axes", "dynamic", "range", "encode", "decode"),
    *("latent_scale", "latent_shift", "codebook"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status: 0 success, 1 failed, 2 misuse, 130 interrupted."""
    return run(_parser, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vae-export", description="Train a Variational Autoencoder, or export one with proven parity."
    )
    parser.add_argument("--version", action="version", version=f"vae-export {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=lambda options: _in_memory(function, sub, options))
        return sub

    sub = command("train", _train, "train a VAE; the same command goes on after an interruption")
    sub.add_argument("--out", type=Path, required=True, metavar="RUN", help="the run's folder")
    sub.add_argument("--recipe", choices=sorted(RECIPES), help="start from the configuration of a model that ships")
    for title, config in (("data", DataConfig), ("model", ModelConfig), ("training", TrainConfig)):
        group = sub.add_argument_group(title)
        for field in dataclasses.fields(config):
            _add_field(group, config, field)

    sub = command(
        "evaluate", _evaluate, "measure a run on its test data: ELBO, importance-weighted bound, active units"
    )
    sub.add_argument("run", type=Path, help="the run's folder")
    sub.add_argument("--importance-samples", type=int, default=1000, metavar="K", help="samples of the bound (1000)")
    sub.add_argument("--limit", type=int, metavar="N", help="only the first N test observations")
    sub.add_argument("--data", help="where the run's data are now")

    sub = command("export", _export, "write a bundle of a run or a model, once its graphs are proven equal to PyTorch")
    sub.add_argument("run", type=Path, nargs="?", help="the run's folder; or say --model")
    sub.add_argument("--out", type=Path, required=True, metavar="BUNDLE", help="the bundle's folder")
    sub.add_argument(
        "--formats",
        type=lambda text: tuple(text.split(",")),
        default=("onnx", "torchscript"),
        help="of onnx,torchscript,pt2 (default onnx,torchscript)",
    )
    sub.add_argument(
        "--variants",
        type=lambda text: tuple(text.split(",")),
        default=("fp32",),
        help="of fp32,fp16,int8 (default fp32, which is always made): docs/variants.md",
    )
    sub.add_argument(
        "--min-psnr", type=float, default=35.0, metavar="DB", help="leave out variants of a lower PSNR (default 35)"
    )
    sub.add_argument(
        "--max-elbo-loss", type=float, default=0.5, metavar="NATS", help="or of a larger loss of ELBO (default 0.5)"
    )
    sub.add_argument("--data", help="where the run's data are now")
    sub.add_argument("--name", help="the bundle's name (default: the data's, or the model's class)")
    sub.add_argument("--description", help="what the model is and was trained on, for the model card")
    sub.add_argument("--license", help="of the weights, for the model card")
    sub.add_argument("--force", action="store_true", help="replace a bundle that is there")
    group = sub.add_argument_group("a model of yours (docs/bring-your-own.md)")
    group.add_argument(
        "--model", metavar="MODULE:NAME", help="a class or function that makes the VAE; importing it runs its code"
    )
    group.add_argument("--weights", type=Path, help="its state: .safetensors, or what torch.save wrote of state_dict()")
    group.add_argument("--example", type=Path, metavar="X.npy", help="observations [n, ...]")
    group.add_argument(
        "--observations", type=Path, metavar="X.npy", help="real data, to fit a prior to and measure variants on"
    )
    group.add_argument(
        "--condition", action="append", default=[], metavar="NAME=C.npy", help="values [n, ...] of a condition"
    )
    group.add_argument("--class-names", metavar="A,B,C", help="names of the classes of the integer condition")
    group.add_argument("--posterior", choices=POSTERIORS, help="what the encoder's second tensor is")
    group.add_argument("--likelihood", choices=LIKELIHOODS, help="without it there are samples and no scores")
    group.add_argument("--scale", type=float, help="of a gaussian or laplace likelihood (default 1)")
    group.add_argument("--prior", help="normal, none, sphere; or to fit: diagonal, gaussian, mixture:K")
    for name in ("axes", "latent-axes", "dynamic"):
        group.add_argument(
            f"--{name}",
            type=lambda text: tuple(text.split(",")),
            metavar="A,B,C",
            help={
                "axes": "names of an observation's axes",
                "latent-axes": "names of the latent's axes",
                "dynamic": "the names of those that may have other sizes",
            }[name],
        )
    group.add_argument("--range", type=float, nargs=2, metavar=("MIN", "MAX"), help="values of an observation")
    for name in ("encode", "decode"):
        group.add_argument(f"--{name}", metavar="METHOD", help=f"the name of the method (default {name})")
    group.add_argument("--latent-scale", type=float, help="what other models take is (z - shift) * scale")
    group.add_argument("--latent-shift", type=float, help="see --latent-scale")
    group.add_argument("--codebook", type=int, help="how many codes there are")

    sub = command(
        "parity",
        _parity,
        "hold every graph of a bundle against the run's PyTorch model and golden vectors; loading TorchScript and .pt2 "
        "runs code from them, so give it only bundles that you trust",
    )
    sub.add_argument("run", type=Path, help="the run's folder")
    sub.add_argument("bundle", type=Path, help="the bundle's folder")
    sub.add_argument("--data", help="where the run's data are now")

    sub = command("demo", _demo, "train on real digits, export, prove, verify and sample: the whole way, in a minute")
    sub.add_argument("--out", type=Path, default=Path("out/demo"), help="where to (default out/demo)")
    return parser


def _in_memory(function: Any, sub: argparse.ArgumentParser, options: argparse.Namespace) -> int | None:
    """Call a command; where PyTorch finds no memory, for which it has no class of its own, raise MemoryError."""
    try:
        status: int | None = function(sub, options)
    except RuntimeError as error:
        wanted = re.search(r"you tried to allocate (\d+) bytes", str(error))
        if wanted is None:
            raise
        raise MemoryError(f"PyTorch asked for {int(wanted[1]) / 2**30:,.1f} GiB at once") from error
    return status


def _add_field(group: Any, config: type, field: dataclasses.Field[Any]) -> None:
    """An option for a field of a configuration; None, its default, leaves the recipe's or the field's own."""
    flag = "--" + (_DATA_FLAGS.get(field.name, field.name) if config is DataConfig else field.name).replace("_", "-")
    shared = {"dest": f"{config.__name__}.{field.name}", "default": None}
    words, _ = field.metadata["rule"]
    text = f"{words} (default {_shown(field.default)})"
    if isinstance(field.default, bool):
        group.add_argument(
            flag, action=argparse.BooleanOptionalAction, help=f"default {_shown(field.default)}", **shared
        )
    elif isinstance(field.default, tuple):
        group.add_argument(flag, type=int, nargs="+", metavar="N", help=text, **shared)
    else:
        group.add_argument(
            flag, type=type(field.default), metavar=type(field.default).__name__.upper(), help=text, **shared
        )


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return " ".join(map(str, default)) or "that of the data"
    return {True: "yes", False: "no"}.get(default, str(default)) if isinstance(default, bool) else str(default)


def _configured(sub: argparse.ArgumentParser, options: argparse.Namespace) -> tuple[Any, ...]:
    """The three configurations: the recipe's or the defaults, changed by what was given; a bad value is misuse."""
    recipe = RECIPES.get(options.recipe)
    bases = (recipe.model, recipe.train, recipe.data) if recipe else (ModelConfig(), TrainConfig(), DataConfig())
    try:
        configs = []
        for base in bases:
            prefix = type(base).__name__ + "."
            given = {
                name.removeprefix(prefix): value
                for name, value in vars(options).items()
                if name.startswith(prefix) and value is not None
            }
            configs.append(dataclasses.replace(base, **given))
    except InputError as error:
        sub.error(str(error))
    return tuple(configs)


def _train(sub: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    configs = _configured(sub, options)
    from .training.loop import train

    outcome = train(options.out, *configs)
    result = outcome.info.result
    state = "finished before" if outcome.already_finished else "finished"
    if outcome.resumed_epoch and not outcome.already_finished:
        state += f", having gone on from epoch {outcome.resumed_epoch}"
    print(f"{options.out}: {state}")
    if result:
        stopped = ", stopped early" if result.stopped_early else ""
        print(
            f"best epoch {result.best_epoch} of {result.epochs}{stopped}: validation {_surrogate(outcome.info)}ELBO "
            f"{result.elbo:.2f} nats (reconstruction {result.reconstruction:.2f}, KL {result.kl:.2f})"
        )


def _surrogate(info: Any) -> str:
    return "surrogate " if info.surrogate else ""


def _evaluate(sub: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    for name in ("importance_samples", "limit"):
        value = getattr(options, name)
        if value is not None and value < 1:
            sub.error(f"--{name.replace('_', '-')}: an integer of at least 1 is expected, got {value}")
    from .training.evaluation import evaluate

    evaluation = evaluate(
        options.run, importance_samples=options.importance_samples, limit=options.limit, data=options.data
    )
    for name, value in dataclasses.asdict(evaluation).items():
        kind = "surrogate " if evaluation.surrogate and name in ("elbo", "nll") else ""
        print(f"{kind + name.replace('_', ' '):28}{f'{value:.6g}' if isinstance(value, float) else value}")


def _export(sub: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    from .graphs.graph import FORMATS

    unknown = [name for name in options.formats if name not in FORMATS]
    if unknown:
        sub.error(f"--formats: {', '.join(FORMATS)} are expected, got {unknown[0]!r}")
    from .graphs.variants import VARIANTS, Gate

    unknown = [name for name in options.variants if name not in VARIANTS]
    if unknown:
        sub.error(f"--variants: {', '.join(VARIANTS)} are expected, got {unknown[0]!r}")
    try:
        Gate(options.min_psnr, options.max_elbo_loss)
    except InputError as error:
        sub.error(str(error))
    if (options.run is None) == (options.model is None):
        sub.error("either a run's folder or --model is expected")
    given = {name: getattr(options, name) for name in _MODEL_ARGUMENTS if getattr(options, name) is not None}
    if options.run is not None:
        foreign = [*given, *(name for name in ("weights", "example", "observations") if getattr(options, name))]
        foreign += ["condition"] * bool(options.condition)
        if foreign:
            sub.error(f"--{foreign[0].replace('_', '-')}: only with --model, a run says it itself")
        model: Any = options.run
    else:
        if options.data is not None:
            sub.error("--data: only with a run; give --example")
        if options.example is None:
            sub.error("--model: --example is expected too")
        from .loading import load_model, read_array

        model = load_model(options.model, options.weights)
        given["example"] = read_array(options.example)
        if options.observations:
            given["observations"] = read_array(options.observations)
        given["conditions"] = {}
        for text in options.condition:
            name, sign, path = text.partition("=")
            if not sign or not name or name in given["conditions"]:
                sub.error(f"--condition: NAME=C.npy, each name once, is expected, got {text!r}")
            given["conditions"][name] = read_array(Path(path))
        if options.class_names is not None:
            given["class_names"] = options.class_names.split(",")
    from .exporting import export

    exported = export(
        model,
        options.out,
        formats=options.formats,
        variants=options.variants,
        min_psnr=options.min_psnr,
        max_elbo_loss=options.max_elbo_loss,
        data=options.data,
        name=options.name,
        description=options.description,
        license=options.license,
        force=options.force,
        progress=options.model is not None,
        **given,
    )
    print(exported.parity)
    for path, size in exported.sizes.items():
        print(f"{size / 1024:10,.0f} KiB  {path}")
    print(f"{exported.path}: {exported.digest}")


def _parity(sub: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    from .exporting import prove

    verification, report = prove(options.run, options.bundle, data=options.data)
    print(verification)
    print(report)
    if verification.passed and report.passed:
        print(f"{options.bundle}: equal to {options.run}")
        return 0
    print(f"error: {options.bundle}: not equal to {options.run}; export it again", file=sys.stderr)
    return 1


def _demo(sub: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    from .demo import demo

    demo(options.out)


if __name__ == "__main__":
    sys.exit(main())
