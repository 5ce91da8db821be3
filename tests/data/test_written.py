"""Messages written as text in a cell are read; answers that cannot be paired are unusable rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest

from tests.data.test_unread import ASK, BAD, GOOD, rows_of
from tests.helpers.data import load, write_jsonl


def written(value: Any) -> list[str]:
    """Return a value as JSON, as Python and as numpy write it."""
    return [json.dumps(value), repr(value), str(numpy.array(value, dtype=object))]


@pytest.mark.parametrize("way", range(3))
def test_messages_written_as_text_are_read(way: int) -> None:
    turns = [{"role": "user", "content": 'it\'s "a"} {\n[{'}, GOOD]
    shared = [{"from": "human", "value": "sky?"}, {"from": "gpt", "value": "blue"}]
    assert rows_of("completion", {"messages": written(turns)[way]})[0].answers == ((GOOD,),)
    assert rows_of("completion", {"text": written(turns)[way]})[0].prompt == (turns[0],)
    assert rows_of("completion", {"conversations": written(shared)[way]})[0].prompt == (ASK,)
    (made,) = rows_of("preference", {"prompt": "sky?", "chosen": written([GOOD])[way], "rejected": written([BAD])[way]})
    assert (made.prompt, made.answers) == ((ASK,), ((GOOD,), (BAD,)))
    calls = [{"function": {"name": "f", "arguments": {"x": 1}}}]
    (made,) = rows_of("completion", {"messages": [ASK, {**GOOD, "tool_calls": written(calls)[way]}]})
    assert made.answers == (({**GOOD, "tool_calls": calls},),)


@pytest.mark.parametrize(
    "text", ['{"role": "admin"}', '[{"role": "a"}]', '[{"role": "user", "content": "x"}] as YAML?', "[1]"]
)
def test_other_text_that_looks_like_messages_is_text(text: str) -> None:
    assert rows_of("completion", {"prompt": "a", "completion": text})[0].answers == (text,)


def test_rows_that_cannot_be_paired_are_unusable(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": f"c{i}", "rating": i} for i in range(3)]
    odd = [{**rows[0], "completion": None}, {**rows[0], "rating": None}, {"completion": "c", "rating": 1}]
    path = write_jsonl(tmp_path / "d.jsonl", [*rows, *odd])
    report = load(path, pairs="all", eval_split=0.0, max_dropped=0.5).report.sources[0]
    reasons = {
        f'data.pairs: "{name}" is missing or null': f"{path}:{at}"
        for name, at in (("completion", 4), ("rating", 5), ("prompt", 6))
    }
    assert {why: rows.first for why, rows in report.dropped.items()} == reasons
    assert report.kept == 3
