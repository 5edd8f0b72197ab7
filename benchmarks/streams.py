"""Latency and real-time factor of a codec of sound that decodes its latents in chunks, beside decoding them at once.

    python -m benchmarks.streams --out out/streams

makes a causal decoder with random weights, of the shape of EnCodec's without its LSTM: 75 latents of 128 numbers make a
second of sound at 24 kHz. It exports the codec, and prints a table in Markdown; the figures go beside it as JSON. All
ways take turns in one process. Every answer is compared with that of `decode` before it counts.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import vae_runtime
from vae_runtime.cli.main import run
from vae_runtime.cli.options import argument, integers
from vae_runtime.errors import VaeError, require_integer
from vae_runtime.files import write_atomic
from vae_runtime.timing import quartiles

from .figures import shown
from .machine import machine, rounded

Array = np.ndarray[Any, Any]

RATES, CHANNELS, SECOND, HOP = (8, 5, 4, 2), 128, 75, 320
# Largest difference of a way's answer from that of `decode`, of values about 1.
TOLERANCE = 1e-4


def make(folder: Path, filters: int) -> Path:
    """Make the codec's bundle, unless it exists, and return its folder."""
    bundle = folder / f"codec-{filters}"
    if bundle.is_dir():
        return bundle
    import torch
    from torch import nn
    from torch.nn import functional

    import vae_export

    class Causal(nn.Conv1d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            left = (self.kernel_size[0] - 1) * self.dilation[0]
            return super().forward(functional.pad(x, (left, 0)))

    class Up(nn.ConvTranspose1d):
        def forward(self, x: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
            return super().forward(x)[..., : -self.stride[0]]

    class Residual(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.ELU(), Causal(width, width // 2, 3), nn.ELU(), Causal(width // 2, width, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            added: torch.Tensor = x + self.layers(x)
            return added

    class Codec(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            width = filters * 2 ** len(RATES)
            self.encoder = nn.Conv1d(1, 2 * CHANNELS, HOP, HOP)
            layers: list[nn.Module] = [Causal(CHANNELS, width, 7)]
            for rate in RATES:
                layers += [nn.ELU(), Up(width, width // 2, 2 * rate, rate), Residual(width // 2)]
                width //= 2
            self.decoder = nn.Sequential(*layers, nn.ELU(), Causal(width, 1, 7))

        def encode(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
            both: torch.Tensor = self.encoder(x)
            return both.chunk(2, 1)

        def decode(self, z: torch.Tensor) -> torch.Tensor:
            x: torch.Tensor = self.decoder(z)
            return x

    torch.manual_seed(0)
    x = torch.randn(2, 1, HOP * SECOND // 3)
    axes: dict[str, Any] = {"axes": ("channel", "time"), "dynamic": ("time",), "posterior": "logvar"}
    vae_export.export(Codec().eval(), bundle, example=x, formats=("onnx",), **axes)
    return bundle


class Way(NamedTuple):
    """How latents are decoded: a name, how many come at a time, and a function that gives the answers in order."""

    name: str
    chunk: int
    answers: Callable[[Array, int], Iterator[Array]]


def _all_ways(vae: vae_runtime.VAE, chunks: Sequence[int], length: int) -> Iterator[Way]:
    def whole(z: Array, chunk: int) -> Iterator[Array]:
        yield vae.decode(z)

    def again(z: Array, chunk: int) -> Iterator[Array]:
        for last in range(chunk, length + chunk, chunk):
            yield vae.decode(z[..., :last])[..., (last - chunk) * HOP :]

    def stream(z: Array, chunk: int) -> Iterator[Array]:
        return vae.decode_stream(np.split(z, range(chunk, length, chunk), -1))

    yield Way("decode, once all are there", length, whole)
    for chunk in chunks:
        # The smallest size that `decode` takes is another matter: an export proves sizes from 2 on.
        if chunk > 1:
            yield Way("decode, all until now again", chunk, again)
        yield Way("decode_stream", chunk, stream)


def measure(bundle: Path, chunks: Sequence[int], seconds: int, rounds: int, threads: int) -> dict[str, Any]:
    """Return the figures of each way and chunk over rounds.

    Raises:
        VaeError: an answer is wrong.
    """
    vae = vae_runtime.load(bundle, threads=threads)
    (sizes,) = vae.manifest.latent.dynamic.values()
    length = min(seconds * SECOND, sizes.max)
    z = np.random.default_rng(0).normal(size=(1, CHANNELS, length)).astype(np.float32)
    expected = vae.decode(z)
    ways = list(_all_ways(vae, chunks, length))
    taken: dict[tuple[str, int], list[tuple[float, float]]] = {(way.name, way.chunk): [] for way in ways}
    order = random.Random(0)
    # The first calls load what is left to load.
    for way in ways:
        list(way.answers(z, way.chunk))
    for _ in range(rounds):
        for way in order.sample(ways, len(ways)):
            began, first, answers = time.perf_counter(), 0.0, []
            for answer in way.answers(z, way.chunk):
                first = first or time.perf_counter() - began
                answers.append(answer)
            taken[way.name, way.chunk].append((first, time.perf_counter() - began))
            difference = float(np.abs(np.concatenate(answers, -1) - expected).max())
            if not difference <= TOLERANCE:
                raise VaeError(f"{way.name}, {way.chunk}: expected the answer of decode, got one {difference:.2g} off")
    cells = [
        {
            "way": way,
            "chunk": chunk,
            "first": [rounded(first) for first, _ in times],
            "all": [rounded(a) for _, a in times],
        }
        for (way, chunk), times in taken.items()
    ]
    return {"machine": machine(), "threads": threads, "length": length, "rounds": rounds, "cells": cells}


def table(found: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    about, sound = found["machine"], found["length"] / SECOND
    lines = [
        f"{about['processor']}, {found['threads']} threads in a call, {found['rounds']} rounds.",
        "",
        f"| way | latents at a time | their sound, ms | first answer after, ms | real-time factor, {sound:.2g} s |",
        "|---|---|---|---|---|",
    ]
    for cell in sorted(found["cells"], key=lambda cell: (cell["chunk"], cell["way"])):
        first = quartiles(1000 * each for each in cell["first"])
        factor = quartiles(sound / each for each in cell["all"])
        milliseconds = f"{1000 * cell['chunk'] / SECOND:.0f}"
        lines.append(f"| {cell['way']} | {cell['chunk']} | {milliseconds} | {shown(first)} | {shown(factor)} |")
    return "\n".join(lines) + "\n"


def _run(options: argparse.Namespace) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    bundle = make(options.out, options.filters)
    found = measure(bundle, options.chunks, options.seconds, options.rounds, options.threads)
    write_atomic(options.out / "streams.json", (json.dumps(found, indent=1) + "\n").encode())
    write_atomic(options.out / "streams.md", table(found).encode())
    print(table(found), end="")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status."""
    count = argument(lambda text: require_integer("a number", int(text), 1, 2**16))
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streams", description=__doc__.splitlines()[0])
    parser.set_defaults(command=_run)
    parser.add_argument("--chunks", type=integers("chunks", 1, 2**16), default=[1, 5, 25], help="such as 1,5,25")
    parser.add_argument("--filters", type=count, default=32, help="channels of the last layers (default 32)")
    parser.add_argument("--seconds", type=count, default=1, help="seconds of sound, as far as is proven (default 1)")
    parser.add_argument("--rounds", type=count, default=20, help="how often each way takes its turn (default 20)")
    parser.add_argument("--threads", type=count, default=1, help="threads of a call (default 1)")
    parser.add_argument("--out", type=Path, default=Path("out/streams"), help="folder to write (default out/streams)")
    return run(lambda: parser, argv)


if __name__ == "__main__":
    sys.exit(main())
