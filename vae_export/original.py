"""Compare graphs that exist already with the model that they were made from, in PyTorch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vae_runtime.manifest import COMPONENTS, Signature

from .errors import ExportError
from .graphs.graph import Graph
from .parity.answers import GoldenVectors
from .parity.comparison import Comparison
from .parity.golden import golden_vectors
from .sources import Examples, model_source
from .understand.adapted import Adapted
from .understand.declaration import SECOND
from .understand.existing import Facts, UnderstoodGraphs
from .understand.state import fitting_threads, unchanged
from .understand.tiling import with_tiles
from .understood import understand_source


@dataclasses.dataclass(frozen=True)
class Compared:
    """The result of a comparison with the original model."""

    signature: Signature
    """That of the graphs, with how they can be divided into tiles."""
    golden: GoldenVectors
    lines: tuple[str, ...]
    """What was compared and measured, one line each."""
    torch: str
    """The version of PyTorch."""


def compare_with_model(model: Any, understood: UnderstoodGraphs, facts: Facts, graphs: Sequence[Graph]) -> Compared:
    """Hold graphs against a model, as `export` holds its own, and make golden vectors of the model's answers.

    Args:
        model: an nn.Module, or an object that holds one, as `export` takes it.
        understood: the meaning of the graphs.
        facts: what the caller declared.
        graphs: both, as they are in the bundle.

    Raises:
        ExportError: the model cannot be understood, or its components take or give something else.
        ParityError: the graphs compute other numbers.
    """
    signature = understood.signature
    for reference in understood.references.values():
        precision = reference.graph.precision
        if precision != "float32":
            raise ExportError(
                f"model: expected graphs of float32 to compare with it, got {precision}; leave model= out"
            )
    # The meaning of the second tensor, the prior and the dynamic axes are those of the graphs.
    posterior = understood.meaning.posterior if understood.meaning.posterior in SECOND else facts.declared.posterior
    declaration = dataclasses.replace(facts.declared, posterior=posterior, prior="none", dynamic=None)
    conditions = {name: understood.examples[name] for name in facts.conditions}
    examples = Examples(understood.examples[signature.observation.name], conditions, dict(facts.classes) or None)
    source = model_source(model, declaration, examples, None)
    with unchanged(source.model), fitting_threads(source.model, source.example):
        adapted = understand_source(source)
        modules = {name: _module(name, adapted, signature) for name in COMPONENTS}
        tensors = {name: torch.from_numpy(array) for name, array in understood.examples.items()}
        same = with_tiles(Adapted(modules, signature, tensors), source.model)
        Comparison(same).report(graphs).require()
        golden = golden_vectors(same, graphs)
    line = f"checked: {source.name}, in PyTorch"
    return Compared(same.signature, golden, (line, *same.recognised), torch.__version__)


class _Chosen(nn.Module):
    """A component that gives some of its outputs, and takes its inputs in another order."""

    def __init__(self, module: nn.Module, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        super().__init__()
        self.module, self._inputs, self._outputs = module, inputs, outputs

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        answers = self.module(*(given[index] for index in self._inputs))
        return tuple(answers[index] for index in self._outputs)


def _module(component: str, adapted: Adapted, signature: Signature) -> nn.Module:
    """Return a component of the model with the inputs and outputs of the graph's."""
    expected, own = _roles(signature, component), _roles(adapted.signature, component)
    missing = [role for role in expected if role not in own]
    inputs = _inputs(signature, component)
    taken = _inputs(adapted.signature, component)
    if missing or sorted(inputs) != sorted(taken):
        raise ExportError(
            f"model: expected one whose {component} takes {', '.join(inputs)} and gives {', '.join(expected)}, as the "
            f"graph, got {', '.join(taken)} and {', '.join(own)}; give the model that the graphs were made from"
        )
    return _Chosen(
        adapted.modules[component], [inputs.index(role) for role in taken], [own.index(role) for role in expected]
    )


def _inputs(signature: Signature, component: str) -> list[str]:
    """Return the roles of a component's inputs, in order: conditions by their names."""
    names: Mapping[str, str] = {signature.observation.name: "x", signature.latents[0].name: "z"}
    return [names.get(tensor.name, tensor.name) for tensor in signature.inputs(component)]


def _roles(signature: Signature, component: str) -> list[str]:
    """Return the roles of a component's outputs, in order: other names may have the same role."""
    names = [tensor.name for tensor in signature.outputs(component)]
    if component == "encoder":
        value = signature.latents[0].posterior.value
        return ["value" if name == value else name for name in names]
    known = {signature.likelihood.mean: "mean", signature.likelihood.logits: "logits"}
    further = [name for name in names if name not in known]
    return [known.get(name) or f"output {further.index(name) + 1}" for name in names]
