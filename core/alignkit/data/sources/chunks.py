"""Sources of rows, read in chunks so that they need not fit into memory."""

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
from alignkit.system.files import InvalidJSON, parse_json

ROWS = 1024
"""Maximum rows of a chunk."""

BYTES = 4 << 20
"""Approximate maximum bytes of a chunk of text lines."""


class Chunk(Protocol):
    """Consecutive rows of a source, small enough to be sent to a worker process."""

    @property
    def places(self) -> Sequence[str]:
        """The location of each row (file:line)."""
        ...

    def head(self, limit: int) -> Chunk:
        """Return the first ``limit`` rows."""
        ...

    def read(self, source: str) -> RawRows:
        """Return the rows; raises :class:`~alignkit.errors.DataError` if one cannot be parsed."""
        ...


@dataclass(frozen=True)
class RowChunk:
    """Parsed rows with their locations."""

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
    """Lines of JSON, parsed by :meth:`read` (in a worker process)."""

    lines: Sequence[bytes]
    places: Sequence[str]

    def head(self, limit: int) -> LineChunk:
        """Return the first ``limit`` lines."""
        return LineChunk(self.lines[:limit], self.places[:limit])

    def read(self, source: str) -> RawRows:
        """Parse every line; raises :class:`~alignkit.errors.DataError` at the first that is not an object."""
        rows = [parse_line(line, place) for line, place in zip(self.lines, self.places, strict=True)]
        return RawRows(rows, self.places.__getitem__, source)


_NOT_JSON_LINES = (
    ("[", "; a file that holds one JSON list must be named .json"),
    ("<", "; this looks like HTML or XML"),
    ("version https://git-lfs", "; this is a Git LFS pointer: fetch the file with git lfs pull"),
    ("\0", "; the line begins with NUL bytes, as after an interrupted download"),
)
"""Beginnings of files often mistaken for JSON Lines -> hint for the error message."""


def parse_line(line: bytes, place: str) -> Mapping[str, Any]:
    """Return the object in one line of JSON; raises :class:`~alignkit.errors.SourceError` naming ``place`` (file:line)."""
    try:
        text = line.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise SourceError(f"{place}: not UTF-8 (byte 0x{line[error.start]:02x}); save the file as UTF-8") from None
    try:
        value = parse_json(text)
    except InvalidJSON as error:
        hint = next((hint for start, hint in _NOT_JSON_LINES if text.startswith(start)), "")
        raise SourceError(f"{place}: invalid JSON: {error}{hint}") from None
    if not isinstance(value, dict):
        raise SourceError(f"{place}: the line is {describe_value(value)}, expected an object with the row's columns")
    return value


@dataclass(frozen=True)
class Source:
    """Rows that can be read repeatedly.

    ``root`` is the common beginning of every row's location (a file's path, a hub id). The cache stores locations without
    it, so that they stay correct when a file moves. ``digest`` returns a hash of the content.
    """

    name: str
    root: str
    chunks: Callable[[], Iterator[Chunk]]
    digest: Callable[[], str]

    @classmethod
    def of(cls, raw: RawRows) -> Source:
        """Return a source of rows in memory."""

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
        """Return a source of the first ``limit`` rows (None: all)."""
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
    """Return the SHA-256 of the suffixes and contents of files."""
    content = hashlib.sha256()
    for path in paths:
        content.update(f"{''.join(path.suffixes)} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                content.update(block)
    return content.hexdigest()
