"""A comparison of ways to run a VAE on a CPU; `python -m benchmarks` makes docs/benchmarks.md."""
