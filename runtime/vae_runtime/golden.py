"""Read the golden vectors of a bundle: fixed inputs, and what PyTorch and every variant answered on export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from . import noise
from .arrays import unpack_npz
from .bundle import Bundle
from .manifest import Manifest, TensorSpec

__all__ = ["golden_inputs", "golden_tensors", "read_golden"]

Array = NDArray[Any]


def golden_tensors(manifest: Manifest) -> dict[str, TensorSpec]:
    """What the golden vectors hold, by name: the inputs that are stored, and the outputs by
    "component/variant/output".
    """
    drawn = _drawn(manifest)
    found: dict[str, TensorSpec] = {}
    for component, variants in manifest.components.items():
        found |= {given.name: given for given in manifest.inputs(component) if given.name not in drawn}
        for source in ["pytorch", *variants]:
            found |= {f"{component}/{source}/{output.name}": output for output in manifest.outputs(component)}
    return found


def read_golden(bundle: Bundle) -> dict[str, Array]:
    """The arrays of the golden vectors by name, all that the manifest asks for and of the right shape and dtype.

    These are `golden_tensors` of its manifest; each is [n, *shape].

    Raises:
        BundleError: the file is damaged, or an array is missing or of another shape or dtype.
    """
    manifest = bundle.manifest
    file, n = manifest.golden.file, manifest.golden.n
    tensors = golden_tensors(manifest)
    expected = {name: (tensor.dtype, (n, *tensor.shape)) for name, tensor in tensors.items()}
    return unpack_npz(bundle.read(file), bundle.place(file), expected)


def golden_inputs(bundle: Bundle, component: str, golden: Mapping[str, Array]) -> dict[str, Array]:
    """What the golden answers of a component answer, by name in the order of its signature; each is [n, *shape].

    Latents with a normal prior are drawn with vnoise-1; all else is stored.
    """
    seed, n = bundle.manifest.golden.seed, bundle.manifest.golden.n
    drawn = _drawn(bundle.manifest)

    def value(given: TensorSpec) -> Array:
        if given.name not in drawn:
            return golden[given.name]
        return noise.normal(seed, 0, n, given.shape, noise.stream_of(noise.PRIOR, drawn[given.name]))

    return {given.name: value(given) for given in bundle.manifest.inputs(component)}


def _drawn(manifest: Manifest) -> dict[str, int]:
    """The numbers of the latents that the golden vectors do not store, by name."""
    return {latent.name: j for j, latent in enumerate(manifest.latents) if latent.prior.kind == "normal"}
