"""Install bundles on a device: verify each before the link `current` leads to it, and keep the one before."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import os
import re
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .bundle import Bundle, open_bundle
from .devices import parse_device
from .errors import BundleError, InputError, VaeError, error_line, require_bool, require_integer
from .files import lies_in, locked, make_folder, switch_link, sync_folder, write_atomic, write_folder
from .places import SIGNATURE, SUMS
from .verification import verify

_LINK, _RELEASES, _RECORD, _HISTORY = "current", "releases", "release.json", "history.jsonl"
_TARGET = re.compile(f"{_RELEASES}/([0-9]{{6,12}})/bundle")
# The history stays short; the space beside the bundle is for it and for the records.
_MAX_EVENTS, _MAX_NAME, _SPARE = 1000, 200, 2**20


@dataclasses.dataclass(frozen=True)
class Release:
    """A bundle as it was installed.

    Attributes:
        path: the bundle's folder, to load.
        number: releases are numbered from 1.
        name: of the bundle.
        version: `package_version` of the bundle, such as "1.2.0"; None where it has none.
        digest: of the bundle, "sha256:…".
        device: on which it was verified.
        time: of its installation, in UTC, such as "2026-11-28T06:30:00Z".
        previous: the number of the release that it took the place of, or None.
    """

    path: str
    number: int
    name: str
    version: str | None
    digest: str
    device: str
    time: str
    previous: int | None


@dataclasses.dataclass(frozen=True)
class Event:
    """A line of the history: what was done when. `result` is "ok", or "failed: " and the reason.

    The fields between `action` and `result` are those of `Release`; None where they were not known yet. `seconds` is
    the median time of a call for one observation, by work and variant, such as {"decode fp32": 0.0004}; None of an
    install that was not asked to time the bundle.
    """

    time: str
    action: str
    release: int | None
    name: str | None
    version: str | None
    digest: str | None
    device: str | None
    result: str
    seconds: Mapping[str, float] | None = None


def install(
    source: str | os.PathLike[str],
    root: str | os.PathLike[str],
    *,
    device: str = "cpu",
    provider_options: Mapping[str, Any] | None = None,
    digest: str | None = None,
    key: str | os.PathLike[str] | None = None,
    keep: int = 2,
    allow_older: bool = False,
    again: bool = False,
    bench: bool = False,
) -> Release:
    """Copy a bundle to this device, verify the copy, and let ROOT/current lead to it.

    Whatever interrupts this, a kill or on Linux a power failure, ROOT/current leads to the old bundle or to the new
    one, whole and verified. The next call removes what an interrupted one left. A bundle that is installed already, for
    the same device, is hashed again and stays; it only gets the signature of a folder.

    Args:
        source: a folder, a .zip file or a URL, as in `load`.
        root: the folder of the installation; a missing one is made.
        device: where the golden vectors are replayed, as in `load`.
        provider_options: as in `load`.
        digest: as in `load`.
        key: as in `load`. The signature of a folder is copied, too.
        keep: how many releases stay, with the new one, at least 2.
        allow_older: whether a version below the installed one is taken, and one without a version after one with it.
        again: whether a bundle is taken that was rolled back.
        bench: whether a new copy is timed before the switch. The history keeps the times.

    Returns:
        The release that ROOT/current leads to.

    Raises:
        BundleError: the source is no bundle, or damaged.
        DeviceError: the device is unavailable.
        InputError: an argument has the wrong form.
        VaeError: the bundle is older, was rolled back, fails its verification or does not fit onto the disk; another
            process installs into the same root, or the record of a release there is damaged; or this is neither Linux
            nor macOS. Whatever is raised, ROOT/current leads where it led.
    """
    device = parse_device(device)
    keep = require_integer("keep", keep, 2, 1000)
    require_bool("allow_older", allow_older)
    require_bool("again", again)
    require_bool("bench", bench)
    if bench and provider_options:
        raise InputError("bench: expected False with provider_options, got True; time the bundle without them")
    folder = _folder(root)
    _require_posix(folder)
    if isinstance(source, (str, os.PathLike)) and lies_in(folder, source):
        raise InputError(f"root: expected a place outside the bundle, got {folder}")
    try:
        make_folder(folder / _RELEASES)
    except OSError as error:
        raise VaeError(f"{folder}: cannot be made: {error_line(error)}; choose a root that is writable") from error
    bundle = None
    with _alone(folder):
        active = _active(folder)
        try:
            bundle = open_bundle(source, digest, key)
            if active is None or active.device != device or not _is_sound(active, bundle.digest):
                if not allow_older:
                    _require_newer(bundle, active)
                if not again and bundle.digest in _left(_events(folder)):
                    raise VaeError(
                        f"{bundle.root}: this bundle was rolled back here; install another, or this with `again`"
                    )
                # What is removed first makes room, and releases that never were in use do not gather.
                _prune(folder, active, keep)
                active = _copy(bundle, folder, active, device, provider_options)
                _switch(folder, "install", active, _seconds(active) if bench else None)
            elif bundle.files.holds(SIGNATURE):
                # It may have been signed since it was installed.
                write_atomic(Path(active.path, SIGNATURE), bundle.files.read(SIGNATURE, limit=_SPARE))
        except VaeError as error:
            with contextlib.suppress(VaeError):  # the first error is the one to tell
                _note(folder, _failure("install", bundle, device, error))
            raise
        _prune(folder, active, keep)
    return active


def rollback(root: str | os.PathLike[str]) -> Release:
    """Let ROOT/current lead to the release before, after hashing its files.

    `install` refuses the bundle that was left until it is told `again`.

    Returns:
        The release that ROOT/current leads to now.

    Raises:
        InputError: the root is not a path.
        VaeError: there is no release before, it is damaged, or this is neither Linux nor macOS; ROOT/current leads
            where it led.
    """
    folder = _folder(root)
    _require_posix(folder)
    _require_installed(folder)
    with _alone(folder):
        current = _require_installed(folder)
        try:
            target = None if current.previous is None else _release(folder, current.previous)
            if target is None:
                raise VaeError(
                    f"{folder}: no release before {current.number} is kept; install the bundle that you want"
                )
            if not _is_sound(target, target.digest):
                raise VaeError(f"{target.path}: damaged; install the bundle that you want")
            _switch(folder, "rollback", target)
        except VaeError as error:
            with contextlib.suppress(VaeError):
                _note(folder, _failure("rollback", None, None, error))
            raise
    return target


def status(root: str | os.PathLike[str]) -> tuple[Release, ...]:
    """Return the release that ROOT/current leads to, then those that `rollback` goes to, one after the other.

    Raises:
        InputError: the root is not a path.
        VaeError: nothing is installed there.
    """
    folder = _folder(root)
    return tuple(_chain(folder, _require_installed(folder)))


def history(root: str | os.PathLike[str]) -> tuple[Event, ...]:
    """Return what was done in a root, the first event first; beyond 1000, the oldest failures are forgotten first.

    Raises:
        InputError: the root is not a path.
        VaeError: nothing was installed there.
    """
    folder = _folder(root)
    events = _events(folder)
    with contextlib.suppress(VaeError, OSError):  # a damaged record hides no event
        events += _unwritten(folder, events)
    if not events and not (folder / _HISTORY).exists():
        raise VaeError(f"{folder}: nothing is installed here; run `vae-runtime install SOURCE --root {folder}`")
    return tuple(events)


def _folder(root: str | os.PathLike[str]) -> Path:
    try:
        return Path(root)
    except TypeError:
        raise InputError(f"root: expected the path of a folder, got {root!r:.99}") from None


def _require_posix(folder: Path) -> None:
    # Elsewhere neither a folder is locked nor a link replaced in one step.
    if os.name != "posix":
        raise VaeError(f"{folder}: expected Linux or macOS, got {sys.platform}; load the bundle from its own folder")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a root; write down first what a killed process did and could not."""
    try:
        with locked(folder):
            # A full disk must not keep a device from going back.
            with contextlib.suppress(VaeError):
                for event in _unwritten(folder, _events(folder)):
                    _note(folder, event)
            yield
    except BlockingIOError:
        raise VaeError(f"{folder}: another process installs here; wait until it has ended") from None
    except OSError as error:
        place = error.filename or folder
        raise VaeError(f"{place}: {error_line(error)}; check the root, or choose another") from error


def _unwritten(folder: Path, events: Sequence[Event]) -> list[Event]:
    """Return the last switch where the history lacks it, as that of a killed process does; its time is the link's."""
    current = _active(folder)
    last = next((event.release for event in reversed(events) if event.result == "ok"), None)
    if current is None or current.number == last:
        return []
    action = "rollback" if last is not None and current.number < last else "install"
    return [dataclasses.replace(_event(action, current), time=_utc(os.lstat(folder / _LINK).st_mtime))]


def _seconds(release: Release) -> dict[str, float]:
    """Return the median time of a call for one observation, by work and variant."""
    from .bench import PLAIN, bench

    times = bench(release.path, batches=(1,), device=release.device, digest=release.digest).timings
    return {
        f"{each.work} {each.contender}": statistics.median(each.seconds) for each in times if each.contender != PLAIN
    }


def _switch(folder: Path, action: str, release: Release, seconds: Mapping[str, float] | None = None) -> None:
    switch_link(folder / _LINK, f"{_RELEASES}/{release.number:06}/bundle")
    # It is done, even if the disk is full now: `history` knows it by the link, and the next call writes it down.
    with contextlib.suppress(VaeError):
        _note(folder, dataclasses.replace(_event(action, release), seconds=seconds))


# Releases.


def _active(folder: Path) -> Release | None:
    """Return the release that the link leads to; None without a link, or where it leads to nothing."""
    number = _linked(folder)
    return None if number is None else _release(folder, number)


def _linked(folder: Path) -> int | None:
    """Return the number of the release that the link names; None without a link."""
    link = folder / _LINK
    if not os.path.lexists(link):
        return None
    match = _TARGET.fullmatch(os.readlink(link).replace(os.sep, "/")) if link.is_symlink() else None
    if match is None:
        raise VaeError(
            f"{link}: expected a link that `vae-runtime install` made, got another file; choose another root"
        )
    return int(match[1])


def _require_installed(folder: Path) -> Release:
    release = _active(folder)
    if release is None:
        raise VaeError(f"{folder}: nothing is installed here; run `vae-runtime install SOURCE --root {folder}`")
    return release


def _release(folder: Path, number: int) -> Release | None:
    """Return a release; None where it was removed.

    Raises:
        VaeError: its record is damaged or cannot be read.
    """
    place = folder / _RELEASES / f"{number:06}"
    try:
        document = json.loads((place / _RECORD).read_text(encoding="utf-8"))
        # A later version of this library may write more fields.
        record = {field.name: document[field.name] for field in dataclasses.fields(Release) if field.name in document}
        release = Release(**{**record, "path": str(place / "bundle"), "number": number})
        if not isinstance(release.previous, int | None) or not isinstance(release.digest, str):
            raise TypeError("a field has another type")
        _parts(release.version or "0")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise VaeError(
            f"{place / _RECORD}: expected the record of a release: {error_line(error)}; remove this file, and install "
            "the bundle that you want"
        ) from error
    return release


def _chain(folder: Path, release: Release | None) -> list[Release]:
    """Return a release and those before it that are kept, one after the other."""
    chain: list[Release] = []
    while release is not None and (not chain or release.number < chain[-1].number):
        chain.append(release)
        release = None if release.previous is None else _release(folder, release.previous)
    return chain


def _numbers(folder: Path) -> list[int]:
    """Return the numbers of all releases on the disk."""
    return sorted(int(name) for name in os.listdir(folder / _RELEASES) if re.fullmatch("[0-9]{6,12}", name))


def _is_sound(release: Release, digest: str) -> bool:
    """Return whether a release holds the bundle of a digest, all files as listed."""
    try:
        return not open_bundle(release.path, digest).problems()
    except BundleError:
        return False


def _require_newer(bundle: Bundle, active: Release | None) -> None:
    version = bundle.manifest.package_version
    if version is None:
        logging.getLogger("vae_runtime").warning(
            "%s: the bundle has no package_version, so an older one cannot be told from a newer", bundle.root
        )
    if active is None or active.version is None:
        return
    if version is None or _parts(version) < _parts(active.version):
        raise VaeError(
            f"{bundle.root}: expected a version of at least {active.version}, which is installed, got "
            f"{version or 'none'}; install it with `allow_older` if you mean it"
        )


def _parts(version: str) -> list[int]:
    """Return the integers of a version without zeros at the end: 1.2 and 1.2.0 are the same."""
    return [int(part) for part in re.sub(r"(\.0+)+$", "", version).split(".")]


def _copy(
    bundle: Bundle, folder: Path, active: Release | None, device: str, provider_options: Mapping[str, Any] | None
) -> Release:
    """Write a bundle as the next release, verified."""
    needed = sum(map(bundle.files.size, (SUMS, *bundle.sums))) + _SPARE
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise VaeError(
            f"{folder}: expected {needed / 2**20:,.0f} MiB of free space, got {free / 2**20:,.0f}; free some space"
        )
    # Never that of a release that a process may still have open.
    number = max([0, *_numbers(folder), *(event.release or 0 for event in _events(folder))]) + 1
    release = Release(
        path=str(folder / _RELEASES / f"{number:06}" / "bundle"),
        number=number,
        name=bundle.manifest.name[:_MAX_NAME],
        version=bundle.manifest.package_version,
        digest=bundle.digest,
        device=device,
        time=_utc(),
        previous=None if active is None else active.number,
    )
    record = {key: value for key, value in dataclasses.asdict(release).items() if key not in ("path", "number")}

    def require_verified(partial: Path) -> None:
        copy = partial / "bundle"

        def named(text: object) -> str:
            # The copy is gone when somebody reads this.
            return str(text).replace(str(copy), bundle.root)

        try:
            report = verify(copy, device=device, provider_options=provider_options, digest=bundle.digest)
        except VaeError as error:
            raise type(error)(named(error)) from error
        failed = [f"{check.what}: {named(check.detail)}" for check in report.checks if check.passed is False]
        if failed:
            raise VaeError(
                f"{bundle.root}: not verified on {device}: {'; '.join(failed)}; `vae-runtime verify` tells more"
            )

    files: dict[str, bytes | Callable[[], bytes]] = {
        f"bundle/{name}": functools.partial(bundle.read, name) for name in bundle.sums
    }
    files[f"bundle/{SUMS}"] = functools.partial(bundle.files.read, SUMS)
    if bundle.files.holds(SIGNATURE):
        files[f"bundle/{SIGNATURE}"] = functools.partial(bundle.files.read, SIGNATURE, limit=_SPARE)
    files[_RECORD] = json.dumps(record, ensure_ascii=False).encode()
    write_folder(folder / _RELEASES / f"{number:06}", files, check=require_verified)
    return release


def _prune(folder: Path, active: Release | None, keep: int) -> None:
    """Remove what interrupted calls left, and releases beyond those to keep; the lock of the root is held."""
    releases = folder / _RELEASES
    # A release that is in use stays, even where its record is lost.
    kept = {_linked(folder), *(release.number for release in _chain(folder, active)[:keep])}
    unused = [number for number in _numbers(folder) if number not in kept]
    for number in unused:
        # A release disappears at once, and is never seen by halves.
        os.rename(releases / f"{number:06}", releases / f".{number:06}.removed")
    if unused:
        sync_folder(releases)
    for path in releases.glob(".*"):
        shutil.rmtree(path, ignore_errors=True)
    for name in (_LINK, _HISTORY):
        for path in folder.glob(f".{name}.*"):
            path.unlink(missing_ok=True)


# The history.


def _utc(seconds: float | None = None) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _event(action: str, release: Release) -> Event:
    return Event(_utc(), action, release.number, release.name, release.version, release.digest, release.device, "ok")


def _failure(action: str, bundle: Bundle | None, device: str | None, error: VaeError) -> Event:
    result = f"failed: {error_line(error)}"
    if bundle is None:
        return Event(_utc(), action, None, None, None, None, device, result)
    name = bundle.manifest.name[:_MAX_NAME]
    return Event(_utc(), action, None, name, bundle.manifest.package_version, bundle.digest, device, result)


def _events(folder: Path) -> list[Event]:
    """Return the events of the history, without lines of another form."""
    events = []
    with contextlib.suppress(FileNotFoundError):
        for line in (folder / _HISTORY).read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, TypeError, AttributeError):
                event = Event(**json.loads(line))
                times = (event.seconds or {}).values()
                are_times = all(isinstance(each, int | float) for each in times)
                if isinstance(event.release, int | None) and isinstance(event.result, str) and are_times:
                    events.append(event)
    return events


def _note(folder: Path, event: Event) -> None:
    """Append an event. The file is written anew: it is whole, whatever interrupts this, and stays small."""
    events = [*_events(folder), event]
    # Failures go first: a timer may fail every hour, and what was rolled back must not be forgotten for that.
    spare = len(events) - _MAX_EVENTS
    failures = [index for index, each in enumerate(events[:-1]) if each.result != "ok"][: max(spare, 0)]
    events = [each for index, each in enumerate(events) if index not in set(failures)][-_MAX_EVENTS:]
    lines = [json.dumps(dataclasses.asdict(each), ensure_ascii=False) + "\n" for each in events]
    write_atomic(folder / _HISTORY, "".join(lines).encode())


def _left(events: Sequence[Event]) -> set[str | None]:
    """Return the digests that were rolled back, and not installed again since."""
    left: set[str | None] = set()
    active: str | None = None
    for event in events:
        if event.result == "ok":
            if event.action == "rollback":
                left.add(active)
            left.discard(event.digest)
            active = event.digest
    return left
