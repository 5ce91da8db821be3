"""The conversation of ``align chat``: its banner, its commands, its turns."""

from __future__ import annotations

import sys

import click
from alignkit.contract import Message
from alignkit.errors import AlignError, ConfigError
from alignkit.rundir.directory import RunDir

from alignkit_commands.chat import ChatModel, Sampling

_HELP = {
    "/reset": "a new conversation (also /clear, /new)",
    "/system TEXT": "another system message, and a new conversation; without TEXT: show it",
    "/help": "this list",
    "/quit": "end the chat (also /exit, Ctrl-D)",
}


class Conversation:
    """One conversation with a model, which commands begin anew."""

    def __init__(self, model: ChatModel, target: str, sampling: Sampling, system: str | None) -> None:
        self.model, self.target, self.sampling, self.system = model, target, sampling, system
        self.messages: list[Message] = []
        self.reset()

    def banner(self) -> str:
        """Return what is talked to: the run and model, how answers are made, and how to get help."""
        loaded, sampling = self.model.loaded, self.sampling
        how = f"temperature {sampling.temperature:g}, top-p {sampling.top_p:g}, seed {sampling.seed}"
        lines = [
            f"{self.target}: {_run(self.target)}{loaded.parameters:,} parameters",
            f"answers of at most {sampling.max_new_tokens} tokens, {how if sampling.temperature else 'greedy'}; "
            f"system message: {self.system or 'none'}",
        ]
        if not loaded.tokenizer.chat_template:
            lines.append("no chat template: each message is continued as plain text, without the ones before it")
        return "\n".join([*lines, "/help lists the commands, /quit ends the chat"])

    def reset(self) -> None:
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def command(self, line: str) -> bool:
        """Carry out a command; return whether the chat goes on."""
        name, _, text = line.partition(" ")
        if name in ("/quit", "/exit"):
            return False
        if name in ("/reset", "/clear", "/new"):
            self.reset()
            _tell("a new conversation")
        elif name == "/system" and not text.strip():
            _tell(f"system message: {self.system or 'none'}")
        elif name == "/system":
            self.system = text.strip()
            self.reset()
            _tell("a new conversation, with this system message")
        else:
            unknown = "" if name == "/help" else f"{name} is not a command\n"
            _tell(unknown + "\n".join(f"  {command:<13} {about}" for command, about in _HELP.items()))
        return True

    def say(self, text: str) -> None:
        """Print the model's answer to a message; one that cannot be answered is not part of the conversation."""
        self.messages.append({"role": "user", "content": text})
        sampling = Sampling(**{**vars(self.sampling), "seed": self.sampling.seed + len(self.messages)})
        try:
            answer = self.model.answer(self.messages, sampling)
        except ConfigError as error:  # the conversation is longer than the model's positions
            self.messages.pop()
            _tell(f"{error}; /reset starts a new conversation")
            return
        self.messages.append({"role": "assistant", "content": answer})
        click.echo(answer)
        if not answer:
            _tell("(an empty answer: the model ended its turn at once)")


def converse(conversation: Conversation) -> None:
    """Talk until /quit or the end of the input."""
    _tell(conversation.banner())
    while True:
        if sys.stdin.isatty():
            click.echo("> ", nl=False)
        line = sys.stdin.readline()
        text = line.strip()
        if not line:
            return
        if text[:1] == "/" and text[1:].partition(" ")[0].isalpha():
            if not conversation.command(text):
                return
        elif text:
            conversation.say(text)


def _run(target: str) -> str:
    """Return the method and steps of the run that a directory belongs to, ``orpo, 150 steps, ``; empty if there is no run."""
    try:
        record = RunDir.open(target).read_record()
    except AlignError:
        return ""
    steps = record.get("steps")
    return f"{record.get('method', 'run')}, {record.get('status')}{'' if steps is None else f', {steps} steps'}, "


def _tell(text: str) -> None:
    click.echo(text, err=True)
