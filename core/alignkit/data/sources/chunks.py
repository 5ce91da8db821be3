"""A source of rows, read a chunk at a time, so that it need not fit into memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from alignkit.contract.rows import RawRows
from alignkit.data.rows import describe_value
from alignkit.errors import SourceError

ROWS = 1024
"""Rows of a chunk, at most."""

BYTES = 4 << 20
"""Bytes of a chunk of text lines, about."""


class Chunk(Protocol):
    """Rows that stand one after another in a source; small, and sent to worker processes as it is."""

    @property
    def places(self) -> Sequence[str]:
        """Where each row stands (file:line)."""
        ...

    def head(self, limit: int) -> Chunk:
        """Return the first ``limit`` rows."""
        ...

    def read(self, source: str) -> RawRows:
        """Return the rows; raises :class:`~alignkit.errors.DataError` for one that is none."""
        ...


@dataclass(frozen=True)
class RowChunk:
    """Rows that are read already, and where each stands."""

    rows: Sequence[Mapping[str, Any]]
    places: Sequence[str]

    def head(self, limit: int) -> RowChunk:
        """Return the first ``limit`` rows."""
        return RowChunk(self.rows[:limit], self.places[:limit])

    def read(self, source: str) -> RawRows:
        """Return the rows."""
        return RawRows(self.rows, self.places.__getitem__, source)


@dataclass(frozen=True)
class LineChunk:
    """Lines of JSON, parsed by whoever takes the chunk."""

    lines: Sequence[bytes]
    places: Sequence[str]

    def head(self, limit: int) -> LineChunk:
        """Return the first ``limit`` lines."""
        return LineChunk(self.lines[:limit], self.places[:limit])

    def read(self, source: str) -> RawRows:
        """Parse every line; raises :class:`~alignkit.errors.DataError` at the first that is no object."""
        rows = [parse_line(line, place) for line, place in zip(self.lines, self.places, strict=True)]
        return RawRows(rows, self.places.__getitem__, source)


_NO_JSON = (
    ("[", "; a file that is one JSON list is named .json"),
    ("<", "; this is a web page or XML"),
    ("version https://git-lfs", "; this stands for a file that Git LFS has: fetch it with git lfs pull"),
    ("\0", "; these are NUL bytes, as in a file whose download broke off"),
)
"""How files begin that are often taken for JSON Lines, and what to say of them."""


def parse_line(line: bytes, place: str) -> Mapping[str, Any]:
    """Return the object one line of JSON holds; ``place`` (file:line) begins the message of any
    :class:`~alignkit.errors.SourceError`.
    """
    try:
        text = line.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise SourceError(f"{place}: not UTF-8 (byte 0x{line[error.start]:02x}); save the file as UTF-8") from None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        hint = next((hint for start, hint in _NO_JSON if text.startswith(start)), "")
        raise SourceError(f"{place}: broken JSON: {error.msg} (column {error.colno}){hint}") from None
    except RecursionError:
        raise SourceError(f"{place}: broken JSON: nested too deeply") from None
    except ValueError as error:  # an integer of more digits than Python converts
        raise SourceError(f"{place}: broken JSON: {str(error).partition(';')[0]}") from None
    if not isinstance(value, dict):
        raise SourceError(f"{place}: the line is {describe_value(value)}, expected an object with the row's columns")
    return value


@dataclass(frozen=True)
class Source:
    """Rows that can be read again and again.

    ``root`` is what the place of every row begins with (a file's path, a hub id), so that what is kept of a place does not
    depend on where a file lies; ``digest`` stands for the content.
    """

    name: str
    root: str
    chunks: Callable[[], Iterator[Chunk]]
    digest: Callable[[], str]

    @classmethod
    def of(cls, raw: RawRows) -> Source:
        """Make a source of rows in memory."""

        def chunks() -> Iterator[Chunk]:
            for begin in range(0, len(raw.rows), ROWS):
                rows = raw.rows[begin : begin + ROWS]
                yield RowChunk(rows, [raw.where(begin + i) for i in range(len(rows))])

        @cache
        def digest() -> str:
            content = hashlib.sha256()
            for i, row in enumerate(raw.rows):
                content.update(json.dumps([row, raw.where(i)], sort_keys=True, default=str).encode())
            return content.hexdigest()

        return cls(raw.source, "", chunks, digest)

    def head(self, limit: int | None) -> Source:
        """Return the first ``limit`` rows as a source (None: all of them)."""
        if limit is None:
            return self

        def chunks() -> Iterator[Chunk]:
            left = limit
            for chunk in self.chunks():
                yield chunk.head(left) if len(chunk.places) > left else chunk
                left -= len(chunk.places)
                if left <= 0:
                    return

        return Source(self.name, self.root, chunks, lambda: f"{limit} of {self.digest()}")

    def read(self) -> RawRows:
        """Return all rows at once."""
        rows: list[Mapping[str, Any]] = []
        places: list[str] = []
        for chunk in self.chunks():
            rows.extend(chunk.read(self.name).rows)
            places.extend(chunk.places)
        return RawRows(rows, places.__getitem__, self.name)


def file_digest(paths: Sequence[Path]) -> str:
    """Return SHA-256 over the suffixes and contents of files."""
    content = hashlib.sha256()
    for path in paths:
        content.update(f"{''.join(path.suffixes)} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                content.update(block)
    return content.hexdigest()
