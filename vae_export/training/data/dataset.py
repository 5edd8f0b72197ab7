"""A data set: the rows of a source, checked, split by their content and normalized."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_runtime.errors import InputError
from vae_runtime.manifest import Normalisation

from ..config import DataConfig
from .conversion import convert, converted
from .normalisation import normalisation_of, require_channels
from .part import NAMED, Part, Rows, Skipped, chunks_of, first, require_exact
from .source import Addressed
from .sources.table import open_source
from .split import hashes, split

# Fields of the configuration that converted rows depend on.
_CONVERTED = ("source", "columns", "conditions", "corrupt")
# Data known by their digest, whatever the file or folder is called: name, description, license.
_KNOWN = {
    "sha256:04b7e6d8b23b1f79a558a09914acb541c801bca13df2df5ffb618f39937485d6": (
        "digits",
        "1,797 handwritten digits, 8×8 gray values (Alpaydin & Kaynak, UCI Machine Learning Repository)",
        "CC BY 4.0",
    ),
    "sha256:8eab7aee30ee494e96bc5a43b1de96beb722396487b39661083ab310fbc6e599": (
        "mnist",
        "70,000 handwritten digits, 28×28 gray values (LeCun, Cortes & Burges)",
        "CC BY-SA 3.0",
    ),
}


@dataclass(frozen=True)
class Provenance:
    """The origin and the size of the data that a model was trained on."""

    name: str
    """`digits` or `mnist` where the digest is theirs, else the name of the file or folder."""
    description: str
    """One line, or empty where the data are not known."""
    license: str
    """License of the data, or `unknown`."""
    digest: str
    """`sha256:` and the hash of all observations before the split, with their shape and type, and of all conditions."""
    train: int
    """Number of observations trained on; `validation` and `test` likewise."""
    validation: int
    test: int
    binary: bool = False
    """Every value is 0 or 1, so that a bernoulli likelihood covers the data as they are."""
    skipped: int = 0
    """Number of damaged rows that were left out."""

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class Dataset:
    """Three parts of observations, finite; pictures are [C, H, W], by default with values in [0, 1]."""

    train: Part
    validation: Part
    test: Part
    provenance: Provenance
    normalisation: Normalisation | None
    """From the source's values to those that the parts give; None where they are the same."""
    unit: bool
    """Integers were divided by the largest that they may be, so that values are in [0, 1]."""
    skipped: Skipped
    """The damaged rows that were left out."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one observation."""
        return self.train.shape

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """The names of the classes of each condition; empty for a condition without."""
        return {name: each.classes for name, each in self.train.source.conditions.items()}

    def kinds(self) -> dict[str, dict[str, Any]]:
        """Return what the conditions are, as `ModelConfig.conditions` has it."""
        kinds: dict[str, dict[str, Any]] = {}
        for name, each in self.train.source.conditions.items():
            if each.values.dtype.kind == "f":
                kinds[name] = {"shape": list(each.values.shape[1:])}
                continue
            both = (part.source.conditions[name].values for part in (self.train, self.test))
            largest = max(int(values.max()) for values in both if len(values))
            kinds[name] = {"classes": len(each.classes) or 1 + largest}
        return kinds


@dataclass
class _Survey:
    """What one pass over the rows of a source finds."""

    hashes: list[NDArray[np.uint64]]
    damaged: list[int]
    named: list[str]
    binary: bool = True

    def fine(self, n: int) -> NDArray[np.bool_]:
        """Return which of n rows are not damaged."""
        fine = np.ones(n, bool)
        fine[self.damaged] = False
        return fine


def load(
    config: DataConfig, folder: Path | None = None, normalisation: Normalisation | None = None, given: Any = None
) -> Dataset:
    """Read a source and split it; the same configuration and files give the same rows.

    Args:
        config: the source; docs/training.md lists the kinds.
        folder: where a source that cannot be addressed by number is converted to, or was; None: for this process alone,
            in the system's folder for temporary files.
        normalisation: what was found when the data were first read; None finds it.
        given: a Dataset or a DataLoader of PyTorch that gives the rows, which the configuration's source then names.

    Raises:
        InputError: the source is missing, empty, damaged, of mixed sizes, holds NaN or infinity, leaves nothing to
            train on, or has other channels than the normalization.
    """
    source = _labeled(_addressed(config, folder, given), config)
    digest = hashlib.sha256()
    survey = _surveyed(source.rows, config, digest)
    fine = survey.fine(len(source.rows))
    test, validation = split(
        np.concatenate(survey.hashes), config.test_fraction if source.test is None else 0.0, config.validation_fraction
    )
    numbers = [np.flatnonzero(fine & chosen) for chosen in (~test & ~validation, validation, test)]
    surveys, test_rows = [survey], source.rows
    if source.test is not None:
        test_rows = source.test
        surveys.append(_surveyed(test_rows, config, digest))
        numbers[2] = np.flatnonzero(surveys[1].fine(len(test_rows)))
    if not len(numbers[0]):
        raise InputError(
            f"{config.source}: expected at least one observation to train on, got {len(source.rows)} in all, "
            f"{len(survey.damaged)} of them damaged, {len(numbers[2])} for test and {len(numbers[1])} for validation; "
            "give more data, in which equal rows count as one, or lower the fractions"
        )
    known = f"sha256:{digest.hexdigest()}"
    name, description, license = _KNOWN.get(known, (source.rows.name, "", config.license or "unknown"))
    skipped = Skipped(
        source.rows.skipped.count + sum(len(each.damaged) for each in surveys),
        (*source.rows.skipped.named, *(text for each in surveys for text in each.named))[:NAMED],
    )
    if normalisation is not None:
        require_channels(normalisation, source.rows.observations.shape[1], config.source)
    found = normalisation or normalisation_of(Part(source.rows, numbers[0]), config.normalise, config.source)
    train, rest, tests = (
        Part(rows, chosen, found) for rows, chosen in zip((source.rows, source.rows, test_rows), numbers, strict=True)
    )
    return Dataset(
        train, rest, tests,
        provenance=Provenance(
            name, description, license, _with_conditions(known, source), len(train), len(rest), len(tests),
            binary=all(each.binary for each in surveys), skipped=skipped.count,
        ),
        normalisation=found,
        unit=config.normalise == "unit" and source.rows.divisor > 0,
        skipped=skipped,
    )  # fmt: skip


def _addressed(config: DataConfig, folder: Path | None, given: Any) -> Addressed:
    """Return the source of a configuration, converted if it has to be."""
    request = {name: value for name, value in config.to_json().items() if name in _CONVERTED}
    if config.labels:
        request["labels"] = config.labels
    rows = converted(folder, request) if folder else None
    if rows:
        return Addressed(rows)
    source = open_source(config, given)
    if isinstance(source, Addressed):
        asked = config.places()
        return Addressed(_chosen(source.rows, asked), source.test and _chosen(source.test, asked))
    keep = None
    if folder is None:
        keep = _Temporary()
        folder = keep.folder / "data"
    convert(source, folder, request, skip=config.corrupt == "skip")
    rows = converted(folder, request)
    if rows is None:
        raise InputError(f"{folder}: removed while it was in use; run the command again")
    return Addressed(replace(rows, keep=keep))


class _Temporary:
    """A folder that goes with this object, at the latest at the end of the process."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vae-export-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)


def _chosen(rows: Rows, names: Mapping[str, str]) -> Rows:
    return replace(rows, conditions={name: each for name, each in rows.conditions.items() if name in names})


def _labeled(source: Addressed, config: DataConfig) -> Addressed:
    """Return a source whose labels are no condition."""
    name = config.labels.partition("=")[0]

    def apart(rows: Rows) -> Rows:
        labels = rows.conditions[name]
        if labels.values.dtype != np.int64 or labels.values.ndim > 1:
            raise InputError(
                f"{config.source}: expected a class for each row as data.labels, got numbers as {name}; give integers "
                "or names, or leave it out"
            )
        conditions = {other: each for other, each in rows.conditions.items() if other != name}
        return replace(rows, conditions=conditions, labels=labels)

    return Addressed(apart(source.rows), source.test and apart(source.test)) if name else source


def _surveyed(rows: Rows, config: DataConfig, digest: Any) -> _Survey:
    """Go through the rows once: add them to a digest, hash them for the split, and look for damaged ones."""
    survey = _Survey([], [], [])
    dtype = "|u1" if rows.observations.dtype == np.uint8 else "<f4"
    digest.update(f"{dtype}{rows.observations.shape}".encode())
    for start, values in chunks_of(rows):
        require_exact(rows.observations[start : start + len(values)], config.source, start)
        digest.update(values.data)
        survey.hashes.append(hashes(values, config.seed))
        survey.binary = survey.binary and bool(np.isin(values, (0, rows.divisor or 1)).all())
        finite = np.isfinite(values)
        if dtype == "<f4" and not finite.all():
            _note_damaged(survey, rows, start, finite, config)
    return survey


def _note_damaged(survey: _Survey, rows: Rows, start: int, finite: NDArray[np.bool_], config: DataConfig) -> None:
    """Keep the numbers of rows with NaN or infinity, or refuse the first."""
    for row in np.flatnonzero(~finite.reshape(len(finite), -1).all(1)):
        index = (start + int(row), *first(~finite[row]))
        if config.corrupt == "refuse":
            raise InputError(
                f"{config.source}: expected finite float32 values, got {rows.observations[index]} at {list(index)}; "
                "drop or correct it, or skip such rows (--corrupt skip)"
            )
        survey.damaged.append(index[0])
        if len(survey.named) < NAMED:
            # The rows that a conversion left out have no number here.
            left = " of those left" if rows.skipped.count else ""
            survey.named.append(f"row {index[0]}{left}: expected finite float32 values, got {rows.observations[index]}")


def _with_conditions(digest: str, source: Addressed) -> str:
    """Return the digest of observations and conditions."""
    if not source.rows.conditions:
        return digest
    whole = hashlib.sha256(digest.encode())
    for rows in (source.rows, source.test):
        for name, each in sorted(rows.conditions.items()) if rows else ():
            whole.update(f"{name}{each.values.dtype.str}{each.values.shape}{each.classes}".encode())
            whole.update(np.ascontiguousarray(each.values).data)
    return f"sha256:{whole.hexdigest()}"
