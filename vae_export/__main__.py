"""`python -m vae_export`: the command `vae-export`."""

import sys

from .cli import main

sys.exit(main())
