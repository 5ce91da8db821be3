"""Conversations in the various formats of data sets, brought to ``role``/``content`` messages."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from alignkit.contract import Message, Text
from alignkit.data.rows import describe_value
from alignkit.errors import DataError
from alignkit.system.files import InvalidJSON, parse_json

T = TypeVar("T")

_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "assistant", "model", "function_call"), "assistant"),
    "system": "system",
    **dict.fromkeys(("observation", "tool"), "tool"),
}
"""Roles of ShareGPT's from/value format -> roles of chat templates."""


def read_text(value: Any, column: str, place: str) -> Text:
    """Return plain text unchanged, and a message or list of messages, also written as text, as messages.

    Raises:
        DataError: ``value`` is none of these; the message names ``place`` (file:line) and ``column``.
    """
    if isinstance(value, str) and _WRITTEN.match(value):
        value = _read_written(value, column, place)
    if isinstance(value, str):
        return encodable(value, column, place)
    if isinstance(value, Mapping):
        return (_message(value, column, place),)
    if isinstance(value, list):
        if not value:
            raise DataError(f'{place}: "{column}" is an empty list')
        return tuple(_message(item, f"{column}[{i}]", place) for i, item in enumerate(value))
    raise DataError(f'{place}: "{column}" is {describe_value(value)}, expected text or a list of messages')


_WRITTEN = re.compile(r"""\s*(\[\s*)?\{\s*["'](role|from|content|value)["']\s*:""")
"""The beginning of messages written as text, as cells of CSV files are."""

_NUMPY = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|\}\s+\{""")
"""A string, or the border of two objects in numpy's text of an array, which has no commas."""


def parse_cell(text: str) -> Any:
    """Return a value written as JSON, or as Python or numpy write it; raises :class:`InvalidJSON` if it is neither."""
    try:
        return parse_json(text)
    except InvalidJSON as error:
        try:
            return ast.literal_eval(_NUMPY.sub(lambda found: found[1] or "}, {", text.strip()))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise error from None


def _parsed(text: str, column: str, place: str) -> Any:
    try:
        return parse_cell(text)
    except InvalidJSON as error:
        raise DataError(f'{place}: "{column}" begins like messages written as JSON, but is not: {error}') from None


def _read_written(text: str, column: str, place: str) -> Any:
    """Return the messages a text holds, or the text if it is something else that begins like messages."""
    try:
        json.JSONDecoder().raw_decode(text.lstrip())
        value = parse_json(text)
    except InvalidJSON:
        return text  # JSON and then other text
    except (ValueError, RecursionError):
        value = _parsed(text, column, place)
    messages = value if isinstance(value, list) else [value]
    kinds = ({"role", "content"}, {"role", "tool_calls"}, {"from", "value"})
    return value if all(isinstance(m, Mapping) and any(m.keys() >= k for k in kinds) for m in messages) else text


def as_turn(role: str, text: Text) -> tuple[Message, ...]:
    """Return plain text as a conversation of one turn, and a conversation unchanged."""
    return ({"role": role, "content": text},) if isinstance(text, str) else text


def is_blank(text: Text) -> bool:
    """Return whether a text is only white space, or all messages lack content and tool calls."""
    if isinstance(text, str):
        return not text.strip()
    return all(not message["content"].strip() and not message.get("tool_calls") for message in text)


def _message(value: Any, column: str, place: str) -> Message:
    if not isinstance(value, Mapping):
        raise DataError(f'{place}: "{column}" is {describe_value(value)}, expected a message with role and content')
    if "role" in value:
        role, key = value["role"], "content"
        if not isinstance(role, str):
            raise DataError(f'{place}: "{column}.role" is {describe_value(role)}, expected text')
    elif "from" in value:
        role, key = _ROLES.get(value["from"]) if isinstance(value["from"], str) else None, "value"
        if role is None:
            raise DataError(f'{place}: "{column}.from" is {value["from"]!r}, expected one of {", ".join(_ROLES)}')
    else:
        raise DataError(f'{place}: "{column}" has no role (its keys are {", ".join(map(str, value)) or "none"})')
    others = {k: v for k, v in value.items() if k not in ("role", "from", "content", "value") and v is not None}
    if isinstance(others.get("tool_calls"), str):
        others["tool_calls"] = _parsed(others["tool_calls"], f"{column}.tool_calls", place)
    content = value.get(key)
    if content is None and others.get("tool_calls"):
        content = ""
    message = {"role": encodable(role, f"{column}.role", place), "content": _content(content, f"{column}.{key}", place)}
    return message | encodable(others, column, place) if others else message


def _content(value: Any, column: str, place: str) -> str:
    """Return a message's content; text parts (``{"type": "text", "text": ...}``) are joined."""
    if isinstance(value, list):
        types = [part.get("type") if isinstance(part, Mapping) else None for part in value]
        other = next((name for name in types if name not in ("text", None)), None)
        if other is not None:
            raise DataError(f'{place}: "{column}" has a part of type {other}; only text is supported')
        if None not in types and all(isinstance(part.get("text"), str) for part in value):
            value = "".join(part["text"] for part in value)
    if not isinstance(value, str):
        raise DataError(f'{place}: "{column}" is {describe_value(value)}, expected text')
    return encodable(value, column, place)


def encodable(value: T, column: str, place: str) -> T:
    """Return text, or a value of JSON, unchanged; raises :class:`DataError` if it contains an unpaired surrogate."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise DataError(f'{place}: "{column}" contains an unpaired surrogate, which is not a character') from None
    return value
