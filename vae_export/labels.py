"""Name and describe a bundle, and list its files with their sizes and sums."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vae_runtime.bundle import MANIFEST
from vae_runtime.document import PACKAGE_VERSION, dump, parse
from vae_runtime.errors import InputError
from vae_runtime.manifest import Manifest
from vae_runtime.places import format_sums

from .graphs.graph import Graph
from .parity.answers import GoldenVectors


@dataclass(frozen=True)
class Labels:
    """How the maker of a bundle names and describes it; None takes the source's own."""

    name: str | None = None
    description: str | None = None
    license: str | None = None
    version: str | None = None

    def __post_init__(self) -> None:
        for field, text in asdict(self).items():
            if text is not None and not text.isprintable():
                raise InputError(f"{field}: expected printable text, got {text!r}")
        if self.version is not None and not PACKAGE_VERSION.matches(self.version):
            raise InputError(f"version: expected {PACKAGE_VERSION.expected}, got {self.version!r:.99}")


def package_name(name: str) -> str:
    """Return a bundle's name as ONNX Runtime's packages may be called."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "vae"


def graph_files(
    manifest: Manifest, golden: GoldenVectors, graphs: Sequence[Graph], further: Mapping[str, bytes]
) -> dict[str, bytes | Path]:  # fmt: skip
    """Return the manifest, the golden vectors, the graphs and further files of a bundle by their path in it."""
    document = dump(manifest)
    # Parsed before it is written: a reader must accept it.
    parse(document)
    files: dict[str, bytes | Path] = {MANIFEST: document.encode(), golden.record.file: golden.content, **further}
    for graph in graphs:
        folder = f"{graph.component}/{graph.variant}"
        files[f"{folder}/{graph.file}"] = graph.source
        files |= {f"{folder}/{name}": content for name, content in graph.data.items()}
        if graph.stream is not None and graph.stream.file is not None and graph.chunks is not None:
            files[f"{folder}/{graph.stream.file}"] = graph.chunks
    return files


def file_sizes(files: Mapping[str, bytes | Path]) -> dict[str, int]:
    """The bytes of each file by its path."""
    return {
        path: len(content) if isinstance(content, bytes) else content.stat().st_size for path, content in files.items()
    }


def list_sums(files: Mapping[str, bytes | Path]) -> bytes:
    """Return SHA256SUMS, with one file at a time in memory."""
    return b"".join(
        format_sums([(path, content if isinstance(content, bytes) else content.read_bytes())])
        for path, content in sorted(files.items())
    )
