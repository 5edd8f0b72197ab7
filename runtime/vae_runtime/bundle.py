"""Open a bundle: a folder whose every file is listed, with its SHA-256, in SHA256SUMS."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import BundleError, InputError
from .manifest import Manifest, Variant, parse

__all__ = ["MANIFEST", "SUMS", "Bundle", "format_sums", "open_bundle", "parse_digest", "read_sums"]

MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"

# Far above any real one; what is larger is not read into memory.
_MOST_BYTES = {MANIFEST: 2**24, SUMS: 2**24}

_LINE = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9_-][A-Za-z0-9._-]*(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)*)")
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. Only SHA256SUMS and the manifest have been read; `read` gives the other files."""

    path: Path
    manifest: Manifest
    sums: Mapping[str, str]
    digest: str

    def read(self, relative: str) -> bytes:
        """The content of a listed file, its hash checked.

        Raises:
            BundleError: the file is not listed, missing, reached through a link, or its content is not the listed one.
        """
        alone = any(relative == variant.data_path for variant in self.manifest.variants)
        return _read_listed(self.path, relative, self.sums, alone=alone)

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
            BundleError: there is none of that name, or it is for another program.
        """
        variants = self.manifest.components[component]
        runnable = [variant for variant in variants.values() if variant.executor == "ort"]
        if name is None:
            return runnable[0]
        names = ", ".join(variant.name for variant in runnable)
        if name not in variants:
            raise BundleError(f"{self.path}: {component} has no variant {name!r}; choose one of: {names}")
        if variants[name].executor != "ort":
            raise BundleError(
                f"{self.path}: the variant {name!r} of {component} is for {variants[name].executor}, not for ONNX "
                f"Runtime; choose one of: {names}"
            )
        return variants[name]

    def unlisted(self) -> list[Path]:
        """What lies in the folder and is neither a folder nor listed in SHA256SUMS."""
        found = []
        for folder, folders, files in os.walk(self.path, onerror=_raise):
            for entry in [*folders, *files]:
                place = Path(folder, entry)
                relative = place.relative_to(self.path).as_posix()
                if not stat.S_ISDIR(place.lstat().st_mode) and relative not in self.sums and relative != SUMS:
                    found.append(place)
        return found

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
        path: the bundle's folder.
        digest: "sha256:…" of the whole bundle, as `vae-runtime info` prints it; anything else is refused.

    Raises:
        BundleError: no bundle there, a file is damaged, the manifest has problems, or the digest is another.
        InputError: the path or the digest is not of the right form.
    """
    try:
        root = Path(os.fspath(path))
    except TypeError:
        raise InputError(
            f"path: a folder on disk is expected, got {path!r}; unpack a bundle that is packed in an archive"
        ) from None
    wanted = None if digest is None else parse_digest(digest)
    if not os.path.isdir(root):
        state = "is not a folder" if os.path.exists(root) else "does not exist"
        raise BundleError(f"{root}: {state}; give the folder of a bundle, as `vae-export export` writes it")
    if not (root / SUMS).is_file() and not (root / MANIFEST).is_file():
        raise BundleError(f"{root}: no bundle: it holds neither {MANIFEST} nor {SUMS}; give the folder of a bundle")
    content = _read_plain(root, SUMS)
    found = "sha256:" + hashlib.sha256(content).hexdigest()
    if wanted and wanted != found:
        raise BundleError(
            f"{root}: the bundle's digest is {found}, {wanted} is expected; use the bundle it was made for"
        )
    sums = read_sums(content, str(root / SUMS))
    if MANIFEST not in sums:
        raise BundleError(f"{root / SUMS}: {MANIFEST} is not listed; copy the bundle again")
    manifest = parse(_read_listed(root, MANIFEST, sums), str(root / MANIFEST))
    graphs = [path for variant in manifest.variants for path in (variant.path, variant.data_path)]
    for needed in [*graphs, manifest.golden.file, *(latent.prior.file for latent in manifest.latents)]:
        if needed is not None and needed not in sums:
            raise BundleError(f"{root / SUMS}: {needed}, named by {MANIFEST}, is not listed; copy the bundle again")
    return Bundle(root, manifest, sums, found)


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


def _read_listed(root: Path, relative: str, sums: Mapping[str, str], *, alone: bool = False) -> bytes:
    if relative not in sums:
        raise BundleError(f"{root / relative}: not listed in {SUMS}; copy the bundle again")
    content = _read_plain(root, relative, alone=alone)
    found = hashlib.sha256(content).hexdigest()
    if found != sums[relative]:
        raise BundleError(f"{root / relative}: sha256 is {found}, {SUMS} says {sums[relative]}; copy the bundle again")
    return content


def _read_plain(root: Path, relative: str, *, alone: bool = False) -> bytes:
    """Read a plain file of the bundle, refusing links (the root itself may be one), pipes and devices.

    Of a file that must stand alone hard links are refused too.
    """
    place = root
    try:
        for part in relative.split("/"):
            place = place / part
            status = place.lstat()
            if stat.S_ISLNK(status.st_mode):
                raise BundleError(f"{place}: a link, which a bundle must not hold; copy the bundle with its real files")
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{place}: a plain file is expected; copy the bundle again")
        if alone and status.st_nlink > 1:
            raise BundleError(
                f"{place}: a link, hard links included, which a graph's weights must not be: the file has "
                f"{status.st_nlink} names; copy the bundle with its real files"
            )
        most = _MOST_BYTES.get(relative)
        if most is not None and place.stat().st_size > most:
            raise BundleError(f"{place}: at most {most} bytes are expected, got {place.stat().st_size}")
        return place.read_bytes()
    except FileNotFoundError:
        raise BundleError(f"{root / relative}: missing; copy the bundle again") from None
    except OSError as error:
        raise BundleError(f"{root / relative}: cannot be read: {error.strerror}") from None


def _raise(error: OSError) -> None:
    raise BundleError(f"{error.filename}: cannot be read: {error.strerror}") from None
