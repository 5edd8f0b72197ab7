"""Pure functions → graph files: ONNX, TorchScript, and on request torch.export's .pt2."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vae_runtime.errors import VaeError
from vae_runtime.session import Session, resolve_device

from .adapt import Adapted
from .errors import ExportError

__all__ = ["FORMATS", "RUNNERS", "Graph", "make_graphs"]

Array = NDArray[np.float32]

OPSET = 18
# The first version of ONNX's file format with opset 18, so that the widest range of ONNX Runtimes reads it.
IR_VERSION = 8

_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}


@dataclass(frozen=True)
class Graph:
    """One network file in the making: which component, in which format, and its bytes."""

    component: str
    variant: str
    executor: str
    file: str
    content: bytes


@dataclass(frozen=True)
class _Format:
    variant: str
    executor: str
    file: str


# What `--formats` takes. ONNX is always made; the order is that of declaration in the manifest.
FORMATS = {
    "onnx": _Format("fp32", "ort", "model.onnx"),
    "torchscript": _Format("torchscript", "torchscript", "model.pt"),
    "pt2": _Format("pt2", "torch_export", "model.pt2"),
}


def make_graphs(adapted: Adapted, formats: Sequence[str]) -> list[Graph]:
    """Export both components in each format, encoder first, ONNX first.

    Args:
        adapted: the VAE's pure functions.
        formats: names out of `FORMATS`.

    Raises:
        ExportError: an unknown format, PyTorch could not export a component, or a graph breaks the contract (a random
            operator, a fixed batch, weights outside the file).
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise ExportError(f"formats: {', '.join(FORMATS)} are expected, got {unknown[0]!r}")
    make = {"onnx": _onnx, "torchscript": _torchscript, "pt2": _pt2}
    graphs = []
    for component in adapted.components:
        for name, form in FORMATS.items():
            if name == "onnx" or name in formats:
                with _quiet(), torch.no_grad():
                    try:
                        content = make[name](adapted, component)
                    except ExportError:
                        raise
                    except Exception as error:
                        raise ExportError(
                            f"{component}: PyTorch could not export it as {name}: {_reason(error)}"
                        ) from error
                graphs.append(Graph(component, form.variant, form.executor, form.file, content))
    return graphs


def _onnx(adapted: Adapted, component: str) -> bytes:
    module = adapted.components[component]
    program = torch.onnx.export(
        module,
        (adapted.example(component, 2),),
        dynamo=True,
        # A string, not torch.export.Dim: of a model that works at one batch size only, a Dim makes a fixed graph
        # without a word, the string raises.
        dynamic_shapes=({0: "batch"},),
        input_names=[adapted.inputs(component)],
        output_names=list(adapted.outputs(component)),
        opset_version=OPSET,
        external_data=False,
        verbose=False,
    )
    if program is None:
        raise ExportError(f"{component}: PyTorch gave no ONNX program")
    model = program.model_proto
    _strip(model)
    model.ir_version = IR_VERSION
    _check_contract(model, component)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    """The main graph, the functions, and what is nested in both: branches and bodies of loops."""
    waiting = [model.graph, *model.functions]
    while waiting:
        graph = waiting.pop()
        yield graph
        waiting += [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
        waiting += [nested for node in graph.node for attribute in node.attribute for nested in attribute.graphs]


def _strip(model: onnx.ModelProto) -> None:
    """Remove what the exporter notes about the source: stack traces, with this machine's paths, and class names."""
    noted: list[Any] = [model]
    for graph in _graphs(model):
        noted += [graph, *graph.node, *graph.value_info]
        if isinstance(graph, onnx.GraphProto):
            noted += [*graph.input, *graph.output, *graph.initializer]
    for part in noted:
        del part.metadata_props[:]
        part.doc_string = ""


def _check_contract(model: onnx.ModelProto, component: str) -> None:
    for node in (node for graph in _graphs(model) for node in graph.node):
        # A Dropout with its third input, the training mode, drops; without it, it does nothing.
        if node.op_type in _RANDOM or (node.op_type == "Dropout" and any(node.input[2:])):
            raise ExportError(
                f"{component}: node {node.name}: no random operator is allowed in a graph, got {node.op_type}; draw "
                "noise outside and pass it in"
            )
        if node.domain not in ("", "ai.onnx") and not any(f.domain == node.domain for f in model.functions):
            raise ExportError(f"{component}: node {node.name}: operators of ONNX are expected, got {node.domain}")
    for value in [*model.graph.input, *model.graph.output]:
        if not value.type.tensor_type.shape.dim[0].dim_param:
            raise ExportError(f"{component}: {value.name}: a dynamic batch axis is expected, got a fixed one")
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ExportError(f"{component}: {tensor.name}: weights inside the file are expected, got external data")


def _torchscript(adapted: Adapted, component: str) -> bytes:
    traced = torch.jit.trace(adapted.components[component], adapted.example(component, 2), check_trace=False)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    return _without_source_map(file.getvalue())


def _without_source_map(content: bytes) -> bytes:
    """A TorchScript archive without its debug records, which hold paths and lines of this machine's files."""
    reader = torch._C.PyTorchFileReader(io.BytesIO(content))
    file = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(file)
    for name in reader.get_all_records():
        # The writer makes the version and its own id itself.
        if not name.endswith(".debug_pkl") and name not in ("version", ".data/serialization_id", "byteorder"):
            record = reader.get_record(name)
            writer.write_record(name, record, len(record))
    writer.write_end_of_file()
    return file.getvalue()


def _pt2(adapted: Adapted, component: str) -> bytes:
    program = torch.export.export(
        adapted.components[component],
        (adapted.example(component, 2),),
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn"):
                    node.meta.pop(key, None)
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


def _run_ort(content: bytes, given: Array) -> list[Array]:
    session = Session(content, "graph", resolve_device("cpu"))
    (name,) = session.inputs
    return session.run(list(session.outputs), {name: given})


def _run_torchscript(content: bytes, given: Array) -> list[Array]:
    with _quiet(), torch.no_grad():
        module = torch.jit.load(io.BytesIO(content))
        return _arrays(module(torch.from_numpy(given)))


def _run_pt2(content: bytes, given: Array) -> list[Array]:
    with _quiet(), torch.no_grad():
        return _arrays(torch.export.load(io.BytesIO(content)).module()(torch.from_numpy(given)))


def _loud(run: Callable[[bytes, Array], list[Array]]) -> Callable[[bytes, Array], list[Array]]:
    """The same, with whatever goes wrong as an ExportError."""

    def run_loud(content: bytes, given: Array) -> list[Array]:
        try:
            return run(content, given)
        except VaeError:
            raise
        except Exception as error:
            raise ExportError(f"the graph cannot be run: {_reason(error)}") from error

    return run_loud


# How to run a graph of each executor: its file's content and its input to its outputs, in order.
RUNNERS = {"ort": _loud(_run_ort), "torchscript": _loud(_run_torchscript), "torch_export": _loud(_run_pt2)}


def run_module(module: nn.Module, given: Tensor) -> list[Tensor]:
    """A component's outputs from eager PyTorch, in order."""
    with torch.no_grad():
        outputs = module(given)
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def _reason(error: BaseException) -> str:
    """What went wrong, in a line: the cause that PyTorch found, rather than its advice about it."""
    text = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
    # TorchScript tells where first, then what.
    return text if len(text) <= 300 else f"{text[:100]} … {text[-200:]}"


def _arrays(outputs: Tensor | Sequence[Tensor]) -> list[Array]:
    return [output.numpy() for output in ([outputs] if isinstance(outputs, Tensor) else outputs)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without PyTorch's notes on its own internals, deprecations and absent packages: the user cannot act on them."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", category=FutureWarning)
            yield
    finally:
        log.setLevel(level)
