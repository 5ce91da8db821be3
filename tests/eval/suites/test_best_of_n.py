"""Rows with several rejected completions: one pair for each, and one credit per row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from alignkit import Example
from alignkit.contract.rows import RawRows
from alignkit_eval.evaluation.evaluate import evaluate
from alignkit_eval.statistics import clustered_proportion
from alignkit_eval.suites.prefs import PreferenceSettings, PreferenceSuite
from alignkit_shapes.pairs import expand_alternatives

from tests.helpers.eval import BOS, TablePolicy, target


def raw(*rows: dict[str, object]) -> RawRows:
    return RawRows(rows, lambda i: f"rows.jsonl:{i + 1}", "rows.jsonl")


def test_each_rejected_answer_makes_a_pair() -> None:
    found, origin = expand_alternatives(
        raw(
            {"id": "a", "prompt": "p", "chosen": ["yes"], "rejected": ["no", "maybe"]},
            {"prompt": "q", "chosen": "x", "rejected": "y"},
        ),
        {},
    )
    group = found.rows[0]["group"]
    assert found.rows == [
        {"id": "a/0", "prompt": "p", "chosen": "yes", "rejected": "no", "group": group},
        {"id": "a/1", "prompt": "p", "chosen": "yes", "rejected": "maybe", "group": group},
        {"prompt": "q", "chosen": "x", "rejected": "y"},
    ]
    assert list(origin) == [0, 0, 1]
    assert [found.where(i) for i in range(3)] == ["rows.jsonl:1", "rows.jsonl:1", "rows.jsonl:2"]


def test_conversations_are_told_from_messages() -> None:
    one = [{"role": "assistant", "content": "no"}]
    plain = raw({"prompt": "p", "chosen": one, "rejected": one})
    assert expand_alternatives(plain, {})[0] is plain
    several, _ = expand_alternatives(
        raw({"prompt": "p", "best": "yes", "worse": [one, one]}), {"chosen": "best", "rejected": "worse"}
    )
    assert [row["worse"] for row in several.rows] == [one, one]


def test_a_row_is_right_where_the_chosen_answer_beats_all() -> None:
    def row(name: str, group: str) -> Example:
        return Example(name, [BOS], ([5], [6]), fields={"group": group} if group else {}, cluster=name)

    examples = [row("a/0", "a"), row("a/1", "a"), row("b/0", "b"), row("b/1", "b"), row("alone", "")]
    better = {"a/0": True, "a/1": True, "b/0": True, "b/1": False, "alone": True}
    policy = TablePolicy({(n, c): [-1.0 if (c == 0) == right else -2.0] for n, right in better.items() for c in (0, 1)})
    result = PreferenceSuite(PreferenceSettings()).evaluate(target(policy, examples))
    assert result.metrics["accuracy_sum"].value == 4 / 5
    assert result.metrics["accuracy_best"].value == pytest.approx(2 / 3), "a and alone, not b"
    assert [(i["credit_best"], i["groups"]) for i in result.items] == [(1, 1), (0, 0), (0, 1), (0, 0), (1, 1)]
    assert "accuracy_best" in {c.metric for c in result.contrasts}
    plain = PreferenceSuite(PreferenceSettings()).evaluate(target(policy, examples[-1:]))
    assert "accuracy_best" not in plain.metrics


def test_through_align_eval(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": f"what pet does {name} have ?",
            "chosen": [f"{name} has a cat ."],
            "rejected": [f"{name} has a dog .", "no ."],
        }
        for name in ("Mia", "Leo", "Ada")
    ]
    source = tmp_path / "best.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = evaluate(["demo"], ["prefs"], data=str(source), output=tmp_path)
    result = found.results["prefs"]
    assert (result.n, result.clusters) == (6, 3)
    assert sum(item["groups"] for item in result.items) == 3
    assert 0 <= result.metrics["accuracy_best"].value <= result.metrics["accuracy_sum"].value


@pytest.mark.parametrize("right", [0, 1, 11, 12])
def test_its_interval_lies_inside_zero_and_one_and_has_a_width(right: int) -> None:
    rows = [(i, k) for i in range(12) for k in (0, 1)]
    examples = [Example(f"{i}/{k}", [BOS], ([5], [6]), fields={"group": str(i)}, cluster=str(i)) for i, k in rows]
    margins = {(f"{i}/{k}", c): [-1.0 if (c == 0) == (i < right or k == 0) else -2.0] for i, k in rows for c in (0, 1)}
    best = (
        PreferenceSuite(PreferenceSettings()).evaluate(target(TablePolicy(margins), examples)).metrics["accuracy_best"]
    )
    assert best == clustered_proportion([1.0] * right + [0.0] * (12 - right), range(12))
    assert best.low is not None
    assert best.high is not None
    assert 0 <= best.low <= best.value <= best.high <= 1
    assert best.high - best.low > 0.1
