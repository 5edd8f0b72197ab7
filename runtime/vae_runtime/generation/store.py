"""The storage of files: a folder of this machine, or a remote store that fsspec reaches."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
import random
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from ..errors import InputError, VaeError, error_line
from ..files import locked, write_atomic
from ..input_files import open_plain

T = TypeVar("T")

# How often a failing request to a remote store is tried, and the first wait in seconds; each wait is twice the last.
_ATTEMPTS, _WAIT = 6, 0.5
# Prefix of the temporary folder of a file that is about to be sent; it is locked as long as the process lives.
_TEMPORARY = "vae-runtime-put-"
# Names that are meant as URLs, although a folder could have one.
_PROTOCOLS = r"(file|local|memory|s3|s3a|gs|gcs|az|abfs|abfss|adl|hdfs|hf|ftp|sftp|ssh|smb|https?):"
# Object stores, which know no user and password in a URL, and repeat them in their messages.
_OBJECTS = ["s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss"]
_PASSWORD = re.compile("(//[^/@:]*:)([^/]*)@")
# How many small files are fetched together.
_TOGETHER = 1000


class LocalStore:
    """A folder of this machine; its files are whole or absent."""

    # Whether files have to be fetched, and whether other processes see written files.
    remote, shared = False, True

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    def __str__(self) -> str:
        return str(self._path)

    @contextlib.contextmanager
    def held(self, *, shared: bool) -> Iterator[None]:
        """Make the folder if necessary, and lock it: for this call, or for all that share it.

        A folder that this call made and left empty is removed.

        Raises:
            VaeError: the folder cannot be made, or another call holds it.
        """
        made = not self._path.exists()
        try:
            self._path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise VaeError(f"{self}: cannot be made: {error_line(error)}; choose another place") from error
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(self._path, shared=shared))
            except BlockingIOError:
                raise VaeError(
                    f"{self}: another call is at work in this folder; wait for it, or give another place"
                ) from None
            except OSError as error:
                raise VaeError(f"{self}: cannot be locked: {error_line(error)}; choose another place") from error
            try:
                yield
            finally:
                if made:
                    # Refused by the system unless the folder is empty.
                    with contextlib.suppress(OSError):
                        self._path.rmdir()

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of each file, by name, without hidden files."""
        try:
            with os.scandir(self._path) as entries:
                names = [entry.name for entry in entries if not entry.name.startswith(".")]
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise VaeError(f"{self}: cannot be read: {error_line(error)}") from error
        return {name: size for name in names if (size := self.size(name)) is not None}

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes; None if it does not exist."""
        try:
            return (self._path / name).stat().st_size
        except OSError:
            return None

    def path(self, name: str) -> Path | None:
        """Return the path of a file on this machine; None if it has to be fetched."""
        return self._path / name

    def read(self, name: str) -> bytes | None:
        """Return the content of a file; None if it does not exist.

        Raises:
            VaeError: the file cannot be read.
        """
        try:
            with open_plain(self._path / name) as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise VaeError(f"{self._path / name}: cannot be read: {error_line(error)}") from error

    def read_all(self, names: Iterable[str]) -> Iterator[bytes | None]:
        """Return the contents of several small files, like `read`."""
        return map(self.read, names)

    def write(self, name: str, content: bytes | Callable[[IO[bytes]], None]) -> None:
        """Write a file, whole or not at all; a callable gets the open file to write to.

        Raises:
            VaeError: the file cannot be written.
        """
        try:
            write_atomic(self._path / name, content)
        except VaeError:
            if not self._path.is_dir():
                raise VaeError(
                    f"{self}: the folder was removed or moved in the meantime; run the same command again"
                ) from None
            raise

    def create(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all, unless it exists already.

        Raises:
            VaeError: the file cannot be written.
        """
        temporary = f".{name}.{secrets.token_hex(8)}.tmp"
        self.write(temporary, content)
        try:
            # A rename would replace the file of another call.
            os.link(self._path / temporary, self._path / name)
        except FileExistsError:
            pass
        except OSError:
            # The file system has no hard links.
            self.write(name, content)
        finally:
            self.remove(temporary)

    def sha256(self, name: str) -> str:
        """Return the SHA-256 of a file.

        Raises:
            VaeError: the file cannot be read.
        """
        try:
            with (self._path / name).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise VaeError(f"{self._path / name}: cannot be read: {error_line(error)}") from error

    def whole(self, name: str, sha256: str) -> bool:
        """Return whether a file has the right content; its size has been checked."""
        return self.sha256(name) == sha256

    def remove(self, name: str) -> None:
        """Remove a file, if it exists."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path / name)

    def free(self) -> int | None:
        """Return how many bytes may still be written, where the folder is or would be made; None if unknown."""
        path = self._path.absolute()
        there = next((each for each in (path, *path.parents) if each.exists()), None)
        return None if there is None else shutil.disk_usage(there).free

    def remove_temporary(self, names: str) -> None:
        """Remove the temporary files of calls that were killed.

        Args:
            names: a regular expression for the names of the files that were being written.
        """
        temporary = re.compile(rf"\.{{1,2}}({names})\.[^.]+\.tmp(\.[^.]+\.tmp)?")
        with os.scandir(self._path) as entries:
            for path in [entry.path for entry in entries if temporary.fullmatch(entry.name)]:
                with contextlib.suppress(OSError):
                    os.unlink(path)

    def absolute(self) -> LocalStore:
        """Return the same store for processes with another working directory."""
        return LocalStore(self._path.absolute())


class RemoteStore:
    """A place that fsspec reaches by its URL, such as the objects of a bucket under a prefix.

    A file appears by a put: in an object store whole or not at all. Nothing is locked: two calls of the same job write
    the same bytes.
    """

    remote = True

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self.shared = not url.startswith("memory:")

    def __str__(self) -> str:
        return without_password(self._url)

    def _line(self, error: Exception) -> str:
        """Return a library's message in one line, without the password of the URL."""
        password = _PASSWORD.search(self._url)
        if password is None:
            return error_line(error)
        from urllib.parse import unquote

        text = str(error) or type(error).__name__
        for spelling in (password[2], unquote(password[2])):
            text = text.replace(f"{spelling}@", "…@").replace(f":{spelling}", ":…") if spelling else text
        return error_line(VaeError(text))

    def __reduce__(self) -> tuple[Any, ...]:
        # Connections are not pickled.
        return RemoteStore, (self._url,)

    @functools.cached_property
    def _place(self) -> tuple[Any, str]:
        """The file system of fsspec, and the path in it."""
        try:
            from fsspec.core import url_to_fs
        except ImportError as error:
            raise VaeError(
                f"{self}: remote stores need fsspec, which is not installed: pip install 'vae-runtime[remote]'"
            ) from error
        try:
            place: tuple[Any, str] = url_to_fs(self._url)
        except ImportError as error:
            extra = "; pip install 'vae-runtime[remote]'" if self._url.startswith("s3") else ""
            raise VaeError(f"{self}: {self._line(error)}{extra}") from error
        except ValueError as error:
            raise InputError(f"{self}: expected a URL that fsspec knows: {self._line(error)}") from None
        except Exception as error:  # some file systems connect at once, and raise errors of their own
            raise VaeError(f"{self}: cannot be reached: {self._line(error)}; check the URL") from error
        return place

    def _do(self, what: str, name: str, do: Callable[[Any, str], T]) -> T:
        """Do an operation on a file, and repeat it if it fails."""
        fs, root = self._place
        place = f"{self}/{name}" if name else str(self)
        for attempt in itertools.count(1):
            try:
                return do(fs, f"{root}/{name}" if name else root)
            except Exception as raised:  # each file system raises errors of its own
                error = _reason(raised)
                if isinstance(error, (FileNotFoundError, FileExistsError)):
                    raise
                if _lasting(error):
                    raise VaeError(
                        f"{place}: {what} is refused: {self._line(error)}; check the URL and the credentials"
                    ) from error
                if attempt == _ATTEMPTS:
                    raise VaeError(
                        f"{place}: {what} failed {attempt} times: {self._line(error)}; run the same command again "
                        "to go on, once the store can be reached"
                    ) from error
            # A random wait keeps workers from asking at the same moment.
            time.sleep(_WAIT * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
        raise AssertionError

    @contextlib.contextmanager
    def held(self, *, shared: bool) -> Iterator[None]:
        """Lock nothing: see the class."""
        yield

    def remove_temporary(self, names: str) -> None:
        """Remove the files, on this machine, that killed calls did not send."""
        for folder in Path(tempfile.gettempdir()).glob(f"{_TEMPORARY}*"):
            with contextlib.suppress(OSError), locked(folder):
                shutil.rmtree(folder, ignore_errors=True)

    def absolute(self) -> RemoteStore:
        """Return this store: its URL is the same everywhere."""
        return self

    def sizes(self) -> dict[str, int]:
        """As in `LocalStore`."""

        def look(fs: Any, path: str) -> dict[str, int]:
            fs.invalidate_cache()
            sizes = ((each["name"].rpartition("/")[2], each["size"]) for each in fs.ls(path, detail=True))
            return {name: size or 0 for name, size in sizes if name and not name.startswith(".")}

        try:
            return self._do("listing", "", look)
        except FileNotFoundError:
            return {}

    def size(self, name: str) -> int | None:
        """As in `LocalStore`."""
        try:
            return self._do("looking", name, _size)
        except FileNotFoundError:
            return None

    def path(self, name: str) -> Path | None:
        """Return None: all files have to be fetched."""
        return None

    def read(self, name: str) -> bytes | None:
        """As in `LocalStore`."""
        try:
            content: bytes = self._do("reading", name, lambda fs, path: fs.cat_file(path))
        except FileNotFoundError:
            return None
        return content

    def fetch(self, name: str, limit: int) -> bytes:
        """Return the content of a file of at most `limit` bytes.

        Raises:
            VaeError: it is missing or larger, or cannot be read.
        """

        def read(fs: Any, path: str) -> bytes:
            with fs.open(path, "rb") as file:
                content: bytes = file.read(limit + 1)
                return content

        try:
            content = self._do("reading", name, read)
        except FileNotFoundError as error:
            raise VaeError(f"{self}/{name}: missing; check the URL") from error
        if len(content) > limit:
            raise VaeError(f"{self}/{name}: expected at most {limit} bytes, got more; check the URL")
        return content

    def read_all(self, names: Iterable[str]) -> Iterator[bytes | None]:
        """As in `LocalStore`; as many at once as the store serves."""
        waiting = iter(names)
        while some := list(itertools.islice(waiting, _TOGETHER)):

            def fetch(fs: Any, path: str, some: list[str] = some) -> list[bytes | None]:
                answers = fs.cat([f"{path}/{name}" for name in some], on_error="return")
                contents = [answers[f"{path}/{name}"] for name in some]
                for content in contents:
                    if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                        raise content
                return [None if isinstance(content, Exception) else content for content in contents]

            yield from self._do("reading", "", fetch)

    def write(self, name: str, content: bytes | Callable[[IO[bytes]], None]) -> None:
        """As in `LocalStore`. The output of a callable is kept in a temporary file of this machine until it is sent."""
        if isinstance(content, bytes):
            self._put(name, len(content), lambda fs, path: fs.pipe_file(path, content))
            return
        with tempfile.TemporaryDirectory(prefix=_TEMPORARY) as folder, locked(Path(folder)):
            file = Path(folder, name)
            try:
                with file.open("wb") as opened:
                    content(opened)
            except OSError as error:
                raise VaeError(
                    f"{file}: not written: {error_line(error)}; free some space, or set TMPDIR to a larger disk"
                ) from error
            self._put(name, file.stat().st_size, lambda fs, path: fs.put_file(str(file), path))

    def create(self, name: str, content: bytes) -> None:
        """As in `LocalStore`, in stores that support it; others replace the file."""
        with contextlib.suppress(FileExistsError):
            self._put(name, len(content), lambda fs, path: fs.pipe_file(path, content, mode="create"))

    def _put(self, name: str, size: int, send: Callable[[Any, str], object]) -> None:
        def put(fs: Any, path: str) -> None:
            send(fs, path)
            stored = _size(fs, path)
            if stored != size:
                raise OSError(f"{size} bytes were sent, the store has {stored}")

        try:
            self._do("writing", name, put)
        except FileNotFoundError as error:
            raise VaeError(
                f"{self}/{name}: cannot be written: {self._line(error)}; create the bucket or folder first"
            ) from error

    def sha256(self, name: str) -> str:
        """As in `LocalStore`; fetches the file."""

        def read(fs: Any, path: str) -> str:
            with fs.open(path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()

        try:
            return self._do("reading", name, read)
        except FileNotFoundError as error:
            raise VaeError(f"{self}/{name}: cannot be read: the file is missing") from error

    def whole(self, name: str, sha256: str) -> bool:
        """Return True: to hash the file here would be to fetch all of it."""
        return True

    def remove(self, name: str) -> None:
        """As in `LocalStore`."""
        with contextlib.suppress(FileNotFoundError):
            self._do("removing", name, lambda fs, path: fs.rm_file(path))

    def free(self) -> int | None:
        """Return None: the free space is unknown."""
        return None


Store = LocalStore | RemoteStore


def open_store(out: str | os.PathLike[str] | Store) -> Store:
    """Return the store at a folder or a URL such as s3://bucket/prefix, which need not exist yet.

    Raises:
        InputError: it is neither a folder nor such a URL.
    """
    if isinstance(out, Store):
        return out
    try:
        text = os.fspath(out)
    except TypeError:
        text = ""
    if not isinstance(text, str) or not text:
        raise InputError(f"out: expected a folder or a URL, got {out!r}")
    protocol, slashes, rest = text.partition("://")
    if not slashes:
        if re.match(_PROTOCOLS, text):
            raise InputError(
                f"{text}: expected two slashes after the colon of a URL; for a folder of this name give ./{text}"
            )
        return LocalStore(text)
    if protocol in ("file", "local"):
        from urllib.request import url2pathname

        path = rest.removeprefix("localhost")
        if not path.startswith("/") or "?" in path or "#" in path:
            raise InputError(
                f"{text}: expected file:///… with three slashes and an absolute path, without ? or #; or give the path "
                "alone"
            )
        return LocalStore(url2pathname(path))
    if protocol in _OBJECTS and ":" in rest.rpartition("@")[0].partition("/")[0]:
        raise InputError(
            f"{protocol}://…: expected a URL without user and password, got one with them; give them to the library of "
            "the store, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment"
        )
    if "::" in text or not re.fullmatch(r"[a-z][a-z0-9+.-]*", protocol):
        raise InputError(f"{without_password(text)}: expected a folder or one URL")
    return RemoteStore(text)


def without_password(url: str) -> str:
    """Return a URL as messages show it. They end in logs: never log passwords."""
    return _PASSWORD.sub(r"\1…@", url)


def _size(fs: Any, path: str) -> int:
    fs.invalidate_cache()
    size: int = fs.info(path)["size"]
    return size


def _reason(error: Exception) -> Exception:
    """Return why a file cannot be read, which fsspec's HTTP hides behind an error of a missing file."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and isinstance(cause, Exception):
        # Other libraries give a cause for files that are missing, too.
        unreachable = isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
        if unreachable or getattr(cause, "status", 404) not in (404, 410):
            return cause
    return error


def _lasting(error: Exception) -> bool:
    """Return whether an error is permanent, so that another try is of no use."""
    known = (PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError, ImportError, TypeError)
    # The libraries behind fsspec have no common base class of errors.
    refused = 400 <= getattr(error, "status", 0) < 500 and getattr(error, "status", 0) not in (408, 429)
    return isinstance(error, known) or refused or any(word in type(error).__name__ for word in ("Credential", "Param"))
