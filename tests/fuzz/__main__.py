"""Fuzz one target: `python -m tests.fuzz TARGET [SECONDS]`; its corpus is kept in out/fuzz/TARGET.

An input that the target's check fails for, or that takes too long or too much memory, is written to out/fuzz and ends
the run.
"""

import importlib
import sys
from pathlib import Path

import atheris

OUT = Path(__file__).parents[2] / "out" / "fuzz"
SECONDS_PER_INPUT, MIB = 5, 1024


def main() -> None:
    """Fuzz the target that the command line names."""
    name, seconds = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 600
    # Every module of the runtime that a target loads must still be outside.
    with atheris.instrument_imports(include=["vae_runtime", "json", "zipfile"]):
        target = importlib.import_module(f"tests.fuzz.{name}")
    corpus = OUT / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    words = OUT / f"{name}.dict"
    # In the form of libFuzzer's dictionaries.
    escaped = ["".join(f"\\x{byte:02x}" for byte in word) for word in sorted(target.words())]
    words.write_text("".join(f'"{word}"\n' for word in escaped))
    options = {
        "max_total_time": seconds, "timeout": SECONDS_PER_INPUT, "rss_limit_mb": MIB, "dict": words,
        "artifact_prefix": f"{OUT / name}-", "print_final_stats": 1, "max_len": 2**17,
    }  # fmt: skip
    atheris.Setup([sys.argv[0], str(corpus), *(f"-{key}={value}" for key, value in options.items())], target.check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
