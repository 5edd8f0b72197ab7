"""Real parts for the runtime's tests: the bundles that ship, and small ones whose answers are known by heart."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import vae_runtime
from vae_runtime import noise
from vae_runtime.bundle import SUMS, format_sums
from vae_runtime.manifest import Golden, Latent, Likelihood, Manifest, Observation, Variant, dump
from vae_runtime.session import Session, resolve_device


@pytest.fixture(scope="session")
def digits(root):
    """The folder of a bundle that ships; not to be written to."""
    return root / "models" / "digits"


@pytest.fixture
def copy_of(tmp_path):
    """Copy a bundle, to attack it."""
    return lambda folder: Path(shutil.copytree(folder, tmp_path / "bundle"))


@pytest.fixture
def bundle_copy(digits, copy_of):
    """A copy of `digits` to attack."""
    return copy_of(digits)


@pytest.fixture(scope="session")
def vae(digits):
    return vae_runtime.load(digits)


@pytest.fixture(scope="session")
def edit_manifest(resign):
    """Let a function change the decoded manifest of a bundle in place, and make the hashes right again."""

    def edit(folder, change):
        path = folder / "manifest.json"
        document = json.loads(path.read_text(encoding="utf-8"))
        change(document)
        path.write_text(json.dumps(document), encoding="utf-8")
        resign(folder)

    return edit


class Onnx:
    """Just enough of ONNX's protobuf to write small graphs where the package onnx is not installed."""

    def field(self, number, *values):
        """The encoding of each value as a field of a message: an int, a str, or the bytes of a message."""
        out = b""
        for value in values:
            if isinstance(value, int):
                out += self._varint(number << 3) + self._varint(value)
            else:
                content = value.encode() if isinstance(value, str) else value
                out += self._varint(number << 3 | 2) + self._varint(len(content)) + content
        return out

    def _varint(self, value):
        out = []
        while value > 0x7F:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        return bytes([*out, value])

    def value(self, name, sizes, element=1):
        """ValueInfoProto: a graph's input or output; a size may be a name, `element` 1 is float32, 11 float64."""
        dimensions = [self.field(2 if isinstance(size, str) else 1, size) for size in sizes]
        shape = self.field(2, self.field(1, *dimensions))
        return self.field(1, name) + self.field(2, self.field(1, self.field(1, element) + shape))

    def node(self, operator, inputs, outputs):
        return self.field(1, *inputs) + self.field(2, *outputs) + self.field(4, operator)

    def tensor(self, name, values):
        values = np.asarray(values, "<f4")
        return self.field(1, *values.shape) + self.field(2, 1) + self.field(8, name) + self.field(9, values.tobytes())

    def external_tensor(self, name, shape, **entries):
        """A tensor whose numbers are in another file: `location`, `offset`, `length`."""
        pairs = [self.field(1, key) + self.field(2, value) for key, value in entries.items()]
        return self.field(1, *shape) + self.field(2, 1) + self.field(8, name) + self.field(13, *pairs) + b"\x70\x01"

    def model(self, nodes, inputs, outputs, tensors=()):
        graph = self.field(1, *nodes) + self.field(2, "graph") + self.field(5, *tensors)
        graph += self.field(11, *inputs) + self.field(12, *outputs)
        return self.field(1, 8) + self.field(7, graph) + self.field(8, self.field(2, 18))


@pytest.fixture(scope="session")
def onnx_bytes():
    return Onnx()


@pytest.fixture
def small_bundle(onnx_bytes, tmp_path):
    """Write a bundle known by heart, float32 [3] both ways: mu = x, logvar = -x, std = exp(-x / 2); x = z.

    Of a bernoulli likelihood the logits are z, and x is their sigmoid.
    """

    def write(kind="gaussian", scale=0.5, name="small"):
        o = onnx_bytes
        likelihood = Likelihood(kind, "x", "logits") if kind == "bernoulli" else Likelihood(kind, "x", scale=scale)
        rows = ["batch", 3]
        encoder = o.model(
            [
                o.node("Identity", ["x"], ["mu"]),
                o.node("Neg", ["x"], ["logvar"]),
                o.node("Mul", ["logvar", "half"], ["exponent"]),
                o.node("Exp", ["exponent"], ["std"]),
            ],
            [o.value("x", rows)],
            [o.value(output, rows) for output in ("mu", "logvar", "std")],
            [o.tensor("half", [0.5])],
        )
        if kind == "bernoulli":
            nodes = [o.node("Identity", ["z"], ["logits"]), o.node("Sigmoid", ["z"], ["x"])]
        else:
            nodes = [o.node("Identity", ["z"], ["x"])]
        outputs = ("x", "logits") if kind == "bernoulli" else ("x",)
        decoder = o.model(nodes, [o.value("z", rows)], [o.value(output, rows) for output in outputs])
        return _write_bundle(tmp_path / name, name, likelihood, encoder, decoder)

    return write


def _write_bundle(folder, name, likelihood, encoder, decoder):
    arrays = {"x": noise.normal(1, 0, 2, (3,))}
    given = {"encoder": {"x": arrays["x"]}, "decoder": {"z": noise.normal(0, 0, 2, (3,))}}
    outputs = {"encoder": ("mu", "logvar", "std"), "decoder": ("x", "logits") if likelihood.logits else ("x",)}
    variants = {}
    for component, content in (("encoder", encoder), ("decoder", decoder)):
        answers = Session(content, component, resolve_device("cpu")).run(outputs[component], given[component])
        for source in ("pytorch", "fp32"):
            arrays |= {f"{component}/{source}/{o}": a for o, a in zip(outputs[component], answers, strict=True)}
        variant = Variant(
            component=component,
            name="fp32",
            folder=f"{component}/fp32",
            file="model.onnx",
            executor="ort",
            precision="float32",
            tolerance=dict.fromkeys(outputs[component], 1e-5),
            error=dict.fromkeys(outputs[component], 0.0),
            ep="CPUExecutionProvider",
            device="cpu",
        )
        variants[component] = {"fp32": variant}
    golden = io.BytesIO()
    np.savez(golden, **arrays)
    manifest = Manifest(
        package_name=name,
        name=name,
        observation=Observation("x", (3,), ("feature",)),
        latents=(Latent("z", (3,)),),
        likelihood=likelihood,
        golden=Golden("golden.npz", 0, 2),
        **variants,
    )
    files = {
        "manifest.json": dump(manifest).encode(),
        "golden.npz": golden.getvalue(),
        "encoder/fp32/model.onnx": encoder,
        "decoder/fp32/model.onnx": decoder,
    }
    for relative, content in files.items():
        (folder / relative).parent.mkdir(parents=True, exist_ok=True)
        (folder / relative).write_bytes(content)
    (folder / SUMS).write_bytes(format_sums(files.items()))
    return folder
