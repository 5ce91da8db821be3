"""What a comparison says: arms, contrasts between them, and a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from alignkit import Estimate
from alignkit.system.files import to_json


@dataclass(frozen=True)
class Cost:
    """What an arm cost to train, a mean over its seeds, earlier stages and reference passes included.

    None where it is not known. ``flops`` counts 6 N a token trained and 2 N a token scored without gradient, N the
    parameters (Kaplan et al. 2020, arXiv:2001.08361, section 2.1).
    """

    tokens: float | None = None
    flops: float | None = None
    seconds: float | None = None
    memory_gb: float | None = None


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seed alone."""

    name: str
    """What tells the arm from the others: ``orpo lambda=0.1``, or the run directory's name where nothing does."""
    runs: tuple[Path, ...]
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]
    """Configuration by dotted key, where it differs between arms; ``method`` among them."""
    cost: Cost
    metrics: Mapping[str, Mapping[str, Estimate]]
    """Metrics by suite, a mean over the seeds; with several seeds the interval covers seeds as well as items."""


@dataclass(frozen=True)
class ContrastResult:
    """One metric of an arm against the baseline's, paired on the same items."""

    arm: str
    suite: str
    metric: str
    diff: float
    """The arm's less the baseline's, in the metric's unit."""
    low: float | None
    high: float | None
    p: float | None
    """None where there is nothing to judge by (one cluster)."""
    p_holm: float | None
    """``p`` after Holm's correction over every contrast that has one."""
    n: int
    clusters: int
    seeds: int
    """Pairs of runs behind it; with one, interval and p are conditional on that seed."""
    detectable: float | None
    """Smallest difference found with 80 % power at this size."""
    higher_is_better: bool
    test: str
    """How p was made: ``cluster sign-flip`` or ``t, Satterthwaite``."""

    @property
    def significant(self) -> bool:
        """Whether the corrected p is below 5 %."""
        return self.p_holm is not None and self.p_holm < 0.05

    @property
    def better(self) -> bool | None:
        """Whether the arm is significantly better (True) or worse (False) than the baseline; None: neither."""
        return (self.diff > 0) == self.higher_is_better if self.significant else None


@dataclass(frozen=True)
class Comparison:
    """Arms compared with a baseline."""

    baseline: str
    arms: tuple[Arm, ...]
    contrasts: tuple[ContrastResult, ...]
    verdict: str
    """In words, with its uncertainty."""
    winner: str | None
    """The arm that is significantly better than every other by every judging metric; None: none is."""
    notes: tuple[str, ...] = ()
    """What a reader must know: left out metrics, conventions that differ, one seed only."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Configuration all arms share, by dotted key."""

    def arm(self, name: str) -> Arm:
        """Return the arm called ``name``."""
        return next(arm for arm in self.arms if arm.name == name)

    def to_json(self) -> dict[str, Any]:
        """Return what ``align compare --json`` prints, in JSON's own types.

        Of a contrast, ``run`` is the arm's first run directory, ``seeds`` are the arm's, and ``pairs`` is how many pairs of
        runs stand behind it.
        """
        contrasts = []
        for contrast in self.contrasts:
            arm = self.arm(contrast.arm)
            named = {"run": arm.runs[0], "arm": arm.name, "seeds": arm.seeds, "pairs": contrast.seeds}
            contrasts.append(named | {k: v for k, v in asdict(contrast).items() if k not in named})
        whole = {
            "baseline": self.baseline,
            "verdict": self.verdict,
            "winner": self.winner,
            "contrasts": contrasts,
            "arms": self.arms,
            "notes": self.notes,
            "settings": self.settings,
        }
        return {key: to_json(value) for key, value in whole.items()}
