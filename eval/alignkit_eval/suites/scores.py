"""Scores of held-out rows under a token budget, and checks, digests and results that suites share."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, TypeVar

from alignkit import Contrast, Estimate, Example, Policy, Suite, SuiteResult, Target
from alignkit.contract import Row, by_length, registry
from alignkit.errors import NoRowsError, RunFailedError
from alignkit.system.distributed import rank
from alignkit.system.together import shared_limit

RowT = TypeVar("RowT", Row, Example)

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
    """Score every completion of every row, in the order of ``examples``, with a labelled progress bar on a terminal.

    Rows are scored from the longest to the shortest, at most ``tokens_per_batch`` tokens per forward pass and process (a
    longer row alone). Log-probabilities are summed in double precision on the CPU.
    """
    limit = shared_limit([example.tokens for example in examples], tokens_per_batch)
    results: list[tuple[CompletionScore, ...]] = [()] * len(examples)
    bar = registry.provided("align.reports", "work")
    work = sum(example.tokens for example in examples)
    with bar(label, work, shown=rank() == 0) if bar else nullcontext(lambda _: None) as advance:
        for rows in by_length(examples, limit):
            for i, scores in zip(rows, _score_batch(policy, [examples[i] for i in rows]), strict=True):
                results[i] = scores
            advance(sum(examples[i].tokens for i in rows))
    return results


def _score_batch(policy: Policy, examples: Sequence[Example]) -> list[tuple[CompletionScore, ...]]:
    scores = policy.score(examples, grad=False)
    logps = scores.logps.detach().cpu().double()  # (N,)
    sequence, lengths = scores.sequence.cpu(), scores.lengths.tolist()
    sums = logps.new_zeros(len(lengths)).index_add(0, sequence, logps).tolist()  # (S,)
    completions = iter(map(CompletionScore, sums, map(int, lengths)))
    return [tuple(next(completions) for _ in example.completions) for example in examples]


def evenly_spaced(rows: Sequence[RowT], wanted: int, *, by_prompt: bool = True) -> list[RowT]:
    """Return ``wanted`` rows evenly spaced over all rows, without duplicate prompts (``by_prompt``)."""
    wanted = min(wanted, len(rows))
    found: dict[str, RowT] = {}
    for i in range(wanted):
        row = rows[i * len(rows) // wanted]
        found.setdefault(repr(row.prompt) if by_prompt else str(i), row)
    return list(found.values())


def require_rows(suite: str, kind: str, examples: Sequence[object]) -> None:
    """Raise :class:`NoRowsError` where there are no rows to evaluate."""
    if not examples:
        raise NoRowsError(
            f"suite {suite!r} found no held-out {kind} rows: give data with --eval-data, or leave the suite out"
        )


def finite_scores(suite: Suite[Any], target: Target, examples: Sequence[Example]) -> list[tuple[CompletionScore, ...]]:
    """Score every completion of a suite's rows; raises :class:`RunFailedError` where a score is not finite.

    Otherwise a model that returns NaN would get an accuracy.
    """
    label = f"{suite.name}: {target.name}"
    scores = score_completions(target.policy, examples, suite.settings.tokens_per_batch, label)
    rows = zip(examples, scores, strict=True)
    broken = [example.id for example, row in rows if not all(math.isfinite(score.logp) for score in row)]
    if broken:
        names = ", ".join(broken[:_NAMED]) + (", ..." if len(broken) > _NAMED else "")
        raise RunFailedError(
            f"suite {suite.name!r}: log-probabilities are not finite on {len(broken)} of {len(scores)} rows ({names})"
        )
    return scores


def suite_result(
    suite: Suite[Any],
    items: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, Estimate],
    contrasts: Sequence[Contrast],
) -> SuiteResult:
    """Return a suite's result, with the contrasts of the metrics it has. Clusters are counted within a task."""
    return SuiteResult(
        suite=suite.name,
        n=len(items),
        clusters=len({(item.get("task"), item["cluster"]) for item in items}),
        metrics=metrics,
        items=items,
        settings=suite.settings.model_dump(mode="json"),
        contrasts=[contrast for contrast in contrasts if contrast.metric in metrics],
    )


def cluster_of(example: Example) -> str:
    """Return a row's cluster, by default one for its prompt: rows with the same prompt are not independent."""
    return example.cluster or "prompt-" + hashlib.sha256(repr(tuple(example.prompt)).encode()).hexdigest()[:12]


def rows_digest(rows: Iterable[Row]) -> str:
    """Return the SHA-256 of held-out rows: ids, clusters, categories, prompts, completions and tools as text."""
    content = hashlib.sha256()
    encode = json.JSONEncoder(ensure_ascii=False, default=dict).encode
    for row in rows:
        tools = [row.tools] if row.tools else []
        content.update(encode((row.id, row.cluster, row.category, row.prompt, row.answers, *tools)).encode() + b"\n")
    return content.hexdigest()
