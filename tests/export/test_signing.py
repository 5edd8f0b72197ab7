"""Signing a bundle: the library itself and vae-runtime verify what vae-export signed."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest

import vae_runtime
from vae_export import sign
from vae_export.cli import main
from vae_runtime import BundleError, InputError, VaeError

pytestmark = pytest.mark.skipif(find_spec("model_signing") is None, reason="the extra `sign` is not installed")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A private key and its public one, as docs/distribution.md makes them."""
    folder = tmp_path_factory.mktemp("keys")
    secret, public = folder / "private.pem", folder / "public.pem"
    openssl = shutil.which("openssl") or pytest.skip("openssl is not installed")
    subprocess.run([openssl, "ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", secret], check=True)
    subprocess.run([openssl, "ec", "-in", secret, "-pubout", "-out", public], check=True, capture_output=True)
    return secret, public


@pytest.fixture
def bundle(root, tmp_path):
    return shutil.copytree(root / "models" / "digits", tmp_path / "digits")


def by_the_library(path, signature, public, *options):
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(path), "--signature", signature]
    return subprocess.run([*command, "--public_key", public, *options], capture_output=True, check=False).returncode


@pytest.mark.long
def test_a_folder_is_signed(bundle, keys, capsys):
    secret, public = keys
    # Beside the bundle, and not part of it.
    (bundle / ".cache").mkdir()
    (bundle / ".cache" / "notes").write_bytes(b"")
    for _ in range(2):
        assert main(["sign", str(bundle), "--key", str(secret)]) == 0
        assert capsys.readouterr().out == f"{bundle}/model.sig: signed {bundle}\n"
    assert by_the_library(bundle, bundle / "model.sig", public) == 0
    assert vae_runtime.verify(bundle, key=public).passed
    (bundle / "decoder" / "fp32" / "model.onnx").write_bytes(b"another")
    assert by_the_library(bundle, bundle / "model.sig", public) == 1


def test_a_zip_file_is_signed(bundle, keys, tmp_path):
    secret, public = keys
    vae_runtime.pack(bundle, tmp_path / "small.zip")
    signature = sign(tmp_path / "small.zip", secret)
    assert signature == tmp_path / "small.zip.sig"
    assert by_the_library(tmp_path / "small.zip", signature, public) == 0
    assert vae_runtime.load(tmp_path / "small.zip", key=public).sample(1).shape == (1, 1, 8, 8)


def test_what_is_not_signed(bundle, keys, tmp_path):
    secret, public = keys
    for key in (tmp_path / "none.pem", tmp_path):
        with pytest.raises(InputError, match="key: expected the path of a private key in PEM, got"):
            sign(bundle, key)
    with pytest.raises(InputError, match=r"key: expected a private key in PEM without a password, .*public\.pem"):
        sign(bundle, public)
    with pytest.raises(InputError, match=r"bundle: expected a folder or a \.zip file"):
        sign("hf://me/digits@main", secret)
    (bundle / "added.bin").write_bytes(b"")
    with pytest.raises(BundleError, match=r"added\.bin: not listed in SHA256SUMS"):
        sign(bundle, secret)
    assert not (bundle / "model.sig").exists()


def test_a_signature_by_another_key_is_replaced_only_by_force(bundle, keys, tmp_path, capsys):
    other, signature = tmp_path / "other.pem", bundle / "model.sig"
    openssl = shutil.which("openssl")
    subprocess.run([openssl, "ecparam", "-genkey", "-name", "secp384r1", "-noout", "-out", other], check=True)
    sign(bundle, other)
    for before in (signature.read_bytes(), b"{}", b"[" * 100_000):
        signature.write_bytes(before)
        assert main(["sign", str(bundle), "--key", str(keys[0])]) == 1
        assert f"error: {signature}: expected no signature by another key, got one; " in capsys.readouterr().err
        assert signature.read_bytes() == before
    assert main(["sign", str(bundle), "--key", str(keys[0]), "--force"]) == 0
    assert vae_runtime.verify(bundle, key=keys[1]).passed


def test_a_pipe_in_place_of_the_signature_is_refused(bundle, keys, capsys):
    os.mkfifo(bundle / "model.sig")
    assert main(["sign", str(bundle), "--key", str(keys[0]), "--force"]) == 1
    words = f"error: {bundle}/model.sig: expected a plain file; remove it, and sign again\n"
    assert capsys.readouterr().err == words


def test_what_the_library_cannot_sign_is_one_error(bundle, keys, monkeypatch):
    def fail(*arguments):
        raise ValueError("a reason.")

    monkeypatch.setattr("model_signing.signing.Config.sign", fail)
    with pytest.raises(VaeError, match="cannot be signed: a reason; check"):
        sign(bundle, keys[0])


def test_a_missing_library_is_named(bundle, keys, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "model_signing", None)
    assert main(["sign", str(bundle), "--key", str(keys[0])]) == 1
    assert "pip install 'vae-export[sign]'" in capsys.readouterr().err


def test_signing_needs_no_pytorch(bundle, keys, python):
    code = "import sys; sys.modules['torch'] = None; from vae_export.cli import main; sys.exit(main(sys.argv[1:]))"
    done = python("-c", code, "sign", bundle, "--key", keys[0])
    assert (done.returncode, done.stderr) == (0, "")
