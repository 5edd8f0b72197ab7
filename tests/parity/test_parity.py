import dataclasses
import io
import re
import shutil

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from onnx import TensorProto, helper, numpy_helper

import vae_export.exporting
from vae_export import ParityError, check_parity, export
from vae_export.cli import main
from vae_export.graphs.formats import make_graphs
from vae_export.graphs.graph import EXECUTORS, FORMATS, quiet
from vae_export.parity import comparison
from vae_export.parity.bundle import golden_runner
from vae_export.parity.comparison import BATCHES, LATENT_REACH, compare
from vae_export.parity.tolerances import tolerance
from vae_export.training import checkpoint
from vae_export.understand.adapt import adapt, declared
from vae_export.understand.state import unchanged
from vae_runtime import verify
from vae_runtime.errors import BundleError, InputError

# The tests' own calls: the package keeps PyTorch's notes on TorchScript to itself.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

GRAPHS = [f"{component}/{form.variant}" for component in ("encoder", "decoder") for form in FORMATS.values()]
TORCH_RUNNERS = dict.fromkeys(EXECUTORS, golden_runner)


class Weights:
    """The weights of a graph file by name: read, and written back with one of them changed."""

    def names(self, graph):
        return list(self._open(graph)[0])

    def changed(self, graph, name, change):
        weights, save = self._open(graph)
        before = weights[name]
        after = change(before.copy())
        assert after.shape == before.shape
        assert not np.array_equal(after, before)
        return dataclasses.replace(graph, source=save(name, after))

    def _open(self, graph):
        return {"ort": self._onnx, "torchscript": self._torchscript, "torch_export": self._pt2}[graph.executor](graph)

    def _onnx(self, graph):
        model = onnx.load_from_string(graph.content)
        tensors = {t.name: t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and t.dims}

        def save(name, values):
            tensors[name].CopyFrom(numpy_helper.from_array(values, name))
            return model.SerializeToString()

        return {name: numpy_helper.to_array(tensor) for name, tensor in tensors.items()}, save

    def _torchscript(self, graph):
        """A frozen module's weights are constants without names or shapes, a record of the archive each."""
        reader = torch._C.PyTorchFileReader(io.BytesIO(graph.content))
        names = [name for name in reader.get_all_records() if re.fullmatch(r"constants/\d+", name)]
        constants = {name: np.frombuffer(reader.get_record(name), np.float32) for name in names}

        def save(name, values):
            file = io.BytesIO()
            writer = torch._C.PyTorchFileWriter(file)
            for record in reader.get_all_records():
                if record not in ("version", ".data/serialization_id", "byteorder"):
                    content = values.tobytes() if record == name else reader.get_record(record)
                    writer.write_record(record, content, len(content))
            writer.write_end_of_file()
            return file.getvalue()

        return constants, save

    def _pt2(self, graph):
        program = torch.export.load(io.BytesIO(graph.content))

        def save(name, values):
            program.state_dict[name].data = torch.from_numpy(values)
            file = io.BytesIO()
            torch.export.save(program, file)
            return file.getvalue()

        return {name: parameter.detach().numpy() for name, parameter in program.state_dict.items()}, save


@pytest.fixture(scope="module")
def weights():
    return Weights()


@pytest.fixture(scope="module")
def scaled(weights):
    """A graph with one weight tensor scaled by one percent."""

    def scale(graph, name):
        return weights.changed(graph, name, lambda values: values * np.float32(1.01))

    return scale


def with_nodes(graph, output, nodes, constants):
    """An ONNX graph with nodes appended that make `output` from what was `output`, now called "before"."""
    model = onnx.load_from_string(graph.content)
    for node in model.graph.node:
        node.input[:] = ["before" if name == output else name for name in node.input]
        node.output[:] = ["before" if name == output else name for name in node.output]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(numpy_helper.from_array(np.array(v), name) for name, v in constants.items())
    onnx.checker.check_model(model, full_check=True)
    return dataclasses.replace(graph, source=model.SerializeToString())


# Sound graphs.


def test_every_graph_of_an_export_equals_pytorch(tiny_exported):
    report = tiny_exported.parity
    assert report.passed
    outputs = {"encoder": ("mu", "logvar", "std"), "decoder": ("x", "logits")}
    expected = [(key, output) for key in GRAPHS for output in outputs[key.partition("/")[0]]]
    assert [(f"{t.component}/{t.variant}", t.output) for t in report.tensors] == expected
    for tensor in report.tensors:
        assert tensor.max_abs < tensor.tolerance / 3
        assert 0 <= tensor.max_rel < 1e-3
        assert tensor.compared == sum(BATCHES) * (64 if tensor.component == "decoder" else 4)
        assert tensor.batch in BATCHES
        assert tensor.worst[0] < tensor.batch
    assert report.max_abs == max(tensor.max_abs for tensor in report.tensors)
    report.require()


def test_the_report_says_per_tensor_how_far_and_where(tiny_exported):
    lines = str(tiny_exported.parity).splitlines()
    number = r"\d\.\d\de[+-]\d\d"
    for line, tensor in zip(lines, tiny_exported.parity.tensors, strict=True):
        assert re.fullmatch(
            rf"ok +{tensor.component}/{tensor.variant} {tensor.output} +max abs {number}  max rel {number}  tolerance "
            rf"{number}  from float32 {number}  worst at \[\d+(, \d+)*\] of batch \d+",
            line,
        )


def test_the_tolerance_grows_with_the_tensor_and_never_falls_below_that_of_one():
    assert tolerance(np.array([0.001, -0.5])) == pytest.approx(1e-5)
    assert tolerance(np.array([3.0, -40.0])) == pytest.approx(4e-4)


def test_batches_are_those_that_were_promised():
    assert BATCHES == (1, 2, 7, 64)
    assert LATENT_REACH == 5


# Damaged graphs.


@pytest.mark.parametrize("key", GRAPHS)
def test_a_weight_scaled_by_one_percent_is_no_parity(tiny_graphs, tiny_adapted, weights, scaled, key):
    names = weights.names(tiny_graphs[key])
    matrices = (
        len(list(getattr(tiny_adapted.modules[key.partition("/")[0]].model, key.partition("/")[0]).parameters())) // 2
    )
    assert len(names) >= 2 * matrices == 6
    for name in names:
        report = compare(tiny_adapted, [scaled(tiny_graphs[key], name)])
        assert not report.passed, name
        failed = [tensor for tensor in report.tensors if not tensor.passed]
        with pytest.raises(ParityError) as caught:
            report.require()
        text = str(caught.value)
        for tensor in failed:
            assert tensor.max_abs > 3 * tensor.tolerance, name
            assert f"FAILED  {key} {tensor.output}" in text
            assert f"worst at {list(tensor.worst)} of batch {tensor.batch}" in text
            assert f"tolerance {tensor.tolerance:.2e}" in text
            assert f"{tensor.disagreeing} of {tensor.compared} values disagree" in text
        assert text.count("\n") == len(failed)


def test_a_weight_that_is_written_back_as_it_was_is_parity(tiny_graphs, tiny_adapted, weights):
    for graph in tiny_graphs.values():
        content, save = weights._open(graph)
        name = next(iter(content))
        again = dataclasses.replace(graph, source=save(name, content[name].copy()))
        assert compare(tiny_adapted, [again]).passed


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("key", ["encoder/fp32", "decoder/fp32", "decoder/torchscript"])
def test_what_is_no_number_is_no_parity(tiny_graphs, tiny_adapted, weights, key, value):
    def spoil(values):
        values.flat[0] = value
        return values

    graph = tiny_graphs[key]
    # Any of TorchScript's constants will do.
    bias = max(name for name in weights.names(graph) if name.endswith(".bias") or "constants" in name)
    report = compare(tiny_adapted, [weights.changed(graph, bias, spoil)])
    assert not report.passed
    assert report.max_abs == np.inf
    with pytest.raises(ParityError, match="max abs inf"):
        report.require()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_that_gives_no_numbers_is_no_parity_with_itself(tiny_run, value, tmp_path):
    vae, _ = checkpoint.load(tiny_run)
    x = torch.rand(3, *vae.config.observation_shape)
    with unchanged(vae):
        adapted = adapt(vae, x, declared(vae)[1])
        list(vae.decoder.parameters())[-1].flatten()[0] = value
        decoder = [g for g in make_graphs(adapted, ["onnx"], tmp_path)[0] if g.component == "decoder"]
        report = compare(adapted, decoder)
    (logits,) = (tensor for tensor in report.tensors if tensor.output == "logits")
    assert not logits.passed
    assert logits.max_abs == np.inf
    assert 0 < logits.disagreeing < logits.compared
    assert np.isfinite(logits.tolerance)


def wrong_at(tiny_graphs, tiny_adapted, size):
    """The report on a graph that is wrong at one batch size."""
    nodes = [
        helper.make_node("Shape", ["before"], ["rows"], end=1),
        helper.make_node("Equal", ["rows", "wrong"], ["same"]),
        helper.make_node("Cast", ["same"], ["one"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["before", "one"], ["mu"]),
    ]
    graph = with_nodes(tiny_graphs["encoder/fp32"], "mu", nodes, {"wrong": np.array([size])})
    return compare(tiny_adapted, [graph])


@pytest.mark.parametrize("batch", BATCHES)
def test_every_batch_size_is_run(tiny_graphs, tiny_adapted, batch):
    """A graph that is wrong at one batch size is caught, and caught there."""
    report = wrong_at(tiny_graphs, tiny_adapted, batch)
    (failed,) = (tensor for tensor in report.tensors if not tensor.passed)
    assert (failed.output, failed.batch, failed.disagreeing) == ("mu", batch, 4 * batch)
    assert wrong_at(tiny_graphs, tiny_adapted, 3).passed


def test_rows_that_take_long_in_float64_are_held_against_float32(tiny_graphs, tiny_adapted, monkeypatch):
    monkeypatch.setattr(comparison, "_MAX_SECONDS_TWICE", 0.0)
    seen = set()
    encoder = tiny_adapted.modules["encoder"]
    hook = encoder.register_forward_pre_hook(lambda module, given: seen.add((given[0].dtype, len(given[0]))))
    try:
        report = wrong_at(tiny_graphs, tiny_adapted, BATCHES[-1])
        sound = compare(tiny_adapted, [tiny_graphs["encoder/fp32"]])
    finally:
        hook.remove()
    (failed,) = (tensor for tensor in report.tensors if not tensor.passed)
    assert (failed.output, failed.batch, failed.disagreeing) == ("mu", BATCHES[-1], 4 * BATCHES[-1])
    assert sound.passed
    assert {batch for dtype, batch in seen if dtype == torch.float64} == {BATCHES[-2]}
    assert {batch for dtype, batch in seen if dtype == torch.float32} >= set(BATCHES)


def test_latents_reach_as_far_as_promised_and_no_farther(tiny_graphs, tiny_adapted):
    """A graph that is wrong on latents beyond some magnitude is caught up to 5, on real prior draws as well."""
    nodes = [
        helper.make_node("Abs", ["z"], ["magnitude"]),
        helper.make_node("ReduceMax", ["magnitude", "axes"], ["greatest"], keepdims=1),
        helper.make_node("Greater", ["greatest", "bound"], ["beyond"]),
        helper.make_node("Cast", ["beyond"], ["flag"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["flag", "as_picture"], ["one"]),
        helper.make_node("Add", ["before", "one"], ["logits"]),
    ]

    def wrong_rows(bound):
        constants = {"axes": np.array([1]), "bound": np.float32(bound), "as_picture": np.array([-1, 1, 1, 1])}
        graph = with_nodes(tiny_graphs["decoder/fp32"], "logits", nodes, constants)
        return {t.output: t.disagreeing // 64 for t in compare(tiny_adapted, [graph]).tensors}["logits"]

    stretched = sum(batch // 2 for batch in BATCHES)
    assert wrong_rows(4.999) == stretched
    assert wrong_rows(5.001) == 0
    assert stretched < wrong_rows(1.0) < sum(BATCHES)


def of_batch(graph, size):
    """An ONNX graph whose batch is fixed."""
    model = onnx.load_from_string(graph.content)
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param == "batch":
                dimension.dim_value = size
    return dataclasses.replace(graph, source=model.SerializeToString())


@pytest.mark.parametrize("size", [1, 2, 64])
def test_an_onnx_graph_of_one_batch_size_is_no_parity(tiny_graphs, tiny_adapted, size):
    refused = 2 if size == 1 else 1
    with pytest.raises(ParityError, match=rf"^encoder/fp32: batch {refused}: .*dimensions for input: x"):
        compare(tiny_adapted, [of_batch(tiny_graphs["encoder/fp32"], size)])


class OfTwo(torch.nn.Module):
    """A module that works with two rows alone."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x.reshape(2, 1, 8, 8))


def test_a_torchscript_graph_of_one_batch_size_is_no_parity(tiny_graphs, tiny_adapted):
    file = io.BytesIO()
    with quiet():
        torch.jit.save(torch.jit.trace(OfTwo(tiny_adapted.modules["encoder"]), torch.zeros(2, 1, 8, 8)), file)
    graph = dataclasses.replace(tiny_graphs["encoder/torchscript"], source=file.getvalue())
    with pytest.raises(
        ParityError, match=r"^encoder/torchscript: batch 1: .*shape '\[2, 1, 8, 8\]' is invalid"
    ) as caught:
        compare(tiny_adapted, [graph])
    assert str(caught.value).isprintable()


def test_a_graph_of_the_other_component_is_no_parity(tiny_graphs, tiny_adapted):
    for key in GRAPHS:
        component, variant = key.split("/")
        other = tiny_graphs[f"{'decoder' if component == 'encoder' else 'encoder'}/{variant}"]
        with pytest.raises(ParityError, match=f"^{key}: batch 1: "):
            compare(tiny_adapted, [dataclasses.replace(tiny_graphs[key], source=other.content)])


def test_a_graph_that_is_no_graph_is_no_parity(tiny_graphs, tiny_adapted):
    for key, graph in tiny_graphs.items():
        for content in (b"", b"no graph", graph.content[: len(graph.content) // 2]):
            with pytest.raises(ParityError, match=f"^{key}: ") as caught:
                compare(tiny_adapted, [dataclasses.replace(graph, source=content)])
            assert str(caught.value).isprintable()


def test_a_graph_without_one_of_its_outputs_is_no_parity(tiny_graphs, tiny_adapted):
    model = onnx.load_from_string(tiny_graphs["decoder/fp32"].content)
    del model.graph.output[1]
    graph = dataclasses.replace(tiny_graphs["decoder/fp32"], source=model.SerializeToString())
    with pytest.raises(ParityError, match=r"decoder/fp32: .*Invalid output name:logits"):
        compare(tiny_adapted, [graph])


class FirstOf(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, z):
        return self.inner(z)[0]


def test_an_archive_without_one_of_its_outputs_is_no_parity(tiny_graphs, tiny_adapted):
    file = io.BytesIO()
    with quiet():
        torch.jit.save(torch.jit.trace(FirstOf(tiny_adapted.modules["decoder"]), tiny_adapted.given("decoder")), file)
    graph = dataclasses.replace(tiny_graphs["decoder/torchscript"], source=file.getvalue())
    with pytest.raises(ParityError, match="decoder/torchscript: expected the outputs x, logits, got 1"):
        compare(tiny_adapted, [graph])


# No bundle without parity.


@pytest.mark.parametrize("key", GRAPHS)
def test_export_writes_nothing_without_parity(
    tiny_run, tiny_graphs, tiny_bundle, weights, scaled, key, tmp_path, monkeypatch
):
    """PyTorch exports these models soundly, so a damaged graph is put in the place of what it gave."""
    damaged = dict(tiny_graphs)
    damaged[key] = scaled(tiny_graphs[key], weights.names(tiny_graphs[key])[0])
    monkeypatch.setattr(vae_export.exporting, "make_graphs", lambda *_, **__: (list(damaged.values()), []))
    with pytest.raises(ParityError, match=f"the exported graphs do not compute what PyTorch does:\n  FAILED  {key}"):
        export(tiny_run, tmp_path / "new")
    assert not list(tmp_path.iterdir())

    old = shutil.copytree(tiny_bundle, tmp_path / "old")
    with pytest.raises(ParityError):
        export(tiny_run, old, force=True)
    assert list(tmp_path.iterdir()) == [old]
    assert verify(old).passed


def test_export_writes_the_same_graphs_where_they_are_sound(tiny_run, tiny_graphs, tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(vae_export.exporting, "make_graphs", lambda *_, **__: (list(tiny_graphs.values()), []))
    exported = export(tiny_run, tmp_path / "new")
    # All but the manifest and the card, which say what was rewritten: of graphs read from a bundle that is not known.
    sums = [(bundle / "SHA256SUMS").read_text().splitlines() for bundle in (tmp_path / "new", tiny_bundle)]
    new, old = ({line for line in lines if not line.endswith(("manifest.json", "README.md"))} for lines in sums)
    assert new == old
    assert len(new) >= 5
    assert exported.parity.passed


# A bundle against the run it came from.


@pytest.fixture(scope="module")
def other_run(tiny_run, tmp_path_factory):
    """A run of the same shape with other weights."""
    run = shutil.copytree(tiny_run, tmp_path_factory.mktemp("other") / "run")
    path = run / "model.safetensors"
    tensors = safetensors.torch.load(path.read_bytes())
    tensors["decoder.4.weight"] *= 1.01
    path.write_bytes(safetensors.torch.save(tensors))
    return run


def test_check_parity_replays_the_golden_vectors_of_every_format(tiny_run, tiny_bundle):
    verification, report = check_parity(tiny_run, tiny_bundle, trust=True)
    assert verification.passed
    assert report.passed
    checked = {check.what for check in verification.checks if check.passed}
    outputs = {"encoder": ("mu", "logvar", "std"), "decoder": ("x", "logits")}
    assert checked == {"files"} | {f"{key} {o}" for key in GRAPHS for o in outputs[key.partition("/")[0]]}


def test_without_pytorch_its_formats_are_skipped_aloud(tiny_bundle):
    verification = verify(tiny_bundle)
    assert verification.passed
    skipped = {check.what: check.detail for check in verification.checks if check.passed is None}
    assert list(skipped) == [key for key in GRAPHS if not key.endswith("fp32")]
    assert all(
        "needs PyTorch; in a bundle of a run, `vae-export parity --trust` runs it" in detail
        for detail in skipped.values()
    )


@pytest.mark.parametrize("key", GRAPHS)
@pytest.mark.parametrize("limit", [1, pytest.param(None, marks=pytest.mark.long)])
def test_golden_vectors_catch_a_scaled_weight_although_the_hashes_are_right(
    tiny_run, tiny_graphs, bundle_copy, resign, weights, scaled, key, limit
):
    graph = tiny_graphs[key]
    path = bundle_copy / key / graph.file
    for name in weights.names(graph)[:limit]:
        path.write_bytes(scaled(graph, name).content)
        resign(bundle_copy)
        verification = verify(bundle_copy, runners=TORCH_RUNNERS)
        failed = [check for check in verification.checks if check.passed is False]
        assert failed, name
        for check in failed:
            assert check.what.startswith(f"{key} ")
            assert re.search(r"disagrees with \d+ of \d+ golden values; worst at \[\d", check.detail)
    verification, report = check_parity(tiny_run, bundle_copy, trust=True)
    assert not verification.passed
    assert not report.passed


@pytest.mark.parametrize("key", ["encoder/torchscript", "decoder/pt2"])
def test_a_graph_that_pytorch_cannot_load_fails_although_the_hashes_are_right(
    tiny_run, tiny_graphs, bundle_copy, resign, key
):
    (bundle_copy / key / tiny_graphs[key].file).write_bytes(b"no archive")
    resign(bundle_copy)
    (failed,) = (c for c in verify(bundle_copy, runners=TORCH_RUNNERS).checks if c.passed is False)
    assert failed.what == key
    assert "the graph cannot be loaded: " in failed.detail
    with pytest.raises(ParityError, match=f"^{key}: the graph cannot be loaded: "):
        check_parity(tiny_run, bundle_copy, trust=True)


def test_without_trust_no_code_of_a_bundle_is_loaded(tiny_run, tiny_graphs, bundle_copy, resign, capsys):
    code = [key for key in GRAPHS if not key.endswith("fp32")]
    for key in code:
        (bundle_copy / key / tiny_graphs[key].file).write_bytes(b"no archive")
    resign(bundle_copy)
    assert main(["parity", str(tiny_run), str(bundle_copy)]) == 0
    out = capsys.readouterr().out
    assert f"equal to {tiny_run}; {len(code)} graphs not run, since they are code (--trust)" in out
    assert re.findall("^skipped +([^ ]+)", out, re.MULTILINE) == code
    assert out.count("max abs") == out.count("fp32") // 2 == 5
    verification, report = check_parity(tiny_run, bundle_copy)
    assert verification.passed
    assert {tensor.variant for tensor in report.tensors} == {"fp32"}
    # With it, the files are loaded, which fails here.
    assert main(["parity", str(tiny_run), str(bundle_copy), "--trust"]) == 1
    assert "the graph cannot be loaded: " in capsys.readouterr().err
    with pytest.raises(InputError, match=r"^trust: expected True or False, got 1"):
        check_parity(tiny_run, bundle_copy, trust=1)


def test_a_graph_of_other_outputs_fails_although_the_hashes_are_right(tiny_bundle, bundle_copy, resign):
    class Single(torch.nn.Module):
        def forward(self, z):
            return z.repeat(1, 16).reshape(-1, 1, 8, 8)

    swapped = bundle_copy / "encoder/torchscript/model.pt"
    swapped.write_bytes((tiny_bundle / "decoder/torchscript/model.pt").read_bytes())
    torch.jit.save(torch.jit.trace(Single(), torch.zeros(2, 4)), bundle_copy / "decoder/torchscript/model.pt")
    resign(bundle_copy)
    failed = {c.what: c.detail for c in verify(bundle_copy, runners=TORCH_RUNNERS).checks if c.passed is False}
    assert list(failed) == ["encoder/torchscript", "decoder/torchscript"]
    assert "the graph cannot be run: " in failed["encoder/torchscript"]
    assert failed["decoder/torchscript"] == "expected 2 outputs, got 1"


def test_a_damaged_graph_is_not_run(tiny_run, bundle_copy):
    with (bundle_copy / "encoder/torchscript/model.pt").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(BundleError, match=r"model\.pt: expected the SHA-256"):
        check_parity(tiny_run, bundle_copy, trust=True)


def test_the_command_parity_tells_its_own_bundle_from_another(tiny_run, other_run, tiny_bundle, capsys):
    assert main(["parity", str(tiny_run), str(tiny_bundle), "--trust"]) == 0
    out, err = capsys.readouterr()
    assert f"{tiny_bundle}: equal to {tiny_run}" in out
    assert out.count("max abs") == 15
    assert "error" not in err

    assert main(["parity", str(other_run), str(tiny_bundle), "--trust"]) == 1
    out, err = capsys.readouterr()
    assert "equal to" not in out
    assert re.findall("FAILED +(.*?) +max", out) == [
        f"decoder/{f.variant} {o}" for f in FORMATS.values() for o in ("x", "logits")
    ]
    assert err == f"error: {tiny_bundle}: not equal to {other_run}; export it again\n"


def test_a_bundle_of_another_shape_is_named_so(digits_bundle_of_8, tiny_run):
    with pytest.raises(
        ParityError, match=r"latents: expected \[\(4,\)\] from .*, got \[\(8,\)\]; export the run again"
    ):
        check_parity(tiny_run, digits_bundle_of_8)


@pytest.fixture
def digits_bundle_of_8(root):
    return root / "models" / "digits"
