"""The verb `generate`: many samples in a folder."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator

from ..errors import InputError, one_line
from .options import conditions_of

__all__: list[str] = []


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
    conditions = conditions_of(options, vae, files=True)
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
