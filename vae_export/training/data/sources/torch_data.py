"""A Dataset or a DataLoader of PyTorch, by the name of its module, gone through once from front to back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vae_runtime.errors import InputError, counted, error_line, one_line

from ....loading import load_named
from ..source import Batch, Damaged, Stream
from .values import row


def torch_data(spec: str, conditions: Mapping[str, str], columns: Sequence[str], given: Any = None) -> Stream:
    """Go through the rows of an object that is given, or that has a name.

    Args:
        spec: "package.module:name": a Dataset, a DataLoader, or any other iterable of rows, or a class or function
            without arguments that gives one. A row is x, or (x, condition, …) in the order of `conditions`, or a
            mapping. Where an object is given, what to call it.
        conditions: for mappings, the key of each condition by its name.
        columns: for mappings, the key of x; empty: the one that is no condition.
        given: such an object; None: the one that is named.

    Raises:
        InputError: it cannot be imported, or is no iterable.
    """
    found = load_named(spec, "data") if given is None else given
    if isinstance(found, type) or not (hasattr(found, "__iter__") or hasattr(found, "__getitem__")):
        try:
            found = found()
        except Exception as error:  # whatever the user's code raises
            raise InputError(
                f"data: {spec}() failed: {type(error).__name__}: {one_line(error)}; give a Dataset or a DataLoader"
            ) from error
    if not (hasattr(found, "__iter__") or hasattr(found, "__getitem__")):
        raise InputError(f"data: {spec}: expected a Dataset or a DataLoader, got {type(found).__name__}")
    return Stream(spec.rpartition(":")[2], _items(found, spec, conditions, columns), {})


def _items(found: Any, spec: str, conditions: Mapping[str, str], columns: Sequence[str]) -> Iterator[Batch | Damaged]:
    from torch.utils.data import DataLoader

    batched = isinstance(found, DataLoader) and found.batch_size is not None
    for number, item in enumerate(_each(found, spec)):
        place = f"{spec}: {'batch' if batched else 'row'} {number}"
        if isinstance(item, Damaged):
            yield item
            continue
        try:
            named, own = _named(item, conditions, columns)
            if not batched:
                yield row(place, named, {name: name for name in conditions}, [own])
                continue
            yield Batch(place, np.asarray(_rows(named[own])), {name: _rows(named[name]) for name in conditions})
        except (TypeError, ValueError) as error:
            yield Damaged(place, error_line(error))


def _each(found: Any, spec: str) -> Iterator[Any]:
    """The items; what raises an error in their place says so, where the next one can still be asked for."""
    if hasattr(found, "__iter__"):
        try:
            yield from found
        except Exception as error:  # whatever the user's code raises
            raise InputError(f"{spec}: failed: {type(error).__name__}: {one_line(error)}; correct it") from error
        return
    for number in range(len(found)):
        try:
            item = found[number]
        except Exception as error:  # as above
            item = Damaged(f"{spec}: row {number}", f"expected a row, got {type(error).__name__}: {one_line(error)}")
        yield item


def _named(item: Any, conditions: Mapping[str, str], columns: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Return the values of an item, conditions by their own names, and the key of the observation.

    Raises:
        ValueError: it lacks a condition or an observation.
    """
    if isinstance(item, Mapping):
        own = [*columns] or [str(key) for key in item if key not in conditions.values()]
        if len(own) != 1 or own[0] not in item:
            raise ValueError(f"expected one key beside the conditions, got {', '.join(own)}; name it with --columns")
        return {**{name: item.get(key) for name, key in conditions.items()}, "x": item[own[0]]}, "x"
    values = list(item) if isinstance(item, tuple | list) else [item]
    if len(values) <= len(conditions):
        raise ValueError(
            f"expected an observation and {counted(len(conditions), 'condition')}, got {counted(len(values), 'value')}"
        )
    return {"x": values[0], **dict(zip(conditions, values[1:], strict=False))}, "x"


def _rows(value: Any) -> Any:
    """Return a batch of values as an array, or a list of texts."""
    if hasattr(value, "detach"):
        return value.detach().cpu().numpy()
    return list(value) if isinstance(value, tuple | list) and isinstance(value[0], str) else np.asarray(value)
