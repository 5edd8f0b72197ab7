"""A job of generation: all that the bytes of its shards depend on; docs/offline-generation.md is the description."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import noise
from .errors import InputError, require_integer
from .session import onnxruntime_version
from .vae import VAE

__all__ = ["DTYPES", "VERSION", "Job", "describe"]

DTYPES = ("float32", "uint8")
VERSION = "1.0"
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
    format_version: str = VERSION

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
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    def as_json(self) -> dict[str, Any]:
        """The job as it is written: what JSON has no type for in the nearest that it has."""
        found: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return found

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
            if other.get(name) != wanted.get(name) and name not in (_MACHINE, _GROWING)
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
    vae: VAE, n: int, seed: int, dtype: str, observe: bool, temperature: float, truncation: float | None,
    conditions: Mapping[str, Any] | None, balanced: str | None, batch_size: int | None, shard_size: int | None,
) -> Job:  # fmt: skip
    """The job of a call of `generate`, whose arguments these are.

    Raises:
        InputError: an argument is out of its range.
    """
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
