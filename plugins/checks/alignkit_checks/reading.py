"""Fault-tolerant reading: broken rows are collected with their locations, the others are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from alignkit.config import Reading
from alignkit.contract import RawRows, Row, RowKind
from alignkit.contract.guard import named
from alignkit.data.rows import UniqueIds
from alignkit.data.shapes import Converter, ReadRows, Wanted, converter
from alignkit.data.sources.chunks import Source, parse_line
from alignkit.data.sources.open import TRAIN_SPLITS, Load, open_source
from alignkit.errors import DataError, SourceError


@dataclass(frozen=True)
class Broken:
    """A row that cannot be read: its location, the reason, and its content."""

    place: str
    why: str
    content: Any = None


@dataclass(frozen=True)
class Readable:
    """The readable rows of a source, converted to one shape, and the broken ones."""

    raw: RawRows
    rows: list[Row]
    broken: list[Broken]
    read: int
    """The number of rows in the source, broken ones included; a row with several rejected answers counts once."""
    kind: RowKind
    convert: Converter

    def restored(self, position: int) -> Mapping[str, Any]:
        """Return a row of ``raw`` as it can be written to a file and read again."""
        return self.convert.restored(self.raw.rows[position])


def read_source(
    source: str,
    split: str | None,
    reading: Reading,
    *,
    kind: RowKind | None = None,
    chat: bool = True,
    all_turns: bool = False,
    load: Load | None = None,
    default_splits: Sequence[str] = TRAIN_SPLITS,
) -> Readable:
    """Read a source as rows of ``kind``; None: as preference rows, or if it has no pairs as completions, or as prompts.

    ``chat`` and ``all_turns`` are as for :class:`~alignkit.data.shapes.Wanted`, ``load`` and ``default_splits``
    as for :func:`~alignkit.data.sources.open.open_source`.

    Raises:
        DataError: the source as a whole cannot be read (missing, no rows, no known columns).
    """
    opened = open_source(source, split, reading, default_splits=default_splits, limit=reading.limit, load=load)
    raw, broken = _parsed(opened)
    _require_rows(raw, broken)
    read = len(raw.rows) + len(broken)
    kinds: tuple[RowKind, ...] = ("preference", "completion", "prompt") if kind is None else (kind,)
    wanted = Wanted(
        reading.columns, reading.template, reading.pairs, ranked=kind == "ranked", chat=chat, all_turns=all_turns
    )
    convert = converter(_only(raw, 0), wanted)
    with named(f"{convert.name} failed on {source}", DataError):
        raw, ungrouped = _grouped(raw, convert)
        raw, odd = _each(raw, lambda part: convert.expanded(part)[0])
        broken = [*broken, *ungrouped, *odd]
        _require_rows(raw, broken)
        found, read_rows = _reader(raw, kinds, convert)
        rows: list[Row] = []

        def converted(part: RawRows) -> RawRows:
            rows[:] = read_rows(part)
            return part

        raw, odd = _each(raw, converted)
        broken += [replace(row, content=convert.restored(row.content)) for row in odd]
        _require_rows(raw, broken)
        rows = read_rows(raw) if odd else rows
    return Readable(raw, with_unique_ids(rows), broken, read, found, convert)


def with_unique_ids(rows: Sequence[Row]) -> list[Row]:
    """Return the rows, repeated ids numbered."""
    ids = UniqueIds().unique(row.id for row in rows)
    return [row if row.id == unique else replace(row, id=unique) for row, unique in zip(rows, ids, strict=True)]


def _reader(raw: RawRows, kinds: Sequence[RowKind], convert: Converter) -> tuple[RowKind, ReadRows]:
    """Return the first of ``kinds`` that the rows can have, and what converts them to it."""
    problem: DataError | None = None
    for kind in kinds:
        try:
            return kind, convert.reader(raw, kind)
        except DataError as error:
            problem = problem or error
    raise problem or DataError(f"{raw.source} has no rows")


def _require_rows(raw: RawRows, broken: Sequence[Broken]) -> None:
    if not raw.rows:
        raise DataError(
            f"{raw.source} has no readable rows" + (f" ({broken[0].place}: {broken[0].why})" if broken else "")
        )


def _grouped(raw: RawRows, convert: Converter) -> tuple[RawRows, list[Broken]]:
    """Return answers that are rows of their own as a row per prompt, if ``data.pairs`` asks for it, and the broken ones."""
    if convert.grouped(source := Source.of(raw)) is source:
        return raw, []

    def checked(part: RawRows) -> RawRows:
        convert.grouped(Source.of(part)).read()
        return part

    raw, broken = _each(raw, checked)
    return convert.grouped(Source.of(raw)).read(), broken


def _parsed(source: Source) -> tuple[RawRows, list[Broken]]:
    rows: list[Mapping[str, Any]] = []
    places: list[str] = []
    broken: list[Broken] = []
    for row, place in source.rows():
        try:
            rows.append(parse_line(row, place) if isinstance(row, bytes) else row)
            places.append(place)
        except DataError as error:
            broken.append(Broken(place, _why(error, place), row.decode(errors="backslashreplace").rstrip("\r\n")))  # type: ignore[union-attr]
    return RawRows(rows, places.__getitem__, source.name), broken


def _each(raw: RawRows, change: Callable[[RawRows], RawRows]) -> tuple[RawRows, list[Broken]]:
    """Apply ``change`` to all rows at once, or if it raises, to each row alone to find the broken ones."""
    try:
        return change(raw), []
    except SourceError:
        raise
    except DataError:
        pass
    rows: list[Mapping[str, Any]] = []
    places: list[str] = []
    broken: list[Broken] = []
    for position in range(len(raw.rows)):
        place = raw.where(position)
        try:
            found = change(_only(raw, position)).rows
        except SourceError:
            raise
        except DataError as error:
            broken.append(Broken(place, _why(error, place), raw.rows[position]))
            continue
        rows += found
        places += [place] * len(found)
    return RawRows(rows, places.__getitem__, raw.source), broken


def _only(raw: RawRows, *positions: int) -> RawRows:
    places = [raw.where(position) for position in positions]
    return RawRows([raw.rows[position] for position in positions], places.__getitem__, raw.source)


def _why(error: DataError, place: str) -> str:
    return str(error).removeprefix(f"{place}: ")
