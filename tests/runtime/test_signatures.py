"""Signed bundles: what the owner of a key signed is loaded, anything else is refused."""

import contextlib
import copy
import os
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import vae_runtime
from vae_runtime import BundleError, InputError
from vae_runtime.cli.main import main
from vae_runtime.fleet import install

model_signing = pytest.importorskip("model_signing", reason="the extra `sign` is not installed")


def test_a_signed_folder_is_loaded_and_verified(bundle_copy, sign, keys, capsys):
    for key in ("mine", "larger"):
        sign(bundle_copy, key)
        vae = vae_runtime.load(bundle_copy, key=keys[key][1])
        assert vae.sample(1, seed=0).shape == (1, 1, 8, 8)
        report = vae_runtime.verify(bundle_copy, key=keys[key][1])
        assert report.passed
        assert "; signed; beside the bundle: model.sig" in report.checks[0].detail
    assert main(["verify", str(bundle_copy), "--key", str(keys["larger"][1])]) == 0
    assert main(["verify", str(bundle_copy), "--key", str(keys["mine"][1])]) == 1
    words = capsys.readouterr().err
    assert "model.sig: not a signature by the owner of " in words
    assert ".;" not in words


def test_a_signed_zip_file_is_loaded(digits, sign, keys, tmp_path):
    path = tmp_path / "small.zip"
    vae_runtime.pack(digits, path, only="decoder/fp32")
    with pytest.raises(BundleError, match=r"small\.zip: expected a signature, .* got none"):
        vae_runtime.load(path, key=keys["mine"][1])
    sign(path)
    assert vae_runtime.verify(path, key=keys["mine"][1]).passed
    # Signed alike, whatever its name is.
    shutil.move(path, tmp_path / "other.zip")
    shutil.move(f"{path}.sig", tmp_path / "other.zip.sig")
    vae_runtime.load(tmp_path / "other.zip", key=keys["mine"][1])
    vae_runtime.pack(digits, tmp_path / "other.zip", only="decoder/int8", force=True)
    with pytest.raises(BundleError, match=r"other\.zip\.sig: signs .*other\.zip as "):
        vae_runtime.load(tmp_path / "other.zip", key=keys["mine"][1])


@pytest.mark.parametrize("forged_alike", [False, True])
def test_a_zip_file_that_is_exchanged_after_it_was_opened_is_refused(
    digits, sign, keys, tmp_path, monkeypatch, forged_alike
):
    signed, path = tmp_path / "signed.zip", tmp_path / "digits.zip"
    vae_runtime.pack(digits, signed, only="decoder/fp32")
    if forged_alike:
        # The same SHA256SUMS at the same place, and another directory: here the system that an entry was made on.
        content = bytearray(signed.read_bytes())
        content[content.rindex(b"PK\1\2") + 5] += 1
        path.write_bytes(content)
    else:
        vae_runtime.pack(digits, path, only="decoder/int8")
    shutil.copy(sign(signed), f"{path}.sig")
    find = vae_runtime.places.Archive.signature

    def exchange(archive):
        os.replace(signed, path)
        return find(archive)

    with monkeypatch.context() as patch:
        patch.setattr("vae_runtime.places.Archive.signature", exchange)
        with pytest.raises(BundleError, match=r"digits\.zip: altered since it was opened; copy the bundle again"):
            vae_runtime.load(path, key=keys["mine"][1])
    # The partner: it is the signed file now.
    vae_runtime.load(path, key=keys["mine"][1])


def test_what_the_owner_did_not_sign_is_refused(bundle_copy, sign, keys, edit_manifest, small_bundle):
    mine = keys["mine"][1]

    def refuse(match):
        for call in (vae_runtime.load, vae_runtime.verify):
            with pytest.raises(BundleError, match=match):
                call(bundle_copy, key=mine)

    refuse("expected a signature, model.sig in a folder, .* got none; use a signed copy")
    sign(bundle_copy, "other")
    refuse(r"model\.sig: not a signature by the owner of .*mine\.pub\.pem: ")
    # The signature of another bundle has a message of its own.
    other = small_bundle()
    shutil.copy(sign(other), bundle_copy)
    refuse(r"model\.sig: (does not cover|signs) ")
    # Altered by one who makes the hashes right again.
    sign(bundle_copy)
    vae_runtime.load(bundle_copy, key=mine)
    edit_manifest(bundle_copy, lambda document: document.update(package_name="forged"))
    refuse(r"model\.sig: signs manifest\.json as [0-9a-f]{64}, got the SHA-256 ")


def test_a_signature_must_cover_every_file(bundle_copy, sign, keys):
    for left_out in ("decoder/fp32/model.onnx", "decoder", "SHA256SUMS"):
        config = model_signing.hashing.Config().set_ignored_paths(paths=[left_out])
        sign(bundle_copy, hashing=config)
        with pytest.raises(BundleError, match=rf"model\.sig: does not cover {left_out}"):
            vae_runtime.load(bundle_copy, key=keys["mine"][1])
    # A file that was added later is not the bundle's.
    sign(bundle_copy)
    (bundle_copy / "added.bin").write_bytes(b"")
    vae_runtime.load(bundle_copy, key=keys["mine"][1])
    assert not vae_runtime.verify(bundle_copy, key=keys["mine"][1]).passed


def test_files_are_checked_as_they_are_opened(bundle_copy, sign, keys):
    sign(bundle_copy)
    graph = bundle_copy / "encoder" / "fp32" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    vae = vae_runtime.load(bundle_copy, key=keys["mine"][1])
    with pytest.raises(BundleError, match=r"encoder/fp32/model\.onnx: expected the SHA-256"):
        vae.encode(vae.sample(1, seed=0))
    assert not vae_runtime.verify(bundle_copy, key=keys["mine"][1]).passed


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"hashing_algorithm": "blake2"}, "as blake2b? [0-9a-f]+, got the SHA-256"),
        ({"shard_size": 1000}, "does not cover README"),
    ],
)
def test_other_hashes_are_refused(bundle_copy, sign, keys, options, reason):
    config = model_signing.hashing.Config()
    use = config.use_shard_serialization if "shard_size" in options else config.use_file_serialization
    sign(bundle_copy, hashing=use(**options))
    with pytest.raises(BundleError, match=reason):
        vae_runtime.load(bundle_copy, key=keys["mine"][1])


def test_links_are_followed_as_the_cache_of_the_hub_has_them(bundle_copy, sign, keys, tmp_path):
    sign(bundle_copy)
    (bundle_copy / ".gitattributes").write_bytes(b"")
    for path in [path for path in bundle_copy.rglob("*") if path.is_file()]:
        link = tmp_path / "linked" / path.relative_to(bundle_copy)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    assert vae_runtime.verify(tmp_path / "linked", key=keys["mine"][1]).passed


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 100_000, b"\xff", b'{"mediaType": 3}'])
def test_what_is_no_signature_is_refused(bundle_copy, keys, content):
    (bundle_copy / "model.sig").write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.sig: not a signature by the owner of .*; use ") as caught:
        vae_runtime.load(bundle_copy, key=keys["mine"][1])
    if content in (b"{}", b"[" * 100_000):
        assert str(caught.value).endswith(": it is damaged; use a signed copy of the bundle")


def test_what_is_no_plain_file_is_refused(bundle_copy, keys):
    signature = bundle_copy / "model.sig"
    os.mkfifo(signature)
    with pytest.raises(BundleError, match=r"model\.sig: expected a plain file"):
        vae_runtime.load(bundle_copy, key=keys["mine"][1])
    signature.unlink()
    signature.write_bytes(b" " * (2**22 + 1))
    with pytest.raises(BundleError, match=r"model\.sig: expected at most"):
        vae_runtime.load(bundle_copy, key=keys["mine"][1])


def test_what_is_no_key_is_refused(bundle_copy, sign, keys, tmp_path):
    sign(bundle_copy)
    for key, words in ((tmp_path / "none.pem", ".*, where there is no file"), (tmp_path, ".*, which is no"), (7, "7")):
        with pytest.raises(InputError, match=f"key: expected the path of a public key in PEM, got {words}"):
            vae_runtime.load(bundle_copy, key=key)
    (tmp_path / "text.pem").write_text("text")
    for key in (tmp_path / "text.pem", keys["mine"][0], keys["rsa"][1]):
        with pytest.raises(
            InputError,
            match=r"key: expected a public key in PEM, on P-256, P-384 or P-521, got .*, which is none; ",
        ):
            vae_runtime.load(bundle_copy, key=key)


def test_threads_leave_standard_output_as_it_was(bundle_copy, sign, keys, monkeypatch):
    sign(bundle_copy)
    together, inside, most, verify = threading.Barrier(4), set(), [], model_signing.verifying.Config.verify

    def slow(*arguments):
        inside.add(threading.get_ident())
        # Each waits for the others, which may not come before it has ended.
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait(1)
        most.append(len(inside))
        inside.discard(threading.get_ident())
        assert sys.stdout is sys.stderr
        return verify(*arguments)

    monkeypatch.setattr("model_signing.verifying.Config.verify", slow)
    before = sys.stdout
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: vae_runtime.load(bundle_copy, key=keys["mine"][1]), range(4)))
    assert sys.stdout is before
    assert most == [1] * 4


def test_a_copy_keeps_the_key(bundle_copy, sign, keys, tmp_path, monkeypatch):
    sign(bundle_copy)
    monkeypatch.chdir(keys["mine"][1].parent)
    vae = vae_runtime.load(bundle_copy, key="mine.pub.pem")
    monkeypatch.chdir(tmp_path)
    again = copy.deepcopy(vae)
    assert again.bundle.key == vae.bundle.key == str(keys["mine"][1])
    (bundle_copy / "model.sig").unlink()
    with pytest.raises(BundleError, match="expected a signature"):
        copy.deepcopy(vae)


def test_without_a_key_no_library_is_imported(bundle_copy, sign, keys, python, tmp_path):
    sign(bundle_copy)
    code = (
        "import sys, vae_runtime; vae_runtime.load(sys.argv[1], key=sys.argv[2] or None).sample(1); print(*sys.modules)"
    )
    assert "model_signing" not in python("-c", code, bundle_copy, "").stdout
    assert "model_signing" in python("-c", code, bundle_copy, keys["mine"][1]).stdout
    (tmp_path / "model_signing.py").write_text("raise ImportError('none')")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = python("-c", code, bundle_copy, keys["mine"][1], env={"PYTHONPATH": path})
    assert "which is not installed (none): pip install 'vae-runtime[sign]'" in done.stderr


def test_a_device_installs_signed_bundles_alone(bundle_copy, sign, keys, tmp_path):
    site = tmp_path / "site"
    with pytest.raises(BundleError, match="expected a signature"):
        install(bundle_copy, site, key=keys["mine"][1])
    assert not (site / "current").exists()
    sign(bundle_copy)
    install(bundle_copy, site, key=keys["mine"][1])
    assert vae_runtime.verify(site / "current", key=keys["mine"][1]).passed
    arguments = ["install", str(bundle_copy), "--root", str(site), "--key", str(keys["other"][1])]
    assert main(arguments) == 1


VECTORS = Path(__file__).parents[1] / "data" / "model-signing"


def test_signatures_of_the_specification_are_those_of_their_key_and_of_no_other(digits, bundle_copy, keys, tmp_path):
    """They sign other files, which is told only of a signature that is the key's."""
    zipped = tmp_path / "digits.zip"
    vae_runtime.pack(digits, zipped, only="decoder/fp32")
    shutil.copy(VECTORS / "v1.0.0.sig", f"{zipped}.sig")
    shutil.copy(VECTORS / "v1.1.0.sig", bundle_copy / "model.sig")
    for path, words in (
        (zipped, r"signs .*digits\.zip as bc9a717db6064a32cbe9eae6fc40651dd6d36ef1757183f590eff2b1765d7ebc, got"),
        (bundle_copy, "does not cover README.md"),
    ):
        with pytest.raises(BundleError, match=words):
            vae_runtime.load(path, key=VECTORS / "public.pem")
        with pytest.raises(BundleError, match="not a signature by the owner of"):
            vae_runtime.load(path, key=keys["larger"][1])


def test_a_signature_of_the_specification_that_was_changed_is_refused(bundle_copy):
    content = (VECTORS / "v1.1.0.sig").read_text(encoding="utf-8")
    (bundle_copy / "model.sig").write_text(content.replace("MGUCMQCV", "MGUCMQCW"), encoding="utf-8")
    with pytest.raises(BundleError, match="not a signature by the owner of"):
        vae_runtime.load(bundle_copy, key=VECTORS / "public.pem")
