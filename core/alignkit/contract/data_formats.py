"""File formats of data, declared in the entry-point group ``align.formats``: an entry point's name is the file name suffix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

Unparsed: TypeAlias = Mapping[str, Any] | bytes
"""A row's columns, or the line of JSON that holds them, which worker processes parse."""

Located: TypeAlias = tuple[Unparsed, str]
"""A row and its location (file:line), by which messages name it."""


class DataFormat(NamedTuple):
    """A file format of data."""

    read: Callable[[Path, str | None], Iterator[Located]]
    """``read(path, split)`` yields every row with its location, and runs no code from the file; ``split`` is None if none is named.

    It raises :class:`~alignkit.errors.DataError`, with file and line, for what cannot be read.
    """
    splits: bool = False
    """Whether a file can hold several splits; for other formats a named split is refused."""
    gzipped: bool = False
    """Whether ``read`` also reads files compressed with gzip, whose names end in ``.gz`` after the suffix."""
