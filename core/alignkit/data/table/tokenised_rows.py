"""Tables of tokenised rows and selections from them, read from the memory-mapped file on access."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from alignkit.contract import Example, Row, RowKind
from alignkit.data.rows import UniqueIds
from alignkit.data.tokenise.encode import SEGMENTS, text_row

if TYPE_CHECKING:
    import pyarrow as pa

_BLOCK = 4096


class TokenTable:
    """Every row of one source as tokenised rows of one kind; see :func:`alignkit.data.tokenise.encode.encode`.

    ``root`` is the common beginning of the rows' locations, ``label`` the source's name in a mix of several, else empty,
    ``limit`` what the rows are truncated to.
    """

    def __init__(
        self, table: pa.Table, kind: RowKind, source: str, root: str, label: str = "", limit: str = "data.max_length"
    ) -> None:
        self.table, self.kind, self.source, self.root, self.label = table, kind, source, root, label
        self.limit = limit

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def numbers(self, name: str) -> NDArray[np.int64]:
        """Return a column of integers, ``[rows]``."""
        return np.asarray(self.table.column(name).to_numpy(), np.int64)

    @cached_property
    def kept(self) -> NDArray[np.int64]:
        """Indices of the usable rows."""
        import pyarrow.compute as pc

        return np.flatnonzero(pc.is_null(self.table.column("unusable")).to_numpy())

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Token counts of prompt and completions, ``[rows, SEGMENTS[kind]]``; 0 for unusable rows."""
        flat = self.table.column("lengths").combine_chunks().flatten().to_numpy()
        return np.asarray(flat, np.int64).reshape(-1, SEGMENTS[self.kind])

    def place(self, row: int) -> str:
        """Return the location of a row (file:line)."""
        batch, at = self._at(row)
        return f"{self.root}{batch.cell('place', at)}"

    def fields(self, row: int) -> Mapping[str, Any]:
        """Return a row's other columns."""
        batch, at = self._at(row)
        return dict(json.loads(batch.cell("fields", at) or "{}"))

    def tokens(self, row: int) -> list[int]:
        """Return the token ids of a row, prompt and completions concatenated."""
        batch, at = self._at(row)
        return batch.tokens(at)

    def row(self, row: int) -> Row:
        """Return a row as text or messages."""
        batch, at = self._at(row)
        prompt, answers, tools = text_row(batch.cell("text", at))
        return Row(
            position=batch.cell("position", at),
            id=batch.cell("id", at),
            prompt=prompt,
            answers=answers,
            cluster=batch.cell("cluster", at),
            category=batch.cell("category", at),
            fields=self.fields(row),
            unusable=batch.cell("unusable", at),
            place=self.place(row),
            tools=tools,
        )

    def example(self, row: int, index: int) -> Example:
        """Return a row as token ids; ``index`` becomes :attr:`Example.index`."""
        batch, at = self._at(row)
        tokens = batch.tokens(at)
        prompt, *completions = (tokens[a:b] for a, b in pairwise(accumulate(self.lengths[row].tolist(), initial=0)))
        scored: list[bool] | None = batch.cell("scored", at)
        fields = self.fields(row)
        return Example(
            id=batch.cell("id", at),
            prompt=prompt,
            completions=tuple(filter(None, completions)),
            index=index,
            cluster=batch.cell("cluster", at),
            category=batch.cell("category", at) or self.label,
            fields={**fields, "source": self.label} if self.label else fields,
            masks=None if scored is None else (scored,),
        )

    def _at(self, row: int) -> tuple[_Batch, int]:
        """Return the record batch that contains a row, and the row's index in it."""
        number = bisect_right(self._begins, row) - 1
        return self._batches[number], row - self._begins[number]

    @cached_property
    def _batches(self) -> list[_Batch]:
        return [_Batch(batch) for batch in self.table.to_batches()]

    @cached_property
    def _begins(self) -> list[int]:
        return list(accumulate((batch.rows for batch in self._batches), initial=0))[:-1]


class _Batch:
    """One record batch with its columns by name: reading a cell from the whole table takes ten times as long."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.rows: int = batch.num_rows
        self._columns = dict(zip(batch.schema.names, batch.columns, strict=True))

    def cell(self, name: str, at: int) -> Any:
        return self._columns[name][at].as_py()

    def tokens(self, at: int) -> list[int]:
        offsets, values = self._tokens
        return list(values[offsets[at] : offsets[at + 1]].tolist())

    @cached_property
    def _tokens(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        column = self._columns["tokens"]
        return column.offsets.to_numpy(), column.values.to_numpy()


@dataclass(frozen=True)
class RowSelection:
    """Row indices into one table, in any order."""

    table: TokenTable
    rows: NDArray[np.int64]


class TokenisedRows(Sequence[Example]):
    """A sequence of :class:`Example`, selected from one or several tables and built on access."""

    def __init__(self, kind: RowKind, parts: Sequence[RowSelection]) -> None:
        self.kind: RowKind = kind
        self.parts = parts
        self._ends = np.cumsum([len(part.rows) for part in parts]).tolist()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> TokenisedRows: ...
    def __getitem__(self, index: int | slice) -> Example | TokenisedRows:
        """Return one row (its ``index`` is its position in this sequence), or the rows of a slice."""
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        position = range(len(self))[index]
        table, row = self.find(position)
        return table.example(row, position)

    def find(self, position: int) -> tuple[TokenTable, int]:
        """Return the table that contains a row, and the row's index in it."""
        part = int(np.searchsorted(self._ends, position, side="right"))
        chosen = self.parts[part]
        return chosen.table, int(chosen.rows[position - (self._ends[part - 1] if part else 0)])

    def row(self, position: int) -> Row:
        """Return a row as text or messages."""
        table, row = self.find(position)
        return table.row(row)

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> TokenisedRows:
        """Return the rows at ``indices``, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        which = np.searchsorted(self._ends, chosen, side="right")
        starts = [0, *self._ends[:-1]]
        borders = np.flatnonzero(np.diff(which)) + 1
        runs = zip(np.split(which, borders), np.split(chosen, borders), strict=True)
        found = [(self.parts[part[0]], rows - starts[part[0]]) for part, rows in runs if len(rows)]
        return TokenisedRows(self.kind, [RowSelection(part.table, part.rows[rows]) for part, rows in found])

    def segment_lengths(self) -> NDArray[np.int64]:
        """Return the token counts of prompt and completions, ``[rows, SEGMENTS[kind]]``."""
        found = [part.table.lengths[part.rows] for part in self.parts]
        return np.concatenate(found) if found else np.zeros((0, SEGMENTS[self.kind]), dtype=np.int64)

    def lengths(self) -> NDArray[np.int64]:
        """Return the token count of every row, the prompt counted once, ``[rows]``."""
        return np.asarray(self.segment_lengths().sum(1), np.int64)

    def sources(self, labels: Sequence[str]) -> NDArray[np.int64]:
        """Return for every row the index of its source in ``labels``, ``[rows]``."""
        numbers = [labels.index(part.table.label) if part.table.label else 0 for part in self.parts]
        return np.repeat(np.array(numbers, dtype=np.int64), [len(part.rows) for part in self.parts])

    def column(self, name: str) -> pa.ChunkedArray:
        """Return a text column: ``id``, ``cluster``, ``category``, or ``prompt`` (its digest)."""
        return joined([part.table.table.column(name).take(part.rows) for part in self.parts])

    @property
    def clusters(self) -> int:
        import pyarrow.compute as pc

        return int(pc.count_distinct(self.column("cluster")).as_py()) if len(self) else 0

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of row kind, row ids, token ids, their boundaries, scored masks and other columns."""
        content = hashlib.sha256(self.kind.encode())
        for part in self.parts:
            for begin in range(0, len(part.rows), _BLOCK):
                rows = part.table.table.select(["id", "content"]).take(part.rows[begin : begin + _BLOCK])
                for name, digest in zip(*(column.to_pylist() for column in rows.columns), strict=True):
                    content.update(name.encode() + b"\0" + digest)
        return content.hexdigest()

    def digest(self, *more: str) -> str:
        """Return the SHA-256 of the rows' tokens, texts and other columns, and of the table's columns named in ``more``."""
        content = hashlib.sha256(self.fingerprint.encode())
        for part in self.parts:
            content.update(part.table.label.encode())
            for begin in range(0, len(part.rows), _BLOCK):
                columns = part.table.table.select(["cluster", "category", "fields", "text", *more])
                content.update(repr(columns.take(part.rows[begin : begin + _BLOCK]).to_pydict()).encode())
        return content.hexdigest()


def unique_ids(tables: list[TokenTable]) -> list[TokenTable]:
    """Return the tables with ids numbered that an earlier one also has: within each they are unique already."""
    import pyarrow as pa

    names = UniqueIds()
    for one in tables if len(tables) > 1 else ():
        ids = pa.array(names.unique(one.table.column("id").to_pylist()), pa.large_string())
        one.table = one.table.set_column(one.table.schema.get_field_index("id"), "id", ids)
    return tables


def joined(columns: Sequence[pa.ChunkedArray]) -> pa.ChunkedArray:
    import pyarrow as pa

    chunks = [chunk for column in columns for chunk in column.chunks]
    return pa.chunked_array(chunks, pa.large_string())


class TextRows(Sequence[Row]):
    """The same rows as text or messages: ``TextRows(rows)[i]`` is ``rows[i]``."""

    def __init__(self, rows: TokenisedRows) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self._rows.row(i) for i in range(*index.indices(len(self)))]
        return self._rows.row(range(len(self))[index])
