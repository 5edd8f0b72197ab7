"""Lay out a bundle as optimum does: vae_encoder/model.onnx, vae_decoder/model.onnx, and a config.json beside each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from .bundle import Bundle
from .errors import BundleError, InputError
from .graph_check import check_graph
from .manifest import COMPONENTS, Manifest, TensorSpec
from .onnx_file import raw_fields
from .protobuf import bytes_field, integer_field

# The range of the pictures that programs of diffusion models give a VAE.
_RANGE = (-1.0, 1.0)
_X, _Z, _PARAMETERS = "sample", "latent_sample", "latent_parameters"
# Fields of ONNX's messages, by number; onnx.proto is the specification.
_GRAPH, _NODE, _INPUT, _OUTPUT = 7, 1, 11, 12
_FLOAT, _INTEGER_ATTRIBUTE = 1, 2


def optimum_files(bundle: Bundle) -> dict[str, bytes]:
    """Return the files of optimum's layout by their paths, with the first graph of each component.

    The encoder takes `sample` and gives `latent_parameters`, mean and logvar one after the other along axis 1, or
    `latent_sample` where there is no distribution; the decoder takes `latent_sample` and gives `sample`.

    Raises:
        BundleError: a graph is damaged.
        InputError: the layout cannot hold the bundle; the message says why.
    """
    manifest = bundle.manifest
    reason = _misfit(manifest)
    if reason:
        raise InputError(f"layout: expected a bundle that optimum's layout can hold, got {reason}")
    files = {}
    for component in COMPONENTS:
        variant = bundle.variant(component)
        data = bundle.data(variant)
        folder = f"vae_{component}"
        content = _graph(bundle.read(variant.path), bundle.place(variant.path), manifest, component)
        try:
            check_graph(content, bundle.place(variant.path), data)
        except BundleError as error:
            raise InputError(f"layout: expected graphs that take optimum's names: {error}") from None
        files[f"{folder}/model.onnx"] = content
        files |= {f"{folder}/{name}": weights for name, weights in data.items()}
        files[f"{folder}/config.json"] = _config(manifest)
    return files


def _misfit(manifest: Manifest) -> str | None:
    """Return why optimum's layout cannot hold a bundle, or None."""
    missing = [component for component in COMPONENTS if component not in manifest.components]
    if missing:
        return f"one without the {missing[0]}"
    if manifest.conditions:
        return f"one with the condition {manifest.conditions[0].name}, which the layout has no input for"
    if len(manifest.latents) > 1:
        return f"one with {len(manifest.latents)} latents"
    latent, observation = manifest.latent, manifest.observation
    if latent.dtype != "float32" or observation.dtype != "float32":
        return "one of integers: the layout holds floats"
    if latent.posterior.noise:
        return "one whose encoder takes noise"
    if len(observation.shape) != 3 or manifest.likelihood.shape is not None:
        return "one that does not decode pictures [channel, height, width] of the observation's shape"
    if len(latent.shape) != 3:
        return f"one with latents {list(latent.shape)} instead of [channel, height, width]"
    if observation.range not in (None, _RANGE):
        low, high = observation.range
        return f"one of observations from {low:g} to {high:g}: readers of the layout give -1 to 1"
    if _levels(manifest) is None:
        return (
            f"one that makes latents {list(latent.shape)} of {list(observation.shape)}: readers of the layout expect a "
            "height and a width divided by one power of 2"
        )
    return None


def _levels(manifest: Manifest) -> int | None:
    """Return n where the sizes of latents are those of observations divided by 2**(n - 1), or None."""
    sizes = zip(manifest.observation.shape[1:], manifest.latent.shape[1:], strict=True)
    factors = {size // of_latent if size % of_latent == 0 else 0 for size, of_latent in sizes}
    factor = factors.pop()
    return None if factors or factor.bit_count() != 1 else factor.bit_length()


def _config(manifest: Manifest) -> bytes:
    """Return config.json, with what is known of an AutoencoderKL of diffusers, whose place the graphs take."""
    observation, latent = manifest.observation, manifest.latent
    channels, *sizes = observation.shape
    config: dict[str, Any] = {
        "_class_name": "AutoencoderKL",
        "in_channels": channels,
        "out_channels": channels,
        "latent_channels": latent.shape[0],
        # Only their number is read: the factor between the sizes of observations and latents is 2**(number - 1).
        "block_out_channels": [64] * (_levels(manifest) or 1),
        "sample_size": sizes[0] if sizes[0] == sizes[1] else sizes,
    }
    if isinstance(latent.scale, tuple) or isinstance(latent.shift, tuple):
        count = latent.shape[0]
        scales, shifts = (
            value if isinstance(value, tuple) else (value,) * count for value in (latent.scale, latent.shift)
        )
        config |= {"scaling_factor": 1.0, "latents_mean": shifts, "latents_std": [1 / scale for scale in scales]}
    else:
        # Always there: readers take a number of their own where it is missing.
        config |= {"scaling_factor": latent.scale, "shift_factor": latent.shift}
    # `vae-export adopt` reads these two; other programs ignore them.
    if latent.prior.kind == "normal":
        config["latent_prior"] = "normal"
    if observation.range:
        config["sample_range"] = observation.range
    return json.dumps(config, indent=2).encode() + b"\n"


def _graph(content: bytes, place: str, manifest: Manifest, component: str) -> bytes:
    """Return a graph with optimum's inputs and outputs; the rest of the file stays as it is."""
    one = component in manifest.batch_of_one
    first: list[bytes] = []
    last: list[bytes] = []
    (taken,) = manifest.inputs(component)
    source = _X if component == "encoder" else _Z
    if taken.name != source:
        first.append(_node("Identity", [source], taken.name))
    answer, *further = manifest.outputs(component)
    shape = answer.shape
    if component == "encoder" and further:
        target, shape = _PARAMETERS, (2 * shape[0], *shape[1:])
        posterior = manifest.latent.posterior
        last.append(_node("Concat", [str(posterior.mu), str(posterior.logvar)], target, axis=1))
    else:
        target = _Z if component == "encoder" else _X
        if answer.name != target:
            last.append(_node("Identity", [answer.name], target))
    parts, graph = [], []
    try:
        with memoryview(content) as model:
            for number, _, raw, value in raw_fields(model):
                if number != _GRAPH:
                    parts.append(bytes(raw))
                    continue
                graph += [bytes(raw) for number, _, raw, _ in raw_fields(value) if number not in (_INPUT, _OUTPUT)]
    except (IndexError, ValueError):
        raise BundleError(f"{place}: expected an ONNX graph; copy or export the bundle again") from None
    graph = [
        *(bytes_field(_NODE, node) for node in first),
        *graph,
        *(bytes_field(_NODE, node) for node in last),
        bytes_field(_INPUT, _value(source, taken, taken.shape, one)),
        bytes_field(_OUTPUT, _value(target, answer, shape, one)),
    ]
    return b"".join([*parts, bytes_field(_GRAPH, b"".join(graph))])


def _node(operator: str, inputs: Sequence[str], output: str, axis: int | None = None) -> bytes:
    node = b"".join(bytes_field(1, name.encode()) for name in inputs)
    node += bytes_field(2, output.encode()) + bytes_field(4, operator.encode())
    if axis is not None:
        attribute = bytes_field(1, b"axis") + integer_field(3, axis) + integer_field(20, _INTEGER_ATTRIBUTE)
        node += bytes_field(5, attribute)
    return node


def _value(name: str, tensor: TensorSpec, shape: Sequence[int], one: bool) -> bytes:
    """Return the description of an input or output: float32 [batch, *shape], with the dynamic axes of a tensor."""
    dims = [integer_field(1, 1) if one else bytes_field(2, b"batch_size")]
    for index, size in enumerate(shape):
        dynamic = index in tensor.dynamic
        dims.append(bytes_field(2, f"{name}_{index + 1}".encode()) if dynamic else integer_field(1, size))
    sizes = b"".join(bytes_field(1, dim) for dim in dims)
    kind = bytes_field(1, integer_field(1, _FLOAT) + bytes_field(2, sizes))
    return bytes_field(1, name.encode()) + bytes_field(2, kind)
