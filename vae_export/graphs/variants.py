"""The variants in fewer bits: their names, how each is made, and the gate that it must pass."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from vae_runtime.errors import InputError, VaeError, require_number
from vae_runtime.manifest import Manifest, Quality, Refusal

from .graph import Graph
from .measurement import Measurement, Observations
from .nodes import nodes_of
from .quantize import (
    LAYERS,
    Setting,
    dynamic_settings,
    restore_contract,
    static_settings,
    with_half_weights,
    with_int8_weights,
)

# Observations that are measured on, and that ranges are taken from, at most; of the latter as many prior draws again.
MEASURED, CALIBRATED = 2048, 256
# A variant's file is at most so much of fp32's: one that is not has too few weights that could be converted.
_MOST_OF_SIZE = 0.9


@dataclass(frozen=True)
class Gate:
    """What a variant may cost: its PSNR in dB is at least, its loss of ELBO in nats per observation at most this."""

    min_psnr: float = 35.0
    max_elbo_loss: float = 0.5

    def __post_init__(self) -> None:
        require_number("min_psnr", self.min_psnr, -1e6, 1e6)
        require_number("max_elbo_loss", self.max_elbo_loss, 0, 1e30)

    def refusal(self, psnr: float | None, elbo_change: float | None) -> str | None:
        """By how much a variant fails; None where it passes. A PSNR of None is that of equal answers."""
        said = []
        # Written so that NaN fails.
        if psnr is not None and not psnr >= self.min_psnr:
            said.append(f"PSNR {psnr:.1f} dB, {self.min_psnr - psnr:.1f} dB below the {self.min_psnr:g} dB asked for")
        if elbo_change is not None and not -elbo_change <= self.max_elbo_loss:
            over = -elbo_change - self.max_elbo_loss
            said.append(
                f"{-elbo_change:.2f} nats of ELBO lost, {over:.2f} more than the {self.max_elbo_loss:g} allowed"
            )
        return "; ".join(said) or None


@dataclass(frozen=True)
class Made:
    """A variant that passed the gate; `integer` if it computes in integers, whose rounding differs between devices."""

    graph: Graph
    quality: Quality
    integer: bool


def require_variants(names: object) -> None:
    """Raise InputError unless these are names out of `VARIANTS`."""
    if not isinstance(names, (list, tuple, set, frozenset)):
        raise InputError(f"variants: expected some of {', '.join(VARIANTS)}, got {names!r}")
    for name in names:
        if name not in VARIANTS:
            raise InputError(f"variants: expected some of {', '.join(VARIANTS)}, got {name!r}")


def make_variants(
    graphs: Sequence[Graph],
    manifest: Manifest,
    wanted: Sequence[str],
    gate: Gate,
    *,
    measured: Observations,
    calibration: Observations,
    files: Mapping[str, bytes],
    folder: Path,
    progress: bool = False,
) -> tuple[list[Made], list[Refusal]]:
    """Make the variants of both components, and measure each beside the other component's fp32.

    Args:
        graphs: of both components; their fp32 graphs are made variants of.
        manifest: what the bundle says with fp32 alone.
        wanted: names out of `VARIANTS`.
        gate: what a variant may cost.
        measured: what is measured on.
        calibration: what ranges are taken from.
        files: the bundle's other files that sampling needs, by name.
        folder: an empty folder for the work.
        progress: say on stderr what was made.

    Returns:
        the variants that passed, and why the others did not.

    Raises:
        InputError: a name is not one of `VARIANTS`.
    """
    require_variants(wanted)
    made: list[Made] = []
    refused: list[Refusal] = []
    if not set(wanted) - {"fp32"}:
        return made, refused
    measurement = Measurement(graphs, manifest, files, folder / "trial", measured.first(MEASURED))
    for component in manifest.components:
        plain = next(g for g in graphs if g.component == component and g.variant == "fp32")
        for name in (name for name in REDUCTIONS if name in wanted):
            place = folder / component / name
            place.mkdir(parents=True)
            found = _first_good(measurement, plain, name, gate, calibration.first(CALIBRATED), place)
            if isinstance(found, Made):
                made.append(found)
                if progress:
                    print(f"{component}/{name}: {found.quality.method}", file=sys.stderr, flush=True)
            else:
                refused.append(found)
                print(f"left out: {component}/{name}: {found.reason}", file=sys.stderr, flush=True)
    return made, refused


def _first_good(
    measurement: Measurement, plain: Graph, name: str, gate: Gate, calibration: Observations, folder: Path
) -> Made | Refusal:
    """The fastest of a variant's settings that passes the gate; of several of one speed the best."""

    def refusal(reason: str) -> Refusal:
        return Refusal(plain.component, name, reason)

    if plain.data:
        return refusal("the graph's weights are beside it, and those of one file alone are converted")
    if plain.component == "encoder" and any(latent.dtype == "int64" for latent in measurement.manifest.latents):
        return refusal("the encoder gives codes, of which one is as far from the next as from any other")
    failed = ["there are no weights of layers that could be made smaller"]
    for level, settings in enumerate(REDUCTIONS[name].settings(measurement, plain, calibration, folder)):
        passed: list[Made] = []
        for index, setting in enumerate(settings):
            try:
                model = setting.make()
                restore_contract(model)
            except Exception as error:  # of the quantizer, which has errors of every kind
                said = (str(error).splitlines() or [type(error).__name__])[0]
                failed.append(f"{setting.method}: ONNX Runtime's quantizer failed: {said}")
                print(f"{plain.component}/{name}: {failed[-1]}; going on without", file=sys.stderr, flush=True)
                continue
            path = folder / f"{level}-{index}.onnx"
            content = model.SerializeToString(deterministic=True)
            if len(content) > _MOST_OF_SIZE * len(plain.content):
                failed.append(
                    f"{setting.method}: a file of at most {100 * _MOST_OF_SIZE:.0f} % of fp32's is expected, got "
                    f"{100 * len(content) / len(plain.content):.0f} %"
                )
                continue
            path.write_bytes(content)
            graph = replace(plain, variant=name, source=path, exporter=f"{plain.exporter}; {setting.method}")
            try:
                quality = measurement.measure(graph, setting.method, setting.calibration)
            except VaeError as error:
                failed.append(f"{setting.method}: {error}")
                continue
            reason = gate.refusal(quality.psnr, quality.elbo_change)
            if reason is None:
                passed.append(Made(graph, quality, setting.integer))
            else:
                failed.append(f"{setting.method}: {reason}")
        if passed:
            return max(passed, key=lambda made: math.inf if made.quality.psnr is None else made.quality.psnr)
    # The last one was the most careful.
    return refusal(failed[-1])


def _half(measurement: Measurement, plain: Graph, calibration: Observations, folder: Path) -> Iterator[list[Setting]]:
    halved = with_half_weights(onnx.load_model_from_string(plain.content))
    if halved is not None:
        yield [Setting("float16 weights, computed in float32", lambda: halved, integer=False)]


def _int8(measurement: Measurement, plain: Graph, calibration: Observations, folder: Path) -> Iterator[list[Setting]]:
    model = onnx.load_model_from_string(plain.content)
    for index, node in enumerate(model.graph.node):
        # Layers are chosen by name.
        node.name = node.name or f"node_{index}"
    if not any(node.op_type in (*LAYERS, "ConvTranspose") for node in model.graph.node):
        return
    weights = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    convolutions = [node for node in nodes_of(model) if node.op_type in ("Conv", "ConvTranspose")]
    # Along one axis or three ONNX Runtime's convolutions are slower in integers, up to twelve times.
    slow = any(weights.get(node.input[1], 4) != 4 for node in convolutions)
    if convolutions and not slow:
        feeds = measurement.feeds(plain.component, calibration)
        draws = " and as many draws from the prior" if measurement.draws(plain.component) else ""
        yield from static_settings(plain, model, feeds, f"{calibration}{draws}", folder)
    elif not convolutions:
        yield from dynamic_settings(model, folder)
    bytes_alone = with_int8_weights(model)
    if bytes_alone is not None:
        yield [Setting("int8 weights per channel, computed in float32", lambda: bytes_alone, integer=False)]


@dataclass(frozen=True)
class Reduction:
    """A variant in fewer bits: the precision of its weights in the manifest, and the ways to make it.

    `settings` gives the ways from the fastest to the most careful, those of one speed together.
    """

    precision: str
    settings: Callable[[Measurement, Graph, Observations, Path], Iterator[list[Setting]]]


# The variants beside fp32, in the order of declaration in the manifest. A new variant is one entry.
REDUCTIONS = {"fp16": Reduction("float16", _half), "int8": Reduction("int8", _int8)}
# What `--variants` takes; fp32 is always there.
VARIANTS = ("fp32", *REDUCTIONS)
