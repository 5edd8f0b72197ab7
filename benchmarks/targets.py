"""The targets, and what a run measured of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vae_runtime.timing import Quartiles, quartiles

from .figures import (
    INT8,
    NAIVE,
    NATIVE,
    OURS,
    Found,
    Results,
    digits,
    figure_of,
    generation_ratio,
    host_ratio,
    name_of,
    start_ratio,
    tile_ratio,
    title_of,
    worker_ratio,
)


class Target(NamedTuple):
    """One target: a figure, and its lower or upper bound."""

    work: str
    figure: Quartiles | None
    bound: float | None
    at_most: bool = False
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the bound; None without a figure or a bound."""
        if self.figure is None or self.bound is None:
            return None
        return self.figure.median <= self.bound if self.at_most else self.figure.median >= self.bound


def targets(found: Found) -> list[Target]:
    """Return every target with the figure that this run measured."""
    speeds = _Speeds(found)
    lines = _decode_targets(speeds) + _small_targets(speeds) + _picture_targets(speeds) + _few_bits_targets(speeds)
    lines += _noise_targets(found, speeds.results) + _start_targets(found) + _worker_targets(found)
    lines += _host_targets(found) + _generation_targets(found) + _tile_targets(found)
    return lines


class _Speeds:
    """The speeds of a run, and what a note says of them."""

    def __init__(self, found: Found) -> None:
        self.found, self.results = found, Results(found)
        self.models = [name for name in found["models"] if self.results.batches(name, 1, "decode")]

    def ratio(self, model: str, work: str, batch: int, name: str = OURS, to: str = NAIVE) -> Quartiles | None:
        """One contender's speed × another's, with one thread."""
        return self.results.ratio(model, 1, work, batch, name, to)

    def lowest(
        self, to: str, threads: int = 1, name: str = OURS, of: Sequence[str] | None = None
    ) -> tuple[Quartiles | None, str]:
        """The lowest speed of `decode` over all models, or those given, and where that is."""
        values = [
            (value, f"lowest of all: {title_of(self.found, model)}, batch {batch}")
            for model in (self.models if of is None else of)
            for batch in self.results.batches(model, threads, "decode")
            if (value := self.results.ratio(model, threads, "decode", batch, name, to)) is not None
        ]
        return min(values, key=lambda each: each[0].median, default=(None, ""))

    def others(self, model: str, name: str, but: int, to: str = NAIVE) -> str:
        """The speeds of `decode` at other batch sizes."""
        more = [
            f"batch {batch}: {digits(value.median)}"
            for batch in self.results.batches(model, 1, "decode")
            if batch != but and (value := self.ratio(model, "decode", batch, name, to)) is not None
        ]
        return ", ".join(more)


def _decode_targets(speeds: _Speeds) -> list[Target]:
    lines = []
    for to, bound in ((NAIVE, 0.99), ("compile", 1.0), ("executorch", 1.0), ("litert", 1.0)):
        value, note = speeds.lowest(to)
        work = f"decode, fp32, any model and batch: × {name_of(speeds.found, to)}"
        lines.append(Target(work, value, bound, note=note))
    value, note = speeds.lowest(NAIVE, threads=2)
    work = f"decode, fp32, two threads, any model and batch: × {name_of(speeds.found, NAIVE)}"
    return [*lines, Target(work, value, 0.97, note=note)]


def _small_targets(speeds: _Speeds) -> list[Target]:
    """The models whose networks take microseconds."""
    ratio, results, lines = speeds.ratio, speeds.results, []
    for to, bound in ((NAIVE, 1.15), ("litert", 1.0)):
        value = ratio("mlp", "decode", 1, to=to)
        lines.append(Target(f"MLP decode, batch 1, fp32: × {name_of(speeds.found, to)}", value, bound))
    lines += [
        *(
            Target(f"MLP encode, batch {batch}: × naive", ratio("mlp", "encode", batch), bound)
            for batch, bound in ((1, 1.1), (8, 1.0), (512, 1.0))
        ),
        *_sample_targets(results, "mlp", "MLP sample, 16 latents", {1: 1.15, 8: 1.1, 64: 1.05, 512: 1.0}),
        *_sample_targets(results, "mlp50", "MLP sample, 50 latents", {1: 1.1, 8: 1.05}),
        *_sample_targets(results, "digits", "digits MLP sample, 8 latents", {1: 1.15, 8: 1.05, 64: 1.0, 512: 1.0}),
        *(
            Target(f"digits MLP {work}, batch {batch}: × naive", ratio("digits", work, batch), 1.0)
            for work, batches in (("encode", (1, 8, 64, 512)), ("decode", (8,)))
            for batch in batches
        ),
        Target("consecutive indices of one seed: × naive with default_rng(seed)", ratio("mlp", "next", 1), 1.4),
        Target("the same with 50 latents", ratio("mlp50", "next", 1), None),
        Target("the same, × naive with one generator that is kept", ratio("mlp", "stream", 1), None),
        Target("MLP reconstruct, batch 1: × two naive sessions", ratio("mlp", "reconstruct", 1), 1.3),
        Target("the same: × LiteRT", ratio("mlp", "reconstruct", 1, to="litert"), 1.0),
    ]  # fmt: skip
    return lines


def _picture_targets(speeds: _Speeds) -> list[Target]:
    """The models of pictures, in 32 bits."""
    lines = []
    for to in (NAIVE, "openvino-f32"):
        value = speeds.ratio("nearest", "decode", 1, to=to)
        more = speeds.others("nearest", OURS, 1, to)
        lines.append(Target(f"nearest-upsample decode, batch 1: × {name_of(speeds.found, to)}", value, 1.9, note=more))
    differences = [
        entry["difference"]
        for entry in speeds.found["parity"]
        if (entry["contender"], entry["model"], entry["work"]) == (OURS, "nearest", "decode")
    ]
    worst = Quartiles(*[max(differences)] * 3) if differences else None
    lines.append(Target("the same: largest difference from PyTorch's answers", worst, 1e-5, at_most=True))
    lines.append(Target("AutoencoderKL decode, batch 1: × naive", speeds.ratio("kl", "decode", 1), 1.05))
    return lines


def _few_bits_targets(speeds: _Speeds) -> list[Target]:
    lines = []
    for batch, bound in ((1, 1.8), (64, 2.8)):
        lines.append(
            Target(f"int8, MLP decode, batch {batch}: × naive", speeds.ratio("mlp", "decode", batch, INT8), bound)
        )
    for batch in (64, 512):
        value = speeds.ratio("mlp", "decode", batch, INT8, "openvino-int8")
        lines.append(Target(f"int8, MLP decode, batch {batch}: × OpenVINO int8", value, 1.0))
    for model, what, bound in (("transposed", "ConvTranspose", 2.0), ("nearest", "nearest-upsample", 3.3)):
        value = speeds.ratio(model, "decode", 1, INT8)
        lines.append(Target(f"int8, {what} decode, batch 1: × naive", value, bound, note=speeds.others(model, INT8, 1)))
    value, note = speeds.lowest(
        "openvino-int8-rewritten", name=INT8, of=[name for name in speeds.models if name == "nearest"]
    )
    lines.append(Target("int8, nearest-upsample decode: × OpenVINO int8 with our graph", value, 1.0, note=note))
    return lines


def _sample_targets(results: Results, model: str, what: str, bounds: Mapping[int, float]) -> list[Target]:
    """Samples of a fresh seed, in Python alone and with the native core, which the bound is for."""
    lines = []
    for batch, bound in bounds.items():
        work = f"{what}, batch {batch}, a fresh seed: × naive"
        lines.append(Target(work, results.ratio(model, 1, "sample", batch, OURS), None))
        native = results.ratio(model, 1, "sample", batch, NATIVE)
        lines.append(Target(f"{work}; with the native core", native, bound))
    return lines


def _noise_targets(found: Found, results: Results) -> list[Target]:
    rate, slower, native = None, None, None
    for batch in results.batches("mlp", 1, "noise"):
        count = batch * int(np.prod(found["models"]["mlp"]["latent_shape"]))
        taken = results.seconds("mlp", 1, "noise", batch, OURS)
        rate = taken and Quartiles(*(count / each / 1e6 for each in (taken.median, taken.high, taken.low)))
        slower = results.ratio("mlp", 1, "noise", batch, NAIVE, OURS)
        native = results.ratio("mlp", 1, "noise", batch, NATIVE)
    return [
        Target("noise, large n: million normals per second", rate, 60),
        Target("noise, large n: time × that of numpy's Philox", slower, 1.3, at_most=True),
        Target("noise, large n: × numpy's Philox; with the native core", native, 3.0),
    ]


def _start_targets(found: Found) -> list[Target]:
    litert = figure_of(found, start_ratio(found, "litert", "wall"), "litert")
    return [
        Target("cold start to the first sample: time × naive", start_ratio(found, OURS, "wall"), 0.8, True, litert),
        Target("the same in processor time", start_ratio(found, OURS, "cpu"), None),
        Target("peak memory: × naive", start_ratio(found, OURS, "memory"), 1.1, at_most=True),
    ]


def _worker_targets(found: Found) -> list[Target]:
    lines = []
    for model, what, bound in (("mlp", "MLP", 1.1), ("mnist", "conv", 1.25), ("transposed", "ConvTranspose", 1.25)):
        value = worker_ratio(found, model, 64, 0, "two", "wide")
        note = digits(one.median) if (one := worker_ratio(found, model, 1, 0, "two", "wide")) else ""
        work = f"two workers of one thread, {what}, batch 64: × one session of two"
        lines.append(Target(work, value, bound, note=f"batch 1: {note}" if note else ""))
    cells = {(entry["model"], entry["batch"]) for entry in found["workers"]}
    for group, what, min_ratio in (
        ("two", "two workers of one thread", 0.9),
        ("wide", "one session of two threads", None),
    ):
        loaded = [
            (value, f"lowest of all: {title_of(found, model)}, batch {batch}")
            for model, batch in sorted(cells)
            if (value := worker_ratio(found, model, batch, 1, group, "one")) is not None
        ]
        value, note = min(loaded, key=lambda each: each[0].median, default=(None, ""))
        lines.append(Target(f"under four busy loops, {what}: × one session of one thread", value, min_ratio, note=note))
    return lines


def _host_targets(found: Found) -> list[Target]:
    rate = host_ratio(found, NAIVE, "c", "sample")
    return [
        Target("C, cold start to the first sample: time × Python", host_ratio(found, "c", OURS, "wall"), 0.35, True),
        Target("C, the same in processor time", host_ratio(found, "c", OURS, "cpu"), None),
        Target("C, peak memory: × Python", host_ratio(found, "c", OURS, "memory"), 0.6, at_most=True),
        Target("C, MLP sample, batch 1, noise included: × session.run in Python, noise left out", rate, 1.1),
    ]


def _generation_targets(found: Found) -> list[Target]:
    turns = found.get("generation", [])
    starts = quartiles(turn["seconds"] for turn in turns if turn["kind"] == "start")
    memory = quartiles(turn["memory"] / 1e6 for turn in turns if (turn["kind"], turn["workers"]) == ("files", 2))
    conv = "mnist"
    return [
        Target("samples to files, conv, two workers: × decoding alone", generation_ratio(found, conv, "files", 2), 0.9),
        *(
            Target(
                f"samples to files, MLP, {words}: × decoding alone{core}",
                generation_ratio(found, "mlp", kind, workers, ("decode", workers)),
                bound if core else None,
            )
            for workers, words, bound in ((1, "one worker", 0.9), (2, "two workers", 0.85))
            for kind, core in (("files", ""), ("native", "; with the native core"))
        ),
        Target("two workers: × one, conv", generation_ratio(found, conv, "files", 2, ("files", 1)), 1.85),
        Target("Ray: × processes of this machine, conv", generation_ratio(found, conv, "ray", 2, ("files", 2)), 0.75),
        Target("generate, from the start of the command to the end, two batches: seconds", starts, 2, at_most=True),
        Target("memory of a worker, MB", memory, 120, at_most=True),
    ]


def _tile_targets(found: Found) -> list[Target]:
    what = "AutoencoderKL as in SD 1.5, decode 512², two threads"
    undivided, tiled = "vae-runtime", "vae-runtime, blended tiles halved"
    return [
        Target(f"{what}: time × diffusers eager", tile_ratio(found, undivided, "seconds"), 0.75, at_most=True),
        Target(f"{what}: peak memory × diffusers eager", tile_ratio(found, undivided, "peak"), None),
        Target(f"{what}, tiles of 256²: peak memory ×", tile_ratio(found, tiled, "peak"), 0.5, at_most=True),
        Target(f"{what}, tiles of 256²: time ×", tile_ratio(found, tiled, "seconds"), None),
    ]
