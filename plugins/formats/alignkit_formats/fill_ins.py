"""Nulls that tables put in nested columns for keys that a row does not have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignkit.data.rows import without_nulls


def without_fill_ins(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a row of a table without the nulls that tables put in messages and function schemas for absent keys.

    Other columns are unchanged. In JSON a null is what the writer meant.
    """
    return {name: without_nulls(value) if _holds_messages(value) else value for name, value in row.items()}


def _holds_messages(value: Any) -> bool:
    while isinstance(value, list) and value:
        value = value[0]
    return isinstance(value, Mapping) and not value.keys().isdisjoint(("role", "from", "function"))
