"""Export both components in each format."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vae_runtime.errors import error_line
from vae_runtime.manifest import COMPONENTS, Refusal

from ..errors import ExportError, ParityError
from ..progress import Progress
from ..understand.adapted import Adapted
from ..understand.state import release
from .graph import FORMATS, Graph, graph_of, quiet, reason_of
from .onnx_export import BothFailed, export_onnx
from .torch_formats import export_pt2, script_program, trace_module

# The formats beside ONNX that are made where possible when none is named.
_UNASKED = ("torchscript",)
# How each format beside ONNX is made: the tracer is the faster way, and torch.export takes more models.
_FURTHER: dict[str, dict[str, Callable[[Adapted, str, Path], None]]] = {
    "torchscript": {"torch.jit.trace": trace_module, "torch.jit.script(torch.export.export)": script_program},
    "pt2": {"torch.export.export": export_pt2},
}


def require_formats(names: Any) -> None:
    """Raise ExportError unless `names` is None or a collection of names from `FORMATS`."""
    if names is None:
        return
    listed = isinstance(names, Collection) and not isinstance(names, str)
    wrong = [name for name in names if name not in tuple(FORMATS)] if listed else [names]
    if wrong:
        raise ExportError(f"formats: expected some of {', '.join(FORMATS)}, got {wrong[0]!r:.99}")


def made_formats(formats: Sequence[str] | None) -> list[str]:
    """Return the formats that `make_graphs` makes for this argument, ONNX first."""
    return [name for name in FORMATS if name == "onnx" or name in (_UNASKED if formats is None else formats)]


def make_graphs(
    adapted: Adapted,
    formats: Sequence[str] | None,
    folder: Path,
    *,
    require: Callable[[Graph], None] = lambda graph: None,
    progress: Progress | None = None,
) -> tuple[list[Graph], list[Refusal]]:
    """Export both components in each format, encoder first, ONNX first.

    A component whose graphs cannot have a free batch is exported for one row. `require` proves it row by row.

    Args:
        adapted: the VAE's pure functions.
        formats: names out of `FORMATS`; None stands for ONNX, and TorchScript for the components that it can hold.
        folder: where the files are kept until the bundle is written.
        require: raises if a graph is wrong. The next way to make the format is then tried.
        progress: is told of each step.

    Returns:
        The graphs, and the reasons why TorchScript was left out.

    Raises:
        ExportError: a format is unknown, PyTorch cannot export a component, or a graph breaks the contract (a random
            operator, a fixed batch, a dropped input) or fails `require`.
    """
    require_formats(formats)
    progress = progress or Progress()
    graphs: list[Graph] = []
    refused: list[Refusal] = []
    for component in adapted.modules:
        for name in made_formats(formats):
            form = FORMATS[name]
            progress.step(name, f"exporting the {component} as {name}")
            path = folder / component / form.variant / form.file
            path.parent.mkdir(parents=True)
            if name == "onnx":
                adapted, graph = _onnx(adapted, component, path, require)
                graphs.append(graph)
                progress.note("\n".join(f"  {line}" for line in graph.rewrites))
                continue
            try:
                graphs.append(_further(adapted, component, name, path, require))
            except ExportError as error:
                if formats is not None:
                    raise type(error)(f"{error}; leave this format out of formats=") from error
                place = f"{component}/{form.variant}: "
                refused.append(Refusal(component, form.variant, error_line(error).removeprefix(place)))
                print(f"left out: {place}{refused[-1].reason}", file=sys.stderr, flush=True)
    return graphs, refused


def _onnx(
    adapted: Adapted, component: str, path: Path, require: Callable[[Graph], None]
) -> tuple[Adapted, Graph]:  # fmt: skip
    """Return the ONNX graph of a component, and the functions, for one row where no graph has a free batch."""

    def made(functions: Adapted) -> Graph:
        with quiet(), torch.no_grad():
            return export_onnx(functions, component, path, require)

    try:
        return adapted, made(adapted)
    except (BothFailed, ParityError) as error:
        of_one = _of_one_row(adapted, component)
        try:
            graph = made(of_one)
        except ExportError:
            raise error from None
        print(f"{component}: exported for one row, and run row by row: {error_line(error)}", file=sys.stderr)
        return of_one, graph


def _of_one_row(adapted: Adapted, component: str) -> Adapted:
    """Return the same functions, where graphs of this component take a batch of one."""
    named = {*adapted.signature.batch_of_one, component}
    signature = replace(adapted.signature, batch_of_one=tuple(name for name in COMPONENTS if name in named))
    return replace(adapted, signature=signature)


def _further(adapted: Adapted, component: str, name: str, path: Path, require: Callable[[Graph], None]) -> Graph:
    """Return the graph of a component in a format other than ONNX, made in the first of several ways that works."""
    failures: dict[str, Exception] = {}
    for exporter, make in _FURTHER[name].items():
        try:
            with quiet(), torch.no_grad():
                make(adapted, component, path)
            graph = graph_of(adapted, component, name, path, exporter)
            release(adapted.modules.values())
            require(graph)
            return graph
        except Exception as error:
            failures[exporter] = error
    last = list(failures.values())[-1]
    if all(isinstance(failure, ParityError) for failure in failures.values()):
        raise last
    reasons = {exporter: reason_of(failure) for exporter, failure in failures.items()}
    raise ExportError(
        f"{component}: PyTorch could not export it as {name}: "
        + (reason_of(last) if len(reasons) == 1 else "; ".join(f"{e}: {reason}" for e, reason in reasons.items()))
    ) from last
