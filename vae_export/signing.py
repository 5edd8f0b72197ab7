"""Sign a bundle: OpenSSF Model Signing, by the library model-signing (extra `sign`)."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from vae_runtime.bundle import open_bundle
from vae_runtime.errors import BundleError, InputError, VaeError, error_line
from vae_runtime.files import write_atomic
from vae_runtime.places import SIGNATURE, signature_of


def sign(bundle: str | os.PathLike[str], key: str | os.PathLike[str]) -> Path:
    """Sign a bundle: all of its files, or its .zip file as a whole.

    A signature that is there already is replaced. `vae_runtime.load(…, key=)` and `vae-runtime verify --key` check it
    with the public key, as `model_signing verify key` does.

    Args:
        bundle: the bundle's folder or .zip file; every file of it is checked first.
        key: the path of a private key in PEM without a password, on one of the curves P-256, P-384 and P-521.

    Returns:
        The path of the signature: model.sig in the folder, or FILE.zip.sig beside the .zip file.

    Raises:
        BundleError: there is no bundle, or it is damaged or holds files that are not its own.
        InputError: there is no such key at the path, or the bundle is a URL.
        VaeError: the library is not installed, or the signature cannot be written.
    """
    if "://" in str(bundle):
        raise InputError(f"bundle: expected a folder or a .zip file, got {bundle}; sign it before it is uploaded")
    if not os.path.isfile(key):
        raise InputError(f"key: expected the path of a private key in PEM, got {str(key)!r}")
    opened = open_bundle(bundle)
    problems = opened.problems()
    if problems:
        raise BundleError("\n".join(problems))
    try:
        from model_signing import hashing, signing
    except ImportError as error:
        raise VaeError(
            f"key: signatures need model-signing, which is not installed ({error_line(error)}): "
            "pip install 'vae-export[sign]'"
        ) from error
    # What tools keep beside a bundle is not part of it, and its hashes are those of contents, not of links.
    hashed = hashing.Config().set_ignored_paths(paths=[*opened.beside(), SIGNATURE]).set_allow_symlinks(True)
    try:
        config = signing.Config().use_elliptic_key_signer(private_key=key).set_hashing_config(hashed)
    except Exception as error:  # the library raises errors of several others
        raise InputError(
            f"key: expected a private key in PEM without a password, on P-256, P-384 or P-521, got {key}: "
            f"{error_line(error)}"
        ) from None
    target = signature_of(Path(opened.files.location))
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch) / SIGNATURE
        config.sign(opened.files.location, written)
        write_atomic(target, written.read_bytes())
    return target
