"""One graph file, whatever its format: what it is, how it is loaded and run, and when two agree."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_runtime.devices import resolve_device
from vae_runtime.session import Session

from ..errors import ExportError, ParityError
from ..understand.adapted import Adapted

Array = NDArray[Any]
# A loaded graph: arrays in the order of its inputs to arrays in the order of its outputs.
Run = Callable[[Sequence[Array]], list[Array]]
OPSET = 18
# The first version of ONNX's file format with opset 18, so that the widest range of ONNX Runtimes reads it.
IR_VERSION = 8
_SAME = 1e-5


@dataclass(frozen=True, eq=False)
class Graph:
    """One network file in the making: which component, in which format, and its content, in memory or on disk.

    `inputs` and `outputs` are the component's, in order; `data` holds files beside it, with its weights, by name;
    `rewrites` says in lines how the graph differs from what PyTorch's exporter gave.
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

    @property
    def content(self) -> bytes:
        """The file's bytes."""
        return bytes_of(self.source)


def bytes_of(source: bytes | Path) -> bytes:
    """The bytes of a file that is in memory or on disk."""
    return source if isinstance(source, bytes) else source.read_bytes()


@dataclass(frozen=True)
class Format:
    """The variant that a format is in a bundle, the program that runs it, and the name of its file."""

    variant: str
    executor: str
    file: str


# What `--formats` takes. ONNX is always made; the order is that of declaration in the manifest.
FORMATS = {
    "onnx": Format("fp32", "ort", "model.onnx"),
    "torchscript": Format("torchscript", "torchscript", "model.pt"),
    "pt2": Format("pt2", "torch_export", "model.pt2"),
}


def graph_of(
    adapted: Adapted, component: str, name: str, path: Path, exporter: str, data: Mapping[str, Path] | None = None
) -> Graph:
    """The graph of a component that was written to a path in a format."""
    form = FORMATS[name]
    inputs = tuple(tensor.name for tensor in adapted.signature.inputs(component))
    outputs = adapted.outputs(component)
    return Graph(component, form.variant, form.executor, form.file, path, inputs, outputs, exporter, data or {})


def traced_inputs(adapted: Adapted, component: str) -> tuple[Tensor, ...]:
    """The inputs to trace with: two rows, since a size of 1 is special to compilers."""
    return tuple(tensor[:2].contiguous() for tensor in adapted.given(component))


def axis_names(adapted: Adapted, component: str) -> list[dict[int, str]]:
    """Of each input, the names of its dynamic axes, the batch included."""
    latents = {latent.name: latent.axes for latent in adapted.signature.latents}
    latents |= {latent.posterior.noise: latent.axes for latent in adapted.signature.latents if latent.posterior.noise}
    axes = {adapted.signature.observation.name: adapted.signature.observation.axes, **latents}
    return [
        {0: "batch", **{index + 1: axes[tensor.name][index] for index in sorted(tensor.dynamic)}}
        for tensor in adapted.signature.inputs(component)
    ]


def require_same(names: Sequence[str], expected: Sequence[Array], found: Sequence[Array]) -> None:
    """Raise unless two graphs' answers agree: to 1e-5 of the larger of 1 and the largest magnitude.

    Raises:
        ParityError: they do not.
    """
    for name, one, other in zip(names, expected, found, strict=True):
        allowed = _SAME * float(np.max(np.abs(one), where=np.isfinite(one), initial=1.0))
        same = one.shape == other.shape and bool(np.allclose(one, other, rtol=0, atol=allowed, equal_nan=True))
        if not same:
            got = float(np.max(np.abs(one - other))) if one.shape == other.shape else list(other.shape)
            wanted = f"differences of at most {allowed:.1e}" if one.shape == other.shape else list(one.shape)
            raise ParityError(f"{name}: {wanted} from the graph before are expected, got {got}")


def open_graph(graph: Graph) -> Run:
    """Load a graph with the program it is for.

    Raises:
        VaeError: it cannot be loaded; calling what is returned raises VaeError where it cannot be run.
    """
    place = f"{graph.component}/{graph.variant}"
    if graph.executor == "ort":
        data = {name: bytes_of(source) for name, source in graph.data.items()}
        session = Session(graph.source, place, resolve_device("cpu"), data=data)
        return lambda given: session.run(list(graph.outputs), dict(zip(graph.inputs, given, strict=True)))
    return _EXECUTORS[graph.executor](graph.source)


def _loud(load: Callable[[Any], Any]) -> Callable[[bytes | Path], Run]:
    """A program's loader, with whatever goes wrong as an ExportError."""

    def open_loud(source: bytes | Path) -> Run:
        try:
            with quiet(), torch.no_grad():
                module = load(io.BytesIO(source) if isinstance(source, bytes) else source)
        except Exception as error:
            raise ExportError(f"the graph cannot be loaded: {reason_of(error)}") from error

        def run(given: Sequence[Array]) -> list[Array]:
            try:
                with quiet(), torch.no_grad():
                    outputs = module(*(torch.from_numpy(np.ascontiguousarray(array)) for array in given))
            except Exception as error:
                raise ExportError(f"the graph cannot be run: {reason_of(error)}") from error
            return [output.numpy() for output in ([outputs] if isinstance(outputs, Tensor) else outputs)]

        return run

    return open_loud


_EXECUTORS = {
    "torchscript": _loud(torch.jit.load),
    "torch_export": _loud(lambda file: torch.export.load(file).module()),
}
# The programs, beside ONNX Runtime, that this package runs graphs with.
EXECUTORS = tuple(_EXECUTORS)


def chain_of(error: BaseException | None) -> str:
    """What an error and all its causes say."""
    said = []
    while error is not None:
        said.append(f"{type(error).__name__}: {error}")
        error = error.__cause__ or error.__context__
    return "\n".join(said)


def reason_of(error: BaseException) -> str:
    """What went wrong, in a line: the cause that PyTorch found, rather than its advice about it."""
    text = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
    # TorchScript tells where first, then what.
    return text if len(text) <= 300 else f"{text[:100]} … {text[-200:]}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without PyTorch's notes on its own internals, deprecations and absent packages: the user cannot act on them."""
    logs = [logging.getLogger(name) for name in ("torch.onnx", "torch.fx.experimental.symbolic_shapes")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    # The tracer prints the whole graph where it fails; what is wrong with it stands in the error.
    aside = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(aside), contextlib.redirect_stderr(aside):
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", category=FutureWarning)
            # Of names of axes, and of what a model keeps of its last call, which is put back afterwards.
            warnings.filterwarnings("ignore", category=UserWarning)
            # Of sizes, mostly; that a graph works at sizes that were not traced is proven afterwards.
            warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
