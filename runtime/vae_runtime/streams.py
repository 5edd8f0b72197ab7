"""Decode latents that come in chunks along time: the values of the undivided answer, as soon as each chunk is there.

A causal decoder needs nothing of later chunks. What it needs of earlier ones are the states of its graph for chunks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from .errors import InputError, counted
from .inputs import latent_rows
from .manifest import Sizes
from .networks import open_chunks

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from .bundle import Bundle
    from .chunks import Stream
    from .devices import Device
    from .inputs import Conditions, Feeds, Inputs
    from .manifest import Manifest, Variant
    from .networks import Chunks, Networks

    Array = NDArray[np.float32]


def decode_chunks(
    bundle: Bundle, networks: Networks, inputs: Inputs, chunks: Iterable[ArrayLike], conditions: Conditions
) -> Iterator[Array]:
    """Give the likelihood's mean for each chunk of latents; the rest as of `VAE.decode_stream`.

    Raises:
        InputError: the variant in use has no stream, and the message says why.
    """
    variant = bundle.variant("decoder", networks.variants.get("decoder"))
    stream = _stream(bundle.manifest, variant)
    return _decoded(bundle.manifest, inputs, networks.chunks(stream), chunks, conditions)


def replay(bundle: Bundle, variant: Variant, device: Device, threads: int, feeds: Feeds) -> Array:
    """Compute the likelihood's mean of golden inputs in chunks of 1, 2, 3 … values of time.

    Raises:
        BundleError: the file is damaged, or the graph is not the one that the manifest describes.
        DeviceError: the device is unavailable.
        InputError: the variant has no stream.
        VaeError: ONNX Runtime failed.
    """
    manifest = bundle.manifest
    stream, latent, axis = _stream(manifest, variant), manifest.latent, _time(manifest)
    computation = open_chunks(bundle, variant.name, stream, device, threads)
    length = latent.shape[axis - 1]
    borders = [sum(range(number + 1)) for number in range(1, length) if sum(range(number + 1)) < length]
    parts = np.split(feeds[latent.name], borders, axis)
    return np.concatenate([computation.run({**feeds, latent.name: part}) for part in parts], _answer_axis(manifest))


def _stream(manifest: Manifest, variant: Variant) -> Stream:
    stream = variant.stream
    if stream is not None and stream.file is not None:
        return stream
    reason = "latents have no single dynamic axis of time" if stream is None else stream.reason or "no reason is stated"
    others = [each.name for each in manifest.decoder.values() if each.stream_path]
    if others:
        raise InputError(f"decode_stream: expected a variant with a stream, got {variant.name}; load {others[0]}")
    raise InputError(f"decode_stream: expected a causal decoder, got one that takes no chunks: {reason}; use decode")


def _time(manifest: Manifest) -> int:
    """The number of the time axis in arrays of latents, whose axis 0 is the batch."""
    (name,) = manifest.latent.dynamic
    return manifest.latent.axes.index(name) + 1


def _answer_axis(manifest: Manifest) -> int:
    (name,) = manifest.latent.dynamic
    axes = manifest.observation.axes if manifest.likelihood.shape is None else manifest.likelihood.axes
    return axes.index(name) + 1


def _decoded(
    manifest: Manifest, inputs: Inputs, computation: Chunks, chunks: Iterable[ArrayLike], conditions: Conditions
) -> Iterator[Array]:
    axis, answer_axis = _time(manifest), _answer_axis(manifest)
    ((name, sizes),) = manifest.latent.dynamic.items()
    latent = replace(manifest.latent, dynamic={name: Sizes(1, 2**31 - 1)})
    given: Feeds = {}
    rows = 0
    for number, chunk in enumerate(chunks):
        z = latent_rows(latent, chunk)
        if not number:
            rows, given = len(z), inputs.conditions("decoder", conditions, len(z))
        elif len(z) != rows:
            raise InputError(
                f"chunks[{number}]: expected {counted(rows, 'row')} as in the first chunk, got {len(z)}; start "
                "another stream"
            )
        # A longer chunk than any that the export tried is divided, which changes no value.
        parts = np.split(z, range(sizes.max, z.shape[axis], sizes.max), axis)
        answers = [computation.run({latent.name: part, **given}) for part in parts]
        yield answers[0] if len(answers) == 1 else np.concatenate(answers, answer_axis)
