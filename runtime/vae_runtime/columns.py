"""The columns of a table, as a manifest describes them."""

from __future__ import annotations

from typing import Any, TypeAlias

from .fields import Choice, List, Number, Problems, Struct, Text, Type, is_number
from .records import Record, field, record

# A category: None is a missing value.
Value: TypeAlias = "str | float | bool | None"


class Scalar(Type):
    """A string, a number, true, false or null."""

    def read(self, value: Any, place: str, problems: Problems) -> Any:
        """The value as it stands."""
        if not (value is None or isinstance(value, (str, bool)) or is_number(value)):
            problems.note(place, "a string, a number, true, false or null", value)
        return value


@record(frozen=True)
class Column(Record):
    """One column of a table.

    "modes", numbers: the observation has a value v and then one value for each mode; the largest of these names the
    mode k, and the number is means[k] + scales[k] · v, with v cut to -1 … 1. `rounding` makes it whole: to the
    "nearest", the even one of two, or towards "zero".

    "categories": the observation has one value for each category; the largest names it.
    """

    name: str = field(Text())
    kind: str = field(Choice("modes", "categories", open=True))
    means: tuple[float, ...] = field(List(Number(), "a list of numbers", min=1), default=(), required=("modes",))
    scales: tuple[float, ...] = field(
        List(Number("a positive number", above=0), "a list of positive numbers", min=1), default=(), required=("modes",)
    )
    rounding: str | None = field(Choice("nearest", "zero"), default=None, optional=("modes",))
    categories: tuple[Value, ...] = field(
        List(Scalar(), "a list of categories", min=1), default=(), required=("categories",)
    )

    @property
    def width(self) -> int:
        """The number of an observation's values that belong to the column."""
        return len(self.categories) if self.kind == "categories" else 1 + len(self.means)


COLUMN = Struct(Column, name="column")
