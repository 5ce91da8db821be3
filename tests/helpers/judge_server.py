"""A server that answers as an OpenAI-compatible endpoint does; by default its model prefers the longer answer, and A of equal ones."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any


def longer(prompt: str, a: str, b: str) -> float:
    return len(a) - len(b) + 0.1


class Endpoint:
    """What the server does, and what it was asked."""

    def __init__(
        self,
        *,
        logprobs: bool = True,
        words: str | None = None,
        key: str | None = None,
        prefers: Callable[[str, str, str], float] = longer,
    ) -> None:
        self.prefers = prefers
        """The logit of A, given prompt, A and B."""
        self.logprobs, self.words, self.key = logprobs, words, key
        """Whether it gives log-probabilities; what it answers in place of a letter; the key it asks for."""
        self.failures: list[tuple[int, dict[str, str], str]] = []
        """Answers to the next requests: status, headers and text (status 0: the connection is cut)."""
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.at_once = self.most_at_once = 0
        self.lock = Lock()
        self.url = ""

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        text = body["messages"][-1]["content"]
        found = re.search(r"\[Prompt\]\n(.*)\n\n\[Answer A\]\n(.*)\n\n\[Answer B\]\n(.*?)\n\nWhich", text, re.DOTALL)
        assert found is not None
        p = 1 / (1 + math.exp(-self.prefers(found[1], found[2], found[3])))
        letter = self.words or ("A" if p > 0.5 else "B")
        choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": letter}}
        if body.get("logprobs") and self.logprobs:
            top = [
                {"token": token, "logprob": math.log(max(x, 1e-9))}
                for token, x in (("A", p), ("B", 1 - p), ("C", 1e-9))
            ]
            choice["logprobs"] = {"content": [{"token": letter, "logprob": 0.0, "top_logprobs": top}]}
        return {"choices": [choice], "usage": {"prompt_tokens": len(text), "completion_tokens": 1}}


@contextmanager
def serving(endpoint: Endpoint) -> Iterator[Endpoint]:
    """Serve until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            with endpoint.lock:
                endpoint.at_once += 1
                endpoint.most_at_once = max(endpoint.most_at_once, endpoint.at_once)
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                failure = endpoint.failures.pop(0) if endpoint.failures else None
                endpoint.asked.append(body)
                endpoint.headers.append(dict(self.headers))
            try:
                self.reply(body, failure)
            finally:
                with endpoint.lock:
                    endpoint.at_once -= 1

        def reply(self, body: dict[str, Any], failure: tuple[int, dict[str, str], str] | None) -> None:
            wanted = f"Bearer {endpoint.key}"
            if failure is None and self.path != "/v1/chat/completions":
                failure = (404, {}, "not found")
            if failure is None and endpoint.key and self.headers.get("Authorization") != wanted:
                failure = (401, {}, f"Incorrect API key provided: {self.headers.get('Authorization')}")
            status, headers, text = failure or (200, {}, json.dumps(endpoint.answer(body)))
            if status == 0:
                self.close_connection = True
                return
            content = text.encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    endpoint.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
