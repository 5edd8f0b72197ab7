"""Measure how a component can be divided into tiles along its dynamic axes: its receptive field, or why it has none.

A number that is not a number spreads through every layer as far as it is read: what it reaches is the receptive field,
whatever the weights are. Crops with a halo of that size are then held against the undivided answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from vae_runtime.errors import error_line
from vae_runtime.manifest import Tiles

from .adapted import Adapted, resized, run_module
from .posterior import distance

# How far crops may be from the undivided answer: other sizes take other kernels, whose roundings differ.
_SAME = 1e-4
_CROPS = 4
# How much larger a tensor is tried where the proven sizes do not show the receptive field.
_LARGER = 4
# Layers that read all of their input. A convolution may also spoil the last numbers of a small tensor.
_GLOBAL = (nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)


def with_tiles(adapted: Adapted, model: object) -> Adapted:
    """Return the same, with how each component can be divided; nothing for a model without dynamic axes.

    A model that is set to blend tiles of its own, as some of diffusers are from the start, is noted.
    """
    adapted = replace(adapted, recognised=(*adapted.recognised, *_own_tiles(model)))
    signature = adapted.signature
    if not signature.observation.dynamic or not any(latent.dynamic for latent in signature.latents):
        return adapted
    tiles = tuple(_measured(adapted, component) for component in adapted.modules)
    lines = [f"tiles: {each.component}: {_described(each)}" for each in tiles]
    return replace(adapted, signature=replace(signature, tiles=tiles), recognised=(*adapted.recognised, *lines))


def _own_tiles(model: object) -> list[str]:
    settings = getattr(model, "__dict__", {})
    if settings.get("use_tiling") is not True:
        return []
    sizes = [settings.get(f"tile_sample_min_{name}") for name in ("size", "height", "width")]
    above = " × ".join(str(size) for size in sizes if size)
    return [
        f"tiles: use_tiling is set: the model blends tiles above {above or 'some size'}, the bundle does so with "
        "tile_blend=True alone"
    ]


def _described(tiles: Tiles) -> str:
    if not tiles.halo:
        return f"none, {tiles.reason}"
    return ", ".join(f"{axis} with a halo of {halo}" for axis, halo in tiles.halo.items())


def _measured(adapted: Adapted, component: str) -> Tiles:
    signature = adapted.signature
    if len(signature.latents) > 1:
        return Tiles(component, reason="there are several latents")
    if component == "decoder" and signature.likelihood.shape is not None:
        return Tiles(component, reason="the decoder's answer has another shape than the observation")
    halos: dict[str, int] = {}
    reasons = []
    for axis in signature.observation.dynamic:
        if axis not in signature.latent.dynamic:
            continue
        try:
            halos[axis] = _Component(adapted, component, axis).halo()
        except _GlobalError as reason:
            reasons.append(f"{axis}: {reason}")
        except Exception as error:
            reasons.append(f"{axis}: {error_line(error)}")
    if not halos:
        return Tiles(component, reason="; ".join(reasons) or "no axis of the latent is dynamic")
    return Tiles(component, halos)


class _GlobalError(Exception):
    """Every answer depends on everything, or the example is too small to tell."""


class _Component:
    """One component along one dynamic axis; sizes are those of the latent."""

    def __init__(self, adapted: Adapted, component: str, axis: str) -> None:
        signature = adapted.signature
        latent, observation = signature.latent, signature.observation
        self._adapted, self._component, self._axis = adapted, component, axis
        self._module = adapted.modules[component]
        self._latent, self._other = latent.axes.index(axis) + 1, observation.axes.index(axis) + 1
        self._sizes, whole = latent.dynamic[axis], observation.dynamic[axis]
        self._ratio = observation.shape[self._other - 1] // latent.shape[self._latent - 1]
        part = self._sizes
        if (whole.min, whole.step) != (part.min * self._ratio, part.step * self._ratio) or part.min % part.step:
            raise _GlobalError(f"its sizes, {whole}, are no multiples of the latent's, {part}")
        self._decodes = component == "decoder"
        # Where the given tensor and the answer are divided, and how many of their values make one of the latent.
        self._given = (self._latent, 1) if self._decodes else (self._other, self._ratio)
        self._answer = (self._other, self._ratio) if self._decodes else (self._latent, 1)
        divided = latent if self._decodes else observation
        # The smallest sizes of the other axes, on which the reach along this one does not depend.
        self._narrow = {
            divided.axes.index(name) + 1: sizes.min for name, sizes in divided.dynamic.items() if name != axis
        }

    def halo(self) -> int:
        """How far a value of the latent reaches, to the farther side."""
        step = self._sizes.step
        size = self._sizes.max // step * step
        if not self._tensors(size)[0].is_floating_point():
            raise _GlobalError("the codes of a vector quantizer are not measured")
        halo, layer = self._reach(size)
        if halo is None and not isinstance(layer, _GLOBAL):
            # A larger tensor tells a wide field from none.
            size *= _LARGER
            halo, layer = self._reach(size)
        if halo is None:
            by = "" if layer is None else f", by a layer {type(layer).__name__}"
            raise _GlobalError("every answer depends on the whole" + by)
        needed = 2 * (halo + step) + step
        if self._sizes.max < needed:
            raise _GlobalError(
                f"a tile with its halo of {halo} is larger than any proven size, {self._sizes.max * self._ratio}; an "
                f"example of {-(-needed // 2) * self._ratio} or more proves larger ones"
            )
        if not self._holds(size, halo):
            raise _GlobalError("tiles with the halo differ from the undivided answer")
        return halo

    def _tensors(self, size: int) -> list[Tensor]:
        """The component's inputs, one row, with this size of the axis; the first is the one that is divided."""
        examples = {name: tensor[:1] for name, tensor in self._adapted.examples.items()}
        axis, values = self._given
        tensors = list(self._adapted.given(self._component, examples))
        tensors[0] = resized(tensors[0], {axis: size * values})
        return tensors

    def _run(self, given: Sequence[Tensor]) -> list[Tensor]:
        return [output for output in run_module(self._module, given, again=True) if output.is_floating_point()]

    def _spoiled(self, size: int) -> list[Tensor]:
        """The inputs, narrow along other axes, with no number in place of one value of the latent, in the middle."""
        given = self._tensors(size)
        axis, values = self._given
        given[0] = resized(given[0], self._narrow)
        given[0].narrow(axis, size // 2 * values, values).fill_(float("nan"))
        return given

    def _reach(self, size: int) -> tuple[int | None, nn.Module | None]:
        """How far a value of the latent reaches, to the farther side, None if it reaches a border; and the first layer
        whose answer holds no number although its input holds some."""
        layers: list[nn.Module] = []

        def note(layer: nn.Module, given: tuple[object, ...], output: object) -> None:
            x = given[0] if given and not layers else None
            if isinstance(x, Tensor) and _no_numbers(output) and not _no_numbers(x):
                layers.append(layer)

        hooks = [layer.register_forward_hook(note) for layer in self._module.modules() if not layer._modules]
        try:
            outputs = self._run(self._spoiled(size))
        finally:
            for hook in hooks:
                hook.remove()
        layer = layers[0] if layers else None
        halo = 0
        axis, values = self._answer
        for output in outputs:
            other = [index for index in range(output.dim()) if index != axis]
            reached = torch.isnan(output).amax(dim=other).nonzero().flatten()
            if not len(reached):
                raise _GlobalError("its answer does not depend on single values")
            first, last = int(reached[0]) // values, int(reached[-1]) // values
            if first == 0 or last == size - 1:
                return None, layer
            halo = max(halo, size // 2 - first, last - size // 2)
        return halo, layer

    def _holds(self, size: int, halo: int) -> bool:
        """Whether crops with this halo give the undivided answer."""
        given = self._tensors(size)
        whole = self._run(given)
        step = self._sizes.step
        generator = torch.Generator().manual_seed(0)
        length = max(2 * halo + 2 * step, self._sizes.min)
        for _ in range(_CROPS):
            start = int(torch.randint(max(1, size - length), (1,), generator=generator)) // step * step
            stop = min(size, -(-(start + length) // step) * step)
            first = 0 if start == 0 else start + halo
            last = size if stop == size else stop - halo
            if first >= last:
                continue
            axis, values = self._given
            part = self._run([given[0].narrow(axis, start * values, (stop - start) * values), *given[1:]])
            axis, values = self._answer
            for own, undivided in zip(part, whole, strict=True):
                a = own.narrow(axis, (first - start) * values, (last - first) * values)
                if distance(a, undivided.narrow(axis, first * values, (last - first) * values)) > _SAME:
                    return False
        return True


def _no_numbers(tensor: object) -> bool:
    return isinstance(tensor, Tensor) and bool(torch.isnan(tensor).all())
