"""The command `vae-export`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vae_runtime._version import __version__
from vae_runtime.cli.main import run
from vae_runtime.cli.options import Verbs, add_verb, integers
from vae_runtime.cli.scoring import add_calibrate
from vae_runtime.errors import InputError, counted, lines_of, one_line
from vae_runtime.likelihood import KINDS

from .cli_train import add_evaluate, add_methods, add_pytorch_verb, add_train
from .understand.declaration import SECOND, Declaration

POSTERIORS = (*SECOND, "codes", "none")
LIKELIHOODS = tuple(KINDS)
# Arguments of `export` that have the same name as an option.
_MODEL_ARGUMENTS = (
    *("posterior", "likelihood", "scale", "prior", "axes", "latent_axes", "dynamic", "range", "encode", "decode"),
    *("latent_scale", "latent_shift", "codebook"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status, which docs/command-line.md describes."""
    arguments = sys.argv[1:] if argv is None else list(argv)

    def parser() -> argparse.ArgumentParser:
        built = build_parser()
        # A training's report shows the command that made it.
        built.set_defaults(arguments=arguments)
        return built

    return run(parser, argv)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `vae-export`."""
    parser = argparse.ArgumentParser(
        prog="vae-export", description="Train a Variational Autoencoder, or export one with proven parity."
    )
    parser.add_argument("--version", action="version", version=f"vae-export {__version__}")
    verbs = parser.add_subparsers(metavar="COMMAND", required=True)
    of_runs = (add_train, add_evaluate, _add_export, _add_adopt, _add_parity)
    for add in (*of_runs, add_calibrate, _add_sign, _add_push, _add_demo):
        add(verbs)
    return parser


def _add_export(verbs: Verbs) -> None:
    text = "export a run or a model as a bundle, after its graphs are proven equal to PyTorch"
    verb = add_pytorch_verb(verbs, "export", _export, text)
    verb.add_argument("run", type=Path, nargs="?", help="the run's folder; or use --model")
    verb.add_argument("--out", type=Path, required=True, metavar="BUNDLE", help="the bundle's folder")
    verb.add_argument(
        "--formats",
        type=_names,
        help="any of onnx,torchscript,pt2 (default onnx, and torchscript where possible)",
    )
    verb.add_argument(
        "--variants",
        type=_names,
        default=("fp32",),
        help="any of fp32,fp16,int8 (default fp32, which is always written): docs/variants.md",
    )
    verb.add_argument(
        "--min-psnr", type=float, default=35.0, metavar="DB", help="leave out variants with a lower PSNR (default 35)"
    )
    verb.add_argument(
        "--max-elbo-loss",
        type=float,
        default=0.5,
        metavar="NATS",
        help="leave out variants with a larger loss of ELBO (default 0.5)",
    )
    verb.add_argument("--data", help="where the run's data are now")
    _add_labels(verb, "that of the data or of the model's class")
    _add_model(verb)


def _add_model(verb: argparse.ArgumentParser) -> None:
    """Add the options for a model of the user."""
    group = verb.add_argument_group("your own model (docs/bring-your-own.md)")
    group.add_argument(
        "--model", metavar="MODULE:NAME", help="a class or function that returns the VAE; importing it runs its code"
    )
    group.add_argument(
        "--weights",
        type=Path,
        help="its state_dict(): a .safetensors file, one that torch.save wrote, or a folder of the library",
    )
    group.add_argument("--example", type=Path, metavar="X.npy", help="observations [n, ...]")
    group.add_argument(
        "--latents", type=Path, metavar="Z.npy", help="in place of --example: latents [n, ...], for the decoder alone"
    )
    group.add_argument(
        "--observations", type=Path, metavar="X.npy", help="real data, to fit a prior to and to measure variants on"
    )
    _add_conditions(group)
    _add_meaning(group, help="normal, none, sphere; or a prior to fit: diagonal, gaussian, mixture:K")
    add_methods(group)


def _add_conditions(group: Any) -> None:
    """Add the options that give conditions."""
    group.add_argument(
        "--condition", action="append", default=[], metavar="NAME=C.npy", help="values [n, ...] of a condition"
    )
    group.add_argument("--class-names", metavar="A,B,C", help="names of the classes of the integer condition")


def _add_meaning(group: Any, **prior: Any) -> None:
    """Add the options that declare what a model's tensors mean."""
    group.add_argument("--posterior", choices=POSTERIORS, help="meaning of the encoder's second tensor")
    group.add_argument("--likelihood", choices=LIKELIHOODS, help="without it, the bundle samples but does not score")
    group.add_argument("--scale", type=float, help="scale of a gaussian, laplace or logistic likelihood (default 1)")
    group.add_argument("--prior", **prior)
    group.add_argument("--axes", type=_names, metavar="A,B,C", help="names of an observation's axes")
    group.add_argument("--latent-axes", type=_names, metavar="A,B,C", help="names of the latent's axes")
    group.add_argument("--dynamic", type=_names, metavar="A,B,C", help="names of the axes whose sizes may change")
    group.add_argument("--range", type=float, nargs=2, metavar=("MIN", "MAX"), help="range of an observation's values")
    group.add_argument("--latent-scale", type=float, help="other models take (z - shift) * scale")
    group.add_argument("--latent-shift", type=float, help="see --latent-scale")
    group.add_argument("--codebook", type=int, help="number of codes")


def _add_labels(verb: argparse.ArgumentParser, default: str) -> None:
    """Add the options that name and describe a bundle, and the one that replaces another."""
    verb.add_argument("--name", help=f"the bundle's name (default: {default})")
    verb.add_argument("--description", help="for the model card: what the model is and what it was trained on")
    verb.add_argument("--license", help="for the model card: the license of the weights")
    verb.add_argument("--version", metavar="1.2.0", help="the bundle's version, dotted integers")
    verb.add_argument("--force", action="store_true", help="replace an existing bundle")


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _export(options: argparse.Namespace) -> None:
    _check_export(options)
    if options.run is None:
        from .loading import load_model

        model: Any = load_model(options.model, options.weights)
        arguments = _model_arguments(options)
    else:
        model, arguments = options.run, {"class_names": _class_names(options)}
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
        version=options.version,
        force=options.force,
        progress=options.model is not None,
        **arguments,
    )
    print(exported.parity)
    for path, size in exported.sizes.items():
        print(one_line(f"{size / 1024:10,.0f} KiB  {path}"))
    print(one_line(f"{exported.path}: {exported.digest}"))


def _check_export(options: argparse.Namespace) -> None:
    """End as misuse where options are unknown, contradict each other or are missing."""
    from .exporting import require_folder
    from .graphs.graph import FORMATS
    from .graphs.variants import VARIANTS, Gate
    from .labels import Labels
    from .understand.checks import check_declaration

    for flag, names, known in (
        ("--formats", options.formats or (), FORMATS),
        ("--variants", options.variants, VARIANTS),
    ):
        unknown = [name for name in names if name not in known]
        if unknown:
            options.misuse(f"{flag}: expected one of {', '.join(known)}, got {unknown[0]!r}")
    try:
        require_folder(options.out)
        Gate(options.min_psnr, options.max_elbo_loss)
        Labels(options.name, options.description, options.license, options.version)
        check_declaration(Declaration(**{name: getattr(options, name) for name in _MODEL_ARGUMENTS}))
    except InputError as error:
        options.misuse(str(error))
    if (options.run is None) == (options.model is None):
        given = "neither" if options.run is None else "both"
        options.misuse(f"expected either a run's folder or --model, got {given}; give one")
    if options.run is not None:
        for name in (*_MODEL_ARGUMENTS, "weights", "example", "latents", "observations", "condition"):
            if getattr(options, name) not in (None, []):
                options.misuse(f"--{name.replace('_', '-')}: allowed only with --model, because a run states it itself")
    elif options.data is not None:
        options.misuse("--data: allowed only with a run; give --example")
    elif options.example is None and options.latents is None:
        options.misuse("--model: --example is missing, or --latents for a decoder alone")


def _model_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `export` for a model of the user."""
    from vae_runtime.arrays import read_npy

    arguments = {name: getattr(options, name) for name in _MODEL_ARGUMENTS if getattr(options, name) is not None}
    for name in ("example", "latents", "observations"):
        if getattr(options, name) is not None:
            arguments[name] = read_npy(getattr(options, name))
    return arguments | _conditions(options)


def _conditions(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `export` and `adopt` that give conditions."""
    from vae_runtime.arrays import read_npy

    conditions: dict[str, Any] = {}
    for text in options.condition:
        name, _, path = text.partition("=")
        if not path or not name or name in conditions:
            options.misuse(f"--condition: expected NAME=C.npy with each name once, got {text!r}")
        conditions[name] = read_npy(path)
    return {"conditions": conditions, "class_names": _class_names(options)}


def _class_names(options: argparse.Namespace) -> list[str] | None:
    return None if options.class_names is None else options.class_names.split(",")


def _add_adopt(verbs: Verbs) -> None:
    text = "make a bundle of an encoder and a decoder that are ONNX graphs already, without PyTorch"
    verb = add_verb(verbs, "adopt", _adopt, text)
    verb.add_argument(
        "source",
        nargs="+",
        metavar="PATH",
        help="ENCODER.onnx DECODER.onnx; or one folder: optimum's (vae_encoder, vae_decoder) or a model package",
    )
    verb.add_argument("--out", type=Path, required=True, metavar="BUNDLE", help="the bundle's folder")
    verb.add_argument(
        "--shape",
        type=integers("shape", 1, 2**31 - 1),
        metavar="A,B,C",
        help="sizes of one observation that the graph leaves open",
    )
    verb.add_argument(
        "--logits", action="store_true", help="the decoder's first output is before the sigmoid, or the softmax"
    )
    text = "a class or function that returns the model, to compare the graphs with it in PyTorch; this runs its code"
    verb.add_argument("--model", metavar="MODULE:NAME", help=text)
    verb.add_argument("--weights", type=Path, help="the model's weights, as for export")
    _add_conditions(verb)
    _add_meaning(verb, choices=("normal", "none", "sphere"), help="the prior of the latents")
    _add_labels(verb, "that of the folder or package")


def _adopt(options: argparse.Namespace) -> None:
    from .adopting import adopt

    if len(options.source) > 2:
        options.misuse(f"PATH: expected ENCODER.onnx DECODER.onnx or one folder, got {len(options.source)} paths")
    names = (
        "shape", "logits", "posterior", "likelihood", "prior", "scale", "axes", "latent_axes", "dynamic", "range",
        "latent_scale", "latent_shift", "codebook", "name", "description", "license", "version", "force",
    )  # fmt: skip
    source = options.source[0] if len(options.source) == 1 else options.source
    model: Any = None
    if options.model is not None:
        from .loading import load_model

        model = load_model(options.model, options.weights)
    elif options.weights is not None:
        options.misuse("--weights: allowed only with --model")
    arguments = {name: getattr(options, name) for name in names} | _conditions(options)
    adopted = adopt(source, options.out, model=model, **arguments)
    print(lines_of("\n".join(adopted.recognised)))
    checked = "; parity with the original framework was not checked" if model is None else ""
    print(one_line(f"{adopted.path}: {adopted.digest}{checked}"))


def _add_parity(verbs: Verbs) -> None:
    verb = add_pytorch_verb(
        verbs,
        "parity",
        _parity,
        "compare the graphs of a bundle with the run's PyTorch model and golden vectors; TorchScript and .pt2 files "
        "are code, and are skipped without --trust",
    )
    verb.add_argument("run", type=Path, help="the run's folder")
    verb.add_argument("bundle", type=Path, help="the bundle's folder")
    verb.add_argument("--data", help="where the run's data are now")
    text = "load TorchScript and .pt2 files, too, which runs code from the bundle with your rights"
    verb.add_argument("--trust", action="store_true", help=text)


def _parity(options: argparse.Namespace) -> int:
    from .parity.bundle import check_parity

    verification, report = check_parity(options.run, options.bundle, data=options.data, trust=options.trust)
    print(lines_of(f"{verification}\n{report}"))
    if verification.passed and report.passed:
        skipped = sum(check.passed is None for check in verification.checks)
        rest = f"; {counted(skipped, 'graph')} not run, since they are code (--trust)" if skipped else ""
        print(one_line(f"{options.bundle}: equal to {options.run}{rest}"))
        return 0
    print(f"error: {options.bundle}: not equal to {options.run}; export it again", file=sys.stderr)
    return 1


def _add_sign(verbs: Verbs) -> None:
    verb = add_verb(verbs, "sign", _sign, "sign a bundle, for `vae-runtime verify --key` and `load(key=)`")
    verb.add_argument("bundle", type=Path, help="the bundle's folder or .zip file")
    text = "a private key in PEM, such as `openssl ecparam -genkey -name prime256v1 -noout` makes"
    verb.add_argument("--key", type=Path, required=True, help=text)
    verb.add_argument("--force", action="store_true", help="replace a signature by another key")


def _sign(options: argparse.Namespace) -> None:
    from .signing import sign

    print(one_line(f"{sign(options.bundle, options.key, force=options.force)}: signed {options.bundle}"))


def _add_push(verbs: Verbs) -> None:
    verb = add_verb(verbs, "push", _push, "upload a bundle to the Hugging Face Hub as one commit, and print its URL")
    verb.add_argument("bundle", type=Path, help="the bundle's folder or .zip file")
    verb.add_argument("repository", metavar="ORG/NAME", help="the repository; it is made if there is none")
    verb.add_argument("--private", action="store_true", help="make a new repository private")
    verb.add_argument("--force", action="store_true", help="remove files of the repository that are no bundle's")


def _push(options: argparse.Namespace) -> None:
    from .pushing import push

    pushed = push(options.bundle, options.repository, private=options.private, force=options.force)
    print(one_line(f"{pushed.url}: {pushed.digest}"))


def _add_demo(verbs: Verbs) -> None:
    text = "train on real digits, export, prove parity, verify and sample, in about a minute"
    verb = add_pytorch_verb(verbs, "demo", _demo, text)
    verb.add_argument("--out", type=Path, default=Path("out/demo"), help="the folder to write (default out/demo)")


def _demo(options: argparse.Namespace) -> None:
    from .demo import demo

    demo(options.out)
