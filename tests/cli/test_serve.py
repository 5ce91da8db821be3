"""``align serve``: the API, adapters that share a base, streaming, log-probabilities, refusals, and the end."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from alignkit import build_model
from alignkit.config import ModelConfig
from alignkit.demo import model_path
from alignkit.errors import ConfigError
from alignkit_commands.chat import ChatModel, Sampling
from alignkit_commands.serving.served import load_served, named_targets
from alignkit_commands.serving.server import Server
from alignkit_commands.serving.vllm import arguments

from tests.helpers.runs import ALIGN, align
from tests.helpers.scheduling import appears, gone

ASKED = [{"role": "user", "content": "what is two plus two ?"}]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two adapters of the demo's model."""
    import peft

    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("one", "two")):
        base = build_model(ModelConfig(name="demo", dtype="float32"))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = peft.get_peft_model(
                base.model, peft.LoraConfig(r=2, lora_alpha=200, init_lora_weights=False, task_type="CAUSAL_LM")
            )
        model.peft_config["default"].base_model_name_or_path = str(model_path())
        model.save_pretrained(folder / name)
        base.tokenizer.save_pretrained(folder / name)
    return {name: str(folder / name) for name in ("one", "two")}


@pytest.fixture(scope="module")
def server(adapters: dict[str, str]) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), "secret") as made:
        made.models = load_served({"demo": "demo", **adapters}, "auto")
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def ask(server: Server, path: str, key: str = "secret", **body: Any) -> requests.Response:
    headers = {"Authorization": f"Bearer {key}"}
    if not body:
        return requests.get(f"{server.url}/{path}", headers=headers, timeout=60)
    return requests.post(f"{server.url}/{path}", headers=headers, json=body, timeout=60)


def test_adapters_share_a_base_and_answer_as_each_does_alone(server: Server, adapters: dict[str, str]) -> None:
    assert server.models["one"].model is server.models["two"].model
    assert server.models["demo"].model is not server.models["one"].model
    targets = {"demo": "demo", **adapters}
    alone = {name: ChatModel(target).answer(ASKED, Sampling(max_new_tokens=12)) for name, target in targets.items()}
    for name in ("one", "two", "demo", "one"):
        found = ask(server, "chat/completions", model=name, messages=ASKED, temperature=0, max_tokens=12).json()
        assert found["choices"][0]["message"]["content"].strip() == alone[name]
    assert alone["one"] != alone["two"]


def test_log_probabilities_are_the_models(server: Server) -> None:
    body = {"model": "two", "prompt": "two plus two is", "max_tokens": 4, "logprobs": 2, "echo": True, "temperature": 0}
    choice = ask(server, "completions", **body).json()["choices"][0]
    served = server.models["two"]
    ids = served.tokenizer(choice["text"].removeprefix("<s>"))["input_ids"]
    with served.in_use() as model, torch.no_grad():
        logps = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0], -1)
    expected = [float(row[token]) for row, token in zip(logps, ids[1:], strict=False)]
    found = choice["logprobs"]
    assert found["token_logprobs"][0] is None
    assert found["token_logprobs"][1:] == pytest.approx(expected, abs=1e-4)
    assert found["top_logprobs"][-1][found["tokens"][-1]] == pytest.approx(found["token_logprobs"][-1])
    assert "".join(found["tokens"]).startswith(choice["text"][:5])
    scored = ask(server, "completions", model="two", prompt=[ids], max_tokens=0, logprobs=1, echo=True).json()[
        "choices"
    ]
    assert scored[0]["logprobs"]["token_logprobs"][1:] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
@pytest.mark.parametrize(
    "more", [{"temperature": 0}, {"temperature": 1, "seed": 7}, {"temperature": 0, "stop": " two"}]
)
def test_a_stream_is_the_whole_answer_in_pieces(server: Server, path: str, more: dict[str, Any]) -> None:
    text = {"messages": ASKED} if "chat" in path else {"prompt": "two plus"}
    body = {"model": "demo", "max_tokens": 10, **text, **more}
    whole = ask(server, path, **body).json()
    lines = ask(server, path, **body, stream=True, stream_options={"include_usage": True}).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert chunks[-1]["usage"] == whole["usage"]
    choices = [chunk["choices"][0] for chunk in chunks[:-1]]
    pieces = [choice["delta"].get("content", "") if "chat" in path else choice["text"] for choice in choices]
    first = whole["choices"][0]
    assert "".join(pieces) == (first["message"]["content"] if "chat" in path else first["text"])
    assert choices[-1]["finish_reason"] == first["finish_reason"]
    assert " two" not in "".join(pieces) or "stop" not in more
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_several_answers_and_seeds(server: Server) -> None:
    body = {"model": "demo", "prompt": ["two plus", "the kite"], "n": 3, "seed": 5, "max_tokens": 8}
    one, again = (ask(server, "completions", **body).json()["choices"] for _ in range(2))
    assert [choice["text"] for choice in one] == [choice["text"] for choice in again]
    assert [choice["index"] for choice in one] == list(range(6))
    assert len({choice["text"] for choice in one}) > 2


REFUSED = {
    "model=nosuch": ({"model": "nosuch"}, 404, r"no model is called nosuch \(served: demo, one, two\)"),
    "one letter off": ({"model": "ome"}, 404, r'did you mean "one"'),
    "no messages": ({"messages": []}, 400, "messages"),
    "an image": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages.0.content"),
    "penalty": ({"presence_penalty": 1}, 400, "presence_penalty is not supported"),
    "unknown": ({"max_token": 1}, 400, "max_token: "),
    "hot": ({"temperature": 3}, 400, "temperature: "),
    "too long": ({"max_tokens": 9999}, 400, "256 positions"),
    "stream n": ({"stream": True, "n": 2}, 400, "stream: one answer"),
    "json mode": ({"response_format": {"type": "json_object"}}, 400, "response_format is not supported"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_refused(server: Server, case: str) -> None:
    change, status, message = REFUSED[case]
    answer = ask(server, "chat/completions", **{"model": "demo", "messages": ASKED, **change})
    assert answer.status_code == status
    assert re.search(message, answer.json()["error"]["message"])


def test_the_token_and_the_paths(server: Server) -> None:
    assert [one["id"] for one in ask(server, "models").json()["data"]] == ["demo", "one", "two"]
    assert ask(server, "models/one").json()["id"] == "one"
    for answer in (ask(server, "models", key="wrong"), ask(server, "completions", key="", model="demo", prompt="a")):
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert ask(server, "embeddings", model="demo", input="a").status_code == 404
    broken = requests.post(f"{server.url}/completions", "{", headers={"Authorization": "Bearer secret"}, timeout=60)
    assert (broken.status_code, "not valid JSON" in broken.text) == (400, True)


def test_the_command_listens_at_this_machine_alone_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "alignkit", "serve", "mine=demo", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=os.environ)
    assert process.stderr is not None
    line = next(line for line in process.stderr if not line.endswith("loading libraries\n"))
    found = re.fullmatch(r"serving mine at (http://127\.0\.0\.1:\d+/v1); Ctrl-C ends it\n", line)
    assert found, line
    assert requests.get(f"{found[1]}/models", timeout=60).json()["data"][0]["id"] == "mine"
    process.send_signal(signal.SIGINT)
    code = process.wait(60)
    assert (code, process.stderr.read()) == (0, "ended\n")


def test_mistakes_of_the_command(tmp_path: Path, server: Server, adapters: dict[str, str]) -> None:
    taken = server.url.rpartition(":")[2].removesuffix("/v1")
    done = align("serve", "demo", "--port", taken, cwd=tmp_path)
    assert (done.returncode, "choose another --port" in done.stderr) == (2, True), done.stderr
    assert named_targets(["a=demo", "demo"]) == {"a": "demo", "demo": "demo"}
    with pytest.raises(ConfigError, match="are both called demo: name one of them as NAME=x"):
        named_targets(["demo", "demo=x"])
    words = arguments(adapters, host="::1", port=1, dtype="auto")
    assert words[:2] == ["--model", str(model_path())]
    assert words[words.index("--lora-modules") + 1 :] == [f"{name}={path}" for name, path in adapters.items()]
    shutil.copytree(model_path(), tmp_path / "other")
    with pytest.raises(ConfigError, match="vLLM serves one base model at a time"):
        arguments({"a": "demo", "b": str(tmp_path / "other")}, host="::1", port=1, dtype="auto")


STAND_IN = """
import json, os, sys, time
with open("begun.part", "w") as file:
    json.dump([os.getpid(), *sys.argv[1:]], file)
os.rename("begun.part", "begun")
time.sleep(600)
"""


def test_a_server_of_vllm_ends_with_the_command(tmp_path: Path) -> None:
    """With a process that waits in vLLM's place: it has a port that is free, and is stopped as the command is."""
    folder = tmp_path / "vllm" / "entrypoints" / "openai"
    folder.mkdir(parents=True)
    (folder / "api_server.py").write_text(STAND_IN)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    words = [str(ALIGN), "serve", "demo", "--backend", "vllm", "--port", "0"]
    command = subprocess.Popen(
        words, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE, text=True
    )
    appears(tmp_path / "begun")
    process, *given = json.loads((tmp_path / "begun").read_text())
    port = given[given.index("--port") + 1]
    assert int(port) > 0
    command.send_signal(signal.SIGTERM)
    said = command.communicate()[1]
    assert f"http://127.0.0.1:{port}/v1" in said
    assert command.returncode == 0, said
    assert gone(process)
