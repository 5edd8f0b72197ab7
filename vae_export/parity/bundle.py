"""Compare a bundle with the run that it was exported from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import nn

from vae_runtime.bundle import Bundle, open_bundle
from vae_runtime.errors import require_bool
from vae_runtime.golden import golden_inputs, read_golden
from vae_runtime.manifest import Variant
from vae_runtime.verification import Report, verify

from ..errors import ParityError, require_path
from ..graphs.graph import EXECUTORS, Graph, open_graph
from ..sources import run_source
from ..understand.adapted import Adapted
from ..understand.state import unchanged
from ..understood import understand_source
from .comparison import compare, compare_as_stated
from .report import ParityReport, TensorParity

Array = NDArray[Any]


def check_parity(
    run: str | Path,
    bundle: str | Path,
    *,
    data: str | None = None,
    trust: bool = False,
    model: nn.Module | None = None,
) -> tuple[Report, ParityReport]:
    """Compare a bundle with the run that it was exported from.

    Graphs in float32 are held to PyTorch's own accuracy at many sizes. Graphs in fewer bits differ on purpose: they
    answer the golden inputs, and may be as far from PyTorch as the manifest states.

    Args:
        run: the run's folder.
        bundle: the bundle's folder.
        data: where the run's data are now, if they were moved.
        trust: whether to load TorchScript and .pt2 files, too. They are code, which then runs with your rights: give
            True only where you trust whoever made the bundle.
        model: the module of a run whose model was given in Python without a name; it takes the run's weights.

    Returns:
        The verification of the bundle's files and golden vectors, in which graphs that were not loaded are skipped, and
        the comparison of each other graph with eager PyTorch.

    Raises:
        BundleError: the bundle is missing, or the file of a graph is damaged; or that of the golden vectors, where
            graphs in fewer bits need it.
        InputError: the run or its data are missing or damaged.
        ParityError: the bundle was made from another model.
    """
    require_bool("trust", trust)
    source = run_source(require_path("run", run), data, None, model)
    opened = open_bundle(bundle)
    manifest = opened.manifest
    with unchanged(source.model):
        adapted = understand_source(source)
        own = adapted.signature
        for field, declared, expected in (
            ("observation shape", manifest.observation.shape, own.observation.shape),
            ("latents", [latent.shape for latent in manifest.latents], [latent.shape for latent in own.latents]),
            ("conditions", [c.name for c in manifest.conditions], [c.name for c in own.conditions]),
            ("likelihood", manifest.likelihood.kind, own.likelihood.kind),
        ):
            if declared != expected:
                raise ParityError(
                    f"{bundle}: {field}: expected {expected} from {run}, got {declared}; export the run again"
                )
        scales = (manifest.likelihood.scale or 0.0, own.likelihood.scale or 0.0)
        # Another build of PyTorch may compute exp differently in the last digit.
        if not math.isclose(*scales, rel_tol=1e-6):
            raise ParityError(
                f"{bundle}: likelihood scale: expected {scales[1]} from {run}, got {scales[0]}; export the run again"
            )
        executors = EXECUTORS if trust else ()
        verification = verify(bundle, runners=dict.fromkeys(executors, golden_runner))
        chosen = [each for each in manifest.variants if each.executor in ("ort", *executors)]
        fewer_bits = [each for each in chosen if each.precision != "float32"]
        report = compare(adapted, [read_graph(opened, each) for each in chosen if each not in fewer_bits])
        return verification, ParityReport((*report.tensors, *_as_stated(adapted, opened, fewer_bits)))


def _as_stated(adapted: Adapted, bundle: Bundle, variants: Sequence[Variant]) -> Iterator[TensorParity]:
    """Compare graphs in fewer bits with PyTorch, within what the manifest states of them."""
    golden = read_golden(bundle) if variants else {}
    for each in variants:
        # An answer may be so far from the stored one, and the stored one so far from PyTorch's.
        limits = {output: each.tolerance[output] + each.error[output] for output in each.tolerance}
        inputs = golden_inputs(bundle, each.component, golden)
        yield from compare_as_stated(adapted, read_graph(bundle, each), inputs, limits)


def read_graph(bundle: Bundle, variant: Variant) -> Graph:
    """Read a graph of a bundle into memory."""
    signature = bundle.manifest
    return Graph(
        variant.component,
        variant.name,
        variant.executor,
        variant.file,
        bundle.read(variant.path),
        tuple(tensor.name for tensor in signature.inputs(variant.component)),
        tuple(tensor.name for tensor in signature.outputs(variant.component)),
        variant.exporter,
        bundle.data(variant),
        batch_of_one=variant.component in signature.batch_of_one,
    )


def golden_runner(bundle: Bundle, variant: Variant, inputs: Mapping[str, Array]) -> Sequence[Array]:
    """Run a graph on golden inputs: a runner for `vae_runtime.verify`."""
    return open_graph(read_graph(bundle, variant))(list(inputs.values()))
