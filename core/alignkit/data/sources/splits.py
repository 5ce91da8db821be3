"""Names of files and splits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alignkit.errors import DataError, suggest


def suffix_of(path: Path) -> str:
    """Return the suffix that tells the format: ``.jsonl`` of ``prefs.jsonl.gz``."""
    name = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return name.suffix.lower()


def choose_split(source: str, names: list[str], split: str | None, defaults: Sequence[str]) -> str:
    """Return the split that is asked for, or the first of ``defaults`` there is; raises :class:`DataError` where there is none."""
    for wanted in defaults if split is None else (split,):
        if wanted in names:
            return wanted
    if split is None and len(names) == 1:
        return names[0]
    asked = f'has no split "{split}"{suggest(split, names)}' if split is not None else "needs a split: set data.split"
    raise DataError(f"{source} {asked}; its splits are {', '.join(names)}")
