"""Figures of a run: by what was done, as ratios within rounds, and as words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vae_runtime.timing import Quartiles, quartiles

NAIVE, OURS, NATIVE, INT8 = "naive", "ours-fp32", "ours-native", "ours-int8"
NOTHING = "Not measured in this run."

Found = Mapping[str, Any]


def shown(figure: Quartiles | None) -> str:
    """Return the median with the quartiles in brackets, or a dash where there is no figure."""
    return "–" if figure is None else f"{digits(figure.median)} ({digits(figure.low)}–{digits(figure.high)})"


class Results:
    """The rounds of one run, by model, threads, work and batch size."""

    def __init__(self, found: Found) -> None:
        self._seconds: dict[tuple[str, int, str, int], list[Mapping[str, float]]] = {}
        for entry in found["rounds"]:
            key = (entry["model"], entry["threads"], entry["work"], entry["batch"])
            self._seconds.setdefault(key, []).append(entry["seconds"])

    def rounds(self) -> Iterable[Sequence[Mapping[str, float]]]:
        """Return the measurements of each piece of work."""
        return self._seconds.values()

    def batches(self, model: str, threads: int, work: str) -> list[int]:
        """Return the batch sizes of a measured piece of work."""
        return sorted(batch for m, t, w, batch in self._seconds if (m, t, w) == (model, threads, work))

    def seconds(self, model: str, threads: int, work: str, batch: int, name: str) -> Quartiles | None:
        """Return the time of one call."""
        rounds = self._seconds.get((model, threads, work, batch), [])
        return quartiles(each[name] for each in rounds if name in each)

    def ratio(self, model: str, threads: int, work: str, batch: int, name: str, to: str = NAIVE) -> Quartiles | None:
        """Return how many times as fast as another contender one is, within each round."""
        rounds = self._seconds.get((model, threads, work, batch), [])
        return quartiles(each[to] / each[name] for each in rounds if name in each and to in each)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], nothing: str = NOTHING) -> str:
    """Return a Markdown table, or a sentence where there are no rows."""
    body = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *body]) if body else nothing


def digits(value: float) -> str:
    """Return a number with three digits."""
    return f"{value:.3g}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def duration(seconds: float) -> str:
    """Return a time with its unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{digits(seconds / size)} {unit}"
    return f"{digits(seconds / 1e-6)} µs"


def megabytes(size: float) -> str:
    """Return a size in MiB."""
    return f"{digits(size / 2**20)} MiB"


def title_of(found: Found, model: str) -> str:
    """Return the title of a model."""
    return str(found["models"][model]["title"])


def name_of(found: Found, contender: str) -> str:
    """Return the title of a contender."""
    return str(found["contenders"].get(contender, {}).get("title", contender))


def figure_of(found: Found, value: Quartiles | None, name: str) -> str:
    """Return a contender's title with its median, or nothing where there is none."""
    return f"{name_of(found, name)}: {digits(value.median)}" if value else ""


def start_ratio(found: Found, name: str, what: str) -> Quartiles | None:
    """Return what a contender's cold start takes, × naive, within each round."""
    rounds = [entry["contenders"] for entry in found["cold"]]
    return quartiles(each[name][what] / each[NAIVE][what] for each in rounds if name in each and NAIVE in each)


def host_ratio(found: Found, name: str, to: str, what: str) -> Quartiles | None:
    """Return what a program in another language takes, × that of Python, within each round."""
    rounds = [entry["hosts"] for entry in found.get("hosts", [])]
    return quartiles(each[name][what] / each[to][what] for each in rounds)


def worker_ratio(found: Found, model: str, batch: int, loops: int, group: str, to: str) -> Quartiles | None:
    """Return the rate of one group of workers, × another's, within each round."""
    return quartiles(
        entry["rates"][group] / entry["rates"][to]
        for entry in found["workers"]
        if (entry["model"], entry["batch"], bool(entry["loops"])) == (model, batch, bool(loops))
    )


def generation_ratio(
    found: Found, model: str, kind: str, workers: int, to: tuple[str, int] | None = None
) -> Quartiles | None:
    """Return the rate of one way of generation, × another's of the same round; by default, × decoding alone."""
    other = to or ("decode", workers)
    rates = {
        (turn["round"], turn["kind"], turn["workers"]): turn["rate"]
        for turn in found.get("generation", [])
        if turn["model"] == model and "rate" in turn
    }
    return quartiles(
        rate / rates[number, *other]
        for (number, *which), rate in rates.items()
        if tuple(which) == (kind, workers) and (number, *other) in rates
    )


def turns_of(found: Found, model: str, kind: str, workers: int) -> list[Mapping[str, Any]]:
    """Return the turns of one kind of generation."""
    which = (model, kind, workers)
    return [turn for turn in found["generation"] if (turn["model"], turn["kind"], turn["workers"]) == which]


def tile_ratio(found: Found, way: str, what: str) -> Quartiles | None:
    """Return what one way of decoding a large picture takes, × undivided diffusers, within each round."""
    rounds = {(cell["round"], cell["way"]): cell[what] for cell in found.get("tiles", [])}
    return quartiles(
        value / rounds[number, "diffusers"]
        for (number, name), value in rounds.items()
        if name == way and (number, "diffusers") in rounds
    )
