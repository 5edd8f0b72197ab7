"""Run a verb in a process of its own with limits on memory and time: what `--untrusted` asks for."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence

from ..errors import VaeError

# Bytes of address space, of which ONNX Runtime and numpy reserve about one GiB, and seconds of the processor.
MEMORY, SECONDS = 4 * 2**30, 60

_CHILD = "import sys; from vae_runtime.cli.main import limited_main; sys.exit(limited_main(sys.argv[1:]))"


def run_limited(argv: Sequence[str]) -> int:
    """Run the command `vae-runtime` with these arguments in a process with limits; return its exit status.

    Raises:
        VaeError: the system has no such limits, or the process was ended by one of them.
    """
    if not sys.platform.startswith("linux"):
        raise VaeError(f"untrusted: expected Linux, got {sys.platform}; use a virtual machine or a container instead")
    with subprocess.Popen([sys.executable, "-c", _CHILD, *argv]) as process:
        try:
            status = process.wait()
        except KeyboardInterrupt:
            # A terminal sends Ctrl-C to both processes, but SIGTERM comes to this one alone.
            process.terminate()
            raise
    if status >= 0:
        return status
    if -status in (signal.SIGXCPU, signal.SIGKILL):
        reason = f"it took more than {SECONDS} seconds of the processor, or the system was out of memory"
    elif -status in (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS):
        reason = f"it crashed ({signal.Signals(-status).name}), probably at the limit of {MEMORY >> 30} GiB of memory"
    else:
        reason = f"it was ended by {signal.Signals(-status).name}"
    raise VaeError(f"untrusted: the process with the bundle was stopped: {reason}; compute fewer at a time")


def set_limits() -> None:
    """Limit this process and those that it starts."""
    import resource

    for what, limit in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CPU, SECONDS), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(what)
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(what, (limit, limit))
