"""Estimate the time, the disk space and the memory of a call of `generate`, of a batch that is made and thrown away."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import counted
from ..vae import VAE
from .folder import missing_shards
from .formats.table import is_compressed
from .job import Job
from .rows import make_rows
from .store import Store

# How long rows are made to time them, after a first batch that loads the graphs; two batches at least.
_SECONDS = 1.0


@dataclass(frozen=True)
class Estimate:
    """What a call of `generate` would take; `str()` gives a table.

    `rows` of `of`, the rows of the call, are to be made, in `shards` files; files that exist count as whole. Their
    numbers take `bytes`, and `free` bytes may be written at `place`, None where unknown. `measured` rows took so long
    that one worker makes `rate` a second; `workers` of them need `seconds` for the rows, None where their number is
    unknown. A worker takes `memory` bytes, None where the system does not tell. `unknown` lists what is not known.
    """

    place: str
    of: int
    rows: int
    shards: int
    bytes: int
    free: int | None
    workers: int | None
    measured: int
    rate: float
    seconds: float | None
    memory: int | None
    unknown: tuple[str, ...]

    def __str__(self) -> str:
        """Return a table of lines, in the units that people use."""
        each = "" if self.workers == 1 else f" for each of {self.workers} workers" if self.workers else " a worker"
        by = f"{self.workers or 1} worker{'' if (self.workers or 1) == 1 else 's'}"
        wholly = self.rows / self.rate if self.seconds is None else self.seconds
        free = "free space unknown" if self.free is None else f"{size_text(self.free)} free"
        disk = f"{size_text(self.bytes)}, {free} at {self.place}"
        pace = f"each {self.rate:.0f} a second, as {self.measured} took here"
        lines = [
            ("samples", f"{self.rows} of {self.of} to make, in {self.shards} file{'' if self.shards == 1 else 's'}"),
            (
                "time",
                f"about {_duration(wholly)} with {by}, {pace}",
            ),
            ("disk", disk),
            ("memory", f"about {size_text(self.memory)}{each}" if self.memory is not None else "unknown"),
            *(("unknown", text) for text in self.unknown),
        ]
        return "\n".join(f"{name:<8} {text}" for name, text in lines)


def estimate(vae: VAE, store: Store, job: Job, numbers: Sequence[int], workers: int | None) -> Estimate:
    """Estimate what making the shards of a job takes; nothing is written.

    Args:
        vae: the model.
        store: the place of the folder, which need not exist.
        job: what is made.
        numbers: the shards of the call.
        workers: how many processes of this machine make them; None where others do, on other machines.

    Raises:
        VaeError: as `make_rows`.
    """
    missing = sorted(set(missing_shards(store, job)) & set(numbers))
    sizes = [stop - start for start, stop in map(job.rows, missing)]
    rows, total = sum(sizes), sum(stop - start for start, stop in map(job.rows, numbers))
    measured, seconds = _timed(vae, job, job.rows(missing[0] if missing else 0))
    rate = measured / seconds
    used = None if workers is None else max(1, min(workers, len(missing)))
    # Whole files are handed out: the last to end has as many as any.
    whole = None if used is None else max(rows / used, -(-len(missing) // used) * max(sizes, default=0)) / rate
    taken = None if whole is None else min(whole, rows / rate)
    unknown = _unknown(store, job, used, total - rows)
    return Estimate(
        str(store), total, rows, len(missing), rows * job.row_bytes, store.free(), used, measured, rate, taken,
        _peak_memory(), unknown,
    )  # fmt: skip


def _timed(vae: VAE, job: Job, rows: tuple[int, int]) -> tuple[int, float]:
    """Make some of the rows; return their number and the seconds, without those of loading the graphs."""
    start, stop = rows
    for _ in make_rows(vae, job, start, min(start + job.batch_size, stop)):
        pass
    done, began = 0, time.perf_counter()
    for strip in make_rows(vae, job, start, stop):
        done += len(strip)
        if time.perf_counter() - began > _SECONDS:
            break
    return done, max(time.perf_counter() - began, 1e-9)


def _unknown(store: Store, job: Job, workers: int | None, there: int) -> tuple[str, ...]:
    """Say what the estimate does not know."""
    texts = ["how fast the place takes files: nothing was written"]
    if workers is None:
        texts.append("how many workers the cluster has, and how fast and how large they are there")
    elif workers > 1:
        texts.append(f"how much {workers} workers slow each other down: one was measured, with the machine as it is")
    if is_compressed(job.format):
        texts.append(f"how small {job.format} makes the files: the disk space is that of the numbers")
    if there:
        texts.append(
            f"whether the files of {counted(there, 'sample')} already there are whole: the call hashes them first"
        )
    return tuple(texts)


def _peak_memory() -> int | None:
    """Return the most memory that this process has had, in bytes; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def size_text(number: int) -> str:
    """Return a number of bytes in MiB or GiB."""
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 else f"{number / 2**20:.2f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.2g} s"
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    return f"{minutes} min" if minutes < 120 else f"{hours} h" if hours < 96 else f"{round(seconds / 86400)} days"
