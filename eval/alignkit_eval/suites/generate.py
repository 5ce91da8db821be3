"""Completions of held-out prompts: length, repetition, diversity, and quality where a checker or rewards measure it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from alignkit import Contrast, Estimate, Example, LoadedModel, RunConfig, Settings, Suite, SuiteResult, Target
from alignkit.contract import Answered, RewardSpecs, Row
from alignkit.contract.guard import named
from alignkit.errors import ConfigError, RunFailedError
from alignkit.models.generate import generate
from alignkit.models.positions import position_limit
from alignkit.onpolicy.rewards import load_function, open_rewards, score_answers
from alignkit.system.together import shared
from pydantic import Field, model_validator

from alignkit_eval.rewarded import models_of
from alignkit_eval.statistics import clustered_mean, clustered_proportion, clustered_score, nonnegative
from alignkit_eval.suites.diversity import distinct, repetition
from alignkit_eval.suites.positions import fitted
from alignkit_eval.suites.samples import add_to_samples, measured_samples, sample_seeds
from alignkit_eval.suites.scores import cluster_of, evenly_spaced, require_rows, rows_digest, suite_result

CONTRASTS = (
    Contrast("quality", "quality", verdict=("quality",), guard=True, margin=0.03),
    Contrast("tokens", "tokens", higher_is_better=False, bounds=(0, None)),
    Contrast("repetition", "repetition", higher_is_better=False, bounds=(0, 1)),
    Contrast("ended", "ended", bounds=(0, 1)),
)


class GenerateSettings(Settings):
    """Settings of the generate suite."""

    prompts: int = Field(100, ge=1, description="number of held-out prompts, evenly spaced over the rows")
    samples: int = Field(
        1, ge=1, description="completions per prompt, each with a seed of its own (more than 1: with temperature)"
    )
    max_new_tokens: int = Field(64, ge=1, description="maximum length of a completion, in tokens")
    temperature: float = Field(0.0, ge=0, description="sampling temperature; 0: greedy")
    top_p: float = Field(
        1.0, gt=0, le=1, description="nucleus sampling: sample from the most likely tokens with this total probability"
    )
    seed: int = Field(0, ge=0, description="seed of the sampling")
    rewards: RewardSpecs = Field(
        default_factory=list, description="rewards to score completions with, in the form of method.rewards"
    )
    checker: str | None = Field(
        None,
        description="function (package.module:name or path/to/file.py:name) of (prompt, completion) that returns a number, reported as quality",
    )

    pass_at: list[Annotated[int, Field(ge=1)]] | None = Field(
        None,
        description="report the probability that one of k samples passes, for each k (default: 1 and samples, where there are "
        "several samples, and a checker or rewards)",
    )
    pass_from: float = Field(1.0, description="value of the checker or a reward from which a sample passes")

    @model_validator(mode="after")
    def _sampled(self) -> GenerateSettings:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("samples are all the same with temperature: 0, which is greedy: set temperature")
        judged = self.checker is not None or bool(self.rewards)
        if self.pass_at is not None and (not judged or self.samples == 1):
            raise ValueError("pass_at needs several samples, and a checker or rewards")
        if too_many := [k for k in self.pass_at or () if k > self.samples]:
            raise ValueError(f"pass_at {too_many[0]} needs as many samples, and samples is {self.samples}")
        if self.pass_from != 1 and (not judged or self.samples == 1):
            raise ValueError("pass_from has no effect without several samples and a checker or rewards")
        for key, default in (("top_p", 1.0), ("seed", 0)):
            if self.temperature == 0 and getattr(self, key) != default:
                raise ValueError(f"{key} has no effect with temperature: 0, which is greedy")
        return self


class GenerateSuite(Suite[GenerateSettings]):
    """Completions of held-out prompts, greedy or sampled, with an optional checker and rewards."""

    name = "generate"
    metrics = (*(contrast.metric for contrast in CONTRASTS), "reward/*")
    settings_type = GenerateSettings
    uses_start = True

    def __init__(self, settings: GenerateSettings) -> None:
        super().__init__(settings)
        # checker(prompt, completion): the prompt is text or messages, as in its row
        self.checker = None if settings.checker is None else load_function(settings.checker)
        self.rewards = open_rewards(settings.rewards)

    def models(self, config: RunConfig) -> list[LoadedModel]:
        return models_of(self.rewards, config, "eval.settings.generate.rewards")

    @property
    def cacheable(self) -> bool:
        """Whether nothing but the model decides the results: a checker or reward may read and call anything."""
        return self.checker is None and not self.rewards

    def content(self, target: Target) -> str:
        return rows_digest(evenly_spaced(target.rows("prompt"), self.settings.prompts))

    def evaluate(self, target: Target) -> SuiteResult:
        """Complete the prompts; ``RunFailedError`` is also raised where a checker's or reward's result is not finite."""
        prompts = evenly_spaced(target.examples("prompt"), self.settings.prompts)
        new, limit = self.settings.max_new_tokens, position_limit(target.policy.model)
        if limit is not None and new >= limit:
            raise ConfigError(
                f"eval.settings.generate.max_new_tokens is {new}, and {target.name} has {limit} positions for prompt and completion"
            )
        examples, left_out = fitted(target.policy.model, prompts, reserved=new)
        require_rows(self.name, "prompt", examples)
        # Rows of one text can differ in tokens (their tools), and of different texts be truncated to the same ones.
        rows = {row.id: row for row in evenly_spaced(target.rows("prompt"), self.settings.prompts, by_prompt=False)}
        items = self._completions(target, examples, [rows[example.id] for example in examples])
        tokens = [item.pop("token_ids") for item in items]
        metrics, several, notes = _metrics(items, tokens), list[Contrast](), []
        if (samples := self.settings.samples) > 1:
            ks = sorted({1, samples} if self.settings.pass_at is None else {*self.settings.pass_at})
            add_to_samples(items, tokens, samples, ks, self.settings.pass_from)
            found, several = measured_samples(items)
            metrics |= found
            if any(name.startswith("pass@") for name in found):
                notes = [f"pass@k: a sample passes with a value of {self.settings.pass_from:g} or more"]
        # A reward that does not judge every answer has no value to pair on some items.
        rewards = [Contrast(name, name) for name in metrics if all(isinstance(i.get(name), float) for i in items)]
        rewards = [contrast for contrast in rewards if contrast.metric.startswith("reward/")]
        if target.start is not None and self.checker is not None:
            metrics["win_rate"] = _win_rate(items, target.start.items)
        result = suite_result(self, items, metrics, [*CONTRASTS, *rewards, *several])
        return replace(result, left_out=left_out, notes=notes)

    def _completions(self, target: Target, examples: Sequence[Example], rows: Sequence[Row]) -> list[dict[str, Any]]:
        settings, tokenizer = self.settings, target.tokenizer
        seeds = sample_seeds(settings.seed, len(examples), settings.samples)
        answers = generate(
            target.policy.model,
            tokenizer,
            [list(example.prompt) for example in examples for _ in range(settings.samples)],
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=seeds,
        )
        items: list[dict[str, Any]] = []
        answered: list[Answered] = []
        for i, answer in enumerate(answers):
            example, row, sample = examples[i // settings.samples], rows[i // settings.samples], i % settings.samples
            text = tokenizer.decode(answer.tokens, skip_special_tokens=True)
            item: dict[str, Any] = {
                "id": example.id if settings.samples == 1 else f"{example.id}#{sample}",
                "cluster": cluster_of(example),
                "category": example.category,
                "prompt": tokenizer.decode(list(example.prompt), skip_special_tokens=True),
                "answer": text,
                "tokens": len(answer.tokens),
                "ended": float(answer.ended),
                "repetition": repetition(answer.tokens),
                "token_ids": answer.tokens,
            }
            if settings.samples > 1:
                item["seed"] = seeds[i]
            items.append(item)
            ids, fields = example.prompt, example.fields
            answered.append(
                Answered(
                    example.id, row.prompt, text, ids, answer.completion, answer.ended, tokenizer, fields, row.place
                )
            )
        sizes = [len(answer.tokens) for answer in answers]
        judged = shared("judgements", sizes, lambda which: self._judged([answered[i] for i in which]))
        return [item | found for item, found in zip(items, judged, strict=True)]

    def _judged(self, answered: Sequence[Answered]) -> list[dict[str, Any]]:
        """Return what the checker and the rewards find in each answer."""
        found: list[dict[str, Any]] = [{} if self.checker is None else {"quality": self._quality(a)} for a in answered]
        for name, values in score_answers(self.rewards, answered).parts.items():
            for item, value in zip(found, values, strict=True):
                item[f"reward/{name}"] = None if math.isnan(value) else value
        return found

    def _quality(self, answer: Answered) -> float:
        assert self.checker is not None
        place = answer.place or answer.id
        with named(f"{self.settings.checker} failed on row {place}"):
            value = self.checker(answer.prompt, answer.answer)
        if isinstance(value, bool | int | float) and math.isfinite(value):
            return float(value)
        raise RunFailedError(
            f"{self.settings.checker} returned {value!r:.80} for row {place}, which is not a finite number"
        )


def _metrics(items: Sequence[Mapping[str, Any]], tokens: Sequence[Sequence[int]]) -> dict[str, Estimate]:
    clusters = [item["cluster"] for item in items]

    def mean(key: str) -> Estimate:
        judged = [item for item in items if item[key] is not None]
        return clustered_score([item[key] for item in judged], [item["cluster"] for item in judged])

    names = [name for name in items[0] if name == "quality" or name.startswith("reward/")]
    judged = {name: [float(item[name] is not None) for item in items] for name in names}
    partly = {f"{name}/judged": clustered_proportion(seen, clusters) for name, seen in judged.items() if not all(seen)}
    return (
        {name: mean(name) for name in names if any(judged[name])}
        | partly
        | {
            "tokens": nonnegative(clustered_mean([item["tokens"] for item in items], clusters)),
            "ended": clustered_proportion([item["ended"] for item in items], clusters),
            "repetition": clustered_proportion([item["repetition"] for item in items], clusters),
            "distinct_1": Estimate(distinct(tokens, 1)),
            "distinct_2": Estimate(distinct(tokens, 2)),
        }
    )


def _win_rate(items: Sequence[Mapping[str, Any]], start: Sequence[Mapping[str, Any]]) -> Estimate:
    """Return the share of prompts where the completion is better than the start model's; ties count half."""
    before = {item["id"]: item["quality"] for item in start}
    missing = next((item["id"] for item in items if item["id"] not in before), None)
    if missing is not None:
        raise RunFailedError(f"the start model has no completion of prompt {missing}")
    credits = [(1 + np.sign(item["quality"] - before[item["id"]])) / 2 for item in items]
    return clustered_proportion(credits, [item["cluster"] for item in items])
