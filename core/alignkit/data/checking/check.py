"""Data checks: apply every rule to a source, report the findings, and write a cleaned copy."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alignkit.config import CheckConfig, DataConfig, SourceConfig
from alignkit.contract import DataRule, Hit, Row, RowKind, plain_text, texts_of
from alignkit.contract.registry import load, usable
from alignkit.data.checking.reading import Readable, read_source
from alignkit.data.checking.tokenised import TOKEN_RULES, CheckedRows, hits, tokenize_for_check
from alignkit.data.rows import few
from alignkit.data.shapes.pairs import UNUSABLE_COLUMN
from alignkit.data.shapes.templates import variables
from alignkit.data.sources.open import HELD_OUT_SPLITS, Load
from alignkit.data.table.report import UNREAD
from alignkit.data.tokenise.render import unread
from alignkit.errors import DataError, PluginError
from alignkit.system.files import require_writable, staged_directory, write_jsonl

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EXAMPLES = 5

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finding:
    """The rows found by one rule."""

    rule: str
    title: str
    count: int
    rate: float
    """Share of all rows."""
    drops: bool
    """Whether ``--fix`` removes the rows."""
    examples: Sequence[Mapping[str, str]]
    """The first few: ``place`` (file:line), ``row`` (its id), ``about``."""


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
    dropped: Mapping[int, str] = field(default_factory=dict, repr=False)
    """Index of a readable row that ``--fix`` removes -> rule."""
    readable: Readable | None = field(default=None, repr=False)

    def to_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "rows": self.rows,
            "unread": list(self.unread),
            "findings": [vars(finding) for finding in self.findings],
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

    Raises:
        DataError: the source as a whole cannot be read.
    """
    config = config or DataConfig()
    chat = tokenizer is None or bool(tokenizer.chat_template)
    all_turns = kind == "completion" and config.train_on == "all"
    readable = read_source(source, split, config, kind=kind, chat=chat, all_turns=all_turns, load=load)
    rows, total = readable.rows, len(readable.rows) + len(readable.broken)
    template = None if tokenizer is None else tokenizer.chat_template
    unused = {name for row in rows for name in unread(row, readable.kind, template)} - variables(config.template)
    findings: list[Finding] = []
    if readable.broken:
        shown = [{"place": b.place, "row": "", "about": b.why} for b in readable.broken[:EXAMPLES]]
        count = len(readable.broken)
        findings.append(Finding("broken", "rows that cannot be read", count, count / total, True, shown))
    other: Sequence[Row] = ()
    if held_out is not None:
        everything = SourceConfig(source=held_out, columns=config.columns, template=config.template, pairs=config.pairs)
        named = config.eval_split if isinstance(config.eval_split, str) else None
        other = read_source(held_out, named, everything, load=load, default_splits=HELD_OUT_SPLITS).rows
    seen = None if tokenizer is None else tokenize_for_check(rows, tokenizer, config, all_turns=all_turns)
    found, dropped = find(rows, other, config.check, total, seen)
    return Check(
        source=source,
        rows=readable.read,
        read_as=total,
        unread=sorted(unused),
        findings=[*findings, *found],
        length=length_bias(rows),
        words=_words(rows),
        tokens={} if seen is None else seen.counts(),
        token_lengths=[] if seen is None else seen.tokens.tolist(),
        max_length=config.max_length,
        dropped=dropped,
        readable=readable,
    )


def find(
    rows: Sequence[Row], held_out: Sequence[Row], limits: CheckConfig, total: int, seen: CheckedRows | None = None
) -> tuple[list[Finding], dict[int, str]]:
    """Apply every rule to rows; return the findings, and the rows a cleaned copy leaves out with the rule."""
    findings: list[Finding] = []
    dropped: dict[int, str] = {}
    checks: list[tuple[str, str, bool, Iterable[Hit]]] = [
        (rule.name, rule.title, rule.drops, rule.find(rows, held_out, limits)) for rule in installed_rules()
    ]
    if seen is not None:
        checks += [(name, title, drops, hits(seen.rows, problem)) for name, title, problem, drops in TOKEN_RULES]
    for name, title, drops, found in checks:
        if not (rule_hits := list(found)):
            continue
        shown = [{"place": rows[h.row].place, "row": rows[h.row].id, "about": h.about} for h in rule_hits[:EXAMPLES]]
        findings.append(Finding(name, title, len(rule_hits), len(rule_hits) / total, drops, shown))
        dropped |= {hit.row: name for hit in rule_hits if drops and hit.row not in dropped}
    return findings, dropped


def installed_rules() -> list[DataRule]:
    """Return the rules of every installed package; a package whose rules cannot be loaded is named in a warning."""
    found: list[DataRule] = []
    for entry in usable("align.rules").values():
        try:
            found += load(entry)
        except PluginError as error:
            log.warning("data check: %s", error)
    return found


def rule_names() -> list[str]:
    """Return the names of all rules, those on tokens included."""
    return ["broken", *(rule.name for rule in installed_rules()), *(name for name, *_ in TOKEN_RULES)]


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


def write_fixed(check: Check, path: Path) -> tuple[int, int]:
    """Write the rows without findings, unchanged, to ``path`` (JSON Lines), and the removed ones to PATH.dropped.jsonl.

    Return the numbers of kept and removed rows. Both are complete before either appears, PATH last.
    """
    readable = check.readable
    if readable is None:
        raise ValueError("this check has no rows")
    raw = readable.raw
    rules = {readable.rows[row].position: rule for row, rule in check.dropped.items()}
    kept = [_storable(row) for position, row in enumerate(raw.rows) if position not in rules]
    left = [{"place": b.place, "rule": "broken", "about": b.why, "row": _storable(b.content)} for b in readable.broken]
    left += [{"place": raw.where(i), "rule": rules[i], "row": _storable(raw.rows[i])} for i in sorted(rules)]
    log, partial = fixed_files(path)
    with staged_directory(partial) as staged:
        write_jsonl(staged / path.name, kept)
        write_jsonl(staged / log.name, left)
    (partial / log.name).replace(log)
    (partial / path.name).replace(path)
    shutil.rmtree(partial)
    return len(kept), len(left)


def fixed_files(path: Path) -> tuple[Path, Path]:
    """Return the log that belongs to a cleaned copy ``path``, and the directory both are moved from when complete.

    Raises :class:`DataError` if one of the files exists (a log whose copy was never moved is of a killed process), and
    :class:`ConfigError` if they cannot be written.
    """
    log, partial = path.with_name(f"{path.name}.dropped.jsonl"), path.with_name(f".{path.name}.whole")
    for file in (path,) if partial.is_dir() else (path, log):
        if file.exists():
            shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed after it had moved both
            raise DataError(f"{file} exists already: --fix writes a new file")
    require_writable(path)
    return log, partial


def _storable(value: Any) -> Any:
    """Return a value for JSON, with other types of tables (times, bytes) as text."""
    if isinstance(value, Mapping):
        return {str(key): _storable(entry) for key, entry in value.items() if key != UNUSABLE_COLUMN}
    if isinstance(value, (list, tuple)):
        return [_storable(entry) for entry in value]
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)
