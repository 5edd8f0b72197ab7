"""Write many samples to disk; after any interruption the same call resumes.

A job is a list of shards, and an executor makes them in one or more processes. docs/offline-generation.md has more.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..bundle import open_bundle
from ..errors import InputError, VaeError, counted
from ..files import lies_in
from ..tiles import Tile
from ..vae import VAE, load
from . import local, ray
from .estimation import Estimate, estimate, size_text
from .folder import (
    claim,
    discard_empty,
    held,
    missing_shards,
    read_entries,
    read_job,
    read_job_document,
    require_claimable,
    shard_name,
    write_index,
)
from .formats.table import is_compressed
from .job import Job
from .local import usable_cores
from .request import Callbacks, Conditions, Draw, Execution, Output, Request, Source, describe_job
from .samples import Samples, open_samples
from .store import Store, open_store


def generate(
    bundle: str | os.PathLike[str],
    out: str | os.PathLike[str],
    n: int | None = None,
    *,
    seed: int | None = None,
    reconstruct: str | os.PathLike[str] | None = None,
    encode: str | os.PathLike[str] | None = None,
    decode: str | os.PathLike[str] | None = None,
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
    tile: Tile | None = None,
    tile_blend: bool | float = False,
    part: tuple[int, int] | None = None,
    executor: str = "local",
    address: str | None = None,
    progress: Callable[[int, int], object] | None = None,
    warn: Callable[[str], object] | None = None,
    timings: dict[str, float] | None = None,
    dry_run: Callable[[Estimate], object] | None = None,
) -> Samples | None:
    """Write samples 0 … n - 1 of a seed to a folder; after an interruption the same call writes what is missing.

    With `reconstruct`, `encode` or `decode` the rows of a file are processed instead.

    Args:
        bundle: the bundle's folder.
        out: the folder of the samples, made if necessary, or the URL of a remote store (s3://bucket/prefix). A folder
            with another job is refused; the same job with a larger n resumes.
        n: the number of samples, at least 1; None takes all rows of a file.
        seed: the seed of vnoise-1; only where nothing is drawn, as where complete latents are decoded, it may be left
            out.
        reconstruct: an .npy file of observations: their reconstructions are written, through the posterior's mean.
        encode: an .npy file of observations: their latents are written, with the fields `mu`, `std` and `z`, the
            posterior's sample that `encode(x, seed=…).sample(seed=…)` gives; or with `mu` or `codes` alone, where the
            encoder gives no distribution. With several latents, each name begins with the latent's and a dot.
        decode: an .npy file of latents [n, *latent shape], from wherever they are; several latents are the fields of a
            structured array: the observations that `decode(z, seed=…)` gives are written.
        workers: the number of processes, of one thread each; None takes the cores that this process may use, or those
            of the cluster.
        device: as in `load`.
        variant: as in `load`.
        format: "npy", "parquet" or "safetensors".
        dtype: "float32", or "uint8": the range in the manifest is scaled to 0 … 255, and rounded half to even.
        observe: write draws from the likelihood instead of its means.
        temperature: as in `VAE.sample`.
        truncation: as in `VAE.sample`.
        conditions: by name, one value for all samples, or the path of an .npy file of at least n rows.
        balanced: the name of a condition with classes: sample i gets the class i mod their number.
        batch_size: rows decoded at once; None takes 64.
        shard_size: samples of a shard, a multiple of the batch size; None takes about 64 MB.
        tile: as in the methods of `VAE`, for pictures larger than memory; other tiles are another job.
        tile_blend: as in the methods of `VAE`.
        part: (k, m), for the k-th, from 1, of m calls that share the work: shards k - 1, k - 1 + m, … The last call to
            end writes the index.
        executor: "local": processes of this machine; "ray": actors of a Ray cluster.
        address: the cluster's address: "auto", "HOST:PORT" or "ray://HOST:PORT"; None takes the environment variable
            RAY_ADDRESS, or starts a cluster of this machine for the time of the call.
        progress: called with (samples done, samples of this call) after each shard.
        warn: called with the text of each warning.
        timings: the seconds of all workers are added to it, by phase: "noise", "encode", "decode", "convert" (to the
            dtype) and, beside these in another thread, "write"; and "check", the hashing of shards that existed.
        dry_run: called with an `Estimate` of the time, the disk space and the memory of this call, of a batch that is
            made and thrown away; such as `print`. Then nothing is written.

    Returns:
        The samples, opened; None if other parts are not done yet, or with `dry_run`.

    Raises:
        BundleError: the bundle is missing or damaged.
        DeviceError: the device is unavailable.
        InputError: an argument is out of its range or contradicts the folder's job.
        VaeError: the folder cannot be written, another call is at work in it, the disk is too small, a library
            is missing, or a worker died.
    """
    source, draw = Source(reconstruct, encode, decode), Draw(seed, temperature, truncation, observe)
    output = Output(format, dtype, batch_size, shard_size, tile, tile_blend)
    request = Request(n, draw, source, Conditions(conditions, balanced), output)
    execution, callbacks = Execution(workers, executor, address, part), Callbacks(progress, warn, timings)
    store = open_store(out)
    if workers not in (None, 1) and executor == "local" and not store.shared:
        raise InputError(f"workers: expected 1, since only one process sees {store}, got {workers}")
    vae = load(bundle, device=device, variant=variant)
    folder = store.path("")
    if folder is not None and lies_in(folder, vae.bundle.path):
        raise InputError(f"{store}: expected a place outside the bundle, since a new file would make it invalid")
    job = describe_job(vae, request, read_job_document(store))
    if dry_run is not None:
        _estimate(vae, store, job, execution, dry_run, warn)
        return None
    with held(store, shared=part is not None):
        claim(store, job, shared=part is not None, warn=warn)
        numbers = execution.shards(job.shards)
        try:
            _require_space(store, job, numbers, warn)
            _make_shards(vae, store, job, numbers, execution, callbacks)
        except VaeError:
            # Where parts share the folder, another call may be about to write.
            if part is None:
                discard_empty(store)
            raise
        return _finish(store, job)


def _estimate(
    vae: VAE, store: Store, job: Job, execution: Execution, report: Callable[[Estimate], object],
    warn: Callable[[str], object] | None,
) -> None:  # fmt: skip
    """Report what a call would take, after what would refuse it, and before what would end it at once."""
    require_claimable(store, job, shared=execution.part is not None)
    numbers = execution.shards(job.shards)
    report(estimate(vae, store, job, numbers, _workers(store, execution)))
    _require_space(store, job, numbers, warn)


def _workers(store: Store, execution: Execution) -> int | None:
    """Return the number of processes of this machine that may make shards; None on a cluster."""
    if execution.executor == "ray":
        return None
    return execution.workers or (usable_cores() if store.shared else 1)


def _make_shards(
    vae: VAE, store: Store, job: Job, numbers: range, execution: Execution, callbacks: Callbacks
) -> None:  # fmt: skip
    """Make shards by the executor, and report progress."""
    if execution.executor == "ray":
        results = ray.make_shards(vae, store, job, numbers, execution.workers, execution.address, callbacks.warn)
    else:
        workers = _workers(store, execution) or 1
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
    """Write the index of a folder whose shards, made by calls with `part`, are all whole.

    Args:
        folder: the folder, or the URL of a remote store.
        bundle: the bundle that made the samples; None checks nothing.

    Returns:
        The samples, opened.

    Raises:
        BundleError: the bundle is missing, or another one made the samples.
        VaeError: the folder holds no samples, a shard is missing, or another call is at work in it.
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
            are = "is" if len(missing) == 1 else "are"
            raise VaeError(
                f"{store}: {len(missing)} of {counted(job.shards, 'shard')} {are} missing or cut short: {listed}; run "
                "the same `generate` again, without --part or with the part of the shard"
            )
        write_index(store, job, entries)
    return open_samples(store)


def _require_space(
    store: Store, job: Job, numbers: Sequence[int], warn: Callable[[str], object] | None
) -> None:  # fmt: skip
    """Raise if the disk is too small for the shards of this call; warn if it is too small for those of all parts."""
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
    parts = "" if own == whole else f", {size_text(own)} of them by this part"
    smaller = ", or take uint8" if job.dtype == "float32" and job.range is not None else ""
    advice = f"free some space, choose another disk{smaller}"
    message = f"{store}: expected {size_text(whole)} of free space{parts}, got {size_text(free)}; {advice}"
    if own > free and not is_compressed(job.format):
        raise VaeError(message)
    if warn is not None:
        warn(message)


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
