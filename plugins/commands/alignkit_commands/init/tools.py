"""The tables of other libraries' keys (``libraries/*.json``), and which library a configuration is for.

A table has the library's name (``about``), words of its command line (``flags``), keys by which its files are known
(``marks``), its names of methods (``methods``), the key that holds one (``method_key``), ``keys``, and ``defaults`` of the library (for all, with an adapter, by method), which are written where the file does not
have the key, so that the run is the same. The entry of a key is

- the dotted key here, to which the value is given;
- a list with the reason for which it is not carried over (empty: it is not needed here);
- or a mapping of values, in lower case, to either of these or to settings; ``@NAME`` is any value with method NAME, ``~PATTERN``
  a regular expression, and ``*`` any other value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from alignkit.errors import ConfigError

from alignkit_commands.init.given import Given, read


@cache
def tables() -> Mapping[str, Mapping[str, Any]]:
    """Return the tables by name."""
    files = sorted((Path(__file__).parent / "libraries").glob("*.json"))
    return {file.stem: json.loads(file.read_bytes()) for file in files}


def recognise(path: Path, name: str | None) -> tuple[Mapping[str, Any], Given]:
    """Return the table of the library whose configuration a file is, and what the file says.

    ``name``: the library, if the user named it; else the one whose command is in the file, or that knows most of the keys.

    Raises ``ConfigError`` for a file that none of them writes.
    """
    if name is not None:
        return tables()[name], read(path, tables()[name].get("sections", ()))
    given = {tool: read(path, table.get("sections", ())) for tool, table in tables().items()}
    for tool, table in tables().items():
        if any(word.endswith(flag) for word in given[tool].command for flag in table["flags"]):
            return table, given[tool]
    known = {tool: len({*given[tool].values} & {*table["marks"]}) for tool, table in tables().items()}
    best = max(known, key=known.__getitem__)
    if known[best] < 2 or sum(count == known[best] for count in known.values()) > 1:
        raise ConfigError(f"{path}: not recognised as a configuration of {_names()}: name the library with --tool")
    return tables()[best], given[best]


def _names() -> str:
    *others, last = (str(table["about"]) for table in tables().values())
    return f"{', '.join(others)} or {last}"


def entry_for(entry: Any, value: Any, method: str) -> Any:
    """Return what a key's entry says for a value: a dotted key, settings, a list with a reason, or None for no match."""
    if not isinstance(entry, Mapping):
        return entry
    text = "" if value is None else str(value).lower()
    patterns = (found for key, found in entry.items() if key[:1] == "~" and re.search(key[1:], text))
    for key in (text, f"@{method}"):
        if key in entry:
            return entry[key]
    return next(patterns, entry.get("*"))
