"""Frozen dataclasses that are made quickly: this package has so many that making them shows in a cold start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, FrozenInstanceError, dataclass, fields
from typing import TYPE_CHECKING, Any

__all__ = ["Record", "record"]

if TYPE_CHECKING:
    from dataclasses import dataclass as record
else:

    def record(frozen: bool, kw_only: bool = False) -> Callable[[type], type]:
        """A frozen dataclass of which nothing is generated: fifteen times, that would take 5 % of a cold start."""
        return dataclass(init=False, repr=False, eq=False, match_args=False, kw_only=kw_only)


class Record:
    """What a frozen dataclass has generated for it, once for all."""

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
