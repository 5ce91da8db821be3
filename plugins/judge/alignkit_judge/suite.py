"""The suite ``judge``: the win rate of a target's answers by a judge, with the judge's own error in its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from alignkit import Contrast, Estimate, LoadedModel, Omission, RunConfig, Suite, SuiteResult, Target, plain_text
from alignkit.contract import Row
from alignkit.errors import ConfigError
from alignkit.models.generate import generate
from alignkit.models.positions import position_limit
from alignkit.runs.evaluation import Subject
from alignkit.system.distributed import rank
from alignkit.system.files import digest
from alignkit.system.together import from_first
from alignkit_eval.evaluation.targets import built
from alignkit_eval.statistics import clustered_mean, clustered_proportion
from alignkit_eval.suites.positions import fitted
from alignkit_eval.suites.scores import cluster_of, evenly_spaced, require_rows, rows_digest, suite_result

from alignkit_judge.calibration import Calibration, calibrate, calibration_rows
from alignkit_judge.estimates import (
    UncorrectableError,
    Verdicts,
    bounded,
    corrected_win_rate,
    length_controlled,
    rated_win_rate,
)
from alignkit_judge.judging import Question, Verdict, compare, text_of
from alignkit_judge.models import find_model, open_model, prompt_tokens
from alignkit_judge.opening import open_judge
from alignkit_judge.ratings import rated
from alignkit_judge.settings import REFERENCE, JudgeSuiteSettings

CONTRASTS = (
    Contrast("win_rate", "win", verdict=("win_rate",), margin=0.03),
    Contrast("ties", "tie", higher_is_better=False),
    Contrast("length_difference", "longer", higher_is_better=False),
)


class Answer(NamedTuple):
    """A target's answer to a row's prompt and the one it is compared with."""

    row: Row
    cluster: str
    answer: str
    other: str
    tokens: int
    """Tokens of the target's answer."""


class JudgeSuite(Suite[JudgeSuiteSettings]):
    """Pairwise win rate of the answers by a judge: raw, length-controlled, and corrected for the judge's measured error."""

    name = "judge"
    metrics = tuple(contrast.metric for contrast in CONTRASTS)
    settings_type = JudgeSuiteSettings

    def __init__(self, settings: JudgeSuiteSettings) -> None:
        super().__init__(settings)
        self.judge = open_judge(settings, together=True)
        named = settings.baseline != REFERENCE
        self._baseline = find_model(settings.baseline, "judge.baseline") if named else None

    def models(self, config: RunConfig) -> list[LoadedModel]:
        return [*self.judge.models(), *([] if self._baseline is None else [built(self._baseline, meta=True)])]

    @cached_property
    def baseline(self) -> Subject | None:
        """The model whose answers are the baseline."""
        return None if self._baseline is None else open_model(self._baseline, "judge.baseline")

    @property
    def _kind(self) -> Any:
        return "completion" if self.settings.baseline == REFERENCE else "prompt"

    def content(self, target: Target) -> str:
        s = self.settings
        rows = [
            rows_digest(evenly_spaced(target.rows(self._kind), s.prompts)),
            rows_digest(calibration_rows(s, target)),
        ]
        baseline = self.baseline and self.baseline.weights
        return digest([rows, dict(self.judge.identity), baseline, rated(s, target, []).digest])

    def evaluate(self, target: Target) -> SuiteResult:
        """Have the target answer and the judge compare; ``ConfigError`` is also raised for ratings of other answers."""
        answers, cut = self._answers(target)
        require_rows(self.name, self._kind, [answer.row for answer in answers])
        verdicts = self._judged([Question(a.row.id, text_of(a.row.prompt), a.answer, a.other) for a in answers])
        kept = [(answer, verdict) for answer, verdict in zip(answers, verdicts, strict=True) if verdict is not None]
        if not kept:
            why = "; ".join(from_first(self.judge.report()))
            raise ConfigError(f"judge.model: there is no verdict on any of the {len(answers)} answers: {why}")
        items = [_item(answer, verdict, self.settings) for answer, verdict in kept]
        calibration = calibrate(self.settings, calibration_rows(self.settings, target), self._judged)
        metrics, notes = self._metrics(items, calibration, target)
        left = Omission(
            "answers", len(answers) - len(kept), len(answers), "left out: the judge gave no verdict on them"
        )
        notes += from_first(self.judge.report())
        result = suite_result(self, items, metrics, CONTRASTS)
        return replace(result, left_out=[*cut, *([left] if left.n else [])], notes=notes)

    def _judged(self, questions: Sequence[Question]) -> list[Verdict | None]:
        """Return the judge's verdicts; the first process alone asks an endpoint."""
        if self.settings.url is None:
            return compare(self.judge, questions)
        return from_first(compare(self.judge, questions) if rank() == 0 else [])

    def _answers(self, target: Target) -> tuple[list[Answer], list[Omission]]:
        """Return the target's answers and those they are compared with."""
        new, limit = self.settings.max_new_tokens, position_limit(target.policy.model)
        if limit is not None and new >= limit:
            raise ConfigError(
                f"eval.settings.judge.max_new_tokens is {new}, and {target.name} has {limit} positions for prompt and answer"
            )
        rows = {row.id: row for row in evenly_spaced(target.rows(self._kind), self.settings.prompts)}
        chosen = [example for example in target.examples(self._kind) if example.id in rows]
        examples, left_out = fitted(
            target.policy.model, [replace(e, completions=(), masks=None) for e in chosen], reserved=new
        )
        given = [list(example.prompt) for example in examples]
        found = generate(target.policy.model, target.tokenizer, given, max_new_tokens=new)
        texts = [target.tokenizer.decode(answer.tokens, skip_special_tokens=True).strip() for answer in found]
        kept = [rows[example.id] for example in examples]
        others, others_cut = self._others(kept)
        lengths = [len(answer.tokens) for answer in found]
        clusters = map(cluster_of, examples)
        answers = [Answer(*one) for one in zip(kept, clusters, texts, others, lengths, strict=True)]
        return answers, [*left_out, *others_cut]

    def _others(self, rows: Sequence[Row]) -> tuple[list[str], list[Omission]]:
        """Return the answers of the baseline, and what was cut."""
        if self.baseline is None:
            return [plain_text(row.answers[0]).strip() for row in rows], []
        new, tokenizer = self.settings.max_new_tokens, self.baseline.tokenizer
        prompts, cut = prompt_tokens(rows, self.baseline, new)
        found = generate(self.baseline.policy.model, tokenizer, prompts, max_new_tokens=new)
        return [tokenizer.decode(answer.tokens, skip_special_tokens=True).strip() for answer in found], cut

    def _metrics(
        self, items: Sequence[Mapping[str, Any]], calibration: Calibration, target: Target
    ) -> tuple[dict[str, Estimate], list[str]]:
        clusters = [item["cluster"] for item in items]
        longer = np.array([item["longer"] for item in items])
        scale = float(longer.std())
        verdicts = Verdicts(np.array([item["win"] for item in items]), bounded(longer, scale), clusters)
        metrics = {
            "win_rate": clustered_proportion(verdicts.credits, clusters),
            "win_rate/length_controlled": length_controlled(verdicts),
        }
        notes = [f"win rates are over {_named(self.settings.baseline)}, by the judge {self.settings.model}"]
        try:
            metrics["win_rate/corrected"] = corrected_win_rate(verdicts, calibration.verdicts(scale))
        except UncorrectableError as reason:
            notes.append(f"no corrected win rate: {reason}")
        human = rated(self.settings, target, items)
        if human.digest:
            same = [bool(item["same"]) for item in items]
            metrics["win_rate/rated"] = rated_win_rate(verdicts, human.credits, same)
            notes.append(human.sentence)
        differing = [item for item in items if not item["same"]]
        metrics |= {
            name: clustered_proportion([i[key] for i in items], clusters)
            for name, key in (("ties", "tie"), ("identical", "same"))
        }
        if differing:
            among = [item["cluster"] for item in differing]
            metrics["position_bias"] = clustered_proportion([item["by_position"] for item in differing], among)
            metrics["says_first"] = clustered_proportion([item["says_first"] for item in differing], among)
        metrics["length_difference"] = clustered_mean(longer, clusters)
        return metrics | calibration.metrics(), notes + calibration.notes()


def _item(answer: Answer, verdict: Verdict, settings: JudgeSuiteSettings) -> dict[str, Any]:
    first, second = verdict.orders(settings.credit)
    win = verdict.credit(settings.credit)
    return {
        "id": answer.row.id,
        "cluster": answer.cluster,
        "category": answer.row.category,
        "prompt": text_of(answer.row.prompt),
        "answer": answer.answer,
        "baseline": answer.other,
        "win": win,
        "tie": float(win == 0.5),
        "shown_first": first,
        "shown_second": second,
        "by_position": float(verdict.by_position),
        "says_first": (first + 1 - second) / 2,
        "same": float(answer.answer == answer.other),
        "longer": float(len(answer.answer) - len(answer.other)),
        "tokens": answer.tokens,
    }


def _named(baseline: str) -> str:
    return "the rows' chosen answers" if baseline == REFERENCE else f"the answers of {baseline}"
