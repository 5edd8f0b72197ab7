"""Find the sizes that a dynamic axis may have: which ones work, and what they make of the latents."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from vae_runtime.errors import error_line
from vae_runtime.manifest import Signature, Sizes

from ..errors import ExportError

# Encodes and decodes an observation, with other sizes of the named axes: the shapes of the latents by name, and of the
# decoder's outputs. It raises where the model does not work.
Shapes = tuple[Mapping[str, tuple[int, ...]], Sequence[tuple[int, ...]]]
RoundTrip = Callable[[Mapping[str, int]], Shapes]


def with_dynamic_axes(signature: Signature, names: Sequence[str], round_trip: RoundTrip) -> Signature:
    """Return a signature whose named axes are dynamic, with the sizes that work.

    Args:
        signature: of the usual sizes.
        names: of the observation's axes.
        round_trip: encodes and decodes an observation of other sizes.

    Raises:
        ExportError: there is no such axis, or the model works at no other size.
    """
    observation = signature.observation
    for name in names:
        if name not in observation.axes:
            raise ExportError(
                f"dynamic: expected one of the axes {list(observation.axes)}, got {name!r}; name the axes with axes="
            )
    sizes: dict[str, Sizes] = {}
    latents = {latent.name: latent for latent in signature.latents}
    # The names of the dynamic axes of the decoder's outputs, by the output's number and the axis.
    named: dict[int, dict[int, str]] = {}
    for name in names:
        # With the axes before it at their smallest sizes: a large model takes seconds for the example's.
        narrow = {other: found.min for other, found in sizes.items()}
        axis_sizes = _sizes_of(signature, name, partial(_narrowed, round_trip, narrow))
        sizes[name] = axis_sizes.sizes
        for latent, axes in axis_sizes.latents.items():
            old = latents[latent]
            spelled = tuple(name if index in axes else axis for index, axis in enumerate(old.axes))
            dynamic = {**old.dynamic, **({name: next(iter(axes.values()))} if axes else {})}
            latents[latent] = dataclasses.replace(old, axes=spelled, dynamic=dynamic)
        for number, axis in axis_sizes.outputs:
            named.setdefault(number, {})[axis] = name
    likelihood = signature.likelihood
    own = [name for name in (likelihood.mean, likelihood.logits, likelihood.scale_output) if name]
    further = tuple(
        dataclasses.replace(output, axes=_axes(output.shape, named.get(number, {})))
        for number, output in enumerate(likelihood.outputs, len(own))
    )
    mean_axes = () if likelihood.shape is None else _axes(likelihood.shape, named.get(0, {}))
    if likelihood.has_classes:
        mean_axes = likelihood.axes
    return dataclasses.replace(
        signature,
        observation=dataclasses.replace(observation, dynamic=sizes),
        latents=tuple(latents.values()),
        likelihood=dataclasses.replace(likelihood, axes=mean_axes, outputs=further),
    )


def _narrowed(round_trip: RoundTrip, narrow: Mapping[str, int], sizes: Mapping[str, int]) -> Shapes:
    return round_trip({**narrow, **sizes})


def _axes(shape: Sequence[int], named: Mapping[int, str]) -> tuple[str, ...]:
    return tuple(named.get(index, f"axis_{index + 1}") for index in range(len(shape)))


@dataclass(frozen=True)
class _AxisSizes:
    """The sizes of a dynamic axis, those of the axes of each latent that depend on it, and which axes of outputs do."""

    sizes: Sizes
    latents: Mapping[str, Mapping[int, Sizes]]
    outputs: Sequence[tuple[int, int]]


def _sizes_of(signature: Signature, name: str, round_trip: RoundTrip) -> _AxisSizes:
    observation = signature.observation
    axis = observation.axes.index(name)
    size = observation.shape[axis]
    same = signature.likelihood.shape is None or signature.likelihood.has_classes
    reason = ""
    shapes: dict[int, Mapping[str, tuple[int, ...]]] = {}
    decoded: dict[int, Sequence[tuple[int, ...]]] = {}
    shapes[size], decoded[size] = round_trip({})

    def works(other: int) -> bool:
        nonlocal reason
        try:
            latents, outputs = round_trip({name: other})
        except Exception as error:
            reason = error_line(error)
            return False
        if same and outputs[0][axis] != other:
            reason = f"{other} in, {outputs[0][axis]} out"
            return False
        shapes[other], decoded[other] = latents, outputs
        return True

    step = next((step for step in _steps(size, shapes[size]) if works(size + step)), None)
    if step is None:
        raise ExportError(
            f"dynamic: {name}: expected the model to work at other sizes than {size}, it fails: {reason}; leave {name} "
            "out of dynamic="
        )
    smallest = next((smaller for smaller in _smaller(step, size) if works(smaller)), size)
    doubled = size + size // step * step
    largest = doubled if doubled > size and works(doubled) else size + step
    latents: dict[str, dict[int, Sizes]] = {}
    for latent in shapes[size]:
        for index, length in enumerate(shapes[size][latent]):
            at = {other: by_latent[latent][index] for other, by_latent in shapes.items()}
            moved = at[size + step] - length
            if moved:
                regular = all((value - length) % moved == 0 for value in at.values())
                latents.setdefault(latent, {})[index] = Sizes(at[smallest], at[largest], moved if regular else 1)
    outputs = [
        (number, index)
        for number, shape in enumerate(decoded[size])
        for index, length in enumerate(shape)
        if decoded[size + step][number][index] != length
    ]
    return _AxisSizes(Sizes(smallest, largest, step), latents, outputs)


def _steps(size: int, usual: Mapping[str, tuple[int, ...]]) -> list[int]:
    """Steps to try between sizes, the smallest first: none is smaller than what the encoder shrinks an axis by."""
    # An axis that no latent shrinks by a whole factor may take any size. A causal model keeps the first frame, and
    # shrinks those that follow.
    lengths = {length for shape in usual.values() for length in shape if length > 1}
    ratios = {divmod(size - kept, length - kept) for length in lengths for kept in (0, 1)}
    whole = sorted(ratio for ratio, rest in ratios if ratio and not rest)
    return list(dict.fromkeys([1, *whole, *(2**power for power in range(1, 17) if 2**power <= max(size, 16))]))


def _smaller(step: int, size: int) -> list[int]:
    """Sizes below the usual one by whole steps, the smallest first."""
    sizes, candidate = [size % step], size % step + step
    while candidate < size:
        sizes.append(candidate)
        candidate += candidate // step * step
    # Compilers treat a size of 1 specially: it may also be an axis that is broadcast.
    return [each for each in sizes if each > 1]
