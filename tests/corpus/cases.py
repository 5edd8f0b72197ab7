"""Generate the corpus: bundles made from models/digits, whose hashes are right again, as an attacker's would be."""

import io
import json
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vae_runtime.places import SUMS, format_sums
from vae_runtime.protobuf import bytes_field, integer_field

DIGITS = Path(__file__).parents[2] / "models" / "digits"
DECODER = "decoder/fp32/model.onnx"
LOADS, REFUSED, FAILS = "loads", "refused by load", "fails verify"


class Case(NamedTuple):
    """A bundle by its files, and its verdict."""

    name: str
    files: dict[str, bytes]
    verdict: str


def field(number: int, *values: int | str | bytes) -> bytes:
    """The encoding of each value as a field of a protobuf message."""
    out = b""
    for value in values:
        if isinstance(value, int):
            out += integer_field(number, value)
        else:
            out += bytes_field(number, value.encode() if isinstance(value, str) else value)
    return out


def fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message that has integers and bytes alone."""

    def read(position: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = content[position]
            value |= (byte & 0x7F) << shift
            position, shift = position + 1, shift + 7
            if byte < 0x80:
                return value, position

    position = 0
    while position < len(content):
        tag, position = read(position)
        value, position = read(position)
        if tag & 7 == 2:
            yield tag >> 3, content[position : position + value]
            position += value
        else:
            yield tag >> 3, value


def model(
    graph: bytes = b"", end: bytes = b"", *, first: bytes = b"", ir: int | None = None, opset: int | None = None
) -> bytes:
    """The decoder of digits, with further fields of its graph (`first` before its own) and of the model."""
    out = b""
    for number, value in fields((DIGITS / DECODER).read_bytes()):
        if number == 7:
            value = first + value + graph
        if number == 1 and ir is not None:
            value = ir
        if number == 8 and opset is not None:
            value = field(2, opset)
        out += field(number, value)
    return out + end


def node(
    operator: str, inputs: tuple[str, ...] = ("z",), output: str = "extra", *, domain: str = "", more: bytes = b""
) -> bytes:
    head = field(1, *inputs) + field(2, output) + field(4, operator)
    return field(1, head + (field(7, domain) if domain else b"") + more)


def tensor(name: str, *parts: bytes) -> bytes:
    return field(5, b"".join(parts) + field(8, name))


def numbers(name: str, *values: float) -> bytes:
    kind, form = (7, "q") if all(isinstance(value, int) for value in values) else (1, "f")
    raw = struct.pack(f"<{len(values)}{form}", *values)
    return tensor(name, field(1, len(values)), field(2, kind), field(9, raw))


def branch(content: bytes, depth: int = 1) -> bytes:
    """An If around a node."""
    for level in range(depth):
        value = field(12, field(1, "extra" if level == 0 else f"q{level - 1}") + field(2, field(1, field(1, 1))))
        graphs = b"".join(
            field(5, field(1, name) + field(6, content + field(2, "branch") + value) + field(20, 5))
            for name in ("then_branch", "else_branch")
        )
        content = field(1, field(1, "flag") + field(2, f"q{level}") + field(4, "If") + graphs)
    return tensor("flag", field(2, 9), field(9, b"\1")) + content


OPERATORS = """
    RandomNormal RandomNormalLike RandomUniform RandomUniformLike Bernoulli Multinomial Loop Scan SequenceMap SequenceAt
    SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength SplitToSequence ConcatFromSequence
    Optional OptionalGetElement OptionalHasElement StringConcat StringNormalizer StringSplit RegexFullMatch
    TfIdfVectorizer ImageDecoder Adagrad Gradient ZipMap NoSuchOperator
""".split()  # noqa: SIM905
MICROSOFT = [
    "EPContext",
    "SampleOp",
    "Sampling",
    "BeamSearch",
    "GreedySearch",
    "Tokenizer",
    "Range",
    "Pad",
    "ExpandDims",
    "Snpe",
    "WordConvEmbedding",
]
BLOWUPS = {
    "ConstantOfShape": [((), (2**20, 2**20))],
    "Expand": [(("z",), (2**31, 8))],
    "Tile": [(("z",), (2**20, 2**20))],
    "Range": [((), (0,), (2**40,), (1,))],
    "Pad": [(("z",), (2**20, 2**20, 0, 0))],
    "Resize": [(("z", ""), (1.0, 1e12)), (("z", "", ""), (2**20, 2**20))],
    "OneHot": [(("z",), (2**40,), (0.0, 1.0))],
    "HannWindow": [((), (2**40,))],
    "Col2Im": [(("z",), (2**20, 2**20))],
}


def graphs() -> Iterator[tuple[str, bytes]]:
    """Decoders that must be refused."""
    for operator in OPERATORS:
        yield f"operator {operator}", model(node(operator))
        yield f"operator {operator} in a branch", model(branch(node(operator)))
    for operator in MICROSOFT:
        yield f"operator com.microsoft.{operator}", model(node(operator, domain="com.microsoft"))
    for domain in ("evil", "ai.onnx.ml", "ai.onnx.preview.training", "pkg.local", "com.ms.internal.nhwc"):
        yield f"domain {domain}", model(node("Exp", domain=domain), field(8, field(1, domain) + field(2, 1)))
    for number in (9, 13, 20, 25, 26, 99, 2**20):
        yield f"field {number} of the model", model(end=field(number, b""))
        yield f"field {number} of the model, an integer", model(end=field(number, 1))
    for number in (3, 4, 6, 7, 8, 9, 15, 99):
        yield f"field {number} of the graph", model(field(number, b""))
        yield f"field {number} of the graph, an integer", model(field(number, 1))
    for number in (8, 10, 99):
        yield f"field {number} of a node", model(node("Exp", more=field(number, b"x")))
    for version in (0, 1, 2, 15, 99, 2**40, 2**63):
        yield f"IR version {version}", model(ir=version)
    for version in (0, 1, 8, 29, 999, 2**40, 2**63):
        yield f"operator set {version}", model(opset=version)
    yield "operator set twice", model(end=field(8, field(2, 17)))
    for key in ("ort_config", "ORT_CONFIG"):
        yield f"metadata {key}", model(end=field(14, field(1, key) + field(2, "{}")))
    yield "metadata twice", model(end=field(14, field(1, "k")) * 2)
    yield "metadata beyond reason", model(end=b"".join(field(14, field(1, str(n))) for n in range(999)))
    yield "two graphs", model(end=field(7, b""))
    yield "an input of nothing", model(node("Exp", ("nowhere",)))
    yield "a name twice", model(node("Exp") * 2)
    yield "a circle", model(node("Exp", ("extra",)))
    yield "a node before its input", model(node("Exp", ("b",), "a") + node("Exp", ("z",), "b"))
    yield "an output twice", model(field(12, field(1, "x")) * 2)
    yield "an output of nothing", model(field(12, field(1, "nowhere")))
    yield "a long name", model(node("Exp", output="n" * 10_000))
    yield "20,000 nodes", model(b"".join(node("Exp", output=f"n{number}") for number in range(20_000)))
    yield "a million fields", model(field(1, b"\x0a\0" * 2_000_000))
    yield "deep branches", model(branch(node("Exp"), 10))
    yield "deeper branches", model(branch(node("Exp"), 12))
    for operator, tries in BLOWUPS.items():
        for number, (inputs, *constants) in enumerate(tries):
            names = tuple(f"c{index}" for index in range(len(constants)))
            values = b"".join(numbers(name, *each) for name, each in zip(names, constants, strict=True))
            content = values + node(operator, (*inputs, *names))
            yield f"size {operator} {number}", model(content)
            yield f"size {operator} {number} in a branch", model(branch(content))
    for name, double in (("Concat", ("a", "a")), ("Tile", ("a", "two"))):
        nodes = node(name, ("z", double[1].replace("a", "z")), "d0")
        for level in range(60):
            nodes += node(name, (f"d{level}", double[1].replace("a", f"d{level}")), f"d{level + 1}")
        yield f"doubling {name}", model(numbers("two", 2, 2) + nodes)
    for attribute in ("pads", "strides", "dilations", "kernel_shape", "output_shape"):
        content = field(1, attribute) + field(8, 2**40) + field(20, 7)
        yield f"attribute {attribute}", model(node("ConvTranspose", more=field(5, content)))
    integer = field(1, "axis") + field(3, 1) + field(20, 2)
    yield "an attribute twice", model(node("Softmax", more=field(5, integer, integer)))
    yield "an attribute of no type", model(node("Softmax", more=field(5, field(1, "axis") + field(3, 1))))
    yield "an attribute of two values", model(node("Softmax", more=field(5, integer + field(4, "s"))))
    yield "a graph as an attribute", model(node("Softmax", more=field(5, field(1, "g") + field(6, b"") + field(20, 5))))
    raw = field(9, b"\0" * 8)
    tensors = {
        "of no type": (field(1, 2), raw), "of strings": (field(1, 1), field(2, 8), field(6, "text")),
        "of an unknown type": (field(1, 2), field(2, 77), raw), "too short": (field(1, 3), field(2, 1), raw),
        "too long": (field(1, 1), field(2, 1), raw), "without values": (field(1, 4), field(2, 1)),
        "of size -1": (field(1, 2**64 - 1), field(2, 1), raw), "of size 2**62": (field(1, 2**62), field(2, 1), raw),
        "in two fields": (field(1, 2), field(2, 1), raw, field(4, b"\0" * 8)),
        "in a wrong field": (field(1, 2), field(2, 1), field(7, b"\0\0")),
        "of 99 axes": (field(1, *[1] * 99), field(2, 6), raw[:-4]),
        "elsewhere": (field(1, 2), field(2, 1), field(13, field(1, "location") + field(2, "/etc/passwd"))),
        "in memory": (field(1, 2), field(2, 1), field(13, field(1, "location") + field(2, "*/_ORT_MEM_ADDR_/*"))),
    }  # fmt: skip
    for name, parts in tensors.items():
        yield f"a tensor {name}", model(tensor("w", *parts))
        yield (
            f"a constant {name}",
            model(node("Constant", (), more=field(5, field(1, "value") + field(5, b"".join(parts)) + field(20, 4)))),
        )
    whole = (DIGITS / DECODER).read_bytes()
    for number in range(1, 24):
        yield f"cut at {number}/24", whole[: len(whole) * number // 24]
    random = np.random.default_rng(0)
    for number in range(16):
        yield f"garbage {number}", random.bytes(4 ** (number % 8))
    yield "an empty file", b""


def manifests() -> Iterator[tuple[str, bytes]]:
    """Manifests that must be refused."""
    text = (DIGITS / "manifest.json").read_text(encoding="utf-8")
    yield "2 MiB", text.encode() + b" " * 2**21
    yield "100 deep", text.replace('"portable"', "[" * 100 + "]" * 100).encode()
    yield "500,000 deep", b"[" * 500_000
    yield "keys twice", ("{" + ", ".join(f'"{n}": 0' for n in [*range(60_000), 59_999]) + "}").encode()
    yield "not UTF-8", b"\xff\xfe" + text.encode()
    yield "infinite", text.replace('"portable"', "1e999").encode()
    yield "NaN", text.replace('"portable"', "NaN").encode()
    document = json.loads(text)

    def changed(change: object, *path: str) -> bytes:
        copy = json.loads(text)
        holder = copy
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = change
        return json.dumps(copy).encode()

    for key in document:
        for wrong in (None, 5, [], "", {"a": 1}, ["x"] * 1000):
            if (key, wrong) == ("description", ""):
                # A description may be any text.
                continue
            yield f"{key} = {str(wrong)[:20]}", changed(wrong, key)
    vae = document["additional_metadata"]["vae"]
    for key in ("format_version", "observation", "latents", "likelihood", "golden", "noise"):
        if key in vae:
            for wrong in (None, -1, "\x1b[31m", [[]]):
                yield f"vae.{key} = {str(wrong)[:20]!r}", changed(wrong, "additional_metadata", "vae", key)
    variants = document["components"]["decoder"]["variants"]
    many = {f"v{number}": variants["fp32"] for number in range(300)}
    yield "300 variants", changed(many, "components", "decoder", "variants")
    for path in ("../up", "/etc", "a//b", "", "a/../b", ".hidden", "a\0b"):
        yield f"path {path!r}", changed(path, "components", "decoder", "variants", "fp32", "variant_directory")


def goldens() -> Iterator[tuple[str, bytes]]:
    """Golden vectors that verify must fail."""
    content = (DIGITS / "golden.npz").read_bytes()
    yield "no archive", b"golden"
    yield "cut short", content[: len(content) // 2]
    with np.load(io.BytesIO(content)) as file:
        arrays = dict(file)
    for name, wrong in {
        "a bomb": np.zeros(2**24, np.float32), "objects": np.array([{}], dtype=object), "texts": np.array(["x"]),
        "another shape": np.zeros((1, 2), np.float32), "nothing": np.zeros(0, np.float32),
        "NaN": np.full_like(arrays["x"], np.nan),
    }.items():  # fmt: skip
        out = io.BytesIO()
        np.savez_compressed(out, **{**arrays, "x": wrong})
        yield name, out.getvalue()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", b"no array")
    yield "no array", out.getvalue()


def cases() -> Iterator[Case]:
    """All cases."""
    names = [path.relative_to(DIGITS).as_posix() for path in DIGITS.rglob("*") if path.is_file()]
    plain = {name: (DIGITS / name).read_bytes() for name in names if name != SUMS}

    def signed(**changes: bytes) -> dict[str, bytes]:
        files = {**plain, **changes}
        return {**files, SUMS: format_sums(files.items())}

    yield Case("as it ships", signed(), LOADS)
    yield Case("with an operator more", signed(**{DECODER: model(node("Exp"))}), LOADS)
    yield Case("with a branch", signed(**{DECODER: model(branch(node("Exp")))}), LOADS)
    for name, content in graphs():
        yield Case(f"graph: {name}", signed(**{DECODER: content}), REFUSED)
    for name, content in manifests():
        yield Case(f"manifest: {name}", signed(**{"manifest.json": content}), REFUSED)
    for name, content in goldens():
        yield Case(f"golden: {name}", signed(**{"golden.npz": content}), FAILS)
    files = signed()
    lines = files[SUMS]
    for name, content in {
        "empty": b"", "not sorted": b"".join(sorted(lines.splitlines(True), reverse=True)), "twice": lines * 2,
        "no line end": lines[:-1], "upwards": lines.replace(b"golden.npz", b"../golden.npz"),
        "absolute": lines.replace(b"golden.npz", b"/golden.npz"), "2 MiB": lines + b"x" * 2**21, "binary": b"\xff",
        "another hash": lines.replace(b"a", b"b"),
    }.items():  # fmt: skip
        yield Case(f"{SUMS}: {name}", {**files, SUMS: content}, REFUSED)
