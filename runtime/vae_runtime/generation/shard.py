"""One shard of a job: a pure function of the job and the shard's own number.

It holds the samples start … stop - 1 of a seed, or what is made of these rows of a file; it is worked on in batches of
the job's size that begin at multiples of it, so that no number depends on who made the shard. A small file beside it
says how it should hash, and of which job it is.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, VaeError
from ..inputs import observation_rows
from ..vae import VAE
from .formats import table
from .job import Job, encoded, machine
from .samples import JOB, read_json
from .store import Store

__all__ = ["Made", "beside", "dump", "entries", "generate_shard", "job_of", "replay"]

# Rows that noise is drawn for at once, and files are read by: drawing fewer costs more. The graphs take batches.
_STRIP = 1024

# The rows of a shard that is whole, and the seconds that went into it, by what they were spent on.
Made = tuple[int, Mapping[str, float]]


def generate_shard(vae: VAE, store: Store, job: Job, number: int) -> Made:
    """Write one shard of a job, unless it is there and whole.

    Returns:
        Its rows; and the seconds spent on `noise`, `encode`, `decode`, `convert` (to the dtype), `write` (hashing and
        syncing included), or on `check` where it was there.

    Raises:
        InputError: a row of the job's file of observations is not as the manifest says.
        VaeError: it cannot be written, or the folder is that of another job by now.
    """
    began = time.perf_counter()
    name = job.name(number)
    start, stop = job.rows(number)
    (there,) = entries(store, job, [number])
    if there is not None and store.whole(name, there["sha256"]):
        return stop - start, {"check": time.perf_counter() - began}
    seconds: dict[str, float] = {}
    written = _Counted()

    def fill(file: IO[bytes]) -> None:
        written.begin(file)
        about = {"seed": str(job.seed), "start": str(start), "bundle": job.digest}
        rows = replay(vae, job, start, stop, seconds)
        table.write(job.format, written, (stop - start, *job.shape), job.row_dtype, rows, about)

    store.write(name, fill)
    made = {"file": name, "start": start, "stop": stop, "bytes": written.bytes, "sha256": written.digest.hexdigest()}
    # Another call may have taken the folder, or put another one in its place.
    if job_of(store).fingerprint != job.fingerprint:
        raise VaeError(f"{store}/{JOB}: was replaced by another job's since this call began; give another place")
    store.write(beside(name), dump({**made, "job": job.fingerprint, "machine": machine(vae.device)}))
    return stop - start, {**seconds, "write": time.perf_counter() - began - sum(seconds.values())}


class _Counted(io.RawIOBase):
    """A file that is only written to: what goes through is counted and hashed."""

    def begin(self, file: IO[bytes]) -> None:
        """Write to this file, from its front."""
        self._file, self.bytes, self.digest = file, 0, hashlib.sha256()

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, content: Any) -> int:
        """Bytes, or an array that lies in one piece."""
        self.digest.update(content)
        self._file.write(content)
        size = memoryview(content).nbytes
        self.bytes += size
        return size


def replay(
    vae: VAE, job: Job, start: int, stop: int, seconds: dict[str, float] | None = None
) -> Iterator[NDArray[Any]]:  # fmt: skip
    """The rows start … stop - 1 of a job, whole batches being worked on throughout.

    Args:
        vae: of the job's bundle and variant.
        job: what they are of.
        start: a multiple of the batch size.
        stop: the end.
        seconds: to which is added what each phase takes.

    Yields:
        Some batches at once, [rows, *shape] of the job's dtype; valid until the next.

    Raises:
        InputError: a row of the job's file of observations is not as the manifest says.
        VaeError: at the end, too: a file was altered.
    """
    size, seed = job.batch_size, job.seed
    strip = size * max(1, _STRIP // size)
    spent = {} if seconds is None else seconds
    files = {name: job.rows_of(name) for name in job.files}
    x: NDArray[Any] | None = None
    buffer = np.empty((strip, *job.shape), job.row_dtype if job.verb == "encode" else np.float32)
    now = time.perf_counter()

    def note(phase: str) -> None:
        nonlocal now
        before, now = now, time.perf_counter()
        spent[phase] = spent.get(phase, 0.0) + now - before

    for first in range(start, stop, strip):
        last = min(first + strip, stop)
        # Whole batches: what is missing from the last one is worked on and left out.
        count = -(-(last - first) // size) * size
        given = _conditions(job, files, first, last, count)
        if job.observations is not None:
            x = _padded(files[job.observations["name"]][first:last], count)
        if x is None:
            z = vae.prior(count, seed=seed, start=first, temperature=job.temperature, truncation=job.truncation)
            note("noise")
        else:
            try:
                if job.verb == "encode":
                    for name, rows in encoded(vae, x, given, seed, first, size).items():
                        buffer[name][:count] = rows
                else:
                    z = vae.encode(x, conditions=given, batch_size=size).mode()
            except InputError as error:
                raise _located(vae, job, x, first, error) from None
            note("encode")
        if job.verb != "encode":
            # Reconstructions draw nothing, unless they are to be observed.
            drawn = seed if x is None or job.observe else None
            vae.decode(
                z, conditions=given, seed=drawn, start=first, observe=job.observe, batch_size=size, out=buffer[:count]
            )  # fmt: skip
            note("decode")
        part = buffer[: last - first]
        if job.dtype == "uint8":
            part = _as_uint8(part, job.range, first)
            note("convert")
        yield part
        # What the caller did in the meantime is its own.
        now = time.perf_counter()
    for name in job.files:
        # A file that was written to in the meantime shows through the mapping.
        job.rows_of(name)


def _padded(rows: NDArray[Any], count: int) -> NDArray[Any]:
    """So many rows in memory, the last one again where there are fewer."""
    padded: NDArray[Any] = np.concatenate([rows, np.repeat(rows[-1:], count - len(rows), axis=0)])
    return padded


def _conditions(
    job: Job, files: Mapping[str, NDArray[Any]], first: int, last: int, count: int
) -> dict[str, Any] | None:  # fmt: skip
    found: dict[str, Any] = {}
    for name, source in job.conditions.items():
        if "balanced" in source:
            found[name] = np.arange(first, first + count) % source["balanced"]
        elif "value" in source:
            found[name] = source["value"]
        else:
            found[name] = _padded(files[name][first:last], count)
    return found or None


def _located(vae: VAE, job: Job, x: NDArray[Any], first: int, error: InputError) -> InputError:
    """What is wrong with a batch of observations, with the file and the row."""
    assert job.observations is not None
    for index in range(len(x)):
        try:
            observation_rows(vae.manifest.observation, x[index : index + 1])
        except InputError as wrong:
            path = job.files[job.observations["name"]]["path"]
            return InputError(f"{path}: row {first + index}: {wrong}")
    return error


def _as_uint8(x: NDArray[np.float32], bounds: tuple[float, float] | None, first: int) -> NDArray[np.uint8]:
    """The range taken to 0 … 255, rounded half to even; `x`, whose rows begin with `first`, is worked on in place."""
    assert bounds is not None
    low, high = bounds
    if low:
        np.subtract(x, np.float32(low), out=x)
    np.multiply(x, np.float32(255 / (high - low)), out=x)
    np.rint(x, out=x)
    np.clip(x, 0, 255, out=x)
    # What lies in a range has no NaN exactly if its sum is none.
    if np.isnan(x.sum()):
        place = [int(number) for number in np.argwhere(np.isnan(x))[0]]
        raise VaeError(
            f"sample {first + place[0]}: the decoder gives NaN at {place[1:]}, which uint8 has no number for; see that "
            "latents and conditions are of the kind it was trained on, or take float32"
        )
    return x.astype(np.uint8)


def beside(name: str) -> str:
    """The name of the file that says how a shard should hash."""
    return name.partition(".")[0] + ".json"


def entries(store: Store, job: Job, numbers: Sequence[int]) -> list[dict[str, Any] | None]:
    """What the index says of each shard that is there, as far as its size shows; None of those that have to be made."""
    names = [job.name(number) for number in numbers]
    sizes = store.sizes() if len(names) > 1 else {name: store.size(name) for name in names}
    there = [number for number, name in zip(numbers, names, strict=True) if sizes.get(name) is not None]
    contents = dict(zip(there, store.read_all(beside(job.name(number)) for number in there), strict=True))
    fingerprint = job.fingerprint
    return [
        _entry(job, number, sizes[name], contents[number], fingerprint) if number in contents else None
        for number, name in zip(numbers, names, strict=True)
    ]


def _entry(
    job: Job, number: int, size: int | None, content: bytes | None, fingerprint: str
) -> dict[str, Any] | None:  # fmt: skip
    start, stop = job.rows(number)
    try:
        found = json.loads(content or b"")
        made = {key: found[key] for key in ("file", "start", "stop", "bytes", "sha256")}
        of = found["job"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    right = made == {**made, "file": job.name(number), "start": start, "stop": stop, "bytes": size}
    return made if right and of == fingerprint and isinstance(made["sha256"], str) else None


def job_of(store: Store) -> Job:
    """The job of a folder.

    Raises:
        VaeError: it has none.
    """
    if store.size(JOB) is None:
        raise VaeError(f"{store}: no folder of samples: there is no {JOB}; give one that `generate` wrote")
    found = read_json(store, JOB)
    try:
        return Job.from_json(found)
    except ValueError as error:
        raise VaeError(f"{store}/{JOB}: a job of this version is expected: {error}; generate again") from None


def dump(value: Mapping[str, Any]) -> bytes:
    """JSON as this package writes it."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
