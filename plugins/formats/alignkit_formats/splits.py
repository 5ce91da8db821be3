"""Splits of a source, and the suffix that names a file's format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alignkit.errors import DataError, suggest

from alignkit_formats.compressed import COMPRESSIONS


def suffix_of(path: Path) -> str:
    """Return the suffix of the file format: ``.jsonl`` for ``prefs.jsonl.gz``."""
    return (path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path).suffix.lower()


def choose_split(source: str, names: list[str], split: str | None, defaults: Sequence[str]) -> str:
    """Return ``split``, or if None the first of ``defaults`` among ``names``; raises :class:`DataError` if there is none."""
    for wanted in defaults if split is None else (split,):
        if wanted in names:
            return wanted
    if split is None and len(names) == 1:
        return names[0]
    problem = f'has no split "{split}"{suggest(split, names)}' if split is not None else "needs a split: set data.split"
    raise DataError(f"{source} {problem}; its splits are {', '.join(names)}")
