"""Keep what libraries print off standard output, in any number of threads."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import IO

_lock = threading.Lock()


@contextlib.contextmanager
def printing_to(stream: IO[str]) -> Iterator[None]:
    """Let Python's standard output go to another stream. One thread at a time: two would restore each other's."""
    with _lock, contextlib.redirect_stdout(stream):
        yield
