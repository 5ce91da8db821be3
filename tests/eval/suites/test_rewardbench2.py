"""RewardBench 2's best-of-n accuracy and score of ties, by hand-computed numbers, for policies and reward models."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit import SuiteResult
from alignkit.__main__ import main
from alignkit.errors import DataError, NoRowsError
from alignkit.rundir.evaluations import read_evaluation
from alignkit_eval.comparison.compare import compare
from alignkit_eval.suites.rewardbench2 import RewardBench2Settings, RewardBench2Suite
from alignkit_eval.suites.rewardbench2_scores import Answers, ties_parts
from transformers import AutoModelForSequenceClassification, LlamaConfig

from tests.helpers.eval import TablePolicy, byte_tokenizer, target, tiny_model


def row(name: str, subset: str, right: int = 1, wrong: int = 3, **more: Any) -> dict[str, Any]:
    texts = {"chosen": [f"right {k}" for k in range(right)], "rejected": [f"wrong {k}" for k in range(wrong)]}
    return {"id": name, "prompt": f"ask {name}", "subset": subset, **texts, **more}


ROWS = [
    *(row(f"m{i}", "Math") for i in range(2)),
    *(row(f"f{i}", "Focus") for i in range(4)),
    row("ref:1", "Ties", wrong=1),
    row("tied:1", "Ties", right=2, wrong=1),
    row("ref:2", "Ties", wrong=1),
    row("tied:2", "Ties", right=2, wrong=1),
]
SCORES = {
    "m0": [-1, -2, -2, -2],  # best
    "m1": [-1, -1, -2, -2],  # shares the highest score with one other: 1/2
    **{f"f{i}": [-1 if i == 0 else -3, -2, -2, -2] for i in range(4)},  # 1/4
    "ref:1": [0, -4],
    "tied:1": [-1, -2, -5],  # margin 3, spread 1
    "ref:2": [0, -1],
    "tied:2": [-1, -3, -6],  # margin 3, spread 2; with the ref's margin 1
}


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return str(path)


def scored(path: Path, start: SuiteResult | None = None, halved: bool = False, **settings: Any) -> SuiteResult:
    """Score ROWS by a table; every completion has two tokens of half the score, or ``halved``, of a quarter of it."""
    policy = TablePolicy(
        {(n, i): [s / (4 if halved else 2)] * 2 for n, row in SCORES.items() for i, s in enumerate(row)}
    )
    suite = RewardBench2Suite(RewardBench2Settings(data=str(path), **settings))
    return suite.evaluate(replace(target(policy, []), start=start))


def test_scores_are_those_of_the_authors_formula(tmp_path: Path) -> None:
    written(tmp_path / "rows.jsonl", ROWS)
    result = scored(tmp_path / "rows.jsonl")
    values = {name: estimate.value for name, estimate in result.metrics.items()}
    # All rows of Ties are accurate; m > s for both prompts, min(m, m_ref) > s for the first one alone.
    tanh = (math.tanh(3 / 1 - 1) + math.tanh(1 / 2 - 1)) / 2
    ties = 0.3 + 0.3 + 0.2 + 0.2 / 2 + 0.01 * tanh
    expected = {"accuracy/sum/Math": 0.75, "accuracy/sum/Focus": 0.25, "accuracy/sum/Ties": 1.0, "ties/sum": ties}
    expected |= {"accuracy/sum": (1 + 1 / 2 + 1) / 6, "score/sum": (0.75 + 0.25 + ties) / 3}
    for name, value in expected.items():
        assert values[name] == pytest.approx(value), name
        assert values[name.replace("sum", "mean")] == pytest.approx(value), "the order by mean is the same here"
    assert "accuracy/ref" not in values
    assert "no accuracy by ref" in result.notes[1]
    for contrast in result.contrasts:  # comparisons compute the same value from the items
        counted = [item for item in result.items if contrast.counts(item)]
        weights = [item[contrast.denominator] if contrast.denominator else 1.0 for item in counted]
        of_items = sum(item[contrast.numerator] for item in counted) / sum(weights)
        assert of_items == pytest.approx(values[contrast.metric]), contrast.metric


def test_a_policy_s_implicit_reward_is_the_difference_from_its_start_model(tmp_path: Path) -> None:
    written(tmp_path / "rows.jsonl", ROWS)
    result = scored(tmp_path / "rows.jsonl", start=scored(tmp_path / "rows.jsonl", halved=True))
    assert [item["scores/ref"] for item in result.items] == [[s / 2 for s in row] for row in SCORES.values()]
    assert result.metrics["score/ref"].value == pytest.approx(result.metrics["score/sum"].value), (
        "scaling changes nothing"
    )
    assert {c.metric: c.against_start for c in result.contrasts}["accuracy/ref"]


def test_edges_of_the_score_of_ties() -> None:
    wrong = Answers([0.0, 0.0, 1.0], 2)  # no spread, the wrong one is highest
    assert sum((ties_parts({"a": wrong}, {"a": Answers([0.0, 1.0], 1)}) or {}).values()) == pytest.approx(-0.01)
    all_same = Answers([1.0, 1.0, 1.0], 2)  # 0 / 0
    assert sum((ties_parts({"a": all_same}, {"a": Answers([1.0, 1.0], 1)}) or {}).values()) == 0
    assert ties_parts({"a": wrong}, {"b": Answers([1.0, 0.0], 1)}) is None


def test_through_align_eval_for_reward_models_and_policies_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = written(tmp_path / "rows.jsonl", ROWS)
    policies = {name: tiny_model(seed) for seed, name in enumerate(("policy", "other"))}
    torch.manual_seed(0)
    config = rewarding(policies["policy"].config)
    for name, model in {**policies, "rewards": AutoModelForSequenceClassification.from_config(config)}.items():
        model.save_pretrained(tmp_path / name)
        byte_tokenizer().save_pretrained(tmp_path / name)
    wanted = ["--suite", "rewardbench2", "--data", data, "--set", "rewardbench2.reference=policy", "--output", "out"]
    monkeypatch.chdir(tmp_path)
    assert main(["eval", "policy", "other", "rewards", *wanted]) == 0
    said = " ".join(" ".join(capsys.readouterr()).split())
    assert "scores are the reward model's rewards" in said
    assert "ref: the sum minus that of policy" in said
    results = {
        name: read_evaluation(tmp_path / "out" / name / "eval", "rewardbench2") for name in ("policy", "rewards")
    }
    assert {"accuracy/reward", "ties/reward", "score/reward", "accuracy/reward/Math"} <= results[
        "rewards"
    ].metrics.keys()
    assert all(score == pytest.approx(0, abs=1e-4) for item in results["policy"].items for score in item["scores/ref"])
    pair = compare([tmp_path / "out" / "policy", tmp_path / "out" / "other"])
    assert {c.metric for c in pair.contrasts} >= {"accuracy/sum", "accuracy/ref", "ties/mean", "score/ref"}


def rewarding(config: LlamaConfig) -> LlamaConfig:
    """Return the configuration of a reward model of the same shape."""
    return LlamaConfig(**{**config.to_dict(), "num_labels": 1, "architectures": ["LlamaForSequenceClassification"]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chosen": ["a", "b"]}, "chosen has 2 completions, which only rows tied:N of the subset Ties may have"),
        ({"rejected": []}, "rejected has no completion"),
        ({"rejected": None}, "the row has no 'rejected'"),
        ({"chosen": [3]}, '"chosen" is a number'),
        ({"num_correct": 2}, "num_correct is 2, and chosen has 1 completions"),
        ({"subset": "Ties"}, "needs an id such as ref:7 or tied:7, not 'm0'"),
        ({"subset": "Ties", "id": "tied:1"}, "chosen has one completion, and rows tied:N have several"),
    ],
)
def test_a_row_of_another_form_is_refused_with_its_line(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    data = written(tmp_path / "rows.jsonl", [row("x", "Math"), {**row("m0", "Math"), **changes}])
    with pytest.raises(DataError) as refused:
        scored(Path(data))
    assert f"{data}:2: " in str(refused.value)
    assert message in str(refused.value)


def test_what_cannot_be_scored_is_said(tmp_path: Path) -> None:
    rows = [row("m0", "Math"), row("m1", "Math", chosen=[""])]
    written(tmp_path / "rows.jsonl", rows)
    result = scored(tmp_path / "rows.jsonl", max_length=8)
    assert str(result.left_out[0]).startswith("1 of 2 rows left out: ")
    assert any("to fit 8 tokens" in str(omission) for omission in result.left_out)
    with pytest.raises(NoRowsError, match="no row can be scored"):
        scored(Path(written(tmp_path / "none.jsonl", rows[1:])))
    with pytest.raises(DataError, match=r"rewardbench2\.data: .*missing\.jsonl"):
        scored(tmp_path / "missing.jsonl")
