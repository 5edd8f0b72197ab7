"""The least time that a call can take on this machine, by the rates that the same run measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vae_runtime.timing import Quartiles

from .figures import INT8, NAIVE, OURS, Found, Results, duration, megabytes, table

# The components that a kind of work takes, and how the description of a model begins the names of their operations.
# Noise, copies and what Python does are not counted.
_PARTS = {
    "decode": (("decoder", "decode"),),
    "sample": (("decoder", "decode"),),
    "encode": (("encoder", "encode"),),
    "reconstruct": (("encoder", "encode"), ("decoder", "decode")),
}
# The products whose rate counts, by the form of the numbers that are multiplied.
_PRODUCTS = {"fp32": ("sgemm-numpy", "sgemm-ort"), "int8": ("int8-ort",)}


class Bounds:
    """Bounds of a run's work: its multiplications at the best rate, and its weights read once."""

    def __init__(self, found: Found) -> None:
        self._models = found["models"]
        self.rates = {(e["threads"], e["work"], e["amount"]): float(e["per_second"]) for e in found["limits"]}
        """Operations or bytes a second, by threads, work and amount."""

    def parts(self, model: str, threads: int, work: str, batch: int, form: str = "fp32") -> tuple[float, float] | None:
        """Return the seconds of the multiplications of one call, and those of reading its weights.

        The larger of the two is the least time that the call can take. None where a rate was not measured or the
        operations were not counted, as in the figures of older runs; in "int8" also where there is no such variant.
        """
        about = self._models[model]
        products = [rate for (t, kind, _), rate in self.rates.items() if t == threads and kind in _PRODUCTS[form]]
        counts = [about.get(f"{name}_flops") for _, name in _PARTS[work]]
        sizes = [_size(about, component, form) for component, _ in _PARTS[work]]
        reading = [self._reading(threads, size) for size in sizes]
        if not products or None in counts or None in reading:
            return None
        return batch * sum(counts) / max(products), sum(seconds or 0.0 for seconds in reading)

    def _reading(self, threads: int, size: float | None) -> float | None:
        """Return the seconds in which so many bytes are read."""
        reads = {4 * amount: rate for (t, kind, amount), rate in self.rates.items() if (t, kind) == (threads, "read")}
        if not reads or not size:
            return None
        # Weights that fit into a cache are read from it at every call but the first.
        return size / reads[min(reads, key=lambda each: abs(np.log(each / size)))]

    def ratio(
        self, results: Results, model: str, threads: int, work: str, batch: int, form: str = "fp32"
    ) -> Quartiles | None:
        """Return how many times as fast as naive a call in the least time would be."""
        parts, naive = (
            self.parts(model, threads, work, batch, form),
            results.seconds(model, threads, work, batch, NAIVE),
        )
        return Quartiles(*(seconds / max(parts) for seconds in naive)) if parts and naive else None

    def has(self, model: str, work: str, form: str) -> bool:
        """Return whether the model's bundle has this form of all components that the work takes."""
        return all(_size(self._models[model], component, form) is not None for component, _ in _PARTS[work])


def _size(about: Mapping[str, Any], component: str, form: str) -> float | None:
    """Return the bytes of a component's weights, or None where they are not known."""
    if form == "fp32":
        return about.get(f"{component}_bytes")
    sizes = [each["size"] for each in about["variants"] if (each["component"], each["variant"]) == (component, form)]
    return sizes[0] if sizes else None


def limits_section(found: Found) -> str:
    """Return tables of the machine's limits, and the share of them that each decoder reaches."""
    bounds, results, shares = Bounds(found), Results(found), []
    rows = [
        (f"{work}, {amount}×{amount}" if work != "read" else f"read {megabytes(4 * amount)}", str(threads),
         f"{rate / 1e9:.1f} {'G operations' if work != 'read' else 'GB'}/s")
        for (threads, work, amount), rate in bounds.rates.items()
    ]  # fmt: skip
    for model, about in found["models"].items():
        for batch in results.batches(model, 1, "decode"):
            parts = bounds.parts(model, 1, "decode", batch)
            if parts is None:
                continue
            few = bounds.parts(model, 1, "decode", batch, "int8")
            cells = []
            for name, least in ((NAIVE, parts), (OURS, parts), (INT8, few)):
                value = results.seconds(model, 1, "decode", batch, name)
                cells.append(f"{100 * max(least) / value.median:.0f} %" if value and least else "–")
            bound = "operations" if parts[0] > parts[1] else "reading weights"
            shares.append((about["title"], str(batch), duration(max(parts)), bound, *cells))
    head = ("decode, one thread", "batch", "minimum time", "bound by", "naive", "vae-runtime fp32",
            "vae-runtime int8, of its own limit")  # fmt: skip
    return table(("rate", "threads", "measured"), rows) + "\n\n" + table(head, shares)
