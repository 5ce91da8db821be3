"""Sources of rows, read in chunks so that they need not fit into memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

from alignkit.contract import Located, RawRows, Unparsed
from alignkit.contract.guard import running
from alignkit.data.rows import describe_value
from alignkit.errors import DataError, SourceError
from alignkit.system.files import InvalidJSON, digest, parse_json

ROWS = 1024
"""Maximum rows of a chunk."""

BYTES = 4 << 20
"""Approximate maximum bytes of a chunk of JSON lines."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows and their locations, small enough to be sent to a worker process, which parses them."""

    rows: Sequence[Unparsed]
    places: Sequence[str]
    start: int = 0
    """Number of source rows before it."""

    def read(self, source: str) -> RawRows:
        """Return the rows; raises :class:`~alignkit.errors.DataError` if one cannot be parsed."""
        rows = [
            parse_line(row, place) if isinstance(row, bytes) else row
            for row, place in zip(self.rows, self.places, strict=True)
        ]
        return RawRows(rows, self.places.__getitem__, source)


_NOT_JSON_LINES = (
    ("[", "; one line is one object, or the file is one whole JSON list"),
    ("<", "; this looks like HTML or XML"),
    ("version https://git-lfs", "; this is a Git LFS pointer: fetch the file with git lfs pull"),
    ("\0", "; the line begins with NUL bytes, as after an interrupted download"),
)
"""Beginnings of files often mistaken for JSON Lines -> hint for the error message."""


def parse_line(line: bytes, place: str) -> Mapping[str, Any]:
    """Return the object in one line of JSON; raises :class:`~alignkit.errors.SourceError` naming ``place`` (file:line)."""
    text = decode_line(line, place).rstrip("\r\n")
    try:
        value = parse_json(text)
    except InvalidJSON as error:
        hint = next((hint for start, hint in _NOT_JSON_LINES if text.startswith(start)), "")
        raise SourceError(f"{place}: invalid JSON: {error}{hint}") from None
    if not isinstance(value, dict):
        raise SourceError(f"{place}: the line is {describe_value(value)}, expected an object with the row's columns")
    suspect = any(text.count(f'"{key}"') > 1 for key in value)
    if suspect and len(json.loads(text, object_pairs_hook=list)) > len(value):
        raise SourceError(f"{place}: the row has a key twice, so one of its values would be left out")
    return value


def decode_line(line: bytes, place: str) -> str:
    """Return a line of text; raises :class:`~alignkit.errors.SourceError` naming ``place`` if it is not UTF-8."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise SourceError(f"{place}: not UTF-8 (byte 0x{line[error.start]:02x}); save the file as UTF-8") from None


def numbered(rows: Iterable[Unparsed], name: object) -> Iterator[Located]:
    """Yield rows with their number as their location."""
    return ((row, f"{name} row {number}") for number, row in enumerate(rows, 1))


@dataclass(frozen=True)
class Source:
    """Rows that can be read repeatedly.

    ``root`` is the common beginning of every row's location (a file's path, a hub id). The cache stores locations without
    it, so that they stay correct when a file moves. ``digest`` returns a hash of the content.
    """

    name: str
    root: str
    rows: Callable[[], Iterator[Located]]
    digest: Callable[[], str]

    @classmethod
    def of(cls, raw: RawRows) -> Source:
        """Return a source of rows in memory."""

        def rows() -> Iterator[Located]:
            for i in range(len(raw.rows)):
                with running(f"{raw.source}: row {i} cannot be read", DataError):
                    located = (raw.rows[i], raw.where(i))
                yield located

        return cls(raw.source, "", rows, cache(lambda: digest([digest(row) for row in rows()])))

    def head(self, limit: int | None) -> Source:
        """Return a source of the first ``limit`` rows (None: all)."""
        if limit is None:
            return self
        return Source(self.name, self.root, lambda: islice(self.rows(), limit), lambda: f"{limit} of {self.digest()}")

    def chunks(self) -> Iterator[Chunk]:
        """Yield the rows in chunks of at most :data:`ROWS` rows and about :data:`BYTES` bytes."""
        rows: list[Unparsed] = []
        places: list[str] = []
        start = size = 0
        for row, place in self.rows():
            rows.append(row)
            places.append(place)
            size += len(row) if isinstance(row, bytes) else 0
            if len(rows) == ROWS or size >= BYTES:
                yield Chunk(rows, places, start)
                rows, places, start, size = [], [], start + len(rows), 0
        if rows:
            yield Chunk(rows, places, start)

    def read(self) -> RawRows:
        located = list(self.rows())
        return Chunk([row for row, _ in located], [place for _, place in located]).read(self.name)
