"""Bundles by URL: the Hugging Face Hub and stores, against servers of this machine."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from servers import COMMIT, Files, serving

import vae_runtime
from vae_runtime import BundleError, InputError, VaeError
from vae_runtime.cli.main import main
from vae_runtime.remote import entries, prune


@pytest.fixture
def server(digits):
    """A server on the loopback interface that holds a bundle as a folder, as a .zip file, and as a repository."""
    with serving(Files) as server:
        content = {
            path.relative_to(digits).as_posix(): path.read_bytes() for path in digits.rglob("*") if path.is_file()
        }
        server.files = {f"{top}/{name}": each for name, each in content.items() for top in ("folder", "repository")}
        server.files["repository/.gitattributes"] = b"*.onnx filter=lfs"
        server.files["repository/nested/huge.bin"] = b"another file of the repository"
        yield server


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VAE_RUNTIME_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def zipped(server, digits, tmp_path):
    """The digest of the bundle that the server has as a .zip file."""
    vae_runtime.pack(digits, tmp_path / "small.zip", only="decoder/fp32")
    server.files["small.zip"] = (tmp_path / "small.zip").read_bytes()
    return vae_runtime.load(tmp_path / "small.zip").digest


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr("vae_runtime.generation.store._WAIT", 0.01)


pytest.importorskip("fsspec", reason="the extra `remote` is not installed")
pytest.importorskip("aiohttp", reason="fsspec needs aiohttp for web servers")


def test_a_folder_is_fetched_once_and_used_from_the_cache(server, cache, digits, vae):
    loaded = vae_runtime.load(f"{server.url}/folder", digest=vae.digest)
    assert (loaded.sample(2, seed=1) == vae.sample(2, seed=1)).all()
    assert vae_runtime.verify(f"{server.url}/folder", digest=vae.digest).passed
    assert os.listdir(cache) == [vae.digest.removeprefix("sha256:")]
    server.seen.clear()
    server.files.clear()
    vae_runtime.load(f"{server.url}/folder", digest=vae.digest).encode(loaded.sample(1, seed=0))
    assert server.seen == []


def test_a_zip_file_is_fetched_once(server, cache, zipped):
    url = f"{server.url}/small.zip?signature=secret/with/slashes"
    assert vae_runtime.load(url, digest=zipped).sample(1, seed=0).shape == (1, 1, 8, 8)
    server.files.clear()
    assert vae_runtime.load(url, digest=zipped).digest == zipped
    assert os.listdir(cache) == [zipped.removeprefix("sha256:") + ".zip"]


def test_a_url_without_a_digest_is_refused_before_anything_is_fetched(server, cache):
    with pytest.raises(InputError, match="expected a digest with http://127"):
        vae_runtime.load(f"{server.url}/folder?token=secret")
    assert server.seen == []
    with pytest.raises(InputError) as caught:
        vae_runtime.load("https://me:password@host/folder?token=secret")
    assert "password" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_what_is_not_the_bundle_of_the_digest_leaves_nothing(server, cache, zipped, vae):
    wrong = "sha256:" + "0" * 64
    for name in ("folder", "small.zip"):
        with pytest.raises(VaeError, match=f"expected the digest {wrong}, got sha256:"):
            vae_runtime.load(f"{server.url}/{name}", digest=wrong)
    damaged = "folder/decoder/fp32/model.onnx"
    server.files[damaged] = server.files[damaged][:-1] + b"x"
    with pytest.raises(VaeError, match=r"model\.onnx: expected the SHA-256"):
        vae_runtime.load(f"{server.url}/folder", digest=vae.digest)
    server.files["small.zip"] = server.files["small.zip"][:-100]
    with pytest.raises(VaeError, match=r"not a bundle's \.zip file"):
        vae_runtime.load(f"{server.url}/small.zip", digest=zipped)
    del server.files["folder/manifest.json"]
    with pytest.raises(VaeError, match=r"folder/manifest\.json: missing; check the URL"):
        vae_runtime.load(f"{server.url}/folder", digest=vae.digest)
    assert os.listdir(cache) == []


@pytest.mark.parametrize("place", ["folder", "small.zip"])
def test_a_server_that_is_unreachable_has_no_missing_file(server, cache, vae, place):
    dead = "http://127.0.0.1:1"
    with pytest.raises(
        VaeError, match=r"127\.0\.0\.1:1/.*: reading failed 6 times: .*; run the same command again to go"
    ):
        vae_runtime.load(f"{dead}/{place}", digest=vae.digest)
    assert not cache.exists() or os.listdir(cache) == []


def test_the_signature_of_a_url_is_never_shown(server, cache, zipped):
    url, server.token = f"{server.url}/small.zip?token=secret", "needed"
    with pytest.raises(VaeError, match=r"/small\.zip\?…: ") as caught:
        vae_runtime.load(url, digest=zipped)
    assert "secret" not in str(caught.value)


def test_a_file_url_is_a_path(digits, vae):
    assert vae_runtime.load(digits.as_uri()).digest == vae.digest


FETCH = "import sys, vae_runtime; print(vae_runtime.load(sys.argv[1], digest=sys.argv[2]).sample(1, seed=0).sum())"


def test_many_processes_fetch_at_once(server, cache, vae):
    command = [sys.executable, "-W", "error", "-c", FETCH, f"{server.url}/folder", vae.digest]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    answers = [process.communicate(timeout=120) for process in processes]
    assert {answer[1] for answer in answers} == {""}
    assert len({answer[0] for answer in answers}) == 1
    assert os.listdir(cache) == [vae.digest.removeprefix("sha256:")]


def test_the_cache_is_bounded(server, cache, zipped, vae, monkeypatch, capsys):
    vae_runtime.load(f"{server.url}/folder", digest=vae.digest)
    os.utime(cache / vae.digest.removeprefix("sha256:"), (1, 1))
    monkeypatch.setenv("VAE_RUNTIME_CACHE_SIZE", "0.0001")
    vae_runtime.load(f"{server.url}/small.zip", digest=zipped)
    assert [entry.digest for entry in entries()] == [zipped]
    monkeypatch.setenv("VAE_RUNTIME_CACHE_SIZE", "much")
    with pytest.raises(InputError, match="VAE_RUNTIME_CACHE_SIZE: expected a number of GiB, got 'much'"):
        vae_runtime.load(f"{server.url}/folder", digest=vae.digest)

    for size in ("much", "-3"):
        monkeypatch.setenv("VAE_RUNTIME_CACHE_SIZE", size)
        assert main(["cache"]) == 1
        assert capsys.readouterr().err == f"error: VAE_RUNTIME_CACHE_SIZE: expected a number of GiB, got {size!r}\n"
    monkeypatch.setenv("VAE_RUNTIME_CACHE_SIZE", "0.0001")
    assert main(["cache"]) == 0
    printed = capsys.readouterr().out
    assert zipped in printed
    assert f"\n2 bundles, 0.6 MiB of at most 0.0001 GiB, in {cache}\n" in printed
    assert main(["cache", "--max-size", "0"]) == 0
    assert f"removed {zipped}" in capsys.readouterr().out
    assert entries() == []


def test_a_cache_that_is_a_file_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("VAE_RUNTIME_CACHE", str(tmp_path / "file"))
    assert main(["cache"]) == 1
    line = f"error: {tmp_path}/file: expected a folder to keep bundles in: Not a directory; set VAE_RUNTIME_CACHE to"
    assert capsys.readouterr().err.startswith(line)


def test_the_last_used_stays(server, cache, zipped, vae):
    for url, digest in ((f"{server.url}/folder", vae.digest), (f"{server.url}/small.zip", zipped)):
        vae_runtime.load(url, digest=digest)
    now = time.time()
    os.utime(cache / vae.digest.removeprefix("sha256:"), (now - 100, now - 100))
    os.utime(cache / (zipped.removeprefix("sha256:") + ".zip"), (now - 50, now - 50))
    vae_runtime.load(f"{server.url}/folder", digest=vae.digest)
    sizes = {entry.digest: entry.size for entry in entries()}
    assert [entry.digest for entry in prune(sizes[vae.digest] / 2**30)] == [zipped]


def test_the_signature_is_fetched_too(server, cache, zipped, digits, sign, keys, tmp_path):
    mine, other = keys["mine"][1], keys["other"][1]
    folder, digest = shutil.copytree(digits, tmp_path / "signed"), vae_runtime.load(digits).digest
    (tmp_path / "small.zip").write_bytes(server.files["small.zip"])
    signatures = {"folder/model.sig": sign(folder), "small.zip.sig": sign(tmp_path / "small.zip")}
    for url, each in ((f"{server.url}/folder", digest), (f"{server.url}/small.zip?token=secret", zipped)):
        vae_runtime.load(url, digest=each)
        with pytest.raises(VaeError, match=r"\.sig(\?…)?: missing; check the URL") as caught:
            vae_runtime.load(url, digest=each, key=mine)
        assert "secret" not in str(caught.value)
    server.files.update({name: path.read_bytes() for name, path in signatures.items()})
    for url, each in ((f"{server.url}/folder", digest), (f"{server.url}/small.zip?token=secret", zipped)):
        assert vae_runtime.load(url, digest=each, key=mine).digest == each
        with pytest.raises(BundleError, match="not a signature by the owner of"):
            vae_runtime.load(url, digest=each, key=other)
    server.files.clear()
    vae_runtime.load(f"{server.url}/small.zip", digest=zipped, key=mine)
    assert len(entries()) == 2
    prune(0)
    assert os.listdir(cache) == []


def test_a_signature_in_the_cache_that_does_not_pass_is_fetched_again(
    server, cache, zipped, digits, sign, keys, tmp_path
):
    digest = vae_runtime.load(digits).digest
    (tmp_path / "small.zip").write_bytes(server.files["small.zip"])
    folder = shutil.copytree(digits, tmp_path / "signed")
    sources = [
        (f"{server.url}/folder", "folder/model.sig", folder, digest),
        (f"{server.url}/small.zip?token=secret", "small.zip.sig", tmp_path / "small.zip", zipped),
    ]
    for url, name, path, each in sources:
        server.files[name] = sign(path, "other").read_bytes()
        for _ in range(2):
            with pytest.raises(BundleError, match="not a signature by the owner of"):
                vae_runtime.load(url, digest=each, key=keys["mine"][1])
        server.files[name] = sign(path).read_bytes()
        assert vae_runtime.load(url, digest=each, key=keys["mine"][1]).digest == each
    # What passes is in the cache, and nothing worse takes its place.
    server.files.clear()
    for url, _, _, each in sources:
        with pytest.raises(BundleError, match="not a signature by the owner of"):
            vae_runtime.load(url, digest=each, key=keys["other"][1])
        vae_runtime.load(url, digest=each, key=keys["mine"][1])


def test_a_device_installs_from_a_server_and_goes_back(server, cache, zipped, digits, sign, keys, tmp_path, capsys):
    (tmp_path / "small.zip").write_bytes(server.files["small.zip"])
    server.files["small.zip.sig"] = sign(tmp_path / "small.zip").read_bytes()
    server.files["folder/model.sig"] = sign(shutil.copytree(digits, tmp_path / "signed")).read_bytes()
    site, key = ["--root", str(tmp_path / "site")], ["--key", str(keys["mine"][1])]
    whole = vae_runtime.load(digits).digest
    for url, digest in ((f"{server.url}/folder", whole), (f"{server.url}/small.zip?token=secret", zipped)):
        assert main(["install", url, "--digest", digest, *key, *site]) == 0
    assert vae_runtime.load(tmp_path / "site" / "current").digest == zipped
    assert main(["rollback", *site]) == 0
    assert vae_runtime.load(tmp_path / "site" / "current", key=keys["mine"][1]).digest == whole
    for more in ((), ("--digest", zipped), ("--digest", "0" * 64)):
        assert main(["install", f"{server.url}/small.zip?token=secret", *more, *site]) == 1
    assert main(["history", *site]) == 0
    printed, told = capsys.readouterr()
    assert "rolled back here" in told
    assert "secret" not in printed + told + (tmp_path / "site" / "history.jsonl").read_text()


# The Hub.

HUB = """
import sys, vae_runtime
try:
    vae = vae_runtime.load(sys.argv[1], digest=sys.argv[2] or None, key=(sys.argv[3:] or [None])[0])
    print(vae.digest, vae_runtime.verify(sys.argv[1], digest=sys.argv[2] or None).passed, vae.bundle.root)
except vae_runtime.VaeError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def hub(server, python, tmp_path):
    """Load from the server as the Hub, in a process of its own, with the library's own cache."""
    pytest.importorskip("huggingface_hub", reason="the extra `hub` is not installed")

    def load(url, digest="", *key, **environment):
        env = {
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            **environment,
        }
        done = python("-W", "ignore", "-c", HUB, url, digest, *key, env=env)
        return done.stdout.strip() or done.stderr

    return load


def test_a_commit_of_the_hub_is_loaded_and_kept_offline(hub, server, vae, tmp_path):
    answer = hub(f"hf://me/digits@{COMMIT}")
    assert answer.startswith(f"{vae.digest} True {tmp_path}/hf")
    # Only the bundle's files were fetched from the repository.
    assert not any("huge" in path or ".gitattributes" in path for path in server.seen)
    server.seen.clear()
    assert hub(f"hf://me/digits@{COMMIT}", HF_HUB_OFFLINE="1").startswith(f"{vae.digest} True")
    assert server.seen == []
    shutil.rmtree(tmp_path / "hf")
    assert "VaeError hf://me/digits" in hub(f"hf://me/digits@{COMMIT}", HF_HUB_OFFLINE="1")


def test_a_branch_of_the_hub_needs_a_digest(hub, server, vae):
    assert hub("hf://me/digits").startswith("InputError path: expected a commit")
    assert hub("hf://me/digits@main").startswith("InputError path: expected a commit")
    assert server.seen == []
    assert hub("hf://me/digits@main", vae.digest).startswith(f"{vae.digest} True")
    wrong = "sha256:" + "0" * 64
    assert hub("hf://me/digits", wrong).startswith(f"VaeError hf://me/digits: expected the digest {wrong}")


@pytest.mark.long
def test_a_signature_in_a_repository(hub, server, vae, digits, sign, keys, tmp_path):
    unsigned = hub(f"hf://me/digits@{COMMIT}", "", keys["mine"][1])
    assert unsigned.startswith("BundleError ")
    assert "expected a signature, model.sig in a folder" in unsigned
    server.files["repository/model.sig"] = sign(shutil.copytree(digits, tmp_path / "signed")).read_bytes()
    assert hub(f"hf://me/digits@{COMMIT}", "", keys["mine"][1]).startswith(f"{vae.digest} True")
    assert hub(f"hf://me/digits@{COMMIT}", "", keys["other"][1]).startswith("BundleError ")


def test_a_folder_of_a_repository(hub, server, vae):
    for name in [name for name in server.files if name.startswith("repository/")]:
        server.files[name.replace("repository/", "repository/bundles/digits/")] = server.files.pop(name)
    answer = hub(f"hf://me/models@{COMMIT}/bundles/digits")
    assert answer.startswith(f"{vae.digest} True")
    assert answer.endswith("bundles/digits")


def test_a_private_repository_takes_the_token_and_never_shows_it(hub, server, vae):
    server.token = "hf_secret"
    refused = hub(f"hf://me/digits@{COMMIT}", HF_TOKEN="hf_wrong")
    assert refused.startswith(f"VaeError hf://me/digits@{COMMIT}: cannot be fetched: ")
    assert "hf_wrong" not in refused
    assert hub(f"hf://me/digits@{COMMIT}", HF_TOKEN="hf_secret").startswith(f"{vae.digest} True")


@pytest.mark.parametrize("url", ["hf://digits", "hf://me/digits@", "hf://me/../digits", "hf://me/digits@a b", "hf://"])
def test_urls_of_the_hub_that_are_none(url):
    with pytest.raises(InputError, match="path: expected hf://org/name@revision"):
        vae_runtime.load(url)


def test_a_missing_library_is_named(python, digits, tmp_path):
    (tmp_path / "huggingface_hub.py").write_text("raise ImportError('none')")
    (tmp_path / "fsspec.py").write_text("raise ImportError('none')")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    answer = python("-c", HUB, f"hf://me/digits@{COMMIT}", "", env={"PYTHONPATH": path}).stdout
    assert "pip install 'vae-runtime[hub]'" in answer
    answer = python("-c", HUB, "s3://bucket/b.zip", "sha256:" + "0" * 64, env={"PYTHONPATH": path}).stdout
    assert "pip install 'vae-runtime[remote]'" in answer
    assert not Path(tmp_path / "cache").exists()
