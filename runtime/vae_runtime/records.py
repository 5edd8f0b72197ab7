"""Frozen dataclasses whose fields may describe the members of a JSON object.

Making this package's records with `dataclasses` would show in a cold start, so that module is used only when it is
asked about a record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, dataclass_transform

_Class = TypeVar("_Class", bound="type[Record]")
_MISSING: Any = object()


class Field:
    """A field of a record, or one member of a JSON object: its key, its type, and when it is there.

    A required field is always read and written; another one is written where it is not the default. `required` and
    `optional` may list kinds: only objects of these kinds have the field. It is not required, and must not be there,
    beside the field `unless`. Without a type it is no member of the object.
    """

    __slots__ = ("default", "factory", "key", "optional", "required", "type", "unless")

    def __init__(
        self,
        key: str,
        type: Any,
        required: bool | Sequence[str] = True,
        optional: Sequence[str] = (),
        unless: str | None = None,
        default: Any = _MISSING,
        factory: Callable[[], Any] | None = None,
    ) -> None:
        self.key, self.type, self.required, self.optional, self.unless = key, type, required, optional, unless
        self.default, self.factory = default, factory

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of objects that have it; empty for all."""
        return (*(() if isinstance(self.required, bool) else self.required), *self.optional)

    def needed(self, kind: Any) -> bool | None:
        """Whether objects of a kind must have it; None where they do not have it."""
        if isinstance(self.required, bool):
            return (False if kind in self.optional else None) if self.optional else self.required
        return True if kind in self.required else False if kind in self.optional else None

    def usual(self) -> Any:
        """The default of a record's field."""
        return self.factory() if self.factory else self.default


def field(
    type: Any = None,
    *,
    required: bool | Sequence[str] | None = None,
    optional: Sequence[str] = (),
    unless: str | None = None,
    default: Any = _MISSING,
    default_factory: Callable[[], Any] | None = None,
) -> Any:
    """A field of a record; with a type it stands in the document under its own name: see `Field`.

    It is required where it has no default, unless `required` says otherwise.
    """
    if required is None:
        required = default is _MISSING and default_factory is None
    return Field("", type, required, optional, unless, default, default_factory)


def fields_of(record: type[Record]) -> list[Field]:
    """The fields of a record that stand in the document, in the order of the class."""
    return [each for each in record.record_fields.values() if each.type is not None]


@dataclass_transform(field_specifiers=(field,))
def record(*, frozen: bool, kw_only: bool = False) -> Callable[[_Class], _Class]:
    """As `dataclasses.dataclass`; positional arguments are in the order of the fields, those of bases first."""

    def made(cls: _Class) -> _Class:
        known: dict[str, Field] = {}
        for base in reversed(cls.__mro__[1:]):
            known |= vars(base).get("record_fields", {})
        for name in cls.__annotations__:
            value = vars(cls).get(name, _MISSING)
            if isinstance(value, Field):
                value.key = name
                known[name] = value
                if value.default is _MISSING:
                    delattr(cls, name)
                else:
                    setattr(cls, name, value.default)
            else:
                known[name] = Field(name, None, default=value)
        cls.record_fields = known
        return cls

    return made


class _DataclassFields:
    """The attribute `__dataclass_fields__`, by which `dataclasses` recognizes its classes."""

    def __get__(self, instance: Any, owner: type[Record]) -> dict[str, Any]:
        import dataclasses

        members = []
        for name, each in owner.record_fields.items():
            if each.factory:
                members.append((name, Any, dataclasses.field(default_factory=each.factory)))
            else:
                default = dataclasses.MISSING if each.default is _MISSING else each.default
                members.append((name, Any, dataclasses.field(default=default)))
        made: Any = dataclasses.make_dataclass(owner.__name__, members, init=False, repr=False, eq=False)
        fields: dict[str, Any] = made.__dataclass_fields__
        return fields


class Record:
    """The methods that a frozen dataclass would have generated."""

    record_fields: ClassVar[dict[str, Field]] = {}
    __dataclass_fields__: ClassVar[Any] = _DataclassFields()

    if not TYPE_CHECKING:

        def __init__(self, *values: Any, **named: Any) -> None:
            known = self.record_fields
            if len(values) > len(known):
                raise TypeError(f"{type(self).__name__}: expected at most {len(known)} values, got {len(values)}")
            members = dict(zip(known, values, strict=False))
            wrong = sorted(members.keys() & named.keys() or named.keys() - known.keys())
            if wrong:
                raise TypeError(f"{type(self).__name__}: {wrong[0]} is no field, or given twice")
            members |= named
            own = vars(self)
            for name, each in known.items():
                value = members[name] if name in members else each.usual()
                if value is _MISSING:
                    raise TypeError(f"{type(self).__name__}: {name} is missing")
                own[name] = value

        def __setattr__(self, name: str, value: Any) -> None:
            _refuse(f"{type(self).__name__}.{name} cannot be changed; make another one")

        def __delattr__(self, name: str) -> None:
            _refuse(f"{type(self).__name__}.{name} cannot be deleted; make another one")

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if type(self) is type(other) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(vars(self).values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


def _refuse(reason: str) -> None:
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(reason)
