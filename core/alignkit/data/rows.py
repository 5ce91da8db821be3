"""Shapes of raw rows and where each row came from. (The data modules extend this file.)"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RawRows:
    """Rows as they stand in a source, and a way to say where a row stands: ``where(3)`` -> ``"prefs.jsonl:4"``."""

    rows: Sequence[Mapping[str, Any]]
    where: Callable[[int], str]
    source: str
