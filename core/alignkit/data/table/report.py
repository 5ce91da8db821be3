"""What became of the rows: read, kept, dropped and why, truncated, and what they were hashed to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from alignkit.contract.types import RowKind
from alignkit.data.table.tokenised_rows import TokenisedRows, TokenTable
from alignkit.errors import DataError

SUMS = ("truncated_completions", "border_merges", "eos_added", "eos_missing", "double_bos")
"""What a report adds up over the rows that are used."""


@dataclass(frozen=True)
class Dropped:
    """How many rows were unusable for one reason, and where the first of them stands (file:line)."""

    count: int
    first: str


@dataclass(frozen=True)
class SourceReport:
    """What was read from one source. A pair used as unpaired rows counts as two rows."""

    source: str
    kind: RowKind
    read: int
    kept: int
    dropped: Mapping[str, Dropped] = field(default_factory=dict)
    truncated_prompts: int = 0
    truncated_completions: int = 0
    border_merges: int = 0
    eos_added: int = 0
    eos_missing: int = 0

    double_bos: int = 0

    @classmethod
    def of(cls, table: TokenTable) -> SourceReport:
        """Count what became of the rows of a table."""
        dropped: dict[str, Dropped] = {}
        unusable = np.setdiff1d(np.arange(len(table)), table.kept)
        for row, reason in zip(
            unusable.tolist(), table.table.column("unusable").take(unusable).to_pylist(), strict=True
        ):
            before = dropped.get(reason)
            dropped[reason] = (
                Dropped(1, table.place(row)) if before is None else replace(before, count=before.count + 1)
            )

        def total(name: str) -> int:
            return int(table.numbers(name)[table.kept].sum())

        return cls(
            table.source,
            table.kind,
            read=len(table),
            kept=len(table.kept),
            dropped=dropped,
            truncated_prompts=int((table.numbers("prompt_lost")[table.kept] > 0).sum()),
            **{name: total(name) for name in SUMS},
        )

    @property
    def unusable(self) -> int:
        """The number of dropped rows."""
        return sum(rows.count for rows in self.dropped.values())

    def lines(self) -> list[str]:
        """Say it in sentences for the log; what did not happen is left out."""
        said = [f"{self.source}: {self.read:,} {self.kind} rows read, {self.kept:,} kept"]
        said += [
            f"{self.source}: {rows.count:,} dropped: {why} (first: {rows.first})" for why, rows in self.dropped.items()
        ]
        happened = (
            (self.truncated_prompts, "prompts cut on the left to fit data.max_length"),
            (self.truncated_completions, "completions cut on the right to fit data.max_length"),
            (self.border_merges, "completions whose first token also holds the end of the prompt"),
            (self.eos_added, "completions given an end token"),
            (self.eos_missing, "completions without an end token"),
            (self.double_bos, "prompts that begin with the begin token twice"),
        )
        return said + [f"{self.source}: {count:,} {what}" for count, what in happened if count]

    def check(self, max_dropped: float) -> None:
        """Raise :class:`DataError` where no row is left, or a larger share than ``max_dropped`` was unusable."""
        if self.kept and self.unusable <= max_dropped * self.read:
            return
        reasons = ", ".join(f"{rows.count:,} {why} (first: {rows.first})" for why, rows in self.dropped.items())
        allowed = f"data.max_dropped allows {max_dropped:.3%}".replace(".000%", "%") if self.kept else "none is left"
        raise DataError(f"{self.source}: {self.unusable:,} of {self.read:,} rows cannot be used ({allowed}): {reasons}")


@dataclass(frozen=True)
class SetReport:
    """One set of tokenised rows: the training rows, or the held-out ones."""

    rows: int
    clusters: int
    prompt_tokens: int
    completion_tokens: int
    longest: int
    fingerprint: str

    @classmethod
    def of(cls, rows: TokenisedRows) -> SetReport:
        """Measure a set."""
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
        """Say it in one sentence for the log."""
        return (
            f"{name}: {self.rows:,} rows in {self.clusters:,} clusters, {self.prompt_tokens:,} prompt and "
            f"{self.completion_tokens:,} completion tokens, longest {self.longest:,}"
        )


@dataclass(frozen=True)
class DataReport:
    """Everything a run records about its data."""

    train: SetReport
    eval: SetReport
    sources: tuple[SourceReport, ...]
    shared_prompts: int = 0
    """Held-out rows whose prompt is among the training rows' (none where the held-out share was split off here)."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 over training and held-out rows."""
        return hashlib.sha256(f"{self.train.fingerprint} {self.eval.fingerprint}".encode()).hexdigest()

    def lines(self) -> list[str]:
        """Say it in sentences for the log."""
        said = [line for source in self.sources for line in source.lines()]
        said += [self.train.line("train"), self.eval.line("held out")]
        if self.shared_prompts:
            said.append(f"warning: {self.shared_prompts:,} held-out rows have a prompt that is also trained on")
        return said

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for run.json."""
        return {
            "hash": self.fingerprint,
            "train": asdict(self.train),
            "eval": asdict(self.eval),
            "sources": [asdict(source) for source in self.sources],
            "shared_prompts": self.shared_prompts,
        }
