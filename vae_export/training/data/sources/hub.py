"""Data sets of the Hugging Face Hub or of a local folder, as a stream, by the library datasets (extra `datasets`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vae_runtime.errors import InputError, error_line

from ..source import Batch, Damaged, Stream
from .parquet import require_columns
from .values import row

_FORM = "hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIGURATION:SPLIT"


def hub(source: str, conditions: Mapping[str, str], columns: Sequence[str]) -> Stream:
    """Open a data set; rows are fetched as they are converted, and nothing is kept beside.

    Args:
        source: `NAME`, `NAME:SPLIT` or `NAME:CONFIGURATION:SPLIT`, where the name is that of the Hub or a folder; the
            split is `train` by default.
        conditions: the column of each condition by its name.
        columns: those of the observation: one of lists or pictures, or several of numbers; empty: all others.

    Raises:
        InputError: datasets is not installed, or the data set cannot be opened, or lacks a column.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise InputError(
            f"hf:{source}: needs the library datasets; install it with pip install 'vae-export[datasets]'"
        ) from None
    name, *rest = source.split(":")
    if not name or len(rest) > 2 or "" in rest:
        raise InputError(f"hf:{source}: expected {_FORM}; write it so")
    split = rest.pop() if rest else "train"
    try:
        dataset: Any = load_dataset(name, *rest, split=split, streaming=True)
        features = dataset.features or next(iter(dataset))
    except Exception as error:  # whatever its many ways to read data raise
        raise InputError(f"hf:{source}: cannot be opened: {error_line(error)}; give {_FORM}") from error
    names = list(columns) or [each for each in features if each not in conditions.values()]
    require_columns(f"hf:{source}", names, conditions, list(features))
    classes = {
        each: list(features[where].names) for each, where in conditions.items() if hasattr(features[where], "names")
    }
    uint8 = [each for each in names if _leaf(features[each]) == "uint8"]
    return Stream(name.rstrip("/").rpartition("/")[2], _items(dataset, source, conditions, names, uint8), classes)


def _items(
    dataset: Any, source: str, conditions: Mapping[str, str], columns: Sequence[str], uint8: Sequence[str]
) -> Iterator[Batch | Damaged]:
    try:
        for number, found in enumerate(dataset):
            yield row(f"hf:{source}: row {number}", found, conditions, columns, uint8)
    except InputError:
        raise
    except Exception as error:  # as in `hub`
        raise InputError(f"hf:{source}: cannot be read: {error_line(error)}; run the command again") from error


def _leaf(feature: Any) -> str:
    """Return the dtype of a feature's numbers, however deep its lists."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    return str(getattr(feature, "dtype", ""))
