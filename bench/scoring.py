"""Benchmark of evaluation: log-likelihoods of two and four answers per prompt, by alignkit's scorer and lm-eval's HFLM.

Both get the same token ids. HFLM uses its fastest batch size among :data:`BATCH_SIZES`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from alignkit.contract.batch import Example

from bench.cells import SHAPES, BenchCell, Shape, Workload
from bench.clock import Times, measure, take_turns

BATCH_SIZES = (1, 8, 32)
TOLERANCE = 1e-4
TOKENS_PER_BATCH = 16384
"""Batch size of the suites, in tokens."""


@dataclass(frozen=True)
class Choices:
    """The rows of one comparison: number of answers per prompt, lengths, and the target speed-up."""

    name: str
    answers: int
    workload: Workload
    target: float | None
    shape: Shape = SHAPES[0]

    def examples(self) -> list[Example]:
        """Return random rows, seeded by the name."""
        draw = random.Random(self.name)

        def tokens(low: int, high: int) -> list[int]:
            return [draw.randrange(3, self.shape.vocabulary) for _ in range(draw.randint(low, high))]

        work = self.workload
        return [
            Example(str(i), tokens(*work.prompt), tuple(tokens(*work.completion) for _ in range(self.answers)), i)
            for i in range(work.rows)
        ]


CHOICES = (
    Choices("pairs", 2, Workload("pairs", rows=16, prompt=(64, 256), completion=(16, 64)), target=2.0),
    # As in multiple-choice benchmarks: a question, and answers of a few words.
    Choices("four choices", 4, Workload("choices", rows=16, prompt=(64, 256), completion=(2, 16)), target=4.5),
    Choices("four long", 4, Workload("long", rows=16, prompt=(64, 256), completion=(16, 64)), target=None),
)


@dataclass(frozen=True)
class ScoringResult:
    """The result for one kind of rows."""

    choices: Choices
    difference: float
    """Maximum relative difference of a log-likelihood."""
    batch_size: int
    times: Times | None

    @property
    def met(self) -> bool:
        """Whether both sides agree and the target is met."""
        return self.times is not None and self.times.ratio >= (self.choices.target or 0.0)

    def row(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        about = {"name": self.choices.name, "work": "score", "quantity": "speed", "target": self.choices.target}
        seconds = None
        if self.times is not None:
            sides = {"ours": self.times.ours, "hflm": self.times.theirs}
            seconds = {side: [s._asdict() for s in samples] for side, samples in sides.items()}
        return about | {
            "ratio": None if self.times is None else self.times.ratio,
            "met": self.met,
            "difference": self.difference,
            "batch_size": self.batch_size,
            "seconds": seconds,
        }

    def line(self) -> str:
        """Return the result as a table line."""
        if self.times is None:
            return f"{self.choices.name:<14} not measured: the sides disagree by {self.difference:.1e}"
        theirs, ours = (median(s.total for s in side) for side in (self.times.theirs, self.times.ours))
        target = "-" if self.choices.target is None else f"{'' if self.met else '!'}>={self.choices.target:g}"
        return (
            f"{self.choices.name:<14} {theirs:8.3f} {ours:8.3f} {self.times.ratio:6.2f}x "
            f"{target}  batch {self.batch_size}"
        )


HEADER = f"{'scoring':<14} {'HFLM s':>8} {'ours s':>8} {'faster':>7} target"


def compare(choices: Choices, repeats: int, device: str = "cpu") -> ScoringResult:
    """Check that both sides agree, then measure them alternately."""
    from alignkit.scoring.policy import ModelPolicy
    from alignkit.scoring.scorer import install
    from lm_eval.models.huggingface import HFLM

    from bench.models import build
    from bench.trl import tokenizer

    model = build(BenchCell("orpo", choices.workload, choices.shape, device=device)).eval()
    policy = ModelPolicy(model, install(model))
    rows = choices.examples()
    harness = HFLM(pretrained=model, tokenizer=tokenizer(), batch_size=1)
    requests = [(("", ""), list(row.prompt), list(answer)) for row in rows for answer in row.completions]

    def ours(_: int) -> list[float]:
        return _score(policy, rows)

    def theirs(_: int) -> list[float]:
        return [value for value, _greedy in harness._loglikelihood_tokens(requests, disable_tqdm=True)]

    costs = {}
    for size in BATCH_SIZES:
        harness.batch_size_per_gpu = size
        costs[size] = measure(theirs, 0, device).total
    harness.batch_size_per_gpu = best = min(costs, key=costs.__getitem__)
    difference = max(abs(a - b) / abs(b) for a, b in zip(ours(0), theirs(0), strict=True))
    times = take_turns(ours, theirs, lambda: None, repeats, device) if difference <= TOLERANCE else None
    return ScoringResult(choices, difference, best, times)


def _score(policy: Any, rows: Sequence[Example]) -> list[float]:
    from alignkit_eval.suites.scores import score_completions

    return [score.logp for row in score_completions(policy, rows, TOKENS_PER_BATCH, "bench") for score in row]
