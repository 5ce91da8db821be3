"""Documents and questions in JSON lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from alignkit.errors import DataError
from alignkit.system.files import jsonl_rows

Rows = list[tuple[str, dict[str, Any]]]
"""Rows with their place (file:line)."""


class Questions(NamedTuple):
    """Questions, and the number of the document that answers each."""

    texts: list[str]
    wanted: list[int]


def read_rows(path: Path, columns: Sequence[str]) -> Rows:
    """Return the rows of a file; raises ``DataError`` where there are none or a column is missing."""
    if not path.is_file():
        raise DataError(f"{path} does not exist" if not path.exists() else f"{path} is not a file")
    rows = list(jsonl_rows(path, error=DataError))
    for place, row in rows:
        if missing := [column for column in columns if column not in row]:
            raise DataError(f"{place}: there is no column {missing[0]!r}")
    if not rows:
        raise DataError(f"{path} has no rows")
    return rows


def texts_of(rows: Rows, column: str) -> list[str]:
    """Return the texts of a column; raises ``DataError`` for one that is empty or no text."""
    for place, row in rows:
        if not isinstance(row[column], str) or not row[column].strip():
            raise DataError(f"{place}: column {column!r} is {row[column]!r:.40}, not a text")
    return [row[column] for _, row in rows]


def questions_of(rows: Rows, question: str, document: str, documents: int | None) -> Questions:
    """Return the questions; raises ``DataError`` for a number that is not one of the ``documents`` (None: not known yet)."""
    for place, row in rows:
        number = row[document]
        if type(number) is not int or number < 0 or (documents is not None and number >= documents):
            known = "from 0" if documents is None else f"from 0 to {documents - 1}"
            raise DataError(f"{place}: column {document!r} is {number!r:.40}, not the number of a document, {known}")
    return Questions(texts_of(rows, question), [row[document] for _, row in rows])
