"""Rows: as they stand in a source (:class:`RawRows`), and as every source is brought to (:class:`Row`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring

from alignkit.contract.rows import Text


def digest(*texts: Text) -> str:
    """Return 16 hexadecimal digits that stand for the content of ``texts``."""
    content = as_json(texts)
    if content is None:
        content = json.dumps(texts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def as_json(texts: Sequence[Text]) -> str | None:
    """Return plain texts as the JSON list ``json.dumps`` writes, several times as fast; None where one is a conversation."""
    plain = [encode_basestring(text) for text in texts if isinstance(text, str)]
    return f"[{', '.join(plain)}]" if len(plain) == len(texts) else None


def describe_value(value: object) -> str:
    """Name a value's type as a user of JSON would: ``describe_value(3)`` -> ``"a number"``.

    >>> describe_value([1]), describe_value(None), describe_value(True)
    ('a list', 'null', 'true')
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    for kind, name in (((int, float), "a number"), (str, "text"), (Mapping, "an object"), ((list, tuple), "a list")):
        if isinstance(value, kind):
            return name
    return f"a {type(value).__name__}"
