"""Pure functions → graph files: ONNX, TorchScript, and on request torch.export's .pt2."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxscript.optimizer
import torch
from numpy.typing import NDArray
from onnx.external_data_helper import convert_model_to_external_data
from torch import Tensor

from vae_runtime.devices import resolve_device
from vae_runtime.manifest import TensorSpec
from vae_runtime.session import Session

from ..errors import ExportError, ParityError
from ..understand.adapted import Adapted, values_read
from ..understand.state import release
from .rewrites import rewritten

__all__ = ["EXECUTORS", "FORMATS", "IR_VERSION", "OPSET", "Graph", "Run", "make_graphs", "open_graph", "require_same"]

Array = NDArray[Any]
# A loaded graph: arrays in the order of its inputs to arrays in the order of its outputs.
Run = Callable[[Sequence[Array]], list[Array]]

OPSET = 18
# The first version of ONNX's file format with opset 18, so that the widest range of ONNX Runtimes reads it.
IR_VERSION = 8
# What one protobuf message, and so one ONNX file, can hold is 2 GiB; the graph itself takes some of it.
_INLINE = 2**31 - 2**24

# Rows that a rewritten graph is held against the plain one on, and by how much of the magnitude it may differ.
_ROWS = 4
_SAME = 1e-5

_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
_FROZEN = (
    "; a size that should be dynamic is frozen: use x.shape as it is, not int() of it, and -1 or x.shape[0] for the "
    "batch; or leave the axis out of dynamic="
)
# What PyTorch's exporter says where it cannot follow a branch on the values of a tensor.
_DATA_DEPENDENT = ("data-dependent", "DataDependent", "Could not extract specialized integer", "unbacked")


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
        return _bytes_of(self.source)


def _bytes_of(source: bytes | Path) -> bytes:
    return source if isinstance(source, bytes) else source.read_bytes()


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
        require: raises where a graph is not what it should be. Of ONNX the older exporter then has its turn.
        progress: say on stderr what is being made.

    Raises:
        ExportError: an unknown format, PyTorch could not export a component, or a graph breaks the contract (a random
            operator, a fixed batch, an input that was dropped) or what is required of it.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise ExportError(f"formats: {', '.join(FORMATS)} are expected, got {unknown[0]!r}")
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
                    graphs.append(_onnx(adapted, component, path, require))
                    if progress:
                        print("".join(f"  {line}\n" for line in graphs[-1].rewrites), end="", file=sys.stderr)
                    continue
                try:
                    exporter = (_torchscript if name == "torchscript" else _pt2)(adapted, component, path)
                except Exception as error:
                    raise ExportError(
                        f"{component}: PyTorch could not export it as {name}: {_reason(error)}; leave this format out "
                        "with formats="
                    ) from error
            graph = _graph(adapted, component, name, path, exporter)
            release(adapted.modules.values())
            try:
                require(graph)
            except ExportError as error:
                raise type(error)(f"{error}\n  leave this format out with formats=") from error
            graphs.append(graph)
    return graphs


def _graph(
    adapted: Adapted, component: str, name: str, path: Path, exporter: str, data: Mapping[str, Path] | None = None
) -> Graph:
    form = FORMATS[name]
    inputs = tuple(tensor.name for tensor in adapted.signature.inputs(component))
    outputs = adapted.outputs(component)
    return Graph(component, form.variant, form.executor, form.file, path, inputs, outputs, exporter, data or {})


def _traced(adapted: Adapted, component: str) -> tuple[Tensor, ...]:
    """The inputs to trace with: two rows, since a size of 1 is special to compilers."""
    return tuple(tensor[:2].contiguous() for tensor in adapted.given(component))


def _names(adapted: Adapted, component: str) -> list[dict[int, str]]:
    """Of each input, the names of its dynamic axes, the batch included."""
    latents = {latent.name: latent.axes for latent in adapted.signature.latents}
    latents |= {latent.posterior.noise: latent.axes for latent in adapted.signature.latents if latent.posterior.noise}
    axes = {adapted.signature.observation.name: adapted.signature.observation.axes, **latents}
    return [
        {0: "batch", **{index + 1: axes[tensor.name][index] for index in sorted(tensor.dynamic)}}
        for tensor in adapted.signature.inputs(component)
    ]


def _onnx(adapted: Adapted, component: str, path: Path, require: Callable[[Graph], None]) -> Graph:
    """By PyTorch's exporter; by its predecessor where that fails for another reason than the model's own doing."""
    failures: list[Exception] = []
    for exporter, make in _EXPORTERS.items():
        try:
            model = make(adapted, component)
            _check_contract(model, component, adapted.signature.inputs(component))
            _declare_shapes(model, adapted.signature.outputs(component))
            said = f"torch.onnx.export({exporter})"
            changed, rewrites = rewritten(model) if _weight_bytes(model) < _INLINE else (model, ())
            data = _write(model, path)
            graph = _graph(adapted, component, "onnx", path, said, data)
            del model
            release(adapted.modules.values())
            if rewrites:
                graph = _faster(adapted, graph, changed, rewrites, require)
            del changed
            if graph.source == path:
                require(graph)
            release(adapted.modules.values())
            return graph
        except Exception as error:
            failures.append(error)
            if len(failures) == 1:
                _refuse_branches(adapted, component, error)
    first, last = failures[0], failures[-1]
    if all(isinstance(failure, ParityError) for failure in failures):
        raise first
    raise ExportError(
        f"{component}: neither of PyTorch's exporters takes it; dynamo: {_reason(first)}; legacy: {_reason(last)}"
        + (_FROZEN if "static shape" in _chain(first) or "specialized" in _chain(first) else "")
    ) from last


def _faster(
    adapted: Adapted,
    plain: Graph,
    changed: onnx.ModelProto,
    rewrites: tuple[str, ...],
    require: Callable[[Graph], None],
) -> Graph:
    """The rewritten graph, held against the plain one and against what is required; the plain one where it fails."""
    assert isinstance(plain.source, Path)
    path = plain.source.with_name("rewritten.onnx")
    try:
        _write(changed, path)
        graph = replace(plain, source=path, rewrites=rewrites)
        given = [tensor[:_ROWS].numpy() for tensor in adapted.given(plain.component)]
        require_same(plain.outputs, open_graph(plain)(given), open_graph(graph)(given))
        require(graph)
    except Exception as error:
        return replace(plain, rewrites=(f"left as exported, since the rewritten graph fails: {_reason(error)}",))
    return graph


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


def _refuse_branches(adapted: Adapted, component: str, error: Exception) -> None:
    """Raise where an export failed on a model that branches on values: the older exporter would freeze one side."""
    said = _chain(error)
    try:
        values = values_read(adapted, component)
    except Exception:
        # What fails in PyTorch itself is told by the error at hand.
        values = []
    if values or any(sign in said for sign in _DATA_DEPENDENT):
        where = f" at {values[0]}" if values else ""
        raise ExportError(
            f"{component}: a Python branch or loop depends on the values of a tensor{where}, which no graph follows; "
            "compute both sides and choose with torch.where"
        ) from error


def _weight_bytes(model: onnx.ModelProto) -> int:
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def _write(model: onnx.ModelProto, path: Path) -> dict[str, Path]:
    """Write the file; weights that are too large for it go to another one beside it."""
    if _weight_bytes(model) < _INLINE:
        path.write_bytes(model.SerializeToString(deterministic=True))
        model.Clear()
        # By its path: a model in memory would be written once more to be checked.
        onnx.checker.check_model(path, full_check=True)
        return {}
    name = f"{path.name}.data"
    convert_model_to_external_data(model, all_tensors_to_one_file=True, location=name, size_threshold=1024)
    onnx.save_model(model, path)
    return {name: path.with_name(name)}


def _dynamo(adapted: Adapted, component: str) -> onnx.ModelProto:
    program = torch.onnx.export(
        adapted.modules[component],
        _traced(adapted, component),
        dynamo=True,
        # Strings, not torch.export.Dim: of a model that works at one batch size only, a Dim makes a fixed graph
        # without a word, the string raises.
        dynamic_shapes={"tensors": tuple(_names(adapted, component))},
        input_names=[tensor.name for tensor in adapted.signature.inputs(component)],
        output_names=list(adapted.outputs(component)),
        opset_version=OPSET,
        external_data=False,
        # Its optimiser takes an addition of 1e-10 for one of 0: log(x + 1e-10) is then infinite at 0, and a comparison
        # would have to come upon it. Constants are folded below, which changes no number.
        optimize=False,
        verbose=False,
    )
    if program is None:
        raise ExportError(f"{component}: PyTorch gave no ONNX program")
    onnxscript.optimizer.fold_constants(program.model)
    onnxscript.optimizer.remove_unused_nodes(program.model)
    model = program.model_proto
    _strip(model)
    model.ir_version = IR_VERSION
    return model


def _legacy(adapted: Adapted, component: str) -> onnx.ModelProto:
    inputs = [tensor.name for tensor in adapted.signature.inputs(component)]
    outputs = adapted.outputs(component)
    axes: dict[str, dict[int, str]] = dict(zip(inputs, _names(adapted, component), strict=True))
    for tensor in adapted.signature.outputs(component):
        axes[tensor.name] = {
            0: "batch",
            **{index + 1: f"{tensor.name}_{index + 1}" for index in sorted(tensor.dynamic)},
        }
    file = io.BytesIO()
    torch.onnx.export(
        adapted.modules[component],
        _traced(adapted, component),
        file,  # type: ignore[arg-type]
        dynamo=False,
        dynamic_axes=axes,
        input_names=inputs,
        output_names=list(outputs),
        opset_version=OPSET,
        do_constant_folding=True,
        verbose=False,
    )
    model = onnx.load_model_from_string(file.getvalue())
    _strip(model)
    model.ir_version = IR_VERSION
    return model


_EXPORTERS: dict[str, Callable[[Adapted, str], onnx.ModelProto]] = {
    "dynamo=True": _dynamo,
    "dynamo=False": _legacy,
}


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


def _check_contract(model: onnx.ModelProto, component: str, inputs: Sequence[TensorSpec]) -> None:
    for node in (node for graph in _graphs(model) for node in graph.node):
        # A Dropout with its third input, the training mode, drops; without it, it does nothing.
        if node.op_type in _RANDOM or (node.op_type == "Dropout" and any(node.input[2:])):
            raise ExportError(
                f"{component}: node {node.name}: no random operator is allowed in a graph, got {node.op_type}; draw "
                "noise outside and pass it in"
            )
        if node.domain not in ("", "ai.onnx") and not any(f.domain == node.domain for f in model.functions):
            raise ExportError(f"{component}: node {node.name}: operators of ONNX are expected, got {node.domain}")
    found = {value.name: value.type.tensor_type.shape.dim for value in model.graph.input}
    for tensor in inputs:
        if tensor.name not in found:
            raise ExportError(
                f"{component}: {tensor.name}: this input is expected in the graph, the exporter dropped it"
            )
        for axis in (0, *(index + 1 for index in sorted(tensor.dynamic))):
            if not found[tensor.name][axis].dim_param:
                what = "batch axis" if axis == 0 else f"axis {axis}"
                raise ExportError(f"{component}: {tensor.name}: a dynamic {what} is expected, got a fixed one")
    for value in model.graph.output:
        if not value.type.tensor_type.shape.dim[0].dim_param:
            raise ExportError(f"{component}: {value.name}: a dynamic batch axis is expected, got a fixed one")


def _declare_shapes(model: onnx.ModelProto, outputs: Sequence[TensorSpec]) -> None:
    """Say which axes of the outputs are dynamic: exporters cannot always derive it; that it is so is proven."""
    # What they noted of the tensors between may hold sizes of the example.
    del model.graph.value_info[:]
    found = {value.name: value for value in model.graph.output}
    for tensor in outputs:
        shape = found[tensor.name].type.tensor_type.shape
        del shape.dim[:]
        shape.dim.add().dim_param = "batch"
        for index, size in enumerate(tensor.shape):
            if index in tensor.dynamic:
                shape.dim.add().dim_param = f"{tensor.name}_{index + 1}"
            else:
                shape.dim.add().dim_value = size


def _torchscript(adapted: Adapted, component: str, path: Path) -> str:
    traced = torch.jit.trace(adapted.modules[component], _traced(adapted, component), check_trace=False)
    # Frozen, a graph holds the weights that it uses and no others.
    frozen = torch.jit.freeze(traced.eval())
    noted = path.with_name(f"{path.name}.noted")
    torch.jit.save(frozen, noted)
    del traced, frozen
    _without_source_map(noted, path)
    noted.unlink()
    return "torch.jit.trace"


def _without_source_map(noted: Path, path: Path) -> None:
    """Copy a TorchScript archive without its debug records, which hold paths and lines of this machine's files."""
    reader = torch._C.PyTorchFileReader(str(noted))
    writer = torch._C.PyTorchFileWriter(str(path))
    for name in reader.get_all_records():
        # The writer makes the version and its own id itself.
        if not name.endswith(".debug_pkl") and name not in ("version", ".data/serialization_id", "byteorder"):
            record = reader.get_record(name)
            writer.write_record(name, record, len(record))
    writer.write_end_of_file()


def _pt2(adapted: Adapted, component: str, path: Path) -> str:
    dims: dict[str, Any] = {}
    shapes = tuple(
        {axis: dims.setdefault(name, torch.export.Dim.DYNAMIC) for axis, name in axes.items()}
        for axes in _names(adapted, component)
    )
    # Distributions compute what they were not given with gradients on, and a change of that mode cannot be saved.
    with torch.enable_grad():
        program = torch.export.export(
            adapted.modules[component], _traced(adapted, component), dynamic_shapes={"tensors": shapes}
        )
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn"):
                    node.meta.pop(key, None)
    _without_unused(program)
    # It would be saved with the program: the user's data are theirs.
    zeros = tuple(torch.zeros_like(tensor) for tensor in _traced(adapted, component))
    program.example_inputs = (zeros, {})
    torch.export.save(program, path)
    return "torch.export.export"


def _without_unused(program: torch.export.ExportedProgram) -> None:
    """Take out the parameters that a component does not use: the other component's."""
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    kinds = (torch.export.graph_signature.InputKind.PARAMETER, torch.export.graph_signature.InputKind.BUFFER)
    for node in list(program.graph.nodes):
        spec = specs.get(node.name)
        if node.op == "placeholder" and spec is not None and spec.kind in kinds and not node.users:
            program.graph.erase_node(node)
            program.graph_signature.input_specs.remove(spec)
            program.state_dict.pop(spec.target, None)
            program.constants.pop(spec.target, None)
    program.graph_module.recompile()


def open_graph(graph: Graph) -> Run:
    """Load a graph with the program it is for.

    Raises:
        VaeError: it cannot be loaded; calling what is returned raises VaeError where it cannot be run.
    """
    place = f"{graph.component}/{graph.variant}"
    if graph.executor == "ort":
        data = {name: _bytes_of(source) for name, source in graph.data.items()}
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
            raise ExportError(f"the graph cannot be loaded: {_reason(error)}") from error

        def run(given: Sequence[Array]) -> list[Array]:
            try:
                with quiet(), torch.no_grad():
                    outputs = module(*(torch.from_numpy(np.ascontiguousarray(array)) for array in given))
            except Exception as error:
                raise ExportError(f"the graph cannot be run: {_reason(error)}") from error
            return [output.numpy() for output in ([outputs] if isinstance(outputs, Tensor) else outputs)]

        return run

    return open_loud


_EXECUTORS = {
    "torchscript": _loud(torch.jit.load),
    "torch_export": _loud(lambda file: torch.export.load(file).module()),
}
# The programs, beside ONNX Runtime, that this package runs graphs with.
EXECUTORS = tuple(_EXECUTORS)


def _chain(error: BaseException | None) -> str:
    """What an error and all its causes say."""
    said = []
    while error is not None:
        said.append(f"{type(error).__name__}: {error}")
        error = error.__cause__ or error.__context__
    return "\n".join(said)


def _reason(error: BaseException) -> str:
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
