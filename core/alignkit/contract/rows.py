"""Part of rows: Message, Text, RawRows, Row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True, slots=True)
class Row:
    """One row in the shape every source is brought to: a prompt and its answers (preference rows: chosen first).

    ``position`` counts the rows of the source, ``place`` says where the row stands (file:line); ``tools`` are the functions
    a chat template offers to the model. ``unusable`` says why the row cannot be trained on or evaluated (None: it can). Such
    a row keeps its prompt and cluster, so that which clusters are held out does not depend on what a row is used for.
    """

    position: int
    id: str
    prompt: Text
    answers: tuple[Text, ...]
    cluster: str
    category: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    unusable: str | None = None
    place: str = ""
    tools: tuple[Mapping[str, Any], ...] | None = None
