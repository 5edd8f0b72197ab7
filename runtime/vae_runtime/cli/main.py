"""The command `vae-runtime`."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

from .._version import __version__
from ..errors import VaeError, error_line, lines_of
from .caching import add_caching
from .encoding import add_encoding
from .generating import add_generating
from .inspecting import add_inspecting
from .installing import add_installing
from .looking import add_looking
from .sampling import add_sampling
from .scoring import add_scoring


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status, which docs/command-line.md describes."""
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
        with _terminated_as_interrupted():
            _open_closed()
            logging.basicConfig(format="%(message)s", stream=sys.stderr)
            if sys.stdout is None:
                raise VaeError("standard output: expected an open stream, got a closed one; redirect it to /dev/null")
            sys.stdout, sys.stderr = _buffered(sys.stdout), _buffered(sys.stderr)
            if isinstance(sys.stdout, io.TextIOWrapper):
                # Text of a bundle and names of files may lie outside the terminal's encoding.
                sys.stdout.reconfigure(errors="backslashreplace")
            options, unknown = build_parser().parse_known_args(argv)
            if unknown:
                # argparse itself would print the usage of the command, not that of the verb.
                options.misuse(f"unrecognized arguments: {' '.join(unknown)}")
            if getattr(options, "untrusted", False) and not is_limited:
                from .limits import run_limited

                return run_limited(sys.argv[1:] if argv is None else argv)
            status: int = options.command(options) or 0
            sys.stdout.flush()
            return status
    except SystemExit:
        # argparse ends a command so, after help for example.
        if _output_fails():
            return _READER_ENDED
        raise
    except VaeError as error:
        # A command of this package knows the flags of its arguments.
        with_flags = getattr(options, "with_flags", str)
        # Some errors list several problems, one per line.
        return _failed(with_flags(str(error)))
    except MemoryError as error:
        return _failed(f"out of memory: {error}; compute fewer at a time")
    except OSError as error:
        reason = error_line(error)
        if not _output_fails():
            return _failed(f"{error.filename}: {reason}" if error.filename else reason)
        if isinstance(error, BrokenPipeError):
            return _READER_ENDED
        return _failed(f"standard output: not written: {reason}; free some space or write it elsewhere")
    except KeyboardInterrupt as interrupt:
        print("interrupted", file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(interrupt, _Terminated) else signal.SIGINT)


# The exit status of a process that SIGPIPE ends, which Python ignores.
_READER_ENDED = 128 + 13


def _failed(message: str) -> int:
    try:
        print(lines_of(f"error: {message}"), file=sys.stderr)
    except BrokenPipeError:
        return _READER_ENDED if _output_fails() else 1
    return 1


def _buffered(stream: TextIO) -> TextIO:
    """Return a stream that keeps what it cannot write, which PYTHONUNBUFFERED prevents."""
    raw = getattr(stream, "buffer", None)
    # Not a stream that whoever calls has put in place of the process's own.
    if not isinstance(raw, io.RawIOBase) or stream not in (sys.__stdout__, sys.__stderr__):
        return stream
    errors = getattr(stream, "errors", None)
    return io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, errors, line_buffering=True)


def _output_fails() -> bool:
    """Return whether standard output or error keeps text that it cannot write, and discard that."""
    fails = False
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            # Python would complain when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            fails = True
    return fails


class _Terminated(KeyboardInterrupt):
    """SIGTERM arrived."""


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Treat SIGTERM, which schedulers send first, like Ctrl-C, unless whoever calls has a handler for it."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def interrupt(*_: object) -> None:
        raise _Terminated

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


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
    parts = (add_inspecting, add_looking, add_sampling, add_encoding, add_scoring, add_generating, add_caching)
    for add in (*parts, add_installing):
        add(verbs)
    return parser


if __name__ == "__main__":
    sys.exit(main())
