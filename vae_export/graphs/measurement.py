"""What a variant costs: its answers and its ELBO beside those of fp32, by the runtime that ships."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_runtime import noise
from vae_runtime.bundle import MANIFEST, SUMS
from vae_runtime.document import dump
from vae_runtime.manifest import Manifest, Quality
from vae_runtime.posterior import Posterior
from vae_runtime.vae import VAE, load

from .graph import Graph

Array = NDArray[Any]


@dataclass(frozen=True)
class Observations:
    """Real observations [n, …] with their conditions by name, and what they are."""

    x: Array
    conditions: Mapping[str, Array]
    what: str

    def first(self, n: int) -> Observations:
        """The first so many."""
        return replace(self, x=self.x[:n], conditions={name: rows[:n] for name, rows in self.conditions.items()})

    def __str__(self) -> str:
        return f"{len(self.x):,} observations of {self.what}"


class Measurement:
    """A bundle of the fp32 graphs, to which one variant at a time is added to be measured by the runtime."""

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
        self._plain = {v.component: v for v in manifest.variants if v.name == "fp32"}
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
        self._elbo: Array | None = None
        self._reason: str | None = None

    def feeds(self, component: str, observed: Observations) -> dict[str, Array]:
        """A component's inputs for calibration: observations; or samples of their latents and as many prior draws."""
        vae, manifest, n = self._fp32, self.manifest, len(observed.x)
        conditions = dict(observed.conditions)
        given: dict[str, Array] = {manifest.observation.name: observed.x}
        repeated = 1
        if component == "encoder":
            for number, latent in enumerate(manifest.latents):
                if latent.posterior.noise:
                    stream = noise.stream_of(noise.POSTERIOR, number)
                    given[latent.posterior.noise] = noise.normal(1, 0, n, latent.shape, stream)
        else:
            given = self._latents(vae, observed, sample=True)
            if self.draws(component):
                repeated = 2
                drawn = vae.prior(n, seed=1)
                drawn = drawn if isinstance(drawn, Mapping) else {manifest.latent.name: drawn}
                given = {name: np.concatenate([rows, drawn[name]]) for name, rows in given.items()}
        given |= {
            condition.name: np.concatenate([np.asarray(conditions[condition.name])] * repeated)
            for condition in manifest.conditions
            if component in condition.components
        }
        return {tensor.name: given[tensor.name] for tensor in manifest.inputs(component)}

    def draws(self, component: str) -> bool:
        """Whether `feeds` has draws from the prior beside what observations give."""
        return component == "decoder" and all(latent.prior.kind != "none" for latent in self.manifest.latents)

    def measure(self, graph: Graph, method: str, calibration: str | None) -> Quality:
        """What a graph of one component costs beside the other component's fp32."""
        content = graph.content
        vae = self._load(graph)
        component = graph.component
        if self._elbo is None and self._reason is None:
            self._elbo, self._reason = self._score(self._fp32)
        if component not in self._expected:
            self._expected[component] = self._answers(self._fp32, component)
        expected, found = self._expected[component], self._answers(vae, component)
        bounds = self.manifest.observation.range if component == "decoder" else None
        figures = [psnr_of(expected[name], found[name], bounds) for name in expected]
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

    def _answers(self, vae: VAE, component: str) -> dict[str, Array]:
        """The encoder's mu or value of each latent, or the decoder's mean for fp32's latents of the observations.

        Where no ELBO tells what a wrong logvar costs, the encoder's logvar counts by itself.
        """
        observed = self.measured
        if component == "encoder":
            found = self._latents(vae, observed)
            if self._elbo is None:
                encoded = vae.encode(observed.x, conditions=observed.conditions or None, seed=0)
                parts = encoded if isinstance(encoded, Mapping) else {self.manifest.latent.name: encoded}
                found |= {
                    f"{name}'s logvar": part.logvar for name, part in parts.items() if isinstance(part, Posterior)
                }
            return found
        z = self._latents(self._fp32, observed)
        given = z if len(self.manifest.latents) > 1 else z[self.manifest.latent.name]
        return {"mean": vae.decode(given, conditions=observed.conditions or None, seed=0)}

    def _latents(self, vae: VAE, observed: Observations, sample: bool = False) -> dict[str, Array]:
        """The latents of observations by name; drawn ones where asked for and there is a distribution to draw from."""
        encoded = vae.encode(observed.x, conditions=observed.conditions or None, seed=0)
        parts = encoded if isinstance(encoded, Mapping) else {self.manifest.latent.name: encoded}
        found = {
            name: part.sample(seed=0) if sample and isinstance(part, Posterior) else part.mode()
            for name, part in parts.items()
        }
        for number, latent in enumerate(self.manifest.latents):
            if sample and latent.name not in found:
                # Noise that the decoder takes and nothing infers.
                stream = noise.stream_of(noise.PRIOR, number)
                found[latent.name] = noise.normal(2, 0, len(observed.x), latent.shape, stream)
        return found

    def _score(self, vae: VAE) -> tuple[Array | None, str | None]:
        scores = vae.score(self.measured.x, conditions=self.measured.conditions or None, seed=0)
        return scores.elbo, scores.reason

    def _load(self, graph: Graph | None) -> VAE:
        variants = {component: {"fp32": plain} for component, plain in self._plain.items()}
        sums = dict(self._sums)
        if graph is not None:
            folder = f"{graph.component}/{graph.variant}"
            own = replace(self._plain[graph.component], name=graph.variant, folder=folder, data=None)
            variants[graph.component][graph.variant] = own
            self._write(own.path, graph.content)
            sums[own.path] = self._sums.pop(own.path)
        manifest = replace(self.manifest, encoder=variants["encoder"], decoder=variants["decoder"])
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


def psnr_of(expected: Array, found: Array, bounds: tuple[float, float] | None) -> tuple[float | None, float]:
    """Peak signal-to-noise ratio in dB, None where nothing differs, and the peak."""
    wide = expected.astype(np.float64)
    low, high = bounds or (float(wide.min()), float(wide.max()))
    peak = high - low if high > low else 1.0
    error = float(np.mean((found - wide) ** 2))
    if error == 0:
        return None, peak
    # Of answers that are not finite there is none, and no gate lets it pass.
    return (10 * math.log10(peak**2 / error) if math.isfinite(error) else math.nan), peak
