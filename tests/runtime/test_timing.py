"""The timing core: turns, rounds and quartiles."""

import random
import time

import pytest

from vae_runtime import timing
from vae_runtime.timing import in_turns, quartiles, take_turn


def test_a_turn_counts_the_calls_that_fit_in_after_two_that_do_not_count():
    calls = []
    turn = take_turn(lambda: calls.append(time.sleep(0.002)), 0.02)
    assert 1 <= turn.calls == len(calls) - 2
    assert 0.002 <= turn.min <= turn.median
    assert turn.min <= turn.mean


def test_a_call_longer_than_the_turn_is_timed_once():
    calls = []
    turn = take_turn(lambda: calls.append(time.sleep(0.01)), 0.005)
    assert (len(calls), turn.calls) == (1, 1)
    assert turn.median == turn.mean == turn.min >= 0.01


def test_every_contender_has_one_turn_a_round_in_random_order():
    seen = []

    def measure(name):
        seen.append(name)
        return float(len(seen))

    taken = in_turns("abc", 20, measure, random.Random(0))
    assert {name: len(figures) for name, figures in taken.items()} == {"a": 20, "b": 20, "c": 20}
    rounds = [tuple(seen[first : first + 3]) for first in range(0, 60, 3)]
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert len(set(rounds)) > 1
    assert [seen[int(figure) - 1] for figure in taken["b"]] == ["b"] * 20


def test_quartiles_are_those_of_numpy_and_none_of_nothing():
    assert quartiles([4, 1, 3, 2, 5]) == timing.Quartiles(3, 2, 4)
    assert quartiles([2.5]) == pytest.approx((2.5, 2.5, 2.5))
    assert quartiles([]) is None
