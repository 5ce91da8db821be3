"""The tokens a loss is on decode to exactly the assistant's text, whatever the conversation and the chat template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
from alignkit.config import RunConfig
from alignkit.contract.batch import Example
from alignkit.contract.rows import RawRows
from alignkit.data.load import load_data
from alignkit.models.chat_templates import NAMED
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.data import CHAT_TEMPLATE, make_tokenizer

TEMPLATES: dict[str, tuple[str, Callable[[str], str]]] = {
    "own end token": (CHAT_TEMPLATE, "{}<|end|>\n".format),
    "chatml": (NAMED["chatml"], "{}<|im_end|></s>\n".format),
    "zephyr": (NAMED["zephyr"], "{}</s>\n".format),
    "vicuna": (NAMED["vicuna"], " {}</s>\n".format),
    "alpaca": (NAMED["alpaca"], "{}</s>\n\n".format),
    "plain": (NAMED["plain"], " {}</s>\n".format),
}
"""Templates, and what each writes for a turn of the assistant after its header."""

WORDS = [
    "It is blue.",
    "four",
    "Anna lives in Rome",
    "\u4f60\u597d",
    "na\u00efve \U0001f642",
    "e\u0301",
    "\n\n",
    " ",
    "</s>",
    "<|end|>",
    "7",
]
CONTENT = st.lists(st.sampled_from(WORDS) | st.text(max_size=4), min_size=1, max_size=4).map("".join)
SPOKEN = CONTENT.filter(
    lambda text: any(character.isalnum() for character in text.replace("</s>", "").replace("<|end|>", ""))
)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, str]]:
    """Draw a conversation that ends with a turn of the assistant; the turn before it is another's."""
    roles = draw(st.lists(st.sampled_from(["user", "assistant", "tool"]), max_size=6))
    first = draw(st.sampled_from([["user"], ["system", "user"], ["assistant", "user"]]))
    roles = [*first, *roles, *(["user"] if roles[-1:] == ["assistant"] else []), "assistant"]
    return [{"role": role, "content": draw(SPOKEN if role == "assistant" else CONTENT)} for role in roles]


@cache
def tokenizer(template: str) -> Any:
    made = make_tokenizer()
    made.chat_template = TEMPLATES[template][0]
    return made


def load(template: str, row: dict[str, Any], **data: Any) -> list[Example]:
    """Return what becomes of one row."""
    raw = RawRows([row], lambda i: f"memory:{i + 1}", "memory")
    section = {"source": "x", "eval_split": 0.0, "cache": False, "max_length": 4096, "max_dropped": 1.0, **data}
    config = RunConfig(method="m", data=section)
    return list(load_data(config, "completion", tokenizer(template), lambda source, split: raw).train)


def scored(row: Example) -> list[int]:
    (completion,) = row.completions
    mask = None if row.masks is None else row.masks[0]
    return list(completion) if mask is None else [token for token, on in zip(completion, mask, strict=True) if on]


def text(template: str, tokens: Sequence[int]) -> str:
    return str(tokenizer(template).decode(tokens, clean_up_tokenization_spaces=False))


@pytest.mark.parametrize("template", TEMPLATES)
@given(messages=conversations())
@settings(deadline=None, max_examples=40)
def test_the_loss_is_on_the_assistants_text_alone(template: str, messages: list[dict[str, str]]) -> None:
    written = TEMPLATES[template][1]
    spoken = [written(m["content"]) for i, m in enumerate(messages) if i and m["role"] == "assistant"]
    (last,), (every,) = (load(template, {"messages": messages}, train_on=which) for which in ("last", "all"))
    assert text(template, scored(last)) == spoken[-1]
    assert text(template, scored(every)) == "".join(spoken), "every turn but one that nothing stands before"
    whole = [[*row.prompt, *row.completions[0]] for row in (last, every)]
    assert whole[0] == whole[1], "the model reads the same tokens, whatever it is trained on"


@pytest.mark.parametrize("template", ["own end token", "vicuna"])
@given(messages=conversations(), room=st.integers(1, 40))
@settings(deadline=None, max_examples=40)
def test_what_a_cut_conversation_is_trained_on_is_the_beginning_of_it(
    template: str, messages: list[dict[str, str]], room: int
) -> None:
    """The length cuts the prompt's left and the answer's right; no other token is scored because of it."""
    for which in ("last", "all"):
        (whole,) = load(template, {"messages": messages}, train_on=which)
        max_length = len(whole.prompt) + room
        for row in load(template, {"messages": messages}, train_on=which, max_length=max_length):
            assert len(row.prompt) + len(row.completions[0]) <= max_length
            assert scored(row) == scored(whole)[: len(scored(row))]
            if len(row.completions[0]) == len(whole.completions[0]):
                assert scored(row) == scored(whole)


@given(
    messages=conversations(),
    more=st.lists(st.sampled_from(["user", "assistant", "tool"]), max_size=2),
    cut=st.integers(1, 8),
)
@settings(deadline=None, max_examples=40)
def test_turns_of_others_in_a_completion_are_not_trained_on(
    messages: list[dict[str, str]], more: list[str], cut: int
) -> None:
    """A completion may be a conversation of its own, and need not end with the assistant."""
    messages = [*messages, *({"role": role, "content": "I do not know"} for role in more)]
    cut = min(cut, len(messages) - 1 - len(more))
    row = {"prompt": messages[:cut], "completion": messages[cut:]}
    for template, (_, written) in TEMPLATES.items():
        (found,) = load(template, row, train_on="all")
        spoken = [written(m["content"]) for i, m in enumerate(messages) if i and m["role"] == "assistant"]
        assert text(template, scored(found)) == "".join(spoken), template
