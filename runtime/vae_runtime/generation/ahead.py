"""Go through an iterator in a thread of its own, an item ahead of who takes the items."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Generic, TypeVar, cast

T = TypeVar("T")

# Items that exist at once: the one that was taken, the one that waits, and the one that is being made.
HELD = 3


class Ahead(Generic[T]):
    """The items of an iterator, made in a thread while the caller works with the item before.

    Leaving the `with` block ends the thread, after the item that it is making. An error of the iterator is raised where
    its item would have been taken.
    """

    def __init__(self, items: Iterator[T]) -> None:
        self.waited = 0.0
        """The seconds for which the caller has waited for items."""
        self._items = items
        self._left = threading.Event()
        # An item, or the error that ended the iterator, StopIteration in the end.
        self._made: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(1)
        # A daemon: a process that is told to end at once does not wait for a batch.
        self._thread = threading.Thread(target=self._make, daemon=True)

    def __enter__(self) -> Ahead[T]:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End the thread."""
        self._left.set()
        while self._thread.is_alive():
            # It may be waiting for room.
            try:
                self._made.get(timeout=0.05)
            except queue.Empty:
                continue

    def __iter__(self) -> Ahead[T]:
        """Return itself."""
        return self

    def __next__(self) -> T:
        """Wait for the next item."""
        began = time.perf_counter()
        item, error = self._made.get()
        self.waited += time.perf_counter() - began
        if error is not None:
            # Whoever asks again is answered again.
            self._made.put((None, error))
            raise error
        return cast("T", item)

    def _make(self) -> None:
        error: BaseException = StopIteration()
        try:
            for item in self._items:
                self._made.put((item, None))
                if self._left.is_set():
                    return
        except BaseException as raised:
            # It is raised again where its item would have been taken.
            error = raised
        self._made.put((None, error))
