"""What an unknown key probably means: a key of another section, or its name in another library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel

from alignkit.config import RunConfig
from alignkit.errors import suggest


def read_table(name: str) -> dict[str, list[str]]:
    """Return ``NAME.json`` beside this module, a table of our names and words, as word -> our names."""
    found: dict[str, list[str]] = {}
    for ours, words in json.loads(Path(__file__).with_name(f"{name}.json").read_bytes()).items():
        for word in words.split():
            found.setdefault(word, []).append(ours)
    return found


ALIASES: Mapping[str, list[str]] = read_table("other_names")
"""Names from other libraries and earlier versions -> dotted keys, which may be followed by a comma and a remark."""

VALUES: Mapping[str, list[str]] = read_table("other_values")
"""Values from other libraries, in lower case -> values here."""


def known_keys(model_type: type[BaseModel]) -> list[str]:
    """Return the keys of a model: the alias of each field, else its name."""
    return [field.alias or name for name, field in model_type.model_fields.items()]


def did_you_mean(key: str, known: list[str]) -> str:
    """Return ``', did you mean "train.learning_rate"?'`` for a key that is not among ``known``, or an empty string.

    In this order: its name here (first one that is known), the only section that has it, the closest of ``known``.

    >>> did_you_mean("lr", []), did_you_mean("max_length", []), did_you_mean("lamda", ["lambda"])
    (', did you mean "train.learning_rate"?', ', did you mean "data.max_length"?', ', did you mean "lambda"?')
    """
    sections = {name: field.annotation for name, field in RunConfig.model_fields.items()}
    homes = [f"{name}.{key}" for name, kind in sections.items() if isinstance(kind, type) and key in known_keys(kind)]
    ours = ALIASES.get(key) or (homes if len(homes) == 1 else [""])
    mine = [name.partition(",")[0] for name in ours if name.partition(",")[0].removeprefix("method.") in known]
    found, comma, remark = (mine or ours)[0].partition(",")
    return f', did you mean "{found}"{comma}{remark}?' if found else suggest(key, known)
