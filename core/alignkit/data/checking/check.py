"""One check of a source: every rule, what tokenisation would do, and a cleaned copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.config import DataConfig
from alignkit.data.checking.reading import Readable, read_source
from alignkit.data.checking.rules import RULES, Hit, Limits, leaked, length_bias
from alignkit.data.rows import Row
from alignkit.data.tokens import TokenRules, tokenise
from alignkit.errors import DataError
from alignkit.files import write_jsonl

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EXAMPLES = 5


@dataclass(frozen=True)
class Finding:
    """What one rule found."""

    rule: str
    title: str
    count: int
    rate: float
    """Share of all rows."""
    drops: bool
    """Whether ``--fix`` leaves the rows out."""
    examples: Sequence[Mapping[str, str]]
    """The first few: ``place`` (file:line), ``row`` (its id), ``about``."""


@dataclass(frozen=True)
class Check:
    """What was found in a source."""

    source: str
    rows: int
    findings: Sequence[Finding]
    length: Mapping[str, float]
    tokens: Mapping[str, int] = field(default_factory=dict)
    """With a tokenizer: rows cut, border merges, end tokens added, as training would."""
    dropped: Mapping[int, str] = field(default_factory=dict, repr=False)
    """Rows of the readable ones that ``--fix`` leaves out -> the rule."""
    readable: Readable | None = field(default=None, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "source": self.source,
            "rows": self.rows,
            "findings": [vars(finding) for finding in self.findings],
            "length": dict(self.length),
            "tokens": dict(self.tokens),
        }

    def lines(self) -> list[str]:
        """Say it as lines of text."""
        out = [f"{self.source}: {self.rows:,} rows" + ("" if self.findings else ", nothing wrong was found")]
        for finding in self.findings:
            out.append(f"  {finding.count:,} ({finding.rate:.1%}) {finding.title} [{finding.rule}]")
            out += [f"      {e['place']}: {e['about']}" for e in finding.examples]
            if finding.count > len(finding.examples):
                out.append(f"      ... and {finding.count - len(finding.examples):,} more")
        if self.length:
            share = self.length
            out.append(
                f"  the chosen answer is longer in {share['chosen_longer']:.0%} of the pairs, shorter in {share['chosen_shorter']:.0%}: "
                f"always preferring the longer one would be right in {share['longer_is_better']:.0%}"
            )
        out += [f"  {count:,} {name.replace('_', ' ')}" for name, count in self.tokens.items() if count]
        return out


def check_source(
    source: str,
    *,
    split: str | None = None,
    config: DataConfig | None = None,
    limits: Limits | None = None,
    held_out: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Check:
    """Check a source of preference rows, completions or prompts.

    Args:
        source: file, saved data set directory or hub id.
        split: of the source.
        config: the data section: column names, ``max_length``, ``limit``.
        limits: thresholds.
        held_out: a second source, whose prompts must not stand in this one.
        tokenizer: tells what truncation and borders would do.

    Raises:
        DataError: the source as a whole cannot be read.
    """
    config, limits = config or DataConfig(), limits or Limits()
    readable = read_source(source, split, config, chat=tokenizer is None or bool(tokenizer.chat_template))
    rows, total = readable.rows, readable.read
    findings: list[Finding] = []
    if readable.broken:
        shown = [{"place": b.place, "row": "", "about": b.why} for b in readable.broken[:EXAMPLES]]
        count = len(readable.broken)
        findings.append(Finding("broken", "rows that cannot be read", count, count / total, True, shown))
    dropped: dict[int, str] = {}
    for name, title, rule, drops in RULES:
        hits = list(rule(rows, limits))
        findings += _found(name, title, hits, drops, readable, total)
        dropped |= {hit.row: name for hit in hits if drops and hit.row not in dropped}
    if held_out is not None:
        other = read_source(held_out, None, config.model_copy(update={"limit": None})).rows
        hits = list(leaked(rows, other, limits))
        findings += _found("leak", f"prompts that stand in {held_out} as well", hits, True, readable, total)
        dropped |= {hit.row: "leak" for hit in hits if hit.row not in dropped}
    return Check(
        source=source,
        rows=total,
        findings=findings,
        length=length_bias(rows),
        tokens={} if tokenizer is None else _tokens(rows, tokenizer, config, readable),
        dropped=dropped,
        readable=readable,
    )


def _found(name: str, title: str, hits: Sequence[Hit], drops: bool, readable: Readable, total: int) -> list[Finding]:
    if not hits:
        return []
    rows, where = readable.rows, readable.raw.where
    shown = [{"place": where(rows[h.row].position), "row": rows[h.row].id, "about": h.about} for h in hits[:EXAMPLES]]
    return [Finding(name, title, len(hits), len(hits) / total, drops, shown)]


def _tokens(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, config: DataConfig, readable: Readable
) -> dict[str, int]:
    usable = [row for row in rows if row.unusable is None]
    if not usable:
        return {}
    found = tokenise(usable, tokenizer, TokenRules(config.max_length, config.append_eos), readable.raw.where)
    counts = {name: count for name, count in found.counts.items() if name != "shortest_prompt"}
    return counts | {"lost_to_tokenisation": len(found.dropped)}


def write_fixed(check: Check, path: Path) -> tuple[int, int]:
    """Write the rows that nothing speaks against to ``path`` (JSON lines, as they stood), and what was left out beside it.

    Returns how many were kept and left out. Raises :class:`DataError` where ``path`` exists.
    """
    log = path.with_name(f"{path.name}.dropped.jsonl")
    for file in (path, log):
        if file.exists():
            raise DataError(f"{file} exists already: --fix writes a new file")
    readable = check.readable
    if readable is None:
        raise ValueError("this check holds no rows")
    positions = {readable.rows[row].position: rule for row, rule in check.dropped.items()}
    kept = [dict(row) for position, row in enumerate(readable.raw.rows) if position not in positions]
    left: list[dict[str, Any]] = [{"place": b.place, "rule": "broken", "about": b.why} for b in readable.broken]
    left += [
        {"place": readable.raw.where(p), "rule": rule, "row": dict(readable.raw.rows[p])}
        for p, rule in sorted(positions.items())
    ]
    write_jsonl(path, kept)
    write_jsonl(log, left)
    return len(kept), len(left)
