"""Fields of JSON documents: a field's type says how a value is read, checked and written.

`schema` makes a JSON Schema of the same types. Reading notes every problem with its place, and goes on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .records import Field, Record, fields_of, record

MAX_NUMBER = 1e300
MAX_PROBLEMS = 1000
# Characters of a place or a value in an error, and of one name in a place.
_MAX_TEXT, _MAX_NAME = 400, 80


@record(frozen=True)
class Problem(Record):
    """One error in a document: its place, the value expected there, and the value found.

    `newer` says that a newer version may know the value.
    """

    place: str
    expected: str
    got: str
    newer: bool = False

    def __str__(self) -> str:
        place, expected, got = (
            each if len(each) <= _MAX_TEXT else f"{each[: _MAX_TEXT - 1]}…"
            for each in (self.place, self.expected, self.got)
        )
        return f"{place}: expected {expected}, got {got}"


class TooManyProblems(Exception):
    """There are `MAX_PROBLEMS`: reading ends, since each further one would take time."""


class Problems(list[Problem]):
    """The problems found so far."""

    def append(self, problem: Problem) -> None:
        """Add a problem."""
        super().append(problem)
        if len(self) == MAX_PROBLEMS:
            raise TooManyProblems

    def note(self, place: str, expected: str, value: Any, newer: bool = False) -> None:
        """Add a problem; `value` is shown short and without control characters."""
        self.append(Problem(place or "the document", expected, shown(value), newer))

    def missing(self, place: str) -> None:
        """Add a missing field."""
        self.append(Problem(place, "this field", "nothing"))


class Type:
    """A type of values: how they are read and written. `name` and `description` are for the JSON Schema."""

    name: str | None = None
    description: str | None = None

    def read(self, value: Any, place: str, problems: Problems) -> Any:
        """Return the value as records hold it; the result means nothing if a problem was noted."""
        raise NotImplementedError

    def write(self, value: Any) -> Any:
        """The value as JSON holds it."""
        return value


class Text(Type):
    """A string that matches a pattern and is not `but`."""

    def __init__(
        self,
        pattern: str | None = None,
        expected: str = "a string",
        *,
        but: str | None = None,
        name: str | None = None,
        description: str | None = None,
    ) -> None:
        # Compiled when it is first needed: that takes longer than all else here.
        self.pattern, self.expected, self.but, self.name, self.description = pattern, expected, but, name, description

    def matches(self, value: Any) -> bool:
        """Whether it is such a string."""
        if not isinstance(value, str) or value == self.but:
            return False
        return self.pattern is None or bool(re.fullmatch(self.pattern, value))

    def read(self, value: Any, place: str, problems: Problems) -> Any:
        """The string."""
        if not self.matches(value):
            problems.note(place, self.expected, value)
        return value


# How many choices a message lists.
_MAX_SHOWN = 12


class Choice(Type):
    """One of several strings; a newer version may know more of them if the choice is `open`."""

    def __init__(self, *choices: str, open: bool = False, name: str | None = None) -> None:
        self.choices, self.open, self.name = choices, open, name

    def read(self, value: Any, place: str, problems: Problems) -> Any:
        """The string."""
        if not isinstance(value, str) or value not in self.choices:
            expected = " or ".join(json.dumps(choice) for choice in self.choices[:_MAX_SHOWN])
            if len(self.choices) > _MAX_SHOWN:
                expected += f" or … ({len(self.choices)} in all)"
            problems.note(place, expected, value, self.open and isinstance(value, str))
        return value


class Number(Type):
    """A number of at most 1e300 in magnitude: above, at least or other than some number."""

    def __init__(
        self,
        expected: str = "a number",
        *,
        above: float | None = None,
        min: float | None = None,
        but: float | None = None,
        name: str | None = None,
    ) -> None:
        self.expected, self.above, self.min, self.but, self.name = expected, above, min, but, name

    def read(self, value: Any, place: str, problems: Problems) -> Any:
        """The number, as a float."""
        right = is_number(value) and value != self.but
        if right and (self.above is None or value > self.above) and (self.min is None or value >= self.min):
            return float(value)
        problems.note(place, self.expected, value)
        return None


class Integer(Type):
    """An integer from `min` to `max`."""

    def __init__(self, min: int, max: int, *, name: str | None = None) -> None:
        self.min, self.max, self.name = min, max, name

    def read(self, value: Any, place: str, problems: Problems) -> Any:
        """The integer; 3.0 is one, since JSON has one kind of number."""
        if is_number(value) and value == value // 1 and self.min <= value <= self.max:
            return int(value)
        problems.note(place, f"an integer from {self.min} to {self.max}", value)
        return None


class Flag(Type):
    """true or false."""

    def read(self, value: Any, place: str, problems: Problems) -> Any:
        """The bool."""
        if not isinstance(value, bool):
            problems.note(place, "true or false", value)
        return value


def is_number(value: Any) -> bool:
    """Whether it is a JSON number that a field may hold: 1e999 is JSON, and infinite once it is read."""
    # true and false are integers to Python alone
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER


class Nullable(Type):
    """A value or null, which is None."""

    def __init__(self, item: Type, *, name: str | None = None, description: str | None = None) -> None:
        self.item, self.name, self.description = item, name, description

    def read(self, value: Any, place: str, problems: Problems) -> Any:
        """The value, or None."""
        return None if value is None else self.item.read(value, place, problems)

    def write(self, value: Any) -> Any:
        """The value, or null."""
        return None if value is None else self.item.write(value)


class List(Type):
    """A list of `min` to `max` items, a tuple in records."""

    def __init__(
        self,
        item: Type,
        expected: str = "a list",
        *,
        min: int = 0,
        max: int | None = None,
        distinct: bool = False,
        name: str | None = None,
        description: str | None = None,
    ) -> None:
        self.item, self.expected, self.min, self.max = item, expected, min, max
        self.distinct, self.name, self.description = distinct, name, description

    def read(self, value: Any, place: str, problems: Problems) -> Any:
        """The items."""
        if not isinstance(value, list) or len(value) < self.min or (self.max is not None and len(value) > self.max):
            problems.note(place, self.expected, value)
            return ()
        before = len(problems)
        items = tuple(self.item.read(item, f"{place}[{index}]", problems) for index, item in enumerate(value))
        if self.distinct and len(problems) == before and len(set(items)) < len(items):
            problems.append(Problem(place, f"{self.expected}, each once", "some of them twice"))
        return items

    def write(self, value: Any) -> Any:
        """The items."""
        return [self.item.write(item) for item in value]


class Either(Type):
    """One item, or a list of them with at least one."""

    def __init__(self, item: Type, expected: str, *, description: str | None = None) -> None:
        self.item, self.description = item, description
        self.items = List(item, expected, min=1)

    def read(self, value: Any, place: str, problems: Problems) -> Any:
        """The item, or a tuple of them."""
        return (self.items if isinstance(value, list) else self.item).read(value, place, problems)

    def write(self, value: Any) -> Any:
        """The item, or the list."""
        return (self.items if isinstance(value, tuple) else self.item).write(value)


class Later(Type):
    """A type of another module of this package, which is imported when a value is read or written."""

    def __init__(self, module: str, attribute: str) -> None:
        self.module, self.attribute = module, attribute

    @property
    def type(self) -> Type:
        """The type itself."""
        from importlib import import_module

        found: Type = getattr(import_module(f".{self.module}", __package__), self.attribute)
        return found

    def read(self, value: Any, place: str, problems: Problems) -> Any:
        """The value, as that type reads it."""
        return self.type.read(value, place, problems)

    def write(self, value: Any) -> Any:
        """The value, as that type writes it."""
        return self.type.write(value)


class Map(Type):
    """An object with members of one type under names of any kind."""

    def __init__(
        self, item: Type | None = None, *, min: int = 0, name: str | None = None, description: str | None = None
    ) -> None:
        self.item, self.min, self.name, self.description = item, min, name, description

    def read(self, value: Any, place: str, problems: Problems) -> Any:
        """The members by name; as they stand where they may be anything."""
        if not isinstance(value, dict) or len(value) < self.min:
            problems.note(place, "an object with at least one member" if self.min else "an object", value)
            return {}
        if self.item is None:
            return value
        return {name: self.item.read(item, join(place, name), problems) for name, item in value.items()}

    def write(self, value: Any) -> Any:
        """The members by name."""
        return {name: self.item.write(item) if self.item else item for name, item in value.items()}


class Struct(Type):
    """An object with named members, read as a record or, without one, as a dict; a closed one has no other members."""

    def __init__(
        self,
        members: type[Record] | Sequence[Field],
        *,
        closed: bool = False,
        name: str | None = None,
        description: str | None = None,
    ) -> None:
        self.record = members if isinstance(members, type) else None
        self.fields = fields_of(members) if isinstance(members, type) else members
        self.closed, self.name, self.description = closed, name, description
        kind = next((each.type for each in self.fields if each.key == "kind"), None)
        self.kinds = kind.choices if isinstance(kind, Choice) else ()

    def read(self, value: Any, place: str, problems: Problems) -> Any:
        """The record, or the members by key; None where anything was wrong so far."""
        if not isinstance(value, dict):
            problems.note(place, "an object", value)
            return None
        kind = value.get("kind") if self.kinds else None
        known, members = set(), {}
        for each in self.fields:
            key, needed = each.key, each.needed(kind)
            if needed is None:
                continue
            known.add(key)
            if each.unless in value:
                if key in value:
                    problems.note(join(place, key), f"no field of this name beside {each.unless}", value[key])
            elif key in value:
                members[key] = each.type.read(value[key], join(place, key), problems)
            elif needed:
                problems.missing(join(place, key))
        if self.closed:
            for key in sorted(value.keys() - known):
                problems.note(join(place, key), "no field of this name", value[key])
        if problems:
            return None
        return members if self.record is None else self.record(**members)

    def write(self, value: Any) -> Any:
        """The members of a record by key."""
        members = {}
        for each in self.fields:
            member = getattr(value, each.key)
            if each.required is True or member != each.usual():
                members[each.key] = each.type.write(member)
        return members


TEXT = Text()
FREE = Map()


def join(place: str, name: str) -> str:
    """The place of a member."""
    if len(name) > _MAX_NAME:
        name = f"{name[: _MAX_NAME - 1]}…"
    if not (name.isascii() and name.isidentifier()):
        return f"{place}[{json.dumps(name)}]"
    return f"{place}.{name}" if place else name


def shown(value: Any) -> str:
    """A value as errors show it: short, and without control characters."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "…"
