"""Say on stderr what an export does, and about how long it goes on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

# What share of an export each step takes, from those of convolutional models; a variant is one of one component.
_SHARES = {
    "understand": 30.0, "reference": 10.0, "onnx": 14.0, "torchscript": 6.0, "pt2": 8.0, "golden": 12.0,
    "variants": 20.0, "write": 8.0,
}  # fmt: skip


class Progress:
    """The steps of one export, in order.

    Args:
        steps: the kind of each step, a name out of `understand`, `reference`, a format, `golden`, `variants`, `write`.
        shown: whether anything is printed.
        clock: gives the time in seconds.
    """

    def __init__(
        self, steps: Sequence[str] = (), *, shown: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._steps, self._shown, self._clock = list(steps), shown, clock
        self._done: list[str] = []
        self._started = clock()

    def step(self, kind: str, text: str) -> None:
        """Begin the next step of this kind: print it, with the time that is left if earlier steps show it.

        Steps of the plan that are passed over count as done.
        """
        if kind in self._steps:
            number = self._steps.index(kind)
            self._done, self._steps = self._done + self._steps[:number], self._steps[number:]
        left = self._left()
        self.note(text if left is None else f"{text} (about {left} left)")
        self._done, self._steps = self._done + self._steps[:1], self._steps[1:]

    def note(self, text: str) -> None:
        """Print lines on the step that goes on."""
        if self._shown and text:
            print(text, file=sys.stderr, flush=True)

    def _left(self) -> str | None:
        """How long the steps from here on take if they are to the earlier ones as in other exports."""
        before, after = (sum(_SHARES[kind] for kind in steps) for steps in (self._done, self._steps))
        if not before or not after:
            return None
        seconds = (self._clock() - self._started) * after / before
        return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{max(1, round(seconds))} s"
