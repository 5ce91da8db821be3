"""Every column of a row is used, named as unused, or refused; rows of several shapes are each read by their own columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from alignkit.contract.rows import RawRows, Row
from alignkit.contract.types import RowKind
from alignkit.data.load import Data
from alignkit.errors import DataError
from alignkit.onpolicy.rewards import as_reward
from alignkit_checks.check import check_source
from alignkit_shapes.normalise import EMPTY_COMPLETION, OTHER_TURNS

from tests.helpers.data import TOKENIZER, load, load_all, make_tokenizer, normalise, pairs, write_jsonl

ASK, GOOD, BAD = (
    {"role": role, "content": text} for role, text in (("user", "sky?"), ("assistant", "blue"), ("assistant", "no"))
)
PIRATE = {"role": "system", "content": "Be a pirate."}
CHAT = {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]}
PLAIN = {"prompt": "sky?", "chosen": " blue", "rejected": " no"}


def rows_of(kind: RowKind, *rows: dict[str, Any], **options: Any) -> list[Row]:
    return normalise(RawRows(rows, lambda i: f"rows.jsonl:{i + 1}", "rows.jsonl"), kind, **options)


def prompts(data: Data) -> list[str]:
    return [TOKENIZER.decode(example.prompt) for example in data.train]


# ------------------------------------------------------------------------------------------------ the system column


@pytest.mark.parametrize(
    "row",
    [
        PLAIN,
        CHAT,
        {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
        {"prompt": "sky?", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
        {"messages": [ASK], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "sky?", "completion": "blue"},
        {"messages": [ASK, GOOD]},
        {"text": json.dumps([ASK, GOOD])},
    ],
)
def test_a_system_column_is_a_system_turn(row: dict[str, Any]) -> None:
    kind: RowKind = "preference" if "chosen" in row else "completion"
    (made,) = rows_of(kind, {**row, "system": "Be a pirate."})
    assert made.prompt == (PIRATE, ASK)
    assert "system" not in made.fields


def test_a_system_column_precedes_plain_text_for_a_model_without_a_chat_template() -> None:
    made, same = (rows_of("preference", {**PLAIN, "system": "Be a pirate."}, chat=chat)[0] for chat in (False, True))
    assert made.prompt == "Be a pirate.\n\nsky?"
    assert (made.id, made.cluster) == (same.id, same.cluster)


def test_a_system_column_that_contradicts_the_conversation_is_refused() -> None:
    row = {"messages": [PIRATE, ASK, GOOD], "system": "Be a pirate. "}
    assert rows_of("completion", row)[0].prompt == (PIRATE, ASK)
    with pytest.raises(DataError, match=r'rows\.jsonl:1: "system" differs from the system turn'):
        rows_of("completion", {**row, "system": "Be a nurse."})


# ------------------------------------------------------------------------------------------------ rows of several shapes


def test_rows_are_read_by_their_own_columns(tmp_path: Path) -> None:
    rows = [*pairs(3), CHAT, {"instruction": "Add.", "chosen": "4", "rejected": "5"}]
    data = load(write_jsonl(tmp_path / "d.jsonl", rows), eval_split=0.0)
    assert len(data.train) == 5
    assert "sky?" in prompts(data)[3]
    assert "Add." in prompts(data)[4]


@pytest.mark.parametrize(("lacking", "reason"), [({}, 'no column "prompt"'), ({"prompt": None}, '"prompt" is null')])
@pytest.mark.parametrize("first", [True, False])
def test_a_row_without_the_prompt_that_others_have_is_named(
    tmp_path: Path, lacking: dict[str, Any], reason: str, first: bool
) -> None:
    odd = {"chosen": "Q: a\n\nAssistant: b", "rejected": "Q: a\n\nAssistant: c", **lacking}
    rows = [odd, *pairs(2)] if first else [*pairs(2), odd]
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    place = f"{path}:{1 if first else 3}"
    data = load(path, eval_split=0.0, max_dropped=0.5)
    assert len(data.train) == 2
    (dropped,) = data.report.sources[0].dropped.items()
    assert dropped[0].startswith(reason)
    assert dropped[1].first == place
    with pytest.raises(DataError, match=r"1 of 3 rows cannot be used .*; align data check --fix OUT writes a copy"):
        load(path, eval_split=0.0)
    (finding,) = [finding for finding in check_source(str(path)).findings if finding.rule == "unusable"]
    assert finding.examples[0]["place"] == place


def test_a_prompt_that_only_later_rows_have_is_used(tmp_path: Path) -> None:
    early = [{"chosen": f"Q: {i}\n\nAssistant: yes", "rejected": f"Q: {i}\n\nAssistant: no"} for i in range(120)]
    data = load(write_jsonl(tmp_path / "d.jsonl", [*early, PLAIN]), eval_split=0.0)
    assert prompts(data)[-1] == "<s>sky?"


def test_prompts_need_no_answers_and_labels_are_needed_where_they_are_read() -> None:
    made = rows_of("prompt", *pairs(2), {"prompt": "sky?", "chosen": None, "rejected": None})
    assert [row.unusable for row in made] == [None, None, None]
    judged = [{"prompt": "a", "completion": "b", "label": label} for label in (True, None, False)]
    assert [row.unusable for row in rows_of("unpaired", *judged)] == [None, '"label" is null', None]


def test_nulls_in_every_row_are_said_to_be_nulls() -> None:
    with pytest.raises(DataError, match=r"this row has prompt \(null\), chosen, rejected \(null\); map names"):
        rows_of("preference", {"prompt": None, "chosen": "a", "rejected": None})


# ------------------------------------------------------------------------------------------------ turns that are no answers


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": [ASK, GOOD], "rejected": [{**ASK, "content": "sea?"}, BAD]},
        {"chosen": [PIRATE, ASK, GOOD], "rejected": [{**PIRATE, "content": "Be a nurse."}, ASK, BAD]},
        {"chosen": [ASK, GOOD, ASK, GOOD], "rejected": [ASK, BAD, ASK, BAD]},
        {"prompt": "sky?", "chosen": [ASK, GOOD], "rejected": [{**ASK, "content": "sea?"}, BAD]},
        {"prompt": [ASK], "chosen": [GOOD, ASK, GOOD], "rejected": [BAD]},
        {"prompt": [ASK], "chosen": [GOOD], "rejected": [{"role": "tool", "content": "3"}, BAD]},
        {"prompt": [ASK], "chosen": [{"role": "user", "content": "blue"}], "rejected": [BAD]},
    ],
)
def test_turns_of_others_are_never_scored_as_answers(row: dict[str, Any]) -> None:
    for made in rows_of("preference", row):
        assert made.unusable == OTHER_TURNS
    for made in rows_of("completion", row):
        assert made.unusable or all(turn["role"] == "assistant" for answer in made.answers for turn in answer)


def test_common_turns_after_the_prompt_belong_to_the_prompt() -> None:
    (made,) = rows_of("preference", {"prompt": [ASK], "chosen": [GOOD, ASK, GOOD], "rejected": [GOOD, ASK, BAD]})
    assert (made.prompt, made.answers, made.unusable) == ((ASK, GOOD, ASK), ((GOOD,), (BAD,)), None)
    (made,) = rows_of("preference", {"prompt": [ASK], "chosen": [ASK, GOOD], "rejected": [BAD]})
    assert (made.prompt, made.answers) == ((ASK,), ((GOOD,), (BAD,)))


# ------------------------------------------------------------------------------------------------ other columns

NESTED = {
    "tests": [{"input": "1 2", "expected": None}, {"input": "", "expected": "3"}],
    "reward_model": {"style": "rule", "ground_truth": {"numbers": [1, 2.5], "unit": None}},
    "score": 0.5,
    "flag": False,
    "note": "n",
}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".json"])
def test_nested_columns_reach_reward_functions_as_they_are(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"d{suffix}"
    rows = [{"prompt": f"q{i}", "solution": [i], **NESTED} for i in range(3)]
    if suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        write_jsonl(path, rows)
    (row, *_) = load(path, "prompt", eval_split=0.0).train_rows
    assert row.fields == {"solution": [0], **NESTED}
    seen: dict[str, Any] = {}

    def reward(completions: list[str], tests: list[Any], reward_model: list[Any], **columns: Any) -> list[float]:
        seen.update(columns, tests=tests, reward_model=reward_model)
        return [0.0] * len(completions)

    class Answer:
        prompt, answer, answer_ids, fields = row.prompt, "a", [1], row.fields

    as_reward(reward, "r")([Answer()])  # type: ignore[list-item]
    assert (seen["tests"], seen["reward_model"], seen["solution"]) == (
        [NESTED["tests"]],
        [NESTED["reward_model"]],
        [[0]],
    )


def test_answers_of_rows_used_as_prompts_reach_reward_functions() -> None:
    (made,) = rows_of("prompt", {"instruction": "Add.", "output": "4", "label": True})
    assert made.fields == {"output": "4", "label": True}


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({**PLAIN, "chosen_model": "a", "extra": [1], "score": 2, "empty": None}, ["chosen_model", "extra", "score"]),
        ({**PLAIN, "tools": "[]", "messages": [ASK]}, ["messages", "tools"]),
        ({**CHAT, "prompt": "another question", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, ["prompt"]),
        ({**CHAT, "chosen": [{**GOOD, "reasoning_content": "light"}], "tools": [{"type": "function"}]},
         ["messages.reasoning_content", "tools"]),
        ({**PLAIN, "label": True}, ["label"]),
    ],
)  # fmt: skip
def test_what_is_not_trained_on_is_named(tmp_path: Path, row: dict[str, Any], names: list[str]) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", [row, {**row, "note": ""}])
    report = load(path, eval_split=0.0).report.sources[0]
    assert list(report.unread) == sorted([*names, "note"])
    assert (
        f"{path}: columns that are part of neither prompts nor answers: {', '.join(sorted([*names, 'note']))}"
        in report.lines()
    )
    check = check_source(str(path), tokenizer=TOKENIZER)
    assert check.to_json()["unread"] == list(report.unread)
    assert check.lines()[-1].endswith(", ".join(report.unread))


def test_columns_used_by_a_template_are_used(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", [{"q": "sky?", "chosen": " a", "rejected": " b", "x": 1}])
    section = {"template": {"prompt": "Q: {{ q }}"}, "eval_split": 0.0}
    assert load(path, **section).report.sources[0].unread == ("x",)


def test_images_are_refused(tmp_path: Path) -> None:
    image = {"bytes": b"\x89PNG", "path": None}
    path = tmp_path / "d.parquet"
    pa.parquet.write_table(pa.Table.from_pylist([{**PLAIN, "images": [image]}]), path)
    for read in (load_all, None):
        with pytest.raises(DataError, match=r'row 1: the row has "images", and only text is supported'):
            load_all(source=str(path)) if read else check_source(str(path))
    with pytest.raises(DataError, match='the row has "image"'):
        rows_of("preference", {**PLAIN, "prompt": "<image> sky?", "image": "sky.png"})
    assert rows_of("preference", {**PLAIN, "image": "sky.png"})[0].fields == {"image": "sky.png"}


# ------------------------------------------------------------------------------------------------ fill-in nulls


def call(**arguments: Any) -> dict[str, Any]:
    turn = {"role": "assistant", "content": "look", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    return {"prompt": [ASK], "chosen": [turn], "rejected": [BAD]}


def test_tables_and_lines_give_the_same_rows(tmp_path: Path) -> None:
    rows = [call(x=1), call(y=[2])]
    lines = load_all(source=str(write_jsonl(tmp_path / "d.jsonl", rows))).train_rows
    table = datasets.Dataset.from_list(rows)
    table.to_parquet(tmp_path / "d.parquet")
    table.save_to_disk(tmp_path / "saved")
    for source in ("d.parquet", "saved"):
        assert [row.answers for row in load_all(source=str(tmp_path / source)).train_rows] == [r.answers for r in lines]
    (kept,) = load_all(source=str(write_jsonl(tmp_path / "e.jsonl", [call(x=None)]))).train_rows
    assert kept.answers[0][0]["tool_calls"][0]["function"]["arguments"] == {"x": None}, "in JSON a null is meant"


def test_columns_of_the_json_feature_are_decoded(tmp_path: Path) -> None:
    features = datasets.Features({"messages": datasets.List(datasets.Json()), "extra": datasets.Json()})
    rows = [{"messages": [ASK, {**GOOD, "n": i}], "extra": {"a": [i, None]}} for i in range(2)]
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "d.parquet")
    first = load_all("completion", source=str(tmp_path / "d.parquet")).train_rows[0]
    assert (first.prompt, first.answers, first.fields) == ((ASK,), (({**GOOD, "n": 0},),), {"extra": {"a": [0, None]}})


# ------------------------------------------------------------------------------------------------ beginning of an answer


def test_a_bos_token_at_the_beginning_of_an_answer_is_removed(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", [{**PLAIN, "chosen": "<s>It is blue."}, PLAIN])
    data = load(path, eval_split=0.0)
    assert TOKENIZER.decode(data.train[0].completions[0]) == "It is blue.</s>"
    assert data.report.sources[0].bos_removed == 1
    check = check_source(str(path), tokenizer=make_tokenizer())
    assert [f.count for f in check.findings if f.rule == "answer-bos"] == [1]


def test_blank_answers_are_blank_whatever_their_roles() -> None:
    assert rows_of("preference", {**CHAT, "chosen": [{**ASK, "content": " "}]})[0].unusable == EMPTY_COMPLETION
