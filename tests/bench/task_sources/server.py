"""A server on this machine that speaks what is used of the hub, and gives away plain files; it can break off."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

_API = re.compile(r"/api/datasets/([^/]+/[^/]+?)(?:/revision/(.+))?")
_RESOLVE = re.compile(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class Server:
    """What is served, and what was asked.

    Attributes:
        address: Where it is.
        repositories: Files by the names of data sets.
        files: Other files, by their path.
        gated: Data sets whose owner asks for more.
        breaks: After how many bytes an answer breaks off, by the name of the file; once each.
        ranges: Whether parts of files are served.
        sized: Whether answers say how long they are.
        stamped: Whether answers say which edition of a file they are.
        failing: How many requests are answered by "out of order".
        asked: Method, path and range of every request.
    """

    def __init__(self) -> None:
        self.address = ""
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.files: dict[str, bytes] = {}
        self.gated: set[str] = set()
        self.breaks: dict[str, int] = {}
        self.ranges, self.sized, self.stamped, self.failing = True, True, True, 0
        self.asked: list[tuple[str, str, str]] = []

    def revision(self, name: str) -> str:
        """The commit that a data set is at; other files, other commit."""
        files = self.repositories[name]
        return hashlib.sha1(b"".join(key.encode() + files[key] for key in sorted(files))).hexdigest()

    def got(self, name: str) -> list[str]:
        """The ranges of the requests for the content of a file."""
        return [asked for method, path, asked in self.asked if method == "GET" and path.endswith(f"/{name}")]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Server

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.state.asked.append((self.command, path, self.headers.get("Range") or ""))
        if self.state.failing > 0:
            self.state.failing -= 1
            self._refuse(503)
        elif match := _API.fullmatch(path):
            self._describe(match[1], match[2])
        elif match := _RESOLVE.fullmatch(path):
            content = self.state.repositories[match[1]][match[3]]
            linked = {"X-Repo-Commit": match[2], "X-Linked-Etag": f'"{_sha256(content)}"'}
            self._give(content, match[3], {**linked, "X-Linked-Size": str(len(content))})
        elif path in self.state.files:
            self._give(self.state.files[path], path, {})
        else:
            self._refuse(404)

    def _describe(self, name: str, revision: str | None) -> None:
        if name in self.state.gated:
            self._refuse(403, "GatedRepo")
        elif name not in self.state.repositories:
            self._refuse(404, "RepoNotFound")
        elif revision not in (None, "main", self.state.revision(name)):
            self._refuse(404, "RevisionNotFound")
        else:
            files = [
                {
                    "rfilename": file,
                    "size": len(content),
                    "blobId": hashlib.sha1(content).hexdigest(),
                    # Small files are in git and have no SHA-256.
                    **({} if file == "README.md" else {"lfs": _lfs(content)}),
                }
                for file, content in self.state.repositories[name].items()
            ]
            self._send(json.dumps({"id": name, "sha": self.state.revision(name), "siblings": files}).encode(), 200, {})

    def _give(self, content: bytes, name: str, headers: dict[str, str]) -> None:
        etag = f'"{_sha256(content)}"'
        headers = {**headers, "ETag": etag} if self.state.stamped else headers
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if start and self.state.ranges and self.headers.get("If-Range", etag) == etag:
            begin = int(start[1])
            if begin >= len(content):
                self._send(b"", 416, {"Content-Range": f"bytes */{len(content)}"})
                return
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
            self._send(content[begin:], 206, headers, name)
        else:
            self._send(content, 200, headers, name)

    def _send(self, content: bytes, status: int, headers: dict[str, str], name: str = "") -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if self.state.sized:
            self.send_header("Content-Length", str(len(content)))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "HEAD":
            return
        stop = self.state.breaks.pop(PurePosixPath(name).name, None)
        self.wfile.write(content if stop is None else content[:stop])
        if stop is not None:
            self.close_connection = True

    def _refuse(self, status: int, code: str = "") -> None:
        self._send(b"", status, {"X-Error-Code": code} if code else {})


@contextmanager
def served() -> Iterator[Server]:
    """A server that runs as long as the block."""
    state = Server()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": state}))
    state.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _lfs(content: bytes) -> dict[str, object]:
    return {"sha256": _sha256(content), "size": len(content), "pointerSize": 130}
