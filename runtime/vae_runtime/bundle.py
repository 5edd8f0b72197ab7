"""Open a bundle: a folder, or one .zip file, whose every file is listed, with its SHA-256, in SHA256SUMS."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import IO, TYPE_CHECKING

from .errors import BundleError, InputError, VaeError, error_line
from .manifest import Manifest, Variant, parse
from .records import Record, record

if TYPE_CHECKING:
    # 3 % of a cold start.
    from pathlib import Path

__all__ = [
    "MANIFEST",
    "SUMS",
    "Bundle",
    "clash_of",
    "format_sums",
    "open_bundle",
    "parse_digest",
    "read_sums",
    "require_replaceable",
]

MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"

# Far above any real one; what is larger is not read into memory.
_MOST_BYTES = {MANIFEST: 2**24, SUMS: 2**24}

_PATH = re.compile("[A-Za-z0-9_-][A-Za-z0-9._-]*(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
_LINE = re.compile(f"([0-9a-f]{{64}})  ({_PATH.pattern})")
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
    files: _Folder | _Archive

    @property
    def path(self) -> Path:
        """Its folder or .zip file; serves to name places in errors: what reads files goes through `read`."""
        from pathlib import Path

        return Path(self.root)

    def place(self, relative: str) -> str:
        """Where a file lies, for errors."""
        return os.path.join(self.root, relative)

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
    files: _Folder | _Archive
    if os.path.isdir(root):
        files = _Folder(root)
        there = [name for name in (SUMS, MANIFEST) if os.path.isfile(os.path.join(root, name))]
    elif os.path.isfile(root):
        files = _Archive(root)
        there = [name for name in (SUMS, MANIFEST) if name in files.names()]
    else:
        state = "is not a folder, nor a .zip file" if os.path.exists(root) else "does not exist"
        raise BundleError(f"{root}: {state}; give the folder of a bundle, as `vae-export export` writes it")
    if not there:
        raise BundleError(f"{root}: no bundle: it holds neither {MANIFEST} nor {SUMS}; give the folder of a bundle")
    content = files.read(SUMS)
    found = "sha256:" + hashlib.sha256(content).hexdigest()
    if wanted and wanted != found:
        raise BundleError(
            f"{root}: the bundle's digest is {found}, {wanted} is expected; use the bundle it was made for"
        )
    sums = read_sums(content, os.path.join(root, SUMS))
    if MANIFEST not in sums:
        raise BundleError(f"{os.path.join(root, SUMS)}: {MANIFEST} is not listed; copy the bundle again")
    manifest = parse(_read_listed(files, MANIFEST, sums), os.path.join(root, MANIFEST))
    graphs = [path for variant in manifest.variants for path in (variant.path, variant.data_path)]
    for needed in [*graphs, manifest.golden.file, *(latent.prior.file for latent in manifest.latents)]:
        if needed is not None and needed not in sums:
            raise BundleError(
                f"{os.path.join(root, SUMS)}: {needed}, named by {MANIFEST}, is not listed; copy the bundle again"
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


def clash_of(paths: Collection[str]) -> str | None:
    """Why files cannot stand side by side in a .zip file, and so on every system; None where they can."""
    spelled: dict[str, str] = {}
    for path in paths:
        if len(path) > _MOST_NAME:
            return f"{path[:200]}…: a path of at most {_MOST_NAME} characters is expected, got {len(path)}"
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):
            part = "/".join(parts[:depth])
            other = spelled.setdefault(part.lower(), part)
            if other != part:
                return f"{part}: only the case of its letters tells it from {other}"
            if depth < len(parts) and part in paths:
                return f"{path}: {part} is a file and no folder"
    return None


def _read_listed(files: _Folder | _Archive, relative: str, sums: Mapping[str, str], *, alone: bool = False) -> bytes:
    place = os.path.join(files.root, relative)
    if relative not in sums:
        raise BundleError(f"{place}: not listed in {SUMS}; copy the bundle again")
    content = files.read(relative, alone=alone)
    found = hashlib.sha256(content).hexdigest()
    if found != sums[relative]:
        raise BundleError(f"{place}: sha256 is {found}, {SUMS} says {sums[relative]}; copy the bundle again")
    return content


class _Folder:
    """The files of a bundle in a folder, by their relative paths."""

    def __init__(self, root: str) -> None:
        self.root = root

    def names(self) -> Iterator[str]:
        """The relative path of everything inside that is no folder."""
        for folder, folders, files in os.walk(self.root, onerror=_raise):
            for entry in [*folders, *files]:
                place = os.path.join(folder, entry)
                if not stat.S_ISDIR(os.lstat(place).st_mode):
                    yield os.path.relpath(place, self.root).replace(os.sep, "/")

    def read(self, relative: str, *, alone: bool = False) -> bytes:
        """Read a plain file, refusing links (the folder itself may be one), pipes and devices.

        Of a file that must stand alone hard links are refused too.
        """
        place = self.root
        try:
            for part in relative.split("/"):
                place = os.path.join(place, part)
                status = os.lstat(place)
                if stat.S_ISLNK(status.st_mode):
                    raise BundleError(
                        f"{place}: a link, which a bundle must not hold; copy the bundle with its real files"
                    )
            if not stat.S_ISREG(status.st_mode):
                raise BundleError(f"{place}: a plain file is expected; copy the bundle again")
            if alone and status.st_nlink > 1:
                raise BundleError(
                    f"{place}: a link, hard links included, which a graph's weights must not be: the file has "
                    f"{status.st_nlink} names; copy the bundle with its real files"
                )
            _require_small(place, relative, status.st_size)
            with open(place, "rb") as file:
                return file.read()
        except FileNotFoundError:
            raise BundleError(f"{os.path.join(self.root, relative)}: missing; copy the bundle again") from None
        except OSError as error:
            raise BundleError(f"{os.path.join(self.root, relative)}: cannot be read: {error_line(error)}") from None


# Of a .zip file (APPNOTE.TXT of PKWARE): the header before each file's bytes, its entry in the directory, and the end.
_LOCAL, _ENTRY, _END = struct.Struct("<4s5H3L2H"), struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s4H2LH")
# Of the flags the one that may be set, and the version 2.0, which is enough for files as they are.
_UTF8, _VERSION = 0x800, 20
# Far above any real ones.
_MOST_DIRECTORY, _MOST_NAME = 2**20, 1024


class _Archive:
    """The files of a bundle in a .zip file, by their relative paths.

    The file holds what the format asks for, byte after byte, and nothing else: each header with its file as it is, the
    directory, the end. So two programs cannot read it differently, and nothing in it is larger than it looks. All this
    would have to be checked here if zipfile read it too, whose import takes 7 % of a cold start.
    """

    def __init__(self, root: str) -> None:
        """Read the directory, and hold each header against it.

        Raises:
            BundleError: the file is no such archive, or cannot be read.
        """
        self.root = root
        # Where each file's bytes are, how many, and their CRC-32.
        self._members: dict[str, tuple[int, int, int]] = {}
        try:
            with open(root, "rb") as file:
                self._read_directory(file)
        except OSError as error:
            raise BundleError(f"{root}: cannot be read: {error_line(error)}") from None

    def names(self) -> Iterator[str]:
        """The path of every file inside."""
        return iter(self._members)

    def read(self, relative: str, *, alone: bool = False) -> bytes:
        """Read a file. Each stands alone: inside an archive there are no links."""
        place = os.path.join(self.root, relative)
        if relative not in self._members:
            raise BundleError(f"{place}: missing; copy the bundle again")
        start, size, crc = self._members[relative]
        _require_small(place, relative, size)
        import zlib  # of folders not needed

        try:
            with open(self.root, "rb") as file:
                file.seek(start)
                content = file.read(size)
        except OSError as error:
            raise BundleError(f"{place}: cannot be read: {error_line(error)}") from None
        if len(content) != size or zlib.crc32(content) != crc:
            raise BundleError(f"{place}: damaged, or altered since it was opened; copy the bundle again")
        return content

    def _read_directory(self, file: IO[bytes]) -> None:
        whole = os.fstat(file.fileno()).st_size
        file.seek(max(0, whole - _END.size))
        end = file.read(_END.size)
        if len(end) < _END.size or not end.startswith(b"PK\5\6"):
            raise self._wrong("one that ends without a comment is expected")
        _, disk, first_disk, here, count, size, start, comment = _END.unpack(end)
        if (disk, first_disk, here, comment) != (0, 0, count, 0) or start + size + _END.size != whole:
            raise self._wrong("one below 4 GiB, with its directory right before its end, is expected")
        if size > _MOST_DIRECTORY:
            raise self._wrong(f"a directory of at most {_MOST_DIRECTORY} bytes is expected, got {size}")
        file.seek(start)
        directory = file.read(size)
        entry = position = 0
        for _ in range(count):
            fields = directory[entry : entry + _ENTRY.size]
            if len(fields) < _ENTRY.size or not fields.startswith(b"PK\1\2"):
                raise self._wrong(f"{count} files are expected from its end, the directory has {len(self._members)}")
            entry += _ENTRY.size
            # From the version to the length of the name, as before the file; then of extra fields and of a comment.
            *shared, extra, comment, disk, _, mode, offset = _ENTRY.unpack(fields)[2:]
            version, flags, method, _, _, crc, packed, size, length = shared
            raw = directory[entry : entry + length]
            entry += length
            name = raw.decode("ascii", errors="replace")
            if not _PATH.fullmatch(name):
                raise self._wrong(f"paths of names of A-Za-z0-9._- are expected, got {name[:200]!r}")
            if name in self._members:
                raise self._wrong(f"{name}: it is there twice")
            if stat.S_IFMT(mode >> 16) not in (0, stat.S_IFREG):
                raise self._wrong(f"{name}: a plain file is expected, it is a link, a folder or the like")
            if flags & ~_UTF8 or method or packed != size or version > _VERSION:
                raise self._wrong(f"{name}: a file as it is, neither compressed nor encrypted, is expected (zip -0)")
            if extra or comment or disk:
                raise self._wrong(f"{name}: no extra fields and no comment are expected (zip -X)")
            file.seek(position)
            header = file.read(_LOCAL.size + length)
            right = len(header) == _LOCAL.size + length and header.startswith(b"PK\3\4") and header.endswith(raw)
            # No extra fields here either.
            if offset != position or not right or _LOCAL.unpack_from(header)[1:] != (*shared, 0):
                raise self._wrong(f"{name}: its header, as in the directory, is expected at byte {position}")
            position += len(header)
            self._members[name] = position, size, crc
            position += size
        if entry != len(directory) or position != start:
            raise self._wrong("files, directory and end are expected without a gap")
        clash = clash_of(self._members)
        if clash:
            raise self._wrong(clash)

    def _wrong(self, why: str) -> BundleError:
        return BundleError(f"{self.root}: no .zip file of a bundle: {why}; pack or copy it again")


def _require_small(place: str, relative: str, size: int) -> None:
    most = _MOST_BYTES.get(relative)
    if most is not None and size > most:
        raise BundleError(f"{place}: at most {most} bytes are expected, got {size}")


def _raise(error: OSError) -> None:
    raise BundleError(f"{error.filename}: cannot be read: {error_line(error)}") from None
