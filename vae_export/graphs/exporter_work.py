"""Spare PyTorch's ONNX exporter work that it does again for every graph, or for nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .graph import OPSET

_ATEN = torch.ops.aten
_GROUP_NORM = _ATEN.native_group_norm.default
# Checks of sizes and dtypes, which no ONNX graph has.
_CHECKS = {_ATEN._assert_scalar.default, _ATEN._assert_tensor_metadata.default}
# Operators that PyTorch decomposes since they may return a view; as ONNX functions they compute the same.
_SAME = {_ATEN.reshape.default, _ATEN.chunk.default}


@contextlib.contextmanager
def less_exporter_work() -> Iterator[None]:
    """Let the exporter build its table of ONNX functions once for a process, and run only the passes that are needed.

    Building the table takes a second, which for a small model is half of the export; it is built anew when a
    library has registered further operators. A decomposition traces a program twice more, and changes nothing but
    names where every operator has an ONNX function. Type promotion runs the program once more, and adds nothing
    where every tensor is float32 and no operator takes a size as a number. The shapes of a group normalization are
    those of its input, and PyTorch finds them by some twenty operations on symbolic sizes. PyTorch has no public
    way to pass any of these, so with a version that keeps them elsewhere this changes nothing.
    """
    try:
        import torch.onnx._internal.exporter._fx_passes as passes
        from torch._subclasses.fake_impls import get_fast_op_impls
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        original, build = vars(ONNXRegistry)["from_torchlib"], ONNXRegistry.from_torchlib
        decompose, promote, shapes = (
            passes.decompose_with_registry,
            passes.insert_type_promotion_nodes,
            get_fast_op_impls(),
        )
    except (ImportError, AttributeError, KeyError):
        yield
        return

    @classmethod  # type: ignore[misc]
    def from_torchlib(cls: type[ONNXRegistry], opset_version: int = OPSET) -> ONNXRegistry:
        built = _operators(build, opset_version)
        registry = cls()
        registry._opset_version = built._opset_version
        registry.functions = {target: list(functions) for target, functions in built.functions.items()}
        return registry

    def decomposed(
        exported_program: torch.export.ExportedProgram, registry: ONNXRegistry
    ) -> torch.export.ExportedProgram:
        _drop_identities(exported_program)
        nodes = [node for node in exported_program.graph.nodes if node.op not in ("placeholder", "output")]
        if all(node.op == "call_function" and _as_it_is(node.target, registry) for node in nodes):
            return exported_program
        return decompose(exported_program, registry)

    def promoted(graph_module: torch.fx.GraphModule) -> None:
        if not _one_dtype(graph_module):
            promote(graph_module)

    ONNXRegistry.from_torchlib = from_torchlib  # type: ignore[assignment, method-assign]
    passes.decompose_with_registry, passes.insert_type_promotion_nodes = decomposed, promoted
    own_shapes = shapes.get(_GROUP_NORM)
    shapes[_GROUP_NORM] = own_shapes or _group_norm
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = original  # type: ignore[method-assign]
        passes.decompose_with_registry, passes.insert_type_promotion_nodes = decompose, promote
        if own_shapes is None:
            del shapes[_GROUP_NORM]


# The table of ONNX functions by the version of the operators and the namespaces of PyTorch's operators.
_tables: dict[tuple[int, tuple[str, ...]], Any] = {}


def _operators(build: Callable[..., Any], opset_version: int) -> Any:
    key = opset_version, tuple(torch.ops)
    if key not in _tables:
        table = build(opset_version=opset_version)
        _tables.clear()
        # Building it looks namespaces up, which adds them.
        _tables[opset_version, tuple(torch.ops)] = table
        return table
    return _tables[key]


def _group_norm(
    mode: Any, x: torch.Tensor, weight: Any, bias: Any, batch: Any, channels: Any, size: Any, groups: int, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return tensors of the shapes that a group normalization has: its answer, and a mean and a scale by group."""
    with mode:
        return torch.empty_like(x), x.new_empty(batch, groups), x.new_empty(batch, groups)


def _one_dtype(graph_module: torch.fx.GraphModule) -> bool:
    """Whether every tensor and number of a program is float32, so that no operator has to cast one of its inputs.

    Numbers of Python take the dtype of the other input. A size is a tensor in ONNX, with a dtype of its own.
    """
    nodes = [
        node
        for module in graph_module.modules()
        if isinstance(module, torch.fx.GraphModule)
        for node in module.graph.nodes
    ]
    values = (value for node in nodes for value in torch.utils._pytree.tree_leaves(node.meta.get("val")))
    floats = all(value.dtype == torch.float32 for value in values if isinstance(value, torch.Tensor))
    return floats and not any(map(_takes_sizes, nodes))


def _takes_sizes(node: torch.fx.Node) -> bool:
    """Whether an operator takes a size where it could take a tensor or a number of any dtype."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    arguments = zip(node.target._schema.arguments, node.args, strict=False)
    return any(
        str(argument.type).removeprefix("Optional[").rstrip("]") in ("Tensor", "number")
        for argument, value in arguments
        if isinstance(value, torch.fx.Node) and isinstance(value.meta.get("val"), torch.SymInt | torch.SymFloat)
    )


def _drop_identities(program: torch.export.ExportedProgram) -> None:
    """Remove what computes nothing: checks, casts to a tensor's own dtype, and dropout in evaluation mode."""
    outputs = {spec.arg.name for spec in program.graph_signature.output_specs if hasattr(spec.arg, "name")}
    for node in list(program.graph.nodes):
        # A cast that copies has further arguments.
        same = node.target is _ATEN.to.dtype and node.args[1:] == (node.args[0].meta["val"].dtype,) and not node.kwargs
        kept = node.target is _ATEN.dropout.default and node.args[2:] == (False,)
        if node.target in _CHECKS:
            program.graph.erase_node(node)
        elif (same or kept) and node.name not in outputs:
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)
    program.graph.eliminate_dead_code()


def _as_it_is(operator: Any, registry: Any) -> bool:
    """Whether the exporter has a function for an operator that a decomposition would not replace."""
    if not registry.is_registered(operator):
        return False
    if not isinstance(operator, torch._ops.OpOverload) or operator in _SAME:
        return True
    changes = operator._schema.is_mutable or torch.Tag.maybe_aliasing_or_mutating in operator.tags
    composite = operator.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
    aliases = any(argument.alias_info is not None for argument in operator._schema.arguments)
    return not changes and not (composite and aliases)
