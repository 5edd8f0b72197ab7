"""One contender in a process of its own: it answers each line of JSON on stdin with one.

    python -m benchmarks.worker CONTENDER THREADS

opens no model before it is told to. `python -m benchmarks.worker convert CONTENDER FOLDER BATCHES` writes a contender's
own form of a model, in the environment that can.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
from typing import Any

import numpy as np

from vae_runtime.timing import take_turn

from .contender import FIRST_SEED, Contender, Unavailable
from .contenders import CONTENDERS

# Largest difference from PyTorch's answer, relative to its largest value where that is above 1: float32 kernels add in
# different orders, and a network of ten layers amplifies the last digit some hundred times.
TOLERANCE = 1e-4
# For forms of fewer bits: the minimum peak signal-to-noise ratio in dB; the peak is the range of PyTorch's answer.
MIN_PSNR = 30.0
PSNR_ROWS = 64


class Limits(Contender):
    """The machine alone: it multiplies matrices and reads memory."""

    name = "limits"
    title = "the machine's limits"
    environment = "runtime"

    def work(self, kind: str, batch: int, z: Any, x: Any) -> Any:
        if kind == "sgemm-numpy":
            a = np.ones((batch, batch), np.float32)
            out = np.empty_like(a)
            return lambda: np.matmul(a, a, out=out)
        if kind in ("sgemm-ort", "int8-ort"):
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = self.threads
            few = kind == "int8-ort"
            session = onnxruntime.InferenceSession(self.path("matmul-int8.onnx" if few else "matmul.onnx"), options)
            types = (np.uint8, np.int8) if few else (np.float32, np.float32)
            feeds = {name: np.ones((batch, batch), dtype) for name, dtype in zip("ab", types, strict=True)}
            return lambda: session.run(None, feeds)
        if kind == "read":
            # Both factors are the same memory, which is read once.
            row = np.ones(batch, np.float32)
            return lambda: np.dot(row, row)
        raise Unavailable(f"the machine has no {kind}")


class Worker:
    """A contender and its open models."""

    def __init__(self, name: str, threads: int) -> None:
        self._kind: type[Contender] = Limits if name == "limits" else CONTENDERS[name]
        self._threads = threads
        self._models: dict[str, Contender] = {}
        self._inputs: dict[str, Any] = {}
        self._work: dict[tuple[str, str, int], Any] = {}
        self._kind("", threads, ()).setup()

    def open(self, folder: str) -> dict[str, Any]:
        """Read a model's inputs; the contender itself opens graphs when they are first needed."""
        if self._kind is Limits:
            arrays = {"x": np.empty(0, np.float32), "z": np.empty((0, 1), np.float32)}
        else:
            arrays = dict(np.load(os.path.join(folder, "reference.npz")))
        contender = self._kind(folder, self._threads, arrays["z"].shape[1:])
        contender.check()
        self._models[folder] = contender
        self._inputs[folder] = arrays
        return {}

    def close(self, folder: str) -> dict[str, Any]:
        """Give a model's memory back to the system: what all contenders keep of all models would not fit."""
        self._models.pop(folder, None)
        self._inputs.pop(folder, None)
        self._work = {key: do for key, do in self._work.items() if key[0] != folder}
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            import ctypes

            ctypes.CDLL(None).malloc_trim(0)
        return {}

    def prepare(self, folder: str, work: str, batch: int) -> dict[str, Any]:
        """Make one piece of work ready and compare what it gives with PyTorch's answers."""
        contender, arrays = self._models[folder], self._inputs[folder]
        z, x = arrays["z"][:batch].copy(), arrays["x"][:batch].copy()
        do = contender.work(work, batch, z, x)
        self._work[folder, work, batch] = do
        if self._kind is Limits:
            return {"passed": True}
        answers = do()
        if work in ("decode", "encode", "reconstruct"):
            chunks = [_pairs(work, answers, arrays, 0, batch)]
            # Noise is judged over the same rows for each batch size: of a single one it says little.
            last = 0 if contender.exact else min(len(arrays["x"]), PSNR_ROWS) - batch
            for row in range(batch, last + 1, batch):
                z, x = (arrays[name][row : row + batch] for name in ("z", "x"))
                chunks.append(_pairs(work, contender.work(work, batch, z, x)(), arrays, row, batch))
            pairs = [(np.concatenate(got), np.concatenate(expected)) for got, expected in _by_output(chunks)]
        elif work == "sample":
            # Every contender draws noise of its own: its samples are held against its `decode` of that noise, which is
            # held against PyTorch's.
            z = contender.draw(batch, FIRST_SEED)
            if z.shape != (batch, *contender.latent):
                raise Unavailable(f"expected latents {[batch, *contender.latent]}, got {list(z.shape)}")
            pairs = [(answers, contender.work("decode", batch, z, None)())]
        else:
            expected = arrays["z"].shape[1:] if work == "noise" else arrays["x"].shape[1:]
            if answers.shape != (batch, *expected) or not np.isfinite(answers).all():
                raise Unavailable(f"expected finite numbers {[batch, *expected]}, got {list(answers.shape)}")
            return {"passed": True}
        return compared(pairs, contender.exact or work == "sample")

    def measure(self, folder: str, work: str, batch: int, seconds: float) -> dict[str, Any]:
        """Take a turn: the fields of `vae_runtime.timing.Turn`."""
        turn = take_turn(self._work[folder, work, batch], seconds)
        return turn._asdict()

    def answer(self, order: dict[str, Any]) -> dict[str, Any]:
        """Do what one line says; an error is the contender's reason, which the report prints."""
        orders: dict[str, Any] = {
            "open": self.open,
            "close": self.close,
            "prepare": self.prepare,
            "measure": self.measure,
        }
        try:
            answer: dict[str, Any] = orders[order.pop("do")](**order)
            return answer
        except Exception as error:  # whatever a contender raises is its reason
            lines = str(error).strip().splitlines() or [""]
            return {"error": f"{type(error).__name__}: {lines[0]}"[:300].removeprefix("Unavailable: ")}


def _pairs(work: str, answers: Any, arrays: dict[str, Any], row: int, batch: int) -> list[tuple[Any, Any]]:
    """Return the answer and PyTorch's answer, for each output."""
    names = {"decode": ("decoded",), "encode": ("mu", "logvar"), "reconstruct": ("back",)}[work]
    got = answers if work == "encode" else (answers,)
    return [(answer, arrays[name][row : row + batch]) for answer, name in zip(got, names, strict=True)]


def _by_output(chunks: list[list[tuple[Any, Any]]]) -> list[tuple[list[Any], list[Any]]]:
    return [([got for got, _ in parts], [expected for _, expected in parts]) for parts in zip(*chunks, strict=True)]


def compared(pairs: list[tuple[Any, Any]], exact: bool) -> dict[str, Any]:
    """Return how far answers are from those expected, and whether they pass."""
    worst = {"error": 0.0, "psnr": float("inf")}
    passed = True
    for got, expected in pairs:
        got = np.asarray(got)
        if got.shape != expected.shape or got.dtype != expected.dtype:
            raise Unavailable(f"expected {expected.dtype} {list(expected.shape)}, got {got.dtype} {list(got.shape)}")
        difference = np.abs(got.astype(np.float64) - expected)
        error = float(difference.max())
        mse = float((difference**2).mean())
        peak = float(expected.max()) - float(expected.min())
        psnr = 10 * np.log10(peak**2 / mse) if mse else float("inf")
        if exact:
            passed &= error <= TOLERANCE * max(1.0, float(np.abs(expected).max()))
        else:
            passed &= bool(psnr >= MIN_PSNR)
        worst = {"error": max(worst["error"], error), "psnr": min(worst["psnr"], float(psnr))}
    # JSON has no infinity.
    psnr_or_none = worst["psnr"] if np.isfinite(worst["psnr"]) else None
    return {"passed": bool(passed), "difference": worst["error"], "psnr": psnr_or_none}


def convert(name: str, folder: str, batches: list[int]) -> None:
    """Write a contender's form of both components of a model."""
    for component in ("encoder", "decoder"):
        CONTENDERS[name].convert(folder, component, batches)


def main() -> None:
    """Answer until stdin ends."""
    if sys.argv[1] == "convert":
        convert(sys.argv[2], sys.argv[3], [int(batch) for batch in sys.argv[4].split(",")])
        return
    # If the machine still runs out of memory, the system ends this process and no other.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")
    # What libraries print must not get between the answers.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        worker = Worker(sys.argv[1], int(sys.argv[2]))
        print(json.dumps({}), file=out, flush=True)
    except Exception as error:  # the reason why the contender is left out
        print(json.dumps({"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}), file=out, flush=True)
        return
    for line in sys.stdin:
        print(json.dumps(worker.answer(json.loads(line))), file=out, flush=True)


if __name__ == "__main__":
    main()
