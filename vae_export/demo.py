"""Run every step on real data: train, export, check parity, verify, sample."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from vae_runtime.errors import VaeError
from vae_runtime.files import write_atomic
from vae_runtime.image import pairs, png
from vae_runtime.vae import VAE, load

from .errors import TrainingError
from .exporting import export
from .parity.bundle import check_parity
from .training.checkpoint import read_info, run_data
from .training.config import RECIPES
from .training.evaluation import evaluate
from .training.loop import train

_SEED = 0
_IMPORTANCE_SAMPLES = 100
_CALLS = 200


def demo(out: Path) -> None:
    """Train on scikit-learn's digits, export, check parity, verify and sample, and print a table of the measurements.

    Steps that an earlier call finished are kept, so a second call is quick. Both draw the same samples.

    Args:
        out: folder for the run, the bundle and the pictures.

    Raises:
        VaeError: a step failed.
    """
    run, bundle = out / "run", out / "bundle"
    recipe = RECIPES["digits"]
    _step("train", "a VAE on 1,797 real digits of 8×8 pixels")
    try:
        train(run, recipe.model, recipe.train, recipe.data)
    except TrainingError as error:
        raise TrainingError(f"{error}, or remove {out}: an earlier version may have made it") from error
    evaluation = evaluate(run, importance_samples=_IMPORTANCE_SAMPLES)

    if not bundle.exists():
        _step("export", f"encoder and decoder to {bundle}, each as ONNX and TorchScript")
        export(run, bundle)
    _step("parity", "ONNX Runtime and TorchScript against PyTorch")
    verification, parity = check_parity(run, bundle, trust=True)
    if not (verification.passed and parity.passed):
        raise VaeError(f"{bundle}: it does not match {run}; remove {bundle} and run the demo again")

    _step("verify", "the bundle, in a process that cannot import PyTorch")
    _without_torch("verify", str(bundle))
    _step("sample", "64 new digits, in such a process too")
    _without_torch("sample", str(bundle), "-n", "64", "--seed", str(_SEED), "--out", str(out / "samples.png"))

    write_atomic(out / "curve.png", (run / "curve.png").read_bytes())
    vae = load(bundle)
    x = run_data(read_info(run), run=run).test.rows(slice(20))
    write_atomic(out / "reconstructions.png", png(pairs(x, vae.reconstruct(x), columns=10)))

    kib = {variant.path: (bundle / variant.path).stat().st_size / 1024 for variant in vae.manifest.variants}
    surrogate = "surrogate: gray values under a bernoulli likelihood" if evaluation.surrogate else ""
    rows = [
        ("test ELBO", f"{evaluation.elbo:.2f} nats", surrogate),
        (
            "parity",
            f"{parity.max_abs:.1e}",
            "largest difference from float64 PyTorch of all outputs, logits included",
        ),
        ("encoder", f"{kib['encoder/fp32/model.onnx']:.0f} KiB", "ONNX"),
        ("decoder", f"{kib['decoder/fp32/model.onnx']:.0f} KiB", "ONNX"),
        ("sample(1)", f"{_milliseconds(vae):.3f} ms", f"median of {_CALLS} calls, one thread, this machine now"),
    ]
    print()
    for name, figure, note in rows:
        print(f"{name:12}{figure:>14}  {note}".rstrip())
    pictures = ", ".join(str(out / name) for name in ("curve.png", "reconstructions.png", "samples.png"))
    print(f"\npictures: {pictures}\nbundle:   {bundle}")


def _step(name: str, text: str) -> None:
    print(f"\n== {name}: {text}", flush=True)


def _without_torch(*arguments: str) -> None:
    """Run `vae-runtime` in a process in which importing torch fails."""
    code = (
        "import sys; sys.modules['torch'] = None; from vae_runtime.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    finished = subprocess.run([sys.executable, "-c", code, *arguments], check=False)
    if finished.returncode:
        raise VaeError(f"vae-runtime {arguments[0]} failed with status {finished.returncode}; see above")


def _milliseconds(vae: VAE) -> float:
    times = []
    for index in range(_CALLS):
        begin = time.perf_counter()
        vae.sample(1, seed=_SEED, start=index)
        times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times)
