"""``align chat`` and ``align watch``: what they say and wait for."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from alignkit.cli import run_command
from alignkit_commands.chat import ChatModel, Sampling
from alignkit_commands.conversation import Conversation


@pytest.fixture(scope="module")
def model() -> ChatModel:
    return ChatModel("demo")


def test_the_banner_names_model_settings_and_commands(model: ChatModel) -> None:
    banner = Conversation(model, "demo", Sampling(max_new_tokens=8), "Be brief.").banner()
    assert "demo: 901,760 parameters" in banner
    assert "at most 8 tokens, greedy; system message: Be brief." in banner
    assert "/help lists the commands, /quit ends the chat" in banner
    drawn = Conversation(model, "demo", Sampling(temperature=0.7, top_p=0.9, seed=3), None).banner()
    assert "temperature 0.7, top-p 0.9, seed 3; system message: none" in drawn


@pytest.mark.parametrize("command", ["/reset", "/clear", "/new"])
def test_a_new_conversation(command: str, model: ChatModel, capsys: pytest.CaptureFixture[str]) -> None:
    talk = Conversation(model, "demo", Sampling(max_new_tokens=4), None)
    talk.say("what is two plus one ?")
    assert [message["role"] for message in talk.messages] == ["user", "assistant"]
    assert talk.command(command)
    assert talk.messages == []
    assert "a new conversation" in capsys.readouterr().err


def test_commands(model: ChatModel, capsys: pytest.CaptureFixture[str]) -> None:
    talk = Conversation(model, "demo", Sampling(max_new_tokens=4), None)
    assert talk.command("/system Answer in French.")
    assert talk.messages == [{"role": "system", "content": "Answer in French."}]
    assert talk.command("/system")
    assert talk.command("/nope now")
    said = capsys.readouterr().err
    assert "system message: Answer in French." in said
    assert "/nope is not a command" in said
    assert all(command in said for command in ("/reset", "/system TEXT", "/help", "/quit"))
    assert not talk.command("/quit")
    assert not talk.command("/exit")


class Silent(ChatModel):
    """A model that ends its turn at once."""

    def __init__(self, other: ChatModel) -> None:
        self.name, self.loaded = other.name, other.loaded

    def answer(self, messages: object, sampling: object, *, raw: bool = False) -> str:
        return ""


def test_a_word_on_an_empty_answer(model: ChatModel, capsys: pytest.CaptureFixture[str]) -> None:
    Conversation(Silent(model), "demo", Sampling(), None).say("hello")
    assert "(an empty answer: the model ended its turn at once)" in capsys.readouterr().err


def test_watch_waits_for_a_run_that_is_starting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "runs" / "a"

    def start() -> None:
        time.sleep(0.3)
        run.mkdir(parents=True)
        (run / "train.log").write_text("")
        time.sleep(0.3)
        (run / "run.json").write_text(json.dumps({"status": "failed", "method": "orpo", "error": "no"}))

    starting = threading.Thread(target=start)
    starting.start()
    code = run_command(["watch", str(run)])
    starting.join()
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert "waiting up to 60 s" in captured.err
    assert "orpo, failed" in captured.out


def test_watch_of_a_run_that_does_not_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "orpo-a").mkdir()
    (tmp_path / "orpo-a" / "run.json").write_text("{}")
    assert run_command(["watch", str(tmp_path / "orpo-b"), "--wait", "0.1"]) == 2
    assert 'did not start within 0.1 s, did you mean "orpo-a"?' in capsys.readouterr().err
