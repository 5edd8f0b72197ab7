"""Prove a folder of samples: hash every shard, then make a few again out of the bundle and compare."""

from __future__ import annotations

import dataclasses
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, VaeError, require_integer
from ..vae import VAE, load
from ..verification import Check, Report
from .folder import INDEX, JOB, read_job, read_machine, shard_name
from .job import Job
from .machine import machine
from .rows import make_rows
from .samples import Samples, open_samples
from .sources import describe_file
from .store import Store, open_store

__all__ = ["verify_samples"]

# Beyond any number that vnoise-1 draws from a standard normal.
_MOST_NOISE = 8.0


def verify_samples(
    folder: str | os.PathLike[str],
    bundle: str | os.PathLike[str] | None = None,
    *,
    shards: int = 3,
    device: str = "cpu",
    files: Mapping[str, str | os.PathLike[str]] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Report:
    """Check every file of a finished folder of samples, and what some of them hold.

    Every shard is hashed and held against the index. Then some are made again out of the bundle: the first, the last,
    and others by chance. A shard that was made on this kind of machine, with this ONNX Runtime, must be the same
    numbers; one that was made on another kind must agree with them within the tolerance of the bundle's variant.

    Args:
        folder: the folder, or the URL of a remote store.
        bundle: the bundle of the samples; without it nothing is made again.
        shards: how many are made again; all of them where there are fewer.
        device: as of `load`.
        files: the job's .npy files, each by the name of the observation or the condition; without a bundle none.
        progress: called with (samples done, samples) after each shard that was hashed.

    Raises:
        BundleError: the bundle is missing or damaged, or is another one.
        DeviceError: the device is not to be had.
        InputError: an argument is out of its range, or a file is missing or another one than the job's.
        VaeError: it is no folder of samples, is not finished, or its index is damaged; what fails later is in the
            report.
    """
    count = require_integer("shards", shards, 0, 2**48)
    store = open_store(folder)
    samples, job = open_samples(folder), read_job(store)
    if samples.job != job.as_json() | {"machine": samples.job.get("machine"), "files": samples.job.get("files")}:
        return Report((Check(INDEX, False, f"tells of another job than {JOB}; run the same `generate` again"),))
    job, vae = _with_files(job, {} if files is None else files, needed=bundle is not None and count > 0), None
    if bundle is not None:
        vae = load(bundle, device=device, variant=job.variant, digest=job.digest)
    checks, whole = [], []
    for number, shard in enumerate(samples.shards):
        problem = _problem(store, job, number, shard)
        if problem is None:
            whole.append(number)
        else:
            checks.append(Check(shard["file"], False, problem))
        if progress is not None:
            progress(shard["stop"], len(samples))
    if not checks:
        size = sum(shard["bytes"] for shard in samples.shards)
        checks.append(Check("files", True, f"{len(whole)} shards of {size} bytes in all, every SHA-256 as listed"))
    if vae is not None:
        checks.extend(_replayed(vae, store, job, samples, whole, count))
    return Report(tuple(checks))


def _problem(store: Store, job: Job, number: int, shard: Mapping[str, Any]) -> str | None:
    start, stop = job.rows(number)
    if (shard["file"], shard["start"], shard["stop"]) != (shard_name(job, number), start, stop):
        return f"samples {start} … {stop - 1} are expected, {INDEX} says {shard['start']} … {shard['stop'] - 1}"
    try:
        found = store.sha256(shard["file"])
    except VaeError as error:
        return str(error)
    return None if found == shard["sha256"] else f"sha256 is {found}, {INDEX} says {shard['sha256']}"


def _with_files(job: Job, files: Mapping[str, str | os.PathLike[str]], *, needed: bool) -> Job:
    """The job, with the places of its files."""
    if not isinstance(files, Mapping):
        raise InputError(f"files: a mapping of names to paths is expected, got {files!r:.99}")
    unknown = files.keys() - job.files.keys()
    if unknown:
        raise InputError(
            f"files: one of {', '.join(job.files) or 'none'} is expected, got {', '.join(sorted(unknown))}"
        )
    missing = [name for name in job.files if name not in files]
    if missing and needed:
        raise InputError(
            f"files: shards are made again from the file of {', '.join(missing)}; give it, as the call that wrote the "
            "folder did, or let none be made again"
        )
    found = {}
    for name, path in files.items():
        content, file = describe_file(path)
        if content["sha256"] != job.files[name]["sha256"]:
            raise InputError(f"{path}: sha256 is {content['sha256']}, {JOB} says {job.files[name]['sha256']} of {name}")
        found[name] = file
    return dataclasses.replace(job, files={**job.files, **found})


def _replayed(
    vae: VAE, store: Store, job: Job, samples: Samples, whole: list[int], count: int
) -> Iterator[Check]:  # fmt: skip
    ends = [number for number in (0, job.shards - 1) if number in whole][:count]
    others = [number for number in whole if number not in ends]
    for number in sorted({*ends, *random.sample(others, min(count - len(ends), len(others)))}):
        yield _compare(vae, store, job, samples, number)


def _compare(vae: VAE, store: Store, job: Job, samples: Samples, number: int) -> Check:
    start, stop = job.rows(number)
    name = shard_name(job, number)
    made_on = read_machine(store, job, number) or dict(samples.job["machine"])
    here = made_on == machine(vae.device)
    tolerances = dict.fromkeys(job.row_dtype.names or ["x"], 0.0) if here else _tolerances(vae, job)
    greatest, first = dict.fromkeys(tolerances, 0.0), start
    try:
        for made in make_rows(vae, job, start, stop):
            there = samples[first : first + len(made)]
            for field, tolerance in tolerances.items():
                a, b = (rows if rows.dtype.names is None else rows[field] for rows in (there, made))
                difference = np.abs(a.astype(np.float64) - b)
                # Written so that NaN fails.
                wrong = np.argwhere(~(difference <= tolerance))
                if len(wrong):
                    place = tuple(int(i) for i in wrong[0])
                    return Check(name, False, _words(field, first, place, a, b, tolerance))
                greatest[field] = max(greatest[field], float(difference.max()))
            first += len(made)
    except VaeError as error:
        return Check(name, False, str(error))
    if here:
        return Check(name, True, f"samples {start} … {stop - 1} made again: the same numbers")
    if not tolerances:
        return Check(name, None, f"made on another kind of machine ({made_on}), where {job.verb} has no tolerance")
    shown = ", ".join(f"{field}: max difference {greatest[field]:.2g}, tolerance {tolerances[field]:.2g}"
                      for field in tolerances)  # fmt: skip
    return Check(name, True, f"samples {start} … {stop - 1} made again, on another kind of machine: {shown}")


def _words(
    field: str, first: int, place: tuple[int, ...], a: NDArray[Any], b: NDArray[Any], tolerance: float
) -> str:  # fmt: skip
    within = f", tolerance {tolerance:.2g}" if tolerance else ""
    index = [first + place[0], *place[1:]]
    return f"{field}{index}: {b[place]:.9g} is made from the bundle, the file holds {a[place]:.9g}{within}"


def _tolerances(vae: VAE, job: Job) -> dict[str, float]:
    """How far the numbers of another kind of machine may be off, by field; none where nobody has said."""
    manifest, names = vae.manifest, vae.variants
    if job.verb == "sample" and not job.observe:
        tolerance = manifest.components["decoder"][names["decoder"]].tolerance[manifest.likelihood.mean]
        if job.dtype == "uint8" and job.range is not None:
            # Numbers this far apart may be rounded to either side.
            tolerance = 1.0 + math.floor(tolerance * 255 / (job.range[1] - job.range[0]))
        return {"x": tolerance}
    found: dict[str, float] = {}
    if job.verb != "encode":
        return found
    outputs = manifest.components["encoder"][names["encoder"]].tolerance
    for latent in manifest.latents:
        before = f"{latent.name}." if len(manifest.latents) > 1 else ""
        posterior = latent.posterior
        if posterior.mu and posterior.std:
            found |= {f"{before}mu": outputs[posterior.mu], f"{before}std": outputs[posterior.std]}
            found[f"{before}z"] = outputs[posterior.mu] + _MOST_NOISE * outputs[posterior.std]
        elif posterior.value:
            found[before + ("codes" if latent.dtype == "int64" else "mu")] = outputs[posterior.value]
    return found
