"""Many samples to disk: a job is a list of shards, and each shard a pure function of the job and its own number.

docs/offline-generation.md is the description. A shard holds the samples start … stop - 1 of a seed; it is decoded in
batches of the job's size that begin at multiples of it, so that no number depends on who made the shard. It is written
under a temporary name, synced and renamed; a small file beside it then says how it should hash.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from . import noise
from .errors import InputError, VaeError, require_integer
from .files import locked, write_atomic
from .samples import INDEX, JOB, Samples, open_samples, read_json
from .session import onnxruntime_version
from .vae import VAE, load

__all__ = ["DTYPES", "Job", "generate", "generate_shard", "usable_cores"]

DTYPES = ("float32", "uint8")
FORMATS = ("npy",)
_VERSION = "1.0"
# Rows decoded at once: most of a core's throughput, and a sheet of noise and results that stays in its caches.
_BATCH_SIZE = 512
# Bytes of a shard, about: large enough for a disk's full rate, small enough to lose little when one is cut short.
_SHARD_BYTES = 2**26
# What a later call may change: the number of samples may grow, the machine may be another one.
_MACHINE, _GROWING = "machine", "n"


@dataclass(frozen=True)
class Job:
    """What is generated: everything that the bytes of the shards depend on, and the machine, which they may depend on.

    `conditions` maps names to {"value": …}, to {"balanced": classes}: class i mod classes for sample i, or to {"file":
    …, "sha256": …}, rows of an .npy file.
    """

    bundle: str
    digest: str
    variant: str
    seed: int
    n: int
    shard_size: int
    batch_size: int
    format: str
    dtype: str
    shape: tuple[int, ...]
    range: tuple[float, float] | None
    observe: bool
    temperature: float
    truncation: float | None
    conditions: Mapping[str, Any]
    machine: Mapping[str, str]
    noise: str = noise.SPEC
    format_version: str = _VERSION

    @property
    def shards(self) -> int:
        """How many there are."""
        return -(-self.n // self.shard_size)

    def rows(self, number: int) -> tuple[int, int]:
        """Index of the first sample of a shard, and of the first of the next."""
        return number * self.shard_size, min((number + 1) * self.shard_size, self.n)

    def name(self, number: int) -> str:
        """The name of a shard's file."""
        return f"shard-{number:08}.{self.format}"


def usable_cores() -> int:
    """The cores that this process may use, by its affinity and its control group's quota (cgroup v2 or v1)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = period = 0
    with contextlib.suppress(OSError, ValueError):
        most, every = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        quota, period = (0, 0) if most == "max" else (int(most), int(every))
    if not quota:
        with contextlib.suppress(OSError, ValueError):
            folder = Path("/sys/fs/cgroup/cpu")
            quota = int((folder / "cpu.cfs_quota_us").read_text(encoding="ascii"))
            period = int((folder / "cpu.cfs_period_us").read_text(encoding="ascii"))
    return max(1, min(cores, -(-quota // period))) if quota > 0 and period > 0 else cores


def generate(
    bundle: str | os.PathLike[str],
    out: str | os.PathLike[str],
    n: int,
    *,
    seed: int,
    workers: int | None = None,
    device: str = "cpu",
    variant: str | None = None,
    dtype: str = "float32",
    observe: bool = False,
    temperature: float = 1.0,
    truncation: float | None = None,
    conditions: Mapping[str, Any] | None = None,
    balanced: str | None = None,
    batch_size: int | None = None,
    shard_size: int | None = None,
    part: tuple[int, int] | None = None,
    progress: Callable[[int, int], object] | None = None,
    warn: Callable[[str], object] | None = None,
) -> Samples | None:
    """Write samples 0 … n - 1 of a seed to a folder; called again after any interruption, it writes what is missing.

    Args:
        bundle: the bundle's folder.
        out: the folder of the samples, made if need be. One that holds another job is refused; the same job with a
            larger n goes on.
        n: how many, at least 1.
        seed: of vnoise-1.
        workers: processes of one thread each; None takes as many as there are cores for this process.
        device: as of `load`.
        variant: as of `load`.
        dtype: "float32", or "uint8": the range of the manifest is taken to 0 … 255, rounded half to even.
        observe: draws from the likelihood instead of its means.
        temperature: as of `VAE.sample`.
        truncation: as of `VAE.sample`.
        conditions: for each sample the same value, or by the path of an .npy file of at least n rows its own.
        balanced: the name of a condition with classes: sample i gets the class i mod their number.
        batch_size: rows decoded at once; None takes 512.
        shard_size: samples of a shard, a multiple of the batch size; None takes some 64 MB.
        part: (k, m), of m calls that share the work the k-th from 1: shards k - 1, k - 1 + m, … The last to end writes
            the index.
        progress: called with (samples done, samples of this call) after each shard.
        warn: called with what is not wrong, but should be known.

    Returns:
        The samples, opened; None where other parts are not done yet.

    Raises:
        BundleError: the bundle is missing or damaged.
        DeviceError: the device is not to be had.
        InputError: an argument is out of its range or contradicts the folder's job.
        VaeError: the folder cannot be written, another call is at work in it, the disk is too small, or a worker died.
    """
    vae = load(bundle, device=device, variant=variant)
    job = _job(
        vae, n, seed, dtype, observe, temperature, truncation, conditions, balanced, batch_size, shard_size
    )  # fmt: skip
    count = usable_cores() if workers is None else require_integer("workers", workers, 1, 4096)
    first, step = (0, 1) if part is None else (part[0] - 1, part[1])
    if part is not None:
        require_integer("part", part[1], 1, 2**31)
        require_integer("part", part[0], 1, part[1])
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VaeError(f"{folder}: cannot be made: {error.strerror}; choose another place") from error
    try:
        with locked(folder, shared=part is not None):
            if part is None:
                _clean_up(folder)
            job = _settle(folder, job, part is not None, warn)
            numbers = range(first, job.shards, step)
            _require_room(folder, job, numbers)
            done, total = 0, sum(stop - start for start, stop in map(job.rows, numbers))
            for rows in _run(vae, folder, job, numbers, min(count, max(1, len(numbers)))):
                done += rows
                if progress is not None:
                    progress(done, total)
            return _finish(folder, job)
    except BlockingIOError:
        raise VaeError(
            f"{folder}: another call is at work in this folder; wait for it, or give another place"
        ) from None


def generate_shard(vae: VAE, folder: Path, job: Job, number: int) -> dict[str, Any]:
    """Write one shard of a job, unless it is there and whole.

    Returns:
        Its entry in the index: file, start, stop, bytes and sha256.

    Raises:
        VaeError: it cannot be written.
    """
    path = folder / job.name(number)
    start, stop = job.rows(number)
    entry = _entry(folder, job, number)
    if entry is not None and _sha256(path) == entry["sha256"]:
        return entry
    digest = hashlib.sha256()

    def write(file: IO[bytes]) -> None:
        header = _npy_header((stop - start, *job.shape), job.dtype)
        digest.update(header)
        file.write(header)
        for batch in _batches(vae, job, start, stop):
            content = batch.tobytes()
            digest.update(content)
            file.write(content)

    write_atomic(path, write)
    entry = {
        "file": path.name,
        "start": start,
        "stop": stop,
        "bytes": path.stat().st_size,
        "sha256": digest.hexdigest(),
    }
    write_atomic(path.with_suffix(".json"), _dump(entry))
    return entry


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


def _npy_header(shape: tuple[int, ...], dtype: str) -> bytes:
    import io

    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


# The job.


def _job(
    vae: VAE, n: int, seed: int, dtype: str, observe: bool, temperature: float, truncation: float | None,
    conditions: Mapping[str, Any] | None, balanced: str | None, batch_size: int | None, shard_size: int | None,
) -> Job:  # fmt: skip
    n = require_integer("n", n, 1, 2**48)
    seed = require_integer("seed", seed, -(2**63), 2**64 - 1)
    batch = require_integer("batch_size", _BATCH_SIZE if batch_size is None else batch_size, 1, 2**20)
    if dtype not in DTYPES:
        raise InputError(f"dtype: {' or '.join(DTYPES)} is expected, got {dtype!r}")
    bounds = vae.manifest.observation.range
    if dtype == "uint8" and bounds is None:
        raise InputError("dtype: uint8 needs a range of observations, the bundle's manifest states none; take float32")
    sources = _sources(vae, n, conditions or {}, balanced)
    # Draws once, so that what is wrong with the arguments shows before anything is written.
    row = {name: (0 if "balanced" in s else np.load(s["file"], mmap_mode="r")[:1] if "file" in s else s["value"])
           for name, s in sources.items()}  # fmt: skip
    shape = vae.sample(
        1, conditions=row or None, seed=seed, temperature=temperature, truncation=truncation, observe=observe
    ).shape[1:]
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if shard_size is None:
        shard_size = max(1, _SHARD_BYTES // size // batch) * batch
    rows = require_integer("shard_size", shard_size, 1, 2**40)
    if rows % batch:
        raise InputError(f"shard_size: a multiple of the batch size, {batch}, is expected, got {rows}")
    return Job(
        bundle=vae.manifest.name, digest=vae.digest, variant=vae.variant, seed=seed, n=n, shard_size=rows,
        batch_size=batch, format="npy", dtype=dtype, shape=tuple(int(s) for s in shape), range=bounds, observe=observe,
        temperature=float(temperature), truncation=None if truncation is None else float(truncation),
        conditions=sources, machine={**_machine(), "device": vae.device},
    )  # fmt: skip


def _sources(vae: VAE, n: int, conditions: Mapping[str, Any], balanced: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in conditions.items():
        if isinstance(value, (str, os.PathLike)) and str(value).endswith(".npy"):
            path = Path(value).absolute()
            try:
                rows = len(np.load(path, mmap_mode="r"))
            except (OSError, ValueError, TypeError) as error:
                raise InputError(f"{path}: an .npy file of rows is expected: {error}") from None
            if rows < n:
                raise InputError(f"{path}: a row for each of {n} samples is expected, got {rows}")
            found[name] = {"file": str(path), "sha256": _sha256(path)}
        else:
            found[name] = {"value": value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value}
    if balanced is not None:
        known = {condition.name: condition for condition in vae.conditions}
        classes = known[balanced].classes if balanced in known else None
        if not classes or balanced in found:
            raise InputError(
                f"balanced: a condition with classes that has no other value is expected, one of "
                f"{', '.join(name for name, each in known.items() if each.classes) or 'none'}; got {balanced!r}"
            )
        found[balanced] = {"balanced": len(classes)}
    return found


def _machine() -> dict[str, str]:
    """What decoded bytes depend on beside the job: ONNX Runtime and the instructions of the processor."""
    features = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
        flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
        wanted = ("avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "asimd",
                  "asimddp", "i8mm", "sve", "bf16")  # fmt: skip
        features = " ".join(flag for flag in wanted if flag in flags.partition(":")[2].split())
    return {"onnxruntime": onnxruntime_version(), "processor": f"{platform.machine()} {features}".strip()}


def _settle(folder: Path, job: Job, shared: bool, warn: Callable[[str], object] | None) -> Job:
    """Write the folder's job, or hold this call's against the one that is there."""
    path = folder / JOB
    wanted = json.loads(_dump(dataclasses.asdict(job)))
    if not path.exists():
        strangers = [entry.name for entry in os.scandir(folder) if not entry.name.startswith(".")]
        if strangers:
            raise InputError(f"{folder}: an empty folder or one of this job is expected, it holds {strangers[0]}")
        write_atomic(path, _dump(wanted))
        return job
    found = read_json(path)
    differences = [
        f"{name}: {found.get(name)!r} there, {wanted.get(name)!r} now"
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name) and name not in (_MACHINE, _GROWING)
    ]
    n = found.get(_GROWING)
    if not isinstance(n, int) or wanted[_GROWING] < n or (shared and wanted[_GROWING] != n):
        more = "the same n" if shared else "at least as many"
        differences.append(f"n: {n!r} there, {wanted[_GROWING]} now, {more} expected")
    if differences:
        raise InputError(f"{folder}: holds another job; {'; '.join(differences)}; give another folder")
    other = [f"{name}: {value!r} then, {wanted[_MACHINE].get(name)!r} now"
             for name, value in found.get(_MACHINE, {}).items() if value != wanted[_MACHINE].get(name)]  # fmt: skip
    if other and warn is not None:
        warn(
            f"{folder}: begun on another kind of machine ({'; '.join(other)}): latents are the same bits anywhere, "
            "decoded values only with the same ONNX Runtime on the same kind of processor"
        )
    if wanted[_GROWING] > n:
        # The index goes first: it would tell of fewer samples than the job.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(folder / INDEX)
        write_atomic(path, _dump({**wanted, _MACHINE: found[_MACHINE]}))
    return job


def _clean_up(folder: Path) -> None:
    """Remove the temporary files of calls that were killed; only where no other call is at work."""
    ours = re.compile(rf"\.(shard-[0-9]+\.(json|{'|'.join(FORMATS)})|{JOB}|{INDEX})\.[^.]+\.tmp")
    with os.scandir(folder) as entries:
        for left in [entry.path for entry in entries if ours.fullmatch(entry.name)]:
            with contextlib.suppress(OSError):
                os.unlink(left)


def _require_room(folder: Path, job: Job, numbers: Sequence[int]) -> None:
    size = int(np.prod(job.shape)) * np.dtype(job.dtype).itemsize
    needed = sum((stop - start) * size for number in numbers if _entry(folder, job, number) is None
                 for start, stop in [job.rows(number)])  # fmt: skip
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise VaeError(
            f"{folder}: {needed / 2**30:.2f} GiB are needed, {free / 2**30:.2f} GiB are free; free some space, choose "
            "another disk, or take uint8"
        )


def _entry(folder: Path, job: Job, number: int) -> dict[str, Any] | None:
    """What is said of a shard that is there, as far as its size shows; None where it has to be made."""
    path = folder / job.name(number)
    start, stop = job.rows(number)
    try:
        entry = read_json(path.with_suffix(".json"))
        right = entry == {**entry, "file": path.name, "start": start, "stop": stop, "bytes": path.stat().st_size}
        return entry if right and isinstance(entry.get("sha256"), str) else None
    except (OSError, VaeError):
        return None


def _finish(folder: Path, job: Job) -> Samples | None:
    """Write the index if every shard is there."""
    entries = [_entry(folder, job, number) for number in range(job.shards)]
    if any(entry is None for entry in entries):
        return None
    write_atomic(folder / INDEX, _dump({"format_version": _VERSION, "job": dataclasses.asdict(job), "shards": entries}))
    return open_samples(folder)


def _dump(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Workers.


def _run(vae: VAE, folder: Path, job: Job, numbers: Sequence[int], workers: int) -> Iterator[int]:
    """Make shards, here or in processes of their own; yields the rows of each as it is done."""
    if workers == 1:
        for number in numbers:
            entry = generate_shard(vae, folder, job, number)
            yield entry["stop"] - entry["start"]
        return
    import multiprocessing

    arguments = (str(vae.bundle.path), vae.digest, vae.device, vae.variant, folder, job)
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start, arguments)
    waiting = iter(numbers)
    pending: set[Future[int]] = set()
    try:
        while True:
            # No more than a few ahead: memory does not grow with the job.
            for number in waiting:
                with _interrupts_held():
                    pending.add(pool.submit(_work, number))
                if len(pending) >= 2 * workers:
                    break
            if not pending:
                break
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        raise VaeError(
            f"{folder}: a worker died, killed or out of memory; what is whole stays: run the same command again to go "
            "on, with fewer workers or a smaller batch size if memory is short"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


# What a worker makes shards with.
_state: tuple[VAE, Path, Job] | None = None


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Start processes that Ctrl-C, which goes to all of a terminal's, never reaches: the parent tells when to stop."""
    import signal

    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(bundle: str, digest: str, device: str, variant: str, folder: Path, job: Job) -> None:
    """In a worker, before its first shard."""
    import multiprocessing
    import signal

    global _state
    # Where signals cannot be held back while a process is started.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    # A parent that is killed leaves its workers waiting for ever.
    threading.Thread(target=end_with_parent, daemon=True).start()
    _state = load(bundle, device=device, variant=variant, digest=digest), folder, job


def _work(number: int) -> int:
    assert _state is not None
    entry = generate_shard(*_state, number)
    rows: int = entry["stop"] - entry["start"]
    return rows
