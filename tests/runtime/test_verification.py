"""A bundle's proof: it holds for every bundle that ships, and breaks with any weight, answer or file."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest

import vae_runtime
from vae_runtime import noise
from vae_runtime.bundle import open_bundle
from vae_runtime.devices import resolve_device
from vae_runtime.errors import BundleError, InputError
from vae_runtime.golden import golden_inputs, read_golden
from vae_runtime.networks import open_session
from vae_runtime.verification import Check, Report, verify

MODELS = sorted(path.parent for path in (Path(__file__).parents[2] / "models").glob("*/manifest.json"))
every_model = pytest.mark.parametrize("model", MODELS, ids=lambda path: path.name)
# Each weight of a model of pictures takes its time.
small_models = pytest.mark.parametrize(
    "model",
    [pytest.param(path, marks=pytest.mark.long) if path.name == "mnist" else path for path in MODELS],
    ids=lambda path: path.name,
)


@pytest.fixture
def edit_golden(resign):
    """Let a function change the golden arrays, and make the hashes right again."""

    def edit(folder, change):
        with np.load(folder / "golden.npz") as archive:
            arrays = {name: archive[name].copy() for name in archive.files}
        change(arrays)
        np.savez(folder / "golden.npz", **arrays)
        resign(folder)

    return edit


def failures(report):
    return {check.what: check.detail for check in report.checks if check.passed is False}


@every_model
def test_a_bundle_that_ships_passes(model):
    report = verify(model)
    assert report.passed
    assert failures(report) == {}
    bundle = open_bundle(model)
    checked = {check.what for check in report.checks if check.passed}
    wanted = {
        f"{variant.component}/{variant.name} {output.name}"
        for variant in bundle.manifest.variants
        if variant.executor == "ort"
        for output in bundle.manifest.outputs(variant.component)
    }
    assert checked == {"files", *wanted}
    assert any(check.what == "files" and bundle.digest in check.detail for check in report.checks)


@every_model
def test_a_bundle_that_ships_passes_on_two_threads(model):
    assert verify(model, threads=2).passed


@every_model
def test_golden_latents_are_noise_and_golden_observations_are_in_range(model):
    bundle = open_bundle(model)
    golden, manifest = read_golden(bundle), bundle.manifest
    wanted = noise.normal(manifest.golden.seed, 0, manifest.golden.n, manifest.latent.shape)
    z = golden_inputs(bundle, "decoder", golden)
    assert list(z) == ["z", *(condition.name for condition in manifest.conditions)]
    np.testing.assert_array_equal(z["z"], wanted)
    x = golden_inputs(bundle, "encoder", golden)["x"]
    low, high = manifest.observation.range or (-np.inf, np.inf)
    assert low <= x.min() <= x.max() <= high


# Weights, hashes made right again.


def scale_weights(folder, component_folder, resign, factor, kinds="f"):
    """Scale each weight matrix of a graph in turn, and yield its name while it is so."""
    onnx = pytest.importorskip("onnx")
    from onnx import numpy_helper

    path = folder / component_folder / "model.onnx"
    content = path.read_bytes()
    tensors = onnx.load_from_string(content).graph.initializer
    matrices = [t.name for t in tensors if len(t.dims) >= 2 and numpy_helper.to_array(t).dtype.kind in kinds]
    assert matrices
    for name in matrices:
        model = onnx.load_from_string(content)
        (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
        weights = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array((weights * factor).astype(weights.dtype), name))
        path.write_bytes(model.SerializeToString())
        resign(folder)
        yield name
    path.write_bytes(content)
    resign(folder)


def onnx_folders(folder, *names):
    variants = open_bundle(folder).manifest.variants
    return [variant.folder for variant in variants if variant.executor == "ort" and variant.name in names]


@small_models
@pytest.mark.parametrize("factor", [1.01, 0.99])
def test_any_weight_matrix_scaled_by_one_percent_is_caught(model, copy_of, resign, factor):
    folder = copy_of(model)
    for component_folder in onnx_folders(folder, "fp32", "fp16"):
        for name in scale_weights(folder, component_folder, resign, factor):
            report = verify(folder)
            assert not report.passed, (component_folder, name)
            assert report.checks[0].passed, "the hashes should be right"
            assert any(what.startswith(component_folder) for what in failures(report))
    assert verify(folder).passed


@small_models
def test_any_negated_weight_matrix_of_few_bits_is_caught(model, copy_of, resign):
    """Integer kernels round differently from processor to processor, so that less could be another machine's."""
    folder = copy_of(model)
    for component_folder in onnx_folders(folder, "int8"):
        for name in scale_weights(folder, component_folder, resign, -1, kinds="fi"):
            assert any(what.startswith(component_folder) for what in failures(verify(folder))), name
    assert verify(folder).passed


@small_models
def test_weights_written_back_unscaled_pass(model, copy_of, resign):
    folder = copy_of(model)
    for component_folder in onnx_folders(folder, "fp32", "fp16"):
        for _ in scale_weights(folder, component_folder, resign, 1.0):
            assert verify(folder).passed


def test_another_graph_is_caught_without_the_package_onnx(small_bundle, onnx_bytes, resign):
    folder = small_bundle()
    assert verify(folder).passed
    o = onnx_bytes
    nodes = [o.node("Mul", ["z", "w"], ["x"])]
    rows = ["batch", 3]
    for factor, passes in ((1.0, True), (1.01, False)):
        decoder = o.model(nodes, [o.value("z", rows)], [o.value("x", rows)], [o.tensor("w", [factor])])
        (folder / "decoder/fp32/model.onnx").write_bytes(decoder)
        resign(folder)
        report = verify(folder)
        assert report.passed is passes
        (check,) = (each for each in report.checks if each.what == "decoder/fp32 x")
        assert check.difference is not None
        # The weight moves an answer of order 1 by one percent.
        assert (check.difference == 0) if passes else (1e-4 < check.difference < 0.1)
        assert f"difference {check.difference:.2g}" in check.detail


def test_an_answer_that_is_no_number_fails(small_bundle, onnx_bytes, resign):
    folder = small_bundle()
    o = onnx_bytes
    rows = ["batch", 3]
    # The logarithm of what is negative.
    nodes = [o.node("Log", ["z"], ["log"]), o.node("Exp", ["log"], ["x"])]
    (folder / "decoder/fp32/model.onnx").write_bytes(o.model(nodes, [o.value("z", rows)], [o.value("x", rows)]))
    resign(folder)
    assert "got nan, difference nan" in failures(verify(folder))["decoder/fp32 x"]


# Golden vectors, hashes made right again.


def test_a_golden_answer_altered_is_reported_with_place_values_and_tolerance(bundle_copy, edit_golden):
    found = {}

    def alter(arrays):
        answer = arrays["decoder/fp32/x"]
        found["before"] = float(answer[2, 0, 3, 4])
        answer[2, 0, 3, 4] += 0.25
        answer[1, 0, 0, 0] += 0.125

    edit_golden(bundle_copy, alter)
    report = verify(bundle_copy)
    assert list(failures(report)) == ["decoder/fp32 x"]
    n, shape = open_bundle(bundle_copy).manifest.golden.n, (1, 8, 8)
    detail = failures(report)["decoder/fp32 x"]
    match = re.fullmatch(
        r"disagrees with 2 of (\d+) golden values; worst at \[2, 0, 3, 4\]: expected (\S+), got (\S+), "
        r"difference 0.25, tolerance (\S+)",
        detail,
    )
    assert match, detail
    assert int(match[1]) == n * np.prod(shape)
    assert float(match[2]) == pytest.approx(found["before"] + 0.25, rel=1e-5)
    assert float(match[3]) == pytest.approx(found["before"], rel=1e-4, abs=1e-5)
    tolerance = open_bundle(bundle_copy).manifest.decoder["fp32"].tolerance["x"]
    assert float(match[4]) == pytest.approx(tolerance, rel=0.05)
    assert "FAILED  decoder/fp32 x" in str(report)


def test_a_golden_observation_altered_is_caught(bundle_copy, edit_golden):
    edit_golden(bundle_copy, lambda arrays: arrays["x"].__setitem__((0, 0, 4, 4), 1 - arrays["x"][0, 0, 4, 4]))
    assert any(what.startswith("encoder/fp32") for what in failures(verify(bundle_copy)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("source", ["fp32", "pytorch"])
def test_a_golden_answer_that_is_no_number_fails(bundle_copy, edit_golden, source, value):
    edit_golden(bundle_copy, lambda arrays: arrays[f"decoder/{source}/x"].__setitem__((0, 0, 0, 0), value))
    assert "decoder/fp32 x" in failures(verify(bundle_copy))


def test_another_seed_of_the_golden_latents_is_caught(bundle_copy, edit_manifest):
    edit_manifest(bundle_copy, lambda document: document["additional_metadata"]["vae"]["golden"].update(seed=1234))
    assert {"decoder/fp32 x", "decoder/fp32 logits"} <= failures(verify(bundle_copy)).keys()


def test_a_declared_error_that_is_too_small_is_caught(bundle_copy, edit_manifest, edit_golden):
    edit_golden(bundle_copy, lambda arrays: arrays["encoder/pytorch/mu"].__iadd__(1e-3))
    report = verify(bundle_copy)
    # Whether int8 fails too depends on how far off it is by itself.
    assert list(failures(report))[:2] == ["encoder/fp32 mu", "encoder/fp16 mu"]
    assert "the stored answer is 0.001 from PyTorch's, the manifest declares" in failures(report)["encoder/fp32 mu"]

    def declare(document):
        for name in ("fp32", "fp16", "int8"):
            ours = document["components"]["encoder"]["variants"][name]["additional_metadata"]["vae"]
            ours["error"]["mu"] += 0.0011

    edit_manifest(bundle_copy, declare)
    assert verify(bundle_copy).passed


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("x", None),
        ("encoder/pytorch/std", None),
        ("decoder/fp32/logits", None),
        ("decoder/fp32/x", np.zeros((1, 1, 8, 8), np.float32)),
        ("decoder/fp32/x", np.zeros((4, 64), np.float32)),
        ("decoder/fp32/x", np.zeros((4, 1, 8, 8))),
        ("x", np.float32(0)),
    ],
)
def test_an_array_that_is_missing_or_of_another_kind_is_named(bundle_copy, edit_golden, name, array):
    edit_golden(bundle_copy, lambda arrays: arrays.pop(name) if array is None else arrays.update({name: array}))
    detail = failures(verify(bundle_copy))["golden vectors"]
    got = "nothing" if array is None else f"{array.dtype} {list(np.shape(array))}"
    assert f"golden.npz: {name}: expected float32 [" in detail
    assert f", got {got}; export the bundle again" in detail


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\3\4", b"garbage", npy(np.zeros(3)), npy(np.array([{}], dtype=object))],
    ids=["empty", "half a zip", "garbage", "one array", "a pickle"],
)
def test_golden_vectors_that_are_no_archive_fail(bundle_copy, resign, content):
    (bundle_copy / "golden.npz").write_bytes(content)
    resign(bundle_copy)
    assert "expected an .npz file" in failures(verify(bundle_copy))["golden vectors"]


def test_golden_vectors_that_unpack_beyond_reason_are_not_unpacked(bundle_copy, edit_golden):
    for size, message in (
        (2**17, "golden.npz: x: expected float32 [4, 1, 8, 8], got a larger array"),
        (2**24, "golden.npz: expected at most "),
    ):
        bomb = np.zeros(size, np.float32)
        for name in ("x", "of no use"):
            edit_golden(bundle_copy, lambda arrays, name=name, bomb=bomb: arrays.update({name: bomb}))
        assert message in failures(verify(bundle_copy))["golden vectors"]


def test_golden_vectors_are_never_unpickled(bundle_copy, resign, tmp_path):
    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "sprung"), "w")

    np.savez(bundle_copy / "golden.npz", x=np.array([Trap()], dtype=object))
    resign(bundle_copy)
    assert "golden vectors" in failures(verify(bundle_copy))
    assert not (tmp_path / "sprung").exists()


# Files that fail and graphs that do not run are in the report; the rest is still checked.


def test_a_damaged_graph_does_not_hide_what_else_is_wrong(bundle_copy):
    (bundle_copy / "encoder/fp32/model.onnx").write_bytes(b"damaged")
    (bundle_copy / "new").write_text("")
    (bundle_copy / "samples.png").unlink()
    report = verify(bundle_copy)
    details = [check.detail for check in report.checks if check.what == "files"]
    assert len(details) == 3
    assert "encoder/fp32" in failures(report)
    assert any(check.what == "decoder/fp32 x" and check.passed for check in report.checks)


# Other programs' variants.


def others(folder):
    return [variant for variant in open_bundle(folder).manifest.variants if variant.executor != "ort"]


def test_variants_of_other_programs_are_skipped_with_the_reason(digits):
    report = verify(digits)
    skipped = {check.what: check for check in report.checks if check.passed is None}
    assert set(skipped) == {f"{variant.component}/{variant.name}" for variant in others(digits)}
    for check in skipped.values():
        assert "needs PyTorch; in a bundle of a run, `vae-export parity --trust` runs it" in check.detail
        assert check.verdict == "skipped"


def test_a_runner_is_given_the_variant_and_the_inputs_and_held_to_the_answer(digits):
    variants = others(digits)
    assert variants
    cpu = resolve_device("cpu")
    used = []

    def runner(error):
        def run(bundle, variant, given):
            assert bundle.path == digits
            used.append(variant)
            wanted = golden_inputs(bundle, variant.component, read_golden(bundle))
            assert list(given) == list(wanted)
            for name, array in given.items():
                np.testing.assert_array_equal(array, wanted[name])
            outputs = [output.name for output in bundle.manifest.outputs(variant.component)]
            answers = open_session(bundle, variant.component, "fp32", cpu).run(outputs, given)
            return [answer + np.float32(error) for answer in answers]

        return run

    executors = {variant.executor for variant in variants}
    right = verify(digits, runners=dict.fromkeys(executors, runner(0.0)))
    assert right.passed
    assert not [check for check in right.checks if check.passed is None]
    assert used == variants
    wrong = verify(digits, runners=dict.fromkeys(executors, runner(0.1)))
    assert {what.split()[0] for what in failures(wrong)} == {f"{v.component}/{v.name}" for v in variants}


def test_a_runner_that_gives_another_shape_or_number_of_answers_fails(digits):
    (first, *_) = others(digits)

    def runner(change):
        def run(bundle, variant, given):
            golden = read_golden(bundle)
            outputs = bundle.manifest.outputs(variant.component)
            return change([golden[f"{variant.component}/{variant.name}/{output.name}"] for output in outputs])

        return run

    for change, detail in (
        (lambda answers: [answer[:2] for answer in answers], r"expected the shape \[.*\], got \[2"),
        (lambda answers: answers[:1], r"expected \d outputs, got 1"),
        (lambda answers: [*answers, answers[0]], r"expected \d outputs, got \d"),
    ):
        report = verify(digits, runners={first.executor: runner(change)})
        assert all(re.search(detail, text) for text in failures(report).values())
        assert not report.passed
    assert verify(digits, runners={first.executor: runner(lambda answers: answers)}).passed


# Several inputs; conditions and codes.


def test_the_inputs_of_a_graph_are_golden_in_the_order_of_the_signature(codes_bundle, levels_bundle):
    bundle = open_bundle(codes_bundle())
    golden = read_golden(bundle)
    assert list(golden_inputs(bundle, "encoder", golden)) == ["x", "label"]
    decoder = golden_inputs(bundle, "decoder", golden)
    assert list(decoder) == ["z", "label"]
    assert [array.dtype for array in decoder.values()] == [np.int64, np.int64]
    np.testing.assert_array_equal(decoder["z"], [[0, 1, 2], [7, 5, 3]])

    bundle = open_bundle(levels_bundle())
    golden = read_golden(bundle)
    assert "z_1" not in golden
    assert list(golden_inputs(bundle, "encoder", golden)) == ["x", "eps_1"]
    decoder = golden_inputs(bundle, "decoder", golden)
    assert list(decoder) == ["z_1", "z_2"]
    for level, z in enumerate(decoder.values()):
        np.testing.assert_array_equal(z, noise.normal(0, 0, 2, (3,), noise.stream_of(noise.PRIOR, level)))


def test_a_bundle_of_codes_or_levels_passes(codes_bundle, levels_bundle):
    report = verify(codes_bundle())
    assert report.passed
    details = {check.what: check.detail for check in report.checks}
    assert details["encoder/fp32 codes"] == "0 of 6 codes differ (0.00%), tolerance 0; from PyTorch 0"
    measured = {check.what: check.difference is not None for check in report.checks}
    assert measured == {"files": False, "encoder/fp32 codes": False, "decoder/fp32 x": True}
    assert verify(levels_bundle()).passed


def test_codes_that_differ_fail_with_their_fraction(codes_bundle, edit_golden, edit_manifest):
    folder = codes_bundle()
    edit_golden(folder, lambda arrays: arrays["encoder/fp32/codes"].__setitem__((1, 0), 2))
    assert failures(verify(folder)) == {
        "encoder/fp32 codes": "disagrees with 1 of 6 golden values (16.67%); worst at [1, 0]: expected 2, got 5, "
        "difference 3, tolerance 0"
    }

    def tolerate(document):
        ours = document["components"]["encoder"]["variants"]["fp32"]["additional_metadata"]["vae"]
        ours["tolerance"]["codes"] = ours["error"]["codes"] = 3

    edit_manifest(folder, tolerate)
    report = verify(folder)
    assert report.passed
    assert "1 of 6 codes differ (16.67%), tolerance 3" in str(report)


def test_codes_farther_from_pytorchs_than_declared_fail(codes_bundle, edit_golden):
    folder = codes_bundle()
    edit_golden(folder, lambda arrays: arrays["encoder/pytorch/codes"].__setitem__((0, 0), 1))
    detail = "golden.npz: the stored answer is 1 from PyTorch's, the manifest declares 0"
    assert failures(verify(folder)) == {"encoder/fp32 codes": detail}


@pytest.mark.parametrize(("name", "index", "value"), [("label", 0, 1), ("z", (0, 0), 5), ("x", (1, 1), 2.5)])
def test_any_golden_input_altered_is_caught(codes_bundle, edit_golden, name, index, value):
    folder = codes_bundle()
    edit_golden(folder, lambda arrays: arrays[name].__setitem__(index, value))
    assert failures(verify(folder))


@pytest.mark.parametrize("name", ["x", "eps_1"])
def test_any_golden_input_of_several_levels_altered_is_caught(levels_bundle, edit_golden, name):
    folder = levels_bundle()
    edit_golden(folder, lambda arrays: arrays[name].__iadd__(1))
    assert any(what.startswith("encoder/fp32 mu_2") for what in failures(verify(folder)))


@pytest.mark.parametrize(
    ("name", "array", "expected"),
    [
        ("label", None, "expected int64 [2], got nothing"),
        ("z", None, "expected int64 [2, 3], got nothing"),
        ("z", np.zeros((2, 3), np.int32), "expected int64 [2, 3], got int32 [2, 3]"),
        ("z", np.zeros((2, 3), np.float32), "expected int64 [2, 3], got float32 [2, 3]"),
        ("label", np.zeros((2, 1), np.int64), "expected int64 [2], got int64 [2, 1]"),
        ("encoder/pytorch/codes", np.zeros((2, 3), np.float32), "expected int64 [2, 3], got float32 [2, 3]"),
        # 8 bytes a number fit, more do not.
        ("label", np.zeros(2 + 4096 // 8, np.int64), "expected int64 [2], got a larger array"),
        ("x", np.zeros((2 + 4096 // 4, 3), np.float32), "expected float32 [2, 3], got a larger array"),
    ],
)
def test_a_golden_input_of_another_kind_is_named(codes_bundle, edit_golden, name, array, expected):
    folder = codes_bundle()
    edit_golden(folder, lambda arrays: arrays.pop(name) if array is None else arrays.update({name: array}))
    assert f"golden.npz: {name}: {expected}; export the bundle again" in failures(verify(folder))["golden vectors"]


# The report.


def test_the_report_is_a_table():
    report = Report((Check("files", True, "all"), Check("a/b c", False, "off"), Check("d", None, "why")))
    assert str(report).splitlines() == ["ok      files  all", "FAILED  a/b c  off", "skipped d      why"]
    assert not report.passed
    assert Report(report.checks[::2]).passed


def test_wrong_arguments_are_refused(digits):
    with pytest.raises(InputError, match="device"):
        verify(digits, device="gpu")
    with pytest.raises(BundleError, match="does not exist"):
        verify(digits / "none")
    assert vae_runtime.verify is verify


@pytest.mark.parametrize(
    ("path", "swap"),
    [
        (("latents", 0, "posterior"), {"mu": "logvar", "logvar": "mu"}),
        (("latents", 0, "posterior"), {"mu": "std", "std": "mu"}),
        (("latents", 0, "posterior"), {"logvar": "std", "std": "logvar"}),
        (("likelihood",), {"mean": "logits", "logits": "x"}),
    ],
)
def test_roles_of_outputs_that_are_swapped_fail(digits, copy_of, resign, path, swap):
    folder = copy_of(digits)
    document = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    holder = document["additional_metadata"]["vae"]
    for key in path:
        holder = holder[key]
    holder.update(swap)
    (folder / "manifest.json").write_text(json.dumps(document), encoding="utf-8")
    resign(folder)
    failed = failures(verify(folder))
    assert list(failed) == ["golden vectors"]
    assert "swaps the roles of outputs" in failed["golden vectors"]


def test_a_bernoulli_mean_that_saturates_is_the_mean_of_its_logits(digits, copy_of, edit_golden):
    folder = copy_of(digits)

    def saturate(arrays):
        for name in [name for name in arrays if name.endswith("/logits")]:
            arrays[name][:] = 1000
            arrays[name.replace("/logits", "/x")][:] = 1

    edit_golden(folder, saturate)
    assert "golden vectors" not in failures(verify(folder))


def test_latents_that_are_too_many_to_draw_are_refused(digits, copy_of, resign):
    folder = copy_of(digits)
    document = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    document["additional_metadata"]["vae"]["latents"][0]["shape"] = [2**28]
    (folder / "manifest.json").write_text(json.dumps(document), encoding="utf-8")
    resign(folder)
    assert "expected at most 16777216 values of z" in failures(verify(folder))["golden vectors"]


def test_of_many_files_beside_a_bundle_twenty_are_told(digits, copy_of):
    folder = copy_of(digits)
    for number in range(300):
        (folder / f".{number:03}").touch()
    report = verify(folder, strict=True)
    assert [check.detail for check in report.checks if check.passed is False][-1] == (
        "280 more beside the bundle; move them away"
    )
    assert len(failures(report)) == 1
    assert len(str(report).splitlines()) < 60
