"""Rules between the fields of a manifest: docs/bundle-format.md lists them under "Cross-field rules"."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from .fields import Problem, join
from .likelihood import KINDS
from .manifest import Condition, Latent, Likelihood, Manifest, Observation, Sizes, Tiles

if TYPE_CHECKING:
    from .chunks import Stream

_MAX_LISTED = 300


def contradictions(manifest: Manifest) -> list[Problem]:
    """List the problems of fields that are valid by themselves and contradict each other."""
    vae = "additional_metadata.vae"
    observation = manifest.observation
    found = [*_axes_problems(f"{vae}.observation", observation.shape, observation.axes, observation.dynamic)]
    found += _range_problems(f"{vae}.observation", observation.range)
    raw = observation.normalisation
    if raw is not None:
        place = f"{vae}.observation.normalisation"
        found += _count_problems(place, observation.shape, offset=raw.offset, divisor=raw.divisor)
    for index, condition in enumerate(manifest.conditions):
        found += _condition_problems(f"{vae}.conditions[{index}]", condition)
    for index, latent in enumerate(manifest.latents):
        found += _latent_problems(f"{vae}.latents[{index}]", latent)
    found += _likelihood_problems(f"{vae}.likelihood", manifest.likelihood)
    found += _values_problems(vae, observation, manifest.likelihood)
    for index, tiles in enumerate(manifest.tiles):
        if any(other.component == tiles.component for other in manifest.tiles[:index]):
            where = f"{vae}.tiles[{index}].component"
            found.append(Problem(where, "each component once", json.dumps(tiles.component)))
        found += _tiles_problems(f"{vae}.tiles[{index}]", tiles, manifest)
    found += _name_problems(vae, manifest)
    if manifest.table:
        found += _table_problems(f"{vae}.table", manifest)
    if manifest.scores is not None:
        from .held_out import problems_of  # bundles without scores start without it

        found += problems_of(f"{vae}.scores", manifest.scores)
    required = {"encoder": manifest.encoder, "decoder": manifest.decoder}
    if manifest.packed_from or is_decoder_alone(manifest):
        required = manifest.components or required
    for component, variants in required.items():
        place = f"components.{component}.variants"
        outputs = [output.name for output in manifest.outputs(component)]
        expected = f"a number for each of {_listed(sorted(outputs))}"
        if not any(variant.executor == "ort" for variant in variants.values()):
            found.append(Problem(place, 'at least one variant with executor_info "ort"', _listed(variants)))
        for variant in variants.values():
            for field_name, numbers in (("tolerance", variant.tolerance), ("error", variant.error)):
                if set(numbers) != set(outputs):
                    where = f"{join(place, variant.name)}.additional_metadata.vae.{field_name}"
                    found.append(Problem(where, expected, _listed(sorted(numbers))))
            if variant.stream is not None:
                where = f"{join(place, variant.name)}.additional_metadata.vae.stream"
                found += _stream_problems(where, variant.stream, manifest if component == "decoder" else None)
    components = manifest.components
    for index, refusal in enumerate(manifest.refused):
        if refusal.variant in components.get(refusal.component, {}):
            where = f"{vae}.refused[{index}].variant"
            found.append(
                Problem(where, f"a variant that {refusal.component} does not have", json.dumps(refusal.variant))
            )
    paths = [path for variant in manifest.variants for path in variant.paths]
    for path in sorted({path for path in paths if paths.count(path) > 1}):
        found.append(Problem("components", f"one use of the file {path}", str(paths.count(path))))
    return found


def is_decoder_alone(manifest: Manifest) -> bool:
    """Whether the model was exported without an encoder, as `refused` then says."""
    return not manifest.encoder and any(
        (each.component, each.variant) == ("encoder", "fp32") for each in manifest.refused
    )


def _listed(names: Iterable[str]) -> str:
    """Return names as a problem shows them; a bundle may have many long ones, and a problem for each."""
    text = str(list(names))
    return text if len(text) <= _MAX_LISTED else f"{text[: _MAX_LISTED - 1]}…"


def _axes_problems(
    place: str, shape: tuple[int, ...], axes: tuple[str, ...], dynamic: Mapping[str, Sizes]
) -> Iterator[Problem]:
    if axes and len(axes) != len(shape):
        yield Problem(f"{place}.axes", f"one name for each of the {len(shape)} sizes of the shape", str(len(axes)))
        return
    names = _listed(axes)
    for axis, sizes in dynamic.items():
        where = join(f"{place}.dynamic", axis)
        if axes.count(axis) != 1:
            yield Problem(where, "the name of one of the axes", names)
        elif shape[axes.index(axis)] not in sizes:
            yield Problem(where, f"sizes that include {shape[axes.index(axis)]}, the size in the shape", str(sizes))


def _range_problems(place: str, bounds: tuple[float, float] | None) -> Iterator[Problem]:
    if bounds and not bounds[0] < bounds[1]:
        yield Problem(f"{place}.range", "min below max", str(list(bounds)))


def _condition_problems(place: str, condition: Condition) -> Iterator[Problem]:
    yield from _range_problems(place, condition.range)
    if condition.classes is None:
        return
    if condition.dtype != "int64" or condition.shape:
        got = f"{condition.dtype} {list(condition.shape)}"
        yield Problem(f"{place}.classes", "no classes unless the condition is int64 []", got)
    if condition.range:
        yield Problem(f"{place}.range", "no range beside classes", str(list(condition.range)))


def _latent_problems(place: str, latent: Latent) -> Iterator[Problem]:
    yield from _axes_problems(place, latent.shape, latent.axes, latent.dynamic)
    prior, posterior = latent.prior, latent.posterior
    if (latent.dtype == "int64") != (posterior.kind == "codes"):
        expected = "int64 for codes" if posterior.kind == "codes" else "float32 for anything but codes"
        yield Problem(f"{place}.dtype", expected, latent.dtype)
    if posterior.kind == "codes" and prior.kind != "none":
        yield Problem(f"{place}.prior.kind", '"none" for codes', json.dumps(prior.kind))
    if posterior.kind == "none" and posterior.value is None and prior.kind != "normal":
        expected = '"normal" for a latent that the encoder does not give'
        yield Problem(f"{place}.prior.kind", expected, json.dumps(prior.kind))
    if prior.kind == "mixture" and latent.dynamic:
        yield Problem(f"{place}.prior.kind", "another prior for a latent with dynamic axes", json.dumps(prior.kind))
    yield from _count_problems(place, latent.shape, scale=latent.scale, shift=latent.shift)


def _count_problems(place: str, shape: Sequence[int], **fields: float | tuple[float, ...]) -> Iterator[Problem]:
    for name, numbers in fields.items():
        if isinstance(numbers, tuple) and len(numbers) != shape[0]:
            expected = f"one number, or {shape[0]} for the first axis of the shape"
            yield Problem(f"{place}.{name}", expected, str(len(numbers)))


def _tiles_problems(place: str, tiles: Tiles, manifest: Manifest) -> Iterator[Problem]:
    latent, observation = manifest.latent, manifest.observation
    for axis in tiles.halo:
        if axis not in latent.dynamic or axis not in observation.dynamic:
            where = join(f"{place}.halo", axis)
            yield Problem(where, "a dynamic axis of the observation and of the first latent", json.dumps(axis))
            return
        if any(axis not in tensor.axes or len(tensor.axes) != len(tensor.shape) for tensor in (latent, observation)):
            return  # The tensor's own problem says so.
        whole, part = observation.dynamic[axis], latent.dynamic[axis]
        ratio, rest = divmod(observation.shape[observation.axes.index(axis)], latent.shape[latent.axes.index(axis)])
        if rest or (whole.min, whole.step) != (part.min * ratio, part.step * ratio) or part.min % part.step:
            where = join(f"{place}.halo", axis)
            yield Problem(where, "an axis whose sizes are multiples of the latent's", f"{whole} and {part}")
    if len(manifest.latents) > 1 and tiles.halo:
        yield Problem(f"{place}.halo", "no tiles where there are several latents", str(len(manifest.latents)))


def _stream_problems(place: str, stream: Stream, manifest: Manifest | None) -> Iterator[Problem]:
    """The problems of a stream; `manifest` is None for a component that has none."""
    members = {"file": stream.file, "hop": stream.hop, "error": stream.error}
    absent = [name for name, value in members.items() if value is None]
    if len(absent) == len(members) and not stream.states:
        return
    if absent:
        yield Problem(place, "file, hop and error, or none of them", f"no {absent[0]}")
    if manifest is None or len(manifest.latents) > 1 or len(manifest.latent.dynamic) != 1:
        yield Problem(place, "no stream but of a decoder of one latent with one dynamic axis", "one")
        return
    likelihood = manifest.likelihood
    axes = manifest.observation.axes if likelihood.shape is None else likelihood.axes
    if not set(manifest.latent.dynamic) <= set(axes):
        yield Problem(place, f"a mean with the axis {_listed(manifest.latent.dynamic)}", _listed(axes))
    names = [*(tensor.name for tensor in manifest.inputs("decoder")), *(state.name for state in stream.states)]
    outputs = [state.next for state in stream.states]
    twice = [name for name, count in Counter(names).items() if count > 1]
    twice += [name for name in outputs if name == likelihood.mean]
    if twice:
        yield Problem(f"{place}.states", "a name that no other input or output has", json.dumps(twice[0]))


def _table_problems(place: str, manifest: Manifest) -> Iterator[Problem]:
    names = set()
    for index, column in enumerate(manifest.table):
        if column.name in names:
            yield Problem(f"{place}[{index}].name", "a name that no other column has", json.dumps(column.name))
        names.add(column.name)
        if len(column.scales) != len(column.means):
            yield Problem(
                f"{place}[{index}].scales", f"one for each of {len(column.means)} means", f"{len(column.scales)}"
            )
    shape, width = manifest.outputs("decoder")[0].shape, sum(column.width for column in manifest.table)
    if shape != (width,):
        yield Problem(place, f"columns of {list(shape)} values, the decoder's", str(width))


def _likelihood_problems(place: str, likelihood: Likelihood) -> Iterator[Problem]:
    if likelihood.shape is None:
        if likelihood.axes:
            yield Problem(f"{place}.axes", "no axes without a shape", _listed(likelihood.axes))
    else:
        yield from _axes_problems(place, likelihood.shape, likelihood.axes, {})
    for index, output in enumerate(likelihood.outputs):
        yield from _axes_problems(f"{place}.outputs[{index}]", output.shape, output.axes, {})


def _values_problems(vae: str, observation: Observation, likelihood: Likelihood) -> Iterator[Problem]:
    """The problems of kinds whose values are levels of a range, or classes."""
    kind = KINDS.get(likelihood.kind)
    if kind is not None and kind.levels and observation.range is None:
        yield Problem(f"{vae}.observation.range", f"the first and the last of {kind.levels} levels", "null")
    if not likelihood.has_classes:
        return
    shape, axes = likelihood.shape or (), likelihood.axes
    if shape[:-1] != observation.shape or len(shape) != len(observation.shape) + 1 or shape[-1] < 2:
        expected = f"{list(observation.shape)} and behind it the number of classes, at least 2"
        yield Problem(f"{vae}.likelihood.shape", expected, str(list(shape)))
    elif axes[:-1] != observation.axes:
        yield Problem(f"{vae}.likelihood.axes", f"{_listed(observation.axes)} and a name behind them", _listed(axes))
    elif observation.range != (0, shape[-1] - 1):
        got = "null" if observation.range is None else str(list(observation.range))
        yield Problem(f"{vae}.observation.range", f"[0, {shape[-1] - 1}], the classes", got)


def _name_problems(vae: str, manifest: Manifest) -> Iterator[Problem]:
    # Inputs of both components share their names: the golden vectors are named by input alone.
    inputs = [(f"{vae}.observation.name", manifest.observation.name)]
    inputs += [(f"{vae}.conditions[{index}].name", item.name) for index, item in enumerate(manifest.conditions)]
    encoded = []
    for index, latent in enumerate(manifest.latents):
        place = f"{vae}.latents[{index}]"
        inputs.append((f"{place}.name", latent.name))
        if latent.posterior.noise:
            inputs.append((f"{place}.posterior.noise", latent.posterior.noise))
        encoded += [(f"{place}.posterior", name) for name in latent.posterior.outputs]
    decoded = [(f"{vae}.likelihood", output.name) for output in manifest.outputs("decoder")]
    for what, named in (("input", inputs), ("output", encoded), ("output", decoded)):
        taken = set()
        for place, name in named:
            if name in taken:
                yield Problem(place, f"a name that no other {what} has", name)
            taken.add(name)
