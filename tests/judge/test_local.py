"""The local judge against plain forwards of the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit.errors import ConfigError, ModelError
from alignkit_judge import JudgeSettings, Question, open_judge
from alignkit_judge.judging import asked, text_of
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.helpers.eval import byte_tokenizer, tiny_model

TEMPLATE = "{prompt}|{a}|{b}|"
SHORT = [Question(str(i), "?", "a" * 7 * (i + 1), "bc" * 5) for i in range(3)]
LONG = [question._replace(prompt="what is it " * 12) for question in SHORT]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("judge")
    tiny_model().save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def judge(folder: Path, **settings: Any) -> Any:
    return open_judge(JudgeSettings(**{"model": str(folder), "template": TEMPLATE, **settings}))


@pytest.mark.parametrize("questions", [SHORT, LONG], ids=["an order a row", "both orders in one row"])
def test_verdicts_are_those_of_plain_forwards(folder: Path, questions: list[Question]) -> None:
    found = judge(folder, tokens_per_batch=300)
    rows = found._rows(questions)
    assert {len(row) for row in rows} == {2 if questions is SHORT else 1}
    tokenizer, model, settings = byte_tokenizer(), tiny_model(), JudgeSettings(model="m", template=TEMPLATE)
    for question, verdict in zip(questions, found(questions), strict=True):
        shares = []
        for text in asked(settings, question):
            ids = tokenizer(text)["input_ids"]
            logits = model(torch.tensor([ids])).logits[0, -1]
            shares.append(logits[[ord("A") - 33, ord("B") - 33]].softmax(0)[0].item())
        assert tokenizer.convert_tokens_to_ids("A") == ord("A") - 33
        assert verdict.as_a == pytest.approx(shares[0], abs=1e-5)
        assert verdict.as_b == pytest.approx(1 - shares[1], abs=1e-5)


def test_an_answer_that_looks_like_a_place_in_the_template_is_text() -> None:
    settings = JudgeSettings(model="m", template=TEMPLATE)
    assert asked(settings, Question("1", "{a}", "{b}", "{prompt}"))[0] == "{a}|{b}|{prompt}|"


def test_a_template_may_be_a_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text(TEMPLATE)
    own = JudgeSettings(model="m", template=str(tmp_path / "own.txt"))
    assert own.template == TEMPLATE


def test_what_does_not_fit_has_no_verdict_and_is_counted(folder: Path) -> None:
    found = judge(folder)
    long = Question("long", "?", "a" * 300, "b")
    assert [verdict is None for verdict in found([SHORT[0], long, SHORT[1]])] == [False, True, False]
    assert found.report() == [
        f"judge {folder}: 3 comparisons in both orders; 1 of them do not fit its 256 positions and were left out"
    ]
    found(SHORT)  # a report is of what was asked since the last one
    assert found.report() == [f"judge {folder}: 3 comparisons in both orders"]


def test_letters_that_are_not_one_token_each_are_refused(tmp_path: Path) -> None:
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<eos>", "yes", "no"])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tiny_model().save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", unk_token="<unk>").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="A and B are not one token each"):
        judge(tmp_path)(SHORT)


def test_a_judge_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"judge\.model: "):
        judge(tmp_path / "nothing")


def test_prompts_of_several_turns_keep_their_roles() -> None:
    turns = (
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": "bye"},
    )
    assert text_of(turns) == "user: hi\n\nassistant: yes?\n\nuser: bye"
    assert text_of(turns[:1]) == text_of("hi") == "hi"
