"""Helpers for values and texts of rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from json.encoder import encode_basestring
from typing import Any

from alignkit.contract import Text


def text_digest(*texts: Text) -> str:
    """Return a hash of the content of ``texts``, 16 hexadecimal digits."""
    content = as_json(texts)
    if content is None:
        content = json.dumps(texts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(content.encode(errors="surrogatepass"), digest_size=8).hexdigest()


def as_json(texts: Sequence[Text]) -> str | None:
    """Return plain texts as ``json.dumps`` writes a list, several times faster; None if one of them is a conversation."""
    plain = [encode_basestring(text) for text in texts if isinstance(text, str)]
    return f"[{', '.join(plain)}]" if len(plain) == len(texts) else None


def few(names: Collection[str]) -> str:
    """Return names joined by commas, at most twenty of them, each cut to 60 characters.

    >>> few(["a", "b"])
    'a, b'
    """
    shown = ", ".join(name if len(name) <= 60 else f"{name[:60]}..." for name in islice(names, 20))
    return shown + (f" and {len(names) - 20:,} more" if len(names) > 20 else "")


def without_nulls(value: Any) -> Any:
    """Return lists and objects without the objects' null entries, which templates would take as given."""
    if isinstance(value, Mapping):
        return {key: without_nulls(entry) for key, entry in value.items() if entry is not None}
    return [without_nulls(entry) for entry in value] if isinstance(value, list) else value


def describe_value(value: object) -> str:
    """Return a value's type in JSON terms.

    >>> describe_value(3), describe_value([1]), describe_value(None), describe_value(True)
    ('a number', 'a list', 'null', 'true')
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    for kind, name in (((int, float), "a number"), (str, "text"), (Mapping, "an object"), ((list, tuple), "a list")):
        if isinstance(value, kind):
            return name
    return f"a {type(value).__name__}"


class UniqueIds:
    """Numbers repeated ids, because items of two runs are matched by id.

    Ids seen are kept as 64-bit hashes, which for a million rows take 0.1 GB less than the ids.

    >>> UniqueIds().unique(["a", "b", "a", "a"])
    ['a', 'b', 'a#2', 'a#3']
    """

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._counts: dict[str, int] = {}

    def unique(self, ids: Iterable[str]) -> list[str]:
        """Return the ids, a repeated one with its number appended."""
        return [self._unique(name) for name in ids]

    def _unique(self, name: str) -> str:
        key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
        if key not in self._seen:
            self._seen.add(key)
            return name
        count = self._counts[name] = self._counts.get(name, 1) + 1
        return self._unique(f"{name}#{count}")
