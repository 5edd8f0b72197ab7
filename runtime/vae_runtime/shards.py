"""One shard of a job: a pure function of the job and the shard's own number.

It holds the samples start … stop - 1 of a seed; it is decoded in batches of the job's size that begin at multiples of
it, so that no number depends on who made the shard. A small file beside it says how it should hash.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from . import formats
from .errors import VaeError
from .job import Job
from .samples import read_json
from .store import Folder
from .vae import VAE

__all__ = ["dump", "entry", "generate_shard"]


def generate_shard(vae: VAE, store: Folder, job: Job, number: int) -> dict[str, Any]:
    """Write one shard of a job, unless it is there and whole.

    Returns:
        Its entry in the index: file, start, stop, bytes and sha256.

    Raises:
        VaeError: it cannot be written.
    """
    name = job.name(number)
    start, stop = job.rows(number)
    there = entry(store, job, number)
    if there is not None and store.sha256(name) == there["sha256"]:
        return there
    written = _Counted()

    def fill(file: IO[bytes]) -> None:
        written.begin(file)
        about = {"seed": str(job.seed), "start": str(start), "bundle": job.digest}
        formats.write(
            job.format, written, (stop - start, *job.shape), job.dtype, _batches(vae, job, start, stop), about
        )

    store.write(name, fill)
    made = {"file": name, "start": start, "stop": stop, "bytes": written.bytes, "sha256": written.digest.hexdigest()}
    store.write(_beside(name), dump(made))
    return made


class _Counted(io.RawIOBase):
    """A file that is only written to: what goes through is counted and hashed."""

    def begin(self, file: IO[bytes]) -> None:
        """Write to this file, from its front; called again where a store tries a second time."""
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


def _batches(vae: VAE, job: Job, start: int, stop: int) -> Iterator[NDArray[Any]]:
    """The samples start … stop - 1, whole batches being decoded throughout."""
    size = job.batch_size
    buffer = np.empty((size, *job.shape), np.float32)
    for first in range(start, stop, size):
        vae.sample(
            size, conditions=_conditions(job, first), seed=job.seed, start=first, temperature=job.temperature,
            truncation=job.truncation, observe=job.observe, batch_size=size, out=buffer,
        )  # fmt: skip
        rows = buffer[: min(size, stop - first)]
        yield rows if job.dtype == "float32" else _as_uint8(rows, job.range)


def _conditions(job: Job, first: int) -> dict[str, Any] | None:
    found: dict[str, Any] = {}
    for name, source in job.conditions.items():
        if "balanced" in source:
            found[name] = np.arange(first, first + job.batch_size) % source["balanced"]
        elif "file" in source:
            rows = np.load(source["file"], mmap_mode="r")[first : first + job.batch_size]
            # The rest of the last batch is decoded and left out.
            missing = job.batch_size - len(rows)
            found[name] = np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]) if missing else np.array(rows)
        else:
            found[name] = source["value"]
    return found or None


def _as_uint8(x: NDArray[np.float32], bounds: tuple[float, float] | None) -> NDArray[np.uint8]:
    assert bounds is not None
    low, high = bounds
    scaled = (x - np.float32(low)) * np.float32(255 / (high - low))
    result: NDArray[np.uint8] = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return result


def _beside(name: str) -> str:
    """The name of the file that says how a shard should hash."""
    return name.partition(".")[0] + ".json"


def entry(store: Folder, job: Job, number: int) -> dict[str, Any] | None:
    """What is said of a shard that is there, as far as its size shows; None where it has to be made."""
    name = job.name(number)
    start, stop = job.rows(number)
    size = store.size(name)
    if size is None:
        return None
    try:
        found = read_json(store, _beside(name))
    except VaeError:
        return None
    right = found == {**found, "file": name, "start": start, "stop": stop, "bytes": size}
    return found if right and isinstance(found.get("sha256"), str) else None


def dump(value: Mapping[str, Any]) -> bytes:
    """JSON as this package writes it."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
