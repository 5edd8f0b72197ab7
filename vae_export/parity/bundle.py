"""Compare a bundle with the run that it was exported from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import nn

from vae_runtime.bundle import Bundle, open_bundle
from vae_runtime.errors import require_bool
from vae_runtime.manifest import Variant
from vae_runtime.verification import Report, verify

from ..errors import ParityError, require_path
from ..graphs.graph import EXECUTORS, Graph, open_graph
from ..sources import run_source
from ..understand.state import unchanged
from ..understood import understand_source
from .comparison import compare
from .report import ParityReport

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

    Args:
        run: the run's folder.
        bundle: the bundle's folder.
        data: where the run's data are now, if they were moved.
        trust: whether to load TorchScript and .pt2 files, too. They are code, which then runs with your rights: give
            True only where you trust whoever made the bundle.
        model: the module of a run whose model was given in Python without a name; it takes the run's weights.

    Returns:
        The verification of the bundle's files and golden vectors, in which graphs that were not loaded are skipped, and
        the comparison of each other graph with eager PyTorch on real data.

    Raises:
        BundleError: the bundle is missing, or the file of a graph is damaged.
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
        graphs = [read_graph(opened, each) for each in manifest.variants if each.executor in ("ort", *executors)]
        return verification, compare(adapted, graphs)


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
