"""Every row shape gives the same prompts and answers."""

from __future__ import annotations

from typing import Any

import pytest
from alignkit.contract.rows import RawRows, Row
from alignkit.contract.types import RowKind
from alignkit.errors import DataError
from alignkit_shapes.normalise import EMPTY_COMPLETION, EMPTY_PROMPT, NO_ANSWER, SAME_ANSWERS
from trl import extract_prompt

from tests.helpers.data import normalise


def raw(*rows: dict[str, Any]) -> RawRows:
    return RawRows(rows, lambda position: f"rows.jsonl:{position + 1}", "rows.jsonl")


def one(kind: RowKind, row: dict[str, Any], **options: Any) -> Row:
    return normalise(raw(row), kind, **options)[0]


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


ASK, GOOD, BAD = turn("user", "sky?"), turn("assistant", "blue"), turn("assistant", "green")
SYSTEM = turn("system", "be brief")
CHAT = ((ASK,), ((GOOD,), (BAD,)))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "sky?", "chosen": "blue", "rejected": "green"}, ("sky?", ("blue", "green"))),
        ({"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]}, CHAT),
        ({"prompt": [ASK], "chosen": "blue", "rejected": "green"}, CHAT),
        ({"prompt": "sky?", "chosen": [GOOD], "rejected": [BAD]}, CHAT),
        ({"prompt": "sky?", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, CHAT),
        ({"prompt": [ASK], "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, CHAT),
        ({"chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, CHAT),
        ({"chosen": "Q: sky? A: blue", "rejected": "Q: sky? A: green"}, ("Q: sky? A:", (" blue", " green"))),
        ({"chosen": "blau", "rejected": "blue"}, ("", ("blau", "blue"))),
        (
            {
                "chosen": "\n\nHuman: sky?\n\nAssistant: It is blue",
                "rejected": "\n\nHuman: sky?\n\nAssistant: It is green",
            },
            ("\n\nHuman: sky?\n\nAssistant:", (" It is blue", " It is green")),
        ),
        (
            {
                "conversations": [{"from": "human", "value": "sky?"}],
                "chosen": {"from": "gpt", "value": "blue"},
                "rejected": {"from": "gpt", "value": "green"},
            },
            CHAT,
        ),
        (
            {"messages": [ASK], "system": "be brief", "chosen": "blue", "rejected": "green"},
            ((SYSTEM, ASK), ((GOOD,), (BAD,))),
        ),
        (
            {"instruction": "sky?", "input": "now", "chosen": "blue", "rejected": "green"},
            ((turn("user", "sky?\n\nnow"),), ((GOOD,), (BAD,))),
        ),
        (
            {"prompt": [{"role": "user", "content": [{"type": "text", "text": "sk"}, {"type": "text", "text": "y?"}]}]}
            | {"chosen": [GOOD | {"tool_calls": None}], "rejected": [BAD]},
            CHAT,
        ),
    ],
)
def test_preference_shapes(row: dict[str, Any], expected: Any) -> None:
    made = one("preference", row)
    assert (made.prompt, made.answers, made.unusable) == (*expected, None)
    assert one("completion", row).prompt == made.prompt
    assert one("completion", row).answers == made.answers[:1]
    good, bad = normalise(raw(row), "unpaired")
    assert (good.answers, good.fields["label"]) == (made.answers[:1], True)
    assert (bad.answers, bad.fields["label"]) == (made.answers[1:], False)
    if made.prompt:
        assert one("prompt", row).prompt == made.prompt
    # The row kind changes neither a row's cluster nor which rows are held out.
    assert {r.cluster for r in (made, good, bad, one("prompt", row))} == {made.cluster}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "sky?", "completion": "blue"}, ("sky?", ("blue",))),
        ({"messages": [ASK, GOOD]}, ((ASK,), ((GOOD,),))),
        ({"messages": [ASK, BAD, ASK, GOOD]}, ((ASK, BAD, ASK), ((GOOD,),))),
        (
            {"conversations": [{"from": "human", "value": "sky?"}, {"from": "gpt", "value": "blue"}]},
            ((ASK,), ((GOOD,),)),
        ),
        ({"instruction": "sky?", "input": "", "output": "blue", "system": "be brief"}, ((SYSTEM, ASK), ((GOOD,),))),
        ({"text": "The sky is blue."}, ("", ("The sky is blue.",))),
    ],
)
def test_completion_shapes(row: dict[str, Any], expected: Any) -> None:
    made = one("completion", row)
    assert (made.prompt, made.answers) == expected
    with pytest.raises(DataError, match=r"rows\.jsonl:1: preference rows need prompt, chosen and rejected"):
        one("preference", row)


def test_instruction_without_a_chat_template_is_alpaca_text_with_the_same_names() -> None:
    row = {"instruction": "Add.", "input": "2 2", "output": "4"}
    plain, chat = one("completion", row, chat=False), one("completion", row)
    assert isinstance(plain.prompt, str)
    assert plain.prompt.endswith("\n\n### Instruction:\nAdd.\n\n### Input:\n2 2\n\n### Response:\n")
    assert (plain.id, plain.cluster) == (chat.id, chat.cluster)


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [("The sky is blue.", "The sky is green."), ("a b c", "a b d"), ([ASK, GOOD], [ASK, BAD])],
)
def test_implicit_prompt_is_trls_where_the_difference_begins_a_word(chosen: Any, rejected: Any) -> None:
    theirs = extract_prompt({"chosen": chosen, "rejected": rejected})
    made = one("preference", {"chosen": chosen, "rejected": rejected})
    as_list = [list(text) if isinstance(text, tuple) else text for text in (made.prompt, *made.answers)]
    assert as_list == [theirs["prompt"], theirs["chosen"], theirs["rejected"]]


@pytest.mark.parametrize(("value", "label"), [(True, True), (0, False), ("true", True), ("False", False), ("1", True)])
def test_labels(value: Any, label: bool) -> None:
    assert one("unpaired", {"prompt": "a", "completion": "b", "label": value}).fields == {"label": label}


@pytest.mark.parametrize("value", [2, "good", 0.5, []])
def test_a_label_that_is_none(value: Any) -> None:
    with pytest.raises(DataError, match=r'rows\.jsonl:1: "label" is .*, expected true or false'):
        one("unpaired", {"prompt": "a", "completion": "b", "label": value})


def test_unpaired_rows_need_a_label() -> None:
    with pytest.raises(DataError, match="unpaired rows need prompt, completion and label"):
        one("unpaired", {"prompt": "a", "completion": "b"})


@pytest.mark.parametrize(
    ("kind", "row", "reason"),
    [
        ("preference", {"prompt": "a", "chosen": "b", "rejected": "b"}, SAME_ANSWERS),
        ("preference", {"prompt": [ASK], "chosen": [GOOD], "rejected": [GOOD]}, SAME_ANSWERS),
        ("preference", {"chosen": [ASK, GOOD], "rejected": [ASK, GOOD]}, SAME_ANSWERS),
        ("preference", {"prompt": "a", "chosen": " \n", "rejected": "b"}, EMPTY_COMPLETION),
        ("preference", {"prompt": "a", "chosen": "b", "rejected": ""}, EMPTY_COMPLETION),
        ("completion", {"prompt": "a", "completion": ""}, EMPTY_COMPLETION),
        ("completion", {"messages": [ASK]}, NO_ANSWER),
        ("completion", {"messages": [ASK, turn("assistant", "")]}, EMPTY_COMPLETION),
        ("prompt", {"prompt": "  "}, EMPTY_PROMPT),
        ("completion", {"prompt": "a", "chosen": "b", "rejected": "b"}, None),
        ("preference", {"prompt": "", "chosen": "b", "rejected": "c"}, None),
    ],
)
def test_unusable_rows_say_why(kind: RowKind, row: dict[str, Any], reason: str | None) -> None:
    assert one(kind, row).unusable == reason


def test_columns_are_mapped_and_the_rest_is_kept() -> None:
    row = {"question": "a", "good": "b", "bad": "c", "prompt": "not this one", "topic": "sky", "n": 3, "extra": [1]}
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad", "category": "topic"}
    made = one("preference", row, columns=columns)
    assert (made.prompt, made.answers, made.category) == ("a", ("b", "c"), "sky")
    assert made.fields == {"n": 3, "extra": [1], "prompt (not mapped)": "not this one"}


def test_mapping_a_column_that_is_not_there() -> None:
    row = {"question": "a", "good": "b", "bad": "c"}
    with pytest.raises(
        DataError, match=r'maps prompt to "questions", which rows\.jsonl does not have, did you mean "quest'
    ):
        one("preference", row, columns={"prompt": "questions"})
    with pytest.raises(DataError, match=r'unknown column "promt", did you mean "prompt"\?'):
        one("preference", row, columns={"promt": "question"})


def test_ids_are_their_own_and_clusters_follow_the_prompt() -> None:
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    rows = normalise(
        raw(pair, pair, pair | {"rejected": "d"}, pair | {"prompt": "e"}, pair | {"id": 7, "cluster": 3}), "preference"
    )
    assert len({row.id for row in rows}) == 5
    assert rows[1].id == f"{rows[0].id}#2"
    assert rows[0].cluster == rows[1].cluster == rows[2].cluster != rows[3].cluster
    assert (rows[4].id, rows[4].cluster) == ("7", "3")
