"""Run a graph that exists already, as it was given, and check that its rows are independent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_runtime.errors import VaeError, error_line

from ..errors import ExportError
from .existing import ExistingGraph
from .graph import Graph, open_graph

Array = NDArray[Any]

# How far the answer for a row may depend on the other rows: kernels round differently at other batch sizes.
_RELATIVE = {"float32": 1e-4, "float16": 1e-2, "int8": 5e-2}


class ReferenceGraph:
    """A graph as it was given, with the file's own names."""

    def __init__(self, graph: ExistingGraph, component: str, conditions: Mapping[str, Array]) -> None:
        """Load a graph.

        Args:
            graph: the graph.
            component: what it is.
            conditions: values [n, ...] of conditions by name; the graph may take some of them.

        Raises:
            ExportError: vae-runtime cannot run it, or its other inputs are not one.
        """
        self.graph, self.component = graph, component
        self.conditions = [edge for edge in graph.inputs if edge.name in conditions]
        inputs = [edge for edge in graph.inputs if edge.name not in conditions]
        if len(inputs) != 1:
            got = ", ".join(edge.name for edge in inputs) or "none"
            own = "x" if component == "encoder" else "z"
            raise ExportError(
                f"{graph.path}: expected one input beside the conditions, {own}, got {got}; give conditions="
            )
        (self.input,) = inputs
        self._given = {edge.name: conditions[edge.name].astype(edge.stored) for edge in self.conditions}
        outputs = tuple(edge.name for edge in graph.outputs)
        names = (self.input.name, *self._given)
        content = Graph(component, "fp32", "ort", graph.path.name, graph.original, names, outputs)
        try:
            self._run = open_graph(content)
        except VaeError as error:
            reason, _, advice = str(error).rpartition("; ")
            # Levels above "extended" lay out tensors for one processor.
            remedy = "; optimize the graph at most at ONNX Runtime's level extended" if "nchwc" in reason else ""
            raise ExportError(
                f"{graph.path}: expected a graph that vae-runtime runs: {reason or advice}{remedy}"
            ) from error
        batch = (self.input.axes or (None,))[0]
        # Rows one by one have scales of their own.
        self.one = graph.mixes_rows or (batch is not None and batch.size == 1)
        if batch is not None and batch.size not in (None, 1):
            raise ExportError(
                f"{graph.path}: expected a dynamic batch axis, got one of {batch.size}; export the graph with "
                "dynamic_axes for the batch"
            )

    def __call__(self, array: Array, first: int = 0) -> list[Array]:
        """Return every output, as float32 or int64, given the conditions from row `first` on."""
        rows = np.arange(first, first + len(array))
        own = [array.astype(self.input.stored)]
        own += [values.take(rows, 0, mode="wrap") for values in self._given.values()]
        groups = [slice(row, row + 1) for row in range(len(array))] if self.one else [slice(None)]
        parts = [self._run([each[group] for each in own]) for group in groups]
        return [
            np.concatenate(each).astype(edge.dtype)
            for edge, each in zip(self.graph.outputs, zip(*parts, strict=True), strict=True)
        ]

    def checked(self, array: Array, argument: str) -> list[Array]:
        """Return the outputs for several rows, once they are shown to be those of each row by itself.

        Raises:
            ExportError: they are not, or the graph fails, which `argument` may explain.
        """
        try:
            return self._checked(array)
        except ExportError:
            raise
        except VaeError as error:
            # Without advice to the reader of a bundle.
            reason, _, advice = error_line(error).rpartition("; ")
            arguments = f"{argument}= or conditions=" if self.conditions else f"{argument}="
            raise ExportError(
                f"{self.graph.path}: fails on {self.input.name} {list(array.shape[1:])}: {reason or advice}; "
                f"correct {arguments}"
            ) from error

    def _checked(self, array: Array) -> list[Array]:
        single = [self(array[row : row + 1], row) for row in range(2)]
        alone = [np.concatenate(parts) for parts in zip(*single, strict=True)]
        together = alone
        try:
            together = self(array[:2])
        except VaeError:
            # The graph says that its batch may vary, and it may not.
            self.one = True
        else:
            share = _RELATIVE[self.graph.precision]
            for edge, a, b in zip(self.graph.outputs, together, alone, strict=True):
                allowed = share * max(1.0, float(np.abs(b).max()))
                if a.shape != b.shape or not np.allclose(a, b, rtol=0, atol=allowed, equal_nan=True):
                    raise ExportError(
                        f"{self.graph.path}: {edge.name}: expected rows that do not depend on each other, got "
                        "others in a batch of 2; export the graph in evaluation mode"
                    )
        outputs = together if len(array) == 2 else self(array)
        for edge, answer in zip(self.graph.outputs, outputs, strict=True):
            if not np.isfinite(answer).all():
                raise ExportError(
                    f"{self.graph.path}: {edge.name}: expected finite numbers, got others; range= says which "
                    "observations there are"
                )
        return outputs
