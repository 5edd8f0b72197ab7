import copy
import dataclasses
import json
import re
import time
import tracemalloc
from bisect import bisect
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from validators import Draft202012Validator

from vae_runtime import __version__, fields, manifest
from vae_runtime import document as document_module
from vae_runtime.chunks import Stream
from vae_runtime.document import DOCUMENT, EXECUTORS, KNOWN_FIELDS, dump, parse, problems
from vae_runtime.errors import BundleError
from vae_runtime.fields import Problems
from vae_runtime.manifest import (
    Condition,
    Golden,
    Latent,
    LatentPosterior,
    LatentPrior,
    Likelihood,
    Manifest,
    Normalisation,
    Observation,
    Output,
    Quality,
    Refusal,
    Sizes,
    TensorSpec,
    Variant,
)
from vae_runtime.schema import json_schema

DOCS = Path(__file__).parents[2] / "docs"
SPECIFICATION = (DOCS / "bundle-format.md").read_text(encoding="utf-8")
SCHEMA = json.loads((DOCS / "bundle-format.schema.json").read_text(encoding="utf-8"))
VALIDATOR = Draft202012Validator(SCHEMA)
(EXAMPLE,) = re.findall(r"^```json\n(.*?)^```$", SPECIFICATION, re.MULTILINE | re.DOTALL)

ABSENT: Any = object()
FREE = ("additional_metadata", "vae")
ENCODER = ("components", "encoder", "variants")
DECODER = ("components", "decoder", "variants")
FP32 = (*ENCODER, "fp32")
OURS = (*FP32, "additional_metadata", "vae")
GRAPH = (*FP32, "executor_info", "ort", "model_file")
OURS_DECODER = (*DECODER, "fp32", "additional_metadata", "vae")
LATENT = (*FREE, "latents", 0)
CONDITION = (*FREE, "conditions", 0)
LIKELIHOOD = (*FREE, "likelihood")


def example() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(EXAMPLE)
    return document


def edited(*edits: tuple[tuple[str | int, ...], Any]) -> Any:
    """The example with the values at some paths replaced, or removed where the value is ABSENT."""
    document: Any = example()
    for path, value in edits:
        if not path:
            document = value
            continue
        holder = document
        for key in path[:-1]:
            holder = holder[key]
        if value is ABSENT:
            del holder[path[-1]]
        elif isinstance(holder, list) and path[-1] == len(holder):
            holder.append(copy.deepcopy(value))
        else:
            holder[path[-1]] = copy.deepcopy(value)
    return document


# The other bases of the documents below: each is valid.

LABEL = {"name": "label", "dtype": "int64", "shape": [], "classes": ["a", "b"], "components": ["encoder", "decoder"]}
MASK = {"name": "mask", "dtype": "float32", "shape": [8, 8], "range": [0, 1], "components": ["decoder"]}
TILES = {"component": "decoder", "reason": "attention"}
STREAM = {"file": "stream.onnx", "hop": 2, "error": 0, "states": [{"name": "state_0", "shape": [4, 2]}]}
NUMBERS_OF_MODES = {"name": "age", "kind": "modes", "means": [1, 2.5], "scales": [4, 5], "rounding": "nearest"}
CATEGORIES = {"name": "city", "kind": "categories", "categories": ["a", 1, True, None]}
SCORES: dict[str, Any] = {
    **{"kind": "log_likelihood", "k": 16, "seed": 0, "n": 4, "data": "others", "encoder": "fp32", "decoder": "int8"},
    **{"shares": [0.25, 0.5, 1], "values": [-3, -2.5, -2.5]},
}
MIXTURE = {"kind": "mixture", "file": "prior.npz", "components": 10, "covariance": "full"}
CODES = {"kind": "codes", "value": "codes", "codebook": 512}


def all_for(component: tuple[str | int, ...], names: list[str]) -> list[tuple[tuple[str | int, ...], Any]]:
    """Edits that give each variant of a component a tolerance and an error for these outputs alone."""
    variants = example()["components"][component[1]]["variants"]
    return [
        ((*component, variant, "additional_metadata", "vae", part), dict.fromkeys(names, 0))
        for variant in variants
        for part in ("tolerance", "error")
    ]


CONDITIONAL = [((*FREE, "conditions"), [LABEL, MASK])]
# A latent whose one dynamic axis is one of the observation, too.
TIMED = [
    ((*FREE, "observation", "dynamic"), {"width": {"min": 8, "max": 64, "step": 8}}),
    ((*LATENT, "axes"), ["width"]),
    ((*LATENT, "dynamic"), {"width": {"min": 1, "max": 99}}),
]
DYNAMIC = [
    ((*FREE, "observation", "dynamic"), {"width": {"min": 8, "max": 64, "step": 8}}),
    ((*LATENT, "axes"), ["code"]),
    ((*LATENT, "dynamic"), {"code": {"min": 1, "max": 99}}),
    ((*LATENT, "scale"), 0.18215),
    ((*LATENT, "shift"), [0.5] * 16),
]
OF_CODES = [
    ((*FREE, "observation", "dtype"), "int64"),
    ((*LATENT, "dtype"), "int64"),
    ((*LATENT, "prior"), {"kind": "none", "reason": "codes"}),
    ((*LATENT, "posterior"), CODES),
    *all_for(ENCODER, ["codes"]),
    (LIKELIHOOD, {"kind": "none", "mean": "x", "reason": "not stated"}),
    *all_for(DECODER, ["x"]),
]
# Levels of the range, and two classes.
LEVELS = [
    ((*LIKELIHOOD, "kind"), "logistic"),
    ((*LIKELIHOOD, "logits"), ABSENT),
    ((*LIKELIHOOD, "scale"), 0.1),
    *all_for(DECODER, ["x"]),
]
CLASSES = [
    ((*LIKELIHOOD, "kind"), "categorical"),
    ((*LIKELIHOOD, "shape"), [1, 8, 8, 2]),
    ((*LIKELIHOOD, "axes"), ["channel", "height", "width", "class"]),
]
SEVERAL = [
    ((*LATENT, "prior"), MIXTURE),
    ((*LATENT, "posterior", "noise"), "eps"),
    (
        (*FREE, "latents", 1),
        {
            "name": "added",
            "dtype": "float32",
            "shape": [4],
            "prior": {"kind": "normal", "assumed": True},
            "posterior": {"kind": "none", "reason": "noise that the decoder adds"},
        },
    ),
    (
        (*FREE, "latents", 2),
        {
            "name": "point",
            "dtype": "float32",
            "shape": [3],
            "prior": {"kind": "sphere"},
            "posterior": {"kind": "none", "value": "point"},
        },
    ),
    *all_for(ENCODER, ["mu", "logvar", "std", "point"]),
    (
        LIKELIHOOD,
        {
            "kind": "gaussian",
            "mean": "x",
            "scale_output": "sigma",
            "shape": [64],
            "axes": ["pixel"],
            "outputs": [{"name": "rate", "shape": []}, {"name": "rates", "shape": [5], "axes": ["gene"]}],
        },
    ),
    *all_for(DECODER, ["x", "sigma", "rate", "rates"]),
    ((*OURS, "exporter"), "dynamo"),
    ((*OURS, "data"), "model.onnx.data"),
]


def place_of(path: tuple[str | int, ...]) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


def places(document: Any) -> list[str]:
    return [problem.place for problem in problems(document)]


def fields_are_right(document: Any) -> bool:
    """The parser's verdict without the cross-field rules, which it checks once every field is right by itself."""
    found = Problems()
    DOCUMENT.read(document, "", found)
    return not found


def refusal(content: str | bytes) -> str:
    with pytest.raises(BundleError) as caught:
        parse(content, "b/manifest.json")
    assert str(caught.value).startswith("b/manifest.json: ")
    return str(caught.value)


# The specification and its schema.


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def test_the_schema_is_made_of_the_fields() -> None:
    made = json_schema()
    assert made == SCHEMA, "run `make schema`"
    # A field, or a bound of one, that the file lacks would be noticed.
    made["$defs"]["golden"]["properties"]["later"] = {"type": "string"}
    assert made != SCHEMA


def test_the_example_of_the_specification_is_valid() -> None:
    VALIDATOR.validate(example())
    manifest = parse(EXAMPLE)
    assert manifest.observation.shape == (1, 8, 8)
    assert [variant.path for variant in manifest.variants] == [
        "encoder/fp32/model.onnx",
        "decoder/fp32/model.onnx",
        "decoder/torchscript/model.pt",
    ]
    assert manifest.inputs("encoder") == (TensorSpec("x", "float32", (1, 8, 8)),)
    assert manifest.inputs("decoder") == (TensorSpec("z", "float32", (16,)),)
    assert [output.name for output in manifest.outputs("encoder")] == ["mu", "logvar", "std"]
    assert manifest.outputs("decoder") == (
        TensorSpec("x", "float32", (1, 8, 8)),
        TensorSpec("logits", "float32", (1, 8, 8)),
    )


def test_what_may_be_in_a_bundle_is_read() -> None:
    manifest = parse(json.dumps(edited(*CONDITIONAL, *SEVERAL)))
    assert manifest.conditions == (
        Condition("label", (), "int64", ("a", "b")),
        Condition("mask", (8, 8), "float32", range=(0, 1), components=("decoder",)),
    )
    first, second, third = manifest.latents
    assert first.prior == LatentPrior("mixture", "prior.npz", 10, "full")
    assert first.posterior == LatentPosterior("normal", "mu", "logvar", "std", noise="eps")
    assert second.posterior == LatentPosterior("none", reason="noise that the decoder adds")
    assert third.prior.kind == "sphere"
    assert [tensor.name for tensor in manifest.inputs("encoder")] == ["x", "label", "eps"]
    assert [tensor.name for tensor in manifest.inputs("decoder")] == ["z", "added", "point", "label", "mask"]
    assert [tensor.name for tensor in manifest.outputs("encoder")] == ["mu", "logvar", "std", "point"]
    assert manifest.outputs("decoder") == (
        TensorSpec("x", "float32", (64,)),
        TensorSpec("sigma", "float32", (64,)),
        TensorSpec("rate", "float32", ()),
        TensorSpec("rates", "float32", (5,)),
    )
    variant = manifest.encoder["fp32"]
    assert (variant.exporter, variant.data, variant.paths) == (
        "dynamo",
        "model.onnx.data",
        ["encoder/fp32/model.onnx", "encoder/fp32/model.onnx.data"],
    )
    assert manifest.decoder["fp32"].paths == ["decoder/fp32/model.onnx"]


def test_dynamic_axes_and_codes_are_read() -> None:
    manifest = parse(json.dumps(edited(*DYNAMIC)))
    assert manifest.observation.dynamic == {"width": Sizes(8, 64, 8)}
    assert manifest.latent.dynamic == {"code": Sizes(1, 99)}
    assert (manifest.latent.scale, manifest.latent.shift) == (0.18215, (0.5,) * 16)
    assert manifest.inputs("encoder") == (TensorSpec("x", "float32", (1, 8, 8), frozenset([2])),)
    assert manifest.inputs("decoder") == (TensorSpec("z", "float32", (16,), frozenset([0])),)
    codes = parse(json.dumps(edited(*OF_CODES)))
    assert codes.inputs("encoder") == (TensorSpec("x", "int64", (1, 8, 8)),)
    assert codes.outputs("encoder") == (TensorSpec("codes", "int64", (16,)),)
    assert codes.outputs("decoder") == (TensorSpec("x", "float32", (1, 8, 8)),)
    assert codes.latent.posterior == LatentPosterior("codes", value="codes", codebook=512)
    assert codes.likelihood == Likelihood("none", reason="not stated")


@pytest.mark.parametrize(("size", "right"), [(8, True), (64, True), (16, True), (12, False), (0, False), (72, False)])
def test_the_sizes_of_an_axis(size: int, right: bool) -> None:
    assert (size in Sizes(8, 64, 8)) is right


def test_what_the_kind_does_not_have_is_ignored() -> None:
    document = edited(
        ((*LATENT, "prior"), {**MIXTURE, "kind": "normal", "reason": 5}),
        ((*LATENT, "posterior", "codebook"), 0),
        ((*LIKELIHOOD, "scale"), "unknown"),
        ((*LIKELIHOOD, "reason"), "known"),
    )
    manifest = parse(json.dumps(document))
    assert manifest.latent.prior == LatentPrior("normal")
    assert manifest.latent.posterior.codebook is None
    assert (manifest.likelihood.scale, manifest.likelihood.reason) == (None, None)


def test_every_known_field_is_in_the_schema_and_the_specification() -> None:
    definitions = SCHEMA["$defs"]
    in_schema = set(definitions["vae"]["properties"])
    for name, definition in (
        ("observation", "observation"),
        ("conditions", "condition"),
        ("latents", "latent"),
        ("likelihood", "likelihood"),
        ("golden", "golden"),
        ("refused", "refusal"),
        ("tiles", "tiles"),
    ):
        in_schema |= {f"{name}.{field}" for field in definitions[definition]["properties"]}
    assert in_schema == KNOWN_FIELDS
    assert set(definitions["vae"]["properties"]["must_understand"]["items"]["enum"]) == KNOWN_FIELDS
    for field in KNOWN_FIELDS:
        assert re.search(rf"`{re.escape(field)}(\.[a-z_]+)?`", SPECIFICATION), field


def test_onnx_runtime_opens_the_example_and_refuses_an_unknown_key(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if not hasattr(onnxruntime, "ModelPackageContext"):
        pytest.skip(f"onnxruntime {onnxruntime.__version__} has no model packages; 1.32 has")
    for variant in parse(EXAMPLE).variants:
        (tmp_path / variant.folder).mkdir(parents=True)
    (tmp_path / "manifest.json").write_text(EXAMPLE, encoding="utf-8")
    onnxruntime.ModelPackageContext(str(tmp_path))
    unknown = edited(((*FP32, "sha256"), ""))
    (tmp_path / "manifest.json").write_text(json.dumps(unknown), encoding="utf-8")
    with pytest.raises(Exception, match="sha256"):
        onnxruntime.ModelPackageContext(str(tmp_path))
    assert places(unknown) == [place_of((*FP32, "sha256"))]


# Fields that are wrong, one at a time: parser and schema both refuse, and name the same field.

# What neither a folder nor a file may be called.
OUTSIDE = (
    "",
    ".",
    "..",
    "../a",
    "a/../b",
    "./a",
    "/a",
    "/",
    "a\\b",
    "C:\\a",
    "C:a",
    ".a",
    "a/.b",
    "a\n",
    "\na",
    "a b",
    "é",
)

QUALITY = {
    "method": "float16 weights",
    "size": 900,
    "psnr": 88.5,
    "peak": 1,
    "elbo_change": -0.01,
    "measured": "360 observations of digits",
}
REFUSAL = {"component": "encoder", "variant": "int8", "reason": "PSNR 30 dB"}

BROKEN: list[tuple[tuple[str | int, ...], Any]] = [
    ((), []),
    *(((name,), ABSENT) for name in ("schema_version", "package_name", "layout")),
    *(((name,), ABSENT) for name in ("components", "additional_metadata")),
    (("sha256",), "9f"),
    (("schema_version",), 1.0),
    *((("schema_version",), text) for text in ("1", "2.0", "1.01", "1.0\n", " 1.0", "")),
    (("package_name",), None),
    *((("package_name",), text) for text in ("", "a b", ".a", "a/b", "a\n", "é")),
    *((("package_version",), text) for text in ("", "1.", "01", "1.2-rc1", "1234567890", "1\n", "1" + ".0" * 8)),
    (("package_version",), 1.0),
    (("description",), None),
    (("layout",), "installed"),
    (("components",), []),
    (("components", "encoder"), ABSENT),
    (("components", "decoder"), ABSENT),
    (("components", "encoder"), None),
    (("components", "encoder", "variants"), ABSENT),
    (("components", "encoder", "sha256"), 0),
    (("components", "encoder", "component_name"), 0),
    (("components", "encoder", "additional_metadata"), []),
    (("components", "encoder", "variants"), []),
    (("components", "encoder", "variants"), {}),
    (("additional_metadata",), []),
    (FREE, ABSENT),
    (FREE, []),
    # Variants.
    (FP32, []),
    ((*FP32, "variant_directory"), ABSENT),
    ((*FP32, "executor_info"), ABSENT),
    ((*FP32, "additional_metadata"), ABSENT),
    ((*FP32, "sha256"), ""),
    ((*FP32, "variant_directory"), 5),
    *(((*FP32, "variant_directory"), path) for path in (*OUTSIDE, "encoder/fp32/", "encoder//fp32")),
    ((*FP32, "ep"), None),
    ((*FP32, "device"), 0),
    ((*FP32, "executor_info"), []),
    ((*FP32, "executor_info"), {}),
    ((*FP32, "executor_info", "another"), []),
    (GRAPH, ABSENT),
    (GRAPH, 0),
    *((GRAPH, path) for path in (*OUTSIDE, "onnx/model.onnx")),
    ((*DECODER, "torchscript", "executor_info", "torchscript", "model_file"), "../model.pt"),
    ((*FP32, "additional_metadata"), []),
    ((*FP32, "additional_metadata", "vae"), ABSENT),
    (OURS, []),
    *(((*OURS, name), ABSENT) for name in ("precision", "tolerance", "error")),
    ((*OURS, "precision"), 32),
    ((*OURS, "exporter"), None),
    *(((*OURS, "data"), path) for path in (*OUTSIDE, "a/b", 5)),
    ((*OURS, "tolerance"), []),
    ((*OURS, "tolerance", "mu"), "0.1"),
    ((*OURS, "tolerance", "mu"), True),
    ((*OURS, "tolerance", "mu"), -1e-9),
    ((*OURS, "error", "mu"), 1e301),
    ((*OURS, "error", "mu"), 10**400),
    ((*OURS, "quality"), None),
    ((*OURS, "quality"), []),
    # The VAE.
    *(
        ((*FREE, "packed_from"), text)
        for text in (None, 5, "", "0" * 64, "sha256:" + "A" * 64, "sha256:" + "0" * 64 + "\n")
    ),
    ((*FREE, "refused"), {}),
    ((*FREE, "tiles"), {}),
    ((*FREE, "tiles"), [TILES] * 3),
    *(((*FREE, "batch_of_one"), value) for value in (None, "encoder", [], ["encoder"] * 2, {"encoder": 1})),
    ((*FREE, "refused"), None),
    *(((*FREE, name), ABSENT) for name in ("format_version", "name", "observation", "latents")),
    *(((*FREE, name), ABSENT) for name in ("likelihood", "noise", "golden")),
    ((*FREE, "format_version"), 1),
    *(((*FREE, "format_version"), text) for text in ("2", "0.9", "2.0.0", "02.0", "2.0\n")),
    ((*FREE, "must_understand"), "noise"),
    ((*FREE, "must_understand", 0), 5),
    ((*FREE, "reader"), 1),
    *(((*FREE, "reader"), text) for text in ("", "another>=1", "vae-runtime", "vae-runtime>=1\n", "vae-runtime>=1 x")),
    ((*FREE, "name"), None),
    ((*FREE, "description"), None),
    ((*FREE, "license"), ["MIT"]),
    ((*FREE, "noise"), "vnoise-2"),
    *(((*FREE, name), []) for name in ("observation", "likelihood", "golden", "training", "metrics", "producer")),
    *(((*FREE, "observation", name), ABSENT) for name in ("name", "dtype", "shape", "axes", "range")),
    ((*FREE, "observation", "name"), 0),
    *(((*FREE, "observation", "name"), text) for text in ("", "a b", "1a", "a/b", "x\n")),
    ((*FREE, "observation", "dtype"), "float64"),
    ((*FREE, "observation", "shape"), 64),
    ((*FREE, "observation", "shape"), []),
    ((*FREE, "observation", "shape"), [1] * 9),
    *(((*FREE, "observation", "shape", 0), size) for size in (0, 2**31, 1.5, "1", True, None, -3)),
    ((*FREE, "observation", "axes"), "chw"),
    ((*FREE, "observation", "axes"), []),
    ((*FREE, "observation", "axes"), ["a"] * 9),
    ((*FREE, "observation", "axes", 1), None),
    ((*FREE, "observation", "dynamic"), ["width"]),
    ((*FREE, "observation", "range"), 1),
    ((*FREE, "observation", "range"), [0]),
    ((*FREE, "observation", "range"), [0, 1, 2]),
    *(((*FREE, "observation", "range", 0), number) for number in (None, "0", False, -1e301, -(10**400))),
    ((*FREE, "observation", "range", 1), 1e301),
    ((*FREE, "observation", "normalisation"), None),
    ((*FREE, "observation", "normalisation", "offset"), ABSENT),
    ((*FREE, "observation", "normalisation", "offset"), []),
    ((*FREE, "observation", "normalisation", "divisor"), ABSENT),
    *(((*FREE, "observation", "normalisation", "divisor"), number) for number in (0, -1, "1", 1e301, [])),
    ((*FREE, "latents"), {}),
    ((*FREE, "latents"), []),
    ((*FREE, "latents"), [example()["additional_metadata"]["vae"]["latents"][0]] * 65),
    (LATENT, None),
    *(((*LATENT, name), ABSENT) for name in ("name", "dtype", "shape", "prior", "posterior")),
    ((*LATENT, "dtype"), "float16"),
    ((*LATENT, "prior"), "normal"),
    ((*LATENT, "prior", "kind"), ABSENT),
    ((*LATENT, "prior", "kind"), "uniform"),
    ((*LATENT, "posterior"), "normal"),
    *(((*LATENT, "posterior", name), ABSENT) for name in ("kind", "mu", "logvar", "std")),
    ((*LATENT, "posterior", "kind"), "delta"),
    ((*LATENT, "posterior", "noise"), None),
    ((*LATENT, "axes"), []),
    ((*LATENT, "dynamic"), 5),
    *(((*LATENT, "scale"), number) for number in (None, "1", 0, -0.0, [], {}, 1e301, -1e301, True)),
    *(((*LATENT, "shift"), number) for number in (None, "1", [], {}, 1e301, -1e301)),
    ((*FREE, "conditions"), {}),
    ((*FREE, "conditions"), [LABEL] * 65),
    ((*FREE, "likelihood", "kind"), ABSENT),
    ((*FREE, "likelihood", "kind"), "student"),
    ((*FREE, "likelihood", "kind"), ["bernoulli"]),
    ((*FREE, "likelihood", "mean"), ABSENT),
    ((*FREE, "likelihood", "logits"), None),
    *(((*LIKELIHOOD, "shape"), shape) for shape in (None, [], 64)),
    *(((*LIKELIHOOD, "axes"), axes) for axes in (None, [])),
    ((*LIKELIHOOD, "outputs"), {}),
    ((*LIKELIHOOD, "outputs"), [{"name": "y", "shape": []}] * 65),
    *(((*FREE, "golden", name), ABSENT) for name in ("file", "seed", "n")),
    *(((*FREE, "golden", "file"), path) for path in (*OUTSIDE, "data/golden.npz")),
    *(((*FREE, "golden", "seed"), number) for number in (-1, 2**53, 0.5, "0", True)),
    *(((*FREE, "golden", "n"), number) for number in (0, 2**20 + 1, 1.5, None)),
]


@pytest.mark.parametrize(("path", "value"), BROKEN, ids=[place_of(path) or "document" for path, _ in BROKEN])
def test_a_wrong_field_is_refused_by_both_at_its_place(path: tuple[str | int, ...], value: Any) -> None:
    document = edited((path, value))
    assert places(document) == [place_of(path) or "the document"]
    remedy = "; export the bundle again"
    if path[-1:] in (("kind",), ("noise",)) and isinstance(value, str):
        remedy += ", or install a vae-runtime that knows more: pip install --upgrade vae-runtime"
    assert refusal(json.dumps(document)).endswith(remedy)
    assert not VALIDATOR.is_valid(document)


# As BROKEN, with more to set up first: the edits, and the place of the one problem.
BROKEN_FURTHER: list[tuple[list[tuple[tuple[str | int, ...], Any]], str]] = [
    *(
        (
            [((*OURS, "quality"), QUALITY), ((*OURS, "quality", name), value)],
            f"{place_of(OURS)}.quality.{name}",
        )
        for name, values in {
            "method": (ABSENT, None, 5),
            "size": (ABSENT, 0, -1, 1.5, 2**53, None, "900"),
            "psnr": (ABSENT, "88", True, 1e301, -1e301, []),
            "peak": (ABSENT, 0, -1, None, "1", 1e301),
            "elbo_change": (ABSENT, "0", False, 1e301, -1e301),
            "measured": (ABSENT, 360, None),
            "calibration": (64, None),
            "reason": (5, None),
            "speed": (2.5, [2.5], None),
        }.items()
        for value in values
    ),
    (
        [
            ((*FREE, "packed_from"), "sha256:" + "0" * 64),
            (("components", "encoder"), ABSENT),
            (("components", "decoder"), ABSENT),
        ],
        "components.decoder",
    ),
    *(
        (
            [
                ((*FREE, "refused"), [{"component": "encoder", "variant": "fp32", "reason": "none"}]),
                (("components", "encoder"), ABSENT),
                (("components", "decoder"), ABSENT),
            ],
            "components.decoder",
        ),
        (
            [
                ((*FREE, "refused"), [{"component": "encoder", "variant": "fp16", "reason": "none"}]),
                (("components", "encoder"), ABSENT),
            ],
            "components.encoder",
        ),
    ),
    ([((*FREE, "refused"), [5])], f"{place_of(FREE)}.refused[0]"),
    ([((*FREE, "tiles"), [5])], f"{place_of(FREE)}.tiles[0]"),
    ([((*FREE, "scores"), 5)], f"{place_of(FREE)}.scores"),
    *(
        ([((*FREE, "scores"), {**SCORES, name: value})], f"{place_of(FREE)}.scores.{name}")
        for name, values in {
            "kind": ("mse", 5, None),
            "k": (0, 10**6 + 1, 0.5, "1", None),
            "seed": (-1, 2**53, "0", None),
            "n": (0, 2**53, None),
            "data": (5, None),
            "encoder": (5, None),
            "decoder": (5, None),
            "shares": ([], 5, [1] * 1025),
            "values": ([], 5, [1] * 1025),
        }.items()
        for value in values
    ),
    *(
        ([((*FREE, "scores"), SCORES), ((*FREE, "scores", name), ABSENT)], f"{place_of(FREE)}.scores.{name}")
        for name in SCORES
    ),
    *(
        ([((*FREE, "scores"), {**SCORES, name: [value]})], f"{place_of(FREE)}.scores.{name}[0]")
        for name, values in (("shares", (0, -1, "1", None, 1e301)), ("values", ("1", None, 1e301, -1e301)))
        for value in values
    ),
    ([((*FREE, "table"), {})], f"{place_of(FREE)}.table"),
    ([((*FREE, "table"), [5])], f"{place_of(FREE)}.table[0]"),
    *(
        ([((*FREE, "table"), [{**column, name: value}])], f"{place_of(FREE)}.table[0].{name}")
        for column, name, values in (
            (CATEGORIES, "name", (5, None)),
            (CATEGORIES, "kind", ("dates", None)),
            (CATEGORIES, "categories", ([], "ab", None)),
            (NUMBERS_OF_MODES, "means", ([], 5)),
            (NUMBERS_OF_MODES, "scales", ([], 5)),
            (NUMBERS_OF_MODES, "rounding", ("up", None)),
        )
        for value in values
    ),
    *(
        ([((*FREE, "table"), [column]), ((*FREE, "table", 0, name), ABSENT)], f"{place_of(FREE)}.table[0].{name}")
        for column in (NUMBERS_OF_MODES, CATEGORIES)
        for name in column
        if name != "rounding"
    ),
    *(
        ([((*FREE, "table"), [{**column, name: [value]}])], f"{place_of(FREE)}.table[0].{name}[0]")
        for column, name, values in (
            (CATEGORIES, "categories", ([], 1e301, -1e301)),
            (NUMBERS_OF_MODES, "means", ("1", None, 1e301, -1e301)),
            (NUMBERS_OF_MODES, "scales", ("1", 0, -1, 1e301)),
        )
        for value in values
    ),
    *(
        ([((*OURS_DECODER, "stream"), {**STREAM, name: value})], f"{place_of(OURS_DECODER)}.stream.{name}")
        for name, values in (
            ("file", ("../a", 5, None)),
            ("hop", (0, 2**31, 0.5, "1")),
            ("error", (-1, 1e301, "0")),
            ("states", ({}, None, [{"name": f"s{index}", "shape": [1]} for index in range(1025)])),
            ("reason", (5, None)),
        )
        for value in values
    ),
    *(
        (
            [((*OURS_DECODER, "stream"), STREAM), ((*OURS_DECODER, "stream", "states", 0, *edit), value)],
            f"{place_of(OURS_DECODER)}.stream.states[0]{place}",
        )
        for edit, value, place in (
            ((), 5, ""),
            (("name",), ABSENT, ".name"),
            (("name",), 5, ".name"),
            (("name",), "a b", ".name"),
            (("shape",), ABSENT, ".shape"),
            (("shape",), 5, ".shape"),
            (("shape",), [], ".shape"),
            (("shape",), [1] * 9, ".shape"),
            (("shape", 0), 0, ".shape[0]"),
            (("shape", 0), 2**31, ".shape[0]"),
            (("shape", 0), "1", ".shape[0]"),
        )
    ),
    ([((*OURS_DECODER, "stream"), 5)], f"{place_of(OURS_DECODER)}.stream"),
    ([((*FREE, "batch_of_one"), ["encoder", "prior"])], f"{place_of(FREE)}.batch_of_one[1]"),
    ([((*FREE, "tiles"), [TILES]), ((*FREE, "tiles", 0, "component"), ABSENT)], f"{place_of(FREE)}.tiles[0].component"),
    *(
        ([((*FREE, "tiles"), [{**TILES, name: value}])], f"{place_of(FREE)}.tiles[0].{name}")
        for name, value in (("component", "prior"), ("halo", []), ("reason", 5))
    ),
    *(
        ([((*FREE, "tiles"), [{**TILES, "halo": {"width": value}}])], f"{place_of(FREE)}.tiles[0].halo.width")
        for value in (-1, 2**31, 0.5, "1")
    ),
    *(
        (
            [((*FREE, "refused"), [REFUSAL, {**REFUSAL, "variant": "fp16"}]), ((*FREE, "refused", 1, name), value)],
            f"{place_of(FREE)}.refused[1].{name}",
        )
        for name, values in {
            "component": (ABSENT, "prior", None),
            "variant": (ABSENT, "", "a b", "../a", 8),
            "reason": (ABSENT, None, 5),
        }.items()
        for value in values
    ),
    ([((*ENCODER, "a b"), example()["components"]["encoder"]["variants"]["fp32"])], f'{place_of(ENCODER)}["a b"]'),
    ([((*ENCODER, "pytorch"), example()["components"]["encoder"]["variants"]["fp32"])], f"{place_of(ENCODER)}.pytorch"),
    *(
        ([((*FP32, "executor_info"), {executor: {}})], f"{place_of(FP32)}.executor_info.{executor}.model_file")
        for executor in EXECUTORS
    ),
    (
        [((*FP32, "executor_info"), {"torch_export": {}, "torchscript": {"model_file": "a/b"}})],
        f"{place_of(FP32)}.executor_info.torchscript.model_file",
    ),
    *(
        ([((*FREE, "likelihood"), {"kind": kind, "mean": "x"} | scale)], f"{place_of(FREE)}.likelihood.scale")
        for kind in ("gaussian", "laplace")
        for scale in ({}, {"scale": 0}, {"scale": None}, {"scale": True}, {"scale": 1, "scale_output": "sigma"})
    ),
    *(
        ([(LIKELIHOOD, {"kind": kind, "mean": "x", "scale_output": 5})], f"{place_of(LIKELIHOOD)}.scale_output")
        for kind in ("gaussian", "laplace")
    ),
    ([(LIKELIHOOD, {"kind": "none", "mean": "x", "reason": 5})], f"{place_of(LIKELIHOOD)}.reason"),
    *(([((*LATENT, "scale"), [1, number])], f"{place_of(LATENT)}.scale[1]") for number in (0, "1", None, 1e301)),
    *(([((*LATENT, "shift"), [1, number])], f"{place_of(LATENT)}.shift[1]") for number in ("1", None, 1e301)),
    *(
        (
            [((*part, "dynamic"), {"width": {"min": 8, "max": 64} | sizes})],
            f"{place_of(part)}.dynamic.width.{next(iter(sizes))}",
        )
        for part in ((*FREE, "observation"), LATENT)
        for sizes in ({"min": 0}, {"max": None}, {"max": 2**31}, {"step": 0}, {"step": None})
    ),
    (
        [((*FREE, "observation", "dynamic"), {"width": {"max": 9}})],
        f"{place_of(FREE)}.observation.dynamic.width.min",
    ),
    (
        [((*FREE, "observation", "dynamic"), {"width": {"min": 8}})],
        f"{place_of(FREE)}.observation.dynamic.width.max",
    ),
    ([((*FREE, "observation", "dynamic"), {"width": 64})], f"{place_of(FREE)}.observation.dynamic.width"),
    ([((*FREE, "conditions"), [None])], place_of(CONDITION)),
    *(
        ([*CONDITIONAL, ((*CONDITION, name), ABSENT)], f"{place_of(CONDITION)}.{name}")
        for name in ("name", "dtype", "shape", "components")
    ),
    *(
        ([*CONDITIONAL, ((*CONDITION, name), value)], f"{place_of(CONDITION)}.{name}")
        for name, value in (
            ("name", "a b"),
            ("dtype", "int32"),
            ("shape", 1),
            ("shape", None),
            ("shape", [1] * 9),
            ("classes", None),
            ("classes", []),
            ("classes", "ab"),
            ("classes", ["a", "b", "a"]),
            ("range", [0]),
            ("range", 5),
            ("components", None),
            ("components", []),
            ("components", "encoder"),
            ("components", ["decoder", "decoder"]),
        )
    ),
    *(
        ([*CONDITIONAL, ((*CONDITION, "classes", 1), text)], f"{place_of(CONDITION)}.classes[1]")
        for text in ("", "a\n", "\n", "a\x1b[31m", "\x7f", "\x9b", "\u2028", 1, None)
    ),
    ([*CONDITIONAL, ((*CONDITION, "shape"), [0])], f"{place_of(CONDITION)}.shape[0]"),
    ([*CONDITIONAL, ((*CONDITION, "components"), ["prior"])], f"{place_of(CONDITION)}.components[0]"),
    *(
        ([((*LATENT, "prior"), {**MIXTURE, name: value})], f"{place_of(LATENT)}.prior.{name}")
        for name, value in (
            *(("file", path) for path in (*OUTSIDE, "a/b", None)),
            *(("components", number) for number in (0, 4097, 1.5, None)),
            ("covariance", "spherical"),
            ("covariance", None),
        )
    ),
    *(
        ([((*LATENT, "prior"), MIXTURE), ((*LATENT, "prior", name), ABSENT)], f"{place_of(LATENT)}.prior.{name}")
        for name in ("file", "components", "covariance")
    ),
    ([((*LATENT, "prior"), {"kind": "none", "reason": 5})], f"{place_of(LATENT)}.prior.reason"),
    ([((*LATENT, "prior"), {"kind": "normal", "assumed": "yes"})], f"{place_of(LATENT)}.prior.assumed"),
    *(
        ([*OF_CODES, ((*LATENT, "posterior", name), value)], f"{place_of(LATENT)}.posterior.{name}")
        for name, value in (("value", ABSENT), ("value", 5), ("codebook", ABSENT), ("codebook", 0), ("codebook", 1.5))
    ),
    *(
        ([((*LATENT, "posterior"), {"kind": "none", name: None})], f"{place_of(LATENT)}.posterior.{name}")
        for name in ("value", "reason")
    ),
    *(
        ([*SEVERAL, ((*LIKELIHOOD, "outputs", 0), value)], f"{place_of(LIKELIHOOD)}.outputs[0]{name}")
        for name, value in (
            ("", None),
            (".name", {"shape": []}),
            (".shape", {"name": "y"}),
            (".name", {"name": "", "shape": []}),
            (".shape", {"name": "y", "shape": 5}),
            (".axes", {"name": "y", "shape": [5], "axes": []}),
        )
    ),
]


@pytest.mark.parametrize(("edits", "place"), BROKEN_FURTHER)
def test_a_wrong_field_that_needs_more_set_up_is_refused_by_both(
    edits: list[tuple[tuple[str | int, ...], Any]], place: str
) -> None:
    document = edited(*edits)
    assert places(document) == [place]
    assert not VALIDATOR.is_valid(document)


ASSERTIONS = {"type", "pattern", "enum", "const", "not", "minimum", "maximum", "exclusiveMinimum"} | {
    "minItems",
    "maxItems",
    "minProperties",
    "uniqueItems",
}


def assertions_of(schema: Any) -> set[tuple[int, str, str]]:
    """Each single thing that a schema asserts: the identity of the subschema, the keyword, and of `required` which."""
    if isinstance(schema, list):
        return set().union(*map(assertions_of, schema))
    if not isinstance(schema, dict):
        return set()
    found = {(id(schema), keyword, "") for keyword in ASSERTIONS & schema.keys() if isinstance(keyword, str)}
    found |= {(id(schema), "required", name) for name in schema.get("required", [])}
    if schema.get("additionalProperties") is False:
        found.add((id(schema), "additionalProperties", ""))
    for keyword, below in schema.items():
        if keyword in ("properties", "$defs"):
            found |= set().union(*map(assertions_of, below.values()))
        elif keyword not in ("if", "not"):
            found |= assertions_of(below)
    return found


def nodes_of(schema: Any, name: str = "#") -> Iterator[tuple[str, Any]]:
    yield name, schema
    for key, below in schema.items() if isinstance(schema, dict) else enumerate(schema):
        if isinstance(below, (dict, list)):
            yield from nodes_of(below, f"{name}/{key}")


def test_each_assertion_of_the_schema_is_what_refuses_a_document_that_the_parser_refuses() -> None:
    held = set()
    for document in [edited(broken) for broken in BROKEN] + [edited(*edits) for edits, _ in BROKEN_FURTHER]:
        errors = list(VALIDATOR.iter_errors(document))
        if len(errors) == 1:
            (error,) = errors
            names = error.validator_value if error.validator == "required" else []
            missing = [name for name in names if name not in error.instance]
            held.add((id(error.schema), error.validator, "".join(missing)))
    wanted = assertions_of(SCHEMA)
    names = {id(node): name for name, node in nodes_of(SCHEMA)}
    assert [(names[node], *rest) for node, *rest in wanted - held] == []
    assert held == wanted
    assert len(wanted) > 100


# Any document: the parser's verdict on its fields is the schema's.

NAMES = st.builds(str.__add__, st.sampled_from("aZ09_-"), st.text("aZ09._-", max_size=4))
TENSORS = st.builds(str.__add__, st.sampled_from("aZ_"), st.text("aZ09._", max_size=4))
TEXTS = st.text(max_size=8)
NUMBERS = st.floats(-1e300, 1e300)
POSITIVE = st.floats(0, 1e300, exclude_min=True)
SIZES = st.integers(1, 2**31 - 1)
DTYPES = st.sampled_from(["float32", "int64"])
FACTORS = NUMBERS.filter(bool)
LINES = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=8)
SHAPES = st.lists(SIZES, min_size=1, max_size=8).map(tuple)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(TEXTS, st.lists(SCALARS, max_size=2), max_size=2)
OBJECTS = st.dictionaries(TEXTS, VALUES, max_size=2)


QUALITIES = st.builds(
    Quality,
    method=TEXTS,
    size=st.integers(1, 2**53 - 1),
    psnr=st.none() | NUMBERS,
    peak=POSITIVE,
    elbo_change=st.none() | NUMBERS,
    measured=TEXTS,
    calibration=st.none() | TEXTS,
    reason=st.none() | TEXTS,
    speed=st.dictionaries(TEXTS, POSITIVE, max_size=2),
)


@st.composite
def variants_of(draw: st.DrawFn, component: str, outputs: list[str]) -> dict[str, Variant]:
    executors = draw(st.lists(st.sampled_from(EXECUTORS), max_size=2))
    executors.insert(draw(st.integers(0, len(executors))), "ort")
    variants = [
        Variant(
            component=component,
            name=f"{draw(NAMES)}{index}",
            folder=f"{draw(NAMES)}/{component}{index}",
            file=draw(NAMES),
            executor=executor,
            precision=draw(TEXTS),
            tolerance=dict.fromkeys(outputs, draw(st.floats(0, 1e300))),
            error=dict.fromkeys(outputs, draw(st.floats(0, 1e300))),
            ep=draw(st.none() | TEXTS),
            device=draw(st.none() | TEXTS),
            exporter=draw(st.none() | TEXTS),
            # No graph's file has a name that ends so.
            data=draw(st.none() | NAMES.map(lambda name: f"{name}.data")),
            quality=draw(st.none() | QUALITIES),
            stream=draw(st.none() | st.builds(Stream, reason=TEXTS)),
        )
        for index, executor in enumerate(executors)
    ]
    return {variant.name: variant for variant in draw(st.permutations(variants))}


def dynamic_of(draw: st.DrawFn, shape: tuple[int, ...], axes: tuple[str, ...]) -> dict[str, Sizes]:
    """Sizes for some of the axes, with the usual ones among them."""
    dynamic = {}
    for axis, size in zip(axes, shape, strict=True):
        if axes.count(axis) == 1 and draw(st.booleans()):
            step = draw(st.integers(1, 9))
            smallest = size - step * draw(st.integers(0, (size - 1) // step))
            dynamic[axis] = Sizes(smallest, draw(st.integers(size, 2**31 - 1)), step)
    return dynamic


def range_of(draw: st.DrawFn) -> tuple[float, float] | None:
    return draw(st.none() | st.tuples(NUMBERS, NUMBERS).filter(lambda pair: pair[0] < pair[1]))


@st.composite
def conditions_called(draw: st.DrawFn, name: str) -> Condition:
    components = draw(st.sampled_from([("encoder",), ("decoder",), ("encoder", "decoder"), ("decoder", "encoder")]))
    if draw(st.booleans()):
        classes = draw(st.lists(LINES, min_size=1, max_size=3, unique=True).map(tuple))
        return Condition(name, (), "int64", classes, components=components)
    shape = draw(st.just(()) | SHAPES)
    return Condition(name, shape, draw(DTYPES), range=range_of(draw), components=components)


@st.composite
def latents_called(draw: st.DrawFn, name: str) -> Latent:
    shape = draw(SHAPES)
    axes = draw(st.just(()) | st.tuples(*(TEXTS for _ in shape)))
    dynamic = dynamic_of(draw, shape, axes) if axes else {}
    reason = draw(st.none() | TEXTS)
    kind = draw(st.sampled_from(["normal", "codes", "none", "noise"]))
    if kind == "normal":
        noise = draw(st.none() | st.just(f"{name}_eps"))
        posterior = LatentPosterior("normal", f"{name}_mu", f"{name}_logvar", f"{name}_std", noise=noise)
    elif kind == "codes":
        posterior = LatentPosterior("codes", value=f"{name}_value", codebook=draw(SIZES))
    else:
        posterior = LatentPosterior("none", value=f"{name}_value" if kind == "none" else None, reason=reason)
    assumed = LatentPrior(assumed=draw(st.booleans()))
    priors = [assumed, LatentPrior("sphere"), LatentPrior("none", reason=reason)]
    if not dynamic:
        covariance = draw(st.sampled_from(["diagonal", "full"]))
        priors.append(LatentPrior("mixture", draw(NAMES), draw(st.integers(1, 4096)), covariance))
    allowed = {"codes": priors[2:3], "noise": priors[:1]}.get(kind, priors)
    return Latent(
        name,
        shape,
        posterior,
        draw(st.sampled_from(allowed)),
        "int64" if kind == "codes" else "float32",
        axes,
        dynamic,
        draw(FACTORS | st.lists(FACTORS, min_size=shape[0], max_size=shape[0]).map(tuple) if shape[0] < 9 else FACTORS),
        draw(NUMBERS | st.lists(NUMBERS, min_size=shape[0], max_size=shape[0]).map(tuple) if shape[0] < 9 else NUMBERS),
    )


@st.composite
def likelihoods(draw: st.DrawFn) -> Likelihood:
    kind = draw(st.sampled_from(["bernoulli", "gaussian", "laplace", "poisson", "none"]))
    own: dict[str, Any] = {}
    if kind == "bernoulli":
        own["logits"] = draw(st.sampled_from([None, "logits"]))
    elif kind == "none":
        own["reason"] = draw(st.none() | TEXTS)
    elif kind != "poisson":
        own = draw(st.just({"scale_output": "sigma"}) | POSITIVE.map(lambda scale: {"scale": scale}))
    if draw(st.booleans()):
        own["shape"] = draw(SHAPES)
        own["axes"] = draw(st.just(()) | st.tuples(*(TEXTS for _ in own["shape"])))
    shapes = draw(st.lists(st.just(()) | SHAPES, max_size=2))
    outputs = tuple(
        Output(f"more{index}", shape, draw(st.just(()) | st.tuples(*(TEXTS for _ in shape))))
        for index, shape in enumerate(shapes)
    )
    return Likelihood(kind, draw(TENSORS.map(lambda name: f"{name}_mean")), outputs=outputs, **own)


@st.composite
def valid_manifests(draw: st.DrawFn) -> Manifest:
    shape = draw(SHAPES)
    axes = tuple(draw(TEXTS) for _ in shape)
    # The digit tells the names apart.
    latents = tuple(draw(latents_called(f"{draw(TENSORS)}z{index}")) for index in range(draw(st.integers(1, 3))))
    conditions = tuple(draw(conditions_called(f"{draw(TENSORS)}c{index}")) for index in range(draw(st.integers(0, 2))))
    likelihood = draw(likelihoods())
    encoded = [name for latent in latents for name in latent.posterior.outputs]
    decoded = [name for name in (likelihood.mean, likelihood.logits, likelihood.scale_output) if name]
    return Manifest(
        package_name=draw(NAMES),
        name=draw(TEXTS),
        observation=Observation(
            name=f"{draw(TENSORS)}x",
            shape=shape,
            axes=axes,
            range=range_of(draw),
            normalisation=draw(st.none() | st.builds(Normalisation, NUMBERS, POSITIVE)),
            dtype=draw(DTYPES),
            dynamic=dynamic_of(draw, shape, axes),
        ),
        conditions=conditions,
        latents=latents,
        likelihood=likelihood,
        golden=Golden(draw(NAMES), draw(st.integers(0, 2**53 - 1)), draw(st.integers(1, 2**20))),
        encoder=draw(variants_of("encoder", encoded)),
        decoder=draw(variants_of("decoder", [*decoded, *(output.name for output in likelihood.outputs)])),
        description=draw(TEXTS),
        license=draw(st.none() | TEXTS),
        reader=draw(st.sampled_from([None, "vae-runtime>=0.1", "vae-runtime>=0", f"vae-runtime>={__version__}.0"])),
        refused=tuple(
            # No variant of `variants_of` has a name that ends so.
            Refusal(draw(st.sampled_from(["encoder", "decoder"])), f"{draw(NAMES)}.refused", draw(TEXTS))
            for _ in range(draw(st.integers(0, 2)))
        ),
        training=draw(OBJECTS),
        metrics=draw(OBJECTS),
        producer=draw(OBJECTS),
        format_version=f"2.{draw(st.integers(0, 10**6))}",
    )


@pytest.mark.parametrize("examples", [20, pytest.param(100, marks=pytest.mark.long)])
def test_what_is_written_reads_back_as_an_equal_manifest(examples: int) -> None:
    @given(valid_manifests())
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    def reads_back(manifest: Manifest) -> None:
        text = dump(manifest)
        read = parse(text)
        assert read == manifest
        assert read.variants == manifest.variants  # in the order of declaration
        assert dump(read) == text
        assert parse(text.encode()) == manifest
        assert text.endswith("}\n")
        VALIDATOR.validate(json.loads(text))

    reads_back()


KEYS = sorted(
    {
        key
        for base in (example(), edited(*CONDITIONAL, *DYNAMIC), edited(*OF_CODES), edited(*SEVERAL))
        for _, node in nodes_of(base)
        if isinstance(node, dict)
        for key in node
    }
    | {*EXECUTORS, "pytorch", "a\n"}
)
TELLING = [
    *(None, True, False, 0, 1, -1, 2, 3.0, 2.5, 1e300, 1.5e300, -1e300, 10**400, 2**20, 2**31 - 1, 2**31, 2**53 - 1),
    *(
        2**53,
        float(2**53),
        1e-320,
        -0.0,
        "",
        "x",
        "x\n",
        "a/b",
        "../a",
        "a b",
        ".a",
        "1.0",
        "1.7",
        "1.07",
        "2.0",
        "2.7",
        "2.07",
        "3.0",
        "0.1",
    ),
    *("noise", "noise.x", "gaussian", "laplace", "vae-runtime>=2", "pip", [], {}, [1], [0, 1], ["noise"], ["x", "y"]),
    *("int64", "float32", "none", "codes", "mixture", "sphere", "full", ["encoder", "encoder"], ["a", "a"], [0, 0.5]),
    *({"kind": "none"}, {"kind": "mixture"}, {"width": {"min": 1, "max": 9}}, {"min": 2, "max": 1}, [LABEL]),
    *([[]], {"vae": {}}, {"kind": "normal"}, {"model_file": "a"}, {"ort": {"model_file": "a"}}, {"another": {}}),
]


BASES = [
    example(),
    edited(*LEVELS),
    edited(*CLASSES),
    edited(
        ((*FREE, "likelihood"), {"kind": "laplace", "mean": "x", "scale": 0.5}),
        ((*FREE, "observation", "range"), None),
        ((*FREE, "observation", "normalisation"), ABSENT),
        ((*DECODER, "torchscript", "executor_info"), {"qnn": {}, "another": {"file": 1}}),
        ((*DECODER, "fp32", "additional_metadata", "vae", "tolerance", "logits"), ABSENT),
        ((*DECODER, "fp32", "additional_metadata", "vae", "error", "logits"), ABSENT),
    ),
    edited(*CONDITIONAL, *DYNAMIC),
    edited(*OF_CODES),
    edited(*CONDITIONAL, *SEVERAL),
]


@pytest.mark.parametrize("document", BASES, ids=range(len(BASES)))
def test_the_documents_that_are_edited_are_valid(document: Any) -> None:
    VALIDATOR.validate(document)
    assert problems(document) == []
    manifest = parse(json.dumps(document))
    assert parse(dump(manifest)) == manifest


@st.composite
def edited_documents(draw: st.DrawFn) -> Any:
    """A valid document with one to three random edits."""
    document: Any = {"document": copy.deepcopy(draw(st.sampled_from(BASES)))}
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        holders = [node for _, node in nodes_of(document) if node]
        holder = draw(st.sampled_from(holders))
        key = draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
        value = copy.deepcopy(draw(st.sampled_from(TELLING) | st.sampled_from(holders) | VALUES))
        edit = draw(st.sampled_from(["replace", "delete", "rename", "add", "add", "add"]))
        if edit == "replace" or holder is document:
            holder[key] = value
        elif edit == "delete":
            del holder[key]
        elif isinstance(holder, list):
            holder.insert(key, value)
        else:
            name = draw(st.sampled_from(KEYS) | st.just("later") | TEXTS)
            holder[name] = value if edit == "add" else holder.pop(key)
    return document["document"]


@pytest.mark.parametrize("examples", [150, pytest.param(400, marks=pytest.mark.long)])
def test_parser_and_schema_come_to_the_same_verdict_on_any_document(examples: int) -> None:
    verdicts: Counter[tuple[bool, bool]] = Counter()

    @given(edited_documents())
    @settings(max_examples=examples, derandomize=examples < 400, deadline=None, suppress_health_check=list(HealthCheck))
    def agree(document: Any) -> None:
        verdict = VALIDATOR.is_valid(document)
        verdicts[verdict, not problems(document)] += 1
        assert fields_are_right(document) == verdict

    agree()
    # Fields wrong; all right; fields right by themselves that contradict each other.
    assert verdicts[False, False] >= examples / 20
    assert verdicts[True, True] >= examples / 40
    assert verdicts[True, False] >= 1
    assert verdicts[False, True] == 0


@pytest.mark.long
@pytest.mark.parametrize(
    ("place", "changes"),
    [
        (("name",), {"pattern": "^[A-Za-z0-9._-]+$"}),
        (("variant",), {"additionalProperties": True}),
        (("golden", "properties", "n"), {"type": "number"}),
        (("size",), {"minimum": 0}),
        (("observation",), {"additionalProperties": False}),
        (("latent", "required"), ["name", "dtype", "shape", "prior", "posterior", "level"]),
        (("executor_info",), {"then": False}),
        (("factor",), {"not": False}),
        (("condition", "properties", "classes"), {"uniqueItems": False}),
        (("condition", "properties", "classes", "items"), {"pattern": "."}),
        (("prior",), {"then": True}),
        (("posterior",), {"else": True}),
        (("likelihood",), {"else": True}),
    ],
)
def test_a_schema_that_is_a_little_off_is_found_out(place: tuple[str, ...], changes: Any) -> None:
    other = copy.deepcopy(SCHEMA)
    *above, last = place
    holder = other["$defs"]
    for key in above:
        holder = holder[key]
    holder[last] = holder[last] | changes if isinstance(changes, dict) else changes
    documents = [*map(edited, BROKEN), *(edited(edit) for edit in LET_THROUGH)]
    documents += [edited(*edits) for edits, _ in BROKEN_FURTHER]
    validator = Draft202012Validator(other)
    assert any(validator.is_valid(document) != fields_are_right(document) for document in documents)


@pytest.mark.long
@pytest.mark.parametrize(
    ("owner", "part", "instead"),
    [
        (manifest.NAME, "pattern", re.compile(".*")),
        (manifest.FILE, "pattern", re.compile(".*")),
        (manifest.PATH, "pattern", re.compile("[A-Za-z0-9_./-]*")),
        (manifest.TENSOR, "pattern", re.compile(r"[A-Za-z0-9_.]+")),
        (manifest.CLASSES.item, "pattern", re.compile(".*", re.DOTALL)),
        (manifest.READER, "pattern", re.compile("vae-runtime")),
        (manifest.VERSION, "pattern", re.compile(r"[0-9]+\.[0-9]+")),
        (DOCUMENT.fields[0].type, "pattern", re.compile(r"[0-9]+\.[0-9]+")),
        (manifest.VARIANT_NAME, "but", None),
        (manifest.SCALE.item, "but", None),
        (manifest.POSITIVE, "above", None),
        (manifest.SIZE, "min", 0),
        (manifest.LATENTS, "max", None),
        (manifest.CLASSES, "distinct", False),
        (manifest.RANGE, "item", manifest.SCALE),
        (manifest.LIKELIHOOD.fields[0].type, "choices", ("bernoulli",)),
        (manifest.LIKELIHOOD.fields[3], "unless", None),
        (manifest.PRIOR.fields[1], "required", ("sphere",)),
        (manifest.POSTERIOR.fields[4], "optional", ()),
        (DOCUMENT, "closed", False),
        (fields, "is_number", lambda value: isinstance(value, (int, float))),
        (document_module, "EXECUTORS", ("torchscript", "ort")),
    ],
)
def test_a_parser_that_is_a_little_off_is_found_out(
    monkeypatch: pytest.MonkeyPatch, owner: Any, part: str, instead: Any
) -> None:
    documents = [edited(edit) for edit in [*BROKEN, *LET_THROUGH]] + [edited(*edits) for edits, _ in BROKEN_FURTHER]
    documents += BASES
    monkeypatch.setattr(owner, part, instead)
    assert any(VALIDATOR.is_valid(document) != fields_are_right(document) for document in documents)


# Fields that are right by themselves and wrong together: the schema takes them, the parser does not.


@pytest.mark.parametrize("edits", [LEVELS, CLASSES])
def test_levels_and_classes_are_understood(edits: list[tuple[tuple[str | int, ...], Any]]) -> None:
    assert places(edited(*edits)) == []


CONTRADICTIONS: list[tuple[int, list[tuple[tuple[str | int, ...], Any]], str]] = [
    (1, [((*FREE, "observation", "axes"), ["channel", "height"])], f"{place_of(FREE)}.observation.axes"),
    (2, [((*FREE, "observation", "range"), [1, 1])], f"{place_of(FREE)}.observation.range"),
    (2, [((*FREE, "observation", "range"), [1, 0])], f"{place_of(FREE)}.observation.range"),
    (1, [((*LATENT, "axes"), ["a", "b"])], f"{place_of(LATENT)}.axes"),
    (1, [*SEVERAL, ((*LIKELIHOOD, "axes"), ["a", "b"])], f"{place_of(LIKELIHOOD)}.axes"),
    (1, [*SEVERAL, ((*LIKELIHOOD, "shape"), ABSENT)], f"{place_of(LIKELIHOOD)}.axes"),
    (1, [*SEVERAL, ((*LIKELIHOOD, "outputs", 0, "axes"), ["a"])], f"{place_of(LIKELIHOOD)}.outputs[0].axes"),
    (2, [*CONDITIONAL, ((*FREE, "conditions", 1, "range"), [1, 1])], f"{place_of(FREE)}.conditions[1].range"),
    (3, [((*LATENT, "name"), "x")], f"{place_of(FREE)}.latents[0].name"),
    (3, [*CONDITIONAL, ((*CONDITION, "name"), "x")], f"{place_of(CONDITION)}.name"),
    (3, [*CONDITIONAL, ((*CONDITION, "name"), "z")], f"{place_of(LATENT)}.name"),
    # One is the decoder's alone: the golden vectors name both.
    (3, [*CONDITIONAL, *SEVERAL, ((*CONDITION, "name"), "mask")], f"{place_of(FREE)}.conditions[1].name"),
    (3, [*SEVERAL, ((*FREE, "latents", 1, "name"), "z")], f"{place_of(FREE)}.latents[1].name"),
    (3, [*SEVERAL, ((*LATENT, "posterior", "noise"), "z")], f"{place_of(LATENT)}.posterior.noise"),
    (3, [*SEVERAL, ((*LATENT, "posterior", "noise"), "x")], f"{place_of(LATENT)}.posterior.noise"),
    (
        4,
        [
            ((*LATENT, "posterior", "std"), "mu"),
            ((*OURS, "tolerance"), {"mu": 0, "logvar": 0}),
            ((*OURS, "error"), {"mu": 0, "logvar": 0}),
        ],
        f"{place_of(FREE)}.latents[0].posterior",
    ),
    (
        4,
        [
            ((*FREE, "likelihood", "logits"), "x"),
            *(
                ((*DECODER, variant, "additional_metadata", "vae", field), {"x": 0})
                for variant in ("fp32", "torchscript")
                for field in ("tolerance", "error")
            ),
        ],
        f"{place_of(FREE)}.likelihood",
    ),
    (
        4,
        [
            *SEVERAL,
            ((*FREE, "latents", 2, "posterior", "value"), "std"),
            *all_for(ENCODER, ["mu", "logvar", "std"]),
        ],
        f"{place_of(FREE)}.latents[2].posterior",
    ),
    (
        4,
        [*SEVERAL, ((*LIKELIHOOD, "outputs", 0, "name"), "sigma"), *all_for(DECODER, ["x", "sigma", "rates"])],
        f"{place_of(FREE)}.likelihood",
    ),
    (5, [((*DECODER, "fp32"), ABSENT)], place_of(DECODER)),
    (5, [((*FP32, "executor_info"), {"another": {}})], place_of(ENCODER)),
    (6, [((*OURS, "tolerance", "mu"), ABSENT)], f"{place_of(OURS)}.tolerance"),
    (6, [((*OURS, "error", "x"), 0)], f"{place_of(OURS)}.error"),
    (
        7,
        [
            ((*DECODER, "torchscript", "variant_directory"), "decoder/fp32"),
            ((*DECODER, "torchscript", "executor_info", "torchscript", "model_file"), "model.onnx"),
        ],
        "components",
    ),
    (7, [((*OURS, "data"), "model.onnx")], "components"),
    (
        8,
        [*DYNAMIC, ((*FREE, "observation", "dynamic"), {"depth": {"min": 1, "max": 2}})],
        f"{place_of(FREE)}.observation.dynamic.depth",
    ),
    (
        8,
        [*DYNAMIC, ((*FREE, "observation", "axes"), ["channel", "width", "width"])],
        f"{place_of(FREE)}.observation.dynamic.width",
    ),
    *(
        (
            8,
            [*DYNAMIC, ((*FREE, "observation", "dynamic", "width"), sizes)],
            f"{place_of(FREE)}.observation.dynamic.width",
        )
        for sizes in (
            {"min": 9, "max": 64},
            {"min": 1, "max": 7},
            {"min": 1, "max": 64, "step": 2},
            {"min": 64, "max": 1},
        )
    ),
    (8, [*DYNAMIC, ((*LATENT, "axes"), ABSENT)], f"{place_of(LATENT)}.dynamic.code"),
    (8, [*DYNAMIC, ((*LATENT, "dynamic", "code", "min"), 17)], f"{place_of(LATENT)}.dynamic.code"),
    (9, [*CONDITIONAL, ((*CONDITION, "dtype"), "float32")], f"{place_of(CONDITION)}.classes"),
    (9, [*CONDITIONAL, ((*CONDITION, "shape"), [1])], f"{place_of(CONDITION)}.classes"),
    (9, [*CONDITIONAL, ((*CONDITION, "range"), [0, 1])], f"{place_of(CONDITION)}.range"),
    (10, [((*LATENT, "dtype"), "int64")], f"{place_of(LATENT)}.dtype"),
    (10, [*OF_CODES, ((*LATENT, "dtype"), "float32")], f"{place_of(LATENT)}.dtype"),
    *(
        (10, [*OF_CODES, ((*LATENT, "prior"), prior)], f"{place_of(LATENT)}.prior.kind")
        for prior in ({"kind": "normal"}, {"kind": "sphere"}, MIXTURE)
    ),
    *(
        (11, [*SEVERAL, ((*FREE, "latents", 1, "prior"), prior)], f"{place_of(FREE)}.latents[1].prior.kind")
        for prior in ({"kind": "none"}, {"kind": "sphere"}, MIXTURE)
    ),
    (12, [*DYNAMIC, ((*LATENT, "prior"), MIXTURE)], f"{place_of(LATENT)}.prior.kind"),
    (13, [((*LATENT, "scale"), [1.0] * 15)], f"{place_of(LATENT)}.scale"),
    (
        13,
        [((*FREE, "observation", "normalisation"), {"offset": [0.0] * 3, "divisor": 1.0})],
        f"{place_of((*FREE, 'observation'))}.normalisation.offset",
    ),
    (
        13,
        [((*FREE, "observation", "normalisation"), {"offset": 0.0, "divisor": [1.0] * 3})],
        f"{place_of((*FREE, 'observation'))}.normalisation.divisor",
    ),
    (13, [((*LATENT, "shift"), [1.0] * 17)], f"{place_of(LATENT)}.shift"),
    (14, [((*FREE, "refused"), [{**REFUSAL, "variant": "fp32"}])], f"{place_of(FREE)}.refused[0].variant"),
    (15, [((*FREE, "tiles"), [TILES, TILES])], f"{place_of(FREE)}.tiles[1].component"),
    (15, [((*FREE, "tiles"), [{**TILES, "halo": {"width": 1}}])], f"{place_of(FREE)}.tiles[0].halo.width"),
    (15, [*DYNAMIC, ((*FREE, "tiles"), [{**TILES, "halo": {"width": 1}}])], f"{place_of(FREE)}.tiles[0].halo.width"),
    *(
        (
            15,
            [
                *DYNAMIC,
                ((*FREE, "observation", "shape"), [1, 28, 32]),
                ((*FREE, "observation", "dynamic"), {"width": {"min": 16, "max": 64} | sizes}),
                ((*LATENT, "axes"), ["width"]),
                ((*LATENT, "dynamic"), {"width": {"min": 8, "max": 32} | part}),
                ((*FREE, "tiles"), [{**TILES, "halo": {"width": 1}}]),
            ],
            f"{place_of(FREE)}.tiles[0].halo.width",
        )
        for sizes, part in (
            ({"min": 17, "step": 5}, {}),
            ({"step": 4}, {}),
            ({"step": 2}, {"min": 9}),
            ({"min": 14, "step": 6}, {"min": 7, "step": 3}),
        )
    ),
    (
        8,
        [
            DYNAMIC[0],
            ((*LATENT, "dynamic"), {"width": {"min": 1, "max": 99}}),
            ((*FREE, "tiles"), [{**TILES, "halo": {"width": 1}}]),
        ],
        f"{place_of(LATENT)}.dynamic.width",
    ),
    (16, [((*FREE, "table"), [CATEGORIES])], f"{place_of(FREE)}.table"),
    *(
        (18, [((*FREE, "scores"), {**SCORES, **edit})], f"{place_of(FREE)}.scores.{place}")
        for edit, place in (
            ({"shares": [0.5, 1]}, "values"),
            ({"shares": [0.5, 0.25, 1]}, "shares"),
            ({"shares": [0.5, 0.5, 1]}, "shares"),
            ({"shares": [0.25, 0.5, 0.75]}, "shares"),
            ({"shares": [0.25, 0.5, 1.5]}, "shares"),
            ({"values": [-3, -4, -1]}, "values"),
        )
    ),
    (
        16,
        [((*LIKELIHOOD, "shape"), [8]), ((*FREE, "table"), [CATEGORIES, CATEGORIES])],
        f"{place_of(FREE)}.table[1].name",
    ),
    (
        16,
        [((*LIKELIHOOD, "shape"), [3]), ((*FREE, "table"), [{**NUMBERS_OF_MODES, "scales": [1.0]}])],
        f"{place_of(FREE)}.table[0].scales",
    ),
    *(
        (17, [*TIMED, ((*OURS_DECODER, "stream"), stream)], f"{place_of(OURS_DECODER)}.stream{place}")
        for stream, place in (
            ({name: value for name, value in STREAM.items() if name != "hop"}, ""),
            ({"states": STREAM["states"], "reason": "none"}, ""),
            ({**STREAM, "states": STREAM["states"] * 2}, ".states"),
            ({**STREAM, "states": [{"name": "z", "shape": [1]}]}, ".states"),
        )
    ),
    (17, [((*OURS_DECODER, "stream"), STREAM)], f"{place_of(OURS_DECODER)}.stream"),
    (17, [*DYNAMIC, ((*OURS_DECODER, "stream"), STREAM)], f"{place_of(OURS_DECODER)}.stream"),
    (17, [*TIMED, ((*OURS, "stream"), STREAM)], f"{place_of(OURS)}.stream"),
    (7, [*TIMED, ((*OURS_DECODER, "stream"), {**STREAM, "file": "model.onnx"})], "components"),
    (19, [*LEVELS, ((*FREE, "observation", "range"), None)], f"{place_of(FREE)}.observation.range"),
    *(
        (19, [*CLASSES, ((*LIKELIHOOD, "shape"), shape)], f"{place_of(LIKELIHOOD)}.shape")
        for shape in ([1, 8, 8, 1], [2, 1, 8, 8], [1, 8, 4, 2])
    ),
    (19, [((*LIKELIHOOD, "kind"), "categorical")], f"{place_of(LIKELIHOOD)}.shape"),
    *(
        (19, [*CLASSES, ((*LIKELIHOOD, "axes"), axes)], f"{place_of(LIKELIHOOD)}.axes")
        for axes in (ABSENT, ["class", "channel", "height", "width"])
    ),
    *(
        (19, [*CLASSES, ((*FREE, "observation", "range"), bounds)], f"{place_of(FREE)}.observation.range")
        for bounds in (None, [0, 2], [-1, 1])
    ),
]


@pytest.mark.parametrize(("rule", "edits", "place"), CONTRADICTIONS)
def test_fields_that_contradict_each_other_are_refused(
    rule: int, edits: list[tuple[tuple[str | int, ...], Any]], place: str
) -> None:
    document = edited(*edits)
    assert VALIDATOR.is_valid(document)
    assert places(document) == [place]
    assert place in refusal(json.dumps(document))


def test_the_specification_lists_the_rules_that_are_tested() -> None:
    section = SPECIFICATION.partition("### Cross-field rules")[2].partition("\n## ")[0]
    listed = [int(number) for number in re.findall(r"^(\d+)\. ", section, re.MULTILINE)]
    assert listed == sorted({rule for rule, _, _ in CONTRADICTIONS})


# What is let through.

LET_THROUGH: list[tuple[tuple[str | int, ...], Any]] = [
    (("components", "another"), 5),
    (("additional_metadata", "another"), None),
    (("components", "encoder", "additional_metadata"), {"another": 1}),
    ((*FP32, "executor_info", "another"), {}),
    ((*FP32, "executor_info", "torchscript"), {"model_file": 5}),
    ((*ENCODER, "qnn"), {**example()["components"]["encoder"]["variants"]["fp32"], "executor_info": {"qnn": {}}}),
    ((*OURS, "later"), [1]),
    ((*FREE, "later"), [1]),
    *(((*FREE, name, "later"), [1]) for name in ("observation", "likelihood", "golden")),
    ((*FREE, "observation", "normalisation", "later"), [1]),
    ((*LATENT, "later"), [1]),
    ((*LATENT, "prior", "later"), [1]),
    ((*LATENT, "posterior", "later"), [1]),
    ((*FREE, "likelihood", "scale"), None),
    ((*FREE, "conditions"), []),
    ((*FREE, "observation", "dynamic"), {}),
    ((*LATENT, "dynamic"), {}),
    ((*LATENT, "axes"), ["code"]),
    ((*LATENT, "scale"), -2),
    ((*LATENT, "shift"), [0] * 16),
    ((*LATENT, "prior", "file"), 5),
    ((*LATENT, "prior"), {"kind": "none"}),
    ((*LATENT, "prior"), {"kind": "sphere", "reason": 5}),
    ((*LIKELIHOOD, "scale_output"), 5),
    ((*LIKELIHOOD, "outputs"), []),
    ((*OURS, "exporter"), "dynamo"),
    ((*OURS, "data"), "weights.bin"),
    ((*OURS, "quality"), QUALITY),
    ((*OURS, "quality"), {**QUALITY, "psnr": None, "elbo_change": None, "reason": "no likelihood", "later": 1}),
    ((*OURS, "quality"), {**QUALITY, "speed": {"1": 1.5, "64": 2}}),
    ((*FREE, "packed_from"), "sha256:" + "0" * 64),
    ((*FREE, "batch_of_one"), ["decoder", "encoder"]),
    ((*FREE, "refused"), []),
    ((*FREE, "refused"), [{**REFUSAL, "later": 1}, {**REFUSAL, "component": "decoder"}]),
    ((*FREE, "observation", "range"), None),
    ((*FREE, "observation", "shape", 0), 1.0),
    ((*FREE, "golden", "n"), 1e3),
    ((*FREE, "must_understand"), ABSENT),
    ((*FREE, "reader"), ABSENT),
    ((*FREE, "license"), ABSENT),
    ((*FREE, "metrics"), ABSENT),
    (("schema_version",), "1.7"),
    *((("package_version",), text) for text in ("0", "1.2.0", "2026.11.28", "999999999" + ".0" * 7)),
    (("description",), "what any program may say"),
    (("components", "encoder", "component_name"), "encoder"),
]


@pytest.mark.parametrize(("path", "value"), LET_THROUGH, ids=[place_of(path) for path, _ in LET_THROUGH])
def test_what_is_optional_or_another_programs_is_let_through(path: tuple[str | int, ...], value: Any) -> None:
    document = edited((path, value))
    assert problems(document) == []
    assert VALIDATOR.is_valid(document)
    assert [variant.name for variant in parse(json.dumps(document)).variants] == ["fp32", "fp32", "torchscript"]


def test_the_first_of_several_executors_counts() -> None:
    both = {"torchscript": {"model_file": "model.pt"}, "ort": {"model_file": "other.onnx"}}
    variant = parse(json.dumps(edited(((*FP32, "executor_info"), both)))).encoder["fp32"]
    assert (variant.executor, variant.path) == ("ort", "encoder/fp32/other.onnx")


# Refusals.


def test_all_problems_are_reported_at_once_each_with_its_place() -> None:
    document = edited(
        (("layout",), "installed"),
        (("b",), 1),
        (("a",), 2),
        ((*FP32, "variant_directory"), "../elsewhere"),
        ((*OURS, "error", "mu"), "small"),
        ((*FREE, "observation", "shape", 1), 0),
        ((*FREE, "golden"), ABSENT),
    )
    wanted = {
        "a": "expected no field of this name, got 2",
        "b": "expected no field of this name, got 1",
        "layout": 'expected "portable", got "installed"',
        f"{place_of(FP32)}.variant_directory": "expected a relative path inside the bundle, with '/' and without '..', "
        'got "../elsewhere"',
        f"{place_of(OURS)}.error.mu": 'expected a number of at least 0, got "small"',
        f"{place_of(FREE)}.observation.shape[1]": "expected an integer from 1 to 2147483647, got 0",
        f"{place_of(FREE)}.golden": "expected this field, got nothing",
    }
    assert sorted(map(str, problems(document))) == sorted(f"{place}: {text}" for place, text in wanted.items())
    first, *lines = refusal(json.dumps(document)).splitlines()
    assert first == "b/manifest.json: 7 problems; export the bundle again:"
    assert lines == [f"  {problem}" for problem in problems(document)]


def test_all_contradictions_are_reported_at_once() -> None:
    document = edited(((*LATENT, "name"), "x"), ((*FREE, "observation", "range"), [1, 0]))
    assert places(document) == [f"{place_of(FREE)}.observation.range", f"{place_of(FREE)}.latents[0].name"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"a": 1}, "an object"),
        ([1, 2], "a list of 2"),
        ("\x1b[31m", '"\\u001b[31m"'),
        ("+" * 999, '"' + "+" * 76 + "…"),
    ],
    ids=["object", "list", "control character", "long text"],
)
def test_a_wrong_value_is_shown_short_and_harmless(value: Any, shown: str) -> None:
    assert refusal(json.dumps(edited((("package_name",), value)))).endswith(f"got {shown}; export the bundle again")


def test_a_newer_minor_version_loads_and_its_fields_are_ignored() -> None:
    document = edited(
        ((*FREE, "format_version"), "2.12"),
        ((*FREE, "hierarchy"), {"levels": 3}),
        ((*FREE, "must_understand"), sorted(KNOWN_FIELDS)),
    )
    assert parse(json.dumps(document)).format_version == "2.12"
    assert VALIDATOR.is_valid(document)


def test_a_long_list_of_choices_is_shortened() -> None:
    message = refusal(json.dumps(edited(((*FREE, "must_understand"), [3]))))
    assert 'must_understand[0]: expected "batch_of_one" or "conditions" or ' in message
    assert message.endswith(f" or … ({len(KNOWN_FIELDS)} in all), got 3; export the bundle again")
    assert len(message) < 500


def test_a_field_that_must_be_understood_and_is_not_is_refused() -> None:
    document = edited(
        ((*FREE, "format_version"), "2.12"),
        ((*FREE, "must_understand"), ["noise", "hierarchy", "observation.layout"]),
        ((*FREE, "reader"), "vae-runtime>=2.4"),
        ((*FREE, "latents"), "of another form"),
    )
    assert not VALIDATOR.is_valid(document)
    assert refusal(json.dumps(document)) == (
        "b/manifest.json: additional_metadata.vae.must_understand: expected a list of fields of format 2.0, got "
        '"hierarchy", "observation.layout"; this bundle is newer than this vae-runtime: pip install '
        "'vae-runtime>=2.4'"
    )


@pytest.mark.parametrize(
    ("reader", "install"),
    [
        ("vae-runtime>=3.0", "'vae-runtime>=3.0'"),
        (ABSENT, "--upgrade vae-runtime"),
        (5, "--upgrade vae-runtime"),
        ("vae-runtime>=0.1", "--upgrade vae-runtime"),
        (f"vae-runtime>={__version__}", "--upgrade vae-runtime"),
        (f"vae-runtime>=0{__version__}.1", f"'vae-runtime>=0{__version__}.1'"),
        ("another-package", "--upgrade vae-runtime"),
        ("vae-runtime>=2\n--index-url=x", "--upgrade vae-runtime"),
    ],
)
@pytest.mark.parametrize("version", ["3.0", "10.3", "9" * 5000 + ".0"], ids=["3.0", "10.3", "huge"])
def test_a_newer_major_version_is_refused_naming_what_to_install(version: str, reader: Any, install: str) -> None:
    document = edited(((*FREE, "format_version"), version), ((*FREE, "reader"), reader), ((*FREE, "latents"), None))
    assert not VALIDATOR.is_valid(document)
    message = refusal(json.dumps(document))
    assert 'additional_metadata.vae.format_version: expected a version "2.x", got "' + version[:70] in message
    assert message.endswith(f"; this bundle is newer than this vae-runtime: pip install {install}")
    assert len(message) < 300


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ((*FREE, "noise"), "vnoise-2", '"vnoise-1"'),
        ((*LIKELIHOOD, "kind"), "student", '"bernoulli" or '),
        ((*LATENT, "prior", "kind"), "uniform", '"normal" or '),
    ],
)
@pytest.mark.parametrize(
    ("reader", "install"), [("vae-runtime>=2.4", "'vae-runtime>=2.4'"), (ABSENT, "--upgrade vae-runtime")]
)
def test_a_value_that_a_newer_reader_may_know_is_refused_by_name(
    path: tuple[str | int, ...], value: str, expected: str, reader: Any, install: str
) -> None:
    message = refusal(json.dumps(edited((path, value), ((*FREE, "reader"), reader))))
    assert message.startswith(f"b/manifest.json: {place_of(path)}: expected {expected}")
    assert message.endswith(
        f'got "{value}"; export the bundle again, or install a vae-runtime that knows more: pip install {install}'
    )
    # What no reader could know has the usual remedy alone.
    assert refusal(json.dumps(edited((path, 5)))).endswith("got 5; export the bundle again")


@pytest.mark.parametrize("reader", ["vae-runtime>=0.1", ABSENT])
@pytest.mark.parametrize("version", ["1.0", "1.7"])
def test_an_older_major_version_is_refused_naming_the_remedy(version: str, reader: Any) -> None:
    document = edited(
        ((*FREE, "format_version"), version),
        ((*FREE, "reader"), reader),
        ((*FREE, "license"), ABSENT),
        ((*FREE, "licence"), "MIT"),
        ((*FREE, "observation", "dynamic"), {"width": {"least": 8, "most": 64}}),
    )
    assert not VALIDATOR.is_valid(document)
    assert refusal(json.dumps(document)) == (
        f'b/manifest.json: additional_metadata.vae.format_version: expected a version "2.x", got "{version}"; this '
        "bundle is older than this vae-runtime: export it again with this version, or install the vae-runtime that it "
        "was made with"
    )


@pytest.mark.parametrize(
    "edit",
    [
        ((*FREE, "format_version"), "2"),
        ((*FREE, "format_version"), "0.9"),
        ((*FREE, "format_version"), ABSENT),
        ((*FREE, "must_understand"), 5),
        (("components", "encoder", "format_version"), "2.0"),
    ],
)
def test_a_manifest_that_is_wrong_is_not_called_newer(edit: tuple[tuple[str | int, ...], Any]) -> None:
    assert refusal(json.dumps(edited(edit))).endswith("; export the bundle again")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "Expecting value"),
        (b"", "Expecting value"),
        (EXAMPLE[:-10], "delimiter"),
        (EXAMPLE + "}", "Extra data"),
        (b"\xff" + EXAMPLE.encode(), "can't decode byte 0xff"),
        (EXAMPLE.encode("utf-16"), "can't decode byte"),
        (EXAMPLE.encode("utf-8-sig"), "BOM"),
        (EXAMPLE.replace('"layout"', '"layout": "portable", "layout"'), "the key 'layout' stands twice in one object"),
        (EXAMPLE.replace('{"elbo": -20.5}', '{"elbo": 1, "elbo": 2}'), "the key 'elbo' stands twice in one object"),
        (EXAMPLE.replace("-20.5", "NaN"), "NaN is not JSON"),
        (EXAMPLE.replace("-20.5", "Infinity"), "Infinity is not JSON"),
        (EXAMPLE.replace("-20.5", "-Infinity"), "-Infinity is not JSON"),
        (EXAMPLE.replace("-20.5", "1e999"), "Out of range float"),
        (EXAMPLE.replace("-20.5", "1" * 5000), "4300 digits"),
        (EXAMPLE.replace("mlp VAE", "\\ud800"), "surrogates not allowed"),
        (EXAMPLE.replace("mlp VAE", "\n"), "Invalid control character"),
        ("[" * 500_000, "too deeply nested"),
        ('{"a":' * 500_000, "too deeply nested"),
        (EXAMPLE.replace("-20.5", "[" * 500_000 + "]" * 500_000), "too deeply nested"),
    ],
    ids=lambda value: value if len(value) < 60 else "",
)
def test_what_is_no_json_is_refused(content: str | bytes, reason: str) -> None:
    if isinstance(content, str):
        assert content != EXAMPLE
    message = refusal(content)
    assert message.startswith("b/manifest.json: expected JSON in UTF-8: ")
    assert reason in message
    assert message.endswith("; copy the bundle again")
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("content", ["[]", "null", "5", '"additional_metadata"', "true", b"[{}]"])
def test_what_is_no_object_is_refused(content: str | bytes) -> None:
    assert "the document: expected an object, got " in refusal(content)


def test_a_nesting_that_just_passes_is_refused_as_any_wrong_value() -> None:
    def nested(depth: int) -> str:
        return EXAMPLE.replace('"portable"', "[" * depth + "]" * depth)

    def too_deep(depth: int) -> bool:
        return "too deeply nested" in refusal(nested(depth))

    # The limit is the interpreter's, and depends on how deep the call stack is already.
    limit = bisect(range(500_000), 0, key=too_deep)
    verdicts = {too_deep(depth) for depth in range(limit - 40, limit + 5)}
    assert verdicts == {False, True}


def test_records_are_frozen_dataclasses():
    """As `dataclasses.dataclass(frozen=True)` makes them, though it does not."""
    sizes = Sizes(2, max=8)
    assert (sizes.min, sizes.max, sizes.step) == (2, 8, 1)
    assert dataclasses.replace(sizes, step=2) == Sizes(2, 8, 2)
    assert sizes != Sizes(2, 8, 2)
    assert sizes != (2, 8, 1)
    assert hash(sizes) == hash(Sizes(2, 8))
    assert repr(sizes) == "Sizes(min=2, max=8, step=1)"
    assert [each.name for each in dataclasses.fields(sizes)] == ["min", "max", "step"]
    observations = [Observation("x", (3,), ("feature",)) for _ in range(2)]
    assert observations[0].dynamic == {}
    assert observations[0].dynamic is not observations[1].dynamic
    for arguments, named in (((1,), {}), ((1, 2, 3, 4), {}), ((1, 2), {"min": 1}), ((1, 2), {"other": 1})):
        with pytest.raises(TypeError, match="Sizes: "):
            Sizes(*arguments, **named)
    with pytest.raises(dataclasses.FrozenInstanceError, match="min"):
        sizes.min = 3
    with pytest.raises(dataclasses.FrozenInstanceError, match="max"):
        del sizes.max


# A manifest of a stranger's costs little, whatever is wrong with it.


def test_a_manifest_nested_beyond_64_is_refused() -> None:
    def nested(depth: int) -> str:
        return EXAMPLE.replace('"portable"', "[" * depth + "]" * depth)

    assert "too deeply nested" in refusal(nested(64))
    assert "too deeply nested" not in refusal(nested(63))
    # Brackets in strings nest nothing.
    assert "too deeply nested" not in refusal(EXAMPLE.replace('"portable"', json.dumps("[" * 999 + '"')))


def test_at_most_20_problems_are_told() -> None:
    document = json.loads(EXAMPLE)
    document.update({f"{'long' * 99}{index}": 0 for index in range(500)})
    text = refusal(json.dumps(document))
    assert "500 problems" in text
    assert text.endswith("and 480 more")
    assert len(text) < 10_000


def test_a_key_that_stands_twice_is_found_in_linear_time() -> None:
    keys = ", ".join(f'"{index}": 0' for index in [*range(60_000), 59_999])
    start = time.perf_counter()
    assert "the key '59999' stands twice" in refusal(f"{{{keys}}}")
    assert time.perf_counter() - start < 5


def test_the_number_of_variants_is_bounded() -> None:
    document = json.loads(EXAMPLE)
    variants = document["components"]["decoder"]["variants"]
    variants.update({f"v{index}": {} for index in range(99)})
    assert "components.decoder.variants: expected at most 64 variants, got" in refusal(json.dumps(document))


@pytest.mark.parametrize("content", ['[["' + '\\"' * 400_000, '[["' + "\\\\" * 400_000, '[["\\\n' * 80_000])
def test_a_string_without_an_end_is_read_in_linear_time(content: str) -> None:
    start = time.perf_counter()
    assert "too deeply nested" in refusal("[" * 64 + content)
    assert time.perf_counter() - start < 5


def test_reading_ends_at_a_thousand_problems() -> None:
    text = refusal(json.dumps(edited(((*FREE, "conditions"), [{"name": "y", "classes": [5] * 200_000}]))))
    assert "at least 1000 problems" in text
    assert text.endswith("and 980 more")


def test_long_names_of_axes_are_not_repeated_in_each_problem() -> None:
    names = {f"d{index}": {"min": 1, "max": 9} for index in range(900)}
    axes = [letter * 100_000 for letter in "abc"]
    document = edited(((*FREE, "observation", "axes"), axes), ((*FREE, "observation", "dynamic"), names))
    document["additional_metadata"]["vae"]["observation"]["shape"] = [1, 28, 28]
    tracemalloc.start()
    try:
        assert "900 problems" in refusal(json.dumps(document))
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_a_bundle_that_needs_a_newer_reader_is_refused() -> None:
    document = edited(((*FREE, "reader"), "vae-runtime>=99.1"))
    assert refusal(json.dumps(document)).endswith(
        f'.reader: expected a requirement that vae-runtime {__version__} meets, got "vae-runtime>=99.1"; export the '
        "bundle again, or install a vae-runtime that knows more: pip install 'vae-runtime>=99.1'"
    )
    for reader in (f"vae-runtime>={__version__}", f"vae-runtime>={__version__}.0.0", "vae-runtime>=0"):
        assert parse(json.dumps(edited(((*FREE, "reader"), reader)))).reader == reader
    assert "expected a requirement such as" in refusal(
        json.dumps(edited(((*FREE, "reader"), "vae-runtime>=" + "9" * 10)))
    )
