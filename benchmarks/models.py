"""The models that are compared, trained on real data, and the form in which each contender is handed them.

A model's folder, out/bench/NAME, holds the weights, the bundle that `vae_export.export` makes, the plain ONNX graphs of
`torch.onnx.export`, TorchScript, an exported program for each batch size, and PyTorch's own answers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vae_export import DataConfig, Exported, ModelConfig, TrainConfig, evaluate, export, reparameterize, train
from vae_export.training import checkpoint, objective
from vae_export.training.model import VAE
from vae_runtime.bundle import open_bundle
from vae_runtime.files import write_atomic

from .networks import Component, Pictures, Pure

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "models" / "mnist"
# A gaussian likelihood's standard deviation for values from 0 to 1.
SCALE = 0.1
# Nats that a variant of the models of pictures may lose of some 10,000. The exporter's default of 0.5 is for digits,
# whose observations have a fifteenth as many values and an ELBO a hundredth of that.
PICTURES_ELBO_LOSS = 20.0


@dataclass(frozen=True)
class Model:
    """One model of the comparison."""

    name: str
    title: str
    batches: tuple[int, ...]
    """Batch sizes of all work with one thread."""
    work: tuple[str, ...] = ("decode", "sample", "encode", "reconstruct")
    wide: tuple[int, ...] = (1, 8, 64, 512)
    """Batch sizes of decode with two threads."""


MODELS = {
    model.name: model
    for model in (
        Model("mlp", "MLP 16-256-512-784", (1, 8, 64, 512)),
        Model("mlp50", "MLP 50-256-512-784", (1, 8), ("sample",), ()),
        Model("digits", "MLP 8-64-128-64, as models/digits", (1, 8, 64, 512), wide=(1,)),
        Model("mnist", "convolutional, 28×28 (models/mnist)", (1, 8, 64, 512)),
        Model("transposed", "ConvTranspose ×4 to 3×64×64", (1, 8, 64, 512)),
        Model("nearest", "nearest-upsample + 3×3 convolution, ×4 to 3×64×64", (1, 8, 64, 512)),
        Model("kl", "AutoencoderKL (64, 128, 256), 3×128×128", (1,), wide=(1,)),
        Model("tiny", "MLP 8-64-128-64 on scikit-learn's digits", (1, 8), wide=(1,)),
    )
}
# What is trained by `vae_export.train`, in a folder of a run.
_TRAINED = ("mlp", "mlp50", "digits", "tiny")
# What `--models` takes by default; the tiny one is for trying the program.
COMPARED = tuple(name for name in MODELS if name != "tiny")


def crops(seed: int, n: int, *, test: bool) -> NDArray[np.float32]:
    """64×64 crops of scikit-learn's two photographs, float32 [n, 3, 64, 64] in [0, 1].

    Those to test on are of the right quarter of each photograph, of which those to train on see nothing.
    """
    from sklearn.datasets import load_sample_images

    photographs = load_sample_images().images
    random = np.random.Generator(np.random.PCG64(seed))
    out = np.empty((n, 64, 64, 3), np.uint8)
    for row in range(n):
        photograph = photographs[random.integers(len(photographs))]
        height, width, _ = photograph.shape
        border = width * 3 // 4
        left = random.integers(border, width - 63) if test else random.integers(border - 63)
        top = random.integers(height - 63)
        out[row] = photograph[top : top + 64, left : left + 64]
    return np.ascontiguousarray(out.transpose(0, 3, 1, 2), np.float32) / np.float32(255)


def build(name: str, folder: Path, mnist: str | None = None) -> dict[str, Any]:
    """Train a model if its folder has no finished one, export it, and give its description.

    Args:
        name: of MODELS.
        folder: out/bench/NAME.
        mnist: the folder with MNIST's IDX files; without it scikit-learn's digits stand in.

    Raises:
        VaeError: there are no such data, or a model cannot be exported.
    """
    described = folder / "description.json"
    asked = {"mnist": bool(mnist), "sources": _sources_digest(), "shipped": open_bundle(SHIPPED).digest}
    if described.is_file():
        found: dict[str, Any] = json.loads(described.read_text(encoding="utf-8"))
        if found["asked"] == asked:
            return found
    print(f"{folder}: training and exporting", file=sys.stderr, flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    with _quiet():
        pure, about, tests = _made(name, folder, mnist)
        description = _describe(name, folder, pure, about, tests)
    description["asked"] = asked
    write_atomic(described, json.dumps(description, indent=1).encode())
    return description


def load(name: str, folder: Path) -> Pure:
    """The trained model of a folder that `build` filled, for inference."""
    if name in _TRAINED:
        vae: nn.Module = checkpoint.load(folder / "run")[0]
    elif name == "mnist":
        vae = _shipped()
    else:
        vae = _untrained(name)
        vae.load_state_dict(load_file(folder / "weights.safetensors"))
    return Pure(vae).eval().requires_grad_(False)


def _untrained(name: str) -> nn.Module:
    if name != "kl":
        return Pictures(nearest=name == "nearest")
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blocks = ["DownEncoderBlock2D"] * 3, ["UpDecoderBlock2D"] * 3
        vae: nn.Module = AutoencoderKL(  # type: ignore[no-untyped-call, assignment]
            down_block_types=blocks[0], up_block_types=blocks[1], block_out_channels=(64, 128, 256), latent_channels=4,
            sample_size=128,
        )  # fmt: skip
        return vae


def _shipped() -> VAE:
    """The PyTorch module of models/mnist: its weights, which the bundle's graphs hold under PyTorch's names."""
    import onnx
    from onnx import numpy_helper

    bundle = open_bundle(SHIPPED)
    vae = VAE(ModelConfig.from_json(bundle.manifest.training["model"]))
    weights = {"log_scale": torch.tensor(math.log(vae.config.scale))}
    for component in ("encoder", "decoder"):
        graph = onnx.load_from_string(bundle.read(bundle.variant(component, "fp32").path)).graph
        for tensor in graph.initializer:
            if tensor.name.startswith("model."):
                weights[tensor.name.removeprefix("model.")] = torch.from_numpy(numpy_helper.to_array(tensor).copy())
    vae.load_state_dict(weights)
    return vae


def _export_arguments(name: str) -> dict[str, Any]:
    """Which variants to ask `export` for, and how much they may lose."""
    if name in ("mnist", "digits", "tiny"):
        return {}
    if name == "kl":
        return {"variants": ["fp32", "fp16"]}
    arguments: dict[str, Any] = {"variants": ["fp32", "fp16", "int8"]}
    if name in ("transposed", "nearest"):
        arguments["max_elbo_loss"] = PICTURES_ELBO_LOSS
    return arguments


def _variants(folder: Path) -> list[dict[str, Any]]:
    """What the bundle's manifest says of each variant that was measured against fp32."""
    manifest = json.loads((folder / "bundle" / "manifest.json").read_text(encoding="utf-8"))
    return [
        {"component": component, "variant": name, **about["additional_metadata"]["vae"]["quality"]}
        for component, parts in manifest["components"].items()
        for name, about in parts["variants"].items()
        if "quality" in about["additional_metadata"]["vae"]
    ]


def _made(name: str, folder: Path, mnist: str | None) -> tuple[Pure, dict[str, Any], NDArray[np.float32]]:
    """The trained model, what is to be said of it, and observations that it was not trained on."""
    arguments = _export_arguments(name)
    if name in _TRAINED:
        config = ModelConfig(latent=16 if name == "mlp" else 50, hidden=(512, 256))
        training, data = TrainConfig(epochs=5, binarise="stochastic", threads=2), DataConfig(mnist or "digits")
        if name in ("digits", "tiny"):
            config, training, data = ModelConfig(latent=8, hidden=(128, 64)), TrainConfig(epochs=20), DataConfig()
        elif not mnist:
            training = TrainConfig(epochs=100, threads=2)
        run = folder / "run"
        if not run.is_dir() or checkpoint.read_info(run).data.source != data.source:
            shutil.rmtree(run, ignore_errors=True)
        train(run, config, training, data, progress=False)
        figures = evaluate(run, importance_samples=1, limit=1000, progress=False)
        exported = export(run, folder / "bundle", formats=("onnx",), force=True, **arguments)
        tests = checkpoint.run_data(checkpoint.read_info(run), run=run).test.rows(slice(None))
        about = {"data": figures.data, "elbo": figures.elbo, "of": figures.protocol()}
        return load(name, folder), about | _refused(exported), tests
    if name == "mnist":
        if (folder / "bundle").exists():
            shutil.rmtree(folder / "bundle")
        shutil.copytree(SHIPPED, folder / "bundle")
        metrics = open_bundle(SHIPPED).manifest.metrics
        about = {"data": "mnist", "elbo": metrics.get("elbo"), "of": "its model card", "refused": []}
        return load(name, folder), about, _mnist_tests(mnist)
    if name == "kl":
        vae = _untrained(name).eval()
        save_file(vae.state_dict(), folder / "weights.safetensors")
        tests = np.repeat(np.repeat(crops(2, 8, test=True), 2, axis=2), 2, axis=3) * np.float32(2) - np.float32(1)
        exported = export(vae, folder / "bundle", example=tests[:2], formats=("onnx",), force=True, **arguments)
        about = {"data": "none: random weights", "elbo": None, "of": ""}
        return load(name, folder), about | _refused(exported), tests
    vae = _untrained(name)
    tests = crops(2, 512, test=True)
    weights = folder / "weights.safetensors"
    if not weights.is_file():
        _train_pictures(vae)
        save_file(vae.state_dict(), weights)
    pure = load(name, folder)
    elbo = _elbo(pure.vae, torch.from_numpy(tests), torch.Generator().manual_seed(0)).mean().item()
    exported = export(
        pure.vae, folder / "bundle", example=tests[:64], observations=tests, posterior="logvar",
        likelihood="gaussian", scale=SCALE, range=(0.0, 1.0), formats=("onnx",), force=True, **arguments,
    )  # fmt: skip
    of = f"512 test crops, gaussian likelihood of scale {SCALE}"
    return pure, {"data": "crops of two photographs", "elbo": elbo, "of": of} | _refused(exported), tests


def _refused(exported: Exported) -> dict[str, list[str]]:
    return {"refused": [str(each) for each in exported.refused]}


def _mnist_tests(mnist: str | None) -> NDArray[np.float32]:
    from vae_export.training.data.dataset import load

    if mnist:
        return load(DataConfig(mnist)).test.rows(slice(None))
    # The digits that come with scikit-learn, from 8×8 to 24×24, in the middle of 28×28.
    small = load(DataConfig("digits", test_fraction=0.5)).test.rows(slice(None))
    return np.pad(np.repeat(np.repeat(small, 3, axis=2), 3, axis=3), ((0, 0), (0, 0), (2, 2), (2, 2)))


def _elbo(vae: Any, x: Tensor, random: torch.Generator) -> Tensor:
    mu, logvar = vae.encode(x)
    eps = torch.randn(mu.shape, generator=random)
    decoded = vae.decode(reparameterize(mu, logvar, eps))
    return objective.elbo(x, decoded, mu, logvar, "gaussian", SCALE).elbo


def _train_pictures(vae: Any, steps: int = 400, batch: int = 32) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for layer in vae.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                layer.reset_parameters()
    random = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(vae.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    data = torch.from_numpy(crops(1, 4096, test=False))
    for _ in range(steps):
        x = data[torch.randint(len(data), (batch,), generator=random)]
        loss = -_elbo(vae, x, random).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def _describe(name: str, folder: Path, pure: Pure, about: dict[str, Any], tests: NDArray[np.float32]) -> dict[str, Any]:
    """Write what the contenders are handed, and PyTorch's answers; and give what the report says of the model."""
    from torch.utils.flop_counter import FlopCounterMode

    largest = max(MODELS[name].batches)
    x = torch.from_numpy(np.resize(tests, (largest, *tests.shape[1:])))
    with torch.inference_mode():
        mu, logvar = pure.encode(x)
        z = torch.from_numpy(np.random.Generator(np.random.PCG64(3)).standard_normal(mu.shape, np.float32))
        arrays = {"x": x, "z": z, "mu": mu, "logvar": logvar, "decoded": pure.decode(z), "back": pure.decode(mu)}
    buffers = {key: value.numpy() for key, value in arrays.items()}
    write_atomic(folder / "reference.npz", lambda file: np.savez(file, **buffers))  # type: ignore[arg-type]
    write_atomic(folder / "module.pt", lambda file: torch.save(pure, file))
    operations = {}
    for work, run, value in (("encode", pure.encode, x), ("decode", pure.decode, z)):
        with FlopCounterMode(display=False) as counter:
            run(value[:1].clone())
        operations[work] = counter.get_total_flops()
    for component, value in (("encoder", x), ("decoder", z)):
        _write_graphs(folder, Component(pure, component).eval(), component, value, MODELS[name].batches)
    return {
        **asdict(MODELS[name]),
        **about,
        "latent_shape": list(z.shape[1:]),
        "observation_shape": list(x.shape[1:]),
        "weights": _weights_digest(pure),
        "variants": _variants(folder),
        "parameters": sum(parameter.numel() for parameter in pure.parameters()),
        "encoder_bytes": (folder / "encoder.onnx").stat().st_size,
        "encode_flops": operations["encode"],
        "decoder_bytes": (folder / "decoder.onnx").stat().st_size,
        "decode_flops": operations["decode"],
    }


def _write_graphs(folder: Path, module: Component, component: str, value: Tensor, batches: Sequence[int]) -> None:
    names = ["mu", "logvar"] if component == "encoder" else ["x_mean"]
    torch.onnx.export(
        module, (value[:2],), folder / f"{component}.onnx", input_names=["value"], output_names=names,
        dynamic_shapes=({0: "batch"},), external_data=False, verbose=False,
    )  # fmt: skip
    with torch.no_grad():
        traced = torch.jit.trace(module, value[:2], check_trace=False)
    torch.jit.save(torch.jit.freeze(traced), str(folder / f"{component}.torchscript"))
    for batch in batches:
        exported = torch.export.export(module, (value[:batch].clone(),))
        torch.export.save(exported, folder / f"{component}-{batch}.pt2")


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what exporters warn of about themselves."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _weights_digest(pure: Pure) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(pure.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def _sources_digest() -> str:
    """Return the digest of this file and the exporter's: models that other sources made are made again."""
    digest = hashlib.sha256()
    for path in (Path(__file__), *sorted((ROOT / "vae_export").glob("*.py"))):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def write_limits(folder: Path) -> None:
    """Graphs that multiply two square matrices, for the rates of ONNX Runtime's products in 32 and in 8 bits."""
    from onnx import TensorProto, helper

    folder.mkdir(parents=True, exist_ok=True)
    for file, operator, types in (
        ("matmul.onnx", "MatMul", (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.FLOAT)),
        # Unsigned by signed: the form of activations and weights for which processors have an instruction.
        ("matmul-int8.onnx", "MatMulInteger", (TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32)),
    ):
        names = ("a", "b", "product")
        a, b, product = (
            helper.make_tensor_value_info(name, kind, ["n", "n"]) for name, kind in zip(names, types, strict=True)
        )
        graph = helper.make_graph([helper.make_node(operator, ["a", "b"], ["product"])], "limits", [a, b], [product])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        write_atomic(folder / file, model.SerializeToString())
