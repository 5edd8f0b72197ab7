"""A process that answers lines of JSON with lines of JSON, and is left waiting in between."""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vae_runtime.errors import VaeError, one_line


class Died(VaeError):
    """A process ended, gave up or did not answer in time; the message says which, with its last line."""


class Process:
    """One worker. Its stderr is kept, for the reason why it ended."""

    def __init__(self, command: Sequence[str], folder: Path, environment: Mapping[str, str], patience: float = 60):
        """Start it and wait until it is ready.

        Raises:
            Died: it is not.
        """
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            command, cwd=folder, env=dict(environment), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._stderr, bufsize=0,
        )  # fmt: skip
        self._rest = b""
        try:
            answer = self.answer(patience)
            if "error" in answer:
                raise Died(answer["error"])
        except Died:
            self.close()
            raise

    def tell(self, order: Mapping[str, Any]) -> None:
        """Send an order without waiting for its answer.

        Raises:
            Died: the process has ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
        except OSError:
            raise Died(self._last_words()) from None

    def answer(self, patience: float) -> dict[str, Any]:
        """Return the answer to the order that was sent, within some seconds.

        Raises:
            Died: there is none.
        """
        assert self._process.stdout is not None
        out = self._process.stdout.fileno()
        end = time.monotonic() + patience
        while b"\n" not in self._rest:
            if not select.select([out], [], [], max(0.0, end - time.monotonic()))[0]:
                self._process.kill()
                raise Died(f"no answer within {patience:g} seconds")
            part = os.read(out, 2**16)
            if not part:
                raise Died(self._last_words())
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:
            self._process.kill()
            raise Died(f"expected a line of JSON, got {one_line(line[:80].decode(errors='replace'))}") from None
        return answer

    def ask(self, patience: float = 600, **order: Any) -> dict[str, Any]:
        """Send an order and wait for its answer.

        Raises:
            Died: there is none.
            VaeError: the answer is an error.
        """
        self.tell(order)
        answer = self.answer(patience)
        if "error" in answer:
            raise VaeError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.kill()
        self._process.wait()
        self._stderr.close()

    def _last_words(self) -> str:
        status = self._process.wait()
        self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, self._stderr.tell() - 4000))
        lines = self._stderr.read().decode(errors="replace").strip().splitlines() or ["nothing on stderr"]
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        return f"the process ended ({how}): {one_line(lines[-1])[:200]}"
