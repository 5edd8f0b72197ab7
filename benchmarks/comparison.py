"""Compare every contender on every model: check its answers against PyTorch's, then time it in turns."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vae_runtime.errors import VaeError

from .capacity import cold, limits, not_comparable, workers
from .contenders import CONTENDERS
from .machine import available_memory, rounded, share, stolen
from .models import MODELS
from .processes import Died
from .runs import Run, say

# Latents drawn at once where the rate of noise is measured: 4 million numbers.
NOISE_ROWS = 2**18
# Work that takes all contenders together longer than LONG seconds is measured in fewer rounds.
LONG, ROUNDS_OF_LONG = 2.0, 3
# Share of the machine's memory that is left to others: work that would take it is left out.
KEPT_FREE = 0.2


class Cell(NamedTuple):
    """One piece of work that all contenders do in turn."""

    model: str
    threads: int
    work: str
    batch: int


def compare(run: Run) -> None:
    """Compare every contender on every model, after cold starts and limits, and before several workers."""
    run.make_environments()
    try:
        # First, while no other process of ours takes memory.
        cold(run)
        limits(run)
        for threads in run.options.threads:
            for name in run.pythons:
                run.start(name, threads)
        groups: dict[tuple[str, int], list[Cell]] = {}
        for cell in all_cells(run):
            groups.setdefault((cell.model, cell.threads), []).append(cell)
        for (model, threads), cells in groups.items():
            fit = prepare(run, cells)
            if fit:
                rounds(run, fit, run.options.minutes / len(groups))
            close(run, model, threads)
        try:
            workers(run)
        except VaeError as error:
            run.skip("ours-fp32", str(error), work="two workers")
    finally:
        for process in run.processes.values():
            process.close()


def all_cells(run: Run) -> list[Cell]:
    """Return everything to measure, whichever contenders can."""
    listed = []
    for name in run.found["models"]:
        model = MODELS[name]
        listed += [Cell(name, 1, work, batch) for work in model.work for batch in model.batches]
        if "sample" in model.work and name in ("mlp", "mlp50", "digits", "tiny"):
            listed += [Cell(name, 1, work, batch) for work in ("next", "stream") for batch in model.batches[:2]]
        listed += [Cell(name, 2, "decode", batch) for batch in model.wide]
        if name in ("mlp", "tiny"):
            listed.append(Cell(name, 1, "noise", NOISE_ROWS if name == "mlp" else 2**10))
    return [cell for cell in listed if cell.threads in run.options.threads]


def prepare(run: Run, cells: Sequence[Cell]) -> dict[Cell, list[str]]:
    """Check every contender against PyTorch, and return those that pass, by the work that they are timed on.

    The cells are of one model and number of threads.
    """
    fit: dict[Cell, list[str]] = {cell: [] for cell in cells}
    model, threads = cells[0].model, cells[0].threads
    say(f"{model}, {threads} thread{'s' if threads > 1 else ''}: comparing with PyTorch")
    for name in [name for name, count in run.processes if count == threads]:
        if run.skipped(name, model):
            continue
        try:
            run.processes[name, threads].ask(do="open", folder=str(run.data / model))
            for cell in cells:
                if _passes(run, name, cell):
                    fit[cell].append(name)
        except Died as error:
            run.drop(name, threads, str(error))
            fit = {cell: [each for each in names if each != name] for cell, names in fit.items()}
        except VaeError as error:
            run.skip(name, str(error), model=model)
    return {cell: names for cell, names in fit.items() if names}


def _passes(run: Run, name: str, cell: Cell) -> bool:
    if cell.work in ("next", "stream", "noise") and name not in ("naive", "ours-fp32", "ours-native"):
        return False
    if CONTENDERS[name].only and cell.work not in CONTENDERS[name].only:
        return False
    where = {"model": cell.model, "work": cell.work, "batch": cell.batch, "threads": cell.threads}
    free = available_memory()
    if free < KEPT_FREE:
        text = f"{free:.0%} of the machine's memory is free, {KEPT_FREE:.0%} is left to others"
        run.skip(name, text, **where)
        return False
    process, folder = run.processes[name, cell.threads], str(run.data / cell.model)
    try:
        parity = process.ask(do="prepare", folder=folder, work=cell.work, batch=cell.batch)
    except Died:
        raise
    except VaeError as error:
        run.skip(name, str(error), **where)
        return False
    run.found["parity"].append({"contender": name, **where, **parity})
    if not parity["passed"]:
        run.skip(name, not_comparable(parity, CONTENDERS[name].exact), **where)
    return bool(parity["passed"])


def close(run: Run, model: str, threads: int) -> None:
    """Let all contenders free the memory of a model."""
    for (name, count), process in list(run.processes.items()):
        if count == threads:
            try:
                process.ask(do="close", folder=str(run.data / model))
            except Died as error:
                run.drop(name, threads, str(error))


def rounds(run: Run, fit: Mapping[Cell, list[str]], minutes: float = 0) -> None:
    """Measure all cells for the rounds asked for, long ones less often, and go on while there is time."""
    end = time.monotonic() + 60 * minutes
    costs: dict[Cell, float] = {}
    number = 0
    while number < run.options.rounds or (time.monotonic() < end and not run.options.quick):
        before, begin = stolen(), time.monotonic()
        cells = [cell for cell in fit if number < ROUNDS_OF_LONG or costs[cell] < LONG]
        if not cells:
            break
        run.random.shuffle(cells)
        for cell in cells:
            if number >= run.options.rounds and time.monotonic() > end:
                break
            costs[cell] = _round(run, number, cell, fit[cell])
        group = {"model": next(iter(fit)).model, "threads": next(iter(fit)).threads, "free": available_memory()}
        run.found["load"].append(
            {"round": number, **group, "loadavg": list(os.getloadavg()), "stolen": share(before, stolen())}
        )
        say(f"round {number + 1}: {time.monotonic() - begin:.0f} s, load {os.getloadavg()[0]:.1f}")
        number += 1


def _round(run: Run, number: int, cell: Cell, names: Sequence[str]) -> float:
    begin = time.monotonic()
    seconds = {}
    for name in run.random.sample(names, len(names)):
        process = run.processes.get((name, cell.threads))
        if process is None:
            continue
        order: dict[str, Any] = {"folder": str(run.data / cell.model), "work": cell.work, "batch": cell.batch}
        try:
            answer = process.ask(do="measure", seconds=run.slot, **order)
        except Died as error:
            run.drop(name, cell.threads, str(error))
        except VaeError as error:
            run.skip(name, str(error), **cell._asdict())
        else:
            seconds[name] = rounded(answer["median"])
    run.found["rounds"].append({"round": number, **cell._asdict(), "seconds": seconds})
    return time.monotonic() - begin
