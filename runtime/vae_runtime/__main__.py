"""`python -m vae_runtime`: the command `vae-runtime`."""

import sys

from .entry import enter


def main() -> int:
    """Run the command `vae-runtime`."""
    return enter("vae_runtime.cli.main")


if __name__ == "__main__":
    sys.exit(main())
