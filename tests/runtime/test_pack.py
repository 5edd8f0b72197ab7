"""The least that a device needs: chosen graphs of a bundle, as a bundle of their own."""

import dataclasses
import json
import os
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

import vae_runtime
from vae_runtime import BundleError, InputError, VaeError, document
from vae_runtime.bundle import open_bundle
from vae_runtime.cli import main as cli
from vae_runtime.devices import resolve_device
from vae_runtime.document import dump, parse
from vae_runtime.golden import golden_inputs, golden_tensors, read_golden
from vae_runtime.onnx_file import operators_of
from vae_runtime.packing import OPERATORS, pack, parse_only
from vae_runtime.places import SUMS
from vae_runtime.session import Session

MODELS = sorted(path.parent for path in (Path(__file__).parents[2] / "models").glob("*/manifest.json"))
FORMS = ("small", "small.zip")


def add_variant(folder, component, resign, name="int8"):
    """Give a bundle one more variant of a component: fp32's graph with one bit of one weight flipped."""
    graph = bytearray((folder / component / "fp32" / "model.onnx").read_bytes())
    graph[len(graph) // 2] ^= 1
    (folder / component / name).mkdir()
    (folder / component / name / "model.onnx").write_bytes(graph)
    path = folder / "manifest.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    variants = document["components"][component]["variants"]
    ours = variants["fp32"]["additional_metadata"]["vae"]
    # As far from PyTorch as it may be.
    ours = {**ours, "precision": name, "error": dict.fromkeys(ours["error"], 1e6)}
    other = {"variant_directory": f"{component}/{name}", "additional_metadata": {"vae": ours}}
    variants[name] = {**variants["fp32"], **other}
    path.write_text(json.dumps(document), encoding="utf-8")
    resign(folder)
    before = open_bundle(folder)
    session = Session(bytes(graph), name, resolve_device("cpu"))
    with np.load(folder / "golden.npz") as file:
        arrays = dict(file)
    outputs = [output.name for output in before.manifest.outputs(component)]
    answers = session.run(outputs, golden_inputs(before, component, arrays))
    arrays |= {f"{component}/{name}/{output}": each for output, each in zip(outputs, answers, strict=True)}
    np.savez(folder / "golden.npz", **arrays)
    resign(folder)


@pytest.fixture(scope="session")
def whole(digits, tmp_path_factory, resign):
    """The bundle `digits` with a variant int8 of both graphs; not to be written to."""
    folder = Path(shutil.copytree(digits, tmp_path_factory.mktemp("whole") / "digits"))
    path = folder / "manifest.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    # Keep two variants of each component: the others may change.
    document["additional_metadata"]["vae"].pop("refused", None)
    for component, each in document["components"].items():
        for name in set(each["variants"]) - {"fp32", "torchscript"}:
            del each["variants"][name]
            shutil.rmtree(folder / component / name)
    path.write_text(json.dumps(document), encoding="utf-8")
    resign(folder)
    for component in ("encoder", "decoder"):
        add_variant(folder, component, resign)
    assert vae_runtime.verify(folder).passed
    return folder


def paths_of(bundle):
    """The paths of all files of a bundle."""
    if bundle.is_dir():
        return {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    with zipfile.ZipFile(bundle) as archive:
        assert archive.testzip() is None
        return set(archive.namelist())


def graphs_of(bundle):
    return [f"{variant.component}/{variant.name}" for variant in open_bundle(bundle).manifest.variants]


# What is in it.


@pytest.mark.parametrize("form", FORMS)
def test_the_least_that_a_device_needs(whole, tmp_path, form):
    out = tmp_path / form
    digest = pack(whole, out, only="decoder/int8")
    assert paths_of(out) == {"manifest.json", SUMS, "golden.npz", "README.md", "decoder/int8/model.onnx"}
    small, source = open_bundle(out, digest), open_bundle(whole)
    assert small.problems() == []
    assert small.manifest.packed_from == source.digest
    assert small.manifest == dataclasses.replace(
        source.manifest,
        encoder={},
        decoder={"int8": source.manifest.decoder["int8"]},
        packed_from=source.digest,
        reader=small.manifest.reader,
    )
    assert small.read("decoder/int8/model.onnx") == source.read("decoder/int8/model.onnx")
    report = vae_runtime.verify(out)
    assert report.passed, str(report)
    assert [check.what for check in report.checks] == ["files", "decoder/int8 x", "decoder/int8 logits"]
    x = vae_runtime.load(out).sample(5, seed=3)
    assert np.array_equal(x, vae_runtime.load(whole, variant="int8").sample(5, seed=3))
    assert not np.array_equal(x, vae_runtime.load(whole, variant="fp32").sample(5, seed=3))


def test_the_golden_vectors_are_cut_to_what_is_left(whole, tmp_path):
    pack(whole, tmp_path / "small", only="decoder/int8")
    small = open_bundle(tmp_path / "small")
    with np.load(tmp_path / "small" / "golden.npz") as file:
        arrays = dict(file)
    assert set(arrays) == {f"decoder/{of}/{output}" for of in ("int8", "pytorch") for output in ("x", "logits")}
    assert set(arrays) == set(golden_tensors(small.manifest)) == set(read_golden(small))
    before = read_golden(open_bundle(whole))
    assert all(np.array_equal(array, before[name]) for name, array in arrays.items())


def test_verify_fails_a_packed_bundle_whose_graph_is_another(whole, tmp_path, resign):
    pack(whole, tmp_path / "small", only="decoder/int8")
    path = tmp_path / "small/decoder/int8/model.onnx"
    graph = bytearray(path.read_bytes())
    # Some weights are 0.
    graph = graph[: len(graph) // 2] + bytes(800) + graph[len(graph) // 2 + 800 :]
    path.write_bytes(graph)
    assert not vae_runtime.verify(tmp_path / "small").passed
    resign(tmp_path / "small")
    assert "disagrees with" in str(vae_runtime.verify(tmp_path / "small"))


@pytest.mark.parametrize("bundle", MODELS, ids=lambda path: path.name)
def test_without_a_choice_it_is_all_that_onnx_runtime_runs(bundle, tmp_path):
    pack(bundle, tmp_path / "small.zip")
    source = open_bundle(bundle)
    runnable = [variant for variant in source.manifest.variants if variant.executor == "ort"]
    assert open_bundle(tmp_path / "small.zip").manifest.variants == runnable
    assert not {path for path in paths_of(tmp_path / "small.zip") if path.endswith((".pt", ".png"))}
    assert vae_runtime.verify(tmp_path / "small.zip").passed
    one, other = vae_runtime.load(bundle), vae_runtime.load(tmp_path / "small.zip")
    conditions = {condition.name: 1 for condition in one.conditions}
    x = one.sample(2, seed=1, conditions=conditions)
    assert np.array_equal(other.sample(2, seed=1, conditions=conditions), x)
    assert np.array_equal(other.reconstruct(x, conditions=conditions), one.reconstruct(x, conditions=conditions))


@pytest.mark.parametrize(
    ("only", "graphs"),
    [
        ((), ["encoder/fp32", "encoder/int8", "decoder/fp32", "decoder/int8"]),
        ("decoder", ["decoder/fp32", "decoder/int8"]),
        ("encoder", ["encoder/fp32", "encoder/int8"]),
        ("encoder/fp32", ["encoder/fp32"]),
        ("decoder/int8,encoder/fp32", ["encoder/fp32", "decoder/int8"]),
        (["decoder/int8", "encoder/fp32"], ["encoder/fp32", "decoder/int8"]),
        (["decoder/int8,decoder/fp32"], ["decoder/fp32", "decoder/int8"]),
        (["decoder/int8", "decoder/int8"], ["decoder/int8"]),
        (["decoder/int8", "decoder"], ["decoder/fp32", "decoder/int8"]),
    ],
)
def test_what_is_chosen_stands_in_the_order_of_the_manifest(whole, tmp_path, only, graphs):
    pack(whole, tmp_path / "small", only=only)
    assert graphs_of(tmp_path / "small") == graphs
    assert vae_runtime.verify(tmp_path / "small").passed


@pytest.mark.parametrize(
    "only", ["", "Decoder", "prior", "decoder/", "/fp32", "decoder/fp32/model.onnx", "decoder,", 7]
)
def test_what_is_no_choice_is_refused(whole, tmp_path, only):
    with pytest.raises(
        InputError, match=r"^only: expected encoder, decoder, or one of them and a variant, such as decoder/int8"
    ):
        pack(whole, tmp_path / "small", only=[only])
    assert not (tmp_path / "small").exists()
    assert parse_only(["decoder/fp32,encoder"]) == [("decoder", "fp32"), ("encoder", None)]


@pytest.mark.parametrize(
    ("only", "match"),
    [
        ("decoder/fp8", "decoder has no variant 'fp8'; choose one of: fp32, int8"),
        (
            "decoder/torchscript",
            "'torchscript' of decoder is for torchscript, not for ONNX Runtime; choose one of: fp32",
        ),
    ],
)
def test_a_variant_that_is_not_there_is_refused(whole, tmp_path, only, match):
    with pytest.raises(BundleError, match=match):
        pack(whole, tmp_path / "small.zip", only=("encoder", only))
    assert list(tmp_path.iterdir()) == []


def test_folder_and_file_hold_the_same_and_are_the_same_again(whole, tmp_path):
    digests = {pack(whole, tmp_path / name, only="decoder") for name in ("a", "a.zip", "b.zip", "c.ZIP")}
    assert len(digests) == 1
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes() == (tmp_path / "c.ZIP").read_bytes()
    assert paths_of(tmp_path / "a") == paths_of(tmp_path / "a.zip")
    assert pack(whole, tmp_path / "other", only="encoder") not in digests


def test_a_packed_bundle_is_packed_again(whole, tmp_path):
    first = pack(whole, tmp_path / "both.zip", only=("decoder/int8", "encoder/int8"))
    pack(tmp_path / "both.zip", tmp_path / "small.zip", only="decoder", digest=first)
    small = open_bundle(tmp_path / "small.zip")
    # What still has all that was left out.
    assert small.manifest.packed_from == open_bundle(whole).digest
    assert small.read("README.md").count(b"> Packed: ") == 1
    assert vae_runtime.verify(tmp_path / "small.zip").passed
    pack(tmp_path / "small.zip", tmp_path / "same")
    assert graphs_of(tmp_path / "same") == ["decoder/int8"]
    with pytest.raises(BundleError, match="the encoder was left out when this bundle was packed"):
        pack(tmp_path / "small.zip", tmp_path / "none", only="encoder")
    with pytest.raises(BundleError, match="expected the digest"):
        pack(tmp_path / "small.zip", tmp_path / "none", digest=first)


@pytest.mark.parametrize("form", FORMS)
def test_other_kinds_of_vae_are_packed(codes_bundle, levels_bundle, tmp_path, form):
    packed_alike(codes_bundle(), {"z": np.array([[5, 6, 7]]), "conditions": {"label": "two"}}, tmp_path, form)
    z = {"z_1": np.ones((1, 3), np.float32), "z_2": np.zeros((1, 3), np.float32)}
    packed_alike(levels_bundle(), {"z": z}, tmp_path, form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.usefixtures("external_data")
def test_weights_beside_a_graph_are_packed(weighted_bundle, tmp_path, form):
    packed_alike(weighted_bundle(), {"z": np.ones((1, 3), np.float32)}, tmp_path, form)


def packed_alike(source, feeds, tmp_path, form):
    """Each component packed alone is verified, and the decoder gives what it gave."""
    for component in ("decoder", "encoder"):
        out = tmp_path / f"{component}-{source.name}-{form}"
        pack(source, out, only=component)
        report = vae_runtime.verify(out)
        assert report.passed, str(report)
        if component == "decoder":
            assert np.array_equal(vae_runtime.load(out).decode(**feeds), vae_runtime.load(source).decode(**feeds))


def test_the_file_of_a_fitted_prior_comes_with_it(small_bundle, edit_manifest, tmp_path):
    folder = small_bundle()
    prior = {"weights": np.ones(1), "means": np.full((1, 3), 2.0), "factors": np.ones((1, 3))}
    np.savez(folder / "fitted.npz", **{f"z/{name}": array for name, array in prior.items()})
    with np.load(folder / "golden.npz") as file:
        arrays = dict(file)
    np.savez(folder / "golden.npz", z=np.ones((2, 3), np.float32), **arrays)

    def name(document):
        (latent,) = document["additional_metadata"]["vae"]["latents"]
        latent["prior"] = {"kind": "mixture", "file": "fitted.npz", "components": 1, "covariance": "diagonal"}

    edit_manifest(folder, name)
    pack(folder, tmp_path / "small.zip", only="decoder")
    assert "fitted.npz" in paths_of(tmp_path / "small.zip")
    assert "z" in read_golden(open_bundle(tmp_path / "small.zip"))
    x = vae_runtime.load(tmp_path / "small.zip").sample(4, seed=1)
    assert np.array_equal(x, vae_runtime.load(folder).sample(4, seed=1))


def test_onnx_runtime_opens_a_packed_folder(whole, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    if not hasattr(onnxruntime, "ModelPackageContext"):
        pytest.skip(f"ONNX Runtime {onnxruntime.__version__} reads no model packages; 1.32 and later do")
    pack(whole, tmp_path / "small", only="decoder/int8")
    package = onnxruntime.ModelPackageContext(str(tmp_path / "small"))
    assert package.get_component_names() == ["decoder"]
    assert package.get_variant_names("decoder") == ["int8"]
    chosen = package.select_component("decoder", onnxruntime.ModelPackageOptions(onnxruntime.SessionOptions()))
    z = vae_runtime.load(whole).prior(3, seed=1)
    (mean,) = chosen.create_session().run(["x"], {"z": z})
    assert np.array_equal(mean, vae_runtime.load(tmp_path / "small").decode(z))
    # The zip is for this package's own reader.
    pack(whole, tmp_path / "small.zip", only="decoder/int8")
    with pytest.raises(Exception, match="zip"):
        onnxruntime.ModelPackageContext(str(tmp_path / "small.zip"))


# What is not in it.


@pytest.mark.parametrize("form", FORMS)
def test_what_needs_the_encoder_says_that_it_was_left_out(whole, tmp_path, vae, form):
    pack(whole, tmp_path / form, only="decoder")
    small, x = vae_runtime.load(tmp_path / form), vae.sample(2, seed=1)
    assert small.variant == "fp32"
    assert small.encode is not None
    left_out = rf"{form}: the encoder was left out when this bundle was packed; use .*sha256:.* --only encoder, too"
    for use in (small.encode, small.reconstruct, small.transform, small.score):
        with pytest.raises(BundleError, match=left_out):
            use(x)
    assert np.array_equal(small.sample(2, seed=1), x)
    assert np.array_equal(small.decode(vae.prior(2, seed=1)), x)


@pytest.mark.parametrize("form", FORMS)
def test_what_needs_the_decoder_says_that_it_was_left_out(whole, tmp_path, vae, form):
    pack(whole, tmp_path / form, only="encoder/int8")
    small, x = vae_runtime.load(tmp_path / form), vae.sample(2, seed=1)
    assert small.variant == "int8"
    assert "int8 on cpu" in repr(small)
    left_out = f"{form}: the decoder was left out when this bundle was packed"
    for use in (
        lambda: small.sample(2, seed=1),
        lambda: small.sample(2, seed=1, temperature=0.5),
        lambda: small.decode(vae.prior(2, seed=1)),
        lambda: small.reconstruct(x),
        lambda: small.score(x),
    ):
        with pytest.raises(BundleError, match=left_out):
            use()
    assert np.array_equal(small.encode(x).mean, vae_runtime.load(whole, variant="int8").encode(x).mean)
    assert np.array_equal(small.prior(2, seed=1), vae.prior(2, seed=1))


def test_only_a_packed_bundle_may_lack_a_component(whole, tmp_path, edit_manifest):
    pack(whole, tmp_path / "small", only="decoder")
    assert parse((tmp_path / "small/manifest.json").read_bytes()).components.keys() == {"decoder"}
    edit_manifest(tmp_path / "small", lambda document: document["additional_metadata"]["vae"].pop("packed_from"))
    with pytest.raises(BundleError, match=r"components\.encoder: expected this field, got nothing"):
        open_bundle(tmp_path / "small")
    edit_manifest(
        tmp_path / "small",
        lambda document: (
            document["components"].pop("decoder"),
            document["additional_metadata"]["vae"].update(packed_from="sha256:" + "0" * 64),
        ),
    )
    with pytest.raises(BundleError, match=r"components\.decoder: expected this field, got nothing"):
        open_bundle(tmp_path / "small")


@pytest.mark.parametrize(
    "wrong", [None, 5, "", "0" * 64, "sha256:" + "0" * 63, "sha256:" + "A" * 64, "md5:" + "0" * 64]
)
def test_what_it_was_packed_from_is_a_digest(whole, tmp_path, edit_manifest, wrong):
    pack(whole, tmp_path / "small", only="decoder")
    edit_manifest(tmp_path / "small", lambda document: document["additional_metadata"]["vae"].update(packed_from=wrong))
    with pytest.raises(BundleError, match=r"packed_from: expected a digest, "):
        open_bundle(tmp_path / "small")


@pytest.mark.parametrize("only", ["decoder", "encoder/int8", "encoder,decoder"])
def test_a_manifest_that_was_cut_is_written_as_it_is_read(whole, tmp_path, only):
    pack(whole, tmp_path / "small", only=only)
    text = (tmp_path / "small/manifest.json").read_text(encoding="utf-8")
    assert dump(parse(text)) == text
    needs = json.loads(text)["additional_metadata"]["vae"].get("must_understand")
    assert needs == (None if only == "encoder,decoder" else ["packed_from"])


def test_a_reader_that_knows_no_packing_asks_for_a_newer_one(whole, tmp_path, monkeypatch):
    pack(whole, tmp_path / "small", only="decoder")
    pack(whole, tmp_path / "both")
    monkeypatch.setattr(document, "KNOWN_FIELDS", document.KNOWN_FIELDS - {"packed_from"})
    with pytest.raises(BundleError, match=r"newer than this vae-runtime: pip install --upgrade vae-runtime$"):
        open_bundle(tmp_path / "small")
    # With both components it is as any other to that reader.
    open_bundle(tmp_path / "both")


# The model card.


def test_the_card_says_what_is_left_of_it(whole, tmp_path):
    digest = open_bundle(whole).digest
    pack(whole, tmp_path / "small", only="decoder/int8")
    before, after = ((folder / "README.md").read_text("utf-8") for folder in (whole, tmp_path / "small"))
    assert "](samples.png)" in before
    note = f"> Packed: decoder/int8 alone, of the bundle {digest}, which this card describes.\n\n"
    # The Hub reads a card's front matter at its very beginning.
    assert after.startswith("---\nlicense: ")
    front, _, rest = after.partition(note)
    assert front.endswith("\n---\n\n")
    lines = [line for line in before.splitlines() if not line.startswith("![")]
    assert (front + rest).splitlines() == lines
    pack(tmp_path / "small", tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text("utf-8").count("> Packed: ") == 1
    assert not re.findall(r"!\[", after)


@pytest.mark.parametrize(
    ("card", "kept"), [(b"x" * 2**16, True), (b"x" * (2**16 + 1), False), (b"\xff\0![a](b)", True)]
)
def test_a_large_card_stays_behind(bundle_copy, resign, tmp_path, card, kept):
    (bundle_copy / "README.md").write_bytes(card)
    (bundle_copy / "notes.txt").write_bytes(b"of no use to a device")
    resign(bundle_copy)
    pack(bundle_copy, tmp_path / "small")
    assert ("README.md" in paths_of(tmp_path / "small")) is kept
    assert "notes.txt" not in paths_of(tmp_path / "small")
    assert vae_runtime.verify(tmp_path / "small").passed


def test_a_bundle_without_a_card_is_packed(small_bundle, tmp_path):
    folder = small_bundle()
    assert not (folder / "README.md").exists()
    pack(folder, tmp_path / "packed")
    assert "README.md" not in paths_of(tmp_path / "packed")


# Damage, and places that are taken.


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["decoder/fp32/model.onnx", "golden.npz", "manifest.json", "README.md"])
def test_a_damaged_file_is_not_packed(bundle_copy, tmp_path, form, name):
    content = bytearray((bundle_copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle_copy / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name}: expected the SHA-256"):
        pack(bundle_copy, tmp_path / form, only="decoder")
    assert list(tmp_path.iterdir()) == [bundle_copy]


def test_damage_to_what_is_not_taken_does_no_harm(bundle_copy, tmp_path):
    (bundle_copy / "samples.png").write_bytes(b"damaged")
    (bundle_copy / "encoder/fp32/model.onnx").unlink()
    pack(bundle_copy, tmp_path / "small", only="decoder")
    assert vae_runtime.verify(tmp_path / "small").passed


def test_golden_vectors_that_are_none_are_refused(bundle_copy, resign, tmp_path):
    content = (bundle_copy / "golden.npz").read_bytes()
    (bundle_copy / "golden.npz").write_bytes(content[:-100])
    resign(bundle_copy)
    with pytest.raises(BundleError, match=r"golden\.npz: expected an \.npz file"):
        pack(bundle_copy, tmp_path / "small")


@pytest.mark.parametrize("form", FORMS)
def test_what_is_there_is_replaced_only_on_demand_and_only_if_a_bundle(whole, tmp_path, form):
    out = tmp_path / form
    first = pack(whole, out, only="encoder")
    with pytest.raises(VaeError, match=f"{form}: already exists; choose another place, or replace it with --force"):
        pack(whole, out, only="decoder")
    assert open_bundle(out).digest == first
    second = pack(whole, out, only="decoder", force=True)
    assert open_bundle(out).digest == second != first
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("form", FORMS)
def test_what_is_no_bundle_is_never_replaced(whole, tmp_path, form):
    out = tmp_path / form

    def refused(match):
        for force in (False, True):
            with pytest.raises(VaeError, match=match if force else "already exists"):
                pack(whole, out, force=force)

    out.write_bytes(b"mine")
    refused(
        "is not a sound bundle, and --force replaces only bundles" if form == "small.zip" else "is not a folder, and"
    )
    assert out.read_bytes() == b"mine"
    out.unlink()
    out.mkdir()
    (out / "file").write_bytes(b"mine")
    refused("is not a file, and --force" if form == "small.zip" else "is not a sound bundle, and --force replaces only")
    assert (out / "file").read_bytes() == b"mine"
    shutil.rmtree(out)
    shutil.copytree(whole, tmp_path / "elsewhere")
    out.symlink_to(tmp_path / "elsewhere")
    refused("is not a file, and" if form == "small.zip" else "is not a folder, and --force replaces only bundles")
    assert out.is_symlink()


def test_a_bundle_with_something_of_others_in_it_is_not_replaced(whole, tmp_path):
    pack(whole, tmp_path / "small")
    (tmp_path / "small" / "notes.txt").write_bytes(b"mine")
    with pytest.raises(VaeError, match=r"notes\.txt: is not part of the bundle there and would be lost"):
        pack(whole, tmp_path / "small", force=True)
    assert (tmp_path / "small" / "notes.txt").exists()


def test_an_empty_folder_is_filled_on_demand(whole, tmp_path):
    (tmp_path / "small").mkdir()
    pack(whole, tmp_path / "small", force=True)
    assert vae_runtime.verify(tmp_path / "small").passed


@pytest.mark.parametrize("place", ["", "small.zip", "decoder/small", "decoder/../more"])
def test_nothing_is_written_into_the_bundle_itself(bundle_copy, place):
    before = paths_of(bundle_copy)
    with pytest.raises(InputError, match="expected a place outside the bundle"):
        pack(bundle_copy, bundle_copy / place, force=True)
    assert paths_of(bundle_copy) == before
    link = bundle_copy.parent / "link"
    link.symlink_to(bundle_copy)
    with pytest.raises(InputError, match="expected a place outside the bundle"):
        pack(link, bundle_copy / "more")


@pytest.mark.parametrize("out", [None, 5, b"small", "a\0b"])
def test_what_is_no_path_is_refused(whole, out):
    with pytest.raises(InputError, match=r"^out: expected the path of a folder, or of a file that ends in \.zip, got"):
        pack(whole, out)


@pytest.mark.parametrize("form", FORMS)
def test_a_link_to_itself_and_a_name_too_long_are_no_accident(whole, tmp_path, form):
    (tmp_path / form).symlink_to(form)
    for force, match in ((False, "already exists"), (True, "is not a f(ile|older), and --force replaces only bundles")):
        with pytest.raises(VaeError, match=match):
            pack(whole, tmp_path / form, force=force)
    with pytest.raises(VaeError, match="cannot write here: File name too long; choose a shorter name"):
        pack(whole, tmp_path / ("a" * 300 + form))
    assert [path.name for path in tmp_path.iterdir()] == [form]


def test_missing_folders_are_made(whole, tmp_path):
    for form in FORMS:
        pack(whole, tmp_path / "a" / "b" / form)
        assert vae_runtime.verify(tmp_path / "a" / "b" / form).passed


@pytest.mark.parametrize("form", FORMS)
def test_a_place_that_cannot_be_written_is_refused(whole, tmp_path, form):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(VaeError, match="file is not a folder that can be written to"):
        pack(whole, tmp_path / "file" / form)
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.skipif(os.name != "posix", reason="limits as on POSIX")
@pytest.mark.parametrize("form", FORMS)
def test_a_full_disk_leaves_nothing_behind(python, whole, tmp_path, form):
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))\n"
        f"from vae_runtime.cli.main import main; main(['pack', {str(whole)!r}, '--out', {form!r}])"
    )
    # What Python caches of its modules is cut off by the limit, too.
    done = python("-c", code, cwd=tmp_path, env={"PYTHONDONTWRITEBYTECODE": "1"})
    assert done.stderr == f"error: {form}: not written: File too large; free some space or choose another place\n"
    assert list(tmp_path.iterdir()) == []


def test_files_that_clash_are_packed_as_a_folder_alone(whole, tmp_path, edit_manifest):
    folder = Path(shutil.copytree(whole, tmp_path / "whole"))
    (folder / "decoder/int8").rename(folder / "Decoder")

    def move(document):
        document["components"]["decoder"]["variants"]["int8"]["variant_directory"] = "Decoder"

    edit_manifest(folder, move)
    with pytest.raises(VaeError, match=r"small\.zip: .*: differs only in case from .*; write a folder instead"):
        pack(folder, tmp_path / "small.zip")
    assert list(tmp_path.iterdir()) == [folder]
    pack(folder, tmp_path / "small")
    pack(folder, tmp_path / "small.zip", only="decoder/int8")
    assert vae_runtime.verify(tmp_path / "small.zip").passed


def test_more_than_a_zip_file_holds_is_refused(whole, tmp_path, monkeypatch):
    monkeypatch.setattr("vae_runtime.places._MAX_ZIP", 1000)
    with pytest.raises(VaeError, match=r"expected at most 4 GiB in a \.zip file, got [0-9]+ bytes; write a folder"):
        pack(whole, tmp_path / "small.zip")
    assert list(tmp_path.iterdir()) == []
    pack(whole, tmp_path / "small")


# The operators of a reduced build.


def listed(path):
    """The operators in a configuration file, as a set of (domain, version, name)."""
    found = set()
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            domain, version, names = line.split(";")
            found |= {(domain, int(version), name) for name in names.split(",")}
    return found


def test_operators_come_on_request(whole, tmp_path):
    pack(whole, tmp_path / "without", only="decoder")
    pack(whole, tmp_path / "with", only="decoder", operators=True)
    assert paths_of(tmp_path / "with") - paths_of(tmp_path / "without") == {OPERATORS}
    assert vae_runtime.verify(tmp_path / "with").passed
    assert pack(whole, tmp_path / "again.zip", only="decoder", operators=True) == open_bundle(tmp_path / "with").digest
    # The exported graph's, and what two of them are fused into.
    assert {("ai.onnx", 18, "Gemm"), ("ai.onnx", 18, "Sigmoid")} <= listed(tmp_path / "with" / OPERATORS)


# The tool leaves its files to be closed by Python.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("bundle", MODELS, ids=lambda path: path.name)
def test_onnx_runtimes_own_tool_finds_no_operator_that_is_not_listed(bundle, tmp_path):
    """Its tool lists the operators of .ort files, which hold optimized graphs, with the version of each."""
    pytest.importorskip("flatbuffers")
    import onnxruntime
    from onnxruntime.tools.ort_format_model import create_config_from_models
    from onnxruntime.tools.reduced_build_config_parser import parse_config

    pack(bundle, tmp_path / "small", operators=True)
    ours = listed(tmp_path / "small" / OPERATORS)
    read, _ = parse_config(str(tmp_path / "small" / OPERATORS))
    assert {(domain, opset, name) for domain, sets in read.items() for opset in sets for name in sets[opset]} == ours
    names = {(domain, name) for domain, _, name in ours}
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"):
        models = []
        for variant in open_bundle(tmp_path / "small").manifest.variants:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 4
            options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
            models.append(tmp_path / f"{variant.component}-{variant.name}.ort")
            options.optimized_model_filepath = str(models[-1])
            options.add_session_config_entry("session.save_model_format", "ORT")
            onnxruntime.InferenceSession(str(tmp_path / "small" / variant.path), options)
        create_config_from_models(models, tmp_path / f"{level}.config", False)
        theirs = listed(tmp_path / f"{level}.config")
        assert {(domain, name) for domain, _, name in theirs} - names == set()
        assert theirs
        versions = {domain: opset for domain, opset, _ in ours}
        assert all(opset <= versions[domain] for domain, opset, _ in theirs)


def test_the_package_onnx_finds_the_same_operators(whole, tmp_path):
    onnx = pytest.importorskip("onnx")
    content = (whole / "decoder/fp32/model.onnx").read_bytes()
    nodes = onnx.load_from_string(content).graph.node
    assert operators_of(content, "graph") == {("ai.onnx", 18, node.op_type) for node in nodes}


@pytest.fixture
def nested(onnx_bytes):
    """A graph with an If, whose branches hold an If each, and with functions, one of which calls the other."""
    o = onnx_bytes

    def call(operator, inputs, outputs, domain=""):
        return o.node(operator, inputs, outputs) + o.field(7, *([domain] if domain else []))

    def branching(node_then, node_else):
        graphs = [o.field(1, node) + o.field(2, "branch") for node in (node_then, node_else)]
        return [
            o.field(1, f"{name}_branch") + o.field(6, graph) + o.field(20, 5)
            for name, graph in zip(("then", "else"), graphs, strict=True)
        ]

    def if_(node_then, node_else):
        return o.node("If", ["c"], ["y"]) + o.field(5, *branching(node_then, node_else))

    inner = if_(call("Abs", ["x"], ["y"]), call("Twice", ["x"], ["y"], "mine"))
    outer = if_(inner, call("Normalizer", ["x"], ["y"], "ai.onnx.ml"))

    def function(name, *nodes):
        opset = o.field(9, o.field(2, 17), o.field(1, "ai.onnx.ml") + o.field(2, 3), o.field(1, "mine") + o.field(2, 1))
        return o.field(1, name) + o.field(7, *nodes) + opset + o.field(10, "mine")

    functions = [
        function("Twice", call("Add", ["x", "x"], ["y"]), call("Thrice", ["y"], ["z"], "mine")),
        function("Thrice", if_(call("Neg", ["x"], ["y"]), call("Scaler", ["x"], ["y"], "ai.onnx.ml"))),
    ]
    graph = o.field(1, outer, call("Exp", ["y"], ["z"])) + o.field(2, "graph")
    opsets = [o.field(2, 18), o.field(1, "ai.onnx.ml") + o.field(2, 4), o.field(1, "mine") + o.field(2, 1)]
    return o.field(1, 8) + o.field(7, graph) + o.field(8, *opsets) + o.field(25, *functions)


def test_operators_of_subgraphs_and_functions_are_found(nested):
    found = operators_of(nested, "graph")
    assert found == {
        ("ai.onnx", 18, "If"),
        ("ai.onnx", 18, "Abs"),
        ("ai.onnx", 18, "Exp"),
        ("ai.onnx.ml", 4, "Normalizer"),
        ("ai.onnx", 17, "Add"),
        ("ai.onnx", 17, "If"),
        ("ai.onnx", 17, "Neg"),
        ("ai.onnx.ml", 3, "Scaler"),
    }
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(nested)
    assert [function.name for function in model.functions] == ["Twice", "Thrice"]
    assert {node.op_type for node in model.graph.node} == {"If", "Exp"}


@pytest.mark.parametrize(
    "content", [b"\x3a\x05\x0a", b"\xff" * 20, b"\x0b", b"\x3a\x06\x0a\x04\x22\x02Ab", b"\x42\x02\x15\x00"]
)
def test_what_is_no_graph_has_no_operators(content):
    with pytest.raises(BundleError, match=r"^place: expected an ONNX graph"):
        operators_of(content, "place")


@pytest.mark.usefixtures("external_data")
def test_operators_of_weights_beside_a_graph(weighted_bundle, tmp_path):
    pack(weighted_bundle(), tmp_path / "small.zip", only="decoder", operators=True)
    with zipfile.ZipFile(tmp_path / "small.zip") as archive:
        assert b"ai.onnx;18;MatMul\n" in archive.read(OPERATORS)


# The Python name and the command.


def test_pack_is_imported_when_it_is_asked_for(python, whole, tmp_path):
    code = (
        "import sys, vae_runtime\n"
        "print('vae_runtime.packing' in sys.modules)\n"
        f"print(vae_runtime.pack({str(whole)!r}, 'a', only=('decoder',)))\n"
        f"import vae_runtime.packing; print(vae_runtime.pack({str(whole)!r}, 'b.zip', only='decoder'))"
    )
    done = python("-c", code, cwd=tmp_path)
    assert done.stderr == ""
    before, first, second = done.stdout.split()
    assert before == "False"
    assert first == second == open_bundle(tmp_path / "a").digest


def test_the_command_packs_and_says_what_it_wrote(whole, tmp_path, capsys):
    out = tmp_path / "small.zip"
    assert cli.main(["pack", str(whole), "--only", "decoder/int8", "--only", "encoder", "--out", str(out)]) == 0
    bundle = open_bundle(out)
    size = sum(len(bundle.read(path)) for path in bundle.sums) / 1024
    graphs = "encoder/fp32, encoder/int8, decoder/int8"
    assert capsys.readouterr().out == f"{out}: {graphs}; {size:,.0f} KiB, {bundle.digest}\n"
    assert cli.main(["info", str(out)]) == 0
    assert f"packed from                 {open_bundle(whole).digest}\n" in capsys.readouterr().out
    assert cli.main(["pack", str(whole), "--out", str(out)]) == 1
    assert (
        capsys.readouterr().err == f"error: {out}: already exists; choose another place, or replace it with --force\n"
    )
    options = ["--only", "decoder", "--operators", "--force", "--digest", open_bundle(whole).digest]
    assert cli.main(["pack", str(whole), "--out", str(out), *options]) == 0
    assert graphs_of(out) == ["decoder/fp32", "decoder/int8"]
    assert OPERATORS in paths_of(out)


@pytest.mark.parametrize("only", ["decode", "decoder/fp32/x", "", "decoder,,encoder"])
def test_a_choice_of_another_form_is_misuse(tmp_path, capsys, only):
    with pytest.raises(SystemExit) as caught:
        cli.main(["pack", str(tmp_path / "none"), "--only", only, "--out", str(tmp_path / "small")])
    assert caught.value.code == 2
    assert "only: expected encoder, decoder, or one of them and a variant" in capsys.readouterr().err


@pytest.mark.parametrize("form", FORMS)
def test_commands_that_need_what_was_left_out_say_so(whole, tmp_path, monkeypatch, capsys, vae, form):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", vae.sample(2, seed=1))
    pack(whole, form, only="decoder")
    before = paths_of(tmp_path)
    for arguments in (
        ["encode", form, "x.npy", "--out", "a.npz"],
        ["reconstruct", form, "x.npy", "--out", "a.npy"],
        ["interpolate", form, "--inputs", "x.npy", "--out", "a.npy"],
        ["traverse", form, "--inputs", "x.npy", "--out", "a.npy"],
        ["score", form, "x.npy"],
    ):
        assert cli.main(arguments) == 1
        error = capsys.readouterr().err
        assert re.fullmatch(rf"error: {form}: the encoder was left out when this bundle was packed; .*\n", error)
    assert paths_of(tmp_path) == before
    assert cli.main(["interpolate", form, "--seeds", "1", "2", "--out", "a.npy"]) == 0


def test_onnx_tests_of_graphs_of_one_row_have_a_set_for_each(small_bundle, tmp_path, onnx_bytes):
    pack(small_bundle("bernoulli", batch_of_one=("decoder",)), tmp_path / "tests", onnx_tests=True)
    found = sorted(path.relative_to(tmp_path / "tests").as_posix() for path in (tmp_path / "tests").rglob("*.pb"))
    one, two = (f"decoder/fp32/test_data_set_{number}" for number in (0, 1))
    outputs = [f"encoder/fp32/test_data_set_0/output_{number}.pb" for number in range(3)]
    expected = [f"{folder}/{name}.pb" for folder in (one, two) for name in ("input_0", "output_0", "output_1")]
    assert found == [*expected, "encoder/fp32/test_data_set_0/input_0.pb", *outputs]
    row = vae_runtime.noise.normal(0, 0, 2, (3,))[1:]
    tensor = onnx_bytes.field(1, 1, 3) + onnx_bytes.field(2, 1) + onnx_bytes.field(8, "z")
    assert (tmp_path / "tests" / two / "input_0.pb").read_bytes() == tensor + onnx_bytes.field(9, row.tobytes())


def test_onnx_tests_need_the_graph_of_the_manifest(small_bundle, edit_manifest, tmp_path):
    bundle = small_bundle()
    graph = bundle / "decoder" / "fp32" / "model.onnx"
    graph.write_bytes(graph.read_bytes().replace(b"\x01z", b"\x01q"))
    edit_manifest(bundle, lambda document: None)
    with pytest.raises(BundleError, match=r"model\.onnx: expected the inputs z, got q; copy the bundle again"):
        pack(bundle, tmp_path / "tests", onnx_tests=True)
    assert not (tmp_path / "tests").exists()
