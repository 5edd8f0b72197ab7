"""A VAE out of a bundle: draw latents, decode, encode, reconstruct, score."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import noise
from .bundle import Bundle, open_bundle
from .devices import Device, resolve_device
from .errors import BundleError, InputError, require_integer
from .inputs import condition_rows, latent_rows, observation_rows, other_shape
from .likelihood import Parameters, kind_named
from .manifest import Condition, Latent, Manifest, TensorSpec
from .quick import Quick, is_plain
from .session import Session

if TYPE_CHECKING:
    # Imported where they are used: a device that samples starts without them.
    from numpy.typing import ArrayLike, NDArray

    from .posterior import Encoding, Posterior
    from .prior import Mixture
    from .score import Scores

    Array = NDArray[np.float32]
    # Of one latent an array; of several, arrays by the latents' names.
    Latents = ArrayLike | Mapping[str, ArrayLike]
    # From a name to a value for all rows, to an array [n, ...], or to names of classes.
    Conditions = Mapping[str, Any] | None
    Feeds = dict[str, NDArray[Any]]

__all__ = ["VAE", "interpolate", "load", "open_session", "traverse"]

# Enough for most of a CPU's throughput, little enough to stay in its caches.
_BATCH_SIZE = 64
# Numbers of an observation that are scored at once: their terms, in float64, then stay near the caches.
_SCORED = 2**20
_ORT_TYPES = {"float32": "tensor(float)", "int64": "tensor(int64)"}


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

    The decoder is loaded now, the encoder when it is first needed; each file's SHA-256 is checked as it is opened. Of a
    packed bundle one of the two may have been left out; what needs it then raises a BundleError that says so. Of a
    variant in 8 bits a row's numbers may depend on the other rows of its batch (docs/variants.md).

    Args:
        path: the bundle's folder or .zip file. It must stay where it is while the VAE is in use.
        device: "cpu", "cuda", "cuda:1", "auto" (CUDA if it works, else CPU; logged) or the name of an ONNX Runtime
            execution provider.
        threads: threads of one call, at least 1. For throughput, more workers of one thread beat more threads.
        variant: the variant to run, such as "int8"; a component that has none of this name runs in its first declared
            one, which is also the default: see `VAE.variants`.
        provider_options: passed to the execution provider. On CUDA, TF32 is off unless given as {"use_tf32": 1}.
        digest: "sha256:…" of the bundle, as `vae-runtime info` prints it: any other bundle is refused.

    Raises:
        BundleError: the bundle is missing, damaged or of a newer format, or no component has such a variant.
        DeviceError: the device is not to be had; nothing falls back silently.
        InputError: an argument is not of the right form.
    """
    count = require_integer("threads", threads, 1, 1024)
    bundle = open_bundle(path, digest)
    component = _main_component(bundle.manifest)
    vae = VAE(bundle, resolve_device(device, provider_options), count, variant)
    if vae._session(component).in_place and is_plain(bundle.manifest):
        vae._quick = Quick(bundle.manifest, vae._session)
    return vae


def open_session(bundle: Bundle, component: str, variant: str | None, device: Device, threads: int = 1) -> Session:
    """Load one graph of a bundle and hold its inputs and outputs against the manifest.

    Raises:
        BundleError: the file is damaged, or the graph is not the one that the manifest describes.
        DeviceError: the device is not to be had.
    """
    manifest = bundle.manifest
    chosen = bundle.variant(component, variant)
    place = bundle.place(chosen.path)
    session = Session(bundle.read(chosen.path), place, device, threads, data=bundle.data(chosen))
    inputs = {tensor.name: tensor for tensor in manifest.inputs(component)}
    outputs = {tensor.name: tensor for tensor in manifest.outputs(component)}
    for kind, wanted, found in (("input", inputs, session.inputs), ("output", outputs, session.outputs)):
        if wanted.keys() != found.keys():
            raise BundleError(
                f"{place}: {kind}s {sorted(wanted)} are expected from the manifest, the graph has {sorted(found)}; "
                "export the bundle again"
            )
        for name, tensor in wanted.items():
            dtype, sizes = found[name]
            if dtype != _ORT_TYPES[tensor.dtype] or not _fits(tensor, sizes):
                shown = ["batch", *("dynamic" if i in tensor.dynamic else str(s) for i, s in enumerate(tensor.shape))]
                raise BundleError(
                    f"{place}: {kind} {name}: {tensor.dtype} [{', '.join(shown)}] is expected from the manifest, the "
                    f"graph has {dtype} {list(sizes)}; export the bundle again"
                )
    return session


def _main_component(manifest: Manifest) -> str:
    return "decoder" if "decoder" in manifest.components else "encoder"


def _chosen(bundle: Bundle, name: str | None) -> dict[str, str]:
    """The variant of each component: the one of this name, or the first where a component has none of it."""
    components = bundle.manifest.components
    if name is not None and not isinstance(name, str):
        raise InputError(f"variant: a name is expected, got {name!r}")
    named = [component for component, variants in components.items() if name in variants]
    if name is not None and not named:
        there = dict.fromkeys(v.name for v in bundle.manifest.variants if v.executor == "ort")
        raise BundleError(f"{bundle.path}: there is no variant {name!r}; choose one of: {', '.join(there)}")
    return {component: bundle.variant(component, name if component in named else None).name for component in components}


def _fits(tensor: TensorSpec, sizes: Sequence[Any]) -> bool:
    """Whether a graph's sizes are a dynamic batch and the tensor's; of a dynamic axis a graph has no number."""
    wanted = [None, *(None if i in tensor.dynamic else size for i, size in enumerate(tensor.shape))]
    return [size if isinstance(size, int) else None for size in sizes] == wanted


class VAE:
    """A Variational Autoencoder, ready to sample. Made by `load`; may be shared by threads.

    Observations are [n, *observation_shape], latents [n, *latent_shape], float32 unless the manifest says int64. Where
    the manifest has several latents, whatever takes or gives latents does so in mappings by their names.

    `conditions` maps the name of each condition that the graph takes to an array [n, *shape], or to one value for every
    row; where the classes of a condition have names, also to a name or a list of names. Names of other conditions of
    the manifest may be among them.
    """

    def __init__(self, bundle: Bundle, device: Device, threads: int, variant: str | None) -> None:
        self.bundle = bundle
        self._device = device
        self._threads = threads
        self._variants = _chosen(bundle, variant)
        self._sessions: dict[str, Session] = {}
        self._mixtures: dict[str, Mixture] = {}
        self._lock = threading.Lock()
        manifest = bundle.manifest
        self._several = len(manifest.latents) > 1
        self._usual_shapes = tuple(latent.shape for latent in manifest.latents)
        self._taken = {
            component: tuple(c for c in manifest.conditions if component in c.components)
            for component in ("encoder", "decoder")
        }
        self._outputs = {component: manifest.outputs(component) for component in ("encoder", "decoder")}
        self._encoder_noise = any(latent.posterior.noise for latent in manifest.latents)
        # None until the decoder is there: whether it can be had depends on where it runs.
        self._quick: Quick | None = None

    def __repr__(self) -> str:
        shapes = ", ".join(str(list(latent.shape)) for latent in self.latents)
        what = f"latent{'s' if self._several else ''} {shapes} → observation {list(self.observation_shape)}"
        if self.conditions:
            what += f", given {', '.join(condition.name for condition in self.conditions)}"
        return f"<VAE {self.manifest.name}: {what}, {self.manifest.likelihood.kind}, {self.variant} on {self.device}>"

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
        """The decoder's variant in use; where the decoder was left out, the encoder's."""
        return self._variants[_main_component(self.manifest)]

    @property
    def variants(self) -> dict[str, str]:
        """The variant in use by component: where a component has none of the name asked for, its first declared one."""
        return dict(self._variants)

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Shape of one observation; where axes are dynamic, the usual one."""
        return self.manifest.observation.shape

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent, of several the first; where axes are dynamic, the usual one."""
        return self.manifest.latent.shape

    @property
    def latents(self) -> tuple[Latent, ...]:
        """What the manifest says of each latent."""
        return self.manifest.latents

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What the manifest says of each condition."""
        return self.manifest.conditions

    def prior(
        self,
        n: int,
        *,
        seed: int | None = None,
        start: int = 0,
        temperature: float = 1.0,
        truncation: float | None = None,
        latent_shape: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    ) -> Array | Any:
        """Draw latents from the prior.

        Args:
            n: how many, at least 1.
            seed: of vnoise-1; None takes a fresh one (call `vae_runtime.new_seed()` to keep it).
            start: index of the first: row i is sample `start + i` of the seed, the same bits for every n, batch size,
                thread and platform.
            temperature: scales the noise, 0 … 1e6.
            truncation: draw noise of which no number is beyond ± this, before the temperature; 0.01 … 1e6.
            latent_shape: another shape of one latent, where axes are dynamic; of several latents, by name.

        Returns:
            float32 [n, *latent_shape]; of several latents, such arrays by name.

        Raises:
            InputError: an argument is out of its range, or there is no prior to draw from; the message says why.
        """
        count = require_integer("n", n, 1, 2**48)
        seed = noise.new_seed() if seed is None else seed
        drawn = self._draw(seed, start, count, self._shapes(latent_shape), temperature, truncation)
        return drawn if self._several else drawn[self.latents[0].name]

    def sample(
        self,
        n: int,
        *,
        conditions: Conditions = None,
        seed: int | None = None,
        start: int = 0,
        temperature: float = 1.0,
        truncation: float | None = None,
        latent_shape: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
        observe: bool = False,
        batch_size: int | None = None,
        out: Array | None = None,
        on_device: bool = False,
    ) -> Array | Any:
        """Draw latents from the prior and decode them.

        Args:
            n: how many, at least 1.
            conditions: what the decoder is given beside the latents.
            seed: of vnoise-1; None takes a fresh one.
            start: index of the first: row i is sample `start + i` of the seed.
            temperature: scales the latents' noise, 0 … 1e6.
            truncation: as in `prior`.
            latent_shape: as in `prior`.
            observe: draw each observation from the likelihood instead of giving its mean.
            batch_size: how many to decode at once; bounds the memory beside the result.
            out: float32 [n, *observation shape], C-contiguous: filled and returned.
            on_device: decode all at once and leave the result on the device, for `torch.from_dlpack` or
                `cupy.from_dlpack`, which copy nothing; without `observe`, `batch_size` and `out`.

        Returns:
            float32 [n, *observation shape]; `on_device` an `onnxruntime.OrtValue` of these.

        Raises:
            DeviceError: `on_device`, and this ONNX Runtime is too old for it.
            InputError: an argument is out of its range, a condition is missing or wrong, or there is no prior, or with
                `observe` no likelihood, to draw from.
        """
        fixed = noise.new_seed() if seed is None else seed
        if (
            self._quick is not None and not on_device and not observe and truncation is None
            and type(temperature) in (int, float) and temperature == 1
            and conditions is None and latent_shape is None and batch_size is None
        ):  # fmt: skip
            found = self._quick.sample(n, fixed, start)
            if found is not None:
                return found if out is None else self._filled(out, found)
        count = require_integer("n", n, 1, 2**48)
        given = self._given("decoder", conditions, count)
        shapes = self._shapes(latent_shape)

        def feed(first: int, last: int) -> Feeds:
            feeds = self._draw(fixed, _advance(start, first), last - first, shapes, temperature, truncation)
            if given:
                feeds.update(_slice(given, first, last))
            return feeds

        if on_device:
            for name, value in (("observe", observe or None), ("batch_size", batch_size), ("out", out)):
                if value is not None:
                    raise InputError(
                        f"{name}: none is expected with on_device, which decodes all at once; leave it out"
                    )
            return self._session("decoder").run_on_device(self.manifest.likelihood.mean, feed(0, count))
        return self._decoded(feed, count, fixed, start, observe, batch_size, out)

    def stream(
        self,
        n: int,
        *,
        conditions: Conditions = None,
        seed: int | None = None,
        start: int = 0,
        temperature: float = 1.0,
        truncation: float | None = None,
        observe: bool = False,
        batch_size: int = 512,
    ) -> Iterator[Array]:
        """Samples one batch after the other, for programs that want no files; arguments as of `sample`.

        Every batch is decoded whole, and the last cut, so that the values are those that `generate` writes with this
        batch size, from a start that is a multiple of it.

        Yields:
            float32 [batch_size, *observation shape]; the last may have fewer rows.

        Raises:
            InputError: as `sample`.
        """
        count = require_integer("n", n, 1, 2**48)
        size = require_integer("batch_size", batch_size, 1, 2**31)
        fixed = noise.new_seed() if seed is None else seed
        given = self._given("decoder", conditions, count)

        def batches() -> Iterator[Array]:
            for first in range(0, count, size):
                rows = _slice(given, first, first + size)
                missing = first + size - count
                if missing > 0:
                    rows = {name: np.concatenate([row, row[-1:].repeat(missing, 0)]) for name, row in rows.items()}
                x = self.sample(
                    size, conditions=rows or None, seed=fixed, start=_advance(start, first), temperature=temperature,
                    truncation=truncation, observe=observe, batch_size=size,
                )  # fmt: skip
                yield x[: count - first]

        return batches()

    def decode(
        self,
        z: Latents,
        *,
        conditions: Conditions = None,
        seed: int | None = None,
        start: int = 0,
        observe: bool = False,
        batch_size: int | None = None,
        out: Array | None = None,
    ) -> Array:
        """The likelihood's mean for each latent, in data space.

        Args:
            z: float32 [n, *latent_shape], finite (codes: int64, below the codebook's size); of several latents such
                arrays by name, where those that are noise of the decoder may be left out.
            conditions: what the decoder is given beside the latents.
            seed: draws the latents that were left out from their prior; None takes zeros for them.
            start: index of the first, for the seed.
            observe: draw each observation from the likelihood instead of giving its mean; without a seed by a fresh
                one, which draws the latents that were left out, too.
            batch_size: how many to decode at once.
            out: float32 [n, *observation shape], C-contiguous: filled and returned.

        Returns:
            float32 [n, *observation shape].

        Raises:
            InputError: an array has another dtype or shape, or holds NaN or infinity; a condition is missing or wrong;
                or with `observe` there is no likelihood to draw from.
        """
        if self._quick is not None and conditions is None and batch_size is None and not observe:
            found = self._quick.decode(z)
            if found is not None:
                return found if out is None else self._filled(out, found)
        fixed = noise.new_seed() if observe and seed is None else seed
        feeds, n = self._decoder_feeds(z, conditions, fixed, start)
        if out is not None:
            # What one batch writes must not be what a later one reads.
            feeds = {name: rows.copy() if np.may_share_memory(rows, out) else rows for name, rows in feeds.items()}
        return self._decoded(_feed(feeds), n, fixed, start, observe, batch_size, out)

    def parameters(
        self,
        z: Latents,
        *,
        conditions: Conditions = None,
        seed: int | None = None,
        start: int = 0,
        batch_size: int | None = None,
    ) -> dict[str, Array]:
        """All that the decoder gives for each latent, by the outputs' names; arguments as of `decode`.

        Returns:
            float32 [n, ...] each: the mean, its logits or scale, and what else the manifest names.

        Raises:
            InputError: as `decode`.
        """
        feeds, n = self._decoder_feeds(z, conditions, seed, start)
        names = [tensor.name for tensor in self.manifest.outputs("decoder")]
        return dict(zip(names, self._run("decoder", names, n, _feed(feeds), batch_size), strict=True))

    def encode(
        self,
        x: ArrayLike,
        *,
        conditions: Conditions = None,
        seed: int | None = None,
        start: int = 0,
        batch_size: int | None = None,
    ) -> Posterior | Any:
        """The posterior of each observation.

        Args:
            x: float32 or int64 [n, *observation_shape], as the manifest says, finite and within its range.
            conditions: what the encoder is given beside x.
            seed: where some latents depend on samples of others, draws these as `sample` of the result does; None takes
                their means. Other encoders draw nothing.
            start: index of the first observation, for the seed.
            batch_size: how many to encode at once.

        Returns:
            A `Posterior`; an `Encoding` where the latent is a code or has no distribution; of several latents, a
            mapping from their names to these, without the latents that are noise of the decoder.

        Raises:
            InputError: an array has another dtype or shape, or values out of range; a condition is missing or wrong.
        """
        from .posterior import Posterior, Posteriors

        if self._quick is not None and conditions is None and seed is None and batch_size is None:
            moments = self._quick.encode(x)
            if moments is not None:
                return Posterior(*moments)
        x = observation_rows(self.manifest.observation, x)
        parts = self._encode(x, self._given("encoder", conditions, len(x)), seed, start, batch_size)
        return Posteriors(parts) if self._several else parts[self.latents[0].name]

    def reconstruct(
        self,
        x: ArrayLike,
        *,
        conditions: Conditions = None,
        seed: int | None = None,
        start: int = 0,
        batch_size: int | None = None,
    ) -> Array:
        """Encode and decode: through the posterior's mean, or with a seed through a sample of it.

        Args:
            x: [n, *observation_shape].
            conditions: what encoder and decoder are given beside x and the latents.
            seed: of vnoise-1; None goes through the mean.
            start: index of the first observation, for the seed.
            batch_size: how many to work on at once.

        Returns:
            float32 [n, *observation shape].

        Raises:
            InputError: an array has another dtype or shape, or values out of range; a condition is missing or wrong;
                or a seed is given where there is no distribution to draw from.
        """
        if self._quick is not None and conditions is None and seed is None and batch_size is None:
            found = self._quick.reconstruct(x)
            if found is not None:
                return found
        posterior = self.encode(x, conditions=conditions, seed=seed, start=start, batch_size=batch_size)
        z = posterior.mode() if seed is None else posterior.sample(seed=seed, start=start)
        return self.decode(z, conditions=conditions, seed=seed, start=start, batch_size=batch_size)

    def scaled(self, z: Latents) -> Array | Any:
        """Latents as other models take them, (z - shift) · scale with the manifest's numbers; codes stay as they are.

        Args:
            z: float32 [n, *latent_shape]; of several latents by name.

        Returns:
            Of the same shape, float32.

        Raises:
            InputError: an array has another dtype or shape, or holds NaN or infinity.
        """
        return self._rescale(z, lambda part, scale, shift: (part - shift) * scale)

    def unscaled(self, w: Latents) -> Array | Any:
        """Latents that another model gave, as `decode` takes them: w / scale + shift; the inverse of `scaled`.

        Args:
            w: float32 [n, *latent_shape]; of several latents by name.

        Returns:
            Of the same shape, float32.

        Raises:
            InputError: an array has another dtype or shape, or holds NaN or infinity.
        """
        return self._rescale(w, lambda part, scale, shift: part / scale + shift)

    def transform(self, x: ArrayLike, conditions: Conditions = None) -> Array | Any:
        """The scaled mode of each observation's posterior: `scaled(encode(x).mode())`.

        Raises:
            InputError: as `encode`.
        """
        return self.scaled(self.encode(x, conditions=conditions).mode())

    def inverse_transform(self, w: Latents, conditions: Conditions = None) -> Array:
        """The observations of scaled latents: `decode(unscaled(w))`.

        Raises:
            InputError: as `decode`.
        """
        return self.decode(self.unscaled(w), conditions=conditions)

    def score(
        self,
        x: ArrayLike,
        *,
        conditions: Conditions = None,
        k: int | None = None,
        seed: int | None = None,
        start: int = 0,
        batch_size: int | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> Scores:
        """How well the VAE explains each observation, in nats.

        The ELBO takes one posterior sample and the analytic KL; the bound of log p(x) takes k importance samples, of
        which draw j is element j · D + e of the importance stream (docs/noise.md, section 6).

        Args:
            x: [n, *observation_shape]; under a bernoulli likelihood only 0 and 1 make it one, grey values give a
                surrogate.
            conditions: what encoder and decoder are given beside x and the latents.
            k: how many importance samples; None leaves `log_likelihood` out.
            seed: of vnoise-1; None takes a fresh one.
            start: index of the first observation, for the seed.
            batch_size: how many to decode at once; the scores depend on it by rounding alone.
            progress: called with (observations done, observations) after each batch.

        Returns:
            `Scores`; what cannot be said of this VAE is None there, with the reason.

        Raises:
            InputError: an array has another dtype or shape, or values out of range; a condition is missing or wrong; or
                k is given where encoder or decoder draw noise of their own.
        """
        from .score import Scores

        x = observation_rows(self.manifest.observation, x)
        n, given = len(x), self._given(None, conditions, len(x))
        fixed = noise.new_seed() if seed is None else seed
        reason = self._unscored()
        if k is not None:
            k = require_integer("k", k, 1, 2**31)
            if self._encoder_noise or any(not latent.posterior.outputs for latent in self.latents):
                raise InputError(
                    "k: importance samples are drawn for VAEs whose encoder and decoder take no noise of their own; "
                    "leave k out, the ELBO is a bound of log p(x) too"
                )
        size = max(1, min(_BATCH_SIZE, _SCORED // max(1, x[0].size))) if batch_size is None else batch_size
        columns: dict[str, list[NDArray[np.float64]]] = {}
        terms: dict[str, list[NDArray[np.float64]]] = {}
        for first, last in _batches(n, size):
            part, rows, index = x[first:last], _slice(given, first, last), _advance(start, first)
            found = self._score_batch(part, rows, fixed, index, k, size, reason is None)
            for latent, each in found.pop("kl_per_dimension", {}).items():
                terms.setdefault(latent, []).append(each)
            for name, column in found.items():
                columns.setdefault(name, []).append(column)
            if progress is not None:
                progress(last, n)
        whole = {name: np.concatenate(parts) for name, parts in columns.items()}
        per_dimension = {latent: np.concatenate(parts) for latent, parts in terms.items()}
        return Scores(
            elbo=whole["reconstruction"] - whole["kl"] if reason is None else None,
            reconstruction=whole.get("reconstruction"),
            kl=whole.get("kl"),
            kl_per_dimension=(per_dimension or None) if self._several else next(iter(per_dimension.values()), None),
            log_likelihood=whole.get("log_likelihood"),
            mse=whole.get("mse"),
            mae=whole.get("mae"),
            reason=reason,
        )

    def _score_batch(
        self, x: NDArray[Any], rows: Feeds, seed: int, start: int, k: int | None, size: int, whole: bool
    ) -> dict[str, Any]:
        """The columns of `Scores` of checked observations; unless `whole`, only those of the reconstruction."""
        from .posterior import Posterior
        from .score import importance_weighted_bound, log_likelihood

        found: dict[str, Any] = {}
        likelihood = self.manifest.likelihood
        q = self._encode(x, rows, None, 0, size)
        z = {name: part.mode() for name, part in q.items()}
        r = self._answers(z, rows, [likelihood.mean], size)[likelihood.mean]
        if r.shape == x.shape:
            error = (x.astype(np.float64) - r).reshape(len(x), -1)
            found.update(mse=np.square(error).mean(axis=1), mae=np.abs(error).mean(axis=1))
        if not whole:
            return found
        if self._encoder_noise:
            q = self._encode(x, rows, seed, start, size)
        z = {name: part.sample(seed=seed, start=start) for name, part in q.items()}
        self._fill_noise(z, seed, start)
        outputs = [name for name in (likelihood.logits or likelihood.mean, likelihood.scale_output) if name]
        found["reconstruction"] = log_likelihood(x, self._answers(z, rows, outputs, size), likelihood)
        found["kl_per_dimension"] = {name: part.kl_per_dimension() for name, part in q.items()}
        found["kl"] = np.sum([part.kl() for part in q.values()], axis=0)
        if k is not None:
            weights = np.empty((len(x), k))
            together = max(1, size // k)
            for first in range(0, len(x), together):
                here = slice(first, first + together)
                parts = {
                    name: Posterior(part.mean[here], part.std[here], part.logvar[here], part.latent)
                    for name, part in q.items()
                    if isinstance(part, Posterior)
                }
                some = {name: row[here] for name, row in rows.items()}
                weights[here] = self._log_weights(x[here], parts, some, outputs, k, seed, _advance(start, first), size)
            found["log_likelihood"] = importance_weighted_bound(weights)
        return found

    def _log_weights(
        self, x: NDArray[Any], q: Mapping[str, Posterior], rows: Feeds, outputs: list[str], k: int, seed: int,
        start: int, size: int,
    ) -> NDArray[np.float64]:  # fmt: skip
        """log p(x|z) + log p(z) − log q(z|x) of k importance samples, float64 [n, k]; `size` or so decoded at once."""
        from .posterior import Posterior
        from .score import log_likelihood, log_standard_normal

        n = len(x)
        eps = {
            name: noise.normal(
                seed, start, n, (k, *part.mean.shape[1:]), noise.stream_of(noise.IMPORTANCE, part.latent)
            )
            for name, part in q.items()
        }
        chunk, weights = max(1, size // n), np.empty((n, k))
        for first in range(0, k, chunk):
            count = min(chunk, k - first)
            z, total = {}, np.zeros(n * count)
            for name, part in q.items():
                mean, std, logvar = (np.repeat(array, count, axis=0) for array in (part.mean, part.std, part.logvar))
                drawn = mean + std * eps[name][:, first : first + count].reshape(mean.shape)
                total += log_standard_normal(drawn) - Posterior(mean, std, logvar).log_prob(drawn)
                z[name] = drawn
            repeated = {name: np.repeat(row, count, axis=0) for name, row in rows.items()}
            answers = self._answers(z, repeated, outputs, size)
            total += log_likelihood(np.repeat(x, count, axis=0), answers, self.manifest.likelihood)
            weights[:, first : first + count] = total.reshape(n, count)
        return weights

    def _unscored(self) -> str | None:
        """Why there is no ELBO, None where there is one."""
        likelihood = self.manifest.likelihood
        if likelihood.kind == "none":
            return likelihood.reason or "no likelihood was stated at export (likelihood=…)"
        if likelihood.shape not in (None, self.observation_shape):
            return f"the decoder's answer has the shape {list(likelihood.shape or ())}, not that of an observation"
        for latent in self.latents:
            if latent.posterior.kind != "normal" and latent.posterior.outputs:
                return f"{latent.name}: {_reason(latent)}"
            if latent.prior.kind != "normal":
                why = f", {latent.prior.reason}" if latent.prior.reason else ""
                return f"{latent.name}: the KL is that to a standard normal, and the prior is {latent.prior.kind}{why}"
        return None

    def _shapes(self, latent_shape: Sequence[int] | Mapping[str, Sequence[int]] | None) -> tuple[tuple[int, ...], ...]:
        """The shape of each latent."""
        if latent_shape is None:
            return self._usual_shapes
        if isinstance(latent_shape, Mapping):
            shapes: Mapping[str, Sequence[int]] = latent_shape
        elif self._several:
            raise InputError(
                f"latent_shape: a mapping from the names {_names(self.latents)} to shapes is expected, got "
                f"{latent_shape!r}"
            )
        else:
            shapes = {self.latents[0].name: latent_shape}
        _require_known("latent_shape", shapes, self.latents)
        return tuple(
            other_shape(latent, shapes[latent.name]) if latent.name in shapes else latent.shape
            for latent in self.latents
        )

    def _draw(
        self, seed: int, start: int, n: int, shapes: tuple[tuple[int, ...], ...], temperature: float,
        truncation: float | None,
    ) -> Feeds:  # fmt: skip
        """Every latent by name, drawn from its prior."""
        return {
            latent.name: self._draw_one(number, seed, start, n, shapes[number], temperature, truncation)
            for number, latent in enumerate(self.bundle.manifest.latents)
        }

    def _draw_one(
        self, number: int, seed: int, start: int, n: int, shape: tuple[int, ...], temperature: float,
        truncation: float | None,
    ) -> Array:  # fmt: skip
        from .prior import draw_normal, draw_sphere, read_mixture

        latent = self.bundle.manifest.latents[number]
        kind = latent.prior.kind
        if kind == "normal":
            return draw_normal(seed, start, n, shape, noise.PRIOR + 256 * number, temperature, truncation)
        if kind == "mixture":
            if shape != latent.shape:
                raise InputError(
                    f"latent_shape of {latent.name}: {list(latent.shape)} is expected, for which the prior was fitted, "
                    f"got {list(shape)}"
                )
            mixture = self._mixtures.get(latent.name)
            if mixture is None:
                mixture = self._mixtures[latent.name] = read_mixture(self.bundle, latent)
            return mixture.draw(seed, start, n, number, temperature, truncation).reshape(n, *shape)
        if kind == "sphere":
            if temperature != 1 or truncation is not None:
                raise InputError(
                    f"temperature and truncation: none is expected, since the prior of {latent.name} is uniform on a "
                    f"sphere, got {temperature} and {truncation}"
                )
            return draw_sphere(seed, start, n, shape, number)
        raise InputError(
            f"{latent.name}: a prior to draw from is expected, the bundle has none: "
            f"{latent.prior.reason or 'no reason is given'}; fit one at export (prior=…), or give latents to decode()"
        )

    def _decoded(
        self, feed: Callable[[int, int], Feeds], n: int, seed: int | None, start: int, observe: bool,
        batch_size: int | None, out: Array | None,
    ) -> Array:  # fmt: skip
        """The likelihood's mean of what `feed` gives, or draws from the likelihood."""
        likelihood = self.manifest.likelihood
        if not observe:
            return self._run("decoder", [likelihood.mean], n, feed, batch_size, out)[0]
        if likelihood.kind == "none":
            raise InputError(
                "observe: a likelihood is expected, the bundle has none: "
                f"{likelihood.reason or 'none was stated at export (likelihood=…)'}; leave observe out for the mean"
            )
        outputs = [likelihood.mean, *([likelihood.scale_output] if likelihood.scale_output else [])]

        def draw(first: int, answers: list[NDArray[Any]]) -> list[NDArray[Any]]:
            assert seed is not None
            return [self._observe(answers, seed, _advance(start, first))]

        return self._run("decoder", outputs, n, feed, batch_size, out, draw)[0]

    def _decoder_feeds(self, z: Latents, conditions: Conditions, seed: int | None, start: int) -> tuple[Feeds, int]:
        """What the decoder is given, and for how many rows."""
        feeds = self._checked_latents(z)
        if self._several or not feeds:
            missing = [each.name for each in self.latents if each.posterior.outputs and each.name not in feeds]
            if missing or not feeds:
                listed = ", ".join(missing) or _names(self.latents)
                raise InputError(f"z: {listed} is missing; give every latent by name")
            counts = {name: len(array) for name, array in feeds.items()}
            if len(set(counts.values())) > 1:
                raise InputError(f"z: as many rows of each latent are expected, got {counts}")
            self._fill_noise(feeds, seed, start)
        n = len(next(iter(feeds.values())))
        feeds.update(self._given("decoder", conditions, n))
        return feeds, n

    def _fill_noise(self, feeds: Feeds, seed: int | None, start: int) -> None:
        """Add the latents that are the decoder's noise, where missing: drawn from the prior; without a seed zeros."""
        n = len(next(iter(feeds.values())))
        for number, latent in enumerate(self.latents):
            if latent.name not in feeds:
                sizes = {
                    axis: feeds[other.name].shape[1 + index]
                    for other in self.latents
                    if other.name in feeds
                    for index, axis in enumerate(other.axes)
                }
                shape = _with_sizes(latent, sizes)
                feeds[latent.name] = (
                    np.zeros((n, *shape), np.float32)
                    if seed is None
                    else self._draw_one(number, seed, start, n, shape, 1.0, None)
                )

    def _answers(self, z: Feeds, rows: Feeds, outputs: list[str], batch_size: int) -> Feeds:
        """The decoder's outputs by name, for checked latents and conditions; noise that is not among them is zeros."""
        feeds = dict(z)
        self._fill_noise(feeds, None, 0)
        n = len(next(iter(feeds.values())))
        feeds.update({c.name: rows[c.name] for c in self._taken["decoder"]})
        return dict(zip(outputs, self._run("decoder", outputs, n, _feed(feeds), batch_size), strict=True))

    def _encode(
        self, x: NDArray[Any], rows: Feeds, seed: int | None, start: int, batch_size: int | None
    ) -> dict[str, Posterior | Encoding]:
        """The posteriors by name, of checked observations and conditions."""
        from .posterior import Drawn, Encoding, Posterior

        feeds = {self.manifest.observation.name: x, **{c.name: rows[c.name] for c in self._taken["encoder"]}}
        noises = self._noises(x.shape[1:])

        def feed(first: int, last: int) -> Feeds:
            part = _slice(feeds, first, last)
            for name, (stream, shape) in noises.items():
                part[name] = (
                    np.zeros((last - first, *shape), np.float32)
                    if seed is None
                    else noise.normal(seed, _advance(start, first), last - first, shape, stream)
                )
            return part

        outputs = [name for latent in self.latents for name in latent.posterior.outputs]
        answers = dict(zip(outputs, self._run("encoder", outputs, len(x), feed, batch_size), strict=True))
        drawn = Drawn(seed, start) if noises else None
        found: dict[str, Posterior | Encoding] = {}
        for number, latent in enumerate(self.latents):
            posterior = latent.posterior
            if posterior.kind == "normal":
                mean, std, logvar = (answers[str(name)] for name in (posterior.mu, posterior.std, posterior.logvar))
                found[latent.name] = Posterior(mean, std, logvar, number, drawn)
            elif posterior.value:
                found[latent.name] = Encoding(answers[posterior.value], _reason(latent))
        return found

    def _noises(self, observation: tuple[int, ...]) -> dict[str, tuple[int, tuple[int, ...]]]:
        """The stream and the shape of each noise that the encoder takes for observations of a shape."""
        usual, axes = self.manifest.observation, self.manifest.observation.axes
        found = {}
        for number, latent in enumerate(self.latents):
            if latent.posterior.noise:
                sizes = {}
                for axis, at_encode, at_export in zip(axes, observation, usual.shape, strict=True):
                    if axis in latent.dynamic:
                        # Latents grow in proportion to observations.
                        sizes[axis] = latent.shape[latent.axes.index(axis)] * at_encode // at_export
                stream = noise.stream_of(noise.POSTERIOR, number)
                found[latent.posterior.noise] = stream, _with_sizes(latent, sizes)
        return found

    def _rescale(self, z: Latents, change: Callable[[Any, Any, Any], Any]) -> Array | Any:
        found = {}
        for name, part in self._checked_latents(z).items():
            latent = next(latent for latent in self.latents if latent.name == name)
            if latent.posterior.kind == "codes":
                found[name] = part
                continue
            scale, shift = (
                np.asarray(numbers, np.float32).reshape(-1, *[1] * (len(latent.shape) - 1))
                for numbers in (latent.scale, latent.shift)
            )
            found[name] = change(part, scale, shift)
        return found if self._several else found[self.latents[0].name]

    def _checked_latents(self, z: Latents) -> Feeds:
        """Latents by name, held against the manifest."""
        if not isinstance(z, Mapping):
            if self._several:
                raise InputError(
                    f"z: a mapping from the names {_names(self.latents)} to arrays is expected, got {type(z).__name__}"
                )
            only = self.latents[0]
            return {only.name: latent_rows(only, z)}
        _require_known("z", z, self.latents)
        return {latent.name: latent_rows(latent, z[latent.name]) for latent in self.latents if latent.name in z}

    def _given(self, component: str | None, conditions: Conditions, n: int) -> Feeds:
        """The conditions that a component takes, of None those of both, each with a row for each of `n`."""
        if conditions is None and not self.bundle.manifest.conditions:
            return {}
        conditions = {} if conditions is None else conditions
        if not isinstance(conditions, Mapping):
            raise InputError(f"conditions: a mapping from names to values is expected, got {type(conditions).__name__}")
        _require_known("conditions", conditions, self.conditions)
        rows = {c.name: condition_rows(c, conditions[c.name], n) for c in self.conditions if c.name in conditions}
        needed = self.conditions if component is None else self._taken[component]
        for condition in needed:
            if condition.name not in rows:
                what = f"one of its {len(condition.classes)} classes" if condition.classes else condition.dtype
                raise InputError(
                    f"conditions: {condition.name!r} ({what}, shape {list(condition.shape)}) is expected, it is "
                    f"missing; give conditions={{{condition.name!r}: …}}"
                )
        return {condition.name: rows[condition.name] for condition in needed}

    def _observe(self, answers: Sequence[NDArray[Any]], seed: int, start: int) -> Array:
        """One draw from the likelihood around each mean; the second answer is the scale, if an output holds it."""
        likelihood = self.manifest.likelihood
        parameters = Parameters(answers[0], scale=answers[1] if len(answers) > 1 else likelihood.scale)
        return kind_named(likelihood.kind).draw(parameters, seed, start)

    def _session(self, component: str) -> Session:
        session = self._sessions.get(component)
        if session is None:
            with self._lock:
                session = self._sessions.get(component)
                if session is None:
                    session = open_session(
                        self.bundle, component, self._variants.get(component), self._device, self._threads
                    )
                    self._sessions[component] = session
        return session

    def _run(
        self,
        component: str,
        outputs: list[str],
        n: int,
        feed: Callable[[int, int], Feeds],
        batch_size: int | None,
        out: Array | None = None,
        finish: Callable[[int, list[NDArray[Any]]], list[NDArray[Any]]] | None = None,
    ) -> list[NDArray[Any]]:
        """Run a graph in batches of what `feed` gives for rows first … last - 1; each output whole, the first in `out`.

        The results are allocated once the first batch shows their shape, which dynamic axes leave open.
        """
        if out is not None:
            self._require_buffer(out, n)
        session = self._session(component)
        if session.in_place and finish is None:
            tensors = [tensor for name in outputs for tensor in self._outputs[component] if tensor.name == name]
            if not any(tensor.dynamic for tensor in tensors):
                return self._run_in_place(component, tensors, n, feed, batch_size, out)
        results: list[NDArray[Any]] = []
        for first, last in _batches(n, batch_size):
            parts = session.run(outputs, feed(first, last))
            if finish is not None:
                parts = finish(first, parts)
            for part in parts:
                if len(part) != last - first:
                    raise BundleError(
                        f"{session.place}: {last - first} rows are expected, the graph gives {len(part)}; export the "
                        "bundle again"
                    )
            if not results:
                if out is None and last == n:
                    return parts
                results = [_empty(n, part.shape[1:], part.dtype) for part in parts] if out is None else [out]
                if results[0].shape[1:] != parts[0].shape[1:]:
                    raise InputError(
                        f"out: a float32 array {[n, *parts[0].shape[1:]]} is expected, got {list(results[0].shape)}"
                    )
            for result, part in zip(results, parts, strict=True):
                result[first:last] = part
        return results

    def _run_in_place(
        self, component: str, tensors: list[TensorSpec], n: int, feed: Callable[[int, int], Feeds],
        batch_size: int | None, out: Array | None,
    ) -> list[NDArray[Any]]:  # fmt: skip
        """As `_run`, for outputs of known shapes: the graph writes into the results themselves."""
        session = self._session(component)
        results = [_empty(n, tensor.shape, tensor.dtype) for tensor in tensors] if out is None else [out]
        for first, last in _batches(n, batch_size):
            parts = {tensor.name: result[first:last] for tensor, result in zip(tensors, results, strict=True)}
            session.run_into(feed(first, last), parts)
        return results

    def _filled(self, out: Array, found: Array) -> Array:
        self._require_buffer(out, len(found))
        out[...] = found
        return out

    def _require_buffer(self, out: Array, n: int) -> None:
        """Hold a caller's buffer against what is known before the decoder has run."""
        mean = self._outputs["decoder"][0]
        shape = (n, *mean.shape)
        good = isinstance(out, np.ndarray) and out.dtype == np.float32 and (out.shape == shape or mean.dynamic)
        if not (good and len(out) == n and out.flags.c_contiguous and out.flags.writeable):
            found = f"{out.dtype} {list(out.shape)}" if isinstance(out, np.ndarray) else type(out).__name__
            raise InputError(f"out: a writeable C-contiguous float32 array {list(shape)} is expected, got {found}")


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


def traverse(z: ArrayLike, dimension: int, values: ArrayLike) -> Array:
    """Copies of one latent in which one number takes one value after the other.

    Args:
        z: float32 [*latent shape], one latent.
        dimension: which number, counted row-major from 0.
        values: float32 [m], what it shall be.

    Returns:
        float32 [m, *latent shape].

    Raises:
        InputError: there is no such number, or a value is not finite.
    """
    latent, steps = np.asarray(z, np.float32), np.asarray(values, np.float32)
    if steps.ndim != 1 or not len(steps):
        raise InputError(f"values: an array [m] of at least one number is expected, got {list(steps.shape)}")
    for name, array in (("z", latent), ("values", steps)):
        if not np.isfinite(array).all():
            raise InputError(f"{name}: finite numbers are expected, got NaN or infinity")
    index = require_integer("dimension", dimension, 0, latent.size - 1)
    copies = np.repeat(latent.reshape(1, -1), len(steps), axis=0)
    copies[:, index] = steps
    return copies.reshape(len(steps), *latent.shape)


def _feed(feeds: Feeds) -> Callable[[int, int], Feeds]:
    return lambda first, last: _slice(feeds, first, last)


def _slice(feeds: Feeds, first: int, last: int) -> Feeds:
    # One value for all rows is a view that ONNX Runtime does not take.
    return {name: np.ascontiguousarray(array[first:last]) for name, array in feeds.items()}


def _reason(latent: Latent) -> str:
    """Why a latent has no posterior distribution."""
    codes = "the encoder gives codes" if latent.posterior.kind == "codes" else "the encoder gives the latent itself"
    return latent.posterior.reason or codes


def _names(specifications: Sequence[Latent] | Sequence[Condition]) -> str:
    return ", ".join(each.name for each in specifications)


def _require_known(place: str, given: Mapping[str, Any], known: Sequence[Latent] | Sequence[Condition]) -> None:
    names = {each.name for each in known}
    for name in given:
        if name not in names:
            listed = f"one of {_names(known)}" if known else "none"
            raise InputError(f"{place}: {listed} is expected, got {name!r}; the bundle's manifest names no such one")


def _with_sizes(latent: Latent, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """A latent's shape, where the dynamic axes that are named have these sizes."""
    if not latent.dynamic:
        return latent.shape
    return tuple(
        sizes.get(axis, usual) if axis in latent.dynamic else usual
        for axis, usual in zip(latent.axes, latent.shape, strict=True)
    )


def _advance(start: int, by: int) -> int:
    # An argument out of its range is left for the draw to refuse.
    return (start + by) % 2**64 if by else start


def _batches(n: int, batch_size: int | None) -> Iterator[tuple[int, int]]:
    size = _BATCH_SIZE if batch_size is None else require_integer("batch_size", batch_size, 1, 2**31)
    for first in range(0, n, size):
        yield first, min(first + size, n)


def _empty(n: int, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Room for `n` rows of a shape."""
    try:
        return np.empty((n, *shape), dtype)
    except (MemoryError, ValueError):
        size = n * math.prod(shape) * np.dtype(dtype).itemsize / 2**30
        raise InputError(
            f"n: {n} of shape {list(shape)} are {size:.1f} GiB, more than this machine's memory; take fewer at a time "
            "and move `start` on"
        ) from None
