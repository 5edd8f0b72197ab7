"""Limits of the system, for what a test runs inside of them."""

import contextlib
import resource


@contextlib.contextmanager
def largest_file(size):
    """A limit of the system on the size of any file that is written, as a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
