"""One row's columns, read with errors that name the file, the line and the column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alignkit.data.messages import read_messages, read_text
from alignkit.data.rows import Message, Text, describe
from alignkit.errors import DataError

_LABELS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True)
class Cells:
    """One row's columns by our names, with the place (file:line) its errors name."""

    values: Mapping[str, Any]
    place: str
    chat: bool

    def get(self, column: str) -> Any:
        """Return a required value."""
        value = self.values.get(column)
        if value is None:
            what = f'"{column}" is null' if column in self.values else f'no "{column}" in this row'
            raise DataError(f"{self.place}: {what} (the row has {', '.join(self.values)})")
        return value

    def text(self, column: str) -> Text:
        """Return text or messages."""
        return read_text(self.get(column), column, self.place)

    def messages(self, column: str) -> tuple[Message, ...]:
        """Return messages."""
        return read_messages(self.get(column), column, self.place)

    def plain(self, column: str, default: str | None = None) -> str:
        """Return plain text; ``default`` where the column is absent or null."""
        value = self.values.get(column)
        if value is None and default is not None:
            return default
        text = self.text(column)
        if not isinstance(text, str):
            raise DataError(f'{self.place}: "{column}" is {describe(value)}, expected text')
        return text

    def name(self, column: str) -> str:
        """Return an identifier as text; empty where the column is absent or null."""
        value = self.values.get(column)
        if value is None:
            return ""
        if isinstance(value, (str, int, float)):
            return str(value)
        raise DataError(f'{self.place}: "{column}" is {describe(value)}, expected text or a number')

    def label(self) -> bool:
        """Return the ``label`` column: true or false, also as 1 and 0, and as text (CSV has nothing else)."""
        value = self.get("label")
        label = _LABELS.get(str(value).lower()) if isinstance(value, (bool, int, str)) else None
        if label is None:
            raise DataError(f'{self.place}: "label" is {value!r}, expected true or false')
        return label
