"""Options that several verbs share, and the values they stand for."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import InputError, require_number

if TYPE_CHECKING:
    from ..manifest import Condition, Manifest
    from ..vae import VAE

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_verb(
    verbs: Verbs, name: str, function: Callable[[argparse.Namespace], int | None], text: str
) -> argparse.ArgumentParser:
    """Add a verb that calls a function with its options; return its parser.

    Among the options, `misuse(text)` ends the command as misuse, `defaults(name)` gives an option's default, and
    `with_flags(message)` writes the arguments that a message names as the verb's flags.
    """
    verb = verbs.add_parser(name, help=text, description=text)

    def flagged(message: str) -> str:
        flags = {action.dest: action.option_strings[0] for action in verb._actions if action.option_strings}
        return with_flags(message, flags)

    def misuse(message: str) -> None:
        verb.error(flagged(message))

    verb.set_defaults(command=function, misuse=misuse, defaults=verb.get_default, with_flags=flagged)
    return verb


def with_flags(message: str, flags: Mapping[str, str]) -> str:
    """Write the arguments that a message names as flags.

    Args:
        message: it names an argument at its beginning, in backticks, with a dot, or as the Python code `name=value`.
        flags: the flag of each argument by its name.
    """
    flags = {**flags, **({"conditions": flags["condition"]} if "condition" in flags else {})}
    dotted = "|".join(re.escape(name) for name in flags if "." in name) or "(?!)"
    names = "|".join(re.escape(name) for name in flags)
    word = rf"(?<![\w.-])({names})(?![\w.-])"
    place, colon, rest = message.partition(":")
    if re.match(word, place):
        place = re.sub(word, lambda found: flags[found[1]], place)
        place = re.sub(r"\['(\w+)'\]", r" \1", place)
    # Not the arguments of a call in the message, such as encode(x, seed=…).
    assigned = rf"(?<![\w.(])(?<!, )({names})="
    for pattern, form in (
        (rf"`({names})`", "{}"),
        (rf"(?<![\w.-])({dotted})(?![\w.-])", "{}"),
        (rf"{assigned}\{{'([^']*)': (\S+)\}}", "{} {}={}"),
        (rf"{assigned}'([^']*)'", "{} {}"),
        (rf"{assigned}(?=[^\s,;)])", "{} "),
        (assigned, "{}"),
    ):
        rest = re.sub(pattern, _filled(form, flags), rest)
    return place + colon + rest


def _filled(form: str, flags: Mapping[str, str]) -> Callable[[re.Match[str]], str]:
    return lambda found: form.format(flags[found[1]], *found.groups()[1:])


# Types for argparse.


def argument(read: Callable[[str], Any], name: str = "") -> Callable[[str], Any]:
    """Return a type for argparse: an error of the reader is misuse, in the reader's own words.

    Args:
        read: takes the text that was typed.
        name: what the reader calls the argument, which argparse names before these words.
    """

    def parse(text: str) -> Any:
        try:
            return read(text)
        except (InputError, ValueError) as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix(f"{name}: ")) from None

    return parse


def integer(name: str, low: int, high: int) -> Callable[[str], Any]:
    """Return a type for argparse: an integer from low to high."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise InputError(f"{name}: expected an integer, got {text!r}") from None
        if not low <= value <= high:
            raise InputError(f"{name}: expected {low} … {high}, got {value}")
        return value

    return argument(read, name)


def integers(name: str, low: int, high: int) -> Callable[[str], Any]:
    """Return a type for argparse: integers from low to high, joined by commas."""
    one = integer(name, low, high)
    return lambda text: [one(part) for part in text.split(",")]


def number(name: str, low: float, high: float) -> Callable[[str], Any]:
    """Return a type for argparse: a number from low to high."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise InputError(f"{name}: expected a number, got {text!r}") from None
        return require_number(name, value, low, high)

    return argument(read, name)


def file_name(*suffixes: str) -> Callable[[str], Any]:
    """Return a type for argparse: a path that ends in one of the suffixes."""

    def read(text: str) -> Path:
        path = Path(text)
        if text.endswith(("/", os.sep)):
            raise InputError(f"{text}: expected the name of a file, got that of a folder")
        if path.suffix not in suffixes:
            raise InputError(f"{text}: expected a file name ending in {' or '.join(suffixes)}")
        return path

    return argument(read)


SEED = integer("seed", -(2**63), 2**64 - 1)


# Options.


def add_source(verb: argparse.ArgumentParser) -> None:
    """Add the bundle and --digest."""
    verb.add_argument("bundle", help="the bundle's folder, .zip file or URL")
    verb.add_argument(
        "--digest", type=argument(_digest, "digest"), help="refuse the bundle unless it has this digest, sha256:…"
    )


def add_bundle(verb: argparse.ArgumentParser) -> None:
    """Add the bundle, --digest and --untrusted."""
    add_source(verb)
    text = "work in a process with at most 4 GiB of memory and 60 seconds of the processor (Linux)"
    verb.add_argument("--untrusted", action="store_true", help=text)


def add_key(verb: argparse.ArgumentParser) -> None:
    """Add --key."""
    text = "a public key in PEM: refuse the bundle unless its owner signed it"
    verb.add_argument("--key", type=Path, metavar="FILE", help=text)


def _digest(text: str) -> str:
    from ..places import parse_digest

    return parse_digest(text)


def add_device(verb: argparse.ArgumentParser) -> None:
    """Add --device."""
    text = "cpu (default), cuda, cuda:N, auto, or a provider's name"
    verb.add_argument("--device", type=argument(_device, "device"), default="cpu", help=text)


def _device(text: str) -> str:
    from ..devices import parse_device

    return parse_device(text)


def add_threads(verb: argparse.ArgumentParser) -> None:
    """Add --threads."""
    verb.add_argument("--threads", type=integer("threads", 1, 1024), default=1, help="threads per call (default 1)")


def add_variant(verb: argparse.ArgumentParser) -> None:
    """Add --variant."""
    verb.add_argument("--variant", help="the variant to run (default: the first declared)")


def add_session(verb: argparse.ArgumentParser) -> None:
    """Add the options of `load_vae` that say how graphs run: --device, --threads, --variant and --max-memory."""
    for add in (add_device, add_threads, add_variant):
        add(verb)
    text = "what each graph may take for the values between its operators, on the CPU (default: no limit)"
    read = integer("max-memory", 2**20, 2**50)
    verb.add_argument("--max-memory", type=read, metavar="BYTES", help=text)


def add_start(verb: argparse.ArgumentParser) -> None:
    """Add --start, which `require_seed` reads."""
    text = "index of the first sample of the seed (default 0)"
    verb.add_argument("--start", type=integer("start", 0, 2**64 - 1), help=text)


def require_seed(options: argparse.Namespace) -> int:
    """Return --start, 0 by default; without --seed, it is misuse."""
    if options.start is not None and options.seed is None:
        options.misuse("argument --start: allowed only with --seed, because it counts the samples of that seed")
    return options.start or 0


def add_temperature(verb: argparse.ArgumentParser) -> None:
    """Add --temperature."""
    text = "factor on the noise (default 1)"
    verb.add_argument("--temperature", type=number("temperature", 0, 1e6), default=1.0, help=text)


def add_truncation(verb: argparse.ArgumentParser) -> None:
    """Add --truncation."""
    verb.add_argument("--truncation", type=number("truncation", 0.01, 1e6), help="draw noise only within ± this value")


def add_batch_size(verb: argparse.ArgumentParser) -> None:
    """Add --batch-size."""
    verb.add_argument("--batch-size", type=integer("batch-size", 1, 2**31), help="rows to compute at once")


def add_tile(verb: argparse.ArgumentParser) -> None:
    """Add --tile and --tile-blend, which `tiles_of` reads."""
    verb.add_argument(
        "--tile",
        type=_tile,
        metavar="SIZE",
        help='compute dynamic axes in tiles of this size, or "auto": the same values in less memory',
    )
    text = "blend overlapping tiles where values depend on the whole; this changes them"
    verb.add_argument("--tile-blend", action="store_true", help=text)


def _tile(text: str) -> Any:
    if text == "auto":
        return text
    if not re.fullmatch(r"[+-]?\d+", text):
        raise argparse.ArgumentTypeError(f'expected "auto" or an integer, got {text!r}')
    return integer("tile", 1, 2**31)(text)


def tiles_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of a VAE's methods about tiles; without --tile, --tile-blend is misuse."""
    if options.tile_blend and options.tile is None:
        options.misuse("argument --tile-blend: allowed only with --tile")
    return {"tile": options.tile, "tile_blend": options.tile_blend}


def add_out(verb: argparse.ArgumentParser, *suffixes: str) -> None:
    """Add --out, a file that ends in one of the suffixes."""
    verb.add_argument(
        "--out", type=file_name(*suffixes), required=True, help=f"the file to write: {' or '.join(suffixes)}"
    )


def add_columns(verb: argparse.ArgumentParser) -> None:
    """Add --columns, which `require_png` checks."""
    verb.add_argument("--columns", type=integer("columns", 1, 10**4), help="pictures per row of the PNG")


def require_png(options: argparse.Namespace) -> None:
    """Refuse --columns as misuse unless --out is a PNG."""
    if options.columns is not None and options.out.suffix != ".png":
        options.misuse("argument --columns: allowed only with --out *.png")


def add_condition(verb: argparse.ArgumentParser) -> None:
    """Add --condition, which `conditions_of` reads."""
    verb.add_argument(
        "--condition",
        type=argument(_condition, "condition"),
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a class, a number, numbers joined by commas, or an .npy file; repeat it for each condition",
    )


def _condition(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals or not value:
        raise InputError(f"condition: expected NAME=VALUE, got {text!r}")
    return name, value


def conditions_of(options: argparse.Namespace, vae: VAE | Manifest, *, files: bool = False) -> dict[str, Any]:
    """Return the values of --condition by name; with `files`, the paths of .npy files instead of their arrays."""
    known = {condition.name: condition for condition in vae.conditions}
    values: dict[str, Any] = {}
    for name, text in options.condition:
        if name in values:
            options.misuse(f"argument --condition: expected {name} once, got it twice")
        # The VAE refuses an unknown name.
        as_text = name not in known or (files and text.endswith(".npy"))
        values[name] = text if as_text else _condition_value(known[name], text)
    return values


def _condition_value(condition: Condition, text: str) -> Any:
    import numpy as np

    from ..arrays import read_npy

    parts = text.split(",")
    if condition.classes and text in condition.classes:
        return text
    if condition.classes and set(parts) <= set(condition.classes):
        return parts
    if text.endswith(".npy"):
        return read_npy(text)
    try:
        numbers = np.array([int(each) if condition.dtype == "int64" else float(each) for each in parts])
        values = numbers.astype(condition.dtype)
    except (ValueError, OverflowError):
        classes = f"a class ({', '.join(condition.classes)}), " if condition.classes else ""
        kind = "integers" if condition.dtype == "int64" else "numbers"
        raise InputError(
            f"--condition {condition.name}: expected {classes}{kind} joined by commas or an .npy file, got {text!r}"
        ) from None
    return values.reshape(condition.shape) if values.size == math.prod(condition.shape) else values


def require_outside(options: argparse.Namespace) -> None:
    """Refuse as misuse an output that would replace a file that the verb reads, or that lies in the bundle."""
    from ..files import lies_in, require_replaceable

    files = [getattr(options, name, None) for name in ("bundle", "x", "z", "inputs", "reconstruct", "encode")]
    files += [text for _, text in getattr(options, "condition", []) if text.endswith(".npy")]
    for flag in ("out", "latents", "contributions", "picture"):
        path = getattr(options, flag, None)
        if path:
            require_replaceable(path)
        for file in files:
            if path and isinstance(file, (str, os.PathLike)) and lies_in(path, file):
                what = "a place outside the bundle" if file == options.bundle else "another file than the one it reads"
                options.misuse(f"argument --{flag}: expected {what}, got {path}")


def load_vae(options: argparse.Namespace) -> VAE:
    """Load the bundle with the given options; refuse outputs that must not be written before that."""
    from ..vae import load

    require_outside(options)
    if getattr(options, "out", None) is not None and options.out.suffix == ".png":
        from ..image import require_pillow

        require_pillow()
    return load(
        options.bundle,
        device=options.device,
        threads=options.threads,
        variant=options.variant,
        digest=options.digest,
        max_memory=options.max_memory,
    )
