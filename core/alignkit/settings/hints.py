"""What an unknown key probably means: a key of another section, or its name in another library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel

from alignkit.config import RunConfig
from alignkit.errors import suggest


def read_table(name: str) -> dict[str, str]:
    """Return the table ``NAME.json`` beside this module."""
    found: dict[str, str] = json.loads(Path(__file__).with_name(f"{name}.json").read_bytes())
    return found


ALIASES: Mapping[str, str] = {
    alias: key for key, aliases in read_table("other_names").items() for alias in aliases.split()
}
"""Names from other libraries and earlier versions -> dotted keys, which may be followed by a comma and a remark."""


def known_keys(model_type: type[BaseModel]) -> list[str]:
    """Return the keys of a model: the alias of each field, else its name."""
    return [field.alias or name for name, field in model_type.model_fields.items()]


def did_you_mean(key: str, known: list[str]) -> str:
    """Return ``', did you mean "train.learning_rate"?'`` for a key that is not among ``known``, or an empty string.

    In this order: its name here, the only section that has it, the closest of ``known``.

    >>> did_you_mean("lr", []), did_you_mean("max_length", []), did_you_mean("lamda", ["lambda"])
    (', did you mean "train.learning_rate"?', ', did you mean "data.max_length"?', ', did you mean "lambda"?')
    """
    sections = {name: field.annotation for name, field in RunConfig.model_fields.items()}
    homes = [f"{name}.{key}" for name, kind in sections.items() if isinstance(kind, type) and key in known_keys(kind)]
    found, comma, remark = (ALIASES.get(key) or (homes[0] if len(homes) == 1 else "")).partition(",")
    return f', did you mean "{found}"{comma}{remark}?' if found else suggest(key, known)
