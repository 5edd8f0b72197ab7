"""A VAE out of a bundle: draw latents, decode, encode, reconstruct."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import noise
from .bundle import Bundle, open_bundle
from .errors import BundleError, InputError, require_integer, require_number
from .manifest import Manifest
from .session import Device, Session, resolve_device

__all__ = ["VAE", "Posterior", "interpolate", "load", "open_session"]

Array = NDArray[np.float32]

# Enough for most of a CPU's throughput, little enough to stay in its caches.
_BATCH_SIZE = 64
# The highest temperature; far beyond it latents leave float32's range.
HOTTEST = 1e6


def load(
    path: str | os.PathLike[str],
    *,
    device: str = "cpu",
    threads: int = 1,
    variant: str | None = None,
    provider_options: Mapping[str, Any] | None = None,
    digest: str | None = None,
) -> VAE:
    """Open a bundle for sampling.

    The decoder is loaded now, the encoder when it is first needed; each file's SHA-256 is checked as it is opened.

    Args:
        path: the bundle's folder. It must stay where it is while the VAE is in use.
        device: "cpu", "cuda", "cuda:1", "auto" (CUDA if it works, else CPU; logged) or the name of an ONNX Runtime
            execution provider.
        threads: threads of one call, at least 1. For throughput, more workers of one thread beat more threads.
        variant: the variant to run, such as "fp32"; by default the first declared one.
        provider_options: passed to the execution provider. On CUDA, TF32 is off unless given as {"use_tf32": 1}.
        digest: "sha256:…" of the bundle, as `vae-runtime info` prints it: any other bundle is refused.

    Raises:
        BundleError: the bundle is missing, damaged or of a newer format, or has no such variant.
        DeviceError: the device is not to be had; nothing falls back silently.
        InputError: an argument is not of the right form.
    """
    count = require_integer("threads", threads, 1, 1024)
    bundle = open_bundle(path, digest)
    bundle.variant("decoder", variant)
    vae = VAE(bundle, resolve_device(device, provider_options), count, variant)
    vae._session("decoder")
    return vae


def open_session(bundle: Bundle, component: str, variant: str | None, device: Device, threads: int = 1) -> Session:
    """Load one graph of a bundle and hold its inputs and outputs against the manifest.

    Raises:
        BundleError: the file is damaged, or the graph is not the one that the manifest describes.
        DeviceError: the device is not to be had.
    """
    manifest = bundle.manifest
    chosen = bundle.variant(component, variant)
    place = str(bundle.path / chosen.path)
    session = Session(bundle.read(chosen.path), place, device, threads)
    observation, latent = manifest.observation, manifest.latent
    if component == "encoder":
        wanted_inputs = {observation.name: observation.shape}
        wanted_outputs = dict.fromkeys(manifest.outputs("encoder"), latent.shape)
    else:
        wanted_inputs = {latent.name: latent.shape}
        wanted_outputs = dict.fromkeys(manifest.outputs("decoder"), observation.shape)
    for kind, wanted, found in (("input", wanted_inputs, session.inputs), ("output", wanted_outputs, session.outputs)):
        if wanted.keys() != found.keys():
            raise BundleError(
                f"{place}: {kind}s {sorted(wanted)} are expected from the manifest, the graph has {sorted(found)}; "
                "export the bundle again"
            )
        for name, shape in wanted.items():
            dtype, actual = found[name]
            if dtype != "tensor(float)" or not actual or isinstance(actual[0], int) or actual[1:] != shape:
                raise BundleError(
                    f"{place}: {kind} {name}: float32 [batch, {', '.join(map(str, shape))}] is expected from the "
                    f"manifest, the graph has {dtype} {list(actual)}; export the bundle again"
                )
    return session


@dataclass(frozen=True, eq=False)
class Posterior:
    """q(z|x), a diagonal normal for each observation of a batch; every array is float32 [batch, *latent shape].

    `std` comes out of the encoder's graph, since exp differs between platforms.
    """

    mean: Array
    std: Array
    logvar: Array

    def mode(self) -> Array:
        """The most probable latents: the means."""
        return self.mean

    def sample(self, *, seed: int | None = None, start: int = 0, temperature: float = 1.0) -> Array:
        """Draw one latent for each observation: mean + std · eps (Kingma & Welling, arXiv 1312.6114).

        Args:
            seed: of vnoise-1; None takes a fresh one.
            start: the index of the first observation: row i uses sample `start + i` of the seed.
            temperature: scales eps, 0 … 1e6.

        Returns:
            float32 [batch, *latent shape]; the same bits wherever mean and std are the same bits.
        """
        eps = _eps(seed, start, len(self.mean), self.mean.shape[1:], noise.stream_of(noise.POSTERIOR), temperature)
        # Two rounded operations: a fused multiply-add would give other bits elsewhere.
        np.multiply(self.std, eps, out=eps)
        return np.add(self.mean, eps, out=eps)

    def kl(self) -> NDArray[np.float64]:
        """KL(q(z|x) ‖ standard normal) in nats, float64 [batch] (Kingma & Welling, arXiv 1312.6114, appendix B)."""
        mean, std, logvar = (part.astype(np.float64) for part in (self.mean, self.std, self.logvar))
        terms = 0.5 * (mean**2 + std**2 - 1.0 - logvar)
        total: NDArray[np.float64] = terms.reshape(len(terms), -1).sum(axis=1)
        return total


class VAE:
    """A Variational Autoencoder, ready to sample. Made by `load`; may be shared by threads.

    Observations are float32 [n, *observation_shape], latents float32 [n, *latent_shape].
    """

    def __init__(self, bundle: Bundle, device: Device, threads: int, variant: str | None) -> None:
        self.bundle = bundle
        self._device = device
        self._threads = threads
        self._variant = variant
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        shapes = f"latent {list(self.latent_shape)} → observation {list(self.observation_shape)}"
        return f"<VAE {self.manifest.name}: {shapes}, {self.manifest.likelihood.kind}, {self.variant} on {self.device}>"

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self.bundle.manifest

    @property
    def digest(self) -> str:
        """The bundle's digest, "sha256:…"."""
        return self.bundle.digest

    @property
    def device(self) -> str:
        """The device in use."""
        return self._device.name

    @property
    def variant(self) -> str:
        """The decoder's variant in use."""
        return self.bundle.variant("decoder", self._variant).name

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Shape of one observation."""
        return self.manifest.observation.shape

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent."""
        return self.manifest.latent.shape

    def prior(self, n: int, *, seed: int | None = None, start: int = 0, temperature: float = 1.0) -> Array:
        """Draw latents from the prior.

        Args:
            n: how many, at least 1.
            seed: of vnoise-1; None takes a fresh one (call `vae_runtime.new_seed()` to keep it).
            start: index of the first: row i is sample `start + i` of the seed, the same bits for every n, batch size,
                thread and platform.
            temperature: scales the noise, 0 … 1e6.

        Raises:
            InputError: an argument is out of its range.
        """
        count = require_integer("n", n, 1, 2**48)
        return _eps(seed, start, count, self.latent_shape, noise.stream_of(noise.PRIOR), temperature)

    def sample(
        self,
        n: int,
        *,
        seed: int | None = None,
        start: int = 0,
        temperature: float = 1.0,
        observe: bool = False,
        batch_size: int | None = None,
        out: Array | None = None,
    ) -> Array:
        """Draw latents from the prior and decode them.

        Args:
            n: how many, at least 1.
            seed: of vnoise-1; None takes a fresh one.
            start: index of the first: row i is sample `start + i` of the seed.
            temperature: scales the latents' noise, 0 … 1e6.
            observe: draw each observation from the likelihood instead of giving its mean.
            batch_size: how many to decode at once; bounds the memory beside the result.
            out: float32 [n, *observation_shape], C-contiguous: filled and returned.

        Raises:
            InputError: an argument is out of its range.
        """
        count = require_integer("n", n, 1, 2**48)
        seed = noise.new_seed() if seed is None else seed
        result = self._result(count, out)
        for first, last in _batches(count, batch_size):
            z = self.prior(last - first, seed=seed, start=_advance(start, first), temperature=temperature)
            x = self._session("decoder").run([self.manifest.likelihood.mean], {self.manifest.latent.name: z})[0]
            result[first:last] = self._observe(x, seed, _advance(start, first)) if observe else x
        return result

    def decode(self, z: ArrayLike, *, batch_size: int | None = None, out: Array | None = None) -> Array:
        """The likelihood's mean for each latent, in data space.

        Args:
            z: float32 [n, *latent_shape], finite.
            batch_size: how many to decode at once.
            out: float32 [n, *observation_shape], C-contiguous: filled and returned.

        Raises:
            InputError: an array has another dtype or shape, or holds NaN or infinity.
        """
        latent, name = self.manifest.latent, self.manifest.likelihood.mean
        z = _checked(latent.name, z, latent.shape)
        result = self._result(len(z), out)
        for first, last in _batches(len(z), batch_size):
            result[first:last] = self._session("decoder").run([name], {latent.name: z[first:last]})[0]
        return result

    def encode(self, x: ArrayLike, *, batch_size: int | None = None) -> Posterior:
        """The posterior of each observation.

        Args:
            x: float32 [n, *observation_shape], finite and within the manifest's range.
            batch_size: how many to encode at once.

        Raises:
            InputError: the array has another dtype or shape, or values out of range.
        """
        observation, latent = self.manifest.observation, self.manifest.latent
        x = _checked(observation.name, x, observation.shape, observation.range)
        parts = [_empty(len(x), latent.shape) for _ in range(3)]
        for first, last in _batches(len(x), batch_size):
            outputs = self._session("encoder").run(
                [latent.mu, latent.std, latent.logvar], {observation.name: x[first:last]}
            )
            for part, output in zip(parts, outputs, strict=True):
                part[first:last] = output
        return Posterior(*parts)

    def reconstruct(
        self, x: ArrayLike, *, seed: int | None = None, start: int = 0, batch_size: int | None = None
    ) -> Array:
        """Encode and decode: through the posterior's mean, or with a seed through a sample of it.

        Args:
            x: float32 [n, *observation_shape].
            seed: of vnoise-1; None goes through the mean.
            start: index of the first observation, for the seed.
            batch_size: how many to work on at once.

        Raises:
            InputError: the array has another dtype or shape, or values out of range.
        """
        posterior = self.encode(x, batch_size=batch_size)
        z = posterior.mode() if seed is None else posterior.sample(seed=seed, start=start)
        return self.decode(z, batch_size=batch_size)

    def _observe(self, mean: Array, seed: int, start: int) -> Array:
        """One draw from the likelihood around each mean."""
        likelihood = self.manifest.likelihood
        stream, shape = noise.stream_of(noise.OBSERVATION), mean.shape[1:]
        if likelihood.kind == "gaussian":
            eps = noise.normal(seed, start, len(mean), shape, stream)
            return mean + np.float32(likelihood.scale or 0.0) * eps
        u = noise.uniform(seed, start, len(mean), shape, stream)
        if likelihood.kind == "bernoulli":
            return (u < mean).astype(np.float32)
        # Laplace, by the inverse of its distribution function; u is moved off 0 by half of its step.
        centred = u.astype(np.float64) + 2.0**-25 - 0.5
        draw = -(likelihood.scale or 0.0) * np.sign(centred) * np.log1p(-2.0 * np.abs(centred))
        return (mean + draw).astype(np.float32)

    def _session(self, component: str) -> Session:
        session = self._sessions.get(component)
        if session is None:
            with self._lock:
                session = self._sessions.get(component)
                if session is None:
                    session = open_session(self.bundle, component, self._variant, self._device, self._threads)
                    self._sessions[component] = session
        return session

    def _result(self, n: int, out: Array | None) -> Array:
        if out is None:
            return _empty(n, self.observation_shape)
        shape = (n, *self.observation_shape)
        good = isinstance(out, np.ndarray) and out.dtype == np.float32 and out.shape == shape
        if not (good and out.flags.c_contiguous and out.flags.writeable):
            found = f"{out.dtype} {list(out.shape)}" if isinstance(out, np.ndarray) else type(out).__name__
            raise InputError(f"out: a writeable C-contiguous float32 array {list(shape)} is expected, got {found}")
        return out


def interpolate(a: ArrayLike, b: ArrayLike, steps: int, *, spherical: bool = True) -> Array:
    """Latents on the way from one to another.

    Under a normal prior in many dimensions latents lie near a sphere; the straight line between two of them leaves it
    and passes through latents that the prior never draws, the spherical path does not (Shoemake, "Animating Rotation
    with Quaternion Curves", SIGGRAPH 1985; White, arXiv 1609.04468).

    Args:
        a: float32 [*latent shape], the first latent.
        b: float32 [*latent shape], the last.
        steps: how many latents to give, both ends included; at least 2.
        spherical: along the sphere (the length going linearly from one to the other), or straight.

    Returns:
        float32 [steps, *latent shape].

    Raises:
        InputError: the shapes differ, a number is not finite, or `steps` is below 2.
    """
    count = require_integer("steps", steps, 2, 2**31)
    first, last = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.shape != last.shape:
        raise InputError(f"b: the shape of a, {list(first.shape)}, is expected, got {list(last.shape)}")
    for name, end in (("a", first), ("b", last)):
        if not np.isfinite(end).all():
            raise InputError(f"{name}: finite numbers are expected, got NaN or infinity")
    t = np.linspace(0.0, 1.0, count).reshape(-1, *[1] * first.ndim)
    length_a, length_b = (float(np.linalg.norm(end)) for end in (first, last))
    if spherical and length_a > 0 and length_b > 0:
        cosine = float(np.sum(first * last)) / (length_a * length_b)
        angle = math.acos(min(1.0, max(-1.0, cosine)))
        # Of parallel or opposite latents the sphere has no one shortest path: go straight.
        if 1e-6 < angle < math.pi - 1e-6:
            direction = (np.sin((1 - t) * angle) * first / length_a + np.sin(t * angle) * last / length_b) / math.sin(
                angle
            )
            return (direction * ((1 - t) * length_a + t * length_b)).astype(np.float32)
    return ((1 - t) * first + t * last).astype(np.float32)


def _eps(seed: int | None, start: int, n: int, shape: tuple[int, ...], stream: int, temperature: float) -> Array:
    temperature = require_number("temperature", temperature, 0, HOTTEST)
    eps = noise.normal(noise.new_seed() if seed is None else seed, start, n, shape, stream)
    if temperature != 1:
        eps *= np.float32(temperature)
    return eps


def _advance(start: int, by: int) -> int:
    # An argument out of its range is left for the draw to refuse.
    return (start + by) % 2**64 if by else start


def _batches(n: int, batch_size: int | None) -> Iterator[tuple[int, int]]:
    size = _BATCH_SIZE if batch_size is None else require_integer("batch_size", batch_size, 1, 2**31)
    for first in range(0, n, size):
        yield first, min(first + size, n)


def _empty(n: int, shape: tuple[int, ...]) -> Array:
    try:
        return np.empty((n, *shape), np.float32)
    except (MemoryError, ValueError):
        size = n * math.prod(shape) * 4 / 2**30
        raise InputError(
            f"n: {n} of shape {list(shape)} are {size:.1f} GiB, more than this machine's memory; take fewer at a time "
            "and move `start` on"
        ) from None


def _checked(name: str, value: ArrayLike, shape: tuple[int, ...], bounds: tuple[float, float] | None = None) -> Array:
    wanted = f"float32 [n, {', '.join(map(str, shape))}]"
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{name}: {wanted} is expected, got no array: {error}") from error
    if array.dtype != np.float32:
        scaling = f" (scaled to {bounds[0]:g} … {bounds[1]:g})" if bounds and array.dtype.kind in "ui" else ""
        raise InputError(
            f"{name}: {wanted} is expected, got dtype {array.dtype}; convert with .astype('float32'){scaling}"
        )
    if array.shape == shape:
        raise InputError(f"{name}: {wanted} is expected, got {list(array.shape)}; add the batch axis: {name}[None]")
    if array.ndim != len(shape) + 1 or array.shape[1:] != shape:
        raise InputError(f"{name}: {wanted} is expected, got {list(array.shape)}")
    if len(array) == 0:
        raise InputError(f"{name}: at least one row is expected, got {list(array.shape)}")
    low, high = bounds if bounds else (-np.inf, np.inf)
    if array.size:
        least, greatest = array.min(), array.max()
        if not (least >= low and greatest <= high and np.isfinite(least) and np.isfinite(greatest)):
            wrong = ~(np.isfinite(array) & (array >= low) & (array <= high))
            index = tuple(int(i) for i in np.argwhere(wrong)[0])
            within = f"values from {low:g} to {high:g}" if bounds else "finite values"
            raise InputError(
                f"{name}{list(index)}: {within} are expected, got {array[index]:g}; scale or clean the data"
            )
    return np.ascontiguousarray(array)
