"""Graphs as ONNX Runtime prepares them to run, in files that several processes map into their memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import NamedTuple

from .devices import CPU, Device, open_on, session_options
from .errors import BundleError, VaeError, error_line
from .graph_check import check_graph

# Bytes of a graph from which on it is worth it: a file is written, and read by each process.
_MIN_BYTES = 2**24


class Prepared(NamedTuple):
    """A graph that is prepared: its path, the SHA-256 of each file by its path, and the operators before that."""

    path: str
    sums: Mapping[str, str]
    operators: set[bytes]

    def require_intact(self) -> None:
        """Hash every file.

        Raises:
            BundleError: one is missing, or was altered since it was written.
        """
        for path, expected in self.sums.items():
            actual = _hash(path)
            if actual != expected:
                raise BundleError(f"{path}: expected the SHA-256 {expected}, got {actual}; run the command again")


def prepare(content: bytes, data: Mapping[str, bytes], place: str, folder: str, name: str) -> Prepared | None:
    """Write a graph with its kernels chosen and its weights packed for them, as the CPU of this machine runs it.

    It is loaded in a tenth of the time, and its weights are mapped from the file, so that processes share them.

    Args:
        content: the ONNX file's bytes.
        data: the bytes of the files of its weights by name.
        place: what to call the graph in errors.
        folder: an empty folder that no other user can write to.
        name: the name of the file.

    Returns:
        The prepared graph; None if the graph is small, or could not be written, as where the folder has no room.

    Raises:
        BundleError: the graph has a structure that is refused.
    """
    if len(content) + sum(map(len, data.values())) < _MIN_BYTES:
        return None
    operators = check_graph(content, place, data, 0)
    path = os.path.join(folder, f"{name}.onnx")
    weights = f"{path}.data"
    options = session_options(place, 1, data)
    options.optimized_model_filepath = path
    prefix = "session.optimized_model_external_initializers"
    options.add_session_config_entry(f"{prefix}_file_name", os.path.basename(weights))
    options.add_session_config_entry(f"{prefix}_min_size_in_bytes", "1024")
    options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
    try:
        open_on(Device("cpu", CPU, {}), content, options, place)
        sums = {each: _hash(each) for each in (path, weights) if os.path.exists(each)}
        return Prepared(path, sums, operators)
    except VaeError:
        # A graph that fails for another reason fails again where it is loaded, with its message.
        for each in (path, weights):
            if os.path.exists(each):
                os.unlink(each)
        return None


def _hash(path: str) -> str:
    import mmap  # not needed on the start-up path

    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return hashlib.sha256(mapped).hexdigest()
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: cannot be read: {error_line(error)}; run the command again") from None
