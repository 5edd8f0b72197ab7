"""On an NVIDIA GPU: sample(seed) of this runtime beside PyTorch eager and torch.compile, in 32 and 16 bits.

    python -m benchmarks.cuda --build

needs PyTorch with CUDA and onnxruntime-gpu in one environment, and the models of `make bench`, which `--build` makes.
It writes docs/benchmarks-cuda.md, and its figures beside those of the benchmark on the CPU. `make cuda` runs the tests
first. Every answer is compared with float32 PyTorch's on the CPU before it is timed.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import vae_runtime
from vae_runtime.cli.main import run
from vae_runtime.cli.options import argument
from vae_runtime.device_noise import MIN_NUMBERS
from vae_runtime.errors import DeviceError, InputError, VaeError, error_line, require_integer
from vae_runtime.files import write_atomic
from vae_runtime.timing import in_turns, take_turn

from .cuda_report import OURS, PAGE, cuda_section
from .models import COMPARED, MODELS, build
from .report import ROOT, dumped, filled

FIGURES = "results-cuda.json"
BATCHES = (1, 8, 64, 512, 4096, 65536)
SEED = 7
# Seconds that one way's turn takes about.
SLOT = 0.2
# Largest difference from float32 PyTorch: TF32 off; of values of 10 or more bits.
TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2}
# Samples that are compared, at the beginning and at the end of a draw that the GPU makes.
COMPARED_ROWS = 16

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


@contextlib.contextmanager
def _cupy_is(used: bool) -> Iterator[None]:
    """Let noise be drawn by CuPy, or not."""
    before = os.environ.get("VAE_RUNTIME_CUPY")
    os.environ["VAE_RUNTIME_CUPY"] = "1" if used else "0"
    try:
        yield
    finally:
        os.environ.pop("VAE_RUNTIME_CUPY")
        if before is not None:
            os.environ["VAE_RUNTIME_CUPY"] = before


def _load(bundle: Path, device: str, precision: str, *, cupy: bool, **options: Any) -> Any:
    """Load a bundle that draws noise in this way from now on."""
    with _cupy_is(cupy):
        vae = vae_runtime.load(bundle, device=device, variant=precision, provider_options=options or None)
        # Which way is decided by the first sample on the device.
        vae.sample(1, seed=SEED, on_device=True)
    return vae


def _our_ways(bundle: Path, device: str, precision: str) -> dict[str, Way]:
    """The ways of this runtime, and its noise alone."""
    vae = _load(bundle, device, precision, cupy=True)
    host = _load(bundle, device, precision, cupy=False)
    ways: dict[str, Way] = {
        OURS: lambda n: vae.sample(n, seed=SEED, on_device=True),
        f"{OURS}, 512 at a time": lambda n: vae.sample(n, seed=SEED, on_device=True, batch_size=512),
        f"{OURS}, host noise": lambda n: host.sample(n, seed=SEED, on_device=True),
        f"{OURS}, to numpy": lambda n: vae.sample(n, seed=SEED, batch_size=n),
        "noise alone, host": lambda n: vae.prior(n, seed=SEED),
    }
    cupy = _cupy(device)
    if cupy is not None:
        stream = cupy.cuda.Stream(non_blocking=True)
        shared = _load(bundle, device, precision, cupy=True, user_compute_stream=stream.ptr)
        # The default arguments keep the stream as long as the way.
        ways[f"{OURS}, one stream"] = lambda n, _stream=stream: shared.sample(n, seed=SEED, on_device=True)  # type: ignore[misc]
    return ways


def _cupy(device: str) -> Any:
    """CuPy, where it can draw for the device."""
    if not device.startswith("cuda"):
        return None
    try:
        import cupy
    except ImportError:
        return None
    return cupy


def _compare(ways: dict[str, Way], plain: Torch, reference: Torch, vae: Any, precision: str, model: str) -> None:
    """Hold the first and the last samples of every way, of as many as a GPU draws, against PyTorch on the CPU.

    Raises:
        VaeError: an answer is not PyTorch's.
    """
    import torch

    n = max(2 * COMPARED_ROWS, -(-MIN_NUMBERS // int(np.prod(vae.latent_shape))))
    z = vae.prior(n, seed=SEED)
    rows = np.r_[:COMPARED_ROWS, n - COMPARED_ROWS : n]
    wanted = reference.decode(z[rows])
    answers = {"PyTorch": plain.decode(z[rows])}
    for name, way in ways.items():
        if name.startswith(OURS):
            answers[name] = torch.as_tensor(_taken(way(n)))[torch.from_numpy(rows)].cpu().numpy()
    for who, answer in answers.items():
        worst = float(np.abs(answer - wanted).max() / max(1.0, float(np.abs(wanted).max())))
        if not worst <= TOLERANCES[precision]:
            raise VaeError(f"{model} {precision}: {who} differs by {worst:.2g} from float32 PyTorch on the CPU")


def _taken(value: Any) -> Any:
    """What a way returns as PyTorch takes it: numpy's arrays, and values on a device by DLPack."""
    from torch.utils.dlpack import from_dlpack

    return value if isinstance(value, np.ndarray) else from_dlpack(value)


def measure(
    data: Path, names: Sequence[str], device: str, batches: Sequence[int], rounds: int,
    keep: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:  # fmt: skip
    """Time all ways on all models, in turns of random order.

    Args:
        data: the folder of the models' folders.
        names: of the models.
        device: cuda, cuda:N, or cpu.
        batches: sizes.
        rounds: of everything.
        keep: called with what is found so far after each model and precision, so that little is lost.

    Raises:
        DeviceError: the device is unavailable, to PyTorch or to ONNX Runtime.
        VaeError: an answer is not PyTorch's.
    """
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise DeviceError("no CUDA GPU for PyTorch here; run this where torch.cuda.is_available()")
    # Full float32 on both sides: vae-runtime switches ONNX Runtime's TF32 off.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    chance = random.Random(0)
    found = _about(device)
    for model in names:
        folder = data / model
        variants = vae_runtime.load(folder / "bundle").bundle.manifest.decoder
        for precision in ("fp32", "fp16"):
            if precision not in variants:
                continue
            # PyTorch compiles a function for at most eight sizes, then runs it eagerly: each model starts anew.
            torch._dynamo.reset()
            vae = vae_runtime.load(folder / "bundle")
            ways = _our_ways(folder / "bundle", device, precision)
            plain = Torch(folder, device, precision, vae.latent_shape)
            _compare(ways, plain, Torch(folder, "cpu", "fp32", vae.latent_shape), vae, precision, model)
            ways |= plain.ways(compiled=False) | plain.ways(compiled=True)
            for batch in batches:
                place = {"model": model, "precision": precision, "batch": batch}
                taken = _in_turns(ways, place, rounds, device, chance, found)
                for number in range(rounds if taken else 0):
                    seconds = {way: figures[number] for way, figures in taken.items()}
                    found["rounds"].append({**place, "round": number, "seconds": seconds})
            keep(found)
    return found


def _about(device: str) -> dict[str, Any]:
    """What is measured on, with empty lists for what is found."""
    import onnxruntime
    import torch

    cupy = _cupy(device)
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "CPU (to try the program)",
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "cupy": cupy.__version__ if cupy is not None else None,
        "titles": {name: model.title for name, model in MODELS.items()},
        "rounds": [],
        "skipped": [],
    }


def _in_turns(
    ways: dict[str, Way], place: dict[str, Any], rounds: int, device: str, chance: random.Random, found: dict[str, Any]
) -> dict[str, list[float]]:
    """Time the ways at one place that can take it; the others are listed with their reason."""
    import torch

    name, batch = " ".join(map(str, place.values())), place["batch"]
    fit = []
    for way in ways:
        try:
            _synchronized(ways[way], batch, device)
            fit.append(way)
        except (VaeError, torch.OutOfMemoryError) as error:
            found["skipped"].append(f"{name}: {way}: {error_line(error)}")
            print(f"{found['skipped'][-1]} (skipped)", file=sys.stderr, flush=True)
    taken = in_turns(fit, rounds, lambda way: _time(ways[way], batch, device), chance)
    print(f"{name}: done", file=sys.stderr, flush=True)
    return taken


def _synchronized(way: Way, batch: int, device: str) -> None:
    """Make one call, and wait for the device."""
    way(batch)
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


def _time(way: Way, batch: int, device: str) -> float:
    """Return the seconds of one call, the device having finished: the median over a turn."""
    return take_turn(lambda: _synchronized(way, batch, device), SLOT).median


def _run(options: argparse.Namespace) -> None:
    if options.out is None and not options.device.startswith("cuda"):
        raise InputError("out: expected a folder for figures that are not of a GPU; give --out")
    for name in options.models:
        if options.build:
            build(name, options.data / name)
        elif not (options.data / name / "module.pt").is_file():
            raise VaeError(f"{options.data / name}: no model of `make bench`; give --build, or --data")
    found = measure(
        options.data,
        options.models,
        options.device,
        options.batches,
        options.rounds,
        lambda so_far: _write(so_far, options.out),
    )
    print(cuda_section(found))


def _write(found: dict[str, Any], out: Path | None) -> None:
    """Write the figures and the page into a folder, or where they are in the repository."""
    frame = ROOT / "docs" / PAGE
    folder, figures = (frame.parent, ROOT / "benchmarks") if out is None else (out, out)
    folder.mkdir(parents=True, exist_ok=True)
    page = filled(frame.read_text(encoding="utf-8"), "cuda", cuda_section(found), PAGE)
    write_atomic(figures / FIGURES, dumped(found).encode())
    write_atomic(folder / PAGE, page.encode())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda", description=__doc__.splitlines()[0])
    parser.set_defaults(command=_run)
    models = [name for name in COMPARED if name not in ("kl", "mlp50", "digits")]
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=models)
    parser.add_argument("--build", action="store_true", help="train and export the models that are missing")
    parser.add_argument("--data", type=Path, default=Path("out/bench"), help="where models are (default out/bench)")
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:N; cpu to try the program")
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES), help="how many at once")
    parser.add_argument(
        "--rounds", type=argument(lambda text: require_integer("rounds", int(text), 1, 1000)), default=5,
        help="rounds of everything (default 5)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path,
        help=f"a folder for {PAGE} and {FIGURES} (default: docs/ and benchmarks/)",
    )  # fmt: skip
    return run(lambda: parser, argv)


if __name__ == "__main__":
    sys.exit(main())
