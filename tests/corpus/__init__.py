"""Forged and damaged bundles, each with the verdict that it must get; `python -m tests.corpus` runs them all."""
