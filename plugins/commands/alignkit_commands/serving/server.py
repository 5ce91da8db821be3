"""The server: one thread for each connection, one model computing at a time."""

from __future__ import annotations

import hmac
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import click
from alignkit.errors import AlignError, ConfigError, described, suggest
from alignkit.system.signals import terminable

from alignkit_commands.serving.requests import Chat, Completion, parse
from alignkit_commands.serving.responses import respond, respond_in_pieces
from alignkit_commands.serving.served import Served, load_served

LARGEST = 16 * 2**20
"""Bytes of a request."""
KINDS: dict[str, type[Chat] | type[Completion]] = {"/v1/chat/completions": Chat, "/v1/completions": Completion}

logger = logging.getLogger(__name__)


def serve_with_transformers(named: Mapping[str, str], *, host: str, port: int, token: str | None, dtype: str) -> None:
    """Load the models, serve them until Ctrl-C, and end the process.

    Raises ``ConfigError`` for a port that cannot be used.
    """
    try:
        server = Server((host, port), token)
    except OSError as error:
        raise ConfigError(
            f"cannot listen at {host} port {port}: {error.strerror or error}; choose another --port"
        ) from None
    with server, terminable():
        server.models = load_served(named, dtype)
        reachable = (
            ""
            if host in ("127.0.0.1", "localhost", "::1") or token
            else ", open to everyone who can reach it: set --token"
        )
        click.echo(f"serving {', '.join(server.models)} at {server.url}{reachable}; Ctrl-C ends it", err=True)
        try:
            server.serve_forever(poll_interval=0.1)
        except KeyboardInterrupt:
            click.echo("ended", err=True)
    # Threads of connections may be inside a library's code, where the shutdown of Python would abort.
    sys.stdout.flush()
    os._exit(0)


class Server(ThreadingHTTPServer):
    """An HTTP server with the models by name; it listens from the start, so that a taken port is found before models load."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], token: str | None) -> None:
        super().__init__(address, Handler)
        self.token, self.models, self.began = token, dict[str, Served](), int(time.time())

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that went away."""


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if not self._allowed():
            return
        known = [self._about(name) for name in self.server.models]
        path = self.path.partition("?")[0].rstrip("/")
        if path == "/v1/models":
            self._send(200, {"object": "list", "data": known})
        elif path in ("/health", "/v1/health"):
            self._send(200, {"status": "ok"})
        elif path.removeprefix("/v1/models/") in self.server.models:
            self._send(200, self._about(path.removeprefix("/v1/models/")))
        else:
            self._fail(404, f"there is nothing at {path}: GET /v1/models, POST {', POST '.join(KINDS)}")

    def do_POST(self) -> None:
        body = self._body()
        if body is None or not self._allowed():
            return
        path = self.path.partition("?")[0].rstrip("/")
        if path not in KINDS:
            self._fail(404, f"there is nothing at {path}: POST {' or '.join(KINDS)}")
            return
        try:
            request = parse(KINDS[path], json.loads(body))
            served = self.server.models.get(request.model)
            if served is None:
                names = list(self.server.models)
                self._fail(
                    404,
                    f"no model is called {request.model}{suggest(request.model, names)} (served: {', '.join(names)})",
                )
            elif request.stream:
                self._stream(respond_in_pieces(served, request))
            else:
                self._send(200, respond(served, request))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            self._fail(400, f"the request is not valid JSON: {error}")
        except ConfigError as error:
            self._fail(400, str(error))
        except AlignError as error:
            self._fail(500, str(error))
        except ConnectionError:
            self.close_connection = True
        except Exception as error:  # the server goes on
            logger.exception("a request failed")
            self._fail(500, described(error))

    def _body(self) -> bytes | None:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > LARGEST:
            self.close_connection = True
            self._fail(
                413 if length.isdigit() else 411, f"the request must state its length, at most {LARGEST:,} bytes"
            )
            return None
        return self.rfile.read(int(length))

    def _allowed(self) -> bool:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        token = self.server.token
        if token is None or hmac.compare_digest(given.encode(), token.encode()):
            return True
        self._fail(401, "the API key is wrong or missing: send it as Authorization: Bearer KEY", "invalid_api_key")
        return False

    def _about(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self.server.began, "owned_by": "alignkit"}

    def _stream(self, chunks: Iterator[dict[str, Any]]) -> None:
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            for chunk in chunks:
                self._write(json.dumps(chunk))
            self._write("[DONE]")
        except ConnectionError:
            chunks.close()  # type: ignore[attr-defined]  # the client went away: generation ends
        except Exception as error:
            self._write(
                json.dumps({"error": _error(str(error) if isinstance(error, AlignError) else described(error))})
            )

    def _write(self, text: str) -> None:
        self.wfile.write(f"data: {text}\n\n".encode())
        self.wfile.flush()

    def _fail(self, status: int, message: str, code: str | None = None) -> None:
        self._send(status, {"error": _error(message, code)})

    def _send(self, status: int, value: Any) -> None:
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log a request at level info, not to the terminal."""
        logger.info(format, *arguments)


def _error(message: str, code: str | None = None) -> dict[str, Any]:
    return {"message": message, "type": "invalid_request_error", "param": None, "code": code}
