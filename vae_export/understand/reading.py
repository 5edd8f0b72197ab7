"""Read the answers of encoders and decoders: tuples, mappings, objects, distributions."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Categorical,
    Cauchy,
    Distribution,
    Independent,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)
from torch.nn import functional

from ..errors import ExportError
from .declaration import Declaration
from .draws import Sigmoids
from .edges import as_float32, making_graph

# What to do about latents that are not normal.
AS_CODES = (
    "pass encode=, a function that returns the classes as integers or one tensor of points, and decode=, a function of "
    "these"
)
_AS_BASE = (
    "pass encode=, a function that returns its base_dist, which is normal, and decode=, a function that applies its "
    "transforms first"
)
_MEANS = ("mu", "mean", "loc", "z_mean", "z_mu", "embedding", "means")
_SECONDS = {
    "logvar": ("logvar", "log_var", "log_covariance", "log_variance", "z_logvar", "z_log_var", "logsigma2"),
    "std": ("std", "sigma", "scale", "stddev", "z_std"),
    "var": ("var", "variance", "sigma2", "z_var"),
    "log_std": ("log_std", "logstd", "log_sigma", "logsigma", "log_scale"),
}
_VALUES = ("z", "latent", "latents", "code")
_CODES = ("codes", "indices", "quantized_indices", "encoding_indices")
_CODE_WORDS = ("code", "indices", "token")
_DECODED = ("x", "x_hat", "x_recon", "recon_x", "recon", "reconstruction", "sample", "mean", "mu", "loc", "output")


@dataclass(frozen=True)
class Part:
    """One latent in an encoder's answer: a mean with a second tensor and its meaning, integer codes, or a value."""

    kind: str
    value: Tensor
    second: Tensor | None = None
    meaning: str | None = None
    name: str | None = None
    distribution: bool = False


@dataclass(frozen=True)
class EncoderReading:
    """How to read an encoder's output: decided once, then the same at every run, traced ones included."""

    declaration: Declaration
    doubled: int | None = None
    """The axis along which one tensor holds the mean and the second tensor."""
    keep: tuple[int, ...] | None = None
    """The tensors of a flat tuple that are no samples, by number."""
    rows: int | None = None
    """The number of codes for each observation, where an encoder returns the codes of all in one row."""
    meanings: tuple[str | None, ...] = ()
    order: tuple[int, ...] = ()
    """The latents by number, in the order in which decode takes them, where their names show it."""

    def read(self, output: Any) -> list[Part]:
        """The latents of one answer."""
        if self.keep is not None:
            output = tuple(output[index] for index in self.keep)
        parts = parts_of(output, self.declaration)
        if self.doubled is not None:
            mean, second = parts[0].value.chunk(2, dim=self.doubled)
            parts = [Part("normal", mean, second)]
        if self.rows is not None:
            parts = [dataclasses.replace(parts[0], value=parts[0].value.reshape(-1, self.rows))]
        return [parts[number] for number in self.order] if self.order else parts


def fields_of(output: Any) -> dict[str, Any] | None:
    """Return an object's tensors by name; None if it has no names for them."""
    if isinstance(output, Mapping):
        return dict(output)
    if hasattr(output, "_asdict"):
        return dict(output._asdict())
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return {f.name: getattr(output, f.name) for f in dataclasses.fields(output)}
    if isinstance(output, (Tensor, tuple, list, Distribution)) or output is None:
        return None
    names = [*_MEANS, *(n for group in _SECONDS.values() for n in group), *_VALUES, *_CODES, "latent_dist", *_DECODED]
    values = {name: getattr(output, name, None) for name in names}
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, (Tensor, Distribution)) or (name == "latent_dist" and value is not None)
    }


def parts_of(output: Any, declaration: Declaration) -> list[Part]:
    """Read the latents out of an encoder's answer."""
    if isinstance(output, Independent):
        return parts_of(output.base_dist, declaration)
    if isinstance(output, Normal):
        return [Part("normal", output.loc, output.scale, "std", distribution=True)]
    if isinstance(output, MultivariateNormal):
        return [Part("normal", output.loc, _independent_std(output), "std", distribution=True)]
    if isinstance(output, Distribution):
        based = isinstance(output, TransformedDistribution) and isinstance(output.base_dist, (Normal, Independent))
        advice = _AS_BASE if based else AS_CODES
        raise ExportError(f"encode: expected a normal posterior, got {type(output).__name__}; {advice}")
    if isinstance(output, Tensor) and output.is_complex():
        raise ExportError(
            "encode: expected real numbers, got complex ones; pass encode=, a function that returns real ones, such as "
            "torch.view_as_real of them"
        )
    if isinstance(output, Tensor) and output.dim() == 0:
        raise ExportError("encode: expected a row for each observation, got one number; pass encode=")
    if isinstance(output, Tensor):
        whole = not output.is_floating_point()
        return [Part("codes" if whole else "none", output)]
    fields = fields_of(output)
    if fields is not None:
        return _named_parts(output, fields, declaration)
    items = [item for item in output if item is not None] if isinstance(output, (tuple, list)) else []
    if not items:
        raise ExportError(
            f"encode: expected tensors, got {type(output).__name__}; pass encode=, a function that returns them"
        )
    if not all(isinstance(item, Tensor) for item in items):
        nested = [item for item in items if not isinstance(item, Tensor)]
        if len(nested) == len(items) or all(isinstance(item, (Distribution, tuple, list)) for item in nested):
            return [part for item in nested for part in parts_of(item, declaration)]
    # A number for the whole batch is taken for a loss.
    tensors = [item for item in items if isinstance(item, Tensor) and item.dim() > 0]
    whole_numbers = [tensor for tensor in tensors if not tensor.is_floating_point() and tensor.dim() > 1]
    if not whole_numbers and len(tensors) == 1 and not tensors[0].is_floating_point():
        # The codes of all observations in one row.
        whole_numbers = tensors
    if whole_numbers:
        return [Part("codes", tensor) for tensor in whole_numbers]
    if not tensors:
        raise ExportError("encode: expected tensors with a row for each observation, got none; pass encode=")
    if declaration.posterior == "none":
        return [Part("none", tensors[0])]
    if len(tensors) % 2 == 0 and all(a.shape == b.shape for a, b in zip(tensors[::2], tensors[1::2], strict=True)):
        return [Part("normal", a, b) for a, b in zip(tensors[::2], tensors[1::2], strict=True)]
    return [Part("none", tensor) for tensor in tensors]


def _independent_std(posterior: MultivariateNormal) -> Tensor:
    """The standard deviations of a normal distribution of several dimensions, which must be independent.

    A trace cannot ask for it; what is traced was run before, and so is every batch of a training.

    Raises:
        ExportError: two of its dimensions are correlated in any row.
    """
    # As it was given, because no graph computes the factor of a covariance.
    given = "covariance_matrix" in vars(posterior)
    matrix: Tensor = posterior.covariance_matrix if given else posterior.scale_tril
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    if not making_graph() and not torch.equal(matrix, torch.diag_embed(diagonal)):
        raise ExportError(
            "encode: expected a posterior of independent dimensions, got a MultivariateNormal whose covariance is not "
            "diagonal; pass encode=, a function that returns (mu, logvar), a variance for each dimension"
        )
    return diagonal.sqrt() if given else diagonal


def _named_parts(output: Any, fields: Mapping[str, Any], declaration: Declaration) -> list[Part]:
    for name in ("latent_dist", "posterior", "qz", "q_z", "dist", "distribution"):
        if fields.get(name) is not None:
            return parts_of(fields[name], declaration)
    for name in (*_CODES, *(name for name in fields if any(word in name for word in _CODE_WORDS))):
        codes = fields.get(name)
        if isinstance(codes, Tensor) and (name in _CODES or not codes.is_floating_point()):
            return [Part("codes", codes)]
    mean = next((fields[name] for name in _MEANS if isinstance(fields.get(name), Tensor)), None)
    if mean is not None:
        for meaning, names in _SECONDS.items():
            for name in names:
                if isinstance(fields.get(name), Tensor):
                    return [Part("normal", mean, fields[name], meaning)]
        return [Part("none", mean)]
    value = next((fields[name] for name in _VALUES if isinstance(fields.get(name), Tensor)), None)
    if value is not None:
        return [Part("none", value)]
    if fields and all(isinstance(value, (Distribution, tuple, list)) for value in fields.values()):
        parts = {name: parts_of(value, declaration) for name, value in fields.items()}
        return [dataclasses.replace(part, name=name) for name, own in parts.items() for part in own]
    whole_numbers = [value for value in fields.values() if isinstance(value, Tensor) and not value.is_floating_point()]
    if len(whole_numbers) == 1:
        return [Part("codes", whole_numbers[0])]
    raise ExportError(
        f"encode: expected fields such as mu and logvar, {type(output).__name__} has "
        f"{', '.join(map(str, fields)) or 'none'}; pass encode=, a function that returns (mu, logvar)"
    )


def second_to(meaning: str, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return logvar and std for an encoder's second tensor of this meaning."""
    if meaning == "logvar":
        # In the graph, because the exp of host libraries differs from build to build.
        return second, torch.exp(0.5 * second)
    if meaning == "log_std":
        return 2 * second, torch.exp(second)
    if meaning == "var":
        return torch.log(second), torch.sqrt(second)
    std = functional.softplus(second) if meaning == "softplus" else second
    return 2 * torch.log(std), std


@dataclass(frozen=True)
class DecoderReading:
    """How to read a decoder's answer."""

    logits: str | None = None
    """Where logits come from: "answer", the decoder's answer, or "sigmoid", the argument of its last sigmoid."""
    scale: bool = False
    further: tuple[str, ...] = ()
    class_axis: int | None = None
    """The axis of the decoder's answer along which the classes lie, where there are such; it becomes the last one."""
    has_channel: bool = False
    """The observations have an axis of one channel, which the decoder's answer lacks."""
    shape: tuple[int, ...] | None = None
    """That of an observation, where the decoder's answer has another one with as many numbers."""

    def read(self, output: Any, draws: Sigmoids) -> tuple[Tensor, ...]:
        """The tensors of one answer: the mean, the logits or the scale, and the further outputs."""
        fields = fields_of(output) if self.further else None
        further = tuple(fields[name] for name in self.further) if fields else ()
        return (*(self.observed(tensor) for tensor in self._parameters(output, draws)), *further)

    def observed(self, tensor: Tensor) -> Tensor:
        """A parameter of the answer in the shape of an observation."""
        return tensor if self.shape is None else tensor.reshape(tensor.shape[0], *self.shape)

    def _parameters(self, output: Any, draws: Sigmoids) -> tuple[Tensor, ...]:
        """The mean, and the logits or the scale."""
        if self.class_axis is not None:
            base = base_of(output)
            answer: Tensor = base if isinstance(base, Tensor) else base.logits
            answer = as_float32(answer).movedim(self.class_axis, -1)
            answer = answer.unsqueeze(1) if self.has_channel else answer
            # Both, as below.
            return (torch.softmax(answer, -1), answer) if self.logits else (answer,)
        if self.logits == "answer":
            base = base_of(output)
            logits: Tensor = base if isinstance(base, Tensor) else base.logits
            # Both: in float32 the sigmoid is 1 from a logit of 16.7 on, too coarse for a likelihood.
            return torch.sigmoid(logits), logits
        mean = mean_of(output)
        if self.logits == "sigmoid":
            if draws.sigmoid is None:
                raise ExportError("expected the sigmoid of evaluation mode, got none")
            return mean, draws.sigmoid[0].reshape(mean.shape)
        return (mean, base_of(output).scale) if self.scale else (mean,)


def base_of(output: Any) -> Any:
    """Return the tensor or the distribution in a decoder's answer."""
    fields = None if isinstance(output, (Tensor, Distribution, tuple, list)) else fields_of(output)
    if fields is not None:
        name = next((name for name in _DECODED if isinstance(fields.get(name), (Tensor, Distribution))), None)
        output = fields[name] if name else next(iter(fields.values()), None)
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    while isinstance(output, Independent):
        output = output.base_dist
    return output


def beside_of(output: Any, known: Sequence[Tensor] = ()) -> list[str]:
    """Name what stands beside the first of a decoder's answer and may be a scale of it, or a second mean.

    Such a tensor of floats has the shape of the first, or one that is spread over it, and does not follow from the
    first alone, as probabilities follow from logits. A distribution says its scale itself, so that beside one only
    another distribution counts.

    Args:
        output: the answer.
        known: tensors that may be passed through, such as the latents.
    """
    base = base_of(output)
    if not isinstance(base, (Tensor, Distribution)):
        return []
    fields = fields_of(output)
    items = enumerate(output, 1) if isinstance(output, (tuple, list)) and fields is None else (fields or {}).items()
    found = []
    for name, value in items:
        leaves = map(base_of, value) if isinstance(value, (tuple, list)) else [base_of(value)]
        others = [leaf for leaf in leaves if leaf is not base and isinstance(leaf, (Tensor, Distribution))]
        if any(_is_beside(leaf, base, known) for leaf in others):
            found.append(f"item {name} of its answer" if isinstance(name, int) else repr(name))
    return found


def _is_beside(value: Tensor | Distribution, base: Tensor | Distribution, known: Sequence[Tensor]) -> bool:
    """Whether one part of a decoder's answer may say more of the observation than `base`, which is taken."""
    if not _is_spread(_shape_of(value), _shape_of(base)):
        return False
    if isinstance(value, Distribution):
        return True
    if isinstance(base, Distribution) or not value.is_floating_point():
        return False
    passed = any(value.shape == other.shape and torch.equal(value, other) for other in known)
    return not passed and not follows(value, base)


def _shape_of(value: Tensor | Distribution) -> Sequence[int]:
    return value.shape if isinstance(value, Tensor) else value.batch_shape + value.event_shape


def follows(second: Tensor, first: Tensor) -> bool:
    """Return whether one of two tensors is the other after an activation, as probabilities are beside their logits."""
    if second.shape != first.shape:
        return False
    for a, b in ((as_float32(first), as_float32(second)), (as_float32(second), as_float32(first))):
        if any(torch.allclose(made, b) for made in (a, torch.sigmoid(a), torch.tanh(a), torch.exp(a), a.clamp(0, 1))):
            return True
    return first.dim() > 1 and any(
        torch.allclose(torch.softmax(as_float32(a), axis), as_float32(b))
        for a, b in ((first, second), (second, first))
        for axis in range(1, first.dim())
    )


def _is_spread(shape: Sequence[int], whole: Sequence[int]) -> bool:
    """Whether a tensor of this shape may be spread over the whole one, as a scale for each channel or each row is."""
    if shape[:1] == whole[:1] and math.prod(shape[1:]) in (1, math.prod(whole[1:])):
        return True
    try:
        return tuple(torch.broadcast_shapes(tuple(shape), tuple(whole))) == tuple(whole)
    except RuntimeError:
        return False


def mean_of(output: Any) -> Tensor:
    """Return the mean of a decoder's answer as float32, whole numbers and bools too.

    Raises:
        ExportError: the answer holds no tensor and no distribution, or complex numbers.
    """
    base = base_of(output)
    if isinstance(base, Tensor) and base.is_complex():
        raise ExportError(
            "decode: expected real numbers, got complex ones; pass decode=, a function that returns what you use of "
            "them, such as their real part"
        )
    if isinstance(base, Distribution):
        return as_float32(_mean(base))
    if isinstance(base, Tensor):
        return as_float32(base)
    raise ExportError(
        f"decode: expected a tensor, a Bernoulli or a Normal, got {type(output).__name__}; pass decode=, a function "
        "that returns it"
    )


def _mean(distribution: Distribution) -> Tensor:
    """The mean of a decoder's distribution; some have none, or none that PyTorch computes."""
    if isinstance(distribution, Categorical):
        # The mean of vectors of zeros and a one.
        return distribution.probs
    if not isinstance(distribution, Cauchy):
        with contextlib.suppress(NotImplementedError):
            return distribution.mean
    raise ExportError(
        f"decode: returns a {type(distribution).__name__}, which has no mean to give for a sample; pass decode=, a "
        "function that returns the tensor to give, such as its probs or loc"
    )


def means_of(distribution: Distribution) -> list[Tensor]:
    """Return the mean of a distribution, or nothing where it has none."""
    try:
        return [mean_of(distribution)]
    except ExportError:
        return []
