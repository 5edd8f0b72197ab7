"""The files of a samples folder: their names, which no other module knows, and the JSON in them.

job.json describes what is generated. Each shard has a sidecar with the same stem, which states its hash and its job.
index.json is written last, once every shard is whole. docs/offline-generation.md describes the folder.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from .._version import __version__
from ..errors import InputError, VaeError
from .formats.row_types import dtype_from_json
from .formats.table import FORMATS
from .job import VERSION, Job
from .store import Store

JOB, INDEX = "job.json", "index.json"
# The names of all files, as a regular expression.
_NAMES = r"shard-[0-9]+\.[a-z]+|job\.json|index\.json"


def shard_name(job: Job, number: int) -> str:
    """Return the name of a shard's file."""
    return f"shard-{number:08}.{job.format}"


def _sidecar_name(shard: str) -> str:
    """Return the name of the file that describes a shard."""
    return shard.partition(".")[0] + ".json"


def _to_json(value: Mapping[str, Any]) -> bytes:
    """Return an object as the text of a JSON file."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _read_json(store: Store, name: str) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        VaeError: the file is missing, cannot be read, or holds something else.
    """
    path = f"{store}/{name}"
    content = store.read(name)
    if content is None:
        raise VaeError(f"{path}: expected a file, got nothing")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise VaeError(
            f"{path}: expected JSON: {error}; generate again into another folder, or put the file back"
        ) from error
    if not isinstance(value, dict):
        raise VaeError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


# Temporary files.


@contextlib.contextmanager
def held(store: Store, *, shared: bool) -> Iterator[None]:
    """Hold the folder, and remove the temporary files of calls that were killed.

    Args:
        store: the place of the folder.
        shared: whether other calls may hold it at the same time; then nothing is removed.

    Raises:
        VaeError: the folder cannot be made, or another call holds it.
    """
    with store.held(shared=shared):
        if not shared:
            store.remove_temporary(_NAMES)
        yield


@contextlib.contextmanager
def marker(store: Store) -> Iterator[str]:
    """Keep a file in the folder, by which a node finds out whether it sees the folder; yield its name."""
    # Named like a temporary file: if this call is killed, the next one removes it.
    name = f".{JOB}.{secrets.token_hex(8)}.tmp"
    store.write(name, name.encode())
    try:
        yield name
    finally:
        store.remove(name)


def remove_unfinished(store: Store, job: Job, number: int) -> None:
    """Remove the temporary files of a shard whose worker died."""
    store.remove_temporary(re.escape(shard_name(job, number)))


# job.json.


def read_job_document(store: Store) -> dict[str, Any] | None:
    """Return the folder's job as it was written; None if there is none."""
    return None if store.size(JOB) is None else _read_json(store, JOB)


def read_job(store: Store) -> Job:
    """Return the job of a folder.

    Raises:
        VaeError: the folder has no job.
    """
    document = read_job_document(store)
    if document is None:
        raise VaeError(
            f"{store}: expected a folder of samples, got one without {JOB}; give a folder that `generate` wrote"
        )
    try:
        return Job.from_json(document)
    except ValueError as error:
        raise VaeError(f"{store}/{JOB}: expected a job of this version: {error}; generate again") from None


def claim(store: Store, job: Job, *, shared: bool, warn: Callable[[str], object] | None) -> None:
    """Write the folder's job, or compare this call's job with it.

    Args:
        store: the place of the folder.
        job: the job of this call.
        shared: whether other calls may be at work in the folder: then the job must be the same, n included.
        warn: called where the folder was begun on another kind of machine.

    Raises:
        InputError: the folder holds another job, or other files.
        VaeError: the job cannot be read or written.
    """
    if store.size(JOB) is None:
        names = store.sizes()
        # Another call may have begun in the meantime.
        if names and JOB not in names:
            raise _occupied(store, min(names))
        store.create(JOB, _to_json(job.as_json()))
    # Read back: another call may have been first.
    written = _read_json(store, JOB)
    differences = job.differences(written, growing=not shared)
    if differences:
        # A job without shards may be replaced: nothing is lost. In a remote store another call may be at work.
        if shared or store.remote or store.sizes().keys() != {JOB}:
            raise _taken(store, differences)
        store.write(JOB, _to_json(job.as_json()))
        return
    changes = job.machine_differences(written)
    if changes and warn is not None:
        warn(
            f"{store}: begun on another kind of machine ({'; '.join(changes)}): latents are the same bits on every "
            "machine, decoded values only with the same ONNX Runtime on the same kind of processor"
        )
    if job.n > written["n"]:
        # The index is removed first: it lists fewer samples than the job.
        store.remove(INDEX)
        store.write(JOB, _to_json({**job.as_json(), "machine": written["machine"]}))


def require_claimable(store: Store, job: Job, *, shared: bool) -> None:
    """Raise what `claim` would raise, and write nothing; arguments as there.

    Raises:
        InputError: the folder holds another job, or other files.
        VaeError: the job cannot be read.
    """
    written, names = read_job_document(store), store.sizes()
    if written is None:
        if names:
            raise _occupied(store, min(names))
        return
    differences = job.differences(written, growing=not shared)
    if differences and (shared or store.remote or names.keys() != {JOB}):
        raise _taken(store, differences)


def _occupied(store: Store, name: str) -> InputError:
    return InputError(f"{store}: expected an empty folder or one of this job, got one with {name}")


def _taken(store: Store, differences: Sequence[str]) -> InputError:
    return InputError(
        f"{store}: another job is in this folder; differences that prevent resuming: {'; '.join(differences)}; give "
        "another folder"
    )


def discard_empty(store: Store) -> None:
    """Remove the job of a folder without shards; in a remote store another call may be at work."""
    if not store.remote and store.sizes().keys() == {JOB}:
        store.remove(JOB)


# Shards and their sidecars.


def missing_shards(store: Store, job: Job) -> list[int]:
    """Return the numbers of the shards that have no file."""
    names = store.sizes()
    return [number for number in range(job.shards) if shard_name(job, number) not in names]


def write_sidecar(
    store: Store, job: Job, number: int, size: int, sha256: str, machine: Mapping[str, str]
) -> None:  # fmt: skip
    """Write the sidecar of a shard; from then on the shard counts as whole.

    Raises:
        VaeError: the sidecar cannot be written, or another job has replaced the folder's in the meantime.
    """
    name, (start, stop) = shard_name(job, number), job.rows(number)
    if read_job(store).fingerprint != job.fingerprint:
        raise VaeError(f"{store}/{JOB}: another job has replaced this one since the call began; give another folder")
    entry = {"file": name, "start": start, "stop": stop, "bytes": size, "sha256": sha256}
    store.write(_sidecar_name(name), _to_json({**entry, "job": job.fingerprint, "machine": machine}))


def read_machine(store: Store, job: Job, number: int) -> Any:
    """Return the machine that made a shard, as its sidecar says; None without a sidecar."""
    try:
        return _read_json(store, _sidecar_name(shard_name(job, number)))["machine"]
    except (VaeError, KeyError):
        return None


def read_entries(store: Store, job: Job, numbers: Sequence[int]) -> list[dict[str, Any] | None]:
    """Return the index entry of each shard with the right size and sidecar; None for those that have to be made."""
    names = [shard_name(job, number) for number in numbers]
    sizes = store.sizes() if len(names) > 1 else {name: store.size(name) for name in names}
    present = [name for name in names if sizes.get(name) is not None]
    sidecars = dict(zip(present, store.read_all(map(_sidecar_name, present)), strict=True))
    fingerprint = job.fingerprint
    return [
        _entry(job, number, sizes[name], sidecars[name], fingerprint) if name in sidecars else None
        for number, name in zip(numbers, names, strict=True)
    ]


def _entry(
    job: Job, number: int, size: int | None, sidecar: bytes | None, fingerprint: str
) -> dict[str, Any] | None:  # fmt: skip
    start, stop = job.rows(number)
    try:
        document = json.loads(sidecar or b"")
        entry = {key: document[key] for key in ("file", "start", "stop", "bytes", "sha256")}
        same_job = document["job"] == fingerprint
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    right = entry == {**entry, "file": shard_name(job, number), "start": start, "stop": stop, "bytes": size}
    return entry if right and same_job and isinstance(entry["sha256"], str) else None


# index.json.


def write_index(store: Store, job: Job, entries: Sequence[Mapping[str, Any] | None]) -> None:
    """Write the index of a folder whose shards are all whole.

    Raises:
        VaeError: the index cannot be written, or another call has replaced the folder's job in the meantime.
    """
    written = read_job(store)
    if (written.fingerprint, written.n) != (job.fingerprint, job.n):
        raise VaeError(
            f"{store}/{JOB}: another call has replaced this file since this one began; run the same command again"
        )
    index = _to_json({"format_version": VERSION, "job": job.as_json(), "shards": entries})
    # A finished folder may be read-only by now.
    if store.read(INDEX) != index:
        store.write(INDEX, index)


def read_index(store: Store) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the job and the shards of a finished folder, after checking that they agree.

    Raises:
        VaeError: the folder holds no samples, is not finished, or its index is damaged.
    """
    if store.size(INDEX) is None:
        if store.size(JOB) is not None:
            raise VaeError(
                f"{store}: the folder is not finished, {INDEX} is missing; run the same `generate` again to go on"
            )
        raise VaeError(
            f"{store}: expected a folder of samples, got one without {INDEX}; give a folder that `generate` wrote"
        )
    index = _read_json(store, INDEX)
    problem = _index_problem(index)
    if problem:
        raise VaeError(f"{store}/{INDEX}: expected consecutive shards up to n, {problem}; generate again")
    return index["job"], index["shards"]


def _index_problem(index: Mapping[str, Any]) -> str | None:
    """Return what is wrong with an index; readers rely on what is checked here."""
    version, known = str(index.get("format_version")), VERSION.partition(".")[0]
    if version.partition(".")[0] != known:
        return f"got format_version {version:.99}, while vae-runtime {__version__} reads {known}.x"
    job, shards = index.get("job"), index.get("shards")
    if not isinstance(job, dict) or not isinstance(shards, list) or not shards:
        return "got no job or no shards"
    if job.get("format") not in FORMATS:
        return f"got a format other than {', '.join(FORMATS)}: {job.get('format')!r:.99}"
    shape = job.get("shape")
    if (
        not isinstance(shape, list)
        or not all(map(_is_size, [*shape, job.get("n")]))
        or type(job.get("seed")) is not int
    ):
        return "got an invalid shape, n or seed"
    try:
        dtype = dtype_from_json(job.get("dtype"))
    except InputError as error:
        return str(error)
    if not _is_size(math.prod(shape) * dtype.itemsize):
        return f"got rows of 2^48 bytes or more: shape {shape!r:.99}"
    done = 0
    for number, shard in enumerate(shards):
        match shard:
            # A name must not lead out of the folder.
            case {"file": str(file), "start": int(start), "stop": int(stop), "bytes": int(size)} if (
                re.fullmatch(rf"shard-[0-9]+\.{job['format']}", file)
                and type(start) is int
                and start == done < stop <= job["n"]
                and all(map(_is_size, (stop, size)))
            ):
                done = stop
            case _:
                return f"got {shard!r:.200} as shard {number}"
    return None if done == job["n"] else f"got {done} of {job['n']} samples"


def _is_size(value: object) -> bool:
    return type(value) is int and 0 < value <= 2**48
