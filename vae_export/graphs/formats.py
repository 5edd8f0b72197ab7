"""Export both components in each format."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import ExportError
from ..understand.adapted import Adapted
from ..understand.state import release
from .graph import FORMATS, Graph, graph_of, quiet, reason_of
from .onnx_export import export_onnx
from .torch_formats import export_pt2, export_torchscript


def require_formats(names: Any) -> None:
    """Raise ExportError unless `names` is a collection of names from `FORMATS`."""
    listed = isinstance(names, Collection) and not isinstance(names, str)
    wrong = [name for name in names if name not in tuple(FORMATS)] if listed else [names]
    if wrong:
        raise ExportError(f"formats: expected some of {', '.join(FORMATS)}, got {wrong[0]!r:.99}")


def make_graphs(
    adapted: Adapted,
    formats: Sequence[str],
    folder: Path,
    *,
    require: Callable[[Graph], None] = lambda graph: None,
    progress: bool = False,
) -> list[Graph]:
    """Export both components in each format, encoder first, ONNX first.

    Args:
        adapted: the VAE's pure functions.
        formats: names out of `FORMATS`.
        folder: where the files are kept until the bundle is written.
        require: raises if a graph is wrong. For ONNX the older exporter is then tried.
        progress: print each step to stderr.

    Raises:
        ExportError: a format is unknown, PyTorch cannot export a component, or a graph breaks the contract (a random
            operator, a fixed batch, a dropped input) or fails `require`.
    """
    require_formats(formats)
    graphs = []
    for component in adapted.modules:
        for name, form in FORMATS.items():
            if name != "onnx" and name not in formats:
                continue
            if progress:
                print(f"exporting the {component} as {name}", file=sys.stderr, flush=True)
            path = folder / component / form.variant / form.file
            path.parent.mkdir(parents=True)
            with quiet(), torch.no_grad():
                if name == "onnx":
                    graphs.append(export_onnx(adapted, component, path, require))
                    if progress:
                        print("".join(f"  {line}\n" for line in graphs[-1].rewrites), end="", file=sys.stderr)
                    continue
                try:
                    exporter = (export_torchscript if name == "torchscript" else export_pt2)(adapted, component, path)
                except Exception as error:
                    raise ExportError(
                        f"{component}: PyTorch could not export it as {name}: {reason_of(error)}; leave this format "
                        "out of formats="
                    ) from error
            graph = graph_of(adapted, component, name, path, exporter)
            release(adapted.modules.values())
            try:
                require(graph)
            except ExportError as error:
                raise type(error)(f"{error}\n  leave this format out of formats=") from error
            graphs.append(graph)
    return graphs
