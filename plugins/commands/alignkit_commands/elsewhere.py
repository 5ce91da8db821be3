"""What a command is given as for another library, answered with what it is here: options, and files in place of a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
from alignkit.errors import AlignError, ConfigError

SHORT = {
    "data.source": "--data",
    "data.eval_source": "--eval-data",
    "model.name": "--model",
    "run.output": "--output",
    "run.name": "--name",
    "method.name": "--method",
}
"""Keys that have an option."""

ROWS = frozenset({".arrow", ".csv", ".feather", ".jsonl", ".ndjson", ".parquet", ".tsv", ".txt"})
"""Endings of files that hold rows and never a configuration."""


def explain(command: click.Command) -> None:
    """Have a command with ``--set`` name the key that an unknown option means, and what a file is that is no configuration."""
    if not any("--set" in parameter.opts for parameter in command.params):
        return
    parse, invoke = command.parse_args, partial(type(command).invoke, command)

    def parse_args(context: click.Context, arguments: list[str]) -> list[str]:
        given = [*arguments]
        try:
            return parse(context, arguments)
        except click.NoSuchOption as error:
            if meant := _meant(context, given, error.option_name):
                raise click.UsageError(f"No such option {error.option_name}: write {meant}", context) from None
            raise

    def invoke_explained(context: click.Context) -> Any:
        try:
            return invoke(context)
        except ConfigError as error:
            config = context.params.get("config")
            if isinstance(config, Path) and str(error).startswith(str(config)) and (other := _other(config)):
                raise ConfigError(f"{config}{other}") from error
            raise

    vars(command).update(parse_args=parse_args, invoke=invoke_explained)


def _other(config: Path) -> str:
    """Return what a file is in place of a configuration, and what to do; empty if that is not known."""
    if not config.exists():
        key, equals, _ = config.name.partition("=")
        return f": no such file; a setting is given as --set {config}" if key and equals else ""
    if config.suffix.lower() in ROWS:
        return f" holds rows, not a configuration: give it as --data {config}"
    from alignkit_commands.init.tools import recognise

    try:
        library, given = recognise(config, None)
    except (AlignError, OSError, ValueError):
        return ""
    if "method" in given.values:
        return ""
    return f" is a configuration of {library['about']}: align init --from {config} writes one of alignkit from it"


def _meant(context: click.Context, arguments: Sequence[str], option: str) -> str:
    """Return what to write for an option that is a key here or in another library; empty if it is none."""
    words = [*arguments, ""]
    place = next((number for number, word in enumerate(words) if word.partition("=")[0] == option), -1)
    if place < 0 or not option.startswith("--"):
        return ""
    following = words[place].partition("=")[2] or words[place + 1]
    value = following if following and not following.startswith("--") else "true"
    method = next((after for word, after in pairwise(words) if word == "--method"), None)
    key, comma, remark = _key(option.removeprefix("--").replace("-", "_"), method).partition(",")
    if not key:
        return ""
    if SHORT.get(key) in {name for parameter in context.command.params for name in parameter.opts}:
        return f"{SHORT[key]} {value}"
    from alignkit_commands.known_keys import values_of

    listed = sorted(values_of(key, method), key=lambda each: each not in option)
    if value == "true" and listed and value not in listed:  # a flag elsewhere, one of several values here
        value = f"{listed[0]} (or {', '.join(listed[1:])})"
    setting = f"{key}.r=16" if key == "model.lora" else f"{key}={value}"
    return f"--set {setting}{f' ({remark.strip()})' if comma else ''}"


def _key(name: str, method: str | None) -> str:
    """Return the key called ``name`` of the method or else of a section, or the one that other libraries call so."""
    from alignkit.settings.hints import ALIASES

    from alignkit_commands.known_keys import keys_of

    own = [key for key, _ in keys_of(None, method)]
    sections = [key.rstrip(".") for key in own if key.endswith(".")]
    keys = {key for section in sections for key, _ in keys_of(section, None)}
    homes = [f"{section}.{name}" for section in sections if f"{section}.{name}" in keys]
    aliases = [alias.removeprefix("method.") if alias != "method.name" else alias for alias in ALIASES.get(name, [])]
    mine = [alias for alias in aliases if alias.partition(",")[0] in own]
    return next(iter([name] * (name in own) + mine + homes * (len(homes) == 1) + aliases), "")
