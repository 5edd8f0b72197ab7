"""Make the graph by which a decoder takes latents in chunks, and hold it against the undivided decoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from vae_runtime.chunks import Stream
from vae_runtime.errors import counted, error_line
from vae_runtime.manifest import Signature, Sizes

from .chunks import ChunkGraph, chunk_graph
from .graph import Graph, Run, open_graph
from .time_axis import NotCausalError, Trial

Array = NDArray[Any]
FILE = "stream.onnx"
# The largest difference from the undivided answer, as a share of the larger of 1 and its largest magnitude.
_MAX_DIFFERENCE = 1e-5
# The length from which the tensors of a graph are looked at: long enough for padding by reflection, and cheap.
_TRIAL = 8
# How many single values of time are tried one by one.
_SINGLE = 64


def with_stream(graph: Graph, signature: Signature, examples: Mapping[str, Array]) -> Graph:
    """Return a graph with the one that computes the likelihood's mean in chunks, or the reason why there is none.

    Nothing is added to encoders, and to decoders of latents that are no sequence with one dynamic axis.

    Args:
        graph: a component's graph for ONNX Runtime.
        signature: the inputs and outputs of the components.
        examples: values [n, …] of every input of the decoder, by name.
    """
    axes = _axes(signature)
    if graph.component != "decoder" or axes is None:
        return graph
    try:
        if len(signature.latents) > 1:
            raise NotCausalError("there are several latents")
        if graph.data:
            raise NotCausalError("the weights are in a file of their own")
        rows = 1 if graph.batch_of_one else 2
        feeds = {name: np.resize(examples[name], (rows, *examples[name].shape[1:])) for name in graph.inputs}
        trial = _Trial(graph, signature, axes, feeds)
        chunked = chunk_graph(trial.model, signature.latent.name, signature.likelihood.mean, trial.tensors())
        content = chunked.model.SerializeToString(deterministic=True)
        onnx.checker.check_model(content, full_check=True)
        difference = trial.difference(chunked, content)
    except NotCausalError as error:
        return replace(graph, stream=Stream(reason=str(error)))
    except Exception as error:
        # ONNX, ONNX Runtime and the runtime's own checks raise errors of every kind.
        return replace(graph, stream=Stream(reason=f"the graph for chunks fails: {error_line(error)}"))
    return replace(graph, stream=Stream(FILE, chunked.hop, difference, chunked.states), chunks=content)


def stream_lines(graph: Graph) -> list[str]:
    """Return a line that says whether a graph takes chunks; none for a graph that was not asked."""
    if graph.stream is None:
        return []
    states = counted(len(graph.stream.states), "state")
    return [f"stream: {f'none, {graph.stream.reason}' if graph.stream.reason else f'in chunks, with {states}'}"]


def _axes(signature: Signature) -> tuple[int, int] | None:
    """The numbers of the time axis of latents and of observations, the batch counted; None without one."""
    observation, latent = signature.observation, signature.latent
    names = list(observation.dynamic)
    if len(names) != 1 or list(latent.dynamic) != names or max(len(observation.shape), len(latent.shape)) > 2:
        return None
    mean = observation.axes if signature.likelihood.shape is None else signature.likelihood.axes
    return (latent.axes.index(names[0]) + 1, mean.index(names[0]) + 1) if names[0] in mean else None


class _Trial:
    """Runs a decoder's graph at several lengths of time, undivided and in chunks."""

    def __init__(
        self, graph: Graph, signature: Signature, axes: tuple[int, int], feeds: Mapping[str, Array]
    ) -> None:  # fmt: skip
        self.model = onnx.load_model_from_string(graph.content)
        """The graph."""
        self._graph, self._feeds = graph, feeds
        self._latent, self._mean = signature.latent.name, signature.likelihood.mean
        self._axis, self._answer_axis = axes
        self._usual = signature.latent.shape[self._axis - 1]
        (self._sizes,) = signature.latent.dynamic.values()

    def tensors(self) -> list[Trial]:
        """Return all tensors of the graph at three lengths, in equal steps."""
        sizes = self._sizes
        first = min(_nearest(sizes, _TRIAL), sizes.max - 2 * sizes.step)
        if first < sizes.min:
            raise NotCausalError(f"three lengths are needed, and only {sizes} are proven")
        exposed = onnx.ModelProto()
        exposed.CopyFrom(self.model)
        names = list(dict.fromkeys(name for node in exposed.graph.node for name in node.output if name))
        known = {value.name for value in exposed.graph.output}
        exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
        run = open_graph(replace(self._graph, source=exposed.SerializeToString(), outputs=tuple(names)))
        weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in self.model.graph.initializer}
        trials: list[Trial] = []
        for length in (first, first + sizes.step, first + 2 * sizes.step):
            feeds = self._of_length(length)
            trials.append({**weights, **feeds, **dict(zip(names, run(self._given(feeds)), strict=True))})
        return trials

    def difference(self, chunked: ChunkGraph, content: bytes) -> float:
        """Return the largest difference of the answers in chunks from the undivided ones.

        Raises:
            NotCausalError: it is too large.
        """
        states = [state.name for state in chunked.states]
        inputs, outputs = (*self._graph.inputs, *states), (self._mean, *(state.next for state in chunked.states))
        undivided = open_graph(self._graph)
        divided = open_graph(replace(self._graph, source=content, inputs=inputs, outputs=outputs))
        index = self._graph.outputs.index(self._mean)
        worst = 0.0
        for length, chunks in self._divisions():
            feeds = self._of_length(length)
            whole = undivided(self._given(feeds))[index]
            answer = np.concatenate(list(self._answers(divided, chunked, feeds, chunks)), self._answer_axis)
            if answer.shape != whole.shape:
                raise NotCausalError(f"expected the shape {list(whole.shape)}, chunks give {list(answer.shape)}")
            difference = float(np.max(np.abs(answer.astype(np.float64) - whole)))
            allowed = _MAX_DIFFERENCE * float(np.max(np.abs(whole), initial=1.0))
            # Written so that NaN fails.
            if not difference <= allowed:
                raise NotCausalError(f"chunks of {chunks[:8]} … differ by {difference:.2g}, at most {allowed:.2g} may")
            worst = max(worst, difference)
        return worst

    def _answers(
        self, run: Run, chunked: ChunkGraph, feeds: Mapping[str, Array], chunks: Sequence[int]
    ) -> Iterator[Array]:
        rows = len(feeds[self._latent])
        states = [np.zeros((rows, *state.shape), np.float32) for state in chunked.states]
        for part in np.split(feeds[self._latent], np.cumsum(chunks)[:-1], self._axis):
            answer, *states = run([*self._given({**feeds, self._latent: part}), *states])
            yield answer

    def _given(self, feeds: Mapping[str, Array]) -> list[Array]:
        return [feeds[name] for name in self._graph.inputs]

    def _divisions(self) -> Iterator[tuple[int, list[int]]]:
        """Lengths of time, each with the lengths of the chunks that it is divided into."""
        random = np.random.default_rng(0)
        sizes, usual = self._sizes, self._usual
        short = _nearest(sizes, min(usual, _SINGLE))
        yield short, [1] * short
        for length, largest in ((usual, 3), (usual, usual), (_nearest(sizes, sizes.max), usual)):
            chunks: list[int] = []
            while sum(chunks) < length:
                chunks.append(min(int(random.integers(1, largest + 1)), length - sum(chunks)))
            yield length, chunks

    def _of_length(self, length: int) -> dict[str, Array]:
        latents = np.take(self._feeds[self._latent], range(length), self._axis, mode="wrap")
        return {**self._feeds, self._latent: np.ascontiguousarray(latents)}


def _nearest(sizes: Sizes, length: int) -> int:
    """The largest proven size up to a length; the smallest one where all are larger."""
    return sizes.min + max(0, length - sizes.min) // sizes.step * sizes.step
