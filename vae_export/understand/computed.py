"""Compute the tensors of a signature from graphs that exist already: by numpy, and by nodes added to the graphs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_runtime.manifest import Signature

from ..graphs.existing import CLIPPED
from ..graphs.reference import ReferenceGraph

Array = NDArray[Any]

# The names of a bundle's own tensors.
OWN = ("mu", "logvar", "std")


@dataclass(frozen=True)
class Meaning:
    """What the outputs of two graphs are."""

    posterior: str
    """"none", "codes", or the meaning of the second tensor, one of `SECOND`."""
    mean: int = 0
    """The number of the encoder's output that holds the mean, the codes or the latent."""
    second: int = 0
    """The number of the output that holds the second tensor."""
    split: int = 0
    """Where one output holds both, how many entries along axis 1 are the mean's."""
    clips: bool = False
    """The second half is clipped, as diffusers does with what optimum calls latent_parameters."""
    logits: bool = False
    """The decoder's first output is the value before the sigmoid, or before the softmax of classes."""

    def latents(self, outputs: list[Array]) -> Array:
        """Return the latents of an encoder's outputs: means, codes or values."""
        value = outputs[self.mean]
        return value[:, : self.split] if self.split else value

    def compute(self, signature: Signature, component: str, outputs: list[Array]) -> dict[str, Array]:
        """Return the tensors of a signature by name, from the outputs of a component's graph."""
        if component == "decoder":
            if self.logits and signature.likelihood.has_classes:
                exponentials = np.exp(outputs[0] - outputs[0].max(-1, keepdims=True))
                outputs = [exponentials / exponentials.sum(-1, keepdims=True), *outputs]
            elif self.logits:
                # As the graph: 1 / (1 + exp(-x)) in float32, without a warning where exp overflows.
                with np.errstate(over="ignore"):
                    outputs = [(1 / (1 + np.exp(-outputs[0]))).astype(np.float32), *outputs]
            return dict(zip([tensor.name for tensor in signature.outputs("decoder")], outputs, strict=True))
        mu = self.latents(outputs)
        if signature.latent.posterior.value:
            return {signature.latent.posterior.value: mu}
        second = outputs[self.mean][:, self.split :] if self.split else outputs[self.second]
        second = np.clip(second, *CLIPPED) if self.clips else second
        with np.errstate(divide="ignore"):
            if self.posterior == "logvar":
                log_std = second / 2
            elif self.posterior == "log_std":
                log_std = second
            elif self.posterior == "var":
                log_std = np.log(second) / 2
            else:
                log_std = np.log(second if self.posterior == "std" else np.logaddexp(0, second))
        parts = mu, 2 * log_std, np.exp(log_std)
        return dict(zip(OWN, (part.astype(np.float32) for part in parts), strict=True))

    def change(self, signature: Signature, references: Mapping[str, ReferenceGraph]) -> None:
        """Add nodes to the graphs that compute the tensors of a signature."""
        latent = signature.latent
        encoder, decoder = references["encoder"].graph, references["decoder"].graph
        encoder.rename()
        decoder.rename()
        encoder.take(references["encoder"].input, signature.observation.name)
        decoder.take(references["decoder"].input, latent.name)
        for reference in references.values():
            for edge in reference.conditions:
                reference.graph.take(edge, edge.name)
        if latent.posterior.value:
            edge = dataclasses.replace(encoder.outputs[self.mean], dtype=latent.dtype)
            encoder.give(edge, latent.posterior.value)
        else:
            first = encoder.give(encoder.outputs[self.mean])
            if self.split:
                first, second = encoder.halves(first, self.split)
            else:
                second = encoder.give(encoder.outputs[self.second])
            encoder.normal(first, second, self.posterior, self.clips)
        names = [tensor.name for tensor in signature.outputs("decoder")]
        for edge, name in zip(decoder.outputs, names[1:] if self.logits else names, strict=True):
            decoder.give(edge, name)
        if self.logits:
            link = decoder.softmax if signature.likelihood.has_classes else decoder.sigmoid
            link(names[1], names[0])
