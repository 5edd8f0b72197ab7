"""Serve the page and a bundle on the loopback interface, or lay both out as static files."""

from __future__ import annotations

import json
import mimetypes
import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any

ADDRESS = "127.0.0.1"
# Where the bundle's files are, relative to the page, and the file that tells the page which bundle it is.
BUNDLE, SETTINGS = "bundle/", "studio.json"

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".json": "application/json",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
}
# What browsers run, or read as markup.
_ACTIVE = re.compile("html|xml|svg|script|pdf")
# Endings of what some web servers run themselves, also before another ending, and types that not every system knows.
_RUN = re.compile(
    r"\.(asp|ashx|asmx|aspx|cfm|f?cgi|hta|jspx?|lua|phar|php|phtml|pl|py|rb|shtml?|x?html?|xht)[0-9]*(\.[^/]*)?$",
    re.IGNORECASE,
)

Files = Mapping[str, Callable[[], bytes]]


def page_files() -> dict[str, Callable[[], bytes]]:
    """Return the files of the page by name, each as a function that reads it.

    Raises:
        FileNotFoundError: the package was installed without the page, which `make studio` builds.
    """
    folder = resources.files(__package__) / "page"
    if not (folder / "index.html").is_file():
        raise FileNotFoundError(
            f"{folder}: expected the page, got nothing; build it with `make studio`, or install its wheel"
        )
    return {each.name: each.read_bytes for each in folder.iterdir() if each.is_file()}


def site(bundle: Files, source: str, digest: str, *, exported: bool = False) -> dict[str, Callable[[], bytes]]:
    """Return every file of the site by its path: the page, its settings, and the bundle.

    Args:
        bundle: the files of the bundle by their paths.
        source: how code names the bundle.
        exported: whether any web server may serve these files: code then names the bundle by its address there.
        digest: "sha256:…"; the page refuses any other bundle.
    """
    settings: dict[str, Any] = {"bundle": BUNDLE, "digest": digest, "source": source}
    if exported:
        settings["exported"] = True
    about = json.dumps(settings, indent=1).encode()
    return {**page_files(), SETTINGS: lambda: about, **{BUNDLE + name: read for name, read in bundle.items()}}


def active(bundle: Files) -> list[str]:
    """Return the names of files that a web server would run, or send as markup or script."""
    return [name for name in bundle if _RUN.search(name) or _ACTIVE.search(mimetypes.guess_type(name)[0] or "")]


def serve(files: Files, *, port: int = 0, ready: Callable[[str], object]) -> None:
    """Serve files on 127.0.0.1 until the process is interrupted.

    Only these files are sent, to GET alone, and only to browsers that ask for this host: the name of another host
    that leads here is refused.

    Args:
        files: every file by its path.
        port: the port; 0 takes a free one.
        ready: called with the address once the port is open.

    Raises:
        OSError: the port cannot be opened.
    """
    with _Server((ADDRESS, port), _Handler) as server:
        server.files = files
        ready(f"http://{ADDRESS}:{server.server_port}/")
        server.serve_forever(poll_interval=0.1)


def hosts(port: int) -> list[str]:
    """Return the hosts that browsers name who ask this server; they leave out the port of HTTP, 80."""
    names = [ADDRESS, "localhost"]
    return [f"{name}:{port}" for name in names] + (names if port == 80 else [])


class _Server(ThreadingHTTPServer):
    files: Files

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that has gone."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "vae-runtime-studio", ""
    protocol_version = "HTTP/1.1"
    # Seconds until a silent connection is closed.
    timeout = 60

    def do_GET(self) -> None:
        """Send one file."""
        path = self.path.partition("?")[0]
        name = "index.html" if path == "/" else path[1:]
        if self.headers.get_all("Host") not in [[host] for host in hosts(self.server.server_port)]:
            self._send(HTTPStatus.MISDIRECTED_REQUEST, b"expected the address that vae-runtime printed\n", "x.txt")
        elif not path.startswith("/") or name not in self.server.files:
            self._send(HTTPStatus.NOT_FOUND, b"there is no such file\n", "x.txt")
        else:
            try:
                content = self.server.files[name]()
            except Exception:
                self._send(HTTPStatus.INTERNAL_SERVER_ERROR, b"the file cannot be read\n", "x.txt")
                return
            self._send(HTTPStatus.OK, content, name)

    def _send(self, status: HTTPStatus, content: bytes, name: str) -> None:
        # A file of the bundle is data, whatever its name says.
        kind = "application/octet-stream"
        if not name.startswith(BUNDLE):
            kind = _TYPES.get(f".{name.rpartition('.')[2]}", kind)
        self.send_response(status)
        for key, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse other methods and broken requests, without a page of HTML and without the request's words."""
        self.close_connection = True
        status = HTTPStatus.METHOD_NOT_ALLOWED if code == HTTPStatus.NOT_IMPLEMENTED else HTTPStatus(code)
        self._send(status, b"expected a GET request\n", "x.txt")

    def log_message(self, *arguments: Any) -> None:
        """Say nothing of requests: the page shows what it cannot read."""
