"""Divisions of integers by sizes: bounded, so that the runtime takes them, and with the same answers."""

import re

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import vae_export
import vae_runtime
from vae_export import ExportError
from vae_export.graphs.divisions import bound_divisors
from vae_runtime.errors import BundleError
from vae_runtime.graph_check import check_graph

SIZES = {"x": (1, 3, 4)}


def graph_of(*lines, integers=(), **constants):
    """A graph of x [batch, 3, width] and y, with a line for each node: "result = Operator(inputs) attribute=1"."""
    nodes = []
    for line in lines:
        result, operator, inputs, attributes = re.fullmatch(r"(\w+) = (\w+)\((.*)\)(.*)", line).groups()
        given = dict(pair.split("=") for pair in attributes.split())
        nodes.append(
            helper.make_node(
                operator, inputs.split(" "), [result], **{name: int(value) for name, value in given.items()}
            )
        )
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, "width"])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, ["n"])],
        tensors,
        value_info=[helper.make_tensor_value_info(name, TensorProto.INT64, None) for name in integers],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def answers(model):
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return [session.run(None, {"x": np.ones((2, 3, width), np.float32)})[0].tolist() for width in (4, 5, 9)]


PIXELS = ("all = Shape(x)", "number = Size(x)", "pixels = Range(zero number one)")
NUMBERS = {"zero": 0, "one": 1, "two": 2, "three": 3}
BOUNDED = {
    "a size, as PyTorch's current exporter writes it": (
        "part = Shape(x) start=2 end=3", "size = Squeeze(part)", "y = Div(pixels size)",
    ),
    "a size, as the older one writes it": ("size = Gather(all two)", "y = Mod(pixels size)"),
    "the number of pixels": (
        "a = Gather(all one)", "b = Gather(all two)", "size = Mul(a b)", "y = Div(pixels size)",
    ),
    "a product of sizes": ("size = ReduceProd(all) keepdims=0", "y = Mod(pixels size)"),
    "a size after a convolution": (
        "width = Gather(all two)", "less = Sub(width three)", "half = Div(less two)", "size = Add(half one)",
        "y = Div(pixels size)",
    ),
    "a size without a border": ("width = Gather(all two)", "size = Sub(width three)", "y = Div(pixels size)"),
    "one size in a list, as the older one writes it": (
        "part = Shape(x) start=2 end=3", "size = Concat(part) axis=0", "y = Div(pixels size)",
    ),
    "what sizes are divided by": ("size = Gather(all two)", "y = Div(all size)"),
    "a shape of a tensor in between": (
        "flat = Flatten(x) axis=1", "sizes = Shape(flat)", "size = Gather(sizes one)", "y = Div(pixels size)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BOUNDED)
def test_a_divisor_that_follows_from_sizes_is_bounded(name):
    model = graph_of(*PIXELS, *BOUNDED[name], **NUMBERS)
    expected = answers(model)
    with pytest.raises(BundleError, match="expected a division of floating-point numbers"):
        check_graph(model.SerializeToString(), "graph", {})
    bound_divisors(model, SIZES)
    check_graph(model.SerializeToString(), "graph", {})
    assert answers(model) == expected


def test_one_bound_is_for_all_divisions_by_a_size():
    model = graph_of(*PIXELS, "size = Gather(all two)", "a = Div(pixels size)", "b = Mod(pixels size)", "y = Add(a b)",
                     **NUMBERS)  # fmt: skip
    bound_divisors(model, SIZES)
    assert [node.op_type for node in model.graph.node].count("Max") == 1


@pytest.mark.parametrize(
    "lines",
    [("y = Div(pixels two)",), ("f = Exp(x)", "g = Div(f f)", "y = Cast(g) to=7")],
    ids=["a constant", "floating-point numbers"],
)
def test_other_divisions_stay(lines):
    model = graph_of(*PIXELS, *lines, **NUMBERS)
    before = model.SerializeToString()
    bound_divisors(model, SIZES)
    assert model.SerializeToString() == before


REFUSED = {
    "a size less more than it is": (
        ("width = Gather(all two)", "less = Sub(width three)", "size = Sub(less two)", "y = Div(pixels size)"),
        r"node  \(Div\): expected a divisor of integers of at least 1, got one of at least -1; .*max\(size, 1\)",
    ),
    "numbers of an input": (
        ("size = Cast(x) to=7", "y = Mod(size size)"),
        r"\(Mod\).*, got one that follows from no sizes; divide by torch.clamp\(divisor, min=1\)",
    ),
    "numbers with an upper bound": (
        ("whole = Cast(x) to=7", "size = Clip(whole  three)", "y = Mod(size size)"),
        "got one that follows from no sizes",
    ),
    "sizes with a negative upper bound": (
        ("width = Gather(all two)", "size = Clip(width one minus)", "y = Mod(pixels size)"),
        "got one of at least -1",
    ),
    "a negative multiple": (
        ("width = Gather(all two)", "size = Mul(width minus)", "y = Div(pixels size)"),
        "got one that follows from no sizes",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_divisors_of_integers_are_refused(name):
    lines, message = REFUSED[name]
    model = graph_of(*PIXELS, *lines, integers=["size"], minus=-1, **NUMBERS)
    with pytest.raises(ExportError, match=message):
        bound_divisors(model, SIZES)


@pytest.mark.parametrize(
    "lines",
    [("width = Gather(all two)", "less = Sub(width nine)", "size = Max(less one)", "y = Div(pixels size)"),
     ("whole = Cast(x) to=7", "flat = ReduceSum(whole) keepdims=0", "size = Clip(flat one)", "y = Mod(pixels size)")],
    ids=["max(size, 1)", "torch.clamp"],
)  # fmt: skip
def test_the_divisors_that_a_refusal_advises_are_accepted(lines):
    model = graph_of(*PIXELS, *lines, integers=["size"], nine=9, **NUMBERS)
    expected = answers(model)
    bound_divisors(model, SIZES)
    check_graph(model.SerializeToString(), "graph", {})
    assert answers(model) == expected


class Positions(nn.Module):
    """Adds the row and the column of each pixel, which it computes of their number."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.down, self.up = nn.Conv2d(1, 4, 3, 2, 1), nn.ConvTranspose2d(2, 1, 2, 2)

    def encode(self, x):
        hidden = self.down(x)
        height, width = hidden.shape[2:]
        number = torch.arange(height * width)
        row = number // width
        column = number - row * width
        return (hidden.flatten(2) + row / 8 - column / 9).unflatten(2, (height, width)).chunk(2, 1)

    def decode(self, z):
        return self.up(z)


def test_a_model_that_divides_by_a_dynamic_size_is_exported(tmp_path):
    model = Positions()
    x = torch.rand(2, 1, 8, 12, generator=torch.Generator().manual_seed(1))
    vae_export.export(
        model, tmp_path / "b", example=x, posterior="logvar", dynamic=("height", "width"), formats=("onnx",)
    )
    vae = vae_runtime.load(tmp_path / "b")
    other = np.random.default_rng(0).random((1, 1, 10, 6), np.float32)
    with torch.no_grad():
        expected = model.encode(torch.from_numpy(other))[0].numpy()
    np.testing.assert_allclose(vae.encode(other).mean, expected, atol=1e-5)
