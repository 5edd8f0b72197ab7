"""Many samples to disk, finished by the same command whatever interrupts it.

docs/offline-generation.md is the description. A job is a list of shards; executors decide who makes them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..bundle import open_bundle
from ..errors import InputError, VaeError, require_integer
from ..vae import load
from . import ray as cluster
from .job import Job, describe
from .local import run, usable_cores
from .samples import INDEX, JOB, VERSION, Samples, open_samples, read_json
from .shard import dump, entries, job_of
from .store import Store, open_store

__all__ = ["EXECUTORS", "finish_samples", "generate"]

EXECUTORS = ("local", "ray")


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
    if reconstruct is not None and encode is not None:
        raise InputError("encode: either this or reconstruct is expected, got both")
    verb = "sample" if reconstruct is encode else "encode" if reconstruct is None else "reconstruct"
    store = open_store(out)
    vae = load(bundle, device=device, variant=variant)
    job = describe(
        vae, n, seed, format, dtype, observe, temperature, truncation, conditions, balanced, batch_size, shard_size,
        verb, reconstruct if encode is None else encode, _known(store),
    )  # fmt: skip
    if workers is not None:
        workers = require_integer("workers", workers, 1, 4096)
    if executor not in EXECUTORS:
        raise InputError(f"executor: {' or '.join(EXECUTORS)} is expected, got {executor!r}")
    if address is not None and executor != "ray":
        raise InputError(f"address: a cluster's is for the executor ray, got {address!r} for {executor}")
    first, step = 0, 1
    if part is not None:
        if not isinstance(part, (tuple, list)) or len(part) != 2:
            raise InputError(f"part: two integers, (k, m), are expected, got {part!r}")
        step = require_integer("part", part[1], 1, 2**31)
        first = require_integer("part", part[0], 1, step) - 1
    if not store.shared and executor == "local":
        if workers not in (None, 1):
            raise InputError(f"workers: 1 is expected, since only one process sees {store}, got {workers}")
        workers = 1
    with store.held(shared=part is not None):
        _settle(store, job, part is not None, warn)
        numbers = range(first, job.shards, step)
        _require_room(store, job, numbers, warn)
        done, total = 0, sum(stop - start for start, stop in map(job.rows, numbers))
        if executor == "ray":
            made = cluster.run(vae, store, job, numbers, workers, address, warn)
        else:
            made = run(vae, store, job, numbers, min(workers or usable_cores(), max(1, len(numbers))))
        spent_on = {} if timings is None else timings
        with contextlib.closing(made):
            for rows, seconds in made:
                done += rows
                for phase, spent in seconds.items():
                    spent_on[phase] = spent_on.get(phase, 0.0) + spent
                if progress is not None:
                    progress(done, total)
        return _finish(store, job)


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
    job = job_of(store)
    if bundle is not None:
        open_bundle(bundle, job.digest)
    with store.held(shared=False):
        found = entries(store, job, range(job.shards))
        missing = [job.name(number) for number, entry in enumerate(found) if entry is None]
        if missing:
            listed = ", ".join(missing[:8]) + (", …" if len(missing) > 8 else "")
            raise VaeError(
                f"{store}: {len(missing)} of {job.shards} shards are missing or cut short: {listed}; run the same "
                "`generate` again, without --part or with that of the shard"
            )
        samples = _finish(store, job)
    assert samples is not None
    return samples


# The folder.


def _known(store: Store) -> dict[str, Any] | None:
    """The folder's job, if it has one, as it was written."""
    return None if store.size(JOB) is None else read_json(store, JOB)


def _settle(store: Store, job: Job, shared: bool, warn: Callable[[str], object] | None) -> None:
    """Write the folder's job, or hold this call's against the one that is there."""
    if store.size(JOB) is None:
        names = store.sizes()
        # Another call may have begun in the meantime.
        if names and JOB not in names:
            raise InputError(f"{store}: an empty folder or one of this job is expected, it holds {min(names)}")
        store.create(JOB, dump(job.as_json()))
    # Read back: another call may have been first.
    found = read_json(store, JOB)
    differences = job.differences(found, growing=not shared)
    if differences:
        # Of a job that has made nothing yet, on account of what is wanted differently now perhaps, nothing is lost.
        if shared or store.path(JOB) is None or store.sizes().keys() != {JOB}:
            raise InputError(f"{store}: holds another job; {'; '.join(differences)}; give another folder")
        store.write(JOB, dump(job.as_json()))
        return
    changes = job.other_machine(found)
    if changes and warn is not None:
        warn(
            f"{store}: begun on another kind of machine ({'; '.join(changes)}): latents are the same bits anywhere, "
            "decoded values only with the same ONNX Runtime on the same kind of processor"
        )
    if job.n > found["n"]:
        # The index goes first: it would tell of fewer samples than the job.
        store.remove(INDEX)
        store.write(JOB, dump({**job.as_json(), "machine": found["machine"]}))


def _require_room(
    store: Store, job: Job, numbers: Sequence[int], warn: Callable[[str], object] | None
) -> None:  # fmt: skip
    """See that there is room for the shards of this call, and tell where there is not for those of all its parts."""
    free = store.free()
    if free is None:
        return
    there, whole, own = store.sizes(), 0, 0
    for number in range(job.shards):
        if job.name(number) not in there:
            start, stop = job.rows(number)
            whole += job.row_bytes * (stop - start)
            own += job.row_bytes * (stop - start) if number in numbers else 0
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
    there = store.sizes()
    if any(job.name(number) not in there for number in range(job.shards)):
        return None
    found = entries(store, job, range(job.shards))
    if any(entry is None for entry in found):
        return None
    written = job_of(store)
    if (written.fingerprint, written.n) != (job.fingerprint, job.n):
        raise VaeError(
            f"{store}/{JOB}: was replaced by another call's since this one began; run the same command again"
        )
    index = dump({"format_version": VERSION, "job": job.as_json(), "shards": found})
    # A finished folder may be where nothing can be written any more.
    if store.read(INDEX) != index:
        store.write(INDEX, index)
    return open_samples(store)
