"""An ONNX Runtime that was carried to a machine: as a package, or as a wheel or a tar file, whole or in parts."""

from __future__ import annotations

import hashlib
import lzma
import re
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path

# NAME.whl, or one of its parts: NAME.whl.00, NAME.whl.01, …
_FILE = re.compile(r"(onnxruntime.*\.(?:whl|tar|tar\.gz|tar\.xz))(?:\.([0-9]+))?")


class CarriedError(Exception):
    """What was carried is not an ONNX Runtime; the message names the place and the next step."""


def package_folder(place: Path, out: Path) -> Path:
    """Return the folder from which Python imports `onnxruntime`.

    Args:
        place: a folder with the package onnxruntime/, or with one wheel or tar file that holds it, or all its parts.
        out: the folder below which that is unpacked, once.

    Raises:
        CarriedError: there is no such thing, or a part is missing or damaged.
    """
    if (place / "onnxruntime" / "__init__.py").is_file():
        return place
    parts = _parts(place)
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.read_bytes())
    folder = out / f"onnxruntime-{digest.hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        whole, unpacked = Path(scratch) / "whole", Path(scratch) / "unpacked"
        with whole.open("wb") as joined:
            for part in parts:
                with part.open("rb") as file:
                    shutil.copyfileobj(file, joined)
        try:
            _unpack(whole, unpacked)
        except (zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, OSError, EOFError) as error:
            raise CarriedError(
                f"{place}: expected a whole ONNX Runtime in {len(parts)} files, got one that cannot be unpacked "
                f"({error}); carry all of its parts again"
            ) from error
        if not (unpacked / "onnxruntime" / "__init__.py").is_file():
            raise CarriedError(f"{place}: expected the package onnxruntime/ in its file, got none; carry its wheel")
        unpacked.replace(folder)
    return folder


def _unpack(whole: Path, folder: Path) -> None:
    """Unpack the package of a wheel or a tar file."""
    if zipfile.is_zipfile(whole):
        with zipfile.ZipFile(whole) as wheel:
            wheel.extractall(folder, [name for name in wheel.namelist() if name.startswith("onnxruntime/")])
        return
    with tarfile.open(whole) as archive:
        archive.extractall(folder, filter="data")


def _parts(place: Path) -> list[Path]:
    """Return the one wheel or tar file of a folder, or its parts in their order."""
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(place.iterdir()) if place.is_dir() else ():
        if match := _FILE.fullmatch(path.name):
            found.setdefault(match[1], {})[int(match[2] or 0)] = path
    if len(found) != 1:
        got = " and ".join(found) or "none"
        raise CarriedError(
            f"{place}: expected the package onnxruntime/, or one wheel onnxruntime*.whl or .tar.xz, whole or "
            f"in parts (.whl.00, .whl.01, …), got {got}; docs/benchmarks-cuda.md says how to carry one"
        )
    ((name, parts),) = found.items()
    missing = [number for number in range(max(parts) + 1) if number not in parts]
    if missing:
        raise CarriedError(f"{place}: expected all parts of {name}, got none of number {missing[0]}; carry it too")
    return [parts[number] for number in sorted(parts)]
