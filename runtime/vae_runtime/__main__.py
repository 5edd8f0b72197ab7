"""`python -m vae_runtime`: the command `vae-runtime`."""

import sys

from .cli.main import main

sys.exit(main())
