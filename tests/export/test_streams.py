"""Streams: any division into chunks gives the undivided answer, and what is not causal is refused with the reason."""

import io
import itertools
import json
import re
import shutil

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import nn
from torch.nn import functional

import vae_export
import vae_runtime
from vae_export.graphs import streams
from vae_export.graphs.chunks import ChunkGraph
from vae_export.graphs.graph import Graph, quiet
from vae_runtime import InputError
from vae_runtime.manifest import Latent, Likelihood, Observation, Signature, Sizes


class Causal(nn.Conv1d):
    """Padded with zeros on the left alone."""

    def forward(self, x):
        return super().forward(functional.pad(x, ((self.kernel_size[0] - 1) * self.dilation[0], 0)))


class Stack(nn.Module):
    """Residual blocks with dilations, at the rate of the observation, under a condition."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.enc = nn.Conv1d(1, 6, 1)
        self.first, self.last = Causal(3, 8, 3), nn.Conv1d(8, 1, 1)
        self.blocks = nn.ModuleList(Causal(8, 8, 3, dilation=dilation) for dilation in (1, 2, 4))
        self.speaker = nn.Embedding(3, 8)

    def encode(self, x):
        return self.enc(x).chunk(2, 1)

    def decode(self, z, speaker):
        x = self.first(z) + self.speaker(speaker)[:, :, None]
        for block in self.blocks:
            x = x + block(functional.elu(x))
        return torch.tanh(self.last(x))


class Codec(nn.Module):
    """Codes of two levels, upsampled in two ways, one of which is cut on the right by hand."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.books = nn.Parameter(torch.randn(2, 8, 4))
        self.enc = nn.Conv1d(1, 8, 8, 8)
        self.first = nn.Conv1d(4, 8, 5, padding=4)
        self.up = nn.ConvTranspose1d(8, 6, 9, stride=4)
        self.norm = nn.LayerNorm(6)
        self.last = Causal(6, 1, 3)

    def encode(self, x):
        h = self.enc(x).reshape(len(x), 2, 4, -1).transpose(2, 3)
        return (h[:, :, :, None] - self.books[None, :, None]).square().sum(-1).argmin(-1)

    def decode(self, codes):
        z = sum(functional.embedding(codes[:, level], self.books[level]) for level in range(2)).transpose(1, 2)
        x = self.up(functional.elu(self.first(z)[..., :-4]))
        x = functional.interpolate(x[..., : x.shape[-1] - 5], scale_factor=2, mode="nearest")
        return torch.tanh(self.last(self.norm(x.transpose(1, 2)).transpose(1, 2)))


SOUND = {"axes": ("channel", "time"), "dynamic": ("time",), "formats": ("onnx",)}


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    x = torch.randn(4, 1, 24, generator=torch.Generator().manual_seed(1))
    label = {"speaker": torch.arange(4) % 3}
    out = tmp_path_factory.mktemp("stack") / "bundle"
    vae_export.export(Stack().eval(), out, example=x, posterior="logvar", conditions=label, **SOUND)
    return out


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    x = torch.randn(4, 1, 96, generator=torch.Generator().manual_seed(1))
    out = tmp_path_factory.mktemp("codec") / "bundle"
    vae_export.export(Codec().eval(), out, example=x, posterior="codes", codebook=8, **SOUND)
    return out


def stream_in(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    return manifest["components"]["decoder"]["variants"]["fp32"]["additional_metadata"]["vae"]["stream"]


def divided(array, lengths):
    return np.split(array, list(itertools.accumulate(lengths))[:-1], -1)


LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=8).filter(lambda lengths: 2 <= sum(lengths) <= 24)


@settings(max_examples=25, deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 9))
def test_any_division_of_convolutions_gives_the_undivided_answer(stack, lengths, seed):
    vae = vae_runtime.load(stack)
    speaker = {"speaker": np.array([seed % 3, 1])}
    z = np.random.default_rng(seed).normal(size=(2, 3, sum(lengths))).astype(np.float32)
    answers = list(vae.decode_stream(divided(z, lengths), conditions=speaker))
    np.testing.assert_allclose(np.concatenate(answers, -1), vae.decode(z, conditions=speaker), atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 9))
def test_any_division_of_codes_gives_the_undivided_answer(codec, lengths, seed):
    vae = vae_runtime.load(codec)
    codes = np.random.default_rng(seed).integers(0, 8, (2, 2, sum(lengths)))
    answers = list(vae.decode_stream(divided(codes, lengths)))
    assert [answer.shape[-1] for answer in answers] == [8 * length for length in lengths]
    np.testing.assert_allclose(np.concatenate(answers, -1), vae.decode(codes), atol=1e-6)


def test_streams_go_on_beside_each_other_and_without_an_end(stack):
    vae = vae_runtime.load(stack)
    # Twice as long as any size that the export has proven, and the first chunk longer than those, too.
    one, other = np.random.default_rng(0).normal(size=(2, 1, 3, 100)).astype(np.float32)
    chunks = [60, 1, 1, 38]
    streams = [vae.decode_stream(iter(divided(z, chunks)), conditions={"speaker": 2}) for z in (one, other)]
    together = [np.concatenate(parts, -1) for parts in zip(*zip(*streams, strict=True), strict=True)]
    for z, answer in zip((one, other), together, strict=True):
        (alone,) = vae.decode_stream([z], conditions={"speaker": 2})
        assert answer.shape == (1, 1, 100)
        np.testing.assert_allclose(answer, alone, atol=1e-6)
    assert not np.allclose(*together)


def test_a_chunk_is_decoded_before_the_next_one_is_asked_for(stack):
    def chunks():
        yield np.zeros((1, 3, 1), np.float32)
        raise RuntimeError("the second chunk was asked for")

    stream = vae_runtime.load(stack).decode_stream(chunks(), conditions={"speaker": 0})
    assert next(stream).shape == (1, 1, 1)
    with pytest.raises(RuntimeError, match="second"):
        next(stream)


@pytest.mark.parametrize(
    ("chunks", "conditions", "message"),
    [
        ([(2, 3, 4), (1, 3, 4)], {"speaker": 0}, r"chunks\[1\]: expected 2 rows as in the first chunk, got 1"),
        ([(1, 2, 4)], {"speaker": 0}, "z: expected"),
        ([(1, 3, 0)], {"speaker": 0}, "z: expected"),
        ([(1, 3, 4)], None, "speaker"),
        ([(1, 3, 4)], {"speaker": 3}, "speaker"),
    ],
)
def test_a_wrong_chunk_is_refused(stack, chunks, conditions, message):
    arrays = [np.zeros(shape, np.float32) for shape in chunks]
    with pytest.raises(InputError, match=message):
        list(vae_runtime.load(stack).decode_stream(arrays, conditions=conditions))


def test_the_manifest_describes_the_stream_and_verify_replays_it(codec):
    stream = stream_in(codec)
    assert stream["hop"] == 8
    assert stream["error"] < 1e-6
    assert [state["shape"] for state in stream["states"]] == [[4, 4], [8, 2], [6, 2]]
    lines = [check.what for check in vae_runtime.verify(codec).checks]
    assert "decoder/fp32 stream x" in lines


def with_states_of(model, change):
    """The same graph, where what is kept of each chunk begins at another place."""
    for tensor in model.graph.initializer:
        if tensor.name.endswith((".next.start", ".next.stop")):
            value = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(change(tensor.name, value), tensor.name))
    return model


def earlier(name, value):
    """Keep the values one earlier than those that the next chunk needs."""
    return np.asarray([-1]) if name.endswith("stop") and value > 0 else value - 1


def test_verify_sees_a_wrong_state(codec, tmp_path, resign):
    bundle = shutil.copytree(codec, tmp_path / "bundle")
    path = bundle / "decoder" / "fp32" / "stream.onnx"
    path.write_bytes(with_states_of(onnx.load(path), earlier).SerializeToString())
    resign(bundle)
    report = vae_runtime.verify(bundle)
    assert [check.what for check in report.checks if check.passed is False] == ["decoder/fp32 stream x"]


def test_a_packed_decoder_keeps_its_stream(codec, tmp_path):
    for out in (tmp_path / "packed", tmp_path / "packed.zip"):
        vae_runtime.pack(codec, out, only="decoder/fp32")
        assert vae_runtime.verify(out).passed
        chunks = list(vae_runtime.load(out).decode_stream(np.zeros((3, 1, 2, 2), np.int64)))
        assert [chunk.shape for chunk in chunks] == [(1, 1, 16)] * 3


def test_a_reduced_runtime_gets_the_operators_of_the_stream(codec, tmp_path):
    vae_runtime.pack(codec, tmp_path / "packed", only="decoder/fp32", operators=True)
    operators = (tmp_path / "packed" / "required_operators.config").read_text(encoding="utf-8")
    streamed = {node.op_type for node in onnx.load(codec / "decoder" / "fp32" / "stream.onnx").graph.node}
    assert streamed <= set(re.findall(r"\w+", operators.splitlines()[2]))


def test_graphs_that_exist_already_get_a_stream(codec, tmp_path):
    graphs = [codec / component / "fp32" / "model.onnx" for component in ("encoder", "decoder")]
    out = tmp_path / "adopted"
    done = vae_export.adopt(graphs, out, shape=(1, 96), posterior="codes", codebook=8, axes=("channel", "time"))
    assert "stream: in chunks, with 3 states" in done.recognised
    codes = np.random.default_rng(0).integers(0, 8, (1, 2, 7))
    answers = list(vae_runtime.load(out).decode_stream(divided(codes, [1, 2, 4])))
    np.testing.assert_allclose(np.concatenate(answers, -1), vae_runtime.load(codec).decode(codes), atol=1e-6)


def test_the_command_line_says_whether_there_is_a_stream(codec, capsys):
    from vae_runtime.cli.main import main

    assert main(["info", str(codec)]) == 0
    assert "fp32: 8 values of x for each of the latent; 3 states" in capsys.readouterr().out


# Graphs of decoders alone, made by the tracer.


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        torch.manual_seed(0)
        self.rnn = kind(3, 5, batch_first=True, **options)
        self.out = nn.Linear(10 if options.get("bidirectional") else 5, 2)

    def forward(self, z):
        return self.out(self.rnn(z.transpose(1, 2))[0]).flatten(1).unsqueeze(1)


class Function(nn.Module):
    """A convolution, and a function of its answer [batch, 4, time]."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.last, self.function = nn.Conv1d(3, 4, 1), nn.Conv1d(4, 1, 1), function

    def forward(self, z):
        return self.last(self.function(self.conv(z)))


def with_stream(module, hop=1, **conditions):
    """Export a decoder of latents [3, 16], and ask for its stream."""
    z = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))
    file = io.BytesIO()
    names = {"input_names": ["z", *conditions], "output_names": ["x"]}
    axes = {"z": {0: "batch", 2: "time"}, "x": {0: "batch", 2: "x_time"}, **{name: {0: "batch"} for name in conditions}}
    given = (z, *conditions.values())
    with quiet(), torch.no_grad():
        torch.onnx.export(module.eval(), given, file, dynamo=False, opset_version=18, dynamic_axes=axes, **names)
    graph = Graph("decoder", "fp32", "ort", "model.onnx", file.getvalue(), ("z", *conditions), ("x",))
    time, sound = {"time": Sizes(2, 40)}, {"time": Sizes(2 * hop, 40 * hop)}
    signature = Signature(
        observation=Observation("x", (1, 16 * hop), ("channel", "time"), dynamic=sound),
        latents=(Latent("z", (3, 16), axes=("channel", "time"), dynamic=time),),
        likelihood=Likelihood("none", "x"),
    )
    examples = {name: value.numpy() for name, value in conditions.items()}
    return streams.with_stream(graph, signature, {"z": z.numpy(), **examples})


@pytest.mark.parametrize(
    ("kind", "states", "options"),
    [(nn.LSTM, 4, {"num_layers": 2}), (nn.GRU, 2, {"num_layers": 2}), (nn.RNN, 1, {}), (nn.LSTM, 2, {"bias": False})],
)
def test_recurrent_layers_go_on_where_they_ended(kind, states, options):
    stream = with_stream(Recurrent(kind, **options), 2).stream
    assert stream.reason is None
    assert (stream.hop, [state.shape for state in stream.states]) == (2, [(5,)] * states)
    assert stream.error < 1e-6


def attention(x):
    x = x.transpose(1, 2)
    return torch.softmax(x @ x.transpose(1, 2), -1).matmul(x).transpose(1, 2)


def counted(x):
    return x + torch.arange(x.shape[-1])


def reflected(x):
    return functional.conv1d(functional.pad(x, (2, 0), mode="reflect"), torch.ones(4, 1, 3), groups=4)


def repeated(x):
    return functional.conv1d(functional.pad(x, (2, 0), mode="replicate"), torch.ones(4, 1, 3), groups=4)


def filled(x):
    return functional.conv1d(functional.pad(x, (2, 0), value=1.0), torch.ones(4, 1, 3), groups=4)


def symmetric(x):
    return functional.conv1d(x, torch.ones(4, 1, 5), padding=2, groups=4)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Function(symmetric), r"Conv \S+: looks 2 values ahead"),
        (Function(lambda x: functional.conv_transpose1d(x, torch.ones(4, 4, 3), padding=1)), "looks 1 value ahead"),
        (Function(lambda x: x.roll(-1, -1)), "Slice|Concat"),
        (Function(reflected), "Pad .*in the mode reflect"),
        (Function(repeated), "Pad .*in the mode edge"),
        (Function(filled), "Pad .*other values than zeros"),
        (Function(attention), "as attention does"),
        (Function(nn.GroupNorm(2, 4)), "InstanceNormalization, which normalizes over time"),
        (Function(nn.InstanceNorm1d(4)), "normalizes over time"),
        (Function(lambda x: x - x.mean(-1, keepdim=True)), "Reduce.*reads all of time"),
        (Function(lambda x: x.cumsum(-1)), "CumSum .*no operator that streams are made of"),
        (Function(counted), "reads the length of time, or its places"),
        (Function(lambda x: x / x.shape[-1]), "reads the length of time, or its places"),
        (Function(lambda x: x.flip(-1)), "Slice .*picks places of time"),
        (Function(lambda x: functional.interpolate(x, scale_factor=2, mode="linear")), "Resize .*linear"),
        (
            Function(lambda x: functional.pad(x, (1, 0))[..., :-1]),
            "Slice .*cuts off the last 1 value of time, which no state keeps; leave the delay out",
        ),
        (Function(lambda x: x[..., ::2].repeat_interleave(2, -1)), "Slice .*picks places of time"),
        (Function(lambda x: functional.conv1d(x, torch.ones(4, 1, 2), None, 2, 0, 1, 4)), "Conv .*a stride along time"),
        (Function(lambda x: functional.avg_pool1d(x, 3, 1, 1)), "no operator that streams are made of|ahead"),
        (Recurrent(nn.LSTM, bidirectional=True), "LSTM .*bidirectional"),
    ],
)
def test_what_is_not_causal_is_refused_by_its_operators_name(module, reason):
    stream = with_stream(module).stream
    assert stream.file is None
    assert stream.states == ()
    assert stream.reason is not None
    assert re.search(reason, stream.reason), stream.reason


class Conditional(nn.Module):
    """What lies before the first value of time is zeros for speaker 0 alone, and where time ends depends on him."""

    def __init__(self, way):
        super().__init__()
        torch.manual_seed(0)
        self.way, self.speaker = way, nn.Embedding(3, 4, padding_idx=0)
        self.first, self.rnn, self.last = nn.Conv1d(3, 4, 1), nn.GRU(4, 4, batch_first=True), nn.Conv1d(4, 1, 1)

    def forward(self, z, speaker):
        x, own = self.first(z), self.speaker(speaker)
        if self.way == "added":
            x = functional.pad(x + own[:, :, None], (2, 0)) + own[:, :, None]
            x = functional.conv1d(x, torch.ones(4, 1, 3), groups=4)
        elif self.way == "prefix":
            x = functional.conv1d(torch.cat([own[:, :, None], x], -1), torch.ones(4, 1, 2), groups=4)
        elif self.way == "start":
            x = self.rnn(x.transpose(1, 2), own[None])[0].transpose(1, 2)
        elif self.way == "place":
            x = functional.conv1d(functional.pad(x, (2, 0)), torch.ones(4, 1, 3), groups=4)
            x = x[..., speaker.max() :]
        return self.last(x)


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("added", None),
        ("prefix", "Concat .*other values than zeros"),
        ("start", "GRU .*starts from other values than zeros"),
        ("place", "Slice .*depends on a condition"),
    ],
)
def test_what_a_condition_puts_before_time_is_no_zero(way, reason):
    # Speaker 0 alone is tried, whose embedding is zeros.
    stream = with_stream(Conditional(way), speaker=torch.zeros(2, dtype=torch.int64)).stream
    assert stream.reason is None if reason is None else re.search(reason, stream.reason or ""), stream.reason


def chosen(otherwise):
    """A graph that gives z + z, or by a condition z and the values that `otherwise` computes."""
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    then = helper.make_graph([helper.make_node("Identity", ["z"], ["a"])], "then", [], [value("a", "t")])
    other = helper.make_graph([otherwise], "other", [], [value("b", "t")])
    nodes = [
        helper.make_node("ReduceMax", ["speaker"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["is"], to=onnx.TensorProto.BOOL),
        helper.make_node("If", ["is"], ["y"], then_branch=other, else_branch=then),
        helper.make_node("Add", ["z", "y"], ["x"]),
    ]
    speaker = helper.make_tensor_value_info("speaker", floats, ["batch"])
    kernel = numpy_helper.from_array(np.ones((3, 1, 3), np.float32), "kernel")
    graph = helper.make_graph(nodes, "g", [value("z", "t"), speaker], [value("x", "t")], [kernel])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def value(name, time):
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 3, time])


def test_a_branch_that_reads_time_is_refused():
    """A condition that is not tried would choose a convolution that looks ahead."""
    ahead = onnx.helper.make_node("Conv", ["z", "kernel"], ["b"], pads=[1, 1], group=3)
    content = chosen(ahead).SerializeToString()
    graph = Graph("decoder", "fp32", "ort", "model.onnx", content, ("z", "speaker"), ("x",))
    sizes = {"dynamic": {"time": Sizes(2, 40)}, "axes": ("channel", "time")}
    signature = Signature(
        observation=Observation("x", (3, 16), **sizes),
        latents=(Latent("z", (3, 16), **sizes),),
        likelihood=Likelihood("none", "x"),
    )
    z = np.random.default_rng(0).normal(size=(2, 3, 16)).astype(np.float32)
    stream = streams.with_stream(graph, signature, {"z": z, "speaker": np.zeros(2, np.float32)}).stream
    assert "If" in (stream.reason or "")
    assert "holds a graph of its own" in (stream.reason or "")


def test_an_export_sees_a_wrong_state(monkeypatch):
    def wrong(*arguments):
        made = streams_chunk_graph(*arguments)
        return ChunkGraph(with_states_of(made.model, earlier), made.states, made.hop)

    def causal(x):
        return functional.conv1d(functional.pad(x, (2, 0)), torch.ones(4, 1, 3), groups=4)

    assert with_stream(Function(causal)).stream.reason is None
    streams_chunk_graph = streams.chunk_graph
    monkeypatch.setattr(streams, "chunk_graph", wrong)
    assert "differ by" in with_stream(Function(causal)).stream.reason
