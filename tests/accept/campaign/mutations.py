"""Random damage to values and bytes, as wrong types, odd texts, deep nesting, cut files and flipped bytes."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

DEEP = 3_000
"""Levels of nesting that no reader has use for, and that exhaust a recursive one."""

ODD_VALUES: dict[str, Any] = {
    "null": None,
    "a list": [1, "two", None],
    "an empty list": [],
    "a mapping": {"a": {"b": 1}},
    "a list of lists": [[[]]],
    "true": True,
    "a negative number": -3,
    "zero": 0,
    "a fraction": 0.37,
    "a huge integer": 10**30,
    "an integer of 400 digits": 10**400,
    "a huge fraction": 1e308,
    "a text": "no such thing",
    "an empty text": "",
    "blanks": "  \t ",
    "control characters": "a\x1b[31mb\x07\x00c",
    "half a surrogate pair": "x\ud800y",
    "a long text": "long " * 20_000,
    "right-to-left marks": "\u202eabc\u2066",
    "a path out of here": "../../../../etc/passwd",
    "a URL with a password": "https://somebody:hunter2@example.invalid/x",
    "an expression": "{{ 1/0 }}",
}
"""Values put in place of others, by what they are."""

Bytes = Callable[[bytes, random.Random], bytes]


def _cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(1, max(len(content), 2))]


def _insert(piece: bytes) -> Bytes:
    def change(content: bytes, draw: random.Random) -> bytes:
        at = draw.randrange(len(content) + 1)
        return content[:at] + piece + content[at:]

    return change


def _noise(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(max(1, len(changed) // 50)):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


ODD_BYTES: dict[str, Bytes] = {
    "empty": lambda content, draw: b"",
    "one line feed": lambda content, draw: b"\n",
    "cut": _cut,
    "a NUL inside": _insert(b"\0"),
    "no UTF-8 inside": _insert(b"\xff\xfe"),
    "a bracket inside": _insert(b"]"),
    "a quotation mark inside": _insert(b'"'),
    "UTF-16": lambda content, draw: content.decode("utf-8", "replace").encode("utf-16"),
    "twice": lambda content, draw: content + content,
    "noise": _noise,
    "random bytes": lambda content, draw: draw.randbytes(300),
    "a picture": lambda content, draw: b"\x89PNG\r\n\x1a\n" + draw.randbytes(200),
    "a web page": lambda content, draw: b"<!DOCTYPE html><html><body>404: not found</body></html>",
    "a Git LFS pointer": lambda content, draw: (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 12345\n"
    ),
    "nested deeply": lambda content, draw: b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "lists nested deeply": lambda content, draw: b"[" * DEEP + b"]" * DEEP,
    "an integer of 5,000 digits": lambda content, draw: b'{"status": ' + b"9" * 5_000 + b"}",
    "a list": lambda content, draw: b"[1, 2, 3]",
    "a text": lambda content, draw: b'"text"',
    "null": lambda content, draw: b"null",
}
"""Changes of a whole file, by what it becomes."""


def changed_value(value: Any, draw: random.Random) -> tuple[Any, str]:
    """Return a copy of a JSON value with one part replaced, removed, renamed or added, and words for it."""
    value = copy.deepcopy(value)
    paths = list(_paths(value))
    *above, key = paths[draw.randrange(len(paths))]
    parent = value
    for step in above:
        parent = parent[step]
    name = ".".join(map(str, [*above, key]))
    action = draw.choice(["replace"] * 6 + ["remove", "rename", "add"])
    if action == "remove":
        del parent[key]
        return value, f"{name} is missing"
    if isinstance(parent, dict) and action == "rename":
        parent[f"{key}x"] = parent.pop(key)
        return value, f"{name} is called {key}x"
    if isinstance(parent, dict) and action == "add":
        parent["unheard_of"] = 1
        return value, f"unheard_of beside {name}"
    odd = draw.choice(list(ODD_VALUES))
    parent[key] = ODD_VALUES[odd]
    return value, f"{name} is {odd}"


def changed_bytes(content: bytes, draw: random.Random) -> tuple[bytes, str]:
    """Return a file's content, changed as a whole, and words for the change."""
    odd = draw.choice(list(ODD_BYTES))
    return ODD_BYTES[odd](content, draw), odd


def _paths(value: Any) -> Any:
    """Yield the path of every part of a value, at most the first three entries of a list."""
    parts = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, part in parts:
        yield [key]
        yield from ([key, *rest] for rest in _paths(part))
