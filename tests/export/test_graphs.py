import io
import logging
import math
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import vae_export
import vae_runtime
from vae_export.errors import ExportError, ParityError
from vae_export.graphs.exporter_work import less_exporter_work
from vae_export.graphs.formats import make_graphs
from vae_export.graphs.graph import FORMATS, open_graph, quiet, reason_of
from vae_export.training.config import ModelConfig
from vae_export.training.model import VAE
from vae_export.understand.adapt import adapt, declared
from vae_export.understand.adapted import Adapted, run_module
from vae_export.understand.state import unchanged
from vae_runtime.manifest import Latent, Likelihood, Observation, Refusal, Signature

RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
SHAPE = (2, 8, 8)
# Both architectures and all likelihoods; gaussian and laplace decode alike.
KINDS = [
    ("mlp", "gaussian"),
    ("conv", "bernoulli"),
    pytest.param(("mlp", "bernoulli"), marks=pytest.mark.long),
    pytest.param(("conv", "laplace"), marks=pytest.mark.long),
]


def untrained(architecture, likelihood, latent=5):
    config = ModelConfig(
        architecture=architecture,
        observation_shape=SHAPE,
        latent=latent,
        hidden=(12,),
        channels=(4, 6),
        likelihood=likelihood,
        scale=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        vae = VAE(config)
        for parameter in vae.parameters():
            # Large enough for no output to be next to its bias.
            parameter.data += 0.1 * torch.randn_like(parameter)
    return vae.eval().requires_grad_(False)


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def made(request, tmp_path_factory):
    """The pure functions of an untrained VAE and the ONNX graphs of both, by component."""
    vae = untrained(*request.param)
    with unchanged(vae):
        adapted = adapt(vae, torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0)), declared(vae)[1])
        graphs, _ = make_graphs(adapted, ["onnx"], tmp_path_factory.mktemp("graphs"))
    return adapted, {graph.component: graph for graph in graphs}


def given(adapted, component, batch, scale=1.0):
    (tensor,) = adapted.signature.inputs(component)
    return scale * torch.randn(batch, *tensor.shape, generator=torch.Generator().manual_seed(batch))


def places():
    """Paths of this machine that nobody else should learn, and what betrays a source file."""
    import vae_export

    folders = {Path(vae_export.__file__).parents[1], Path.home(), Path(sys.prefix), Path(tempfile.gettempdir())}
    return [b"site-packages", *(str(folder).encode() for folder in folders)]


def found_in(content):
    return [place for place in places() if place in content]


def without_weights(content):
    """An ONNX file without the numbers of its weights, in which any bytes may stand."""
    model = onnx.load_from_string(content)
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")
    return model.SerializeToString()


def unstripped(adapted, component):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module, example = adapted.modules[component], adapted.given(component)
        return torch.onnx.export(module, example, dynamo=True, external_data=False, verbose=False).model_proto


def test_every_component_gets_an_onnx_graph(made):
    _, graphs = made
    assert list(graphs) == ["encoder", "decoder"]
    for graph in graphs.values():
        assert (graph.variant, graph.executor, graph.file) == ("fp32", "ort", "model.onnx")


def test_inputs_and_outputs_have_names_types_and_a_dynamic_batch(made):
    adapted, graphs = made
    latent = adapted.signature.latent.shape
    outputs = {"x": SHAPE, "logits": SHAPE} if adapted.signature.likelihood.kind == "bernoulli" else {"x": SHAPE}
    expected = {
        "encoder": ({"x": SHAPE}, {"mu": latent, "logvar": latent, "std": latent}),
        "decoder": ({"z": latent}, outputs),
    }
    for component, wanted in expected.items():
        graph = onnx.load_from_string(graphs[component].content).graph
        for values, shapes in zip((graph.input, graph.output), wanted, strict=True):
            assert [value.name for value in values] == list(shapes)
            for value in values:
                tensor = value.type.tensor_type
                assert tensor.elem_type == onnx.TensorProto.FLOAT
                batch, *sizes = tensor.shape.dim
                assert batch.dim_param == "batch"
                assert not batch.HasField("dim_value")
                assert tuple(size.dim_value for size in sizes) == shapes[value.name]


def test_versions_are_those_that_the_oldest_runtime_reads(made):
    for graph in made[1].values():
        model = onnx.load_from_string(graph.content)
        assert model.ir_version == 8
        assert [(item.domain, item.version) for item in model.opset_import] == [("", 18)]
        assert not model.functions
        onnx.checker.check_model(model, full_check=True)


def test_graphs_hold_no_randomness_and_all_of_their_weights(made):
    adapted, graphs = made
    for component, graph in graphs.items():
        model = onnx.load_from_string(graph.content)
        assert not {node.op_type for node in model.graph.node} & (RANDOM | {"Dropout"})
        assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in model.graph.initializer)
        stored = sum(math.prod(tensor.dims) for tensor in model.graph.initializer)
        part = getattr(adapted.modules[component].model, component)
        own = sum(weight.numel() for weight in part.parameters())
        # All of its own, and none of the other's.
        assert own <= stored < own + 50


def test_graphs_say_nothing_about_where_they_were_made(made):
    for graph in made[1].values():
        model = onnx.load_from_string(graph.content)
        parts = [model, model.graph, *model.graph.node, *model.graph.input, *model.graph.output]
        for part in [*parts, *model.graph.value_info, *model.graph.initializer]:
            assert not part.metadata_props
            assert not part.doc_string
        assert not found_in(graph.content)
        assert b".py" not in without_weights(graph.content)


def test_pytorch_s_exporter_is_left_as_it_was(made):
    exporter = pytest.importorskip("torch.onnx._internal.exporter._registration")
    passes = pytest.importorskip("torch.onnx._internal.exporter._fx_passes")
    shapes = pytest.importorskip("torch._subclasses.fake_impls")
    assert vars(exporter.ONNXRegistry)["from_torchlib"].__func__.__module__ == exporter.__name__
    assert passes.decompose_with_registry.__module__ == passes.__name__
    assert passes.insert_type_promotion_nodes.__module__ == passes.__name__
    for function in shapes.get_fast_op_impls().values():
        assert not getattr(function, "__module__", "").startswith("vae_export")


class Shapes(nn.Module):
    """Operators that a decomposition replaces, and that compute the same as they are."""

    def forward(self, x):
        a, b = functional.dropout(x.to(torch.float32), 0.5, False).chunk(2, -1)
        return (a.reshape(x.shape[0], -1) * torch.sigmoid(b).reshape(x.shape[0], -1)).softmax(-1)


class InPlace(nn.Module):
    """A change in place, which only a decomposition turns into what ONNX has."""

    def forward(self, x):
        y = x * 2
        y[:, 0].add_(1)
        return y + x


class Grouped(nn.Module):
    """Group normalizations, whose shapes PyTorch would find by a decomposition, and numbers of Python."""

    def __init__(self):
        super().__init__()
        self.of_rows, self.of_pixels = nn.GroupNorm(1, 3), nn.GroupNorm(3, 3, affine=False)

    def forward(self, x):
        return self.of_pixels(self.of_rows(x) / 2 + 1) * 3


class Mixed(nn.Module):
    """Numbers of two dtypes, of which ONNX takes only one."""

    def forward(self, x):
        return x + (x > 0.5).to(torch.int64)


class Positions(nn.Module):
    """Numbers of float32 alone, and a size by which they are divided."""

    def forward(self, x):
        rows = x.shape[0]
        return x + (torch.arange(0.5, rows, dtype=torch.float32) / rows)[:, None, None]


@pytest.mark.parametrize(
    ("model", "needed"),
    [(Shapes(), set()), (Grouped(), set()), (InPlace(), {"decompose_with_registry"}),
     (Mixed(), {"decompose_with_registry", "insert_type_promotion_nodes"}),
     (Positions(), {"insert_type_promotion_nodes"})],
)  # fmt: skip
def test_only_the_passes_that_change_something_run(model, needed, monkeypatch):
    passes = pytest.importorskip("torch.onnx._internal.exporter._fx_passes")
    runs = []

    def count(name):
        original = getattr(passes, name)
        monkeypatch.setattr(passes, name, lambda *given: runs.append(name) or original(*given))

    count("decompose_with_registry")
    count("insert_type_promotion_nodes")
    x, other = torch.rand(2, 3, 4), torch.rand(5, 3, 4)

    def exported():
        shapes = ({0: "batch"},)
        return torch.onnx.export(model, (x,), dynamo=True, dynamic_shapes=shapes, optimize=False, verbose=False)

    with quiet():
        whole = exported()
        assert sorted(runs) == ["decompose_with_registry", "insert_type_promotion_nodes"]
        runs.clear()
        with less_exporter_work():
            spared = exported()
    assert set(runs) == needed
    for program in (whole, spared):
        session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
        answer = session.run(None, {session.get_inputs()[0].name: other.numpy()})[0]
        np.testing.assert_allclose(answer, model(other).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_the_table_of_operators_is_built_once_until_a_library_adds_some(monkeypatch):
    registration = pytest.importorskip("torch.onnx._internal.exporter._registration")
    builds = []
    build = registration.ONNXRegistry.from_torchlib
    monkeypatch.setattr(
        registration.ONNXRegistry, "from_torchlib", classmethod(lambda cls, *a, **k: builds.append(1) or build(*a, **k))
    )

    def built():
        builds.clear()
        with less_exporter_work():
            registration.ONNXRegistry.from_torchlib(18)
        return len(builds)

    built()
    assert built() == 0
    assert torch.ops.a_library_of_this_test is not None
    assert (built(), built()) == (1, 0)


@pytest.mark.parametrize("branching", [False, True])
def test_a_graph_as_pytorch_leaves_it_says_where_it_was_made(branching):
    content = unstripped(encoding(Branching() if branching else Encode()), "encoder").SerializeToString()
    assert found_in(content)
    assert b".py" in without_weights(content)


def test_onnx_computes_what_pytorch_does_at_batches_that_were_not_traced(made):
    adapted, graphs = made
    for component, graph in graphs.items():
        for batch in (1, 5):
            x = given(adapted, component, batch)
            answers = open_graph(graph)([x.numpy()])
            for answer, expected in zip(answers, run_module(adapted.modules[component], [x]), strict=True):
                np.testing.assert_allclose(answer, expected.numpy(), rtol=1e-5, atol=2e-6)


def test_std_is_computed_in_the_graph(made):
    adapted, graphs = made
    _, logvar, std = open_graph(graphs["encoder"])([given(adapted, "encoder", 5, scale=3).numpy()])
    np.testing.assert_allclose(std, np.exp(logvar.astype(np.float64) / 2), rtol=1e-6)
    assert np.ptp(logvar) > 0.1
    assert "Exp" in [node.op_type for node in onnx.load_from_string(graphs["encoder"].content).graph.node]


def test_logits_go_on_where_the_mean_has_saturated(made):
    adapted, graphs = made
    if adapted.signature.likelihood.kind != "bernoulli":
        assert adapted.outputs("decoder") == ("x",)
        return
    z = given(adapted, "decoder", 7, scale=1000)
    x, logits = open_graph(graphs["decoder"])([z.numpy()])
    far = logits > 18
    assert far.sum() > 20
    assert len(np.unique(x[far])) == 1
    assert len(np.unique(logits[far])) > far.sum() // 2
    np.testing.assert_allclose(logits, run_module(adapted.modules["decoder"], [z])[1].numpy(), rtol=1e-5, atol=1e-3)


# The two formats of PyTorch, out of the trained bundle.


def archives(tiny_graphs):
    return {key: graph for key, graph in tiny_graphs.items() if graph.executor != "ort"}


def test_every_format_has_both_components(tiny_graphs):
    assert list(tiny_graphs) == [f"{c}/{form.variant}" for c in ("encoder", "decoder") for form in FORMATS.values()]


def test_archives_say_nothing_about_where_they_were_made(tiny_graphs):
    for key, graph in archives(tiny_graphs).items():
        with zipfile.ZipFile(io.BytesIO(graph.content)) as archive:
            assert archive.testzip() is None
            names = archive.namelist()
            records = {name: archive.read(name) for name in names}
        assert len(records) > 5, key
        for name, record in records.items():
            assert not found_in(name.encode() + record), (key, name)
            assert b"stack_trace" not in record, (key, name)
            assert b"nn_module_stack" not in record, (key, name)
            assert not name.endswith(".debug_pkl"), (key, name)


def test_an_archive_as_pytorch_leaves_it_says_where_it_was_made(tiny_adapted):
    file = io.BytesIO()
    with quiet(), unchanged(tiny_adapted.modules["decoder"].model):
        torch.jit.save(torch.jit.trace(tiny_adapted.modules["decoder"], tiny_adapted.given("decoder")), file)
    with zipfile.ZipFile(file) as archive:
        assert found_in(b"".join(archive.read(name) for name in archive.namelist()))


@pytest.mark.parametrize("batch", [1, 5])
def test_archives_load_with_pytorch_alone(tiny_graphs, tiny_adapted, batch):
    loaders = {
        "torchscript": torch.jit.load,
        "torch_export": lambda file: torch.export.load(file).module(),
    }
    for key, graph in archives(tiny_graphs).items():
        x = given(tiny_adapted, graph.component, batch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            answers = loaders[graph.executor](io.BytesIO(graph.content))(x)
        for answer, expected in zip(answers, run_module(tiny_adapted.modules[graph.component], [x]), strict=True):
            assert answer.shape[0] == batch
            torch.testing.assert_close(answer, expected, rtol=1e-5, atol=1e-6, msg=key)


# Modules that must not become graphs, and some that look like these.


class Encode(nn.Module):
    """x [batch, 5] → mu, logvar and std, to be spoilt."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 2)

    def posterior(self, x):
        mu = self.layer(x)
        return mu, mu + 1, mu + 2

    def forward(self, x):
        return self.posterior(x)


class Drawing(Encode):
    def forward(self, x):
        return self.posterior(x + torch.randn_like(x))


class Dropping(Encode):
    def forward(self, x):
        return self.posterior(nn.functional.dropout(x, 0.5, training=True))


class DrawingInABranch(Encode):
    def forward(self, x):
        return self.posterior(torch.cond(x.sum() > 0, lambda x: x + torch.randn_like(x), lambda x: x - 1.0, (x,)))


class OfTwo(Encode):
    def forward(self, x):
        return self.posterior(x.reshape(2, 5))


class OfThreeAlways(Encode):
    def forward(self, x):
        return self.posterior(torch.ones(3, 5))


class Failing(Encode):
    def forward(self, x):
        raise ValueError("the layer\nis broken")


class Resting(Encode):
    def forward(self, x):
        return self.posterior(nn.functional.dropout(x, 0.5, training=self.training))


class Checkpointed(Encode):
    def forward(self, x):
        rows = x.reshape(x.shape[0] * 5, 1) * torch.ones(x.shape[0] * 5, 1)
        return self.posterior(checkpoint(torch.relu, rows.reshape(-1, 5), use_reentrant=True))


class Lower(torch.autograd.Function):
    """The lower bound of a GDN layer."""

    @staticmethod
    def forward(ctx, x, bound):
        return x.clamp(min=bound)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class Bounded(Encode):
    def forward(self, x):
        return self.posterior(Lower.apply(x, -0.5))


class Detached(Encode):
    """Like a LightningModule without a trainer."""

    @property
    def trainer(self):
        raise RuntimeError("not attached to a trainer")

    def forward(self, x):
        return self.posterior(x)


class Initialized(Encode):
    """Like a codebook that is set at the first call; its flag and its numbers are buffers, which no input reaches."""

    def __init__(self):
        super().__init__()
        self.register_buffer("ready", torch.tensor([True]))
        self.register_buffer("levels", torch.tensor([2, 3]))

    def forward(self, x):
        if not self.ready:
            x = x.mean() + x
        for level in self.levels.tolist():
            x = x * level
        return self.posterior(x * float(torch.tensor([0.5, 2.0]).prod()) + self.levels.float().numpy().sum())


class BranchingFirst(Initialized):
    def forward(self, x):
        if x.abs().max() > 1000:
            x = x / 1000
        return super().forward(x)


class BranchingLate(Initialized):
    def forward(self, x):
        mu, *others = super().forward(x)
        return (mu if mu.sum() < 1000 else mu / 1000, *others)


class Counting(Encode):
    """The number is no input's, but the batch's."""

    def forward(self, x):
        return self.posterior(x * torch.arange(len(x)).tolist()[-1])


class Packing(Encode):
    def __init__(self):
        super().__init__()
        self.rows = nn.GRU(1, 5, batch_first=True)

    def forward(self, x):
        lengths = 1 + (x[:, 0].abs() > 0.5).long()
        packed = nn.utils.rnn.pack_padded_sequence(x[..., None], lengths, batch_first=True, enforce_sorted=False)
        return self.posterior(self.rows(packed)[1][-1])


class Compiled(Encode):
    def __init__(self):
        super().__init__()
        self.posterior = torch.compile(self.posterior, backend="eager")


class Branching(Encode):
    def forward(self, x):
        return self.posterior(torch.cond(x.sum() > 0, lambda x: 2.0 * x, lambda x: x - 1.0, (x,)))


class Taking(nn.Module):
    """A module as the exporter takes it: of any number of tensors."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *tensors):
        return self.module(*tensors)


def encoding(module):
    signature = Signature(
        observation=Observation("x", (5,), ("feature",)),
        latents=(Latent("z", (2,)),),
        likelihood=Likelihood("gaussian", scale=1.0),
    )
    return Adapted({"encoder": Taking(module).eval()}, signature, {"x": torch.ones(2, 5)})


class Unknown(nn.Module):
    """An operator that the older exporter has no translation of, in a module that the current one fails on."""

    def forward(self, x):
        if torch.compiler.is_exporting():
            raise RuntimeError("not this one")
        return torch.fft.fft(x).real


def encoder_of(adapted, folder):
    (graph, *_), _ = make_graphs(adapted, ["onnx"], folder)
    return graph.content


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (Drawing, "expected no random operator in a graph, got RandomNormalLike; draw noise outside"),
        (Dropping, "expected no random operator in a graph, got Dropout; draw noise outside"),
        (DrawingInABranch, "expected no random operator in a graph, got RandomNormalLike; draw noise outside"),
        # The older exporter freezes it without a word; that is for the comparison to find, see below.
        (OfTwo, "^encoder: PyTorch could not export it as pt2: Constraints violated"),
        (OfThreeAlways, "encoder: mu: expected a dynamic batch axis, got a fixed one"),
        (Failing, "^encoder: both of PyTorch's exporters failed; dynamo: the layer is broken; legacy: the layer"),
        (Unknown, "^encoder: both of PyTorch's exporters failed; dynamo: not this one; legacy: Exporting the operator"),
    ],
)
def test_a_module_that_breaks_the_contract_is_refused_in_one_line(module, words, tmp_path, capfd):
    with pytest.raises(ExportError, match=words) as caught:
        make_graphs(encoding(module()), FORMATS, tmp_path)
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 900
    assert capfd.readouterr() == ("", "")


def test_a_reason_shows_no_node_of_a_program():
    shown = (
        "Error when translating node %_to_copy : [num_users=1] = call_function[target=torch.ops.aten._to_copy.default]"
        "(args = (%complex_1,), kwargs = {dtype: torch.float32}). See the stack trace for more information."
    )
    assert reason_of(RuntimeError(shown)) == "Error when translating torch.ops.aten._to_copy.default"


def test_pytorch_says_nothing_while_it_is_kept_quiet(capsys):
    def speak():
        print("graph(%x)")
        warnings.warn("deprecated", DeprecationWarning, stacklevel=1)
        logger.error("stack")

    logger = logging.getLogger("torch._dynamo.output_graph")
    logger.setLevel(logging.DEBUG)
    stream = io.StringIO()
    logger.addHandler(handler := logging.StreamHandler(stream))
    try:
        with quiet():
            speak()
        assert (capsys.readouterr().out, stream.getvalue()) == ("", "")
        with pytest.warns(DeprecationWarning, match="deprecated"):
            speak()
        assert (capsys.readouterr().out, stream.getvalue()) == ("graph(%x)\n", "stack\n")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)


def test_what_the_older_exporter_freezes_the_comparison_finds(tmp_path):
    adapted = encoding(OfTwo())
    (graph,), _ = make_graphs(adapted, ["onnx"], tmp_path / "unproven")
    assert graph.exporter == "torch.onnx.export(dynamo=False)"

    def require(graph):
        given = np.ones((3, 5), np.float32)
        for answer, expected in zip(open_graph(graph)([given]), Encode()(torch.from_numpy(given)), strict=True):
            if answer.shape != tuple(expected.shape):
                raise ParityError(f"shape {list(answer.shape)}")

    with pytest.raises(ExportError, match=r"^encoder: both of PyTorch's exporters failed; .*static shape of 2"):
        make_graphs(adapted, ["onnx"], tmp_path / "proven", require=require)
    make_graphs(encoding(Encode()), ["onnx"], tmp_path / "sound", require=require)


def require_same_rows(module):
    def require(graph):
        given = np.linspace(-1, 1, 15, dtype=np.float32).reshape(3, 5)
        with torch.no_grad():
            expected = module(torch.from_numpy(given))
        for answer, other in zip(open_graph(graph)([given]), expected, strict=True):
            if answer.shape != tuple(other.shape) or not np.allclose(answer, other.numpy(), atol=1e-6):
                raise ParityError(f"{graph.variant} differs")

    return require


# torch.compile itself imports what PyTorch deprecates, and a checkpoint without gradients warns.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("make", [Checkpointed, Bounded, Detached, Compiled, Encode])
def test_torchscript_is_made_by_torch_export_where_the_tracer_fails(make, tmp_path):
    module = make()
    with unchanged(module):
        graphs, refused = make_graphs(encoding(module), None, tmp_path, require=require_same_rows(module))
    assert refused == []
    traced = "torch.jit.trace" if make in (Encode, Checkpointed) else "torch.jit.script(torch.export.export)"
    assert [graph.exporter for graph in graphs] == ["torch.onnx.export(dynamo=True)", traced]
    assert b".py" not in without_weights(graphs[0].content)


def test_values_that_no_input_reaches_are_folded(tmp_path):
    module = Initialized()
    (graph,), _ = make_graphs(encoding(module), ["onnx"], tmp_path / "folded", require=require_same_rows(module))
    assert graph.executor == "ort"
    module = Counting()
    with pytest.raises(ExportError, match=r"both of PyTorch.s exporters failed; .*; legacy: fp32 differs"):
        make_graphs(encoding(module), ["onnx"], tmp_path, require=require_same_rows(module))


@pytest.mark.parametrize("make", [BranchingFirst, BranchingLate, Packing])
def test_a_branch_that_is_named_depends_on_an_input(make, tmp_path):
    lines = {
        BranchingFirst: r"on the values of a tensor at test_graphs\.py:\d+ \(if x\.abs\(\)\.max\(\) > 1000:\)",
        BranchingLate: r"on the values of a tensor at test_graphs\.py:\d+ \(return \(mu if mu\.sum\(\) < 1000",
        Packing: r"packed by their lengths at test_graphs\.py:\d+ \(packed = .*; run the layer over the padded",
    }
    with pytest.raises(ExportError, match=lines[make]):
        make_graphs(encoding(make()), ["onnx"], tmp_path)


def test_torchscript_alone_blocks_an_export_only_where_it_was_named(tmp_path, capsys):
    def require(graph):
        if graph.variant == "torchscript":
            raise ParityError("encoder/torchscript: mu differs")

    adapted = encoding(Encode())
    graphs, refused = make_graphs(adapted, None, tmp_path / "default", require=require)
    assert [graph.variant for graph in graphs] == ["fp32"]
    assert refused == [Refusal("encoder", "torchscript", "mu differs")]
    assert capsys.readouterr().err == "left out: encoder/torchscript: mu differs\n"
    with pytest.raises(ParityError, match=r"^encoder/torchscript: mu differs; leave this format out of formats=$"):
        make_graphs(adapted, ("onnx", "torchscript"), tmp_path / "named", require=require)


def test_dropout_of_a_module_in_evaluation_mode_is_no_randomness(tmp_path):
    graph = onnx.load_from_string(encoder_of(encoding(Resting()), tmp_path)).graph
    assert [value.name for value in graph.output] == ["mu", "logvar", "std"]


def test_branches_are_stripped_too(tmp_path):
    content = encoder_of(encoding(Branching()), tmp_path)
    assert "If" in [node.op_type for node in onnx.load_from_string(content).graph.node]
    assert not found_in(content)
    assert b".py" not in without_weights(content)


def test_an_unknown_format_is_refused_before_any_work(tmp_path):
    class Untouched(nn.Module):
        def forward(self, x):
            pytest.fail("work was done")

    with pytest.raises(ExportError, match="formats: expected some of onnx, torchscript, pt2, got 'tflite'"):
        make_graphs(encoding(Untouched()), ["onnx", "tflite"], tmp_path)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_convolution_without_a_bias_has_none_of_a_wrong_shape(axes, tmp_path):
    convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]

    class Convolved(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = convolution(2, 4, 2, stride=2, bias=False)

        def encode(self, x):
            return self.layer(x).flatten(1).chunk(2, 1)

        def decode(self, z):
            return z

    x = torch.rand(3, 2, *[4] * axes)
    exported = vae_export.export(Convolved(), tmp_path / "b", example=x, formats=("onnx",), posterior="logvar")
    assert exported.parity.passed
    # The older exporter, which would be tried next, knows no such bias.
    assert vae_runtime.load(tmp_path / "b").manifest.encoder["fp32"].exporter == "torch.onnx.export(dynamo=True)"
    graph = onnx.load(tmp_path / "b" / "encoder" / "fp32" / "model.onnx").graph
    (node,) = (node for node in graph.node if node.op_type == "Conv")
    biases = [tensor for tensor in graph.initializer if tensor.name in node.input[2:]]
    assert all(list(tensor.dims) == [4] for tensor in biases)


class Spectrum(nn.Module):
    def __init__(self, read):
        super().__init__()
        torch.manual_seed(3)
        self.read, self.body, self.head = read, nn.Linear(9, 8), nn.Linear(4, 18)

    def encode(self, x):
        return self.body(self.read(x).abs()).chunk(2, 1)

    def decode(self, z):
        real, imaginary = self.head(z).chunk(2, 1)
        return torch.fft.irfft(torch.complex(real, imaginary), n=16)


@pytest.mark.parametrize(
    "read",
    [torch.fft.rfft, lambda x: torch.fft.rfft(x, norm="ortho"), lambda x: torch.fft.rfft(x[:, :8], n=16)],
    ids=["plain", "scaled", "padded"],
)
def test_a_fourier_transform_takes_the_length_of_its_signal(read, tmp_path):
    x = torch.rand(3, 16, generator=torch.Generator().manual_seed(0))
    exported = vae_export.export(Spectrum(read), tmp_path / "b", example=x, formats=("onnx",), posterior="logvar")
    assert exported.parity.passed
    graph = onnx.load(tmp_path / "b" / "encoder" / "fp32" / "model.onnx").graph
    (node,) = (node for node in graph.node if node.op_type == "DFT")
    assert len(node.input) == 1
