"""`python -m vae_export`: the command `vae-export`."""

import sys

from vae_runtime.entry import enter


def main() -> int:
    """Run the command `vae-export`."""
    return enter("vae_export.cli")


if __name__ == "__main__":
    sys.exit(main())
