"""The sizes of an ONNX graph's tensors, as expressions in the names of its dynamic axes."""

from __future__ import annotations

import re
from typing import Any

import onnx
import sympy
from onnx import numpy_helper
from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

from .nodes import NodeIndex


def infer_sizes(model: onnx.ModelProto) -> dict[str, list[Any]]:
    """The sizes of tensors as expressions in the names of the dynamic axes; none where they cannot be derived."""
    # What the exporter noted of the tensors between may hold sizes of the example.
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    del copied.graph.value_info[:]
    graph = NodeIndex(copied)
    for node in graph.nodes:
        # Of a Constant the inference knows tensors alone.
        value = graph.constant(node.output[0]) if node.op_type == "Constant" else None
        if value is not None:
            node.CopyFrom(
                onnx.helper.make_node("Constant", [], list(node.output), value=numpy_helper.from_array(value))
            )
    try:
        # As `infer_shapes` does, which leaves a file in the working directory where it cannot derive all.
        inference = SymbolicShapeInference(2**31 - 1, False, False, 0)
        inference._preprocess(copied)
        whole = False
        while inference.run_:
            whole = inference._infer_impl()
        inference._update_output_from_vi()
        inferred = inference.out_mp_.graph
        if not whole:
            return {}
        return {
            value.name: [_size(dim) for dim in value.type.tensor_type.shape.dim]
            for value in (*inferred.value_info, *inferred.input, *inferred.output)
        }
    except Exception:
        # What cannot be derived is not known, and the graph stays as it is.
        return {}


def _size(dim: Any) -> Any:
    if not dim.dim_param:
        return sympy.Integer(dim.dim_value)
    names = {name: sympy.Symbol(name, positive=True) for name in re.findall(r"[A-Za-z_]\w*", dim.dim_param)}
    known = {name: getattr(sympy, name) for name in ("floor", "ceiling", "Max", "Min")}
    return sympy.parse_expr(dim.dim_param, local_dict={**names, **known})
