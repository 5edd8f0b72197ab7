"""Open a bundle: a folder, or one .zip file, whose every file is listed, with its SHA-256, in SHA256SUMS."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from .document import parse
from .errors import BundleError, InputError, VaeError
from .manifest import Manifest, Variant
from .places import PATH, Place, open_place
from .records import Record, record

if TYPE_CHECKING:
    # 3 % of a cold start.
    from pathlib import Path

__all__ = [
    "MANIFEST",
    "SUMS",
    "Bundle",
    "format_sums",
    "open_bundle",
    "parse_digest",
    "read_sums",
    "require_replaceable",
]

MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"

# Far above the size of any real manifest or list; larger ones are not read into memory.
_MAX_BYTES = 2**24

_LINE = re.compile(f"([0-9a-f]{{64}})  ({PATH.pattern})")
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")


@record(frozen=True)
class Bundle(Record):
    """An opened bundle. Only SHA256SUMS and the manifest have been read; `read` gives the other files.

    `root` is its folder or .zip file.
    """

    root: str
    manifest: Manifest
    sums: Mapping[str, str]
    digest: str
    files: Place

    @property
    def path(self) -> Path:
        """Its folder or .zip file; serves to name places in errors: what reads files goes through `read`."""
        from pathlib import Path

        return Path(self.root)

    def place(self, relative: str) -> str:
        """Where a file lies, for errors."""
        return self.files.path_of(relative)

    def read(self, relative: str) -> bytes:
        """The content of a listed file, its hash checked.

        Raises:
            BundleError: the file is not listed, missing, reached through a link, or its content is not the listed one.
        """
        alone = any(relative == variant.data_path for variant in self.manifest.variants)
        return _read_listed(self.files, relative, self.sums, alone=alone)

    def data(self, variant: Variant) -> dict[str, bytes]:
        """The content of the file of a graph's weights by its name, its hash checked; empty where there is none.

        Raises:
            BundleError: as `read`; or the file has further names on the disk (hard links), through which it could be
                altered.
        """
        if variant.data is None or variant.data_path is None:
            return {}
        return {variant.data: self.read(variant.data_path)}

    def variant(self, component: str, name: str | None = None) -> Variant:
        """The variant of a component that ONNX Runtime runs: the one named, or the first declared.

        Raises:
            BundleError: there is none of that name, it is for another program, or the component was left out when the
                bundle was packed.
        """
        variants = self.manifest.components.get(component, {})
        if not variants:
            raise BundleError(
                f"{self.root}: the {component} was left out when this bundle was packed; use the bundle it was packed "
                f"from, {self.manifest.packed_from}, or pack that with --only {component}, too"
            )
        runnable = [variant for variant in variants.values() if variant.executor == "ort"]
        if name is None:
            return runnable[0]
        names = ", ".join(variant.name for variant in runnable)
        if name not in variants:
            raise BundleError(f"{self.root}: {component} has no variant {name!r}; choose one of: {names}")
        if variants[name].executor != "ort":
            raise BundleError(
                f"{self.root}: the variant {name!r} of {component} is for {variants[name].executor}, not for ONNX "
                f"Runtime; choose one of: {names}"
            )
        return variants[name]

    def unlisted(self) -> list[Path]:
        """What lies in the bundle and is neither a folder nor listed in SHA256SUMS."""
        listed = {*self.sums, SUMS}
        return [self.path / relative for relative in self.files.names() if relative not in listed]

    def problems(self) -> list[str]:
        """What is wrong with the files: altered, missing, not listed, or not plain files. Reads every one."""
        found = [f"{place}: not listed in {SUMS}; remove it, or copy the bundle again" for place in self.unlisted()]
        for relative in sorted(self.sums):
            try:
                self.read(relative)
            except BundleError as error:
                found.append(str(error))
        return found


def open_bundle(path: str | os.PathLike[str], digest: str | None = None) -> Bundle:
    """Open a bundle and check SHA256SUMS and the manifest.

    Args:
        path: the bundle's folder or .zip file.
        digest: "sha256:…" of the whole bundle, as `vae-runtime info` prints it; anything else is refused.

    Raises:
        BundleError: no bundle there, a file is damaged, the manifest has problems, or the digest is another.
        InputError: the path or the digest is not of the right form.
    """
    try:
        root = os.fspath(path)
    except TypeError:
        root = ""
    if not isinstance(root, str) or not root:
        raise InputError(
            f"path: a folder or .zip file on disk is expected, got {path!r}; unpack a bundle that is in another archive"
        )
    wanted = None if digest is None else parse_digest(digest)
    files = open_place(root)
    if not files.holds(SUMS) and not files.holds(MANIFEST):
        raise BundleError(f"{root}: no bundle: it holds neither {MANIFEST} nor {SUMS}; give the folder of a bundle")
    content = files.read(SUMS, limit=_MAX_BYTES)
    found = "sha256:" + hashlib.sha256(content).hexdigest()
    if wanted and wanted != found:
        raise BundleError(
            f"{root}: the bundle's digest is {found}, {wanted} is expected; use the bundle it was made for"
        )
    sums = read_sums(content, files.path_of(SUMS))
    if MANIFEST not in sums:
        raise BundleError(f"{files.path_of(SUMS)}: {MANIFEST} is not listed; copy the bundle again")
    manifest = parse(_read_listed(files, MANIFEST, sums), files.path_of(MANIFEST))
    graphs = [path for variant in manifest.variants for path in (variant.path, variant.data_path)]
    for needed in [*graphs, manifest.golden.file, *(latent.prior.file for latent in manifest.latents)]:
        if needed is not None and needed not in sums:
            raise BundleError(
                f"{files.path_of(SUMS)}: {needed}, named by {MANIFEST}, is not listed; copy the bundle again"
            )
    return Bundle(root, manifest, sums, found, files)


def require_replaceable(
    target: str | os.PathLike[str], force: bool, *, zipped: bool = False, refusal: type[VaeError] = VaeError
) -> None:
    """Refuse a place for a bundle early, before the work, and never let anything but a bundle be replaced.

    Args:
        target: the folder or .zip file to write.
        force: whether a bundle already there may be replaced.
        zipped: whether a .zip file will be written.
        refusal: the class of the error.

    Raises:
        VaeError: the place cannot be written to, or holds something that must not be replaced; of class `refusal`.
    """
    from pathlib import Path

    out = Path(target)
    if not os.path.lexists(out):
        parent = next(parent for parent in out.absolute().parents if parent.exists())
        if not (parent.is_dir() and os.access(parent, os.W_OK)):
            raise refusal(f"{out}: {parent} is no folder that can be written to; choose another place")
        return
    if not force:
        raise refusal(f"{out}: exists already; choose another place, or replace it with --force")
    if out.is_symlink() or not (out.is_file() if zipped else out.is_dir()):
        kind = "file" if zipped else "folder"
        raise refusal(f"{out}: is no {kind}, and --force replaces only bundles; choose another place")
    if not zipped and not any(out.iterdir()):
        return
    try:
        unlisted = open_bundle(out).unlisted()
    except BundleError as error:
        raise refusal(f"{out}: is no sound bundle, and --force replaces only bundles: {error}") from error
    if unlisted:
        raise refusal(f"{unlisted[0]}: is no part of the bundle there and would be lost; move it away")


def parse_digest(text: str) -> str:
    """Check the form of a digest; as `info` prints it, or without "sha256:".

    Raises:
        InputError: the text is none.
    """
    match = _DIGEST.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise InputError(f'digest: "sha256:" and 64 hexadecimal digits are expected, got {text!r}')
    return "sha256:" + match[1]


def read_sums(content: bytes, place: str) -> dict[str, str]:
    """The hash of each path in a SHA256SUMS file: `<64 hex digits>  <path>` a line, sorted by path.

    Raises:
        BundleError: a line of another form, a path twice, or lines out of order.
    """
    lines = content.decode("ascii", errors="replace").split("\n")
    if lines.pop() != "" or not lines:
        raise BundleError(f"{place}: lines that each end in a newline are expected; copy the bundle again")
    sums: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        if match is None:
            got = repr(line[:200])
            raise BundleError(f"{place}:{number}: '<64 hex digits>  <path>' is expected, got {got}; copy it again")
        sums[match[2]] = match[1]
    if list(sums) != sorted(sums) or len(sums) != len(lines):
        raise BundleError(f"{place}: paths in order, each once, are expected; copy the bundle again")
    return sums


def format_sums(files: Iterable[tuple[str, bytes]]) -> bytes:
    """The content of SHA256SUMS for (path, content) pairs; `sha256sum -c` reads it too."""
    return "".join(f"{hashlib.sha256(content).hexdigest()}  {path}\n" for path, content in sorted(files)).encode()


def _read_listed(files: Place, relative: str, sums: Mapping[str, str], *, alone: bool = False) -> bytes:
    place = files.path_of(relative)
    if relative not in sums:
        raise BundleError(f"{place}: not listed in {SUMS}; copy the bundle again")
    content = files.read(relative, limit=_MAX_BYTES if relative == MANIFEST else None, alone=alone)
    found = hashlib.sha256(content).hexdigest()
    if found != sums[relative]:
        raise BundleError(f"{place}: sha256 is {found}, {SUMS} says {sums[relative]}; copy the bundle again")
    return content
