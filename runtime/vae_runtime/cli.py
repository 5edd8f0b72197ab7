"""The command `vae-runtime`."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from . import __version__
from .errors import InputError, VaeError, one_line, require_number

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .vae import VAE

    Array = NDArray[np.float32]

__all__ = ["argument", "main", "run"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status: 0 success, 1 failed, 2 misuse, 130 interrupted."""
    return run(_parser(), argv)


def run(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """Parse, call the chosen command, and turn what goes wrong into one `error:` line and an exit status."""
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
    from .session import parse_device

    return parse_device(text)


def _digest(text: str) -> str:
    from .bundle import parse_digest

    return parse_digest(text)


def _temperature(text: str) -> float:
    from .vae import HOTTEST

    try:
        value = float(text)
    except ValueError:
        raise InputError(f"temperature: a number is expected, got {text!r}") from None
    return require_number("temperature", value, 0, HOTTEST)


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
        sub.set_defaults(command=function, misuse=sub.error)
        sub.add_argument("bundle", help="the bundle's folder")
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

    command("info", _info, "say what a bundle is: shapes, variants, sizes, quality, digest")

    sub = command("verify", _verify, "check every file, then replay the golden vectors on this machine")
    on_device(sub, variant=False)

    sub = command("sample", _sample, "draw from the prior and decode, to a PNG sheet or an .npy array")
    sub.add_argument("-n", type=_integer("n", 1, 2**48), default=64, help="how many (default 64)")
    sub.add_argument("--seed", type=_SEED, help="default: a fresh one, printed")
    sub.add_argument("--start", type=_integer("start", 0, 2**64 - 1), default=0, help="index of the first (default 0)")
    sub.add_argument("--temperature", type=argument(_temperature), default=1.0, help="scales the noise (default 1)")
    sub.add_argument("--observe", action="store_true", help="draw from the likelihood instead of giving its mean")
    sub.add_argument("--latents", type=_path(".npy"), help="also write the latents")
    for add in (on_device, in_batches, columns):
        add(sub)
    writes(sub, ".png", ".npy")

    sub = command(
        "encode", _encode, "give the posterior of observations: .npz holds mean, std and logvar, .npy latents"
    )
    sub.add_argument("x", type=_path(".npy"), help="observations, float32 [n, ...]")
    sub.add_argument("--seed", type=_SEED, help="with .npy: write a posterior sample instead of the mean")
    sub.add_argument("--start", type=_integer("start", 0, 2**64 - 1), default=0, help="index of the first (default 0)")
    on_device(sub)
    in_batches(sub)
    writes(sub, ".npz", ".npy")

    sub = command("decode", _decode, "give the observations of latents, to a PNG sheet or an .npy array")
    sub.add_argument("z", type=_path(".npy"), help="latents, float32 [n, ...]")
    for add in (on_device, in_batches, columns):
        add(sub)
    writes(sub, ".png", ".npy")

    sub = command(
        "reconstruct", _reconstruct, "encode and decode; a PNG shows each observation above its reconstruction"
    )
    sub.add_argument("x", type=_path(".npy"), help="observations, float32 [n, ...]")
    sub.add_argument("--seed", type=_SEED, help="go through a posterior sample instead of the mean")
    sub.add_argument("--start", type=_integer("start", 0, 2**64 - 1), default=0, help="index of the first (default 0)")
    for add in (on_device, in_batches, columns):
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
    on_device(sub)
    writes(sub, ".png", ".npy")
    return parser


def _load(options: argparse.Namespace) -> VAE:
    from .vae import load

    if getattr(options, "out", None) is not None and options.out.suffix == ".png":
        from .image import require_pillow

        require_pillow()
    return load(
        options.bundle,
        device=options.device,
        threads=options.threads,
        variant=options.variant,
        digest=options.digest,
    )


def _info(options: argparse.Namespace) -> None:
    from .bundle import open_bundle

    bundle = open_bundle(options.bundle, options.digest)
    manifest = bundle.manifest
    observation, latent, likelihood = manifest.observation, manifest.latent, manifest.likelihood
    within = f", values {observation.range[0]:g} … {observation.range[1]:g}" if observation.range else ""
    raw = observation.normalisation
    scaled = f", x = (raw - {raw.offset:g}) / {raw.divisor:g}" if raw else ""
    rows = [
        ("name", manifest.name),
        ("description", manifest.description),
        ("licence", manifest.licence or "not stated"),
        ("observation", f"{observation.name} float32 {_dims(observation.axes, observation.shape)}{within}{scaled}"),
        ("latent", f"{latent.name} float32 {list(latent.shape)}, prior standard normal, posterior diagonal normal"),
        ("likelihood", likelihood.kind + (f", scale {likelihood.scale:g}" if likelihood.scale else "")),
        ("noise", manifest.noise),
        ("format", manifest.format_version),
        ("digest", bundle.digest),
    ]
    sizes = {variant.path: len(bundle.read(variant.path)) / 1024 for variant in manifest.variants}
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


def _dims(axes: Sequence[str], shape: Sequence[int]) -> str:
    return "[" + ", ".join(f"{axis} {size}" for axis, size in zip(axes, shape, strict=True)) + "]"


def _verify(options: argparse.Namespace) -> int:
    from .verify import verify

    report = verify(options.bundle, device=options.device, threads=options.threads, digest=options.digest)
    print(report)
    if report.passed:
        skipped = sum(check.passed is None for check in report.checks)
        print(f"verified on {options.device}: {options.bundle}" + (f"; {skipped} graphs not run" if skipped else ""))
        return 0
    print(f"error: {options.bundle}: verification failed; copy or export the bundle again", file=sys.stderr)
    return 1


def _sample(options: argparse.Namespace) -> None:
    from .noise import new_seed

    if options.latents and os.path.realpath(options.latents) == os.path.realpath(options.out):
        options.misuse("argument --latents: another file than that of --out is expected")
    vae = _load(options)
    seed = new_seed() if options.seed is None else options.seed
    if options.out.suffix == ".png":
        _require_picture(vae)
    x = vae.sample(
        options.n,
        seed=seed,
        start=options.start,
        temperature=options.temperature,
        observe=options.observe,
        batch_size=options.batch_size,
    )
    if options.latents:
        _write_npy(
            options.latents, vae.prior(options.n, seed=seed, start=options.start, temperature=options.temperature)
        )
    _write(options.out, x, vae, options.columns)
    print(f"{options.out}: {options.n} samples, seed {seed}, start {options.start}, device {vae.device}")


def _encode(options: argparse.Namespace) -> None:
    import numpy as np

    from .files import write_atomic

    if options.out.suffix == ".npz" and options.seed is not None:
        options.misuse("argument --seed: only with --out *.npy, which holds a sample; .npz holds mean, std and logvar")
    vae = _load(options)
    q = vae.encode(_read_npy(options.x), batch_size=options.batch_size)
    if options.out.suffix == ".npz":
        # In memory first: of a file that fails, zipfile complains once more when it is collected.
        archive = io.BytesIO()
        np.savez(archive, mean=q.mean, std=q.std, logvar=q.logvar)
        write_atomic(options.out, archive.getvalue())
    else:
        z = q.mode() if options.seed is None else q.sample(seed=options.seed, start=options.start)
        _write_npy(options.out, z)
    print(f"{options.out}: posteriors of {len(q.mean)} observations; mean KL {q.kl().mean():.4g} nats")


def _decode(options: argparse.Namespace) -> None:
    vae = _load(options)
    x = vae.decode(_read_npy(options.z), batch_size=options.batch_size)
    _write(options.out, x, vae, options.columns)
    print(f"{options.out}: {len(x)} observations")


def _reconstruct(options: argparse.Namespace) -> None:
    vae = _load(options)
    x = _read_npy(options.x)
    r = vae.reconstruct(x, seed=options.seed, start=options.start, batch_size=options.batch_size)
    if options.out.suffix == ".png":
        from .files import write_atomic
        from .image import pairs, png

        within = vae.manifest.observation.range
        write_atomic(options.out, png(pairs(x, r, columns=options.columns or 10, value_range=within)))
    else:
        _write(options.out, r, vae, None)
    error = float(((r - x) ** 2).mean())
    print(f"{options.out}: {len(x)} reconstructions; mean squared error {error:.4g}")


def _interpolate(options: argparse.Namespace) -> None:
    from .vae import interpolate

    vae = _load(options)
    if options.seeds:
        a, b = (vae.prior(1, seed=seed)[0] for seed in options.seeds)
    else:
        x = _read_npy(options.inputs)
        if x.ndim == 0 or len(x) < 2:
            raise InputError(f"{options.inputs}: two observations are expected, got an array {list(x.shape)}")
        a, b = vae.encode(x[:2]).mode()
    frames = vae.decode(interpolate(a, b, options.steps, spherical=not options.linear))
    _write(options.out, frames, vae, options.steps)
    print(f"{options.out}: {options.steps} steps")


def _require_picture(vae: VAE) -> None:
    """Refuse a PNG of what is no picture before anything is computed."""
    import numpy as np

    from .image import grid

    grid(np.zeros((1, *vae.observation_shape), np.float32))


def _write(path: Path, x: Array, vae: VAE, columns: int | None) -> None:
    if path.suffix == ".npy":
        _write_npy(path, x)
        return
    from .files import write_atomic
    from .image import grid, png

    write_atomic(path, png(grid(x, columns=columns, value_range=vae.manifest.observation.range)))


def _write_npy(path: Path, array: Array) -> None:
    import numpy as np

    from .files import write_atomic

    def write(file: IO[bytes]) -> None:
        np.save(file, array, allow_pickle=False)

    write_atomic(path, write)


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
