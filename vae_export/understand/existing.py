"""Understand two graphs that exist already: what their tensors mean, and which sizes they may have."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_runtime import noise
from vae_runtime.errors import InputError, VaeError, counted, error_line
from vae_runtime.likelihood import KINDS
from vae_runtime.manifest import (
    COMPONENTS,
    TENSOR,
    Condition,
    Latent,
    LatentPosterior,
    LatentPrior,
    Likelihood,
    Observation,
    Output,
    Signature,
)

from ..errors import ExportError
from ..graphs.existing import Edge
from ..graphs.reference import ReferenceGraph
from .axis_sizes import with_dynamic_axes
from .checks import described_condition, observation_range, with_class_axis
from .computed import OWN, Meaning
from .config import configured_scaling, configured_size
from .declaration import SECOND, Declaration

Array = NDArray[Any]

_ROWS, _SMALL = 4, 2**14
_NOT_NORMAL = "the latents are not standard normal: another model, such as a diffusion model, supplies them"
# The names that optimum gives the latents of diffusion models.
_OF_DIFFUSION = {"latent_parameters", "latent_sample"}
_UNKNOWN = (
    "the latents have the names of those of a diffusion model, which are not standard normal; adopt the graphs again "
    "with --prior normal if these are"
)
# The words by which exporters name an encoder's outputs, without punctuation.
_MEANS = ("mu", "mean", "zmean", "zmu", "loc", "latentmean")
_SECONDS = {
    "logvar": (
        "logvar",
        "zlogvar",
        "logvariance",
        "latentlogvar",
        "latentparameters",
        "logsigma2",
        "zlogsigma2",
        "logsigmasq",
        "zlogsigmasq",
    ),
    "std": ("std", "stddev", "sigma", "zstd"),
    "var": ("var", "variance", "sigma2", "sigmasq", "std2"),
    "log_std": ("logstd", "logsigma"),
}
_AXES = {1: ("feature",), 2: ("height", "width"), 3: ("channel", "height", "width")}


@dataclass(frozen=True)
class Facts:
    """What is known of two graphs beside the graphs: arguments, and the configuration of the model."""

    declared: Declaration
    shape: Sequence[int] | None = None
    """The shape of one observation."""
    conditions: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    """Values [n, ...] by name, which is that of an input."""
    classes: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    """The names of the classes of integer conditions."""
    logits: bool = False
    """The decoder's first output is the value before the sigmoid, or before the softmax of classes."""
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """config.json of diffusers; a declared value counts first."""


@dataclass(frozen=True)
class UnderstoodGraphs:
    """Two graphs with their meaning."""

    signature: Signature
    meaning: Meaning
    references: Mapping[str, ReferenceGraph]
    """The graph of each component, as it was given."""
    examples: Mapping[str, Array]
    """Observations and latents [n, …] by name."""
    recognised: tuple[str, ...]


def understand_graphs(references: Mapping[str, ReferenceGraph], facts: Facts) -> UnderstoodGraphs:
    """Find the meaning of the tensors of the graphs of both components.

    Raises:
        ExportError: the graphs cannot be understood; the message names the argument that would say it.
    """
    return _Understanding(references, facts).result()


class _Understanding:
    def __init__(self, references: Mapping[str, ReferenceGraph], facts: Facts) -> None:
        self.facts, self.declared = facts, facts.declared
        self.references = references
        self.encoder, self.decoder = references["encoder"], references["decoder"]
        self.lines: list[str] = []
        taken = (*OWN, *facts.conditions)
        self.x_name = _name(self.encoder.input.name, "x", taken)
        self.z_name = _name(self.decoder.input.name, "z", (self.x_name, *facts.conditions))
        self.conditions = _conditions_of(references, facts)
        self.x = self._observations()
        self.encoded = self.encoder.checked(self.x, "shape")
        self.meaning = dataclasses.replace(self._meaning(), logits=self._has_logits())
        self.z = self._latents()
        self.decoded = self.decoder.checked(self.z, "posterior")

    def _observations(self) -> Array:
        """Return examples of observations, of the shape that the graph, the argument or the configuration gives."""
        edge, shape = self.encoder.input, self.facts.shape
        axes = edge.axes[1:] if edge.axes else None
        if axes is not None and shape is None:
            known = [configured_size(self.facts.config, number, len(axes)) for number in range(len(axes))]
            shape = [axis.size or size or 0 for axis, size in zip(axes, known, strict=True)]
        if shape is None or not shape or min(shape) < 1:
            raise ExportError(
                f"{self.encoder.graph.path}: {edge.name}: expected the sizes of one observation, got "
                f"{[axis.size or axis.name or '?' for axis in axes] if axes else 'none'} in the graph; give shape="
            )
        if axes is not None and (
            len(axes) != len(shape) or any(a.size not in (None, b) for a, b in zip(axes, shape, strict=True))
        ):
            raise ExportError(
                f"shape: expected {[axis.size or axis.name for axis in axes]} of {edge.name}, got {list(shape)}"
            )
        bounds = self._bounds()
        if edge.dtype == "int64" and bounds is None:
            raise ExportError(
                f"{self.encoder.graph.path}: {edge.name}: expected range=, since x holds integers, got none"
            )
        low, high = bounds or (-1.0, 1.0)
        # Two rows show whether rows are independent; more would take the memory of large pictures.
        rows = _ROWS if math.prod(shape) <= _SMALL else 2
        try:
            x = low + (high - low) * noise.uniform(0, 0, rows, tuple(shape))
        except (InputError, MemoryError):
            raise ExportError(
                f"shape: expected observations that fit in memory, got {list(shape)}; give smaller sizes"
            ) from None
        kind = KINDS.get(self.declared.likelihood or "none")
        if kind is not None and kind.levels:
            step = (high - low) / (kind.levels - 1)
            x = low + step * np.rint((x - low) / step)
        whole = edge.dtype == "int64" or (kind is not None and kind.classes)
        return (np.rint(x) if whole else x).astype(edge.dtype)

    def _bounds(self) -> tuple[float, float] | None:
        """Return the min and max value of an observation, as far as they are known."""
        known = (-1.0, 1.0) if self.facts.config.get("sample_range") == [-1, 1] else None
        kind = self.declared.likelihood or "none"
        # Classes are the last axis of what the decoder gives.
        axes, own = self.decoder.graph.outputs[0].axes, self.encoder.input.axes
        count = axes[-1].size if axes and own and len(axes) == len(own) + 1 else None
        return observation_range(kind, self.declared.range, known, None if count is None else (count,))

    def _meaning(self) -> Meaning:
        """Return the meaning of the encoder's outputs."""
        edges, declared = self.encoder.graph.outputs, self.declared.posterior
        words = [_word(edge.name) for edge in edges]
        if edges[0].dtype == "int64" or declared == "codes":
            if self.declared.codebook is None:
                raise ExportError(
                    f"{self.encoder.graph.path}: {edges[0].name}: expected codebook= for its codes, got nothing; give "
                    "the number of codes"
                )
            return Meaning("codes")
        if declared == "none":
            return Meaning("none")
        named = {kind: [i for i, word in enumerate(words) if word in known] for kind, known in _SECONDS.items()}
        by_name = next((kind for kind, numbers in named.items() if numbers), None)
        if len(edges) == 1:
            size = self.encoded[0].shape[1]
            if declared is None and (by_name is None or size % 2) and self._decodes(self.encoded[0]):
                return Meaning("none")
            if size % 2 or not self._decodes(self.encoded[0][:, : size // 2]):
                raise ExportError(
                    f"{self.decoder.graph.path}: expected to take {self.decoder.input.name} of the shape of "
                    f"{edges[0].name}, {list(self.encoded[0].shape[1:])}, or half of it along its first axis, and does "
                    "neither; give the two graphs of one model"
                )
            kind = self._second_kind(by_name, edges[0])
            clips = edges[0].name == "latent_parameters" and kind == "logvar"
            return Meaning(kind, split=size // 2, clips=clips)
        means = [i for i, word in enumerate(words) if word in _MEANS]
        mean = means[0] if means else 0
        second = named[by_name][0] if by_name else next(i for i in range(len(edges)) if i != mean)
        if second == mean or (len(edges) > 2 and not (means and by_name)):
            names = ", ".join(edge.name for edge in edges)
            raise ExportError(
                f"{self.encoder.graph.path}: expected outputs named mu and logvar among {names}; export the "
                "encoder with these two outputs"
            )
        return Meaning(self._second_kind(by_name, edges[second]), mean, second)

    def _second_kind(self, by_name: str | None, edge: Edge) -> str:
        kind = self.declared.posterior or by_name
        if kind is None:
            raise ExportError(
                f"{self.encoder.graph.path}: {edge.name}: expected a declared meaning, got none; give "
                f"posterior=, one of {', '.join(SECOND)}, or none"
            )
        return kind

    def _decodes(self, z: Array) -> bool:
        try:
            self.decoder(z[:1].astype(self.decoder.input.dtype))
        except VaeError:
            return False
        return True

    def _latents(self) -> Array:
        """Return the latents of the example."""
        z = self.meaning.latents(self.encoded)
        expected = self.decoder.input.dtype
        if (expected == "int64") != (self.meaning.posterior == "codes"):
            what = "codes" if expected == "int64" else "floats"
            raise ExportError(
                f"{self.decoder.graph.path}: {self.decoder.input.name}: expected {what}, the decoder's input, got "
                f"{'floats' if what == 'codes' else 'codes'} from the encoder; posterior= says what they are"
            )
        return z.astype(expected)

    def _has_logits(self) -> bool:
        """Whether the decoder's first output is the value before the sigmoid, or the softmax."""
        kind = KINDS.get(self.declared.likelihood or "none")
        named = "logit" in self.decoder.graph.outputs[0].name.lower()
        return self.facts.logits or (named and kind is not None and kind.logits)

    def _likelihood(self) -> Likelihood:
        kind = self.declared.likelihood or "none"
        edges = self.decoder.graph.outputs
        if any(edge.dtype != "float32" for edge in edges):
            raise ExportError(f"{self.decoder.graph.path}: expected floats from the decoder, got integers")
        names = [edge.name if TENSOR.matches(edge.name) else f"output_{i}" for i, edge in enumerate(edges)]
        mean = self.decoded[0]
        shape = None if mean.shape == self.x.shape else tuple(mean.shape[1:])
        shared = {
            "shape": shape,
            "axes": tuple(f"axis_{number}" for number in range(1, len(shape or ()) + 1)),
            "outputs": tuple(
                Output(name, tuple(each.shape[1:])) for name, each in zip(names[1:], self.decoded[1:], strict=True)
            ),
        }
        known = KINDS.get(kind)
        if self.meaning.logits and not (known and known.logits):
            raise ExportError(f"logits: expected a likelihood that takes logits, got {kind}; give likelihood= too")
        if known is None:
            reason = "no likelihood was declared; adopt the graphs again with likelihood="
            return Likelihood("none", mean=names[0], reason=reason, **shared)  # type: ignore[arg-type]
        if known.classes and (mean.shape[:-1] != self.x.shape or mean.shape[-1] < 2):
            raise ExportError(
                f"{self.decoder.graph.path}: {names[0]}: expected {[*self.x.shape[1:]]} and behind it 2 or more "
                f"classes, got {list(mean.shape[1:])}; export the decoder with the classes along its last axis"
            )
        if self.meaning.logits:
            free = next(name for name in ("mean", "x", "probability") if name not in names)
            return Likelihood(kind, mean=free, logits=names[0], **shared)  # type: ignore[arg-type]
        support = known.mean_support
        if support and not (support[0] <= mean.min() and mean.max() <= support[1]):
            raise ExportError(
                f"{self.decoder.graph.path}: {names[0]}: expected means from {support[0]:g} to "
                f"{support[1]:g} for the likelihood {kind}, got {mean.min():g} … {mean.max():g}; logits= says "
                "that they are logits"
            )
        scale = (1.0 if self.declared.scale is None else float(self.declared.scale)) if known.scale else None
        return Likelihood(kind, mean=names[0], scale=scale, **shared)  # type: ignore[arg-type]

    def _latent(self) -> Latent:
        scale, shift, scaled = configured_scaling(self.facts.config, self.z.shape[1])
        declared = self.declared
        prior = LatentPrior("normal", assumed=True)
        value = self.encoder.graph.outputs[self.meaning.mean].name
        value = value if TENSOR.matches(value) and value != self.x_name else "value"
        if self.meaning.posterior == "codes":
            posterior = LatentPosterior("codes", value=value, codebook=declared.codebook)
            prior = LatentPrior("none", reason="codes have no prior of their own")
        elif self.meaning.posterior == "none":
            posterior = LatentPosterior("none", value=value, reason="the encoder's graph gives no distribution")
            prior = LatentPrior("none", reason="the encoder's graph gives no distribution")
        else:
            posterior = LatentPosterior("normal", *OWN)
            if _OF_DIFFUSION & {self.decoder.input.name, *(edge.name for edge in self.encoder.graph.outputs)}:
                prior = LatentPrior("none", reason=_UNKNOWN)
        if self.facts.config.get("latent_prior") == "normal" and posterior.kind != "codes":
            # A bundle says so that was written in optimum's layout.
            prior = LatentPrior("normal", assumed=True)
        elif scaled:
            prior = LatentPrior("none", reason=_NOT_NORMAL)
        if declared.prior is not None and self.meaning.posterior != "codes":
            prior = LatentPrior(str(declared.prior))
            if prior.kind == "none":
                prior = LatentPrior("none", reason="declared to have none")
        shape = tuple(self.z.shape[1:])
        axes = tuple(declared.latent_axes or ({1: ("latent",)} | _AXES).get(len(shape)) or _numbered(shape))
        if len(shape) == 1 and declared.latent_axes is None:
            axes = ("latent",)
        if len(axes) != len(shape):
            raise ExportError(
                f"latent_axes: expected {counted(len(shape), 'name')} for the latent {list(shape)}, got {list(axes)}"
            )
        return Latent(
            self.z_name, shape, posterior, prior, dtype=self.decoder.input.dtype, axes=axes,
            scale=_numbers(declared.latent_scale, scale), shift=_numbers(declared.latent_shift, shift),
        )  # fmt: skip

    def result(self) -> UnderstoodGraphs:
        """Return the signature, with the graphs changed to compute it."""
        shape = tuple(self.x.shape[1:])
        axes = tuple(self.declared.axes or _AXES.get(len(shape)) or _numbered(shape))
        if len(axes) != len(shape):
            raise ExportError(
                f"axes: expected {counted(len(shape), 'name')} for an observation {list(shape)}, got {list(axes)}"
            )
        bounds = self._bounds()
        observation = Observation(
            self.x_name, shape, axes, None if bounds is None else (float(bounds[0]), float(bounds[1])),
            dtype=self.encoder.input.dtype,
        )  # fmt: skip
        ones = {"encoder": self.encoder.one, "decoder": self.decoder.one}
        signature = Signature(
            observation=observation,
            latents=(self._latent(),),
            likelihood=with_class_axis(self._likelihood(), observation),
            conditions=self.conditions,
            batch_of_one=tuple(component for component in COMPONENTS if ones[component]),
        )
        signature = self._dynamic(signature)
        latent, meaning = signature.latent, self.meaning
        self.lines += [
            f"x: {self.encoder.input.name} {list(shape)}",
            f"posterior: {latent.posterior.kind}"
            + (f", by {meaning.posterior}" if meaning.posterior in SECOND else "")
            + (", the halves of latent_parameters, the second clipped to -30 … 20" if meaning.clips else ""),
            f"prior: {latent.prior.kind}"
            + (", assumed" if latent.prior.assumed else "")
            + (f": {latent.prior.reason}" if latent.prior.reason == _UNKNOWN else ""),
            f"likelihood: {signature.likelihood.kind}",
        ]
        rows = np.arange(len(self.x))
        conditions = {name: values.take(rows, 0, mode="wrap") for name, values in self.facts.conditions.items()}
        types = {"f": np.float32}
        conditions = {
            name: values.astype(types.get(values.dtype.kind, np.int64)) for name, values in conditions.items()
        }
        examples = {self.x_name: self.x, self.z_name: self.z, **conditions}
        return UnderstoodGraphs(signature, meaning, self.references, examples, tuple(self.lines))

    def _dynamic(self, signature: Signature) -> Signature:
        """Return the signature with the axes that the graph leaves open, where other sizes are shown to work."""

        def round_trip(sizes: Mapping[str, int]) -> tuple[dict[str, tuple[int, ...]], list[tuple[int, ...]]]:
            shape = [sizes.get(axis, size) for axis, size in zip(observation.axes, observation.shape, strict=True)]
            x = np.resize(self.x[:1], (1, *shape))
            z = self.meaning.latents(self.encoder(x)).astype(self.z.dtype)
            return {latent.name: tuple(z.shape[1:])}, [tuple(each.shape[1:]) for each in self.decoder(z)]

        def with_axes(names: Sequence[str]) -> Signature:
            dynamic = with_dynamic_axes(signature, names, round_trip)
            for size in ("min", "max"):
                chosen = {name: getattr(sizes, size) for name, sizes in dynamic.observation.dynamic.items()}
                shapes, _ = round_trip(chosen)
                expected = tuple(
                    getattr(dynamic.latent.dynamic[axis], size) if axis in dynamic.latent.dynamic else length
                    for axis, length in zip(dynamic.latent.axes, dynamic.latent.shape, strict=True)
                )
                if shapes[latent.name] != expected:
                    raise ExportError(
                        f"dynamic: expected latents of {list(expected)} at {chosen}, got {list(shapes[latent.name])}; "
                        "leave an axis out of dynamic="
                    )
            return dynamic

        observation, (latent,) = signature.observation, signature.latents
        edge_axes = self.encoder.input.axes
        dynamic = signature
        if self.declared.dynamic is not None:
            dynamic = with_axes(list(self.declared.dynamic)) if self.declared.dynamic else signature
        elif edge_axes is not None:
            open_axes = [name for name, axis in zip(observation.axes, edge_axes[1:], strict=True) if axis.size is None]
            for name in open_axes:
                # Axes that work by themselves may fail together: the later one stays fixed.
                try:
                    dynamic = with_axes([*dynamic.observation.dynamic, name])
                except VaeError as error:
                    self.lines.append(f"axis {name}: fixed, although the graph leaves it open: {error_line(error)}")
        self.lines += [f"axis {name}: {sizes}" for name, sizes in dynamic.observation.dynamic.items()]
        return dynamic


def _conditions_of(references: Mapping[str, ReferenceGraph], facts: Facts) -> tuple[Condition, ...]:
    """Return the descriptions of the conditions, once the graphs take each as it was given."""
    by_component = {name: [edge.name for edge in references[name].conditions] for name in COMPONENTS}
    for component in COMPONENTS:
        graph = references[component].graph
        for edge in references[component].conditions:
            values = facts.conditions[edge.name]
            kind = "float32" if values.dtype.kind == "f" else "int64"
            sizes = edge.axes[1:] if edge.axes else None
            fits = sizes is None or (
                len(sizes) == values.ndim - 1
                and all(axis.size in (None, size) for axis, size in zip(sizes, values.shape[1:], strict=True))
            )
            if kind != edge.dtype or not fits:
                shape = "of any shape" if sizes is None else str([axis.size or axis.name for axis in sizes])
                raise ExportError(
                    f"{graph.path}: {edge.name}: expected values of {edge.dtype} {shape}, got {kind} "
                    f"{list(values.shape[1:])} as conditions[{edge.name!r}]"
                )
    for name in facts.conditions:
        if not any(name in names for names in by_component.values()):
            inputs = [edge.name for part in references.values() for edge in part.graph.inputs]
            raise ExportError(f"conditions: expected inputs of the graphs, among {', '.join(inputs)}, got {name!r}")
    return tuple(
        described_condition(name, values, [c for c in COMPONENTS if name in by_component[c]], facts.classes.get(name))
        for name, values in facts.conditions.items()
    )


def _name(name: str, default: str, taken: Sequence[str]) -> str:
    """Return an input's name, or the default where a bundle cannot have it."""
    return name if TENSOR.matches(name) and name not in taken else default


def _word(name: str) -> str:
    """Return the word in an output's name: without punctuation, and without the number that makes a name unique."""
    name = name.lower()
    # Either the second sigma or its square.
    if re.search(r"(sigma|std)[._:]2$", name):
        return ""
    return re.sub("[^a-z0-9]", "", re.sub(r"[._:][0-9]+$", "", name))


def _numbered(shape: Sequence[int]) -> tuple[str, ...]:
    return tuple(f"axis_{number}" for number in range(1, len(shape) + 1))


def _numbers(declared: Any, default: Any) -> Any:
    value = default if declared is None else declared
    return tuple(float(each) for each in value) if isinstance(value, (list, tuple)) else float(value)
