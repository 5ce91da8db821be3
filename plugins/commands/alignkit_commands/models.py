"""``align generate`` and ``align chat``."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import click
from alignkit.contract import registry
from alignkit.contract.guard import running
from alignkit.errors import ConfigError, PluginError


def _sampling(command: Any) -> Any:
    """Add the sampling options to a command."""
    for option in (
        click.option("--seed", type=click.IntRange(0), default=0, help="Random seed of sampling."),
        click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, help="Nucleus sampling."),
        click.option("--temperature", type=click.FloatRange(0), default=0.0, help="Sampling temperature; 0: greedy."),
        click.option("--max-new-tokens", type=click.IntRange(1), default=128, help="Maximum tokens of an answer."),
    ):
        command = option(command)
    return command


_DEFAULTS = {"show_default": True}


def _in_context(text: str, prompts: list[str]) -> list[str]:
    """Return the prompts with what the plugin of ``NAME:ARGUMENT`` adds to them."""
    name, _, argument = text.partition(":")
    entry = registry.find("align.contexts", name)
    function = registry.load(entry)
    with running(f"{entry} failed"):
        found = [str(prompt) for prompt in function(argument, prompts)]
    if len(found) != len(prompts):
        raise PluginError(f"{entry} returned {len(found)} prompts for {len(prompts)}")
    return found


def _is_text(target: str) -> bool:
    """Return whether a name is neither that of a directory nor a hub id."""
    return not re.fullmatch(r"[\w.~/-]+(@[\w.-]+)?", target) and not Path(target).exists()


@click.command(context_settings=_DEFAULTS)
@click.argument("targets", metavar="TARGET...", nargs=-1, required=True)
@click.option("--prompt", "prompts", metavar="TEXT", multiple=True, help="Prompt (default: each line of stdin).")
@click.option("--raw", is_flag=True, help="Continue the prompt as plain text, without the chat template.")
@click.option(
    "--with", "context", metavar="NAME:ARGUMENT", help="Add what a plugin finds to each prompt, e.g. rag:DIR."
)
@click.option("--vote", "voting", is_flag=True, help="Print the answer that most of the models give.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per prompt.")
@_sampling
def generate(
    targets: tuple[str, ...],
    prompts: tuple[str, ...],
    raw: bool,
    context: str | None,
    voting: bool,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Answer prompts with each TARGET: a run, model or adapter directory, hub id, or demo."""
    from alignkit.system.quiet import quiet_libraries

    from alignkit_commands.chat import ChatModel, Sampling, each_answer, vote

    quiet_libraries()
    for text in () if prompts else filter(_is_text, targets):
        raise ConfigError(f"no model is called {text!r}; if it is the prompt: --prompt {shlex.quote(text)}")
    asked = list(prompts) or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not asked:
        mistaken = f" ({targets[-1]} is taken as a second model)" if targets[1:] else ""
        raise ConfigError(f"no prompt is given{mistaken}: use --prompt TEXT, or write prompts to stdin, one per line")
    given = asked if context is None else _in_context(context, asked)
    models = [ChatModel(target) for target in targets]
    for prompt, answers in zip(asked, each_answer(models, given, Sampling(**sampling), raw=raw), strict=True):
        by_target = dict(zip(targets, answers, strict=True))
        winner, agreed = vote(answers)
        if as_json:
            voted = {"vote": winner, "agreed": agreed} if voting else {}
            click.echo(json.dumps({"prompt": prompt, "answers": by_target, **voted}, ensure_ascii=False))
        elif voting:
            click.echo(winner)
            click.echo(f"({agreed} of {len(answers)} agree)", err=True)
        elif len(models) == 1:
            click.echo(answers[0])
        else:
            click.echo(f"> {prompt}")
            for target, answer in by_target.items():
                click.echo(f"{target}: {answer}")


@click.command(context_settings=_DEFAULTS)
@click.argument("target")
@click.option("--system", metavar="TEXT", help="System message.")
@_sampling
def chat(target: str, system: str | None, seed: int, **sampling: Any) -> None:
    """Chat with TARGET: a run, model or adapter directory, hub id, or demo.

    /reset starts a new conversation, /system TEXT sets the system message, /quit (or Ctrl-D) ends the chat, /help lists them.
    """
    from alignkit.system.quiet import quiet_libraries

    from alignkit_commands.chat import ChatModel, Sampling
    from alignkit_commands.conversation import Conversation, converse

    quiet_libraries()
    converse(Conversation(ChatModel(target), target, Sampling(seed=seed, **sampling), system))
