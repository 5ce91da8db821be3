"""Rows in RewardBench 2's form: a prompt, its right and wrong completions, and the subset."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from alignkit import text_digest
from alignkit.contract import Row, Text
from alignkit.data.rows import UniqueIds
from alignkit.errors import DataError
from alignkit_shapes.messages import read_text

from alignkit_eval.suites.benchmark_rows import Located

TIES = "ties"
"""The subset with several right completions, in small letters."""
_TIES_ID = re.compile(r"(ref|tied):(.+)", re.DOTALL)


def read_rows(located: Sequence[Located]) -> list[Row]:
    """Return the rows with right completions first; ``fields`` has their number (``right``), and of a Ties row its ``kind``.

    Raises:
        DataError: naming file and line: a row lacks a column, has several right completions outside of Ties, or an id of Ties that
            is not of the form ``ref:7`` or ``tied:7`` or occurs twice.
    """
    ids = UniqueIds()
    rows = [_row(i, values, place, ids) for i, (values, place) in enumerate(located)]
    seen: dict[str, str] = {}
    for row in rows:
        if row.fields["kind"] and seen.setdefault(str(row.fields["name"]), row.place) != row.place:
            raise DataError(
                f"{row.place}: the id {row.fields['name']} of the subset Ties is also that of {seen[row.fields['name']]}"
            )
    return rows


def _row(position: int, values: Mapping[str, Any], place: str, ids: UniqueIds) -> Row:
    if missing := [name for name in ("prompt", "chosen", "rejected") if values.get(name) is None]:
        raise DataError(f"{place}: the row has no {missing[0]!r}: RewardBench 2 has prompt, chosen and rejected")
    prompt = read_text(values["prompt"], "prompt", place)
    right, wrong = (_answers(values[name], name, place) for name in ("chosen", "rejected"))
    stated = values.get("num_correct")
    if stated is not None and stated != len(right):
        raise DataError(f"{place}: num_correct is {stated}, and chosen has {len(right)} completions")
    subset = str(values.get("subset") or "")
    name = str(values["id"]) if values.get("id") is not None else text_digest(prompt, *right, *wrong)
    kind, cluster = "", text_digest(prompt)
    if subset.lower() == TIES:
        if (found := _TIES_ID.fullmatch(name)) is None:
            raise DataError(f"{place}: a row of the subset Ties needs an id such as ref:7 or tied:7, not {name!r}")
        kind, cluster = found[1], f"ties:{found[2]}"
    if kind != "tied" and len(right) > 1:
        raise DataError(
            f"{place}: chosen has {len(right)} completions, which only rows tied:N of the subset Ties may have"
        )
    if kind == "tied" and len(right) == 1:
        raise DataError(f"{place}: chosen has one completion, and rows tied:N have several")
    fields = {"right": len(right), "kind": kind, "name": name}
    return Row(position, ids.unique([name])[0], prompt, (*right, *wrong), cluster, subset, fields, place=place)


def _answers(value: Any, column: str, place: str) -> list[Text]:
    """Return the completions of a cell: a text, a conversation, or a list of texts or of conversations."""
    value = value.tolist() if hasattr(value, "tolist") else value
    several = isinstance(value, list) and not (value and isinstance(value[0], Mapping))
    answers = value if several else [value]
    if not answers:
        raise DataError(f"{place}: {column} has no completion")
    return [read_text(answer, column, place) for answer in answers]
