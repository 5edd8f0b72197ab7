"""On an NVIDIA GPU: sample(seed) of this runtime beside PyTorch eager and torch.compile, in 32 and 16 bits.

    python -m benchmarks.cuda --data out/bench --out out/cuda

needs PyTorch with CUDA and onnxruntime-gpu in one environment, and the models that `make bench` has made. It prints a
table in Markdown and writes the figures beside it as JSON; without a GPU it says so and measures nothing. Each way
samples on the device and leaves the result there; every answer is compared with float32 PyTorch's on the CPU before it
is timed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import vae_runtime
from vae_runtime.cli.main import run
from vae_runtime.cli.options import argument
from vae_runtime.errors import DeviceError, VaeError, error_line, require_integer
from vae_runtime.files import write_atomic
from vae_runtime.timing import in_turns, take_turn

from .models import COMPARED, MODELS

BATCHES = (1, 8, 64, 512, 4096, 65536)
SEED = 7
# Seconds that one way's turn takes about.
SLOT = 0.2
# Largest difference from float32 PyTorch: TF32 off; of values of 10 or more bits.
TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2}

Way = Callable[[int], Any]


class Torch:
    """PyTorch on a device, eager or compiled, with noise from its own generator there."""

    def __init__(self, folder: Path, device: str, precision: str, latent: tuple[int, ...]) -> None:
        import torch

        self._torch, self._device, self._latent = torch, torch.device(device), latent
        self._dtype = torch.float16 if precision == "fp16" else torch.float32
        # The whole module, which benchmarks.models has written.
        self._pure = torch.load(folder / "module.pt", weights_only=False).to(self._device, self._dtype).eval()
        self._generator = torch.Generator(self._device)

    def ways(self, *, compiled: bool) -> dict[str, Way]:
        """sample(n) under its name."""
        from .networks import Component

        module = Component(self._pure, "decoder").eval()
        decode: Callable[[Any], Any] = self._torch.compile(module, dynamic=False) if compiled else module

        def sample(n: int) -> Any:
            with self._torch.inference_mode():
                self._generator.manual_seed(SEED)
                z = self._torch.randn(
                    (n, *self._latent), generator=self._generator, device=self._device, dtype=self._dtype
                )
                return decode(z)

        return {"torch.compile" if compiled else "PyTorch eager": sample}

    def decode(self, z: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the mean for latents, computed on the device."""
        with self._torch.inference_mode():
            given = self._torch.from_numpy(z).to(self._device, self._dtype)
            found: np.ndarray[Any, Any] = self._pure.decode(given).float().cpu().numpy()
            return found


def measure(data: Path, names: Sequence[str], device: str, batches: Sequence[int], rounds: int) -> dict[str, Any]:
    """Time all ways on all models, in turns of random order.

    Raises:
        DeviceError: the device is unavailable, to PyTorch or to ONNX Runtime.
        VaeError: an answer is not PyTorch's.
    """
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise DeviceError("no CUDA GPU for PyTorch here; run this where torch.cuda.is_available()")
    # Full float32 on both sides: ONNX Runtime's TF32 is switched off below.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    options = {"use_tf32": "0"} if device.startswith("cuda") else None
    chance = random.Random(0)
    title = torch.cuda.get_device_name() if device.startswith("cuda") else "CPU (to try the program)"
    found: dict[str, Any] = {"device": title, "torch": torch.__version__, "rounds": [], "skipped": []}
    for model in names:
        folder = data / model
        variants = vae_runtime.load(folder / "bundle").bundle.manifest.decoder
        for precision in ("fp32", "fp16"):
            if precision not in variants:
                continue
            # PyTorch compiles a function for at most eight sizes, then runs it eagerly: each model starts anew.
            torch._dynamo.reset()
            vae = vae_runtime.load(folder / "bundle", device=device, variant=precision, provider_options=options)
            plain = Torch(folder, device, precision, vae.latent_shape)
            reference = Torch(folder, "cpu", "fp32", vae.latent_shape)
            z = vae.prior(64, seed=SEED)
            assert isinstance(z, np.ndarray)
            wanted = reference.decode(z)
            for who, answer in (("vae-runtime", vae.decode(z)), ("PyTorch", plain.decode(z))):
                worst = float(np.abs(answer - wanted).max() / max(1.0, float(np.abs(wanted).max())))
                if worst > TOLERANCES[precision]:
                    raise VaeError(f"{model} {precision}: {who} differs by {worst:.2g} from float32 PyTorch on the CPU")
            ways: dict[str, Way] = {
                "vae-runtime": lambda n, vae=vae: vae.sample(n, seed=SEED, on_device=True),  # type: ignore[misc]
                "vae-runtime, to numpy": lambda n, vae=vae: vae.sample(n, seed=SEED, batch_size=n),  # type: ignore[misc]
                "noise alone": lambda n, vae=vae: vae.prior(n, seed=SEED),  # type: ignore[misc]
                **plain.ways(compiled=False),
                **plain.ways(compiled=True),
            }
            for batch in batches:
                try:
                    taken = in_turns(ways, rounds, lambda way: _time(ways[way], batch, device), chance)  # noqa: B023 - at once
                except (VaeError, torch.OutOfMemoryError) as error:
                    found["skipped"].append(f"{model} {precision} {batch}: {error_line(error)}")
                    print(f"{found['skipped'][-1]} (skipped)", file=sys.stderr, flush=True)
                    continue
                for number in range(rounds):
                    place = {"model": model, "precision": precision, "batch": batch, "round": number}
                    seconds = {way: figures[number] for way, figures in taken.items()}
                    found["rounds"].append({**place, "seconds": seconds})
                print(f"{model} {precision} {batch}: done", file=sys.stderr, flush=True)
    return found


def _time(way: Way, batch: int, device: str) -> float:
    """Return the seconds of one call, the device having finished: the median over a turn."""
    import torch

    def call() -> None:
        way(batch)
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    # The first call may compile: it never counts.
    call()
    return take_turn(call, SLOT).median


def table(found: dict[str, Any]) -> str:
    """Return the figures as Markdown: samples a second of this runtime, and how the others compare."""
    lines = [
        f"{found['device']}, PyTorch {found['torch']}",
        "",
        "| model | precision | batch | vae-runtime, samples/s | × eager | × torch.compile | to numpy, × on the device "
        "| share of noise |",
        "|---|---|---|---|---|---|---|---|",
    ]
    cells = {(entry["model"], entry["precision"], entry["batch"]): None for entry in found["rounds"]}
    for cell in cells:
        rounds = [
            entry["seconds"]
            for entry in found["rounds"]
            if (entry["model"], entry["precision"], entry["batch"]) == cell
        ]

        def ratio(over: str, under: str, rounds: list[dict[str, float]] = rounds) -> str:
            return f"{np.median([each[over] / each[under] for each in rounds]):.2f}"

        rate = cell[2] / np.median([each["vae-runtime"] for each in rounds])
        lines.append(
            f"| {cell[0]} | {cell[1]} | {cell[2]} | {rate:,.0f} | {ratio('PyTorch eager', 'vae-runtime')} | "
            f"{ratio('torch.compile', 'vae-runtime')} | {ratio('vae-runtime', 'vae-runtime, to numpy')} | "
            f"{ratio('noise alone', 'vae-runtime')} |"
        )
    lines += ["", *(f"Skipped: {line}" for line in found["skipped"])] if found["skipped"] else []
    return "\n".join(lines) + "\n"


def _run(options: argparse.Namespace) -> None:
    for name in options.models:
        if not (options.data / name / "module.pt").is_file():
            raise VaeError(f"{options.data / name}: no model of `make bench`; run that first, or give --data")
    found = measure(options.data, options.models, options.device, options.batches, options.rounds)
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomic(options.out / "cuda.json", (json.dumps(found, indent=1) + "\n").encode())
    write_atomic(options.out / "cuda.md", table(found).encode())
    print(table(found), end="")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda", description=__doc__.splitlines()[0])
    parser.set_defaults(command=_run)
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=[m for m in COMPARED if m != "kl"])
    parser.add_argument("--data", type=Path, default=Path("out/bench"), help="where models are (default out/bench)")
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:N; cpu to try the program")
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES), help="how many at once")
    parser.add_argument(
        "--rounds", type=argument(lambda text: require_integer("rounds", int(text), 1, 1000)), default=5,
        help="rounds of everything (default 5)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("out/cuda"), help="the folder to write (default out/cuda)")
    return run(lambda: parser, argv)


if __name__ == "__main__":
    sys.exit(main())
