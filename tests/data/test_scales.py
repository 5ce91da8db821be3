"""Preferences read the wrong way round: columns whose names or values say the opposite of what they are read as."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from alignkit.config import DataConfig
from alignkit.errors import ConfigError
from alignkit_checks.check import Check, check_source
from alignkit_checks.scales import refuse_inverted
from alignkit_eval.evaluation.evaluate import evaluate

from tests.helpers.runs import align

ANSWERS = [" a good answer", " one between", " a bad one"]


@pytest.mark.parametrize(
    ("columns", "remedy"),
    [
        ({"ratings": "ranks"}, "set data.columns.ranks: ranks instead"),
        ({"rating": "humanRanking"}, "set data.columns.rank: humanRanking instead"),
        ({"ratings": "position_in_list"}, "set data.columns.ranks: position_in_list"),
        ({"ratings": "val-loss"}, "where the lowest is the best: set data.columns.ranks: val-loss"),
        ({"ranks": "reward_scores"}, "where the highest is the best: set data.columns.ratings: reward_scores"),
        ({"rank": "stars"}, "set data.columns.rating: stars"),
        ({"chosen": "answer_rejected", "rejected": "answer_chosen"}, "exchange data.columns.chosen and data.columns.re"),
        ({"chosen": "good", "rejected": "better"}, '"better" is the name of a column of chosen answers'),
        ({"label": "is_toxic"}, "label is true for good ones: invert it in the data"),
    ],
    ids=str,
)  # fmt: skip
def test_a_column_named_as_the_opposite_is_refused(columns: dict[str, str], remedy: str) -> None:
    with pytest.raises(ConfigError) as refused:
        refuse_inverted(DataConfig(columns=columns))
    assert remedy in str(refused.value)
    assert str(refused.value).startswith("data.columns.")
    with pytest.raises(ConfigError, match=r"^data\.sources\[1\]\.columns\."):
        refuse_inverted(DataConfig.model_validate({"sources": ["a.jsonl", {"source": "b.jsonl", "columns": columns}]}))
    refuse_inverted(DataConfig.model_validate({"columns": columns, "check": {"enabled": False}}))


@pytest.mark.parametrize(
    "columns",
    [
        {"ratings": "scores", "answers": "completions"},
        {"ratings": "rank_score"},
        {"ranks": "loss"},
        {"ranks": "place"},
        {"ranks": "ratings"},
        {"chosen": "preferred", "rejected": "dispreferred"},
        {"chosen": "not_rejected"},
        {"chosen": "response_0", "rejected": "response_1"},
        {"label": "is_good"},
        {"label": "not_toxic"},
        {"prompt": "rejected_question", "id": "rank"},
    ],
    ids=str,
)
def test_other_names_are_fine(columns: dict[str, str]) -> None:
    refuse_inverted(DataConfig(columns=columns))


def checked(folder: Path, scales: list[list[Any]], by: str = "ratings", **data: Any) -> Check:
    rows = [{"prompt": f"question {i} ?", "answers": ANSWERS[: len(s)], by: s} for i, s in enumerate(scales)]
    source = folder / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return check_source(str(source), config=DataConfig(**data))


def found(check: Check) -> list[str]:
    return [example["about"] for finding in check.findings if finding.rule == "scale" for example in finding.examples]


RANKS = [[1, 2, 3], [2, 1, 3], [2, 1]]


@pytest.mark.parametrize("pairs", ["best_worst", "all"])
def test_ratings_that_are_the_numbers_of_a_ranking_are_shown(pairs: str, tmp_path: Path) -> None:
    about = found(checked(tmp_path, RANKS, pairs=pairs))
    assert about[0] == (
        "the ratings are 1, 2, 3, as ranks would be: the highest rating is the best; if 1 is, set data.columns.ranks "
        "(rank in separate rows) to this column"
    )
    assert found(checked(tmp_path, [[0, 1, 2], [2, 1, 0]], pairs=pairs))


@pytest.mark.parametrize(
    ("scales", "by"),
    [
        (RANKS, "ranks"),
        ([[1, 2, 2], [1, 1, 3]], "ranks"),
        ([[2, 9, 17]], "ranks"),  # of more answers
        ([[0.2, 3.5, 3.5]], "ranks"),  # a loss
        ([*RANKS, [4, 5, 5]], "ratings"),
        ([[1, 5, 3], [1, 2, 4]], "ratings"),
        ([[0, 1], [1, 0]], "ratings"),
        ([[-1, -2, -3]], "ratings"),
    ],
    ids=str,
)
def test_other_values_are_fine(scales: list[list[Any]], by: str, tmp_path: Path) -> None:
    assert found(checked(tmp_path, scales, by)) == []


def test_ranks_that_are_ratings_are_shown(tmp_path: Path) -> None:
    (about,) = found(checked(tmp_path, [[1, 2, 3], [4, 5, 5]], "ranks"))
    assert "the ranks are 4, 5, 5, as ratings would be" in about


def test_the_column_of_ratings_can_be_read_as_ranks(tmp_path: Path) -> None:
    check = checked(tmp_path, RANKS, columns={"ranks": "ratings"})
    assert found(check) == []
    assert check.readable is not None
    assert [row.answers[0] for row in check.readable.rows] == [ANSWERS[0], ANSWERS[1], ANSWERS[1]]
    rows = [{"prompt": "q ?", "completion": text, "rating": k} for k, text in enumerate(ANSWERS, 1)]
    (tmp_path / "single.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for columns, best in (({}, ANSWERS[2]), ({"rank": "rating"}, ANSWERS[0])):
        check = check_source(
            str(tmp_path / "single.jsonl"),
            config=DataConfig.model_validate({"pairs": "best_worst", "columns": columns}),
        )
        assert check.readable is not None
        assert check.readable.rows[0].answers[0] == best
        assert bool(found(check)) == (not columns)


def test_commands_refuse_or_say_it(tmp_path: Path) -> None:
    checked(tmp_path, RANKS * 3)
    column = ["--set", "data.columns.ratings=rank"]
    run = align("run", "--method", "dpo", "--data", "rows.jsonl", *column, "--dry-run", cwd=tmp_path)
    check = align("data", "check", "rows.jsonl", "--column", "ratings=rank", cwd=tmp_path)
    for refused in (run, check):
        assert refused.returncode == 2
        assert 'data.columns.ratings: "rank" is the name of a column where the lowest' in " ".join(
            refused.stderr.split()
        )
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl"}
    said = align("run", "--method", "dpo", "--data", "rows.jsonl", "--dry-run", cwd=tmp_path)
    assert "preferred the wrong way round [scale] (first: rows.jsonl:1: the ratings" in " ".join(
        (said.stdout + said.stderr).split()
    )


def test_an_evaluation_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checked(tmp_path, RANKS, "rank")
    said: list[str] = []
    evaluate(["demo"], suites=["prefs"], data="rows.jsonl", sets=["data.columns.ratings=rank"], say=said.append)
    assert any('data.columns.ratings: "rank" is the name of a column where the lowest' in line for line in said), said
