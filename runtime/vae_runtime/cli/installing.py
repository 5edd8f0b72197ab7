"""The verbs `install`, `rollback`, `status` and `history`: which bundle this device uses."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import one_line
from .options import Verbs, add_bundle, add_device, add_key, add_verb, integer

if TYPE_CHECKING:
    from ..fleet import Release


def add_installing(verbs: Verbs) -> None:
    """Add the verbs of this module."""
    text = "verify a bundle on this device, then let the link ROOT/current lead to it"
    verb = add_verb(verbs, "install", _install, text)
    for add in (add_bundle, add_key, _add_root, add_device):
        add(verb)
    keep = integer("keep", 2, 1000)
    verb.add_argument("--keep", type=keep, default=2, metavar="N", help="how many releases stay (default 2)")
    verb.add_argument("--allow-older", action="store_true", help="take a version below the installed one, too")
    verb.add_argument("--again", action="store_true", help="take a bundle that was rolled back, too")
    verb.add_argument("--bench", action="store_true", help="time the bundle first, and keep the times in the history")
    _add_root(add_verb(verbs, "rollback", _rollback, "let the link ROOT/current lead to the release before"))
    verb = add_verb(verbs, "status", _status, "tell which bundle is installed, and which ones rollback goes to")
    _add_root(verb)
    verb.add_argument("--json", action="store_true", help="print the releases as JSON")
    _add_root(add_verb(verbs, "history", _history, "list installs and rollbacks, the failed ones too"))


def _add_root(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--root", type=Path, required=True, help="the folder of the installation")


def _install(options: argparse.Namespace) -> None:
    from ..fleet import install

    release = install(
        options.bundle,
        options.root,
        device=options.device,
        digest=options.digest,
        key=options.key,
        keep=options.keep,
        allow_older=options.allow_older,
        again=options.again,
        bench=options.bench,
    )
    print(one_line(f"{options.root / 'current'}: {_described(release)}"))


def _rollback(options: argparse.Namespace) -> None:
    from ..fleet import rollback

    print(one_line(f"{options.root / 'current'}: {_described(rollback(options.root))}"))


def _described(release: Release) -> str:
    named = " ".join(filter(None, (release.name, release.version)))
    return (
        f"release {release.number}, {named}, {release.digest}, installed {release.time}, verified on {release.device}"
    )


def _status(options: argparse.Namespace) -> None:
    from ..fleet import status

    releases = status(options.root)
    if options.json:
        import dataclasses
        import json

        print(json.dumps([dataclasses.asdict(release) for release in releases], indent=1))
        return
    for word, release in zip(("current", *["before"] * len(releases)), releases, strict=False):
        print(one_line(f"{word:8}{_described(release)}"))


def _history(options: argparse.Namespace) -> None:
    from ..fleet import history

    for event in history(options.root):
        named = one_line(" ".join(filter(None, (event.name, event.version, event.digest)))) or "-"
        number = "" if event.release is None else f"release {event.release}"
        times = "".join(f", {what} {1000 * seconds:.3g} ms" for what, seconds in (event.seconds or {}).items())
        print(f"{event.time}  {event.action:8}  {number:12}  {named}  {one_line(event.result + times)}")
