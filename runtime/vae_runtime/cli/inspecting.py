"""The verbs `info`, `bom`, `verify`, `pack` and `bench`, which take a bundle as a whole."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import counted, one_line
from .options import (
    Verbs,
    add_bundle,
    add_device,
    add_key,
    add_threads,
    add_verb,
    argument,
    integer,
    integers,
    require_outside,
)

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..columns import Column
    from ..manifest import Condition, Latent, Manifest, Sizes

# Lines of one kind, of which a bundle may have any number.
_MAX_ROWS = 64


def add_inspecting(verbs: Verbs) -> None:
    """Add the verbs of this module."""
    for add in (_add_info, _add_bom, _add_verify, _add_pack, _add_bench):
        add(verbs)


def _add_info(verbs: Verbs) -> None:
    add_bundle(add_verb(verbs, "info", _info, "describe a bundle: shapes, variants, sizes, quality, digest"))


def _info(options: argparse.Namespace) -> None:
    from ..bundle import open_bundle

    bundle = open_bundle(options.bundle, options.digest)
    manifest = bundle.manifest
    observation, likelihood = manifest.observation, manifest.likelihood
    within = f", values {observation.range[0]:g} … {observation.range[1]:g}" if observation.range else ""
    raw = observation.normalisation
    scaled = f", x = (raw - {_number(raw.offset)}) / {_number(raw.divisor)}" if raw else ""
    dims = _dims(observation.axes, observation.shape, observation.dynamic)
    scale = f", scale {likelihood.scale:g}" if likelihood.scale else ""
    rows = [
        ("name", manifest.name),
        ("version", manifest.package_version),
        ("description", manifest.description),
        ("license", manifest.license or "not stated"),
        ("observation", f"{observation.name} {observation.dtype} {dims}{within}{scaled}"),
        *(("condition", _described_condition(condition)) for condition in manifest.conditions),
        *(("latent", _described_latent(latent)) for latent in manifest.latents),
        ("likelihood", likelihood.kind + scale + (f": {likelihood.reason}" if likelihood.reason else "")),
        ("table", ", ".join(map(_described_column, manifest.table))),
        ("batch of one", _in_rows(manifest)),
        ("stream", _described_stream(bundle)),
        ("noise", manifest.noise),
        ("packed from", manifest.packed_from),
        ("adopted from", manifest.producer.get("adopted", manifest.producer.get("compared"))),
        ("format", manifest.format_version),
        ("digest", bundle.digest),
    ]
    # Every file is read before the first line is printed: one of them may be damaged.
    sizes = {
        variant.path: sum(map(len, [bundle.read(variant.path), *bundle.data(variant).values()])) / 1024
        for variant in manifest.variants
    }
    for key, value in rows:
        if value:
            _print(f"{key:28}{value}")
    if manifest.metrics:
        surrogate = ", figures of a surrogate likelihood" if manifest.metrics.get("surrogate") is True else ""
        print(f"\nmeasured before export{surrogate}")
    for key, value in list(manifest.metrics.items())[:_MAX_ROWS]:
        _print(f"  {key.replace('_', ' '):26}{f'{value:.6g}' if isinstance(value, float) else value}")
    if len(manifest.metrics) > _MAX_ROWS:
        print(f"  and {len(manifest.metrics) - _MAX_ROWS} more")
    _print_graphs(manifest, sizes)


def _in_rows(manifest: Manifest) -> str:
    """Which components run a batch row by row."""
    components = " and ".join(manifest.batch_of_one)
    return components and f"{components}: the graphs take one row, so a batch runs row by row"


def _described_stream(bundle: Bundle) -> str:
    """Whether the decoder takes latents in chunks, and why not."""
    for variant in bundle.manifest.decoder.values():
        stream, path = variant.stream, variant.stream_path
        if stream is not None and path is not None:
            size = len(bundle.read(path)) / 1024
            states = f"{counted(len(stream.states), 'state')}, {size:,.0f} KiB, largest difference {stream.error:.1e}"
            name = bundle.manifest.observation.name
            return f"{variant.name}: {counted(stream.hop or 0, 'value')} of {name} for each of the latent; {states}"
        if stream is not None:
            return f"none: {stream.reason or 'no reason is stated'}"
    return ""


def _number(number: float | tuple[float, ...]) -> str:
    return f"[{counted(len(number), 'number')}]" if isinstance(number, tuple) else f"{number:g}"


def _print_graphs(manifest: Manifest, sizes: Mapping[str, float]) -> None:
    """Print a line for each graph, and one for each variant that was measured or left out."""
    print()
    from ..golden import reference_of

    print(f"{'graph':28}{'KiB':>8}  {'precision':10} largest difference from {reference_of(manifest)}")
    for variant in manifest.variants:
        errors = ", ".join(f"{name} {error:.1e}" for name, error in variant.error.items())
        _print(
            f"{variant.component + '/' + variant.name:28}{sizes[variant.path]:8,.0f}  {variant.precision:10} {errors}"
        )
    measured = [(variant, variant.quality) for variant in manifest.variants if variant.quality]
    if measured:
        print(f"\n{'variant, against fp32':28}{'KiB':>8}  {'PSNR':>10}  {'ELBO':>12}  how it was made")
    for variant, quality in measured:
        psnr = "same" if quality.psnr is None else f"{quality.psnr:.1f} dB"
        elbo = "-" if quality.elbo_change is None else f"{quality.elbo_change:+.3f} nats"
        making = ", ".join([quality.method, f"on {quality.measured}", *([quality.reason] if quality.reason else [])])
        _print(
            f"{variant.component + '/' + variant.name:28}{sizes[variant.path]:8,.0f}  {psnr:>10}  {elbo:>12}  {making}"
        )
    from ..timing import in_words

    for variant, quality in measured:
        if quality.speed:
            speed = f"speed × fp32, one thread at export: {in_words(quality.speed)}"
            _print(f"{variant.component + '/' + variant.name:28}{speed}")
    for refusal in manifest.refused[:_MAX_ROWS]:
        _print(f"{refusal.component + '/' + refusal.variant:28}left out: {refusal.reason}")


def _print(line: str) -> None:
    """Print a line with text from a bundle."""
    print(one_line(line))


def _dims(axes: Sequence[str], shape: Sequence[int], dynamic: Mapping[str, Sizes]) -> str:
    named = axes or [""] * len(shape)
    sizes = [
        f"{axis} {size}".strip() + (f" ({dynamic[axis]})" if axis in dynamic else "")
        for axis, size in zip(named, shape, strict=True)
    ]
    return f"[{', '.join(sizes)}]"


def _described_condition(condition: Condition) -> str:
    classes = f", classes {', '.join(condition.classes)}" if condition.classes else ""
    within = f", values {condition.range[0]:g} … {condition.range[1]:g}" if condition.range else ""
    what = f"{condition.name} {condition.dtype} {list(condition.shape)}{classes}{within}"
    return f"{what}, of {' and '.join(condition.components)}"


def _described_latent(latent: Latent) -> str:
    prior, posterior = latent.prior, latent.posterior
    priors = {
        "normal": "prior standard normal" + (", assumed" if prior.assumed else ""),
        "mixture": f"prior mixture of {counted(prior.components or 0, 'normal')}, {prior.covariance}",
        "sphere": "prior uniform on the sphere",
    }
    if posterior.kind == "normal":
        of = "posterior diagonal normal"
    elif posterior.kind == "codes":
        of = f"codes below {posterior.codebook}"
    else:
        what = "no posterior" if posterior.value else "noise of the decoder"
        of = what + (f" ({posterior.reason})" if posterior.reason else "")
    drawn = priors.get(prior.kind, "no prior" + (f" ({prior.reason})" if prior.reason else ""))
    plain = latent.scale in (1, 1.0) and latent.shift in (0, 0.0)
    scaled = "" if plain else f", other models take (z - {_numbers(latent.shift)}) · {_numbers(latent.scale)}"
    return f"{latent.name} {latent.dtype} {_dims(latent.axes, latent.shape, latent.dynamic)}, {drawn}, {of}{scaled}"


def _described_column(column: Column) -> str:
    many = (
        f"{len(column.categories)} categories"
        if column.kind == "categories"
        else f"{counted(len(column.means), 'mode')}"
    )
    return f"{column.name} ({many})"


def _numbers(value: float | tuple[float, ...]) -> str:
    return f"({', '.join(f'{each:g}' for each in value)})" if isinstance(value, tuple) else f"{value:g}"


def _add_bom(verbs: Verbs) -> None:
    add_bundle(add_verb(verbs, "bom", _bom, "print a bill of materials: a CycloneDX 1.6 ML-BOM in JSON"))


def _bom(options: argparse.Namespace) -> None:
    import json

    from ..materials import bill_of_materials

    print(json.dumps(bill_of_materials(options.bundle, digest=options.digest), indent=1))


def _add_verify(verbs: Verbs) -> None:
    verb = add_verb(verbs, "verify", _verify, "check every file, then replay the golden vectors on this machine")
    for add in (add_bundle, add_key, add_device, add_threads):
        add(verb)
    verb.add_argument(
        "--strict", action="store_true", help="fail on files that tools keep beside the bundle, such as .git"
    )


def _verify(options: argparse.Namespace) -> int:
    from ..verification import verify

    report = verify(
        options.bundle,
        device=options.device,
        threads=options.threads,
        digest=options.digest,
        key=options.key,
        strict=options.strict,
    )
    print(report)
    if report.passed:
        skipped = sum(check.passed is None for check in report.checks)
        rest = f"; {counted(skipped, 'graph')} not run" if skipped else ""
        print(one_line(f"verified on {options.device}: {options.bundle}{rest}"))
        return 0
    advice = "unless memory ran out, copy or export the bundle again"
    print(one_line(f"error: {options.bundle}: verification failed; {advice}"), file=sys.stderr)
    return 1


def _add_pack(verbs: Verbs) -> None:
    text = "write a smaller bundle with some of the graphs, as a folder or a .zip file"
    verb = add_verb(verbs, "pack", _pack, text)
    add_bundle(verb)
    verb.add_argument(
        "--only",
        type=argument(_only, "only"),
        action="append",
        default=[],
        metavar="GRAPHS",
        help="encoder, decoder or one variant such as decoder/int8; join several by commas or repeat --only "
        "(default: every graph that ONNX Runtime runs)",
    )
    verb.add_argument(
        "--operators",
        action="store_true",
        help="also write required_operators.config, for a build of ONNX Runtime with only these operators",
    )
    text = "also write the golden vectors as ONNX's own test data, test_data_set_0 beside each graph"
    verb.add_argument("--onnx-tests", action="store_true", help=text)
    text = "write a folder of another layout: optimum's vae_encoder and vae_decoder"
    verb.add_argument("--layout", choices=("optimum",), help=text)
    verb.add_argument("--force", action="store_true", help="replace an existing bundle")
    verb.add_argument("--out", type=Path, required=True, help="the folder to write, or a file if the name ends in .zip")


def _only(text: str) -> str:
    from ..packing import parse_only

    parse_only([text])
    return text


def _pack(options: argparse.Namespace) -> None:
    from ..bundle import open_bundle
    from ..packing import pack

    for name in ("only", "operators", "onnx_tests"):
        if options.layout and getattr(options, name):
            options.misuse(f"{name}: not allowed with layout=; leave it out")
    require_outside(options)
    digest = pack(
        options.bundle,
        options.out,
        only=options.only,
        operators=options.operators,
        onnx_tests=options.onnx_tests,
        layout=options.layout,
        force=options.force,
        digest=options.digest,
    )
    if options.layout:
        print(one_line(f"{options.out}: {options.layout}'s layout, of {digest}"))
        return
    packed = open_bundle(options.out, digest)
    size = sum(len(packed.read(path)) for path in packed.sums) / 1024
    graphs = ", ".join(f"{variant.component}/{variant.name}" for variant in packed.manifest.variants)
    print(one_line(f"{options.out}: {graphs}; {size:,.0f} KiB, {digest}"))


def _add_bench(verbs: Verbs) -> None:
    text = "time each variant against a plain ONNX Runtime session of the bundle's first variant"
    verb = add_verb(verbs, "bench", _bench, text)
    add_bundle(verb)
    add_device(verb)
    verb.add_argument("--variant", default="all", help="the variant to time (default all)")
    verb.add_argument(
        "--batch",
        type=integers("batch", 1, 2**31),
        default=[1, 8, 64],
        metavar="NUMBERS",
        help="batch sizes (default 1,8,64)",
    )
    verb.add_argument(
        "--threads",
        type=integers("threads", 1, 1024),
        default=[1],
        metavar="NUMBERS",
        help="threads per call (default 1)",
    )
    verb.add_argument("--rounds", type=integer("rounds", 1, 10**6), default=9, help="number of rounds (default 9)")
    verb.add_argument("--json", action="store_true", help="print the figures of every round as JSON")


def _bench(options: argparse.Namespace) -> None:
    from ..bench import bench

    result = bench(
        options.bundle,
        variants=None if options.variant == "all" else [options.variant],
        batches=options.batch,
        threads=options.threads,
        rounds=options.rounds,
        device=options.device,
        digest=options.digest,
    )
    if options.json:
        import json

        print(json.dumps(result.to_json(), indent=1))
    else:
        print(result)
