"""The command `vae-runtime`."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .._version import __version__
from ..errors import InputError, VaeError, one_line, require_number

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..manifest import Condition, Latent, Sizes
    from ..score import Scores
    from ..vae import VAE

    Array = NDArray[np.float32]

__all__ = ["argument", "main", "run"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status: 0 success, 1 failed, 2 misuse, 130 interrupted."""
    return run(_parser(), argv)


def run(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """Parse, call the chosen command, and turn what goes wrong into one `error:` line and an exit status."""
    _open_closed()
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A bundle's words and a file's name may be more than the terminal's encoding holds.
        sys.stdout.reconfigure(errors="backslashreplace")
    options = parser.parse_args(argv)
    try:
        status: int = options.command(options) or 0
        # Unlike sys.stdout.flush(), content with a stdout that is closed.
        print(end="", flush=True)
        return status
    except VaeError as error:
        # Some errors list several problems, a line each.
        print("error: " + "\n".join(map(one_line, str(error).splitlines())), file=sys.stderr)
        return 1
    except MemoryError as error:
        print(f"error: out of memory: {error}; take fewer at a time", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of the output is gone; keep Python from complaining when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {one_line(f'{place}{error.strerror or error}')}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _open_closed() -> None:
    """Have standard input, output and error lead nowhere where the caller has closed them.

    The next file to be opened would take the number, and what ONNX Runtime says on standard error would go into it.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        # For worker processes, too.
        os.set_inheritable(number, True)
    os.close(number)
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def argument(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """A type for argparse: its errors are misuse, with the reader's own words."""

    def parse(text: str) -> Any:
        try:
            return read(text)
        except (InputError, ValueError) as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def _integer(name: str, low: int, high: int) -> Callable[[str], Any]:
    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise InputError(f"{name}: an integer is expected, got {text!r}") from None
        if not low <= value <= high:
            raise InputError(f"{name}: {low} … {high} is expected, got {value}")
        return value

    return argument(read)


def _device(text: str) -> str:
    from ..devices import parse_device

    return parse_device(text)


def _digest(text: str) -> str:
    from ..bundle import parse_digest

    return parse_digest(text)


def _number(name: str, low: float, high: float) -> Callable[[str], Any]:
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise InputError(f"{name}: a number is expected, got {text!r}") from None
        return require_number(name, value, low, high)

    return argument(read)


def _integers(name: str, low: int, high: int) -> Callable[[str], Any]:
    one = _integer(name, low, high)
    return lambda text: [one(part) for part in text.split(",")]


def _condition(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals or not value:
        raise InputError(f"condition: NAME=VALUE is expected, got {text!r}")
    return name, value


def _path(*suffixes: str) -> Callable[[str], Any]:
    def read(text: str) -> Path:
        path = Path(text)
        if path.suffix not in suffixes:
            raise InputError(f"{text}: a file name ending in {' or '.join(suffixes)} is expected")
        return path

    return argument(read)


_SEED = _integer("seed", -(2**63), 2**64 - 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vae-runtime", description="Sample, encode and decode exported Variational Autoencoders."
    )
    parser.add_argument("--version", action="version", version=f"vae-runtime {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, function: Callable[[argparse.Namespace], int | None], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=function, misuse=sub.error, defaults=sub.get_default)
        sub.add_argument("bundle", help="the bundle's folder or .zip file")
        sub.add_argument(
            "--digest", type=argument(_digest), help="refuse any bundle but the one of this digest, sha256:…"
        )
        return sub

    def on_device(sub: argparse.ArgumentParser, *, variant: bool = True) -> None:
        sub.add_argument(
            "--device",
            type=argument(_device),
            default="cpu",
            help="cpu (default), cuda, cuda:N, auto, or a provider's name",
        )
        sub.add_argument(
            "--threads", type=_integer("threads", 1, 1024), default=1, help="threads of one call (default 1)"
        )
        if variant:
            sub.add_argument("--variant", help="the variant to run (default: the first declared)")

    def in_batches(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--batch-size", type=_integer("batch-size", 1, 2**31), help="how many to compute at once")

    def writes(sub: argparse.ArgumentParser, *suffixes: str) -> None:
        sub.add_argument(
            "--out", type=_path(*suffixes), required=True, help=f"the file to write: {', '.join(suffixes)}"
        )

    def columns(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--columns", type=_integer("columns", 1, 10**4), help="pictures in a row of the PNG")

    def starts(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--start", type=_integer("start", 0, 2**64 - 1), help="index of the first, for the seed (default 0)"
        )

    def conditioned(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--condition",
            type=argument(_condition),
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help="a class, a number, numbers joined by commas, or an .npy file; once for each condition",
        )

    command("info", _info, "say what a bundle is: shapes, variants, sizes, quality, digest")

    sub = command("verify", _verify, "check every file, then replay the golden vectors on this machine")
    on_device(sub, variant=False)

    sub = command("sample", _sample, "draw from the prior and decode, to a PNG sheet or an .npy array")
    sub.add_argument("-n", type=_integer("n", 1, 2**48), default=64, help="how many (default 64)")
    sub.add_argument("--seed", type=_SEED, help="default: a fresh one, printed")
    starts(sub)
    sub.add_argument(
        "--temperature", type=_number("temperature", 0, 1e6), default=1.0, help="scales the noise (default 1)"
    )
    sub.add_argument("--truncation", type=_number("truncation", 0.01, 1e6), help="draw no noise beyond ± this")
    sub.add_argument(
        "--latent-shape",
        type=_integers("latent-shape", 1, 2**31),
        metavar="SIZES",
        help="another shape of one latent where axes are dynamic, such as 4,16,16",
    )
    sub.add_argument("--observe", action="store_true", help="draw from the likelihood instead of giving its mean")
    sub.add_argument(
        "--latents", type=_path(".npy", ".npz"), help="also write the latents: .npy, or .npz where there are several"
    )
    for add in (conditioned, on_device, in_batches, columns):
        add(sub)
    writes(sub, ".png", ".npy")

    sub = command(
        "encode",
        _encode,
        "give the posterior of observations: .npz holds mean, std and logvar, .npy latents; of several latents .npz "
        "holds these as LATENT/mean, …, and the latents by their names",
    )
    sub.add_argument("x", type=_path(".npy"), help="observations [n, ...]")
    sub.add_argument(
        "--seed",
        type=_SEED,
        help="give a posterior sample instead of the mean; .npz then holds it by the latent's name",
    )
    starts(sub)
    for add in (conditioned, on_device, in_batches):
        add(sub)
    writes(sub, ".npz", ".npy")

    sub = command("decode", _decode, "give the observations of latents, to a PNG sheet or an .npy array")
    sub.add_argument("z", type=_path(".npy", ".npz"), help="latents [n, ...]; several by name, in an .npz file")
    for add in (conditioned, on_device, in_batches, columns):
        add(sub)
    writes(sub, ".png", ".npy")

    sub = command(
        "reconstruct", _reconstruct, "encode and decode; a PNG shows each observation above its reconstruction"
    )
    sub.add_argument("x", type=_path(".npy"), help="observations [n, ...]")
    sub.add_argument("--seed", type=_SEED, help="go through a posterior sample instead of the mean")
    for add in (starts, conditioned, on_device, in_batches, columns):
        add(sub)
    writes(sub, ".png", ".npy")

    sub = command("interpolate", _interpolate, "walk between the latents of two seeds or two observations")
    ends = sub.add_mutually_exclusive_group(required=True)
    ends.add_argument("--seeds", type=_SEED, nargs=2, metavar=("A", "B"), help="between sample 0 of two seeds")
    ends.add_argument("--inputs", type=_path(".npy"), help="between the first two observations of a file")
    sub.add_argument(
        "--steps", type=_integer("steps", 2, 10**6), default=10, help="pictures, both ends included (default 10)"
    )
    sub.add_argument("--linear", action="store_true", help="go straight instead of along the sphere")
    for add in (conditioned, on_device):
        add(sub)
    writes(sub, ".png", ".npy")

    sub = command("traverse", _traverse, "change one number of a latent at a time; a PNG has a row for each")
    ends = sub.add_mutually_exclusive_group(required=True)
    ends.add_argument("--seed", type=_SEED, help="from sample 0 of a seed")
    ends.add_argument("--inputs", type=_path(".npy"), help="from the posterior mean of the first observation of a file")
    sub.add_argument("--latent", help="which, where there are several (default: the first)")
    sub.add_argument(
        "--dimensions",
        type=_integers("dimensions", 0, 2**31),
        metavar="NUMBERS",
        help="which numbers of the latent, such as 0,1,2 (default: all, of more than 16 the first 16)",
    )
    sub.add_argument(
        "--reach", type=_number("reach", 0, 1e6), default=3.0, help="each goes from -reach to reach (default 3)"
    )
    sub.add_argument("--steps", type=_integer("steps", 2, 10**4), default=9, help="in so many steps (default 9)")
    for add in (conditioned, on_device):
        add(sub)
    writes(sub, ".png", ".npy")

    sub = command("score", _score, "say how well the VAE explains observations: ELBO, log-likelihood, errors; in nats")
    sub.add_argument("x", type=_path(".npy"), help="observations [n, ...]")
    sub.add_argument(
        "-k", type=_integer("k", 1, 10**6), help="importance samples of the log-likelihood (default: leave it out)"
    )
    sub.add_argument("--seed", type=_SEED, help="default: a fresh one, printed")
    for add in (starts, conditioned, on_device, in_batches):
        add(sub)
    sub.add_argument("--out", type=_path(".npz", ".csv"), help="also write the scores of each observation: .npz, .csv")

    sub = command("pack", _pack, "write the least that a device needs: some graphs, as a folder or one .zip file")
    sub.add_argument(
        "--only",
        type=argument(_only),
        action="append",
        default=[],
        metavar="GRAPHS",
        help="encoder, decoder or one variant such as decoder/int8; several joined by commas or with more --only "
        "(default: all that ONNX Runtime runs)",
    )
    sub.add_argument(
        "--operators",
        action="store_true",
        help="also write required_operators.config, for a build of ONNX Runtime with no other operators",
    )
    sub.add_argument("--force", action="store_true", help="replace a bundle that is there")
    sub.add_argument("--out", type=Path, required=True, help="the folder to write, or the file where it ends in .zip")

    sub = command("bench", _bench, "time each variant beside a plain ONNX Runtime session of the bundle's first one")
    sub.add_argument(
        "--device",
        type=argument(_device),
        default="cpu",
        help="cpu (default), cuda, cuda:N, auto, or a provider's name",
    )
    sub.add_argument("--variant", default="all", help="the variant to time (default all)")
    sub.add_argument(
        "--batch", type=_integers("batch", 1, 2**31), default=[1, 8, 64], metavar="NUMBERS",
        help="how many at once (default 1,8,64)",
    )  # fmt: skip
    sub.add_argument(
        "--threads", type=_integers("threads", 1, 1024), default=[1], metavar="NUMBERS",
        help="threads of one call (default 1)",
    )  # fmt: skip
    sub.add_argument("--rounds", type=_integer("rounds", 1, 10**6), default=9, help="how many (default 9)")
    sub.add_argument("--json", action="store_true", help="print the figures of every round as JSON")
    sub = command(
        "generate", _generate, "write many samples to a folder; the same command goes on after any interruption"
    )
    sub.add_argument(
        "-n", type=_integer("n", 1, 2**48), help="how many; may grow in a later call (default: of a file all)"
    )
    sub.add_argument("--seed", type=_SEED, help="sample i of the seed is the same in every call")
    instead = sub.add_mutually_exclusive_group()
    instead.add_argument("--reconstruct", metavar="IN.npy", help="write reconstructions of these observations instead")
    instead.add_argument("--encode", metavar="IN.npy", help="write the latents of these observations instead")
    later = sub.add_mutually_exclusive_group()
    later.add_argument("--finish", action="store_true", help="write the index of a folder whose parts are all done")
    later.add_argument("--verify", action="store_true", help="hash a finished folder, and make some files again")
    sub.add_argument(
        "--replay", type=_integer("replay", 0, 2**48), metavar="FILES", help="how many --verify makes again (3)"
    )
    sub.add_argument("--workers", type=_integer("workers", 1, 4096), help="processes (default: the cores it may use)")
    sub.add_argument(
        "--format", choices=("npy", "parquet", "safetensors"), default="npy", help="of the files (default npy)"
    )
    sub.add_argument(
        "--dtype", choices=("float32", "uint8"), default="float32", help="of the samples (default float32)"
    )
    sub.add_argument(
        "--temperature", type=_number("temperature", 0, 1e6), default=1.0, help="scales the noise (default 1)"
    )
    sub.add_argument("--truncation", type=_number("truncation", 0.01, 1e6), help="draw no noise beyond ± this")
    sub.add_argument("--observe", action="store_true", help="draw from the likelihood instead of giving its mean")
    conditioned(sub)
    sub.add_argument("--balanced", metavar="NAME", help="the classes of a condition in turn")
    sub.add_argument("--batch-size", type=_integer("batch-size", 1, 2**20), help="how many to decode at once (64)")
    sub.add_argument("--shard-size", type=_integer("shard-size", 1, 2**40), help="samples of a file (some 64 MB)")
    sub.add_argument("--part", type=argument(_part), metavar="K/M", help="the K-th of M calls that share the work")
    sub.add_argument(
        "--executor",
        choices=("local", "ray"),
        default="local",
        help="processes of this machine (default), or a cluster",
    )
    sub.add_argument(
        "--address", help="of a Ray cluster: auto, HOST:PORT, ray://HOST:PORT (default: RAY_ADDRESS, or a local one)"
    )
    sub.add_argument("--device", type=argument(_device), default="cpu", help="cpu (default), cuda, cuda:N, auto")
    sub.add_argument("--variant", help="the variant to run (default: the first declared)")
    sub.add_argument("--json", action="store_true", help="say what is done as JSON, a line a minute and one at the end")
    sub.add_argument("--out", required=True, help="the folder to write, or a URL such as s3://bucket/prefix")

    return parser


def _load(options: argparse.Namespace) -> VAE:
    from ..vae import load

    if getattr(options, "out", None) is not None and options.out.suffix == ".png":
        from ..image import require_pillow

        require_pillow()
    return load(
        options.bundle,
        device=options.device,
        threads=options.threads,
        variant=options.variant,
        digest=options.digest,
    )


def _info(options: argparse.Namespace) -> None:
    from ..bundle import open_bundle

    bundle = open_bundle(options.bundle, options.digest)
    manifest = bundle.manifest
    observation, likelihood = manifest.observation, manifest.likelihood
    within = f", values {observation.range[0]:g} … {observation.range[1]:g}" if observation.range else ""
    raw = observation.normalisation
    scaled = f", x = (raw - {raw.offset:g}) / {raw.divisor:g}" if raw else ""
    dims = _dims(observation.axes, observation.shape, observation.dynamic)
    scale = f", scale {likelihood.scale:g}" if likelihood.scale else ""
    rows = [
        ("name", manifest.name),
        ("description", manifest.description),
        ("license", manifest.license or "not stated"),
        ("observation", f"{observation.name} {observation.dtype} {dims}{within}{scaled}"),
        *(("condition", _described_condition(condition)) for condition in manifest.conditions),
        *(("latent", _described_latent(latent)) for latent in manifest.latents),
        ("likelihood", likelihood.kind + scale + (f": {likelihood.reason}" if likelihood.reason else "")),
        ("noise", manifest.noise),
        ("packed from", manifest.packed_from),
        ("format", manifest.format_version),
        ("digest", bundle.digest),
    ]
    sizes = {
        variant.path: sum(map(len, [bundle.read(variant.path), *bundle.data(variant).values()])) / 1024
        for variant in manifest.variants
    }
    for key, value in rows:
        if value:
            print(f"{key:28}{one_line(value)}")
    if manifest.metrics:
        surrogate = ", figures of a surrogate likelihood" if manifest.metrics.get("surrogate") is True else ""
        print(f"\nmeasured before export{surrogate}")
    for key, value in manifest.metrics.items():
        print(
            f"  {one_line(key.replace('_', ' ')):26}{one_line(f'{value:.6g}' if isinstance(value, float) else value)}"
        )
    print()
    print(f"{'graph':28}{'KiB':>8}  {'precision':10} largest difference from PyTorch")
    for variant in manifest.variants:
        errors = ", ".join(f"{name} {error:.1e}" for name, error in variant.error.items())
        print(
            f"{variant.component + '/' + variant.name:28}{sizes[variant.path]:8,.0f}  {variant.precision:10} {errors}"
        )
    measured = [(variant, variant.quality) for variant in manifest.variants if variant.quality]
    if measured:
        print(f"\n{'variant, beside fp32':28}{'KiB':>8}  {'PSNR':>10}  {'ELBO':>12}  how it was made")
    for variant, quality in measured:
        psnr = "same" if quality.psnr is None else f"{quality.psnr:.1f} dB"
        elbo = "-" if quality.elbo_change is None else f"{quality.elbo_change:+.3f} nats"
        said = ", ".join([quality.method, f"on {quality.measured}", *([quality.reason] if quality.reason else [])])
        print(
            f"{variant.component + '/' + variant.name:28}{sizes[variant.path]:8,.0f}  {psnr:>10}  {elbo:>12}  "
            f"{one_line(said)}"
        )
    for refusal in manifest.refused:
        print(f"{refusal.component + '/' + refusal.variant:28}left out: {one_line(refusal.reason)}")


def _dims(axes: Sequence[str], shape: Sequence[int], dynamic: Mapping[str, Sizes]) -> str:
    named = axes or [""] * len(shape)
    sizes = [
        f"{axis} {size}".strip() + (f" ({dynamic[axis]})" if axis in dynamic else "")
        for axis, size in zip(named, shape, strict=True)
    ]
    return f"[{', '.join(sizes)}]"


def _described_condition(condition: Condition) -> str:
    classes = f", classes {', '.join(condition.classes)}" if condition.classes else ""
    within = f", values {condition.range[0]:g} … {condition.range[1]:g}" if condition.range else ""
    what = f"{condition.name} {condition.dtype} {list(condition.shape)}{classes}{within}"
    return f"{what}, of {' and '.join(condition.components)}"


def _described_latent(latent: Latent) -> str:
    prior, posterior = latent.prior, latent.posterior
    priors = {
        "normal": "prior standard normal",
        "mixture": f"prior mixture of {prior.components} normals, {prior.covariance}",
        "sphere": "prior uniform on the sphere",
    }
    if posterior.kind == "normal":
        of = "posterior diagonal normal"
    elif posterior.kind == "codes":
        of = f"codes below {posterior.codebook}"
    else:
        what = "no posterior" if posterior.value else "noise of the decoder"
        of = what + (f" ({posterior.reason})" if posterior.reason else "")
    drawn = priors.get(prior.kind, "no prior" + (f" ({prior.reason})" if prior.reason else ""))
    plain = latent.scale in (1, 1.0) and latent.shift in (0, 0.0)
    scaled = "" if plain else f", other models take (z - {_numbers(latent.shift)}) · {_numbers(latent.scale)}"
    return f"{latent.name} {latent.dtype} {_dims(latent.axes, latent.shape, latent.dynamic)}, {drawn}, {of}{scaled}"


def _numbers(value: float | tuple[float, ...]) -> str:
    return f"({', '.join(f'{each:g}' for each in value)})" if isinstance(value, tuple) else f"{value:g}"


def _verify(options: argparse.Namespace) -> int:
    from ..verification import verify

    report = verify(options.bundle, device=options.device, threads=options.threads, digest=options.digest)
    print(report)
    if report.passed:
        skipped = sum(check.passed is None for check in report.checks)
        print(f"verified on {options.device}: {options.bundle}" + (f"; {skipped} graphs not run" if skipped else ""))
        return 0
    print(f"error: {options.bundle}: verification failed; copy or export the bundle again", file=sys.stderr)
    return 1


def _conditions(options: argparse.Namespace, vae: VAE, *, files: bool = False) -> dict[str, Any]:
    known = {condition.name: condition for condition in vae.conditions}
    found: dict[str, Any] = {}
    for name, text in options.condition:
        if name in found:
            options.misuse(f"argument --condition: {name} once is expected, got it twice")
        # An unknown name is refused by the VAE.
        plain = name not in known or (files and text.endswith(".npy"))
        found[name] = text if plain else _condition_value(known[name], text)
    return found


def _condition_value(condition: Condition, text: str) -> Any:
    import numpy as np

    names = text.split(",")
    if condition.classes and text in condition.classes:
        return text
    if condition.classes and set(names) <= set(condition.classes):
        return names
    if text.endswith(".npy"):
        return _read_npy(Path(text))
    try:
        numbers = np.array([int(each) if condition.dtype == "int64" else float(each) for each in names])
        values = numbers.astype(condition.dtype)
    except (ValueError, OverflowError):
        classes = f"a class ({', '.join(condition.classes)}), " if condition.classes else ""
        kind = "integers" if condition.dtype == "int64" else "numbers"
        raise InputError(
            f"--condition {condition.name}: {classes}{kind} joined by commas or an .npy file is expected, got {text!r}"
        ) from None
    return values.reshape(condition.shape) if values.size == math.prod(condition.shape) else values


def _require_seed(options: argparse.Namespace) -> int:
    """The start; misuse where there is no seed that it could count from."""
    if options.start is not None and options.seed is None:
        options.misuse("argument --start: only with --seed, whose samples it counts")
    return options.start or 0


def _require_png(options: argparse.Namespace) -> None:
    if options.columns is not None and options.out.suffix != ".png":
        options.misuse("argument --columns: only with --out *.png")


def _sample(options: argparse.Namespace) -> None:
    from ..noise import new_seed

    if options.latents and os.path.realpath(options.latents) == os.path.realpath(options.out):
        options.misuse("argument --latents: another file than that of --out is expected")
    start = _require_seed(options)
    _require_png(options)
    vae = _load(options)
    if options.latents:
        _require_latents(options.latents, vae)
    seed = new_seed() if options.seed is None else options.seed
    if options.out.suffix == ".png":
        _require_picture(vae)
    drawn = {
        "seed": seed,
        "start": start,
        "temperature": options.temperature,
        "truncation": options.truncation,
        "latent_shape": options.latent_shape,
    }
    conditions = _conditions(options, vae)
    x = vae.sample(options.n, conditions=conditions, observe=options.observe, batch_size=options.batch_size, **drawn)
    if options.latents:
        _write_latents(options.latents, vae.prior(options.n, **drawn))
    _write(options.out, x, vae, options.columns)
    print(f"{options.out}: {options.n} samples, seed {seed}, start {start}, device {vae.device}")


def _encode(options: argparse.Namespace) -> None:
    from ..posterior import Posterior, Posteriors

    start = _require_seed(options)
    vae = _load(options)
    several = len(vae.latents) > 1
    if several and options.out.suffix != ".npz":
        raise InputError(f"{options.out}: a file name ending in .npz is expected, since there are several latents")
    q = vae.encode(
        _read_npy(options.x),
        conditions=_conditions(options, vae),
        seed=options.seed,
        start=start,
        batch_size=options.batch_size,
    )
    parts = dict(q) if isinstance(q, Posteriors) else {vae.latents[0].name: q}
    z = q.mode() if options.seed is None else q.sample(seed=options.seed, start=start)
    if options.out.suffix == ".npz":
        arrays = {}
        for name, part in parts.items():
            fields = ("mean", "std", "logvar") if isinstance(part, Posterior) else ("value",)
            arrays.update({(f"{name}/" if several else "") + field: getattr(part, field) for field in fields})
        if several or options.seed is not None:
            arrays.update(z if several else {vae.latents[0].name: z})
        _write_npz(options.out, arrays)
    else:
        _write_npy(options.out, z)
    count = len(next(iter(parts.values())).mode())
    if all(isinstance(part, Posterior) for part in parts.values()):
        print(f"{options.out}: posteriors of {count} observations; mean KL {q.kl().mean():.4g} nats")
    else:
        print(f"{options.out}: latents of {count} observations")


def _decode(options: argparse.Namespace) -> None:
    _require_png(options)
    vae = _load(options)
    z = _read_latents(options.z, vae)
    x = vae.decode(z, conditions=_conditions(options, vae), batch_size=options.batch_size)
    _write(options.out, x, vae, options.columns)
    print(f"{options.out}: {len(x)} observations")


def _reconstruct(options: argparse.Namespace) -> None:
    start = _require_seed(options)
    _require_png(options)
    vae = _load(options)
    x = _read_npy(options.x)
    r = vae.reconstruct(
        x, conditions=_conditions(options, vae), seed=options.seed, start=start, batch_size=options.batch_size
    )
    alike = r.shape == x.shape
    if options.out.suffix == ".png" and alike:
        from ..files import write_atomic
        from ..image import pairs, png

        within = vae.manifest.observation.range
        write_atomic(options.out, png(pairs(x, r, columns=options.columns or 10, value_range=within)))
    else:
        _write(options.out, r, vae, options.columns)
    error = f"; mean squared error {float(((r - x) ** 2).mean()):.4g}" if alike else ""
    print(f"{options.out}: {len(x)} reconstructions{error}")


def _interpolate(options: argparse.Namespace) -> None:
    from ..vae import interpolate

    vae = _load(options)
    conditions = _conditions(options, vae)
    if options.seeds:
        a, b = (_first(vae.prior(1, seed=seed)) for seed in options.seeds)
    else:
        x = _read_npy(options.inputs)
        if len(x) < 2:
            raise InputError(f"{options.inputs}: two observations are expected, got an array {list(x.shape)}")
        z = vae.encode(x[:2], conditions=conditions).mode()
        a, b = _first(z), _first(z, 1)
    spherical = not options.linear
    way = {name: interpolate(a[name], b[name], options.steps, spherical=spherical) for name in a}
    frames = vae.decode(way if len(vae.latents) > 1 else way[""], conditions=conditions)
    _write(options.out, frames, vae, options.steps)
    print(f"{options.out}: {options.steps} steps")


def _first(z: Any, row: int = 0) -> dict[str, Any]:
    """One row of latents, by name; the only latent's name is left empty."""
    return {name: each[row] for name, each in (z if isinstance(z, dict) else {"": z}).items()}


def _traverse(options: argparse.Namespace) -> None:
    import numpy as np

    from ..vae import traverse

    vae = _load(options)
    names = [latent.name for latent in vae.latents]
    if options.latent is not None and options.latent not in names:
        raise InputError(f"--latent: one of {', '.join(names)} is expected, got {options.latent!r}")
    conditions = _conditions(options, vae)
    if options.inputs is None:
        base = _first(vae.prior(1, seed=options.seed))
    else:
        x = _read_npy(options.inputs)
        if x.ndim < 1 or not len(x):
            raise InputError(f"{options.inputs}: an observation is expected, got an array {list(x.shape)}")
        base = _first(vae.encode(x[:1], conditions=conditions).mode())
    several = len(names) > 1
    changed = (options.latent or names[0]) if several else ""
    if changed not in base:
        raise InputError(f"--latent: a latent that observations have is expected, {changed} is noise; choose another")
    dimensions = options.dimensions or range(min(16, base[changed].size))
    values = np.linspace(-options.reach, options.reach, options.steps, dtype=np.float32)
    z = {name: np.repeat(each[None], len(dimensions) * options.steps, axis=0) for name, each in base.items()}
    z[changed] = np.concatenate([traverse(base[changed], dimension, values) for dimension in dimensions])
    frames = vae.decode(z if several else z[""], conditions=conditions)
    if options.out.suffix == ".npy":
        frames = frames.reshape(len(dimensions), options.steps, *frames.shape[1:])
    _write(options.out, frames, vae, options.steps)
    print(f"{options.out}: {len(dimensions)} dimensions, {options.steps} steps from {-options.reach:g}")


def _only(text: str) -> str:
    from ..packing import parse_only

    parse_only([text])
    return text


def _pack(options: argparse.Namespace) -> None:
    from ..bundle import open_bundle
    from ..packing import pack

    digest = pack(
        options.bundle,
        options.out,
        only=options.only,
        operators=options.operators,
        force=options.force,
        digest=options.digest,
    )
    packed = open_bundle(options.out, digest)
    size = sum(len(packed.read(path)) for path in packed.sums) / 1024
    graphs = ", ".join(f"{variant.component}/{variant.name}" for variant in packed.manifest.variants)
    print(f"{options.out}: {graphs}; {size:,.0f} KiB, {digest}")


def _generate(options: argparse.Namespace) -> int | None:
    import json
    import time

    from ..generation.store import open_store

    if options.out.startswith("memory:"):
        options.misuse("argument --out: a place that outlives this command is expected, got one in its own memory")
    if options.replay is not None and not options.verify:
        options.misuse("argument --replay: only with --verify")
    if options.finish or options.verify:
        # What the samples are is said by the folder.
        given = [name for name in _OF_THE_JOB if getattr(options, name) != options.defaults(name)]
        if options.finish:
            given += [name for name in _FILES_OF_THE_JOB if getattr(options, name) != options.defaults(name)]
        elif any(not text.endswith(".npy") for _, text in options.condition):
            given.append("condition")
        if given:
            name = "-n" if given[0] == "n" else f"--{given[0].replace('_', '-')}"
            options.misuse(f"argument {name}: not with --finish and --verify: the folder says it")
        place = str(open_store(options.out))
        if options.verify:
            return _verify_samples(options, place)
        from ..bundle import open_bundle
        from ..generation.run import finish_samples

        open_bundle(options.bundle, options.digest)
        count = len(finish_samples(options.out, options.bundle))
        answer = {"out": place, "finished": True, "samples": count}
        print(json.dumps(answer) if options.json else f"{place}: {count} samples")
        return None
    if options.seed is None or (options.n is None and options.reconstruct is None and options.encode is None):
        without = [name for name, given in (("-n", options.n is not None or options.reconstruct or options.encode),
                                            ("--seed", options.seed is not None)) if not given]  # fmt: skip
        options.misuse(f"the following arguments are required: {', '.join(without)}")
    from ..generation.run import generate
    from ..vae import load

    place = str(open_store(options.out))
    vae = load(options.bundle, device=options.device, variant=options.variant, digest=options.digest)
    conditions = _conditions(options, vae, files=True)
    if options.executor == "ray":
        # Ray tells of each process that dies, among what this command prints.
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")
    began, progress, timings = time.monotonic(), _Progress(options.json), dict[str, float]()
    try:
        with _terminated_as_interrupted():
            samples = generate(
                options.bundle, options.out, options.n, seed=options.seed, reconstruct=options.reconstruct,
                encode=options.encode, workers=options.workers, device=options.device, variant=options.variant,
                format=options.format, dtype=options.dtype, observe=options.observe, temperature=options.temperature,
                truncation=options.truncation, conditions=conditions, balanced=options.balanced,
                batch_size=options.batch_size, shard_size=options.shard_size, part=options.part,
                executor=options.executor, address=options.address, progress=progress, timings=timings,
                warn=lambda text: print(f"warning: {one_line(text)}", file=sys.stderr),
            )  # fmt: skip
    except KeyboardInterrupt:
        done, n = progress.last
        what = f"{done} of {n} samples are whole" if n else "what is whole stays"
        print(f"{place}: {what}; run the same command again to go on", file=sys.stderr)
        raise
    whole, done = samples is not None, progress.last[0]
    if options.json:
        answer = {"out": place, "finished": whole, "samples": done, "seconds": round(time.monotonic() - began, 3)}
        print(json.dumps({**answer, "timings": {phase: round(spent, 3) for phase, spent in timings.items()}}))
    else:
        rest = "" if whole else "; other parts are not done, the last to end writes the index"
        print(f"{place}: {done} samples{rest}")
    return None


# What --finish and --verify take from the folder; the files --verify needs again.
_OF_THE_JOB = ("n", "seed", "part", "format", "dtype", "temperature", "truncation", "observe", "balanced", "batch_size",
               "shard_size")  # fmt: skip
_FILES_OF_THE_JOB = ("reconstruct", "encode", "condition")


class _Progress:
    """Says how far it is: on a terminal in a line that is written over, elsewhere in one each minute."""

    def __init__(self, as_json: bool) -> None:
        import time

        self._now = time.monotonic
        self._json = as_json
        self._terminal = sys.stderr.isatty() and not as_json
        self._began = self._said = self._now()
        self.last = (0, 0)

    def __call__(self, done: int, n: int) -> None:
        import json
        import time

        now, self.last = self._now(), (done, n)
        ended = done == n and not self._json
        if now - self._said < (0.2 if self._terminal else 60) and not ended:
            return
        self._said = now
        rate = done / max(now - self._began, 1e-9)
        if self._json:
            print(json.dumps({"samples": done, "of": n, "per_second": rate}), flush=True)
            return
        left = time.strftime("%H:%M:%S", time.gmtime((n - done) / rate)) if rate else "unknown"
        line = f"{done} of {n} samples, {rate:.0f} a second, {left} left"
        text, end = (f"\r{line:<70}", "" if done < n else "\n") if self._terminal else (line, "\n")
        print(text, end=end, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """End at SIGTERM, which schedulers send first, as at Ctrl-C."""
    import signal
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _verify_samples(options: argparse.Namespace, place: str) -> int:
    from ..bundle import open_bundle
    from ..generation.shard import job_of
    from ..generation.store import open_store
    from ..generation.verification import verify_samples

    bundle = open_bundle(options.bundle, options.digest)
    files = {name: text for name, text in options.condition if text.endswith(".npy")}
    for verb in ("reconstruct", "encode"):
        path = getattr(options, verb)
        if path is not None:
            files[bundle.manifest.observation.name] = path
            found = job_of(open_store(options.out)).verb
            if found != verb:
                raise InputError(f"{place}: its samples were made by `{found}`, not by `{verb}`: leave out --{verb}")
    shards = 3 if options.replay is None else options.replay
    report = verify_samples(
        options.out, options.bundle, shards=shards, device=options.device, files=files, progress=_Progress(options.json)
    )
    if options.json:
        import json

        checks = [{"what": check.what, "passed": check.passed, "detail": check.detail} for check in report.checks]
        print(json.dumps({"out": place, "passed": report.passed, "checks": checks}))
    else:
        print(report)
    if report.passed:
        return 0
    print(
        f"error: {place}: verification failed; remove the files named, and run the same `generate` again",
        file=sys.stderr,
    )
    return 1


def _part(text: str) -> tuple[int, int]:
    number, slash, of = text.partition("/")
    try:
        part = int(number), int(of)
    except ValueError:
        part = (0, 0)
    if not slash or not 1 <= part[0] <= part[1]:
        raise InputError(f"part: K/M with K from 1 to M is expected, got {text!r}")
    return part


def _score(options: argparse.Namespace) -> None:
    from ..noise import new_seed

    start = _require_seed(options)
    vae = _load(options)
    seed = new_seed() if options.seed is None else options.seed
    terminal = sys.stderr.isatty()

    def progress(done: int, n: int) -> None:
        print(f"\r{done} of {n}", end="\n" if done == n else "", file=sys.stderr, flush=True)

    x = _read_npy(options.x)
    scores = vae.score(
        x,
        conditions=_conditions(options, vae),
        k=options.k,
        seed=seed,
        start=start,
        batch_size=options.batch_size,
        progress=progress if terminal else None,
    )
    columns = _score_columns(scores)
    count = len(x)
    if options.out is not None:
        _write_scores(options.out, scores, columns)
    samples = f", {options.k} importance samples" if options.k and "log_likelihood" in columns else ""
    print(f"{options.x}: {count} observations, seed {seed}, start {start}{samples}")
    for name, column in columns.items():
        error = column.std(ddof=min(1, count - 1)) / math.sqrt(count)
        unit = "per value" if name in ("mse", "mae") else "nats"
        print(f"  {name.replace('_', ' '):16}{column.mean():12.6g} ± {error:<10.2g}{unit}")
    if scores.reason:
        print(f"  no ELBO: {one_line(scores.reason)}")


def _bench(options: argparse.Namespace) -> None:
    from ..bench import bench

    found = bench(
        options.bundle,
        variants=None if options.variant == "all" else [options.variant],
        batches=options.batch,
        threads=options.threads,
        rounds=options.rounds,
        device=options.device,
        digest=options.digest,
    )
    if options.json:
        import json

        print(json.dumps(found.to_json(), indent=1))
    else:
        print(found)


def _score_columns(scores: Scores) -> dict[str, NDArray[np.float64]]:
    """Every score that is one number for each observation."""
    names = ("elbo", "reconstruction", "kl", "log_likelihood", "mse", "mae")
    return {name: getattr(scores, name) for name in names if getattr(scores, name) is not None}


def _write_scores(path: Path, scores: Scores, columns: Mapping[str, NDArray[np.float64]]) -> None:
    from ..files import write_atomic

    if path.suffix == ".csv":
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        lines = [",".join(columns), *(",".join(map(repr, row)) for row in rows)]
        write_atomic(path, "".join(f"{line}\n" for line in lines).encode())
        return
    arrays, terms = dict(columns), scores.kl_per_dimension
    if isinstance(terms, Mapping):
        arrays.update({f"{latent}/kl_per_dimension": each for latent, each in terms.items()})
    elif terms is not None:
        arrays["kl_per_dimension"] = terms
    _write_npz(path, arrays)


def _require_picture(vae: VAE) -> None:
    """Refuse a PNG of what is no picture before anything is computed."""
    import numpy as np

    from ..image import grid

    grid(np.zeros((1, *vae.manifest.outputs("decoder")[0].shape), np.float32))


def _write(path: Path, x: Array, vae: VAE, columns: int | None) -> None:
    if path.suffix == ".npy":
        _write_npy(path, x)
        return
    from ..files import write_atomic
    from ..image import grid, png

    write_atomic(path, png(grid(x, columns=columns, value_range=vae.manifest.observation.range)))


def _write_npy(path: Path, array: Array) -> None:
    import numpy as np

    from ..files import write_atomic

    def write(file: IO[bytes]) -> None:
        np.save(file, array, allow_pickle=False)

    write_atomic(path, write)


def _write_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    import zipfile

    import numpy as np

    from ..files import write_atomic

    # In memory first: of a file that fails, zipfile complains once more when it is collected.
    content = io.BytesIO()
    # Not numpy.savez, which keeps some names for its own arguments.
    with zipfile.ZipFile(content, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
    write_atomic(path, content.getvalue())


def _require_latents(path: Path, vae: VAE) -> None:
    wanted = ".npz" if len(vae.latents) > 1 else ".npy"
    if path.suffix != wanted:
        count = "several latents" if wanted == ".npz" else "one latent"
        raise InputError(f"{path}: a file name ending in {wanted} is expected, since there is {count}")


def _write_latents(path: Path, z: Any) -> None:
    if isinstance(z, dict):
        _write_npz(path, z)
    else:
        _write_npy(path, z)


def _read_latents(path: Path, vae: VAE) -> Any:
    """Latents as `decode` takes them: of an .npz file the arrays that are named like latents."""
    import numpy as np

    _require_latents(path, vae)
    if path.suffix == ".npy":
        return _read_npy(path)
    try:
        # Opened here: of a file that is no archive numpy would leave it open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {latent.name: archive[latent.name] for latent in vae.latents if latent.name in archive.files}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give an .npz file") from None
    except Exception as error:  # numpy, zipfile and zlib each raise their own
        raise InputError(f"{path}: an .npz file of numbers is expected: {error}; write it with numpy.savez") from None


def _read_npy(path: Path) -> Array:
    import numpy as np

    try:
        with path.open("rb") as file:
            array: Array = np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give an .npy file") from None
    except Exception as error:  # numpy's parser lets through what others raise
        raise InputError(f"{path}: an .npy file of numbers is expected: {error}; write it with numpy.save") from None
    return array


if __name__ == "__main__":
    sys.exit(main())
