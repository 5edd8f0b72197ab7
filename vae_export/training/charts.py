"""Charts as SVG for a page: lines, bars and points, in the colors of the page and without a script."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from vae_runtime.errors import counted

COLORS = (
    "#3b82f6", "#f97316", "#10b981", "#ef4444", "#a855f7", "#a16207", "#ec4899", "#64748b", "#84cc16", "#06b6d4",
)  # fmt: skip
"""The colors of series and classes, by their order; each is readable on white and on black."""
_WIDTH, _HEIGHT = 420, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 10, 12, 40
# More points than this on a line are not told apart.
_MAX_POINTS = 400
# Classes whose names stand in the picture; of more, only the colors are shown.
_MAX_NAMED = 30


def lines(epochs: Sequence[int], series: Mapping[str, Sequence[float]], *, x: str, y: str, hidden: float = 0.0) -> str:
    """Draw values against the epoch.

    Args:
        epochs: ascending, at least one.
        series: label → a finite value for each epoch; at least one series.
        x, y: what the axes are.
        hidden: share of the lowest values that may lie outside: the first epochs are often far below the others.

    Returns:
        An `<svg>` and its legend.
    """
    values = sorted(value for each in series.values() for value in each)
    low, high = values[int((len(values) - 1) * hidden)], values[-1]
    margin = 0.06 * (high - low) or abs(high) * 0.01 or 1.0
    # An epoch alone is a point in the middle.
    across = (epochs[0], epochs[-1]) if epochs[0] < epochs[-1] else (epochs[0] - 1, epochs[0] + 1)
    frame = _Frame(across, (low - margin, high + margin))
    step = math.ceil(len(epochs) / _MAX_POINTS)
    shown = [*range(0, len(epochs) - 1, step), len(epochs) - 1]
    drawn = []
    for color, each in zip(_colors(len(series)), series.values(), strict=True):
        path = "".join(
            f"{'L' if number else 'M'}{frame.x(epochs[i]):.1f} {frame.y(each[i]):.1f}" for number, i in enumerate(shown)
        )
        # A line of one point has no length, and is drawn by its round ends.
        path = path if len(shown) > 1 else f"{path}h0"
        width = 2 if len(shown) > 1 else 6
        drawn.append(f'<path d="{path}" fill="none" stroke="{color}" stroke-width="{width}" stroke-linecap="round"/>')
    words = f"{y} against {x}: {', '.join(series)}"
    return _svg(frame.axes(x, y, whole=True) + _clip(drawn), words) + _legend(list(series))


def bars(values: Sequence[float], *, active: Sequence[bool], x: str, y: str) -> str:
    """Draw a bar for each value; those that are not active are gray.

    Args:
        values: finite, not negative, at least one.
        active: whether each counts.
        x, y: what the axes are.
    """
    frame = _Frame((0, len(values)), (0.0, max(*values, 0.0) * 1.05 or 1.0))
    width = frame.x(1) - frame.x(0)
    drawn = [
        f'<rect x="{frame.x(i) + 0.1 * width:.1f}" y="{frame.y(value):.1f}" width="{0.8 * width:.1f}" '
        f'height="{frame.y(0) - frame.y(value):.1f}" fill="{COLORS[0] if on else "#94a3b8"}"/>'
        for i, (value, on) in enumerate(zip(values, active, strict=True))
    ]
    return _svg(frame.axes(x, y, whole=True) + "".join(drawn), f"{y} against {x}")


def points(
    xy: NDArray[np.float64], *, x: str, y: str, labels: NDArray[np.int64] | None = None, names: Sequence[str] = ()
) -> str:
    """Draw points, in the color of their class where they have one.

    Args:
        xy: finite, [n, 2], at least one.
        x, y: what the axes are.
        labels: the class of each point, [n], from 0.
        names: of the classes, by their numbers; empty: the numbers.
    """
    low, high = xy.min(0), xy.max(0)
    margin = 0.05 * (high - low) + 1e-6
    low, high = low - margin, high + margin
    frame = _Frame((float(low[0]), float(high[0])), (float(low[1]), float(high[1])))
    classes = [0] if labels is None else sorted(set(labels.tolist()))
    drawn, named = [], []
    for label in classes:
        chosen = xy if labels is None else xy[labels == label]
        path = "".join(f"M{frame.x(a):.1f} {frame.y(b):.1f}h0" for a, b in chosen.tolist())
        color = COLORS[label % len(COLORS)]
        drawn.append(
            f'<path d="{path}" stroke="{color}" stroke-width="4" stroke-linecap="round" stroke-opacity="0.6"/>'
        )
        middle = np.median(chosen, axis=0)
        name = names[label] if label < len(names) else str(label)
        named.append(
            f'<text x="{frame.x(middle[0]):.1f}" y="{frame.y(middle[1]) + 5:.1f}" class="name" text-anchor="middle">'
            f"{escape(name[:24])}</text>"
        )
    texts = "".join(named) if labels is not None and len(classes) <= _MAX_NAMED else ""
    return _svg(frame.axes(x, y) + "".join(drawn) + texts, f"{counted(len(xy), 'point')}: {y} against {x}")


def _legend(names: Sequence[str]) -> str:
    """Return a list of series with their colors."""
    items = "".join(
        f'<li><span style="background:{color}"></span>{escape(name)}</li>'
        for color, name in zip(_colors(len(names)), names, strict=True)
    )
    return f'<ul class="legend">{items}</ul>'


class _Frame:
    """The plane of a chart: from its numbers to places on the page."""

    def __init__(self, across: tuple[float, float], up: tuple[float, float]) -> None:
        self.across, self.up = across, up

    def x(self, value: float) -> float:
        low, high = self.across
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.up
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    def axes(self, x: str, y: str, *, whole: bool = False) -> str:
        """Return grid lines, their numbers and the words of both axes; `whole`: x has whole numbers alone."""
        drawn = []
        for value in _ticks(*self.up, 5):
            place = self.y(value)
            drawn.append(
                f'<path d="M{_LEFT} {place:.1f}H{_WIDTH - _RIGHT}" class="grid"/>'
                f'<text x="{_LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{_number(value)}</text>'
            )
        for value in _ticks(*self.across, 6, whole=whole):
            drawn.append(
                f'<text x="{self.x(value):.1f}" y="{_HEIGHT - _BOTTOM + 17}" text-anchor="middle">'
                f"{_number(value)}</text>"
            )
        middle = (_HEIGHT - _BOTTOM + _TOP) / 2
        return (
            "".join(drawn)
            + f'<text x="{(_WIDTH + _LEFT) / 2}" y="{_HEIGHT - 4}" text-anchor="middle">{escape(x)}</text>'
            f'<text transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">{escape(y)}</text>'
        )


def _clip(drawn: Sequence[str]) -> str:
    """Keep what is drawn within the plane, by an SVG of its own."""
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    return (
        f'<svg x="{_LEFT}" y="{_TOP}" width="{width}" height="{height}" viewBox="{_LEFT} {_TOP} {width} {height}">'
        f"{''.join(drawn)}</svg>"
    )


def _svg(inner: str, words: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(words)}">{inner}</svg>'


def _colors(count: int) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(count)]


def _ticks(low: float, high: float, most: int, *, whole: bool = False) -> list[float]:
    """Round numbers between two, at most about so many."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    step = max(step, 1.0) if whole else step
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _number(value: float) -> str:
    return f"{value:.6g}".replace("-", "−")
