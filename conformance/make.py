"""Make the bundles and cases.json again: `python -m conformance.make`; needs vae-export. README.md describes both."""

from __future__ import annotations

import base64
import contextlib
import copy
import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import vae_runtime
from vae_export import export
from vae_runtime import noise

from .__main__ import altered
from .driver import answer, packed

HERE = Path(__file__).parent
BUNDLES = HERE / "bundles"
MODELS = HERE.parent / "models"


class Plain(nn.Module):
    """An encoder and a decoder of one layer each, over 6 numbers and 3 latents."""

    def __init__(self) -> None:
        super().__init__()
        self.mu, self.logvar, self.out = nn.Linear(6, 3), nn.Linear(6, 3), nn.Linear(3, 6)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.mu(x), self.logvar(x)

    def decode(self, z: Tensor) -> Tensor:
        return torch.tanh(self.out(z))


class Two(nn.Module):
    """Two latents of 2 and of 3 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 4), nn.Linear(6, 6)
        self.out = nn.Linear(5, 6)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return (*self.a(x).chunk(2, 1), *self.b(x).chunk(2, 1))

    def decode(self, low: Tensor, high: Tensor) -> Tensor:
        return torch.tanh(self.out(torch.cat([low, high], 1)))


class Codes(nn.Module):
    """4 codes out of 8, each the nearest of the codebook to a pair of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.codebook, self.out = nn.Embedding(8, 2), nn.Linear(8, 8)

    def encode(self, x: Tensor) -> Tensor:
        pairs = x.reshape(-1, 4, 1, 2)
        return (pairs - self.codebook.weight).square().sum(-1).argmin(-1)

    def decode(self, codes: Tensor) -> Tensor:
        return torch.tanh(self.out(self.codebook(codes).flatten(1)))


class Sound(nn.Module):
    """A convolution over any length."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv1d(1, 4, 4, 2, 1), nn.ConvTranspose1d(2, 1, 4, 2, 1)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.down(x).chunk(2, 1)
        return mean, logvar

    def decode(self, z: Tensor) -> Tensor:
        return torch.tanh(self.up(z))


class Causal(nn.Module):
    """A sound of one of two speakers: a convolution that is padded on the left, and an upsampling by 4."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.first = nn.Conv1d(1, 4, 4, 4), nn.Conv1d(2, 4, 3)
        self.speaker, self.up = nn.Embedding(2, 4), nn.ConvTranspose1d(4, 1, 8, 4)

    def encode(self, x: Tensor, speaker: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = (self.down(x) + self.speaker(speaker)[:, :, None]).chunk(2, 1)
        return mean, logvar

    def decode(self, z: Tensor, speaker: Tensor) -> Tensor:
        x = self.first(nn.functional.pad(z, (2, 0))) + self.speaker(speaker)[:, :, None]
        return torch.tanh(self.up(nn.functional.elu(x))[..., :-4])


class CausalCodes(nn.Module):
    """A sound of codes of 4 numbers: each the nearest of the codebook, and a convolution that is padded on the left."""

    def __init__(self) -> None:
        super().__init__()
        self.codebook, self.out = nn.Embedding(8, 4), nn.Conv1d(4, 4, 3)

    def encode(self, x: Tensor) -> Tensor:
        parts = x.reshape(len(x), 1, -1, 1, 4)
        return (parts - self.codebook.weight).square().sum(-1).argmin(-1)

    def decode(self, codes: Tensor) -> Tensor:
        z = self.codebook(codes[:, 0]).transpose(1, 2)
        x = torch.tanh(self.out(nn.functional.pad(z, (2, 0))))
        return x.transpose(1, 2).reshape(len(x), 1, -1)


class Classes(nn.Module):
    """5 numbers of 7 classes; the decoder has the classes along axis 1."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mu, self.logvar = nn.Embedding(7, 4), nn.Linear(20, 3), nn.Linear(20, 3)
        self.out = nn.Linear(3, 35)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.table(x).flatten(1)
        return self.mu(h), self.logvar(h)

    def decode(self, z: Tensor) -> Tensor:
        logits: Tensor = 4 * self.out(z)
        return logits.reshape(-1, 7, 5)


class Drawing(nn.Module):
    """The second latent's posterior is that of a sample of the first one, and the decoder adds noise of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 4), nn.Linear(2, 6)
        self.head, self.out = nn.Linear(5, 8), nn.Linear(8, 6)

    def encode(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        mu, logvar = self.first(x).chunk(2, 1)
        z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
        return (mu, logvar), self.second(z).chunk(2, 1)

    def decode(self, low: Tensor, high: Tensor) -> Tensor:
        h = torch.tanh(self.head(torch.cat([low, high], 1)))
        x: Tensor = self.out(h + 0.1 * torch.randn_like(h))
        return x

    def forward(self, x: Tensor) -> Tensor:
        mu, logvar = self.first(x).chunk(2, 1)
        low = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
        above, spread = self.second(low).chunk(2, 1)
        return self.decode(low, above + torch.exp(0.5 * spread) * torch.randn_like(above))


def make_bundles() -> None:
    """Write every bundle anew."""
    shutil.rmtree(BUNDLES, ignore_errors=True)
    BUNDLES.mkdir()
    digits = ["encoder/fp32", "decoder/fp32", "decoder/fp16", "decoder/int8"]
    vae_runtime.pack(MODELS / "digits", BUNDLES / "digits", only=digits)
    vae_runtime.pack(MODELS / "digits-conditional", BUNDLES / "conditional", only=["encoder/fp32", "decoder/fp32"])
    x = torch.from_numpy(noise.normal(1, 0, 256, (8,)))
    common: dict[str, Any] = {"formats": ("onnx",), "license": "CC0-1.0"}

    def write(name: str, model: nn.Module, example: Tensor, **arguments: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            export(model.eval(), f"{folder}/{name}", example=example[:16], name=name, **arguments, **common)
            only = [f"{component}/fp32" for component in ("encoder", "decoder")]
            vae_runtime.pack(f"{folder}/{name}", BUNDLES / name, only=only)

    torch.manual_seed(0)
    write("plain", Plain(), x[:, :6], likelihood="gaussian", scale=0.5, posterior="logvar", prior="normal")
    write("two-latents", Two(), x[:, :6], likelihood="gaussian", posterior="logvar", prior="normal")
    write("codes", Codes(), x, posterior="codes", codebook=8)
    write("mixture", Plain(), x[:, :6], posterior="logvar", prior="mixture:3", observations=x[:, :6])
    write("sphere", Plain(), x[:, :6], posterior="logvar", prior="sphere")
    write("dynamic", Sound(), x[:, None], posterior="logvar", axes=("channel", "time"), dynamic=("time",))
    timed: dict[str, Any] = {"axes": ("channel", "time"), "dynamic": ("time",), "posterior": "logvar"}
    sound, speakers = noise.normal(2, 0, 16, (1, 32)), torch.arange(16) % 2
    write("stream", Causal(), torch.from_numpy(sound), conditions={"speaker": speakers}, **timed)
    timed["posterior"] = "codes"
    write("stream-codes", CausalCodes(), torch.from_numpy(sound), codebook=8, **timed)
    torch.manual_seed(1)
    write("drawing", Drawing(), x[:, :6], posterior="logvar", prior="normal")
    torch.manual_seed(2)
    levels = torch.from_numpy(np.rint(255 * noise.uniform(3, 0, 16, (6,))).astype(np.float32)) / 255
    write("logistic", Plain(), levels, likelihood="logistic", scale=0.05, posterior="logvar", prior="normal")
    classes = torch.from_numpy(noise.words(3, 0, 16, (5,)).astype(np.int64) % 7)
    write("categorical", Classes(), classes, likelihood="categorical", posterior="logvar", prior="normal")
    vae_runtime.pack(BUNDLES / "plain", BUNDLES / "plain.zip")


def cases() -> Iterator[dict[str, Any]]:
    """Every case."""
    yield from _noise_cases()
    yield from _latent_cases()
    yield from _mixture_cases()
    yield from _graph_cases()
    yield from _drawing_cases()
    yield from _stream_cases()
    for bundle in sorted(path.name for path in BUNDLES.iterdir()):
        yield _expected(f"verify/{bundle}", {"ask": "verify", "bundle": bundle})
        yield _expected(f"load/{bundle}", {"ask": "load", "bundle": bundle})
    held_out = {"manifest": [[[*_VAE, "scores"], _SCORES]]}
    yield _expected("load/held-out scores", {"ask": "load", "bundle": "plain"}, edit=held_out)
    yield from _refusals()
    yield from _swapped()


def _expected(
    name: str, request: dict[str, Any], tolerance: dict[str, float] | None = None, edit: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A case whose answer is the one of this package."""
    with tempfile.TemporaryDirectory() as folder:
        path = BUNDLES / request.get("bundle", "")
        given = answer({**request, "path": str(altered(path, edit, Path(folder) / "bundle") if edit else path)})
    given.pop("why", None)
    case = {"id": name, "request": request, "expect": given}
    case |= {"edit": edit} if edit else {}
    return {**case, "tolerance": tolerance} if tolerance else case


def _noise_cases() -> Iterator[dict[str, Any]]:
    draws = [
        (0, 0, 2, [5], 0), (7, 0, 3, [16], 0), (7, 2, 1, [16], 0), (-1, 5, 2, [3], 1), (2**63, 2**32 - 1, 3, [2, 3], 2),
        (2**64 - 1, 2**64 - 2, 4, [4], 3), (123456789012345678, 2**40, 1, [1], 256 * 3 + 1), (5, 0, 65, [1, 8, 8], 4),
    ]  # fmt: skip
    for ask in ("words", "uniform", "normal"):
        for seed, start, n, shape, stream in draws:
            request = {"ask": ask, "seed": str(seed), "start": str(start), "n": n, "shape": shape, "stream": stream}
            if ask != "normal":
                yield _expected(f"{ask}/seed {seed}, start {start}, stream {stream}", request)
                continue
            for truncation in (None, 0.01, 1.0, 2.5, 7.0):
                name = f"normal/seed {seed}, start {start}, stream {stream}, truncation {truncation}"
                yield _expected(name, {**request, "truncation": truncation})


def _latent_cases() -> Iterator[dict[str, Any]]:
    draws = [(1, "0", "0", 1.0, None), (3, "-7", "18446744073709551614", 0.7, None), (130, "42", "9", 1.3, 1.5)]
    for bundle in ("digits", "plain.zip", "two-latents", "mixture", "sphere", "dynamic", "codes", "drawing"):
        for n, seed, start, temperature, truncation in draws:
            if bundle == "sphere":
                temperature, truncation = 1.0, None
            request: dict[str, Any] = {
                "ask": "prior", "bundle": bundle, "n": n, "seed": seed, "start": start, "temperature": temperature,
                "truncation": truncation,
            }  # fmt: skip
            yield _expected(f"prior/{bundle}/n {n}, temperature {temperature}, truncation {truncation}", request)
    for latent in (0, 2):
        for temperature in (1.0, 0.3):
            mean = noise.normal(11, 0, 3, (2, 3), 77)
            std = np.exp(noise.normal(12, 0, 3, (2, 3), 77)).astype(np.float32)
            request = {
                "ask": "reparameterize", "mean": packed(mean), "std": packed(std), "seed": "99", "start": "4",
                "temperature": temperature, "latent": latent,
            }  # fmt: skip
            yield _expected(f"reparameterize/latent {latent}, temperature {temperature}", request)


def _mixture_cases() -> Iterator[dict[str, Any]]:
    """A mixture as the prior of the second of two latents, and one whose file is missing."""
    places = {"weights": (2,), "means": (2, 3), "factors": (2, 3, 3)}
    draws = {f"z2/{key}": noise.normal(8, 0, 1, shape)[0].astype(np.float64) for key, shape in places.items()}
    content = io.BytesIO()
    np.savez(content, **{**draws, "z2/weights": np.array([0.25, 0.75])})
    prior = {"kind": "mixture", "file": "prior.npz", "components": 2, "covariance": "full"}
    edit: dict[str, Any] = {"manifest": [[[*_VAE, "latents", 1, "prior"], prior]]}
    files = {"prior.npz": {"base64": base64.b64encode(content.getvalue()).decode()}}
    for n, seed, start, truncation in ((2, "0", "0", None), (70, "-5", "3", 1.5)):
        request = {
            "ask": "prior", "bundle": "two-latents", "n": n, "seed": seed, "start": start, "temperature": 1.0,
            "truncation": truncation,
        }  # fmt: skip
        name = f"prior/two-latents, a mixture of the second, n {n}, truncation {truncation}"
        yield _expected(name, request, edit={**edit, "files": files})
    yield _refused("a mixture whose file is missing", "bundle", {"ask": "load", "bundle": "two-latents"}, **edit)


def _graph_cases() -> Iterator[dict[str, Any]]:
    """Decode and encode, with the tolerances that the manifest gives."""
    variants = [
        ("digits", "fp32"), ("digits", "fp16"), ("digits", "int8"), ("conditional", "fp32"), ("plain.zip", "fp32"),
        ("two-latents", "fp32"), ("codes", "fp32"), ("mixture", "fp32"), ("sphere", "fp32"), ("dynamic", "fp32"),
        ("logistic", "fp32"), ("categorical", "fp32"),
    ]  # fmt: skip
    for bundle, variant in variants:
        vae = vae_runtime.load(BUNDLES / bundle, variant=variant)
        sizes = [{}] if bundle != "dynamic" else [{}, {"time": 12}]
        for size in sizes:
            for n in (1, 3):
                yield from _graph_case(vae, bundle, variant, size, n)


def _graph_case(
    vae: vae_runtime.VAE, bundle: str, variant: str, size: dict[str, int], n: int
) -> Iterator[dict[str, Any]]:
    manifest = vae.manifest
    latents = {}
    for number, latent in enumerate(vae.latents):
        shape = tuple(
            size.get(axis, old) // (2 if axis in size else 1)
            for axis, old in zip(latent.axes, latent.shape, strict=True)
        )
        drawn = noise.normal(3, 0, n, shape, 1000 + number)
        latents[latent.name] = packed(
            (noise.words(3, 0, n, shape) % 8).astype(np.int64) if latent.dtype == "int64" else drawn
        )
    label: dict[str, Any] = {}
    if vae.conditions:
        (condition,) = vae.conditions
        assert condition.classes
        label = {condition.name: condition.classes[7] if n == 1 else packed(np.arange(n))}
    name = f"{bundle}/{variant}, n {n}" + "".join(f", {axis} {value}" for axis, value in size.items())
    tolerances = {(each.component, each.name): each.tolerance for each in manifest.variants}
    request: dict[str, Any] = {"ask": "decode", "bundle": bundle, "variant": variant, "conditions": label}
    decode = tolerances["decoder", variant]
    yield _expected(f"decode/{name}", {**request, "latents": latents}, {"values": decode[manifest.likelihood.mean]})
    if ("encoder", variant) not in tolerances:
        return
    shape = tuple(
        size.get(axis, old) for axis, old in zip(manifest.observation.axes, vae.observation_shape, strict=True)
    )
    x: NDArray[Any] = noise.uniform(4, 0, n, shape, 1000)
    if manifest.observation.dtype == "int64":
        assert manifest.observation.range
        x = (noise.words(4, 0, n, shape, 1000) % int(manifest.observation.range[1] + 1)).astype(np.int64)
    encode = tolerances["encoder", variant]
    named: dict[str, float] = {}
    for latent in vae.latents:
        posterior = latent.posterior
        outputs = {"mean": posterior.mu, "std": posterior.std, "logvar": posterior.logvar, "values": posterior.value}
        prefix = f"{latent.name}/" if len(vae.latents) > 1 else ""
        named |= {f"{prefix}{key}": encode[output] for key, output in outputs.items() if output}
    yield _expected(f"encode/{name}", {**request, "ask": "encode", "x": packed(x)}, named)


def _drawing_cases() -> Iterator[dict[str, Any]]:
    """Noise that the encoder takes for samples of a latent, and that the decoder takes: zeros, or drawn from a seed."""
    vae = vae_runtime.load(BUNDLES / "drawing")
    (decoder,), (encoder,) = (variants.values() for variants in (vae.manifest.decoder, vae.manifest.encoder))
    common: dict[str, Any] = {"bundle": "drawing", "variant": "fp32", "conditions": {}}
    names = {"mean": "mu", "std": "std", "logvar": "logvar"}
    tolerances = {f"{z}/{key}": encoder.tolerance[f"{name}_{z}"] for z in ("z1", "z2") for key, name in names.items()}
    mean = {"values": decoder.tolerance["x"]}
    for n in (1, 3):
        latents = {z.name: packed(noise.normal(3, 0, n, z.shape, 1000 + i)) for i, z in enumerate(vae.latents)}
        inferred = {name: latents[name] for name in ("z1", "z2")}
        x = packed(noise.normal(4, 0, n, vae.observation_shape, 1000))
        decode, encode = {**common, "ask": "decode", "latents": inferred}, {**common, "ask": "encode", "x": x}
        yield _expected(f"decode/drawing, n {n}, its noise given", {**decode, "latents": latents}, mean)
        for seed in ({}, {"seed": "7", "start": "0"}, {"seed": "-1", "start": str(2**33)}):
            name = f"drawing, n {n}, " + (f"seed {seed['seed']}" if seed else "no seed")
            yield _expected(f"decode/{name}", {**decode, **seed}, mean)
            yield _expected(f"encode/{name}", {**encode, **seed}, tolerances)
    yield _refused("a latent that is no noise is missing", "input", {**decode, "latents": {"z1": latents["z1"]}})


def _stream_cases() -> Iterator[dict[str, Any]]:
    """Decode in chunks, and what must be refused of it."""
    variant = vae_runtime.load(BUNDLES / "stream").manifest.decoder["fp32"]
    request: dict[str, Any] = {"ask": "decode_stream", "bundle": "stream", "variant": "fp32"}
    # The last chunk is longer than any that the export has tried.
    for n, chunks in ((1, [8]), (1, [1] * 8), (3, [1, 2, 5]), (2, [3, 1, 40])):
        z, speaker = noise.normal(5, 0, n, (2, sum(chunks)), 1000), np.arange(n) % 2
        given = {"latents": {"z": packed(z)}, "conditions": {"speaker": packed(speaker)}, "chunks": chunks}
        tolerances = {str(number): variant.tolerance["x"] for number in range(len(chunks))}
        yield _expected(f"decode_stream/n {n}, chunks {chunks}", {**request, **given}, tolerances)
    coded = {**request, "bundle": "stream-codes", "conditions": {}}
    for n, chunks in ((1, [8]), (2, [1, 2, 5]), (3, [2, 1, 40])):
        codes = noise.words(5, 0, n, (1, sum(chunks)), 1000).astype(np.int64) % 8
        tolerances = {str(number): variant.tolerance["x"] for number in range(len(chunks))}
        given = {"latents": {"z": packed(codes)}, "chunks": chunks}
        yield _expected(f"decode_stream/codes, n {n}, chunks {chunks}", {**coded, **given}, tolerances)
    beyond = {"latents": {"z": packed(np.full((1, 1, 2), 8))}, "chunks": [2]}
    yield _refused("a stream of codes beyond the codebook", "input", {**coded, **beyond})
    yield _refused(
        "a stream of codes as floats",
        "input",
        {**coded, "latents": {"z": packed(np.zeros((1, 1, 2), np.float32))}, "chunks": [2]},
    )
    one = {"latents": {"z": packed(np.zeros((1, 2, 4), np.float32))}, "chunks": [1, 3]}
    yield _refused("a stream without its condition", "input", {**request, **one, "conditions": {}})
    dynamic = {"bundle": "dynamic", "variant": "fp32", "conditions": {}}
    yield _refused("a stream of a decoder that is not causal", "input", {**request, **one, **dynamic})


_VAE = ["additional_metadata", "vae"]
_DECODER = ["components", "decoder", "variants", "fp32"]
_SCORES: dict[str, Any] = {
    **{"kind": "log_likelihood", "k": 8, "seed": 0, "n": 3, "data": "others", "encoder": "fp32", "decoder": "fp32"},
    **{"shares": [0.5, 1], "values": [-2, -1]},
}
_KIND, _RANGE = [*_VAE, "likelihood", "kind"], [*_VAE, "observation", "range"]
_ANSWER = [*_VAE, "likelihood", "shape"]
# What is wrong with the bundle of classes, or of levels, and the edit that makes it so.
_MISVALUED: dict[str, tuple[str, list[Any]]] = {
    "levels without a range": ("logistic", [[_RANGE, None]]),
    "levels without a scale": ("logistic", [[[*_VAE, "likelihood", "scale"], None]]),
    "classes of another number": ("categorical", [[_ANSWER, [5, 8]]]),
    "classes along the first axis": ("categorical", [[_ANSWER, [7, 5]]]),
    "classes without an axis": ("categorical", [[_ANSWER, [5]]]),
    "classes along an axis of another name": ("categorical", [[[*_VAE, "likelihood", "axes"], ["class", "feature"]]]),
    "classes beyond the range": ("categorical", [[_RANGE, [0, 5]]]),
    "classes without a range": ("categorical", [[_RANGE, None]]),
    "classes that are another kind": ("categorical", [[_KIND, "poisson"]]),
}
# What is wrong with a bundle, and the edit that makes it so.
_FORGED: dict[str, dict[str, Any]] = {
    "another noise": {"manifest": [[[*_VAE, "noise"], "vnoise-2"]]},
    "a newer format": {"manifest": [[[*_VAE, "format_version"], "3.0"]]},
    "an older format": {"manifest": [[[*_VAE, "format_version"], "1.0"]]},
    "an unknown likelihood": {"manifest": [[[*_VAE, "likelihood", "kind"], "cauchy"]]},
    "an unknown prior": {"manifest": [[[*_VAE, "latents", 0, "prior", "kind"], "flow"]]},
    "an unknown posterior": {"manifest": [[[*_VAE, "latents", 0, "posterior", "kind"], "laplace"]]},
    "held-out scores that fall": {"manifest": [[[*_VAE, "scores"], {**_SCORES, "values": [-1, -2]}]]},
    "shares of held-out scores that fall": {"manifest": [[[*_VAE, "scores"], {**_SCORES, "shares": [0.5, 0.25]}]]},
    "held-out scores without a share": {"manifest": [[[*_VAE, "scores"], {**_SCORES, "values": [-2]}]]},
    "an unknown score": {"manifest": [[[*_VAE, "scores"], {**_SCORES, "kind": "fid"}]]},
    "no latents": {"manifest": [[[*_VAE, "latents"], []]]},
    "a latent of no numbers": {"manifest": [[[*_VAE, "latents", 0, "shape"], [0]]]},
    "a latent of another shape": {"manifest": [[[*_VAE, "latents", 0, "shape"], [4]]]},
    "a graph outside of the bundle": {"manifest": [[[*_DECODER, "variant_directory"], "../plain/decoder/fp32"]]},
    "an absolute path": {"manifest": [[[*_DECODER, "variant_directory"], "/etc"]]},
    "a graph that is not there": {"manifest": [[[*_DECODER, "variant_directory"], "decoder/fp64"]]},
    "a manifest that is no JSON": {"files": {"manifest.json": "{"}},
    "a manifest that is a list": {"files": {"manifest.json": "[]"}},
    "not a number in the manifest": {"files": {"manifest.json": '{"schema_version": NaN}'}},
    "a key twice": {"files": {"manifest.json": '{"schema_version": "1.0", "schema_version": "1.0"}'}},
    "a prototype in the manifest": {"files": {"manifest.json": '{"__proto__": {"schema_version": "1.0"}}'}},
    "lists in lists without end": {"files": {"manifest.json": {"repeat": "[", "times": 100000}}},
    "no manifest": {"files": {"manifest.json": None}},
    "no sums": {"files": {"SHA256SUMS": None}, "sums": False},
    "sums that are no text": {"files": {"SHA256SUMS": "\u0000\n"}, "sums": False},
    "a listed path that leads out": {"files": {"SHA256SUMS": f"{'0' * 64}  ../x\n"}, "sums": False},
    "a graph that was altered": {"files": {"decoder/fp32/model.onnx": "altered"}, "sums": False},
    "a graph that is cut": {"files": {"decoder/fp32/model.onnx": "\u0008\u0008"}},
    "a graph that is empty": {"files": {"decoder/fp32/model.onnx": ""}},
    "no decoder file": {"files": {"decoder/fp32/model.onnx": None}},
}  # fmt: skip
_WRONG_LATENTS: dict[str, NDArray[Any]] = {
    "latents of another shape": np.zeros((1, 4), np.float32),
    "not a number": np.full((1, 3), np.nan, np.float32),
    "infinity": np.full((1, 3), np.inf, np.float32),
    "integers for floats": np.zeros((1, 3), np.int64),
    "no rows": np.zeros((0, 3), np.float32),
}
# The codebook has 8.
_CODES = np.full((1, 4), 8)


def _refused(what: str, kind: str, request: dict[str, Any], **edit: Any) -> dict[str, Any]:
    case = {"id": f"refuse/{what}", "request": request, "expect": {"refused": kind}}
    return {**case, "edit": edit} if edit else case


def _one_row() -> bytes:
    """The decoder of the bundle `dynamic`, which gives the first row alone."""
    model = onnx.load(BUNDLES / "dynamic" / "decoder" / "fp32" / "model.onnx")
    (output,) = model.graph.output
    for node in model.graph.node:
        node.output[:] = [f"{name}.rows" if name == output.name else name for name in node.output]
    numbers = (("start", 0), ("stop", 1), ("axis", 0))
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.array([number]), name) for name, number in numbers)
    slices = onnx.helper.make_node("Slice", [f"{output.name}.rows", "start", "stop", "axis"], [output.name])
    model.graph.node.append(slices)
    del model.graph.value_info[:]
    output.type.tensor_type.shape.dim[0].dim_param = "rows"
    content: bytes = model.SerializeToString(deterministic=True)
    return content


# Nodes between z and the layers of `plain`, and constants: some version of ONNX Runtime ends the process by each.
_AT_LAST = {"axis": np.array([2])}
_POOL = {"kernel_shape": [1], "strides": [0]}
_ENDING: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "parts of another number": ([("Split", ["z"], ["inner", "rest"], {"num_outputs": 1, "axis": 1})], {}),
    "a bias with an empty name": (
        [("LayerNormalization", ["z", "scale", ""], ["inner"])], {"scale": np.ones(3, np.float32)}
    ),
    "negative batch_dims": ([("GatherND", ["z", "row"], ["inner"], {"batch_dims": -5})], {"row": np.array([[0]])}),
    "groups of nothing": (
        [("Unsqueeze", ["z", "axis"], ["wide"]), ("Conv", ["wide", "kernel"], ["inner"], {"group": 0})],
        {**_AT_LAST, "kernel": np.ones((3, 1, 1), np.float32)},
    ),
    "steps of nothing": (
        [("Unsqueeze", ["z", "axis"], ["wide"]), ("MaxPool", ["wide"], ["inner"], _POOL)], _AT_LAST
    ),
}  # fmt: skip


def _with_nodes(nodes: list[Any], constants: dict[str, Any]) -> bytes:
    """The decoder of the bundle `plain`, behind nodes that make `inner` of z."""
    model = onnx.load(BUNDLES / "plain" / "decoder" / "fp32" / "model.onnx")
    graph = model.graph
    for node in graph.node:
        node.input[:] = ["inner" if name == "z" else name for name in node.input]
    added = [onnx.helper.make_node(*node[:3], **(node[3] if node[3:] else {})) for node in nodes]
    layers = [copy.deepcopy(node) for node in graph.node]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(added + layers)
    graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _misnamed() -> Iterator[tuple[str, bytes]]:
    """The decoder of the bundle `plain` with names that are not defined before they are read, or twice."""
    for what in ("nodes in another order", "a name that is defined twice", "an output that no node defines"):
        model = onnx.load(BUNDLES / "plain" / "decoder" / "fp32" / "model.onnx")
        graph = model.graph
        nodes = [copy.deepcopy(node) for node in graph.node]
        if what.startswith("nodes"):
            nodes.reverse()
        elif what.startswith("a name"):
            nodes.append(copy.deepcopy(nodes[-1]))
        else:
            nodes.pop()
        del graph.node[:], graph.value_info[:]
        graph.node.extend(nodes)
        yield what, model.SerializeToString(deterministic=True)


def _refusals() -> Iterator[dict[str, Any]]:
    """What must be refused, and golden vectors that do not hold."""
    for what, edit in _FORGED.items():
        load = {"ask": "load", "bundle": "plain"}
        yield _refused(what, "bundle", load, **edit)
        yield _refused(f"{what}, as .zip", "bundle", load, **edit, zip=True)
    for what, (bundle, edits) in _MISVALUED.items():
        yield _refused(what, "bundle", {"ask": "load", "bundle": bundle}, manifest=edits)
    decode: dict[str, Any] = {"ask": "decode", "bundle": "plain", "variant": "fp32", "conditions": {}}
    for what, z in _WRONG_LATENTS.items():
        yield _refused(what, "input", {**decode, "latents": {"z": packed(z)}})
    three, eight = (packed(np.zeros((1, size), np.float32)) for size in (3, 8))
    yield _refused("an unknown variant", "bundle", {**decode, "variant": "int4", "latents": {"z": three}})
    yield _refused("a latent that is missing", "input", {**decode, "bundle": "two-latents", "latents": {"z1": three}})
    yield _refused("a code out of range", "input", {**decode, "bundle": "codes", "latents": {"z": packed(_CODES)}})
    rows = {**decode, "bundle": "dynamic", "latents": {"z": packed(np.zeros((2, 2, 8), np.float32))}}
    forged = {"decoder/fp32/model.onnx": {"base64": base64.b64encode(_one_row()).decode()}}
    yield _refused("a graph that gives other rows than it takes", "bundle", rows, files=forged)
    for what, (nodes, constants) in _ENDING.items():
        forged = {"decoder/fp32/model.onnx": {"base64": base64.b64encode(_with_nodes(nodes, constants)).decode()}}
        yield _refused(f"a graph with {what}", "bundle", {**decode, "latents": {"z": three}}, files=forged)
    for what, content in _misnamed():
        forged = {"decoder/fp32/model.onnx": {"base64": base64.b64encode(content).decode()}}
        yield _refused(f"a graph with {what}", "bundle", {**decode, "latents": {"z": three}}, files=forged)
    decode |= {"bundle": "conditional", "latents": {"z": eight}}
    yield _refused("a missing condition", "input", decode)
    yield _refused("an unknown class", "input", {**decode, "conditions": {"label": "eleven"}})
    yield _refused("a class out of range", "input", {**decode, "conditions": {"label": packed(np.array([10]))}})
    golden = np.load(BUNDLES / "plain" / "golden.npz")
    wrong = {
        "other golden vectors": {name: array + np.float32(0.01) for name, array in golden.items()},
        "golden vectors that are not PyTorch's": {
            name: array + np.float32(0.01) if name == "decoder/pytorch/x" else array for name, array in golden.items()
        },
        "golden vectors that are no numbers": {
            name: array * np.float32(np.nan) if name == "decoder/fp32/x" else array for name, array in golden.items()
        },
    }
    for what, arrays in wrong.items():
        archive = io.BytesIO()
        np.savez(archive, **arrays)
        yield {
            "id": f"verify/{what}",
            "request": {"ask": "verify", "bundle": "plain"},
            "expect": {"answer": {"passed": False}},
            "edit": {"files": {"golden.npz": {"base64": base64.b64encode(archive.getvalue()).decode()}}},
        }


def _swapped() -> Iterator[dict[str, Any]]:
    """Outputs of one shape whose roles are swapped: answers are as stored, and mean something else."""
    roles = [[[*_VAE, "likelihood", "mean"], "logits"], [[*_VAE, "likelihood", "logits"], "x"]]
    for bundle in ("digits", "categorical"):
        yield {
            "id": f"verify/{bundle}, mean and logits swapped",
            "request": {"ask": "verify", "bundle": bundle},
            "expect": {"answer": {"passed": False}},
            "edit": {"manifest": roles},
        }


def main() -> None:
    """Write bundles and cases."""
    with contextlib.redirect_stderr(io.StringIO()):
        make_bundles()
    lines = [json.dumps(case) for case in cases()]
    (HERE / "cases.json").write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in HERE.rglob("*") if path.is_file() and path.suffix != ".pyc")
    print(f"{len(lines)} cases, {size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
