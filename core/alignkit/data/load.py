"""Loading of the tokenised training and held-out rows of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from alignkit.config import DataConfig, Reading, RunConfig
from alignkit.contract import Omission, Row, RowKind, registry
from alignkit.data.rows import few
from alignkit.data.sources.chunks import Source
from alignkit.data.sources.open import HELD_OUT_SPLITS, TRAIN_SPLITS, Load, open_source
from alignkit.data.table.cache import cache_key, cached, in_memory
from alignkit.data.table.report import UNREAD, DataReport, SetReport, SourceReport
from alignkit.data.table.split import first_positions, held_out
from alignkit.data.table.tokenised_rows import RowSelection, TextRows, TokenisedRows, TokenTable, joined, unique_ids
from alignkit.data.tokenise.encode import Recipe, encode
from alignkit.data.tokenise.rules import ENDLESS, Room, TokenRules
from alignkit.errors import DataError, NoRowsError, SourceError

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

Positions: TypeAlias = NDArray[np.int64]
"""Sorted positions of rows in their source."""


_WHOLE = 1 << 30
"""``max_length`` of rows that are not truncated."""


class PreparedRows(NamedTuple):
    """Rows of one kind, and the reports of their sources."""

    rows: TokenisedRows
    reports: tuple[SourceReport, ...]


class HeldOut:
    """Held-out rows as rows of any kind, prepared on first use.

    Every kind is made from the same source rows, less those unusable as that kind: at most a share ``max_dropped``.
    """

    def __init__(
        self,
        prepare: Callable[[RowKind, bool], PreparedRows],
        ready: Mapping[RowKind, PreparedRows] | None = None,
        max_dropped: float = 1.0,
    ) -> None:
        self._prepare, self._max_dropped = prepare, max_dropped
        self._ready = {(kind, False): prepared for kind, prepared in (ready or {}).items()}
        self.used: dict[RowKind, bool] = {}
        """Kinds in use, and whether their rows are used without truncation."""

    def unused(self) -> HeldOut:
        """Return the same rows, with :meth:`left_out` empty."""
        other = copy(self)
        other.used = {}
        return other

    def examples(self, kind: RowKind) -> TokenisedRows:
        """Return the tokenised rows of ``kind``; raises :class:`NoRowsError` if the data has none."""
        return self._of(kind).rows

    def rows(self, kind: RowKind) -> Sequence[Row]:
        """Return the same rows as text or messages: ``rows(kind)[i]`` is ``examples(kind)[i]``."""
        return TextRows(self._of(kind).rows)

    def whole(self, kind: RowKind) -> TokenisedRows:
        """Return the rows of ``kind`` without truncation to ``data.max_length`` (also rows that truncation makes unusable)."""
        rows, reports = self._of(kind)
        self.used[kind] = True
        return self._of(kind, whole=True).rows if any(report.truncated for report in reports) else rows

    def left_out(self) -> list[Omission]:
        """Return what is left out of, or truncated in, the rows used so far."""
        used = [(report, whole) for kind, whole in self.used.items() for report in self._ready[kind, False].reports]
        return [found for report, whole in used for found in report.left_out + ([] if whole else report.truncated)]

    def unread(self) -> list[str]:
        """Return a line for each source with columns that none of the kinds prepared so far has used."""
        names: dict[str, set[str]] = {}
        for report in (report for prepared in self._ready.values() for report in prepared.reports):
            names[report.source] = names.get(report.source, set(report.unread)) & set(report.unread)
        return [f"{source}: {UNREAD}: {few(sorted(unread))}" for source, unread in names.items() if unread]

    def _of(self, kind: RowKind, whole: bool = False) -> PreparedRows:
        if (kind, whole) not in self._ready:
            try:
                prepared = self._prepare(kind, whole)
                for report in prepared.reports:
                    if report.read and not len(prepared.rows):
                        report.check(max_dropped=1.0)
            except SourceError:
                raise
            except DataError as error:
                raise NoRowsError(str(error)) from error
            for report in prepared.reports:
                if report.kept:
                    report.check(self._max_dropped)
            self._ready[kind, whole] = prepared
        self.used.setdefault(kind, False)
        return self._ready[kind, whole]


@dataclass
class Data:
    """The data of a run: ``train`` and ``eval`` as rows of the method's kind, ``held_out`` as rows of any kind."""

    kind: RowKind
    train: TokenisedRows
    eval: TokenisedRows
    report: DataReport
    held_out: HeldOut

    @property
    def train_rows(self) -> Sequence[Row]:
        """The training rows as text or messages."""
        return TextRows(self.train)


def load_data(
    config: RunConfig, kind: RowKind, tokenizer: PreTrainedTokenizerBase, load: Load | None = None, room: Room = ENDLESS
) -> Data:
    """Load, check, split and tokenise the data of a run.

    The held-out rows are the first of these that is configured: one fold (``data.folds``); the rows of
    ``data.eval_source``; the split named by ``data.eval_split``; the demo's test split, if the source is the demo; else a
    share ``data.eval_split`` of the rows, by cluster.

    ``load``, a plugin's loader, is called for each source first. Rows longer than ``room`` are truncated.

    Raises:
        DataError: a source or row cannot be used, or more rows are unusable than ``data.max_dropped`` allows.
    """
    import pyarrow.compute as pc

    data = config.data
    loader = Loader(data, tokenizer, load, room)
    sources = loader.training_sources()
    held = loader.held_out_sources()
    tables = loader.tables(sources, kind)
    reports = _checked(tables, data.max_dropped)
    positions = None
    if held is None:
        train, evaluated, positions = _split(data, tables)
    else:
        others = loader.tables(held, kind)
        positions = loader.limited(others)
        _checked(others, data.max_dropped)
        reports += _reports(others, positions)
        train, evaluated = _usable(tables), _usable(others, positions)
    known = pc.is_in(evaluated.column("prompt"), value_set=pc.unique(train.column("prompt")))
    shared = int(pc.sum(known).as_py() or 0)
    report = DataReport(SetReport.of(train), SetReport.of(evaluated), reports, shared)
    found = PreparedRows(evaluated, _reports(tables if held is None else others, positions))
    held_out = HeldOut(lambda other, whole: loader.prepare(held or sources, other, whole, positions), {kind: found})
    return Data(kind, train, evaluated, report, held_out)


def load_held_out(
    data: DataConfig, tokenizer: PreTrainedTokenizerBase, load: Load | None = None, room: Room = ENDLESS
) -> HeldOut:
    """Load every row of the held-out sources, or else of the sources; raises :class:`DataError` as :func:`load_data`."""
    loader = Loader(data.model_copy(update={"folds": None}), tokenizer, load, room)  # folds are of the training rows
    sources = loader.held_out_sources() or loader.training_sources(HELD_OUT_SPLITS, data.eval_limit)
    return HeldOut(lambda kind, whole: loader.prepare(sources, kind, whole), max_dropped=data.max_dropped)


def _reports(tables: Sequence[TokenTable], positions: Sequence[Positions] | None = None) -> tuple[SourceReport, ...]:
    return tuple(map(SourceReport.of, tables, positions or repeat(None)))


def _checked(tables: Sequence[TokenTable], max_dropped: float) -> tuple[SourceReport, ...]:
    reports = _reports(tables)
    for report in reports:
        report.check(max_dropped)
    return reports


def _split(data: DataConfig, tables: Sequence[TokenTable]) -> tuple[TokenisedRows, TokenisedRows, list[Positions]]:
    """Hold out a share (or fold) of the training sources' rows by cluster, all sources together.

    Returns:
        The training rows, the held-out rows, and the positions of the held-out rows in every source.
    """
    names = " and ".join(table.source for table in tables)
    clusters, prompts = (joined([t.table.column(name) for t in tables]) for name in ("cluster", "prompt"))
    fold = None if data.folds is None else (data.fold, data.folds)
    mask = held_out(clusters, prompts, float(data.eval_split), names, fold)
    masks = np.split(mask, np.cumsum([len(table) for table in tables])[:-1])
    # Positions are rows of the source, so the same ones are held out as rows of any kind.
    held = [np.unique(t.numbers("position")[mask]) for t, mask in zip(tables, masks, strict=True)]
    positions = first_positions(held, data.eval_limit)
    train, evaluated = _usable(tables, held, inside=False), _usable(tables, positions)
    if not len(train) or (any(map(len, held)) and not len(evaluated)):
        raise DataError(f"{names}: too few usable rows for a held-out share; set data.eval_source")
    return train, evaluated, positions


def _usable(
    tables: Sequence[TokenTable], positions: Sequence[Positions] | None = None, *, inside: bool = True
) -> TokenisedRows:
    """Return the usable rows of tables; given positions in each source, those at them (``inside``) or the others."""
    kept = [table.kept for table in tables]
    if positions is not None:
        places = [table.numbers("position")[table.kept] for table in tables]
        found = [np.isin(place, at, invert=not inside) for place, at in zip(places, positions, strict=True)]
        kept = [rows[mask] for rows, mask in zip(kept, found, strict=True)]
    return TokenisedRows(tables[0].kind, list(map(RowSelection, tables, kept)))


class OpenSource(NamedTuple):
    """A source with its reading options and its name in mixes."""

    source: Source
    reading: Reading
    label: str


@dataclass(frozen=True)
class Loader:
    """Opens and tokenises the sources of one run."""

    config: DataConfig
    tokenizer: PreTrainedTokenizerBase
    load: Load | None = None
    room: Room = ENDLESS

    def training_sources(self, defaults: Sequence[str] = TRAIN_SPLITS, limit: int | None = None) -> list[OpenSource]:
        data = self.config
        return [
            self._open(part.source, part.split, part, defaults, limit or part.limit, label)
            for part, label in zip(data.parts, data.names if len(data.parts) > 1 else [""], strict=True)
        ]

    def held_out_sources(self) -> list[OpenSource] | None:
        """Open the held-out sources; None if a share or fold of the training sources is held out instead."""
        data = self.config
        named = data.eval_split if isinstance(data.eval_split, str) else None
        if data.folds is not None:
            return None
        if data.eval_source is not None:
            return [self._open(data.eval_source, named, data, HELD_OUT_SPLITS, data.eval_limit)]
        if named is not None:
            return [self._open(part.source, named, part, HELD_OUT_SPLITS, data.eval_limit) for part in data.parts]
        if not data.sources and data.source == "demo":
            return [self._open("demo", None, data, HELD_OUT_SPLITS, data.eval_limit)]
        return None

    def _open(
        self,
        name: str,
        split: str | None,
        reading: Reading,
        defaults: Sequence[str],
        limit: int | None,
        label: str = "",
    ) -> OpenSource:
        source = open_source(name, split, reading, default_splits=defaults, limit=limit, load=self.load)
        return OpenSource(source, reading, label)

    def prepare(
        self,
        sources: Sequence[OpenSource],
        kind: RowKind,
        whole: bool = False,
        positions: Sequence[Positions] | None = None,
    ) -> PreparedRows:
        """Return the usable rows of the sources (None: as :meth:`limited`) at ``positions``; ``whole``: not truncated."""
        whole_rows = {"max_length": _WHOLE, "max_prompt_length": None, "max_completion_length": None}
        unlimited = self.config.model_copy(update=whole_rows)
        tables = (replace(self, config=unlimited, room=ENDLESS) if whole else self).tables(sources, kind)
        positions = self.limited(tables) if positions is None else positions
        return PreparedRows(_usable(tables, positions), _reports(tables, positions))

    def limited(self, tables: Sequence[TokenTable]) -> list[Positions] | None:
        """Return the rows that ``data.eval_limit`` leaves of several held-out sources together; None: all."""
        found, limit = [np.unique(table.numbers("position")) for table in tables], self.config.eval_limit
        return first_positions(found, limit) if limit and len(tables) > 1 else None

    def tables(self, sources: Sequence[OpenSource], kind: RowKind) -> list[TokenTable]:
        """Return the rows of each source as tokenised rows of ``kind``, cached if ``data.cache``; ids are unique over all."""
        return unique_ids([self._table(*source, kind) for source in sources])

    def _table(self, source: Source, reading: Reading, label: str, kind: RowKind) -> TokenTable:
        rules = TokenRules.of(self.config, self.room, kind)
        recipe = Recipe(kind, rules, reading.columns, reading.template, reading.pairs, self.config.train_on)

        def make() -> Iterator[pa.RecordBatch]:
            show = registry.provided("align.reports", "rows") or iter
            return show(encode(source, recipe, self.tokenizer, self.config.workers))

        key = cache_key(source.digest(), self.tokenizer, recipe) if self.config.cache else None
        found = in_memory(make()) if key is None else cached(key, make)
        table = TokenTable(found, kind, source.name, source.root, label, rules.limit)
        _check_length(table, rules)
        return table


def _check_length(table: TokenTable, rules: TokenRules) -> None:
    lengths = table.numbers("prompt_tokens")
    shortest = min(int(lengths[lengths >= 0].min(initial=1 << 62)), rules.max_prompt_length or 1 << 62)
    if shortest < 1 << 62 and shortest + (table.kind != "prompt") > rules.max_length:
        needed = "every prompt" if table.kind == "prompt" else "every prompt with one completion token"
        setting = f"data.max_length {rules.max_length} is shorter than"
        limit = setting if rules.limit in setting else f"{rules.limit} are too few for"
        raise DataError(f"{limit} {needed} of {table.source} (the shortest prompt has {shortest} tokens)")
