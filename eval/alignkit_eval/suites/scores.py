"""Scores of held-out rows under a token budget, and checks and digests that suites share."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from alignkit import Example, Policy
from alignkit.contract.batch import by_length
from alignkit.contract.rows import Row
from alignkit.errors import NoRowsError, RunFailedError

_NAMED = 5
"""Maximum number of ids that an error names."""


class CompletionScore(NamedTuple):
    """Summed log-probability of a completion's scored tokens, in nats, and their number."""

    logp: float
    tokens: int

    @property
    def mean(self) -> float:
        """Log-probability per scored token."""
        return self.logp / self.tokens


def score_completions(
    policy: Policy, examples: Sequence[Example], tokens_per_batch: int, label: str
) -> list[tuple[CompletionScore, ...]]:
    """Score every completion of every row, in the order of ``examples``.

    Rows are scored from the longest to the shortest. Log-probabilities are summed in double precision on the CPU.

    Args:
        policy: the model that scores.
        examples: rows with any number of completions each.
        tokens_per_batch: maximum tokens per forward pass; a longer row is scored alone.
        label: label of the progress bar, which is shown on a terminal.
    """
    from rich.console import Console
    from rich.progress import Progress

    results: list[tuple[CompletionScore, ...]] = [()] * len(examples)
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(label, total=len(examples))
        for rows in by_length(examples, tokens_per_batch):
            for i, scores in zip(rows, _score_batch(policy, [examples[i] for i in rows]), strict=True):
                results[i] = scores
            progress.advance(task, len(rows))
    return results


def _score_batch(policy: Policy, examples: Sequence[Example]) -> list[tuple[CompletionScore, ...]]:
    scores = policy.score(examples, grad=False)
    logps = scores.logps.detach().cpu().double()  # (N,)
    sequence, lengths = scores.sequence.cpu(), scores.lengths.tolist()
    sums = logps.new_zeros(len(lengths)).index_add(0, sequence, logps).tolist()  # (S,)
    completions = iter(map(CompletionScore, sums, map(int, lengths)))
    return [tuple(next(completions) for _ in example.completions) for example in examples]


def require_rows(suite: str, kind: str, examples: Sequence[Example]) -> None:
    """Raise :class:`NoRowsError` where there are no rows to evaluate."""
    if not examples:
        raise NoRowsError(
            f"suite {suite!r} found no held-out {kind} rows: give data with --eval-data, or leave the suite out"
        )


def require_finite(suite: str, scores: Iterable[tuple[str, Sequence[CompletionScore]]]) -> None:
    """Raise :class:`RunFailedError` where a row, given as (id, scores), has a score that is not finite.

    Otherwise a model that returns NaN would get an accuracy.
    """
    rows = list(scores)
    broken = [name for name, row in rows if not all(math.isfinite(score.logp) for score in row)]
    if broken:
        names = ", ".join(broken[:_NAMED]) + (", ..." if len(broken) > _NAMED else "")
        raise RunFailedError(
            f"suite {suite!r}: log-probabilities are not finite on {len(broken)} of {len(rows)} rows ({names})"
        )


def cluster_of(example: Example) -> str:
    """Return a row's cluster, by default one for its prompt: rows with the same prompt are not independent."""
    if example.cluster:
        return example.cluster
    return "prompt-" + hashlib.sha256(repr(tuple(example.prompt)).encode()).hexdigest()[:12]


def rows_digest(rows: Iterable[Row]) -> str:
    """Return the SHA-256 of held-out rows: ids, clusters, categories, prompts and completions as text."""
    content = hashlib.sha256()
    for row in rows:
        fields = (row.id, row.cluster, row.category, row.prompt, row.answers)
        content.update(json.dumps(fields, ensure_ascii=False, default=dict).encode() + b"\n")
    return content.hexdigest()
