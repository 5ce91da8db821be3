"""The result of a comparison: arms, contrasts between them, and a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from alignkit import Estimate
from alignkit.contract.registry import provided
from alignkit.system.files import to_json

Outcome = Literal["better", "worse", "equivalent", "undecided"]


@dataclass(frozen=True)
class Cost:
    """Cost of training an arm: means over its seeds, including earlier stages and reference passes; None where unknown.

    ``flops`` counts 6 N per trained token and 2 N per token scored without gradient, with N parameters (Kaplan et al.
    2020, arXiv:2001.08361, section 2.1).
    """

    tokens: float | None = None
    flops: float | None = None
    seconds: float | None = None
    memory_gb: float | None = None


def total(values: Sequence[float | None]) -> float | None:
    """Return the sum of amounts; None where one of them is unknown."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


@dataclass(frozen=True)
class Arm:
    """Runs that differ only in their seed."""

    name: str
    """Method and distinguishing settings, ``orpo lambda=0.1``, or the name of the directory of an evaluated model."""
    runs: tuple[Path, ...]
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]
    """Configuration by dotted key where it differs between arms, and ``method``."""
    cost: Cost
    metrics: Mapping[str, Mapping[str, Estimate]]
    """Metrics by suite, means over seeds; with several seeds, intervals cover seeds as well as items."""


@dataclass(frozen=True)
class ContrastResult:
    """A metric of an arm compared with the baseline's, paired on the same items."""

    arm: str
    suite: str
    metric: str
    diff: float
    """Arm minus baseline, in the metric's unit."""
    low: float | None
    high: float | None
    p: float | None
    """None with a single cluster."""
    p_holm: float | None
    """``p`` after Holm's correction over all contrasts."""
    n: int
    clusters: int
    seeds: int
    """Number of paired runs; with one, interval and p are about these two trained models."""
    detectable: float | None
    """Minimum detectable difference at 80 % power, by the first test in Holm's order; None: there is none."""
    higher_is_better: bool
    test: str
    """Test behind p: ``cluster sign-flip``, ``t, one degree of freedom``, ``t, Banerjee`` or ``t, cluster bootstrap``."""
    baseline: str = ""
    guard: bool = False
    """Whether the metric must not be worse for a winner."""
    deciding: bool = False
    """Whether the metric is part of the objective."""
    margin: float | None = None
    """Difference that counts as none; of a perplexity a share of it. None: equivalence was not tested."""
    p_equivalent: float | None = None
    """p of equivalence, by the test behind ``p``: below 0.05 where the interval lies inside the margin."""
    p_equivalent_holm: float | None = None
    """``p_equivalent`` after Holm's correction over all contrasts with a margin."""
    log: bool = False
    """Whether the margin is a share of the baseline's value."""
    reachable: bool = True
    """Whether any result could be significant after the correction: not with few clusters."""
    models: ContrastResult | None = None
    """The same difference as one between these trained models, their seeds fixed; None with one seed, where that is this one."""
    seeds_needed: int | None = None
    """Seeds that would show a difference of this size with 80 % power; None: one seed, or more than 100, or more items too."""

    @property
    def significant(self) -> bool:
        """Whether the corrected p is below 0.05."""
        return self.p_holm is not None and self.p_holm < 0.05

    @property
    def better(self) -> bool | None:
        """Whether the arm is significantly better (True) or worse (False) than the baseline; None: neither."""
        return (self.diff > 0) == self.higher_is_better if self.significant else None

    @property
    def within_margin(self) -> bool:
        """Whether the arms are shown to differ by less than the margin, if they differ at all."""
        return self.p_equivalent_holm is not None and self.p_equivalent_holm < 0.05

    @property
    def outcome(self) -> Outcome:
        """What is shown: a significant difference, else equivalence, else nothing."""
        if self.better is not None:
            return "better" if self.better else "worse"
        return "equivalent" if self.within_margin else "undecided"


@dataclass(frozen=True, repr=False)
class Comparison:
    """Arms compared with a baseline."""

    baseline: str
    arms: tuple[Arm, ...]
    contrasts: tuple[ContrastResult, ...]
    verdict: str
    """The result in sentences, with uncertainty."""
    winner: str | None
    """Name of the arm that is significantly better than every other one by all metrics of the objective, and worse by no guard."""
    pairs: tuple[ContrastResult, ...] = ()
    """Metrics of the objective of any two arms, each pair once, with p corrected over these."""
    letters: Mapping[str, str] = field(default_factory=dict)
    """Arms that share a letter are not significantly different by all deciding metrics."""
    notes: tuple[str, ...] = ()
    """Limits of the comparison: metrics left out, different loss conventions, single seeds."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Configuration shared by all arms, by dotted key."""
    rules: Mapping[str, Any] = field(default_factory=dict)
    """The metrics of the objective, the guards, and the margins by metric."""

    def __repr__(self) -> str:
        return f"Comparison of {', '.join(arm.name for arm in self.arms)} (baseline {self.baseline}): {self.verdict}"

    def _repr_html_(self) -> str | None:
        show = provided("align.reports", "notebook")
        return show(self) if show else None

    def to_pandas(self) -> Any:
        """Return the differences from the baseline as a ``pandas.DataFrame``, one row for each arm and metric."""
        import pandas

        return pandas.DataFrame([asdict(one) | {"outcome": one.outcome} for one in self.contrasts]).drop(
            columns="models"
        )

    def arm(self, name: str) -> Arm:
        """Return the arm called ``name``."""
        return next(arm for arm in self.arms if arm.name == name)

    def to_json(self) -> dict[str, Any]:
        """Return the output of ``align compare --json`` as plain JSON types.

        In a contrast, ``run`` is the arm's first run directory, ``seeds`` are the arm's seeds, and ``pairs`` is the number
        of paired runs.
        """
        contrasts = []
        for contrast in self.contrasts:
            arm = self.arm(contrast.arm)
            named = {"run": arm.runs[0], "arm": arm.name, "seeds": arm.seeds, "pairs": contrast.seeds}
            values = {k: v for k, v in asdict(contrast).items() if k not in named}
            contrasts.append(named | values | _answers(contrast))
        pairs = [asdict(pair) | _answers(pair) for pair in self.pairs]
        whole: dict[str, Any] = {"baseline": self.baseline, "verdict": self.verdict, "winner": self.winner}
        whole["rules"] = self.rules
        whole |= {"contrasts": contrasts, "pairs": pairs, "letters": self.letters}
        whole |= {"arms": self.arms, "notes": self.notes, "settings": self.settings}
        return {key: to_json(value) for key, value in whole.items()}


def _answers(contrast: ContrastResult) -> dict[str, Any]:
    """Return the outcome, and what is shown about the trained models, without what both have in common."""
    models = contrast.models
    own = models and {key: getattr(models, key) for key in _OF_MODELS}
    return {"outcome": contrast.outcome, "models": own}


_OF_MODELS = "low high p p_holm detectable reachable test p_equivalent p_equivalent_holm outcome".split()
