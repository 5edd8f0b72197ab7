"""Open a bundle: a folder or a .zip file. SHA256SUMS lists each of its files with its SHA-256."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from .document import parse
from .errors import BundleError, InputError, VaeError
from .manifest import Manifest, TensorSpec, Variant
from .places import SIGNATURE, SUMS, Place, digest_of, is_beside, open_place, parse_digest, read_listed, read_sums
from .records import Record, record
from .rules import is_decoder_alone

if TYPE_CHECKING:
    # Not imported to sample: 3 % of a cold start.
    from pathlib import Path

MANIFEST = "manifest.json"

# Far above the size of any real manifest or list; larger ones are not read into memory.
_MAX_BYTES = 2**20
# A protobuf message has no more.
_MAX_GRAPH = 2**31

_MAX_PROBLEMS = 20


@record(frozen=True)
class StoredGraph(Record):
    """A graph as a bundle stores it.

    `place` is its path, for errors; `data` holds the files of its weights by name; `inputs` and `outputs` are those
    that the manifest describes.
    """

    place: str
    content: bytes
    data: Mapping[str, bytes]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@record(frozen=True)
class Bundle(Record):
    """An opened bundle: SHA256SUMS and the manifest have been read, and `read` returns the other files.

    `root` is its folder or .zip file; `key` is the path of the public key that its signature was checked with.
    """

    root: str
    manifest: Manifest
    sums: Mapping[str, str]
    digest: str
    files: Place
    key: str | None = None

    @property
    def path(self) -> Path:
        """The bundle's folder or .zip file, for errors; use `read` to read files."""
        from pathlib import Path

        return Path(self.root)

    def place(self, relative: str) -> str:
        """Return the path of a file, for errors."""
        return self.files.path_of(relative)

    def read(self, relative: str, *, limit: int | None = None) -> bytes:
        """Return the content of a listed file of at most `limit` bytes after checking its hash.

        Raises:
            BundleError: the file is not listed, missing, too large or not a plain file, or its hash is not the listed
                one.
        """
        return read_listed(self.files, relative, self.sums, limit=limit)

    def data(self, variant: Variant) -> dict[str, bytes]:
        """Return the content of a graph's file of weights by its name, its hash checked; empty without such a file.

        Raises:
            BundleError: as `read`.
        """
        return {} if variant.data is None else {variant.data: self.read(f"{variant.folder}/{variant.data}")}

    def variant(self, component: str, name: str | None = None) -> Variant:
        """Return the named variant of a component, or the first that ONNX Runtime runs.

        Raises:
            BundleError: there is no such variant, it is for another program, or the component was left out by packing.
        """
        variants = self.manifest.components.get(component, {})
        if not variants:
            raise BundleError(f"{self.root}: {absence(self.manifest, component)}")
        runnable = [variant for variant in variants.values() if variant.executor == "ort"]
        if name is None:
            return runnable[0]
        names = ", ".join(variant.name for variant in runnable)
        if name not in variants:
            raise BundleError(f"{self.root}: {component} has no variant {name!r}; choose one of: {names}")
        if variants[name].executor != "ort":
            raise BundleError(
                f"{self.root}: the variant {name!r} of {component} is for {variants[name].executor}, not for ONNX "
                f"Runtime; choose one of: {names}"
            )
        return variants[name]

    def choose(self, name: str | None) -> dict[str, str]:
        """Choose the variant of each component: the one of this name, or the first where a component has none of it.

        Raises:
            BundleError: no component has such a variant.
            InputError: it is no name.
        """
        components = self.manifest.components
        if name is not None and not isinstance(name, str):
            raise InputError(f"variant: expected a name, got {name!r}")
        named = [component for component, variants in components.items() if name in variants]
        if name is not None and not named:
            known = dict.fromkeys(v.name for v in self.manifest.variants if v.executor == "ort")
            raise BundleError(f"{self.root}: there is no variant {name!r}; choose one of: {', '.join(known)}")
        return {
            component: self.variant(component, name if component in named else None).name for component in components
        }

    def graph(self, component: str, name: str | None = None, *, chunks: bool = False) -> StoredGraph:
        """Read the named variant of a component, or the first that ONNX Runtime runs; its graph for `chunks` if asked.

        Raises:
            BundleError: as `variant` and `read`, or the variant has no graph for chunks.
        """
        chosen, manifest = self.variant(component, name), self.manifest
        if chunks:
            path = chosen.stream_path
            if chosen.stream is None or path is None:
                raise BundleError(
                    f"{self.root}: {component}/{chosen.name}: expected a graph for chunks of latents, got none; take "
                    "the variant's own graph"
                )
            states = chosen.stream.states
            mean = next(each for each in manifest.outputs(component) if each.name == manifest.likelihood.mean)
            return StoredGraph(
                self.place(path), self.read(path, limit=_MAX_GRAPH), {},
                (*manifest.inputs(component), *(TensorSpec(state.name, "float32", state.shape) for state in states)),
                (mean, *(TensorSpec(state.next, "float32", state.shape) for state in states)),
            )  # fmt: skip
        return StoredGraph(
            self.place(chosen.path), self.read(chosen.path, limit=_MAX_GRAPH), self.data(chosen),
            manifest.inputs(component), manifest.outputs(component),
        )  # fmt: skip

    def unlisted(self) -> Iterator[str]:
        """Return the names of files that SHA256SUMS does not list, without those that are `beside` the bundle."""
        return (name for name in self.files.names() if name not in self.sums and name != SUMS and not is_beside(name))

    def beside(self) -> list[str]:
        """Return the names of files and folders that tools keep beside a bundle, such as .git and model.sig."""
        return sorted(name for name in self.files.names() if is_beside(name))

    def problems(self) -> list[str]:
        """Read every file, and return what is wrong: altered, missing, unlisted or not plain files; the first 20."""
        problems = [
            f"{self.place(name)}: not listed in {SUMS}; remove it, or copy the bundle again"
            for name in itertools.islice(self.unlisted(), _MAX_PROBLEMS)
        ]
        for relative in sorted(self.sums):
            if len(problems) == _MAX_PROBLEMS:
                break
            try:
                self.read(relative)
            except BundleError as error:
                problems.append(str(error))
        return problems

    def require_sound(self) -> None:
        """Read every file.

        Raises:
            BundleError: there are `problems`, a line for each.
        """
        problems = self.problems()
        if problems:
            raise BundleError("\n".join(problems))


def open_bundle(
    path: str | os.PathLike[str], digest: str | None = None, key: str | os.PathLike[str] | None = None
) -> Bundle:
    """Open a bundle and check SHA256SUMS and the manifest.

    Args:
        path: the bundle's folder or .zip file, or its URL, which `remote.fetch` describes.
        digest: "sha256:…" of the whole bundle, as `vae-runtime info` prints it; anything else is refused.
        key: the path of a public key in PEM; a bundle that its owner has not signed is refused.

    Raises:
        BundleError: there is no bundle, a file is damaged, the manifest has problems, the digest differs, or with `key`
            the signature is missing or another's.
        InputError: the path, the digest or the key is not of the right form.
        VaeError: with `key`, the extra `sign` is not installed.
    """
    try:
        root = os.fspath(path)
    except TypeError:
        root = ""
    if not isinstance(root, str) or not root:
        raise InputError(f"path: expected a folder, a .zip file or a URL, got {path!r:.99}; give the place of a bundle")
    expected = None if digest is None else parse_digest(digest)
    url = root
    if "://" in root:
        from .remote import fetch  # not needed on a device

        root = fetch(root, expected, signed=key is not None)
    files = open_place(root)
    if not files.holds(SUMS) and not files.holds(MANIFEST):
        raise BundleError(f"{root}: not a bundle: it holds neither {MANIFEST} nor {SUMS}; give the folder of a bundle")
    content = files.read(SUMS, limit=_MAX_BYTES)
    actual = digest_of(content)
    if expected and expected != actual:
        raise BundleError(
            f"{root}: expected the digest {expected}, got {actual}; use the bundle that the digest belongs to"
        )
    sums = read_sums(content, files.path_of(SUMS))
    owner = None if key is None else _require_signed(files, content, key, url)
    if MANIFEST not in sums:
        raise BundleError(f"{files.path_of(SUMS)}: {MANIFEST} is not listed; copy the bundle again")
    manifest = parse(read_listed(files, MANIFEST, sums, limit=_MAX_BYTES), files.path_of(MANIFEST))
    graphs = [path for variant in manifest.variants for path in variant.paths]
    for needed in [*graphs, manifest.golden.file, *(latent.prior.file for latent in manifest.latents)]:
        if needed is not None and needed not in sums:
            raise BundleError(
                f"{files.path_of(SUMS)}: {needed}, named by {MANIFEST}, is not listed; copy the bundle again"
            )
    return Bundle(root, manifest, sums, actual, files, owner)


def _require_signed(files: Place, content: bytes, key: str | os.PathLike[str], source: str) -> str:
    from .signatures import require_signed  # rarely needed

    try:
        path = os.path.abspath(os.fsdecode(key))
    except TypeError:
        raise InputError(f"key: expected the path of a public key in PEM, got {key!r:.99}") from None
    try:
        require_signed(files, content, path)
    except BundleError:
        if "://" not in source:
            raise
        from .remote import fetch_signature_again

        # The bundle may have been signed again since its signature came into the cache.
        if not fetch_signature_again(source, files.root):
            raise
        require_signed(files, content, path)
    return path


def absence(manifest: Manifest, component: str) -> str:
    """Say why a bundle lacks a component, and what to do."""
    if component == "encoder" and is_decoder_alone(manifest):
        return (
            "the model was exported without an encoder, so encode, reconstruct and score are unavailable; export it "
            "with its encoder for these"
        )
    return (
        f"the {component} was left out when this bundle was packed; use the bundle it was packed from, "
        f"{manifest.packed_from}, or pack that with --only {component}, too"
    )


def require_replaceable(
    target: str | os.PathLike[str], force: bool, *, zipped: bool = False, refusal: type[VaeError] = VaeError
) -> None:
    """Refuse, before the work, a place where a bundle cannot be written or would replace anything but a bundle.

    Args:
        target: the folder or .zip file to write.
        force: whether an existing bundle may be replaced.
        zipped: whether a .zip file will be written.
        refusal: the class of the error.

    Raises:
        VaeError: the place cannot be written to, or holds something that must not be replaced; of class `refusal`.
    """
    from pathlib import Path

    out = Path(target)
    if not os.path.lexists(out):
        parent = next(parent for parent in out.absolute().parents if parent.exists())
        if not (parent.is_dir() and os.access(parent, os.W_OK)):
            raise refusal(f"{out}: {parent} is not a folder that can be written to; choose another place")
        return
    if not force:
        raise refusal(f"{out}: already exists; choose another place, or replace it with --force")
    if out.is_symlink() or not (out.is_file() if zipped else out.is_dir()):
        kind = "file" if zipped else "folder"
        raise refusal(f"{out}: is not a {kind}, and --force replaces only bundles; choose another place")
    if not zipped and not any(out.iterdir()):
        return
    try:
        bundle = open_bundle(out)
        # A signature is of the bundle that is replaced, and goes with it.
        beside = (name for name in bundle.beside() if name != SIGNATURE)
        unlisted = next(itertools.chain(bundle.unlisted(), beside), None)
    except BundleError as error:
        raise refusal(f"{out}: is not a sound bundle, and --force replaces only bundles: {error}") from error
    if unlisted:
        raise refusal(f"{bundle.place(unlisted)}: is not part of the bundle there and would be lost; move it away")
