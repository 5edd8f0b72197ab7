"""Make one shard of a job: its file, and the sidecar with its hash."""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Mapping
from typing import IO, Any, NamedTuple

from ..vae import VAE
from .ahead import Ahead
from .folder import read_entries, shard_name, write_sidecar
from .formats import table
from .job import Job
from .machine import describe_machine
from .rows import make_rows
from .store import Store

# Bytes after which a shard under way is written through to the disk.
_SYNC_BYTES = 2**23


class ShardResult(NamedTuple):
    """The number of rows of a shard, and the seconds that each phase took."""

    rows: int
    seconds: Mapping[str, float]


def make_shard(vae: VAE, store: Store, job: Job, number: int) -> ShardResult:
    """Write one shard of a job, unless it exists and is whole.

    Returns:
        The rows, and the seconds of the phases `noise`, `encode`, `decode`, `convert` (to the dtype) and `write`
        (hashing and syncing included), or of `check` alone for a shard that existed. `write` passes beside the others,
        in a thread of its own.

    Raises:
        InputError: a row of the file of observations or latents contradicts the manifest.
        VaeError: the shard cannot be written, or another job has replaced the folder's.
    """
    began = time.perf_counter()
    name = shard_name(job, number)
    start, stop = job.rows(number)
    (entry,) = read_entries(store, job, [number])
    if entry is not None and store.whole(name, entry["sha256"]):
        return ShardResult(stop - start, {"check": time.perf_counter() - began})
    seconds: dict[str, float] = {}
    waited = 0.0
    output = _HashingFile(None if store.remote else _SYNC_BYTES)

    def fill(file: IO[bytes]) -> None:
        nonlocal waited
        output.begin(file)
        about = {"seed": str(job.seed), "start": str(start), "bundle": job.digest}
        with Ahead(make_rows(vae, job, start, stop, seconds)) as rows:
            table.write(job.format, output, (stop - start, *job.shape), job.row_dtype, rows, about)
        waited = rows.waited

    store.write(name, fill)
    write_sidecar(store, job, number, output.bytes, output.digest.hexdigest(), describe_machine(vae.device))
    return ShardResult(stop - start, {**seconds, "write": time.perf_counter() - began - waited})


class _HashingFile(io.RawIOBase):
    """A file for writing that counts and hashes its bytes, and writes them through to the disk as it goes."""

    def __init__(self, sync: int | None) -> None:
        """Write through to the disk whenever there are so many bytes more; None leaves that to who closes the file."""
        self._sync, self._unsynced = sync, 0

    def begin(self, file: IO[bytes]) -> None:
        """Start at the front of a file."""
        self._file, self.bytes, self.digest = file, 0, hashlib.sha256()

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, content: Any) -> int:
        """Write bytes, or an array that lies in one piece."""
        self.digest.update(content)
        self._file.write(content)
        size = memoryview(content).nbytes
        self.bytes += size
        self._unsynced += size
        if self._sync is not None and self._unsynced >= self._sync:
            # Otherwise the whole shard would wait for the disk at its end, while nothing is computed.
            self._unsynced = 0
            self._file.flush()
            getattr(os, "fdatasync", os.fsync)(self._file.fileno())
        return size
