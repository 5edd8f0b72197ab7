"""Verify a bundle on this machine: hash every file, then replay the golden vectors on the device."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bundle import Bundle, open_bundle
from .devices import Device, resolve_device
from .errors import BundleError, DeviceError, VaeError, counted, one_line, require_bool, require_integer
from .golden import contradictions, golden_inputs, read_golden, reference_of
from .manifest import Variant
from .networks import run_variant

Array = NDArray[Any]

# The width of the column of names in a report, and how many files that are not part of the bundle it names.
_MAX_WIDTH, _MAX_BESIDE = 80, 20

# Runs a graph of another executor: takes the bundle, the variant and the inputs by name, and returns the outputs, both
# in the order of the graph's signature.
Runner = Callable[[Bundle, Variant, Mapping[str, Array]], Sequence[Array]]


@dataclass(frozen=True)
class Check:
    """The result of one check. `passed` is None where it was skipped, and `detail` says why.

    `difference` is the largest from the golden answer, in units of the output; None for codes, and where none was
    measured.
    """

    what: str
    passed: bool | None
    detail: str
    difference: float | None = None

    @property
    def verdict(self) -> str:
        """The result in a word: ok, FAILED or skipped."""
        return {True: "ok", False: "FAILED", None: "skipped"}[self.passed]


@dataclass(frozen=True)
class Report:
    """The checks of `verify`. `str()` of it is a table."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(check.passed is not False for check in self.checks)

    def __str__(self) -> str:
        width = min(_MAX_WIDTH, max(len(check.what) for check in self.checks))
        return "\n".join(one_line(f"{check.verdict:8}{check.what:{width}}  {check.detail}") for check in self.checks)


def verify(
    path: str | os.PathLike[str],
    *,
    device: str = "cpu",
    threads: int = 1,
    provider_options: Mapping[str, Any] | None = None,
    digest: str | None = None,
    key: str | os.PathLike[str] | None = None,
    runners: Mapping[str, Runner] | None = None,
    strict: bool = False,
) -> Report:
    """Check every file of a bundle and what its graphs compute on this machine.

    Each graph answers the golden vectors. Its answers must lie within the variant's tolerance of those that the variant
    gave on the exporting machine, and these must be no farther from PyTorch's than the manifest declares.

    Args:
        path: the bundle's folder or .zip file.
        device: as in `load`.
        threads: as in `load`.
        provider_options: as in `load`.
        digest: as in `load`.
        key: as in `load`.
        runners: how to run variants that are not ONNX Runtime's, by executor; without a runner they are skipped.
        strict: whether files that tools keep beside the bundle, such as .git and model.sig, are failures.

    Raises:
        BundleError: there is no bundle, or its manifest cannot be read; later failures are in the report.
        DeviceError: the device is unavailable.
        InputError: an argument has the wrong form.
    """
    threads = require_integer("threads", threads, 1, 1024)
    bundle = open_bundle(path, digest, key)
    target = resolve_device(device, provider_options)
    problems, beside = bundle.problems(), bundle.beside()
    if require_bool("strict", strict):
        problems += [f"{bundle.place(name)}: not part of the bundle; move it away" for name in beside[:_MAX_BESIDE]]
        if len(beside) > _MAX_BESIDE:
            problems.append(f"{len(beside) - _MAX_BESIDE} more beside the bundle; move them away")
    checks = [Check("files", False, problem) for problem in problems]
    if not problems:
        others = f"; beside the bundle: {', '.join(beside)}" if beside else ""
        signed = "; signed" if bundle.key else ""
        what = f"{len(bundle.sums)} files, every SHA-256 as listed; {bundle.digest}{signed}{others}"
        checks.append(Check("files", True, what))
    try:
        golden = read_golden(bundle)
    except BundleError as error:
        checks.append(Check("golden vectors", False, str(error)))
    else:
        checks += [Check("golden vectors", False, problem) for problem in contradictions(bundle.manifest, golden)]
        for variant in bundle.manifest.variants:
            checks.extend(_replay(bundle, variant, golden, target, threads, runners or {}))
    return Report(tuple(checks))


def _replay(
    bundle: Bundle,
    variant: Variant,
    golden: Mapping[str, Array],
    device: Device,
    threads: int,
    runners: Mapping[str, Runner],
) -> Iterator[Check]:
    component = variant.component
    what = f"{component}/{variant.name}"
    inputs = golden_inputs(bundle, component, golden)
    outputs = [output.name for output in bundle.manifest.outputs(component)]
    try:
        if variant.executor == "ort":
            answers: Sequence[Array] = run_variant(bundle, component, variant.name, device, threads, inputs)
        elif variant.executor in runners:
            answers = runners[variant.executor](bundle, variant, inputs)
        else:
            reason = (
                f"not run: {variant.executor} needs PyTorch; in a bundle of a run, `vae-export parity --trust` runs it"
            )
            yield Check(what, None, reason)
            return
    except DeviceError:
        raise
    except VaeError as error:
        yield Check(what, False, str(error))
        return
    if len(answers) != len(outputs):
        yield Check(what, False, f"expected {counted(len(outputs), 'output')}, got {len(answers)}")
        return
    for output, answer in zip(outputs, answers, strict=True):
        yield _compare(f"{what} {output}", variant, output, answer, golden, reference_of(bundle.manifest))
    if variant.stream_path:
        from .streams import replay  # most bundles have no stream

        mean = bundle.manifest.likelihood.mean
        try:
            answer = replay(bundle, variant, device, threads, inputs)
        except DeviceError:
            raise
        except VaeError as error:
            yield Check(f"{what} stream", False, str(error))
            return
        yield _compare(f"{what} stream {mean}", variant, mean, answer, golden, reference_of(bundle.manifest))


def _compare(
    what: str, variant: Variant, output: str, answer: Array, golden: Mapping[str, Array], reference: str
) -> Check:
    own = golden[f"{variant.component}/{variant.name}/{output}"]
    expected = golden[f"{variant.component}/pytorch/{output}"]
    tolerance, declared = variant.tolerance[output], variant.error[output]
    if answer.shape != own.shape:
        return Check(what, False, f"expected the shape {list(own.shape)}, got {list(answer.shape)}")
    difference = np.abs(answer.astype(np.float64) - own)
    worst = tuple(int(i) for i in np.unravel_index(np.argmax(difference), difference.shape))
    largest = float(difference[worst])
    # Codes are labels: count how many differ, not by how much.
    codes = own.dtype.kind == "i"
    measured = None if codes else largest
    # Written so that NaN fails.
    if not largest <= tolerance:
        many = int(np.sum(~(difference <= tolerance)))
        share = f" ({many / own.size:.2%})" if codes else ""
        return Check(
            what,
            False,
            f"disagrees with {many} of {own.size} golden values{share}; worst at {list(worst)}: expected "
            f"{own[worst]:.6g}, got {answer[worst]:.6g}, difference {largest:.2g}, tolerance {tolerance:.2g}",
            measured,
        )
    distance = float(np.max(np.abs(own.astype(np.float64) - expected)))
    if not distance <= declared:
        return Check(
            what,
            False,
            f"golden.npz: the stored answer is {distance:.2g} from {reference}'s, the manifest declares {declared:.2g}",
            measured,
        )
    result = f"max difference {largest:.2g}"
    if codes:
        result = f"{int(np.sum(answer != own))} of {own.size} codes differ ({np.mean(answer != own):.2%})"
    return Check(what, True, f"{result}, tolerance {tolerance:.2g}; from {reference} {declared:.2g}", measured)
