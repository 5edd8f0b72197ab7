"""Graphs that exist already become bundles, without PyTorch."""

import errno
import json
import math
import os
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
from makers import FLOAT, HALF, INT, decoder, dense, encoder, floats, random, saved
from onnx import TensorProto

import vae_runtime
from vae_export import ExportError, adopt
from vae_export.cli import main
from vae_runtime import InputError, VaeError
from vae_runtime.manifest import LatentPrior


@pytest.fixture
def optimum(tmp_path):
    folder = tmp_path / "sd"
    encoder(folder / "vae_encoder" / "model.onnx")
    decoder(folder / "vae_decoder" / "model.onnx")
    config = {"in_channels": 3, "sample_size": 16, "scaling_factor": 0.5, "shift_factor": 0.25}
    (folder / "vae_decoder" / "config.json").write_text(json.dumps(config))
    return folder


def run(path, x, feed=None):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {feed or session.get_inputs()[0].name: x})


def test_optimums_layout(optimum, tmp_path):
    adopted = adopt(optimum, tmp_path / "out")
    vae = vae_runtime.load(adopted.path, digest=adopted.digest)
    assert vae_runtime.verify(adopted.path).passed
    manifest, latent = vae.manifest, vae.manifest.latent
    assert (manifest.name, manifest.observation.name, latent.name) == ("sd", "sample", "latent_sample")
    assert (latent.scale, latent.shift, latent.prior.kind) == (0.5, 0.25, "none")
    assert "another model" in latent.prior.reason
    assert manifest.likelihood.kind == "none"
    x = floats(3, 3, 16, 16)
    (parameters,) = run(optimum / "vae_encoder" / "model.onnx", x)
    q = vae.encode(x)
    assert np.allclose(q.mean, parameters[:, :4], atol=1e-6)
    assert np.allclose(q.logvar, np.clip(parameters[:, 4:], -30, 20), atol=1e-6)
    assert np.allclose(q.std, np.exp(parameters[:, 4:] / 2), atol=1e-6)
    (decoded,) = run(optimum / "vae_decoder" / "model.onnx", q.mean)
    assert np.allclose(vae.decode(q.mean), decoded, atol=1e-6)
    # The sizes that the graphs leave open are dynamic, with those that were shown to work.
    assert sorted(manifest.observation.dynamic) == ["height", "width"]
    assert vae.encode(floats(1, 3, 8, 32)).mean.shape == (1, 4, 4, 16)
    card = (adopted.path / "README.md").read_text(encoding="utf-8")
    assert "Adopted from optimum's layout: parity with the original framework was not checked." in card
    assert "PyTorch" not in card


def test_a_pipeline_as_optimum_writes_it(tmp_path):
    """Names, axes and files are those of optimum 2.1's `optimum-cli export onnx --task text-to-image`."""
    folder = tmp_path / "onnx"
    kernel = {"strides": [2, 2], "kernel_shape": [2, 2]}
    whole, part = ("sample_height", "sample_width"), ("latent_height", "latent_width")
    saved(
        folder / "vae_encoder" / "model.onnx",
        [("Conv", ["sample", "k"], ["latent_parameters"], kernel)],
        [("sample", FLOAT, ["batch_size", 3, *whole])],
        [("latent_parameters", FLOAT, ["batch_size", 8, *(f"{size} / 2" for size in whole)])],
        {"k": floats(8, 3, 2, 2)},
        opset=18,
    )
    saved(
        folder / "vae_decoder" / "model.onnx",
        [("ConvTranspose", ["latent_sample", "k"], ["sample"], kernel)],
        [("latent_sample", FLOAT, ["batch_size", 4, *part])],
        [("sample", FLOAT, ["batch_size", 3, *(f"{size} * 2" for size in part)])],
        {"k": floats(4, 3, 2, 2)},
        opset=18,
    )
    config = {
        "_class_name": "AutoencoderKL", "_diffusers_version": "0.35.2", "_name_or_path": "/home/me/pipe/vae",
        "act_fn": "silu", "block_out_channels": [8, 16], "down_block_types": ["DownEncoderBlock2D"] * 2,
        "force_upcast": True, "in_channels": 3, "latent_channels": 4, "latents_mean": None, "latents_std": None,
        "layers_per_block": 1, "mid_block_add_attention": True, "norm_num_groups": 4, "out_channels": 3,
        "sample_size": 16, "scaling_factor": 0.18215, "shift_factor": None,
        "up_block_types": ["UpDecoderBlock2D"] * 2, "use_post_quant_conv": True, "use_quant_conv": True,
    }  # fmt: skip
    for component in ("encoder", "decoder"):
        (folder / f"vae_{component}" / "config.json").write_text(json.dumps(config))
    for other in ("unet", "text_encoder"):
        (folder / other).mkdir()
        (folder / other / "model.onnx").write_bytes(b"of no matter")
        (folder / other / "config.json").write_text("{}")
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    adopted = adopt(folder, tmp_path / "out")
    assert vae_runtime.verify(adopted.path).passed
    vae = vae_runtime.load(adopted.path)
    assert (vae.manifest.latent.scale, vae.manifest.latent.shift) == (0.18215, 0.0)
    assert vae.manifest.latent.prior.kind == "none"
    assert sorted(vae.manifest.observation.dynamic) == ["height", "width"]
    assert "tiles: not measured; tile_blend divides arrays into tiles that change values" in adopted.recognised
    z = floats(2, 4, 6, 9)
    (decoded,) = run(folder / "vae_decoder" / "model.onnx", z)
    assert np.allclose(vae.decode(z), decoded, atol=1e-6)
    assert b"/home/me" not in b"".join(path.read_bytes() for path in adopted.path.rglob("*") if path.is_file())


def test_the_same_graphs_mean_the_same_as_two_files(optimum, tmp_path):
    paths = [optimum / f"vae_{part}" / "model.onnx" for part in ("encoder", "decoder")]

    def latent(number, **arguments):
        return vae_runtime.load(adopt(paths, tmp_path / str(number), **arguments).path).manifest.latent

    for number, place in enumerate(("vae_encoder", ".", "vae", "vae")):
        # Wherever config.json is.
        whole = vae_runtime.load(adopt(optimum, tmp_path / f"whole{number}").path).manifest.latent
        assert latent(number) == whole
        assert (whole.prior.kind, whole.scale, whole.shift) == ("none", 0.5, 0.25)
        (optimum / place).mkdir(exist_ok=True)
        (config,) = optimum.rglob("config.json")
        config.rename(optimum / place / "config.json")
    next(optimum.rglob("config.json")).unlink()
    unknown = latent("names", shape=(3, 8, 8))
    assert (unknown.prior.kind, unknown.scale) == ("none", 1.0)
    assert "the names of those of a diffusion model" in unknown.prior.reason
    assert "--prior normal" in unknown.prior.reason
    assert latent("declared", shape=(3, 8, 8), prior="normal").prior == LatentPrior("normal")
    other = encoder(tmp_path / "e.onnx", "moments"), decoder(tmp_path / "d.onnx", taken="z")
    plain = adopt(other, tmp_path / "plain", shape=(3, 8, 8), posterior="logvar")
    assert vae_runtime.load(plain.path).manifest.latent.prior == LatentPrior("normal", assumed=True)


def test_the_clip_of_diffusers_is_that_of_latent_parameters_alone(tmp_path):
    """A second half beyond -30 … 20 shows it."""
    for name, logvar in (("latent_parameters", 20.0), ("moments", 40.0)):
        path = tmp_path / name / "e.onnx"
        nodes = [("Identity", ["w"], ["one"]), ("Mul", ["x", "one"], [name])]
        weights = {"w": np.array([1, 1, 40, -40], np.float32)}
        saved(path, nodes, [("x", FLOAT, ["b", 4])], [(name, FLOAT, ["b", 4])], weights)
        back = dense(tmp_path / name / "d.onnx", {"y": 4}, {"y": "Tanh"}, ("z", 2))
        adopted = adopt((path, back), tmp_path / name / "out", posterior="logvar")
        q = vae_runtime.load(adopted.path).encode(np.ones((1, 4), np.float32))
        assert q.logvar[0, 0] == logvar


@pytest.mark.parametrize(
    ("second", "end", "meaning", "std"),
    [
        ("logvar", "Tanh", None, lambda t: np.exp(t / 2)),
        ("z_log_var", "Tanh", None, lambda t: np.exp(t / 2)),
        ("b", "Tanh", "log_std", np.exp),
        ("sigma", "Exp", None, lambda t: t),
        ("sigma.1", "Exp", None, lambda t: t),
        ("b", "Exp", "var", np.sqrt),
        # A name that ends in 2 is that of a square.
        ("sigma2", "Exp", None, np.sqrt),
        ("log_sigma2", "Tanh", None, lambda t: np.exp(t / 2)),
        ("z_log_sigma_sq", "Tanh", None, lambda t: np.exp(t / 2)),
        ("logvar_2", "Tanh", None, lambda t: np.exp(t / 2)),
        ("b", "Tanh", "softplus", lambda t: np.log1p(np.exp(t))),
    ],
)
def test_two_outputs_by_name_or_declaration(tmp_path, second, end, meaning, std):
    paths = (
        dense(tmp_path / "e.onnx", {"mu": 2, second: 2}, {second: end, "mu": "Tanh"}),
        dense(tmp_path / "d.onnx", {"x_hat": 6}, {"x_hat": "Sigmoid"}, ("z", 2)),
    )
    adopted = adopt(paths, tmp_path / "out", posterior=meaning, likelihood="bernoulli", version="1.2.0")
    vae = vae_runtime.load(adopted.path)
    x = random.uniform(size=(5, 6)).astype(np.float32)
    b, mu = run(paths[0], x)
    q = vae.encode(x)
    assert np.allclose(q.mean, mu, atol=1e-6)
    assert np.allclose(q.std, std(b), atol=1e-6)
    assert np.allclose(q.logvar, 2 * np.log(std(b)), atol=1e-5)
    assert (vae.manifest.latent.prior.kind, vae.manifest.latent.prior.assumed) == ("normal", True)
    assert vae.manifest.package_version == "1.2.0"
    assert vae.sample(3, seed=0).shape == (3, 6)
    assert np.isfinite(vae.score(x, seed=0).elbo).all()


@pytest.mark.parametrize(("meaning", "number"), [("std", 40.0), ("logvar", 20.0)])
def test_the_clip_of_diffusers_is_that_of_a_logvar(tmp_path, meaning, number):
    """A tensor called latent_parameters holds what the argument says."""
    weights = {"w": np.array([1, 1, 40, 40], np.float32)}
    ends = [("x", FLOAT, ["b", 4])], [("latent_parameters", FLOAT, ["b", 4])]
    path = saved(tmp_path / "e.onnx", [("Mul", ["x", "w"], ["latent_parameters"])], *ends, weights)
    back = dense(tmp_path / "d.onnx", {"y": 4}, {"y": "Tanh"}, ("z", 2))
    adopted = adopt((path, back), tmp_path / "out", posterior=meaning, range=(0.5, 1))
    q = vae_runtime.load(adopted.path).encode(np.ones((1, 4), np.float32))
    assert getattr(q, meaning)[0, 0] == pytest.approx(number)
    assert ("clipped" in " ".join(adopted.recognised)) == (meaning == "logvar")


def test_logits_float16_codes_and_one_row(tmp_path):
    half = encoder(tmp_path / "half" / "e.onnx", kind=HALF), decoder(tmp_path / "half" / "d.onnx", "logits", kind=HALF)
    vae = vae_runtime.load(adopt(half, tmp_path / "a", shape=(3, 8, 8), likelihood="bernoulli").path)
    z = floats(2, 4, 4, 4)
    (logits,) = run(half[1], z.astype(np.float16))
    assert vae.manifest.likelihood.logits == "logits"
    assert np.allclose(vae.decode(z), 1 / (1 + np.exp(-logits.astype(np.float32))), atol=1e-3)

    nodes = [("ArgMax", ["x"], ["codes"], {"axis": 2, "keepdims": 0})]
    paths = [saved(tmp_path / "e.onnx", nodes, [("x", FLOAT, ["b", 3, 5])], [("codes", INT, ["b", 3])])]
    nodes = [("Gather", ["table", "codes"], ["y"])]
    ends = [("codes", INT, ["b", 3])], [("y", FLOAT, ["b", 3, 5])]
    paths.append(saved(tmp_path / "d.onnx", nodes, *ends, {"table": floats(5, 5)}))
    vae = vae_runtime.load(adopt(paths, tmp_path / "b", codebook=5).path)
    x = floats(2, 3, 5)
    assert (vae.encode(x).mode() == x.argmax(2)).all()

    fixed = encoder(tmp_path / "one.onnx", "mean", 4, (1, 3, 8, 8)), decoder(tmp_path / "dec.onnx")
    vae = vae_runtime.load(adopt(fixed, tmp_path / "c").path)
    assert vae.manifest.batch_of_one == ("encoder",)
    assert vae.manifest.latent.posterior.kind == "none"
    x = floats(3, 3, 8, 8)
    assert np.allclose(vae.encode(x).mode()[1:2], run(fixed[0], x[1:2])[0], atol=1e-6)


def package(folder, **manifest):
    """A model package as another tool writes it: a component in its own file, a shared asset, a variant for CUDA."""
    encoder(folder / "enc" / "cpu" / "model.onnx")
    asset = "0" * 64
    decoder(folder / "shared_assets" / f"sha256-{asset}" / "weights" / "model.onnx")
    component = {
        "component_name": "vae_encoder",
        "variants": {
            "cuda": {"ep": "CUDAExecutionProvider", "executor_info": {"ort": {"model_file": "none.onnx"}}},
            "cpu": {"ep": "CPUExecutionProvider", "device": "cpu", "executor_info": {"ort": "ort_info.json"}},
        },
    }
    (folder / "enc" / "component.json").write_text(json.dumps(component))
    (folder / "enc" / "cpu" / "ort_info.json").write_text(json.dumps({"model_file": "model.onnx"}))
    file = {"model_file": f"sha256:{asset}/weights/model.onnx"}
    variants = {"all": {"variant_directory": "dec", "executor_info": {"ort": file}}}
    (folder / "dec").mkdir()
    document = {
        "schema_version": "1.0", "package_name": "mine", "package_version": "2.1", "description": "Pictures",
        "components": {"vae_encoder": "enc", "vae_decoder": {"variants": variants}}, **manifest,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(document))
    return folder


def test_a_model_package_of_another_tool(tmp_path):
    folder = package(tmp_path / "package")
    if hasattr(onnxruntime, "ModelPackageContext"):
        # ONNX Runtime reads it as the specification says.
        assert onnxruntime.ModelPackageContext(str(folder)).get_component_names() == ["vae_encoder", "vae_decoder"]
    adopted = adopt(folder, tmp_path / "out", shape=(3, 8, 8))
    manifest = vae_runtime.load(adopted.path).manifest
    assert (manifest.name, manifest.package_version, manifest.description) == ("mine", "2.1", "Pictures")
    assert vae_runtime.verify(adopted.path).passed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": "2.0"}, "expected a model package of schema 1.x, got '2.0'"),
        ({"components": []}, "components: expected a JSON object"),
        ({"components": {"decoder": "dec"}}, "expected one component whose name ends in encoder"),
        ({"components": {"vae_encoder": "../sd", "vae_decoder": "dec"}}, "which leads out of it"),
        ({"components": {"vae_encoder": "/etc/passwd", "vae_decoder": "dec"}}, "which leads out of it"),
        ({"components": {"vae_encoder": {"variants": {}}, "vae_decoder": "dec"}}, "expected a variant for the CPU"),
        ({"additional_metadata": {"vae": {}}}, "is a bundle already"),
    ],
)
def test_what_is_no_package_of_a_vae(tmp_path, change, words):
    with pytest.raises(InputError, match=words):
        adopt(package(tmp_path / "package", **change), tmp_path / "out", shape=(3, 8, 8))
    assert not (tmp_path / "out").exists()


def refused(tmp_path, paths, **arguments):
    with pytest.raises(ExportError) as caught:
        adopt(paths, tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()
    return str(caught.value)


def test_what_cannot_be_understood_is_refused_with_the_argument_that_says_it(tmp_path):
    back = dense(tmp_path / "d.onnx", {"y": 6}, {"y": "Identity"}, ("z", 2))
    two = dense(tmp_path / "two.onnx", {"a": 2, "b": 2}, {"a": "Tanh", "b": "Tanh"})
    assert "b: expected a declared meaning, got none; give posterior=" in refused(tmp_path, (two, back))
    for name in ("sigma_2", "z_log_sigma.2"):
        # The second sigma, or its square.
        unclear = dense(tmp_path / "two.onnx", {"mu": 2, name: 2}, {"mu": "Tanh", name: "Exp"})
        assert f"{name}: expected a declared meaning" in refused(tmp_path, (unclear, back))
    moments = dense(tmp_path / "m.onnx", {"moments": 4}, {"moments": "Tanh"})
    assert "moments: expected a declared meaning" in refused(tmp_path, (moments, back))
    other = dense(tmp_path / "o.onnx", {"h": 5}, {"h": "Tanh"})
    assert "give the two graphs of one model" in refused(tmp_path, (other, back))
    pictures = encoder(tmp_path / "e.onnx"), decoder(tmp_path / "d2.onnx")
    assert "got [3, 'h', 'w'] in the graph; give shape=" in refused(tmp_path, pictures)
    assert "shape: expected [3, 'h', 'w'] of sample, got [4, 8, 8]" in refused(tmp_path, pictures, shape=(4, 8, 8))
    words = refused(tmp_path, (moments, back), posterior="logvar", likelihood="bernoulli")
    assert "expected means from 0 to 1 for the likelihood bernoulli" in words
    assert "logits= says that they are logits" in words
    codes = [("ArgMax", ["x"], ["c"], {"axis": 1})]
    integers = saved(tmp_path / "c.onnx", codes, [("x", FLOAT, ["b", 6])], [("c", INT, ["b", 1])])
    assert "c: expected codebook=" in refused(tmp_path, (integers, back))
    fixed = encoder(tmp_path / "f.onnx", axes=(2, 3, 8, 8))
    assert "expected a dynamic batch axis, got one of 2" in refused(tmp_path, (fixed, pictures[1]))


def conditional(tmp_path):
    """An encoder that takes a label, and a decoder that takes it as int32, and a map beside it."""
    label, table = ("label", INT, ["b"]), {"table": floats(3, 6)}
    nodes = [("Gather", ["table", "label"], ["row"]), ("Add", ["x", "row"], ["s"]), ("Tanh", ["s"], ["z"])]
    ends = [("x", FLOAT, ["b", 6])], [("z", FLOAT, ["b", 6])]
    coder = saved(tmp_path / "e.onnx", nodes, [ends[0][0], label], ends[1], table)
    nodes = [
        ("Gather", ["table", "label"], ["row"]),
        ("Add", ["z", "row"], ["s"]),
        ("Mul", ["s", "map"], ["m"]),
        ("Sigmoid", ["m"], ["y"]),
    ]
    inputs = [("map", FLOAT, ["b", 6]), ("label", TensorProto.INT32, ["b"]), ("z", FLOAT, ["b", 6])]
    return coder, saved(tmp_path / "d.onnx", nodes, inputs, [("y", FLOAT, ["b", 6])], table)


def test_further_inputs_become_conditions(tmp_path, monkeypatch, capsys):
    paths = conditional(tmp_path)
    monkeypatch.chdir(tmp_path)
    label, scale = np.array([0, 2, 1]), floats(3, 6)
    np.save("label.npy", label)
    np.save("map.npy", scale)
    given = ["--condition", "label=label.npy", "--condition", "map=map.npy", "--class-names", "a,b,c"]
    assert main(["adopt", *map(str, paths), *given, "--prior", "normal", "--out", "out"]) == 0
    assert capsys.readouterr().out.endswith("was not checked\n")
    assert vae_runtime.verify("out").passed
    vae = vae_runtime.load("out")
    described = [(c.name, c.dtype, c.shape, c.classes, c.components) for c in vae.manifest.conditions]
    both = ("encoder", "decoder")
    assert described == [
        ("label", "int64", (), ("a", "b", "c"), both),
        ("map", "float32", (6,), None, ("decoder",)),
    ]
    x = floats(3, 6)
    session = onnxruntime.InferenceSession(paths[0], providers=["CPUExecutionProvider"])
    (z,) = session.run(None, {"x": x, "label": label})
    assert np.allclose(vae.encode(x, conditions={"label": ["a", "c", "b"]}).value, z, atol=1e-6)
    session = onnxruntime.InferenceSession(paths[1], providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"z": z, "label": label.astype(np.int32), "map": scale})
    assert np.allclose(vae.decode(z, conditions={"label": label, "map": scale}), y, atol=1e-6)
    assert vae.sample(2, seed=0, conditions={"label": "b", "map": scale[:2]}).shape == (2, 6)


def test_a_condition_of_bools_has_0_and_1(tmp_path):
    front = dense(tmp_path / "e.onnx", {"z": 6}, {"z": "Tanh"})
    ends = [("z", FLOAT, ["b", 6]), ("mask", TensorProto.BOOL, ["b", 6])], [("y", FLOAT, ["b", 6])]
    back = saved(tmp_path / "d.onnx", [("Where", ["mask", "z", "no"], ["y"])], *ends, {"no": np.float32(7)})
    mask = np.array([[True, False] * 3])
    vae = vae_runtime.load(adopt((front, back), tmp_path / "out", conditions={"mask": mask}).path)
    (condition,) = vae.manifest.conditions
    assert (condition.dtype, condition.range, condition.components) == ("int64", (0.0, 1.0), ("decoder",))
    z = floats(2, 6)
    assert np.array_equal(vae.decode(z, conditions={"mask": mask[0]}), np.where(mask, z, 7))


def quantized(path, taken, given, sizes):
    """A layer in integers, whose scale is computed of the input."""
    nodes = [
        ("DynamicQuantizeLinear", [taken], ["q", "s", "n"]),
        ("MatMulInteger", ["q", "w", "n"], ["i"]),
        ("Cast", ["i"], ["f"], {"to": FLOAT}),
        ("Mul", ["f", "s"], ["m"]),
        ("Mul", ["m", "t"], [given]),
    ]
    weights = {"w": random.integers(-99, 99, sizes).astype(np.int8), "t": np.float32(0.003)}
    return saved(path, nodes, [(taken, FLOAT, ["b", sizes[0]])], [(given, FLOAT, ["b", sizes[1]])], weights)


def test_quantized_graphs_run_row_by_row(tmp_path):
    paths = quantized(tmp_path / "e.onnx", "x", "z", (6, 4)), quantized(tmp_path / "d.onnx", "z", "y", (4, 6))
    adopted = adopt(paths, tmp_path / "out")
    vae = vae_runtime.load(adopted.path)
    assert [variant.precision for variant in vae.manifest.variants] == ["int8", "int8"]
    assert vae.manifest.batch_of_one == ("encoder", "decoder")
    x = floats(3, 6) * [[1], [10], [100]]
    rows = np.concatenate([run(paths[0], row[None].astype(np.float32))[0] for row in x])
    assert np.allclose(vae.encode(x.astype(np.float32)).value, rows, atol=1e-5)
    (together,) = run(paths[0], x.astype(np.float32))
    assert not np.allclose(together, rows, atol=1e-2)
    # Another machine may round a number to the next integer.
    assert min(vae.manifest.decoder["fp32"].tolerance.values()) > 1e-4


@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        ({"label": [0, 1]}, "d.onnx: expected one input beside the conditions, z, got map, z; give conditions="),
        ({"label": [0.5, 1.0], "map": np.ones((2, 6))}, r"label: expected values of int64 \[\], got float32 \[\]"),
        ({"label": [0, 1], "map": np.ones((2, 5))}, r"map: expected values of float32 \[6\], got float32 \[5\]"),
        ({"label": [0, 1], "map": np.ones((2, 6)), "u": [1]}, "inputs of the graphs, among x, label, map, .*got 'u'"),
        ({"label": [0, np.nan]}, "expected finite numbers"),
        ({"label": 3}, "of at least one row"),
        ({"label": [0, 9], "map": np.ones((2, 6))}, r"fails on x \[6\]: .* \[-3,2\]; correct shape= or conditions=$"),
        ({"label": np.array([0, 2**64 - 1], np.uint64)}, "that int64 holds, got 18446744073709551615"),
        ({"map": np.full((2, 6), -1e300)}, r"that float32 holds, got 1e\+300"),
        ({"mu": [3]}, "expected names of letters"),
        ([1], "expected arrays by name, got list"),
    ],
)
def test_conditions_that_the_graphs_do_not_have(tmp_path, conditions, words):
    with pytest.raises((ExportError, InputError), match=words):
        adopt(conditional(tmp_path), tmp_path / "out", conditions=conditions)
    assert not (tmp_path / "out").exists()


def test_graphs_that_onnx_runtime_optimized(optimum, tmp_path):
    """At the level "extended" they are adopted; above it they are for one processor."""
    paths = []
    for component in ("encoder", "decoder"):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.log_severity_level = 3
        paths.append(tmp_path / f"{component}.onnx")
        options.optimized_model_filepath = str(paths[-1])
        given = optimum / f"vae_{component}" / "model.onnx"
        onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    assert vae_runtime.verify(adopt(paths, tmp_path / "extended", shape=(3, 8, 8)).path).passed
    blocked = saved(tmp_path / "n.onnx", [("Tanh", ["x"], ["z"])], [("x", FLOAT, ["b", 6])], [("z", FLOAT, ["b", 6])])
    graph = onnx.load(blocked)
    graph.graph.node[0].domain = "com.microsoft.nchwc"
    graph.opset_import.append(onnx.helper.make_opsetid("com.microsoft.nchwc", 1))
    onnx.save(graph, blocked)
    back = dense(tmp_path / "d.onnx", {"y": 6}, {"y": "Identity"}, ("z", 6))
    assert "; optimize the graph at most at ONNX Runtime's level extended" in refused(tmp_path, (blocked, back))


def test_graphs_that_no_bundle_can_have(tmp_path):
    back = dense(tmp_path / "d.onnx", {"y": 6}, {"y": "Identity"}, ("z", 6))
    value = [("x", FLOAT, ["b", 6])], [("z", FLOAT, ["b", 6])]
    noise = saved(tmp_path / "n.onnx", [("RandomNormalLike", ["x"], ["e"]), ("Add", ["x", "e"], ["z"])], *value)
    assert "expected a graph without random operators, got RandomNormalLike" in refused(tmp_path, (noise, back))
    mixed = saved(
        tmp_path / "b.onnx", [("ReduceMean", ["x"], ["m"], {"axes": [0]}), ("Sub", ["x", "m"], ["z"])], *value
    )
    assert "expected rows that do not depend on each other" in refused(tmp_path, (mixed, back))
    undefined = saved(tmp_path / "u.onnx", [("Log", ["x"], ["z"])], *value)
    assert "z: expected finite numbers, got others; range=" in refused(tmp_path, (undefined, back))
    inputs = [*value[0], ("t", FLOAT, ["b", 6])]
    timed = saved(tmp_path / "t.onnx", [("Add", ["x", "t"], ["z"])], inputs, value[1])
    assert "expected one input beside the conditions, x, got x, t; give cond" in refused(tmp_path, (timed, back))
    empty = tmp_path / "empty.onnx"
    for content in (b"", b"x" * 1000):
        empty.write_bytes(content)
        assert "empty.onnx: expected an ONNX graph, got a file without one" in refused(tmp_path, (empty, back))
    old = saved(tmp_path / "old.onnx", [("Tanh", ["x"], ["z"])], *value, opset=9)
    assert "expected opset 11 or later, got 9" in refused(tmp_path, (old, back))
    loop = [("Loop", ["", "", "x"], ["z"], {"body": onnx.load(noise).graph})]
    assert "RandomNormalLike" in refused(tmp_path, (saved(tmp_path / "l.onnx", loop, *value), back))
    (tmp_path / "junk.onnx").write_bytes(b"\x00junk")
    assert "expected an ONNX graph" in refused(tmp_path, (tmp_path / "junk.onnx", back))


@pytest.mark.parametrize(
    ("config", "scale", "words"),
    [
        ({"scaling_factor": 0}, None, "expected a finite scale of the latents other than 0"),
        ({"scaling_factor": "much"}, None, "scaling_factor: expected 1 number, got 'much'"),
        ({"latents_mean": [0.0] * 4, "latents_std": [1.0, 2.0, 4.0]}, None, "latents_std: expected 4 numbers"),
        ({"latents_mean": [0.0] * 4, "latents_std": [1.0, 2.0, 4.0, 0.0]}, None, "other than 0, got inf"),
        ({"latents_mean": [0.0] * 4, "latents_std": [1, 2, 4, 8], "scaling_factor": 2}, (2.0, 1.0, 0.5, 0.25), ""),
        ({"scaling_factor": math.inf}, None, "scaling_factor: expected 1 number"),
        ({"sample_size": [8, 12], "in_channels": 3}, 1.0, ""),
    ],
)
def test_the_configuration_of_diffusers(optimum, tmp_path, config, scale, words):
    (optimum / "vae_decoder" / "config.json").write_text(json.dumps({"in_channels": 3, "sample_size": 8, **config}))
    if words:
        with pytest.raises(InputError, match=f"config.json: .*{words}"):
            adopt(optimum, tmp_path / "out")
        return
    latent = vae_runtime.load(adopt(optimum, tmp_path / "out").path).manifest.latent
    assert latent.scale == scale
    assert latent.prior.kind == "none"


def test_nodes_in_any_order(tmp_path):
    """Converters to float16 append their nodes, and ONNX Runtime lets them."""
    paths = encoder(tmp_path / "e.onnx"), decoder(tmp_path / "d.onnx")
    model = onnx.load(paths[0])
    nodes = [*model.graph.node][::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    paths[0].write_bytes(model.SerializeToString())
    assert vae_runtime.verify(adopt(paths, tmp_path / "out", shape=(3, 8, 8)).path).passed
    circle = [("Add", ["x", "b"], ["a"]), ("Tanh", ["a"], ["b"]), ("Tanh", ["b"], ["z"])]
    loop = saved(tmp_path / "c.onnx", circle, [("x", FLOAT, ["b", 6])], [("z", FLOAT, ["b", 6])])
    assert "c.onnx: expected a graph that vae-runtime runs: " in refused(tmp_path / "no", (loop, paths[1]))


def test_weights_beside_a_graph_and_those_outside_of_it(tmp_path):
    paths = encoder(tmp_path / "in" / "e.onnx"), decoder(tmp_path / "in" / "d.onnx")
    model = onnx.load(paths[0])
    onnx.save(model, paths[0], save_as_external_data=True, location="e.data", size_threshold=0)
    adopted = adopt(paths, tmp_path / "out", shape=(3, 8, 8))
    assert vae_runtime.verify(adopted.path).passed
    model = onnx.load(paths[0], load_external_data=False)
    shutil.move(tmp_path / "in" / "e.data", tmp_path / "e.data")
    for entry in model.graph.initializer[0].external_data:
        entry.value = "../e.data" if entry.key == "location" else entry.value
    paths[0].write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match="expected an ONNX graph and its weights"):
        adopt(paths, tmp_path / "other", shape=(3, 8, 8))
    # Only the numbers of the tensor are read, however large the file is.
    with open(tmp_path / "in" / "e.data", "wb") as file:
        file.truncate(2**40)
    model = onnx.load(paths[0], load_external_data=False)
    del model.graph.initializer[0].external_data[:]
    model.graph.initializer[0].external_data.add(key="location", value="e.data")
    paths[0].write_bytes(model.SerializeToString())
    assert vae_runtime.verify(adopt(paths, tmp_path / "zeros", shape=(3, 8, 8)).path).passed
    model.graph.initializer[0].external_data.add(key="length", value=str(2**30))
    paths[0].write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match="k: expected at most 384 bytes of values, got more"):
        adopt(paths, tmp_path / "other", shape=(3, 8, 8))


def test_functions_are_written_out_if_they_stay_small(tmp_path):
    """A function that calls another twice, and so on, has more nodes than there is memory."""
    back = dense(tmp_path / "d.onnx", {"y": 6}, {"y": "Identity"}, ("z", 6))
    for depth, fits in ((3, True), (40, False)):
        path = saved(tmp_path / "f.onnx", [("Tanh", ["x"], ["t"])], [("x", FLOAT, ["b", 6])], [("z", FLOAT, ["b", 6])])
        model, inner, domain = onnx.load(path), "Tanh", ""
        for number in range(depth):
            nodes = [onnx.helper.make_node(inner, [a], [b], domain=domain) for a, b in (("x", "a"), ("a", "y"))]
            opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("mine", 1)]
            model.functions.append(onnx.helper.make_function("mine", f"F{number}", ["x"], ["y"], nodes, opsets))
            inner, domain = f"F{number}", "mine"
        model.opset_import.append(onnx.helper.make_opsetid("mine", 1))
        model.graph.node.append(onnx.helper.make_node(inner, ["t"], ["z"], domain="mine"))
        path.write_bytes(model.SerializeToString())
        if fits:
            x = floats(2, 6)
            expected = x
            for _ in range(1 + 2**depth):
                expected = np.tanh(expected)
            vae = vae_runtime.load(adopt((path, back), tmp_path / "out").path)
            assert np.allclose(vae.encode(x).mode(), expected, atol=1e-6)
        else:
            assert "at most 16384 nodes, those of functions at each call" in refused(tmp_path / "no", (path, back))


def test_open_axes_that_do_not_work_together(tmp_path):
    """An encoder that runs if the height or the width is 8: the height varies, and the width does not."""
    sizes = {"two": np.array([2]), "three": np.array([3]), "eight": np.array([8]), "first": np.array([1])}
    nodes = [
        ("Shape", ["x"], ["s"]), ("Gather", ["s", "two"], ["h"]), ("Gather", ["s", "three"], ["w"]),
        ("Sub", ["h", "eight"], ["dh"]), ("Sub", ["w", "eight"], ["dw"]), ("Mul", ["dh", "dw"], ["d"]),
        ("Add", ["d", "first"], ["n"]), ("Reshape", ["one", "n"], ["r"]), ("Mul", ["x", "r"], ["y"]),
        ("Conv", ["y", "k"], ["z"], {"strides": [2, 2], "kernel_shape": [2, 2]}),
    ]  # fmt: skip
    ends = [("x", FLOAT, ["b", 3, "h", "w"])], [("z", FLOAT, ["b", 4, "h2", "w2"])]
    weights = {"one": np.ones(1, np.float32), "k": floats(4, 3, 2, 2), **sizes}
    paths = saved(tmp_path / "e.onnx", nodes, *ends, weights), decoder(tmp_path / "d.onnx", taken="z")
    adopted = adopt(paths, tmp_path / "out", shape=(3, 8, 8))
    vae = vae_runtime.load(adopted.path)
    assert list(vae.manifest.observation.dynamic) == ["height"]
    (line,) = [line for line in adopted.recognised if "fixed, although the graph leaves it open" in line]
    assert line.startswith("axis width: ")
    # Where an axis is asked for, that is an error.
    with pytest.raises(VaeError):
        adopt(paths, tmp_path / "no", shape=(3, 8, 8), dynamic=("height", "width"))
    assert not (tmp_path / "no").exists()
    # The adopted graphs compute what the given ones do, at the smallest and largest sizes too.
    free = encoder(tmp_path / "free.onnx", "moments"), paths[1]
    both = vae_runtime.load(adopt(free, tmp_path / "both", shape=(3, 8, 8), posterior="logvar").path)
    for loaded, given, axes in ((vae, paths, 1), (both, free, 2)):
        dynamic = loaded.manifest.observation.dynamic
        assert len(dynamic) == axes
        for size in ("min", "max"):
            shape = [getattr(dynamic[axis], size) if axis in dynamic else 8 for axis in ("height", "width")]
            assert shape != [8, 8]
            x = floats(2, 3, *shape)
            (answer,) = run(given[0], x)
            mean = loaded.encode(x).mode()
            assert np.allclose(mean, answer[:, :4], atol=1e-6)
            assert np.allclose(loaded.decode(mean), run(given[1], mean)[0], atol=1e-6)


def test_texts_of_a_package_are_printable(tmp_path):
    folder = package(tmp_path / "p\x1b[2J", package_name="\x1b[2J", description="two\nlines", package_version="1.0-rc1")
    manifest = vae_runtime.load(adopt(folder, tmp_path / "out", shape=(3, 8, 8)).path).manifest
    assert (manifest.name, manifest.description, manifest.package_version) == ("vae", "two lines", None)


def test_what_is_not_there(optimum, tmp_path):
    with pytest.raises(InputError, match=r"give ENCODER\.onnx DECODER\.onnx"):
        adopt(tmp_path / "nothing", tmp_path / "out")
    (optimum / "vae_decoder" / "model.onnx").unlink()
    with pytest.raises(InputError, match=r"vae_decoder/model\.onnx is missing"):
        adopt(optimum, tmp_path / "out")
    os.mkfifo(optimum / "vae_decoder" / "model.onnx")
    with pytest.raises(InputError, match="expected an ONNX file: expected a plain file, got a pipe"):
        adopt(optimum, tmp_path / "out")
    for arguments, words in (
        ({"prior": "mixture:3"}, "prior: expected normal, none or sphere"),
        ({"shape": 3}, "shape: expected the sizes"),
        ({"shape": (0,)}, "shape: expected"),
    ):
        with pytest.raises(InputError, match=words):
            adopt(optimum, tmp_path / "out", **arguments)


def test_pytorch_is_not_imported(optimum, tmp_path, python):
    code = "import sys; sys.modules['torch'] = None; from vae_export.cli import main; sys.exit(main(sys.argv[1:]))"
    done = python("-c", code, "adopt", optimum, "--out", tmp_path / "out", "--likelihood", "gaussian")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "parity with the original framework was not checked" in done.stdout
    # The check sees a module that needs it.
    assert python("-c", code.replace("vae_export.cli", "vae_export.training.model")).returncode == 1


def test_the_command_names_its_options(optimum, tmp_path, capsys):
    (optimum / "vae_decoder" / "config.json").unlink()
    assert main(["adopt", str(optimum), "--out", str(tmp_path / "out")]) == 1
    assert "give --shape" in capsys.readouterr().err
    assert main(["adopt", str(optimum), "--out", str(tmp_path / "out"), "--shape", "3,8,8"]) == 0
    assert vae_runtime.load(tmp_path / "out").manifest.observation.shape == (3, 8, 8)
    with pytest.raises(SystemExit, match="2"):
        main(["adopt", "a", "b", "c", "--out", str(tmp_path / "no")])
    with pytest.raises(SystemExit, match="2"):
        main(["adopt", "a", "b", "--out", str(tmp_path / "no"), "--shape", "3,8,x"])
    assert "argument --shape: expected an integer, got 'x'" in capsys.readouterr().err


def test_sizes_beyond_memory_name_the_shape(optimum, tmp_path, capsys):
    shape = ["--shape", "3,2147483647,2147483647"]
    assert main(["adopt", str(optimum), "--out", str(tmp_path / "out"), *shape]) == 1
    assert "error: --shape: expected observations that fit in memory, got [3, 2147483647," in capsys.readouterr().err


def test_a_full_disk_is_not_the_graphs_fault(optimum, tmp_path, monkeypatch):
    def full(model, path):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    monkeypatch.setattr("vae_export.adopting.write_graph", full)
    with pytest.raises(VaeError, match="encoder: not written: File too large; free some space, or set TMPDIR"):
        adopt(optimum, tmp_path / "out")
    assert not (tmp_path / "out").exists()
