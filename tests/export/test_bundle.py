import hashlib
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
from limits import largest_file
from validators import Draft202012Validator

import vae_export.exporting
import vae_runtime
from vae_export import DataConfig, ExportError, ModelConfig, TrainConfig, evaluate, export, train
from vae_export.card import model_card, run_card
from vae_export.training import checkpoint
from vae_runtime import InputError, VaeError, verify
from vae_runtime.bundle import open_bundle
from vae_runtime.document import parse
from vae_runtime.golden import read_golden
from vae_runtime.manifest import LatentPrior, Likelihood, Normalisation, Refusal


def content_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# What is in a bundle.


def test_the_layout_is_the_one_specified(tiny_bundle):
    expected = {"manifest.json", "golden.npz", "README.md", "SHA256SUMS", "samples.png"}
    for component in ("encoder", "decoder"):
        expected |= {f"{component}/fp32/model.onnx", f"{component}/torchscript/model.pt", f"{component}/pt2/model.pt2"}
    assert set(content_of(tiny_bundle)) == expected
    assert not [path for path in tiny_bundle.rglob("*") if path.is_symlink()]


def test_torchscript_comes_unasked_and_pt2_when_asked_for(tiny_run, tmp_path, prepared):
    files = content_of(export(tiny_run, tmp_path / "bundle").path)
    graphs = {name for name in files if "/" in name}
    assert graphs == {
        f"{c}/{file}" for c in ("encoder", "decoder") for file in ("fp32/model.onnx", "torchscript/model.pt")
    }


def test_progress_says_what_is_being_done(tiny_run, tmp_path, prepared, capsys):
    export(tiny_run, tmp_path / "told", progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "running the model to understand it"
    assert re.fullmatch(r"writing the bundle, and running it with vae-runtime \(about \d+ s left\)", lines[-1])
    assert all(lines)
    export(tiny_run, tmp_path / "untold")
    assert capsys.readouterr().err == ""


def test_a_format_that_was_left_out_is_listed_with_its_reason(tiny_run, tiny_graphs, tmp_path, monkeypatch):
    graphs = [graph for graph in tiny_graphs.values() if graph.executor == "ort"]
    refusal = Refusal("decoder", "torchscript", "the tracer fails")
    monkeypatch.setattr(vae_export.exporting, "make_graphs", lambda *_, **__: (graphs, [refusal]))
    exported = export(tiny_run, tmp_path / "bundle")
    assert exported.refused == parse((exported.path / "manifest.json").read_text()).refused == (refusal,)
    assert "\n- decoder/torchscript: the tracer fails.\n" in (exported.path / "README.md").read_text()


def test_the_manifest_parses_and_fits_the_schema(tiny_bundle, root):
    text = (tiny_bundle / "manifest.json").read_text(encoding="utf-8")
    manifest = parse(text)
    schema = json.loads((root / "docs" / "bundle-format.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    assert not list(Draft202012Validator(schema).iter_errors(json.loads(text)))
    broken = json.loads(text)
    broken["sha256"] = "x"
    assert list(Draft202012Validator(schema).iter_errors(broken))
    assert manifest.likelihood == Likelihood("bernoulli", mean="x", logits="logits")
    assert manifest.noise == "vnoise-1"
    assert manifest.reader == "vae-runtime>=0.1"


def test_the_manifest_has_the_scores_of_the_test_data(tiny_bundle, tiny_run):
    scores = vae_runtime.load(tiny_bundle).manifest.scores
    _, info = checkpoint.load(tiny_run)
    data = checkpoint.run_data(info, None, tiny_run)
    test, train = data.test.rows(slice(None)), data.train.rows(slice(None))
    assert (scores.kind, scores.seed, scores.n) == ("elbo", 0, len(test))
    assert scores.data == "digits, test data"
    elbo = vae_runtime.load(tiny_bundle).score(test, seed=0).elbo
    np.testing.assert_allclose((scores.values[0], scores.values[-1]), (elbo.min(), elbo.max()), rtol=1e-5)
    other = vae_runtime.load(tiny_bundle).score(train, seed=0).elbo
    assert not np.isclose(scores.values[0], other.min(), rtol=1e-5)
    assert vae_runtime.load(tiny_bundle).score(np.random.default_rng(0).random(test.shape)).p_value.max() < 0.1


def test_fp32_is_declared_first_and_alone_names_a_provider(tiny_bundle):
    document = json.loads((tiny_bundle / "manifest.json").read_text(encoding="utf-8"))
    assert list(document["components"]) == ["encoder", "decoder"]
    for component in document["components"].values():
        assert list(component["variants"]) == ["fp32", "torchscript", "pt2"]
        for name, variant in component["variants"].items():
            assert variant.get("ep") == ("CPUExecutionProvider" if name == "fp32" else None)


def test_sums_list_every_other_file_and_sha256sum_agrees(tiny_bundle, tiny_exported):
    files = content_of(tiny_bundle)
    sums = files.pop("SHA256SUMS")
    expected = "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
    assert sums.decode() == expected
    assert tiny_exported.digest == f"sha256:{hashlib.sha256(sums).hexdigest()}"
    checked = subprocess.run(["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=tiny_bundle, capture_output=True)
    assert checked.returncode == 0
    assert checked.stdout.count(b": OK") == len(files)


def test_what_export_returns_is_what_it_wrote(tiny_exported):
    files = content_of(tiny_exported.path)
    assert tiny_exported.sizes == {name: len(files[name]) for name in files if "/" in name}
    assert tiny_exported.digest == vae_runtime.load(tiny_exported.path).digest


def test_golden_vectors_are_pytorchs_and_each_variants_own(tiny_bundle, tiny_adapted):
    import torch

    from vae_export.understand.adapted import run_module
    from vae_runtime.golden import golden_inputs

    bundle = open_bundle(tiny_bundle)
    golden = read_golden(bundle)
    for component, variants in bundle.manifest.components.items():
        given = golden_inputs(bundle, component, golden)
        answers = run_module(tiny_adapted.modules[component], [torch.from_numpy(each) for each in given.values()])
        for output, answer in zip(tiny_adapted.outputs(component), answers, strict=True):
            stored = golden[f"{component}/pytorch/{output}"]
            np.testing.assert_allclose(stored, answer.numpy(), rtol=0, atol=1e-6)
            for name, variant in variants.items():
                own = golden[f"{component}/{name}/{output}"]
                distance = np.abs(own.astype(np.float64) - stored).max()
                assert distance == variant.error[output]
                assert variant.tolerance[output] >= 10 * distance
                assert variant.tolerance[output] == pytest.approx(2e-5 * max(1, np.abs(own).max()))


# The model card.


def test_the_card_states_data_license_training_and_graphs(tiny_run, tmp_path, prepared):
    named = {"name": "My digits, v2", "license": "CC-BY-4.0", "version": "1.2.0"}
    bundle = export(tiny_run, tmp_path / "bundle", **named).path
    card = (bundle / "README.md").read_text(encoding="utf-8")
    for words in (
        "# My digits, v2\n",
        "Observations of shape 1×8×8, 4 latent dimensions, bernoulli likelihood",
        "dense layers of 32-16",
        "![Samples from the prior, drawn by the exported decoder](samples.png)",
        "Data: digits, 1,797 handwritten digits, 8×8 gray values",
        "License of the data: CC BY 4.0.",
        "1,465 observations trained on, 167 for validation, 165 for test.",
        "License of the weights: CC-BY-4.0.",
        "Objective: the ELBO.",
        "Adam, batches of 128, learning rate 0.001",
        "at most 2 epochs, seed 0, PyTorch 2.",
        "Best epoch",
        "Not evaluated: run `vae-export evaluate` on the run and export again.",
    ):
        assert words in card, words
    for name in ("encoder/fp32/model.onnx", "decoder/torchscript/model.pt"):
        assert re.search(rf"\| {name} \| \d+ \| \d\.\de[-+]\d\d \|", card)
    manifest = open_bundle(bundle).manifest
    assert (manifest.name, manifest.package_name, manifest.license) == ("My digits, v2", "My-digits-v2", "CC-BY-4.0")
    assert manifest.package_version == "1.2.0"
    assert json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["package_version"] == "1.2.0"


@pytest.fixture(scope="module")
def evaluated_run(tiny_run, tmp_path_factory):
    run = shutil.copytree(tiny_run, tmp_path_factory.mktemp("evaluated") / "run")
    evaluate(run, importance_samples=3, limit=20, progress=False)
    return run


def test_figures_stand_with_their_protocol_in_card_and_manifest(evaluated_run, tmp_path, prepared):
    bundle = export(evaluated_run, tmp_path / "bundle").path
    card = (bundle / "README.md").read_text(encoding="utf-8")
    measured = json.loads((evaluated_run / "evaluation.json").read_text())
    assert "Protocol: 20 test observations of digits, binarization none, 3 importance samples" in card
    assert f"**{measured['nll']:.2f}** ± {measured['standard_error']:.2f} nats" in card
    assert f"{measured['elbo']:.2f} nats" in card
    assert open_bundle(bundle).manifest.metrics == measured
    assert measured["importance_samples"] == 3
    assert measured["binarisation"] == "none"


@pytest.mark.parametrize(
    ("likelihood", "binarise", "surrogate"),
    [("bernoulli", "none", True), ("bernoulli", "stochastic", False), ("gaussian", "none", False)],
)
def test_grey_values_under_a_bernoulli_are_called_a_surrogate_wherever_a_figure_stands(
    evaluated_run, tiny_bundle, likelihood, binarise, surrogate
):
    from vae_export.training.evaluation import read_evaluation

    info = checkpoint.read_info(evaluated_run)
    info = replace(info, model=replace(info.model, likelihood=likelihood), train=replace(info.train, binarise=binarise))
    figures = replace(read_evaluation(evaluated_run), surrogate=info.surrogate, binarisation=binarise)
    sizes = {path: len(content) for path, content in content_of(tiny_bundle).items()}
    card = run_card(open_bundle(tiny_bundle).manifest, info, figures, sizes, True)
    assert info.surrogate == surrogate
    assert ("every figure is of a surrogate" in card) == surrogate
    table = card.partition("## Figures")[2].partition("## Graphs")[0]
    for words in ("surrogate negative log-likelihood", "surrogate ELBO", "surrogate: gray values"):
        assert (words in table) == surrogate


def test_an_average_of_the_weights_and_another_precision_are_on_the_card(evaluated_run, tiny_bundle):
    info = checkpoint.read_info(evaluated_run)
    manifest = open_bundle(tiny_bundle).manifest
    sizes = {path: len(content) for path, content in content_of(tiny_bundle).items()}
    assert "average" not in run_card(manifest, info, None, sizes, True)
    info = replace(info, train=replace(info.train, ema=0.999, precision="bfloat16"))
    card = run_card(manifest, info, None, sizes, True)
    assert "Its networks computed in bfloat16. The weights are their average over the steps, with decay 0.999." in card


@pytest.mark.parametrize(("options", "words"), [
    ({"channels": (8,), "hidden": ()},
     "strided convolutions to levels of 8 channels, 1 residual block each (kernels 3, 1) (relu). Decoder: the same in "
     "reverse with transposed convolutions."),
    ({"channels": (8, 16, 32), "encoder_channels": (16, 32), "encoder_blocks": 2, "encoder_kernels": (3, 3),
      "decoder_blocks": 0, "decoder_attention": 1, "norm": "group"},
     "strided convolutions to levels of 16, 32 channels, 2 residual blocks each (kernels 3, 3), then dense layers of "
     "128-64 (relu, group normalization). Decoder: the same in reverse with transposed convolutions, with levels of "
     "8, 16, 32 channels, self-attention at the lowest 1."),
])  # fmt: skip
def test_the_levels_of_a_convolutional_model_are_on_the_card(evaluated_run, tiny_bundle, options, words):
    info = replace(checkpoint.read_info(evaluated_run), model=ModelConfig("conv", (1, 8, 8), **options))
    sizes = {path: len(content) for path, content in content_of(tiny_bundle).items()}
    assert words in run_card(open_bundle(tiny_bundle).manifest, info, None, sizes, True)


def test_what_makes_x_of_raw_values_is_on_the_card(evaluated_run, tiny_bundle):
    info, manifest = checkpoint.read_info(evaluated_run), open_bundle(tiny_bundle).manifest
    sizes = {path: len(content) for path, content in content_of(tiny_bundle).items()}
    for found, words in (
        (Normalisation(0.0, 16.0), "x = (raw value - offset) / divisor, with offset 0 and divisor 16."),
        (Normalisation((0.5,), (2.0,)), "with those of `observation.normalisation` in manifest.json."),
        (None, None),
    ):
        observation = replace(manifest.observation, normalisation=found)
        card = run_card(replace(manifest, observation=observation), info, None, sizes, True)
        assert words in card if words else "Normalization" not in card


def test_nats_of_discrete_values_are_bits_per_dimension_too(evaluated_run, tiny_bundle):
    from vae_export.training.evaluation import read_evaluation

    info, manifest = checkpoint.read_info(evaluated_run), open_bundle(tiny_bundle).manifest
    sizes = {path: len(content) for path, content in content_of(tiny_bundle).items()}
    figures = replace(read_evaluation(evaluated_run), nll=64 * math.log(2) * 1.25)
    assert "bits per dimension" not in run_card(manifest, info, figures, sizes, True)
    manifest = replace(manifest, likelihood=replace(manifest.likelihood, kind="logistic", scale=0.1))
    assert "| bits per dimension | 1.250 |" in run_card(manifest, info, figures, sizes, True)


def test_an_unfinished_run_is_exported_and_called_so(tiny_run, tmp_path, prepared):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["result"] = None
    (run / "config.json").write_text(json.dumps(config))
    card = (export(run, tmp_path / "bundle").path / "README.md").read_text(encoding="utf-8")
    assert "Training has not finished" in card
    assert "Best epoch" not in card


# What the data dictate.

RNG = np.random.default_rng(0)
SOURCES = {
    # name: data, model, training, and what the manifest must say: range, normalisation, axes, picture
    "pixels": (
        (RNG.random((80, 1, 8, 8)) * 255).astype(np.uint8),
        {"likelihood": "gaussian", "architecture": "conv", "channels": (3, 4), "learn_scale": True},
        {},
        ((0.0, 1.0), Normalisation(0.0, 255.0), ("channel", "height", "width"), True),
    ),
    "numbers": (
        (RNG.standard_normal((80, 6)) * 40).astype(np.float64),
        {"likelihood": "laplace", "scale": 2.0},
        {},
        (None, None, ("feature",), False),
    ),
    "shades": (
        RNG.random((80, 8, 8)).astype(np.float32),
        {"likelihood": "bernoulli"},
        {"binarise": "stochastic"},
        ((0.0, 1.0), None, ("height", "width"), True),
    ),
}


@pytest.fixture(scope="module", params=SOURCES)
def of_npy(request, tmp_path_factory):
    """A bundle of a run on one's own data, which lie in a place that nobody else should learn."""
    data, model, training, expected = SOURCES[request.param]
    folder = tmp_path_factory.mktemp("s3cret-place")
    np.save(folder / f"{request.param}.npy", data)
    source = DataConfig(str(folder / f"{request.param}.npy"), test_fraction=0.0 if request.param == "numbers" else 0.1)
    train(
        folder / "run",
        ModelConfig(latent=2, hidden=(8,), **model),
        TrainConfig(epochs=1, threads=1, **training),
        source,
        progress=False,
    )
    formats = ["onnx", "torchscript", "pt2"] if request.param == "pixels" else ["onnx"]
    return request.param, export(folder / "run", folder / "bundle", formats=formats), expected


def test_range_normalisation_and_axes_are_those_of_the_data(of_npy):
    name, exported, (bounds, normalisation, axes, picture) = of_npy
    manifest = open_bundle(exported.path).manifest
    assert manifest.observation.range == bounds
    assert manifest.observation.normalisation == normalisation
    assert manifest.observation.axes == axes
    assert manifest.observation.shape == SOURCES[name][0].shape[1:]
    assert (exported.path / "samples.png").exists() == picture
    assert (manifest.name, manifest.package_name) == (name, name)
    assert manifest.training["data"]["license"] == "unknown"
    document = json.loads((exported.path / "manifest.json").read_text(encoding="utf-8"))
    assert "range" in document["additional_metadata"]["vae"]["observation"]


def test_the_likelihood_is_the_trained_one(of_npy):
    _, exported, _ = of_npy
    manifest = open_bundle(exported.path).manifest
    vae, info = checkpoint.load(exported.path.parent / "run")
    assert manifest.likelihood.kind == info.model.likelihood
    if info.model.likelihood == "bernoulli":
        assert manifest.likelihood.scale is None
    else:
        assert manifest.likelihood.scale == float(vae.scale)
        assert (manifest.likelihood.scale != info.model.scale) == info.model.learn_scale


def test_such_a_bundle_verifies_and_takes_its_own_data(of_npy):
    _, exported, (bounds, *_) = of_npy
    assert verify(exported.path).passed
    vae = vae_runtime.load(exported.path)
    _, info = checkpoint.load(exported.path.parent / "run")
    x = checkpoint.run_data(info).validation.rows(slice(None))
    assert vae.encode(x).mean.shape == (len(x), 2)
    golden = read_golden(open_bundle(exported.path))["x"]
    assert np.isfinite(golden).all()
    if bounds:
        assert golden.min() >= bounds[0]
        assert golden.max() <= bounds[1]
    vae.encode(golden)


def unpacked(content):
    """A file's bytes, and of an archive those of everything in it."""
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return content + b"".join(name.encode() + archive.read(name) for name in archive.namelist())
    return content


def test_no_file_tells_where_the_data_the_run_or_the_code_lay(of_npy, root):
    _, exported, _ = of_npy
    secrets = [b"s3cret-place", str(root).encode(), b"site-packages", str(Path.home()).encode(), b"/tmp/"]
    for name, content in content_of(exported.path).items():
        assert not [secret for secret in secrets if secret in unpacked(content)], name
    assert b"s3cret-place" in (exported.path.parent / "run" / "config.json").read_bytes()


# Where it is written.


def test_a_bundle_that_is_there_is_kept_without_force_and_replaced_with_it(tiny_run, bundle_copy, prepared):
    before = content_of(bundle_copy)
    with pytest.raises(ExportError, match="bundle: already exists; choose another place, or replace it with --force"):
        export(tiny_run, bundle_copy)
    assert content_of(bundle_copy) == before
    exported = export(tiny_run, bundle_copy, name="another", force=True)
    assert vae_runtime.load(bundle_copy).manifest.name == "another"
    assert exported.digest == vae_runtime.load(bundle_copy).digest
    assert not (bundle_copy / "encoder" / "pt2").exists()
    assert verify(bundle_copy).passed
    assert os.listdir(bundle_copy.parent) == ["bundle"]


def a_folder(place):
    place.mkdir()
    (place / "thesis.tex").write_text("years of work")


def a_file(place):
    place.write_text("years of work")


def a_link(place):
    a_folder(place.parent / "elsewhere")
    place.symlink_to(place.parent / "elsewhere")


def a_link_to_a_bundle(place):
    a_folder(place.parent / "elsewhere")
    (place.parent / "elsewhere" / "manifest.json").write_text("{}")
    place.symlink_to(place.parent / "elsewhere")


def a_dangling_link(place):
    place.symlink_to(place.parent / "nowhere")


def another_programs_folder(place):
    """Web pages and browser extensions have a manifest.json too."""
    a_folder(place)
    (place / "manifest.json").write_text("{}")


@pytest.mark.parametrize(
    "make", [a_folder, a_file, a_link, a_link_to_a_bundle, a_dangling_link, another_programs_folder]
)
@pytest.mark.parametrize("force", [False, True])
def test_what_is_no_bundle_is_never_replaced(tmp_path, make, force):
    """Refused at once: there is not even a run."""
    place = tmp_path / "target"
    make(place)
    before = content_of(tmp_path)
    words = "and --force replaces only bundles" if force else "already exists"
    with pytest.raises(ExportError, match=f"target: .*{words}"):
        export(tmp_path / "no run", place, force=force)
    assert content_of(tmp_path) == before
    assert place.is_symlink() == ("link" in make.__name__)


def test_a_users_own_file_in_a_bundle_is_not_lost(tiny_run, bundle_copy, prepared):
    (bundle_copy / "notes.txt").write_text("mine")
    before = content_of(bundle_copy)
    with pytest.raises(ExportError, match=r"notes\.txt: is not part of the bundle there and would be lost"):
        export(tiny_run, bundle_copy, force=True)
    assert content_of(bundle_copy) == before
    os.unlink(bundle_copy / "notes.txt")
    export(tiny_run, bundle_copy, force=True)


def test_what_somebody_laid_into_a_bundle_is_not_lost(bundle_copy, tmp_path):
    (bundle_copy / "encoder" / "thesis.tex").write_text("years of work")
    before = content_of(bundle_copy)
    with pytest.raises(ExportError, match=r"encoder/thesis\.tex: is not part of the bundle there and would be lost"):
        export(tmp_path / "no run", bundle_copy, force=True)
    assert content_of(bundle_copy) == before


def test_an_empty_folder_gives_way_to_force(tiny_run, tmp_path, prepared):
    (tmp_path / "bundle").mkdir()
    with pytest.raises(ExportError, match="already exists"):
        export(tiny_run, tmp_path / "bundle")
    assert verify(export(tiny_run, tmp_path / "bundle", force=True).path).passed


def test_missing_parents_are_made(tiny_run, tmp_path, prepared):
    assert verify(export(tiny_run, tmp_path / "a" / "b" / "bundle").path).passed


def test_a_place_that_cannot_be_written_is_named(tiny_run, prepared):
    with pytest.raises(VaeError, match=r"^/proc/nowhere/bundle: cannot write here: .*; choose"):
        export(tiny_run, "/proc/nowhere/bundle")


def test_what_killed_exports_left_is_cleaned_up(tiny_run, bundle_copy, prepared):
    left = bundle_copy.parent / ".bundle.abcd1234.partial"
    shutil.copytree(bundle_copy, left)
    foreign = bundle_copy.parent / ".bundle.txt"
    foreign.write_text("another's")
    export(tiny_run, bundle_copy, force=True)
    assert sorted(os.listdir(bundle_copy.parent)) == [".bundle.txt", "bundle"]


# Replace one folder by the files of another and back, forever; argv: the folder, the two others, how.
REPLACER = """
import os, shutil, sys
from pathlib import Path
from vae_runtime.files import write_folder

target, *sources, how = sys.argv[1:]

def write_in_place(target, files, *, replace):
    shutil.rmtree(target)
    for name, content in files.items():
        path = Path(target, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.sync()

write = write_in_place if how == "in place" else write_folder
bundles = [
    {path.relative_to(source).as_posix(): path.read_bytes() for path in Path(source).rglob("*") if path.is_file()}
    for source in sources
]
print("ready", flush=True)
while True:
    for files in bundles:
        write(target, files, replace=True)
"""


@pytest.fixture
def two_bundles(tiny_run, tmp_path_factory, prepared):
    folder = tmp_path_factory.mktemp("two")
    return [export(tiny_run, folder / name, name=name).path for name in ("one", "two")]


@pytest.fixture
def states_when_killed(two_bundles):
    """Kill the writing of a bundle over another at random moments; what is there then, each time, and beside it."""

    def states(target, times, how):
        moments = np.random.default_rng(0)
        for _ in range(times):
            command = [sys.executable, "-c", REPLACER, target, *two_bundles, how]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
                assert writer.stdout.readline() == b"ready\n"
                time.sleep(moments.uniform(0, 0.1))
                writer.kill()
            try:
                whole, name = verify(target).passed, open_bundle(target).manifest.name
            except VaeError as error:
                whole, name = False, str(error)
            yield whole, name, [left for left in os.listdir(target.parent) if left != target.name]

    return states


def test_killed_at_any_moment_the_old_or_the_new_bundle_is_there_and_whole(
    tiny_run, bundle_copy, states_when_killed, prepared
):
    states = list(states_when_killed(bundle_copy, 12, "as export writes"))
    assert [state for state in states if not state[0]] == []
    assert {name for _, name, _ in states} <= {"digits", "one", "two"}
    export(tiny_run, bundle_copy, name="last", force=True)
    assert os.listdir(bundle_copy.parent) == ["bundle"]
    assert open_bundle(bundle_copy).manifest.name == "last"


def test_a_bundle_written_in_place_would_not_survive(bundle_copy, states_when_killed):
    assert not all(whole for whole, _, _ in states_when_killed(bundle_copy, 40, "in place"))


@pytest.mark.parametrize("size", [0, 500, 8192])
def test_a_full_disk_is_one_error_and_leaves_nothing(tiny_run, bundle_copy, prepared, size):
    before = content_of(bundle_copy)
    for target, force in ((bundle_copy.parent / "new", False), (bundle_copy, True)):
        with largest_file(size), pytest.raises(VaeError) as caught:
            export(tiny_run, target, force=force)
        words = f"{target}: not written: File too large; free some space or choose another place"
        assert str(caught.value) == words
    assert os.listdir(bundle_copy.parent) == ["bundle"]
    assert content_of(bundle_copy) == before
    export(tiny_run, bundle_copy, force=True)


@pytest.mark.parametrize(
    ("force", "change", "words"),
    [
        (
            True,
            lambda m: {"observation": replace(m.observation, shape=(1, 8, 9))},
            "decoder/fp32/model.onnx: output x: exp",
        ),
        (
            False,
            lambda m: {"latents": (replace(m.latent, name="w"),)},
            "decoder/fp32/model.onnx: expected the inputs \\['w'\\]",
        ),
        (
            False,
            lambda m: {"observation": replace(m.observation, range=(7.0, 8.0))},
            "x.*: expected values from 7 to 8",
        ),
    ],
)
def test_a_bundle_that_the_runtime_cannot_run_is_not_written(
    tiny_run, bundle_copy, prepared, monkeypatch, force, change, words
):
    before = content_of(bundle_copy)
    original = vae_export.exporting.describe_bundle

    def describe(*arguments, **others):
        manifest = original(*arguments, **others)
        return replace(manifest, **change(manifest))

    monkeypatch.setattr(vae_export.exporting, "describe_bundle", describe)
    target = bundle_copy if force else bundle_copy.parent / "new"
    with pytest.raises(ExportError, match=f"^the bundle is not written, since vae-runtime cannot run it: {words}"):
        export(tiny_run, target, force=force)
    assert os.listdir(bundle_copy.parent) == ["bundle"]
    assert content_of(bundle_copy) == before


# Bad runs and data. Each is found before any graph is made.


@pytest.fixture
def run_copy(tiny_run, tmp_path):
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def no_run(run):
    shutil.rmtree(run)


def no_config(run):
    (run / "config.json").unlink()


def no_weights(run):
    (run / "model.safetensors").unlink()


def truncated_config(run):
    content = (run / "config.json").read_bytes()
    (run / "config.json").write_bytes(content[: len(content) // 2])


def truncated_weights(run):
    content = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(content[:-100])


def empty_weights(run):
    (run / "model.safetensors").write_bytes(b"")


def _edit_weights(run, change):
    tensors = safetensors.torch.load((run / "model.safetensors").read_bytes())
    change(tensors)
    (run / "model.safetensors").write_bytes(safetensors.torch.save(tensors))


def weights_of_another_shape(run):
    _edit_weights(
        run, lambda tensors: tensors.update({"decoder.4.weight": tensors["decoder.4.weight"][:, :-1].clone()})
    )


def weights_of_another_type(run):
    _edit_weights(run, lambda tensors: tensors.update({"decoder.4.weight": tensors["decoder.4.weight"].double()}))


def a_weight_missing(run):
    _edit_weights(run, lambda tensors: tensors.pop("encoder.1.bias"))


def a_weight_too_many(run):
    _edit_weights(run, lambda tensors: tensors.update(spare=tensors["encoder.1.bias"].clone()))


def _edit_config(run, change):
    config = json.loads((run / "config.json").read_text())
    change(config)
    (run / "config.json").write_text(json.dumps(config))


def config_of_a_newer_version(run):
    _edit_config(run, lambda config: config.update(format_version=4))


def config_without_a_field(run):
    _edit_config(run, lambda config: config.pop("provenance"))


def config_with_a_mistyped_field(run):
    _edit_config(run, lambda config: config["model"].update(latent="4"))


def config_with_a_mistyped_count(run):
    _edit_config(run, lambda config: config["provenance"].update(train="many"))


def config_with_a_mistyped_result(run):
    _edit_config(run, lambda config: config["result"].update(seconds="long"))


def evaluation_that_is_no_json(run):
    (run / "evaluation.json").write_text("{")


def evaluation_with_infinity(run):
    (run / "evaluation.json").write_text('{"nll": Infinity}')


def evaluation_of_another_kind(run):
    (run / "evaluation.json").write_text("[1]")


def evaluation_with_a_mistyped_field(run):
    evaluate(run, importance_samples=1, limit=2, progress=False)
    fields = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").write_text(json.dumps({**fields, "nll": "small"}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (no_run, r"run: no such folder; give the folder of a run"),
        (no_config, r"run: holds no config\.json; give the folder of a run"),
        (no_weights, r"run/model\.safetensors: No such file or directory; restore it or train again"),
        (truncated_config, r"run/config\.json: expected JSON"),
        (truncated_weights, r"run/model\.safetensors: expected a whole safetensors file"),
        (empty_weights, r"run/model\.safetensors: expected a whole safetensors file"),
        (
            weights_of_another_shape,
            r"tensor decoder\.4\.weight: expected float32 \[64, 32\], got float32 \[64, 31\]",
        ),
        (weights_of_another_type, r"tensor decoder\.4\.weight: expected float32 \[64, 32\], got float64 \[64, 32\]"),
        (a_weight_missing, r"tensor encoder\.1\.bias: expected float32 \[32\], got none"),
        (a_weight_too_many, r"tensor spare: expected no tensor of this name"),
        (config_of_a_newer_version, r"run/config\.json: expected format_version 1 or 2 or 3, got 4"),
        (config_without_a_field, r"run/config\.json: .*provenance"),
        (
            config_with_a_mistyped_field,
            r"run/config\.json: model\.latent: expected an integer from 1 to 65536, got '4'",
        ),
        (config_with_a_mistyped_count, r"run/config\.json: .*provenance.*many"),
        (config_with_a_mistyped_result, r"run/config\.json: .*result.*long"),
        (evaluation_that_is_no_json, r"run/evaluation\.json: .*evaluate again"),
        (evaluation_with_infinity, r"run/evaluation\.json: .*evaluate again"),
        (evaluation_of_another_kind, r"run/evaluation\.json: .*evaluate again"),
        (evaluation_with_a_mistyped_field, r"run/evaluation\.json: .*small.*evaluate again"),
    ],
)
def test_a_damaged_run_is_named_and_nothing_is_written(run_copy, tmp_path, prepared, damage, words):
    damage(run_copy)
    with pytest.raises(InputError, match=words) as caught:
        export(run_copy, tmp_path / "bundle")
    assert "\n" not in str(caught.value)
    assert set(os.listdir(tmp_path)) <= {"run"}


@pytest.fixture(scope="module")
def run_on_npy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    data = RNG.random((40, 6)).astype(np.float32)
    np.save(folder / "data.npy", data)
    source = DataConfig(str(folder / "data.npy"))
    model = ModelConfig(latent=2, hidden=(4,), likelihood="gaussian")
    train(folder / "run", model, TrainConfig(epochs=1, threads=1), source, progress=False)
    return folder, data


def test_data_that_moved_are_asked_for_and_taken_from_their_new_place(run_on_npy, tmp_path):
    folder, _ = run_on_npy
    (folder / "data.npy").rename(folder / "moved.npy")
    try:
        with pytest.raises(InputError, match=r"data\.npy: no such file or folder; .*; say with --data where"):
            export(folder / "run", tmp_path / "bundle")
        with pytest.raises(InputError, match=r"nowhere\.npy: no such file or folder; .*--data"):
            export(folder / "run", tmp_path / "bundle", data=str(folder / "nowhere.npy"))
        assert not list(tmp_path.iterdir())
        bundle = export(folder / "run", tmp_path / "bundle", data=str(folder / "moved.npy"), formats=["onnx"]).path
        assert verify(bundle).passed
        assert open_bundle(bundle).manifest.name == "data"
    finally:
        (folder / "moved.npy").rename(folder / "data.npy")


def test_data_that_changed_are_no_longer_the_runs(run_on_npy, tmp_path):
    folder, data = run_on_npy
    altered = data.copy()
    altered[3, 1] = np.nextafter(altered[3, 1], np.float32(2))
    for other in (altered, data[:-1], data[::-1], (data * 255).astype(np.uint8)):
        np.save(tmp_path / "other.npy", other)
        with pytest.raises(
            InputError, match=r"other\.npy: expected the run's data \(data, sha256:\w+\), got sha256:.*--data"
        ):
            export(folder / "run", tmp_path / "bundle", data=str(tmp_path / "other.npy"))
    assert os.listdir(tmp_path) == ["other.npy"]


@pytest.mark.long
def test_exports_in_fresh_processes_are_the_same_to_the_bit(fresh_export, tmp_path):
    """Hashes, and so the order in sets, differ from process to process."""
    one, two = fresh_export("one", hash_seed=1), fresh_export("two", hash_seed=2)
    for done in (one, two):
        assert done.returncode == 0, done.stderr
    first, second = content_of(one.bundle), content_of(two.bundle)
    assert [name for name in first if first[name] != second.get(name)] == []
    assert first.keys() == second.keys()


# Bundles of a model rather than a run.


@pytest.fixture(scope="module")
def of_model(tmp_path_factory):
    """A conditional model, exported with its example in every format, and the example."""
    import torch
    from torch import nn

    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.body, self.head = nn.Linear(16 + 3, 4), nn.Linear(2 + 3, 16)

        def given(self, x, label):
            return torch.cat([x, nn.functional.one_hot(label, 3)], 1)

        def encode(self, x, label):
            return self.body(self.given(x.flatten(1), label)).chunk(2, 1)

        def decode(self, z, label):
            return torch.sigmoid(self.head(self.given(z, label))).view(-1, 1, 4, 4)

        def forward(self, x, label):
            mu, logvar = self.encode(x, label)
            return self.decode(mu + torch.randn_like(mu) * torch.exp(0.5 * logvar), label)

    x = np.random.default_rng(7).random((5, 1, 4, 4), np.float32)
    arguments = {"conditions": {"label": np.arange(5) % 3}, "class_names": ["a", "b", "c"], "likelihood": "bernoulli"}
    folder = tmp_path_factory.mktemp("model") / "bundle"
    return export(Mine(), folder, example=x, formats=("onnx", "torchscript", "pt2"), **arguments), x


def test_what_was_understood_is_returned_and_stands_in_manifest_and_card(of_model):
    exported, _ = of_model
    manifest = open_bundle(exported.path).manifest
    assert manifest.producer["recognised"] == list(exported.recognised)
    assert any("the second tensor is the logvar, since forward" in line for line in exported.recognised)
    card = (exported.path / "README.md").read_text(encoding="utf-8")
    listed = card.partition("## What was understood of the model")[2].partition("## Graphs")[0]
    assert [line.removeprefix("- ") for line in listed.splitlines() if line] == list(exported.recognised)


def test_the_card_of_a_model_says_what_it_is(of_model):
    exported, _ = of_model
    card = (exported.path / "README.md").read_text(encoding="utf-8")
    manifest = open_bundle(exported.path).manifest
    parameters = 19 * 4 + 4 + 5 * 16 + 16
    assert manifest.training["parameters"] == parameters
    for words in (
        "# Mine\n",
        "Mine, exported from PyTorch.",
        f"of {parameters} parameters.",
        "Observations of shape 1×4×4, 2 latent dimensions, bernoulli likelihood, given label (3 classes: a, b, c).",
        "License of the weights: not stated.",
        "a row for each label](samples.png)",
        'x = vae.sample(16, seed=0, conditions={"label": "a"})',
    ):
        assert words in card
    for variant in manifest.variants:
        assert f"| {variant.path} |" in card
        assert exported.sizes[variant.path] == (exported.path / variant.path).stat().st_size
    assert {variant.exporter for variant in manifest.variants} == {
        *("torch.onnx.export(dynamo=True)", "torch.jit.trace", "torch.export.export"),
    }


CONFORMANCE = Path(__file__).parents[2] / "conformance" / "bundles"


@pytest.mark.parametrize("name", sorted(path.name for path in CONFORMANCE.iterdir() if path.is_dir()))
def test_the_code_of_each_card_runs_as_it_is(name):
    manifest = open_bundle(CONFORMANCE / name).manifest
    prior = LatentPrior("none", reason="the test's own")
    unknown = replace(manifest, latents=tuple(replace(latent, prior=prior) for latent in manifest.latents))
    for changed, words in (
        (manifest, r"vae\.(sample|encode)\("),
        (unknown, r"vae\.encode\(x.*\)\.mode\(\)"),
        (replace(unknown, encoder={}), r"z = "),
    ):
        card = model_card(changed, {variant.path: 1 for variant in manifest.variants}, False)
        code = card.partition("```python\n")[2].partition("```")[0]
        assert re.search(words, code)
        variables = {}
        exec(code.replace("path/to/this/folder", str(CONFORMANCE / name)), variables)
        assert np.isfinite(variables["y" if "y = " in code else "x"]).all()


def test_a_bundle_of_a_model_verifies_in_the_program_of_each_format(of_model):
    from vae_export.graphs.graph import EXECUTORS
    from vae_export.parity.bundle import golden_runner

    exported, _ = of_model
    report = verify(exported.path, runners=dict.fromkeys(EXECUTORS, golden_runner))
    assert report.passed
    assert not [check for check in report.checks if check.passed is None]


def test_no_file_holds_the_example_or_says_where_the_code_lay(of_model, root):
    """In float32, whose rows are the decoder's own; what a bundle of integers stores is for its maker to choose."""
    import torch

    exported, x = of_model
    rows = [row.tobytes() for row in x]
    secrets = [*rows, str(root).encode(), b"site-packages", str(Path.home()).encode(), b"/tmp/", b"test_bundle"]
    for name, content in content_of(exported.path).items():
        assert not [secret for secret in secrets if secret in unpacked(content)], name
    # A program as PyTorch saves it holds the example that it was exported with.
    file = io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.Flatten(), (torch.from_numpy(x),)), file)
    assert rows[0] in unpacked(file.getvalue())


def test_a_run_takes_no_arguments_of_a_model(tiny_run, tmp_path, prepared):
    for arguments in ({"likelihood": "gaussian"}, {"example": np.zeros((2, 1, 8, 8))}, {"observations": np.zeros(3)}):
        with pytest.raises(
            InputError, match=f"{next(iter(arguments))}: expected nothing for a run, which states it itself"
        ):
            export(tiny_run, tmp_path / "bundle", **arguments)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"expected a torch.nn.Module or the folder of a run, got int"):
        export(3, tmp_path / "bundle")
