"""Tokenisation of a source in chunks, in worker processes for larger sources.

The result keeps every row, unusable ones with the reason, and the text of every row, so that rewards, samples and checks need
not read the source again.
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice, pairwise
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Any, Literal

from alignkit.contract import RawRows, Row, RowKind, Text
from alignkit.contract.guard import named
from alignkit.data.rows import UniqueIds, as_json, text_digest
from alignkit.data.shapes import MOST, Converter, Wanted, converter
from alignkit.data.sources.chunks import Chunk, Source
from alignkit.data.tokenise.render import render_all, unread
from alignkit.data.tokenise.rules import Encoder, TokenRow, TokenRules
from alignkit.data.tokenise.workers import cores, in_order
from alignkit.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

SEGMENTS: Mapping[RowKind, int] = {"preference": 3, "completion": 2, "unpaired": 2, "prompt": 1, "ranked": 1 + MOST}
"""Row kind -> number of token sequences in a row: the prompt and its completions, of a ranking at most."""

FACTS = tuple(name for name in TokenRow._fields if name not in ("parts", "scored", "unusable"))
"""Counts kept for every row."""

_IN_PROCESS = 8
"""Chunks below which starting worker processes costs more time than it saves."""


@dataclass(frozen=True)
class Recipe:
    """The settings that, with source and tokenizer, determine a table's content."""

    kind: RowKind
    rules: TokenRules
    columns: Mapping[str, str] = field(default_factory=dict)
    template: Mapping[str, str] = field(default_factory=dict)
    pairs: Literal["best_worst", "all"] | None = None
    train_on: str = "last"

    @property
    def all_turns(self) -> bool:
        """Whether completions are all assistant turns."""
        return self.train_on == "all" and self.kind == "completion"

    def wanted(self, *, chat: bool) -> Wanted:
        """Return what rows are converted to, for a tokenizer with (``chat``) or without a chat template."""
        return Wanted(self.columns, self.template, self.pairs, self.kind == "ranked", chat, self.all_turns)


def encode(
    source: Source, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, workers: int | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a source, converted to the recipe's kind and tokenised.

    The result does not depend on the number of worker processes; None: one per core if there are enough rows.

    Raises:
        DataError: a row cannot be read, or the chat template rejects a conversation; the message names file and line.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    chunks = source.chunks()
    first = next(chunks, None)
    if first is None:
        return
    row = Chunk(first.rows[:1], first.places[:1]).read(source.name)
    convert = converter(row, recipe.wanted(chat=bool(tokenizer.chat_template)))
    own = convert.grouped(source)
    chunks = chain([first], chunks) if own is source else own.chunks()
    head = list(islice(chunks, _IN_PROCESS))
    if not head:
        return
    work = _Work(own, recipe, tokenizer, convert, head[0])
    processes = workers or cores() if len(head) == _IN_PROCESS else 1
    pieces = chain(head, chunks)
    batches = in_order(work, pieces, processes) if processes > 1 else map(work, pieces)
    names = UniqueIds()
    count = 0  # rows before the batch: positions are counted from the beginning of the source
    for batch in batches:
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        columns["id"] = _strings(names.unique(columns["id"].to_pylist()))
        columns["position"] = pc.add(columns["position"], count)
        yield pa.record_batch(columns)
        count = columns["position"][-1].as_py() + 1


def _first_rows(source: Source, convert: Converter, chunk: Chunk) -> RawRows:
    """Return the readable first rows, which decide the columns (an unreadable row raises when its chunk is encoded)."""
    try:
        return convert.expanded(chunk.read(source.name))[0]
    except DataError:
        return convert.expanded(source.head(1).read())[0]


class _Work:
    """The work of one process: turn a chunk into a record batch."""

    def __init__(
        self, source: Source, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, convert: Converter, first: Chunk
    ) -> None:
        self.name, self.root, self.recipe, self.tokenizer = source.name, source.root, recipe, tokenizer
        self.encoder = Encoder(tokenizer, recipe.rules)
        self.convert = convert
        with named(f"{convert.name} failed on {self.name}", DataError):
            self.rows_of = convert.reader(_first_rows(source, convert, first), recipe.kind)

    def __call__(self, chunk: Chunk) -> pa.RecordBatch:
        # A chunk makes hundreds of thousands of small objects but no cycles; garbage collection would cost 10 % of the time.
        collecting = gc.isenabled()
        gc.disable()
        try:
            return self._batch(chunk)
        finally:
            if collecting:
                gc.enable()

    def _batch(self, chunk: Chunk) -> pa.RecordBatch:
        recipe = self.recipe
        raw = chunk.read(self.name)
        with named(f"{self.convert.name} failed on {self.name}", DataError):
            expanded, origin = self.convert.expanded(raw, chunk.start)
            rows = self.rows_of(expanded)
        if origin != range(len(raw.rows)):
            rows = [replace(row, position=origin[row.position]) for row in rows]
        usable = [row for row in rows if row.unusable is None]
        encoded = iter(self.encoder.encode(render_all(usable, self.tokenizer, all_turns=recipe.all_turns)))
        made = [TokenRow(unusable=row.unusable) if row.unusable is not None else next(encoded) for row in rows]
        return _record_batch(rows, made, self._unread(rows), SEGMENTS[recipe.kind], self.root)

    def _unread(self, rows: Sequence[Row]) -> list[str | None]:
        """Return for every row the columns (and keys of messages) of no effect that no earlier row of the chunk has."""
        known, found = set(self.convert.used), list[str | None]()
        for row in rows:
            new = unread(row, self.recipe.kind, self.tokenizer.chat_template) - known
            known |= new
            found.append(json.dumps(sorted(new)) if new else None)
        return found


def _record_batch(
    rows: Sequence[Row], made: Sequence[TokenRow], unread: Sequence[str | None], parts: int, root: str
) -> pa.RecordBatch:
    import numpy as np
    import pyarrow as pa

    sizes = [[*map(len, row.parts), *[0] * (parts - len(row.parts))] for row in made]
    lengths = np.array(sizes, dtype=np.int32).reshape(-1, parts)
    offsets = np.concatenate([[0], np.cumsum(lengths.sum(1))])
    tokens = np.fromiter(
        chain.from_iterable(chain.from_iterable(row.parts) for row in made), np.int32, int(offsets[-1])
    )
    fields = [json.dumps(row.fields, default=str) if row.fields else None for row in rows]
    columns: dict[str, Any] = {
        "position": pa.array([row.position for row in rows], pa.int64()),
        "place": _strings([row.place.removeprefix(root) for row in rows]),
        **{name: _strings([getattr(row, name) for row in rows]) for name in ("id", "cluster", "category")},
        "fields": _strings(fields),
        "unread": _strings(unread),
        "prompt": _strings([text_digest(*([row.prompt] if row.prompt else row.answers)) for row in rows]),
        "text": _strings([_text(row) for row in rows]),
        "unusable": _strings([row.unusable for row in made]),
        "lengths": pa.FixedSizeListArray.from_arrays(pa.array(lengths.ravel()), parts),
        "tokens": pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(tokens)),
        "scored": pa.array([row.scored for row in made], pa.list_(pa.bool_())),
        "content": pa.array(
            [_content(tokens[a:b], row, f) for (a, b), row, f in zip(pairwise(offsets), made, fields, strict=True)]
        ),
        **{name: pa.array([getattr(row, name) for row in made], pa.int32()) for name in FACTS},
    }
    return pa.record_batch(columns)


def _content(tokens: NDArray[np.int32], row: TokenRow, fields: str | None) -> bytes:
    """Return a 16-byte hash of a row's tokens, their boundaries, the scored mask and the other columns, which rewards read."""
    borders = repr((*map(len, row.parts), row.scored, *([fields] if fields else []))).encode()
    return hashlib.blake2b(tokens.tobytes() + borders, digest_size=16).digest()


def _strings(values: Sequence[str | None]) -> pa.Array:
    import pyarrow as pa

    return pa.array(values, pa.large_string())


def _text(row: Row) -> str:
    plain = None if row.tools else as_json(row.answers)
    if plain is not None and isinstance(row.prompt, str):
        return f"[{encode_basestring(row.prompt)}, {plain}]"
    content = [row.prompt, row.answers, *([row.tools] if row.tools else [])]
    return json.dumps(content, ensure_ascii=False, default=str)


def text_row(text: str) -> tuple[Text, tuple[Text, ...], tuple[Mapping[str, Any], ...] | None]:
    """Return prompt, answers and tools from the table's ``text`` column."""
    prompt, answers, *tools = json.loads(text)
    prompt, *answers = (text if isinstance(text, str) else tuple(text) for text in (prompt, *answers))
    return prompt, tuple(answers), tuple(tools[0]) if tools else None
