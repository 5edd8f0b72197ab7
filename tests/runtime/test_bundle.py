"""A bundle that was damaged, altered or led astray is refused, whichever file and however."""

import hashlib
import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

import vae_runtime
from vae_runtime import BundleError, InputError
from vae_runtime.bundle import open_bundle
from vae_runtime.cli import main as cli
from vae_runtime.places import SUMS, format_sums, read_sums

DIGITS = Path(__file__).parents[2] / "models" / "digits"
FILES = sorted(path.relative_to(DIGITS).as_posix() for path in DIGITS.rglob("*") if path.is_file())
DECODER, ENCODER = "decoder/fp32/model.onnx", "encoder/fp32/model.onnx"
OPENED_BY_LOAD = (SUMS, "manifest.json", DECODER)


@pytest.fixture(scope="session")
def digest(digits):
    return open_bundle(digits).digest


def verify_fails(folder):
    try:
        return not vae_runtime.verify(folder).passed
    except BundleError:
        return True


def problems(folder):
    return "\n".join(open_bundle(folder).problems())


def use_all(folder):
    """Load both graphs."""
    vae = vae_runtime.load(folder)
    vae.encode(vae.sample(1, seed=0))


def test_a_bundle_opens_and_says_what_it_is(digits, digest):
    bundle = open_bundle(str(digits))
    assert bundle.manifest.observation.shape == (1, 8, 8)
    assert bundle.manifest.latent.shape == (8,)
    assert set(bundle.sums) == set(FILES) - {SUMS}
    assert bundle.problems() == []
    assert bundle.read("README.md") == (digits / "README.md").read_bytes()
    assert digest.startswith("sha256:")
    assert len(digest) == 71


def test_a_link_to_the_bundle_itself_is_followed(digits, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(digits)
    assert vae_runtime.verify(link).passed


# The digest.


def test_the_digest_pins_the_bundle(digits, digest):
    for right in (digest, digest.removeprefix("sha256:")):
        assert vae_runtime.load(digits, digest=right).digest == digest
        assert vae_runtime.verify(digits, digest=right).passed


def test_another_digest_is_refused(digits, digest):
    other = digest[:-1] + ("0" if digest[-1] != "0" else "1")
    for refuse in (vae_runtime.load, vae_runtime.verify):
        with pytest.raises(BundleError, match="digest") as caught:
            refuse(digits, digest=other)
        assert digest in str(caught.value)
        assert other in str(caught.value)


@pytest.mark.parametrize("wrong", ["", "sha256:", "sha256:abc", "sha512:" + "0" * 64, "0" * 65, "A" * 64, 7, b"0" * 64])
def test_a_malformed_digest_is_refused(digits, wrong):
    with pytest.raises(InputError, match="64 hexadecimal digits"):
        vae_runtime.load(digits, digest=wrong)


def test_a_digest_is_refused_before_the_folder_is_looked_at(tmp_path):
    with pytest.raises(InputError):
        open_bundle(tmp_path / "none", digest="abc")


# Damage. The partner of all these is the bundle that passes.


def test_a_graph_for_chunks_is_its_own_or_refused(root, digits):
    with_stream = open_bundle(root / "conformance/bundles/stream")
    variant = with_stream.variant("decoder")
    assert variant.stream_path in variant.paths
    graph, chunks = with_stream.graph("decoder"), with_stream.graph("decoder", chunks=True)
    assert chunks.content == with_stream.read(variant.stream_path) != graph.content
    assert len(chunks.inputs) > len(graph.inputs)
    without = open_bundle(digits)
    assert without.variant("decoder").stream_path is None
    for bundle, component in ((without, "decoder"), (with_stream, "encoder")):
        with pytest.raises(BundleError, match=f"{component}/fp32: expected a graph for chunks of latents, got none"):
            bundle.graph(component, chunks=True)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found(bundle_copy, digest, name):
    path = bundle_copy / name
    content = path.read_bytes()
    place = random.Random(name)
    positions = [0, len(content) - 1, *(place.randrange(len(content)) for _ in range(4))]
    for position in positions:
        damaged = bytearray(content)
        damaged[position] ^= 1 << place.randrange(8)
        path.write_bytes(damaged)
        assert verify_fails(bundle_copy), position
        if name == SUMS:
            with pytest.raises(BundleError):
                vae_runtime.load(bundle_copy, digest=digest)
        elif name in OPENED_BY_LOAD:
            with pytest.raises(BundleError, match="expected the SHA-256"):
                vae_runtime.load(bundle_copy)
        elif name == ENCODER:
            with pytest.raises(BundleError, match="expected the SHA-256"):
                use_all(bundle_copy)
        else:
            use_all(bundle_copy)
    path.write_bytes(content)
    assert vae_runtime.verify(bundle_copy).passed


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kept", ["nothing", "half", "all but a byte", "a byte more"])
def test_a_truncated_or_grown_file_is_found(bundle_copy, digest, name, kept):
    path = bundle_copy / name
    content = path.read_bytes()
    parts = {"nothing": b"", "half": content[: len(content) // 2], "all but a byte": content[:-1]}
    path.write_bytes(parts.get(kept, content + b"\n"))
    assert verify_fails(bundle_copy)
    if name in OPENED_BY_LOAD:
        with pytest.raises(BundleError):
            vae_runtime.load(bundle_copy, digest=digest)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found(bundle_copy, name):
    (bundle_copy / name).unlink()
    assert verify_fails(bundle_copy)
    if name in OPENED_BY_LOAD:
        with pytest.raises(BundleError, match="missing"):
            vae_runtime.load(bundle_copy)


@pytest.mark.parametrize(
    "name", ["new.txt", "encoder/new.txt", "new/deep/new.txt", "encoder/.hidden", "decoder/fp32/SHA256SUMS"]
)
def test_an_added_file_is_found(bundle_copy, name):
    path = bundle_copy / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("new")
    assert verify_fails(bundle_copy)
    assert f"{path}: not listed in SHA256SUMS" in problems(bundle_copy)


@pytest.mark.parametrize(
    ("one", "other"), [(ENCODER, DECODER), ("golden.npz", ENCODER), ("README.md", "manifest.json")]
)
def test_two_files_swapped_are_found(bundle_copy, one, other):
    contents = (bundle_copy / one).read_bytes(), (bundle_copy / other).read_bytes()
    (bundle_copy / other).write_bytes(contents[0])
    (bundle_copy / one).write_bytes(contents[1])
    assert verify_fails(bundle_copy)
    with pytest.raises(BundleError):
        use_all(bundle_copy)


def test_graphs_swapped_with_hashes_made_right_are_found(bundle_copy, resign):
    contents = (bundle_copy / ENCODER).read_bytes(), (bundle_copy / DECODER).read_bytes()
    (bundle_copy / DECODER).write_bytes(contents[0])
    (bundle_copy / ENCODER).write_bytes(contents[1])
    resign(bundle_copy)
    assert problems(bundle_copy) == ""
    assert verify_fails(bundle_copy)
    with pytest.raises(BundleError, match="of the manifest, the graph has"):
        vae_runtime.load(bundle_copy)


# What is no plain file.


@pytest.mark.parametrize("name", [DECODER, "README.md", "decoder", "decoder/fp32", "manifest.json", SUMS])
def test_a_link_is_followed_to_the_listed_content_alone(bundle_copy, tmp_path, name):
    path = bundle_copy / name
    moved = tmp_path / "moved"
    path.rename(moved)
    path.symlink_to(moved)
    assert vae_runtime.verify(bundle_copy).passed
    vae_runtime.load(bundle_copy).sample(1, seed=0)
    # Other content, a folder in place of a file, a file in place of a folder, and nothing.
    other = tmp_path / "other"
    for make in (lambda: other.write_bytes(b"other"), other.mkdir, lambda: None):
        make()
        path.unlink()
        path.symlink_to(other)
        assert verify_fails(bundle_copy)
        if name != "README.md":
            with pytest.raises(BundleError):
                vae_runtime.load(bundle_copy)
        if other.exists():
            other.rmdir() if other.is_dir() else other.unlink()


def test_the_cache_of_the_hugging_face_hub_is_a_bundle(digits, tmp_path):
    """A snapshot is a folder of relative links to blobs, which are named by their hash."""
    blobs, snapshot = (
        tmp_path / "models--me--digits" / "blobs",
        tmp_path / "models--me--digits" / "snapshots" / "0123abcd",
    )
    blobs.mkdir(parents=True)
    for path in (path for path in digits.rglob("*") if path.is_file()):
        blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, blob)
        link = snapshot / path.relative_to(digits)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    assert vae_runtime.verify(snapshot).passed
    blob.write_bytes(b"damaged")
    assert verify_fails(snapshot)


def test_a_mounted_volume_of_links_is_a_bundle(digits, tmp_path):
    """Kubernetes mounts a ConfigMap as links into a folder, which is a link itself to what is current."""
    shutil.copytree(digits, tmp_path / "..2026_11_28")
    (tmp_path / "..data").symlink_to("..2026_11_28")
    for name in os.listdir(digits):
        (tmp_path / name).symlink_to(f"..data/{name}")
    report = vae_runtime.verify(tmp_path)
    assert report.passed
    assert "..2026_11_28, ..data" in str(report)


def test_links_in_circles_end(bundle_copy):
    (bundle_copy / "decoder" / "again").symlink_to("..")
    (bundle_copy / "self").symlink_to("self")
    assert "not listed" in problems(bundle_copy)


def test_what_tools_keep_beside_a_bundle_is_named_and_passes(bundle_copy, resign):
    (bundle_copy / ".git" / "objects").mkdir(parents=True)
    (bundle_copy / ".git" / "objects" / "x").touch()
    (bundle_copy / ".gitattributes").write_text("*.onnx filter=lfs")
    (bundle_copy / "model.sig").write_text("{}")
    report = vae_runtime.verify(bundle_copy)
    assert report.passed
    assert "beside the bundle: .git, .gitattributes, model.sig" in str(report)
    strict = vae_runtime.verify(bundle_copy, strict=True)
    assert not strict.passed
    assert "FAILED" in str(strict)
    assert ".gitattributes: not part of the bundle" in str(strict)
    # Deeper, such names are no exception.
    (bundle_copy / "decoder" / ".hidden").touch()
    assert ".hidden: not listed" in problems(bundle_copy)


def test_a_flood_of_files_is_told_in_a_few_lines(bundle_copy):
    for number in range(3000):
        (bundle_copy / f"stray{number}").touch()
    assert len(problems(bundle_copy).splitlines()) == 20
    for number in range(1200):
        (bundle_copy / "deep" / str(number)).mkdir(parents=True)
    for number in range(3000):
        (bundle_copy / f"stray{number}").unlink()
    with pytest.raises(BundleError, match="expected at most 1000 folders"):
        problems(bundle_copy)


def test_a_relative_path_works_after_chdir(bundle_copy, tmp_path, monkeypatch):
    monkeypatch.chdir(bundle_copy.parent)
    vae = vae_runtime.load(bundle_copy.name)
    monkeypatch.chdir("/")
    assert vae.encode(vae.sample(1, seed=0)).mean.shape == (1, 8)
    archive = tmp_path / "b.zip"
    vae_runtime.pack(bundle_copy, archive)
    monkeypatch.chdir(tmp_path)
    vae = vae_runtime.load("b.zip")
    monkeypatch.chdir("/")
    assert vae.encode(vae.sample(1, seed=0)).mean.shape == (1, 8)


def test_a_folder_linked_into_the_bundle_is_found(bundle_copy, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("new")
    (bundle_copy / "more").symlink_to(outside)
    assert verify_fails(bundle_copy)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("name", [SUMS, "manifest.json", "golden.npz", DECODER, "added"])
def test_a_pipe_in_place_of_a_file_is_refused_without_waiting(bundle_copy, python, name):
    (bundle_copy / name).unlink(missing_ok=True)
    os.mkfifo(bundle_copy / name)
    # In another process, which can be ended if it waits.
    done = python("-m", "vae_runtime", "verify", bundle_copy, timeout=60)
    assert done.returncode == 1
    assert name in done.stdout + done.stderr


@pytest.mark.parametrize(
    "outside", ["../outside", "decoder/../../outside", "/tmp", "decoder/./fp32", "..", "a\\..\\b", ""]
)
def test_a_manifest_cannot_name_a_path_outside(bundle_copy, edit_manifest, outside):
    shutil.copytree(bundle_copy / "decoder/fp32", bundle_copy.parent / "outside")

    def lead_outside(document):
        document["components"]["decoder"]["variants"]["fp32"]["variant_directory"] = outside

    edit_manifest(bundle_copy, lead_outside)
    with pytest.raises(BundleError, match="variant_directory: expected a relative path inside the bundle"):
        vae_runtime.load(bundle_copy)


@pytest.mark.parametrize("file", ["../golden.npz", "/etc/passwd", "none.npz"])
def test_a_manifest_names_only_listed_golden_vectors(bundle_copy, edit_manifest, file):
    edit_manifest(bundle_copy, lambda document: document["additional_metadata"]["vae"]["golden"].update(file=file))
    with pytest.raises(BundleError, match=r"golden\.file: expected a file name|not listed"):
        open_bundle(bundle_copy)


# SHA256SUMS.

HASH = "0" * 64
GOOD = f"{HASH}  a\n{HASH}  b/c\n"


def test_sums_are_read():
    assert read_sums(GOOD.encode(), "SHA256SUMS") == {"a": HASH, "b/c": HASH}
    assert read_sums(format_sums([("b/c", b""), ("a", b"")]), "SHA256SUMS").keys() == {"a", "b/c"}


@pytest.mark.parametrize(
    "wrong",
    {
        "empty": "",
        "blank": "\n",
        "no newline at the end": GOOD[:-1],
        "blank line": GOOD + "\n",
        "CRLF": GOOD.replace("\n", "\r\n"),
        "upper case": GOOD.replace("0", "A"),
        "one space": GOOD.replace("  ", " "),
        "binary mark": GOOD.replace("  ", " *"),
        "short hash": GOOD[1:],
        "long hash": "0" + GOOD,
        "no path": f"{HASH}  \n",
        "unsorted": f"{HASH}  b\n{HASH}  a\n",
        "twice": f"{HASH}  a\n{HASH}  a\n",
        "comment": "# sums\n" + GOOD,
        "absolute": f"{HASH}  /etc/passwd\n",
        "upwards": f"{HASH}  ../a\n",
        "upwards inside": f"{HASH}  a/../b\n",
        "hidden": f"{HASH}  .a\n",
        "backslash": f"{HASH}  a\\b\n",
        "space": f"{HASH}  a b\n",
        "no ASCII": f"{HASH}  ä\n",
        "null": f"{HASH}  a\0\n",
        "long line": "x" * 10**6 + "\n",
    }.items(),
    ids=lambda item: item[0],
)
def test_sums_of_another_form_are_refused(wrong):
    with pytest.raises(BundleError, match=r"^SHA256SUMS:") as caught:
        read_sums(wrong[1].encode(), "SHA256SUMS")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "change", [lambda s: s.replace("\n", "\r\n"), str.upper, lambda s: "".join(reversed(s.splitlines(True)))]
)
def test_a_bundle_with_such_sums_does_not_open(bundle_copy, change):
    text = (bundle_copy / SUMS).read_text()
    (bundle_copy / SUMS).write_bytes(change(text).encode())
    with pytest.raises(BundleError):
        open_bundle(bundle_copy)


def test_the_manifest_and_what_it_names_must_be_listed(bundle_copy):
    lines = (bundle_copy / SUMS).read_text().splitlines(keepends=True)
    for name in ("manifest.json", "golden.npz", ENCODER):
        (bundle_copy / SUMS).write_text("".join(line for line in lines if not line.endswith(f"  {name}\n")))
        with pytest.raises(BundleError, match=f"{name}.* is not listed"):
            open_bundle(bundle_copy)


@pytest.fixture
def with_files(small_bundle, edit_manifest):
    """A bundle that names a prior's file, and one of weights that its graph does not use; the manifest names both."""
    folder = small_bundle()
    (folder / "prior.npz").write_bytes(b"prior")
    (folder / "decoder/fp32/weights.bin").write_bytes(b"weights")

    def name(document):
        decoder = document["components"]["decoder"]["variants"]["fp32"]
        decoder["additional_metadata"]["vae"]["data"] = "weights.bin"
        (latent,) = document["additional_metadata"]["vae"]["latents"]
        latent["prior"] = {"kind": "mixture", "file": "prior.npz", "components": 1, "covariance": "full"}

    edit_manifest(folder, name)
    return folder


def test_the_files_of_priors_and_weights_must_be_listed(with_files):
    open_bundle(with_files)
    lines = (with_files / SUMS).read_text().splitlines(keepends=True)
    for name in ("prior.npz", "decoder/fp32/weights.bin"):
        (with_files / SUMS).write_text("".join(line for line in lines if not line.endswith(f"  {name}\n")))
        with pytest.raises(BundleError, match=rf"{name}, named by manifest\.json, is not listed"):
            open_bundle(with_files)


def test_the_weights_beside_a_graph_are_given_by_name(with_files):
    bundle = open_bundle(with_files)
    assert bundle.data(bundle.variant("encoder")) == {}
    assert bundle.data(bundle.variant("decoder")) == {"weights.bin": b"weights"}
    assert bundle.problems() == []
    weights = with_files / "decoder/fp32/weights.bin"
    weights.write_bytes(b"Weights")
    with pytest.raises(BundleError, match=r"weights\.bin: expected the SHA-256"):
        bundle.data(bundle.variant("decoder"))
    weights.unlink()
    with pytest.raises(BundleError, match=r"weights\.bin: missing"):
        bundle.data(bundle.variant("decoder"))


def test_weights_may_be_links_to_the_listed_content(with_files, tmp_path):
    bundle = open_bundle(with_files)
    weights, outside = with_files / "decoder/fp32/weights.bin", tmp_path / "outside"
    os.link(weights, outside)
    assert bundle.data(bundle.variant("decoder")) == {"weights.bin": b"weights"}
    weights.unlink()
    weights.symlink_to(outside)
    assert bundle.data(bundle.variant("decoder")) == {"weights.bin": b"weights"}
    outside.write_bytes(b"Weights")
    with pytest.raises(BundleError, match=r"weights\.bin: expected the SHA-256"):
        bundle.data(bundle.variant("decoder"))


def test_a_file_that_is_not_listed_is_not_read(digits):
    with pytest.raises(BundleError, match="not listed"):
        open_bundle(digits).read(SUMS)


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="this system has no sha256sum")
def test_sha256sum_agrees(bundle_copy):
    def agrees():
        return subprocess.run(
            ["sha256sum", "--check", "--strict", "--quiet", SUMS], cwd=bundle_copy, capture_output=True
        )

    assert agrees().returncode == 0
    with (bundle_copy / "README.md").open("a") as file:
        file.write("x")
    assert agrees().returncode == 1


@pytest.mark.parametrize("name", [SUMS, "manifest.json"])
def test_a_file_beyond_reason_is_not_read_into_memory(bundle_copy, name):
    os.truncate(bundle_copy / name, 2**40)
    with pytest.raises(BundleError, match=f"{name}: expected at most .* bytes, got {2**40}"):
        open_bundle(bundle_copy)


# The manifest, hashes made right.


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"\x80\x03}", b"{}", b"[" * 10**5])
def test_a_manifest_that_is_none_is_refused(bundle_copy, resign, content):
    (bundle_copy / "manifest.json").write_bytes(content)
    resign(bundle_copy)
    with pytest.raises(BundleError, match=r"manifest\.json: "):
        open_bundle(bundle_copy)


def test_a_newer_format_is_refused_with_the_version_to_install(bundle_copy, edit_manifest):
    edit_manifest(
        bundle_copy,
        lambda document: document["additional_metadata"]["vae"].update(format_version="3.0", reader="vae-runtime>=9.1"),
    )
    for refuse in (vae_runtime.load, vae_runtime.verify):
        with pytest.raises(BundleError, match=r"\"3\.0\".*pip install 'vae-runtime>=9\.1'"):
            refuse(bundle_copy)


def test_a_newer_minor_format_loads(bundle_copy, edit_manifest):
    edit_manifest(
        bundle_copy,
        lambda document: document["additional_metadata"]["vae"].update(format_version="2.9", unheard_of=[1]),
    )
    assert vae_runtime.verify(bundle_copy).passed


def test_every_problem_of_a_manifest_is_named(bundle_copy, edit_manifest):
    def spoil(document):
        del document["additional_metadata"]["vae"]["observation"]
        document["additional_metadata"]["vae"]["noise"] = "white"
        document["layout"] = 3

    edit_manifest(bundle_copy, spoil)
    with pytest.raises(BundleError) as caught:
        open_bundle(bundle_copy)
    for place in ("vae.observation: ", "vae.noise: ", "layout: "):
        assert place in str(caught.value)


# No bundle at all.


def test_what_is_no_bundle_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for path, reason in (
        (tmp_path / "none", "does not exist"),
        (file, r"not a bundle's \.zip file"),
        (file / "deeper", "does not exist"),
        (tmp_path, "not a bundle"),
        ("\0", "does not exist"),
        ("a" * 5000, "does not exist"),
    ):
        with pytest.raises(BundleError, match=reason):
            vae_runtime.load(path)


@pytest.mark.parametrize("path", [None, 3, b"models/digits", ["models/digits"]])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(InputError, match=r"path: expected a folder, a \.zip file or a URL"):
        vae_runtime.load(path)


def test_an_unknown_variant_is_refused_with_those_there_are(digits):
    with pytest.raises(BundleError, match="no variant 'fp8'; choose one of: fp32"):
        vae_runtime.load(digits, variant="fp8")


def test_a_variant_of_another_program_is_refused(digits):
    manifest = json.loads((digits / "manifest.json").read_text(encoding="utf-8"))
    variants = manifest["components"]["decoder"]["variants"]
    for name in (name for name, variant in variants.items() if "ort" not in variant["executor_info"]):
        with pytest.raises(BundleError, match=f"'{name}' of (en|de)coder is for .* not for ONNX Runtime"):
            vae_runtime.load(digits, variant=name)


@pytest.mark.skipif(not hasattr(os, "SEEK_HOLE"), reason="this system tells no holes of files")
def test_a_sparse_file_is_refused_before_it_is_read(bundle_copy):
    file = bundle_copy / "decoder/fp32/model.onnx"
    os.truncate(file, 2**30)
    with pytest.raises(BundleError, match="got a sparse file"):
        vae_runtime.load(bundle_copy)
    os.truncate(file, 2**40)
    with pytest.raises(BundleError, match="expected at most 2147483648 bytes, got 1099511627776"):
        vae_runtime.load(bundle_copy)


def test_a_name_with_a_line_end_forges_no_line_of_errors(bundle_copy, capsys):
    (bundle_copy / "x\nverified on cpu").touch()
    assert cli.main(["bom", str(bundle_copy)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(BundleError, match=r"x\\nverified on cpu: not listed"):
        open_bundle(bundle_copy).require_sound()
