"""Time calls so that a busy machine disturbs their ratios little: in short turns, in random order, by medians."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

# Calls before each measurement that do not count: they refill the caches after another contender's turn.
_WARM_UP = 2
# A ratio below this is no gain: the same work measured twice differs by as much.
_GAIN = 1.05


class Turn(NamedTuple):
    """One contender's turn: seconds of one call, over all calls of the turn."""

    median: float
    mean: float
    min: float
    calls: int


class Quartiles(NamedTuple):
    """The median and the quartiles of a figure over the rounds."""

    median: float
    low: float
    high: float


def take_turn(call: Callable[[], Any], seconds: float) -> Turn:
    """Time as many calls as fit into the seconds, at least one.

    Args:
        call: what is timed.
        seconds: how long the turn takes; a longer call is timed once.
    """
    clock = time.perf_counter
    for _ in range(_WARM_UP):
        begin = clock()
        call()
        once = clock() - begin
        # A call that takes longer than the whole turn warms itself, and counts at once.
        if once >= seconds:
            return Turn(once, once, once, 1)
    taken = []
    begin = before = clock()
    while before - begin < seconds:
        call()
        now = clock()
        taken.append(now - before)
        before = now
    return Turn(float(np.median(taken)), (before - begin) / len(taken), min(taken), len(taken))


def in_turns(
    names: Iterable[str], rounds: int, measure: Callable[[str], float], order: random.Random
) -> dict[str, list[float]]:
    """Measure contenders one after another, in another order each round.

    Returns:
        What `measure` gave for each name, a figure a round.
    """
    taken: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in order.sample(list(taken), len(taken)):
            taken[name].append(measure(name))
    return taken


def quartiles(values: Iterable[float]) -> Quartiles | None:
    """Return the median and the quartiles of the values, or None where there are none."""
    numbers = list(values)
    if not numbers:
        return None
    low, median, high = (float(each) for each in np.percentile(numbers, (25, 50, 75)))
    return Quartiles(median, low, high)


def in_words(speed: Mapping[str, float]) -> str:
    """Say how many times as fast as fp32 a variant is.

    Args:
        speed: a manifest's ratios, by the number of rows of a call.

    Returns:
        Such as "2.10 at batch 1, 3.24 at batch 64"; in front of that "not faster", if it never is.
    """
    text = ", ".join(f"{ratio:.2f} at batch {rows}" for rows, ratio in speed.items())
    return f"not faster: {text}" if speed and max(speed.values()) < _GAIN else text
