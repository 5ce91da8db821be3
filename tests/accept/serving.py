"""Acceptance check of ``align serve`` with the client of OpenAI (``pip install openai``)."""

from __future__ import annotations

import importlib.util
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.accept.commands import ALIGN, command, environment, settings

ASKED = [{"role": "user", "content": "what is two plus two ?"}]


def serving(work: Path) -> dict[str, Any]:
    """The client gets the answers that ``align generate`` gives, whole and streamed, with log-probabilities, of three models."""
    if importlib.util.find_spec("openai") is None:
        return {"skipped": "pip install openai"}
    openai = importlib.import_module("openai")
    quick = settings(train__max_steps=30, model__lora__r=4, eval__suites="[]", eval__samples=0, run__plots="false")
    for method in ("sft", "orpo"):
        command(ALIGN, "run", "--method", method, *quick, "--name", method, cwd=work)
    targets = {"sft": "runs/sft", "orpo": "runs/orpo", "base": "demo"}
    words = ["serve", *(f"{name}={target}" for name, target in targets.items()), "--port", "0", "--token", "secret"]
    process = subprocess.Popen(
        [sys.executable, "-m", "alignkit", *words], stderr=subprocess.PIPE, text=True, cwd=work, env=environment()
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"http://\S+/v1", line)
        assert found, line
        client = openai.OpenAI(base_url=found[0], api_key="secret", max_retries=0)
        assert [model.id for model in client.models.list()] == list(targets)
        greedy = {"messages": ASKED, "temperature": 0, "max_tokens": 20}
        for name, target in targets.items():
            own = command(
                ALIGN, "generate", target, "--prompt", ASKED[0]["content"], "--max-new-tokens", "20", cwd=work
            )
            whole = client.chat.completions.create(model=name, **greedy, logprobs=True, top_logprobs=2).choices[0]
            assert whole.message.content.strip() == own.stdout.strip()
            assert all(token.logprob == token.top_logprobs[0].logprob for token in whole.logprobs.content)
            pieces = client.chat.completions.create(model=name, **greedy, stream=True)
            assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole.message.content
        scored = client.completions.create(model="base", prompt="two plus two", max_tokens=0, echo=True, logprobs=1)
        refused = 0
        for key, model in (("wrong", "sft"), ("secret", "nosuch")):
            try:
                openai.OpenAI(base_url=found[0], api_key=key, max_retries=0).chat.completions.create(
                    model=model, **greedy
                )
            except openai.APIStatusError:
                refused += 1
        assert refused == 2
    finally:
        process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    return {"models": len(targets), "openai": openai.__version__, "scored": len(scored.choices[0].logprobs.tokens)}
