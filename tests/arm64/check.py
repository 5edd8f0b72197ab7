"""Run by run.sh on emulated aarch64: vnoise-1's vectors bit for bit, and `verify` on every bundle that ships."""

import hashlib
import importlib.util
import json
import platform
import sys
from pathlib import Path

import vae_runtime
from vae_runtime import noise

ROOT = Path(__file__).parents[2]


def main() -> int:
    print(f"machine {platform.machine()}, Python {platform.python_version()}")
    failed = 0
    if importlib.util.find_spec("vae_runtime_native"):
        used = noise.native_core() is not None
        failed += not used
        print(f"{'ok' if used else 'FAILED':8}native core")
    vectors = json.loads((ROOT / "tests" / "data" / "vnoise1_vectors.json").read_text())
    for case in vectors["noise"]:
        drawn = noise.normal(int(case["seed"]), int(case["first_index"]), case["n"], case["shape"], case["stream"])
        same = hashlib.sha256(drawn.astype("<f4").tobytes()).hexdigest() == case["sha256_le_f32"]
        failed += not same
        print(f"{'ok' if same else 'FAILED':8}noise seed {case['seed']} shape {case['shape']}")
    for manifest in sorted(ROOT.glob("models/*/manifest.json")):
        report = vae_runtime.verify(manifest.parent)
        failed += not report.passed
        print(f"{manifest.parent.name}\n{report}")
    print(f"{failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
