"""Enter a command so that Ctrl-C ends it in order while its modules are still imported."""

import sys


def enter(module: str) -> int:
    """Run the function `main` of a module, and return its exit status; 130 where Ctrl-C interrupts the import."""
    try:
        from importlib import import_module

        status: int = import_module(module).main()
        return status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
