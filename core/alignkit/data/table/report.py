"""Data reports: rows read, kept, dropped and truncated, and fingerprints."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkit.contract import Omission, RowKind
from alignkit.data.rows import few
from alignkit.data.table.tokenised_rows import TokenisedRows, TokenTable
from alignkit.errors import DataError

_COUNTED = {
    "truncated_prompts": "prompts truncated on the left to fit {limit}",
    "truncated_completions": "completions truncated on the right to fit {limit}",
    "border_merges": "completions whose first token straddles the prompt boundary",
    "eos_added": "completions given an end token",
    "eos_missing": "completions without an end token",
    "double_bos": "prompts that begin with two BOS tokens",
    "bos_removed": "completions that began with a BOS token, which is removed",
}
UNREAD = "columns that are part of neither prompts nor answers"
SUMS = tuple(name for name in _COUNTED if name != "truncated_prompts")
"""Columns summed over the usable rows."""


@dataclass(frozen=True)
class Dropped:
    """The number of rows unusable for one reason, and the location of the first (file:line)."""

    count: int
    first: str


@dataclass(frozen=True)
class SourceReport:
    """Counts of the rows of one source. A pair used as unpaired rows counts as two."""

    source: str
    kind: RowKind
    read: int
    kept: int
    dropped: Mapping[str, Dropped] = field(default_factory=dict)
    completions: int = 0
    truncated_prompts: int = 0
    truncated_completions: int = 0
    border_merges: int = 0
    eos_added: int = 0
    eos_missing: int = 0
    double_bos: int = 0
    bos_removed: int = 0
    unread: tuple[str, ...] = ()
    """Columns that are part of neither prompts nor answers, and keys of messages that the chat template does not name."""
    limit: str = "data.max_length"
    """What the rows are truncated to."""

    @classmethod
    def of(cls, table: TokenTable, positions: NDArray[np.int64] | None = None) -> SourceReport:
        """Return the report of a source, or of its rows at ``positions``."""
        import pyarrow.compute as pc

        inside = np.ones(len(table), bool) if positions is None else np.isin(table.numbers("position"), positions)
        kept = table.kept[inside[table.kept]]
        unusable = np.setdiff1d(np.flatnonzero(inside), kept)
        reasons = table.table.column("unusable").take(unusable).to_pylist()
        unread = pc.unique(table.table.column("unread")).to_pylist()
        first = dict(zip(reversed(reasons), reversed(unusable.tolist()), strict=True))
        return cls(
            table.source,
            table.kind,
            read=int(inside.sum()),
            kept=len(kept),
            dropped={why: Dropped(count, table.place(first[why])) for why, count in Counter(reasons).items()},
            completions=int((table.lengths[kept, 1:] > 0).sum()),
            truncated_prompts=int((table.numbers("prompt_lost")[kept] > 0).sum()),
            unread=tuple(sorted({name for found in unread if found for name in json.loads(found)})),
            limit=table.limit,
            **{name: int(table.numbers(name)[kept].sum()) for name in SUMS},
        )

    @property
    def unusable(self) -> int:
        return sum(rows.count for rows in self.dropped.values())

    def lines(self) -> list[str]:
        """Return the report as log lines; counts of zero are left out."""
        counts = ((getattr(self, name), label.format(limit=self.limit)) for name, label in _COUNTED.items())
        lines = [
            f"{self.read:,} {self.kind} rows read, {self.kept:,} kept",
            *(f"{rows.count:,} dropped: {why} (first: {rows.first})" for why, rows in self.dropped.items()),
            *(f"{count:,} {label}" for count, label in counts if count),
        ]
        lines += [f"{UNREAD}: {few(self.unread)}"] if self.unread else []
        return [f"{self.source}: {line}" for line in lines]

    @property
    def left_out(self) -> list[Omission]:
        """The unusable rows."""
        return [
            Omission("rows", rows.count, self.read, f"left out: {why}", rows.first)
            for why, rows in self.dropped.items()
        ]

    @property
    def truncated(self) -> list[Omission]:
        """The prompts and completions that are truncated."""
        totals = {"truncated_prompts": self.kept, "truncated_completions": self.completions}
        found = [(_COUNTED[name].split(" ", 1), getattr(self, name), total) for name, total in totals.items()]
        return [
            Omission(what, count, total, why.format(limit=self.limit)) for (what, why), count, total in found if count
        ]

    def check(self, max_dropped: float) -> None:
        """Raise :class:`DataError` if no row is left, or more than a share ``max_dropped`` of the rows was unusable."""
        if self.kept and self.unusable <= max_dropped * self.read:
            return
        reasons = ", ".join(f"{rows.count:,} {why} (first: {rows.first})" for why, rows in self.dropped.items())
        allowed = f"data.max_dropped allows {max_dropped:.3%}".replace(".000%", "%") if self.kept else "no row is left"
        fix = "; align data check --fix OUT writes a copy without them" if self.kept else ""
        raise DataError(
            f"{self.source}: {self.unusable:,} of {self.read:,} rows cannot be used ({allowed}): {reasons}{fix}"
        )


@dataclass(frozen=True)
class SetReport:
    """Size and fingerprint of one set of tokenised rows (training or held-out)."""

    rows: int
    clusters: int
    prompt_tokens: int
    completion_tokens: int
    longest: int
    fingerprint: str

    @classmethod
    def of(cls, rows: TokenisedRows) -> SetReport:
        lengths = rows.segment_lengths()
        longest = lengths[:, 0] + lengths[:, 1:].max(1, initial=0)
        return cls(
            rows=len(rows),
            clusters=rows.clusters,
            prompt_tokens=int(lengths[:, 0].sum()),
            completion_tokens=int(lengths[:, 1:].sum()),
            longest=int(longest.max(initial=0)),
            fingerprint=rows.fingerprint,
        )

    def line(self, name: str) -> str:
        return (
            f"{name}: {self.rows:,} rows in {self.clusters:,} clusters, {self.prompt_tokens:,} prompt and "
            f"{self.completion_tokens:,} completion tokens, longest {self.longest:,}"
        )


@dataclass(frozen=True)
class DataReport:
    """The record of a run's data."""

    train: SetReport
    eval: SetReport
    sources: tuple[SourceReport, ...]
    shared_prompts: int = 0
    """Held-out rows whose prompt is also trained on (0 if the held-out rows are a share of the training source)."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 over training and held-out rows."""
        return hashlib.sha256(f"{self.train.fingerprint} {self.eval.fingerprint}".encode()).hexdigest()

    def lines(self) -> list[str]:
        lines = [line for source in self.sources for line in source.lines()]
        lines += [self.train.line("train"), self.eval.line("held out")]
        if self.shared_prompts:
            lines.append(f"warning: {self.shared_prompts:,} held-out rows have a prompt that is also trained on")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for run.json."""
        return {"hash": self.fingerprint, **asdict(self)}
