import copy
import json
import re
from bisect import bisect
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from vae_runtime import manifest as manifest_module
from vae_runtime.errors import BundleError
from vae_runtime.manifest import (
    EXECUTORS,
    KNOWN_FIELDS,
    Golden,
    Latent,
    Likelihood,
    Manifest,
    Normalisation,
    Observation,
    Variant,
    dump,
    parse,
    problems,
)

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
LATENT = (*FREE, "latents", 0)


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
        else:
            holder[path[-1]] = copy.deepcopy(value)
    return document


def place_of(path: tuple[str | int, ...]) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


def places(document: Any) -> list[str]:
    return [problem.place for problem in problems(document)]


def fields_are_right(document: Any) -> bool:
    """The parser's verdict without the cross-field rules, which it checks once every field is right by itself."""
    return manifest_module._read(document)[0] is not None


def refusal(content: str | bytes) -> str:
    with pytest.raises(BundleError) as caught:
        parse(content, "b/manifest.json")
    assert str(caught.value).startswith("b/manifest.json: ")
    return str(caught.value)


# The specification and its schema.


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def test_the_example_of_the_specification_is_valid() -> None:
    VALIDATOR.validate(example())
    manifest = parse(EXAMPLE)
    assert manifest.observation.shape == (1, 8, 8)
    assert [variant.path for variant in manifest.variants] == [
        "encoder/fp32/model.onnx",
        "decoder/fp32/model.onnx",
        "decoder/torchscript/model.pt",
    ]
    assert manifest.outputs("decoder") == ("x", "logits")


def test_every_known_field_is_in_the_schema_and_the_specification() -> None:
    definitions = SCHEMA["$defs"]
    in_schema = set(definitions["vae"]["properties"])
    for name, definition in (
        ("observation", "observation"),
        ("latents", "latent"),
        ("likelihood", "likelihood"),
        ("golden", "golden"),
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

BROKEN: list[tuple[tuple[str | int, ...], Any]] = [
    ((), []),
    *(((name,), ABSENT) for name in ("schema_version", "package_name", "layout")),
    *(((name,), ABSENT) for name in ("components", "additional_metadata")),
    (("sha256",), "9f"),
    (("schema_version",), 1.0),
    *((("schema_version",), text) for text in ("1", "2.0", "1.01", "1.0\n", " 1.0", "")),
    (("package_name",), None),
    *((("package_name",), text) for text in ("", "a b", ".a", "a/b", "a\n", "é")),
    (("layout",), "installed"),
    (("components",), []),
    (("components", "encoder"), ABSENT),
    (("components", "decoder"), ABSENT),
    (("components", "encoder"), None),
    (("components", "encoder", "variants"), ABSENT),
    (("components", "encoder", "sha256"), 0),
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
    ((*OURS, "tolerance"), []),
    ((*OURS, "tolerance", "mu"), "0.1"),
    ((*OURS, "tolerance", "mu"), True),
    ((*OURS, "tolerance", "mu"), -1e-9),
    ((*OURS, "error", "mu"), 1e301),
    ((*OURS, "error", "mu"), 10**400),
    # The VAE.
    *(((*FREE, name), ABSENT) for name in ("format_version", "name", "observation", "latents")),
    *(((*FREE, name), ABSENT) for name in ("likelihood", "noise", "golden")),
    ((*FREE, "format_version"), 1),
    *(((*FREE, "format_version"), text) for text in ("1", "0.9", "1.0.0", "01.0", "1.0\n")),
    ((*FREE, "must_understand"), "noise"),
    ((*FREE, "must_understand", 0), 5),
    ((*FREE, "reader"), 1),
    *(((*FREE, "reader"), text) for text in ("", "another>=1", "vae-runtime", "vae-runtime>=1\n", "vae-runtime>=1 x")),
    ((*FREE, "name"), None),
    ((*FREE, "description"), None),
    ((*FREE, "licence"), ["MIT"]),
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
    ((*FREE, "observation", "range"), 1),
    ((*FREE, "observation", "range"), [0]),
    ((*FREE, "observation", "range"), [0, 1, 2]),
    *(((*FREE, "observation", "range", 0), number) for number in (None, "0", False, -1e301, -(10**400))),
    ((*FREE, "observation", "range", 1), 1e301),
    ((*FREE, "observation", "normalisation"), None),
    ((*FREE, "observation", "normalisation", "offset"), ABSENT),
    ((*FREE, "observation", "normalisation", "divisor"), ABSENT),
    *(((*FREE, "observation", "normalisation", "divisor"), number) for number in (0, -1, "1", 1e301)),
    ((*FREE, "latents"), {}),
    ((*FREE, "latents"), []),
    ((*FREE, "latents"), [example()["additional_metadata"]["vae"]["latents"][0]] * 2),
    (LATENT, None),
    *(((*LATENT, name), ABSENT) for name in ("name", "dtype", "shape", "prior", "posterior")),
    ((*LATENT, "dtype"), "float16"),
    ((*LATENT, "prior"), "normal"),
    ((*LATENT, "prior", "kind"), ABSENT),
    ((*LATENT, "prior", "kind"), "uniform"),
    ((*LATENT, "posterior"), "normal"),
    *(((*LATENT, "posterior", name), ABSENT) for name in ("kind", "mu", "logvar", "std")),
    ((*LATENT, "posterior", "kind"), "delta"),
    ((*FREE, "likelihood", "kind"), ABSENT),
    ((*FREE, "likelihood", "kind"), "poisson"),
    ((*FREE, "likelihood", "kind"), ["bernoulli"]),
    ((*FREE, "likelihood", "mean"), ABSENT),
    ((*FREE, "likelihood", "logits"), ABSENT),
    ((*FREE, "likelihood", "logits"), None),
    *(((*FREE, "golden", name), ABSENT) for name in ("file", "seed", "n")),
    *(((*FREE, "golden", "file"), path) for path in (*OUTSIDE, "data/golden.npz")),
    *(((*FREE, "golden", "seed"), number) for number in (-1, 2**53, 0.5, "0", True)),
    *(((*FREE, "golden", "n"), number) for number in (0, 2**20 + 1, 1.5, None)),
]


@pytest.mark.parametrize(("path", "value"), BROKEN, ids=[place_of(path) or "document" for path, _ in BROKEN])
def test_a_wrong_field_is_refused_by_both_at_its_place(path: tuple[str | int, ...], value: Any) -> None:
    document = edited((path, value))
    assert places(document) == [place_of(path) or "the document"]
    assert refusal(json.dumps(document)).endswith("; export the bundle again")
    assert not VALIDATOR.is_valid(document)


# As BROKEN, with more to set up first: the edits, and the place of the one problem.
BROKEN_FURTHER: list[tuple[list[tuple[tuple[str | int, ...], Any]], str]] = [
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
        for scale in ({}, {"scale": 0}, {"scale": None}, {"scale": True})
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
SHAPES = st.lists(SIZES, min_size=1, max_size=8).map(tuple)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(TEXTS, st.lists(SCALARS, max_size=2), max_size=2)
OBJECTS = st.dictionaries(TEXTS, VALUES, max_size=2)


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
        )
        for index, executor in enumerate(executors)
    ]
    return {variant.name: variant for variant in draw(st.permutations(variants))}


@st.composite
def valid_manifests(draw: st.DrawFn) -> Manifest:
    # The last character tells the names apart.
    x, z, mu, logvar, std, mean, logits = (f"{draw(TENSORS)}{index}" for index in range(7))
    kind = draw(st.sampled_from(["bernoulli", "gaussian", "laplace"]))
    bernoulli = kind == "bernoulli"
    shape = draw(SHAPES)
    return Manifest(
        package_name=draw(NAMES),
        name=draw(TEXTS),
        observation=Observation(
            name=x,
            shape=shape,
            axes=tuple(draw(TEXTS) for _ in shape),
            range=draw(st.none() | st.tuples(NUMBERS, NUMBERS).filter(lambda pair: pair[0] < pair[1])),
            normalisation=draw(st.none() | st.builds(Normalisation, NUMBERS, POSITIVE)),
        ),
        latents=(Latent(z, draw(SHAPES), mu, logvar, std),),
        likelihood=Likelihood(kind, mean, logits if bernoulli else None, None if bernoulli else draw(POSITIVE)),
        golden=Golden(draw(NAMES), draw(st.integers(0, 2**53 - 1)), draw(st.integers(1, 2**20))),
        encoder=draw(variants_of("encoder", [mu, logvar, std])),
        decoder=draw(variants_of("decoder", [mean, logits] if bernoulli else [mean])),
        description=draw(TEXTS),
        licence=draw(st.none() | TEXTS),
        reader=draw(st.sampled_from([None, "vae-runtime>=0.1", "vae-runtime>=3", "vae-runtime>=1.20.300"])),
        training=draw(OBJECTS),
        metrics=draw(OBJECTS),
        producer=draw(OBJECTS),
        format_version=f"1.{draw(st.integers(0, 10**6))}",
    )


@given(valid_manifests())
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_is_written_reads_back_as_an_equal_manifest(manifest: Manifest) -> None:
    text = dump(manifest)
    read = parse(text)
    assert read == manifest
    assert read.variants == manifest.variants  # in the order of declaration
    assert dump(read) == text
    assert parse(text.encode()) == manifest
    assert text.endswith("}\n")
    VALIDATOR.validate(json.loads(text))


KEYS = sorted(
    {key for _, node in nodes_of(example()) if isinstance(node, dict) for key in node} | {*EXECUTORS, "pytorch", "a\n"}
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
        "0.1",
    ),
    *("noise", "noise.x", "gaussian", "laplace", "vae-runtime>=2", "pip", [], {}, [1], [0, 1], ["noise"], ["x", "y"]),
    *([[]], {"vae": {}}, {"kind": "normal"}, {"model_file": "a"}, {"ort": {"model_file": "a"}}, {"another": {}}),
]


BASES = [
    example(),
    edited(
        ((*FREE, "likelihood"), {"kind": "laplace", "mean": "x", "scale": 0.5}),
        ((*FREE, "observation", "range"), None),
        ((*FREE, "observation", "normalisation"), ABSENT),
        ((*DECODER, "torchscript", "executor_info"), {"qnn": {}, "another": {"file": 1}}),
        ((*DECODER, "fp32", "additional_metadata", "vae", "tolerance", "logits"), ABSENT),
        ((*DECODER, "fp32", "additional_metadata", "vae", "error", "logits"), ABSENT),
    ),
]


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


def test_parser_and_schema_come_to_the_same_verdict_on_any_document() -> None:
    verdicts: Counter[tuple[bool, bool]] = Counter()

    @given(edited_documents())
    @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
    def agree(document: Any) -> None:
        verdict = VALIDATOR.is_valid(document)
        verdicts[verdict, not problems(document)] += 1
        assert fields_are_right(document) == verdict

    agree()
    # Fields wrong; all right; fields right by themselves that contradict each other.
    assert verdicts[False, False] >= 20
    assert verdicts[True, True] >= 10
    assert verdicts[True, False] >= 1
    assert verdicts[False, True] == 0


@pytest.mark.parametrize(
    ("place", "changes"),
    [
        (("name",), {"pattern": "^[A-Za-z0-9._-]+$"}),
        (("variant",), {"additionalProperties": True}),
        (("golden", "properties", "n"), {"type": "number"}),
        (("shape", "items"), {"minimum": 0}),
        (("observation",), {"additionalProperties": False}),
        (("latent", "required"), ["name", "dtype", "shape", "prior", "posterior", "level"]),
        (("executor_info",), {"then": False}),
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
    validator = Draft202012Validator(other)
    assert any(validator.is_valid(document) != fields_are_right(document) for document in documents)


@pytest.mark.parametrize(
    ("part", "instead"),
    [
        ("_NAME", re.compile(".*")),
        ("_PATH", re.compile("[A-Za-z0-9_./-]*")),
        ("_TENSOR", re.compile(r"[A-Za-z0-9_.]+")),
        ("_READER", re.compile("vae-runtime")),
        ("_VERSION", re.compile(r"[0-9]+\.[0-9]+")),
        ("_RESERVED", ""),
        ("_is_number", lambda value: isinstance(value, (int, float))),
        ("EXECUTORS", ("torchscript", "ort")),
        ("LIKELIHOODS", ("bernoulli",)),
    ],
)
def test_a_parser_that_is_a_little_off_is_found_out(monkeypatch: pytest.MonkeyPatch, part: str, instead: Any) -> None:
    documents = [edited(edit) for edit in [*BROKEN, *LET_THROUGH]] + [edited(*edits) for edits, _ in BROKEN_FURTHER]
    documents += BASES
    monkeypatch.setattr(manifest_module, part, instead)
    assert any(VALIDATOR.is_valid(document) != fields_are_right(document) for document in documents)


# Fields that are right by themselves and wrong together: the schema takes them, the parser does not.

CONTRADICTIONS: list[tuple[int, list[tuple[tuple[str | int, ...], Any]], str]] = [
    (1, [((*FREE, "observation", "axes"), ["channel", "height"])], f"{place_of(FREE)}.observation.axes"),
    (2, [((*FREE, "observation", "range"), [1, 1])], f"{place_of(FREE)}.observation.range"),
    (2, [((*FREE, "observation", "range"), [1, 0])], f"{place_of(FREE)}.observation.range"),
    (3, [((*LATENT, "name"), "x")], f"{place_of(FREE)}.latents[0].name"),
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
    ((*FREE, "observation", "range"), None),
    ((*FREE, "observation", "shape", 0), 1.0),
    ((*FREE, "golden", "n"), 1e3),
    ((*FREE, "must_understand"), ABSENT),
    ((*FREE, "reader"), ABSENT),
    ((*FREE, "licence"), ABSENT),
    ((*FREE, "metrics"), ABSENT),
    (("schema_version",), "1.7"),
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
        "a": "no field of this name is expected, got 2",
        "b": "no field of this name is expected, got 1",
        "layout": '"portable" is expected, got "installed"',
        f"{place_of(FP32)}.variant_directory": "a relative path inside the bundle, with '/' and without '..' is "
        'expected, got "../elsewhere"',
        f"{place_of(OURS)}.error.mu": 'a number of at least 0 is expected, got "small"',
        f"{place_of(FREE)}.observation.shape[1]": "an integer from 1 to 2147483647 is expected, got 0",
        f"{place_of(FREE)}.golden": "this field is expected, got nothing",
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
        ((*FREE, "format_version"), "1.12"),
        ((*FREE, "hierarchy"), {"levels": 3}),
        ((*FREE, "must_understand"), sorted(KNOWN_FIELDS)),
    )
    assert parse(json.dumps(document)).format_version == "1.12"
    assert VALIDATOR.is_valid(document)


def test_a_field_that_must_be_understood_and_is_not_is_refused() -> None:
    document = edited(
        ((*FREE, "format_version"), "1.12"),
        ((*FREE, "must_understand"), ["noise", "hierarchy", "observation.layout"]),
        ((*FREE, "reader"), "vae-runtime>=1.4"),
        ((*FREE, "latents"), "of another form"),
    )
    assert not VALIDATOR.is_valid(document)
    assert refusal(json.dumps(document)) == (
        "b/manifest.json: additional_metadata.vae.must_understand: a list of fields of format 1.0 is expected, got "
        '"hierarchy", "observation.layout"; this bundle is newer than this vae-runtime: pip install '
        "'vae-runtime>=1.4'"
    )


@pytest.mark.parametrize(
    ("reader", "install"),
    [
        ("vae-runtime>=2.0", "'vae-runtime>=2.0'"),
        (ABSENT, "--upgrade vae-runtime"),
        (5, "--upgrade vae-runtime"),
        ("another-package", "--upgrade vae-runtime"),
        ("vae-runtime>=2\n--index-url=x", "--upgrade vae-runtime"),
    ],
)
@pytest.mark.parametrize("version", ["2.0", "10.3", "9" * 5000 + ".0"], ids=["2.0", "10.3", "huge"])
def test_a_newer_major_version_is_refused_naming_what_to_install(version: str, reader: Any, install: str) -> None:
    document = edited(((*FREE, "format_version"), version), ((*FREE, "reader"), reader), ((*FREE, "latents"), None))
    assert not VALIDATOR.is_valid(document)
    message = refusal(json.dumps(document))
    assert 'additional_metadata.vae.format_version: a version "1.x" is expected, got "' + version[:70] in message
    assert message.endswith(f"; this bundle is newer than this vae-runtime: pip install {install}")
    assert len(message) < 300


@pytest.mark.parametrize(
    "edit",
    [
        ((*FREE, "format_version"), "1"),
        ((*FREE, "format_version"), "0.9"),
        ((*FREE, "format_version"), ABSENT),
        ((*FREE, "must_understand"), 5),
        (("components", "encoder", "format_version"), "1.0"),
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
    assert message.startswith("b/manifest.json: JSON in UTF-8 is expected: ")
    assert reason in message
    assert message.endswith("; copy the bundle again")
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("content", ["[]", "null", "5", '"additional_metadata"', "true", b"[{}]"])
def test_what_is_no_object_is_refused(content: str | bytes) -> None:
    assert "the document: an object is expected, got " in refusal(content)


def test_a_nesting_that_just_passes_is_refused_as_any_wrong_value() -> None:
    def nested(depth: int) -> str:
        return EXAMPLE.replace('"portable"', "[" * depth + "]" * depth)

    def too_deep(depth: int) -> bool:
        return "too deeply nested" in refusal(nested(depth))

    # The limit is the interpreter's, and depends on how deep the call stack is already.
    limit = bisect(range(500_000), 0, key=too_deep)
    verdicts = {too_deep(depth) for depth in range(limit - 40, limit + 5)}
    assert verdicts == {False, True}
