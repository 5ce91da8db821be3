"""A server with the part of the Hugging Face hub's API that an upload needs; it takes every file in the commit itself."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class Hub:
    """The repositories of the server, and what it was asked."""

    def __init__(self, token: str) -> None:
        self.token, self.url = token, ""
        self.visibility: dict[str, str | None] = {}
        """Repositories, and the visibility they were made with."""
        self.files: dict[str, bytes] = {}
        """Files by repository and path."""
        self.messages: list[str] = []
        """Messages of the commits."""
        self.failing: str | None = None
        """Part of the path of requests that fail with status 403."""

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        """Return the status and the answer to a POST."""
        parts = path.strip("/").split("/")
        if self.failing and self.failing in path:
            return 403, {"error": "You need write access"}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.visibility:
                return 409, {"error": "You already created this model repo", "url": f"{self.url}/{name}"}
            self.visibility[name] = asked.get("visibility")
            return 200, {"url": f"{self.url}/{name}"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        repository = "/".join(parts[2:4])
        if parts[4] == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            return 200, {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
        for line in body.splitlines():
            part = json.loads(line)
            if part["key"] == "header":
                self.messages.append(part["value"]["summary"])
            else:
                assert part["value"]["encoding"] == "base64"
                content = base64.b64decode(part["value"]["content"])
                self.files[f"{repository}/{part['value']['path']}"] = content
        oid = f"{len(self.messages):040x}"
        return 200, {"commitUrl": f"{self.url}/{repository}/commit/{oid}", "commitOid": oid}


@contextmanager
def serving_hub(hub: Hub) -> Iterator[Hub]:
    """Serve until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            known = self.headers.get("Authorization") == f"Bearer {hub.token}"
            self.reply(*hub.answer(self.path.partition("?")[0], body) if known else (401, {"error": "Invalid token"}))

        def do_GET(self) -> None:
            self.reply(404, {"error": "Entry not found"})

        do_HEAD = do_GET

        def reply(self, status: int, answer: Any) -> None:
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            """Write nothing to stderr."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield hub
        finally:
            server.shutdown()
