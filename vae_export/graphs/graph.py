"""One graph file in any format: its record, how to load and run it, and a comparison of two graphs' answers."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vae_runtime.devices import resolve_device
from vae_runtime.errors import error_line
from vae_runtime.session import Session

from ..errors import ExportError, ParityError

# Graphs that exist already are adopted without PyTorch.
if TYPE_CHECKING:
    from torch import Tensor

    from vae_runtime.chunks import Stream

    from ..understand.adapted import Adapted

Array = NDArray[Any]
# Runs a loaded graph: takes arrays in the order of its inputs, returns arrays in the order of its outputs.
Run = Callable[[Sequence[Array]], list[Array]]
OPSET = 18
# The first version of ONNX's file format with opset 18: the widest range of ONNX Runtime releases reads it.
IR_VERSION = 8
# The largest difference between two graphs' answers, as a share of the magnitude.
_MAX_DIFFERENCE = 1e-5


@dataclass(frozen=True, eq=False)
class Graph:
    """The graph file of one component in one format, before the bundle is written.

    `source` is the file's content or its path. `inputs` and `outputs` are the component's, in order. `data` maps the
    names of separate weight files to their content or paths. `rewrites` lists how the graph differs from the one that
    PyTorch's exporter wrote. A graph with a `batch_of_one` takes one row, and a larger batch runs row by row. `stream`
    says whether the component takes latents in chunks, by the graph in `chunks`.
    """

    component: str
    variant: str
    executor: str
    file: str
    source: bytes | Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    exporter: str | None = None
    data: Mapping[str, bytes | Path] = field(default_factory=dict)
    rewrites: tuple[str, ...] = ()
    batch_of_one: bool = False
    stream: Stream | None = None
    chunks: bytes | None = None

    @property
    def content(self) -> bytes:
        """The file's bytes."""
        return bytes_of(self.source)


def bytes_of(source: bytes | Path) -> bytes:
    """Return the bytes of a file that is in memory or on disk."""
    return source if isinstance(source, bytes) else source.read_bytes()


@dataclass(frozen=True)
class Format:
    """A format's variant name in a bundle, the program that runs it, and its file name."""

    variant: str
    executor: str
    file: str


# The values of `--formats`, in the order of the manifest. ONNX is always exported.
FORMATS = {
    "onnx": Format("fp32", "ort", "model.onnx"),
    "torchscript": Format("torchscript", "torchscript", "model.pt"),
    "pt2": Format("pt2", "torch_export", "model.pt2"),
}


def graph_of(
    adapted: Adapted, component: str, name: str, path: Path, exporter: str, data: Mapping[str, Path] | None = None
) -> Graph:
    """Return the graph of a component that was written to `path` in the format `name`."""
    form = FORMATS[name]
    inputs = tuple(tensor.name for tensor in adapted.signature.inputs(component))
    outputs = adapted.outputs(component)
    one = component in adapted.signature.batch_of_one
    return Graph(
        component, form.variant, form.executor, form.file, path, inputs, outputs, exporter, data or {}, batch_of_one=one
    )


def traced_inputs(adapted: Adapted, component: str) -> tuple[Tensor, ...]:
    """Return the inputs to trace with: two rows, because compilers treat a size of 1 specially; or a batch of one."""
    rows = 1 if component in adapted.signature.batch_of_one else 2
    return tuple(tensor[:rows].contiguous() for tensor in adapted.given(component))


def axis_names(adapted: Adapted, component: str) -> list[dict[int, str]]:
    """Return each input's dynamic axes, the batch included unless it is one, as a mapping from index to name."""
    batch = {} if component in adapted.signature.batch_of_one else {0: "batch"}
    latents = {latent.name: latent.axes for latent in adapted.signature.latents}
    latents |= {latent.posterior.noise: latent.axes for latent in adapted.signature.latents if latent.posterior.noise}
    axes = {adapted.signature.observation.name: adapted.signature.observation.axes, **latents}
    return [
        {**batch, **{index + 1: axes[tensor.name][index] for index in sorted(tensor.dynamic)}}
        for tensor in adapted.signature.inputs(component)
    ]


def require_same(names: Sequence[str], expected: Sequence[Array], answers: Sequence[Array]) -> None:
    """Raise unless a changed graph's answers agree with the original's.

    Each output may differ by 1e-5 of its largest magnitude, or by 1e-5 where that is below 1.

    Raises:
        ParityError: a shape or a value differs.
    """
    for name, one, other in zip(names, expected, answers, strict=True):
        if one.shape != other.shape:
            raise ParityError(
                f"{name}: expected shape {list(one.shape)} of the original graph, got {list(other.shape)}"
            )
        allowed = _MAX_DIFFERENCE * float(np.max(np.abs(one), where=np.isfinite(one), initial=1.0))
        if not np.allclose(one, other, rtol=0, atol=allowed, equal_nan=True):
            difference = float(np.max(np.abs(one - other)))
            raise ParityError(
                f"{name}: expected differences of at most {allowed:.1e} from the original graph, got {difference}"
            )


def open_graph(graph: Graph, *, few_runs: bool = False) -> Run:
    """Load a graph with its program, and return a function that runs it, row by row if its batch is one.

    Args:
        graph: the graph.
        few_runs: leave TorchScript's graph as it is. Its program compiles it in the first runs, which take several
            times as long.

    Raises:
        VaeError: the graph cannot be loaded. The returned function raises VaeError if the graph cannot be run.
    """
    run = _open_onnx(graph) if graph.executor == "ort" else _EXECUTORS[graph.executor](graph.source)
    if few_runs and graph.executor == "torchscript":
        run = _as_written(run)
    return _by_rows(run) if graph.batch_of_one else run


def _open_onnx(graph: Graph) -> Run:
    data = {name: bytes_of(source) for name, source in graph.data.items()}
    session = Session(graph.source, f"{graph.component}/{graph.variant}", resolve_device("cpu"), data=data)
    return lambda arrays: session.run(list(graph.outputs), dict(zip(graph.inputs, arrays, strict=True)))


def _as_written(run: Run) -> Run:
    """Run TorchScript without its optimizations."""
    import torch

    def run_as_written(arrays: Sequence[Array]) -> list[Array]:
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            return run(arrays)

    return run_as_written


def _by_rows(run: Run) -> Run:
    """Run a graph of a batch of one for each row."""

    def run_rows(arrays: Sequence[Array]) -> list[Array]:
        rows = [run([array[row : row + 1] for array in arrays]) for row in range(len(arrays[0]))]
        return [np.concatenate(parts) for parts in zip(*rows, strict=True)]

    return run_rows


def _opener(load: Callable[[Any], Any]) -> Callable[[bytes | Path], Run]:
    """Wrap one of PyTorch's loaders so that every failure, to load or to run, is an ExportError."""

    def open_module(source: bytes | Path) -> Run:
        import torch

        try:
            with quiet(), torch.no_grad():
                module = load(io.BytesIO(source) if isinstance(source, bytes) else source)
        except Exception as error:
            raise ExportError(f"the graph cannot be loaded: {reason_of(error)}") from error

        def run(arrays: Sequence[Array]) -> list[Array]:
            try:
                with quiet(), torch.no_grad():
                    outputs = module(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))
            except Exception as error:
                raise ExportError(f"the graph cannot be run: {reason_of(error)}") from error
            return [output.numpy() for output in ([outputs] if isinstance(outputs, torch.Tensor) else outputs)]

        return run

    return open_module


def _load_torchscript(file: Any) -> Any:
    import torch

    return torch.jit.load(file)


def _load_exported(file: Any) -> Any:
    import torch

    return torch.export.load(file).module()


_EXECUTORS = {"torchscript": _opener(_load_torchscript), "torch_export": _opener(_load_exported)}
# The programs other than ONNX Runtime that run graphs here.
EXECUTORS = tuple(_EXECUTORS)


# Lines with which PyTorch's messages go on to stacks of calls, and to programs in its own notation.
_NO_REASON = re.compile(
    r"File \".*\", line \d|\.py\(\d+\): |^\s*graph\(|^\s*%\S+ [:=]|Traceback|[Ss]tack trace|[Uu]ser code"
    r"|^While executing|^The above exception|^The following|^Exported program|^class GraphModule"
)


# How PyTorch's exporter shows a node of a program.
_NODE = re.compile(r"node %\w+ : \[num_users=\d+\] = call_function\[target=([\w.]+)\]\(.*?\)\. See the stack trace.*")


def chain_of(error: BaseException | None) -> str:
    """Return the messages of an error and of all its causes, one a line."""
    messages = []
    while error is not None:
        messages.append(f"{type(error).__name__}: {error}")
        error = error.__cause__ or error.__context__
    return "\n".join(messages)


def reason_of(error: BaseException) -> str:
    """Return an error's reason in one line: the underlying cause, without the stacks and programs that PyTorch adds."""
    cause = error.__cause__ or error
    lines = str(cause).splitlines()
    kept = " ".join(takewhile(lambda line: not _NO_REASON.search(line), lines))
    # TorchScript says last what failed, after its own stack.
    last = lines[-1] if lines and re.match(r"\w+(Error|Exception): ", lines[-1]) else ""
    return _NODE.sub(r"\1", error_line(Exception(kept or last)) if kept or last else error_line(cause))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence PyTorch's notes on internals, deprecations and missing packages, which users cannot act on."""
    import torch

    # PyTorch sets the levels of many loggers one by one, so their common parent cannot silence them.
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    # When the tracer fails it prints the whole graph; the error itself has the reason.
    discarded = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(discarded), contextlib.redirect_stderr(discarded):
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", category=FutureWarning)
            # These concern axis names, and attributes that a model sets in a call and that are restored afterwards.
            warnings.filterwarnings("ignore", category=UserWarning)
            # Most of these concern sizes; the comparison with PyTorch proves a graph at sizes that were not traced.
            warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
            yield
    finally:
        logging.disable(disabled)
