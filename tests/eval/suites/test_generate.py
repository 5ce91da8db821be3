"""The generate suite: prompts, metrics, checkers, and models whose logits are NaN."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit import Contrast, Example, SuiteResult, Target
from alignkit.contract.rows import Row
from alignkit.errors import ConfigError, RunFailedError
from alignkit.models.generate import generate
from alignkit_eval.comparison.arms import Group, RunResult
from alignkit_eval.comparison.items import bounded, item_values
from alignkit_eval.evaluation.evaluate import evaluate
from alignkit_eval.statistics import clustered_mean, clustered_proportion
from alignkit_eval.suites.diversity import distinct, repetition
from alignkit_eval.suites.generate import GenerateSettings, GenerateSuite

from tests.helpers.eval import BOS, EOS, ReferencePolicy, byte_tokenizer, tiny_model

PROMPTS = ["one", "two words", "three", "four by four", "five"]


def length_checker(prompt: str, answer: str) -> float:
    return float(len(prompt))


def zero_checker(prompt: str, answer: str) -> float:
    return 0.0


def odd_checker(prompt: str, answer: str) -> float:
    return math.nan


def target(model: Any, start: SuiteResult | None = None) -> Target:
    tokenizer = byte_tokenizer()
    rows = [Row(i, f"p{i}", text, (), f"c{i % 2}") for i, text in enumerate(PROMPTS)]
    examples = [
        Example(row.id, [BOS, *tokenizer(row.prompt)["input_ids"]], (), row.position, row.cluster) for row in rows
    ]
    return Target("t", ReferencePolicy(model), tokenizer, lambda kind: examples, lambda kind: rows, start)


def run(where: Target, **settings: Any) -> SuiteResult:
    return GenerateSuite(GenerateSettings(max_new_tokens=12, **settings)).evaluate(where)


def test_greedy_answers_are_the_model_s_likeliest_tokens() -> None:
    model = tiny_model()
    result = run(target(model))
    assert [item["id"] for item in result.items] == [f"p{i}" for i in range(5)]
    ids = [BOS, *byte_tokenizer()(PROMPTS[1])["input_ids"]]
    with torch.no_grad():
        for _ in range(12):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == EOS:
                break
    answer = ids[1 + len(PROMPTS[1]) :]
    item = result.items[1]
    assert item["answer"] == byte_tokenizer().decode(answer, skip_special_tokens=True)
    assert item["tokens"] == len([t for t in answer if t != EOS])
    assert item["prompt"] == "two words"
    assert result.clusters == 2
    assert "quality" not in result.metrics


def test_samples_follow_the_seed_and_leave_no_trace() -> None:
    model = tiny_model().train()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = run(target(model), temperature=1.0, samples=3, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert [item["id"] for item in first.items[:3]] == ["p0#0", "p0#1", "p0#2"]
    assert first.items == run(target(model), temperature=1.0, samples=3, seed=1).items
    assert first.items != run(target(model), temperature=1.0, samples=3, seed=2).items
    assert len({item["answer"] for item in first.items[:3]}) > 1
    # So little probability is left that only the most likely token can be sampled.
    assert [i["answer"] for i in run(target(model), temperature=1.0, top_p=1e-6).items] == [
        i["answer"] for i in run(target(model)).items
    ]


def test_prompts_are_spread_and_each_stands_once() -> None:
    where = target(tiny_model())
    assert [item["id"] for item in run(where, prompts=2).items] == ["p0", "p2"]
    rows = [Row(i, f"q{i}", "same", (), "c") for i in range(3)]
    examples = [Example(row.id, [BOS, 5], (), row.position) for row in rows]
    same = Target("t", where.policy, where.tokenizer, lambda kind: examples, lambda kind: rows)
    assert [item["id"] for item in run(same).items] == ["q0"]


def test_each_answer_is_checked_with_its_own_prompt() -> None:
    """Where rows of different texts have the same tokens, after truncation, and rows of one text different ones (tools)."""
    where = target(tiny_model())
    texts = ["a long text, truncated", "another one, truncated", "called", "called", "last prompt"]
    rows = [Row(i, f"q{i}", text, (), f"c{i}") for i, text in enumerate(texts)]
    tokens = ["truncated", "truncated", "tool", "other tool", "last prompt"]
    examples = [
        Example(row.id, [BOS, *where.tokenizer(text)["input_ids"]], (), row.position)
        for row, text in zip(rows, tokens, strict=True)
    ]
    same = Target("t", where.policy, where.tokenizer, lambda kind: examples, lambda kind: rows)
    checked = run(same, checker="tests.eval.suites.test_generate:length_checker")
    assert {item["id"]: item["quality"] for item in checked.items} == {"q0": 22, "q2": 6, "q3": 6, "q4": 11}


def test_a_checker_gives_quality_and_a_win_rate() -> None:
    checked = {"checker": "tests.eval.suites.test_generate:length_checker"}
    result = run(target(tiny_model()), **checked)
    assert result.metrics["quality"].value == pytest.approx(sum(map(len, PROMPTS)) / 5)
    start = [dict(item) for item in result.items]
    start[0]["quality"] -= 1  # one win, one loss, three ties
    start[1]["quality"] += 1
    before = SuiteResult("generate", 5, 2, {}, start)
    assert run(target(tiny_model(), before), **checked).metrics["win_rate"].value == 0.5
    start[1]["quality"] -= 1
    assert run(target(tiny_model(), before), **checked).metrics["win_rate"].value == 0.6


def test_scores_between_0_and_1_have_the_interval_of_a_share_and_others_that_of_a_mean() -> None:
    """However they are made: by a checker, or a reward of any kind."""
    zero = "tests.eval.suites.test_generate:zero_checker"
    rewards = [{"name": "regex", "pattern": "^a{40}"}, {"name": zero}, {"name": "length"}]
    result = run(target(tiny_model()), checker=zero, rewards=rewards)
    share = clustered_proportion([0.0] * 5, [item["cluster"] for item in result.items])
    assert share.high is not None
    assert share.high > 0.1
    for name in ("quality", "reward/regex", "reward/zero_checker"):
        assert result.metrics[name] == share, name
    lengths = [item["reward/length"] for item in result.items]
    assert result.metrics["reward/length"] == clustered_mean(lengths, [item["cluster"] for item in result.items])


@pytest.mark.parametrize(
    ("values", "bounds"),
    [
        ([[0.0, 1.0], [0.0, 0.5]], (0, 1)),
        ([[0.0, 1.0], [0.0, 1.5]], (None, None)),  # one method for all arms
        ([[-0.1, 1.0], [0.0, 1.0]], (None, None)),
    ],
)
def test_a_comparison_has_the_interval_of_a_share_where_all_arms_are_one(values: Any, bounds: Any) -> None:
    arms = []
    for k, scores in enumerate(values):
        items = [{"id": f"i{i}", "cluster": f"c{i}", "reward/x": score} for i, score in enumerate(scores)]
        results = {"generate": SuiteResult("generate", 2, 2, {}, items)}
        arms.append(Group(f"r{k}", {}, (RunResult(Path(f"r{k}"), 0, "dpo", {}, results),)))
    contrast = Contrast("reward/x", "reward/x")
    made = [item_values(arm, "generate", contrast, {"i0": "c0", "i1": "c1"}) for arm in arms]
    assert bounded(contrast, made).bounds == bounds
    assert bounded(replace(contrast, bounds=(0, None)), made).bounds == (0, None)


@pytest.mark.parametrize(
    ("checker", "message"),
    [
        ("no_colon", "write package.module:function"),
        ("tests.nowhere:f", "there is no function tests.nowhere:f"),
        ("tests.eval.suites.test_generate:nothing", "there is no function"),
        ("tests.eval.suites.test_generate:PROMPTS", "is not a function"),
    ],
)
def test_a_checker_that_is_none_is_refused_at_once(checker: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GenerateSuite(GenerateSettings(checker=checker))


def test_a_check_that_is_no_number_and_a_model_that_is_none() -> None:
    with pytest.raises(RunFailedError, match="returned nan for row p0, which is not a finite number"):
        run(target(tiny_model()), checker="tests.eval.suites.test_generate:odd_checker")
    broken = tiny_model()
    with torch.no_grad():
        broken.lm_head.weight.fill_(math.nan)
    with pytest.raises(RunFailedError, match="logits are NaN"):
        run(target(broken))


def test_padding_changes_nothing() -> None:
    model, tokenizer = tiny_model(), byte_tokenizer()
    prompts = [[BOS, *tokenizer(text)["input_ids"]] for text in PROMPTS]
    together = generate(model, tokenizer, prompts, max_new_tokens=10)
    assert together == [generate(model, tokenizer, [prompt], max_new_tokens=10)[0] for prompt in prompts]


def test_diversity_by_hand() -> None:
    assert repetition([1, 2, 1, 2, 1], 2) == 0.5  # 12 21 12 21
    assert repetition([1], 3) == 0.0
    assert distinct([[1, 2], [1, 3], []], 1) == 3 / 4
    assert distinct([[1, 2], [1, 2]], 2) == 1 / 2
    assert distinct([], 1) == 0.0


def test_on_the_demo_the_world_checks_the_answers(tmp_path: Any) -> None:
    (found,) = evaluate(["demo"], ["generate"], sets=["eval.settings.generate.prompts=12"], output=tmp_path)
    items = [json.loads(line) for line in (found.directory / "eval/generate.items.jsonl").read_text().splitlines()]
    assert len(items) == 12
    assert {item["quality"] for item in items} <= {0.0, 0.5, 1.0}
    assert found.results["generate"].metrics["quality"].value == pytest.approx(sum(i["quality"] for i in items) / 12)
