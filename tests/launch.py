"""Start a command in several processes, as torchrun does."""

import os
import subprocess
import sys


def torchrun_command(processes=2):
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]


def launched(*arguments, processes=2, **variables):
    """The finished torchrun of a script, or of a module behind -m, with these variables of the environment."""
    return subprocess.run(
        [*torchrun_command(processes), *arguments], env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
