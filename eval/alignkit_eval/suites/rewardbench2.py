"""RewardBench 2: whether the right completion of a prompt has the highest score, for reward models and for policies.

The scores of a reward model are its rewards. A policy has three: the sum of the completion's log-probabilities (``sum``, end token
included), their mean per token (``mean``), and the sum minus that of a reference model (``ref``), which is the implicit reward of
DPO up to its factor beta. All are reported, each under its own name; see :mod:`alignkit_eval.suites.rewardbench2_scores`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from alignkit import Contrast, Estimate, Example, LoadedModel, RunConfig, Settings, Suite, SuiteResult, Target
from alignkit.contract import Row
from alignkit.errors import ConfigError, ModelError, NoRowsError, RunFailedError
from alignkit.models.positions import position_limit
from alignkit.runs.evaluation import Subject
from alignkit.scoring.ranks import share
from alignkit.system.files import digest
from pydantic import Field

from alignkit_eval.evaluation.targets import built, find_target, open_target
from alignkit_eval.suites.benchmark_rows import open_benchmark, read_benchmark, tokenised
from alignkit_eval.suites.rewardbench2_rows import read_rows
from alignkit_eval.suites.rewardbench2_scores import add_credits, measured
from alignkit_eval.suites.scores import CompletionScore, finite_scores, rows_digest, suite_result

_AGREE = {"sum": ("accuracy/mean",), "mean": ("accuracy/sum",), "ref": (), "reward": ("accuracy/reward",)}
"""Scores -> metrics that must agree with the accuracy by them before a winner is named."""


class RewardBench2Settings(Settings):
    """Settings of the rewardbench2 suite."""

    data: str = Field(
        description="rows in RewardBench 2's form (prompt, chosen, rejected, subset, id): file, directory, URL or hub id"
    )
    reference: str | None = Field(
        None, description="reference model of a policy: run, model directory or hub id (default: the run's start model)"
    )
    max_length: int | None = Field(
        None, ge=2, description="maximum tokens of a prompt and a completion (default: the model's positions)"
    )
    tokens_per_batch: int = Field(16384, ge=1, description="maximum tokens per forward pass")


class RewardBench2Suite(Suite[RewardBench2Settings]):
    """Accuracy of choosing the best of n completions, by subset, with RewardBench 2's score of tied ones."""

    name = "rewardbench2"
    metrics = ("accuracy/*",)
    settings_type = RewardBench2Settings
    classifiers = True
    uses_start = True

    def __init__(self, settings: RewardBench2Settings) -> None:
        super().__init__(settings)
        self._source = open_benchmark(settings.data, "rewardbench2.data")
        self._found = None
        if settings.reference is not None:
            try:
                self._found = replace(find_target(settings.reference), has_data=False, own_data=False)
            except (ConfigError, ModelError) as error:
                raise type(error)(f"rewardbench2.reference: {error}") from error

    def models(self, config: RunConfig) -> list[LoadedModel]:
        return [] if self._found is None else [built(self._found, meta=True)]

    @cached_property
    def _rows(self) -> list[Row]:
        return read_rows(read_benchmark(self._source))

    @cached_property
    def _reference(self) -> Subject | None:
        if self._found is None:
            return None
        subject, _ = open_target(self._found)
        if getattr(subject.policy, "classifier", False):
            raise ConfigError(f"rewardbench2.reference: {subject.name} is a reward model: name a language model")
        return subject

    def content(self, target: Target) -> str:
        reference = None if self._reference is None else self._reference.weights
        return digest([rows_digest(self._rows), [row.fields for row in self._rows], reference])

    def evaluate(self, target: Target) -> SuiteResult:
        limit = min((n for n in (self.settings.max_length, position_limit(target.policy.model)) if n), default=None)
        examples, left_out = tokenised(self._rows, target.tokenizer, limit)
        if not examples:
            raise NoRowsError(f"rewardbench2.data: no row can be scored: {left_out[0]}")
        by_kind = self._scores(target, examples)
        items = [
            {
                "id": example.id,
                "cluster": example.cluster,
                "category": example.category,
                "subset": example.category,
                "ties": example.fields["kind"],
                "right": example.fields["right"],
            }
            | {f"scores/{kind}": [float(score) for score in scores[i]] for kind, scores in by_kind.items()}
            for i, example in enumerate(examples)
        ]
        metrics: dict[str, Estimate] = {}
        contrasts: list[Contrast] = []
        for kind in by_kind:
            add_credits(items, kind)
            against_start = kind == "ref" and self._reference is None
            pattern = Contrast(f"accuracy/{kind}", "", verdict=_AGREE[kind], margin=0.03, against_start=against_start)
            found, made = measured(items, kind, pattern)
            metrics |= found
            contrasts += made
        result = suite_result(self, items, metrics, contrasts)
        return replace(result, left_out=left_out, notes=self._notes(target, by_kind, items))

    def _scores(self, target: Target, examples: Sequence[Example]) -> dict[str, list[list[float]]]:
        """Return the scores of every row's completions: a reward model's rewards, or a policy's three kinds."""
        scores = finite_scores(self, target, examples)
        sums = [[score.logp for score in row] for row in scores]
        if getattr(target.policy, "classifier", False):
            return {"reward": sums}
        found = {"sum": sums, "mean": [[score.mean for score in row] for row in scores]}
        before = self._reference_sums(target, examples)
        if before is not None:
            found["ref"] = [[a - b for a, b in zip(*pair, strict=True)] for pair in zip(sums, before, strict=True)]
        return found

    def _reference_sums(self, target: Target, examples: Sequence[Example]) -> list[list[float]] | None:
        """Return the reference model's sums, None where there is none.

        Raises:
            RunFailedError: the start model has no scores of a row.
            ConfigError: the reference model has fewer positions than a row.
        """
        if self._reference is None:
            known = (
                {item["id"]: item["scores/sum"] for item in target.start.items if "scores/sum" in item}
                if target.start
                else {}
            )
            if not known:
                return None
            if missing := next((example.id for example in examples if example.id not in known), None):
                raise RunFailedError(f"suite {self.name!r}: the start model was not evaluated on row {missing}")
            return [known[example.id] for example in examples]
        other = self._reference
        limit = min((n for n in (self.settings.max_length, position_limit(other.policy.model)) if n), default=None)
        own, _ = tokenised(self._rows, other.tokenizer, limit)
        scored: dict[str, tuple[CompletionScore, ...]] = {}
        against = replace(target, name=other.name, policy=share(other.policy), tokenizer=other.tokenizer)
        for example, row in zip(own, finite_scores(self, against, own), strict=True):
            scored[example.id] = row
        if missing := next((example.id for example in examples if example.id not in scored), None):
            raise ConfigError(f"rewardbench2.reference: {other.name} cannot score row {missing}")
        return [[score.logp for score in scored[example.id]] for example in examples]

    def _notes(self, target: Target, kinds: dict[str, Any], items: Sequence[dict[str, Any]]) -> list[str]:
        """Return sentences on what the scores are, and on rows of Ties that make no score."""
        notes = []
        if "reward" in kinds:
            notes.append("scores are the reward model's rewards")
        else:
            named = "the start model" if self._reference is None else self._reference.name
            ref = f"; ref: the sum minus that of {named}" if "ref" in kinds else ""
            notes.append(f"scores are log-probabilities, sum: of all tokens, mean: per token{ref}")
            if not ref:
                notes.append("no accuracy by ref: name a reference model with eval.settings.rewardbench2.reference")
        if any(item["ties"] for item in items) and not any(item["ties"] and item["weight"] for item in items):
            notes.append("no score of the subset Ties: it needs a prompt N with both rows ref:N and tied:N")
        return notes
