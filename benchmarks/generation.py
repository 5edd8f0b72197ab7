"""Samples to files beside a loop that only decodes: one process after another, in random order.

    python -m benchmarks.generation '{"kind": "files", "bundle": …, "model": …, "workers": 2, "n": 65536, "out": …}'

takes one turn and prints what it found as JSON; `measure` takes all of them.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vae_runtime.errors import VaeError

# Rows decoded at once.
BATCH = 64
# Files of a turn for each worker, each of about a second's work: fast decoders fill the usual 64 MB in that time.
FILES = 8
WRITTEN = 2**28


def measure(
    models: Mapping[str, Path], rounds: int, python: Path, ray: Path | None, environment: Mapping[str, str],
    say: Callable[[str], object], *, native: Path | None = None, quick: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """Take turns on each model's bundle, and return their figures.

    Args:
        models: the folder of each bundle.
        rounds: turns of each kind.
        python: with vae-runtime and ONNX Runtime.
        ray: with Ray beside them; None leaves it out.
        native: with the native core beside them; None leaves it out.
        environment: variables of the processes.
        say: called with each step.
        quick: a few samples only.

    Raises:
        VaeError: a turn failed; the message has its last line.
    """
    chance, found = random.Random(1), []
    with tempfile.TemporaryDirectory(prefix="generation-") as scratch:
        for model, bundle in models.items():
            out = Path(scratch) / "samples"
            order, shard = {"bundle": str(bundle), "out": str(out), "workers": 1}, 1024
            if not quick:
                rate = _turn(python, {**order, "kind": "decode", "n": FILES * shard}, environment)["rate"]
                shard *= max(1, int(rate) // shard)
            n = FILES * shard
            kinds = [("decode", 1), ("decode", 2), ("files", 1), ("files", 2), ("start", 1), ("disk", 1)]
            pythons = {"ray": ray, "native": native}
            kinds += [("ray", 2)] if ray is not None else []
            kinds += [("native", 1), ("native", 2)] if native is not None else []
            for number in range(rounds):
                say(f"{model}: samples to files, round {number + 1}")
                for kind, workers in chance.sample(kinds, len(kinds)):
                    shutil.rmtree(out, ignore_errors=True)
                    turn = {**order, "kind": kind, "workers": workers, "n": n * workers, "shard": shard}
                    answer = _turn(pythons.get(kind) or python, turn, environment)
                    found.append({"model": model, "round": number, "kind": kind, "workers": workers, **answer})
    return found


def _turn(python: Path, order: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    command = [str(python), "-m", "benchmarks.generation", json.dumps(order)]
    began = time.monotonic()
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], env=dict(environment), capture_output=True, text=True, check=False,
        timeout=1200,
    )  # fmt: skip
    if done.returncode:
        raise VaeError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][:300])
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**answer, "process": round(time.monotonic() - began, 3)}


# One turn, in a process of its own.


def decode(order: Mapping[str, Any]) -> dict[str, Any]:
    """Time workers that decode the same latents again and again, and drop the results."""
    context = multiprocessing.get_context("spawn")
    ready, go = context.Barrier(order["workers"] + 1), context.Barrier(order["workers"] + 1)
    each = order["n"] // order["workers"] // BATCH
    workers = [
        context.Process(target=_decode, args=(order["bundle"], each, ready, go)) for _ in range(order["workers"])
    ]
    for worker in workers:
        worker.start()
    ready.wait(60)
    began = time.perf_counter()
    go.wait(60)
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise VaeError("a worker that only decodes has failed")
    return {"rate": each * BATCH * order["workers"] / (time.perf_counter() - began)}


def _decode(bundle: str, batches: int, ready: Any, go: Any) -> None:
    import numpy as np
    import onnxruntime

    from vae_runtime.bundle import open_bundle

    opened = open_bundle(bundle)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        opened.read(opened.variant("decoder").path), options, providers=["CPUExecutionProvider"]
    )
    (latent,) = opened.manifest.latents
    z = np.random.default_rng(0).standard_normal((BATCH, *latent.shape), dtype=np.float32)
    mean = [opened.manifest.likelihood.mean]
    session.run(mean, {latent.name: z})
    ready.wait(60)
    go.wait(60)
    for _ in range(batches):
        session.run(mean, {latent.name: z})


def files(order: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """`generate` to .npy files of uint8; the rate is counted from where every worker has made its first file."""
    from vae_runtime import generate

    began = time.perf_counter()
    marks: list[tuple[float, int]] = []
    timings: dict[str, float] = {}
    samples = generate(
        order["bundle"], order["out"], order["n"], seed=7, workers=order["workers"], dtype="uint8", batch_size=BATCH,
        shard_size=order["shard"], progress=lambda done, n: marks.append((time.perf_counter(), done)),
        timings=timings, **more,
    )  # fmt: skip
    if samples is None or len(samples) != order["n"]:
        raise VaeError("samples are missing")
    (first, done), (last, n) = marks[order["workers"] - 1], marks[-1]
    return {
        "rate": (n - done) / (last - first),
        "first": marks[0][0] - began,
        "memory": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
        "seconds": timings,
        "bytes": sum(shard["bytes"] for shard in samples.shards),
    }


def ray(order: Mapping[str, Any]) -> dict[str, Any]:
    """Time the same with Ray, on a cluster of this machine alone, started for it."""
    return files(order, executor="ray")


def start(order: Mapping[str, Any]) -> dict[str, Any]:
    """Time the whole command, for a batch of samples by each of two workers."""
    command = [sys.executable, "-m", "vae_runtime", "generate", order["bundle"], "-n", str(2 * BATCH), "--seed", "7",
               "--workers", "2", "--dtype", "uint8", "--shard-size", str(BATCH), "--out", order["out"]]  # fmt: skip
    began = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return {"seconds": time.perf_counter() - began}


def disk(order: Mapping[str, Any]) -> dict[str, Any]:
    """Time the disk: bytes a second, written and synced in one piece."""
    content = random.Random(0).randbytes(2**20)
    path = order["out"] + ".bin"
    began = time.perf_counter()
    with open(path, "wb") as file:
        for _ in range(WRITTEN // len(content)):
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    os.unlink(path)
    return {"rate": WRITTEN / seconds}


# The native core is files in another environment, where it is installed.
KINDS = {"decode": decode, "files": files, "native": files, "ray": ray, "start": start, "disk": disk}


def main(argv: Sequence[str]) -> None:
    """Take one turn."""
    order = json.loads(argv[0])
    print(json.dumps(KINDS[order["kind"]](order)))


if __name__ == "__main__":
    main(sys.argv[1:])
