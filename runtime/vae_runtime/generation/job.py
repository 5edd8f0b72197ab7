"""A job of generation: all that the bytes of its shards depend on; docs/offline-generation.md is the description."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import noise
from ..devices import onnxruntime_version
from ..errors import InputError, VaeError, require_integer
from ..inputs import observation_rows
from ..posterior import Posterior, Posteriors
from ..vae import VAE
from .formats import row_types, table
from .samples import VERSION

__all__ = ["DTYPES", "Job", "content_of", "describe", "encoded", "machine"]

DTYPES = ("float32", "uint8")
# Rows decoded at once: most of a core's throughput, and little memory for what lies between the layers.
_BATCH_SIZE = 64
# Bytes of a shard, about: large enough for a disk's full rate, small enough to lose little when one is cut short.
_SHARD_BYTES = 2**26
# Of which a call holds the index in memory.
_MOST_SHARDS = 10**6
# Bytes that a batch may have as float32: of what is decoded a few times as much is in memory at once.
_BATCH_BYTES = 2**30
# What a later call may change: the number of samples may grow, the machine and the places of files may be others.
_MACHINE, _GROWING, _FILES = "machine", "n", "files"


@dataclass(frozen=True)
class Job:
    """What is generated: everything that the bytes of the shards depend on, and the machine, which they may depend on.

    `verb` is "sample", or what is done with `observations`, the content of an .npy file: "reconstruct" or "encode".
    `conditions` maps names to {"value": …}, to {"balanced": classes}: class i mod classes for sample i, or to the
    content of an .npy file, a row for each sample. A content is {"name": …, "sha256": …, "shape": …, "dtype": …}, and
    `files` says by its name where it lies, and what the file looked like when it was hashed: {"path": …, "sha256": …,
    "size": …, "mtime_ns": …}. `dtype` is as `row_types.dtype_to_json` gives it.
    """

    bundle: str
    digest: str
    variant: str
    verb: str
    observations: Mapping[str, Any] | None
    seed: int
    n: int
    shard_size: int
    batch_size: int
    format: str
    dtype: str | list[Any]
    shape: tuple[int, ...]
    range: tuple[float, float] | None
    observe: bool
    temperature: float
    truncation: float | None
    conditions: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]
    machine: Mapping[str, str]
    noise: str = noise.SPEC
    format_version: str = VERSION

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Job:
        """The job of a folder, as it was written.

        Raises:
            ValueError: it is none.
        """
        try:
            job = cls(**{**found, "shape": tuple(found["shape"]), "range": found["range"] and tuple(found["range"])})
            whole = [job.n, job.shard_size, job.batch_size, *job.shape]
            right = all(type(number) is int and 0 < number <= 2**48 for number in whole) and type(job.seed) is int
            right = right and job.as_json() == found and job.format in table.FORMATS and bool(job.row_dtype)
            right = right and job.format_version == VERSION
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(str(error)) from None
        if not right:
            raise ValueError("the format_version, a size, the seed, the dtype or the format is none")
        return job

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

    @property
    def row_bytes(self) -> int:
        """How many bytes the numbers of one sample take."""
        return math.prod(self.shape) * self.row_dtype.itemsize

    @property
    def row_dtype(self) -> np.dtype[Any]:
        """The dtype of the rows; structured where latents are written."""
        return row_types.dtype_from_json(self.dtype)

    @property
    def fingerprint(self) -> str:
        """A SHA-256 of what the bytes of whole shards depend on: all but n, the machine and the places of files."""
        fixed = {name: value for name, value in self.as_json().items() if name not in (_MACHINE, _GROWING, _FILES)}
        return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()

    def as_json(self) -> dict[str, Any]:
        """The job as it is written: what JSON has no type for in the nearest that it has, and no paths."""
        found: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        for file in found[_FILES].values():
            file.pop("path", None)
        return found

    def rows_of(self, name: str) -> NDArray[Any]:
        """The content of a file, mapped into memory.

        Raises:
            VaeError: it is not there any more, or was altered.
        """
        file = self.files[name]
        with contextlib.suppress(Exception):  # as in `content_of`
            rows: NDArray[Any] = np.lib.format.open_memmap(file["path"], mode="r")
            if _stamp(Path(file["path"])) == {key: file[key] for key in ("size", "mtime_ns")}:
                return rows
        raise VaeError(f"{file['path']}: removed or altered since it was hashed; put it back and run the command again")

    def differences(self, other: Mapping[str, Any], *, growing: bool) -> list[str]:
        """What speaks against going on with the job of a folder, field by field.

        Args:
            other: the folder's, as it was written.
            growing: whether this call's n may be the larger one.
        """
        wanted = self.as_json()
        found = [
            f"{name}: {other.get(name)!r} there, {wanted.get(name)!r} now"
            for name in sorted(other.keys() | wanted.keys())
            if other.get(name) != wanted.get(name) and name not in (_MACHINE, _GROWING, _FILES)
        ]
        n = other.get(_GROWING)
        if not isinstance(n, int) or self.n < n or (self.n != n and not growing):
            found.append(f"n: {n!r} there, {self.n} now, {'at least as many' if growing else 'the same n'} expected")
        return found

    def other_machine(self, other: Mapping[str, Any]) -> list[str]:
        """How the machine that a folder's job began on differs from this one."""
        return [
            f"{name}: {value!r} then, {self.machine.get(name)!r} now"
            for name, value in other.get(_MACHINE, {}).items()
            if value != self.machine.get(name)
        ]


def describe(
    vae: VAE, n: int | None, seed: int, format: str, dtype: str, observe: bool, temperature: float,
    truncation: float | None, conditions: Mapping[str, Any] | None, balanced: str | None, batch_size: int | None,
    shard_size: int | None, verb: str = "sample", path: str | os.PathLike[str] | None = None,
    known: Mapping[str, Any] | None = None,
) -> Job:  # fmt: skip
    """The job of a call of `generate`, whose arguments most of these are.

    Args:
        verb: what is done.
        path: the .npy file of observations; None where samples are drawn.
        known: the folder's job, as it was written: a file that looks as it did then is not hashed again.

    Raises:
        InputError: an argument is out of its range.
        VaeError: the library of the format is not installed.
    """
    files: dict[str, dict[str, Any]] = {}
    observations = None
    name = vae.manifest.observation.name
    if path is not None:
        content, files[name] = content_of(path, _remembered(known, name))
        observations = {"name": name, **content}
        n = observations["shape"][0] if n is None else n
    n = require_integer("n", n, 1, 2**48)
    if observations and n > observations["shape"][0]:
        raise InputError(f"n: at most the {observations['shape'][0]} rows of {path} are expected, got {n}")
    seed = require_integer("seed", seed, -(2**63), 2**64 - 1)
    batch = require_integer("batch_size", _BATCH_SIZE if batch_size is None else batch_size, 1, 2**20)
    table.require(format)
    if not isinstance(observe, (bool, np.bool_)):
        raise InputError(f"observe: True or False is expected, got {observe!r}")
    if dtype not in DTYPES or (verb == "encode" and dtype != "float32"):
        raise InputError(
            f"dtype: {'no other than float32' if verb == 'encode' else ' or '.join(DTYPES)} is expected, got {dtype!r}"
        )
    bounds = vae.manifest.observation.range
    if dtype == "uint8" and bounds is None:
        raise InputError("dtype: uint8 needs a range of observations, the bundle's manifest states none; take float32")
    if verb != "sample" and (temperature, truncation) != (1, None):
        raise InputError(f"temperature and truncation: these are for samples of the prior, not for {verb}")
    if verb == "encode" and observe:
        raise InputError("observe: latents are written, no draws from the likelihood; leave it out")
    sources = _sources(vae, n, conditions or {}, balanced, files, known)
    # One row, so that what is wrong with the arguments shows before anything is written.
    row = {
        name: _first_row(files, name) if name in files else source.get("value", 0) for name, source in sources.items()
    } or None
    kind: Any = dtype
    if path is None:
        shape = vae.sample(
            1, conditions=row, seed=seed, temperature=temperature, truncation=truncation, observe=observe
        ).shape[1:]
    else:
        x = _first_row(files, name)
        try:
            observation_rows(vae.manifest.observation, x)
        except InputError as error:
            raise InputError(f"{path}: row 0: {error}") from None
        if verb == "encode":
            found = encoded(vae, x, row, seed, 0, 1)
            kind = row_types.dtype_to_json([(field, rows.dtype, rows.shape[1:]) for field, rows in found.items()])
            shape = ()
        else:
            z = vae.encode(x, conditions=row).mode()
            shape = vae.decode(z, conditions=row, seed=seed if observe else None, observe=observe).shape[1:]
    size = math.prod(shape) * row_types.dtype_from_json(kind).itemsize
    values = math.prod(vae.manifest.observation.shape if verb == "encode" else shape)
    if batch * values * 4 > _BATCH_BYTES and batch > 1:
        raise InputError(
            f"batch_size: at most {max(1, _BATCH_BYTES // (4 * values))} is expected, 1 GiB of {values} float32 each, "
            f"got {batch}"
        )
    if shard_size is None:
        shard_size = max(1, _SHARD_BYTES // size // batch) * batch
    rows_of_shard = require_integer("shard_size", shard_size, 1, 2**40)
    if n > rows_of_shard * _MOST_SHARDS:
        raise InputError(
            f"shard_size: at least {-(-n // (_MOST_SHARDS * batch)) * batch} is expected, got {rows_of_shard}: {n} "
            f"samples would be more than {_MOST_SHARDS} files"
        )
    if rows_of_shard % batch:
        raise InputError(f"shard_size: a multiple of the batch size, {batch}, is expected, got {rows_of_shard}")
    return Job(
        bundle=vae.manifest.name, digest=vae.digest, variant=_variant(vae, verb), verb=verb, observations=observations,
        seed=seed, n=n, shard_size=rows_of_shard, batch_size=batch, format=format, dtype=kind,
        shape=tuple(int(s) for s in shape), range=bounds, observe=bool(observe), temperature=float(temperature),
        truncation=None if truncation is None else float(truncation), conditions=sources, files=files,
        machine=machine(vae.device),
    )  # fmt: skip


def encoded(
    vae: VAE, x: NDArray[Any], conditions: Mapping[str, Any] | None, seed: int, start: int, batch_size: int
) -> dict[str, NDArray[Any]]:
    """What is written of the latents of observations, by the names of the fields.

    Args:
        vae: what encodes.
        x: as of `VAE.encode`, like the rest.

    Returns:
        float32 [n, *latent shape] each: mu, std and z, the sample of the posterior; of a deterministic encoder mu; of
        one that gives codes, int64, codes. Of several latents the names begin with theirs and a dot.
    """
    found = vae.encode(x, conditions=conditions, seed=seed, start=start, batch_size=batch_size)
    parts = dict(found) if isinstance(found, Posteriors) else {"": found}
    fields: dict[str, NDArray[Any]] = {}
    for name, part in parts.items():
        before = f"{name}." if name else ""
        if isinstance(part, Posterior):
            fields |= {f"{before}mu": part.mean, f"{before}std": part.std}
            fields[f"{before}z"] = part.sample(seed=seed, start=start)
        else:
            fields[before + ("codes" if part.value.dtype.kind == "i" else "mu")] = part.value
    return fields


def _variant(vae: VAE, verb: str) -> str:
    """The name by which `load` gives the graphs that are run again."""
    if verb != "reconstruct":
        return vae.variants["encoder"] if verb == "encode" else vae.variant
    mine, components = vae.variants, vae.manifest.components
    same = (name for name in mine.values() if all(mine[c] == name for c in mine if name in components[c]))
    return next(same, vae.variant)


def _sources(
    vae: VAE, n: int, conditions: Mapping[str, Any], balanced: str | None, files: dict[str, dict[str, Any]],
    known: Mapping[str, Any] | None,
) -> dict[str, Any]:  # fmt: skip
    if not isinstance(conditions, Mapping):
        raise InputError(f"conditions: a mapping of names to values is expected, got {conditions!r:.99}")
    found: dict[str, Any] = {}
    shapes = {condition.name: condition.shape for condition in vae.conditions}
    for name, value in conditions.items():
        if isinstance(value, (str, os.PathLike)) and str(value).endswith(".npy"):
            found[name], files[name] = content_of(value, _remembered(known, name))
            rows = found[name]["shape"][0]
            if rows < n:
                raise InputError(f"{value}: a row for each of {n} samples is expected, got {rows}")
        else:
            try:
                array = np.asarray(value)
            except (ValueError, TypeError, RuntimeError) as error:
                raise InputError(f"conditions: {name}: numbers or a class are expected: {error}") from None
            if array.shape != shapes.get(name, array.shape):
                raise InputError(
                    f"conditions: {name}: one value of shape {list(shapes[name])} for all samples is expected, or the "
                    f"path of an .npy file that has a row for each; got {list(array.shape)}"
                )
            found[name] = {"value": array.tolist()}
    if balanced is not None:
        known = {condition.name: condition for condition in vae.conditions}
        classes = known[balanced].classes if isinstance(balanced, str) and balanced in known else None
        if not classes or balanced in found:
            raise InputError(
                f"balanced: a condition with classes that has no other value is expected, one of "
                f"{', '.join(name for name, each in known.items() if each.classes) or 'none'}; got {balanced!r}"
            )
        found[balanced] = {"balanced": len(classes)}
    return found


def content_of(
    path: str | os.PathLike[str], known: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    """What is in an .npy file of rows, and where it lies and what it looks like.

    Args:
        path: the file.
        known: the sha256, size and mtime_ns of a file that may be this one: then it is not hashed again.

    Returns:
        `sha256`, `shape` and `dtype`; and `path`, `sha256`, `size` and `mtime_ns`.

    Raises:
        InputError: it is no such file.
    """
    try:
        place = Path(path).absolute()
        # numpy would wait for what a pipe never gives.
        if place.exists() and not place.is_file():
            raise ValueError("it is no file")
        rows = np.lib.format.open_memmap(place, mode="r")
        shape, dtype = list(rows.shape), rows.dtype.name
        if not shape or not shape[0]:
            raise ValueError("it has none")
        stamp = _stamp(place)
        same = known is not None and stamp.items() <= known.items() and isinstance(known.get("sha256"), str)
        sha256 = known["sha256"] if known is not None and same else _sha256(place)
    except Exception as error:  # numpy's parser lets through what others raise
        raise InputError(
            f"{path}: an .npy file of rows is expected: {error}; write the array with numpy.save"
        ) from None
    return {"sha256": sha256, "shape": shape, "dtype": dtype}, {"path": str(place), "sha256": sha256, **stamp}


def _remembered(known: Mapping[str, Any] | None, name: str) -> Mapping[str, Any] | None:
    """What a folder's job says of a file."""
    files = (known or {}).get(_FILES)
    found = files.get(name) if isinstance(files, dict) else None
    return found if isinstance(found, dict) else None


def _first_row(files: Mapping[str, Mapping[str, Any]], name: str) -> NDArray[Any]:
    row: NDArray[Any] = np.lib.format.open_memmap(files[name]["path"], mode="r")[:1]
    return row


def _stamp(path: Path) -> dict[str, int]:
    """What changes with a file's content."""
    status = path.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def machine(device: str) -> dict[str, str]:
    """What decoded bytes depend on beside the job: ONNX Runtime, the processor's instructions, and the device."""
    return {**_machine(), "device": device}


@functools.cache
def _machine() -> dict[str, str]:
    features = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
        flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
        wanted = ("avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "asimd",
                  "asimddp", "i8mm", "sve", "bf16")  # fmt: skip
        features = " ".join(flag for flag in wanted if flag in flags.partition(":")[2].split())
    return {"onnxruntime": onnxruntime_version(), "processor": f"{platform.machine()} {features}".strip()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
