"""Write the model card, README.md in a bundle."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from vae_runtime.errors import counted
from vae_runtime.golden import reference_of
from vae_runtime.likelihood import KINDS
from vae_runtime.manifest import Manifest
from vae_runtime.timing import in_words

from .front_matter import front_matter
from .training.config import ModelConfig, TrainConfig

# Graphs that exist already are adopted without PyTorch.
if TYPE_CHECKING:
    from .training.checkpoint import RunInfo
    from .training.evaluation import Evaluation

_SPEED = (
    "× fp32 is how many times as fast as fp32 a variant was on {} at the export, with one thread. `vae-runtime bench` "
    "measures your machine."
)


def model_card(manifest: Manifest, sizes: Mapping[str, int], picture: bool, *, recognised: Sequence[str] = ()) -> str:
    """Return the model card of a PyTorch model.

    Args:
        manifest: the bundle's manifest.
        sizes: bytes of the other files of the bundle by path.
        picture: whether the bundle has samples.png.
        recognised: the facts found out about the model, one line each.
    """
    lines = [
        *front_matter(manifest),
        f"# {manifest.name}",
        "",
        f"{manifest.description}.",
        "",
        f"{_kind(manifest)} of {manifest.training['parameters']:,} parameters. {_shapes(manifest)}",
        "",
        *_picture(manifest, picture),
        *_use(manifest),
        "",
        *_origin(manifest),
        f"License of the weights: {manifest.license or 'not stated'}.",
        "",
        *_understood(recognised),
        *_graphs(manifest, sizes),
    ]
    return "\n".join(lines) + "\n"


def run_card(
    manifest: Manifest, info: RunInfo, evaluation: Evaluation | None, sizes: Mapping[str, int], picture: bool
) -> str:
    """Return the model card of a run.

    Args:
        manifest: the bundle's manifest.
        info: the run it came from.
        evaluation: the figures on its test data, if it was evaluated.
        sizes: bytes of the other files of the bundle by path.
        picture: whether the bundle has samples.png.
    """
    data, train = info.provenance, info.train
    described = f"{data.name}, {data.description}" if data.description else data.name
    lines = [
        *front_matter(manifest),
        f"# {manifest.name}",
        "",
        f"{manifest.description}.",
        "",
        f"A Variational Autoencoder of {manifest.training['parameters']:,} parameters. {_shapes(manifest)} "
        f"{_architecture(info)}",
        "",
        *_picture(manifest, picture),
        *_use(manifest),
        "",
        "## Data and license",
        "",
        f"- Data: {described}. License of the data: {data.license}.",
        *_normalised(manifest),
        f"- {data.train:,} observations trained on, {data.validation:,} for validation, {data.test:,} for test.",
        f"- License of the weights: {manifest.license or 'not stated'}.",
        "",
        "## Training",
        "",
        *_started(info),
        f"- {_objective(train)}",
        f"- {_fitted(train)}, PyTorch {info.torch_version}.{_averaged(train)}",
        f"- Binarization of the data: {train.binarise}."
        + (" Gray values under a bernoulli likelihood: every figure is of a surrogate, not of a likelihood of the data."
           if info.surrogate else ""),
        *_stages(info),
        *([f"- Best epoch on the validation data: {info.result.best_epoch} of {info.result.epochs}."]
          if info.result else ["- Training has not finished: the weights are the best so far."]),
        "",
        "## Figures",
        "",
        *_figures(evaluation, manifest),
        "",
        *_held_out(manifest),
        *_understood(() if isinstance(info.model, ModelConfig) else info.model.recognised),
        *_graphs(manifest, sizes),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _normalised(manifest: Manifest) -> list[str]:
    """Return how raw values become those that the bundle takes, if they differ."""
    found = manifest.observation.normalisation
    if found is None:
        return []
    if isinstance(found.offset, float) and isinstance(found.divisor, float):
        numbers = f"offset {found.offset:g} and divisor {found.divisor:g}"
    else:
        numbers = "those of `observation.normalisation` in manifest.json"
    return [f"- Normalization: x = (raw value - offset) / divisor, with {numbers}."]


def _stages(info: RunInfo) -> list[str]:
    """Return by what the run was trained, where its configuration says so."""
    stages = []
    for stage in info.stages:
        several = f" in {stage.processes} processes" if stage.processes > 1 else ""
        begin = f"from epoch {stage.epoch} on by " if stage.epoch > 1 else ""
        compiled = ", compiled" if stage.compiled else ""
        stages.append(f"{begin}{stage.versions} on {stage.device}{several}{compiled}")
    return [f"- Trained by {'; '.join(stages)}."] if stages else []


def _started(info: RunInfo) -> list[str]:
    """Return how the weights were trained that the run began with, if the seed did not draw them."""
    lines = [
        f"- {'Then, from these weights' if number else 'First'}, on {start.data} (license: {start.license}), up "
        f"to epoch {start.epoch}. {_objective(start.train)} {_fitted(start.train)}.{_averaged(start.train)} "
        f"Binarization: {start.train.binarise}. Weights: {start.digest}."
        for number, start in enumerate(info.starts)
    ]
    return [*lines, "- Then, from these weights, as follows."] if lines else []


def _fitted(train: TrainConfig) -> str:
    """Return how the weights were fitted, without the period."""
    optimizer = f"AdamW with weight decay {train.weight_decay:g}" if train.weight_decay else "Adam"
    return (
        f"{optimizer}, batches of {train.batch_size}, learning rate {train.learning_rate:g} falling to "
        f"{train.learning_rate * train.final_learning_rate:g}, at most {counted(train.epochs, 'epoch')}, seed "
        f"{train.seed}"
    )


def _averaged(train: TrainConfig) -> str:
    """Return what else there is to say of how the weights came to be, as sentences that go on a line."""
    computed = f" Its networks computed in {train.precision}." if train.precision != "float32" else ""
    decay = train.ema
    return computed + (f" The weights are their average over the steps, with decay {decay:g}." if decay else "")


def _understood(recognised: Sequence[str]) -> list[str]:
    return ["## What was understood of the model", "", *(f"- {line}" for line in recognised), ""] if recognised else []


def _kind(manifest: Manifest) -> str:
    return "A Variational Autoencoder" if manifest.encoder else "A decoder, exported without an encoder, of a model"


def _origin(manifest: Manifest) -> list[str]:
    """Return what readers of an adopted bundle must know."""
    if "compared" in manifest.producer:
        return [f"Adopted from {manifest.producer['compared']}, and compared with the model itself in PyTorch.", ""]
    if "adopted" not in manifest.producer:
        return []
    text = f"Adopted from {manifest.producer['adopted']}: parity with the original framework was not checked."
    return [f"{text} The graphs compute what the graphs that were given compute.", ""]


def _shapes(manifest: Manifest) -> str:
    shape = "×".join(map(str, manifest.observation.shape))
    latents = " and ".join(
        f"{'×'.join(map(str, latent.shape))} {'codes' if latent.dtype == 'int64' else 'latent dimensions'}"
        for latent in manifest.latents
    )
    likelihood = manifest.likelihood
    scale = f", scale {likelihood.scale:.4g}" if likelihood.scale else ""
    classes = f" of {likelihood.shape[-1]} classes" if likelihood.has_classes and likelihood.shape else ""
    known = f"{likelihood.kind} likelihood{classes}{scale}"
    decodes_to = "no likelihood stated" if likelihood.kind == "none" else known
    conditions = "".join(
        f", given {condition.name}"
        + (f" ({len(condition.classes)} classes: {', '.join(condition.classes)})" if condition.classes else "")
        for condition in manifest.conditions
    )
    return f"Observations of shape {shape}, {latents}, {decodes_to}{conditions}."


def _picture(manifest: Manifest, picture: bool) -> list[str]:
    if not picture:
        return []
    classes = next((c for c in manifest.conditions if c.classes), None)
    rows = f", a row for each {classes.name}" if classes else ""
    return [f"![Samples from the prior, drawn by the exported decoder{rows}](samples.png)", ""]


def _use(manifest: Manifest) -> list[str]:
    """Return code that runs as it is: it samples or, without a prior, decodes latents of an observation of zeros."""
    encoded, decoded = _given(manifest, "encoder"), _given(manifest, "decoder")
    observation = manifest.observation
    if all(latent.prior.kind != "none" for latent in manifest.latents):
        calls = [f"x = vae.sample(16, seed=0{decoded})"]
        if manifest.table:
            # The library that made the table draws its numbers too.
            drawn = calls[0].replace("seed=0", "seed=0, observe=True") if manifest.likelihood.scale_output else calls[0]
            calls = [drawn, "columns = vae_runtime.to_table(vae, x)"]
    elif manifest.encoder:
        calls = [
            f"x = {_zeros((1, *observation.shape), observation.dtype, observation.range)}    # put observations here",
            f"z = vae.encode(x{encoded}).mode()",
            f"y = vae.decode(z{decoded})",
        ]
    else:
        arrays = {latent.name: _zeros((1, *latent.shape), latent.dtype) for latent in manifest.latents}
        several = f"{{{', '.join(f'{json.dumps(name)}: {array}' for name, array in arrays.items())}}}"
        z = several if len(arrays) > 1 else next(iter(arrays.values()))
        calls = [f"z = {z}    # put latents here", f"x = vae.decode(z{decoded})"]
    imports = ["import numpy as np"] * any("np." in call for call in calls) + ["import vae_runtime"]
    return ["```python", *imports, "", 'vae = vae_runtime.load("path/to/this/folder")', *calls, "```"]


def _given(manifest: Manifest, component: str) -> str:
    """Return the argument `conditions` for a component, with a valid value of each."""
    given = [condition for condition in manifest.conditions if component in condition.components]
    values = ", ".join(
        f"{json.dumps(c.name)}: "
        f"{json.dumps(c.classes[0], ensure_ascii=False) if c.classes else _zeros(c.shape, c.dtype, c.range)}"
        for c in given
    )
    return f", conditions={{{values}}}" if given else ""


def _zeros(shape: tuple[int, ...], dtype: str, bounds: tuple[float, float] | None = None) -> str:
    """Return the code of an array of zeros, or of the least number in a range without 0."""
    low, high = bounds or (0.0, 0.0)
    value = 0.0 if low <= 0 <= high else low
    if not shape:
        return repr(int(value) if dtype == "int64" else value)
    return f"np.full({shape}, {value:g}, np.{dtype})" if value else f"np.zeros({shape}, np.{dtype})"


def _graphs(manifest: Manifest, sizes: Mapping[str, int]) -> list[str]:
    return [
        "## Graphs",
        "",
        f"| file | KiB | largest difference from {reference_of(manifest)} (golden vectors) |",
        "|---|---|---|",
        *(
            f"| {variant.path} | {sizes[variant.path] / 1024:,.0f} | {max(variant.error.values()):.1e} |"
            for variant in manifest.variants
        ),
        *_variants(manifest),
        "",
        "`vae-runtime verify` on this folder checks every file and replays the golden vectors on your machine.",
    ]


def _variants(manifest: Manifest) -> list[str]:
    """Return a table of what smaller variants cost, and the variants that were left out."""
    measured = [variant for variant in manifest.variants if variant.quality]
    lines = []
    if measured:
        lines += [
            "",
            "## Variants",
            "",
            "Each beside the other component in fp32: PSNR against fp32 of the decoder's mean or the encoder's mu, and "
            f"the change of the ELBO, on {_listed(v.quality.measured for v in measured if v.quality)}.",
            "",
            "| variant | KiB | PSNR | ELBO | × fp32 | how it was made |",
            "|---|---|---|---|---|---|",
        ]
        for variant in measured:
            quality = variant.quality
            assert quality is not None
            psnr = "no difference" if quality.psnr is None else f"{quality.psnr:.1f} dB"
            elbo = "not measured" if quality.elbo_change is None else f"{quality.elbo_change:+.3f} nats"
            calibration = f"; calibrated on {quality.calibration}" if quality.calibration else ""
            lines.append(
                f"| {variant.component}/{variant.name} | {quality.size / 1024:,.0f} | {psnr} | {elbo} | "
                f"{in_words(quality.speed) or 'not measured'} | {quality.method}{calibration} |"
            )
        if any(variant.quality.speed for variant in measured if variant.quality):
            lines += ["", _SPEED.format(manifest.producer.get("processor", "the machine that exported"))]
        reasons = dict.fromkeys(v.quality.reason for v in measured if v.quality and v.quality.reason)
        lines += [line for reason in reasons for line in ("", f"No ELBO: {reason}.")]
    if manifest.batch_of_one:
        components = " and ".join(manifest.batch_of_one)
        lines += ["", f"The graphs of the {components} take one row: a batch runs row by row."]
    if manifest.refused:
        lines += ["", "Left out:", ""]
        lines += [f"- {each.component}/{each.variant}: {each.reason}." for each in manifest.refused]
    return lines


def _listed(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(texts))


def _architecture(info: RunInfo) -> str:
    model = info.model
    if not isinstance(model, ModelConfig):
        return f"Encoder and decoder are those of the class {model.title}."
    widths = "-".join(map(str, model.hidden))
    if model.architecture == "mlp":
        return f"Encoder: dense layers of {widths} ({model.activation}); the decoder mirrors it."
    encoder = _levels(model.encoder_channels or model.channels, model.encoder_blocks, model.encoder_kernels,
                      model.encoder_attention)  # fmt: skip
    decoder = _levels(model.channels, model.decoder_blocks, model.decoder_kernels, model.decoder_attention)
    dense = f", then dense layers of {widths}" if widths else ""
    norm = ", group normalization" if model.norm == "group" else ""
    mirrored = "" if decoder == encoder else f", with levels of {decoder}"
    return (
        f"Encoder: strided convolutions to levels of {encoder}{dense} ({model.activation}{norm}). Decoder: the same in "
        f"reverse with transposed convolutions{mirrored}."
    )


def _levels(channels: Sequence[int], blocks: int, kernels: Sequence[int], attention: int) -> str:
    """Return the levels of one side of a convolutional network in words, from the highest resolution on."""
    text = f"{', '.join(map(str, channels))} channels"
    if blocks:
        text += f", {blocks} residual block{'s' * (blocks > 1)} each (kernels {', '.join(map(str, kernels))})"
    return text + (f", self-attention at the lowest {attention}" if attention else "")


def _objective(train: TrainConfig) -> str:
    text = "Objective: the ELBO"
    if train.importance_samples > 1:
        text += (
            f", from epoch {train.importance_start} on the importance-weighted bound with {train.importance_samples} "
            "samples (Burda et al., arXiv 1509.00519)"
        )
    if train.beta != 1:
        text += f", KL weighted by {train.beta:g}"
    if train.kl_warmup_epochs:
        text += f", KL warm-up over {counted(train.kl_warmup_epochs, 'epoch')}"
    if train.free_bits:
        text += f", {train.free_bits:g} nats of KL free in each dimension"
    return text + "."


def _held_out(manifest: Manifest) -> list[str]:
    """Return what the p-values of the bundle stand on, if it has some."""
    scores = manifest.scores
    if scores is None:
        return []
    return [
        f"`vae.score(x).p_value` compares the ELBO of x with that of {scores.n:,} held-out observations "
        f"({scores.data}).",
        "",
    ]


def _figures(measured: Evaluation | None, manifest: Manifest) -> list[str]:
    if measured is None:
        return ["Not evaluated: run `vae-export evaluate` on the run and export again."]
    kind = "surrogate " if measured.surrogate else ""
    rows = [
        (
            f"{kind}negative log-likelihood",
            f"**{measured.nll:.2f}** ± {measured.standard_error:.2f} nats (a bound, "
            f"{counted(measured.importance_samples, 'importance sample')}; ± is the standard error over observations)",
        ),
        *_bits(measured, manifest),
        (f"{kind}ELBO", f"{measured.elbo:.2f} nats"),
        ("reconstruction term", f"{measured.reconstruction:.2f} nats"),
        ("KL", f"{measured.kl:.2f} nats"),
        ("reconstruction error", f"mean squared {measured.mse:.4f}, mean absolute {measured.mae:.4f}, per value"),
        ("active units", f"{measured.active_units} of {measured.latent}"),
    ]
    table = [
        "| figure | value, mean over observations |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows),
    ]
    return [f"Protocol: {measured.protocol()}, seed {measured.seed}.", "", *table]


def _bits(measured: Evaluation, manifest: Manifest) -> list[tuple[str, str]]:
    """Return the bits per dimension, log₂ instead of ln over the number of values, where values are discrete."""
    kind = KINDS.get(manifest.likelihood.kind)
    if kind is None or not (kind.levels or kind.classes):
        return []
    values = math.prod(manifest.observation.shape)
    return [("bits per dimension", f"{measured.nll / values / math.log(2):.3f}")]
