"""Export a component as ONNX with PyTorch's exporter or the older one, then check and rewrite the graph."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import onnx
import onnxscript.optimizer
import torch

from vae_runtime.manifest import Latent, Observation, TensorSpec

from ..errors import ExportError, ParityError
from ..understand.adapted import Adapted
from ..understand.reads import branch_of
from ..understand.state import release
from .divisions import bound_divisors
from .exporter_work import less_exporter_work
from .files import INLINE, RANDOM, graphs_of, strip, weight_bytes, write_graph
from .graph import (
    IR_VERSION,
    OPSET,
    Graph,
    axis_names,
    chain_of,
    graph_of,
    open_graph,
    reason_of,
    require_same,
    traced_inputs,
)
from .nodes import NodeIndex, attributes_of
from .rewrites import rewritten

# How many rows a rewritten graph is compared with the original on.
_ROWS = 4
_FROZEN = (
    "; the model fixes a size that must stay dynamic: use x.shape without int(), and -1 or x.shape[0] for the batch, "
    "or leave the axis out of dynamic="
)


class BothFailed(ExportError):
    """Neither of PyTorch's exporters makes a graph of a component, or both graphs are wrong."""


def export_onnx(adapted: Adapted, component: str, path: Path, require: Callable[[Graph], None]) -> Graph:
    """Export a component as ONNX, by the older exporter where PyTorch's current one fails.

    Raises:
        BothFailed: both exporters fail.
        ExportError: the model branches on the values of a tensor.
        ParityError: the graphs of both exporters fail `require`.
    """
    failures: list[Exception] = []
    for exporter, make in _EXPORTERS.items():
        try:
            with _operators_of_layers():
                model = make(adapted, component)
            one = component in adapted.signature.batch_of_one
            _check_contract(model, component, adapted.signature.inputs(component), one)
            bound_divisors(model, _min_sizes(adapted, component))
            _declare_shapes(model, adapted.signature.outputs(component), one)
            changed, rewrites = rewritten(model) if weight_bytes(model) < INLINE else (model, ())
            data = write_graph(model, path)
            graph = graph_of(adapted, component, "onnx", path, f"torch.onnx.export({exporter})", data)
            del model
            release(adapted.modules.values())
            if rewrites:
                graph = _choose_rewritten(adapted, graph, changed, rewrites, require)
            del changed
            if graph.source == path:
                require(graph)
            release(adapted.modules.values())
            return graph
        except Exception as error:
            failures.append(error)
            if len(failures) == 1:
                _refuse_branches(adapted, component, error)
    _refuse_scripted(adapted.modules[component], component, failures[0])
    first, last = failures[0], failures[-1]
    if all(isinstance(failure, ParityError) for failure in failures):
        raise first
    raise BothFailed(
        f"{component}: both of PyTorch's exporters failed; dynamo: {reason_of(first)}; legacy: {reason_of(last)}"
        + (_FROZEN if "static shape" in chain_of(first) or "specialized" in chain_of(first) else "")
    ) from last


def _choose_rewritten(
    adapted: Adapted,
    original: Graph,
    changed: onnx.ModelProto,
    rewrites: tuple[str, ...],
    require: Callable[[Graph], None],
) -> Graph:
    """Return the rewritten graph if it agrees with the original and passes `require`, else the original."""
    assert isinstance(original.source, Path)
    path = original.source.with_name("rewritten.onnx")
    try:
        write_graph(changed, path)
        graph = replace(original, source=path, rewrites=rewrites)
        inputs = [tensor[:_ROWS].numpy() for tensor in adapted.given(original.component)]
        require_same(original.outputs, open_graph(original)(inputs), open_graph(graph)(inputs))
        require(graph)
    except Exception as error:
        return replace(original, rewrites=(f"left as exported, because the rewritten graph fails: {reason_of(error)}",))
    return graph


def _refuse_branches(adapted: Adapted, component: str, error: Exception) -> None:
    """Raise if the model branches on values that depend on an input: the older exporter would freeze one branch."""
    try:
        branch = branch_of(adapted, component)
    except Exception:
        # A model that fails in PyTorch itself failed the export for the same reason.
        branch = None
    if branch:
        raise ExportError(f"{component}: {branch}") from error


def _refuse_scripted(module: torch.nn.Module, component: str, error: Exception) -> None:
    """Raise if a submodule was made by torch.jit.script, which no exporter follows here; a traced one is followed."""
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule) and not isinstance(part, torch.jit.TopLevelTracedModule):  # type: ignore[attr-defined]
            raise ExportError(
                f"{component}: {name.removeprefix('model.')}: expected a torch.nn.Module, got a ScriptModule; put the "
                "module from before torch.jit.script in its place"
            ) from error


def _dynamo(adapted: Adapted, component: str) -> onnx.ModelProto:
    with less_exporter_work():
        program = torch.onnx.export(
            adapted.modules[component],
            traced_inputs(adapted, component),
            dynamo=True,
            # Strings instead of torch.export.Dim: for a model that works at one batch size only, a Dim silently makes a
            # fixed graph, and a string raises.
            dynamic_shapes={"tensors": tuple(axis_names(adapted, component))},
            input_names=[tensor.name for tensor in adapted.signature.inputs(component)],
            output_names=list(adapted.outputs(component)),
            opset_version=OPSET,
            external_data=False,
            # The optimizer treats an added 1e-10 as 0, so log(x + 1e-10) becomes infinite at x = 0, and the comparison
            # might not try that x. Constants are folded below, which changes no number.
            optimize=False,
            verbose=False,
        )
    if program is None:
        raise ExportError(f"{component}: expected an ONNX program from PyTorch, got nothing")
    onnxscript.optimizer.fold_constants(program.model)
    onnxscript.optimizer.remove_unused_nodes(program.model)
    model = program.model_proto
    _drop_wrong_biases(model)
    _drop_own_lengths(model)
    strip(model)
    model.ir_version = IR_VERSION
    return model


def _drop_wrong_biases(model: onnx.ModelProto) -> None:
    """Remove the zeros [channels, 2] that onnxscript 0.7 writes as the bias of a 3-D convolution without one."""
    wrong = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2 and tensor.dims[1] == 2}
    for node in model.graph.node:
        if node.op_type == "Conv" and len(node.input) == 3 and node.input[2] in wrong:
            del node.input[2]


def _drop_own_lengths(model: onnx.ModelProto) -> None:
    """Remove the length of a DFT where it is that of the signal, which is its default.

    PyTorch's exporter computes it from a shape, and a bundle's graph takes a constant length alone.
    """
    transforms = [node for node in model.graph.node if node.op_type == "DFT" and len(node.input) == 2]
    if not transforms:
        return
    producers = NodeIndex(model).producers
    inferred = onnx.shape_inference.infer_shapes(model).graph
    sizes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*inferred.input, *inferred.value_info)
    }
    for node in transforms:
        length = producers.get(node.input[1])
        shape = producers.get(length.input[0]) if length is not None and length.op_type == "Squeeze" else None
        if shape is None or shape.op_type != "Shape":
            continue
        axis, attributes = attributes_of(node).get("axis"), attributes_of(shape)
        start, end = attributes.get("start", 0), attributes.get("end", 0)
        measured, signal = (sizes.get(name, [])[start:end] for name in (shape.input[0], node.input[0]))
        if axis == start and end == start + 1 and measured == signal and measured not in ([], [0]):
            del node.input[1]


@contextlib.contextmanager
def _operators_of_layers() -> Iterator[None]:
    """Let a layer of a transformer run its operators, instead of a single one that no exporter translates.

    PyTorch takes the single one in evaluation mode where no gradients are recorded.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def _no_dump() -> Iterator[None]:
    """Keep the older exporter from printing the whole graph when it fails, past Python's own standard output.

    PyTorch 2.13 switches that log on whatever `verbose` says. With a version without that switch this changes nothing.
    """
    try:
        from torch.onnx._internal.torchscript_exporter import utils

        original = utils.setup_onnx_logging
    except (ImportError, AttributeError):
        yield
        return
    utils.setup_onnx_logging = lambda verbose: contextlib.nullcontext()  # type: ignore[assignment, return-value]
    try:
        yield
    finally:
        utils.setup_onnx_logging = original


def _legacy(adapted: Adapted, component: str) -> onnx.ModelProto:
    inputs = [tensor.name for tensor in adapted.signature.inputs(component)]
    outputs = adapted.outputs(component)
    axes: dict[str, dict[int, str]] = dict(zip(inputs, axis_names(adapted, component), strict=True))
    for tensor in adapted.signature.outputs(component):
        axes[tensor.name] = {
            **({} if component in adapted.signature.batch_of_one else {0: "batch"}),
            **{index + 1: f"{tensor.name}_{index + 1}" for index in sorted(tensor.dynamic)},
        }
    file = io.BytesIO()
    with _no_dump():
        torch.onnx.export(
            adapted.modules[component],
            traced_inputs(adapted, component),
            file,  # type: ignore[arg-type]
            dynamo=False,
            dynamic_axes=axes,
            input_names=inputs,
            output_names=list(outputs),
            opset_version=OPSET,
            do_constant_folding=True,
            verbose=False,
        )
    model = onnx.load_model_from_string(file.getvalue())
    strip(model)
    model.ir_version = IR_VERSION
    return model


_EXPORTERS: dict[str, Callable[[Adapted, str], onnx.ModelProto]] = {
    "dynamo=True": _dynamo,
    "dynamo=False": _legacy,
}


def _check_contract(model: onnx.ModelProto, component: str, inputs: Sequence[TensorSpec], one: bool) -> None:
    """Raise ExportError unless a graph is free of random operators and has every input, with its dynamic axes.

    With `one`, its batch must be one.
    """
    for node in (node for graph in graphs_of(model) for node in graph.node):
        # A Dropout is active only with its third input, the training mode.
        if node.op_type in RANDOM or (node.op_type == "Dropout" and any(node.input[2:])):
            raise ExportError(
                f"{component}: node {node.name}: expected no random operator in a graph, got {node.op_type}; draw "
                "noise outside and pass it in"
            )
        if node.domain not in ("", "ai.onnx") and not any(f.domain == node.domain for f in model.functions):
            raise ExportError(f"{component}: node {node.name}: expected operators of ONNX, got {node.domain}")
    dims = {value.name: value.type.tensor_type.shape.dim for value in model.graph.input}
    for tensor in inputs:
        if tensor.name not in dims:
            raise ExportError(f"{component}: {tensor.name}: expected this input in the graph, the exporter dropped it")
        for axis in (*(() if one else (0,)), *(index + 1 for index in sorted(tensor.dynamic))):
            if not dims[tensor.name][axis].dim_param:
                what = "batch axis" if axis == 0 else f"axis {axis}"
                raise ExportError(f"{component}: {tensor.name}: expected a dynamic {what}, got a fixed one")
    for value in model.graph.output:
        batch = value.type.tensor_type.shape.dim[0]
        if one and batch.dim_value != 1:
            raise ExportError(
                f"{component}: {value.name}: expected a batch of one, got {batch.dim_value or 'a dynamic one'}"
            )
        if not one and not batch.dim_param:
            raise ExportError(f"{component}: {value.name}: expected a dynamic batch axis, got a fixed one")


def _min_sizes(adapted: Adapted, component: str) -> dict[str, tuple[int, ...]]:
    """Return the smallest sizes of the axes of each input, the batch included."""
    signature = adapted.signature
    dynamic: dict[str, Observation | Latent] = {each.name: each for each in signature.latents}
    dynamic[signature.observation.name] = signature.observation
    sizes = {}
    for tensor in signature.inputs(component):
        own = dynamic.get(tensor.name)
        smallest = {own.axes.index(name): each.min for name, each in own.dynamic.items()} if own else {}
        axes = enumerate(tensor.shape)
        sizes[tensor.name] = (1, *(smallest.get(i, 1) if i in tensor.dynamic else size for i, size in axes))
    return sizes


def _declare_shapes(model: onnx.ModelProto, outputs: Sequence[TensorSpec], one: bool) -> None:
    """Declare the outputs' shapes with their dynamic axes, which exporters cannot always derive."""
    # The exporter's notes on intermediate tensors may hold sizes of the example.
    del model.graph.value_info[:]
    values = {value.name: value for value in model.graph.output}
    for tensor in outputs:
        shape = values[tensor.name].type.tensor_type.shape
        del shape.dim[:]
        if one:
            shape.dim.add().dim_value = 1
        else:
            shape.dim.add().dim_param = "batch"
        for index, size in enumerate(tensor.shape):
            if index in tensor.dynamic:
                shape.dim.add().dim_param = f"{tensor.name}_{index + 1}"
            else:
                shape.dim.add().dim_value = size
