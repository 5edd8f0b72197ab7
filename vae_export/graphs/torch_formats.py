"""A component → TorchScript, and torch.export's .pt2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..understand.adapted import Adapted
from .graph import axis_names, traced_inputs


def export_torchscript(adapted: Adapted, component: str, path: Path) -> str:
    """Trace, freeze and write a component; returns the name of the exporter."""
    traced = torch.jit.trace(adapted.modules[component], traced_inputs(adapted, component), check_trace=False)
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


def export_pt2(adapted: Adapted, component: str, path: Path) -> str:
    """Export and write a component as .pt2; returns the name of the exporter."""
    dims: dict[str, Any] = {}
    shapes = tuple(
        {axis: dims.setdefault(name, torch.export.Dim.DYNAMIC) for axis, name in axes.items()}
        for axes in axis_names(adapted, component)
    )
    # Distributions compute what they were not given with gradients on, and a change of that mode cannot be saved.
    with torch.enable_grad():
        program = torch.export.export(
            adapted.modules[component], traced_inputs(adapted, component), dynamic_shapes={"tensors": shapes}
        )
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn"):
                    node.meta.pop(key, None)
    _without_unused(program)
    # It would be saved with the program: the user's data are theirs.
    zeros = tuple(torch.zeros_like(tensor) for tensor in traced_inputs(adapted, component))
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
