"""Preference accuracy: whether the model gives the chosen completion a higher log-probability than the rejected one.

The score of a completion is the sum of its tokens' log-probabilities (``sum``, end token included), their mean (``mean``), or
the sum minus that of the start model (``ref``). Sum and mean favour completions of different lengths, so both are reported,
next to the accuracy of always preferring the longer completion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from alignkit import Contrast, Estimate, Example, Settings, Suite, SuiteResult, Target
from alignkit.errors import RunFailedError
from pydantic import Field
from scipy import special

from alignkit_eval.statistics import Floats, clustered_mean, clustered_proportion
from alignkit_eval.suites.scores import (
    CompletionScore,
    cluster_of,
    finite_scores,
    require_rows,
    rows_digest,
    suite_result,
)

CONTRASTS = (
    Contrast("accuracy_sum", "credit_sum", verdict=("accuracy_mean",), margin=0.03, bounds=(0, 1)),
    Contrast("accuracy_mean", "credit_mean", verdict=("accuracy_sum",), margin=0.03, bounds=(0, 1)),
    Contrast("accuracy_ref", "credit_ref", against_start=True, margin=0.03, bounds=(0, 1)),
    Contrast("accuracy_best", "credit_best", "groups", margin=0.03, bounds=(0, 1)),
)
"""Sum and mean favour completions of different lengths: there is a winner only where both agree."""


class PreferenceSettings(Settings):
    """Settings of the preference suite."""

    tokens_per_batch: int = Field(16384, ge=1, description="maximum tokens per forward pass")
    calibration_bins: int = Field(10, ge=1, description="number of equal-width bins of the expected calibration error")


@dataclass(frozen=True)
class ScoredPair:
    """A scored preference pair; ``start_margin`` is the start model's margin by sum, None without a start model."""

    id: str
    cluster: str
    category: str
    chosen: CompletionScore
    rejected: CompletionScore
    start_margin: float | None = None
    group: str = ""
    """Name of the row with several rejected completions that the pair comes from; empty for other pairs."""

    @property
    def margin_sum(self) -> float:
        """Log-probability of the chosen completion minus that of the rejected one, in nats."""
        return self.chosen.logp - self.rejected.logp

    @property
    def margin_mean(self) -> float:
        """The same difference between means per token."""
        return self.chosen.mean - self.rejected.mean

    @property
    def margin_ref(self) -> float | None:
        """Margin by sum minus that of the start model."""
        return None if self.start_margin is None else self.margin_sum - self.start_margin

    @property
    def longer(self) -> int:
        """Scored tokens of the chosen completion minus those of the rejected one."""
        return self.chosen.tokens - self.rejected.tokens

    def item(self) -> dict[str, Any]:
        """Return the pair's line of ``prefs.items.jsonl``."""
        reference = {} if self.margin_ref is None else {"credit_ref": credit(self.margin_ref)}
        return {
            "id": self.id,
            "cluster": self.cluster,
            "category": self.category,
            "chosen_sum": self.chosen.logp,
            "rejected_sum": self.rejected.logp,
            "chosen_tokens": self.chosen.tokens,
            "rejected_tokens": self.rejected.tokens,
            "credit_sum": credit(self.margin_sum),
            "credit_mean": credit(self.margin_mean),
            "margin_sum": self.margin_sum,
            "margin_mean": self.margin_mean,
        } | reference


class PreferenceSuite(Suite[PreferenceSettings]):
    """Preference accuracy and margins over held-out pairs, by sum, by mean and relative to the start model."""

    name = "prefs"
    metrics = tuple(contrast.metric for contrast in CONTRASTS)
    classifiers = True
    settings_type = PreferenceSettings
    uses_start = True

    def content(self, target: Target) -> str:
        return rows_digest(target.rows("preference"))

    def evaluate(self, target: Target) -> SuiteResult:
        examples = list(target.examples("preference"))  # read once, as every process does
        require_rows(self.name, "preference", examples)
        pairs = make_pairs(examples, finite_scores(self, target, examples), target.start)
        items = [pair.item() | best for pair, best in zip(pairs, best_of(pairs), strict=True)]
        metrics = pair_metrics(pairs, self.settings.calibration_bins)
        return suite_result(self, items, metrics, CONTRASTS)


def credit(margin: float) -> float:
    """Return 1 for a positive margin, 0.5 for an exact tie, 0 for a negative or non-finite one.

    >>> credit(0.3), credit(0.0), credit(-2.0), credit(float("nan"))
    (1.0, 0.5, 0.0, 0.0)
    """
    if not math.isfinite(margin):
        return 0.0
    return 0.5 if margin == 0 else float(margin > 0)


def make_pairs(
    examples: Sequence[Example], scores: Sequence[Sequence[CompletionScore]], start: SuiteResult | None = None
) -> list[ScoredPair]:
    """Return rows as pairs with their scores (chosen first) and the start model's margins.

    Raises:
        RunFailedError: the start model's items have duplicate ids, or lack a row.
    """
    margins: dict[str, float] = {}
    for item in start.items if start else ():
        if item["id"] in margins:
            raise RunFailedError(f"duplicate id {item['id']!r} among the held-out pairs: ids must be unique")
        margins[item["id"]] = item["chosen_sum"] - item["rejected_sum"]
    if start and (missing := [e.id for e in examples if e.id not in margins]):
        raise RunFailedError(
            f"the start model was not evaluated on {len(missing)} of the held-out pairs (first: {missing[0]})"
        )
    return [
        ScoredPair(
            id=example.id,
            cluster=cluster_of(example),
            category=example.category,
            chosen=chosen,
            rejected=rejected,
            start_margin=margins.get(example.id),
            group=str(example.fields.get("group", "")),
        )
        for example, (chosen, rejected) in zip(examples, scores, strict=True)
    ]


def best_of(pairs: Sequence[ScoredPair]) -> list[dict[str, float]]:
    """Return each pair's part of best-of-n accuracy: whether the chosen completion beats all rejected ones of its row.

    The credit of a row is that of its worst pair by sum, and belongs to the first of its pairs, where ``groups`` is 1; the
    other pairs have 0 for both. A pair without a group is a row of its own. Without groups, the parts are empty.
    """
    if not any(pair.group for pair in pairs):
        return [{} for _ in pairs]
    credits: dict[str, float] = {}
    for pair in pairs:
        name = pair.group or pair.id
        credits[name] = min(credit(pair.margin_sum), credits.get(name, 1.0))
    # Rows still in `credits` have not been reached yet: the next of their pairs is the first.
    return [
        {"credit_best": credits.pop(name), "groups": 1.0} if name in credits else {"credit_best": 0.0, "groups": 0.0}
        for name in (pair.group or pair.id for pair in pairs)
    ]


def pair_metrics(pairs: Sequence[ScoredPair], bins: int) -> dict[str, Estimate]:
    """Return every metric of the suite; intervals of accuracies and the Brier score lie inside [0, 1]."""
    clusters = [pair.cluster for pair in pairs]
    margins = np.array([pair.margin_sum for pair in pairs])
    probabilities = special.expit(margins)  # of the chosen completions
    metrics = {
        "accuracy_sum": accuracy(pairs),
        "accuracy_mean": clustered_proportion([credit(pair.margin_mean) for pair in pairs], clusters),
        # Accuracy of always preferring the longer completion (1 minus this: the shorter one).
        "accuracy_length": clustered_proportion([credit(float(pair.longer)) for pair in pairs], clusters),
        "margin_sum": clustered_mean(margins, clusters),
        "margin_mean": clustered_mean([pair.margin_mean for pair in pairs], clusters),
        "logp_chosen": clustered_mean([pair.chosen.mean for pair in pairs], clusters),
        "logp_rejected": clustered_mean([pair.rejected.mean for pair in pairs], clusters),
        # The outcome is always 1: the chosen completion is the better one.
        "brier": clustered_proportion((1 - probabilities) ** 2, clusters),
        "ece": Estimate(expected_calibration_error(probabilities, bins)),
    }
    relative = [pair.margin_ref for pair in pairs if pair.margin_ref is not None]
    if relative:
        metrics["accuracy_ref"] = clustered_proportion([credit(margin) for margin in relative], clusters)
        metrics["margin_ref"] = clustered_mean(relative, clusters)
    if any(pair.group for pair in pairs):
        rows = [(best["credit_best"], c) for best, c in zip(best_of(pairs), clusters, strict=True) if best["groups"]]
        metrics["accuracy_best"] = clustered_proportion(*zip(*rows, strict=True))
    for relation, sign in (("shorter", -1), ("same", 0), ("longer", 1)):
        if part := [pair for pair in pairs if np.sign(pair.longer) == sign]:
            metrics[f"accuracy_sum/{relation}"] = accuracy(part)
    for category in sorted({pair.category for pair in pairs} - {""}):
        metrics[f"accuracy_sum/category/{category}"] = accuracy([p for p in pairs if p.category == category])
    return metrics


def accuracy(pairs: Sequence[ScoredPair]) -> Estimate:
    """Return the preference accuracy by sum."""
    return clustered_proportion([credit(pair.margin_sum) for pair in pairs], [pair.cluster for pair in pairs])


def expected_calibration_error(probabilities: Floats, bins: int) -> float:
    """Return the expected calibration error of the model's predictions.

    The prediction for a pair is the more likely completion, its confidence ``max(p, 1 - p)``, from 0.5 to 1. In bins of
    equal width, ECE = sum_b (n_b / n) |accuracy_b - confidence_b|. It is biased upwards in small samples and has no interval.
    ``probabilities [n]`` are those of the chosen completions.

    Source: Guo et al. 2017, arXiv:1706.04599, equation 3.
    """
    confidence = np.maximum(probabilities, 1 - probabilities)
    right = np.where(probabilities == 0.5, 0.5, probabilities > 0.5)
    which = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    gaps = np.bincount(which, weights=right - confidence, minlength=bins)  # n_b (accuracy_b - confidence_b)
    return float(np.abs(gaps).sum() / len(probabilities))
