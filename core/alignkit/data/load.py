"""From the data section of a configuration to tokenised training and held-out rows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from alignkit.config import DataConfig
from alignkit.data.alternatives import one_by_one
from alignkit.data.cache import cache_key, cached
from alignkit.data.report import DataReport, Dropped, SetReport, SourceReport
from alignkit.data.rows import RawRows, Row, digest
from alignkit.data.shapes import normalise
from alignkit.data.sources import HELD_OUT_SPLITS, TRAIN_SPLITS, load_rows
from alignkit.data.split import held_out_positions
from alignkit.data.store import About, TokenisedRows
from alignkit.data.tokens import Tokenised, TokenRules, tokenise
from alignkit.errors import DataError, NoRowsError
from alignkit.types import RowKind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Load: TypeAlias = Callable[[str, str | None], RawRows | None]
"""Asked first for the rows of ``(source, split)``; None means the source is for alignkit to load."""


class HasData(Protocol):
    """A configuration with a data section."""

    @property
    def data(self) -> DataConfig:
        """The data section."""
        ...


class Prepared(NamedTuple):
    """Rows of one source made ready: tokenised, the same rows before that, and what became of the others."""

    tokenised: TokenisedRows
    rows: list[Row]
    report: SourceReport


class HeldOut:
    """Held-out rows as rows of any kind, made ready when first asked for.

    The same source rows whatever the kind, less those unusable as that kind (logged).
    """

    def __init__(self, prepare: Callable[[RowKind], Prepared], ready: Mapping[RowKind, Prepared] | None = None) -> None:
        self._prepare = prepare
        self._ready = dict(ready or {})

    def examples(self, kind: RowKind) -> TokenisedRows:
        """Return the rows of ``kind``, tokenised; raises :class:`NoRowsError` where the data has none."""
        return self._of(kind).tokenised

    def rows(self, kind: RowKind) -> Sequence[Row]:
        """Return the same rows as text or messages: ``rows(kind)[i]`` is ``examples(kind)[i]``."""
        return self._of(kind).rows

    def _of(self, kind: RowKind) -> Prepared:
        if kind not in self._ready:
            try:
                prepared = self._prepare(kind)
                prepared.report.check(max_dropped=1.0)
            except DataError as error:
                raise NoRowsError(str(error)) from error
            for line in prepared.report.lines():
                logger.info("held out: %s", line)
            self._ready[kind] = prepared
        return self._ready[kind]


@dataclass
class Data:
    """The data of a run: ``train`` and ``eval`` tokenised for the method's row kind, ``held_out`` for any kind."""

    kind: RowKind
    train: TokenisedRows
    eval: TokenisedRows
    report: DataReport
    held_out: HeldOut
    train_rows: Sequence[Row] = ()
    """The training rows as text or messages, where they were asked for."""


def load_data(
    config: HasData,
    kind: RowKind,
    tokenizer: PreTrainedTokenizerBase,
    load: Load | None = None,
    *,
    keep_rows: bool = False,
) -> Data:
    """Load, check, split and tokenise the data of a run.

    Held out are, in this order: the rows of ``data.eval_source``; the split that ``data.eval_split`` names; the demo's test
    split where the source is the demo; else ``data.eval_split`` as a share of the rows, by cluster.

    Args:
        config: a run's configuration (only ``data`` is read).
        kind: what the method's rows are.
        tokenizer: the model's tokenizer; the chat template of conversations is its own.
        load: asked for the rows of a source before alignkit loads them itself.
        keep_rows: keep the training rows as text or messages beside their tokens.

    Raises:
        DataError: a source or row cannot be used, or more rows than ``data.max_dropped`` allows are unusable.
    """
    data = config.data
    loader = Loader(data, tokenizer, load)
    source = loader.read(data.source, data.split, TRAIN_SPLITS, data.limit)
    eval_source, eval_split = _held_out_source(data)
    if eval_source is None:
        return _split_off(loader, source, kind, keep_rows)
    train = loader.prepare(loader.normalise(source, kind), source, kind)
    train.report.check(data.max_dropped)
    held_out = loader.read(eval_source, eval_split, HELD_OUT_SPLITS, data.eval_limit)
    evaluation = loader.prepare(loader.normalise(held_out, kind), held_out, kind)
    evaluation.report.check(data.max_dropped)
    prompts = {digest(row.prompt) for row in train.rows}
    return Data(
        kind=kind,
        train=train.tokenised,
        eval=evaluation.tokenised,
        report=DataReport(
            train=SetReport.of(train.tokenised),
            eval=SetReport.of(evaluation.tokenised),
            sources=(train.report, evaluation.report),
            shared_prompts=sum(digest(row.prompt) in prompts for row in evaluation.rows),
        ),
        held_out=HeldOut(lambda other: loader.as_kind(held_out, other), {kind: evaluation}),
        train_rows=train.rows if keep_rows else (),
    )


def load_held_out(data: DataConfig, tokenizer: PreTrainedTokenizerBase, load: Load | None = None) -> HeldOut:
    """Load every row of ``data.eval_source`` to evaluate on; raises :class:`DataError` as :func:`load_data` does."""
    loader = Loader(data, tokenizer, load)
    source, split = _held_out_source(data)
    raw = loader.read(source or data.source, split, HELD_OUT_SPLITS, data.eval_limit)
    return HeldOut(lambda kind: loader.as_kind(raw, kind))


def _held_out_source(data: DataConfig) -> tuple[str | None, str | None]:
    """Return source and split of the held-out rows; no source: they are a share of the training source's."""
    named = data.eval_split if isinstance(data.eval_split, str) else None
    if data.eval_source is not None or named is not None:
        return data.eval_source or data.source, named
    return ("demo", None) if data.source == "demo" else (None, None)


def _split_off(loader: Loader, source: RawRows, kind: RowKind, keep_rows: bool) -> Data:
    """Hold out a share of the rows of ``source`` by cluster."""
    data = loader.config
    rows = loader.normalise(source, kind)
    prepared = loader.prepare(rows, source, kind)
    prepared.report.check(data.max_dropped)
    held = held_out_positions(rows, float(data.eval_split), source.source)
    evaluated = frozenset(sorted(held)[: data.eval_limit])
    trained = [i for i, row in enumerate(prepared.rows) if row.position not in held]
    train = prepared.tokenised.select(trained)
    chosen = [i for i, row in enumerate(prepared.rows) if row.position in evaluated]
    evaluation = prepared.tokenised.select(chosen)
    ready = Prepared(evaluation, [prepared.rows[i] for i in chosen], prepared.report)
    if not len(train) or (held and not len(evaluation)):
        raise DataError(f"{source.source}: too few usable rows to hold some out; set data.eval_source")

    def prepare_held_out(other: RowKind) -> Prepared:
        rows = [row for row in loader.normalise(source, other) if row.position in evaluated]
        return loader.prepare(rows, source, other)

    return Data(
        kind=kind,
        train=train,
        eval=evaluation,
        report=DataReport(SetReport.of(train), SetReport.of(evaluation), (prepared.report,)),
        held_out=HeldOut(prepare_held_out, {kind: ready}),
        train_rows=[prepared.rows[i] for i in trained] if keep_rows else (),
    )


@dataclass(frozen=True)
class Loader:
    """Reads and prepares the sources of one run."""

    config: DataConfig
    tokenizer: PreTrainedTokenizerBase
    load: Load | None = None

    def read(self, source: str, split: str | None, default_splits: Sequence[str], limit: int | None) -> RawRows:
        """Load the rows of a source, a plugin's answer before our own."""
        raw = self.load(source, split) if self.load is not None else None
        if raw is None:
            raw = load_rows(source, split, self.config, default_splits=default_splits, limit=limit)
        elif not len(raw.rows):
            raise DataError(f"{raw.source} holds no rows")
        return one_by_one(raw.head(limit), self.config.columns)

    def normalise(self, raw: RawRows, kind: RowKind) -> list[Row]:
        """Bring rows to the shape of ``kind``, unusable ones marked."""
        return normalise(raw, kind, self.config.columns, chat=bool(self.tokenizer.chat_template))

    def prepare(self, rows: Sequence[Row], raw: RawRows, kind: RowKind) -> Prepared:
        """Tokenise the usable ones of ``rows`` (normalised from ``raw``), and count the others by reason."""
        usable = [row for row in rows if row.unusable is None]
        tokenised = self._tokenise(usable, raw)
        kept = [usable[i] for i in tokenised.kept.tolist()]
        reasons = {id(usable[i]): reason for i, reason in tokenised.dropped.items()}
        dropped: dict[str, Dropped] = {}
        for row in rows:
            if reason := row.unusable or reasons.get(id(row)):
                before = dropped.get(reason, Dropped(0, raw.where(row.position)))
                dropped[reason] = replace(before, count=before.count + 1)
        counts = dict(tokenised.counts)
        self._check_length(counts.pop("shortest_prompt"), kind, raw.source)
        about = [About(row.id, row.cluster, row.category, row.fields) for row in kept]
        return Prepared(
            TokenisedRows(kind, tokenised.tokens, tokenised.offsets, about),
            kept,
            SourceReport(raw.source, kind, read=len(rows), kept=len(kept), dropped=dropped, **counts),
        )

    def as_kind(self, raw: RawRows, kind: RowKind) -> Prepared:
        """Bring rows to the shape of ``kind`` and tokenise the usable ones."""
        return self.prepare(self.normalise(raw, kind), raw, kind)

    def _tokenise(self, rows: list[Row], raw: RawRows) -> Tokenised:
        rules = TokenRules(self.config.max_length, self.config.append_eos)

        def make() -> Tokenised:
            return tokenise(rows, self.tokenizer, rules, raw.where)

        if not self.config.cache or not rows:
            return make()
        return cached(cache_key(rows, self.tokenizer, rules), make)

    def _check_length(self, shortest: int, kind: RowKind, source: str) -> None:
        least = shortest + (kind != "prompt")
        if least > self.config.max_length:
            what = "every prompt" if kind == "prompt" else "every prompt with one token of its completion"
            raise DataError(
                f"data.max_length {self.config.max_length} is shorter than {what} of {source} "
                f"(the shortest prompt has {shortest} tokens)"
            )
