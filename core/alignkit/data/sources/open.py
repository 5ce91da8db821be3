"""Opening a source by name, with the function of an installed package that knows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TypeAlias

from alignkit.config import Reading
from alignkit.contract import Located, RawRows, registry
from alignkit.contract.guard import running
from alignkit.data.sources.chunks import Source
from alignkit.errors import DataError, SourceError

TRAIN_SPLITS = ("train",)
HELD_OUT_SPLITS = ("test", "validation", "dev", "eval", "train")
"""Splits tried in this order if none is named."""

Load: TypeAlias = Callable[[str, str | None], RawRows | None]
"""A plugin's loader, called first with ``(source, split)``; None leaves the source to the installed packages."""


def open_source(
    source: str,
    split: str | None,
    config: Reading,
    *,
    default_splits: Sequence[str] = TRAIN_SPLITS,
    limit: int | None = None,
    load: Load | None = None,
) -> Source:
    """Open a source, whose rows are read on iteration.

    Args:
        source: what ``data.source`` names: a file, a directory, a URL, a hub id, ...
        split: the split to read; None takes the first of ``default_splits`` that the source has.
        config: ``subset`` selects the configuration of a hub data set; ``streaming`` reads without a full download.
        load: a plugin's loader, called before the functions of ``align.sources``.

    Raises:
        DataError: the source is missing or of an unknown kind; while reading, also if it is empty or unreadable.
    """
    loaded = None if load is None else load(source, split)
    if loaded is not None:
        return _in_memory(loaded).head(limit)
    for entry in sorted(registry.usable("align.sources").values(), key=lambda entry: entry.built_in):
        open_it = registry.load(entry)
        with running(f"{entry} cannot open {source}", DataError):
            found = open_it(source, split, config, default_splits, limit)
        if found is not None:
            return _checked(found if isinstance(found, Source) else _in_memory(found)).head(limit)
    raise DataError(f"{source}: no installed package opens it (entry-point group align.sources)")


def _in_memory(rows: RawRows) -> Source:
    if not len(rows.rows):
        raise DataError(f"{rows.source} has no rows")
    return Source.of(rows)


def _checked(source: Source) -> Source:
    """Return the source; reading it raises :class:`SourceError` if it has no rows or they cannot be read."""

    def rows() -> Iterator[Located]:
        empty = True
        try:
            for row in source.rows():
                empty = False
                yield row
        except DataError as error:
            raise SourceError(str(error)) from error.__cause__
        if empty:
            path = Path(source.name)
            no_bytes = path.is_file() and not path.stat().st_size
            raise SourceError(f"{source.name} is empty" if no_bytes else f"{source.name} has no rows")

    return Source(source.name, source.root, rows, cache(source.digest))  # asked once for each row kind
