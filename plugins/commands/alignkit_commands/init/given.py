"""The keys of another library's configuration with their lines: a YAML file, or a file with a command and its flags."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignkit.errors import ConfigError
from alignkit.settings import yaml_files
from alignkit.system.files import read_regular

_PROGRAMS = ("trl", "llamafactory-cli", "autotrain", "axolotl")
_FLAG = re.compile(r"--?[A-Za-z]")


@dataclass
class Given:
    """What a file says."""

    path: Path
    values: dict[str, Any] = field(default_factory=dict)
    """Key -> value; keys of flattened sections by their own names."""
    places: dict[str, str] = field(default_factory=dict)
    """Key -> file:line."""
    command: tuple[str, ...] = ()
    """The words before the first flag, of a file with a command line."""


def read(path: Path, sections: Sequence[str] = ()) -> Given:
    """Read a configuration; the keys under ``sections`` (dotted) are read as if they were at the top.

    Raises :class:`ConfigError` if the file is neither YAML nor a command line.
    """
    try:
        text = read_regular(path).decode("utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as text: {error}") from error
    if command := _command(text):
        return _flags(path, *command)
    layer = yaml_files.read(path)
    given = Given(path)
    _flatten(given, layer.values, layer.places, (), {tuple(name.split(".")) for name in sections})
    return given


def _flatten(
    given: Given, values: Mapping[str, Any], places: Mapping[Any, str], path: tuple[str, ...], sections: set[Any]
) -> None:
    for key, value in values.items():
        here = (*path, key)
        if here in sections and isinstance(value, Mapping):
            _flatten(given, value, places, here, sections)
        else:
            given.values[key] = value
            given.places[key] = places.get(here, str(given.path))


def _command(text: str) -> tuple[list[str], int] | None:
    """Return the words of the first command with flags, and the line on which it begins; None if there is none."""
    lines = text.splitlines()
    joined: list[tuple[str, int]] = []
    number = 0
    while number < len(lines):
        begin, line = number, lines[number]
        while line.endswith("\\") and number + 1 < len(lines):
            number += 1
            line = f"{line[:-1]} {lines[number].strip()}"
        joined.append((line, begin + 1))
        number += 1
    for line, begin in joined:
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue
        if len(words) > 2 and any(map(_FLAG.match, words[1:])) and not words[0].endswith(":"):
            return words, begin
    return None


def _flags(path: Path, words: Sequence[str], begin: int) -> Given:
    lines = read_regular(path).decode("utf-8").splitlines()
    # After a launcher and its flags, the command is a script or one of the libraries' programs.
    programs = [i for i, word in enumerate(words) if word.endswith(".py") or word in _PROGRAMS]
    program = programs[-1] if programs else 0
    first = next((i for i, word in enumerate(words) if i > program and _FLAG.match(word)), len(words))
    given = Given(path, command=tuple(words[program:first]))
    at = next(i for i, word in enumerate(words) if _FLAG.match(word))
    while at < len(words):
        if program <= at < first:
            at = first
            continue
        name, equals, value = words[at].lstrip("-").partition("=")
        at += 1
        taken = [value] if equals else []
        while not equals and at < len(words) and not _FLAG.match(words[at]) and at != program:
            taken.append(words[at])
            at += 1
        key = name.replace("-", "_")
        read_values = [yaml_files.parse_value(_python_words.get(word, word)) for word in taken]
        given.values[key] = True if not read_values else read_values[0] if len(read_values) == 1 else read_values
        pattern = re.compile(rf"--?{re.escape(name)}(?![\w-])")
        line = next((i for i in range(begin, len(lines) + 1) if pattern.search(lines[i - 1])), begin)
        given.places[key] = f"{path}:{line}"
    return given


_python_words = {"True": "true", "False": "false", "None": "null"}
