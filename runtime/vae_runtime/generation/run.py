"""Many samples to disk, finished by the same command whatever interrupts it.

docs/offline-generation.md is the description. A job is a list of shards; executors decide who makes them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..bundle import open_bundle
from ..errors import InputError, VaeError
from ..vae import VAE, load
from . import local, ray
from .folder import (
    claim,
    held,
    missing_shards,
    read_entries,
    read_job,
    read_job_document,
    shard_name,
    write_index,
)  # fmt: skip
from .job import Job
from .local import usable_cores
from .request import Callbacks, Conditions, Draw, Execution, Output, Request, Source, describe_job
from .samples import Samples, open_samples
from .store import Store, open_store

__all__ = ["finish_samples", "generate"]


def generate(
    bundle: str | os.PathLike[str],
    out: str | os.PathLike[str],
    n: int | None = None,
    *,
    seed: int,
    reconstruct: str | os.PathLike[str] | None = None,
    encode: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    device: str = "cpu",
    variant: str | None = None,
    format: str = "npy",
    dtype: str = "float32",
    observe: bool = False,
    temperature: float = 1.0,
    truncation: float | None = None,
    conditions: Mapping[str, Any] | None = None,
    balanced: str | None = None,
    batch_size: int | None = None,
    shard_size: int | None = None,
    part: tuple[int, int] | None = None,
    executor: str = "local",
    address: str | None = None,
    progress: Callable[[int, int], object] | None = None,
    warn: Callable[[str], object] | None = None,
    timings: dict[str, float] | None = None,
) -> Samples | None:
    """Write samples 0 … n - 1 of a seed to a folder; called again after any interruption, it writes what is missing.

    Or, instead of samples of the prior, what becomes of the rows of a file.

    Args:
        bundle: the bundle's folder.
        out: the folder of the samples, made if need be, or the URL of a remote store (s3://bucket/prefix). One that
            holds another job is refused; the same job with a larger n goes on.
        n: how many, at least 1; None takes all rows of a file.
        seed: of vnoise-1.
        reconstruct: an .npy file of observations: their reconstructions are written, through the posterior's mean.
        encode: an .npy file of observations: their latents are written, rows of the fields `mu`, `std` and `z`, the
            posterior's sample that `encode(x, seed=…).sample(seed=…)` gives; `mu` alone, or `codes`, where there is no
            distribution; of several latents each field after the latent's name and a dot.
        workers: processes of one thread each; None takes as many as there are cores for this process, or, of a
            cluster, as many as it has.
        device: as of `load`.
        variant: as of `load`.
        format: of the files, "npy", "parquet" or "safetensors".
        dtype: "float32", or "uint8": the range of the manifest is taken to 0 … 255, rounded half to even.
        observe: draws from the likelihood instead of its means.
        temperature: as of `VAE.sample`.
        truncation: as of `VAE.sample`.
        conditions: for each sample the same value, or by the path of an .npy file of at least n rows its own.
        balanced: the name of a condition with classes: sample i gets the class i mod their number.
        batch_size: rows decoded at once; None takes 64.
        shard_size: samples of a shard, a multiple of the batch size; None takes some 64 MB.
        part: (k, m), of m calls that share the work the k-th from 1: shards k - 1, k - 1 + m, … The last to end writes
            the index.
        executor: "local": processes of this machine; "ray": actors of a Ray cluster.
        address: of the cluster: "auto", "HOST:PORT" or "ray://HOST:PORT"; None takes that of the environment's
            RAY_ADDRESS, or starts one of this machine alone for the time of the call.
        progress: called with (samples done, samples of this call) after each shard.
        warn: called with what is not wrong, but should be known.
        timings: to which are added the seconds of all workers spent on "noise", "encode", "decode", "convert" (to the
            dtype) and "write", and on "check", the hashing of what was there.

    Returns:
        The samples, opened; None where other parts are not done yet.

    Raises:
        BundleError: the bundle is missing or damaged.
        DeviceError: the device is not to be had.
        InputError: an argument is out of its range or contradicts the folder's job.
        VaeError: the folder cannot be written, another call is at work in it, the disk is too small, a library
            is missing, or a worker died.
    """
    source, draw = Source(reconstruct, encode), Draw(seed, temperature, truncation, observe)
    output = Output(format, dtype, batch_size, shard_size)
    request = Request(n, draw, source, Conditions(conditions, balanced), output)
    execution, callbacks = Execution(workers, executor, address, part), Callbacks(progress, warn, timings)
    store = open_store(out)
    if workers not in (None, 1) and executor == "local" and not store.shared:
        raise InputError(f"workers: 1 is expected, since only one process sees {store}, got {workers}")
    vae = load(bundle, device=device, variant=variant)
    job = describe_job(vae, request, read_job_document(store))
    with held(store, shared=part is not None):
        claim(store, job, shared=part is not None, warn=warn)
        numbers = execution.shards(job.shards)
        _require_space(store, job, numbers, warn)
        _make_shards(vae, store, job, numbers, execution, callbacks)
        return _finish(store, job)


def _make_shards(
    vae: VAE, store: Store, job: Job, numbers: range, execution: Execution, callbacks: Callbacks
) -> None:  # fmt: skip
    """Have an executor make shards, and tell the caller of each."""
    if execution.executor == "ray":
        results = ray.make_shards(vae, store, job, numbers, execution.workers, execution.address, callbacks.warn)
    else:
        workers = execution.workers or (usable_cores() if store.shared else 1)
        results = local.make_shards(vae, store, job, numbers, min(workers, max(1, len(numbers))))
    done, total = 0, sum(stop - start for start, stop in map(job.rows, numbers))
    timings = {} if callbacks.timings is None else callbacks.timings
    with contextlib.closing(results):
        for rows, seconds in results:
            done += rows
            for phase, spent in seconds.items():
                timings[phase] = timings.get(phase, 0.0) + spent
            if callbacks.progress is not None:
                callbacks.progress(done, total)


def finish_samples(folder: str | os.PathLike[str], bundle: str | os.PathLike[str] | None = None) -> Samples:
    """Write the index of a folder whose shards are all there, which calls with `part` have made.

    Args:
        folder: the folder, or the URL of a remote store.
        bundle: if given, the samples have to be of this one.

    Returns:
        The samples, opened.

    Raises:
        BundleError: the bundle is missing, or the samples are of another one.
        VaeError: it is no folder of samples, a shard is missing, or another call is at work in it.
    """
    store = open_store(folder)
    job = read_job(store)
    if bundle is not None:
        open_bundle(bundle, job.digest)
    with held(store, shared=False):
        entries = read_entries(store, job, range(job.shards))
        missing = [shard_name(job, number) for number, entry in enumerate(entries) if entry is None]
        if missing:
            listed = ", ".join(missing[:8]) + (", …" if len(missing) > 8 else "")
            raise VaeError(
                f"{store}: {len(missing)} of {job.shards} shards are missing or cut short: {listed}; run the same "
                "`generate` again, without --part or with that of the shard"
            )
        write_index(store, job, entries)
    return open_samples(store)


def _require_space(
    store: Store, job: Job, numbers: Sequence[int], warn: Callable[[str], object] | None
) -> None:  # fmt: skip
    """See that there is room for the shards of this call, and tell where there is not for those of all its parts."""
    free = store.free()
    if free is None:
        return
    sizes = {}
    for number in missing_shards(store, job):
        start, stop = job.rows(number)
        sizes[number] = job.row_bytes * (stop - start)
    whole, own = sum(sizes.values()), sum(size for number, size in sizes.items() if number in numbers)
    if whole <= free:
        return
    parts = "" if own == whole else f", {_size(own)} of them by this part"
    smaller = ", or take uint8" if job.dtype == "float32" and job.range is not None else ""
    advice = f"free some space, choose another disk{smaller}"
    message = f"{store}: {_size(whole)} are needed{parts}, {_size(free)} are free; {advice}"
    # How small Parquet becomes is not known before.
    if own > free and job.format != "parquet":
        raise VaeError(message)
    if warn is not None:
        warn(message)


def _size(number: int) -> str:
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 else f"{number / 2**20:.2f} MiB"


def _finish(store: Store, job: Job) -> Samples | None:
    """Write the index if every shard is there."""
    # Listing is cheaper than reading the sidecars of what other parts have not finished.
    if missing_shards(store, job):
        return None
    entries = read_entries(store, job, range(job.shards))
    if any(entry is None for entry in entries):
        return None
    write_index(store, job, entries)
    return open_samples(store)
