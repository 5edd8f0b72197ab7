"""Real parts for the runtime's tests: the bundles that ship, and small ones whose answers are known by heart."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import vae_runtime
from vae_runtime import noise
from vae_runtime.devices import resolve_device
from vae_runtime.document import dump
from vae_runtime.manifest import (
    Condition,
    Golden,
    Latent,
    LatentPosterior,
    LatentPrior,
    Likelihood,
    Manifest,
    Observation,
    Signature,
    Variant,
)
from vae_runtime.places import SUMS, format_sums
from vae_runtime.protobuf import bytes_field, integer_field
from vae_runtime.session import RowSession, Session


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
                out += integer_field(number, value)
            else:
                out += bytes_field(number, value.encode() if isinstance(value, str) else value)
        return out

    def value(self, name, sizes, element=1):
        """ValueInfoProto: an input or output; a size may be a name, `element` 1 is float32, 7 int64, 11 float64."""
        dimensions = [self.field(2 if isinstance(size, str) else 1, size) for size in sizes]
        shape = self.field(2, self.field(1, *dimensions))
        return self.field(1, name) + self.field(2, self.field(1, self.field(1, element) + shape))

    def node(self, operator, inputs, outputs, **attributes):
        """NodeProto; its attributes are integers."""
        ints = [self.field(1, name) + self.field(3, value) + self.field(20, 2) for name, value in attributes.items()]
        return self.field(1, *inputs) + self.field(2, *outputs) + self.field(4, operator) + self.field(5, *ints)

    def tensor(self, name, values, element=1):
        values = np.asarray(values, {1: "<f4", 7: "<i8"}[element])
        numbers = self.field(8, name) + self.field(9, values.tobytes())
        return self.field(1, *values.shape) + self.field(2, element) + numbers

    def external_tensor(self, name, shape, **entries):
        """A tensor whose numbers are in another file: `location`, `offset`, `length`."""
        pairs = [self.field(1, key) + self.field(2, value) for key, value in entries.items()]
        return self.field(1, *shape) + self.field(2, 1) + self.field(8, name) + self.field(13, *pairs) + b"\x70\x01"

    def model(self, nodes, inputs, outputs, tensors=()):
        graph = self.field(1, *nodes) + self.field(2, "graph") + self.field(5, *tensors)
        graph += self.field(11, *inputs) + self.field(12, *outputs)
        return self.field(1, 8) + self.field(7, graph) + self.field(8, self.field(2, 18))


@pytest.fixture(scope="session")
def external_data():
    """Skip a test where ONNX Runtime takes no weights from beside a graph."""
    import onnxruntime

    if not hasattr(onnxruntime.SessionOptions, "add_external_initializers_from_files_in_memory"):
        pytest.skip("this ONNX Runtime takes no external data from memory")


@pytest.fixture(scope="session")
def onnx_bytes():
    return Onnx()


@pytest.fixture
def small_bundle(onnx_bytes, write_bundle):
    """Write a bundle known by heart, float32 [3] both ways: mu = x, logvar = -x, std = exp(-x / 2); x = z.

    Under a bernoulli likelihood the logits are z, and x is their sigmoid. The graphs of `batch_of_one` take one row.
    """

    def write(kind="gaussian", scale=0.5, name="small", batch_of_one=()):
        o = onnx_bytes
        likelihood = Likelihood(kind, "x", "logits") if kind == "bernoulli" else Likelihood(kind, "x", scale=scale)
        rows = [1 if "encoder" in batch_of_one else "batch", 3]
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
        rows = [1 if "decoder" in batch_of_one else "batch", 3]
        decoder = o.model(nodes, [o.value("z", rows)], [o.value(output, rows) for output in outputs])
        signature = Signature(
            observation=Observation("x", (3,), ("feature",)),
            latents=(Latent("z", (3,)),),
            likelihood=likelihood,
            batch_of_one=batch_of_one,
        )
        return write_bundle(name, signature, encoder, decoder, {"x": noise.normal(1, 0, 2, (3,))})

    return write


@pytest.fixture
def codes_bundle(onnx_bytes, write_bundle):
    """Write a bundle of codes under a class "zero", "one" or "two", the integer label.

    x float32 [3] in 0 … 4 has the codes int64 [3] floor(x) + label, of 8; and codes the x float32 [3] codes - label.
    """

    def write(name="codes", batch_of_one=()):
        o = onnx_bytes
        batch = 1 if batch_of_one else "batch"
        rows = [batch, 3]
        column = o.node("Unsqueeze", ["label", "axis"], ["column"])
        axis = o.tensor("axis", [1], 7)
        label = o.value("label", [batch], 7)
        encoder = o.model(
            [column, o.node("Cast", ["x"], ["floor"], to=7), o.node("Add", ["floor", "column"], ["codes"])],
            [o.value("x", rows), label],
            [o.value("codes", rows, 7)],
            [axis],
        )
        decoder = o.model(
            [column, o.node("Sub", ["z", "column"], ["floor"]), o.node("Cast", ["floor"], ["x"], to=1)],
            [o.value("z", rows, 7), label],
            [o.value("x", rows)],
            [axis],
        )
        posterior = LatentPosterior("codes", value="codes", codebook=8)
        signature = Signature(
            observation=Observation("x", (3,), ("feature",), (0.0, 4.0)),
            conditions=(Condition("label", (), "int64", ("zero", "one", "two")),),
            latents=(Latent("z", (3,), posterior, LatentPrior("none", reason="of codes"), "int64"),),
            likelihood=Likelihood("none", reason="not stated"),
            batch_of_one=batch_of_one,
        )
        arrays = {
            "x": np.array([[0.5, 1.5, 2.5], [3.5, 0.25, 4]], np.float32),
            "label": np.array([0, 2]),
            "z": np.array([[0, 1, 2], [7, 5, 3]]),
        }
        return write_bundle(name, signature, encoder, decoder, arrays)

    return write


@pytest.fixture
def levels_bundle(onnx_bytes, write_bundle):
    """Write a bundle of two levels, float32 [3] all, whose posteriors have the logvar 0 and std 1.

    mu_1 = x, and mu_2 = mu_1 + eps_1, the first level's sample; x = z_1 - z_2.
    """

    def write(name="levels"):
        o = onnx_bytes
        rows = ["batch", 3]
        encoder = o.model(
            [
                o.node("Identity", ["x"], ["mu_1"]),
                o.node("Add", ["x", "eps_1"], ["mu_2"]),
                *(o.node("Sub", ["x", "x"], [f"logvar_{level}"]) for level in (1, 2)),
                *(o.node("Exp", [f"logvar_{level}"], [f"std_{level}"]) for level in (1, 2)),
            ],
            [o.value("x", rows), o.value("eps_1", rows)],
            [o.value(f"{output}_{level}", rows) for level in (1, 2) for output in ("mu", "logvar", "std")],
        )
        decoder = o.model(
            [o.node("Sub", ["z_1", "z_2"], ["x"])], [o.value("z_1", rows), o.value("z_2", rows)], [o.value("x", rows)]
        )
        posteriors = (
            LatentPosterior("normal", "mu_1", "logvar_1", "std_1", noise="eps_1"),
            LatentPosterior("normal", "mu_2", "logvar_2", "std_2"),
        )
        signature = Signature(
            observation=Observation("x", (3,), ("feature",)),
            latents=tuple(Latent(f"z_{level}", (3,), posteriors[level - 1]) for level in (1, 2)),
            likelihood=Likelihood("gaussian", scale=0.5),
        )
        arrays = {"x": noise.normal(1, 0, 2, (3,)), "eps_1": noise.normal(2, 0, 2, (3,))}
        return write_bundle(name, signature, encoder, decoder, arrays)

    return write


@pytest.fixture
def weighted_bundle(onnx_bytes, write_bundle):
    """Write a bundle whose decoder's weights are in a file beside its graph: float32 [3], x = z · w with w = 2 · 1."""

    def write(name="weighted"):
        o = onnx_bytes
        rows = ["batch", 3]
        encoder = o.model([o.node("Identity", ["x"], ["value"])], [o.value("x", rows)], [o.value("value", rows)])
        decoder = o.model(
            [o.node("MatMul", ["z", "w"], ["x"])],
            [o.value("z", rows)],
            [o.value("x", rows)],
            [o.external_tensor("w", (3, 3), location="weights.bin", offset="0", length="36")],
        )
        signature = Signature(
            observation=Observation("x", (3,), ("feature",)),
            latents=(Latent("z", (3,), LatentPosterior("none", value="value")),),
            likelihood=Likelihood("gaussian", scale=1.0),
        )
        weights = {"decoder": (2 * np.eye(3, dtype=np.float32)).tobytes()}
        return write_bundle(name, signature, encoder, decoder, {"x": noise.normal(1, 0, 2, (3,))}, weights)

    return write


@pytest.fixture
def write_bundle(tmp_path):
    """Write a bundle of two graphs, whose golden answers are what they answer here.

    `arrays` holds the golden inputs that are stored, of two rows; `data` may hold, by component, the bytes of an
    encoder/fp32/weights.bin or decoder/fp32/weights.bin.
    """

    def write(name, signature, encoder, decoder, arrays, data=None):
        arrays, data = dict(arrays), dict(data or {})
        drawn = {
            latent.name: noise.normal(0, 0, 2, latent.shape, noise.stream_of(noise.PRIOR, number))
            for number, latent in enumerate(signature.latents)
            if latent.prior.kind == "normal"
        }
        variants, files = {}, {}
        for component, content in (("encoder", encoder), ("decoder", decoder)):
            weights = {"weights.bin": data[component]} if component in data else {}
            given = {tensor.name: (arrays | drawn)[tensor.name] for tensor in signature.inputs(component)}
            outputs = [tensor.name for tensor in signature.outputs(component)]
            session = (RowSession if component in signature.batch_of_one else Session)(
                content, component, resolve_device("cpu"), data=weights
            )
            answers = session.run(outputs, given)
            for source in ("pytorch", "fp32"):
                arrays |= {f"{component}/{source}/{o}": a for o, a in zip(outputs, answers, strict=True)}
            variant = Variant(
                component=component,
                name="fp32",
                folder=f"{component}/fp32",
                file="model.onnx",
                executor="ort",
                precision="float32",
                tolerance={
                    tensor.name: 0.0 if tensor.dtype == "int64" else 1e-5 for tensor in signature.outputs(component)
                },
                error=dict.fromkeys(outputs, 0.0),
                ep="CPUExecutionProvider",
                device="cpu",
                data=next(iter(weights), None),
            )
            variants[component] = {"fp32": variant}
            files[variant.path] = content
            files |= {f"{variant.folder}/{file}": part for file, part in weights.items()}
        golden = io.BytesIO()
        np.savez(golden, **arrays)
        manifest = Manifest(
            package_name=name,
            name=name,
            observation=signature.observation,
            conditions=signature.conditions,
            latents=signature.latents,
            likelihood=signature.likelihood,
            batch_of_one=signature.batch_of_one,
            golden=Golden("golden.npz", 0, 2),
            **variants,
        )
        files |= {"manifest.json": dump(manifest).encode(), "golden.npz": golden.getvalue()}
        folder = tmp_path / name
        for relative, content in files.items():
            (folder / relative).parent.mkdir(parents=True, exist_ok=True)
            (folder / relative).write_bytes(content)
        (folder / SUMS).write_bytes(format_sums(files.items()))
        return folder

    return write


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    """The paths of pairs of keys, private and public, by name."""
    ec = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ec", reason="cryptography is not installed")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    folder, pairs = tmp_path_factory.mktemp("keys"), {}
    pem, public = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    form = serialization.PrivateFormat.PKCS8
    for name, secret in {
        "mine": ec.generate_private_key(ec.SECP256R1()),
        "other": ec.generate_private_key(ec.SECP256R1()),
        "larger": ec.generate_private_key(ec.SECP384R1()),
        "rsa": rsa.generate_private_key(65537, 2048),
    }.items():
        pairs[name] = folder / f"{name}.pem", folder / f"{name}.pub.pem"
        pairs[name][0].write_bytes(secret.private_bytes(pem, form, serialization.NoEncryption()))
        pairs[name][1].write_bytes(secret.public_key().public_bytes(pem, public))
    return pairs


@pytest.fixture
def sign(keys):
    """Sign a bundle as the library model-signing itself does."""
    signing = pytest.importorskip("model_signing.signing", reason="the extra `sign` is not installed")

    def write(path, key="mine", hashing=None):
        config = signing.Config().use_elliptic_key_signer(private_key=keys[key][0])
        if hashing is not None:
            config.set_hashing_config(hashing)
        target = path.with_name(f"{path.name}.sig") if path.is_file() else path / "model.sig"
        config.sign(path, target)
        return target

    return write
