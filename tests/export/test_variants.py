"""fp16 and int8 variants: what is in them, what is said of their quality, and what is refused."""

import json
import logging
import math
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from sklearn.datasets import load_digits
from torch import nn

import vae_runtime
from vae_export import ParityError, check_parity, export
from vae_export.cli import main
from vae_export.graphs import files, measurement
from vae_export.graphs import onnx_export as graphs
from vae_export.graphs.graph import require_same
from vae_export.graphs.measurement import psnr_of
from vae_export.graphs.quantize import _ends
from vae_export.graphs.variants import Gate, require_variants
from vae_runtime.bundle import open_bundle
from vae_runtime.errors import BundleError, InputError
from vae_runtime.golden import golden_inputs, read_golden
from vae_runtime.timing import in_words

ALL = ("fp32", "fp16", "int8")


class Convolutional(nn.Module):
    """1×8×8 → 4 latents; batch normalisation, nearest upsampling and a transposed convolution in the decoder."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.down = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten()
        )
        self.head = nn.Linear(128, 8)
        self.up = nn.Sequential(
            nn.Linear(4, 128),
            nn.Unflatten(1, (32, 2, 2)),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(32, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.ConvTranspose2d(16, 16, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(16, 1, 3, padding=1),
        )
        self.eval()

    def encode(self, x):
        return self.head(self.down(x)).chunk(2, 1)

    def decode(self, z):
        return self.up(z)


@pytest.fixture(scope="module")
def digits():
    return (load_digits().images[:80, None] / 16).astype(np.float32)


@pytest.fixture(scope="module")
def dense(digits_run, tmp_path_factory):
    """A trained run on dense layers with every variant."""
    return export(digits_run.folder, tmp_path_factory.mktemp("dense") / "bundle", variants=ALL)


@pytest.fixture(scope="module")
def convolutional(digits, tmp_path_factory):
    """A convolutional module with every variant."""
    out = tmp_path_factory.mktemp("convolutional") / "bundle"
    return export(Convolutional(), out, example=digits, posterior="logvar", variants=ALL, formats=("onnx",))


def models(bundle, name):
    opened = open_bundle(bundle)
    for component, variants in opened.manifest.components.items():
        yield component, onnx.load_model_from_string(opened.read(variants[name].path))


def operators(model):
    return {node.op_type for node in model.graph.node}


# What is in a bundle.


@pytest.mark.parametrize("which", ["dense", "convolutional"])
def test_every_component_has_every_variant_in_order_and_verifies(which, request):
    exported = request.getfixturevalue(which)
    manifest = open_bundle(exported.path).manifest
    for component, variants in manifest.components.items():
        runnable = {name: variant for name, variant in variants.items() if variant.executor == "ort"}
        assert list(runnable) == list(variants)[:3] == list(ALL)
        assert [each.precision for each in runnable.values()] == ["float32", "float16", "int8"]
        assert variants["fp32"].quality is None
        sizes = {name: exported.sizes[f"{component}/{name}/model.onnx"] for name in ALL}
        for name in ALL[1:]:
            assert variants[name].quality.size == sizes[name]
            assert variants[name].ep == "CPUExecutionProvider"
        assert sizes["fp16"] < 0.65 * sizes["fp32"]
        assert sizes["int8"] < 0.65 * sizes["fp32"]
    assert exported.refused == manifest.refused == ()
    assert vae_runtime.verify(exported.path).passed


def failed(report):
    return {f"{tensor.component}/{tensor.variant}" for tensor in report.tensors if not tensor.passed}


def test_parity_holds_a_variant_to_what_its_manifest_states(digits_run, dense, tmp_path, resign, capsys):
    assert main(["parity", str(digits_run.folder), str(dense.path)]) == 0
    assert "equal to" in capsys.readouterr().out
    _, report = check_parity(digits_run.folder, dense.path)
    assert report.passed
    assert {tensor.variant for tensor in report.tensors} == set(ALL)
    exact = max(tensor.tolerance for tensor in report.tensors if tensor.variant == "fp32")
    assert max(tensor.max_abs for tensor in report.tensors if tensor.variant == "int8") > 10 * exact
    copy = shutil.copytree(dense.path, tmp_path / "bundle")
    path = copy / "decoder" / "int8" / "model.onnx"
    model = onnx.load(path)
    tensor = max(model.graph.initializer, key=lambda each: math.prod(each.dims) * (each.data_type == TensorProto.INT8))
    tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    path.write_bytes(model.SerializeToString())
    resign(copy)
    assert failed(check_parity(digits_run.folder, copy)[1]) == {"decoder/int8"}


@pytest.mark.parametrize(("share", "expected"), [(1.0, set()), (0.5, {"decoder/int8"})])
def test_parity_fails_beyond_what_a_manifest_states(digits_run, dense, tmp_path, resign, share, expected):
    copy = shutil.copytree(dense.path, tmp_path / "bundle")
    document = json.loads((copy / "manifest.json").read_text("utf-8"))
    stated = document["components"]["decoder"]["variants"]["int8"]["additional_metadata"]["vae"]
    stated["error"] = {output: share * number for output, number in stated["error"].items()}
    stated["tolerance"] = dict.fromkeys(stated["tolerance"], 1e-7)
    (copy / "manifest.json").write_text(json.dumps(document), "utf-8")
    resign(copy)
    assert failed(check_parity(digits_run.folder, copy)[1]) == expected


@pytest.mark.parametrize("which", ["dense", "convolutional"])
@pytest.mark.parametrize("name", ALL)
def test_graphs_keep_to_the_format(which, name, request):
    for _, model in models(request.getfixturevalue(which).path, name):
        assert [(each.domain, each.version) for each in model.opset_import] == [("", 18)]
        assert model.ir_version <= 9
        assert not model.metadata_props
        assert all(node.domain == "" for node in model.graph.node)


def test_fp16_stores_halves_and_computes_in_float32(dense):
    for _, model in models(dense.path, "fp16"):
        large = [tensor for tensor in model.graph.initializer if math.prod(tensor.dims) >= 256]
        assert large
        assert {tensor.data_type for tensor in large} == {TensorProto.FLOAT16}
        casts = [node for node in model.graph.node if node.op_type == "Cast"]
        assert len(casts) == len(large)
        assert {node.attribute[0].i for node in casts} == {TensorProto.FLOAT}


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Dense layers that static ranges per tensor do not fit."""
    x = np.random.default_rng(0).random((256, 64), np.float32)
    out = tmp_path_factory.mktemp("uneven") / "bundle"
    return export(Uneven(), out, example=x, posterior="logvar", variants=ALL, formats=("onnx",))


@pytest.mark.parametrize(
    ("which", "there", "weights"),
    [
        ("dense", "QuantizeLinear", "DequantizeLinear"),
        ("convolutional", "QuantizeLinear", "DequantizeLinear"),
        ("uneven", "MatMulInteger", "MatMulInteger"),
    ],
)
def test_int8_computes_in_integers_of_which_no_pair_saturates(which, there, weights, request):
    """Two products of an unsigned 8-bit number and a weight must not leave 16 bits: |weight| ≤ 64."""
    for component, model in models(request.getfixturevalue(which).path, "int8"):
        if which == "uneven" and component == "decoder":
            continue  # static ranges fit it
        assert there in operators(model), component
        values = {tensor.name: tensor for tensor in model.graph.initializer}
        stored = [values[name] for node in model.graph.node if node.op_type == weights for name in node.input[:2]
                  if name in values and values[name].data_type == TensorProto.INT8]  # fmt: skip
        assert stored
        for tensor in stored:
            assert np.abs(numpy_helper.to_array(tensor).astype(int)).max() <= 64


@pytest.mark.parametrize("which", ["dense", "convolutional"])
def test_weights_in_int8_are_stored_as_they_are_multiplied(which, request):
    for component, model in models(request.getfixturevalue(which).path, "int8"):
        layers = [node for node in model.graph.node if node.op_type == "Gemm"]
        assert layers, component
        for node in layers:
            assert not {each.name: each.i for each in node.attribute}.get("transB")
    transposed = [each for _, model in models(request.getfixturevalue(which).path, "fp32") for node in model.graph.node
                  if node.op_type == "Gemm" for each in node.attribute if each.name == "transB"]  # fmt: skip
    assert any(each.i for each in transposed)


def test_a_row_in_int8_does_not_depend_on_the_others_where_ranges_are_static(dense, uneven):
    vae = vae_runtime.load(dense.path, variant="int8")
    assert vae.manifest.decoder["int8"].quality.method.startswith("static int8 per tensor, ")
    # So it computes many rows at once.
    assert vae._networks.session("decoder").is_dense
    z = vae.prior(16, seed=0)
    z[1] *= 100
    np.testing.assert_allclose(vae.decode(z)[:1], vae.decode(z[:1]), rtol=0, atol=1e-6)
    # Dynamic ranges are found over all rows.
    vae = vae_runtime.load(uneven.path, variant="int8")
    assert vae.manifest.encoder["int8"].quality.method.startswith("dynamic int8 per channel")
    x = np.random.default_rng(0).random((16, 64), np.float32)
    x[1] *= 100
    assert np.abs(vae.encode(x).mean[:1] - vae.encode(x[:1]).mean).max() > 1e-3


def test_upsampling_and_normalization_are_rewritten_in_every_variant(convolutional):
    for name in ALL:
        for component, model in models(convolutional.path, name):
            assert not operators(model) & {"Resize", "BatchNormalization", "Upsample"}
            assert ("ConvTranspose" in operators(model)) == (component == "decoder" and name != "int8")
    rewrites = open_bundle(convolutional.path).manifest.producer["rewrites"]
    assert "1 × nearest upsampling and convolution made one transposed convolution" in rewrites["decoder"]
    assert "1 × batch normalization folded into the layer before it" in rewrites["decoder"]


def test_two_exports_give_the_same_bytes_but_for_the_measured_speed(convolutional, digits, tmp_path, monkeypatch):
    # A clock by which fp32 takes three times as long as the others.
    monkeypatch.setattr(measurement, "_fastest", lambda calls, name: 3e-4 if name == "fp32" else 1e-4)
    again = export(
        Convolutional(), tmp_path / "again", example=digits, posterior="logvar", variants=ALL, formats=("onnx",)
    )
    manifests = []
    for exported in (convolutional, again):
        document = json.loads((exported.path / "manifest.json").read_text(encoding="utf-8"))
        for component in document["components"].values():
            for name in ALL[1:]:
                speed = component["variants"][name]["additional_metadata"]["vae"]["quality"].pop("speed")
                assert "1" in speed
                assert set(speed) <= {"1", "64"}
                assert min(speed.values()) > 0
                assert exported is convolutional or set(speed.values()) == {3.0}
        manifests.append(document)
    assert manifests[0] == manifests[1]
    assert manifests[0]["additional_metadata"]["vae"]["producer"]["processor"]
    files = sorted(path.relative_to(again.path) for path in again.path.rglob("*") if path.is_file())
    different = {"manifest.json", "README.md", "SHA256SUMS"}
    assert {str(file) for file in files} > different
    for file in files:
        if str(file) not in different:
            assert (again.path / file).read_bytes() == (convolutional.path / file).read_bytes()


def test_a_variant_that_is_not_faster_is_said_to_be_so(dense, tmp_path, resign, capsys):
    from vae_runtime.cli.main import main as runtime

    folder = shutil.copytree(dense.path, tmp_path / "bundle")
    document = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    variants = document["components"]["decoder"]["variants"]
    for name, speed in (("fp16", {"1": 0.98, "64": 1.04}), ("int8", {"1": 0.5, "64": 2.512})):
        variants[name]["additional_metadata"]["vae"]["quality"]["speed"] = speed
    (folder / "manifest.json").write_text(json.dumps(document), encoding="utf-8")
    resign(folder)
    assert runtime(["info", str(folder)]) == 0
    printed = capsys.readouterr().out
    start = "speed × fp32, one thread at export: "
    assert f"decoder/fp16                {start}not faster: 0.98 at batch 1, 1.04 at batch 64" in printed
    assert f"decoder/int8                {start}0.50 at batch 1, 2.51 at batch 64" in printed


@pytest.mark.long
def test_quantizers_say_nothing_and_leave_the_loggers_alone(digits, tmp_path, capfd):
    before = list(logging.root.handlers), logging.root.manager.disable
    export(Convolutional(), tmp_path / "out", example=digits[:8], posterior="logvar", variants=("int8",))
    assert capfd.readouterr() == ("", "")
    assert (list(logging.root.handlers), logging.root.manager.disable) == before


# What is said of the quality.


def test_the_figures_are_those_that_anyone_measures(dense, digits_run):
    from vae_export.training import checkpoint
    from vae_export.training.evaluation import binarise

    vaes = {name: vae_runtime.load(dense.path, variant=name) for name in ALL}
    manifest = vaes["fp32"].manifest
    _, info = checkpoint.load(digits_run.folder)
    x = binarise(checkpoint.run_data(info, None).test.rows(slice(None)), "stochastic", 0)
    plain = vaes["fp32"]
    z = plain.encode(x).mean
    for name in ALL[1:]:
        quality = manifest.decoder[name].quality
        error = np.mean((vaes[name].decode(z).astype(float) - plain.decode(z)) ** 2)
        assert quality.psnr == pytest.approx(10 * math.log10(1 / error), abs=1e-6)
        assert quality.measured == f"{len(x)} observations of digits, test data"
        mu = vaes[name].encode(x).mean
        quality = manifest.encoder[name].quality
        assert quality.peak == pytest.approx(z.max() - z.min())
        error = np.mean((mu.astype(float) - z) ** 2)
        assert quality.psnr == pytest.approx(10 * math.log10(quality.peak**2 / error), abs=1e-6)
        # Both components at once: the changes nearly add.
        change = float(np.mean(vaes[name].score(x, seed=0).elbo - plain.score(x, seed=0).elbo))
        both = manifest.encoder[name].quality.elbo_change + manifest.decoder[name].quality.elbo_change
        assert change == pytest.approx(both, abs=0.05)
    assert manifest.decoder["fp16"].quality.psnr > manifest.decoder["int8"].quality.psnr + 10
    assert manifest.producer["gate"] == {"min_psnr": 35.0, "max_elbo_loss": 0.5}


def test_without_a_likelihood_there_is_no_elbo_and_the_reason_is_said(convolutional):
    manifest = open_bundle(convolutional.path).manifest
    for variant in (manifest.encoder["int8"], manifest.decoder["int8"]):
        assert variant.quality.elbo_change is None
        assert variant.quality.reason
        assert variant.quality.measured == "40 observations of the caller's, others"
    assert manifest.encoder["int8"].quality.calibration == "40 observations of the caller's"
    assert manifest.decoder["int8"].quality.calibration.endswith("and as many draws from the prior")


def test_the_card_shows_the_variants(dense, convolutional):
    card = (dense.path / "README.md").read_text(encoding="utf-8")
    quality = open_bundle(dense.path).manifest.decoder["int8"].quality
    assert "## Variants" in card
    speed = in_words(quality.speed)
    assert f"| {quality.psnr:.1f} dB | {quality.elbo_change:+.3f} nats | {speed} |" in card
    assert "× fp32 is how many times as fast as fp32 a variant was on " in card
    assert "No ELBO: " in (convolutional.path / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("found", "expected"), [([0.0, 1.0], None), ([0.1, 1.0], 10 * math.log10(1 / 0.005)), ([math.nan, 1.0], math.nan)]
)
def test_psnr_of(found, expected):
    psnr, peak = psnr_of(np.float32([0, 1]), np.float32(found), None)
    assert peak == 1
    assert psnr == (expected if expected is None else pytest.approx(expected, rel=1e-6, nan_ok=True))
    assert psnr_of(np.float32([0, 1]), np.float32([0, 0]), (-1.0, 3.0)) == (pytest.approx(10 * math.log10(32)), 4.0)


# The gate.


def test_the_gate_says_by_how_much_a_variant_fails():
    gate = Gate(35.0, 0.5)
    assert gate.refusal(35.0, -0.5) is None
    assert gate.refusal(None, None) is None
    assert gate.refusal(31.2, 0.1) == "PSNR 31.2 dB, 3.8 dB below the minimum of 35 dB"
    assert gate.refusal(40.0, -0.75) == "0.75 nats of ELBO lost, 0.25 above the maximum of 0.5"
    assert gate.refusal(math.nan, math.nan) is not None
    assert gate.refusal(40.0, math.nan) is not None


@pytest.mark.parametrize(
    "arguments",
    [{"min_psnr": math.nan}, {"max_elbo_loss": -1.0}, {"max_elbo_loss": math.inf}, {"variants": ("fp8",)},
     {"variants": "int8"}, {"variants": None}, {"min_psnr": "35"}, {"max_elbo_loss": 10**400}],
)  # fmt: skip
def test_arguments_that_cannot_be_are_refused(arguments, tmp_path):
    with pytest.raises(InputError, match=next(iter(arguments))):
        export("run", tmp_path / "out", **arguments)


@pytest.mark.parametrize("names", [["fp32", "fp8"], ["int4"], [8], "int8", None])
def test_an_unknown_variant_is_never_made_as_another(names):
    with pytest.raises(InputError, match="variants: expected some of fp32, fp16, int8, got"):
        require_variants(names)


@pytest.mark.parametrize("names", [list(ALL), ("fp32",), {"int8"}, []])
def test_known_variants_are_taken(names):
    require_variants(names)


def test_a_variant_below_the_gate_is_left_out_and_the_export_goes_on(dense, digits_run, tmp_path, capsys):
    out = tmp_path / "bundle"
    halves = [variants["fp16"].quality.psnr for variants in open_bundle(dense.path).manifest.components.values()]
    least = f"{min(halves) - 1:.0f}"
    arguments = ["export", str(digits_run.folder), "--out", str(out), "--variants", "fp32,fp16,int8"]
    assert main([*arguments, "--min-psnr", least, "--formats", "onnx"]) == 0
    printed = capsys.readouterr().err
    manifest = open_bundle(out).manifest
    assert [(each.component, each.variant) for each in manifest.refused] == [("encoder", "int8"), ("decoder", "int8")]
    for each in manifest.refused:
        assert f"dB below the minimum of {least} dB" in each.reason
        assert printed.count(f"left out: {each.component}/int8: {each.reason}\n") == 1
        assert f"{each.component}/int8: {each.reason}" in (out / "README.md").read_text(encoding="utf-8")
    assert list(manifest.decoder) == ["fp32", "fp16"]
    assert vae_runtime.load(out, variant="fp16").variants == {"encoder": "fp16", "decoder": "fp16"}
    with pytest.raises(BundleError, match="no variant 'int8'; choose one of: fp32, fp16"):
        vae_runtime.load(out, variant="int8")


def test_misuse_of_the_command_line(capsys):
    for flags, match in ((["--variants", "fp8"], "--variants"), (["--min-psnr", "nan"], "error: --min-psnr: ")):
        with pytest.raises(SystemExit, match="2"):
            main(["export", "run", "--out", "bundle", *flags])
        assert match in capsys.readouterr().err


def test_what_cannot_be_converted_is_refused_with_the_reason(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "INLINE", 500)
    monkeypatch.setattr(files, "INLINE", 500)
    exported = export(
        Convolutional(), tmp_path / "out", example=digits[:8], posterior="logvar", variants=ALL, formats=("onnx",)
    )
    assert len(exported.refused) == 4
    assert all("in a separate file" in each.reason for each in exported.refused)


# Where it runs.


class Constant(Convolutional):
    """Its logvar is the same number everywhere but for the last digits."""

    def encode(self, x):
        mu, logvar = super().encode(x)
        return mu, 1e-7 * logvar - 5


def test_a_quantizer_that_fails_leaves_its_way_out_and_the_export_goes_on(digits, tmp_path):
    done = export(Constant(), tmp_path / "bundle", example=digits, posterior="logvar", variants=ALL, formats=("onnx",))
    assert vae_runtime.verify(done.path).passed
    method = open_bundle(done.path).manifest.encoder["int8"].quality.method
    assert "99.9 %" not in method


class Line(nn.Module):
    """16 numbers → 4 latents by convolutions along one axis; of the moments one is coarse beside the other."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.down = nn.Sequential(nn.Conv1d(1, 32, 3, 2, 1), nn.ReLU(), nn.Conv1d(32, 32, 3, 2, 1), nn.Flatten())
        self.head = nn.Linear(128, 8)
        self.up = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 16), nn.Unflatten(1, (1, 16)))
        self.eval()

    def encode(self, x):
        return self.head(self.down(x)).chunk(2, 1)

    def decode(self, z):
        return self.up(z)


def test_convolutions_along_one_axis_stay_in_float32(tmp_path):
    x = np.random.default_rng(0).random((64, 1, 16), np.float32)
    done = export(Line(), tmp_path / "bundle", example=x, posterior="logvar", variants=ALL, formats=("onnx",))
    manifest = open_bundle(done.path).manifest
    assert manifest.encoder["int8"].quality.method == "int8 weights per channel, computed in float32"
    assert manifest.decoder["int8"].quality.method.startswith("static int8 per tensor")


class Even(nn.Module):
    """Dense layers alone."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Linear(64, 64), nn.Linear(64, 8)
        self.up = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64))
        self.eval()

    def encode(self, x):
        return self.head(torch.relu(self.first(x))).chunk(2, 1)

    def decode(self, z):
        return self.up(z)


class Uneven(Even):
    """Its mu reaches 400 times as far as its logvar, out of one layer."""

    def __init__(self):
        super().__init__()
        with torch.no_grad():
            self.head.weight[:4] *= 20
            self.head.weight[4:] *= 0.05


def test_few_observations_give_dense_layers_no_static_ranges(tmp_path):
    methods = []
    for n in (64, 62):
        x = np.random.default_rng(0).random((n, 64), np.float32)
        done = export(Even(), tmp_path / f"{n}", example=x, posterior="logvar", variants=("int8",), formats=("onnx",))
        methods.append(open_bundle(done.path).manifest.decoder["int8"].quality.method.split()[0])
    assert methods == ["static", "dynamic"]


def test_a_coarse_logvar_counts_where_there_is_no_elbo(uneven):
    x = np.random.default_rng(0).random((256, 64), np.float32)
    quality = open_bundle(uneven.path).manifest.encoder["int8"].quality
    found, wanted = (vae_runtime.load(uneven.path, variant=name).encode(x[1::2]) for name in ("int8", "fp32"))
    psnr = min(psnr_of(getattr(wanted, part), getattr(found, part), None)[0] for part in ("mean", "logvar"))
    assert psnr >= 35
    assert quality.psnr == pytest.approx(psnr, abs=2)
    assert "per tensor" not in quality.method


def test_a_variant_that_is_hardly_smaller_is_left_out(tmp_path):
    class Waves(Line):
        def decode(self, z):
            waves = torch.sin(z.sum(1, keepdim=True) * torch.linspace(0.5, 1, 2**14)).mean(1)
            return self.up(z) + waves[:, None, None]

    x = np.random.default_rng(0).random((64, 1, 16), np.float32)
    done = export(Waves(), tmp_path / "bundle", example=x, posterior="logvar", variants=ALL, formats=("onnx",))
    (reason,) = [each.reason for each in done.refused if (each.component, each.variant) == ("decoder", "int8")]
    assert "expected a file of at most 90 % of fp32's size, got " in reason


def test_a_component_without_the_variant_runs_in_fp32(dense, tmp_path, resign, capsys):
    folder = shutil.copytree(dense.path, tmp_path / "bundle")
    document = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    del document["components"]["decoder"]["variants"]["int8"]
    document["additional_metadata"]["vae"]["refused"] = [
        {"component": "decoder", "variant": "int8", "reason": "PSNR 20.0 dB, 15.0 dB below the minimum of 35 dB"}
    ]
    (folder / "manifest.json").write_text(json.dumps(document), encoding="utf-8")
    shutil.rmtree(folder / "decoder" / "int8")
    resign(folder)
    vae = vae_runtime.load(folder, variant="int8")
    assert vae.variants == {"encoder": "int8", "decoder": "fp32"}
    assert vae.variant == "fp32"
    plain, small = vae_runtime.load(dense.path), vae_runtime.load(dense.path, variant="int8")
    z = np.ones((2, *vae.latent_shape), np.float32)
    np.testing.assert_array_equal(vae.decode(z), plain.decode(z))
    x = np.zeros((2, *vae.observation_shape), np.float32)
    np.testing.assert_array_equal(vae.encode(x).mean, small.encode(x).mean)
    assert not np.array_equal(small.encode(x).mean, plain.encode(x).mean)
    from vae_runtime.cli.main import main as runtime

    assert runtime(["info", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "decoder/int8                left out: PSNR 20.0 dB, 15.0 dB below the minimum of 35 dB" in printed
    assert f"{vae.manifest.encoder['int8'].quality.psnr:.1f} dB" in printed


@pytest.mark.parametrize("which", ["dense", "convolutional"])
def test_verify_lets_other_kernels_pass_and_not_other_weights(which, tmp_path, resign, request):
    folder = shutil.copytree(request.getfixturevalue(which).path, tmp_path / "bundle")
    opened = open_bundle(folder)
    golden = read_golden(opened)
    for component, variants in opened.manifest.components.items():
        variant = variants["int8"]
        # Without its optimizations ONNX Runtime computes what the integers stand for in float32.
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(opened.read(variant.path), options, providers=["CPUExecutionProvider"])
        names = list(variant.tolerance)
        for name, answer in zip(names, session.run(names, golden_inputs(opened, component, golden)), strict=True):
            assert np.abs(answer - golden[f"{component}/int8/{name}"]).max() <= variant.tolerance[name]
        path = folder / variant.path
        model = onnx.load(path)
        for tensor in model.graph.initializer:
            if tensor.data_type == TensorProto.INT8 and math.prod(tensor.dims) >= 256:
                weights = numpy_helper.to_array(tensor)
                tensor.CopyFrom(numpy_helper.from_array((weights * 0.8).astype(np.int8), tensor.name))
        path.write_bytes(model.SerializeToString())
    resign(folder)
    failed = {check.what.split()[0] for check in vae_runtime.verify(folder).checks if check.passed is False}
    assert failed == {"encoder/int8", "decoder/int8"}


# What stands between.


def test_a_rewrite_that_is_wrong_is_left_out_and_said(digits, tmp_path, monkeypatch):
    def wrong(model):
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        tensor = max(changed.graph.initializer, key=lambda each: math.prod(each.dims))
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))
        return changed, ("1 × nonsense",)

    monkeypatch.setattr(graphs, "rewritten", wrong)
    out = export(Convolutional(), tmp_path / "out", example=digits[:8], posterior="logvar", formats=("onnx",)).path
    rewrites = open_bundle(out).manifest.producer["rewrites"]
    for component in ("encoder", "decoder"):
        assert rewrites[component][0].startswith("left as exported, because the rewritten graph fails: ")
    assert vae_runtime.verify(out).passed


def test_graphs_that_differ_are_told_apart():
    one = np.linspace(-2, 2, 6, dtype=np.float32)
    require_same(["y"], [one], [one + np.float32(1e-5)])
    for other in (one + np.float32(1e-4), one[:5], np.where(one > 1, np.nan, one)):
        with pytest.raises(ParityError, match="y: "):
            require_same(["y"], [one], [other])


def test_first_and_last_layers_are_found_along_every_way():
    node = onnx.helper.make_node
    graph = onnx.helper.make_graph(
        [
            node("Gemm", ["x", "a"], ["h"], name="first"),
            node("Relu", ["h"], ["r"]),
            node("Gemm", ["r", "b"], ["m"], name="middle"),
            node("MatMul", ["m", "c"], ["mu"], name="mu"),
            node("ConvTranspose", ["m", "d"], ["logvar"], name="logvar"),
        ],
        "g", [], [],
    )  # fmt: skip
    assert _ends(onnx.helper.make_model(graph)) == ({"first"}, {"mu", "logvar"})
