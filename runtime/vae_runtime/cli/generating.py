"""The verb `generate`: many samples in a folder."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import InputError, counted, one_line
from .options import (
    SEED,
    Verbs,
    add_bundle,
    add_condition,
    add_device,
    add_temperature,
    add_tile,
    add_truncation,
    add_variant,
    add_verb,
    argument,
    conditions_of,
    integer,
    require_outside,
    tiles_of,
)

if TYPE_CHECKING:
    from ..generation.estimation import Estimate


def add_generating(verbs: Verbs) -> None:
    """Add the verb of this module."""
    text = "write many samples to a folder; run the same command again to resume it"
    verb = add_verb(verbs, "generate", _generate, text)
    add_bundle(verb)
    stated = _add_samples(verb)
    later = verb.add_mutually_exclusive_group()
    for flag, text in (
        ("--finish", "write the index of a folder whose parts are all done"),
        ("--verify", "hash a finished folder and regenerate some of its files"),
    ):
        later.add_argument(flag, action=_States, stated=stated, nargs=0, default=False, help=text)
    text = "estimate time, disk and memory of a batch that is thrown away; nothing is written"
    later.add_argument("--dry-run", action="store_true", help=text)
    verb.add_argument(
        "--replay",
        type=integer("replay", 0, 2**48),
        metavar="FILES",
        help="number of files that --verify regenerates (default 3)",
    )
    _add_work(verb)
    verb.add_argument(
        "--json", action="store_true", help="report progress as JSON, one line a minute and one at the end"
    )
    verb.add_argument("--out", required=True, help="the folder to write, or a URL such as s3://bucket/prefix")


class _States(argparse.Action):
    """An option whose value states the values of others, which are then not required."""

    def __init__(self, *arguments: Any, stated: Sequence[argparse.Action], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._stated = stated

    def __call__(self, parser: Any, options: argparse.Namespace, value: Any, flag: str | None = None) -> None:
        """Set the option."""
        setattr(options, self.dest, True if self.nargs == 0 else value)
        for action in self._stated:
            action.required = False


def _add_samples(verb: argparse.ArgumentParser) -> tuple[argparse.Action, ...]:
    """Add the options that determine the samples; return those that are required."""
    n = verb.add_argument(
        "-n",
        type=integer("n", 1, 2**48),
        required=True,
        help="number of samples; a later call may raise it (with a file of rows, default: all of them)",
    )
    text = "sample i of a seed is the same in every call; needed unless nothing is drawn, as with --decode"
    seed = verb.add_argument("--seed", type=SEED, required=True, help=text)
    source = verb.add_mutually_exclusive_group()
    for flag, text in (
        ("--reconstruct", "write reconstructions of these observations instead"),
        ("--encode", "write the latents of these observations instead"),
        ("--decode", "write the observations of these latents instead"),
    ):
        source.add_argument(flag, action=_States, stated=(n, seed), metavar="IN.npy", help=text)
    verb.add_argument(
        "--format",
        type=argument(_format, "format"),
        default="npy",
        help="format of the files: npy, parquet or safetensors (default npy)",
    )
    verb.add_argument(
        "--dtype", choices=("float32", "uint8"), default="float32", help="dtype of the samples (default float32)"
    )
    add_temperature(verb)
    add_truncation(verb)
    verb.add_argument("--observe", action="store_true", help="draw from the likelihood instead of returning its mean")
    add_condition(verb)
    verb.add_argument("--balanced", metavar="NAME", help="take the classes of this condition in turn")
    verb.add_argument(
        "--batch-size", type=integer("batch-size", 1, 2**20), help="samples to decode at once (default 64)"
    )
    verb.add_argument(
        "--shard-size", type=integer("shard-size", 1, 2**40), help="samples per file (default: about 64 MB)"
    )
    add_tile(verb)
    return n, seed


def _format(text: str) -> str:
    from ..generation.formats.table import require_known  # numpy is not needed to show help

    require_known(text)
    return text


def _add_work(verb: argparse.ArgumentParser) -> None:
    """Add the options that divide the work."""
    verb.add_argument("--part", type=argument(_part, "part"), metavar="K/M", help="compute the K-th of M parts")
    verb.add_argument(
        "--workers", type=integer("workers", 1, 4096), help="number of processes (default: all available cores)"
    )
    verb.add_argument(
        "--executor",
        choices=("local", "ray"),
        default="local",
        help="processes on this machine (default), or a Ray cluster",
    )
    verb.add_argument(
        "--address",
        help="address of a Ray cluster: auto, HOST:PORT, ray://HOST:PORT (default: RAY_ADDRESS, or a new local one)",
    )
    add_device(verb)
    add_variant(verb)


def _part(text: str) -> tuple[int, int]:
    number, slash, of = text.partition("/")
    try:
        part = int(number), int(of)
    except ValueError:
        part = (0, 0)
    if not slash or not 1 <= part[0] <= part[1]:
        raise InputError(f"part: expected K/M with K from 1 to M, got {text!r}")
    return part


def _generate(options: argparse.Namespace) -> int | None:
    if options.out.startswith("memory:"):
        options.misuse("argument --out: expected a place that outlives this command, got one in its memory")
    if options.replay is not None and not options.verify:
        options.misuse("argument --replay: allowed only with --verify")
    if options.finish or options.verify:
        _refuse_job_options(options)
        if options.verify:
            return _verify_samples(options)
        _finish_samples(options)
        return None
    _generate_samples(options)
    return None


# Options whose values --finish and --verify take from the folder, and those that --verify needs again.
_JOB_OPTIONS = (
    *("n", "seed", "part", "format", "dtype", "temperature", "truncation", "observe", "balanced"),
    *("batch_size", "shard_size", "tile", "tile_blend"),
)
_FILE_OPTIONS = ("reconstruct", "encode", "decode", "condition")


def _refuse_job_options(options: argparse.Namespace) -> None:
    """Refuse as misuse what --finish or --verify would ignore."""
    names = _JOB_OPTIONS + (_FILE_OPTIONS if options.finish else ())
    ignored = [name for name in names if getattr(options, name) != options.defaults(name)]
    if options.verify and any(not text.endswith(".npy") for _, text in options.condition):
        ignored.append("condition")
    if ignored:
        flag = "-n" if ignored[0] == "n" else f"--{ignored[0].replace('_', '-')}"
        options.misuse(f"argument {flag}: not allowed with --finish or --verify, which read it from the folder")


# Options that are arguments of `generate` by the same name.
_ARGUMENTS = (
    *("seed", "reconstruct", "encode", "decode", "workers", "device", "variant", "format", "dtype", "observe"),
    *("temperature", "truncation", "balanced", "batch_size", "shard_size", "part", "executor", "address"),
)


def _generate_samples(options: argparse.Namespace) -> None:
    from ..generation.request import Draw, Execution, Output, Request, Source
    from ..generation.run import generate
    from ..generation.store import open_store
    from ..vae import load

    require_outside(options)
    tiles = tiles_of(options)
    draw = Draw(options.seed, options.temperature, options.truncation, options.observe)
    try:
        place = str(open_store(options.out))
        source = Source(options.reconstruct, options.encode, options.decode)
        output = Output(options.format, options.dtype, options.batch_size, options.shard_size)
        Request(options.n, draw, source, output=output)
        Execution(options.workers, options.executor, options.address, options.part)
    except InputError as error:
        options.misuse(str(error))
    vae = load(options.bundle, device=options.device, variant=options.variant, digest=options.digest)
    conditions = conditions_of(options, vae, files=True)
    if options.executor == "ray":
        # Ray reports each process that dies, among the output of this command.
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")
    arguments = {name: getattr(options, name) for name in _ARGUMENTS}
    began, progress, timings = time.monotonic(), _Progress(options.json), dict[str, float]()
    try:
        samples = generate(
            options.bundle,
            options.out,
            options.n,
            **arguments,
            **tiles,
            conditions=conditions,
            progress=progress,
            timings=timings,
            dry_run=_print_estimate(options.json) if options.dry_run else None,
            warn=lambda text: print(f"warning: {one_line(text)}", file=sys.stderr),
        )
    except KeyboardInterrupt:
        done, n = progress.last
        kept = f"{done} of {counted(n, 'sample')} are complete" if n else "finished files stay"
        print(one_line(f"{place}: {kept}; run the same command again to go on"), file=sys.stderr)
        raise
    if options.dry_run:
        return
    finished, done = samples is not None, progress.last[0]
    if options.json:
        answer = {"out": place, "finished": finished, "samples": done, "seconds": round(time.monotonic() - began, 3)}
        print(json.dumps({**answer, "timings": {phase: round(spent, 3) for phase, spent in timings.items()}}))
    else:
        rest = "" if finished else "; other parts are unfinished, and the last one to finish writes the index"
        print(one_line(f"{place}: {counted(done, 'sample')}{rest}"))


def _print_estimate(as_json: bool) -> Callable[[Estimate], None]:
    def show(estimate: Estimate) -> None:
        if as_json:
            print(json.dumps(dataclasses.asdict(estimate)))
        else:
            print(*map(one_line, str(estimate).split("\n")), sep="\n")

    return show


def _finish_samples(options: argparse.Namespace) -> None:
    from ..bundle import open_bundle
    from ..generation.run import finish_samples
    from ..generation.store import open_store

    place = str(open_store(options.out))
    open_bundle(options.bundle, options.digest)
    count = len(finish_samples(options.out, options.bundle))
    answer = {"out": place, "finished": True, "samples": count}
    print(json.dumps(answer) if options.json else one_line(f"{place}: {counted(count, 'sample')}"))


def _verify_samples(options: argparse.Namespace) -> int:
    from ..bundle import open_bundle
    from ..generation.folder import read_job
    from ..generation.store import open_store
    from ..generation.verification import verify_samples

    store = open_store(options.out)
    place = str(store)
    open_bundle(options.bundle, options.digest)
    files = {name: text for name, text in options.condition if text.endswith(".npy")}
    for verb in ("reconstruct", "encode", "decode"):
        path = getattr(options, verb)
        if path is not None:
            job = read_job(store)
            if job.verb != verb or job.observations is None:
                raise InputError(f"{place}: its samples were made by `{job.verb}`, not by `{verb}`; leave out --{verb}")
            files[job.observations["name"]] = path
    shards = 3 if options.replay is None else options.replay
    report = verify_samples(
        options.out, options.bundle, shards=shards, device=options.device, files=files, progress=_Progress(options.json)
    )
    if options.json:
        checks = [{"what": check.what, "passed": check.passed, "detail": check.detail} for check in report.checks]
        print(json.dumps({"out": place, "passed": report.passed, "checks": checks}))
    else:
        print(report)
    if report.passed:
        return 0
    advice = "remove the named files and run the same `generate` command again"
    print(one_line(f"error: {place}: verification failed; {advice}"), file=sys.stderr)
    return 1


class _Progress:
    """Prints the progress: one line that is overwritten on a terminal, one line a minute elsewhere."""

    def __init__(self, as_json: bool) -> None:
        self._now = time.monotonic
        self._json = as_json
        self._terminal = sys.stderr.isatty() and not as_json
        self._began = self._last_report = self._now()
        self.last = (0, 0)

    def __call__(self, done: int, n: int) -> None:
        import json

        now, self.last = self._now(), (done, n)
        ended = done == n and not self._json
        if now - self._last_report < (0.2 if self._terminal else 60) and not ended:
            return
        self._last_report = now
        rate = done / max(now - self._began, 1e-9)
        if self._json:
            print(json.dumps({"samples": done, "of": n, "per_second": rate}), flush=True)
            return
        left = time.strftime("%H:%M:%S", time.gmtime((n - done) / rate)) if rate else "unknown"
        line = f"{done} of {counted(n, 'sample')}, {rate:.0f} a second, {left} left"
        text, end = (f"\r{line:<70}", "" if done < n else "\n") if self._terminal else (line, "\n")
        print(text, end=end, file=sys.stderr, flush=True)
