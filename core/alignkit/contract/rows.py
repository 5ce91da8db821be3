"""Rows before tokenisation, as text or messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Message: TypeAlias = Mapping[str, Any]
"""One turn of a conversation: ``{"role": "user", "content": "..."}``, and other keys the chat template uses."""

Text: TypeAlias = str | tuple[Message, ...]
"""Plain text, or the messages of a conversation."""


@dataclass(frozen=True)
class RawRows:
    """Rows with a source's own columns; ``where(3)`` returns the location of row 3: ``"prefs.jsonl:4"``."""

    rows: Sequence[Mapping[str, Any]]
    where: Callable[[int], str]
    source: str


@dataclass(frozen=True, slots=True)
class Row:
    """One row in alignkit's form: a prompt and its answers (preference rows: chosen, then rejected)."""

    position: int
    """Index of the row in its source."""
    id: str
    prompt: Text
    answers: tuple[Text, ...]
    cluster: str
    """Name shared by dependent rows, for splits and standard errors; by default, a hash of the prompt."""
    category: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Columns that are part of neither prompt nor answers, with their values as read."""
    unusable: str | None = None
    """Why the row cannot be used (None: it can). It keeps its prompt and cluster, so that splits do not depend on it."""
    place: str = ""
    """Location of the row (file:line)."""
    tools: tuple[Mapping[str, Any], ...] | None = None
    """Function schemas for the chat template."""
