"""Bundles on the Hugging Face Hub: push and load, against a server of this machine."""

import hashlib
import math
import os
import shutil
import subprocess
import sys

import pytest
from servers import hub

import vae_runtime
from vae_export import push, sign
from vae_export.front_matter import front_matter
from vae_runtime import BundleError, InputError
from vae_runtime.document import parse

huggingface_hub = pytest.importorskip("huggingface_hub", reason="the extra `hub` is not installed")


@pytest.fixture
def digits(root):
    return root / "models" / "digits"


@pytest.fixture
def bundle_copy(digits, tmp_path):
    return shutil.copytree(digits, tmp_path / "copy")


@pytest.fixture
def server():
    with hub() as server:
        yield server


@pytest.fixture
def at_hub(server, python, tmp_path):
    """Run a command of one of the two packages, or code, against the server, in a process of its own."""

    def run(*arguments, token="hf_mine", **further):
        env = {
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_TOKEN": token,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            **further,
        }
        module = () if arguments[0] == "-c" else ("-m",)
        done = python("-W", "ignore", *module, *arguments, env=env)
        assert token not in done.stdout + done.stderr
        return done

    return run


def test_a_bundle_is_pushed_and_loaded(at_hub, server, digits):
    done = at_hub("vae_export", "push", digits, "me/mine")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    digest = vae_runtime.load(digits).digest
    url = f"hf://me/mine@{server.head}"
    assert done.stdout == f"{url}: {digest}\n"
    assert len(server.commits) == 2
    # Small texts came in the commit, and large files before it.
    assert (digits / "decoder/fp32/model.onnx").read_bytes() in server.blobs.values()
    assert (digits / "manifest.json").read_bytes() not in server.blobs.values()
    files = {path.relative_to(digits).as_posix(): path.read_bytes() for path in digits.rglob("*") if path.is_file()}
    assert server.commits[server.head] == {**files, ".gitattributes": server.commits[server.head][".gitattributes"]}
    verified = at_hub("vae_runtime", "verify", url)
    assert verified.returncode == 0, verified.stderr
    # The Hub's validator saw the card.
    assert server.cards[0].startswith("---\nlicense: ")


def test_a_newer_bundle_replaces_the_older_one_and_the_older_commit_stays(at_hub, server, digits, tmp_path):
    assert at_hub("vae_export", "push", digits, "me/mine").returncode == 0
    first = server.head
    digest = vae_runtime.pack(digits, tmp_path / "small.zip", only="decoder")
    done = at_hub("vae_export", "push", tmp_path / "small.zip", "me/mine")
    assert done.stdout == f"hf://me/mine@{server.head}: {digest}\n"
    assert not any(name.startswith("encoder/") for name in server.commits[server.head])
    assert at_hub("vae_runtime", "info", f"hf://me/mine@{server.head}").returncode == 0
    assert at_hub("vae_runtime", "info", f"hf://me/mine@{first}").returncode == 0


@pytest.mark.long
def test_files_of_others_stay_unless_forced(at_hub, server, digits):
    for name in ("weights.bin", "README.md"):
        server.head, server.commits = "a" * 40, {"a" * 40: {name: b"mine", ".gitattributes": b"*"}}
        done = at_hub("vae_export", "push", digits, "me/mine")
        assert done.returncode == 1
        assert f"expected an empty repository or one with a bundle, got other files: {name}" in done.stderr
        assert list(server.commits) == ["a" * 40]
    assert at_hub("vae_export", "push", digits, "me/mine", "--force").returncode == 0
    assert "weights.bin" not in server.commits[server.head]


@pytest.mark.long
def test_others_sums_are_no_bundle(at_hub, server, digits):
    """A repository that lists its own files, and even one that has a manifest of that name, is somebody else's."""
    ours = (digits / "manifest.json").read_bytes()
    for manifest, listed in (
        (None, b""),
        (b"{}", b"{}"),
        (ours, b"{}"),
    ):
        files = {"weights.bin": b"mine"} | ({} if manifest is None else {"manifest.json": manifest})
        hashed = files | ({} if manifest is None else {"manifest.json": listed})
        sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(hashed.items()))
        server.head, server.commits = "a" * 40, {"a" * 40: {**files, "SHA256SUMS": sums.encode()}}
        done = at_hub("vae_export", "push", digits, "me/mine")
        assert done.returncode == 1
        assert "got other files: SHA256SUMS, " in done.stderr
        assert "weights.bin" in done.stderr
        assert list(server.commits) == ["a" * 40]


@pytest.fixture
def keys(tmp_path):
    """A private key, its public one, and the public one of somebody else."""
    pytest.importorskip("model_signing", reason="the extra `sign` is not installed")
    openssl = shutil.which("openssl") or pytest.skip("openssl is not installed")
    for name in ("mine", "other"):
        secret = tmp_path / f"{name}.pem"
        subprocess.run([openssl, "ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", secret], check=True)
        command = [openssl, "ec", "-in", secret, "-pubout", "-out", tmp_path / f"{name}.pub"]
        subprocess.run(command, check=True, capture_output=True)
    return [tmp_path / name for name in ("mine.pem", "mine.pub", "other.pub")]


LOAD = "import sys, vae_runtime; print(vae_runtime.load(sys.argv[1], key=sys.argv[2]).sample(1).shape)"


@pytest.mark.long
def test_a_signature_goes_along(at_hub, server, bundle_copy, keys):
    secret, public, other = keys
    sign(bundle_copy, secret)
    assert at_hub("vae_export", "push", bundle_copy, "me/mine", "--private").returncode == 0
    assert server.commits[server.head]["model.sig"] == (bundle_copy / "model.sig").read_bytes()
    assert server.private
    url = f"hf://me/mine@{server.head}"
    loaded = at_hub("-c", LOAD, url, public)
    assert (loaded.stdout, loaded.returncode) == ("(1, 1, 8, 8)\n", 0), loaded.stderr
    refused = at_hub("-c", LOAD, url, other)
    assert refused.returncode == 1
    assert "BundleError" in refused.stderr
    (bundle_copy / "model.sig").unlink()
    assert at_hub("vae_export", "push", bundle_copy, "me/mine").returncode == 0
    assert "model.sig" not in server.commits[server.head]


def test_the_signature_of_a_zip_file_is_never_dropped(at_hub, server, bundle_copy, tmp_path):
    vae_runtime.pack(bundle_copy, tmp_path / "small.zip")
    (tmp_path / "small.zip.sig").write_bytes(b"a signature")
    done = at_hub("vae_export", "push", tmp_path / "small.zip", "me/mine")
    assert (done.returncode, server.commits) == (1, {})
    assert "small.zip.sig, which the Hub's files cannot keep; unpack it and sign the folder" in done.stderr
    (tmp_path / "small.zip.sig").unlink()
    assert at_hub("vae_export", "push", tmp_path / "small.zip", "me/mine").returncode == 0


@pytest.mark.long
def test_a_signed_bundle_is_pushed_and_installed_on_a_device_that_goes_back(at_hub, server, bundle_copy, tmp_path):
    ec = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ec", reason="cryptography is not installed")
    pytest.importorskip("model_signing", reason="the extra `sign` is not installed")
    from cryptography.hazmat.primitives import serialization

    secret, pem = ec.generate_private_key(ec.SECP256R1()), serialization.Encoding.PEM
    private, public = tmp_path / "key.pem", tmp_path / "key.pub.pem"
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    private.write_bytes(secret.private_bytes(pem, form, plain))
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(secret.public_key().public_bytes(pem, spki))
    site = ["--root", str(tmp_path / "site")]
    digests = []
    for bundle in (bundle_copy, tmp_path / "small"):
        if bundle != bundle_copy:
            vae_runtime.pack(bundle_copy, bundle, only="decoder")
        sign(bundle, private)
        assert at_hub("vae_export", "push", bundle, "me/mine").returncode == 0
        done = at_hub("vae_runtime", "install", f"hf://me/mine@{server.head}", "--key", public, *site)
        assert done.returncode == 0, done.stderr
        digests.append(vae_runtime.load(tmp_path / "site" / "current").digest)
    assert len(set(digests)) == 2
    assert at_hub("vae_runtime", "rollback", *site).returncode == 0
    assert vae_runtime.load(tmp_path / "site" / "current").digest == digests[0]
    # Another bundle under the same signature is refused.
    server.commits[server.head]["model.sig"] = server.commits[server.head]["model.sig"].replace(b"a", b"b", 1)
    shutil.rmtree(tmp_path / "hf")
    assert at_hub("vae_runtime", "verify", f"hf://me/mine@{server.head}", "--key", public).returncode == 1


@pytest.mark.long
def test_what_fails_commits_nothing(at_hub, server, digits, tmp_path):
    refused = at_hub("vae_export", "push", digits, "me/mine", token="hf_wrong")
    assert (refused.returncode, server.commits) == (1, {})
    assert refused.stderr.startswith("error: me/mine: cannot be pushed: ")
    assert refused.stderr.count("\n") == 1
    assert at_hub("vae_export", "push", digits, "me/mine").returncode == 0
    public = at_hub("vae_export", "push", digits, "me/mine", "--private")
    assert "expected a private repository, got a public one" in public.stderr
    server.moved = True
    vae_runtime.pack(digits, tmp_path / "small", only="decoder")
    moved = at_hub("vae_export", "push", tmp_path / "small", "me/mine")
    assert "cannot be pushed" in moved.stderr
    assert len(server.commits) == 2


def test_what_is_no_bundle_or_no_repository(bundle_copy):
    for repository in ("mine", "me/mine/more", "me/../mine", "me/ mine", 3):
        with pytest.raises(InputError, match="repository: expected org/name"):
            push(bundle_copy, repository)
    with pytest.raises(InputError, match="bundle: expected a folder"):
        push("hf://me/mine", "me/mine")
    (bundle_copy / "decoder/fp32/model.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match="expected the SHA-256"):
        push(bundle_copy, "me/mine")


def test_a_missing_library_is_named(python, digits, tmp_path):
    (tmp_path / "huggingface_hub.py").write_text("raise ImportError('none')")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = python("-m", "vae_export", "push", digits, "me/mine", env={"PYTHONPATH": path})
    assert "pip install 'vae-export[hub]'" in done.stderr
    assert done.returncode == 1


# The card, as the Hub's library reads it.


def card_of(manifest):
    return huggingface_hub.ModelCard("\n".join([*front_matter(manifest), "# A card"]))


def test_the_front_matter_of_a_model_that_ships(root):
    card = huggingface_hub.ModelCard.load(root / "models" / "mnist" / "README.md")
    data = card.data
    assert (data.license, data.library_name) == ("apache-2.0", "vae-runtime")
    assert data.pipeline_tag == "unconditional-image-generation"
    manifest = parse((root / "models" / "mnist" / "manifest.json").read_bytes())
    figures = {result.metric_type: result for result in data.eval_results}
    assert figures["nll"].metric_value == manifest.metrics["nll"]
    assert figures["nll"].dataset_name == "mnist"
    assert {"nll", "elbo", "mse", "mae"} == set(figures)
    # What `front_matter` writes is what ships.
    text = (root / "models" / "mnist" / "README.md").read_text(encoding="utf-8")
    assert text.startswith("\n".join(front_matter(manifest)) + "\n# mnist\n")
    assert text.replace("apache", "other") != text


def test_other_licenses_figures_and_texts(root):
    import dataclasses

    manifest = parse((root / "models" / "digits-conditional" / "manifest.json").read_bytes())
    assert card_of(manifest).data.pipeline_tag is None
    strange = "\x7f\u2028\ufeff\U0001f600\"'#: é"
    metrics = {"elbo": math.inf, "nll": "many", "mse": 0.5, "data": strange, "surrogate": True}
    changed = dataclasses.replace(manifest, license="My own", name=strange, metrics=metrics)
    data = card_of(changed).data
    assert (data.license, data.license_name) == ("other", "My own")
    assert data.model_name == strange
    (figure,) = data.eval_results
    assert (figure.metric_type, figure.dataset_name) == ("mse", strange)
    assert "license" not in card_of(dataclasses.replace(manifest, license=None)).data.to_dict()


def test_a_bundle_that_was_copied_by_git_is_pushed_without_its_tools(at_hub, server, digits, tmp_path):
    clone = tmp_path / "clone"
    shutil.copytree(digits, clone)
    (clone / ".git").mkdir()
    (clone / ".git" / "config").write_text("[core]")
    assert at_hub("vae_export", "push", clone, "me/mine").returncode == 0
    assert not [name for name in server.commits[server.head] if name.startswith(".git/")]
