"""Read the golden vectors of a bundle: fixed inputs, and the answers of PyTorch and every variant at export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from . import noise
from .arrays import packed_limit, unpack_npz
from .bundle import Bundle
from .manifest import Manifest, TensorSpec

Array = NDArray[Any]


def golden_tensors(manifest: Manifest) -> dict[str, TensorSpec]:
    """Return the tensors of the golden vectors by name: stored inputs, and outputs as "component/variant/output"."""
    drawn = _drawn(manifest)
    tensors: dict[str, TensorSpec] = {}
    for component, variants in manifest.components.items():
        tensors |= {tensor.name: tensor for tensor in manifest.inputs(component) if tensor.name not in drawn}
        for source in ["pytorch", *variants]:
            tensors |= {f"{component}/{source}/{output.name}": output for output in manifest.outputs(component)}
    return tensors


def read_golden(bundle: Bundle) -> dict[str, Array]:
    """Return the arrays of the golden vectors by name, checked against the manifest.

    They are the `golden_tensors` of the manifest; each is [n, *shape].

    Raises:
        BundleError: the file is damaged, or an array is missing or of another shape or dtype.
    """
    manifest = bundle.manifest
    file, n = manifest.golden.file, manifest.golden.n
    tensors = golden_tensors(manifest)
    expected = {name: (tensor.dtype, (n, *tensor.shape)) for name, tensor in tensors.items()}
    return unpack_npz(bundle.read(file, limit=packed_limit(expected)), bundle.place(file), expected)


def golden_inputs(bundle: Bundle, component: str, golden: Mapping[str, Array]) -> dict[str, Array]:
    """Return the inputs of a component's golden answers by name, in the order of its signature; each is [n, *shape].

    Latents with a normal prior are drawn with vnoise-1; all other inputs are stored.
    """
    seed, n = bundle.manifest.golden.seed, bundle.manifest.golden.n
    drawn = _drawn(bundle.manifest)

    def value(tensor: TensorSpec) -> Array:
        if tensor.name not in drawn:
            return golden[tensor.name]
        return noise.normal(seed, 0, n, tensor.shape, noise.stream_of(noise.PRIOR, drawn[tensor.name]))

    return {tensor.name: value(tensor) for tensor in bundle.manifest.inputs(component)}


def reference_of(manifest: Manifest) -> str:
    """Return what the stored answers are held against: PyTorch, or the graphs that a bundle was adopted from."""
    return "the graph that was given" if "adopted" in manifest.producer else "PyTorch"


def _drawn(manifest: Manifest) -> dict[str, int]:
    """Return the numbers of the latents that the golden vectors do not store, by name."""
    return {latent.name: j for j, latent in enumerate(manifest.latents) if latent.prior.kind == "normal"}
