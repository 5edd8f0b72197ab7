"""The rows of a job: a pure function of the job and the rows' own numbers.

A row is a sample of the prior, or the latents or the reconstruction of a row of a file. Rows are made in batches of the
job's size that begin at multiples of it, so that no number depends on the process that made it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, VaeError
from ..inputs import observation_rows
from ..posterior import Posterior, Posteriors
from ..tiles import of_any_size
from ..vae import VAE
from .job import Job
from .sources import map_file

# Rows for which noise is drawn, or files are read, at once: fewer would cost more. The graphs still take batches.
_STRIP = 1024


def make_rows(
    vae: VAE, job: Job, start: int, stop: int, seconds: dict[str, float] | None = None
) -> Iterator[NDArray[Any]]:
    """Make the rows start … stop - 1 of a job, always in whole batches.

    Args:
        vae: of the job's bundle and variant.
        job: of the rows.
        start: a multiple of the batch size.
        stop: the index behind the last row.
        seconds: the seconds of each phase are added to it.

    Yields:
        Some batches at once, [rows, *shape] of the job's dtype; valid until the next ones.

    Raises:
        InputError: a row of the file of observations contradicts the manifest.
        VaeError: the model gives NaN or infinity; or a file was altered, which may show at the end alone.
    """
    size, seed = job.batch_size, job.seed
    # No larger than what is asked for: rows may be large pictures.
    strip = min(size * max(1, _STRIP // size), -(-(stop - start) // size) * size)
    spent = {} if seconds is None else seconds
    files = {name: map_file(location) for name, location in job.files.items()}
    x: NDArray[Any] | None = None
    buffer = np.empty((strip, *job.shape), job.row_dtype if job.verb == "encode" else np.float32)
    now = time.perf_counter()

    def note(phase: str) -> None:
        nonlocal now
        before, now = now, time.perf_counter()
        spent[phase] = spent.get(phase, 0.0) + now - before

    for first in range(start, stop, strip):
        last = min(first + strip, stop)
        # Always whole batches: rows beyond the last one are computed and dropped.
        count = -(-(last - first) // size) * size
        conditions = _conditions(job, files, first, last, count)
        if job.observations is not None:
            x = _padded(files[job.observations["name"]][first:last], count)
        if x is None:
            z = vae.prior(count, seed=seed, start=first, temperature=job.temperature, truncation=job.truncation)
            note("noise")
        else:
            try:
                if job.verb == "encode":
                    for name, values in encoded_fields(vae, x, conditions, seed, first, size, job.tiles).items():
                        _require_finite(values, first, f"the encoder gives {name}")
                        buffer[name][:count] = values
                else:
                    z = vae.encode(x, conditions=conditions, batch_size=size, **job.tiles).mode()
            except InputError as error:
                raise _with_row(vae, job, x, first, error) from None
            note("encode")
        if job.verb != "encode":
            # Reconstructions draw no numbers, unless they are drawn from the likelihood.
            drawn = seed if x is None or job.observe else None
            vae.decode(
                z, conditions=conditions, seed=drawn, start=first, observe=job.observe, batch_size=size,
                out=buffer[:count], **job.tiles,
            )  # fmt: skip
            _require_finite(buffer[: last - first], first, "the decoder gives")
            note("decode")
        rows = buffer[: last - first]
        if job.dtype == "uint8":
            rows = _as_uint8(rows, job.range)
            note("convert")
        yield rows
        # The caller's time between two batches does not count.
        now = time.perf_counter()
    for location in job.files.values():
        # A file that was written to in the meantime shows through the mapping.
        map_file(location)


def _padded(rows: NDArray[Any], count: int) -> NDArray[Any]:
    """Return a number of rows in memory; where there are fewer, the last one is repeated."""
    padded: NDArray[Any] = np.concatenate([rows, np.repeat(rows[-1:], count - len(rows), axis=0)])
    return padded


def _conditions(
    job: Job, files: Mapping[str, NDArray[Any]], first: int, last: int, count: int
) -> dict[str, Any] | None:
    """Return the conditions of a number of rows, as `VAE.decode` takes them."""
    conditions: dict[str, Any] = {}
    for name, source in job.conditions.items():
        if "balanced" in source:
            conditions[name] = np.arange(first, first + count) % source["balanced"]
        elif "value" in source:
            conditions[name] = source["value"]
        else:
            conditions[name] = _padded(files[name][first:last], count)
    return conditions or None


def _with_row(vae: VAE, job: Job, x: NDArray[Any], first: int, error: InputError) -> InputError:
    """Return the error of a batch of observations, with the file and the row."""
    assert job.observations is not None
    observation = (vae.manifest if job.tile is None else of_any_size(vae.manifest)).observation
    for index in range(len(x)):
        try:
            observation_rows(observation, x[index : index + 1])
        except InputError as wrong:
            path = job.files[job.observations["name"]]["path"]
            return InputError(f"{path}: row {first + index}: {wrong}")
    return error


def _require_finite(x: NDArray[Any], first: int, subject: str) -> None:
    """Refuse NaN and infinity in rows that begin with `first`."""
    # A sum is finite only if all numbers are; one that overflows is looked at again.
    with np.errstate(all="ignore"):
        if np.isfinite(x.sum()):
            return
    wrong = np.argwhere(~np.isfinite(x))
    if len(wrong):
        place = [int(number) for number in wrong[0]]
        raise VaeError(
            f"sample {first + place[0]}: expected finite values, {subject} {x[tuple(place)]} at {place[1:]}; check "
            "that observations, latents and conditions are like those that the model was trained on"
        )


def _as_uint8(x: NDArray[np.float32], bounds: tuple[float, float] | None) -> NDArray[np.uint8]:
    """Take the range to 0 … 255, rounded half to even; `x` is overwritten."""
    assert bounds is not None
    low, high = bounds
    if low:
        np.subtract(x, np.float32(low), out=x)
    np.multiply(x, np.float32(255 / (high - low)), out=x)
    np.rint(x, out=x)
    np.clip(x, 0, 255, out=x)
    return x.astype(np.uint8)


def encoded_fields(
    vae: VAE,
    x: NDArray[Any],
    conditions: Mapping[str, Any] | None,
    seed: int,
    start: int,
    batch_size: int,
    tiles: Mapping[str, Any],
) -> dict[str, NDArray[Any]]:
    """Return the fields that are written for the latents of observations, by name.

    Args:
        vae: the encoder.
        x: as in `VAE.encode`, like the other arguments.
        tiles: its arguments about tiles.

    Returns:
        float32 [n, *latent shape] each: mu, std and z, the sample of the posterior; mu alone of a deterministic
        encoder; int64 codes of an encoder that gives codes. With several latents, each name begins with the latent's
        and a dot.
    """
    encoded = vae.encode(x, conditions=conditions, seed=seed, start=start, batch_size=batch_size, **tiles)
    parts = dict(encoded) if isinstance(encoded, Posteriors) else {"": encoded}
    fields: dict[str, NDArray[Any]] = {}
    for name, part in parts.items():
        prefix = f"{name}." if name else ""
        if isinstance(part, Posterior):
            fields |= {f"{prefix}mu": part.mean, f"{prefix}std": part.std}
            fields[f"{prefix}z"] = part.sample(seed=seed, start=start)
        else:
            fields[prefix + ("codes" if part.value.dtype.kind == "i" else "mu")] = part.value
    return fields
