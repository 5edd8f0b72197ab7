"""Rewritten graphs against the plain ones, on random weights: sizes that are odd, borders, and what must stay."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from vae_export.graphs.nodes import prune
from vae_export.graphs.rewrites import rewritten, shapes_first
from vae_export.graphs.sub_pixel import sub_pixel


def graph_of(nodes, weights, shape, *, outputs=("y",)):
    """A model of one float32 input x with a dynamic batch; outputs of any shape."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, results, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def answers(model, x):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


def operators(model):
    return [node.op_type for node in model.graph.node]


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def upsampled(weight, *, resize=None, conv=None, scales=(1, 1, 2, 2), shape=(3, "height", "width"), bias=True):
    """Nearest upsampling and a convolution."""
    how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    weights = {"s": np.asarray(scales, np.float32), "w": weight, "b": numbers(len(weight), seed=1)}
    padding = [size // 2 for size in weight.shape[2:]]
    nodes = [
        helper.make_node("Resize", ["x", "", "s"], ["u"], **how | (resize or {})),
        helper.make_node("Conv", ["u", "w", *(["b"] if bias else [])], ["y"], **{"pads": padding * 2} | (conv or {})),
    ]
    return graph_of(nodes, weights, shape)


def assert_same(plain, changed, x, bound=1e-5):
    for one, other in zip(answers(plain, x), answers(changed, x), strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(other, one, rtol=0, atol=bound * max(1, np.abs(one).max()))


# Upsampling and convolution.


@pytest.mark.parametrize(
    ("kernel", "pads", "scale"),
    [
        ((3, 3), (1, 1, 1, 1), 2),
        ((3, 3), (0, 0, 0, 0), 2),
        ((3, 3), (2, 2, 2, 2), 2),
        ((3, 3), (0, 1, 2, 1), 2),
        ((5, 5), (2, 2, 2, 2), 2),
        ((2, 2), (1, 0, 0, 1), 2),
        ((3, 1), (1, 0, 1, 0), 2),
        ((3, 3), (1, 1, 1, 1), 3),
        ((7, 7), (3, 3, 3, 3), 4),
    ],
)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 7)])
def test_upsampling_and_convolution_are_one_transposed_convolution(kernel, pads, scale, size):
    plain = upsampled(numbers(4, 3, *kernel), conv={"pads": pads}, scales=(1, 1, scale, scale))
    changed, lines = rewritten(plain)
    assert operators(changed) == ["ConvTranspose"]
    assert lines == ("1 × nearest upsampling and convolution made one transposed convolution",)
    if all(2 * scale + before + after >= k for k, before, after in zip(kernel, pads[:2], pads[2:], strict=True)):
        assert_same(plain, changed, numbers(3, 3, *(max(2, edge) for edge in size), seed=2))


def test_weights_are_summed_in_float64_and_rounded_once():
    weight = numbers(2, 2, 3, 3)
    weight[0, 0] = [[1e8, 1, -1e8], [0, 0, 0], [0, 0, 0]]
    changed, _ = rewritten(upsampled(weight))
    (summed,) = (numpy_helper.to_array(t) for t in changed.graph.initializer if t.name.startswith("w"))
    # [inputs, outputs, 4, 4], mirrored: w2, w1 + w2, w0 + w1, w0
    np.testing.assert_array_equal(summed[0, 0, 3], np.float32([-1e8, 1 - 1e8, 1e8 + 1, 1e8]))
    wide = weight.astype(np.float64)
    np.testing.assert_array_equal(summed[1, 1, 1, 1], np.float32(wide[1, 1, 1:, 1:].sum()))


def test_it_is_exact_at_the_borders_alone_too():
    """One input value beside each border, all others 0; with powers of 2 every sum is exact."""
    weight = 2.0 ** np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)
    plain = upsampled(weight, shape=(1, "height", "width"), bias=False)
    changed, _ = rewritten(plain)
    for row in range(4):
        for column in range(5):
            x = np.zeros((1, 1, 4, 5), np.float32)
            x[0, 0, row, column] = 1
            np.testing.assert_array_equal(answers(changed, x)[0], answers(plain, x)[0])


@pytest.mark.parametrize("rank", [1, 3])
def test_signals_and_volumes_are_upsampled_likewise(rank):
    plain = upsampled(
        numbers(4, 3, *[3] * rank), scales=(1, 1, *[2] * rank), shape=(3, *"abc"[:rank]), conv={"pads": [1] * 2 * rank}
    )
    changed, _ = rewritten(plain)
    assert operators(changed) == ["ConvTranspose"]
    assert_same(plain, changed, numbers(2, 3, *[5, 4, 3][:rank], seed=2))


@pytest.mark.parametrize(
    ("where", "how", "scale"),
    [
        ("asymmetric", "floor", 2),
        ("asymmetric", "floor", 3),
        ("asymmetric", "round_prefer_floor", 2),
        ("half_pixel", "round_prefer_floor", 2),
        ("half_pixel", "round_prefer_ceil", 2),
        ("half_pixel", "round_prefer_floor", 4),
    ],
)
def test_every_spelling_that_repeats_is_rewritten(where, how, scale):
    resize = {"coordinate_transformation_mode": where, "nearest_mode": how}
    plain = upsampled(numbers(4, 3, 3, 3), resize=resize, scales=(1, 1, scale, scale))
    changed, lines = rewritten(plain)
    assert lines
    assert_same(plain, changed, numbers(2, 3, 5, 4, seed=2))


@pytest.mark.parametrize(
    ("resize", "conv", "scales"),
    [
        ({"nearest_mode": "ceil"}, {}, (1, 1, 2, 2)),
        ({"nearest_mode": "round_prefer_ceil"}, {}, (1, 1, 2, 2)),
        ({"coordinate_transformation_mode": "half_pixel"}, {}, (1, 1, 2, 2)),
        ({"coordinate_transformation_mode": "align_corners"}, {}, (1, 1, 2, 2)),
        ({"mode": "linear"}, {}, (1, 1, 2, 2)),
        ({}, {}, (1, 1, 1.5, 2)),
        ({}, {}, (1, 1, 0.5, 0.5)),
        ({}, {}, (1, 1, 1, 1)),
        ({}, {"strides": [2, 2]}, (1, 1, 2, 2)),
        ({}, {"dilations": [2, 2]}, (1, 1, 2, 2)),
        ({}, {"pads": [3, 3, 3, 3]}, (1, 1, 2, 2)),
        ({}, {"auto_pad": "SAME_UPPER", "pads": None}, (1, 1, 2, 2)),
    ],
)
def test_what_is_not_known_to_be_exact_stays(resize, conv, scales):
    conv = {name: value for name, value in ({"pads": [1] * 4} | conv).items() if value is not None}
    weights = {"s": np.asarray(scales, np.float32), "w": numbers(4, 3, 3, 3)}
    how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"} | resize
    nodes = [
        helper.make_node("Resize", ["x", "", "s"], ["u"], **how),
        helper.make_node("Conv", ["u", "w"], ["y"], **conv),
    ]
    plain = graph_of(nodes, weights, (3, 6, 6))
    assert rewritten(plain) == (plain, ())


def test_groups_stay():
    plain = upsampled(numbers(4, 2, 3, 3), conv={"group": 2}, shape=(4, "height", "width"))
    assert rewritten(plain) == (plain, ())


def test_an_upsampling_that_is_also_used_elsewhere_stays():
    model = upsampled(numbers(3, 3, 3, 3))
    model.graph.node.append(helper.make_node("Add", ["y", "u"], ["z"]))
    model.graph.output.add().name = "z"
    assert rewritten(model) == (model, ())
    also = upsampled(numbers(3, 3, 3, 3))
    also.graph.output.add().name = "u"
    assert rewritten(also) == (also, ())


def test_an_upsampling_that_a_nested_graph_takes_stays():
    model = upsampled(numbers(3, 3, 3, 3))
    inner = helper.make_graph(
        [helper.make_node("Identity", ["u"], ["v"])], "then", [], [helper.make_tensor_value_info("v", 1, None)]
    )
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(True), "yes"))
    model.graph.node.append(helper.make_node("If", ["yes"], ["z"], then_branch=inner, else_branch=inner))
    model.graph.output.add().name = "z"
    assert rewritten(model) == (model, ())


def test_a_pointwise_convolution_moves_before_the_upsampling():
    plain = upsampled(numbers(5, 3, 1, 1))
    changed, lines = rewritten(plain)
    assert operators(changed) == ["Conv", "Resize"]
    assert lines == ("1 × 1×1 convolution moved before the nearest upsampling",)
    assert_same(plain, changed, numbers(2, 3, 5, 7, seed=2), bound=1e-6)
    padded = upsampled(numbers(5, 3, 1, 1), conv={"pads": [1, 1, 1, 1]})
    assert rewritten(padded) == (padded, ())


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("factor", [2, 3])
def test_sizes_that_are_computed_count_where_their_ratio_is_known(fixed, factor):
    """As exporters spell interpolate(size=2 · x.shape)."""
    constants = {"two": np.asarray([2], np.int64), "four": np.asarray([4], np.int64), "w": numbers(4, 3, 3, 3)}
    constants |= {"zero": np.asarray([0], np.int64), "by": np.asarray([factor], np.int64)}
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", "two"], ["outer"]),
        helper.make_node("Slice", ["shape", "two", "four"], ["inner"]),
        helper.make_node("Mul", ["inner", "by"], ["larger"]),
        helper.make_node("Concat", ["outer", "larger"], ["sizes"], axis=0),
        helper.make_node(
            "Resize", ["x", "", "", "sizes"], ["u"], mode="nearest", coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        ),
        helper.make_node("Conv", ["u", "w"], ["y"], pads=[1] * 4),
    ]  # fmt: skip
    plain = graph_of(nodes, constants, (3, 5, 4) if fixed else (3, "height", "width"))
    changed, _ = rewritten(plain)
    assert operators(changed) == ["ConvTranspose"]
    assert_same(plain, changed, numbers(2, 3, 5, 4, seed=2))


def test_sizes_of_no_fixed_ratio_stay():
    constants = {"sizes": np.asarray([1, 3, 12, 12], np.int64), "w": numbers(4, 3, 3, 3)}
    how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    nodes = [
        helper.make_node("Resize", ["x", "", "", "sizes"], ["u"], **how),
        helper.make_node("Conv", ["u", "w"], ["y"]),
    ]
    for shape in ((3, "height", "width"), (3, 5, 6)):
        plain = graph_of(nodes, constants, shape)
        assert rewritten(plain) == (plain, ())


# Batch normalisation.


def normalized(layer, weight, channels, shape, **attributes):
    statistics = {
        "gamma": numbers(channels, seed=3),
        "beta": numbers(channels, seed=4),
        "mean": numbers(channels, seed=5),
    }
    weights = {
        "w": weight,
        "b": numbers(channels, seed=6),
        **statistics,
        "var": np.abs(numbers(channels, seed=7)) + 0.1,
    }
    return graph_of(
        [
            helper.make_node(layer, ["x", "w", "b"], ["h"], **attributes),
            helper.make_node("BatchNormalization", ["h", *statistics, "var"], ["y"], epsilon=1e-3),
        ],
        weights,
        shape,
    )


@pytest.mark.parametrize(
    ("layer", "weight", "channels", "shape", "attributes"),
    [
        ("Conv", (4, 3, 3, 3), 4, (3, 5, 5), {}),
        ("Conv", (4, 1, 3, 3), 4, (2, 5, 5), {"group": 2}),
        ("ConvTranspose", (3, 4, 4, 4), 4, (3, 5, 5), {"strides": [2, 2]}),
        ("ConvTranspose", (4, 3, 3, 3), 6, (4, 5, 5), {"group": 2}),
        ("Gemm", (6, 4), 4, (6,), {}),
        ("Gemm", (4, 6), 4, (6,), {"transB": 1}),
    ],
)
def test_batch_normalization_is_folded_into_the_layer_before_it(layer, weight, channels, shape, attributes):
    plain = normalized(layer, numbers(*weight), channels, shape, **attributes)
    changed, lines = rewritten(plain)
    assert operators(changed) == [layer]
    assert lines == ("1 × batch normalization folded into the layer before it",)
    assert_same(plain, changed, numbers(3, *shape, seed=2))


def test_a_layer_without_bias_gets_one():
    plain = normalized("Conv", numbers(4, 3, 3, 3), 4, (3, 5, 5))
    del plain.graph.node[0].input[2]
    changed, _ = rewritten(plain)
    assert operators(changed) == ["Conv"]
    assert_same(plain, changed, numbers(3, 3, 5, 5, seed=2))


def test_batch_normalization_stays_where_folding_is_not_exact():
    scaled = normalized("Gemm", numbers(6, 4), 4, (6,), alpha=0.5)
    shared = normalized("Conv", numbers(4, 3, 3, 3), 4, (3, 5, 5))
    shared.graph.output.add().name = "h"
    training = normalized("Conv", numbers(4, 3, 3, 3), 4, (3, 5, 5))
    training.graph.node[1].attribute.append(helper.make_attribute("training_mode", 1))
    for plain in (scaled, shared, training):
        assert rewritten(plain) == (plain, ())


def test_weights_that_another_layer_takes_too_are_left_to_it():
    plain = normalized("Conv", numbers(3, 3, 3, 3), 3, (3, 5, 5), pads=[1] * 4)
    plain.graph.node.append(helper.make_node("Conv", ["y", "w"], ["z"]))
    plain.graph.output.add().name = "z"
    changed, _ = rewritten(plain)
    assert operators(changed) == ["Conv", "Conv"]
    assert_same(plain, changed, numbers(2, 3, 5, 5, seed=2))


# Shapes.


def test_a_shape_of_which_one_size_varies_is_made_a_constant():
    weights = {
        "zero": np.asarray([0], np.int64),
        "one": np.asarray([1], np.int64),
        "rest": np.asarray([3, 2, 2], np.int64),
    }
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", "one"], ["batch"]),
        helper.make_node("Concat", ["batch", "rest"], ["sizes"], axis=0),
        helper.make_node("Reshape", ["x", "sizes"], ["y"], allowzero=1),
    ]
    plain = graph_of(nodes, weights, (12,))
    changed, lines = rewritten(plain)
    assert operators(changed) == ["Reshape"]
    assert lines == ("1 × shape of a Reshape made a constant",)
    for batch in (0, 1, 5):
        np.testing.assert_array_equal(answers(changed, numbers(batch, 12))[0], answers(plain, numbers(batch, 12))[0])


def test_a_shape_of_several_unknown_sizes_stays():
    weights = {"order": np.asarray([3, 2, 1, 0], np.int64)}
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "order"], ["sizes"]),
        helper.make_node("Reshape", ["x", "sizes"], ["y"]),
    ]
    plain = graph_of(nodes, weights, (3, "height", "width"))
    assert rewritten(plain) == (plain, ())


def test_shapes_that_cannot_be_derived_leave_no_file_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nodes = [
        helper.make_node("NonZero", ["x"], ["found"]),
        helper.make_node("Shape", ["found"], ["shape"]),
        helper.make_node("Reshape", ["found", "shape"], ["again"]),
        helper.make_node("Unknown", ["again"], ["y"], domain="another"),
    ]
    plain = graph_of(nodes, {}, (3,))
    plain.opset_import.add(domain="another", version=1)
    monkeypatch.setattr("vae_export.graphs.sizes.SymbolicShapeInference._infer_impl", incomplete)
    assert rewritten(plain) == (plain, ())
    assert not list(tmp_path.iterdir())


def incomplete(self):
    self.run_ = False
    return False


def test_a_reshape_to_an_output_comes_before_the_activation():
    shape = {"shape": np.asarray([0, 2, 2], np.int64)}
    nodes = [
        helper.make_node("Neg", ["x"], ["n"]),
        helper.make_node("Sigmoid", ["n"], ["s"]),
        helper.make_node("Reshape", ["s", "shape"], ["y"]),
    ]
    plain = graph_of(nodes, shape, (4,))
    changed = shapes_first(plain)
    assert operators(changed) == ["Neg", "Reshape", "Sigmoid"]
    assert operators(plain) == ["Neg", "Sigmoid", "Reshape"]
    assert_same(plain, changed, numbers(3, 4))
    # Not where something else reads the activation, nor in the middle of a graph.
    nodes[1:] = [nodes[1], helper.make_node("Softmax", ["s"], ["t"]), helper.make_node("Add", ["s", "t"], ["a"])]
    others = graph_of([*nodes, helper.make_node("Reshape", ["s", "shape"], ["y"])], shape, (4,))
    assert shapes_first(others) == others
    middle = [helper.make_node("Sigmoid", ["x"], ["s"]), helper.make_node("Reshape", ["s", "shape"], ["r"])]
    others = graph_of([*middle, helper.make_node("Neg", ["r"], ["y"])], shape, (4,))
    assert shapes_first(others) == others


# Sub-pixel convolutions.


@pytest.mark.parametrize(
    ("kernel", "stride", "pads", "more", "groups"),
    [
        (4, 2, (1, 1, 1, 1), 0, 1),
        (3, 2, (1, 1, 1, 1), 1, 1),
        (3, 2, (1, 1, 1, 1), 0, 1),
        (2, 2, (0, 0, 0, 0), 0, 1),
        (5, 2, (2, 2, 2, 2), 1, 1),
        (6, 3, (1, 1, 1, 1), 0, 1),
        (6, 2, (2, 2, 2, 2), 0, 1),
        (4, 2, (0, 1, 2, 1), 0, 1),
        (4, 2, (1, 1, 1, 1), 0, 2),
        (3, 2, (0, 0, 0, 0), 1, 2),
        (3, 4, (0, 0, 0, 0), 0, 1),
    ],
)
def test_a_transposed_convolution_is_a_sub_pixel_convolution(kernel, stride, pads, more, groups):
    weights = {"w": numbers(4, 6 // groups, kernel, kernel), "b": numbers(6, seed=1)}
    attributes = {"strides": [stride] * 2, "pads": pads, "output_padding": [more] * 2, "group": groups}
    node = helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], **attributes)
    plain = graph_of([node], weights, (4, "height", "width"))
    changed, count = sub_pixel(plain)
    assert count == 1
    assert "ConvTranspose" not in operators(changed)
    assert "DepthToSpace" in operators(changed)
    for size in ((2, 3), (5, 7), (1, 1)):
        assert_same(plain, changed, numbers(2, 4, *size, seed=2))
    # Where another convolution follows and the sizes are known, with the channels as the last axis.
    node.output[0] = "h"
    weights["v"] = numbers(2, 6, 1, 1, seed=3)
    plain = graph_of([node, helper.make_node("Conv", ["h", "v"], ["y"])], weights, (4, 5, 7))
    changed, count = sub_pixel(plain)
    assert count == 1
    assert "ConvTranspose" not in operators(changed)
    assert ("DepthToSpace" in operators(changed)) == (groups > 1)
    assert_same(plain, changed, numbers(2, 4, 5, 7, seed=2))


@pytest.mark.parametrize(
    "attributes",
    [
        {"strides": [1, 1]},
        {"strides": [2, 1]},
        {"strides": [2, 2], "dilations": [2, 2]},
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        # More output padding than the phases reach.
        {"strides": [3, 3], "output_padding": [2, 2]},
    ],
)
def test_other_transposed_convolutions_stay(attributes):
    nodes = [helper.make_node("ConvTranspose", ["x", "w"], ["y"], **attributes)]
    plain = graph_of(nodes, {"w": numbers(4, 6, 3, 3)}, (4, 5, 5))
    assert sub_pixel(plain) == (plain, 0)


def test_a_named_one_is_kept_and_an_activation_goes_before_the_interleaving():
    nodes = [
        helper.make_node("ConvTranspose", ["x", "w"], ["h"], strides=[2, 2], pads=[1] * 4, name="first"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("ConvTranspose", ["r", "v"], ["y"], strides=[2, 2], pads=[1] * 4, name="last"),
    ]
    plain = graph_of(nodes, {"w": numbers(3, 4, 4, 4), "v": numbers(4, 2, 4, 4, seed=1)}, (3, "height", "width"))
    changed, count = sub_pixel(plain, {"last"})
    assert count == 1
    assert operators(changed) == ["Conv", "Relu", "DepthToSpace", "Slice", "ConvTranspose"]
    assert_same(plain, changed, numbers(2, 3, 5, 4, seed=2))
    whole, count = sub_pixel(plain)
    assert count == 2
    assert_same(plain, whole, numbers(2, 3, 5, 4, seed=2))
    fixed = graph_of(nodes, {"w": numbers(3, 4, 4, 4), "v": numbers(4, 2, 4, 4, seed=1)}, (3, 5, 4))
    changed, count = sub_pixel(fixed, {"last"})
    interleaved = ["Transpose", "Reshape", "Transpose", "Reshape", "Slice", "Transpose"]
    assert operators(changed) == ["Conv", "Relu", *interleaved, "ConvTranspose"]
    assert_same(fixed, changed, numbers(2, 3, 5, 4, seed=2))


def test_wide_ones_of_any_picture_are_split_and_others_stay():
    nodes = [
        helper.make_node("ConvTranspose", ["x", "w", "b"], ["h"], strides=[2, 2], pads=[1] * 4, name="wide"),
        helper.make_node("ConvTranspose", ["h", "v"], ["y"], strides=[2, 2], pads=[1] * 4, name="narrow"),
    ]
    weights = {"w": numbers(3, 32, 4, 4), "b": numbers(32, seed=1), "v": numbers(32, 2, 4, 4, seed=2)}
    plain = graph_of(nodes, weights, (3, "height", "width"))
    changed, lines = rewritten(plain)
    assert operators(changed) == ["Conv", "DepthToSpace", "Slice", "ConvTranspose"]
    assert lines == ("1 × transposed convolution of any picture made a convolution whose channels are interleaved",)
    for size in ((5, 7), (1, 1)):
        assert_same(plain, changed, numbers(2, 3, *size, seed=3))
    for shape in ((3, 64, 64), (3, 64, "width")):
        assert rewritten(graph_of(nodes, weights, shape))[1] == ()


def test_a_wide_upsampling_and_convolution_of_any_picture_is_one_convolution():
    plain = upsampled(numbers(32, 3, 3, 3))
    changed, lines = rewritten(plain)
    assert operators(changed) == ["Conv", "DepthToSpace", "Slice"]
    assert len(lines) == 2
    assert_same(plain, changed, numbers(2, 3, 5, 7, seed=2))


def test_pruning_leaves_what_leads_to_an_output():
    model = upsampled(numbers(4, 3, 3, 3))
    model.graph.node.append(helper.make_node("Relu", ["u"], ["unused"]))
    model.graph.initializer.append(numpy_helper.from_array(numbers(3), "unused weight"))
    prune(model)
    assert operators(model) == ["Resize", "Conv"]
    assert {tensor.name for tensor in model.graph.initializer} == {"s", "w", "b"}
