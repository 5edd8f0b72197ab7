"""Sign a bundle: OpenSSF Model Signing, by the library model-signing (extra `sign`)."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from vae_runtime.bundle import Bundle, open_bundle
from vae_runtime.errors import BundleError, InputError, VaeError, error_line, require_bool
from vae_runtime.files import write_atomic
from vae_runtime.input_files import read_json
from vae_runtime.places import SIGNATURE, signature_of


def sign(bundle: str | os.PathLike[str], key: str | os.PathLike[str], *, force: bool = False) -> Path:
    """Sign a bundle: all of its files, or its .zip file as a whole.

    An earlier signature by the same key is replaced. `vae_runtime.load(…, key=)` and `vae-runtime verify --key` check
    it with the public key, as `model_signing verify key` does.

    Args:
        bundle: the bundle's folder or .zip file; every file of it is checked first.
        key: the path of a private key in PEM without a password, on one of the curves P-256, P-384 and P-521.
        force: replace a signature by another key, too.

    Returns:
        The path of the signature: model.sig in the folder, or FILE.zip.sig beside the .zip file.

    Raises:
        BundleError: there is no bundle, or it is damaged or holds files that are not its own.
        InputError: there is no such key at the path, or the bundle is a URL.
        VaeError: the library is not installed, a signature by another key is there, or it cannot be written.
    """
    if "://" in str(bundle):
        raise InputError(f"bundle: expected a folder or a .zip file, got {bundle}; sign it before it is uploaded")
    if not os.path.isfile(key):
        raise InputError(f"key: expected the path of a private key in PEM, got {str(key)!r}")
    require_bool("force", force)
    opened = open_bundle(bundle)
    opened.require_sound()
    try:
        from model_signing import hashing, signing
    except ImportError as error:
        raise VaeError(
            f"key: signatures need model-signing, which is not installed ({error_line(error)}): "
            "pip install 'vae-export[sign]'"
        ) from error
    earlier = _signature(opened)
    # What tools keep beside a bundle is not part of it, and its hashes are those of contents, not of links.
    hashed = hashing.Config().set_ignored_paths(paths=[*opened.beside(), SIGNATURE]).set_allow_symlinks(True)
    try:
        config = signing.Config().use_elliptic_key_signer(private_key=key).set_hashing_config(hashed)
    except Exception as error:  # the library raises errors of several others
        raise InputError(
            f"key: expected a private key in PEM without a password, on P-256, P-384 or P-521, got {key}: "
            f"{error_line(error).rstrip('. ')}; make one with `openssl ecparam -genkey -name prime256v1 -noout`"
        ) from None
    target = signature_of(Path(opened.files.location))
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch) / SIGNATURE
        try:
            config.sign(opened.files.location, written)
        except Exception as error:
            raise VaeError(
                f"{opened.path}: cannot be signed: {error_line(error).rstrip('. ')}; check its files"
            ) from None
        if earlier and not force and _key_of(Path(earlier)) != _key_of(written):
            raise VaeError(
                f"{target}: expected no signature by another key, got one; sign a copy of the bundle, or replace the "
                "signature with --force"
            )
        write_atomic(target, written.read_bytes())
    return target


def _signature(bundle: Bundle) -> str | None:
    """Return the path of a bundle's signature, or None where there is none.

    Raises:
        BundleError: something else has its name.
    """
    try:
        return bundle.files.signature()
    except BundleError as error:
        raise BundleError(f"{str(error).partition('; ')[0]}; remove it, and sign again") from None


def _key_of(signature: Path) -> str | None:
    """Return the SHA-256 of the public key that a signature names; None where it is damaged or names none."""
    try:
        return str(read_json(signature)["verificationMaterial"]["publicKey"]["hint"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
