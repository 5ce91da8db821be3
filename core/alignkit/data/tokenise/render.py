"""Rendering of rows to text: conversations by the tokenizer's chat template."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from alignkit.contract import Message, Row, RowKind
from alignkit.data.shapes import GROUP, LONGEST, MARGIN, RATINGS, SCALE
from alignkit.errors import DataError, SourceError, first_line
from alignkit.system.budget import time_limit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Rendered(NamedTuple):
    """A row as text: the prompt, and each answer as the text that follows it.

    ``turns``, if the answer contains turns of other roles: for every assistant turn, the text before it and the text up to
    its end.
    """

    prompt: str
    answers: tuple[str, ...]
    turns: tuple[tuple[str, str], ...] = ()


def render(row: Row, tokenizer: PreTrainedTokenizerBase, place: str, *, all_turns: bool = False) -> Rendered:
    """Render a row; plain text is unchanged.

    A conversation's prompt is rendered with the generation prompt (or, if it ends with an assistant turn, to continue that
    turn), each answer as the text the template adds to it. If a template renders the prompt alone differently from the same
    turns inside the conversation, the prompt ends at the first difference. The text equals ``trl.apply_chat_template``'s.

    With ``all_turns``, the assistant turns in an answer that also contains turns of other roles are located.

    Raises:
        DataError: there is no chat template, it rejects the conversation, or (``all_turns``) it renders earlier turns
            differently once later ones follow; the message names ``place``.
    """
    if isinstance(row.prompt, str):
        return Rendered(row.prompt, tuple(str(answer) for answer in row.answers))
    if not tokenizer.chat_template:
        raise DataError(
            f"{place}: the row is a conversation, but the tokenizer has no chat template: set model.chat_template, "
            "or use plain text rows"
        )
    prompt = _apply(row, tokenizer, row.prompt, place, **_options(row.prompt)) if row.prompt else ""
    wholes = [_apply(row, tokenizer, whole, place) for whole in _wholes(row)]
    turns = _turns(row, tokenizer, place, wholes[0]) if all_turns and len(wholes) == 1 else ()
    return _split(prompt, wholes, turns)


def render_all(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, *, all_turns: bool = False) -> list[Rendered]:
    """Render rows as :func:`render` does, but ordinary conversations in one call, which is faster."""
    together = [
        i
        for i, row in enumerate(rows)
        if not (isinstance(row.prompt, str) or not row.prompt or row.tools or all_turns or not tokenizer.chat_template)
        and "add_generation_prompt" in _options(row.prompt)
    ]
    done: dict[int, Rendered] = {}
    try:
        place = rows[together[0]].place if together else ""
        prompts = _batch(place, tokenizer, [rows[i].prompt for i in together], add_generation_prompt=True)
        wholes = iter(_batch(place, tokenizer, [whole for i in together for whole in _wholes(rows[i])]))
        for i, prompt in zip(together, prompts, strict=True):
            done[i] = _split(prompt, [next(wholes) for _ in _wholes(rows[i])])
    except DataError:
        done = {}  # rows are rendered one by one to find the rejected ones
    return [done.get(i) or render(row, tokenizer, row.place, all_turns=all_turns) for i, row in enumerate(rows)]


def _options(prompt: tuple[Message, ...]) -> dict[str, bool]:
    continued = prompt[-1]["role"] == "assistant"
    return {"continue_final_message": True} if continued else {"add_generation_prompt": True}


def _wholes(row: Row) -> Iterator[tuple[Message, ...]]:
    for answer in row.answers:
        if not isinstance(answer, str) and not isinstance(row.prompt, str):
            yield (*row.prompt, *answer)


def _split(prompt: str, wholes: Sequence[str], turns: tuple[tuple[str, str], ...] = ()) -> Rendered:
    """Split whole conversations after the part of the prompt they all begin with."""
    prompt = prompt[: min((common_prefix(prompt, whole) for whole in wholes), default=len(prompt))]
    return Rendered(prompt, tuple(whole[len(prompt) :] for whole in wholes), turns)


def _turns(row: Row, tokenizer: PreTrainedTokenizerBase, place: str, whole: str) -> tuple[tuple[str, str], ...]:
    """Return the text before and through every assistant turn of the answer; empty if the answer is a single turn."""
    (conversation,) = _wholes(row)
    answers = range(len(row.prompt), len(conversation))
    if len(answers) == 1:
        return ()
    turns: list[tuple[str, str]] = []
    for i in (i for i in answers if conversation[i]["role"] == "assistant"):
        before = _apply(row, tokenizer, conversation[:i], place, add_generation_prompt=True)
        through = whole if i == answers[-1] else _apply(row, tokenizer, conversation[: i + 1], place)
        if not (whole.startswith(before) and whole.startswith(through)):
            raise DataError(
                f"{place}: the chat template renders turn {i + 1} differently when later turns follow, so "
                "data.train_on: all cannot locate the assistant's tokens; use data.train_on: last, or set "
                "model.chat_template to one made for training, such as those in trl/chat_templates"
            )
        turns.append((before, through))
    return tuple(turns)


def common_prefix(first: Sequence[object], second: Sequence[object]) -> int:
    """Return the length of the common prefix of two sequences (of characters or tokens).

    >>> common_prefix("chosen", "chose"), common_prefix([1, 2], [1, 2, 3])
    (5, 2)
    """
    if second[: len(first)] == first:
        return len(first)
    return next(i for i in range(len(first)) if i >= len(second) or first[i] != second[i])


def _apply(
    row: Row, tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], place: str, **options: Any
) -> str:
    if row.tools:
        options["tools"] = [dict(tool) for tool in row.tools]
    try:
        return _batch(place, tokenizer, [messages], **options)[0]
    except SourceError:
        raise
    except DataError as error:
        system = "system" in str(error).casefold() and any(message["role"] == "system" for message in messages)
        remedy = "; move the system text into the first user turn, or set model.chat_template to one that takes it"
        raise DataError(f"{error}{remedy}" if system else str(error)) from None


def _batch(place: str, tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Any], **options: Any) -> list[str]:
    plain = [[dict(message) for message in conversation] for conversation in conversations]
    if not plain:
        return []
    try:
        with time_limit():
            texts = list(map(str, tokenizer.apply_chat_template(plain, tokenize=False, **options)))
    except TimeoutError as error:
        raise SourceError(f"{place}: the chat template does not end: {error}") from None
    except Exception as error:  # whatever a template does
        raise DataError(f"{place}: the chat template rejects this conversation: {first_line(error)}") from None
    if (longest := max(map(len, texts))) > LONGEST:
        raise DataError(f"{place}: the chat template makes a text of {longest:,} characters, more than {LONGEST:,}")
    return texts


def unread(row: Row, kind: RowKind, template: str | None) -> set[str]:
    """Return the columns that are part of neither prompt nor answers, and the keys of messages the template does not name."""
    names = row.fields.keys() - {GROUP, MARGIN, SCALE, {"unpaired": "label", "ranked": RATINGS}.get(kind, "")}
    if template and not isinstance(row.prompt, str):
        turns = chain(row.prompt, *(answer for answer in row.answers if not isinstance(answer, str)))
        names |= {f"messages.{key}" for turn in turns if len(turn) > 2 for key in turn if key not in _words(template)}
        if row.tools and "tools" not in _words(template):
            names.add("tools")
    return names


@lru_cache(maxsize=8)
def _words(template: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", template))
