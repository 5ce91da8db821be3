"""Typed access to one row's columns, with errors that name file, line and column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from alignkit.contract import Message, Text
from alignkit.data.rows import describe_value, few, without_nulls
from alignkit.errors import DataError
from alignkit.system.files import InvalidJSON

from alignkit_shapes.messages import encodable, parse_cell, read_text

_LABELS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True)
class RowReader:
    """The columns of one row under alignkit's names; errors name ``place`` (file:line)."""

    values: Mapping[str, Any]
    place: str
    chat: bool
    used: set[str] = field(default_factory=set)
    """Columns read so far."""

    def _read(self, column: str) -> Any:
        self.used.add(column)
        return self.values.get(column)

    def get(self, column: str) -> Any:
        value = self._read(column)
        if value is None:
            problem = f'"{column}" is null' if column in self.values else f'no column "{column}"'
            raise DataError(f"{self.place}: {problem} (the row has {few(self.values)})")
        return value

    def text(self, column: str) -> Text:
        return read_text(self.get(column), column, self.place)

    def messages(self, column: str) -> tuple[Message, ...]:
        text = self.text(column)
        if isinstance(text, str):
            raise DataError(f'{self.place}: "{column}" is text, expected a list of messages')
        return text

    def plain(self, column: str, default: str | None = None) -> str:
        """Return plain text; ``default`` if the column is absent or null."""
        value = self._read(column)
        if value is None and default is not None:
            return default
        text = self.text(column)
        if not isinstance(text, str):
            raise DataError(f'{self.place}: "{column}" is {describe_value(value)}, expected text')
        return text

    def name(self, column: str) -> str:
        """Return an identifier as text; empty if the column is absent or null."""
        value = self._read(column)
        if value is None:
            return ""
        if isinstance(value, (str, int, float)):
            return encodable(str(value), column, self.place)
        raise DataError(f'{self.place}: "{column}" is {describe_value(value)}, expected text or a number')

    def tools(self) -> tuple[Mapping[str, Any], ...] | None:
        """Return the ``tools`` column, a list of function schemas or its text; None if it is absent, null or empty."""
        value = self._read("tools")
        if isinstance(value, str):
            try:
                value = parse_cell(value) if value.strip() else None
            except InvalidJSON as error:
                raise DataError(f'{self.place}: "tools" is invalid JSON: {error}') from None
        if value is None or value == []:
            return None
        if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
            raise DataError(f'{self.place}: "tools" is {describe_value(value)}, expected a list of function schemas')
        return tuple(encodable(without_nulls(value), "tools", self.place))


def read_label(value: Any, place: str) -> bool:
    """Return a label: true or false, also as 1 or 0, or as text (as CSV files have it).

    Raises ``DataError`` for anything else.
    """
    label = _LABELS.get(str(value).lower()) if isinstance(value, (bool, int, str)) else None
    if label is None:
        raise DataError(f'{place}: "label" is {value!r}, expected true or false')
    return label
