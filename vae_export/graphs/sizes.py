"""Infer the sizes of an ONNX graph's tensors, as expressions in the names of its dynamic axes."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import onnx
import sympy
from onnx import numpy_helper
from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

from .nodes import NodeIndex


def infer_sizes(model: onnx.ModelProto) -> dict[str, list[Any]]:
    """Return each tensor's sizes as sympy expressions in the dynamic axes; nothing if not all can be derived."""
    # The exporter's notes on intermediate tensors may hold sizes of the example.
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    del copied.graph.value_info[:]
    graph = NodeIndex(copied)
    for node in graph.nodes:
        # The inference knows only tensors as values of a Constant.
        value = graph.constant(node.output[0]) if node.op_type == "Constant" else None
        if value is not None:
            node.CopyFrom(
                onnx.helper.make_node("Constant", [], list(node.output), value=numpy_helper.from_array(value))
            )
    try:
        # `infer_shapes` does the same, but leaves a file in the working directory where it fails.
        inference = SymbolicShapeInference(2**31 - 1, False, False, 0)
        inference._preprocess(copied)
        complete = False
        while inference.run_:
            complete = inference._infer_impl()
        inference._update_output_from_vi()
        inferred = inference.out_mp_.graph
        if not complete:
            return {}
        return {
            value.name: [_size(dim) for dim in value.type.tensor_type.shape.dim]
            for value in (*inferred.value_info, *inferred.input, *inferred.output)
        }
    except Exception:
        # Without sizes the graph simply stays as it is.
        return {}


def _size(dim: Any) -> Any:
    return _expression(dim.dim_param) if dim.dim_param else sympy.Integer(dim.dim_value)


@lru_cache
def _expression(text: str) -> Any:
    names = {name: sympy.Symbol(name, positive=True) for name in re.findall(r"[A-Za-z_]\w*", text)}
    known = {name: getattr(sympy, name) for name in ("floor", "ceiling", "Max", "Min")}
    return sympy.parse_expr(text, local_dict={**names, **known})
