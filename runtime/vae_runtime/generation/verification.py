"""Verify a folder of samples: hash every shard, then make a few again from the bundle and compare."""

from __future__ import annotations

import dataclasses
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, VaeError, counted, require_integer
from ..vae import VAE, load
from ..verification import Check, Report
from .folder import INDEX, JOB, read_job, read_machine, shard_name
from .job import Job
from .machine import describe_machine
from .rows import make_rows
from .samples import Samples, open_samples
from .sources import describe_file
from .store import Store, open_store

# No number that vnoise-1 draws from a standard normal is larger.
_MAX_NOISE = 8.0


def verify_samples(
    folder: str | os.PathLike[str],
    bundle: str | os.PathLike[str] | None = None,
    *,
    shards: int = 3,
    device: str = "cpu",
    files: Mapping[str, str | os.PathLike[str]] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Report:
    """Check every file of a finished folder of samples, and the numbers in some of them.

    Every shard is hashed and compared with the index. Then some are made again from the bundle: the first, the last,
    and others chosen at random. A shard from this kind of machine, with this ONNX Runtime, must have the same numbers;
    one from another kind of machine must agree within the tolerance of the bundle's variant.

    Args:
        folder: the folder, or the URL of a remote store.
        bundle: the bundle that made the samples; without it shards are only hashed.
        shards: the number of shards to make again, at most all.
        device: as in `load`.
        files: the job's .npy files, by the name of the observation, the first latent or the condition; needed with a
            bundle only.
        progress: called with (samples done, samples) after each shard that was hashed.

    Raises:
        BundleError: the bundle is missing or damaged, or did not make the samples.
        DeviceError: the device is unavailable.
        InputError: an argument is out of its range, or a file is missing or differs from the job's.
        VaeError: the folder holds no samples, is not finished, or its index is damaged; later failures are in the
            report.
    """
    count = require_integer("shards", shards, 0, 2**48)
    store = open_store(folder)
    samples, job = open_samples(folder), read_job(store)
    if samples.job != job.as_json() | {"machine": samples.job.get("machine"), "files": samples.job.get("files")}:
        return Report((Check(INDEX, False, f"describes another job than {JOB}; run the same `generate` again"),))
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
        checks.append(
            Check("files", True, f"{counted(len(whole), 'shard')} of {size} bytes in total, every SHA-256 as listed")
        )
    if vae is not None:
        checks.extend(_replayed(vae, store, job, samples, whole, count))
    return Report(tuple(checks))


def _problem(store: Store, job: Job, number: int, shard: Mapping[str, Any]) -> str | None:
    start, stop = job.rows(number)
    if (shard["file"], shard["start"], shard["stop"]) != (shard_name(job, number), start, stop):
        return f"expected samples {start} … {stop - 1}, {INDEX} says {shard['start']} … {shard['stop'] - 1}"
    try:
        sha256 = store.sha256(shard["file"])
    except VaeError as error:
        return str(error)
    return None if sha256 == shard["sha256"] else f"sha256 is {sha256}, {INDEX} says {shard['sha256']}"


def _with_files(job: Job, files: Mapping[str, str | os.PathLike[str]], *, needed: bool) -> Job:
    """The job, with the places of its files."""
    if not isinstance(files, Mapping):
        raise InputError(f"files: expected a mapping of names to paths, got {files!r:.99}")
    unknown = files.keys() - job.files.keys()
    if unknown:
        raise InputError(f"files: expected {', '.join(job.files) or 'none'}, got {', '.join(sorted(unknown))}")
    missing = [name for name in job.files if name not in files]
    if missing and needed:
        raise InputError(
            f"files: the file of {', '.join(missing)} is needed to make shards again; give it, as in the call that "
            "wrote the folder, or make no shards again (--replay 0)"
        )
    locations = {}
    for name, path in files.items():
        content, location = describe_file(path)
        if content["sha256"] != job.files[name]["sha256"]:
            raise InputError(
                f"{path}: expected sha256 {job.files[name]['sha256']}, which {JOB} states for {name}, got "
                f"{content['sha256']}"
            )
        locations[name] = location
    return dataclasses.replace(job, files={**job.files, **locations})


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
    same_kind = made_on == describe_machine(vae.device)
    tolerances = dict.fromkeys(job.row_dtype.names or ["x"], 0.0) if same_kind else _tolerances(vae, job)
    largest, first = dict.fromkeys(tolerances, 0.0), start
    try:
        for remade in make_rows(vae, job, start, stop):
            stored = samples[first : first + len(remade)]
            for field, tolerance in tolerances.items():
                a, b = (rows if rows.dtype.names is None else rows[field] for rows in (stored, remade))
                difference = np.abs(a.astype(np.float64) - b)
                # NaN fails this comparison.
                wrong = np.argwhere(~(difference <= tolerance))
                if len(wrong):
                    place = tuple(int(i) for i in wrong[0])
                    return Check(name, False, _difference(field, first, place, a, b, tolerance))
                largest[field] = max(largest[field], float(difference.max()))
            first += len(remade)
    except VaeError as error:
        return Check(name, False, str(error))
    if same_kind:
        return Check(name, True, f"samples {start} … {stop - 1} made again: the same numbers")
    if not tolerances:
        return Check(name, None, f"made on another kind of machine ({made_on}), where {job.verb} has no tolerance")
    shown = ", ".join(f"{field}: max difference {largest[field]:.2g}, tolerance {tolerances[field]:.2g}"
                      for field in tolerances)  # fmt: skip
    return Check(name, True, f"samples {start} … {stop - 1} made again, on another kind of machine: {shown}")


def _difference(
    field: str, first: int, place: tuple[int, ...], a: NDArray[Any], b: NDArray[Any], tolerance: float
) -> str:
    within = f", tolerance {tolerance:.2g}" if tolerance else ""
    index = [first + place[0], *place[1:]]
    return f"{field}{index}: expected {b[place]:.9g}, made again from the bundle, the file holds {a[place]:.9g}{within}"


def _tolerances(vae: VAE, job: Job) -> dict[str, float]:
    """Return how much the numbers of another kind of machine may differ, by field; nothing if it is not known."""
    manifest, names = vae.manifest, vae.variants
    if job.verb in ("sample", "decode") and not job.observe:
        tolerance = manifest.components["decoder"][names["decoder"]].tolerance[manifest.likelihood.mean]
        if job.dtype == "uint8" and job.range is not None:
            # Numbers that differ this much may be rounded to either side.
            tolerance = 1.0 + math.floor(tolerance * 255 / (job.range[1] - job.range[0]))
        return {"x": tolerance}
    tolerances: dict[str, float] = {}
    if job.verb != "encode":
        return tolerances
    outputs = manifest.components["encoder"][names["encoder"]].tolerance
    for latent in manifest.latents:
        prefix = f"{latent.name}." if len(manifest.latents) > 1 else ""
        posterior = latent.posterior
        if posterior.mu and posterior.std:
            tolerances |= {f"{prefix}mu": outputs[posterior.mu], f"{prefix}std": outputs[posterior.std]}
            tolerances[f"{prefix}z"] = outputs[posterior.mu] + _MAX_NOISE * outputs[posterior.std]
        elif posterior.value:
            tolerances[prefix + ("codes" if latent.dtype == "int64" else "mu")] = outputs[posterior.value]
    return tolerances
