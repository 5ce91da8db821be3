"""Sources of data (entry-point group ``align.sources``), and file formats (``align.formats``: an entry point's name is the suffix)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

Unparsed: TypeAlias = Mapping[str, Any] | bytes
"""A row's columns, or the line of JSON that holds them, which worker processes parse."""

Located: TypeAlias = tuple[Unparsed, str]
"""A row and its location (file:line), by which messages name it."""


class DataFormat(NamedTuple):
    """A file format of data."""

    read: Callable[..., Iterator[Located]]
    """``read(path, split)`` yields every row with its location, and runs no code from the file; ``split`` is None if none is named.

    It raises :class:`~alignkit.errors.DataError`, with file and line, for what cannot be read.
    """
    splits: bool = False
    """Whether a file can hold several splits; for other formats a named split is refused."""
    gzipped: bool = False
    """Whether ``read`` also reads files compressed with gzip, whose names end in ``.gz`` after the suffix."""
    delimited: bool = False
    """Whether ``read`` takes a third argument: ``data.delimiter``, the separator of columns (None: not named)."""


DataSource: TypeAlias = "Callable[..., Any]"
"""A function that opens a source of data by its name, declared as an entry point of the group ``align.sources``.

``open(source, split, reading, defaults, limit)`` returns the rows (:class:`~alignkit.contract.rows.RawRows`, or a source that is read
in chunks), or None for a source that it does not know. alignkit's own comes last. ``reading`` has the other keys of ``data``,
``defaults`` the splits to try in order if ``split`` is None, ``limit`` the number of rows that are needed, if that is known.
"""
