"""Measure cold starts, two workers at once, and the limits of the hardware."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vae_runtime.errors import VaeError

from .machine import rounded
from .models import MODELS, write_limits
from .runs import ROOT, Run
from .worker import MIN_PSNR

BATCHES_OF_WORKERS = (1, 64)
MODELS_OF_WORKERS = ("mlp", "mnist", "transposed", "tiny")
BUSY_LOOPS = 4


def cold(run: Run) -> None:
    """Time each contender in turn from process start to the first sample."""
    model = next((name for name in run.found["models"] if name in ("mlp", "tiny")), None)
    if model is None:
        return
    slow: set[str] = set()
    latent = tuple(run.found["models"][model]["latent_shape"])
    for number in range(1 if run.options.quick else 3 * run.options.rounds):
        names = [n for n in run.pythons if not run.skipped(n, model) and (n not in slow or number < 3)]
        taken = {}
        for name in run.random.sample(names, len(names)):
            try:
                command = functools.partial(python_first, run.pythons[name], name, str(run.data / model), latent)
                taken[name] = first_sample(run, name, command)
            except VaeError as error:
                run.skip(name, str(error), model=model, work="first sample")
                slow.add(name)
                continue
            if taken[name]["wall"] > 1:
                slow.add(name)
        run.found["cold"].append({"round": number, "model": model, "contenders": taken})


def python_first(python: Path, name: str, folder: str, latent: tuple[int, ...], ready: int) -> list[str]:
    """Return the command that draws a contender's first sample and says so on a file descriptor."""
    code = f"from benchmarks.contenders import first; first({name!r}, {folder!r}, {latent!r}, {ready})"
    return [str(python), "-c", code]


def first_sample(run: Run, name: str, command: Callable[[int], Sequence[str]]) -> dict[str, float]:
    """Time a program from its start to its first sample.

    Args:
        run: the run, which knows the program's environment.
        name: what to call the program in errors.
        command: takes the file descriptor that the program writes to: a byte, then what it took, as JSON.

    Returns:
        `wall`, `cpu` and `memory`: seconds until the sample, seconds of the processor, and bytes.

    Raises:
        VaeError: the program fails, or takes more than two minutes.
    """
    ready, write = os.pipe()
    begin = time.monotonic()
    with subprocess.Popen(
        command(write), cwd=ROOT, env=run.environment(1), pass_fds=[write], stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        os.close(write)
        try:
            answered = select.select([ready], [], [], 120)[0]
            mark = os.read(ready, 1) if answered else b""
            wall = time.monotonic() - begin
            if not answered:
                raise subprocess.TimeoutExpired(name, 120)
            lines = process.communicate(timeout=120)[1].decode(errors="replace").strip().splitlines()
            if not mark or process.returncode:
                raise VaeError(
                    re.sub(r"^[\w.]+: ", "", lines[-1])[:300] if lines else f"exit status {process.returncode}"
                )
            return {"wall": rounded(wall), **json.loads(os.read(ready, 4096))}
        except subprocess.TimeoutExpired:
            process.kill()
            raise VaeError("no sample within 120 seconds") from None
        finally:
            os.close(ready)


def workers(run: Run) -> None:
    """Time two workers of one thread, one of two threads and one of one, on idle and on busy processors."""
    pair = "ours-fp32"
    if (pair, 1) not in run.processes or (pair, 2) not in run.processes:
        run.skip(pair, "it takes a process with one thread and one with two", work="two workers")
        return
    first, wide = run.processes[pair, 1], run.processes[pair, 2]
    second = run.worker(pair, 1, run.pythons[pair])
    groups = {"one": [first], "two": [first, second], "wide": [wide]}
    models = [name for name in run.found["models"] if name in MODELS_OF_WORKERS]
    cells = [(m, b) for m in models for b in BATCHES_OF_WORKERS if b in MODELS[m].batches and b in MODELS[m].wide]
    seconds = 0.02 if run.options.quick else 0.3
    try:
        for model, batch in cells:
            folder = str(run.data / model)
            second.ask(do="open", folder=folder)
            for process in (first, wide):
                process.ask(do="open", folder=folder)
            for process in (first, second, wide):
                parity = process.ask(do="prepare", folder=folder, work="decode", batch=batch)
                if not parity["passed"]:
                    raise VaeError(f"{model}, batch {batch}: {not_comparable(parity, exact=True)}")
        for number in range(run.options.rounds):
            for loops in (0, BUSY_LOOPS):
                with _busy(loops):
                    for model, batch in run.random.sample(cells, len(cells)):
                        rates = {}
                        for group in run.random.sample(sorted(groups), len(groups)):
                            order = {"folder": str(run.data / model), "work": "decode", "batch": batch}
                            for process in groups[group]:
                                process.tell({"do": "measure", "seconds": seconds, **order})
                            # The mean, not the median: a stalled call is what a busy machine costs.
                            answers = [process.answer(600) for process in groups[group]]
                            for answer in answers:
                                if "error" in answer:
                                    raise VaeError(answer["error"])
                            rates[group] = rounded(sum(batch / answer["mean"] for answer in answers))
                        entry = {"round": number, "model": model, "batch": batch, "loops": loops, "rates": rates}
                        run.found["workers"].append(entry)
    finally:
        second.close()


def limits(run: Run) -> None:
    """Measure matrix products and reading memory, the best of several measurements: what the machine can do."""
    if "naive" not in run.pythons:
        return
    folder = run.data / "limits"
    write_limits(folder)
    sizes, reads = ((64,), (2**12, 2**14)) if run.options.quick else ((256, 512, 1024), (2**16, 2**19, 2**26))
    amounts = [(work, size) for work in ("sgemm-numpy", "sgemm-ort", "int8-ort") for size in sizes]
    amounts += [("read", count) for count in reads]
    for threads in run.options.threads:
        process = run.worker("limits", threads, run.pythons["naive"])
        try:
            process.ask(do="open", folder=str(folder))
            for work, amount in amounts:
                process.ask(do="prepare", folder=str(folder), work=work, batch=amount)
                order: dict[str, Any] = {"folder": str(folder), "work": work, "batch": amount}
                answers = [process.ask(do="measure", seconds=4 * run.slot, **order) for _ in range(run.options.rounds)]
                best = min(answer["min"] for answer in answers)
                done = 2 * amount**3 if work != "read" else 4 * amount
                entry = {"threads": threads, "work": work, "amount": amount, "per_second": rounded(done / best)}
                run.found["limits"].append(entry)
        finally:
            process.close()


@contextlib.contextmanager
def _busy(loops: int) -> Iterator[None]:
    """Keep the processors busy with a number of endless loops."""
    running = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(loops)]
    try:
        if running:
            time.sleep(0.2)
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def not_comparable(parity: Mapping[str, Any], exact: bool) -> str:
    """Return why a contender whose answers were compared cannot be timed."""
    if exact:
        return f"not comparable: its numbers differ from PyTorch's by {parity['difference']:.2g}"
    return f"not comparable: expected a PSNR of {MIN_PSNR:g} dB against PyTorch, got {parity['psnr'] or 0:.1f} dB"
