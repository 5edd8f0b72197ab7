"""The rows of a job: a pure function of the job and the rows' own numbers.

A row is a sample of the prior, or the latents, the reconstruction or the decoded observation of a row of a file. Rows
are made in batches of the job's size that begin at multiples of it, so that no number depends on the process that made
it.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..inputs import latent_rows, observation_rows
from ..manifest import Manifest
from ..posterior import Posterior, Posteriors
from ..tiles import of_any_size
from ..vae import VAE
from .ahead import HELD
from .conversion import require_finite, to_uint8
from .job import Job
from .sources import map_file

# Rows for which noise is drawn, or files are read, at once, and about the bytes that they take at most: fewer rows
# would cost more. The graphs still take batches.
_STRIP, _STRIP_BYTES = 1024, 2**22
# Bytes of observations that are decoded before they are checked and converted: while they lie in a core's own cache.
_PART_BYTES = 2**18


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
        Some batches at once, [rows, *shape] of the job's dtype; the last `HELD` of them are valid.

    Raises:
        InputError: a row of the file of observations or latents contradicts the manifest.
        VaeError: the model gives NaN or infinity; or a file was altered, which may show at the end alone.
    """
    maker = _Maker(vae, job, -(-(stop - start) // job.batch_size), {} if seconds is None else seconds)
    for first in range(start, stop, maker.strip):
        last = min(first + maker.strip, stop)
        maker.clock = time.perf_counter()
        yield maker.encoded(first, last) if job.verb == "encode" else maker.decoded(first, last)
    for location in job.files.values():
        # A file that was written to in the meantime shows through the mapping.
        map_file(location)


class _Maker:
    """Makes strips of a job's rows in arrays that are used again, and notes the time of each phase."""

    def __init__(self, vae: VAE, job: Job, batches: int, seconds: dict[str, float]) -> None:
        """Take the largest number of batches of a strip, beside other arguments of `make_rows`."""
        self._vae, self._job, self._seconds = vae, job, seconds
        self._files = {name: map_file(location) for name, location in job.files.items()}
        self._source = None if job.observations is None else self._files[job.observations["name"]]
        size, row = job.batch_size, 4 * max(1, math.prod(job.shape))
        read = 0 if self._source is None else self._source[:1].nbytes
        # No larger than what is asked for: rows may be large pictures.
        wanted = min(_STRIP // size, _STRIP_BYTES // (size * max(row, job.row_bytes, read)), batches)
        self.strip = size * max(1, wanted)
        """Rows of a strip."""
        self._part = min(size * max(1, _PART_BYTES // (size * row)), self.strip)
        self._strips = itertools.cycle([np.empty((self.strip, *job.shape), job.row_dtype) for _ in range(HELD)])
        self._decoded = np.empty((self._part, *job.shape), np.float32) if job.dtype == "uint8" else None
        self.clock = 0.0
        """When the phase under way began."""

    def encoded(self, first: int, last: int) -> NDArray[Any]:
        """Make the latents of a strip of observations."""
        job, size, out = self._job, self._job.batch_size, next(self._strips)
        # Always whole batches: rows beyond the last one are computed and dropped.
        count = -(-(last - first) // size) * size
        x = self._observations(first, last, count)
        conditions = _conditions(job, self._files, first, last, count)
        try:
            fields = encoded_fields(self._vae, x, conditions, job.seed, first, size, job.tiles)
        except InputError as error:
            raise self._with_row(x, first, error) from None
        for name, values in fields.items():
            require_finite(values, first, f"the encoder gives {name}")
            out[name][:count] = values
        self._note("encode")
        return out[: last - first]

    def decoded(self, first: int, last: int) -> NDArray[Any]:
        """Make a strip of observations: samples, reconstructions, or those of latents out of a file."""
        job, size, out = self._job, self._job.batch_size, next(self._strips)
        count = -(-(last - first) // size) * size
        z = self._latents(first, last, count)
        # Reconstructions draw no numbers, unless they are drawn from the likelihood.
        drawn = job.seed if job.verb != "reconstruct" or job.observe else None
        for begin in range(0, count, self._part):
            end = min(begin + self._part, count)
            rows = out[begin:end] if self._decoded is None else self._decoded[: end - begin]
            self._vae.decode(
                {name: part[begin:end] for name, part in z.items()} if isinstance(z, Mapping) else z[begin:end],
                conditions=_conditions(job, self._files, first + begin, min(first + end, last), end - begin),
                seed=drawn, start=first + begin, observe=job.observe, batch_size=size, out=rows, **job.tiles,
            )  # fmt: skip
            # Rows beyond the last one are nobody's.
            kept = min(end, last - first) - begin
            if self._decoded is None:
                require_finite(rows[:kept], first + begin, "the decoder gives")
                self._note("decode")
            else:
                self._note("decode")
                assert job.range is not None
                to_uint8(rows[:kept], job.range, out[begin : begin + kept], first + begin, "the decoder gives")
                self._note("convert")
        return out[: last - first]

    def _latents(self, first: int, last: int, count: int) -> NDArray[Any] | Mapping[str, NDArray[Any]]:
        """Draw the latents of a strip, encode its observations, or read them."""
        vae, job = self._vae, self._job
        if job.observations is None:
            drawn = vae.prior(
                count, seed=job.seed, start=first, temperature=job.temperature, truncation=job.truncation
            )  # fmt: skip
            self._note("noise")
            return drawn
        x = self._observations(first, last, count)
        try:
            if job.verb == "decode":
                return given_latents(vae.manifest, x, tiled=job.tile is not None)
            conditions = _conditions(job, self._files, first, last, count)
            z = vae.encode(x, conditions=conditions, batch_size=job.batch_size, **job.tiles).mode()
        except InputError as error:
            raise self._with_row(x, first, error) from None
        self._note("encode")
        return z

    def _observations(self, first: int, last: int, count: int) -> NDArray[Any]:
        assert self._source is not None
        return _padded(self._source[first:last], count)

    def _with_row(self, x: NDArray[Any], first: int, error: InputError) -> InputError:
        """Return the error of rows of a file, with the file and the row."""
        job = self._job
        assert job.observations is not None
        for index in range(len(x)):
            try:
                require_row(self._vae.manifest, job.verb, x[index : index + 1], tiled=job.tile is not None)
            except InputError as wrong:
                return InputError(f"{job.files[job.observations['name']]['path']}: row {first + index}: {wrong}")
        return error

    def _note(self, phase: str) -> None:
        before, self.clock = self.clock, time.perf_counter()
        self._seconds[phase] = self._seconds.get(phase, 0.0) + self.clock - before


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


def given_latents(manifest: Manifest, rows: NDArray[Any], *, tiled: bool) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """Return latents out of the rows of a file, as `VAE.decode` takes them.

    Args:
        manifest: what the latents are.
        rows: an array [n, *latent shape]; for several latents, a structured array with a field for each.
        tiled: whether they are decoded in tiles, which takes any size of dynamic axes.

    Raises:
        InputError: they contradict the manifest.
    """
    latents = (of_any_size(manifest) if tiled else manifest).latents
    if len(latents) == 1 and rows.dtype.names is None:
        return latent_rows(latents[0], rows)
    names, given = [latent.name for latent in latents], rows.dtype.names or ()
    if len(latents) == 1 or not given or not set(given) <= set(names):
        wanted = f"a structured array with the fields {', '.join(names)}" if len(latents) > 1 else "an array of numbers"
        raise InputError(f"expected {wanted}, got one of {rows.dtype}; write such an array with numpy.save")
    return {latent.name: latent_rows(latent, rows[latent.name]) for latent in latents if latent.name in given}


def require_row(manifest: Manifest, verb: str, row: NDArray[Any], *, tiled: bool) -> None:
    """Raise InputError if a row of a file, [1, ...], contradicts the manifest; `verb` as of the job."""
    if verb == "decode":
        given_latents(manifest, row, tiled=tiled)
    else:
        observation_rows((of_any_size(manifest) if tiled else manifest).observation, row)


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
