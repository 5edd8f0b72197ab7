"""The arguments of `generate` in a few records, and the job that they describe."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..answers import range_of_mean
from ..computation import BATCH_SIZE
from ..errors import InputError, counted, require_bool, require_integer
from ..tiles import Tile
from ..vae import VAE
from .formats import table
from .formats.row_types import dtype_from_json, dtype_to_json
from .job import Job
from .machine import describe_machine
from .rows import encoded_fields, given_latents, require_row
from .sources import describe_file, map_file

EXECUTORS = ("local", "ray")
_DTYPES = ("float32", "uint8")
# Approximate bytes of a shard: large enough for a disk's full rate, small enough to lose little to an interruption.
_SHARD_BYTES = 2**26
# A call holds the index of all shards in memory.
_MAX_SHARDS = 10**6
# Bytes that a batch may have as float32; decoding it takes a few times as much memory.
_BATCH_BYTES = 2**30


@dataclass(frozen=True)
class Source:
    """The source of the rows: the prior, or an .npy file of observations or latents."""

    reconstruct: str | os.PathLike[str] | None = None
    encode: str | os.PathLike[str] | None = None
    decode: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        given = list(self._given)
        if len(given) > 1:
            raise InputError(f"{given[1]}: expected this or {given[0]}, got both")

    @property
    def _given(self) -> dict[str, str | os.PathLike[str]]:
        each = {"reconstruct": self.reconstruct, "encode": self.encode, "decode": self.decode}
        return {verb: path for verb, path in each.items() if path is not None}

    @property
    def verb(self) -> str:
        """The operation: "sample", "reconstruct", "encode" or "decode"."""
        return next(iter(self._given), "sample")

    @property
    def path(self) -> str | os.PathLike[str] | None:
        """The file of observations or latents; None if samples are drawn from the prior."""
        return next(iter(self._given.values()), None)


@dataclass(frozen=True)
class Draw:
    """The arguments of `VAE.sample` about random numbers; no seed is needed where nothing is drawn."""

    seed: int | None
    temperature: float = 1.0
    truncation: float | None = None
    observe: bool = False

    def __post_init__(self) -> None:
        require_bool("observe", self.observe)


@dataclass(frozen=True)
class Conditions:
    """By name, a value for all rows or an .npy file; and the condition whose classes take turns."""

    values: Mapping[str, Any] | None = None
    balanced: str | None = None


@dataclass(frozen=True)
class Output:
    """The format of the files, how many rows are decoded and stored together, and the tiles that divide them."""

    format: str = "npy"
    dtype: str = "float32"
    batch_size: int | None = None
    shard_size: int | None = None
    tile: Tile | None = None
    tile_blend: bool | float = False

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise InputError(f"dtype: expected {' or '.join(_DTYPES)}, got {self.dtype!r}")
        if self.shard_size is not None:
            size, rows = require_integer("shard_size", self.shard_size, 1, 2**40), self.rows
            if size % rows:
                raise InputError(f"shard_size: expected a multiple of the batch size, {rows}, got {size}")

    @property
    def tiles(self) -> dict[str, Any]:
        """The arguments of `VAE.decode` and `VAE.encode` about tiles."""
        return {"tile": self.tile, "tile_blend": self.tile_blend}

    @property
    def rows(self) -> int:
        """How many rows are decoded together."""
        return require_integer("batch_size", BATCH_SIZE if self.batch_size is None else self.batch_size, 1, 2**20)


@dataclass(frozen=True)
class Request:
    """Everything that a job depends on, apart from the model.

    Raises:
        InputError: what is drawn and what is written contradict each other.
    """

    n: int | None
    draw: Draw
    source: Source = Source()
    conditions: Conditions = Conditions()
    output: Output = Output()

    def __post_init__(self) -> None:
        verb, draw = self.source.verb, self.draw
        if draw.seed is None and (verb == "sample" or draw.observe):
            what = "draws from the likelihood" if draw.observe else "samples of the prior"
            raise InputError(f"seed: expected an integer for {what}, got nothing; give seed=0, or another one")
        if verb == "encode" and self.output.dtype != "float32":
            raise InputError(f"dtype: expected float32 for latents, got {self.output.dtype!r}")
        if verb != "sample" and (draw.temperature, draw.truncation) != (1, None):
            raise InputError(
                f"temperature and truncation: expected for samples of the prior alone, got them for {verb}; leave them "
                "out"
            )
        if verb == "encode" and draw.observe:
            raise InputError("observe: expected no draws from the likelihood where latents are written; leave it out")


@dataclass(frozen=True)
class Execution:
    """The processes that make shards, and the part of the shards that this call makes.

    Raises:
        InputError: an argument is out of its range or contradicts another.
    """

    workers: int | None = None
    executor: str = "local"
    address: str | None = None
    part: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.workers is not None:
            object.__setattr__(self, "workers", require_integer("workers", self.workers, 1, 4096))
        if self.executor not in EXECUTORS:
            raise InputError(f"executor: expected {' or '.join(EXECUTORS)}, got {self.executor!r}")
        if self.address is not None and self.executor != "ray":
            raise InputError(
                f"address: expected one with the executor ray alone, got {self.address!r} for {self.executor}"
            )
        if self.address is not None:
            cluster_host(self.address)
        self.shards(0)

    def shards(self, count: int) -> range:
        """Return the numbers of this call's shards, given the number of shards of the job."""
        if self.part is None:
            return range(count)
        if not isinstance(self.part, (tuple, list)) or len(self.part) != 2:
            raise InputError(f"part: expected two integers, (k, m), got {self.part!r}")
        step = require_integer("part", self.part[1], 1, 2**31)
        return range(require_integer("part", self.part[0], 1, step) - 1, count, step)


def cluster_host(address: str) -> tuple[str, int] | None:
    """Return the host and the port of a Ray cluster's address; None for "auto".

    Raises:
        InputError: the address has another form.
    """
    if address == "auto":
        return None
    host, _, port = address.removeprefix("ray://").rpartition(":") if isinstance(address, str) else ("", "", "")
    if not host or "/" in host or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise InputError(f"address: expected auto, HOST:PORT or ray://HOST:PORT, got {address!r}")
    return host.strip("[]"), int(port)


@dataclass(frozen=True)
class Callbacks:
    """Functions for progress and warnings, and a dict to which the seconds of each phase are added."""

    progress: Callable[[int, int], object] | None = None
    warn: Callable[[str], object] | None = None
    timings: dict[str, float] | None = None


def describe_job(vae: VAE, request: Request, written: Mapping[str, Any] | None = None) -> Job:
    """Return the job of a request, after making one row of it.

    Args:
        vae: the model.
        request: the arguments of the call.
        written: the folder's job, as it was written: a file with the size and time in it is not hashed again.

    Raises:
        InputError: an argument is out of its range.
        VaeError: the library of the format is not installed.
    """
    files: dict[str, dict[str, Any]] = {}
    draw, source, output = request.draw, request.source, request.output
    observations = _observations(vae, source, files, written)
    n = _count(request, observations)
    if draw.seed is None:
        _require_no_draws(vae, request, files)
    # The job of a call without a seed is the one with the seed 0, on which no bit depends.
    seed = require_integer("seed", 0 if draw.seed is None else draw.seed, -(2**63), 2**64 - 1)
    batch_size = output.rows
    table.require(output.format)
    if output.dtype == "uint8" and _range(vae, draw.observe) is None:
        raise InputError(
            "dtype: uint8 needs a range of observations, and the bundle's manifest states none; take float32"
        )
    conditions = _conditions(vae, n, request.conditions, files, written)
    shape, dtype = _row_of(vae, request, conditions, files, observations["name"] if observations else None)
    values = math.prod(vae.manifest.observation.shape if source.verb == "encode" else shape)
    if batch_size * values * 4 > _BATCH_BYTES and batch_size > 1:
        raise InputError(
            f"batch_size: expected at most {max(1, _BATCH_BYTES // (4 * values))}, 1 GiB of {values} float32 each, "
            f"got {batch_size}"
        )
    row_bytes = math.prod(shape) * dtype_from_json(dtype).itemsize
    return Job(
        bundle=vae.manifest.name, digest=vae.digest, variant=_variant(vae, source.verb), verb=source.verb,
        observations=observations, seed=seed, n=n, shard_size=_shard_size(output.shard_size, n, batch_size, row_bytes),
        batch_size=batch_size, format=output.format, dtype=dtype, shape=tuple(int(size) for size in shape),
        range=_range(vae, draw.observe), observe=bool(draw.observe), temperature=float(draw.temperature),
        truncation=None if draw.truncation is None else float(draw.truncation), conditions=conditions, files=files,
        machine=describe_machine(vae.device), **output.tiles,
    )  # fmt: skip


def _range(vae: VAE, observe: bool) -> tuple[float, float] | None:
    """The range of the rows, as far as the manifest states it."""
    return vae.manifest.observation.range if observe else range_of_mean(vae.manifest)


def _observations(
    vae: VAE, source: Source, files: dict[str, dict[str, Any]], written: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Return the content of the file of observations or latents, whose location is added to the files; None without."""
    if source.path is None:
        return None
    name = vae.manifest.latents[0].name if source.verb == "decode" else vae.manifest.observation.name
    content, files[name] = describe_file(source.path, _remembered(written, name))
    return {"name": name, **content}


def _require_no_draws(vae: VAE, request: Request, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a request without a seed of rows of a file for which something is drawn."""
    latents, verb = vae.manifest.latents, request.source.verb
    if verb == "encode":
        drawn = [each.name for each in latents if each.posterior.kind == "normal" or each.posterior.noise]
    elif verb == "decode" and len(latents) > 1:
        given = map_file(files[latents[0].name]).dtype.names
        # A file without fields is refused by itself.
        drawn = [each.name for each in latents if given and each.name not in given and not each.posterior.outputs]
    else:
        drawn = []
    if drawn:
        raise InputError(
            f"seed: expected an integer, since {', '.join(drawn)} is drawn, got nothing; give seed=0, or another one"
        )


def _count(request: Request, observations: Mapping[str, Any] | None) -> int:
    if observations is None:
        return require_integer("n", request.n, 1, 2**48)
    rows: int = observations["shape"][0]
    n = require_integer("n", rows if request.n is None else request.n, 1, 2**48)
    if n > rows:
        raise InputError(f"n: expected at most {rows}, the rows of {request.source.path}, got {n}")
    return n


def _row_of(
    vae: VAE, request: Request, sources: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]], name: str | None
) -> tuple[tuple[int, ...], str | list[Any]]:
    """Make one row, so that invalid arguments raise before anything is written; `name` is that of the file of rows.

    Returns:
        Its shape, and its dtype in the form for JSON.
    """
    draw, source, tiles = request.draw, request.source, request.output.tiles
    conditions = {
        name: map_file(files[name])[:1] if name in files else each.get("value", 0) for name, each in sources.items()
    } or None
    if name is None:
        row = vae.sample(
            1, conditions=conditions, seed=draw.seed, temperature=draw.temperature, truncation=draw.truncation,
            observe=draw.observe, **tiles,
        )  # fmt: skip
        return row.shape[1:], request.output.dtype
    tiled = request.output.tile is not None
    x: NDArray[Any] = map_file(files[name])[:1]
    try:
        require_row(vae.manifest, source.verb, x, tiled=tiled)
    except InputError as error:
        raise InputError(f"{source.path}: row 0: {error}") from None
    if source.verb == "encode":
        fields = encoded_fields(vae, x, conditions, draw.seed or 0, 0, 1, tiles)
        return (), dtype_to_json([(name, values.dtype, values.shape[1:]) for name, values in fields.items()])
    given = source.verb == "decode"
    z = given_latents(vae.manifest, x, tiled=tiled) if given else vae.encode(x, conditions=conditions, **tiles).mode()
    row = vae.decode(
        z, conditions=conditions, seed=draw.seed if given or draw.observe else None, observe=draw.observe, **tiles
    )
    return row.shape[1:], request.output.dtype


def _shard_size(shard_size: int | None, n: int, batch_size: int, row_bytes: int) -> int:
    """Return the number of samples of a shard, by default some 64 MB."""
    if shard_size is None:
        shard_size = max(1, _SHARD_BYTES // row_bytes // batch_size) * batch_size
    size = require_integer("shard_size", shard_size, 1, 2**40)
    if n > size * _MAX_SHARDS:
        raise InputError(
            f"shard_size: expected at least {-(-n // (_MAX_SHARDS * batch_size)) * batch_size}, got {size}: {n} "
            f"samples would be more than {_MAX_SHARDS} files"
        )
    return size


def _variant(vae: VAE, verb: str) -> str:
    """Return the name of a variant by which `load` gives the same graphs."""
    if verb != "reconstruct":
        return vae.variants["encoder"] if verb == "encode" else vae.variant
    chosen, components = vae.variants, vae.manifest.components
    same = (
        name
        for name in chosen.values()
        if all(chosen[component] == name for component in chosen if name in components[component])
    )
    return next(same, vae.variant)


def _conditions(
    vae: VAE, n: int, requested: Conditions, files: dict[str, dict[str, Any]], written: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the conditions in the form of the job; the locations of their files are added to the files."""
    if not isinstance(requested.values or {}, Mapping):
        raise InputError(f"conditions: expected a mapping of names to values, got {requested.values!r:.99}")
    conditions: dict[str, Any] = {}
    declared = {condition.name: condition for condition in vae.conditions}
    for name, value in (requested.values or {}).items():
        if isinstance(value, (str, os.PathLike)) and str(value).endswith(".npy"):
            conditions[name], files[name] = describe_file(value, _remembered(written, name))
            rows = conditions[name]["shape"][0]
            if rows < n:
                raise InputError(f"{value}: expected a row for each of {counted(n, 'sample')}, got {rows}")
        else:
            shape = declared[name].shape if name in declared else None
            conditions[name] = {"value": _one_value(name, value, shape)}
    balanced = requested.balanced
    if balanced is not None:
        classes = declared[balanced].classes if isinstance(balanced, str) and balanced in declared else None
        if not classes or balanced in conditions:
            free = [name for name, each in declared.items() if each.classes and name not in conditions]
            expected = f"one of {', '.join(free)}" if free else "a bundle with such a condition"
            raise InputError(
                "balanced: takes the classes of a condition in turn, which has no other value: "
                f"expected {expected}, got {balanced!r}"
            )
        conditions[balanced] = {"balanced": len(classes)}
    return conditions


def _one_value(name: str, value: object, shape: tuple[int, ...] | None) -> Any:
    """Return a condition's value for all samples, in the form for JSON."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"conditions: {name}: expected numbers or a class: {error}") from None
    if shape is not None and array.shape != shape:
        raise InputError(
            f"conditions: {name}: expected one value of shape {list(shape)} for all samples, or the path of an .npy "
            f"file with a row for each; got {list(array.shape)}"
        )
    return array.tolist()


def _remembered(written: Mapping[str, Any] | None, name: str) -> Mapping[str, Any] | None:
    """Return the location of a file in the folder's job."""
    files = (written or {}).get("files")
    location = files.get(name) if isinstance(files, dict) else None
    return location if isinstance(location, dict) else None
