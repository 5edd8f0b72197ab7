"""The verb `studio`: who is served what, what is written, what is refused. studio/test tests the page itself."""

import http.client
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import vae_runtime
from vae_runtime.cli.main import main

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "models" / "digits"


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The project `studio` with a page of one line, since Node builds the real one."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "studio", folder / "studio", ignore=shutil.ignore_patterns("page", "__pycache__", "src"))
    version = Path("runtime", "vae_runtime", "_version.py")
    (folder / version).parent.mkdir(parents=True)
    shutil.copy(ROOT / version, folder / version)
    page = folder / "studio" / "vae_runtime_studio" / "page"
    page.mkdir()
    (page / "index.html").write_text("<!doctype html><title>x</title>", encoding="utf-8")
    (page / "studio.js").write_text("export {};", encoding="utf-8")
    (page / "folder").mkdir()
    return folder / "studio"


@pytest.fixture(scope="module")
def environment(package):
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (package, ROOT / "runtime", ROOT)))}


@pytest.fixture(scope="module")
def server(environment):
    """A running server of models/digits, and its port."""
    command = [sys.executable, "-W", "error", "-m", "vae_runtime", "studio", str(DIGITS)]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    )
    line = process.stdout.readline()
    yield process, int(re.fullmatch(r"http://127\.0\.0\.1:(\d+)/  \(Ctrl-C ends it\)\n", line)[1])
    process.kill()
    process.wait()
    process.stdout.close()
    process.stderr.close()


def asked(port, path, method="GET", host=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.putrequest(method, path, skip_host=True)
    for each in host if isinstance(host, list) else [host or f"127.0.0.1:{port}"]:
        connection.putheader("Host", each)
    connection.endheaders()
    response = connection.getresponse()
    answer = response.status, dict(response.getheaders()), response.read()
    connection.close()
    return answer


def test_the_page_and_the_bundle_are_served(server):
    _, port = server
    status, headers, content = asked(port, "/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert content == b"<!doctype html><title>x</title>"
    assert asked(port, "/studio.js")[1]["Content-Type"].startswith("text/javascript")
    about = json.loads(asked(port, "/studio.json")[2])
    assert about == {"bundle": "bundle/", "digest": vae_runtime.load(DIGITS).digest, "source": str(DIGITS)}
    for name in ("SHA256SUMS", "manifest.json", "decoder/fp32/model.onnx", "README.md"):
        status, headers, content = asked(port, f"/bundle/{name}")
        assert (status, headers["Content-Type"]) == (200, "application/octet-stream")
        assert content == (DIGITS / name).read_bytes()


@pytest.mark.parametrize(
    "path",
    [
        "/nothing", "/bundle/", "/bundle", "/bundle/../../pyproject.toml", "/bundle/%2e%2e/%2e%2e/pyproject.toml",
        "/../serving.py", "/__init__.py", "studio.js", "xstudio.js", "/folder", "*",
        "/bundle//SHA256SUMS", "/bundle/./SHA256SUMS",
    ],
)  # fmt: skip
def test_nothing_else_is_served(server, path):
    status, headers, _ = asked(server[1], path)
    assert (status, headers["Content-Type"]) == (404, "text/plain; charset=utf-8")


@pytest.mark.parametrize("path", ["/", "/studio.json?seed=7", "/bundle/README.md", "/nothing"])
def test_every_answer_has_the_headers_that_confine_it(server, path):
    status, headers, content = asked(server[1], path)
    assert status == (404 if path == "/nothing" else 200)
    del headers["Content-Type"], headers["Date"]
    policy = headers.pop("Content-Security-Policy")
    assert headers.pop("Server").strip() == "vae-runtime-studio"
    assert headers == {
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store",
        "Content-Length": str(len(content)),
    }
    assert set(policy.split("; ")) == {
        "default-src 'none'", "script-src 'self' 'wasm-unsafe-eval'", "worker-src 'self'", "style-src 'self'",
        "connect-src 'self'", "img-src 'self' data: blob:", "base-uri 'none'", "form-action 'none'",
        "frame-ancestors 'none'",
    }  # fmt: skip


def test_a_refused_connection_ends(server):
    """What follows a request that is not understood may be its body, not another request."""
    host = f"Host: 127.0.0.1:{server[1]}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server[1]), timeout=30) as connection:
        connection.sendall(f"POST / HTTP/1.1\r\n{host}GET / HTTP/1.1\r\n{host}".encode())
        with connection.makefile("rb") as answers:
            assert answers.read().count(b"HTTP/1.1 ") == 1


def test_what_fails_is_an_error_of_its_own_without_a_word(environment, tmp_path):
    copy = shutil.copytree(DIGITS, tmp_path / "bundle")
    command = [sys.executable, "-W", "error", "-m", "vae_runtime", "studio", str(copy)]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    ) as process:
        port = int(process.stdout.readline().split(":")[2].split("/")[0])
        # A browser that goes in the middle of its request, with a reset.
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(b"GET /")
        (copy / "README.md").unlink()
        status, headers, content = asked(port, "/bundle/README.md")
        assert (status, headers["Content-Type"]) == (500, "text/plain; charset=utf-8")
        assert str(tmp_path) not in content.decode()
        assert asked(port, "/bundle/manifest.json")[0] == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stderr.read() == ""


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:{port}.evil.example"])
def test_other_names_of_this_host_are_refused(server, host):
    """A page of a stranger may let its own name lead to 127.0.0.1."""
    _, port = server
    status, _, content = asked(port, "/studio.json", host=host.format(port=port))
    assert status == 421
    assert b"digest" not in content
    assert asked(port, "/", host=[f"127.0.0.1:{port}", "evil.example"])[0] == 421
    assert asked(port, "/", host=[])[0] == 421
    assert asked(port, "/", host=f"localhost:{port}")[0] == 200


def test_browsers_leave_out_the_port_of_http():
    spec = importlib.util.spec_from_file_location("serving", ROOT / "studio" / "vae_runtime_studio" / "serving.py")
    serving = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(serving)
    assert {"127.0.0.1", "localhost", "127.0.0.1:80", "localhost:80"} == set(serving.hosts(80))
    assert {"127.0.0.1:8080", "localhost:8080"} == set(serving.hosts(8080))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "HEAD", "<b>"])
def test_only_get_is_answered(server, method):
    status, headers, content = asked(server[1], "/", method)
    assert status == 405
    assert headers["Content-Type"].startswith("text/plain")
    assert b"<b>" not in content


def test_it_listens_on_the_loopback_interface_alone(server):
    _, port = server
    with socket.socket() as other, pytest.raises(ConnectionRefusedError):
        other.connect(("127.0.0.2", port))


def test_a_taken_port_is_refused(server, environment):
    command = [sys.executable, "-m", "vae_runtime", "studio", DIGITS, "--port", str(server[1])]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=60, check=False)
    assert done.returncode == 1
    assert re.fullmatch(rf"error: --port: expected a free port, got {server[1]}: .*; choose another\n", done.stderr)


def test_ctrl_c_ends_it_without_a_word(environment):
    command = [sys.executable, "-W", "error", "-m", "vae_runtime", "studio", DIGITS]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    ) as process:
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stderr.read() == ""


def exported(environment, *words):
    command = [sys.executable, "-W", "error", "-m", "vae_runtime", "studio", *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=60, check=False)


def test_the_export_is_the_page_beside_the_bundle(environment, tmp_path):
    site = tmp_path / "site"
    done = exported(environment, DIGITS, "--export", site)
    assert (done.returncode, done.stdout) == (0, f"{site}: the page of digits; serve this folder\n")
    about = json.loads((site / "studio.json").read_text(encoding="utf-8"))
    assert about["source"] == "digits"
    assert about["exported"] is True
    assert vae_runtime.verify(site / "bundle", digest=about["digest"]).passed
    names = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    bundle = {f"bundle/{path.relative_to(DIGITS).as_posix()}" for path in DIGITS.rglob("*") if path.is_file()}
    assert names == {"index.html", "studio.js", "studio.json", *bundle}
    again = exported(environment, DIGITS, "--export", site)
    assert again.returncode == 1
    assert "already exists" in again.stderr
    assert exported(environment, DIGITS, "--export", site, "--force").returncode == 0


def test_an_export_of_a_damaged_bundle_leaves_nothing(environment, tmp_path):
    copy = shutil.copytree(DIGITS, tmp_path / "bundle")
    (copy / "samples.png").write_bytes(b"other")
    done = exported(environment, copy, "--export", tmp_path / "site")
    assert done.returncode == 1
    assert "samples.png" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    "name", ["picture.svg", "paper.pdf", "deep/code.js", "page.php", "read.PHP7.md", "deep/page.xht", "page.shtml"]
)
def test_files_that_browsers_or_servers_run_are_not_exported(environment, tmp_path, resign, name):
    copy = shutil.copytree(DIGITS, tmp_path / "bundle")
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_text("<script>alert(1)</script>", encoding="utf-8")
    resign(copy)
    done = exported(environment, copy, "--export", tmp_path / "site")
    assert done.returncode == 1
    assert f"{name}: expected no file that browsers or web servers run, got one" in done.stderr
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        (["--force"], "--force: allowed only with --export"),
        (["--port", "1", "--export", "x"], "not allowed with argument"),
        (["--port", "65536"], "port: expected 0 … 65535, got 65536"),
        (["--export", str(DIGITS / "site")], "--export: expected a place outside the bundle"),
    ],
)
def test_misuse(capsys, words, printed):
    with pytest.raises(SystemExit, match="2"):
        main(["studio", str(DIGITS), *words])
    assert printed in capsys.readouterr().err


def test_without_the_extra_it_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "vae_runtime_studio", None)
    assert main(["studio", str(DIGITS)]) == 1
    assert capsys.readouterr().err == (
        "error: `studio` needs vae-runtime-studio, which is not installed: pip install 'vae-runtime[studio]'\n"
    )


def test_without_the_page_it_is_named(package, environment, tmp_path):
    shutil.copytree(package / "vae_runtime_studio", tmp_path / "vae_runtime_studio")
    shutil.rmtree(tmp_path / "vae_runtime_studio" / "page")
    paths = os.pathsep.join([str(tmp_path), environment["PYTHONPATH"]])
    done = exported({**environment, "PYTHONPATH": paths}, DIGITS)
    assert done.returncode == 1
    assert "expected the page, got nothing; build it with `make studio`" in done.stderr
