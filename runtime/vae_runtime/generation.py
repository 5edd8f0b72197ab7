"""Many samples to disk, finished by the same command whatever interrupts it.

docs/offline-generation.md is the description. A job is a list of shards; executors decide who makes them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .errors import InputError, VaeError, require_integer
from .job import VERSION, Job, describe
from .samples import INDEX, JOB, Samples, open_samples, read_json
from .shards import dump, entry
from .store import Folder, open_store
from .vae import load
from .workers import run, usable_cores

__all__ = ["generate"]


def generate(
    bundle: str | os.PathLike[str],
    out: str | os.PathLike[str],
    n: int,
    *,
    seed: int,
    workers: int | None = None,
    device: str = "cpu",
    variant: str | None = None,
    dtype: str = "float32",
    observe: bool = False,
    temperature: float = 1.0,
    truncation: float | None = None,
    conditions: Mapping[str, Any] | None = None,
    balanced: str | None = None,
    batch_size: int | None = None,
    shard_size: int | None = None,
    part: tuple[int, int] | None = None,
    progress: Callable[[int, int], object] | None = None,
    warn: Callable[[str], object] | None = None,
) -> Samples | None:
    """Write samples 0 … n - 1 of a seed to a folder; called again after any interruption, it writes what is missing.

    Args:
        bundle: the bundle's folder.
        out: the folder of the samples, made if need be. One that holds another job is refused; the same job with a
            larger n goes on.
        n: how many, at least 1.
        seed: of vnoise-1.
        workers: processes of one thread each; None takes as many as there are cores for this process.
        device: as of `load`.
        variant: as of `load`.
        dtype: "float32", or "uint8": the range of the manifest is taken to 0 … 255, rounded half to even.
        observe: draws from the likelihood instead of its means.
        temperature: as of `VAE.sample`.
        truncation: as of `VAE.sample`.
        conditions: for each sample the same value, or by the path of an .npy file of at least n rows its own.
        balanced: the name of a condition with classes: sample i gets the class i mod their number.
        batch_size: rows decoded at once; None takes 512.
        shard_size: samples of a shard, a multiple of the batch size; None takes some 64 MB.
        part: (k, m), of m calls that share the work the k-th from 1: shards k - 1, k - 1 + m, … The last to end writes
            the index.
        progress: called with (samples done, samples of this call) after each shard.
        warn: called with what is not wrong, but should be known.

    Returns:
        The samples, opened; None where other parts are not done yet.

    Raises:
        BundleError: the bundle is missing or damaged.
        DeviceError: the device is not to be had.
        InputError: an argument is out of its range or contradicts the folder's job.
        VaeError: the folder cannot be written, another call is at work in it, the disk is too small, or a worker died.
    """
    vae = load(bundle, device=device, variant=variant)
    job = describe(
        vae, n, seed, dtype, observe, temperature, truncation, conditions, balanced, batch_size, shard_size
    )  # fmt: skip
    count = usable_cores() if workers is None else require_integer("workers", workers, 1, 4096)
    first, step = (0, 1) if part is None else (part[0] - 1, part[1])
    if part is not None:
        require_integer("part", part[1], 1, 2**31)
        require_integer("part", part[0], 1, part[1])
    store = open_store(out)
    with store.held(shared=part is not None):
        _settle(store, job, part is not None, warn)
        numbers = range(first, job.shards, step)
        _require_room(store, job, numbers)
        done, total = 0, sum(stop - start for start, stop in map(job.rows, numbers))
        for rows in run(vae, store, job, numbers, min(count, max(1, len(numbers)))):
            done += rows
            if progress is not None:
                progress(done, total)
        return _finish(store, job)


# The folder.


def _settle(store: Folder, job: Job, shared: bool, warn: Callable[[str], object] | None) -> None:
    """Write the folder's job, or hold this call's against the one that is there."""
    if JOB not in (names := store.names()):
        if names:
            raise InputError(f"{store}: an empty folder or one of this job is expected, it holds {names[0]}")
        store.write(JOB, dump(job.as_json()))
        return
    found = read_json(store, JOB)
    differences = job.differences(found, growing=not shared)
    if differences:
        raise InputError(f"{store}: holds another job; {'; '.join(differences)}; give another folder")
    other = job.other_machine(found)
    if other and warn is not None:
        warn(
            f"{store}: begun on another kind of machine ({'; '.join(other)}): latents are the same bits anywhere, "
            "decoded values only with the same ONNX Runtime on the same kind of processor"
        )
    if job.n > found["n"]:
        # The index goes first: it would tell of fewer samples than the job.
        store.remove(INDEX)
        store.write(JOB, dump({**job.as_json(), "machine": found["machine"]}))


def _require_room(store: Folder, job: Job, numbers: Sequence[int]) -> None:
    free = store.free()
    if free is None:
        return
    needed = job.row_bytes * sum(
        stop - start for number in numbers if entry(store, job, number) is None for start, stop in [job.rows(number)]
    )
    if needed > free:
        raise VaeError(
            f"{store}: {needed / 2**30:.2f} GiB are needed, {free / 2**30:.2f} GiB are free; free some space, choose "
            "another disk, or take uint8"
        )


def _finish(store: Folder, job: Job) -> Samples | None:
    """Write the index if every shard is there."""
    entries = [entry(store, job, number) for number in range(job.shards)]
    if any(entry is None for entry in entries):
        return None
    store.write(INDEX, dump({"format_version": VERSION, "job": job.as_json(), "shards": entries}))
    return open_samples(str(store))
