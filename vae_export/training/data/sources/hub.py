"""Data sets of the Hugging Face Hub or of a local folder, as a stream, by the library datasets (extra `datasets`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vae_runtime.errors import InputError, error_line
from vae_runtime.input_files import open_plain

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
        from datasets import Image, load_dataset
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
    pictures = {each: features[each] for each in names if isinstance(features[each], Image)}
    for each in pictures:
        # An error of its own decoding would end the iteration.
        dataset = dataset.cast_column(each, Image(decode=False))
    items = _items(dataset, source, conditions, names, uint8, pictures)
    return Stream(name.rstrip("/").rpartition("/")[2], items, classes)


def _items(
    dataset: Any,
    source: str,
    conditions: Mapping[str, str],
    columns: Sequence[str],
    uint8: Sequence[str],
    pictures: Mapping[str, Any],
) -> Iterator[Batch | Damaged]:
    try:
        for number, found in enumerate(dataset):
            place = f"hf:{source}: row {number}"
            try:
                seen = {name: _picture(feature, found[name]) for name, feature in pictures.items()}
            except ValueError as error:
                yield Damaged(place, error_line(error))
                continue
            yield row(place, {**found, **seen}, conditions, columns, uint8)
    except InputError:
        raise
    except Exception as error:  # as in `hub`
        raise InputError(f"hf:{source}: cannot be read: {error_line(error)}; run the command again") from error


def _picture(feature: Any, value: Any) -> Any:
    """Return the picture of Pillow that a feature decodes; None where the row has none.

    Raises:
        ValueError: it is damaged, or no picture.
    """
    from PIL import Image, UnidentifiedImageError

    if value is None:
        return None
    if value["bytes"] is None and value["path"] and Path(value["path"]).is_file():
        # What fails to decode leaves a file of its own open.
        with open_plain(value["path"]) as file:
            value = {**value, "bytes": file.read()}
    try:
        return feature.decode_example(value)
    except UnidentifiedImageError:
        # Pillow's words name an object of Python.
        raise ValueError("expected an image, got another format") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Those of the system and of the network are no fault of the picture; Pillow's own have no number and no class.
        if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
            raise
        raise ValueError(f"expected an image: {error_line(error)}") from error


def _leaf(feature: Any) -> str:
    """Return the dtype of a feature's numbers, however deep its lists."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    return str(getattr(feature, "dtype", ""))
