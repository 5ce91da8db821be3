"""Tokenisation: the prompt boundary, BOS and EOS tokens, truncation, chat templates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trl
from alignkit.config import RunConfig
from alignkit.contract.rows import RawRows
from alignkit.contract.types import RowKind
from alignkit.data.load import load_data
from alignkit.data.sources.chunks import Source
from alignkit.data.table.cache import in_memory
from alignkit.data.table.report import SourceReport
from alignkit.data.table.tokenised_rows import RowSelection, TokenisedRows, TokenTable
from alignkit.data.tokenise.encode import Recipe
from alignkit.data.tokenise.encode import encode as batches
from alignkit.data.tokenise.render import render
from alignkit.data.tokenise.rules import NO_START, NO_TOKENS, ONLY_SPECIAL, SAME_TOKENS, TokenRules, truncate
from alignkit.errors import DataError
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.data import make_tokenizer, normalise, write_jsonl

BOS, EOS, END = 1, 2, 6


@dataclass
class Tokenised:
    """The parts of a table that the tests check."""

    table: TokenTable

    @property
    def tokens(self) -> list[int]:
        return [token for row in self.kept for token in self.table.tokens(row)]

    @property
    def kept(self) -> list[int]:
        return [int(row) for row in self.table.kept]

    @property
    def dropped(self) -> dict[int, str]:
        return {i: self.table.row(i).unusable for i in range(len(self.table)) if i not in self.kept}

    @property
    def counts(self) -> dict[str, int]:
        return vars(SourceReport.of(self.table))


def encode(tokenizer: Any, *rows: dict[str, Any], kind: RowKind = "completion", **rules: Any) -> Tokenised:
    raw = RawRows(rows, lambda position: f"rows.jsonl:{position + 1}", "rows.jsonl")
    options = {"max_length": 1000} | rules
    table = in_memory(batches(Source.of(raw), Recipe(kind, TokenRules(**options)), tokenizer, 1))
    return Tokenised(TokenTable(table, kind, "rows.jsonl", ""))


def segments(made: Tokenised) -> list[list[int]]:
    rows = TokenisedRows(made.table.kind, [RowSelection(made.table, made.table.kept)])
    return [list(part) for example in rows for part in (example.prompt, *example.completions)]


def bare(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("adds_bos", [True, False])
def test_completion_is_what_follows_the_prompts_own_tokens(adds_bos: bool) -> None:
    tokenizer = make_tokenizer(adds_bos=adds_bos)
    row = {"prompt": "What colour is the sky?", "completion": " The sky is blue."}
    whole = tokenizer(row["prompt"] + row["completion"])["input_ids"]
    cut = len(tokenizer(row["prompt"])["input_ids"])
    made = encode(tokenizer, row)
    assert segments(made) == [whole[:cut], [*whole[cut:], EOS]]
    assert (made.counts["border_merges"], made.counts["eos_added"]) == (0, 1)


def test_tokens_that_span_the_border_belong_to_the_completion_and_are_counted() -> None:
    tokenizer = make_tokenizer(adds_bos=False)
    row = {"prompt": "The sky is ", "chosen": "blue.", "rejected": "green."}
    # " blue" is one token, so in the joint text the prompt's trailing space is not a separate token.
    assert bare(tokenizer, "The sky is blue.")[: len(bare(tokenizer, "The sky is "))] != bare(tokenizer, "The sky is ")
    made = encode(tokenizer, row, kind="preference")
    prompt, chosen, rejected = segments(made)
    assert made.counts["border_merges"] == 2
    assert prompt == bare(tokenizer, "The sky is")
    assert tokenizer.decode(chosen[:-1]) == " blue."
    assert prompt + chosen == [*bare(tokenizer, "The sky is blue."), EOS]
    assert prompt + rejected == [*bare(tokenizer, "The sky is green."), EOS]


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("prompt", ["<s>What?", "What?"])
def test_bos_stands_there_once(adds_bos: bool, prompt: str) -> None:
    made = encode(make_tokenizer(adds_bos=adds_bos), {"prompt": prompt, "completion": " It is."})
    expected = int(adds_bos or prompt.startswith("<s>"))
    assert made.tokens.count(BOS) == expected
    assert made.tokens[:1].count(BOS) == expected


def test_chat_tokens_written_in_the_text_are_special_tokens_with_one_bos() -> None:
    text = {"prompt": "<s><|user|>\nsky?<|end|>\n<|assistant|>\n", "completion": "blue<|end|>\n"}
    chat = {"messages": [{"role": "user", "content": "sky?"}, {"role": "assistant", "content": "blue"}]}
    tokenizer = make_tokenizer()
    assert segments(encode(tokenizer, text)) == segments(encode(tokenizer, chat))
    assert encode(tokenizer, chat).tokens.count(BOS) == 1


@pytest.mark.parametrize(
    ("options", "start"), [({}, BOS), ({"adds_bos": False}, BOS), ({"adds_bos": False, "bos": False}, EOS)]
)
def test_empty_prompt_begins_with_bos_or_eos(options: dict[str, bool], start: int) -> None:
    tokenizer = make_tokenizer(**options)
    prompt, completion = segments(encode(tokenizer, {"prompt": "", "completion": "The sky"}))
    assert prompt == [start]
    assert completion == [*bare(tokenizer, "The sky"), EOS]


def test_empty_prompt_without_bos_or_eos_takes_the_completions_first_token() -> None:
    tokenizer = make_tokenizer(bos=False, eos=False)
    ids = bare(tokenizer, "The sky")
    made = encode(tokenizer, {"text": "The sky"})
    assert segments(made) == [ids[:1], ids[1:]]
    assert made.counts["eos_missing"] == 1
    pair = {"prompt": "", "chosen": "The sky", "rejected": "Anna lives"}
    assert encode(tokenizer, pair, kind="preference").dropped == {0: NO_START}


@pytest.mark.parametrize(
    ("completion", "added"),
    [
        ("blue", 1),
        ("blue</s>", 0),
        ("blue<|end|>", 0),
        ("blue<|end|>\n", 0),
        ("blue\n", 1),
        ("blue<s>", 1),
        ("blue<pad>", 1),
    ],
)
def test_eos_is_added_where_there_is_no_end_token(completion: str, added: int) -> None:
    tokenizer = make_tokenizer()
    row = {"prompt": "sky? ", "completion": completion}
    made = encode(tokenizer, row)
    assert made.counts["eos_added"] == added
    assert made.tokens[-1] == EOS or not added
    without = encode(tokenizer, row, append_eos=False)
    assert (without.counts["eos_added"], without.counts["eos_missing"]) == (0, added)
    assert made.tokens == without.tokens + [EOS] * added


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=12),
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=12), max_size=2),
    st.integers(2, 30),
)
def test_truncation_rule(prompt: list[int], completions: list[list[int]], max_length: int) -> None:
    cut = truncate(prompt, tuple(completions), max_length)
    longest = max(map(len, completions), default=0)
    assert cut.prompt == prompt[len(prompt) - len(cut.prompt) :]  # loses its left
    assert len(cut.prompt) == min(len(prompt), max(1, max_length - longest))  # first, and no more than it must
    for new, old in zip(cut.completions, completions, strict=True):
        assert new == old[: max_length - len(cut.prompt)]  # then the right
        assert new
        assert len(cut.prompt) + len(new) <= max_length
    assert cut.cut_prompts == (cut.prompt != prompt)
    assert cut.cut_completions == sum(new != old for new, old in zip(cut.completions, completions, strict=True))


def test_truncation_is_counted_and_a_pair_keeps_one_prompt() -> None:
    tokenizer = make_tokenizer(adds_bos=False)
    row = {
        "prompt": "How much is two and two?",
        "chosen": " It is four.",
        "rejected": " I do not know that. The sky is blue.",
    }
    prompt, chosen, rejected = segments(encode(tokenizer, row, kind="preference"))
    room = len(rejected) + 2
    made = encode(tokenizer, row, kind="preference", max_length=room)
    assert segments(made) == [prompt[-2:], chosen, rejected]
    assert (made.counts["truncated_prompts"], made.counts["truncated_completions"]) == (1, 0)
    assert made.table.numbers("prompt_tokens").tolist() == [len(prompt)]
    made = encode(tokenizer, row, kind="preference", max_length=len(rejected) - 2)
    assert segments(made) == [prompt[-1:], chosen[: len(rejected) - 3], rejected[:-3]]
    assert made.counts["truncated_completions"] == 1 + (len(chosen) > len(rejected) - 3)


def test_prompts_and_completions_are_truncated_on_their_own_first() -> None:
    tokenizer = make_tokenizer(adds_bos=False)
    row = {"prompt": "How much is two and two?", "chosen": " It is four.", "rejected": " I do not know that."}
    prompt, chosen, rejected = segments(encode(tokenizer, row, kind="preference"))
    made = encode(tokenizer, row, kind="preference", max_prompt_length=3, max_completion_length=2)
    assert segments(made) == [prompt[-3:], chosen[:2], rejected[:2]]
    assert (made.counts["truncated_prompts"], made.counts["truncated_completions"]) == (1, 2)
    rules = {"max_prompt_length": 5, "max_completion_length": 4, "max_length": 6}  # then the whole row
    assert segments(encode(tokenizer, row, kind="preference", **rules)) == [prompt[-2:], chosen[:4], rejected[:4]]


def test_a_limit_is_named_where_rows_are_counted(tmp_path: Path) -> None:
    rows = [{"prompt": f"How much is {n} and two?", "chosen": "four", "rejected": "five"} for n in range(20)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    data = {"source": str(tmp_path / "rows.jsonl"), "max_prompt_length": 4}
    report = load_data(RunConfig(method="orpo", data=data), "preference", make_tokenizer()).report
    assert any("20 prompts truncated on the left to fit data.max_prompt_length" in line for line in report.lines())


@pytest.mark.parametrize(
    ("kind", "row", "rules", "reason"),
    [
        (
            "preference",
            {"prompt": "a", "chosen": " It is four.", "rejected": " It is five."},
            {"max_length": 3},
            SAME_TOKENS,
        ),
        ("completion", {"prompt": "a", "completion": "</s>"}, {}, ONLY_SPECIAL),
        ("completion", {"prompt": "a", "completion": "<|end|></s>"}, {}, ONLY_SPECIAL),
    ],
)
def test_rows_dropped_while_tokenising(kind: RowKind, row: dict[str, Any], rules: dict[str, Any], reason: str) -> None:
    good = (
        {"prompt": "x", "completion": " d"}
        if kind == "completion"
        else {"prompt": "x", "chosen": " b", "rejected": " c"}
    )
    made = encode(make_tokenizer(), good, row, kind=kind, **rules)
    assert made.dropped == {1: reason}
    assert made.kept == [0]


def test_completion_without_tokens_of_its_own() -> None:
    tokenizer = make_tokenizer(bos=False, eos=False)
    assert encode(tokenizer, {"text": "a"}).dropped == {0: NO_TOKENS}  # its only token went to the prompt


CONVERSATIONS = [
    {"prompt": [{"role": "user", "content": "sky?"}], "completion": [{"role": "assistant", "content": "blue"}]},
    {
        "prompt": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "sky?"}],
        "chosen": [{"role": "assistant", "content": "blue"}],
        "rejected": [{"role": "assistant", "content": "green"}],
    },
    {
        "prompt": [{"role": "user", "content": "sky?"}, {"role": "assistant", "content": "It is"}],
        "completion": [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "blue"}],
    },
    {"prompt": [{"role": "user", "content": "sky?"}, {"role": "assistant", "content": "It is"}]},
]
TEMPLATES = {
    "plain": None,
    # The prompt alone ends in an empty thought that the whole conversation does not have.
    "thinking": "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think></think>{% endif %}",
}


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("row", CONVERSATIONS)
def test_chat_template_text_is_trls(row: dict[str, Any], template: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATES[template] or tokenizer.chat_template
    kind: RowKind = "preference" if "chosen" in row else "completion" if "completion" in row else "prompt"
    made = render(normalise(RawRows([row], str, ""), kind)[0], tokenizer, "")
    theirs = trl.apply_chat_template(row, tokenizer)
    answers = [theirs[name] for name in ("chosen", "rejected", "completion") if name in theirs]
    # Where TRL scores a turn of the user that a completion begins with, it is part of the prompt here.
    moved = made.prompt.removeprefix(theirs["prompt"])
    assert made.prompt == theirs["prompt"] + moved
    assert [moved + answer for answer in made.answers] == answers
    assert bool(moved) == (row.get("completion", [{}])[0].get("role") == "user")


def test_conversation_without_a_template_names_the_setting() -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:1: the row is a conversation.*set model\.chat_template"):
        encode(make_tokenizer(chat=False), CONVERSATIONS[0])


def test_template_that_refuses_a_conversation_names_the_line() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match=r"rows\.jsonl:1: the chat template rejects.*roles must alternate"):
        encode(tokenizer, CONVERSATIONS[0])


def test_prompt_rows_end_with_the_generation_prompt() -> None:
    tokenizer = make_tokenizer()
    made = encode(tokenizer, {"prompt": [{"role": "user", "content": "sky?"}]}, kind="prompt")
    assert tokenizer.decode(made.tokens).endswith("<|assistant|>\n")
    assert len(segments(made)) == 1


def test_batches_do_not_change_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": f"How much is {i}? ", "completion": f"It is {i}."} for i in range(7)]
    whole = encode(make_tokenizer(), *rows)
    monkeypatch.setattr("alignkit.data.sources.chunks.ROWS", 3)
    cut = encode(make_tokenizer(), *rows)
    assert segments(cut) == segments(whole)
    assert (cut.kept, cut.counts) == (whole.kept, whole.counts)
