"""Rules of data checks, declared in the entry-point group ``align.rules``: an entry point names a sequence of :class:`DataRule`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from alignkit.config import CheckConfig
from alignkit.contract.rows import Row, Text


class Hit(NamedTuple):
    """A row found by a rule: its index among the readable rows, and a description of the problem."""

    row: int
    about: str


class DataRule(NamedTuple):
    """A rule of ``align data check`` and of the check before training. It changes nothing."""

    name: str
    title: str
    """What the rows have in common, as in "duplicate rows"."""
    find: Callable[[Sequence[Row], Sequence[Row], CheckConfig], Iterable[Hit]]
    """``find(rows, held_out, limits)`` yields at most one hit per row of ``rows``; ``held_out`` may be empty."""
    drops: bool = True
    """Whether ``--fix`` removes the rows."""


def plain_text(text: Text) -> str:
    """Return a text, or the contents of a conversation's messages joined by newlines."""
    return text if isinstance(text, str) else "\n".join(str(message.get("content", "")) for message in text)


def texts_of(row: Row) -> Iterator[tuple[str, str]]:
    """Yield name and text of every field of a row."""
    yield "prompt", plain_text(row.prompt)
    names = ("chosen", "rejected") if len(row.answers) == 2 else ("completion",)
    for name, answer in zip(names, row.answers, strict=False):
        yield name, plain_text(answer)
