"""Consent to run code that a file names: asked for once on the command line (``--trust``) and recorded by content.

What the user types and what Python code passes is their word. A command runs code that a configuration, a run or a model
directory names only if ``--trust`` is given or the same content was run before.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from alignkit.errors import ConfigError
from alignkit.system.cache import is_owned, private_directory


@dataclass
class CommandLine:
    """What the user typed, whole and in parts; whether ``--trust`` is given; texts of configuration files with their places."""

    words: frozenset[str]
    trust: bool = False
    named: list[tuple[str, str]] = field(default_factory=list)


_running: ContextVar[CommandLine | None] = ContextVar("running", default=None)


@contextmanager
def command_line(arguments: Sequence[str]) -> Iterator[None]:
    """Ask for consent to code that files name while the block runs the command ``arguments``."""
    # A file called like a function is not the word of its user.
    typed = [text for text in arguments if not (":" in text and os.path.lexists(text))]
    parts = {part for text in typed for part in (text, text.partition("=")[2], *re.split(r"[=,\s'\"\[\]{}]+", text))}
    token = _running.set(CommandLine(frozenset(parts)))
    try:
        yield
    finally:
        _running.reset(token)


def give(consent: bool) -> None:
    """Let the running command run all code that files name (``--trust``)."""
    if (command := _running.get()) is not None:
        command.trust = command.trust or consent


def mention(text: str, place: str) -> None:
    """Remember a text of a configuration file and its place and key, for messages."""
    if (command := _running.get()) is not None:
        command.named.append((text, place))


def require(name: str, files: Sequence[Path], *, key: str = "", explicit: bool = False) -> None:
    """Return if the code ``name`` in ``files`` may run, and record its content; else raise :class:`ConfigError`.

    ``key``: the text in a configuration file that asks for it (default: ``name``). ``explicit``: nothing asks for it.
    """
    command = _running.get() or CommandLine(frozenset([] if explicit else [name]))
    function = name.rpartition(":")[2] if ":" in name else ""
    contents = [file.read_bytes() for file in files if file.is_file()] or [name.encode()]  # a hub id has no files
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")  # noqa: PTH111 (it never raises)
    folder = Path(base if base[:1] == "/" else os.devnull, "alignkit", "trusted")
    records = [folder / hashlib.sha256(f"{function}\n".encode() + content).hexdigest() for content in contents]
    known = False
    with suppress(OSError):
        known = all(map(is_owned, records)) and is_owned(private_directory(folder))
    if not (command.trust or name in command.words or known):
        place = next((f"{place} " for text, place in command.named if (key or name) in text), "this ")
        where = f" ({files[0]})" if files else ""
        raise ConfigError(f"{place}runs {name}{where}: read the code, then add --trust (asked once for the same code)")
    with suppress(OSError):  # then it is asked for again
        for record in records:
            private_directory(folder).joinpath(record.name).touch(0o600)
