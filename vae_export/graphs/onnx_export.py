"""A component → an ONNX graph, by PyTorch's exporter or its predecessor, checked and rewritten."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnxscript.optimizer
import torch
from onnx.external_data_helper import convert_model_to_external_data

from vae_runtime.manifest import TensorSpec

from ..errors import ExportError, ParityError
from ..understand.adapted import Adapted, values_read
from ..understand.state import release
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
from .rewrites import rewritten

# What one protobuf message, and so one ONNX file, can hold is 2 GiB; the graph itself takes some of it.
_INLINE = 2**31 - 2**24
# Rows that a rewritten graph is held against the plain one on, and by how much of the magnitude it may differ.
_ROWS = 4
_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
_FROZEN = (
    "; a size that should be dynamic is frozen: use x.shape as it is, not int() of it, and -1 or x.shape[0] for the "
    "batch; or leave the axis out of dynamic="
)
# What PyTorch's exporter says where it cannot follow a branch on the values of a tensor.
_DATA_DEPENDENT = ("data-dependent", "DataDependent", "Could not extract specialized integer", "unbacked")


def export_onnx(adapted: Adapted, component: str, path: Path, require: Callable[[Graph], None]) -> Graph:
    """By PyTorch's exporter; by its predecessor where that fails for another reason than the model's own doing."""
    failures: list[Exception] = []
    for exporter, make in _EXPORTERS.items():
        try:
            model = make(adapted, component)
            _check_contract(model, component, adapted.signature.inputs(component))
            _declare_shapes(model, adapted.signature.outputs(component))
            said = f"torch.onnx.export({exporter})"
            changed, rewrites = rewritten(model) if _weight_bytes(model) < _INLINE else (model, ())
            data = _write(model, path)
            graph = graph_of(adapted, component, "onnx", path, said, data)
            del model
            release(adapted.modules.values())
            if rewrites:
                graph = _faster(adapted, graph, changed, rewrites, require)
            del changed
            if graph.source == path:
                require(graph)
            release(adapted.modules.values())
            return graph
        except Exception as error:
            failures.append(error)
            if len(failures) == 1:
                _refuse_branches(adapted, component, error)
    first, last = failures[0], failures[-1]
    if all(isinstance(failure, ParityError) for failure in failures):
        raise first
    raise ExportError(
        f"{component}: neither of PyTorch's exporters takes it; dynamo: {reason_of(first)}; legacy: {reason_of(last)}"
        + (_FROZEN if "static shape" in chain_of(first) or "specialized" in chain_of(first) else "")
    ) from last


def _faster(
    adapted: Adapted,
    plain: Graph,
    changed: onnx.ModelProto,
    rewrites: tuple[str, ...],
    require: Callable[[Graph], None],
) -> Graph:
    """The rewritten graph, held against the plain one and against what is required; the plain one where it fails."""
    assert isinstance(plain.source, Path)
    path = plain.source.with_name("rewritten.onnx")
    try:
        _write(changed, path)
        graph = replace(plain, source=path, rewrites=rewrites)
        given = [tensor[:_ROWS].numpy() for tensor in adapted.given(plain.component)]
        require_same(plain.outputs, open_graph(plain)(given), open_graph(graph)(given))
        require(graph)
    except Exception as error:
        return replace(plain, rewrites=(f"left as exported, since the rewritten graph fails: {reason_of(error)}",))
    return graph


def _refuse_branches(adapted: Adapted, component: str, error: Exception) -> None:
    """Raise where an export failed on a model that branches on values: the older exporter would freeze one side."""
    said = chain_of(error)
    try:
        values = values_read(adapted, component)
    except Exception:
        # What fails in PyTorch itself is told by the error at hand.
        values = []
    if values or any(sign in said for sign in _DATA_DEPENDENT):
        where = f" at {values[0]}" if values else ""
        raise ExportError(
            f"{component}: a Python branch or loop depends on the values of a tensor{where}, which no graph follows; "
            "compute both sides and choose with torch.where"
        ) from error


def _weight_bytes(model: onnx.ModelProto) -> int:
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def _write(model: onnx.ModelProto, path: Path) -> dict[str, Path]:
    """Write the file; weights that are too large for it go to another one beside it."""
    if _weight_bytes(model) < _INLINE:
        path.write_bytes(model.SerializeToString(deterministic=True))
        model.Clear()
        # By its path: a model in memory would be written once more to be checked.
        onnx.checker.check_model(path, full_check=True)
        return {}
    name = f"{path.name}.data"
    convert_model_to_external_data(model, all_tensors_to_one_file=True, location=name, size_threshold=1024)
    onnx.save_model(model, path)
    return {name: path.with_name(name)}


def _dynamo(adapted: Adapted, component: str) -> onnx.ModelProto:
    program = torch.onnx.export(
        adapted.modules[component],
        traced_inputs(adapted, component),
        dynamo=True,
        # Strings, not torch.export.Dim: of a model that works at one batch size only, a Dim makes a fixed graph
        # without a word, the string raises.
        dynamic_shapes={"tensors": tuple(axis_names(adapted, component))},
        input_names=[tensor.name for tensor in adapted.signature.inputs(component)],
        output_names=list(adapted.outputs(component)),
        opset_version=OPSET,
        external_data=False,
        # Its optimiser takes an addition of 1e-10 for one of 0: log(x + 1e-10) is then infinite at 0, and a comparison
        # would have to come upon it. Constants are folded below, which changes no number.
        optimize=False,
        verbose=False,
    )
    if program is None:
        raise ExportError(f"{component}: PyTorch gave no ONNX program")
    onnxscript.optimizer.fold_constants(program.model)
    onnxscript.optimizer.remove_unused_nodes(program.model)
    model = program.model_proto
    _strip(model)
    model.ir_version = IR_VERSION
    return model


def _legacy(adapted: Adapted, component: str) -> onnx.ModelProto:
    inputs = [tensor.name for tensor in adapted.signature.inputs(component)]
    outputs = adapted.outputs(component)
    axes: dict[str, dict[int, str]] = dict(zip(inputs, axis_names(adapted, component), strict=True))
    for tensor in adapted.signature.outputs(component):
        axes[tensor.name] = {
            0: "batch",
            **{index + 1: f"{tensor.name}_{index + 1}" for index in sorted(tensor.dynamic)},
        }
    file = io.BytesIO()
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
    _strip(model)
    model.ir_version = IR_VERSION
    return model


_EXPORTERS: dict[str, Callable[[Adapted, str], onnx.ModelProto]] = {
    "dynamo=True": _dynamo,
    "dynamo=False": _legacy,
}


def _graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    """The main graph, the functions, and what is nested in both: branches and bodies of loops."""
    waiting = [model.graph, *model.functions]
    while waiting:
        graph = waiting.pop()
        yield graph
        waiting += [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
        waiting += [nested for node in graph.node for attribute in node.attribute for nested in attribute.graphs]


def _strip(model: onnx.ModelProto) -> None:
    """Remove what the exporter notes about the source: stack traces, with this machine's paths, and class names."""
    noted: list[Any] = [model]
    for graph in _graphs(model):
        noted += [graph, *graph.node, *graph.value_info]
        if isinstance(graph, onnx.GraphProto):
            noted += [*graph.input, *graph.output, *graph.initializer]
    for part in noted:
        del part.metadata_props[:]
        part.doc_string = ""


def _check_contract(model: onnx.ModelProto, component: str, inputs: Sequence[TensorSpec]) -> None:
    for node in (node for graph in _graphs(model) for node in graph.node):
        # A Dropout with its third input, the training mode, drops; without it, it does nothing.
        if node.op_type in _RANDOM or (node.op_type == "Dropout" and any(node.input[2:])):
            raise ExportError(
                f"{component}: node {node.name}: no random operator is allowed in a graph, got {node.op_type}; draw "
                "noise outside and pass it in"
            )
        if node.domain not in ("", "ai.onnx") and not any(f.domain == node.domain for f in model.functions):
            raise ExportError(f"{component}: node {node.name}: operators of ONNX are expected, got {node.domain}")
    found = {value.name: value.type.tensor_type.shape.dim for value in model.graph.input}
    for tensor in inputs:
        if tensor.name not in found:
            raise ExportError(
                f"{component}: {tensor.name}: this input is expected in the graph, the exporter dropped it"
            )
        for axis in (0, *(index + 1 for index in sorted(tensor.dynamic))):
            if not found[tensor.name][axis].dim_param:
                what = "batch axis" if axis == 0 else f"axis {axis}"
                raise ExportError(f"{component}: {tensor.name}: a dynamic {what} is expected, got a fixed one")
    for value in model.graph.output:
        if not value.type.tensor_type.shape.dim[0].dim_param:
            raise ExportError(f"{component}: {value.name}: a dynamic batch axis is expected, got a fixed one")


def _declare_shapes(model: onnx.ModelProto, outputs: Sequence[TensorSpec]) -> None:
    """Say which axes of the outputs are dynamic: exporters cannot always derive it; that it is so is proven."""
    # What they noted of the tensors between may hold sizes of the example.
    del model.graph.value_info[:]
    found = {value.name: value for value in model.graph.output}
    for tensor in outputs:
        shape = found[tensor.name].type.tensor_type.shape
        del shape.dim[:]
        shape.dim.add().dim_param = "batch"
        for index, size in enumerate(tensor.shape):
            if index in tensor.dynamic:
                shape.dim.add().dim_param = f"{tensor.name}_{index + 1}"
            else:
                shape.dim.add().dim_value = size
