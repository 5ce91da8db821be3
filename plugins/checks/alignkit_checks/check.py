"""Check a source: its rows as a run reads and tokenises them, every rule applied."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from alignkit.config import DataConfig, SourceConfig
from alignkit.contract import Row, RowKind, plain_text, texts_of
from alignkit.data.rows import few
from alignkit.data.sources.open import HELD_OUT_SPLITS, Load
from alignkit.data.table.report import UNREAD
from alignkit.data.tokenise.render import unread
from alignkit.data.tokenise.rules import ENDLESS, Room, TokenRules

from alignkit_checks.before_training import EXAMPLES, Finding, find
from alignkit_checks.contamination import Against, Contamination
from alignkit_checks.reading import Readable, read_source
from alignkit_checks.tokenised import token_rules, tokenize_for_check

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Check:
    """The result of checking one source."""

    source: str
    rows: int
    findings: Sequence[Finding]
    length: Mapping[str, float]
    tokens: Mapping[str, int] = field(default_factory=dict)
    """With a tokenizer: counts of truncated rows, border merges and added end tokens, as in training."""
    words: Mapping[str, Sequence[int]] = field(default_factory=dict, repr=False)
    """Field (prompt, chosen, ...) -> number of words in every row."""
    token_lengths: Sequence[int] = field(default=(), repr=False)
    """With a tokenizer: number of tokens of every row before truncation."""
    unread: Sequence[str] = ()
    """Columns that are part of neither prompts nor answers, and keys of messages that the chat template does not name."""
    read_as: int = 0
    """Number of readable rows after a row with several rejected answers has become several."""
    max_length: int = 0
    limit: str = "data.max_length"
    """What sets ``max_length``."""
    dropped: Mapping[int, str] = field(default_factory=dict, repr=False)
    """Index of a readable row that ``--fix`` removes -> rule."""
    readable: Readable | None = field(default=None, repr=False)
    against: Sequence[Against] = ()
    """Evaluation data, and what the rows share with it."""
    ngram: int = 0
    """Words of the n-grams that were looked for."""
    again: Callable[[str], Check] | None = field(default=None, repr=False, compare=False)
    """Checks a copy of the rows in the same way, without looking for leaks."""

    def to_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "rows": self.rows,
            "unread": list(self.unread),
            "findings": [vars(finding) for finding in self.findings],
            "against": [asdict(against) for against in self.against],
            "length": dict(self.length),
            "words": {name: quantiles(values) for name, values in self.words.items()},
            "tokens": dict(self.tokens),
            "token_lengths": quantiles(self.token_lengths),
            "max_length": self.max_length,
        }

    def lines(self) -> list[str]:
        made = f" that make {self.read_as:,}" if self.read_as > self.rows else ""
        rows = f"{self.rows:,} row{'s' * (self.rows != 1)}{made}"
        out = [f"{self.source}: {rows}" + ("" if self.findings else ", no problems found")]
        for finding in self.findings:
            out.append(f"  {finding.count:,} ({finding.rate:.1%}) {finding.title} [{finding.rule}]")
            out += [f"      {e['place']}: {e['about']}" for e in finding.examples]
            if finding.count > len(finding.examples):
                out.append(f"      ... and {finding.count - len(finding.examples):,} more")
        out += [against.line(self.ngram) for against in self.against]
        if self.length:
            share = self.length
            out.append(
                f"  the chosen answer is longer in {share['chosen_longer']:.0%} of the pairs, shorter in {share['chosen_shorter']:.0%}: "
                f"always preferring the longer one would have an accuracy of {share['longer_is_better']:.0%}"
            )
        out += [f"  {count:,} {name.replace('_', ' ')}" for name, count in self.tokens.items() if count]
        out += [f"  {UNREAD}: {few(self.unread)}"] if self.unread else []
        return out


def quantiles(values: Sequence[int]) -> dict[str, float]:
    """Return minimum, quartiles, 95th percentile and maximum; empty for no values."""
    points = {"least": 0.0, "quarter": 0.25, "median": 0.5, "three_quarters": 0.75, "p95": 0.95, "most": 1.0}
    return {name: float(np.quantile(values, at)) for name, at in points.items()} if len(values) else {}


def check_source(
    source: str,
    *,
    split: str | None = None,
    config: DataConfig | None = None,
    kind: RowKind | None = None,
    held_out: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    load: Load | None = None,
    room: Room = ENDLESS,
    contamination: Contamination | None = None,
) -> Check:
    """Check the rows of a source.

    Args:
        source: file, saved data set directory, URL or hub id.
        split: of the source.
        config: the data section: column names, ``max_length``, ``limit``, thresholds (``check``).
        kind: the method's kind of rows (default: preference rows, or without pairs completions, or prompts).
        held_out: a source whose prompts must not occur in this one.
        tokenizer: if given, rows are also checked as rendered and tokenised by it.
        load: a plugin's loader, called before alignkit loads a source itself.
        room: the positions of the model.
        contamination: evaluation data whose n-grams must not occur in the rows.

    Raises:
        DataError: the source as a whole cannot be read.
    """
    config = config or DataConfig()
    chat = tokenizer is None or bool(tokenizer.chat_template)
    all_turns = kind == "completion" and config.train_on == "all"
    readable = read_source(source, split, config, kind=kind, chat=chat, all_turns=all_turns, load=load)
    rows, total = readable.rows, len(readable.rows) + len(readable.broken)
    template = None if tokenizer is None else tokenizer.chat_template
    unused = {name for row in rows for name in unread(row, readable.kind, template)} - {*readable.convert.used}
    other = () if held_out is None else _held_out(held_out, config, load)
    rules = TokenRules.of(config, room, readable.kind)
    seen = None if tokenizer is None else tokenize_for_check(rows, tokenizer, rules, all_turns=all_turns)
    more = [] if seen is None else token_rules(seen)
    shared: list[Against] = []
    if contamination is not None:
        rule, shared = contamination.look(rows)
        more.append(rule)
    found, dropped = find(rows, other, config.check, total, more)
    return Check(
        source=source,
        rows=readable.read,
        read_as=total,
        unread=sorted(unused),
        findings=[*_broken(readable), *found],
        length=length_bias(rows),
        words=_words(rows),
        tokens={} if seen is None else seen.counts(),
        token_lengths=[] if seen is None else seen.tokens.tolist(),
        max_length=rules.max_length,
        limit=rules.limit,
        dropped=dropped,
        readable=readable,
        against=shared,
        ngram=0 if contamination is None else contamination.n,
        again=partial(check_source, config=config, kind=kind, tokenizer=tokenizer, room=room),
    )


def _held_out(source: str, config: DataConfig, load: Load | None) -> Sequence[Row]:
    """Return all rows of a held-out source, read as those of ``config``."""
    everything = SourceConfig(source=source, columns=config.columns, template=config.template, pairs=config.pairs)
    split = config.eval_split if isinstance(config.eval_split, str) else None
    return read_source(source, split, everything, load=load, default_splits=HELD_OUT_SPLITS).rows


def _broken(readable: Readable) -> list[Finding]:
    """Return the finding of the rows that cannot be read, if there are any."""
    count = len(readable.broken)
    shown = [{"place": row.place, "row": "", "about": row.why} for row in readable.broken[:EXAMPLES]]
    share = count / (len(readable.rows) + count) if count else 0.0
    return [Finding("broken", "rows that cannot be read", count, share, True, shown)] if count else []


def length_bias(rows: Sequence[Row]) -> Mapping[str, float]:
    """Return the shares of pairs whose chosen answer is longer, as long or shorter, and the accuracy of preferring length."""
    pairs = [row for row in rows if len(row.answers) == 2 and row.unusable is None]
    if not pairs:
        return {}
    lengths = [tuple(len(plain_text(answer).split()) for answer in row.answers) for row in pairs]
    found = Counter((a > b) - (a < b) for a, b in lengths)
    n = len(pairs)
    return {
        "chosen_longer": found[1] / n,
        "same_length": found[0] / n,
        "chosen_shorter": found[-1] / n,
        "longer_is_better": (found[1] + found[0] / 2) / n,
    }


def _words(rows: Sequence[Row]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for name, text in chain.from_iterable(map(texts_of, rows)):
        found.setdefault(name, []).append(len(text.split()))
    return found
