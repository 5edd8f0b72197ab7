"""A VAE out of a bundle: draw latents, decode, encode, reconstruct, score."""

from __future__ import annotations

import copyreg
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, overload

import numpy as np

from . import noise
from .bundle import Bundle, open_bundle
from .devices import resolve_device
from .errors import InputError, one_line, require_bool, require_integer, require_number
from .inputs import Inputs, observation_rows
from .manifest import Manifest
from .networks import Networks
from .prior import Prior

if TYPE_CHECKING:
    # Imported where they are used: a device that samples starts without them.
    from numpy.typing import ArrayLike, NDArray

    from .inputs import Conditions, Feeds, Latents, LatentShape
    from .posterior import Encoder, Encoding, Posterior, Posteriors
    from .prepared import Prepared
    from .prior import Shapes
    from .score import Scores
    from .tiles import Tile

    Array = NDArray[np.float32]

    class SampleOptions(TypedDict, total=False):
        """The options of `VAE.sample` beside `on_device`."""

        conditions: Conditions
        seed: int | None
        start: int
        temperature: float
        truncation: float | None
        latent_shape: LatentShape
        observe: bool
        batch_size: int | None
        out: Array | None
        tile: Tile | None
        tile_blend: bool | float


def load(
    path: str | os.PathLike[str],
    *,
    device: str = "cpu",
    threads: int = 1,
    variant: str | None = None,
    provider_options: Mapping[str, Any] | None = None,
    digest: str | None = None,
    key: str | os.PathLike[str] | None = None,
    max_memory: int | None = None,
    max_seconds: float | None = None,
) -> VAE:
    """Open a bundle for sampling.

    The decoder is loaded now, the encoder when it is first needed; each file's SHA-256 is checked as it is opened. A
    packed bundle may lack one of the two; a method that needs it then raises a BundleError. In a variant of 8 bits, a
    row's numbers may depend on the other rows of its batch (docs/variants.md). A pickled or copied VAE is loaded anew
    from its path, with its digest and key, so that other processes of the same machine can take it.

    Args:
        path: the bundle's folder or .zip file. It must stay where it is while the VAE is in use. The current folder may
            change.
        device: "cpu", "cuda", "cuda:1", "auto" (CUDA if it works, else CPU; logged) or the name of an ONNX Runtime
            execution provider.
        threads: threads of one call, at least 1. For throughput, more workers of one thread beat more threads.
        variant: the variant to run, such as "int8"; a component without a variant of this name runs in its first
            declared one, which is also the default: see `VAE.variants`.
        provider_options: passed to the execution provider. On CUDA, TF32 is off unless given as {"use_tf32": 1}.
        digest: "sha256:…" of the bundle, as `vae-runtime info` prints it: any other bundle is refused.
        key: the path of a public key in PEM: a bundle that its owner has not signed is refused (docs/distribution.md).
            Needs the extra `sign`.
        max_memory: how many bytes each graph may take for the values between its operators, on the CPU. Weights, inputs
            and results are not counted.
        max_seconds: how long a graph may compute one batch; it ends between two operators. `vae-runtime … --untrusted`
            limits all memory and time from outside (docs/security.md).

    Raises:
        BundleError: the bundle is missing, damaged or of a newer format, or no component has such a variant.
        DeviceError: the device is unavailable; nothing falls back silently.
        InputError: an argument is not of the right form.
    """
    count = require_integer("threads", threads, 1, 1024)
    seconds = None if max_seconds is None else require_number("max_seconds", max_seconds, 1e-3, 1e6)
    bundle = open_bundle(path, digest, key)
    variants = bundle.choose(variant)
    networks = Networks(bundle, resolve_device(device, provider_options, max_memory), count, variants, seconds)
    networks.session(_main_component(bundle.manifest))
    return VAE(bundle, networks)


def load_prepared(path: str, digest: str, variant: str, prepared: Mapping[str, Prepared]) -> VAE:
    """Open a bundle on the CPU, with graphs that this machine has prepared.

    Raises:
        BundleError: as `load`, or the files of a prepared graph were altered.
    """
    bundle = open_bundle(path, digest)
    networks = Networks(bundle, resolve_device("cpu"), 1, bundle.choose(variant))
    networks.prepared = prepared
    networks.session(_main_component(bundle.manifest))
    return VAE(bundle, networks)


def _load_again(
    path: str, digest: str, key: str | None, device: str, options: Mapping[str, str], memory: int | None, *settings: Any
) -> VAE:
    bundle = open_bundle(path, digest, key)
    return VAE(bundle, Networks(bundle, resolve_device(device, options, memory), *settings))


def _main_component(manifest: Manifest) -> str:
    return "decoder" if "decoder" in manifest.components else "encoder"


def _described(vae: VAE) -> str:
    shapes = ", ".join(str(list(latent.shape)) for latent in vae.latents)
    several = "s" if len(vae.latents) > 1 else ""
    text = f"latent{several} {shapes} → observation {list(vae.observation_shape)}"
    if vae.conditions:
        text += f", given {', '.join(condition.name for condition in vae.conditions)}"
    return one_line(f"<VAE {vae.manifest.name}: {text}, {vae.manifest.likelihood.kind}, {vae.variant} on {vae.device}>")


def _refuse_on_device(**arguments: Any) -> None:
    """Refuse arguments of `sample` that are given beside `on_device`."""
    for name, value in arguments.items():
        if value is not None:
            raise InputError(f"{name}: on_device leaves the mean on the device and does not take it; leave it out")


def _left_on_device(
    vae: VAE, rows: Feeds, seed: int, start: int, n: int, shapes: Shapes, temperature: float, truncation: float | None,
    batch_size: int | None,
) -> Any:  # fmt: skip
    """Sample with noise that is drawn where the graph runs, if it can be, and leave the result there."""
    networks = vae._networks
    feed = vae._prior.feed_by(networks.draw_on_device, rows, seed, start, shapes, temperature, truncation)
    return networks.decode_on_device(feed, n, batch_size)


def _latents_of_any_size(
    vae: VAE, n: int, seed: int, start: int, latent_shape: LatentShape, temperature: float, truncation: float | None
) -> Array | dict[str, Array]:
    """Draw latents from the prior; tiles take them beyond the proven sizes, too."""
    shapes = vae._prior.shapes
    if latent_shape is not None:
        from .tiles import of_any_size

        shapes = Inputs(of_any_size(vae.manifest), vae._prior).shapes(latent_shape)
    parts = vae._prior.draw(seed, start, n, shapes, temperature, truncation)
    return parts if len(parts) > 1 else parts[vae.latents[0].name]


def _whole_batches(
    draw: Callable[..., Array], given: Feeds, start: int, count: int, size: int
) -> Iterator[Array]:  # fmt: skip
    """Draw batches of one size, the conditions of the last filled up, and cut the last."""
    for first in range(0, count, size):
        rows = {name: row[first : first + size] for name, row in given.items()}
        missing = first + size - count
        if missing > 0:
            rows = {name: np.concatenate([row, row[-1:].repeat(missing, 0)]) for name, row in rows.items()}
        yield draw(conditions=rows or None, start=noise.advance(start, first))[: count - first]


class VAE:
    """A Variational Autoencoder, ready to sample. Made by `load`; may be shared by threads.

    Observations `x` are [n, *observation_shape] and latents `z` are [n, *latent_shape], float32 unless the manifest
    says int64. Floats of other widths, such as float64, are converted to float32, integers not. int64 takes integers
    and bools alone. Where the manifest has several latents, methods take and give latents in mappings by name.

    Arguments of the methods:
        conditions: maps the name of each condition that a graph takes to an array [n, *shape] or one value for every
            row; where its classes have names, also to a name or a list of names. Those of the other graph may be in it.
        seed: of vnoise-1; None takes a fresh one, or what the method says; `vae_runtime.new_seed()` gives one to keep.
        start: index of the first row: row i is sample `start + i` of the seed, whatever n, batch size and platform.
        temperature: scales the noise of the prior, 0 … 1e6.
        truncation: bounds that noise before the temperature: no number is beyond ± this; 0.01 … 1e6.
        latent_shape: another shape of one latent, where axes are dynamic; of several latents, by name.
        observe: draw each observation from the likelihood instead of giving its mean; refused without a likelihood.
        batch_size: how many rows to compute at once; bounds the memory beside the result.
        tile: "auto", or a tile's size in values of an observation, or sizes by axis: divides dynamic axes, which bounds
            the memory and takes larger arrays; values change by rounding alone. Where that is impossible, refused.
        tile_blend: where that is impossible, blend tiles that overlap by a quarter, or by this part: values differ.
        out: float32 [n, *observation_shape], C-contiguous: filled and returned.

    Every method raises InputError for an array of another dtype or shape, for NaN, infinity and values out of range,
    and for a condition that is missing or wrong.
    """

    def __init__(self, bundle: Bundle, networks: Networks) -> None:
        self.bundle = bundle
        self.manifest = manifest = bundle.manifest
        """The bundle's description of itself."""
        self.digest = bundle.digest
        """The bundle's digest, "sha256:…"."""
        self.device = networks.device
        """The device in use."""
        self.variants = dict(networks.variants)
        """The variant in use by component."""
        self.variant = self.variants[_main_component(manifest)]
        """The decoder's variant in use; where the decoder was left out, the encoder's."""
        self.observation_shape = manifest.observation.shape
        """Shape of one observation; where axes are dynamic, the usual one."""
        self.latent_shape = manifest.latent.shape
        """Shape of one latent, of several the first; where axes are dynamic, the usual one."""
        self.latents = manifest.latents
        """The manifest's description of each latent."""
        self.conditions = manifest.conditions
        """The manifest's description of each condition."""
        self._networks = networks
        self._prior = Prior(bundle)
        self._inputs = Inputs(manifest, self._prior)

    __repr__ = _described

    def prior(
        self, n: int, *, seed: int | None = None, start: int = 0, temperature: float = 1.0,
        truncation: float | None = None, latent_shape: LatentShape = None,
    ) -> Array | dict[str, Array]:  # fmt: skip
        """Draw latents from the prior, on dynamic axes also of sizes that only tiles decode.

        Returns:
            float32 [n, *latent_shape]; of several latents, such arrays by name.

        Raises:
            InputError: there is no prior to draw from; the message says why.
        """
        count = require_integer("n", n, 1, 2**48)
        seed = noise.new_seed() if seed is None else seed
        return _latents_of_any_size(self, count, seed, start, latent_shape, temperature, truncation)

    @overload
    def sample(self, n: int, *, on_device: Literal[False] = False, **options: Unpack[SampleOptions]) -> Array: ...

    @overload
    def sample(self, n: int, *, on_device: Literal[True], **options: Unpack[SampleOptions]) -> Any: ...

    def sample(
        self, n: int, *, conditions: Conditions = None, seed: int | None = None, start: int = 0,
        temperature: float = 1.0, truncation: float | None = None, latent_shape: LatentShape = None,
        observe: bool = False, batch_size: int | None = None, out: Array | None = None, tile: Tile | None = None,
        tile_blend: bool | float = False, on_device: bool = False,
    ) -> Array | Any:  # fmt: skip
        """Draw latents from the prior and decode them.

        Args:
            n: how many, at least 1; the other arguments are those of the class.
            on_device: leave the result on the device, for `torch.from_dlpack` or `cupy.from_dlpack`, which copy
                nothing; all at once unless batch_size is given; without `observe`, `out` and `tile`.

        Returns:
            float32 [n, *observation shape]; `on_device` an `onnxruntime.OrtValue` of these.

        Raises:
            DeviceError: `on_device`, and this ONNX Runtime is too old for it.
            InputError: there is no prior to draw from.
        """
        count = require_integer("n", n, 1, 2**48)
        fixed = noise.new_seed() if seed is None else seed
        if (tile is not None or tile_blend) and not on_device:
            z = _latents_of_any_size(self, count, fixed, start, latent_shape, temperature, truncation)
            return self.decode(z, conditions=conditions, observe=observe, batch_size=batch_size, out=out, tile=tile,
                               tile_blend=tile_blend)  # fmt: skip
        rows = self._inputs.conditions("decoder", conditions, count)
        shapes = self._prior.shapes if latent_shape is None else self._inputs.shapes(latent_shape)
        if on_device is not False and require_bool("on_device", on_device):
            _refuse_on_device(observe=observe or None, out=out, tile=tile or tile_blend or None)
            return _left_on_device(self, rows, fixed, start, count, shapes, temperature, truncation, batch_size)
        feed = self._prior.feed(rows, fixed, start, count, shapes, temperature, truncation)
        if observe is not False and require_bool("observe", observe):
            return self._networks.observe(feed, count, fixed, start, batch_size, out)
        return self._networks.mean.run(feed, count, batch_size, out)[0]

    def stream(
        self, n: int, *, conditions: Conditions = None, seed: int | None = None, start: int = 0,
        temperature: float = 1.0, truncation: float | None = None, observe: bool = False, batch_size: int = 512,
    ) -> Iterator[Array]:  # fmt: skip
        """Give samples one batch after the other, for programs that need no files.

        Every batch is decoded whole, and the last is cut: these are the values that `generate` writes with this batch
        size, from a start that is a multiple of it.

        Yields:
            float32 [batch_size, *observation shape]; the last may have fewer rows.
        """
        count = require_integer("n", n, 1, 2**48)
        size = require_integer("batch_size", batch_size, 1, 2**31)
        require_bool("observe", observe)
        fixed = noise.new_seed() if seed is None else seed
        given = self._inputs.conditions("decoder", conditions, count)
        draw = functools.partial(self.sample, size, seed=fixed, temperature=temperature, truncation=truncation,
                                 observe=observe, batch_size=size)  # fmt: skip
        return _whole_batches(draw, given, start, count, size)

    def decode(
        self, z: Latents, *, conditions: Conditions = None, seed: int | None = None, start: int = 0,
        observe: bool = False, batch_size: int | None = None, out: Array | None = None, tile: Tile | None = None,
        tile_blend: bool | float = False,
    ) -> Array:  # fmt: skip
        """Give the likelihood's mean for each latent, in data space.

        Args:
            z: [n, *latent_shape]; codes are below the codebook's size; of several latents, arrays by name, where those
                that are noise of the decoder may be left out.
            seed: draws the latents that were left out from their prior; None takes zeros for them, and with `observe`
                a fresh seed. The other arguments are those of the class.

        Returns:
            float32 [n, *observation shape]; latents far beyond the prior may give values that are not finite.
        """
        plain = observe is False and conditions is None and batch_size is None and out is None and tile is None
        if plain and not tile_blend and (found := self._networks.mean.direct(z)) is not None:
            return found[0]
        observe = observe is not False and require_bool("observe", observe)
        if tile is not None or tile_blend:
            from .tiles import decode_in_tiles

            part = functools.partial(self.decode, conditions=conditions, batch_size=batch_size)
            return decode_in_tiles(self.manifest, part, z, tile, tile_blend, observe, out)
        seed = noise.new_seed() if observe and seed is None else seed
        feeds, n = self._inputs.decoder(z, conditions, seed, start)
        if out is not None:
            # One batch must not write into an array that a later one reads.
            feeds = {name: rows.copy() if np.may_share_memory(rows, out) else rows for name, rows in feeds.items()}
        if observe and seed is not None:
            return self._networks.observe(feeds, n, seed, start, batch_size, out)
        return self._networks.mean.run(feeds, n, batch_size, out)[0]

    def decode_stream(self, chunks: Iterable[ArrayLike], *, conditions: Conditions = None) -> Iterator[Array]:
        """Decode latents that come in chunks of any length along time, as `decode` would decode all of them at once.

        Args:
            chunks: latents [n, …] whose dynamic axis has any length of at least 1; n and the conditions stay.

        Yields:
            float32 [n, *observation shape] for each chunk, once it is there.

        Raises:
            InputError: the variant has no stream, for example since its decoder is not causal; the message says why.
        """
        from .streams import decode_chunks

        return decode_chunks(self.bundle, self._networks, self._inputs, chunks, conditions)

    def decoder_outputs(
        self, z: Latents, *, conditions: Conditions = None, seed: int | None = None, start: int = 0,
        batch_size: int | None = None,
    ) -> dict[str, Array]:  # fmt: skip
        """Give every output of the decoder for each latent, by the outputs' names; arguments as of `decode`.

        Returns:
            float32 [n, ...] each: the mean, its logits or scale, and what else the manifest names.
        """
        feeds, n = self._inputs.decoder(z, conditions, seed, start)
        decoder = self._networks.computation("decoder")
        return dict(zip(decoder.outputs, decoder.run(feeds, n, batch_size), strict=True))

    def encode(
        self, x: ArrayLike, *, conditions: Conditions = None, seed: int | None = None, start: int = 0,
        batch_size: int | None = None, tile: Tile | None = None, tile_blend: bool | float = False,
    ) -> Posterior | Encoding | Posteriors:  # fmt: skip
        """Give the posterior of each observation.

        Args:
            x: [n, *observation_shape], within the manifest's range.
            seed: where some latents depend on samples of others, draws these as `sample` of the result does; None takes
                their means. Other encoders draw nothing. The other arguments are those of the class.

        Returns:
            A `Posterior`; an `Encoding` where the latent is a code or has no distribution; of several latents, a
            mapping from their names to these, without the latents that are noise of the decoder.
        """
        plain = conditions is None and batch_size is None and tile is None and not tile_blend
        if plain and (found := self._encoder.direct(x)) is not None:
            return found
        if tile is not None or tile_blend:
            from .tiles import encode_in_tiles

            part = functools.partial(self.encode, conditions=conditions, batch_size=batch_size)
            return encode_in_tiles(self.manifest, part, x, tile, tile_blend)
        x = observation_rows(self.manifest.observation, x)
        rows = self._inputs.conditions("encoder", conditions, len(x))
        return self._encoder.posterior(x, rows, seed, start, batch_size)

    def reconstruct(
        self, x: ArrayLike, *, conditions: Conditions = None, seed: int | None = None, start: int = 0,
        batch_size: int | None = None, tile: Tile | None = None, tile_blend: bool | float = False,
    ) -> Array:  # fmt: skip
        """Encode and decode, through the posterior's mean or, with a seed, a sample: float32 [n, *observation shape].

        Raises:
            InputError: a seed is given where there is no distribution to draw from.
        """
        plain = seed is None and conditions is None and batch_size is None and tile is None and not tile_blend
        if plain and (found := self._encoder.chain.direct(x)) is not None:
            return found
        tiles: dict[str, Any] = {"tile": tile, "tile_blend": tile_blend}
        q = self.encode(x, conditions=conditions, seed=seed, start=start, batch_size=batch_size, **tiles)
        z = q.mode() if seed is None else q.sample(seed=seed, start=start)
        return self.decode(z, conditions=conditions, seed=seed, start=start, batch_size=batch_size, **tiles)

    @overload
    def scaled(self, z: Mapping[str, ArrayLike]) -> dict[str, Array]: ...

    @overload
    def scaled(self, z: ArrayLike) -> Array: ...

    def scaled(self, z: Latents) -> Array | dict[str, Array]:
        """Give latents as other models take them, (z - shift) · scale, float32, in the form of `z`; codes stay."""
        return self._inputs.rescaled(z, lambda part, scale, shift: (part - shift) * scale)

    @overload
    def unscaled(self, w: Mapping[str, ArrayLike]) -> dict[str, Array]: ...

    @overload
    def unscaled(self, w: ArrayLike) -> Array: ...

    def unscaled(self, w: Latents) -> Array | dict[str, Array]:
        """Give latents of another model as `decode` takes them: w / scale + shift, the inverse of `scaled`."""
        return self._inputs.rescaled(w, lambda part, scale, shift: part / scale + shift)

    def transform(self, x: ArrayLike, conditions: Conditions = None) -> Array | dict[str, Array]:
        """Give the scaled mode of each observation's posterior: `scaled(encode(x).mode())`."""
        return self.scaled(self.encode(x, conditions=conditions).mode())

    def inverse_transform(self, w: Latents, conditions: Conditions = None) -> Array:
        """Give the observations of scaled latents: `decode(unscaled(w))`."""
        return self.decode(self.unscaled(w), conditions=conditions)

    def score(
        self, x: ArrayLike, *, conditions: Conditions = None, k: int | None = None, seed: int | None = None,
        start: int = 0, batch_size: int | None = None, progress: Callable[[int, int], object] | None = None,
        contributions: bool = False,
    ) -> Scores:  # fmt: skip
        """Score how well the VAE explains each observation, in nats.

        The ELBO takes one posterior sample, and the KL, analytic where the prior is one normal; the bound of log p(x)
        takes k importance samples: draw j is element j · D + e of the importance stream (docs/noise.md, section 6).

        Args:
            x: [n, *observation_shape]; gray values under a bernoulli likelihood give a surrogate.
            k: how many importance samples, at most 1e6; None leaves `log_likelihood` out, as noise of a graph demands.
            seed: None takes that of the bundle's held-out scores, with which `p_value` compares, or a fresh one.
            batch_size: how many to decode at once; the scores depend on it by rounding alone.
            progress: called with (observations done, observations) after each batch.
            contributions: also give the terms of `reconstruction`, one for each value of x.

        Returns:
            `Scores`; a score that this VAE has not is None there, with the reason.
        """
        from .score import Scorer, usual_seed

        x = observation_rows(self.manifest.observation, x)
        rows = self._inputs.conditions(None, conditions, len(x))
        seed = usual_seed(self.manifest) if seed is None else seed
        scorer = Scorer(self.manifest, self._networks, self._inputs, self._encoder, self._prior, seed)
        return scorer.score(x, rows, k, start, batch_size, progress, contributions)

    @functools.cached_property
    def _encoder(self) -> Encoder:
        from .posterior import Encoder  # not needed to sample

        return Encoder(self._networks, self._inputs, self.latents)


def _reduced(vae: VAE) -> tuple[Any, ...]:
    """Pickle and copy a VAE as the place and the digest of its bundle, and load that anew."""
    return _load_again, (vae.bundle.files.location, vae.digest, vae.bundle.key, *vae._networks.settings)


copyreg.pickle(VAE, _reduced)
