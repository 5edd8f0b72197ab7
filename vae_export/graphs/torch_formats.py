"""Export a component as TorchScript or as torch.export's .pt2."""

from __future__ import annotations

from pathlib import Path

import torch

from ..understand.adapted import Adapted
from .graph import axis_names, traced_inputs


def trace_module(adapted: Adapted, component: str, path: Path) -> None:
    """Trace a component, and write it as TorchScript."""
    given = traced_inputs(adapted, component)
    _write_frozen(torch.jit.trace(adapted.modules[component], given, check_trace=False), path)


def script_program(adapted: Adapted, component: str, path: Path) -> None:
    """Write a component as TorchScript by way of torch.export.

    torch.export looks into compiled functions, checkpoints and functions with a gradient of their own, of which the
    tracer sees the outside alone. Its program is compiled, since a trace of it would fix the sizes.
    """
    # Without gradients, since a switch of that mode would divide the program into parts.
    module = _program(adapted, component).module()
    graph = module.graph
    for node in list(graph.nodes):
        if node.op == "call_module" and not node.users:
            # It checks the inputs, in Python.
            graph.erase_node(node)
        elif node.target is torch.ops.aten.sym_size.int:
            node.target = torch.ops.aten.size
        elif isinstance(node.target, torch._ops.OpOverload):
            # TorchScript chooses the overload itself.
            node.target = node.target.overloadpacket
    graph.set_codegen(torch.fx.graph.CodeGen())
    _write_frozen(torch.jit.script(torch.fx.GraphModule(module, graph).eval()), path)


def _write_frozen(module: torch.jit.ScriptModule, path: Path) -> None:
    # Freezing leaves out the weights that the graph does not use.
    frozen = torch.jit.freeze(module.eval())
    archive = path.with_name(f"{path.name}.debug")
    torch.jit.save(frozen, archive)
    del frozen
    _copy_without_debug(archive, path)
    archive.unlink()


def _copy_without_debug(archive: Path, path: Path) -> None:
    """Copy a TorchScript archive without its debug records, which hold paths and source lines of this machine."""
    reader = torch._C.PyTorchFileReader(str(archive))
    writer = torch._C.PyTorchFileWriter(str(path))
    for name in reader.get_all_records():
        # The writer adds the version and an id of its own.
        if not name.endswith(".debug_pkl") and name not in ("version", ".data/serialization_id", "byteorder"):
            record = reader.get_record(name)
            writer.write_record(name, record, len(record))
    writer.write_end_of_file()


def export_pt2(adapted: Adapted, component: str, path: Path) -> None:
    """Export and write a component as .pt2."""
    # torch.distributions turns gradients on for derived parameters, and a switch of that mode cannot be saved.
    with torch.enable_grad():
        program = _program(adapted, component)
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn"):
                    node.meta.pop(key, None)
    _drop_unused(program)
    # Example inputs are saved with the program, and the user's data must not be.
    zeros = tuple(torch.zeros_like(tensor) for tensor in traced_inputs(adapted, component))
    program.example_inputs = (zeros, {})
    torch.export.save(program, path)


def _program(adapted: Adapted, component: str) -> torch.export.ExportedProgram:
    """Export a component with torch.export, with a dynamic batch and dynamic axes."""
    shapes = tuple(dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for axes in axis_names(adapted, component))
    return torch.export.export(
        adapted.modules[component], traced_inputs(adapted, component), dynamic_shapes={"tensors": shapes}
    )


def _drop_unused(program: torch.export.ExportedProgram) -> None:
    """Remove the parameters that the component does not use: those of the other component."""
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
