"""Run a graph that exists already, as it was given, and check that its rows are independent."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_runtime.errors import VaeError, error_line

from ..errors import ExportError
from .existing import ExistingGraph
from .graph import Graph, open_graph

Array = NDArray[Any]

# How far the answer for a row may depend on the other rows: kernels round differently at other batch sizes.
_RELATIVE = {"float32": 1e-4, "float16": 1e-2}


class ReferenceGraph:
    """A graph as it was given, with the file's own names."""

    def __init__(self, graph: ExistingGraph, component: str) -> None:
        self.graph, self.component = graph, component
        if len(graph.inputs) != 1:
            names = ", ".join(edge.name for edge in graph.inputs) or "none"
            raise ExportError(
                f"{graph.path}: expected one input, {'x' if component == 'encoder' else 'z'}, got {names}; conditions "
                "cannot be adopted: export the model itself"
            )
        self.input = graph.inputs[0]
        outputs = tuple(edge.name for edge in graph.outputs)
        content = Graph(component, "fp32", "ort", graph.path.name, graph.original, (self.input.name,), outputs)
        try:
            self._run = open_graph(content)
        except VaeError as error:
            reason, _, advice = str(error).rpartition("; ")
            raise ExportError(f"{graph.path}: expected a graph that vae-runtime runs: {reason or advice}") from error
        batch = (self.input.axes or (None,))[0]
        self.one = batch is not None and batch.size == 1
        if batch is not None and not self.one and batch.size is not None:
            raise ExportError(
                f"{graph.path}: expected a dynamic batch axis, got one of {batch.size}; export the graph with "
                "dynamic_axes for the batch"
            )

    def __call__(self, array: Array) -> list[Array]:
        """Return every output, as float32 or int64."""
        own = array.astype(self.input.stored)
        rows = [own[row : row + 1] for row in range(len(own))] if self.one else [own]
        parts = [self._run([part]) for part in rows]
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
            raise ExportError(
                f"{self.graph.path}: fails on {self.input.name} {list(array.shape[1:])}: {error_line(error)}; "
                f"{argument}= may say otherwise"
            ) from error

    def _checked(self, array: Array) -> list[Array]:
        single = [self(array[row : row + 1]) for row in range(2)]
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
