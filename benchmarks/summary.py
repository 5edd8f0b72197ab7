"""What the page opens with: ten pieces of work, and what is fastest at each, as lines and as one picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from vae_runtime.timing import Quartiles, quartiles

from .bounds import Bounds
from .figures import NAIVE, Found, Results, digits, name_of, table
from .pictures import png


class Case(NamedTuple):
    """A piece of work with one thread: the first of these models that the run has, at one batch size."""

    words: str
    models: tuple[str, ...]
    work: str
    batch: int = 1


# The cold start is measured apart: `start` is no kind of work.
START = "start"
CASES = (
    Case("MLP, decode one", ("mlp", "tiny"), "decode"),
    Case("MLP, decode 64 at once", ("mlp", "tiny"), "decode", 64),
    Case("MLP, sample one, a fresh seed", ("mlp", "tiny"), "sample"),
    Case("MLP, encode one", ("mlp", "tiny"), "encode"),
    Case("28×28 convolutions, decode one", ("mnist",), "decode"),
    Case("28×28 convolutions, decode 64 at once", ("mnist",), "decode", 64),
    Case("64×64 transposed convolutions, decode 64 at once", ("transposed",), "decode", 64),
    Case("64×64 upsampling, decode 64 at once", ("nearest",), "decode", 64),
    Case("128×128 AutoencoderKL, decode one", ("kl",), "decode"),
    Case("from the start of Python to the first sample", (), START),
)


class Best(NamedTuple):
    """The fastest contender of a group, and its speed × naive."""

    name: str
    speed: Quartiles


class Line(NamedTuple):
    """What a run found of a case."""

    words: str
    best: dict[tuple[bool, bool], Best]
    """The fastest, by whether it gives PyTorch's numbers, and whether it is vae-runtime."""
    limit: Quartiles | None
    """The speed that the machine's rates would allow in 32 bits, × naive."""

    def fastest(self, exact: bool) -> Best | None:
        """Return the fastest of those that give PyTorch's numbers, or of those in fewer bits."""
        those = [best for (is_exact, _), best in self.best.items() if is_exact == exact]
        return max(those, key=lambda each: each.speed.median, default=None)


def lines(found: Found) -> list[Line]:
    """Return what the run found of each case."""
    results, bounds, made = Results(found), Bounds(found), []
    for case in CASES:
        model = next((name for name in case.models if name in found["models"]), None)
        limit = None
        if case.work == START:
            speed: Callable[[str], Quartiles | None] = _StartSpeed(found)
        elif model is None:
            made.append(Line(case.words, {}, None))
            continue
        else:
            speed = _WorkSpeed(results, model, case)
            limit = bounds.ratio(results, model, 1, case.work, case.batch)
        best: dict[tuple[bool, bool], Best] = {}
        for name, about in found["contenders"].items():
            value, group = speed(name), (bool(about["exact"]), name.startswith("ours"))
            if value is not None and (group not in best or value.median > best[group].speed.median):
                best[group] = Best(name, value)
        made.append(Line(case.words, best, limit))
    return made


class _WorkSpeed:
    def __init__(self, results: Results, model: str, case: Case) -> None:
        self._results, self._model, self._case = results, model, case

    def __call__(self, name: str) -> Quartiles | None:
        return self._results.ratio(self._model, 1, self._case.work, self._case.batch, name)


class _StartSpeed:
    def __init__(self, found: Found) -> None:
        self._rounds = [entry["contenders"] for entry in found["cold"]]

    def __call__(self, name: str) -> Quartiles | None:
        return quartiles(
            each[NAIVE]["wall"] / each[name]["wall"] for each in self._rounds if name in each and NAIVE in each
        )


def summary_section(found: Found) -> str:
    """Return the ten lines: what is fastest at each piece of work, and where vae-runtime stands."""

    def shown(best: Best | None) -> str:
        return f"{name_of(found, best.name)}: {digits(best.speed.median)}" if best else "–"

    def speed(best: Best | None) -> str:
        return digits(best.speed.median) if best else "–"

    rows = []
    for line in lines(found):
        if line.best:
            cells = [shown(line.fastest(exact=True)), speed(line.best.get((True, True))),
                     shown(line.fastest(exact=False)), speed(line.best.get((False, True)))]  # fmt: skip
        else:
            cells = ["not measured", "–", "–", "–"]
        rows.append((line.words, *cells, digits(line.limit.median) if line.limit else "–"))
    head = ("one thread", "fastest with PyTorch's numbers", "vae-runtime", "fastest in fewer bits",
            "vae-runtime in fewer bits", "limit in 32 bits")  # fmt: skip
    return table(head, rows)


# The marks of the groups, by exactness and by whose they are: round with PyTorch's numbers, filled where vae-runtime's.
_MARKS = {
    (True, True): ("o", "black", "vae-runtime, PyTorch's numbers"),
    (True, False): ("o", "white", "fastest other, PyTorch's numbers"),
    (False, True): ("s", "black", "vae-runtime, fewer bits"),
    (False, False): ("s", "white", "fastest other, fewer bits"),
}


def summary_picture(found: Found) -> bytes:
    """A row for each case: vae-runtime and the fastest other, in all bits and in fewer, × naive, and the limit."""
    from matplotlib.figure import Figure

    measured = [line for line in lines(found) if line.best]
    figure = Figure(figsize=(11, 1.6 + 0.62 * max(1, len(measured))), layout="constrained")
    panel = figure.subplots()
    for row, line in enumerate(reversed(measured)):
        for (exact, ours), best in line.best.items():
            mark, face, _ = _MARKS[exact, ours]
            # Two lanes, so that names and marks do not hide each other.
            at = row + (0.17 if exact else -0.19)
            panel.plot(best.speed.median, at, mark, color="black", markerfacecolor=face, markersize=7)
            if not ours and best.name != NAIVE:
                panel.annotate(
                    name_of(found, best.name), (best.speed.median, at), (0, 5), textcoords="offset points", ha="center",
                    fontsize=7,
                )  # fmt: skip
        if line.limit:
            panel.plot([line.limit.median] * 2, [row - 0.36, row + 0.36], color="gray", linewidth=2, zorder=1)
    for mark, face, words in _MARKS.values():
        panel.plot([], [], mark, color="black", markerfacecolor=face, markersize=7, linestyle="none", label=words)
    panel.plot([], [], color="gray", linewidth=2, label="the machine's limit in 32 bits")
    panel.axvline(1, color="gray", linestyle="--", linewidth=1)
    _finish(panel, [line.words for line in reversed(measured)])
    figure.legend(*panel.get_legend_handles_labels(), fontsize=8, ncols=3, loc="outside upper center")
    figure.supxlabel("speed relative to naive ONNX Runtime (dashed), one thread; right is faster", fontsize=9)
    return png(figure)


def _finish(panel: Any, words: list[str]) -> None:
    """Label the rows and the scale."""
    panel.set_xscale("log")
    # Room for the names beside the outermost marks.
    panel.margins(x=0.1)
    low, high = panel.get_xlim()
    ticks = [tick for tick in (0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8) if low <= tick <= high]
    panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.minorticks_off()
    panel.set_yticks(range(len(words)), words, fontsize=8)
    panel.set_ylim(-0.7, len(words) - 0.3)
    panel.grid(axis="x", linewidth=0.3)
