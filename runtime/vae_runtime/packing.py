"""Pack what a device needs: some graphs of a bundle as a smaller bundle, a folder or a .zip file."""

from __future__ import annotations

import dataclasses
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .bundle import MANIFEST, Bundle, open_bundle, require_replaceable
from .devices import onnxruntime_version
from .document import dump
from .errors import InputError, require_bool
from .files import lies_in, write_folder
from .golden import golden_tensors, read_golden
from .manifest import COMPONENTS, Manifest, Variant
from .onnx_file import operators_of
from .onnx_tests import test_data
from .optimum import optimum_files
from .places import SUMS, archive_entry, format_sums, is_zip, write_zip
from .session import OPTIMIZATIONS, optimized

OPERATORS = "required_operators.config"

_CARD = "README.md"
# A model card is a few KiB of text; a larger file is left out.
_MAX_CARD = 2**16
# The line that packing puts at the top of a card, below the front matter.
_FRONT_MATTER = re.compile(rb"\A---\n.*?\n---\n\n?", re.DOTALL)
_NOTE = re.compile(rb"\A> Packed: [^\n]*\n\n")
_PICTURE = re.compile(rb"^!\[[^\]\n]*\]\(([^)\n]*)\)\n?", re.MULTILINE)


def pack(
    bundle: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    only: str | Sequence[str] = (),
    operators: bool = False,
    onnx_tests: bool = False,
    layout: str | None = None,
    force: bool = False,
    digest: str | None = None,
) -> str:
    """Write a bundle of some graphs of another: without TorchScript and pictures, with these graphs' golden vectors.

    The same bundle and arguments give the same bytes (with `operators`, on the same machine).

    Args:
        bundle: the bundle's folder or .zip file; every file taken from it is checked.
        out: the folder to write, or a file if it ends in .zip.
        only: "decoder" or "encoder" for all of its graphs that ONNX Runtime runs, "decoder/int8" for one; several as a
            sequence or joined by commas. By default, all graphs of both.
        operators: also write required_operators.config, for a build of ONNX Runtime with only the operators of the
            graphs, as they are and as ONNX Runtime optimizes them on this machine.
        onnx_tests: also write the golden vectors of each graph as ONNX's own test data, test_data_set_0/input_0.pb and
            so on, beside its model.onnx.
        layout: "optimum" writes a folder in the layout of optimum instead of a bundle, for programs that read that:
            vae_encoder/model.onnx, vae_decoder/model.onnx, and a config.json beside each; without the other arguments.
        force: replace an existing bundle.
        digest: "sha256:…" of the bundle to pack; any other bundle is refused.

    Returns:
        The digest of the bundle written, "sha256:…"; with `layout`, of the bundle that it came from.

    Raises:
        BundleError: the bundle is missing or damaged, or lacks a graph of `only`.
        DeviceError: ONNX Runtime is missing, with `operators`.
        InputError: an argument has the wrong form, the layout cannot hold the bundle, or `out` lies in the bundle.
        VaeError: `out` already exists, or cannot be written; nothing is left behind.
    """
    if not isinstance(only, (str, Sequence)):
        raise InputError(f"only: expected names of graphs, got {only!r}")
    require_bool("operators", operators)
    require_bool("onnx_tests", onnx_tests)
    require_bool("force", force)
    _check_layout(layout, {"only": only, "operators": operators, "onnx_tests": onnx_tests})
    chosen = parse_only([only] if isinstance(only, str) else only)
    source = open_bundle(bundle, digest)
    try:
        target = Path(os.fspath(out))
        os.path.realpath(target)
    except (TypeError, ValueError):
        raise InputError(f"out: expected the path of a folder, or of a file that ends in .zip, got {out!r}") from None
    if lies_in(target, source.path):
        raise InputError(f"{out}: expected a place outside the bundle, since a new file would make it invalid")
    if layout and is_zip(target):
        raise InputError(f"{out}: expected a folder for the layout {layout}, got the name of a .zip file")
    if layout:
        if not (force and _holds_only_graphs(target)):
            require_replaceable(target, force)
        write_folder(target, optimum_files(source), replace=force)
        return source.digest
    require_replaceable(target, force, zipped=is_zip(target))
    manifest = _cut(source, chosen)
    files = {path: source.read(path) for variant in manifest.variants for path in variant.paths}
    files |= {each.prior.file: source.read(each.prior.file) for each in manifest.latents if each.prior.file}
    files[manifest.golden.file] = _golden(source, manifest)
    files[MANIFEST] = dump(manifest).encode()
    card = _card(source, manifest)
    if card is not None and _CARD not in files:
        files[_CARD] = card
    if operators:
        files[OPERATORS] = _required_operators(source, manifest)
    if onnx_tests:
        files |= test_data(source, manifest, read_golden(source))
    files[SUMS] = format_sums(files.items())
    files = dict(sorted(files.items()))
    if is_zip(target):
        write_zip(target, files)
    else:
        write_folder(target, files, replace=force)
    return open_bundle(target).digest


def _check_layout(layout: str | None, others: Mapping[str, object]) -> None:
    if layout not in (None, "optimum"):
        raise InputError(f"layout: expected optimum, got {layout!r:.99}")
    extra = [name for name, value in others.items() if value]
    if layout and extra:
        raise InputError(f"{extra[0]}: expected nothing beside a layout, got {extra[0]}=; leave it out")


def _holds_only_graphs(folder: Path) -> bool:
    """Return whether a folder in optimum's layout holds nothing else, so that another may replace it."""
    expected = {f"vae_{component}/{name}" for component in COMPONENTS for name in ("model.onnx", "config.json")}
    if folder.is_symlink() or not folder.is_dir():
        return False
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    # Weights beside a graph have names of their own.
    weights = {f"vae_{component}/model.onnx" + suffix for component in COMPONENTS for suffix in (".data", "_data")}
    return expected <= files <= expected | weights


def parse_only(texts: Iterable[str]) -> list[tuple[str, str | None]]:
    """Return components, each with the name of a variant or None for all, from texts such as "encoder,decoder/int8".

    Raises:
        InputError: a text has another form.
    """
    parts = []
    for text in texts:
        for part in text.split(",") if isinstance(text, str) else [text]:
            component, slash, name = part.partition("/") if isinstance(part, str) else ("", "", "")
            if component not in COMPONENTS or (slash and not name) or "/" in name:
                one = "encoder, decoder, or one of them and a variant, such as decoder/int8,"
                raise InputError(f"only: expected {one} got {part!r}")
            parts.append((component, name or None))
    return parts


def _cut(source: Bundle, only: Sequence[tuple[str, str | None]]) -> Manifest:
    """Return the manifest of the chosen variants, in the order of their declaration."""
    chosen: dict[str, dict[str, Variant]] = {component: {} for component in COMPONENTS}
    for component, name in only or [(component, None) for component in source.manifest.components]:
        # Refuses a variant that is missing or not ONNX Runtime's.
        named = source.variant(component, name)
        for variant in source.manifest.components[component].values():
            if variant == named or (name is None and variant.executor == "ort"):
                chosen[component][variant.name] = variant
    for component, variants in chosen.items():
        declared = source.manifest.components.get(component, {})
        chosen[component] = {name: variant for name, variant in declared.items() if name in variants}
    return dataclasses.replace(
        source.manifest,
        encoder=chosen["encoder"],
        decoder=chosen["decoder"],
        # A pack of a pack names the bundle that has every graph.
        packed_from=source.manifest.packed_from or source.digest,
    )


def _golden(source: Bundle, manifest: Manifest) -> bytes:
    """Return the golden vectors of the chosen graphs, an .npz file."""
    import zipfile

    import numpy as np

    arrays = read_golden(source)
    kept = io.BytesIO()
    with zipfile.ZipFile(kept, "w") as archive:
        for name in sorted(golden_tensors(manifest)):
            member = io.BytesIO()
            np.lib.format.write_array(member, arrays[name], allow_pickle=False)
            archive.writestr(archive_entry(f"{name}.npy"), member.getvalue(), zipfile.ZIP_DEFLATED)
    return kept.getvalue()


def _card(source: Bundle, manifest: Manifest) -> bytes | None:
    """Return the model card, which carries the license, under a line that names the chosen graphs."""
    if _CARD not in source.sums:
        return None
    card = source.read(_CARD)
    if len(card) > _MAX_CARD:
        return None
    graphs = ", ".join(f"{variant.component}/{variant.name}" for variant in manifest.variants)
    origin = source.manifest.packed_from or source.digest
    note = f"> Packed: {graphs} alone, of the bundle {origin}, which this card describes.\n\n"
    front = (_FRONT_MATTER.match(card) or [b""])[0]
    card = _NOTE.sub(b"", card[len(front) :])
    return front + note.encode() + _PICTURE.sub(lambda match: match[0] if b":" in match[1] else b"", card)


def _required_operators(source: Bundle, manifest: Manifest) -> bytes:
    """Return the configuration of a reduced ONNX Runtime build: lines of `domain;version;Operator,Operator`.

    It has each graph's own operators, which that runtime looks up first, and those that its optimizations make of
    them, level by level: which fusions apply depends on the processor and on how the device's runtime was built.
    """
    import platform

    required: set[tuple[str, int, str]] = set()
    graphs = [(variant.path, source.data(variant)) for variant in manifest.variants]
    graphs += [(variant.stream_path, {}) for variant in manifest.variants if variant.stream_path]
    for path, data in graphs:
        place, content = str(source.path / path), source.read(path)
        required |= operators_of(content, place)
        for level in OPTIMIZATIONS:
            required |= operators_of(optimized(content, data, level, place), place)
    sets: dict[tuple[str, int], list[str]] = {}
    for domain, version, operator in sorted(required):
        sets.setdefault((domain, version), []).append(operator)
    listed = ", ".join(f"{variant.component}/{variant.name}" for variant in manifest.variants)
    lines = [
        f"# {listed} of the bundle {source.digest},",
        f"# as exported, and as ONNX Runtime {onnxruntime_version()} optimizes them on {platform.machine()}",
        *(f"{domain};{version};{','.join(names)}" for (domain, version), names in sets.items()),
    ]
    return "".join(f"{line}\n" for line in lines).encode()
