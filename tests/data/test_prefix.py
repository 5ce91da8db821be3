"""Encoding a prompt once for all its answers gives the ids of the whole texts."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from alignkit.data.tokenise.prefix import _COMMON_RULES, PrefixEncoder
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.helpers.data import SENTENCES, make_tokenizer

TEXTS = (
    *SENTENCES * 6,
    "don't stop it's 12345 and 678, x+y == z;\n\treturn foo_bar(BazQux)\n\n  end",
    "caf\u00e9 \u4f60\u597d",
)
USUAL = sorted(_COMMON_RULES)


@cache
def tokenizer_with(rule: int, nfc: bool) -> Any:
    made = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(USUAL[rule]), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    if nfc:
        made.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["</s>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", additional_special_tokens=["<|end|>"])


def whole(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


PIECES = st.sampled_from(
    [
        " ",
        "  ",
        "\n",
        "\t",
        "a",
        "Sky",
        " blue",
        "is",
        "'s",
        "12",
        "1",
        "\u0301",
        "e",
        "\u00e9",
        "\u4f60",
        "<|end|>",
        "</s>",
        "!?",
        " x y",
        "\u2028",
    ]
)
TEXT = st.lists(PIECES, max_size=14).map("".join)


@pytest.mark.parametrize("rule", range(len(USUAL)))
def test_the_usual_rules_are_cut(rule: int) -> None:
    assert PrefixEncoder(tokenizer_with(rule, nfc=False)).cuts
    assert PrefixEncoder(tokenizer_with(rule, nfc=True)).cuts


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(USUAL) - 1), st.booleans(), TEXT, st.lists(TEXT, min_size=1, max_size=2))
def test_ids_are_those_of_the_whole_texts(rule: int, nfc: bool, prompt: str, answers: list[str]) -> None:
    tokenizer = tokenizer_with(rule, nfc)
    ((ids, joined),) = PrefixEncoder(tokenizer).encode([(prompt, answers)])
    assert ids == whole(tokenizer, prompt)
    assert joined == [whole(tokenizer, prompt + answer) for answer in answers]


def test_long_prompts_are_cut_near_their_end() -> None:
    prompt = "The sky is blue and Anna lives in Paris. " * 9 + "What now?\n"
    tokenizer = make_tokenizer()
    joint = PrefixEncoder(tokenizer)
    assert joint.cuts
    asked: list[str] = []
    ids = joint.ids
    joint.ids = lambda texts: (asked.extend(texts), ids(texts))[1]  # type: ignore[method-assign,func-returns-value]
    ((found, joined),) = joint.encode([(prompt, [" It is.", " No."])])
    assert found == whole(tokenizer, prompt)
    assert joined == [whole(tokenizer, prompt + answer) for answer in (" It is.", " No.")]
    assert sum(map(len, asked)) < len(prompt) + 60


def metaspace() -> Any:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=200, special_tokens=["</s>"], show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")


def stripping() -> Any:
    made = Tokenizer.from_str(make_tokenizer().backend_tokenizer.to_str())
    made.normalizer = normalizers.Strip()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")


def greedy_token() -> Any:
    made = make_tokenizer()
    made.add_tokens([AddedToken("blue sky", rstrip=True)])
    return made


@pytest.mark.parametrize("make", [metaspace, stripping, greedy_token])
def test_tokenizers_not_known_to_keep_to_it_encode_whole_texts(make: Any) -> None:
    tokenizer = make()
    joint = PrefixEncoder(tokenizer)
    assert not joint.cuts
    prompt, answer = "What is a blue sky now ", "and blue"
    ((ids, (joined,)),) = joint.encode([(prompt, [answer])])
    assert (ids, joined) == (whole(tokenizer, prompt), whole(tokenizer, prompt + answer))
