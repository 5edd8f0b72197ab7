"""The pictures of the page: black and gray, told apart by marks and words."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from .figures import NAIVE, Found, Results, name_of, title_of

TICKS = {"wall": (100, 200, 500, 1000, 2000, 5000), "memory": (50, 100, 200, 400)}
# Marks that are told apart without color, by batch size.
MARKS = {1: "o", 8: "s", 64: "^", 512: "D"}


def png(figure: Any) -> bytes:
    """Return a figure as a PNG file."""
    out = io.BytesIO()
    # Without the date and the version of the library, the same figures give the same file.
    figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
    return out.getvalue()


def decode_picture(found: Found) -> bytes:
    """A panel for each model: speed relative to naive, a mark for each batch size."""
    from matplotlib.figure import Figure

    results = Results(found)
    models = [name for name in found["models"] if results.batches(name, 1, "decode")]
    timed = {name for entry in found["rounds"] for name in entry["seconds"]}
    names = [name for name in found["contenders"] if name != NAIVE and name in timed][::-1]
    columns = min(2, max(1, len(models)))
    rows = max(1, -(-len(models) // columns))
    figure = Figure(figsize=(5.5 * columns, 0.9 + rows * (1.1 + 0.27 * len(names))), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, model in zip(axes, models, strict=False):
        for batch in results.batches(model, 1, "decode"):
            points = [(results.ratio(model, 1, "decode", batch, name), row) for row, name in enumerate(names)]
            drawn = [(value.median, row) for value, row in points if value]
            panel.plot(
                [x for x, _ in drawn], [y for _, y in drawn], MARKS.get(batch, "x"), color="black", linestyle="none",
                markerfacecolor="white" if batch > 1 else "black", markersize=6, label=f"batch {batch}",
            )  # fmt: skip
            if batch == 1:
                for x, y in drawn:
                    panel.annotate(f"{x:.2f}", (x, y), (0, 5), textcoords="offset points", ha="center", fontsize=7)
        panel.axvline(1, color="gray", linestyle="--", linewidth=1)
        panel.set_xscale("log")
        panel.set_xticks(ticks := [0.25, 0.5, 1, 2, 4], [f"{tick:g}" for tick in ticks])
        panel.minorticks_off()
        panel.set_yticks(range(len(names)), [name_of(found, name) for name in names], fontsize=8)
        panel.set_ylim(-0.6, len(names) - 0.2)
        panel.grid(axis="x", linewidth=0.3)
        panel.set_title(title_of(found, model), fontsize=9)
    for panel in axes[len(models) :]:
        panel.set_axis_off()
    if models:
        figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, ncols=4, loc="outside upper center")
    figure.supxlabel(
        "decode with one thread: speed relative to naive\nONNX Runtime (dashed), right is faster", fontsize=9
    )
    return png(figure)


def start_picture(found: Found) -> bytes:
    """Points: milliseconds and peak memory until the first sample."""
    from matplotlib.figure import Figure

    names = [name for name in found["contenders"] if any(name in entry["contenders"] for entry in found["cold"])][::-1]
    figure = Figure(figsize=(11, 1 + 0.3 * max(1, len(names))), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, key, scale, words in zip(
        panels, ("wall", "memory"), (1e3, 1 / 2**20), ("ms to the first sample", "MiB at most until then"), strict=True
    ):
        values = [
            float(np.median([e["contenders"][name][key] for e in found["cold"] if name in e["contenders"]])) * scale
            for name in names
        ]
        for row, (name, value) in enumerate(zip(names, values, strict=True)):
            # Ours are filled.
            face = "black" if name.startswith("ours") else "white"
            panel.plot(value, row, "o", color="black", markerfacecolor=face, markersize=7)
            panel.annotate(f"{value:.0f}", (value, row), (7, -3), textcoords="offset points", fontsize=8)
        panel.set_xscale("log")
        panel.margins(x=0.15)
        panel.set_yticks(range(len(names)), [name_of(found, name) for name in names], fontsize=8)
        panel.set_xticks(ticks := TICKS[key], [str(tick) for tick in ticks])
        panel.minorticks_off()
        panel.grid(linewidth=0.3)
        panel.set_title(words, fontsize=9)
    return png(figure)
