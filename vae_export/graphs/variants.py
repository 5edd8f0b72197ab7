"""The variants in fewer bits: their names, how to make each, and the gate that each must pass."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from vae_runtime.errors import InputError, VaeError, require_number
from vae_runtime.manifest import Manifest, Quality, Refusal

from ..progress import Progress
from .graph import Graph, reason_of
from .measurement import Measurement, Observations
from .nodes import nodes_of
from .quantize import (
    LAYERS,
    Setting,
    dynamic_settings,
    is_dense,
    restore_contract,
    static_settings,
    with_half_weights,
    with_int8_weights,
)

# How many observations measure a variant, and how many calibrate it, at most.
MEASURED, CALIBRATED = 2048, 256
# Fewer observations give no ranges for dense layers, which can do without.
_MIN_CALIBRATED = 32
# The largest size of a variant's file relative to fp32's. A larger one has too few weights that can be converted.
_MAX_SIZE = 0.9


@dataclass(frozen=True)
class Gate:
    """The limits for a variant: its lowest PSNR in dB, and its largest loss of ELBO in nats per observation."""

    min_psnr: float = 35.0
    max_elbo_loss: float = 0.5

    def __post_init__(self) -> None:
        require_number("min_psnr", self.min_psnr, -1e6, 1e6)
        require_number("max_elbo_loss", self.max_elbo_loss, 0, 1e30)

    def refusal(self, psnr: float | None, elbo_change: float | None) -> str | None:
        """Return by how much a variant fails, or None if it passes. A PSNR of None means equal answers."""
        failures = []
        # The comparisons are written so that NaN fails.
        if psnr is not None and not psnr >= self.min_psnr:
            failures.append(
                f"PSNR {psnr:.1f} dB, {self.min_psnr - psnr:.1f} dB below the minimum of {self.min_psnr:g} dB"
            )
        if elbo_change is not None and not -elbo_change <= self.max_elbo_loss:
            over = -elbo_change - self.max_elbo_loss
            failures.append(
                f"{-elbo_change:.2f} nats of ELBO lost, {over:.2f} above the maximum of {self.max_elbo_loss:g}"
            )
        return "; ".join(failures) or None


@dataclass(frozen=True)
class PassedVariant:
    """A variant that passed the gate. `integer`: it computes in integers, so devices may round differently."""

    graph: Graph
    quality: Quality
    integer: bool


def require_variants(names: object) -> None:
    """Raise InputError unless `names` is a collection of names from `VARIANTS`."""
    if not isinstance(names, (list, tuple, set, frozenset)):
        raise InputError(f"variants: expected some of {', '.join(VARIANTS)}, got {names!r}")
    for name in names:
        if name not in VARIANTS:
            raise InputError(f"variants: expected some of {', '.join(VARIANTS)}, got {name!r}")


def make_variants(
    graphs: Sequence[Graph],
    manifest: Manifest,
    names: Sequence[str],
    gate: Gate,
    *,
    measured: Observations,
    calibration: Observations,
    files: Mapping[str, bytes],
    folder: Path,
    progress: Progress | None = None,
) -> tuple[list[PassedVariant], list[Refusal]]:
    """Make the variants of both components, and measure each with the other component in fp32.

    Args:
        graphs: the graphs of both components; the variants are made from their fp32 graphs.
        manifest: the manifest of the bundle with fp32 only.
        names: names from `VARIANTS`.
        gate: the limits that a variant must meet.
        measured: the observations that measure a variant.
        calibration: the observations that calibrate a variant.
        files: the bundle's other files that sampling needs, by name.
        folder: an empty folder for temporary files.
        progress: is told of each variant.

    Returns:
        The variants that passed, and the reasons why the others did not.

    Raises:
        InputError: a name is not one of `VARIANTS`.
    """
    require_variants(names)
    progress = progress or Progress()
    passed: list[PassedVariant] = []
    refused: list[Refusal] = []
    if not set(names) - {"fp32"}:
        return passed, refused
    measurement = Measurement(graphs, manifest, files, folder / "trial", measured.first(MEASURED))
    for component in manifest.components:
        plain = next(g for g in graphs if g.component == component and g.variant == "fp32")
        for name in (name for name in REDUCTIONS if name in names):
            progress.step("variants", f"making {component}/{name}")
            subfolder = folder / component / name
            subfolder.mkdir(parents=True)
            result = _first_passing(measurement, plain, name, gate, calibration.first(CALIBRATED), subfolder)
            if isinstance(result, PassedVariant):
                passed.append(result)
                progress.note(f"{component}/{name}: {result.quality.method}")
            else:
                refused.append(result)
                print(f"left out: {component}/{name}: {result.reason}", file=sys.stderr, flush=True)
    return passed, refused


def _first_passing(
    measurement: Measurement, plain: Graph, name: str, gate: Gate, calibration: Observations, folder: Path
) -> PassedVariant | Refusal:
    """Return the fastest setting of a variant that passes the gate, the best one of several with the same speed."""

    def refusal(reason: str) -> Refusal:
        return Refusal(plain.component, name, reason)

    if plain.data:
        return refusal("the graph's weights are in a separate file, and only inline weights are converted")
    if plain.component == "encoder" and any(latent.dtype == "int64" for latent in measurement.manifest.latents):
        return refusal("the encoder returns integer codes, for which no error can be measured")
    failed = ["no layer has weights that can be reduced"]
    for level, settings in enumerate(REDUCTIONS[name].settings(measurement, plain, calibration, folder)):
        passed: list[PassedVariant] = []
        for index, setting in enumerate(settings):
            try:
                model = setting.make()
                restore_contract(model)
            except Exception as error:  # The quantizer raises errors of every kind.
                failed.append(f"{setting.method}: ONNX Runtime's quantizer failed: {reason_of(error)}")
                print(f"{plain.component}/{name}: {failed[-1]}; trying other settings", file=sys.stderr, flush=True)
                continue
            path = folder / f"{level}-{index}.onnx"
            content = model.SerializeToString(deterministic=True)
            if len(content) > _MAX_SIZE * len(plain.content):
                failed.append(
                    f"{setting.method}: expected a file of at most {100 * _MAX_SIZE:.0f} % of fp32's size, got "
                    f"{100 * len(content) / len(plain.content):.0f} %"
                )
                continue
            path.write_bytes(content)
            exporter = f"{plain.exporter}; {setting.method}"
            graph = replace(plain, variant=name, source=path, exporter=exporter, stream=None, chunks=None)
            try:
                quality = measurement.measure(graph, setting.method, setting.calibration)
            except VaeError as error:
                failed.append(f"{setting.method}: {error}")
                continue
            reason = gate.refusal(quality.psnr, quality.elbo_change)
            if reason is None:
                passed.append(PassedVariant(graph, quality, setting.integer))
            else:
                failed.append(f"{setting.method}: {reason}")
        if passed:
            best = max(passed, key=lambda each: math.inf if each.quality.psnr is None else each.quality.psnr)
            return replace(best, quality=replace(best.quality, speed=measurement.speed(best.graph)))
    # The last setting is the most precise one.
    return refusal(failed[-1])


def _half(measurement: Measurement, plain: Graph, calibration: Observations, folder: Path) -> Iterator[list[Setting]]:
    halved = with_half_weights(onnx.load_model_from_string(plain.content))
    if halved is not None:
        yield [Setting("float16 weights, computed in float32", lambda: halved, integer=False)]


def _int8(measurement: Measurement, plain: Graph, calibration: Observations, folder: Path) -> Iterator[list[Setting]]:
    model = onnx.load_model_from_string(plain.content)
    for index, node in enumerate(model.graph.node):
        # The settings choose layers by name.
        node.name = node.name or f"node_{index}"
    if not any(node.op_type in (*LAYERS, "ConvTranspose") for node in model.graph.node):
        return
    weights = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    convolutions = [node for node in nodes_of(model) if node.op_type in ("Conv", "ConvTranspose")]
    # ONNX Runtime's integer convolutions over one or three axes are up to twelve times slower than float32.
    slow = any(weights.get(node.input[1], 4) != 4 for node in convolutions)
    if (convolutions and not slow) or (is_dense(model) and len(calibration.x) >= _MIN_CALIBRATED):
        feeds = measurement.feeds(plain.component, calibration)
        draws = " and as many draws from the prior" if measurement.draws_prior(plain.component) else ""
        yield from static_settings(plain, model, feeds, f"{calibration}{draws}", folder)
    if not convolutions:
        yield from dynamic_settings(model, folder)
    stored_in_int8 = with_int8_weights(model)
    if stored_in_int8 is not None:
        yield [Setting("int8 weights per channel, computed in float32", lambda: stored_in_int8, integer=False)]


@dataclass(frozen=True)
class Reduction:
    """A variant in fewer bits: the precision that the manifest declares, and the settings to make it.

    `settings` yields lists of settings, from the fastest to the most precise. The settings in a list have one speed.
    """

    precision: str
    settings: Callable[[Measurement, Graph, Observations, Path], Iterator[list[Setting]]]


# The variants other than fp32, in the order of the manifest. A new variant is one entry.
REDUCTIONS = {"fp16": Reduction("float16", _half), "int8": Reduction("int8", _int8)}
# The values of `--variants`. fp32 is always made.
VARIANTS = ("fp32", *REDUCTIONS)
