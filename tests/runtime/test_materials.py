"""The bill of materials of a bundle is valid by the schema of CycloneDX, and says what the bundle holds."""

import json

import pytest

from vae_runtime import BundleError, bill_of_materials
from vae_runtime.cli.main import main


@pytest.fixture(scope="module")
def problem():
    """What the schema of CycloneDX 1.6 finds wrong in a document; None where it is valid."""
    json_schemas = pytest.importorskip("cyclonedx.validation.json", reason="cyclonedx-python-lib is not installed")
    from cyclonedx.schema import SchemaVersion

    validator = json_schemas.JsonStrictValidator(SchemaVersion.V1_6)
    return lambda document: validator.validate_str(json.dumps(document))


def test_a_bill_is_valid_and_the_same_each_time(root, problem, vae, digits, capsys):
    for bundle in sorted(path for path in (root / "models").iterdir() if path.is_dir()):
        document = bill_of_materials(bundle)
        assert problem(document) is None
    assert main(["bom", str(digits)]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed) == bill_of_materials(digits, digest=vae.digest)
    assert problem({**document, "specVersion": 6}) is not None
    assert problem({**document, "components": [{"type": "file"}]}) is not None


def test_a_bill_says_what_the_bundle_holds(digits, vae):
    document = bill_of_materials(digits)
    model, (data, *files) = document["metadata"]["component"], document["components"]
    assert (model["type"], model["name"]) == ("machine-learning-model", "digits")
    assert model["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert {"name": "vae-runtime:digest", "value": vae.digest} in model["properties"]
    assert data["licenses"] == [{"license": {"id": "CC-BY-4.0"}}]
    assert model["modelCard"]["modelParameters"]["datasets"] == [{"ref": data["bom-ref"]}]
    assert {"format": "decoder z: float32 [batch, 8]"} in model["modelCard"]["modelParameters"]["inputs"]
    figures = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert {"type": "elbo", "value": repr(vae.manifest.metrics["elbo"])} in figures
    assert any(each["type"] == "PSNR in dB" and each["slice"] == "decoder/int8" for each in figures)
    hashes = {each["name"]: each["hashes"][0]["content"] for each in files}
    assert hashes == {**vae.bundle.sums, "SHA256SUMS": vae.digest.removeprefix("sha256:")}


def test_a_bill_takes_whatever_a_manifest_may_hold(small_bundle, edit_manifest, problem):
    bundle = small_bundle()
    assert problem(bill_of_materials(bundle)) is None

    def change(document):
        vae = document["additional_metadata"]["vae"]
        vae["license"] = "for friends\nonly"
        vae["metrics"] = {"nll": 3, "surrogate": True, "text": "text", "list": [1], "none": None}
        vae["training"] = {"data": {"name": "x", "digest": "sha256:" + "g" * 64, "license": 3}, "model": []}
        vae["producer"] = {"tool": "mine", "odd": {"a": 1}}
        document["package_version"] = "1.2.0"

    edit_manifest(bundle, change)
    document = bill_of_materials(bundle)
    assert problem(document) is None
    model = document["metadata"]["component"]
    assert model["version"] == "1.2.0"
    assert model["licenses"] == [{"license": {"name": "for friends\nonly"}}]
    assert {"type": "nll", "value": "3"} in model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    edit_manifest(bundle, lambda document: document["additional_metadata"]["vae"].update(training={"data": "text"}))
    assert problem(bill_of_materials(bundle)) is None


def test_a_damaged_bundle_has_no_bill(bundle_copy, capsys):
    (bundle_copy / "samples.png").write_bytes(b"")
    with pytest.raises(BundleError, match=r"samples\.png: expected the SHA-256"):
        bill_of_materials(bundle_copy)
    assert main(["bom", str(bundle_copy)]) == 1
    assert capsys.readouterr().out == ""
