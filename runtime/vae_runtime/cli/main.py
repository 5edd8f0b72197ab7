"""The command `vae-runtime`."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from .._version import __version__
from ..errors import VaeError, one_line
from . import encoding, generating, inspecting, sampling
from .options import SEED, argument, condition, device, digest, file_name, integer, integers, number

__all__ = ["main", "run"]


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
            "--digest", type=argument(digest), help="refuse any bundle but the one of this digest, sha256:…"
        )
        return sub

    def on_device(sub: argparse.ArgumentParser, *, variant: bool = True) -> None:
        sub.add_argument(
            "--device",
            type=argument(device),
            default="cpu",
            help="cpu (default), cuda, cuda:N, auto, or a provider's name",
        )
        sub.add_argument(
            "--threads", type=integer("threads", 1, 1024), default=1, help="threads of one call (default 1)"
        )
        if variant:
            sub.add_argument("--variant", help="the variant to run (default: the first declared)")

    def in_batches(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--batch-size", type=integer("batch-size", 1, 2**31), help="how many to compute at once")

    def writes(sub: argparse.ArgumentParser, *suffixes: str) -> None:
        sub.add_argument(
            "--out", type=file_name(*suffixes), required=True, help=f"the file to write: {', '.join(suffixes)}"
        )

    def columns(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--columns", type=integer("columns", 1, 10**4), help="pictures in a row of the PNG")

    def starts(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--start", type=integer("start", 0, 2**64 - 1), help="index of the first, for the seed (default 0)"
        )

    def conditioned(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--condition",
            type=argument(condition),
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help="a class, a number, numbers joined by commas, or an .npy file; once for each condition",
        )

    command("info", inspecting._info, "say what a bundle is: shapes, variants, sizes, quality, digest")

    sub = command("verify", inspecting._verify, "check every file, then replay the golden vectors on this machine")
    on_device(sub, variant=False)

    sub = command("sample", sampling._sample, "draw from the prior and decode, to a PNG sheet or an .npy array")
    sub.add_argument("-n", type=integer("n", 1, 2**48), default=64, help="how many (default 64)")
    sub.add_argument("--seed", type=SEED, help="default: a fresh one, printed")
    starts(sub)
    sub.add_argument(
        "--temperature", type=number("temperature", 0, 1e6), default=1.0, help="scales the noise (default 1)"
    )
    sub.add_argument("--truncation", type=number("truncation", 0.01, 1e6), help="draw no noise beyond ± this")
    sub.add_argument(
        "--latent-shape",
        type=integers("latent-shape", 1, 2**31),
        metavar="SIZES",
        help="another shape of one latent where axes are dynamic, such as 4,16,16",
    )
    sub.add_argument("--observe", action="store_true", help="draw from the likelihood instead of giving its mean")
    sub.add_argument(
        "--latents",
        type=file_name(".npy", ".npz"),
        help="also write the latents: .npy, or .npz where there are several",
    )
    for add in (conditioned, on_device, in_batches, columns):
        add(sub)
    writes(sub, ".png", ".npy")

    sub = command(
        "encode",
        encoding._encode,
        "give the posterior of observations: .npz holds mean, std and logvar, .npy latents; of several latents .npz "
        "holds these as LATENT/mean, …, and the latents by their names",
    )
    sub.add_argument("x", type=file_name(".npy"), help="observations [n, ...]")
    sub.add_argument(
        "--seed",
        type=SEED,
        help="give a posterior sample instead of the mean; .npz then holds it by the latent's name",
    )
    starts(sub)
    for add in (conditioned, on_device, in_batches):
        add(sub)
    writes(sub, ".npz", ".npy")

    sub = command("decode", sampling._decode, "give the observations of latents, to a PNG sheet or an .npy array")
    sub.add_argument("z", type=file_name(".npy", ".npz"), help="latents [n, ...]; several by name, in an .npz file")
    for add in (conditioned, on_device, in_batches, columns):
        add(sub)
    writes(sub, ".png", ".npy")

    sub = command(
        "reconstruct", encoding._reconstruct, "encode and decode; a PNG shows each observation above its reconstruction"
    )
    sub.add_argument("x", type=file_name(".npy"), help="observations [n, ...]")
    sub.add_argument("--seed", type=SEED, help="go through a posterior sample instead of the mean")
    for add in (starts, conditioned, on_device, in_batches, columns):
        add(sub)
    writes(sub, ".png", ".npy")

    sub = command("interpolate", sampling._interpolate, "walk between the latents of two seeds or two observations")
    ends = sub.add_mutually_exclusive_group(required=True)
    ends.add_argument("--seeds", type=SEED, nargs=2, metavar=("A", "B"), help="between sample 0 of two seeds")
    ends.add_argument("--inputs", type=file_name(".npy"), help="between the first two observations of a file")
    sub.add_argument(
        "--steps", type=integer("steps", 2, 10**6), default=10, help="pictures, both ends included (default 10)"
    )
    sub.add_argument("--linear", action="store_true", help="go straight instead of along the sphere")
    for add in (conditioned, on_device):
        add(sub)
    writes(sub, ".png", ".npy")

    sub = command("traverse", sampling._traverse, "change one number of a latent at a time; a PNG has a row for each")
    ends = sub.add_mutually_exclusive_group(required=True)
    ends.add_argument("--seed", type=SEED, help="from sample 0 of a seed")
    ends.add_argument(
        "--inputs", type=file_name(".npy"), help="from the posterior mean of the first observation of a file"
    )
    sub.add_argument("--latent", help="which, where there are several (default: the first)")
    sub.add_argument(
        "--dimensions",
        type=integers("dimensions", 0, 2**31),
        metavar="NUMBERS",
        help="which numbers of the latent, such as 0,1,2 (default: all, of more than 16 the first 16)",
    )
    sub.add_argument(
        "--reach", type=number("reach", 0, 1e6), default=3.0, help="each goes from -reach to reach (default 3)"
    )
    sub.add_argument("--steps", type=integer("steps", 2, 10**4), default=9, help="in so many steps (default 9)")
    for add in (conditioned, on_device):
        add(sub)
    writes(sub, ".png", ".npy")

    sub = command(
        "score", encoding._score, "say how well the VAE explains observations: ELBO, log-likelihood, errors; in nats"
    )
    sub.add_argument("x", type=file_name(".npy"), help="observations [n, ...]")
    sub.add_argument(
        "-k", type=integer("k", 1, 10**6), help="importance samples of the log-likelihood (default: leave it out)"
    )
    sub.add_argument("--seed", type=SEED, help="default: a fresh one, printed")
    for add in (starts, conditioned, on_device, in_batches):
        add(sub)
    sub.add_argument(
        "--out", type=file_name(".npz", ".csv"), help="also write the scores of each observation: .npz, .csv"
    )

    sub = command(
        "pack", inspecting._pack, "write the least that a device needs: some graphs, as a folder or one .zip file"
    )
    sub.add_argument(
        "--only",
        type=argument(inspecting._only),
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

    sub = command(
        "bench", inspecting._bench, "time each variant beside a plain ONNX Runtime session of the bundle's first one"
    )
    sub.add_argument(
        "--device",
        type=argument(device),
        default="cpu",
        help="cpu (default), cuda, cuda:N, auto, or a provider's name",
    )
    sub.add_argument("--variant", default="all", help="the variant to time (default all)")
    sub.add_argument(
        "--batch", type=integers("batch", 1, 2**31), default=[1, 8, 64], metavar="NUMBERS",
        help="how many at once (default 1,8,64)",
    )  # fmt: skip
    sub.add_argument(
        "--threads", type=integers("threads", 1, 1024), default=[1], metavar="NUMBERS",
        help="threads of one call (default 1)",
    )  # fmt: skip
    sub.add_argument("--rounds", type=integer("rounds", 1, 10**6), default=9, help="how many (default 9)")
    sub.add_argument("--json", action="store_true", help="print the figures of every round as JSON")
    sub = command(
        "generate",
        generating._generate,
        "write many samples to a folder; the same command goes on after any interruption",
    )
    sub.add_argument(
        "-n", type=integer("n", 1, 2**48), help="how many; may grow in a later call (default: of a file all)"
    )
    sub.add_argument("--seed", type=SEED, help="sample i of the seed is the same in every call")
    instead = sub.add_mutually_exclusive_group()
    instead.add_argument("--reconstruct", metavar="IN.npy", help="write reconstructions of these observations instead")
    instead.add_argument("--encode", metavar="IN.npy", help="write the latents of these observations instead")
    later = sub.add_mutually_exclusive_group()
    later.add_argument("--finish", action="store_true", help="write the index of a folder whose parts are all done")
    later.add_argument("--verify", action="store_true", help="hash a finished folder, and make some files again")
    sub.add_argument(
        "--replay", type=integer("replay", 0, 2**48), metavar="FILES", help="how many --verify makes again (3)"
    )
    sub.add_argument("--workers", type=integer("workers", 1, 4096), help="processes (default: the cores it may use)")
    sub.add_argument(
        "--format", choices=("npy", "parquet", "safetensors"), default="npy", help="of the files (default npy)"
    )
    sub.add_argument(
        "--dtype", choices=("float32", "uint8"), default="float32", help="of the samples (default float32)"
    )
    sub.add_argument(
        "--temperature", type=number("temperature", 0, 1e6), default=1.0, help="scales the noise (default 1)"
    )
    sub.add_argument("--truncation", type=number("truncation", 0.01, 1e6), help="draw no noise beyond ± this")
    sub.add_argument("--observe", action="store_true", help="draw from the likelihood instead of giving its mean")
    conditioned(sub)
    sub.add_argument("--balanced", metavar="NAME", help="the classes of a condition in turn")
    sub.add_argument("--batch-size", type=integer("batch-size", 1, 2**20), help="how many to decode at once (64)")
    sub.add_argument("--shard-size", type=integer("shard-size", 1, 2**40), help="samples of a file (some 64 MB)")
    sub.add_argument(
        "--part", type=argument(generating._part), metavar="K/M", help="the K-th of M calls that share the work"
    )
    sub.add_argument(
        "--executor",
        choices=("local", "ray"),
        default="local",
        help="processes of this machine (default), or a cluster",
    )
    sub.add_argument(
        "--address", help="of a Ray cluster: auto, HOST:PORT, ray://HOST:PORT (default: RAY_ADDRESS, or a local one)"
    )
    sub.add_argument("--device", type=argument(device), default="cpu", help="cpu (default), cuda, cuda:N, auto")
    sub.add_argument("--variant", help="the variant to run (default: the first declared)")
    sub.add_argument("--json", action="store_true", help="say what is done as JSON, a line a minute and one at the end")
    sub.add_argument("--out", required=True, help="the folder to write, or a URL such as s3://bucket/prefix")

    return parser


if __name__ == "__main__":
    sys.exit(main())
