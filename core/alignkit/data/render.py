"""Rows as the text a tokenizer sees: conversations through the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from alignkit.data.rows import Message, Row, first_line
from alignkit.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Rendered(NamedTuple):
    """A row as text: the prompt, and each of its answers as it follows the prompt.

    ``turns``, where not all of a conversation's answer is the assistant's: for every turn of the assistant, the text before
    it and the text up to its end.
    """

    prompt: str
    answers: tuple[str, ...]
    turns: tuple[tuple[str, str], ...] = ()


def render(row: Row, tokenizer: PreTrainedTokenizerBase, place: str, *, all_turns: bool = False) -> Rendered:
    """Render a row; plain text is left as it is.

    A conversation's prompt is rendered with the generation prompt (or, where it ends with a turn of the assistant, so that
    this turn goes on), each answer as what the template writes after it. Where a template renders the prompt alone
    differently from the prompt in the conversation, the prompt ends where the two part. Same text as
    ``trl.apply_chat_template``.

    Args:
        row: a normalised row; its ``tools`` are offered to the template.
        tokenizer: whose chat template it is.
        place: file:line, for errors.
        all_turns: find the assistant's turns in an answer that holds others' as well.

    Raises:
        DataError: there is no chat template, it refuses the conversation, or (``all_turns``) it writes earlier turns
            differently once later ones follow; the message names ``place``.
    """
    if isinstance(row.prompt, str):
        return Rendered(row.prompt, tuple(str(answer) for answer in row.answers))
    if not tokenizer.chat_template:
        raise DataError(
            f"{place} is a conversation, and the tokenizer has no chat template: set model.chat_template, "
            "or write the rows as plain text"
        )
    prompt = ""
    if row.prompt:
        continued = row.prompt[-1]["role"] == "assistant"
        options = {"continue_final_message": True} if continued else {"add_generation_prompt": True}
        prompt = _apply(tokenizer, row.prompt, place, tools=row.tools, **options)
    wholes = [
        _apply(tokenizer, (*row.prompt, *answer), place, tools=row.tools)
        for answer in row.answers
        if not isinstance(answer, str)
    ]
    prompt = prompt[: min((common_prefix(prompt, whole) for whole in wholes), default=len(prompt))]
    turns = _turns(row, tokenizer, place, wholes[0]) if all_turns and len(wholes) == 1 else ()
    return Rendered(prompt, tuple(whole[len(prompt) :] for whole in wholes), turns)


def _turns(row: Row, tokenizer: PreTrainedTokenizerBase, place: str, whole: str) -> tuple[tuple[str, str], ...]:
    """Return the text before and through every turn of the assistant in the answer; empty where it has no other turns."""
    conversation: tuple[Message, ...] = tuple(
        m for part in (row.prompt, *row.answers) if not isinstance(part, str) for m in part
    )
    answers = range(len(row.prompt), len(conversation))
    spoken = [i for i in answers if conversation[i]["role"] == "assistant"]
    if len(spoken) == len(answers):
        return ()
    turns: list[tuple[str, str]] = []
    for i in spoken:
        before = _apply(tokenizer, conversation[:i], place, tools=row.tools, add_generation_prompt=True)
        through = whole if i == answers[-1] else _apply(tokenizer, conversation[: i + 1], place, tools=row.tools)
        if not (whole.startswith(before) and whole.startswith(through)):
            raise DataError(
                f"{place}: the chat template writes turn {i + 1} differently once others follow, so data.train_on: all "
                "cannot tell the assistant's tokens; use data.train_on: last"
            )
        turns.append((before, through))
    return tuple(turns)


def common_prefix(first: Sequence[object], second: Sequence[object]) -> int:
    """Return how many items (characters, tokens) both begin with.

    >>> common_prefix("chosen", "chose"), common_prefix([1, 2], [1, 2, 3])
    (5, 2)
    """
    if second[: len(first)] == first:
        return len(first)
    return next(i for i in range(len(first)) if i >= len(second) or first[i] != second[i])


def _apply(
    tokenizer: PreTrainedTokenizerBase,
    messages: tuple[Message, ...],
    place: str,
    *,
    tools: tuple[Mapping[str, Any], ...] | None,
    **options: Any,
) -> str:
    from jinja2 import TemplateError

    if tools:
        options["tools"] = [dict(tool) for tool in tools]
    try:
        conversation = [dict(message) for message in messages]
        return str(tokenizer.apply_chat_template(conversation, tokenize=False, **options))
    except (TemplateError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{place}: the chat template refuses this conversation: {first_line(error)}") from None
