"""A job of generation: everything that the bytes of its shards depend on; docs/offline-generation.md describes it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import noise
from .formats.row_types import dtype_from_json
from .formats.table import FORMATS

# The version of the JSON files in a samples folder; minor versions only add fields.
VERSION = "1.0"
# Fields that a later call may change: the number of samples may grow, the machine and the places of files may differ.
_MACHINE, _GROWING, _FILES = "machine", "n", "files"
# Fields that are written where they are set alone: jobs without them are those of folders that do not know them.
_OPTIONAL = ("tile", "tile_blend")


def _plain(number: np.generic) -> Any:
    return number.item()


@dataclass(frozen=True)
class Job:
    """Everything that the bytes of the shards depend on, and the machine, which they may depend on.

    `verb` is "sample", or what is done with `observations`, the content of an .npy file: "reconstruct" or "encode", or
    "decode" where it holds latents.
    `conditions` maps names to {"value": …}, to {"balanced": classes}: class i mod classes for sample i, or to the
    content of an .npy file, a row for each sample. A content is {"name": …, "sha256": …, "shape": …, "dtype": …}.
    `files` has the locations by name, with attributes that tell whether a file was altered: {"path": …, "sha256": …,
    "size": …, "mtime_ns": …}. `dtype` has the form of `row_types.dtype_to_json`. `tile` and
    `tile_blend` are as in `VAE`.
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
    tile: int | str | Mapping[str, int] | None = None
    tile_blend: bool | float = False
    noise: str = noise.SPEC
    format_version: str = VERSION

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Job:
        """Return the job of a folder, as it was written.

        Raises:
            ValueError: the document describes no job of this version.
        """
        try:
            bounds = document["range"]
            job = cls(**{**document, "shape": tuple(document["shape"]), "range": bounds and tuple(bounds)})
            sizes = [job.n, job.shard_size, job.batch_size, *job.shape]
            valid = all(type(size) is int and 0 < size <= 2**48 for size in sizes) and type(job.seed) is int
            valid = valid and job.as_json() == document and job.format in FORMATS and bool(job.row_dtype)
            valid = valid and job.format_version == VERSION
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(str(error)) from None
        if not valid:
            raise ValueError("the format_version, a size, the seed, the dtype or the format is invalid")
        return job

    @property
    def shards(self) -> int:
        """The number of shards."""
        return -(-self.n // self.shard_size)

    def rows(self, number: int) -> tuple[int, int]:
        """Return the index of the first sample of a shard, and that of the first of the next."""
        return number * self.shard_size, min((number + 1) * self.shard_size, self.n)

    @property
    def tiles(self) -> dict[str, Any]:
        """The arguments of `VAE.decode` and `VAE.encode` about tiles."""
        return {"tile": self.tile, "tile_blend": self.tile_blend}

    @property
    def row_bytes(self) -> int:
        """The bytes that the numbers of one sample take."""
        return math.prod(self.shape) * self.row_dtype.itemsize

    @property
    def row_dtype(self) -> np.dtype[Any]:
        """The dtype of the rows; structured where latents are written."""
        return dtype_from_json(self.dtype)

    @property
    def fingerprint(self) -> str:
        """A SHA-256 of what the bytes of whole shards depend on: all but n, the machine and the places of files."""
        fixed = {name: value for name, value in self.as_json().items() if name not in (_MACHINE, _GROWING, _FILES)}
        return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()

    def as_json(self) -> dict[str, Any]:
        """Return the job as it is written: in the types that JSON has, and without paths."""
        document: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self), default=_plain))
        for file in document[_FILES].values():
            file.pop("path", None)
        for name in _OPTIONAL:
            if not document[name]:
                del document[name]
        return document

    def differences(self, written: Mapping[str, Any], *, growing: bool) -> list[str]:
        """Return the differences that prevent resuming a folder, field by field.

        Args:
            written: the folder's job, as it was written.
            growing: whether n may be larger now.
        """
        current = self.as_json()
        differences = [
            f"{name}: {written.get(name)!r} in the folder, {current.get(name)!r} now"
            for name in sorted(written.keys() | current.keys())
            if written.get(name) != current.get(name) and name not in (_MACHINE, _GROWING, _FILES)
        ]
        n = written.get(_GROWING)
        if not isinstance(n, int) or self.n < n or (self.n != n and not growing):
            differences.append(
                f"n: {n!r} in the folder, {self.n} now, expected {'at least as many' if growing else 'the same n'}"
            )
        return differences

    def machine_differences(self, written: Mapping[str, Any]) -> list[str]:
        """Return how the machine that a folder's job began on differs from this one."""
        return [
            f"{name}: {value!r} then, {self.machine.get(name)!r} now"
            for name, value in written.get(_MACHINE, {}).items()
            if value != self.machine.get(name)
        ]
