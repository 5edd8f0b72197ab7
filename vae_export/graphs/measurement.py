"""Measure what a variant costs against fp32, in answers and ELBO, with the runtime that ships."""

from __future__ import annotations

import functools
import hashlib
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_runtime import noise
from vae_runtime.answers import range_of_mean
from vae_runtime.bundle import MANIFEST
from vae_runtime.document import dump
from vae_runtime.manifest import Manifest, Quality
from vae_runtime.places import SUMS
from vae_runtime.posterior import Posterior
from vae_runtime.timing import in_turns, take_turn
from vae_runtime.vae import VAE, load

from .graph import Graph

Array = NDArray[Any]
# A speed is measured with so many rows a call, in so many rounds of turns of so many seconds; where that takes more
# than a few hundred milliseconds, in fewer rounds, and without the larger number of rows.
_ROWS, _ROUNDS, _TURN, _SECONDS = (1, 64), 5, 0.0025, 0.2


@dataclass(frozen=True)
class Observations:
    """Real observations `x` [n, …], their conditions by name, and a description of them.

    For a decoder alone, `latents` has one array [n, …] for each of its latents, and `x` is the first of them.
    """

    x: Array
    conditions: Mapping[str, Array]
    description: str
    latents: tuple[Array, ...] = ()

    def first(self, n: int) -> Observations:
        """Return the first `n` observations."""
        return replace(
            self,
            x=self.x[:n],
            conditions={name: rows[:n] for name, rows in self.conditions.items()},
            latents=tuple(rows[:n] for rows in self.latents),
        )

    def __str__(self) -> str:
        return f"{len(self.x):,} {'latents' if self.latents else 'observations'} of {self.description}"


class Measurement:
    """Measures variants, one at a time, in a temporary bundle beside the fp32 graphs."""

    def __init__(
        self,
        graphs: Sequence[Graph],
        manifest: Manifest,
        files: Mapping[str, bytes],
        folder: Path,
        measured: Observations,
    ) -> None:
        self.manifest, self.measured, self._folder = manifest, measured, folder
        self._sums: dict[str, str] = {}
        self._fp32_variants = {
            variant.component: replace(variant, stream=None) for variant in manifest.variants if variant.name == "fp32"
        }
        for name, content in (*files.items(), (manifest.golden.file, b"")):
            self._write(name, content)
        for graph in graphs:
            if graph.variant == "fp32":
                place = f"{graph.component}/fp32"
                self._write(f"{place}/{graph.file}", graph.content)
                for name, source in graph.data.items():
                    self._write(f"{place}/{name}", source if isinstance(source, bytes) else source.read_bytes())
        self._fp32 = self._load(None)
        self._expected: dict[str, dict[str, Array]] = {}
        self._inputs: dict[str, dict[str, Array]] = {}
        self._elbo: Array | None = None
        self._reason: str | None = None

    def feeds(self, component: str, observed: Observations) -> dict[str, Array]:
        """Return a component's inputs for calibration by name.

        The encoder gets the observations. The decoder gets samples of their latents, or the latents that were given for
        a decoder alone, and, where `draws_prior`, as many draws from the prior.
        """
        vae, manifest, n = self._fp32, self.manifest, len(observed.x)
        conditions = dict(observed.conditions)
        inputs: dict[str, Array] = {manifest.observation.name: observed.x}
        repeated = 1
        if component == "encoder":
            for number, latent in enumerate(manifest.latents):
                if latent.posterior.noise:
                    stream = noise.stream_of(noise.POSTERIOR, number)
                    inputs[latent.posterior.noise] = noise.normal(1, 0, n, latent.shape, stream)
        else:
            inputs = self._latents(vae, observed, sample=True)
            if self.draws_prior(component):
                repeated = 2
                drawn = vae.prior(n, seed=1)
                drawn = drawn if isinstance(drawn, Mapping) else {manifest.latent.name: drawn}
                inputs = {name: np.concatenate([rows, drawn[name]]) for name, rows in inputs.items()}
        inputs |= {
            condition.name: np.concatenate([np.asarray(conditions[condition.name])] * repeated)
            for condition in manifest.conditions
            if component in condition.components
        }
        return {tensor.name: inputs[tensor.name] for tensor in manifest.inputs(component)}

    def draws_prior(self, component: str) -> bool:
        """Return whether `feeds` adds draws from the prior."""
        return component == "decoder" and all(latent.prior.kind != "none" for latent in self.manifest.latents)

    def measure(self, graph: Graph, method: str, calibration: str | None) -> Quality:
        """Return the quality of a graph, with the other component in fp32."""
        content = graph.content
        vae = self._load(graph)
        component = graph.component
        if self._elbo is None and self._reason is None:
            self._elbo, self._reason = self._score(self._fp32)
        if component not in self._expected:
            self._expected[component] = self._answers(self._fp32, component)
        expected, answers = self._expected[component], self._answers(vae, component)
        bounds = range_of_mean(self.manifest) if component == "decoder" else None
        figures = [psnr_of(expected[name], answers[name], bounds) for name in expected]
        psnr, peak = min(figures, key=lambda figure: math.inf if figure[0] is None else figure[0])
        change = None
        if self._elbo is not None:
            own, _ = self._score(vae)
            change = float(np.mean(own - self._elbo)) if own is not None else None
        return Quality(
            method=method,
            size=len(content),
            psnr=psnr,
            peak=peak,
            elbo_change=change,
            measured=str(self.measured),
            calibration=calibration,
            reason=self._reason,
        )

    def speed(self, graph: Graph) -> dict[str, float]:
        """Return how many times as fast as fp32 a graph is with one thread, by the number of rows of a call."""
        vaes = {"fp32": self._fp32, graph.variant: self._load(graph)}
        order = random.Random(0)
        speed: dict[str, float] = {}
        for rows in _ROWS:
            calls = {name: self._call(vae, graph.component, rows) for name, vae in vaes.items()}
            for call in calls.values():
                # The first call loads the graph.
                call()
            once = take_turn(calls["fp32"], 0).median
            rounds = max(1, min(_ROUNDS, int(_SECONDS / once)))
            taken = in_turns(calls, rounds, functools.partial(_fastest, calls), order)
            speed[str(rows)] = round(min(taken["fp32"]) / min(taken[graph.variant]), 2)
            if min(taken["fp32"]) * _ROWS[-1] / rows > _SECONDS:
                break
        return speed

    def _call(self, vae: VAE, component: str, rows: int) -> Callable[[], object]:
        """Return a call of a component with so many of the measured rows, repeated where there are too few."""
        observed = self.measured

        def repeated(array: Array) -> Array:
            return np.resize(array, (rows, *array.shape[1:]))

        conditions = {name: repeated(array) for name, array in observed.conditions.items()} or None
        if component == "encoder":
            x = repeated(observed.x)
            return lambda: vae.encode(x, conditions=conditions, seed=0)
        if component not in self._inputs:
            self._inputs[component] = self._latents(self._fp32, observed.first(_ROWS[-1]))
        latents = {name: repeated(array) for name, array in self._inputs[component].items()}
        z = latents if len(self.manifest.latents) > 1 else latents[self.manifest.latent.name]
        return lambda: vae.decode(z, conditions=conditions, seed=0)

    def _answers(self, vae: VAE, component: str) -> dict[str, Array]:
        """Return a component's answers for the measured observations.

        They are the encoder's mu or value of each latent, or the decoder's mean for the latents of the fp32 encoder.
        Without an ELBO, which would show the cost of a wrong logvar, they include the encoder's logvar.
        """
        observed = self.measured
        if component == "encoder":
            answers = self._latents(vae, observed)
            if self._elbo is None:
                encoded = vae.encode(observed.x, conditions=observed.conditions or None, seed=0)
                parts = encoded if isinstance(encoded, Mapping) else {self.manifest.latent.name: encoded}
                answers |= {
                    f"{name}'s logvar": part.logvar for name, part in parts.items() if isinstance(part, Posterior)
                }
            return answers
        latents = self._latents(self._fp32, observed)
        z = latents if len(self.manifest.latents) > 1 else latents[self.manifest.latent.name]
        return {"mean": vae.decode(z, conditions=observed.conditions or None, seed=0)}

    def _latents(self, vae: VAE, observed: Observations, sample: bool = False) -> dict[str, Array]:
        """Return the latents of observations by name: the modes, or samples where there is a posterior to draw from."""
        latents: dict[str, Array]
        if observed.latents:
            named = [latent.name for latent in self.manifest.latents if latent.posterior.outputs]
            latents = dict(zip(named, observed.latents, strict=True))
        else:
            encoded = vae.encode(observed.x, conditions=observed.conditions or None, seed=0)
            parts = encoded if isinstance(encoded, Mapping) else {self.manifest.latent.name: encoded}
            latents = {
                name: part.sample(seed=0) if sample and isinstance(part, Posterior) else part.mode()
                for name, part in parts.items()
            }
        for number, latent in enumerate(self.manifest.latents):
            if sample and latent.name not in latents:
                # The decoder takes this latent as noise, and the encoder does not infer it.
                stream = noise.stream_of(noise.PRIOR, number)
                latents[latent.name] = noise.normal(2, 0, len(observed.x), latent.shape, stream)
        return latents

    def _score(self, vae: VAE) -> tuple[Array | None, str | None]:
        if self.measured.latents:
            return None, "the model was exported without an encoder"
        scores = vae.score(self.measured.x, conditions=self.measured.conditions or None, seed=0)
        return scores.elbo, scores.reason

    def _load(self, graph: Graph | None) -> VAE:
        """Load the bundle with the fp32 graphs and, if given, one more graph."""
        variants = {component: {"fp32": variant} for component, variant in self._fp32_variants.items()}
        sums = dict(self._sums)
        if graph is not None:
            folder = f"{graph.component}/{graph.variant}"
            own = replace(self._fp32_variants[graph.component], name=graph.variant, folder=folder, data=None)
            variants[graph.component][graph.variant] = own
            self._write(own.path, graph.content)
            sums[own.path] = self._sums.pop(own.path)
        manifest = replace(self.manifest, encoder=variants.get("encoder", {}), decoder=variants["decoder"])
        self._write(MANIFEST, dump(manifest).encode())
        sums[MANIFEST] = self._sums.pop(MANIFEST)
        lines = "".join(f"{digest}  {path}\n" for path, digest in sorted(sums.items()))
        (self._folder / SUMS).write_text(lines, encoding="utf-8")
        return load(self._folder, variant=None if graph is None else graph.variant)

    def _write(self, path: str, content: bytes) -> None:
        place = self._folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        self._sums[path] = hashlib.sha256(content).hexdigest()


def _fastest(calls: Mapping[str, Callable[[], object]], name: str) -> float:
    # On a busy machine other programs interrupt most calls of so short a turn, so their median says little.
    return take_turn(calls[name], _TURN).min


def psnr_of(expected: Array, answer: Array, bounds: tuple[float, float] | None) -> tuple[float | None, float]:
    """Return the peak signal-to-noise ratio in dB, None for equal answers, and the peak.

    The peak is high − low of `bounds`, or of the expected answer, and 1 where that is 0.
    """
    wide = expected.astype(np.float64)
    low, high = bounds or (float(wide.min()), float(wide.max()))
    peak = high - low if high > low else 1.0
    error = float(np.mean((answer - wide) ** 2))
    if error == 0:
        return None, peak
    # Answers that are not finite get NaN, which no gate passes.
    return (10 * math.log10(peak**2 / error) if math.isfinite(error) else math.nan), peak
