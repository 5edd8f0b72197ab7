"""Tables: observations as rows of named columns, with numbers and categories as they were before a model saw them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .columns import Column, Value
from .errors import InputError
from .inputs import observation_rows

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from .vae import VAE


def to_table(vae: VAE, x: ArrayLike) -> dict[str, NDArray[Any]]:
    """Give observations as the columns of a table, such as `pandas.DataFrame` takes.

    Args:
        vae: of a bundle whose manifest has a table.
        x: observations [n, *observation_shape], such as `vae.sample(n, observe=True)`.

    Returns:
        An array [n] for each column by name: float64, or int64 where numbers are whole; categories as bool, int64 or
        float64 where all are such, else as objects with None for a missing one.

    Raises:
        InputError: the bundle has no table, or the observations are refused as `encode` refuses them.
    """
    require_table("to_table", vae)
    rows = observation_rows(vae.manifest.observation, x)
    columns, first = {}, 0
    for column in vae.manifest.table:
        columns[column.name] = _values(column, rows[:, first : first + column.width])
        first += column.width
    return columns


def require_table(place: str, vae: VAE) -> None:
    """Refuse a bundle without a table."""
    if not vae.manifest.table:
        raise InputError(f"{place}: expected a bundle with a table, got {vae.manifest.name}, which has none")


def csv_of(columns: Mapping[str, NDArray[Any]]) -> bytes:
    """Write the columns of a table as CSV (RFC 4180, with line feeds) in UTF-8; a missing value is an empty field."""
    import csv
    import io

    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    missing_as_none = [[None if value != value else value for value in values.tolist()] for values in columns.values()]
    writer.writerows(zip(*missing_as_none, strict=True))
    return file.getvalue().encode()


def _values(column: Column, rows: NDArray[Any]) -> NDArray[Any]:
    """The values of one column, of the observation's values that belong to it."""
    if column.kind == "categories":
        chosen: NDArray[Any] = _array(column.categories)[rows.argmax(1)]
        return chosen
    mode = rows[:, 1:].argmax(1)
    value = np.clip(rows[:, 0].astype(np.float64), -1, 1)
    numbers: NDArray[np.float64] = value * np.array(column.scales)[mode] + np.array(column.means)[mode]
    if column.rounding is None:
        return numbers
    whole = np.rint(numbers) if column.rounding == "nearest" else np.trunc(numbers)
    return whole.astype(np.int64)


def _array(categories: Sequence[Value]) -> NDArray[Any]:
    kinds = {type(value) for value in categories}
    if kinds == {bool}:
        return np.array(categories, np.bool_)
    if kinds == {int} and all(abs(int(value or 0)) < 2**63 for value in categories):
        return np.array(categories, np.int64)
    if float in kinds and kinds <= {float, type(None)}:
        return np.array([np.nan if value is None else value for value in categories], np.float64)
    objects = np.empty(len(categories), object)
    objects[:] = categories
    return objects
