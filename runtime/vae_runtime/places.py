"""The files of a bundle, wherever they are: in a folder, or in one .zip file."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any

from .errors import BundleError, InputError, VaeError, error_line, one_line

if TYPE_CHECKING:
    # Not imported to sample: 3 % of a cold start.
    from pathlib import Path

# The list of a bundle's files.
SUMS = "SHA256SUMS"
# The pattern of a file's path in a bundle.
PATH = "[A-Za-z0-9_-][A-Za-z0-9._-]*(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)*"
_LINE = re.compile(f"([0-9a-f]{{64}})  ({PATH})")
# A .zip file (APPNOTE.TXT of PKWARE): the header before each file's bytes, its entry in the directory, and the end.
_LOCAL, _ENTRY, _END = struct.Struct("<4s5H3L2H"), struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s4H2LH")
# The one flag that may be set, and version 2.0, which suffices for uncompressed files.
_UTF8, _VERSION = 0x800, 20
# How files are opened: without waiting for what is no plain file.
READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
# Far above any real bundle's.
_MAX_DIRECTORY, _MAX_NAME, _MAX_PARTS = 2**20, 1024, 32
_MAX_FOLDERS = 1000
# How much of a file is hashed at a time.
_CHUNK = 2**20
# A signature of the OpenSSF Model Signing specification: in a folder, or beside a file under its name and a suffix.
SIGNATURE, SIGNATURE_SUFFIX = "model.sig", ".sig"
# One line for each file that is signed.
_MAX_SIGNATURE = 2**22
# Without Zip64, sizes and offsets have 32 bits.
_MAX_ZIP = 2**32 - 2**21


def open_place(root: str) -> Place:
    """Open the folder or the .zip file of a bundle.

    Raises:
        BundleError: there is neither, or the file is not a bundle's .zip file.
    """
    if os.path.isdir(root):
        return Folder(root)
    if os.path.isfile(root):
        return Archive(root)
    state = "is neither a folder nor a .zip file" if os.path.exists(root) else "does not exist"
    raise BundleError(f"{root}: {state}; give the folder of a bundle, as `vae-export export` writes it")


def is_beside(name: str) -> bool:
    """Return whether a file or folder belongs to no bundle, but to a tool: .git, .cache, .gitattributes, model.sig."""
    return name.startswith(".") or name == SIGNATURE


class Place:
    """Where the files of a bundle are. A file's name is its path relative to `root`, with forward slashes."""

    def __init__(self, root: str) -> None:
        self.root = root
        """Its path as it was given, for errors."""
        self.location = os.path.realpath(root)
        """Its path, whatever the current folder becomes, and whatever a link to it leads to later."""

    def path_of(self, relative: str) -> str:
        """Return the path of a file, for errors: a name with a line end in it cannot forge a line of them."""
        return os.path.join(self.root, one_line(relative))

    def names(self) -> Iterator[str]:
        """Return the name of everything that is not a folder."""
        raise NotImplementedError

    def holds(self, relative: str) -> bool:
        """Return whether there is a file of this name."""
        raise NotImplementedError

    def size(self, relative: str) -> int:
        """Return the size of a file in bytes; 0 where it is missing."""
        raise NotImplementedError

    def signature(self) -> str | None:
        """Return the path of the bundle's signature, a plain file, or None where there is none.

        Raises:
            BundleError: it is not a plain file, or too large.
        """
        raise NotImplementedError

    def own_hash(self, sums: bytes) -> str | None:
        """Return the SHA-256 of a .zip file as a whole; None of a folder.

        Args:
            sums: the content of SHA256SUMS as it was read. The file that is hashed has to hold it at the same place.

        Raises:
            BundleError: the file was altered or exchanged since it was opened, or cannot be read.
        """
        return None

    def read(self, relative: str, *, limit: int | None = None) -> bytes:
        """Return the content of a file.

        Args:
            relative: the file.
            limit: the maximum size in bytes.

        Raises:
            BundleError: the file is missing, not a plain file, too large, or cannot be read.
        """
        raise NotImplementedError


class Folder(Place):
    """The files of a bundle in a folder."""

    def names(self) -> Iterator[str]:
        """Return the name of everything that is not a folder, and of what `is_beside` a bundle as a whole."""
        pending, seen = [""], set()
        while pending:
            folder = pending.pop()
            try:
                with os.scandir(os.path.join(self.location, folder)) as entries:
                    for entry in entries:
                        name = folder + entry.name
                        # Through links, which may lead in a circle.
                        status = entry.stat() if os.path.exists(entry.path) else None
                        if status is None or not stat.S_ISDIR(status.st_mode) or is_beside(name):
                            yield name
                            continue
                        if (status.st_dev, status.st_ino) not in seen:
                            seen.add((status.st_dev, status.st_ino))
                            pending.append(f"{name}/")
                        if len(seen) > _MAX_FOLDERS:
                            raise BundleError(
                                f"{self.root}: expected at most {_MAX_FOLDERS} folders; copy the bundle again"
                            )
            except OSError as error:
                raise BundleError(f"{self.path_of(folder)}: cannot be read: {error_line(error)}") from None

    def holds(self, relative: str) -> bool:
        """Return whether there is a file of this name."""
        return os.path.isfile(os.path.join(self.location, relative))

    def size(self, relative: str) -> int:
        """Return the size of a file in bytes; 0 where it is missing."""
        return os.path.getsize(os.path.join(self.location, relative)) if self.holds(relative) else 0

    def signature(self) -> str | None:
        """Return the path of the signature in the folder, or None where there is none."""
        return _plain_signature(os.path.join(self.location, SIGNATURE))

    def read(self, relative: str, *, limit: int | None = None) -> bytes:
        """Return the content of a plain file. Links are followed: a hash is that of the content, not of a place."""
        place, location = self.path_of(relative), os.path.join(self.location, relative)
        try:
            # Opening a device may have effects, and opening a pipe may wait. What was opened is looked at once more.
            if not stat.S_ISREG(os.stat(location).st_mode):
                raise BundleError(f"{place}: expected a plain file; copy the bundle again")
            with open(os.open(location, READ), "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise BundleError(f"{place}: expected a plain file; copy the bundle again")
                _require_small(place, status.st_size, limit)
                if is_sparse(file.fileno(), status):
                    raise BundleError(
                        f"{place}: expected {status.st_size} bytes, got a sparse file; copy the bundle again"
                    )
                return file.read()
        except FileNotFoundError:
            raise BundleError(f"{place}: missing; copy the bundle again") from None
        except OSError as error:
            raise BundleError(f"{place}: cannot be read: {error_line(error)}") from None


class Archive(Place):
    """The files of a bundle in a .zip file.

    The file holds exactly what the format says: each header with its uncompressed file, the directory, the end, and
    not a byte more. So two programs cannot read it differently, and no file in it is larger than it looks. With zipfile
    the same checks would be needed here, and its import takes 7 % of a cold start.
    """

    def __init__(self, root: str) -> None:
        """Read the directory, and hold each header against it.

        Raises:
            BundleError: the file is not such an archive, or cannot be read.
        """
        super().__init__(root)
        # The position, the size and the CRC-32 of each file's bytes.
        self._members: dict[str, tuple[int, int, int]] = {}
        # The position of the directory, and its bytes to the end of the file.
        self._directory = (0, b"")
        try:
            with open(self.location, "rb") as file:
                if is_sparse(file.fileno(), os.fstat(file.fileno())):
                    raise self._refusal("expected its bytes on the disk, got a sparse file")
                self._read_directory(file)
        except OSError as error:
            raise BundleError(f"{root}: cannot be read: {error_line(error)}") from None

    def names(self) -> Iterator[str]:
        """Return the path of every file."""
        return iter(self._members)

    def holds(self, relative: str) -> bool:
        """Return whether there is a file of this name."""
        return relative in self._members

    def size(self, relative: str) -> int:
        """Return the size of a file in bytes; 0 where it is missing."""
        return self._members[relative][1] if relative in self._members else 0

    def signature(self) -> str | None:
        """Return the path of the signature beside the file, or None where there is none."""
        return _plain_signature(self.location + SIGNATURE_SUFFIX)

    def own_hash(self, sums: bytes) -> str | None:
        """Return the SHA-256 of the file as a whole, once what was read of it is found in the bytes that are hashed."""
        # Another opening of the path may lead to another file, and two reads of one file may differ.
        parts = {self._members[SUMS][0]: sums, self._directory[0]: self._directory[1]}
        hashed, whole, position = dict.fromkeys(parts, b""), hashlib.sha256(), 0
        try:
            with open(self.location, "rb") as file:
                while chunk := file.read(_CHUNK):
                    whole.update(chunk)
                    for start, part in parts.items():
                        hashed[start] += chunk[max(0, start - position) : max(0, start + len(part) - position)]
                    position += len(chunk)
        except OSError as error:
            raise BundleError(f"{self.root}: cannot be read: {error_line(error)}") from None
        if hashed != parts or position != self._directory[0] + len(self._directory[1]):
            raise BundleError(f"{self.root}: altered since it was opened; copy the bundle again")
        return whole.hexdigest()

    def read(self, relative: str, *, limit: int | None = None) -> bytes:
        """Return the content of a file. An archive has no links: each file has one name."""
        place = self.path_of(relative)
        if relative not in self._members:
            raise BundleError(f"{place}: missing; copy the bundle again")
        start, size, crc = self._members[relative]
        _require_small(place, size, limit)
        import zlib  # folders do without

        try:
            with open(self.location, "rb") as file:
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
            file.seek(0)
            start = file.read(2)
            kind = "one that is cut short or has bytes after its end" if start == b"PK" else "a file of another kind"
            raise self._refusal(
                f"expected a .zip file that ends without a comment, got {kind if whole else 'an empty file'}"
            )
        _, disk, first_disk, disk_count, count, size, start, comment = _END.unpack(end)
        if (disk, first_disk, disk_count, comment) != (0, 0, count, 0) or start + size + _END.size != whole:
            raise self._refusal("expected one below 4 GiB, with its directory right before its end")
        if size > _MAX_DIRECTORY:
            raise self._refusal(f"expected a directory of at most {_MAX_DIRECTORY} bytes, got {size}")
        file.seek(start)
        directory = file.read(size)
        entry = position = 0
        for _ in range(count):
            fields = directory[entry : entry + _ENTRY.size]
            if len(fields) < _ENTRY.size or not fields.startswith(b"PK\1\2"):
                raise self._refusal(f"its end says {count} files, its directory has {len(self._members)}")
            entry += _ENTRY.size
            # First the fields of the header before the file: from the version to the length of the name.
            *shared, extra, comment, disk, _, mode, offset = _ENTRY.unpack(fields)[2:]
            version, flags, method, _, _, crc, packed, size, length = shared
            raw = directory[entry : entry + length]
            entry += length
            name = raw.decode("ascii", errors="replace")
            if not re.fullmatch(PATH, name):
                raise self._refusal(f"expected paths of names of A-Za-z0-9._-, got {name[:200]!r}")
            if name in self._members:
                raise self._refusal(f"{name}: expected once, got twice")
            if stat.S_IFMT(mode >> 16) not in (0, stat.S_IFREG):
                raise self._refusal(f"{name}: expected a plain file, got a link, a folder or the like")
            if flags & ~_UTF8 or method or packed != size or version > _VERSION:
                raise self._refusal(f"{name}: expected a file that is neither compressed nor encrypted (zip -0)")
            if extra or comment or disk:
                raise self._refusal(f"{name}: expected no extra fields and no comment (zip -X)")
            file.seek(position)
            header = file.read(_LOCAL.size + length)
            matches = len(header) == _LOCAL.size + length and header.startswith(b"PK\3\4") and header.endswith(raw)
            # The header has no extra fields either.
            if offset != position or not matches or _LOCAL.unpack_from(header)[1:] != (*shared, 0):
                raise self._refusal(f"{name}: expected its header, as in the directory, at byte {position}")
            position += len(header)
            self._members[name] = position, size, crc
            position += size
        if entry != len(directory) or position != start:
            raise self._refusal("expected files, directory and end without a gap")
        self._directory = start, directory + end
        clash = clash_of(self._members)
        if clash:
            raise self._refusal(clash)

    def _refusal(self, why: str) -> BundleError:
        return BundleError(f"{self.root}: not a bundle's .zip file: {why}; pack or copy it again")


def _plain_signature(path: str) -> str | None:
    if not os.path.lexists(path):
        return None
    Folder(os.path.dirname(path)).read(os.path.basename(path), limit=_MAX_SIGNATURE)
    return path


def _require_small(place: str, size: int, limit: int | None) -> None:
    if limit is not None and size > limit:
        raise BundleError(f"{place}: expected at most {limit} bytes, got {size}")


def is_sparse(descriptor: int, status: os.stat_result) -> bool:
    """Return whether an open file claims far more bytes than the disk has of it."""
    stored = getattr(status, "st_blocks", status.st_size) * 512
    # Some file systems count no blocks, and some compress.
    if status.st_size <= _MAX_DIRECTORY or stored * 64 >= status.st_size or not hasattr(os, "SEEK_HOLE"):
        return False
    hole = os.lseek(descriptor, 0, os.SEEK_HOLE)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return hole < status.st_size


def is_zip(path: Path) -> bool:
    """Return whether a bundle's path is that of a .zip file."""
    return path.suffix.lower() == ".zip"


def signature_of(path: Path) -> Path:
    """Return where the signature of a bundle lies: in its folder, or beside its .zip file."""
    return path.with_name(path.name + SIGNATURE_SUFFIX) if is_zip(path) else path / SIGNATURE


def clash_of(paths: Collection[str]) -> str | None:
    """Return why files cannot be in one .zip file on every system, or None where they can."""
    spellings: dict[str, str] = {}
    for path in paths:
        if len(path) > _MAX_NAME:
            return f"{path[:200]}…: expected a path of at most {_MAX_NAME} characters, got {len(path)}"
        parts = path.split("/")
        if len(parts) > _MAX_PARTS:
            return f"{path[:200]}: expected at most {_MAX_PARTS - 1} folders, got {len(parts) - 1}"
        for depth in range(1, len(parts) + 1):
            part = "/".join(parts[:depth])
            other = spellings.setdefault(part.lower(), part)
            if other != part:
                return f"{part}: differs only in case from {other}"
            if depth < len(parts) and part in paths:
                return f"{path}: {part} is a file, not a folder"
    return None


def write_zip(out: Path, files: Mapping[str, bytes]) -> None:
    """Write a bundle's .zip file, in the form that `Archive` reads; the same files give the same bytes.

    Args:
        out: the file to write; missing parents are made.
        files: the content of each file by its relative path, in the order of the archive.

    Raises:
        VaeError: the files do not fit into a .zip file, or it cannot be written; nothing is left behind.
    """
    import zipfile

    from .files import another_place, write_atomic

    clash = clash_of(files)
    if clash:
        raise VaeError(f"{out}: {clash}; write a folder instead of a .zip file")
    size = sum(map(len, files.values()))
    if size > _MAX_ZIP:
        raise VaeError(f"{out}: expected at most 4 GiB in a .zip file, got {size} bytes; write a folder instead")

    def write(file: IO[bytes]) -> None:
        with zipfile.ZipFile(file, "w", allowZip64=False) as archive:
            for path, content in files.items():
                archive.writestr(archive_entry(path), content)

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VaeError(f"{out}: cannot write here: {error_line(error)}; {another_place(error)}") from error
    write_atomic(out, write)


def archive_entry(path: str) -> Any:
    """Return the header of a plain file in an archive, an `zipfile.ZipInfo` without time or system."""
    import zipfile

    entry = zipfile.ZipInfo(path)
    entry.create_system = 3
    entry.external_attr = (stat.S_IFREG | 0o644) << 16
    return entry


# SHA256SUMS.


def parse_digest(text: str) -> str:
    """Check the form of a digest: as `info` prints it, or without "sha256:".

    Raises:
        InputError: the text is not a digest.
    """
    match = re.fullmatch("(?:sha256:)?([0-9a-f]{64})", text) if isinstance(text, str) else None
    if match is None:
        raise InputError(f'digest: expected "sha256:" and 64 hexadecimal digits, got {text!r}')
    return "sha256:" + match[1]


def digest_of(sums: bytes) -> str:
    """Return the digest of a bundle, "sha256:…", from the content of its SHA256SUMS."""
    return "sha256:" + hashlib.sha256(sums).hexdigest()


def read_sums(content: bytes, place: str) -> dict[str, str]:
    """Return the hash of each path in a SHA256SUMS file: lines of `<64 hex digits>  <path>`, sorted by path.

    Raises:
        BundleError: a line has another form, a path stands twice, or the lines are not in order.
    """
    lines = content.decode("ascii", errors="replace").split("\n")
    if lines.pop() != "" or not lines:
        raise BundleError(f"{place}: expected lines that each end in a newline; copy the bundle again")
    sums: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        if match is None:
            got = repr(line[:200])
            raise BundleError(f"{place}:{number}: expected '<64 hex digits>  <path>', got {got}; copy it again")
        sums[match[2]] = match[1]
    if list(sums) != sorted(sums) or len(sums) != len(lines):
        raise BundleError(f"{place}: expected paths in order, each once; copy the bundle again")
    return sums


def format_sums(files: Iterable[tuple[str, bytes]]) -> bytes:
    """Return the content of SHA256SUMS for (path, content) pairs; `sha256sum -c` reads it too."""
    return "".join(f"{hashlib.sha256(content).hexdigest()}  {path}\n" for path, content in sorted(files)).encode()


def read_listed(files: Place, relative: str, sums: Mapping[str, str], *, limit: int | None = None) -> bytes:
    """Return the content of a file after checking it against its listed hash.

    Raises:
        BundleError: the file is not listed, missing, larger than `limit` bytes or not a plain file, or its hash is
            another.
    """
    place = files.path_of(relative)
    if relative not in sums:
        raise BundleError(f"{place}: not listed in {SUMS}; copy the bundle again")
    content = files.read(relative, limit=limit)
    actual = hashlib.sha256(content).hexdigest()
    if actual != sums[relative]:
        raise BundleError(f"{place}: expected the SHA-256 {sums[relative]}, got {actual}; copy the bundle again")
    return content
