"""Check the signature of a bundle: OpenSSF Model Signing, by the library model-signing (extra `sign`)."""

from __future__ import annotations

import os
import sys
from typing import Any

from .console import printing_to
from .errors import BundleError, InputError, VaeError, error_line
from .places import SIGNATURE, SIGNATURE_SUFFIX, SUMS, Place, digest_of, read_sums

_MAX_KEY = 2**16


def require_signed(files: Place, content: bytes, key: str) -> None:
    """Refuse a bundle that the owner of a key has not signed, with each of its files.

    The signed hashes are compared with SHA256SUMS, and each file with that when it is opened. So nothing is hashed here
    but a .zip file that was signed as a whole.

    Args:
        files: the bundle's files.
        content: that of its SHA256SUMS as it was read, which the other files are compared with.
        key: the path of a public key in PEM, on one of the curves P-256, P-384 and P-521.

    Raises:
        BundleError: there is no signature, it is another's, or it does not cover every file as it is.
        InputError: there is no such key at the path.
        VaeError: the library is not installed.
    """
    check = _checker(key)
    path = files.signature()
    if path is None:
        names = f"{SIGNATURE} in a folder, or FILE.zip{SIGNATURE_SUFFIX}"
        raise BundleError(f"{files.root}: expected a signature, {names}, got none; use a signed copy of the bundle")
    try:
        signed = check(path)
    except Exception as error:  # the library raises errors of several others
        # What reading JSON of another shape raises says nothing to a reader.
        damaged = isinstance(error, (LookupError, RecursionError, TypeError, AttributeError))
        reason = "it is damaged" if damaged else error_line(error).rstrip(". ")
        step = "use a signed copy of the bundle" if damaged else "use the key and the bundle that belong together"
        raise BundleError(f"{path}: not a signature by the owner of {key}: {reason}; {step}") from None
    # A file that was signed as a whole has this name.
    own: dict[str, str | None]
    if set(signed) == {"."}:
        own = {".": files.own_hash(content)}
    else:
        own = {**read_sums(content, files.path_of(SUMS)), SUMS: digest_of(content).removeprefix("sha256:")}
    for name, expected in own.items():
        if name not in signed:
            raise BundleError(f"{path}: does not cover {name}; use a bundle that was signed as a whole")
        if signed[name] != expected:
            what = files.root if name == "." else name
            raise BundleError(
                f"{path}: signs {what} as {signed[name]}, got the SHA-256 {expected}; use the bundle that was signed"
            )


def _checker(key: str) -> Any:
    """Return a function that takes the path of a signature and returns the hashes that the owner of the key signed."""
    try:
        if not os.path.isfile(key) or os.path.getsize(key) > _MAX_KEY:
            what = "which is no small file" if os.path.exists(key) else "where there is no file"
            raise InputError(f"key: expected the path of a public key in PEM, got {key!r}, {what}")
        try:
            from model_signing import hashing, verifying
        except ImportError as error:
            raise VaeError(
                f"key: signatures need model-signing, which is not installed ({error_line(error)}): "
                "pip install 'vae-runtime[sign]'"
            ) from error
        config = verifying.Config().use_elliptic_key_verifier(public_key=key)
    except VaeError:
        raise
    except Exception:
        raise InputError(
            f"key: expected a public key in PEM, on P-256, P-384 or P-521, got {key}, which is none; give the public "
            "key, as `openssl ec -pubout` writes it"
        ) from None

    class Signed(hashing.Config):  # type: ignore[misc]
        """Takes the place of the hashes of all files, and takes in what was signed when it is compared with them."""

        hashes: dict[str, str] | None = None

        def hash(self, *arguments: Any, **options: Any) -> Any:
            return self

        def __eq__(self, signed: Any) -> bool:
            self.hashes = {
                each.identifier: f"{each.digest.algorithm} {each.digest.digest_hex}".removeprefix("sha256 ")
                for each in signed.resource_descriptors()
            }
            return True

    def check(path: str) -> dict[str, str]:
        signed = Signed()
        # The library warns of old signatures on standard output.
        with printing_to(sys.stderr):
            config.set_hashing_config(signed).verify(os.path.dirname(path), path)
        if signed.hashes is None:
            raise ValueError("the library compared nothing")
        return signed.hashes

    return check
