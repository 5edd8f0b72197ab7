"""Make small ONNX graphs, as other tools write them."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

random = np.random.default_rng(0)
FLOAT, HALF, INT = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64


def saved(path, nodes, inputs, outputs, weights=(), opset=17):
    """Write a graph of plain nodes; inputs and outputs are (name, type, sizes)."""
    values = [[helper.make_tensor_value_info(*each) for each in each_side] for each_side in (inputs, outputs)]
    tensors = [numpy_helper.from_array(array, name) for name, array in dict(weights).items()]
    graph = helper.make_graph([helper.make_node(*node[:3], **(node[3] if node[3:] else {})) for node in nodes],
                              "g", *values, tensors)  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], producer_name="test"), path)
    return path


def floats(*shape, dtype=np.float32):
    return (0.3 * random.normal(size=shape)).astype(dtype)


def encoder(
    path, out="latent_parameters", channels=8, axes=("b", 3, "h", "w"), kind=FLOAT, taken="sample", stride=2, **further
):
    """Convolutions that divide height and width, as optimum exports an encoder."""
    dtype = np.float16 if kind == HALF else np.float32
    nodes = [
        ("Conv", [taken, "k"], ["c"], {"strides": [stride] * 2, "kernel_shape": [stride] * 2}),
        ("Tanh", ["c"], [out]),
    ]
    ends = [(taken, kind, axes)], [(out, kind, ["b", channels, "h2", "w2"])]
    return saved(path, nodes, *ends, {"k": 5 * floats(channels, 3, stride, stride, dtype=dtype)}, **further)


def decoder(path, out="sample", end="Identity", kind=FLOAT, taken="latent_sample", stride=2):
    dtype = np.float16 if kind == HALF else np.float32
    strides = {"strides": [stride] * 2, "kernel_shape": [stride] * 2}
    nodes = [("ConvTranspose", [taken, "k"], ["c"], strides), (end, ["c"], [out])]
    ends = [(taken, kind, ["b", 4, "h", "w"])], [(out, kind, ["b", 3, "h2", "w2"])]
    return saved(path, nodes, *ends, {"k": floats(4, 3, stride, stride, dtype=dtype)})


def dense(path, names, outputs, inputs=("x", 6), kind=FLOAT):
    """A layer for each output, [b, size]; `outputs` are the operators at their ends by name."""
    (name, size), nodes, weights = inputs, [], {}
    for number, (out, end) in enumerate(outputs.items()):
        weights[f"w{number}"] = floats(size, names[out])
        nodes += [("MatMul", [name, f"w{number}"], [f"m{number}"]), (end, [f"m{number}"], [out])]
    ends = [(name, kind, ["b", size])], [(out, kind, ["b", names[out]]) for out in outputs]
    return saved(path, nodes, *ends, weights)
