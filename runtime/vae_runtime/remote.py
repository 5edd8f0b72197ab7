"""Fetch bundles by URL, from the Hugging Face Hub or any store that fsspec reaches, into a cache on this machine."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .errors import InputError, VaeError, error_line, require_number
from .files import write_atomic, write_folder
from .places import (
    SIGNATURE,
    SIGNATURE_SUFFIX,
    SUMS,
    digest_of,
    is_zip,
    open_place,
    read_listed,
    read_sums,
    signature_of,
)

# Set to a folder to keep the cache there, and to a number of GiB to bound it.
FOLDER, SIZE = "VAE_RUNTIME_CACHE", "VAE_RUNTIME_CACHE_SIZE"
_DEFAULT_GIB = 10.0
# Above any real list of files, and the largest .zip file that a bundle can have.
_MAX_SUMS, _MAX_ZIP = 2**20, 2**32
_HUB = re.compile("hf://([A-Za-z0-9._-]+/[A-Za-z0-9._-]+)(?:@([A-Za-z0-9._-]+))?((?:/[A-Za-z0-9._-]+)*)/?")
_COMMIT = re.compile("[0-9a-f]{40}")


def fetch(url: str, digest: str | None, *, signed: bool = False) -> str:
    """Fetch a bundle, unless it is in the cache, and return its local path.

    Args:
        url: hf://org/name@revision, also with a folder of the repository behind it; or the URL of a folder or a .zip
            file that fsspec reaches, such as s3://… or https://….
        digest: of the bundle, "sha256:…". Only a commit of the Hub may do without.
        signed: whether its signature is fetched too.

    Raises:
        InputError: the URL has another form, or what it leads to may change and there is no digest.
        VaeError: a library is missing, or the bundle cannot be fetched or is not the one of the digest.
    """
    if url.startswith("hf://"):
        return _from_hub(url, digest, signed)
    from .generation.store import open_store

    local = open_store(url).path("")
    if local is not None:
        return str(local)
    if digest is None:
        raise InputError(
            f"path: expected a digest with {_shown(url)}, since a URL may lead to another bundle, got none; give "
            "digest=, as `vae-runtime info` prints it"
        )
    name = digest.removeprefix("sha256:")
    for entry in (cache_folder() / name, cache_folder() / f"{name}.zip"):
        if entry.exists():
            # The time of its last use.
            with contextlib.suppress(OSError):
                os.utime(entry)
            break
    else:
        entry = _from_store(url, digest, cache_folder() / name)
    if signed and not signature_of(entry).exists():
        _fetch_signature(url, entry)
    return str(entry)


def fetch_signature_again(url: str, path: str) -> bool:
    """Fetch the signature of a bundle in the cache again, and return whether that was possible.

    Args:
        url: where the bundle came from.
        path: as `fetch` returned it.
    """
    entry = Path(path)
    if entry.parent != cache_folder():
        return False
    try:
        _fetch_signature(url, entry)
    except VaeError:
        return False
    return True


def _fetch_signature(url: str, entry: Path) -> None:
    plain, question, query = url.partition("?")
    content = _fetch_file(
        f"{plain}{SIGNATURE_SUFFIX if is_zip(entry) else f'/{SIGNATURE}'}{question}{query}", _MAX_SUMS
    )
    write_atomic(signature_of(entry), content)


def _fetch_file(url: str, limit: int) -> bytes:
    from .generation.store import RemoteStore

    plain, question, query = url.partition("?")
    parent, _, name = plain.rpartition("/")
    try:
        return RemoteStore(parent).fetch(name + question + query, limit)
    except VaeError as error:
        # The signature of a URL opens what it leads to. Libraries repeat it in their messages.
        raise type(error)(re.sub(r"\?[^\s;'\"]*[^\s;:'\"]", "?…", str(error))) from None


def _shown(url: str) -> str:
    from .generation.store import without_password

    # Nor the signature of a URL.
    return without_password(url.partition("?")[0])


def _from_hub(url: str, digest: str | None, signed: bool) -> str:
    """Fetch the files of a bundle in a repository into the Hub's own cache, and return the folder in it."""
    match = _HUB.fullmatch(url)
    if match is None or ".." in url:
        raise InputError(f"path: expected hf://org/name@revision or hf://org/name@revision/folder, got {url!r:.200}")
    repository, revision, folder = match[1], match[2] or "main", match[3].strip("/")
    if digest is None and not _COMMIT.fullmatch(revision):
        raise InputError(
            f"path: expected a commit, hf://{repository}@<40 hexadecimal digits>, or a digest, got the revision "
            f"{revision}, which may change; give digest=, as `vae-runtime info` prints it"
        )
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError as error:
        raise VaeError(
            f"{url}: the Hub needs huggingface_hub, which is not installed: pip install 'vae-runtime[hub]'"
        ) from error
    prefix = f"{folder}/" if folder else ""
    try:
        path = Path(hf_hub_download(repository, prefix + SUMS, revision=revision))
        root = path.parents[len(Path(folder).parts)]
        sums = open_place(str(path.parent)).read(SUMS, limit=_MAX_SUMS)
        if digest is not None:
            _require_digest(url, sums, digest)
        for name in read_sums(sums, f"{url}/{SUMS}"):
            # A branch may have moved since: the commit is the name of the folder of its files.
            hf_hub_download(repository, prefix + name, revision=root.name)
        if signed:
            try:
                hf_hub_download(repository, prefix + SIGNATURE, revision=root.name)
            except LocalEntryNotFoundError:  # the Hub cannot be reached
                raise
            except EntryNotFoundError:  # the check of the signature tells that there is none
                pass
    except VaeError:
        raise
    except Exception as error:  # the Hub's library raises errors of several others
        raise VaeError(
            f"{url}: cannot be fetched: {error_line(error)}; check the name, the revision, the network, and for a "
            "private repository your token (hf auth login, or HF_TOKEN)"
        ) from error
    return str(root / folder)


def _require_digest(url: str, sums: bytes, digest: str) -> None:
    actual = digest_of(sums)
    if actual != digest:
        raise VaeError(f"{_shown(url)}: expected the digest {digest}, got {actual}; use the bundle that it belongs to")


def _from_store(url: str, digest: str, target: Path) -> Path:
    """Fetch a bundle into the cache, where it appears once it is whole and verified."""
    from .generation.store import RemoteStore

    cache = target.parent
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VaeError(f"{cache}: cannot be made: {error_line(error)}; set {FOLDER} to another folder") from error

    def require_sound(path: Path) -> None:
        place = open_place(str(path))
        sums = place.read(SUMS, limit=_MAX_SUMS)
        _require_digest(url, sums, digest)
        listed = read_sums(sums, f"{_shown(url)}/{SUMS}")
        for name in listed:
            read_listed(place, name, listed)

    if url.partition("?")[0].lower().endswith(".zip"):
        target = target.with_suffix(".zip")
        # Checked under another name, which no other process takes for the bundle.
        unchecked = cache / f".{secrets.token_hex(8)}.zip"
        try:
            write_atomic(unchecked, _fetch_file(url, _MAX_ZIP))
            require_sound(unchecked)
            os.replace(unchecked, target)
        finally:
            unchecked.unlink(missing_ok=True)
    else:
        store = RemoteStore(url)
        sums = store.fetch(SUMS, _MAX_SUMS)
        _require_digest(url, sums, digest)
        listed = read_sums(sums, f"{_shown(url)}/{SUMS}")
        files = {SUMS: sums, **{name: store.fetch(name, _MAX_ZIP) for name in listed}}
        write_folder(target, files, replace=True, check=require_sound)
    prune(cache_limit(), keep=target)
    return target


# The cache.


class Entry(NamedTuple):
    """A bundle in the cache: its path, its size in bytes, and the time of its last use, in seconds since 1970."""

    path: Path
    size: int
    used: float

    @property
    def digest(self) -> str:
        """The digest of the bundle."""
        return f"sha256:{self.path.name.removesuffix('.zip')}"


def cache_folder() -> Path:
    """Return the folder of the cache, which may not exist yet."""
    chosen = os.environ.get(FOLDER)
    if chosen:
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vae-runtime"


def cache_limit() -> float:
    """Return the size in GiB to which the cache is kept.

    Raises:
        InputError: the environment sets it to something else than a number.
    """
    text = os.environ.get(SIZE)
    if not text:
        return _DEFAULT_GIB
    try:
        return require_number(SIZE, float(text), 0, 1e9)
    except ValueError:
        raise InputError(f"{SIZE}: expected a number of GiB, got {text!r:.99}") from None


def entries() -> list[Entry]:
    """Return the bundles in the cache, the last used first.

    Raises:
        VaeError: the cache is no folder, or cannot be read.
    """
    try:
        return sorted(_entries(), key=lambda entry: -entry.used)
    except OSError as error:
        folder = cache_folder()
        raise VaeError(
            f"{folder}: expected a folder to keep bundles in: {error_line(error)}; set {FOLDER} to another folder"
        ) from error


def _entries() -> Iterator[Entry]:
    with contextlib.suppress(FileNotFoundError):
        for path in cache_folder().iterdir():
            if re.fullmatch(r"[0-9a-f]{64}(\.zip)?", path.name):
                # Another process may remove it meanwhile.
                with contextlib.suppress(FileNotFoundError):
                    files = [path, *path.rglob("*")]
                    yield Entry(path, sum(file.lstat().st_size for file in files), path.stat().st_mtime)


def prune(gib: float, keep: Path | None = None) -> list[Entry]:
    """Remove the bundles that were not used for longest, until the others fit into a size.

    Args:
        gib: the size in GiB.
        keep: a bundle that stays.

    Returns:
        The bundles that were removed.
    """
    removed: list[Entry] = []
    total = 0
    for entry in entries():
        if entry.path != keep and total + entry.size > gib * 2**30:
            # It disappears at once: a process that opens it later finds nothing, and no half.
            hidden = entry.path.with_name(f".{secrets.token_hex(8)}.removed")
            with contextlib.suppress(FileNotFoundError):
                os.rename(entry.path, hidden)
                removed.append(entry)
            signature_of(entry.path).unlink(missing_ok=True)
            if hidden.is_dir():
                shutil.rmtree(hidden, ignore_errors=True)
            else:
                hidden.unlink(missing_ok=True)
        else:
            total += entry.size
    return removed
