"""The learning curve of a run as a PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

# The first epochs are far below the others; the axis shows the range where all but this share of the epochs lie.
_HIDDEN = 0.1


def curve(records: Sequence[Mapping[str, Any]], *, surrogate: bool = False) -> bytes:
    """Draw bounds, reconstruction and KL, in nats per observation, against the epoch.

    Args:
        records: lines of `metrics.jsonl`, at least one.
        surrogate: whether the bounds are of gray values under a bernoulli likelihood, which the labels then say.

    Returns:
        A PNG of 960×400 pixels; the same records give the same bytes.
    """
    # imported here: a second of start-up that only this picture needs
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    bounds, terms = figure.subplots(1, 2)
    marker = "." if len(records) < 30 else ""
    epochs = [record["epoch"] for record in records]

    def line(axes: Any, part: str, name: str, label: str, sign: int = 1) -> None:
        axes.plot(epochs, [sign * record[part][name] for record in records], marker=marker, label=label)

    kind = "surrogate " if surrogate else ""
    line(bounds, "train", "elbo", f"{kind}ELBO, training")
    line(bounds, "validation", "elbo", f"{kind}ELBO, validation")
    if any(record["validation"]["bound"] != record["validation"]["elbo"] for record in records):
        line(bounds, "validation", "bound", f"{kind}importance-weighted bound, validation")
    line(terms, "validation", "reconstruction", "−reconstruction, validation", sign=-1)
    line(terms, "validation", "kl", "KL, validation")
    elbos = sorted(record[part]["elbo"] for record in records for part in ("train", "validation"))
    low, high = elbos[int(len(elbos) * _HIDDEN)], max(record["validation"]["bound"] for record in records)
    if high > low:
        bounds.set_ylim(low - 0.1 * (high - low), max(high, elbos[-1]) + 0.1 * (high - low))
    for axes in (bounds, terms):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel("nats per observation")
        axes.grid(alpha=0.3)
        axes.legend()
    file = io.BytesIO()
    # without the version of matplotlib, which would change the bytes
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
