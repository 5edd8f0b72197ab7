"""SHA256SUMS: each is refused with a BundleError, or written again with the same bytes."""

from collections.abc import Iterator

from tests.corpus.cases import DIGITS
from tests.fuzz import require_short
from vae_runtime.errors import BundleError
from vae_runtime.places import SUMS, read_sums


def seeds() -> Iterator[bytes]:
    """The lists of the bundles that ship."""
    for bundle in DIGITS.parent.iterdir():
        if (bundle / SUMS).is_file():
            yield (bundle / SUMS).read_bytes()


def words() -> set[bytes]:
    """Parts of a line."""
    return {b"0" * 64 + b"  ", b"  ", b"\n", b"\r\n", b"../", b"//", b"/", b"."}


def check(content: bytes) -> None:
    """Read a list."""
    try:
        sums = read_sums(content, SUMS)
    except BundleError as error:
        require_short(error)
        return
    assert "".join(f"{digest}  {path}\n" for path, digest in sums.items()).encode() == content
