"""Where the files of a job are kept: folders, memory, and a local S3 server whose requests fail as they are told to."""

import json
import logging
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from vae_runtime import history, install, load
from vae_runtime.cli.main import main
from vae_runtime.errors import InputError, VaeError
from vae_runtime.files import locked
from vae_runtime.generation import store as stores
from vae_runtime.generation.folder import held
from vae_runtime.generation.run import finish_samples, generate
from vae_runtime.generation.samples import open_samples
from vae_runtime.generation.store import LocalStore, RemoteStore, open_store
from vae_runtime.generation.verification import verify_samples

JOB = {"n": 700, "seed": 7, "batch_size": 64, "shard_size": 256, "workers": 1}
WORDS = ["-n", "700", "--seed", "7", "--batch-size", "64", "--shard-size", "256"]
SHARDS = [f"shard-{number:08}.npy" for number in range(3)]
FILES = sorted(["index.json", "job.json", *SHARDS, *(name.replace("npy", "json") for name in SHARDS)])


@pytest.fixture(scope="module")
def undisturbed(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "samples"
    generate(digits, folder, **JOB)
    return folder


class Server:
    """A local S3 server; the next requests that match fail in the way that `faults` says."""

    def __init__(self):
        werkzeug_app = pytest.importorskip(
            "moto.moto_server.werkzeug_app", reason="moto, a local S3 server, is missing"
        )
        pytest.importorskip("s3fs", reason="s3fs is missing")
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Handler(WSGIRequestHandler):
            def handle_expect_100(self):
                # Werkzeug says "100 Continue" again, which stops the clock of the client's timeout.
                return True

        self.app = werkzeug_app.DomainDispatcherApplication(werkzeug_app.create_backend_app)
        self.faults, self.seen, self.left = [], [], []
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.port}"

    def stop(self):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def fail(self, method, part, how, times=1):
        """The next requests of a method, of paths with a part in them: "500", "cut" in the middle, or "slow"."""
        self.faults += [(method, part, how)] * times

    def _answer(self, environ, start_response):
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.seen.append((method, path))
        for fault in self.faults:
            if fault[0] == method and fault[1] in path:
                self.faults.remove(fault)
                return self._fail(fault[2], environ, start_response)
        return self.app(environ, start_response)

    def _fail(self, how, environ, start_response):
        if how == "slow":
            time.sleep(1.3)
            return self.app(environ, start_response)
        size = int(environ.get("CONTENT_LENGTH") or 0)
        content = environ["wsgi.input"].read(size // 2 if how == "cut" else size)
        assert content or environ["REQUEST_METHOD"] != "PUT"
        if how == "500":
            start_response("500 Internal Server Error", [("Content-Type", "application/xml")])
            return [b"<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"]
        if environ["REQUEST_METHOD"] == "GET":
            return self._half(self.app(environ, start_response), environ["werkzeug.socket"])
        self.left.append(self.size(environ["PATH_INFO"]))
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionResetError

    def _half(self, body, connection):
        content = b"".join(body)
        yield content[: len(content) // 2]
        connection.shutdown(socket.SHUT_RDWR)
        raise ConnectionResetError

    def size(self, path):
        """What the server holds under a path, past the faults."""
        from werkzeug.test import Client

        answer = Client(self.app).head(path, base_url="http://s3.amazonaws.com/")
        return int(answer.headers["Content-Length"]) if answer.status_code == 200 else None


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server()
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    home = tmp_path_factory.mktemp("home")
    # What s3fs itself would try again is tried here.
    settings = {"config_kwargs": {"retries": {"max_attempts": 0}, "read_timeout": 1, "connect_timeout": 5}}
    environment = {
        "AWS_ENDPOINT_URL": server.url, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "HOME": str(home),
        "FSSPEC_S3": json.dumps(settings),
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        import fsspec.config
        import s3fs

        patch.setitem(fsspec.config.conf, "s3", settings)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("bucket")
        yield server
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def s3(server, tmp_path, monkeypatch):
    """A URL of its own in a bucket."""
    monkeypatch.setattr(stores, "_WAIT", 0.01)
    server.faults.clear()
    server.seen.clear()
    server.left.clear()
    return f"s3://bucket/{tmp_path.name}/samples"


def content(url):
    """The shards under a URL and their bytes."""
    store = open_store(url)
    return {name: store.read(name) for name in store.sizes() if name.endswith(".npy")}


def local(folder):
    return {path.name: path.read_bytes() for path in Path(folder).glob("*.npy")}


def test_the_same_bytes_on_s3(digits, s3, server, undisturbed):
    samples = generate(digits, s3, **JOB | {"workers": 2})
    assert sorted(open_store(s3).sizes()) == FILES
    assert content(s3) == local(undisturbed)
    assert np.array_equal(samples[:], open_samples(undisturbed)[:])
    assert np.array_equal(open_samples(s3 + "/")[250:270], samples[250:270])
    server.seen.clear()
    generate(digits, s3, **JOB)
    assert server.seen
    assert not [path for method, path in server.seen if method in ("PUT", "POST", "DELETE")]
    assert len(generate(digits, s3, **JOB | {"n": 800})) == 800


def test_parts_on_s3(digits, s3, undisturbed):
    for k in (3, 1, 2):
        assert (generate(digits, s3, **JOB, part=(k, 3)) is None) == (k != 2)
    assert content(s3) == local(undisturbed)
    open_store(s3).remove("index.json")
    assert len(finish_samples(s3)) == 700
    open_store(s3).remove(SHARDS[1])
    with pytest.raises(VaeError, match=rf"1 of 3 shards is missing or cut short: {SHARDS[1]}"):
        finish_samples(s3)


@pytest.mark.long
@pytest.mark.parametrize("how", ["500", "cut", "slow"])
@pytest.mark.parametrize(("method", "part"), [("PUT", "1.npy"), ("PUT", ".json"), ("GET", ".json"), ("HEAD", ".npy")])
def test_what_fails_in_passing_is_tried_again(digits, s3, server, undisturbed, method, part, how):
    if (method, how) == ("HEAD", "cut"):
        pytest.skip("there is no middle")
    server.fail(method, part, how, times=1 if how == "slow" else 3)
    generate(digits, s3, **JOB)
    assert not server.faults
    assert content(s3) == local(undisturbed)
    # Under its name there was nothing.
    assert set(server.left) <= {None}
    assert bool(server.left) == (method == "PUT" and how == "cut")


def test_reading_is_tried_again(digits, s3, server):
    samples = generate(digits, s3, **JOB)
    for how in ("500", "cut", "slow"):
        server.fail("GET", "0.npy", how)
        assert len(open_samples(s3)[:3]) == 3
        assert not server.faults
    server.fail("GET", "0.npy", "500", times=99)
    with pytest.raises(VaeError, match=rf"{s3}/{SHARDS[0]}: reading failed 6 times: .*run the same command again"):
        open_samples(s3)[0]
    assert np.array_equal(samples[300], open_samples(s3)[300])


def test_failures_without_end_are_told_and_the_same_command_goes_on(digits, s3, server, undisturbed, capsys):
    command = ["generate", str(digits), *WORDS, "--workers", "1", "--out", s3]
    server.fail("PUT", "1.npy", "500", times=99)
    assert main(command) == 1
    printed = capsys.readouterr().err
    assert f"error: {s3}/{SHARDS[1]}: writing failed 6 times: " in printed
    assert "run the same command again to go on" in printed
    assert "Traceback" not in printed
    assert len(server.faults) == 99 - 6
    assert list(content(s3)) == [SHARDS[0]]
    server.faults.clear()
    assert main(command) == 0
    assert content(s3) == local(undisturbed)


def test_what_cannot_work_is_not_tried_again(digits, s3, server, tmp_path, capsys, monkeypatch):
    import s3fs

    assert main(["generate", str(digits), *WORDS, "--workers", "1", "--out", "s3://no-such-bucket/samples"]) == 1
    assert "s3://no-such-bucket/samples/job.json: cannot be written: The specified bucket does not exist" in (
        capsys.readouterr().err
    )
    assert len([path for method, path in server.seen if method == "PUT"]) == 1
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    s3fs.S3FileSystem.clear_instance_cache()
    server.seen.clear()
    assert main(["generate", str(digits), *WORDS, "--workers", "1", "--out", s3]) == 1
    printed = capsys.readouterr().err
    assert (
        f"error: {s3}/job.json: looking is refused: Unable to locate credentials; check the URL and the cred" in printed
    )
    assert "Traceback" not in printed
    assert not server.seen
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.long
def test_killed_while_it_sends_the_same_command_finishes(digits, s3, server, undisturbed):
    words = ["generate", str(digits), *WORDS, "--workers", "1", "--out", s3]
    command = [str(Path(sys.executable).with_name("vae-runtime")), *words]
    server.fail("PUT", "1.npy", "slow", times=1)
    with subprocess.Popen(command, stderr=subprocess.PIPE, encoding="utf-8", start_new_session=True) as process:
        while server.faults:
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    assert "index.json" not in open_store(s3).sizes()
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    # Neither warnings nor what libraries have to say about connections that are closed at the end.
    assert done.stderr.count("\n") == 1
    assert content(s3) == local(undisturbed)


def test_another_job_is_refused_on_s3_whoever_is_first(digits, s3):
    generate(digits, s3, **JOB, part=(1, 3))
    with pytest.raises(InputError, match="differences that prevent resuming: seed: 7 in the folder, 8 now"):
        generate(digits, s3, **JOB | {"seed": 8}, part=(2, 3))
    found = []

    def begin(seed):
        try:
            generate(digits, s3 + "-race", **JOB | {"seed": seed})
            found.append(seed)
        except InputError as error:
            assert "differences that prevent resuming: seed" in str(error)  # noqa: PT017, in a thread

    threads = [threading.Thread(target=begin, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = found
    samples = open_samples(s3 + "-race")
    assert samples.job["seed"] == winner
    assert verify_samples(s3 + "-race", digits).passed


def test_a_store_that_cannot_create_alone_does_not_mix_jobs(digits, s3, tmp_path, monkeypatch):
    """The last to write is the one whose job it is; the other one finds out before it says that a shard is whole."""
    monkeypatch.setattr(RemoteStore, "create", RemoteStore.write)
    mine = {}

    def replaced(done, n):
        if not mine:
            mine.update(content(s3))
            generate(digits, tmp_path / "other", **JOB | {"seed": 8}, part=(1, 3))
            open_store(s3).write("job.json", (tmp_path / "other" / "job.json").read_bytes())

    with pytest.raises(VaeError, match=r"job\.json: another job has replaced this one since the call began"):
        generate(digits, s3, **JOB, progress=replaced)
    # What the first has left there is made again.
    assert np.array_equal(
        generate(digits, s3, **JOB | {"seed": 8})[:], generate(digits, tmp_path / "t", **JOB | {"seed": 8})[:]
    )
    assert content(s3) == local(tmp_path / "t")
    assert mine[SHARDS[0]] != content(s3)[SHARDS[0]]


def test_verifying_finds_what_was_altered_on_s3(digits, s3, undisturbed):
    generate(digits, s3, **JOB)
    assert verify_samples(s3, digits).passed
    store = open_store(s3)
    altered = bytearray(store.read(SHARDS[1]))
    altered[-1] ^= 1
    store.write(SHARDS[1], bytes(altered))
    report = verify_samples(s3, digits)
    assert [check.what for check in report.checks if check.passed is False] == [SHARDS[1]]
    store.remove(SHARDS[1])
    generate(digits, s3, **JOB)
    assert verify_samples(s3, digits).passed
    assert content(s3) == local(undisturbed)


def test_an_object_of_another_size_than_was_sent_is_sent_again(s3):
    store, sizes = RemoteStore(s3), [3, 5]
    fs = store._place[0]
    looked = fs.info
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fs, "info", lambda path: looked(path) | {"size": sizes.pop(0)})
        store.write("five", b"12345")
        assert not sizes
        sizes[:] = [4] * 6
        with pytest.raises(VaeError, match="writing failed 6 times: 5 bytes were sent, the store has 4"):
            store.write("five", b"12345")


def test_memory_and_urls_of_files(digits, tmp_path, undisturbed):
    pytest.importorskip("fsspec", reason="fsspec is missing")
    url = f"memory://{tmp_path.name}/samples"
    samples = generate(digits, url, **JOB | {"workers": None})
    assert sorted(open_store(url).sizes()) == FILES
    assert content(url) == local(undisturbed)
    assert np.array_equal(samples[:], open_samples(undisturbed)[:])
    with pytest.raises(InputError, match="workers: expected 1, since only one process sees memory://"):
        generate(digits, url, **JOB | {"workers": 2})
    generate(digits, (tmp_path / "a b").as_uri(), **JOB)
    assert local(tmp_path / "a b") == local(undisturbed)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("gopher://bucket/samples", "expected a URL that fsspec knows"),
        ("zip://x.npy::s3://bucket/samples", "expected a folder or one URL"),
        ("simplecache::s3://bucket/samples", "expected a folder or one URL"),
    ],
)
def test_other_urls_are_refused(digits, url, words):
    pytest.importorskip("fsspec", reason="fsspec is missing")
    with pytest.raises(InputError, match=words):
        generate(digits, url, **JOB)
    with pytest.raises(VaeError, match=r"^ftp://127\.0\.0\.1:1/samples: cannot be reached: .*refused"):
        generate(digits, "ftp://127.0.0.1:1/samples", **JOB)


def test_passwords_are_not_printed():
    store = open_store("sftp://me:secret@host/a:b@c")
    assert str(store) == "sftp://me:…@host/a:b@c"
    assert pickle.loads(pickle.dumps(store))._url == "sftp://me:secret@host/a:b@c"
    assert str(open_store("sftp://me:p@ss@host/a")) == "sftp://me:…@host/a"
    assert str(open_store("s3://bucket/a:b@c")) == "s3://bucket/a:b@c"


@pytest.mark.parametrize("url", ["s3://me:hidden@bucket/a", "gs://me:hid/den@bucket", "az://:hidden@bucket/a@b"])
def test_object_stores_take_no_password(url, digits, tmp_path):
    for call in (
        lambda: generate(digits, url, n=1, seed=0),
        lambda: load(url, digest="0" * 64),
        lambda: install(url, tmp_path / "site", digest="0" * 64),
    ):
        with pytest.raises(InputError, match=r"://…: expected a URL without user and password, got one") as caught:
            call()
        assert "hid" not in str(caught.value)
    assert [event.result[:8] for event in history(tmp_path / "site")] == ["failed: "]
    assert "hid" not in (tmp_path / "site" / "history.jsonl").read_text(encoding="utf-8")


def test_passwords_that_a_library_repeats_are_not_printed(monkeypatch):
    pytest.importorskip("fsspec", reason="fsspec is missing")

    class Refusing:
        def cat_file(self, path):
            raise PermissionError(f"https://me:h%40den@host/{path} and 'h@den@host' " + "x" * 1000 + " port 'me:h@den'")

    store = open_store("https://me:h%40den@host/folder")
    monkeypatch.setattr(store, "_place", (Refusing(), "folder"), raising=False)
    with pytest.raises(
        VaeError, match=r"reading is refused: https://me:…@host/folder/a and '…@host' x.* port 'me:…';"
    ) as caught:
        store.read("a")
    assert not re.search("h(@|%40)den", str(caught.value))


def test_missing_libraries_are_named(digits, monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(VaeError, match=r"pip install 'vae-runtime\[remote\]'"):
        generate(digits, "s3://bucket/samples", **JOB)
    monkeypatch.undo()
    pytest.importorskip("fsspec", reason="fsspec is missing")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(VaeError, match=r"^gs://bucket/samples: .*gcsfs") as caught:
        generate(digits, "gs://bucket/samples", **JOB)
    assert "remote" not in str(caught.value)

    def no_library(url):
        raise ImportError("Install s3fs")

    monkeypatch.setattr("fsspec.core.url_to_fs", no_library)
    with pytest.raises(VaeError, match=r"^s3://bucket/samples: Install s3fs; pip install 'vae-runtime\[remote\]'$"):
        generate(digits, "s3://bucket/samples", **JOB)


def test_what_a_kill_leaves_on_this_machine_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("vae-runtime-put-left", "vae-runtime-put-in-use", "vae-runtime-other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "shard-00000000.npy").write_bytes(b"")
    with locked(tmp_path / "vae-runtime-put-in-use"), held(RemoteStore("s3://bucket/samples"), shared=False):
        assert sorted(os.listdir(tmp_path)) == ["vae-runtime-other", "vae-runtime-put-in-use"]


def test_a_store_goes_to_other_processes(tmp_path):
    for place in (str(tmp_path), "s3://bucket/samples/"):
        store = open_store(place)
        assert str(pickle.loads(pickle.dumps(store))) == str(store) == place.rstrip("/")


def test_creating_keeps_what_is_there(tmp_path, monkeypatch):
    store = LocalStore(tmp_path)
    winners = []
    for number in range(20):
        threads = [threading.Thread(target=store.create, args=(f"{number}", bytes([each]) * 9)) for each in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        winners.append(store.read(str(number)))
        store.create(str(number), b"later")
    assert [store.read(str(number)) for number in range(20)] == winners
    assert all(len(set(content)) == 1 and len(content) == 9 for content in winners)
    assert len(os.listdir(tmp_path)) == 20

    def without_links(*_):
        raise OSError("no hard links here")

    monkeypatch.setattr(os, "link", without_links)
    store.create("other", b"whole")
    assert store.read("other") == b"whole"
    assert len(os.listdir(tmp_path)) == 21


def test_what_a_kill_leaves_is_removed(tmp_path):
    (tmp_path / "job.json").write_bytes(b"")
    for name in (".shard-00000001.npy.abc.tmp", ".job.json.x_y.tmp", "..job.json.0f.tmp.z.tmp", ".mine.tmp"):
        (tmp_path / name).write_bytes(b"")
    with held(LocalStore(tmp_path), shared=True):
        assert len(os.listdir(tmp_path)) == 5
    with held(LocalStore(tmp_path), shared=False):
        assert sorted(os.listdir(tmp_path)) == [".mine.tmp", "job.json"]
    shutil.rmtree(tmp_path)
    assert LocalStore(tmp_path).sizes() == {}
