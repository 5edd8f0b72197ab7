import copy
import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import vae_runtime
from vae_runtime.bundle import open_bundle
from vae_runtime.document import parse
from vae_runtime.errors import BundleError
from vae_runtime.golden import golden_inputs, read_golden

pytestmark = pytest.mark.skipif(
    not hasattr(onnxruntime, "ModelPackageContext"),
    reason=f"ONNX Runtime {onnxruntime.__version__} reads no model packages; 1.32 and later do",
)

MODELS = sorted(path.parent for path in (Path(__file__).parents[2] / "models").glob("*/manifest.json"))


def opened(bundle):
    return onnxruntime.ModelPackageContext(str(bundle))


def selected(package, component):
    return package.select_component(component, onnxruntime.ModelPackageOptions(onnxruntime.SessionOptions()))


def agrees(bundle):
    """Whether ONNX Runtime's own reader finds the same graphs in a bundle as vae_runtime, and computes the same."""
    package, vae = opened(bundle), vae_runtime.load(bundle)
    manifest = vae.manifest
    assert package.get_component_names() == ["encoder", "decoder"]
    sessions = {}
    for component, variants in manifest.components.items():
        assert package.get_variant_names(component) == list(variants)
        for name, variant in variants.items():
            assert package.get_variant_ep_name(component, name) == variant.ep
        chosen = selected(package, component)
        assert chosen.get_selected_variant_name() == "fp32"
        assert Path(chosen.get_selected_variant_folder_path()) == Path(bundle) / component / "fp32"
        sessions[component] = chosen.create_session()

    given = open_bundle(bundle)
    golden = read_golden(given)
    inputs, latents = (golden_inputs(given, component, golden) for component in ("encoder", "decoder"))
    latent = manifest.latent
    conditions = {condition.name: inputs[condition.name] for condition in manifest.conditions}
    answers = sessions["encoder"].run(latent.posterior.outputs, inputs)
    q = vae.encode(inputs[manifest.observation.name], conditions=conditions)
    for answer, expected in zip(answers, (q.mean, q.logvar, q.std), strict=True):
        assert np.array_equal(answer, expected)
    (mean,) = sessions["decoder"].run([manifest.likelihood.mean], latents)
    z = latents[latent.name]
    assert np.array_equal(mean, vae.decode(z, conditions=conditions))
    assert np.array_equal(mean, vae.sample(len(z), seed=manifest.golden.seed, conditions=conditions))


def test_onnxruntime_opens_an_exported_bundle(tiny_bundle):
    agrees(tiny_bundle)


@pytest.mark.parametrize("bundle", MODELS, ids=lambda path: path.name)
def test_onnxruntime_opens_every_bundle_that_ships(bundle):
    agrees(bundle)


def test_bundles_ship():
    assert "digits-conditional" in [path.name for path in MODELS]
    assert "digits" in [path.name for path in MODELS]


def edited(bundle, folder, place, value):
    """A copy of a bundle's manifest and graphs with one more key; without hashes, which ONNX Runtime ignores."""
    copied = Path(shutil.copytree(bundle, folder))
    path = copied / "manifest.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    target = document
    for key in place[:-1]:
        target = target[key]
    assert place[-1] not in target
    target[place[-1]] = copy.deepcopy(value)
    path.write_text(json.dumps(document), encoding="utf-8")
    return copied


FP32 = ("components", "decoder", "variants", "fp32")


@pytest.mark.parametrize(
    "place",
    [("license",), ("components", "decoder", "license"), (*FP32, "sha256")],
    ids=["package", "component", "variant"],
)
def test_an_unknown_key_is_refused_by_onnxruntime_and_by_us(tiny_bundle, tmp_path, place):
    bundle = edited(tiny_bundle, tmp_path / "bundle", place, "x")
    with pytest.raises(Exception, match=place[-1]):
        opened(bundle)
    with pytest.raises(BundleError, match=f"{place[-1]}: expected no field of this name"):
        parse((bundle / "manifest.json").read_bytes())


@pytest.mark.parametrize(
    "place",
    [
        ("additional_metadata", "other"),
        ("additional_metadata", "vae", "other"),
        ("components", "decoder", "additional_metadata"),
        ("package_version",),
        ("components", "decoder", "component_name"),
        (*FP32, "additional_metadata", "other"),
        (*FP32, "additional_metadata", "vae", "other"),
        (*FP32, "executor_info", "other"),
    ],
    ids=".".join,
)
def test_a_key_in_an_extension_slot_is_taken_by_onnxruntime_and_by_us(tiny_bundle, tmp_path, resign, place):
    texts = {"package_version": "1.2.0", "component_name": "name"}
    bundle = edited(tiny_bundle, tmp_path / "bundle", place, texts.get(place[-1], {"anything": [1, 2]}))
    resign(bundle)
    agrees(bundle)


def test_a_folder_that_is_absent_is_refused_by_both(bundle_copy, resign):
    shutil.rmtree(bundle_copy / "decoder" / "torchscript")
    resign(bundle_copy)
    with pytest.raises(Exception, match="torchscript"):
        opened(bundle_copy)
    with pytest.raises(BundleError, match="decoder/torchscript"):
        open_bundle(bundle_copy)
