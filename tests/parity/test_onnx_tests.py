"""Golden vectors as ONNX's own test data: ONNX's loader and runner take them, and its evaluator answers alike."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner
from onnx.reference import ReferenceEvaluator

import vae_runtime
from vae_runtime.cli.main import main


def cases(packed, place):
    """The graphs of a bundle as ONNX's loader finds them in a place, by name; it wants names that begin with test_."""
    for graph in packed.glob("*/*/model.onnx"):
        name = "_".join(graph.parent.relative_to(packed).parts)
        (place / "graphs").mkdir(parents=True, exist_ok=True)
        (place / "graphs" / f"test_{name}").symlink_to(graph.parent)
    return {case.name.removeprefix("test_"): case for case in load_model_tests(str(place), "graphs")}


def tensors(folder, kind):
    return [onnx.load_tensor(folder / f"{kind}_{number}.pb") for number in range(len(list(folder.glob(f"{kind}_*"))))]


def sets(case):
    """The inputs and outputs of each set of a case."""
    for folder in sorted(Path(case.model_dir).glob("test_data_set_*")):
        yield tensors(folder, "input"), tensors(folder, "output")


def hold(case, run):
    """Hold answers against the expected ones as ONNX's runner does; returns how many sets there were."""
    seen = 0
    for inputs, outputs in sets(case):
        answers = run([numpy_helper.to_array(each) for each in inputs])
        Runner.assert_similar_outputs([numpy_helper.to_array(each) for each in outputs], answers, case.rtol, case.atol)
        seen += 1
    return seen


def by_runtime(case):
    session = onnxruntime.InferenceSession(f"{case.model_dir}/model.onnx", providers=["CPUExecutionProvider"])
    return lambda arrays: session.run(
        None, dict(zip([each.name for each in session.get_inputs()], arrays, strict=True))
    )


def by_reference(case):
    evaluator = ReferenceEvaluator(f"{case.model_dir}/model.onnx")
    return lambda arrays: evaluator.run(None, dict(zip(evaluator.input_names, arrays, strict=True)))


def test_onnx_itself_passes_the_tests_of_a_bundle(root, tmp_path):
    packed = tmp_path / "tests"
    vae_runtime.pack(root / "models" / "digits-conditional", packed, onnx_tests=True)
    assert vae_runtime.verify(packed).passed
    found = cases(packed, tmp_path / "cases")
    assert set(found) == {f"{kind}_{name}" for kind in ("encoder", "decoder") for name in ("fp32", "fp16", "int8")}
    manifest = vae_runtime.load(packed).manifest
    for name, case in found.items():
        assert hold(case, by_runtime(case)) == 1
        (inputs, outputs), graph = next(sets(case)), onnx.load(f"{case.model_dir}/model.onnx").graph
        assert [each.name for each in inputs] == [each.name for each in graph.input]
        assert [each.name for each in outputs] == [each.name for each in graph.output]
        component, variant = name.split("_")
        assert case.atol == max(manifest.components[component][variant].tolerance.values())
    for name in ("encoder_fp32", "decoder_fp32"):
        assert hold(found[name], by_reference(found[name])) == 1
    # Another answer is seen.
    path = packed / "decoder" / "fp32" / "test_data_set_0" / "output_0.pb"
    array = numpy_helper.to_array(onnx.load_tensor(path)) + np.float32(0.01)
    path.write_bytes(numpy_helper.from_array(array).SerializeToString())
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        hold(found["decoder_fp32"], by_runtime(found["decoder_fp32"]))


def test_the_data_are_the_same_each_time_and_left_out_unless_asked_for(root, tmp_path, capsys):
    bundle = str(root / "models" / "digits")
    for name in ("a.zip", "b.zip"):
        arguments = ["pack", bundle, "--only", "decoder/int8", "--onnx-tests", "--out", str(tmp_path / name)]
        assert main(arguments) == 0
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert vae_runtime.verify(tmp_path / "a.zip").passed
    # Packed again without them, they are left out.
    vae_runtime.pack(tmp_path / "a.zip", tmp_path / "plain")
    assert sorted(path.name for path in (tmp_path / "plain" / "decoder" / "int8").iterdir()) == ["model.onnx"]
    assert json.loads((tmp_path / "plain" / "manifest.json").read_text())["package_name"] == "digits"
