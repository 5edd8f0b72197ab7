"""A bar of progress on stderr; where stderr is no terminal, a line each half minute in its place."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

# Seconds between two states, of a terminal and of other streams.
_TERMINAL, _OTHER = 0.2, 30.0
_LINE = "{percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class _Lines:
    """Gives each state of a bar a line of its own, where a terminal would write over the one before."""

    def write(self, text: str) -> None:
        line = text.strip()
        if line:
            print(line, file=sys.stderr, flush=True)

    def flush(self) -> None:
        """Nothing is held back."""


def bar(total: int, unit: str, *, initial: int = 0, shown: bool = True) -> tqdm[Any]:
    """Return a bar.

    Args:
        total: the number of units in all.
        unit: what is counted.
        initial: units that were done before.
        shown: False shows nothing.
    """
    common: dict[str, Any] = {"total": total, "unit": unit, "initial": initial, "disable": not shown}
    if sys.stderr.isatty():
        return tqdm(**common, unit_scale=True, mininterval=_TERMINAL, dynamic_ncols=True)
    return tqdm(**common, unit_scale=True, mininterval=_OTHER, bar_format=_LINE, file=_Lines())
