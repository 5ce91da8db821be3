"""Rows with several rejected answers (best of n, as in RewardBench 2): each becomes one pair with every one of them.

The pairs of a row share its prompt, and therefore its cluster and its side of a split, and carry its name as the field
``group``: the ``prefs`` suite counts a group as right where the chosen answer beats every rejected one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from alignkit.data.rows import RawRows

GROUP = "group"


def one_by_one(raw: RawRows, columns: Mapping[str, str]) -> RawRows:
    """Return ``raw`` with a row for every rejected answer; rows that have one stay as they are.

    Args:
        raw: the rows as they stand in the source; ``rejected`` (and ``chosen``) may be lists of texts or conversations.
        columns: names of ours -> names of theirs.
    """
    chosen, rejected = columns.get("chosen", "chosen"), columns.get("rejected", "rejected")
    if not any(_several(row.get(rejected)) for row in raw.rows):
        return raw
    rows: list[Mapping[str, Any]] = []
    origin: list[int] = []
    for position, row in enumerate(raw.rows):
        answers = row.get(rejected)
        alternatives: list[Any] = answers if _several(answers) else [answers]
        best = row.get(chosen)
        own = {**row, chosen: best[0] if _several(best) and len(best) == 1 else best}
        name = str(row.get(columns.get("id", "id")) or position)
        for number, answer in enumerate(alternatives):
            about = {GROUP: name, columns.get("id", "id"): f"{name}/{number}"} if len(alternatives) > 1 else {}
            rows.append({**own, rejected: answer, **about})
            origin.append(position)
    return RawRows(rows, lambda i: raw.where(origin[i]), raw.source)


def _several(value: Any) -> TypeGuard[list[Any]]:
    """Whether a cell holds several answers: texts, or conversations, rather than the messages of one."""
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(part, str) for part in value) or all(
        isinstance(part, list) and part and isinstance(part[0], Mapping) for part in value
    )
