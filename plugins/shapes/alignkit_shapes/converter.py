"""Conversion of rows by their columns, as those are or as ``data.columns`` and ``data.template`` make them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from alignkit.contract import RawRows, RowKind
from alignkit.data.shapes import Converter, ReadRows, Wanted
from alignkit.data.sources.chunks import Source
from alignkit.errors import DataError, SourceError

from alignkit_shapes.normalise import Normaliser
from alignkit_shapes.pairs import Pairing, as_listed, expand_alternatives, grouped, is_rated_answer, left_over
from alignkit_shapes.templates import fill, variables


def by_columns(first: RawRows, wanted: Wanted) -> ByColumns:
    """Return the converter of rows with known columns; ``first`` decides whether rows are answers to be paired."""
    if wanted.pairs is None:
        return ByColumns(wanted, paired=False)
    try:
        rows = fill(first, wanted.template).rows
    except SourceError:
        raise
    except DataError:  # raised again when the row is read
        rows = []
    return ByColumns(wanted, paired=any(is_rated_answer(row, wanted.columns) for row in rows))


class ByColumns(Converter):
    """Converts rows with known columns; ``paired``: each row is one rated answer, and those to one prompt are combined."""

    def __init__(self, wanted: Wanted, *, paired: bool) -> None:
        self.wanted, self.paired = wanted, paired

    @property
    def used(self) -> Collection[str]:
        return variables(self.wanted.template)

    def grouped(self, source: Source) -> Source:
        return grouped(source, self.wanted.columns) if self.paired else source

    def expanded(self, raw: RawRows, start: int = 0) -> tuple[RawRows, Sequence[int]]:
        wanted = self.wanted
        pairs: Pairing | None = "ranked" if wanted.ranked else wanted.pairs
        return expand_alternatives(fill(raw, wanted.template), wanted.columns, pairs, start)

    def reader(self, first: RawRows, kind: RowKind) -> ReadRows:
        wanted = self.wanted
        columns = left_over(wanted.columns, paired=self.paired)
        return Normaliser(first, kind, columns, chat=wanted.chat, all_turns=wanted.all_turns).rows

    def restored(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        return as_listed(row, self.wanted.columns)
