"""Read the golden vectors of a bundle: fixed inputs, and the answers of PyTorch and every variant at export."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import noise
from .answers import kind_of
from .arrays import packed_limit, unpack_npz
from .bundle import Bundle
from .errors import BundleError
from .manifest import Manifest, TensorSpec

Array = NDArray[Any]

# Values of one latent that are drawn and not stored; each takes some bytes more while it is drawn.
_MAX_DRAWN = 2**24
# Wide enough for answers that a model gave in float16: outputs whose roles are swapped are far outside.
_RELATIVE, _ABSOLUTE = 0.05, 1e-3


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
    for latent in manifest.latents:
        if latent.prior.kind == "normal" and n * math.prod(latent.shape) > _MAX_DRAWN:
            raise BundleError(
                f"{bundle.place(file)}: expected at most {_MAX_DRAWN} values of {latent.name}, got {n} times "
                f"{math.prod(latent.shape)}; export the bundle again"
            )
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


def contradictions(manifest: Manifest, golden: Mapping[str, Array]) -> Iterator[str]:
    """Tell which answers are not what the manifest says they are: std of a logvar, and the mean of logits.

    Outputs of one shape whose roles are swapped pass every other check.
    """
    pairs = []
    posteriors = [latent.posterior for latent in manifest.latents if manifest.encoder]
    for posterior in posteriors:
        if posterior.kind == "normal":
            logvar = golden[f"encoder/pytorch/{posterior.logvar}"].astype(np.float64)
            pairs.append((f"encoder/pytorch/{posterior.std}", f"exp({posterior.logvar} / 2)", np.exp(logvar / 2)))
    likelihood = manifest.likelihood
    if likelihood.logits and manifest.decoder:
        logits = golden[f"decoder/pytorch/{likelihood.logits}"].astype(np.float64)
        mean = kind_of(manifest).mean_of(logits)
        pairs.append((f"decoder/pytorch/{likelihood.mean}", f"the mean of {likelihood.logits}", mean))
    for name, formula, expected in pairs:
        answer = golden[name]
        outside = ~np.isclose(answer, expected, _RELATIVE, _ABSOLUTE)
        if outside.any():
            index = tuple(int(i) for i in np.argwhere(outside)[0])
            yield (
                f"{name}: expected {formula}, {expected[index]:.6g} at {list(index)}, got {answer[index]:.6g}; the "
                "manifest swaps the roles of outputs, or the bundle is damaged: export it again"
            )


def reference_of(manifest: Manifest) -> str:
    """Return what the stored answers are held against: PyTorch, or the graphs that a bundle was adopted from."""
    return "the graph that was given" if "adopted" in manifest.producer else "PyTorch"


def _drawn(manifest: Manifest) -> dict[str, int]:
    """Return the numbers of the latents that the golden vectors do not store, by name."""
    return {latent.name: j for j, latent in enumerate(manifest.latents) if latent.prior.kind == "normal"}
