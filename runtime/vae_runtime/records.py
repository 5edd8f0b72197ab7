"""Frozen dataclasses, and what a field of one says of a JSON document.

They are made quickly: this package has so many that making them shows in a cold start.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import MISSING, FrozenInstanceError, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, dataclass_transform

__all__ = ["Field", "Record", "field", "fields_of", "record"]

_Class = TypeVar("_Class")


class Field:
    """One member of an object: its key, its type, and when it is there.

    A required field is always read and written; another one is written where it is not the default. `required` and
    `optional` may list kinds: only objects of these kinds have the field. It is not required, and must not be there,
    beside the field `unless`.
    """

    __slots__ = ("default", "key", "optional", "required", "type", "unless")

    def __init__(
        self,
        key: str,
        type: Any,
        required: bool | Sequence[str] = True,
        optional: Sequence[str] = (),
        unless: str | None = None,
        default: Any = None,
    ) -> None:
        self.key, self.type, self.required, self.optional, self.unless = key, type, required, optional, unless
        self.default = default

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of objects that have it; empty for all."""
        return (*(() if isinstance(self.required, bool) else self.required), *self.optional)

    def needed(self, kind: Any) -> bool | None:
        """Whether objects of a kind must have it; None where they do not have it."""
        if isinstance(self.required, bool):
            return (False if kind in self.optional else None) if self.optional else self.required
        return True if kind in self.required else False if kind in self.optional else None


def field(
    type: Any,
    *,
    required: bool | Sequence[str] | None = None,
    optional: Sequence[str] = (),
    unless: str | None = None,
    default: Any = dataclasses.MISSING,
    default_factory: Any = dataclasses.MISSING,
) -> Any:
    """A field of a record that stands in the document under its own name; see `Field`.

    It is required where it has no default, unless `required` says otherwise.
    """
    if required is None:
        required = default is dataclasses.MISSING and default_factory is dataclasses.MISSING
    usual = default_factory() if default_factory is not dataclasses.MISSING else default
    spec = Field("", type, required, optional, unless, usual)
    return dataclasses.field(default=default, default_factory=default_factory, metadata={"field": spec})


def fields_of(record: type[Record]) -> list[Field]:
    """The fields of a record that stand in the document, in the order of the class."""
    found = []
    for each in dataclasses.fields(record):
        if "field" in each.metadata:
            spec = each.metadata["field"]
            spec.key = each.name
            found.append(spec)
    return found


@dataclass_transform(field_specifiers=(field, dataclasses.field))
def record(*, frozen: bool, kw_only: bool = False) -> Callable[[type[_Class]], type[_Class]]:
    """A frozen dataclass of which nothing is generated: fifteen times, that would take 5 % of a cold start."""
    return dataclass(init=False, repr=False, eq=False, match_args=False, kw_only=kw_only)


class Record:
    """What a frozen dataclass has generated for it, once for all."""

    if TYPE_CHECKING:
        __dataclass_fields__: ClassVar[dict[str, Any]]

    if not TYPE_CHECKING:

        def __init__(self, *values: Any, **named: Any) -> None:
            known = fields(self)
            if len(values) > len(known):
                raise TypeError(f"{type(self).__name__}: at most {len(known)} values are expected, got {len(values)}")
            given = {each.name: value for each, value in zip(known, values, strict=False)}
            wrong = sorted(given.keys() & named.keys() or named.keys() - {each.name for each in known})
            if wrong:
                raise TypeError(f"{type(self).__name__}: {wrong[0]} is no field, or given twice")
            given.update(named)
            for each in known:
                if each.name in given:
                    value = given[each.name]
                elif each.default is not MISSING:
                    value = each.default
                elif each.default_factory is not MISSING:
                    value = each.default_factory()
                else:
                    raise TypeError(f"{type(self).__name__}: {each.name} is expected, it is missing")
                vars(self)[each.name] = value

        def __setattr__(self, name: str, value: Any) -> None:
            raise FrozenInstanceError(f"{type(self).__name__}.{name} cannot be changed; make another one")

        def __delattr__(self, name: str) -> None:
            raise FrozenInstanceError(f"{type(self).__name__}.{name} cannot be deleted; make another one")

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if type(self) is type(other) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(vars(self).values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"
