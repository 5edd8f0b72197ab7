"""Servers of this machine that answer like a web server and like the Hugging Face Hub."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading

COMMIT = "0123456789abcdef" * 2 + "01234567"


@contextlib.contextmanager
def serving(handler):
    """Serve on the loopback interface; the server's `files` are what it holds, by path."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.seen, server.token, server.files = [], None, {}
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class Files(http.server.BaseHTTPRequestHandler):
    """Serve files by their paths, and count what is asked for; as a web server, and with `repositories` as the Hub."""

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        self.server.seen.append(self.path)
        path = self.path.partition("?")[0]
        if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self.answer(401, b"", body, {"X-Error-Code": "RepoNotFound"})
            return
        file = re.fullmatch("/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        name = f"repository/{file[3]}" if file else path[1:]
        content = self.server.files.get(name)
        if content is None or (file and file[2] not in ("main", COMMIT)):
            self.answer(404, b"", body, {"X-Error-Code": "EntryNotFound"})
            return
        self.answer(200, content, body, {"ETag": f'"{hash(content):x}"', "X-Repo-Commit": COMMIT})

    def answer(self, status, content, body, headers):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            with contextlib.suppress(OSError):
                self.wfile.write(content)

    def log_message(self, *arguments):
        pass


class Hub(Files):
    """Take commits too, as the Hub does: `commits` maps the name of each to its files, and `head` is the last one."""

    protocol_version = "HTTP/1.1"

    def allowed(self):
        self.server.seen.append(f"{self.command} {self.path}")
        if self.headers.get("Authorization") == f"Bearer {self.server.token}":
            return True
        self.say(401, {"error": "Invalid credentials"}, {"X-Error-Code": "RepoNotFound"})
        return False

    def say(self, status, document, headers=()):
        self.answer(status, json.dumps(document).encode(), True, {"Content-Type": "application/json", **dict(headers)})

    def do_GET(self, body=True):
        server, path = self.server, self.path.partition("?")[0]
        if not self.allowed():
            return
        file = re.fullmatch("/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if file:
            revision = server.head if file[2] == "main" else file[2]
            content = server.commits.get(revision, {}).get(file[3])
            if content is None:
                self.answer(404, b"", body, {"X-Error-Code": "EntryNotFound"})
            else:
                etag = hashlib.sha256(content).hexdigest()
                self.answer(200, content, body, {"ETag": f'"{etag}"', "X-Repo-Commit": revision})
        elif re.match("/api/models/[^/]+/[^/]+", path) and server.head:
            files = [{"rfilename": name} for name in server.commits[server.head]]
            about = {"id": "me/mine", "private": server.private, "sha": server.head, "siblings": files}
            self.say(200, about)
        else:
            self.say(404, {"error": "not found"}, {"X-Error-Code": "RepoNotFound"})

    def do_PUT(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.blobs[self.path.rpartition("/")[2]] = content
        self.answer(200, b"", True, {})

    def do_POST(self):
        server, path = self.server, self.path.partition("?")[0]
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.allowed():
            return
        if path == "/api/repos/create":
            if server.head:
                self.say(409, {"error": "You already created this model repo", "url": f"{server.url}/me/mine"})
                return
            asked = json.loads(content)
            server.private = bool(asked.get("private")) or asked.get("visibility") == "private"
            self.commit({".gitattributes": b"*.onnx filter=lfs diff=lfs merge=lfs -text"})
            self.say(200, {"url": f"{server.url}/me/mine"})
        elif path == "/api/validate-yaml":
            server.cards.append(json.loads(content)["content"])
            self.say(200, {"errors": [], "warnings": []})
        elif "/preupload/" in path:
            large = (".onnx", ".npz", ".png", ".sig")
            files = json.loads(content)["files"]
            modes = ["lfs" if each["path"].endswith(large) else "regular" for each in files]
            answers = [
                {"path": each["path"], "uploadMode": mode, "shouldIgnore": False}
                for each, mode in zip(files, modes, strict=True)
            ]
            self.say(200, {"files": answers})
        elif path.endswith("/info/lfs/objects/batch"):
            wanted = json.loads(content)["objects"]
            objects = [{**each, "actions": {"upload": {"href": f"{server.url}/lfs/{each['oid']}"}}} for each in wanted]
            self.say(200, {"transfer": "basic", "objects": objects})
        elif "/commit/" in path:
            self.take([json.loads(line) for line in content.splitlines()])

    def take(self, lines):
        """Make a commit of the lines of a request."""
        server, header = self.server, lines[0]["value"]
        if header.get("parentCommit", server.head) != server.head or server.moved:
            self.say(412, {"error": "A commit has happened since"})
            return
        files = dict(server.commits[server.head])
        for line in lines[1:]:
            key, value = line["key"], line["value"]
            if key == "deletedFile":
                del files[value["path"]]
            elif key == "lfsFile":
                files[value["path"]] = server.blobs[value["oid"]]
                assert hashlib.sha256(files[value["path"]]).hexdigest() == value["oid"]
            else:
                files[value["path"]] = base64.b64decode(value["content"])
        self.commit(files)
        self.say(200, {"commitUrl": f"{server.url}/me/mine/commit/{server.head}", "commitOid": server.head})

    def commit(self, files):
        self.server.head = hashlib.sha1(repr((self.server.head, sorted(files.items()))).encode()).hexdigest()
        self.server.commits[self.server.head] = files


@contextlib.contextmanager
def hub():
    """Serve as a Hub without repositories, for the token "hf_mine"."""
    with serving(Hub) as server:
        server.token, server.head, server.private, server.moved = "hf_mine", None, False, False
        server.commits, server.blobs, server.cards = {}, {}, []
        yield server
