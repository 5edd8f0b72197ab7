"""The verb `studio`: a page to look at a bundle, in a browser of this machine or as static files."""

from __future__ import annotations

import argparse
import contextlib
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import VaeError, error_line, one_line
from .options import Verbs, add_key, add_source, add_verb, integer


def add_looking(verbs: Verbs) -> None:
    """Add the verb."""
    text = "serve a page to look at a bundle, on 127.0.0.1 until Ctrl-C; the browser computes"
    verb = add_verb(verbs, "studio", _studio, text)
    for add in (add_source, add_key):
        add(verb)
    where = verb.add_mutually_exclusive_group()
    where.add_argument("--port", type=integer("port", 0, 65535), default=0, help="the port (default: a free one)")
    text = "write the page and the bundle as a folder that any web server can serve, instead of serving them"
    where.add_argument("--export", type=Path, metavar="DIR", help=text)
    verb.add_argument("--force", action="store_true", help="with --export, replace an existing folder")


def _studio(options: argparse.Namespace) -> None:
    from ..bundle import open_bundle
    from ..files import lies_in, write_folder
    from ..places import SUMS

    if options.force and options.export is None:
        options.misuse("argument --force: allowed only with --export")
    if options.export is not None and lies_in(options.export, options.bundle):
        options.misuse(f"argument --export: expected a place outside the bundle, got {options.export}")
    studio = _require_studio()
    bundle = open_bundle(options.bundle, options.digest, options.key)
    names = [*bundle.sums, SUMS]
    if options.export is not None:
        active = studio.active(names)
        if active:
            raise VaeError(
                f"{bundle.place(active[0])}: expected no file that browsers or web servers run, got one; "
                "export a bundle without it"
            )
        # The path on this machine concerns no reader of the page.
        name = bundle.manifest.name
        files = {path: partial(bundle.read, path) for path in bundle.sums}
        files[SUMS] = partial(bundle.files.read, SUMS)
        write_folder(options.export, _site(studio, files, name, bundle.digest, exported=True), replace=options.force)
        print(one_line(f"{options.export}: the page of {name}; serve this folder"))
        return
    # The page checks the files itself, and shows what is wrong.
    files = {path: partial(bundle.files.read, path) for path in names}
    site = _site(studio, files, options.bundle, bundle.digest)
    # Ctrl-C is how this verb ends.
    try:
        with contextlib.suppress(KeyboardInterrupt):
            studio.serve(site, port=options.port, ready=_print_address)
    except OSError as error:
        raise VaeError(
            f"port: expected a free port, got {options.port}: {error_line(error)}; choose another"
        ) from error


def _require_studio() -> Any:
    try:
        import vae_runtime_studio
    except ImportError as error:
        raise VaeError(
            "`studio` needs vae-runtime-studio, which is not installed: pip install 'vae-runtime[studio]'"
        ) from error
    return vae_runtime_studio


def _site(studio: Any, files: Any, source: str, digest: str, *, exported: bool = False) -> Any:
    try:
        return studio.site(files, source, digest, exported=exported)
    except FileNotFoundError as error:
        raise VaeError(str(error)) from error


def _print_address(address: str) -> None:
    print(f"{address}  (Ctrl-C ends it)", flush=True)
