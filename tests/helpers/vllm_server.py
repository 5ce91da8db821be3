"""A small server with the routes of vLLM that the sampler uses; it answers with a transformers model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import torch
from alignkit.models.generate import generate
from safetensors.torch import load_file

from tests.helpers.engine import Words


class Served:
    """The server's model and what was asked of it; ``changes`` replace answers to paths, as (status, content)."""

    def __init__(self, model: torch.nn.Module, changes: dict[str, tuple[int, Any]]) -> None:
        self.model, self.changes, self.lock = model, changes, Lock()
        self.calls: list[str] = []
        self.files: list[Path] = []
        self.received: dict[str, torch.Tensor] = {}
        self.url = ""
        self.apart = 0.0
        """Difference of its log-probabilities from the model's, as if it computed in another precision."""
        self.routes: dict[str, Callable[[Any], Any]] = {
            "version": lambda _: {"version": "0.32.0"},
            "v1/models": lambda _: {"data": [{"id": "served", "max_model_len": 64}]},
            "get_world_size": lambda _: {"world_size": 1},
            "init_weight_transfer_engine": lambda _: {},
            "start_weight_update": lambda _: self.received.clear(),
            "update_weights": self.update,
            "finish_weight_update": self.finish,
            "reset_prefix_cache": lambda _: {},
            "v1/completions": self.complete,
        }

    def update(self, content: Any) -> None:
        file = Path(content["update_info"]["path"])
        self.files.append(file)
        self.received |= load_file(file)

    def finish(self, _: Any) -> None:
        self.model.load_state_dict(self.received, strict=False)

    def complete(self, content: Any) -> Any:
        prompt = content["prompt"]
        if "prompt_logprobs" in content:
            with torch.no_grad():
                logps = self.model(input_ids=torch.tensor([prompt])).logits[0].log_softmax(-1)
            found = [{str(token): {"logprob": logps[i, token].item()}} for i, token in enumerate(prompt[1:])]
            return {"choices": [{"prompt_logprobs": [None, *found]}]}
        options = {key: content[key] for key in ("temperature", "top_p", "top_k")}
        options |= {"max_new_tokens": content["max_tokens"], "stop": content["stop_token_ids"]}
        (answer,) = generate(self.model, Words(), [prompt], seed=content["seed"] or 0, **options)  # type: ignore[arg-type]
        ids = torch.tensor([*prompt, *answer.completion])
        with torch.no_grad():
            logps = self.model(input_ids=ids[None]).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        own = logps.gather(1, ids[len(prompt) :, None])[:, 0] + self.apart
        return {"choices": [{"token_ids": answer.completion, "logprobs": {"token_logprobs": own.tolist()}}]}


@contextmanager
def serving(model: torch.nn.Module, **changes: tuple[int, Any]) -> Iterator[Served]:
    """Serve a model until the ``with`` block ends."""
    served = Served(model, {path.replace("__", "/"): change for path, change in changes.items()})

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            path = self.path.strip("/")
            length = int(self.headers.get("Content-Length") or 0)
            content = json.loads(self.rfile.read(length) or b"null")
            with served.lock:
                served.calls.append(path)
                if path in served.changes:
                    status, answer = served.changes[path]
                else:
                    route = served.routes.get(path)
                    status, answer = (200, route(content)) if route else (404, {"detail": "Not Found"})
            body = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        served.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()
