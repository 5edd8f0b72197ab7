"""Write files and folders that are whole or absent: under a temporary name, synced, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

from .errors import VaeError, error_line

_PARTIAL, _ASIDE = ".partial", ".aside"


def write_atomic(path: str | os.PathLike[str], write: bytes | Callable[[IO[bytes]], None]) -> None:
    """Write a file so that the path holds its old content or all of the new, whatever interrupts it.

    Args:
        path: the file to write; its folder must exist.
        write: the content, or a function that writes it to the open binary file it is given.

    Raises:
        VaeError: the folder is missing or not writable, the disk is full, or the path is a pipe or a device; nothing is
            left behind.
    """
    target = Path(path)
    require_replaceable(target)
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    except OSError as error:
        raise VaeError(f"{target}: cannot write here: {error_line(error)}; {another_place(error)}") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            if isinstance(write, bytes):
                file.write(write)
            else:
                write(file)
            file.flush()
            os.fsync(file.fileno())
            # mkstemp makes files private; give the result the permissions of any other new file.
            if hasattr(os, "fchmod"):
                os.fchmod(file.fileno(), 0o666 & ~_umask())
        os.replace(temporary, target)
        sync_folder(target.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise VaeError(f"{target}: not written: {_reason(error)}; {_advice(error)}") from error
        raise


def require_replaceable(path: str | os.PathLike[str]) -> None:
    """Refuse to replace a pipe, a socket or a device, which another program may use, by a file.

    Raises:
        VaeError: the path is one of these.
    """
    with contextlib.suppress(OSError):
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise VaeError(f"{path}: expected a plain file to replace, got a pipe or a device; choose another place")


def write_folder(
    target: str | os.PathLike[str],
    files: Mapping[str, bytes | Path | Callable[[], bytes]],
    *,
    replace: bool = False,
    check: Callable[[Path], object] | None = None,
) -> None:
    """Write a folder so that the path holds the old folder or all of the new, whatever interrupts it.

    The files are written and synced in a hidden folder beside the target, which is then renamed. To replace a folder,
    the two are exchanged in one step where the system can (Linux, macOS). Elsewhere the old one is moved aside first;
    if this call is killed in between, the next one puts it back. What killed calls left behind is removed.

    Args:
        target: the folder to write; missing parents are made.
        files: the content of each file, a file to copy it from, or a function that returns it, by the file's relative
            path, with forward slashes.
        replace: whether an existing folder is replaced.
        check: called with the hidden folder once it is whole; an error that it raises leaves the target as it was.

    Raises:
        VaeError: the target exists, is not a folder, or cannot be written; nothing is left behind.
    """
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clean_up(target)
        if os.path.lexists(target) and not replace:
            raise VaeError(f"{target}: already exists; choose another place or replace it with --force")
        if target.is_symlink() or (target.exists() and not target.is_dir()):
            raise VaeError(f"{target}: expected a folder, got a file or a link; choose another place")
        with _partial(target) as partial:
            try:
                _fill_folder(partial, files)
                if check is not None:
                    check(partial)
                _place(partial, target, replace)
                sync_folder(target.parent)
            except OSError as error:
                raise VaeError(f"{target}: not written: {_reason(error)}; {_advice(error)}") from error
    except OSError as error:
        raise VaeError(f"{target}: cannot write here: {error_line(error)}; {another_place(error)}") from error


@contextlib.contextmanager
def _partial(target: Path) -> Iterator[Path]:
    """Make a hidden folder beside the target, locked; remove it, or what took its name, in the end."""
    with contextlib.ExitStack() as lock:
        while True:
            partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=_PARTIAL, dir=target.parent))
            # Before it has its lock, another call may take it for one that was left behind, and remove it.
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                lock.enter_context(locked(partial))
                if partial.exists():
                    break
            lock.close()
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _place(partial: Path, target: Path, replace: bool) -> None:
    """Let a folder take the place of another, or an empty place that another call may fill first."""
    if not os.path.lexists(target):
        with contextlib.suppress(OSError) if replace else contextlib.nullcontext():
            os.rename(partial, target)
            return
    _swap(partial, target)


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents so that they survive a power failure."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in reversed(missing):
        sync_folder(each.parent)


def switch_link(link: Path, target: str) -> None:
    """Let a symbolic link lead to a target; whatever interrupts it, the link leads to the old target or the new one.

    Raises:
        VaeError: the link cannot be made; it leads where it led.
    """
    temporary = link.with_name(f".{link.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        os.symlink(target, temporary)
        os.replace(temporary, link)
        sync_folder(link.parent)
    except OSError as error:
        raise VaeError(f"{link}: not written: {error_line(error)}; {_advice(error)}") from error


def lies_in(path: str | os.PathLike[str], place: str | os.PathLike[str]) -> bool:
    """Return whether a path is an existing file or folder, or lies in it, by whatever name."""
    with contextlib.suppress(OSError, ValueError):
        resolved, status = Path(os.path.realpath(path)), os.stat(place)
        for each in (resolved, *resolved.parents):
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(each), status):
                    return True
    return False


def _fill_folder(folder: Path, files: Mapping[str, bytes | Path | Callable[[], bytes]]) -> None:
    os.chmod(folder, 0o777 & ~_umask())
    folders = {folder}
    for relative, content in files.items():
        path = folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        folders.update(parent for parent in path.parents if parent.is_relative_to(folder))
        with path.open("xb") as file:
            if isinstance(content, Path):
                with content.open("rb") as original:
                    shutil.copyfileobj(original, file)
            else:
                file.write(content if isinstance(content, bytes) else content())
            file.flush()
            os.fsync(file.fileno())
    for each in folders:
        sync_folder(each)


def _swap(new: Path, target: Path) -> None:
    if _exchange(new, target):
        return
    aside = new.with_suffix(_ASIDE)
    os.rename(target, aside)
    try:
        os.rename(new, target)
    except BaseException:
        os.rename(aside, target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; return False where the system or the file system cannot."""
    import ctypes

    at_cwd, paths = -100, (os.fsencode(one), os.fsencode(other))
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "linux":
            failed = libc.renameat2(at_cwd, paths[0], at_cwd, paths[1], 2)  # RENAME_EXCHANGE
        elif sys.platform == "darwin":
            failed = libc.renamex_np(paths[0], paths[1], 2)  # RENAME_SWAP
        else:
            return False
    except (AttributeError, OSError, TypeError):
        return False
    number = ctypes.get_errno()
    if failed and number not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        raise OSError(number, os.strerror(number))
    return not failed


def _clean_up(target: Path) -> None:
    """Put back a folder that a killed call moved aside, and remove what such calls left."""
    # Only mkdtemp's names: the targets "a" and "a.b" must not take each other's folders.
    ours = re.compile(rf"\.{re.escape(target.name)}\.[^.]+({re.escape(_PARTIAL)}|{re.escape(_ASIDE)})")
    with os.scandir(target.parent) as entries:
        left = [Path(entry) for entry in entries if ours.fullmatch(entry.name)]
    for folder in left:
        if folder.suffix == _ASIDE and not os.path.lexists(target):
            os.rename(folder, target)
        else:
            # Another process may hold it, or have removed it first.
            with contextlib.suppress(BlockingIOError, FileNotFoundError), locked(folder):
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold a lock that ends with the process, so that no call takes an unfinished folder for one left behind.

    Args:
        folder: the folder to lock.
        shared: whether other holders may share the lock.

    Raises:
        BlockingIOError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows refuses to remove open files, which serves the purpose
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Make a rename inside `folder` survive a power failure, where the system can (POSIX)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: OSError) -> str:
    # numpy says neither why a write ended early nor what it counts.
    short = re.fullmatch(r"(\d+) requested and (\d+) written", str(error))
    return f"no space left after {short[2]} of {short[1]} values" if short else error_line(error)


def another_place(error: OSError) -> str:
    """Return what to do where no file or folder can be made."""
    too_long = error.errno == errno.ENAMETOOLONG
    return "choose a shorter name" if too_long else "choose a folder that exists and is writable"


def _advice(error: OSError) -> str:
    full = error.errno in (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return "free some space or choose another place" if full else "choose another place"


def _umask() -> int:
    # Python reads the mask only by setting it, which races with other threads; Linux shows it in /proc.
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("Umask:"):
                    return int(line.split()[1], 8)
    except OSError:
        pass
    return 0o022
