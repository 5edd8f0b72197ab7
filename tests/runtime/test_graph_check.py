"""Graphs are checked before ONNX Runtime reads a byte: each of these is refused, or accepted, for its own reason."""

import itertools

import numpy as np
import pytest

from vae_runtime.errors import BundleError
from vae_runtime.graph_check import check_graph

FLOAT, INT, LONG, STRING = 1, 6, 7, 8


class Parts:
    """The parts of a small model x = Exp(z), which a test replaces one by one."""

    def __init__(self, onnx):
        self.o = onnx
        self.nodes = [self.node("Exp", ["z"], ["x"])]
        self.inputs, self.outputs = [onnx.value("z", ["batch", 3])], [onnx.value("x", ["batch", 3])]
        self.tensors = []
        self.ir, self.opset = 8, 18
        self.in_graph = self.in_model = b""

    def node(self, operator, inputs, outputs, *attributes, domain=""):
        o = self.o
        node = o.field(1, *inputs) + o.field(2, *outputs) + o.field(4, operator) + o.field(5, *attributes)
        return node + (o.field(7, domain) if domain else b"")

    def attribute(self, name, kind, content):
        return self.o.field(1, name) + content + self.o.field(20, kind)

    def graph(self):
        o = self.o
        graph = o.field(1, *self.nodes) + o.field(2, "graph") + o.field(5, *self.tensors)
        return graph + o.field(11, *self.inputs) + o.field(12, *self.outputs) + self.in_graph

    def bytes(self):
        o = self.o
        opset = o.field(2, self.opset)
        return o.field(1, self.ir) + o.field(7, self.graph()) + o.field(8, opset) + self.in_model

    def after(self, *nodes, tensors=()):
        """Put nodes before the last one, with tensors."""
        self.nodes = [*nodes, *self.nodes]
        self.tensors = [*self.tensors, *tensors]


def grow(operator, *constants, inputs=("z",)):
    """A node whose output has a size of its own; the constants are its further inputs."""

    def change(parts):
        names = [f"c{index}" for index in range(len(constants))]
        tensors = [
            parts.o.tensor(name, values, LONG if np.asarray(values).dtype.kind == "i" else FLOAT)
            for name, values in zip(names, constants, strict=True)
        ]
        parts.after(parts.node(operator, [*inputs, *names], ["y"]), tensors=tensors)

    return change


def operator(name, domain=""):
    return lambda parts: parts.after(parts.node(name, ["z"], ["y"], domain=domain))


def branches(content):
    """An If with branches around the content of a graph."""

    def change(parts):
        o = parts.o
        graphs = [parts.attribute(f"{side}_branch", 5, o.field(6, content(parts))) for side in ("then", "else")]
        parts.after(parts.node("If", ["c"], ["y"], *graphs))
        parts.inputs = [*parts.inputs, o.value("c", [], 9)]

    return change


def deep(parts, depth=12):
    o = parts.o
    graph = o.field(1, parts.node("Exp", ["z"], ["q"])) + o.field(12, o.value("q", [3]))
    for level in range(depth):
        graphs = [parts.attribute(f"{side}_branch", 5, o.field(6, graph)) for side in ("then", "else")]
        graph = o.field(1, parts.node("If", ["c"], [f"q{level}"], *graphs)) + o.field(12, o.value(f"q{level}", [3]))
    return graph


def setting(**changes):
    return lambda parts: vars(parts).update(changes)


def adding(where, *fields):
    return lambda parts: setattr(parts, where, b"".join(parts.o.field(number, value) for number, value in fields))


def tensor(*fields, name="w"):
    def change(parts):
        parts.tensors = [parts.o.field(8, name) + b"".join(parts.o.field(*field) for field in fields)]

    return change


def doubling(parts):
    names = ["z", *(f"d{level}" for level in range(60))]
    parts.after(*(parts.node("Concat", [a, a], [b], parts.attribute("axis", 2, parts.o.field(3, 1)))
                  for a, b in itertools.pairwise(names)))  # fmt: skip


def entry(onnx, key, value):
    return onnx.field(1, key) + onnx.field(2, value)


def metadata(key):
    return lambda parts: setattr(parts, "in_model", parts.o.field(14, entry(parts.o, key, "1")))


def twice(parts):
    parts.after(parts.node("Exp", ["z"], ["x"]))


def backwards(parts):
    parts.nodes = [parts.node("Exp", ["y"], ["x"]), parts.node("Exp", ["z"], ["y"])]


def circle(parts):
    parts.nodes = [parts.node("Add", ["z", "x"], ["y"]), parts.node("Exp", ["y"], ["x"])]


def attributes(*each):
    return lambda parts: parts.after(
        parts.node("Selu", ["z"], ["y"], *(parts.attribute(name, kind, content) for name, kind, content in each))
    )


def divide(operator, divisor=None):
    """A division of integers; the divisor is a constant, or computed of z."""

    def change(parts):
        o = parts.o
        to = parts.attribute("to", 2, o.field(3, LONG))
        whole = parts.node("Cast", ["z"], ["i"], to)
        tensors = [] if divisor is None else [o.tensor("c", divisor, LONG)]
        parts.after(whole, parts.node(operator, ["i", "i" if divisor is None else "c"], ["y"]), tensors=tensors)

    return change


def divide_by(operator, *bounds, inputs=("i",)):
    """A division of integers by what `operator` makes of integers and these constants."""

    def change(parts):
        o = parts.o
        names = [f"c{index}" for index in range(len(bounds))]
        parts.after(
            parts.node("Cast", ["z"], ["i"], parts.attribute("to", 2, o.field(3, LONG))),
            parts.node(operator, [*inputs, *names], ["s"]),
            parts.node("Mod", ["i", "s"], ["y"]),
            tensors=[o.tensor(name, bound, LONG) for name, bound in zip(names, bounds, strict=True)],
        )

    return change


def divide_by_stored(kind, number):
    """A division by a constant whose number is in the field of 32 bits, however many bits it has."""

    def change(parts):
        o = parts.o
        constant = o.field(1, 1) + o.field(2, kind) + o.field(5, o.field(1, number)[1:]) + o.field(8, "c")
        whole = parts.node("Cast", ["z"], ["i"], parts.attribute("to", 2, o.field(3, kind)))
        parts.after(whole, parts.node("Div", ["i", "c"], ["y"]), tensors=[constant])

    return change


def divide_by_filled(*types):
    """A division of integers by a ConstantOfShape whose attributes "__" and "value" have these types and bytes."""

    def change(parts):
        o = parts.o
        to = parts.attribute("to", 2, o.field(3, LONG))
        values = [o.field(5, o.field(1, 1) + o.field(2, kind) + o.field(9, b"\1" * size)) for kind, size in types]
        attributes = [parts.attribute(name, 4, value) for name, value in zip(("__", "value"), values, strict=True)]
        parts.after(
            parts.node("Cast", ["z"], ["i"], to),
            parts.node("Shape", ["z"], ["s"]),
            parts.node("ConstantOfShape", ["s"], ["c"], *attributes),
            parts.node("Div", ["i", "c"], ["y"]),
        )

    return change


def sized(name, kind, content, operator, inputs):
    """A node with a constant c whose value is an attribute."""
    return lambda parts: parts.after(
        parts.node("Constant", [], ["c"], parts.attribute(name, kind, content)),
        parts.node(operator, inputs, ["y"]),
        tensors=[parts.o.tensor("zero", 0.0), parts.o.tensor("one", 1.0)],
    )


def quantized(parts):
    o = parts.o
    parts.after(
        parts.node("QLinearSigmoid", ["q", "s", "zero", "s", "zero"], ["y"], domain="com.microsoft"),
        tensors=[o.tensor("q", [1] * 8, LONG), o.tensor("s", [0.5] * 8), o.tensor("zero", [1], LONG)],
    )
    parts.in_model = o.field(8, entry_opset(o))


def with_microsoft(*nodes, **tensors):
    """Nodes of com.microsoft after constants of these values and types; each node is an operator and its inputs."""

    def change(parts):
        o = parts.o
        parts.after(
            *(parts.node(name, inputs, [f"y{i}"], domain="com.microsoft") for i, (name, *inputs) in enumerate(nodes)),
            tensors=[o.tensor(name, *each) for name, each in tensors.items()],
        )
        parts.in_model = o.field(8, entry_opset(o))

    return change


def packed(operator, *counts, **numbers):
    """A product with weights packed into bytes, whose further inputs have these numbers of elements."""

    def change(parts):
        o = parts.o
        names = [f"w{index}" for index in range(len(counts))]
        attributes = [parts.attribute(name, 2, o.field(3, number)) for name, number in numbers.items()]
        node = parts.node(operator, ["z", *names], ["y"], *attributes, domain="com.microsoft")
        parts.after(node, tensors=[o.tensor(name, [1.0] * count) for name, count in zip(names, counts, strict=True)])
        parts.in_model = o.field(8, entry_opset(o))

    return change


def transform(operator, *inputs, before="Unsqueeze", **tensors):
    """A transform of z, which has three axes then, or maybe none."""

    def change(parts):
        o = parts.o
        parts.after(
            parts.node(before, ["z", "last"] if before == "Unsqueeze" else ["z"], ["signal"]),
            parts.node(operator, ["signal", *inputs], ["y"]),
            tensors=[o.tensor("last", [-1], LONG), *(o.tensor(name, *each) for name, each in tensors.items())],
        )

    return change


def sized_by(source, operator, *inputs):
    """A node whose size the node `source` makes of z."""

    def change(parts):
        to = [parts.attribute("to", 2, parts.o.field(3, LONG))] if source == "Cast" else []
        parts.after(
            parts.node(source, ["z"], ["s"], *to),
            parts.node(operator, inputs, ["y"]),
            tensors=[parts.o.tensor("zero", 0, LONG)],
        )

    return change


def size_of_a_branch(parts):
    branches(lambda p: p.o.field(1, p.node("Cast", ["z"], ["q"])) + p.o.field(12, p.o.value("q", [3])))(parts)
    cast = parts.nodes[0].replace(b"\x12\x01y", b"\x12\x01s")
    parts.nodes = [cast, parts.node("Expand", ["z", "s"], ["y"]), *parts.nodes[1:]]


def split(parts, number):
    parts.after(parts.node("Split", ["z"], ["a", "b"], parts.attribute("num_outputs", 2, parts.o.field(3, number))))


def floats(tag, *values):
    return b"".join(bytes([tag]) + np.float32(value).tobytes() for value in values)


def branches_of_types(parts):
    """A name that is a float in one branch and an integer in the next."""
    o = parts.o
    cast = parts.attribute("to", 2, o.field(3, LONG))
    out = o.field(12, o.field(1, "r"))
    first = o.field(1, parts.node("Exp", ["z"], ["q"]), parts.node("Exp", ["q"], ["r"])) + out
    second = o.field(1, parts.node("Cast", ["z"], ["q"], cast), parts.node("Div", ["q", "q"], ["r"])) + out
    graphs = [
        parts.attribute(name, 5, o.field(6, content))
        for name, content in (("then_branch", first), ("else_branch", second))
    ]
    parts.after(parts.node("If", ["c"], ["y"], *graphs))
    parts.inputs = [*parts.inputs, o.value("c", [], 9)]


def division_after_branches(*operators):
    """A division by what an If gives, whose branches end in these operators."""

    def change(parts):
        o = parts.o
        to = parts.attribute("to", 2, o.field(3, LONG))
        graphs = [
            parts.attribute(
                name,
                5,
                o.field(
                    6,
                    o.field(1, parts.node(operator, ["z"], ["r"], *([to] if operator == "Cast" else [])))
                    + o.field(12, o.field(1, "r")),
                ),
            )
            for name, operator in zip(("then_branch", "else_branch"), operators, strict=True)
        ]
        parts.after(parts.node("If", ["c"], ["r"], *graphs), parts.node("Div", ["r", "r"], ["y"]))
        parts.inputs = [*parts.inputs, o.value("c", [], 9)]

    return change


def enlarged(count):
    """So many Resize in a row, each of which makes four values of one."""

    def change(parts):
        names = ["z", *(f"r{number}" for number in range(count))]
        nodes = [parts.node("Resize", [before, "", "s"], [after]) for before, after in itertools.pairwise(names)]
        parts.after(*nodes, parts.node("Identity", names[-1:], ["y"]), tensors=[parts.o.tensor("s", [2.0, 2.0])])

    return change


REFUSED = {
    # What ends the process in ONNX Runtime.
    "integers by what a graph computes": (divide("Div"), r"Div.*: expected a division of floating-point numbers"),
    "remainders by what a graph computes": (divide("Mod"), "expected a division of floating-point numbers"),
    "integers by -1": (divide("Div", [3, -1]), "by constants other than 0 and -1"),
    "integers by 0": (divide("Div", [0]), "by constants other than 0 and -1"),
    "integers of one branch": (division_after_branches("Exp", "Cast"), "expected a division of floating-point numbers"),
    "a division by indices": (
        lambda p: p.after(
            p.node("TopK", ["z", "k"], ["a", "b"]),
            p.node("Div", ["b", "b"], ["y"]),
            tensors=[p.o.tensor("k", [1], LONG)],
        ),
        "expected a division of floating-point numbers",
    ),
    "integers by what another attribute hides": (divide_by_filled((FLOAT, 4), (LONG, 8)), "a division of floating"),
    "integers by a maximum of 0": (divide_by("Max", 0), "expected a division of floating-point numbers"),
    "integers by a maximum of nothing": (divide_by("Max", inputs=("i", "i")), "or by Max or Clip with a constant"),
    "integers by a minimum": (divide_by("Min", 1), "expected a division of floating-point numbers"),
    "integers by a clip above": (divide_by("Clip", 5, inputs=("i", "")), "a division of floating-point numbers"),
    "integers by a clip to 0": (divide_by("Clip", 1, 0), "expected a division of floating-point numbers"),
    "integers by a sum with a positive number": (divide_by("Add", 1), "expected a division of floating-point numbers"),
    "integers by -1 of 32 bits": (divide_by_stored(INT, 2**32 - 1), "expected a division of floating-point numbers"),
    "integers by -1 of 8 bits": (divide_by_stored(3, 255), "expected a division of floating-point numbers"),
    "integers in the next branch": (branches_of_types, "expected a division of floating-point numbers"),
    "too few weights": (packed("MatMulNBits", 31, 4, K=3, N=4, block_size=16), "of 32 elements as input 1"),
    "too few scales": (packed("MatMulNBits", 32, 3, K=3, N=4, block_size=16), "of 4 elements as input 2"),
    "too few zero points": (
        packed("MatMulNBits", 64, 8, 3, K=17, N=4, block_size=16),
        "an initializer of 4 elements as input 3",
    ),
    "too few weights of 8 bits": (
        packed("MatMulNBits", 32, 4, K=3, N=4, block_size=16, bits=8),
        "an initializer of 64 elements as input 1",
    ),
    "weights without a size": (packed("MatMulNBits", 32, 4, K=3), "expected N, K and block_size of at least 1"),
    "too few weights of a table": (packed("MatMulBnb4", 5, 1, K=3, N=4, block_size=16), "of 6 elements as input 1"),
    "too few maxima": (packed("MatMulBnb4", 9, 1, K=3, N=6, block_size=16), "of 2 elements as input 2"),
    "positions": (operator("RotaryEmbedding", "com.microsoft"), "an operator that is allowed"),
    "a scale of another shape": (quantized, "expected a constant of one number as input 1, got 's'"),
    "weights of one axis": (
        lambda p: (
            p.after(
                p.node("DynamicQuantizeMatMul", ["z", "w", "s"], ["y"], domain="com.microsoft"),
                tensors=[p.o.tensor("w", [1] * 3, LONG), p.o.tensor("s", [1.0])],
            ),
            setattr(p, "in_model", p.o.field(8, entry_opset(p.o))),
        ),
        "expected an initializer of rank 2 with elements as input 1, got 'w'",
    ),
    "weights without elements": (
        with_microsoft(("DynamicQuantizeMatMul", "z", "w", "s"), w=(np.zeros((0, 2), np.int64), LONG), s=([1.0],)),
        "expected an initializer of rank 2 with elements as input 1, got 'w'",
    ),
    "a convolution without weights": (
        lambda p: p.after(
            p.node("QLinearConv", ["q", "s", "n", "w", "s", "n", "s", "n"], ["y"]),
            tensors=[p.o.tensor("w", np.zeros(0), LONG), p.o.tensor("s", 1.0), *(p.o.tensor(n, 1, LONG) for n in "qn")],
        ),
        "QLinearConv.*expected an initializer with elements as input 3, got 'w'",
    ),
    "weights of one axis for integers": (
        with_microsoft(("MatMulIntegerToFloat", "q", "w", "s", "s"), q=([1] * 4, LONG), w=([1] * 4, LONG), s=([1.0],)),
        "MatMulIntegerToFloat.*expected an initializer of rank 2 with elements as input 1, got 'w'",
    ),
    "a zero point left out": (
        with_microsoft(("QLinearSigmoid", "q", "s", "n", "s"), q=([1], LONG), s=([0.5],), n=([1], LONG)),
        "QLinearSigmoid.*expected 5 inputs, got 4",
    ),
    "a transform of a number": (transform("DFT", before="ReduceSum"), "DFT.*expected an input 0 that has axes"),
    "frames of a number": (
        transform("STFT", "n", before="ReduceSum", n=([2], LONG)),
        "STFT.*expected an input 0 that has axes",
    ),
    "a grid of numbers": (transform("GridSample", "signal", before="ReduceSum"), "GridSample.*input 0 that has axes"),
    "a window of no elements": (
        transform("STFT", "n", "w", n=([2], LONG), w=(np.zeros(0),)),
        "STFT.*expected an initializer of rank 1 with elements as input 2, got 'w'",
    ),
    "an axis with an empty name": (transform("DFT", "", ""), "DFT.*expected an input 2 with a name, or none"),
    "a bias with an empty name": (
        lambda p: p.after(p.node("LayerNormalization", ["z", "s", ""], ["y"]), tensors=[p.o.tensor("s", [1.0] * 3)]),
        "LayerNormalization.*expected an input 2 with a name, or none",
    ),
    "parts of another number": (lambda p: split(p, 1), r"Split.*expected num_outputs of 2, .*got \[1\]"),
    **{
        f"{operator} by numbers": (change, f"{operator}.*sizes that follow from shapes as input {index}, got 's'")
        for operator, index, change in (
            ("Expand", 1, sized_by("Cast", "Expand", "z", "s")),
            ("ConstantOfShape", 0, sized_by("ArgMax", "ConstantOfShape", "s")),
            ("Range", 1, sized_by("ReduceMax", "Range", "zero", "s", "zero")),
            ("HannWindow", 0, sized_by("ReduceMax", "HannWindow", "s")),
        )
    },
    "a size of a branch": (size_of_a_branch, "Expand.*expected sizes that follow from shapes as input 1, got 's'"),
    "no groups": (attributes(("group", 2, b"")), "group of at least 1, got 0"),
    "batch_dims": (attributes(("batch_dims", 2, b"\x18" + b"\xff" * 9 + b"\x01")), "batch_dims from 0 to 16, got -1"),
    # Python's binding of ONNX Runtime fails on these.
    "a name that is no text": (lambda p: p.after(p.node("Exp", ["z"], [b"\xff"])), "expected a name in UTF-8"),
    "an axis that is no text": (
        lambda p: p.inputs.append(p.o.field(1, "i") + p.o.field(2, p.o.field(1, p.o.field(1, FLOAT) + p.o.field(
            2, p.o.field(1, p.o.field(2, b"\xff")))))),
        "a name of an axis in UTF-8",
    ),
    # Operators.
    "a random operator": (operator("RandomNormalLike"), r"node 0 \(RandomNormalLike ''\): expected an operator"),
    "Multinomial": (operator("Multinomial"), "'Multinomial'"),
    "Loop": (operator("Loop"), "'Loop'"),
    "Scan": (operator("Scan"), "'Scan'"),
    "a sequence": (operator("SequenceConstruct"), "'SequenceConstruct'"),
    "an optional": (operator("Optional"), "'Optional'"),
    "a string": (operator("StringConcat"), "'StringConcat'"),
    "another domain": (operator("Exp", "evil.example"), "'evil.example.Exp'"),
    "a context of a provider": (operator("EPContext", "com.microsoft"), "'com.microsoft.EPContext'"),
    "a random operator in a branch": (
        branches(lambda p: p.o.field(1, p.node("RandomUniform", [], ["q"])) + p.o.field(12, p.o.value("q", [3]))),
        "'RandomUniform'",
    ),
    "a terminal command": (operator("\x1b[31mred"), r"'\\x1b\[31mred'"),
    "training": (
        lambda p: p.after(p.node("Dropout", ["z", "", "t"], ["y"]), tensors=[p.o.tensor("t", [1], LONG)]),
        "Dropout that does not train",
    ),
    # Structure.
    "a local function": (adding("in_model", (25, b"")), "a known field of a model, got field 25"),
    "training information": (adding("in_model", (20, b"")), "field 20"),
    "a sparse tensor": (adding("in_graph", (15, b"")), "field 15"),
    "an unknown field": (adding("in_graph", (99, 1)), "field 99 of wire type 0"),
    "a wrong wire type": (adding("in_graph", (2, 1)), "field 2 of wire type 0"),
    "two graphs": (adding("in_model", (7, b"")), "field 7 of a model once"),
    "a field cut short": (setting(in_model=b"\x32\x05abc"), "cut short|ends within"),
    "an overlong integer": (setting(in_model=b"\x28\x80\x00"), "shortest form"),
    "an integer of 70 bits": (setting(in_model=b"\x28" + b"\xff" * 10 + b"\x01"), "an ONNX graph|shortest form"),
    "no IR version": (setting(ir=0), "an IR version from 3"),
    "a future IR version": (setting(ir=99), "an IR version"),
    "an old operator set": (setting(opset=1), "an operator set of ai.onnx from 9"),
    "a future operator set": (setting(opset=999), "an operator set of ai.onnx"),
    "an operator set twice": (
        lambda p: setattr(p, "in_model", p.o.field(8, p.o.field(2, 17))),
        "each operator set once",
    ),
    "options of ONNX Runtime": (metadata("ort_config"), "without options of ONNX Runtime, got 'ort_config'"),
    "metadata twice": (
        lambda p: setattr(p, "in_model", p.o.field(14, entry(p.o, "k", "1"), entry(p.o, "k", "2"))),
        "each key of metadata once",
    ),
    "much metadata": (
        lambda p: setattr(p, "in_model", p.o.field(14, *(entry(p.o, str(i), "") for i in range(999)))),
        "entries of metadata",
    ),
    "a name twice": (twice, "each name defined once, got 'x' twice"),
    "an input that nothing defines": (
        lambda p: p.after(p.node("Exp", ["nowhere"], ["y"])),
        "node 0 .*defined before, got 'nowhere'",
    ),
    "nodes out of order": (backwards, "defined before, got 'y'"),
    "a circle": (circle, "defined before, got 'x'"),
    "an output that nothing defines": (lambda p: p.outputs.append(p.o.value("y", [3])), "outputs that a node defines"),
    "an output twice": (lambda p: p.outputs.append(p.o.value("x", ["batch", 3])), "each output once"),
    "no outputs": (setting(outputs=[]), "a graph with outputs"),
    "strings as an input": (lambda p: p.inputs.append(p.o.value("s", [3], STRING)), "a tensor of numbers"),
    "deep branches": (branches(deep), "branches at most 8 deep"),
    "many nodes": (
        lambda p: setattr(p, "nodes", [p.node("Exp", ["z"], [f"y{i}"]) for i in range(20_000)] + p.nodes),
        "at most 16384 nodes, got 20001",
    ),
    "a long name": (lambda p: p.after(p.node("Exp", ["z"], ["y" * 9999])), "a name of at most 4096 bytes"),
    # Attributes.
    "an attribute twice": (attributes(*[("alpha", 2, b"")] * 2), "each attribute with a name, once"),
    "an attribute without a name": (attributes(("", 2, b"")), "each attribute with a name"),
    "an attribute of another type": (attributes(("alpha", 2, b"\x15\0\0\0\0")), "value of the attribute 'alpha'"),
    "an attribute of no type": (attributes(("alpha", 0, b"")), "an attribute of a known type"),
    "a graph in another operator": (attributes(("alpha", 5, b"\x32\0")), "an attribute of a known type"),
    "pads beyond reason": (
        attributes(("pads", 7, b"\x40\x80\x80\x80\x80\x08")),
        "pads of at most 65536",
    ),
    # Tensors.
    "a tensor of strings": (tensor((1, 1), (2, STRING), (6, b"text")), "tensor|field 6"),
    "a tensor of an unknown type": (tensor((1, 1), (2, 77), (9, b"\0" * 4)), "a tensor of numbers, got one of type 77"),
    "a tensor of too few values": (tensor((1, 4), (2, FLOAT), (9, b"\0" * 12)), "tensor 'w': expected 4 values of 32"),
    "a tensor of too many values": (tensor((1, 2), (2, FLOAT), (9, b"\0" * 12)), "expected 2 values of 32 bits"),
    "a tensor without values": (tensor((1, 4), (2, FLOAT)), "expected 4 values, got none"),
    "a tensor with values in two places": (tensor((1, 1), (2, FLOAT), (9, b"\0" * 4), (4, b"\0" * 4)), "in one field"),
    "a tensor with values in a wrong place": (tensor((1, 1), (2, FLOAT), (7, b"\0")), "in one field of its type"),
    "a tensor of a negative size": (tensor((1, 2**64 - 1), (2, FLOAT)), "axes of possible sizes"),
    "a tensor of an absurd size": (tensor((1, 2**40), (1, 2**40), (2, FLOAT)), "axes of possible sizes"),
    "a tensor without a name": (tensor((1, 1), (2, FLOAT), (9, b"\0" * 4), name=""), "expected a name"),
    # Sizes that constants alone give.
    "ConstantOfShape": (grow("ConstantOfShape", [2**20, 2**20], inputs=()), r"ConstantOfShape.*, got 1099511627776"),
    "Expand": (grow("Expand", [2**31, 3]), "tensors of at most"),
    "Tile": (grow("Tile", [2**20, 2**20]), "tensors of at most"),
    "Range": (grow("Range", 0, 2**40, 1, inputs=()), "tensors of at most"),
    "Range by nothing": (grow("Range", 0, 2**40, 0, inputs=()), "sizes that are numbers"),
    "Range to infinity": (grow("Range", 0.0, np.inf, 1.0, inputs=()), "sizes that are numbers"),
    "Pad": (grow("Pad", [2**20, 2**20, 0, 0]), "tensors of at most"),
    "Resize by scales": (grow("Resize", [1.0, 1e12], inputs=("z", "")), "tensors of at most"),
    "Resize to sizes": (grow("Resize", [2**20, 2**20], inputs=("z", "", "")), "tensors of at most"),
    "OneHot": (grow("OneHot", 2**40, [0.0, 1.0]), "tensors of at most"),
    "a window": (grow("HannWindow", 2**40, inputs=()), "tensors of at most"),
    "a limit as an attribute": (
        sized("value_float", 1, floats(0x15, 1e12), "Range", ["zero", "c", "one"]),
        "tensors of at most",
    ),
    "scales as an attribute": (
        sized("value_floats", 6, floats(0x3D, 1, 1e12), "Resize", ["z", "", "c"]),
        "tensors of at most",
    ),
    "sizes beyond reason": (grow("ConstantOfShape", [2] * 99, inputs=()), "at most 16 axes, got 99 numbers"),
    "a grid": (grow("AffineGrid", [1, 1, 2**20, 2**20]), "tensors of at most"),
    "many integers": (
        lambda p: p.after(
            *(p.node("Exp", ["z"], [f"y{i}"], p.attribute("a", 7, p.o.field(8, b"\1" * 16_000))) for i in range(40))
        ),
        "at most 524288 fields and integers",
    ),
    "a row of Resize": (enlarged(14), r"node 1\d \(Resize ''\): expected tensors of at most"),
    "doubling": (doubling, r"node \d+ \(Concat ''\): expected tensors of at most"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_graph_may_have_is_refused(onnx_bytes, name):
    change, message = REFUSED[name]
    check_graph(Parts(onnx_bytes).bytes(), "graph", {})
    parts = Parts(onnx_bytes)
    change(parts)
    with pytest.raises(BundleError, match=message) as caught:
        check_graph(parts.bytes(), "graph", {})
    text = str(caught.value)
    assert text.startswith("graph: ")
    assert text.isprintable()
    assert len(text) < 400


ACCEPTED = {
    "an operator of a quantizer": lambda p: (
        p.after(p.node("QuickGelu", ["z"], ["y"], domain="com.microsoft")),
        setattr(p, "in_model", p.o.field(8, entry_opset(p.o))),
    ),
    "a branch that reads the graph around it": branches(
        lambda p: p.o.field(1, p.node("Exp", ["z"], ["q"])) + p.o.field(12, p.o.value("q", [3]))
    ),
    "a short row of Resize": enlarged(10),
    "optional inputs": grow("Resize", [1.0, 2.0], inputs=("z", "")),
    "a size that a graph may have": grow("Tile", [1, 1000]),
    "metadata": metadata("author"),
    "a tensor of no elements": tensor((1, 0), (2, FLOAT)),
    "halves in the field of integers": tensor((1, 2), (2, 10), (5, b"\x80\x78\x80\x78")),
    "an input with its initial value": lambda p: (
        p.inputs.append(p.o.value("w", [1])),
        tensor((1, 1), (2, FLOAT), (9, b"\0" * 4))(p),
    ),
    "a division by a constant": divide("Div", [2]),
    "a division by a constant of 32 bits": divide_by_stored(INT, 5),
    "a division by at least 1": divide_by("Max", [1, 2, 3]),
    "a division by a first maximum": divide_by("Max", 1, inputs=("i", "i")),
    "a division by at least 2": divide_by("Clip", 2),
    "a division by 1 to 5": divide_by("Clip", 1, 5),
    "a division of numbers": lambda p: p.after(p.node("Sqrt", ["z"], ["s"]), p.node("Div", ["s", "s"], ["y"])),
    "a division by a later part": lambda p: p.after(
        p.node("Split", ["z"], ["a", "b"], p.attribute("num_outputs", 2, p.o.field(3, 2))),
        p.node("Div", ["b", "b"], ["y"]),
    ),
    "a division by a state": lambda p: p.after(
        p.node("LSTM", ["z", "z", "z"], ["a", "b", "c"]), p.node("Div", ["b", "c"], ["y"])
    ),
    "a division by what both branches give": division_after_branches("Exp", "Tanh"),
    "a division by floats beside another attribute": divide_by_filled((LONG, 8), (FLOAT, 4)),
    "a remainder of numbers": lambda p: p.after(p.node("Mod", ["z", "z"], ["y"])),
    "a number that is left out": sized("value_float", 1, b"", "Range", ["zero", "c", "one"]),
    "Dropout that passes on": lambda p: p.after(p.node("Dropout", ["z"], ["y"])),
    "a size that follows from a shape": sized_by("Shape", "Expand", "z", "s"),
    "parts": lambda p: split(p, 2),
    "a transform": transform("DFT", "", "one", one=(1, LONG)),
    "frames": transform("STFT", "n", "w", n=(2, LONG), w=([1.0, 1.0],)),
    "frames in a window that is cast": lambda p: p.after(
        p.node("Unsqueeze", ["z", "last"], ["signal"]),
        p.node("CastLike", ["w", "signal"], ["window"]),
        p.node("STFT", ["signal", "n", "window"], ["y"]),
        tensors=[p.o.tensor("last", [-1], LONG), p.o.tensor("n", 2, LONG), p.o.tensor("w", [1.0, 1.0])],
    ),
    "a normalization": lambda p: p.after(
        p.node("LayerNormalization", ["z", "s"], ["y"]), tensors=[p.o.tensor("s", [1.0] * 3)]
    ),
    "packed weights": packed("MatMulNBits", 64, 8, 4, K=17, N=4, block_size=16),
    "weights of a table": packed("MatMulBnb4", 6, 1, K=3, N=4, block_size=16),
    "quantized weights": with_microsoft(
        ("DynamicQuantizeMatMul", "z", "w", "s"), w=(np.ones((3, 2), np.int64), LONG), s=([1.0],)
    ),
    "packed axes": lambda p: tensor((1, b"\x02\x01"), (2, FLOAT), (9, b"\0" * 8))(p),
}


def entry_opset(onnx):
    return onnx.field(1, "com.microsoft") + onnx.field(2, 1)


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_exporters_write_is_accepted(onnx_bytes, name):
    parts = Parts(onnx_bytes)
    ACCEPTED[name](parts)
    check_graph(parts.bytes(), "graph", {})


def test_the_limit_of_sizes_follows_from_the_bundle(onnx_bytes):
    parts = Parts(onnx_bytes)
    grow("Tile", [2**13, 2**13])(parts)
    with pytest.raises(BundleError, match="tensors of at most"):
        check_graph(parts.bytes(), "graph", {}, elements=10)
    check_graph(parts.bytes(), "graph", {}, elements=2**18)
