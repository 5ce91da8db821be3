"""Rows as the text a tokenizer sees: conversations through the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import TemplateError

from alignkit.contract.rows import Message, Row
from alignkit.errors import DataError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REFUSALS = (TemplateError, ValueError, TypeError, KeyError)
"""What a chat template raises at a conversation it was not made for."""


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
    prompt = _apply(tokenizer, row.prompt, place, tools=row.tools, **_options(row.prompt)) if row.prompt else ""
    wholes = [_apply(tokenizer, whole, place, tools=row.tools) for whole in _wholes(row)]
    turns = _turns(row, tokenizer, place, wholes[0]) if all_turns and len(wholes) == 1 else ()
    return _parted(prompt, wholes, turns)


def render_all(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, *, all_turns: bool = False) -> list[Rendered]:
    """Render rows as :func:`render` does, the ordinary conversations among them together, which is faster."""
    together = [
        i
        for i, row in enumerate(rows)
        if not (isinstance(row.prompt, str) or not row.prompt or row.tools or all_turns or not tokenizer.chat_template)
        and "add_generation_prompt" in _options(row.prompt)
    ]
    done: dict[int, Rendered] = {}
    if together:
        conversations = [(i, whole) for i in together for whole in _wholes(rows[i])]
        with suppress(*_REFUSALS):  # which of them the template refuses is found out one by one
            prompts = _batch(tokenizer, [rows[i].prompt for i in together], add_generation_prompt=True)
            wholes: dict[int, list[str]] = {i: [] for i in together}
            for (i, _), text in zip(conversations, _batch(tokenizer, [c for _, c in conversations]), strict=True):
                wholes[i].append(text)
            done = {i: _parted(prompt, wholes[i]) for i, prompt in zip(together, prompts, strict=True)}
    return [done.get(i) or render(row, tokenizer, row.place, all_turns=all_turns) for i, row in enumerate(rows)]


def _options(prompt: tuple[Message, ...]) -> dict[str, bool]:
    continued = prompt[-1]["role"] == "assistant"
    return {"continue_final_message": True} if continued else {"add_generation_prompt": True}


def _wholes(row: Row) -> Iterator[tuple[Message, ...]]:
    for answer in row.answers:
        if not isinstance(answer, str) and not isinstance(row.prompt, str):
            yield (*row.prompt, *answer)


def _parted(prompt: str, wholes: Sequence[str], turns: tuple[tuple[str, str], ...] = ()) -> Rendered:
    prompt = prompt[: min((common_prefix(prompt, whole) for whole in wholes), default=len(prompt))]
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
    if tools:
        options["tools"] = [dict(tool) for tool in tools]
    try:
        return _batch(tokenizer, [messages], **options)[0]
    except _REFUSALS as error:
        raise DataError(f"{place}: the chat template refuses this conversation: {first_line(error)}") from None


def _batch(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Any], **options: Any) -> list[str]:
    plain = [[dict(message) for message in conversation] for conversation in conversations]
    return list(map(str, tokenizer.apply_chat_template(plain, tokenize=False, **options))) if plain else []
