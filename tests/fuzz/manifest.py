"""Manifests: each is refused with a BundleError, or written again as an equal one."""

import contextlib
import re
from collections.abc import Iterator

from tests.corpus.cases import DIGITS, manifests
from tests.fuzz import require_short
from vae_runtime.document import dump, parse
from vae_runtime.errors import BundleError


def seeds() -> Iterator[bytes]:
    """The manifests that ship, and the forged ones of the corpus that are short."""
    for bundle in DIGITS.parent.iterdir():
        if (bundle / "manifest.json").is_file():
            yield (bundle / "manifest.json").read_bytes()
    yield from (content for _, content in manifests() if len(content) < 2**15)


def words() -> set[bytes]:
    """The words of a manifest, with their quotation marks."""
    return set(re.findall(rb'"[^"\\]{1,60}"', (DIGITS / "manifest.json").read_bytes()))


def check(content: bytes) -> None:
    """Read a manifest."""
    try:
        manifest = parse(content)
    except BundleError as error:
        require_short(error)
        return
    again = dump(manifest)
    with contextlib.suppress(RecursionError):
        assert parse(again) == manifest
