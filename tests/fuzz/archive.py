"""Files of the form .zip: each is refused with a BundleError, or holds what Python's own zipfile finds in it."""

import io
import os
import tempfile
import zipfile
from collections.abc import Iterator

from tests.corpus.cases import DIGITS
from tests.fuzz import require_short
from vae_runtime.errors import BundleError
from vae_runtime.places import Archive, archive_entry

_FILES = {"manifest.json": b"{}", "encoder/fp32/model.onnx": b"graph" * 9, "SHA256SUMS": b"", "golden.npz": b"\0" * 99}
_PATH = os.path.join(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None), "bundle.zip")


def seeds() -> Iterator[bytes]:
    """Archives of a few small files, and of small files of a bundle that ships."""
    shipped = {name: (DIGITS / name).read_bytes() for name in ("SHA256SUMS", "README.md")}
    for files in ({}, _FILES, shipped, {f"{'a/' * depth}x": b"" for depth in range(9)}):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for name in sorted(files):
                archive.writestr(archive_entry(name), files[name])
        yield out.getvalue()


def words() -> set[bytes]:
    """The marks of headers, and sizes at the limits."""
    return {
        b"PK\1\2",
        b"PK\3\4",
        b"PK\5\6",
        b"PK\6\6",
        b"PK\6\7",
        b"\xff\xff\xff\xff",
        b"\xff\xff",
        b"../",
        b"\0\0\x08\0",
    }


def check(content: bytes) -> None:
    """Open an archive and read its files."""
    with open(_PATH, "wb") as file:
        file.write(content)
    try:
        archive = Archive(_PATH)
        files = {name: archive.read(name) for name in archive.names()}
    except BundleError as error:
        require_short(error)
        return
    with zipfile.ZipFile(io.BytesIO(content)) as other:
        assert files == {name: other.read(name) for name in other.namelist()}
