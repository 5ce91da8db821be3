"""Loading of the tokenised training and held-out rows of a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from alignkit.config import DataConfig, Reading
from alignkit.contract.rows import Row
from alignkit.contract.types import RowKind
from alignkit.data.sources.chunks import Source
from alignkit.data.sources.open import HELD_OUT_SPLITS, TRAIN_SPLITS, Load, open_source
from alignkit.data.table.cache import cache_key, cached, in_memory
from alignkit.data.table.report import DataReport, SetReport, SourceReport
from alignkit.data.table.split import held_out
from alignkit.data.table.tokenised_rows import RowSelection, TextRows, TokenisedRows, TokenTable, joined
from alignkit.data.tokenise.encode import Recipe, encode
from alignkit.data.tokenise.progress import with_progress
from alignkit.data.tokenise.rules import TokenRules
from alignkit.errors import DataError, NoRowsError, SourceError

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class HasData(Protocol):
    """A configuration with a data section."""

    @property
    def data(self) -> DataConfig:
        """The data section."""
        ...


class PreparedRows(NamedTuple):
    """Held-out rows of one kind, and the reports of their sources."""

    rows: TokenisedRows
    reports: tuple[SourceReport, ...]


class HeldOut:
    """Held-out rows as rows of any kind, prepared on first use.

    Every kind is made from the same source rows, less those unusable as that kind (logged).
    """

    def __init__(
        self, prepare: Callable[[RowKind], PreparedRows], ready: Mapping[RowKind, PreparedRows] | None = None
    ) -> None:
        self._prepare = prepare
        self._ready = dict(ready or {})

    def examples(self, kind: RowKind) -> TokenisedRows:
        """Return the tokenised rows of ``kind``; raises :class:`NoRowsError` if the data has none."""
        return self._of(kind).rows

    def rows(self, kind: RowKind) -> Sequence[Row]:
        """Return the same rows as text or messages: ``rows(kind)[i]`` is ``examples(kind)[i]``."""
        return TextRows(self._of(kind).rows)

    def _of(self, kind: RowKind) -> PreparedRows:
        if kind not in self._ready:
            try:
                prepared = self._prepare(kind)
                for report in prepared.reports:
                    report.check(max_dropped=1.0)
            except SourceError:
                raise
            except DataError as error:
                raise NoRowsError(str(error)) from error
            for line in (line for report in prepared.reports for line in report.lines()):
                logger.info("held out: %s", line)
            self._ready[kind] = prepared
        return self._ready[kind]


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


def load_data(config: HasData, kind: RowKind, tokenizer: PreTrainedTokenizerBase, load: Load | None = None) -> Data:
    """Load, check, split and tokenise the data of a run.

    The held-out rows are the first of these that is configured: one fold (``data.folds``); the rows of
    ``data.eval_source``; the split named by ``data.eval_split``; the demo's test split, if the source is the demo; else a
    share ``data.eval_split`` of the rows, by cluster.

    Args:
        config: a run's configuration (only ``data`` is read).
        kind: the method's row kind.
        tokenizer: the model's tokenizer, with the chat template for conversations.
        load: a plugin's loader, called for each source first.

    Raises:
        DataError: a source or row cannot be used, or more rows are unusable than ``data.max_dropped`` allows.
    """
    import pyarrow.compute as pc

    data = config.data
    loader = Loader(data, tokenizer, load)
    sources = loader.training_sources()
    held = loader.held_out_sources()
    tables = [loader.table(source, kind) for source in sources]
    reports = tuple(SourceReport.of(table) for table in tables)
    for report in reports:
        report.check(data.max_dropped)
    if held is None:
        return _split_off(loader, sources, tables, reports)
    evaluated = _all_of(held, kind, loader)
    for report in evaluated.reports:
        report.check(data.max_dropped)
    train = TokenisedRows(kind, [RowSelection(table, table.kept) for table in tables])
    known = pc.is_in(evaluated.rows.column("prompt"), value_set=pc.unique(train.column("prompt")))
    return Data(
        kind=kind,
        train=train,
        eval=evaluated.rows,
        report=DataReport(
            train=SetReport.of(train),
            eval=SetReport.of(evaluated.rows),
            sources=(*reports, *evaluated.reports),
            shared_prompts=int(pc.sum(known).as_py() or 0),
        ),
        held_out=HeldOut(lambda other: _all_of(held, other, loader), {kind: evaluated}),
    )


def load_held_out(data: DataConfig, tokenizer: PreTrainedTokenizerBase, load: Load | None = None) -> HeldOut:
    """Load every row of the held-out sources, or else of the sources; raises :class:`DataError` as :func:`load_data`."""
    loader = Loader(data, tokenizer, load)
    sources = loader.held_out_sources() or loader.training_sources(HELD_OUT_SPLITS, data.eval_limit)
    return HeldOut(lambda kind: _all_of(sources, kind, loader))


def _all_of(sources: Sequence[OpenSource], kind: RowKind, loader: Loader) -> PreparedRows:
    """Return every usable row of the sources."""
    tables = [loader.table(source, kind) for source in sources]
    rows = TokenisedRows(kind, [RowSelection(table, table.kept) for table in tables])
    return PreparedRows(rows, tuple(SourceReport.of(table) for table in tables))


def _split_off(
    loader: Loader, sources: Sequence[OpenSource], tables: Sequence[TokenTable], reports: tuple[SourceReport, ...]
) -> Data:
    """Hold out a share (or fold) of the training sources' rows by cluster, all sources together."""
    data, kind = loader.config, tables[0].kind
    names = " and ".join(table.source for table in tables)
    clusters, prompts = (joined([t.table.column(name) for t in tables]) for name in ("cluster", "prompt"))
    fold = None if data.folds is None else (data.fold, data.folds)
    share = float(data.eval_split)
    masks = np.split(held_out(clusters, prompts, share, names, fold), np.cumsum([len(table) for table in tables])[:-1])
    # Positions are rows of the source, so the same ones are held out as rows of any kind.
    held = [np.unique(t.numbers("position")[mask]) for t, mask in zip(tables, masks, strict=True)]
    evaluated = _first(held, data.eval_limit)
    train = TokenisedRows(kind, [_rows_at(t, h, inside=False) for t, h in zip(tables, held, strict=True)])
    evaluation = TokenisedRows(kind, [_rows_at(t, e, inside=True) for t, e in zip(tables, evaluated, strict=True)])
    if not len(train) or (any(map(len, held)) and not len(evaluation)):
        raise DataError(f"{names}: too few usable rows for a held-out share; set data.eval_source")

    def prepare_held_out(other: RowKind) -> PreparedRows:
        others = [loader.table(source, other) for source in sources]
        rows = TokenisedRows(other, [_rows_at(t, e, inside=True) for t, e in zip(others, evaluated, strict=True)])
        return PreparedRows(rows, tuple(SourceReport.of(table) for table in others))

    return Data(
        kind=kind,
        train=train,
        eval=evaluation,
        report=DataReport(SetReport.of(train), SetReport.of(evaluation), reports),
        held_out=HeldOut(prepare_held_out, {kind: PreparedRows(evaluation, reports)}),
    )


def _first(positions: Sequence[NDArray[np.int64]], limit: int | None) -> list[NDArray[np.int64]]:
    """Return the first ``limit`` positions over all sources, taken in turn."""
    if limit is None or sum(map(len, positions)) <= limit:
        return list(positions)
    order = sorted((at, source) for source, found in enumerate(positions) for at in range(min(len(found), limit)))
    taken = [sum(source == k for _, source in order[:limit]) for k in range(len(positions))]
    return [found[:count] for found, count in zip(positions, taken, strict=True)]


def _rows_at(table: TokenTable, positions: NDArray[np.int64], *, inside: bool) -> RowSelection:
    """Return the usable rows of a table whose position in the source is among ``positions`` (``inside``), or is not."""
    found = np.isin(table.numbers("position")[table.kept], positions, invert=not inside)
    return RowSelection(table, table.kept[found])


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

    def training_sources(self, defaults: Sequence[str] = TRAIN_SPLITS, limit: int | None = None) -> list[OpenSource]:
        """Open the training sources."""
        data = self.config
        labels = data.names if len(data.parts) > 1 else [""]
        return [
            self._open(part.source, part.split, part, defaults, limit or part.limit, label)
            for part, label in zip(data.parts, labels, strict=True)
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

    def table(self, opened: OpenSource, kind: RowKind) -> TokenTable:
        """Return the rows of a source as tokenised rows of ``kind``, cached if ``data.cache``."""
        source, reading, label = opened
        recipe = Recipe(
            kind,
            TokenRules(self.config.max_length, self.config.append_eos),
            reading.columns,
            reading.template,
            reading.pairs,
            self.config.train_on,
        )

        def make() -> Iterator[pa.RecordBatch]:
            return with_progress(encode(source, recipe, self.tokenizer, self.config.workers))

        if self.config.cache:
            found = cached(cache_key(source.digest(), self.tokenizer, recipe), make)
        else:
            found = in_memory(make())
        table = TokenTable(found, kind, source.name, source.root, label)
        self._check_length(table)
        return table

    def _check_length(self, table: TokenTable) -> None:
        lengths = table.numbers("prompt_tokens")
        shortest = int(lengths[lengths >= 0].min(initial=1 << 62))
        if shortest < 1 << 62 and shortest + (table.kind != "prompt") > self.config.max_length:
            needed = "every prompt" if table.kind == "prompt" else "every prompt with one completion token"
            raise DataError(
                f"data.max_length {self.config.max_length} is shorter than {needed} of {table.source} "
                f"(the shortest prompt has {shortest} tokens)"
            )
