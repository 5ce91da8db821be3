"""Rows: as they stand in a source (:class:`RawRows`), and as every source is brought to (:class:`Row`)."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, TypeAlias

Message: TypeAlias = Mapping[str, Any]
"""One turn of a conversation: ``{"role": "user", "content": "..."}``, and whatever else a chat template reads."""

Text: TypeAlias = str | tuple[Message, ...]
"""Plain text, or the messages of a conversation."""


@dataclass(frozen=True)
class RawRows:
    """Rows as they stand in a source, and a way to say where a row stands: ``where(3)`` -> ``"prefs.jsonl:4"``."""

    rows: Sequence[Mapping[str, Any]]
    where: Callable[[int], str]
    source: str

    def head(self, limit: int | None) -> RawRows:
        """Return the first ``limit`` rows (None: all of them)."""
        return self if limit is None else RawRows(self.rows[:limit], self.where, self.source)


def join(parts: Sequence[RawRows], source: str) -> RawRows:
    """Return the rows of several files one after another, each still knowing its own file and line."""
    ends = list(accumulate(len(part.rows) for part in parts))

    def where(position: int) -> str:
        part = bisect_right(ends, position)
        return parts[part].where(position - (ends[part - 1] if part else 0))

    return RawRows([row for part in parts for row in part.rows], where, source)


@dataclass(frozen=True, slots=True)
class Row:
    """One row in the shape every source is brought to: a prompt and its answers (preference rows: chosen first).

    ``position`` is the row's place in its :class:`RawRows`; ``unusable`` says why the row cannot be trained on or
    evaluated (None: it can). Such a row keeps its prompt and cluster, so that which clusters are held out does not depend
    on what a row is used for.
    """

    position: int
    id: str
    prompt: Text
    answers: tuple[Text, ...]
    cluster: str
    category: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    unusable: str | None = None


def digest(*texts: Text) -> str:
    """Return 16 hexadecimal digits that stand for the content of ``texts``."""
    content = json.dumps(texts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def first_line(error: Exception) -> str:
    """Return the cause an error names, in one line, to stand in a sentence of ours."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error) or type(error).__name__).splitlines()[0]


def describe(value: object) -> str:
    """Name a value's type as a user of JSON would: ``describe(3)`` -> ``"a number"``.

    >>> describe([1]), describe(None), describe(True)
    ('a list', 'null', 'true')
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    for kind, name in (((int, float), "a number"), (str, "text"), (Mapping, "an object"), ((list, tuple), "a list")):
        if isinstance(value, kind):
            return name
    return f"a {type(value).__name__}"
