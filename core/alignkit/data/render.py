"""Rows as the text a tokenizer sees: conversations through the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from alignkit.data.rows import Message, Row, first_line
from alignkit.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Rendered(NamedTuple):
    """A row as text: the prompt, and each of its answers as it follows the prompt."""

    prompt: str
    answers: tuple[str, ...]


def render(row: Row, tokenizer: PreTrainedTokenizerBase, place: str) -> Rendered:
    """Render a row; plain text is left as it is.

    A conversation's prompt is rendered with the generation prompt (or, where it ends with a turn of the assistant, so that
    this turn goes on), each answer as what the template writes after it. Where a template renders the prompt alone
    differently from the prompt in the conversation, the prompt ends where the two part. Same text as
    ``trl.apply_chat_template``.

    Raises:
        DataError: there is no chat template, or it refuses the conversation; the message names ``place``.
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
        prompt = _apply(tokenizer, row.prompt, place, **options)
    wholes = [_apply(tokenizer, (*row.prompt, *answer), place) for answer in row.answers if not isinstance(answer, str)]
    prompt = prompt[: min((common_prefix(prompt, whole) for whole in wholes), default=len(prompt))]
    return Rendered(prompt, tuple(whole[len(prompt) :] for whole in wholes))


def common_prefix(first: Sequence[object], second: Sequence[object]) -> int:
    """Return how many items (characters, tokens) both begin with.

    >>> common_prefix("chosen", "chose"), common_prefix([1, 2], [1, 2, 3])
    (5, 2)
    """
    if second[: len(first)] == first:
        return len(first)
    return next(i for i in range(len(first)) if i >= len(second) or first[i] != second[i])


def _apply(tokenizer: PreTrainedTokenizerBase, messages: tuple[Message, ...], place: str, **options: Any) -> str:
    from jinja2 import TemplateError

    try:
        conversation = [dict(message) for message in messages]
        return str(tokenizer.apply_chat_template(conversation, tokenize=False, **options))
    except (TemplateError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{place}: the chat template refuses this conversation: {first_line(error)}") from None
