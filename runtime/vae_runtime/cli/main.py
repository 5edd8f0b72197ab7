"""The command `vae-runtime`."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence

from .._version import __version__
from ..errors import VaeError, error_line, lines_of, one_line
from .caching import add_caching
from .encoding import add_encoding
from .generating import add_generating
from .inspecting import add_inspecting
from .installing import add_installing
from .looking import add_looking
from .sampling import add_sampling


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status: 0 success, 1 failed, 2 misuse, 130 interrupted."""
    return run(build_parser, argv)


def limited_main(argv: Sequence[str]) -> int:
    """As `main`, in the process that `--untrusted` starts."""
    from .limits import set_limits

    set_limits()
    return run(build_parser, argv, is_limited=True)


def run(
    build_parser: Callable[[], argparse.ArgumentParser], argv: Sequence[str] | None, *, is_limited: bool = False
) -> int:
    """Parse, call the chosen verb, and turn an error into one `error:` line and an exit status."""
    options: argparse.Namespace | None = None
    try:
        _open_closed()
        logging.basicConfig(format="%(message)s", stream=sys.stderr)
        if isinstance(sys.stdout, io.TextIOWrapper):
            # Text of a bundle and names of files may lie outside the terminal's encoding.
            sys.stdout.reconfigure(errors="backslashreplace")
        options = build_parser().parse_args(argv)
        if getattr(options, "untrusted", False) and not is_limited:
            from .limits import run_limited

            return run_limited(sys.argv[1:] if argv is None else argv)
        status: int = options.command(options) or 0
        # Unlike sys.stdout.flush(), this accepts a closed stdout.
        print(end="", flush=True)
        return status
    except VaeError as error:
        # A command of this package knows the flags of its arguments.
        with_flags = getattr(options, "with_flags", str)
        message = with_flags(str(error))
        # Some errors list several problems, one per line.
        print(lines_of(f"error: {message}"), file=sys.stderr)
        return 1
    except MemoryError as error:
        print(one_line(f"error: out of memory: {error}; compute fewer at a time"), file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of the output has ended.
        _discard_output()
        return 1
    except OSError as error:
        reason = error_line(error)
        if _output_fails():
            message = f"standard output: not written: {reason}; free some space or write it elsewhere"
        else:
            message = f"{error.filename}: {reason}" if error.filename else reason
        print(one_line(f"error: {message}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _output_fails() -> bool:
    """Return whether standard output keeps text that it cannot write, and discard that."""
    try:
        print(end="", flush=True)
    except OSError:
        _discard_output()
        return True
    return False


def _discard_output() -> None:
    # Python would complain when it flushes at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_closed() -> None:
    """Open the null device as standard input, output or error where the caller has closed one.

    Otherwise the next file to be opened takes the number, and messages of ONNX Runtime go into that file.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        # For worker processes, too.
        os.set_inheritable(number, True)
    os.close(number)
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `vae-runtime`; each module of verbs adds its own."""
    parser = argparse.ArgumentParser(
        prog="vae-runtime", description="Sample, encode and decode exported Variational Autoencoders."
    )
    parser.add_argument("--version", action="version", version=f"vae-runtime {__version__}")
    verbs = parser.add_subparsers(metavar="COMMAND", required=True)
    parts = (add_inspecting, add_looking, add_sampling, add_encoding, add_generating, add_caching, add_installing)
    for add in parts:
        add(verbs)
    return parser


if __name__ == "__main__":
    sys.exit(main())
