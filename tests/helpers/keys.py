"""The keys of a section, for tables with a row for each of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel


class Row(NamedTuple):
    value: Any
    seen: str
    """What must differ."""
    beside: dict[str, Any] = {}
    """Other keys that the key needs."""


def keys_of(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield every key of a section and of the sections in it, as dotted names."""
    for name, field in section.model_fields.items():
        yield prefix + (field.alias or name)
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from keys_of(inner, f"{prefix}{name}.")
