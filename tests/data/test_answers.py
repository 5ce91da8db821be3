"""Pairs made from several answers to a prompt: rated, labelled, or in separate rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from alignkit.contract.types import RowKind
from alignkit.errors import DataError

from tests.helpers.data import load_all, write_jsonl


def file(folder: Path, name: str, *rows: dict[str, Any]) -> str:
    return str(write_jsonl(folder / f"{name}.jsonl", list(rows)))


RATED = {"prompt": "sky?", "answers": ["blue", "green", "red", "grey"], "ratings": [5, 1, 3, 3]}


def made(path: str, kind: RowKind = "preference", **data: Any) -> list[tuple[str, ...]]:
    return [tuple(map(str, row.answers)) for row in load_all(kind, source=path, max_dropped=1.0, **data).train_rows]


def test_rated_answers_become_pairs(tmp_path: Path) -> None:
    path = file(tmp_path, "rated", RATED, {**RATED, "prompt": "sea?", "ratings": [1, 1, 1, 1]})
    assert made(path) == [("blue", "green")]
    data = load_all(source=path, max_dropped=0.5)
    assert data.report.sources[0].dropped["no two answers to the prompt have different ratings"].first == f"{path}:2"
    assert [e.fields["margin"] for e in data.train] == [4]
    both = load_all(source=path, pairs="all", max_dropped=0.5).train_rows
    found = {row.answers: row.fields["margin"] for row in both}
    assert found == {
        ("blue", "green"): 4,
        ("blue", "red"): 2,
        ("blue", "grey"): 2,
        ("red", "green"): 2,
        ("grey", "green"): 2,
    }
    assert len({row.id for row in both}) == 5
    assert {row.cluster for row in both} == {both[0].cluster}


def test_rows_of_one_prompt_become_pairs_and_back(tmp_path: Path) -> None:
    rows = [
        {"prompt": "sky?", "completion": "blue", "label": True},
        {"prompt": "sea?", "completion": "wet", "label": True},
        {"prompt": "sky?", "completion": "green", "label": False},
        {"prompt": "sky?", "completion": "azure", "label": 1},
    ]
    path = file(tmp_path, "unpaired", *rows)
    assert made(path, pairs="all") == [("blue", "green"), ("azure", "green")]
    assert made(path, pairs="best_worst") == [("blue", "green")]
    asked = [{**row, "system": ("short", "long")[i // 2]} for i, row in enumerate(rows)]
    other = file(tmp_path, "systems", *asked, {**asked[0], "completion": "red", "label": None, "rating": 0.5})
    apart = load_all(source=other, pairs="all", max_dropped=1.0).train_rows
    answers = [[turns[0]["content"] for turns in row.answers] for row in apart]
    assert answers == [["azure", "green"]], "not the answers to another system text, or of another scale"
    assert sorted(made(path, "unpaired")) == [("azure",), ("blue",), ("green",), ("wet",)]
    with pytest.raises(
        DataError,
        match=r"map names with data\.columns \(align data check: --column\), or pair the answers of one prompt with data\.pairs",
    ):
        load_all(source=path)
    rated = file(
        tmp_path,
        "scores",
        *[{"q": "sky?", "a": text, "s": score} for text, score in zip("xyz", (2, 0, 1), strict=True)],
    )
    columns = {"prompt": "q", "completion": "a", "rating": "s"}
    assert made(rated, pairs="best_worst", columns=columns) == [("x", "y")]
    assert made(rated, "unpaired", pairs="best_worst", columns=columns) == [("x",), ("y",)]


BROKEN_ANSWERS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "lists of two lengths": (
        {**RATED, "ratings": [1]},
        {},
        '"answers" and "ratings" are 4 and 1 long, expected two lists of equal length',
    ),
    "no lists": (
        {**RATED, "ratings": 3},
        {},
        '"answers" and "ratings" are a list and a number, expected two lists of equal length',
    ),
    "a rating of words": ({**RATED, "ratings": [1, 2, "good", 4]}, {}, "the rating is 'good', expected a number"),
    "no rating": (
        {"prompt": "a", "completion": "b"},
        {"pairs": "all"},
        "preference rows need prompt, chosen and rejected; this row has prompt, completion; map names with data.columns (align data check: --column)",
    ),
    "a label that is none": (
        {"prompt": "a", "completion": "b", "label": "maybe"},
        {"pairs": "all"},
        "\"label\" is 'maybe', expected true or false",
    ),
}


@pytest.mark.parametrize("case", BROKEN_ANSWERS)
def test_answers_that_cannot_be_paired(tmp_path: Path, case: str) -> None:
    row, section, expected = BROKEN_ANSWERS[case]
    path = file(tmp_path, "rows", row)
    with pytest.raises(DataError) as caught:
        load_all(source=path, **section)
    assert str(caught.value) == f"{path}:1: {expected}"
