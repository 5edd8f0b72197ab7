"""Push a bundle to the Hugging Face Hub, by its library huggingface_hub (extra `hub`)."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vae_runtime.bundle import MANIFEST, Bundle, open_bundle
from vae_runtime.document import parse
from vae_runtime.errors import BundleError, InputError, VaeError, error_line, require_bool
from vae_runtime.places import SIGNATURE, SUMS, read_sums

_REPOSITORY = re.compile("[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9._-]+")
# What the Hub writes into every repository.
_HUBS_OWN = {".gitattributes"}


@dataclass(frozen=True)
class Pushed:
    """The result of `push`: where the bundle is now."""

    url: str
    """hf://org/name@COMMIT, as `vae_runtime.load` takes it."""
    digest: str


def push(bundle: str | os.PathLike[str], repository: str, *, private: bool = False, force: bool = False) -> Pushed:
    """Upload a bundle to the Hugging Face Hub as one commit.

    The repository then holds exactly the files of the bundle, with its signature model.sig if there is one. A bundle
    that was there is replaced; its commit keeps it. The token is the Hub's own: `hf auth login`, or HF_TOKEN.

    Args:
        bundle: the bundle's folder or .zip file; every file of it is checked first.
        repository: org/name; it is made if there is none.
        private: make a new repository private.
        force: remove files of the repository that belong to no bundle; without it they are refused.

    Raises:
        BundleError: there is no bundle, or it is damaged.
        InputError: the repository's name has another form, or the bundle is a URL or a signed .zip file.
        VaeError: the library is not installed, the repository is public where `private` is given or holds other files,
            or the upload failed; nothing was committed then.
    """
    if "://" in str(bundle):
        raise InputError(f"bundle: expected a folder or a .zip file, got {bundle}; the Hub takes files of this machine")
    if not isinstance(repository, str) or not _REPOSITORY.fullmatch(repository) or ".." in repository:
        raise InputError(f"repository: expected org/name, got {repository!r:.99}")
    require_bool("private", private)
    require_bool("force", force)
    opened = open_bundle(bundle)
    signature = opened.files.signature()
    if signature is not None and Path(bundle).is_file():
        raise InputError(
            f"bundle: expected a folder, got a .zip file with a signature of its own, {signature}, which the Hub's "
            "files cannot keep; unpack it and sign the folder, or remove the signature"
        )
    opened.require_sound()
    try:
        import huggingface_hub
    except ImportError as error:
        raise VaeError(
            f"{repository}: the Hub needs huggingface_hub, which is not installed: pip install 'vae-export[hub]'"
        ) from error
    try:
        commit = _commit(huggingface_hub, opened, repository, private, force)
    except VaeError:
        raise
    except Exception as error:  # the Hub's library raises errors of several others
        raise VaeError(
            f"{repository}: cannot be pushed: {error_line(error)}; check the name, the network, and that your token "
            "may write (hf auth login, or HF_TOKEN)"
        ) from error
    return Pushed(f"hf://{repository}@{commit}", opened.digest)


def _commit(library: Any, bundle: Bundle, repository: str, private: bool, force: bool) -> str:
    """Commit the files of a bundle, and return the name of the commit."""
    hub = library.HfApi()
    hub.create_repo(repository, private=private or None, exist_ok=True)
    before = hub.model_info(repository)
    if private and not before.private:
        raise VaeError(f"{repository}: expected a private repository, got a public one; change that on the Hub first")
    present = {each.rfilename for each in before.siblings} - _HUBS_OWN
    files = {name: bundle.read(name) for name in bundle.sums}
    files[SUMS] = bundle.files.read(SUMS)
    signature = bundle.files.signature()
    if signature is not None:
        files[SIGNATURE] = Path(signature).read_bytes()
    foreign = present - _of_a_bundle(library, repository, before.sha, present)
    if foreign and not force:
        named = ", ".join(sorted(foreign)[:5])
        raise VaeError(
            f"{repository}: expected an empty repository or one with a bundle, got other files: {named}; choose "
            "another, or let --force remove them"
        )
    operations = [library.CommitOperationAdd(name, content) for name, content in sorted(files.items())]
    operations += [library.CommitOperationDelete(name) for name in sorted(present - files.keys())]
    manifest = bundle.manifest
    message = f"Upload {manifest.name}" + (f" {manifest.package_version}" if manifest.package_version else "")
    # Refused by the Hub where somebody else has committed meanwhile.
    done = hub.create_commit(
        repository, operations, commit_message=message, commit_description=bundle.digest, parent_commit=before.sha
    )
    return str(done.oid)


def _of_a_bundle(library: Any, repository: str, commit: str, present: Collection[str]) -> set[str]:
    """Return the files of the bundle that a repository holds; none where it holds no bundle."""
    if not {SUMS, MANIFEST} <= set(present):
        return set()
    # Other programs list the files of a repository as well: the manifest shows whose they are.
    sums, manifest = (
        Path(library.hf_hub_download(repository, name, revision=commit)).read_bytes() for name in (SUMS, MANIFEST)
    )
    try:
        listed = read_sums(sums, SUMS)
        if listed.get(MANIFEST) != hashlib.sha256(manifest).hexdigest():
            return set()
        parse(manifest)
    except BundleError:
        return set()
    return {SUMS, SIGNATURE, *listed}
