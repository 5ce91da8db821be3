"""Conversion of source rows of any recognised shape to :class:`~alignkit.contract.rows.Row`.

The first row decides the shape; every later row must have its columns. Other columns that hold a number, text or boolean
are kept in the row's ``fields``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from alignkit.contract import Message, RawRows, Row, RowKind, Text
from alignkit.data.rows import text_digest
from alignkit.data.shapes.columns import RowReader, read_label
from alignkit.data.shapes.messages import is_blank
from alignkit.data.shapes.pairs import UNUSABLE_COLUMN
from alignkit.data.shapes.prompts import Parts, as_conversations, instruction_prompt, split_pair
from alignkit.errors import DataError, suggest

EMPTY_COMPLETION = "empty completion"
EMPTY_PROMPT = "empty prompt"
SAME_ANSWERS = "chosen and rejected are the same"
NO_ANSWER = "the conversation does not end with an assistant turn"

_ABOUT = ("id", "cluster", "category")
_PAIR = ("chosen", "rejected")
_OURS = (
    *_ABOUT,
    *("prompt", *_PAIR, "completion", "label", "messages", "conversations", "text"),
    *("instruction", "input", "output", "system", "tools"),
    *("answers", "ratings", "rating"),
)


def _pair(cells: RowReader) -> Parts:
    prompt, chosen, rejected = cells.text("prompt"), cells.text("chosen"), cells.text("rejected")
    if _holds_prompt(prompt, chosen):
        return split_pair(chosen, rejected)
    return prompt, (chosen, rejected)


def _holds_prompt(prompt: Text, answer: Text) -> bool:
    """Return whether an answer is a whole conversation that repeats the prompt at its beginning."""
    if isinstance(answer, str):
        return False
    return answer[0]["role"] in ("user", "system") if isinstance(prompt, str) else answer[: len(prompt)] == prompt


def _implicit_pair(cells: RowReader) -> Parts:
    return split_pair(cells.text("chosen"), cells.text("rejected"))


def _conversation(cells: RowReader) -> Parts:
    messages = _messages(cells)
    answered = messages[-1]["role"] == "assistant" and len(messages) > 1
    return (messages[:-1], (messages[-1:],)) if answered else (messages, ())


def _text(cells: RowReader) -> Parts:
    return "", (cells.plain("text"),)


def _columns(prompt: Callable[[RowReader], Text], answers: tuple[str, ...], cells: RowReader) -> Parts:
    return prompt(cells), tuple(map(cells.text, answers))


def _prompt(cells: RowReader) -> Text:
    return cells.text("prompt")


def _messages(cells: RowReader) -> tuple[Message, ...]:
    return _with_system(cells, cells.messages("messages"))


def _instruction(cells: RowReader) -> Text:
    prompt = instruction_prompt(cells.plain("instruction"), cells.plain("input", ""), chat=cells.chat)
    return prompt if isinstance(prompt, str) else _with_system(cells, prompt)


def _with_system(cells: RowReader, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Prepend the ``system`` column to a conversation without a system message."""
    system = cells.plain("system", "")
    if not system or messages[0]["role"] == "system":
        return messages
    return ({"role": "system", "content": system}, *messages)


@dataclass(frozen=True)
class Shape:
    """A shape of rows: its required and optional columns, and how prompt and answers are read from them."""

    needs: tuple[str, ...]
    read: Callable[[RowReader], Parts]
    answers: int
    optional: tuple[str, ...] = ()

    def serves(self, kind: RowKind, present: set[str]) -> bool:
        """Return whether rows with the columns ``present`` have this shape and can serve as rows of ``kind``."""
        if not present.issuperset(self.needs):
            return False
        if kind == "unpaired":
            return self.answers == 2 or (self.answers == 1 and "label" in present)
        if kind == "prompt":
            return self.needs != ("text",)  # bare text has no prompt
        return self.answers >= (2 if kind == "preference" else 1)


# The first shape is taken whose columns are present and which has enough answers.
SHAPES = (
    Shape(("prompt", *_PAIR), _pair, 2),
    Shape(("messages", *_PAIR), partial(_columns, _messages, _PAIR), 2, ("system",)),
    Shape(("instruction", *_PAIR), partial(_columns, _instruction, _PAIR), 2, ("input", "system")),
    Shape(_PAIR, _implicit_pair, 2),
    Shape(("prompt", "completion"), partial(_columns, _prompt, ("completion",)), 1),
    Shape(("instruction", "output"), partial(_columns, _instruction, ("output",)), 1, ("input", "system")),
    Shape(("messages",), _conversation, 1, ("system",)),
    Shape(("prompt",), partial(_columns, _prompt, ()), 0),
    Shape(("text",), _text, 1),
    Shape(("instruction",), partial(_columns, _instruction, ()), 0, ("input", "system")),
)
_NEEDS: Mapping[RowKind, str] = {
    "preference": "prompt, chosen and rejected",
    "completion": "prompt and completion (or messages, instruction and output, text, chosen and rejected)",
    "unpaired": "prompt, completion and label (or prompt, chosen and rejected)",
    "prompt": "prompt (or messages, instruction, chosen and rejected)",
}


def normalise(
    raw: RawRows,
    kind: RowKind,
    columns: Mapping[str, str] | None = None,
    *,
    chat: bool = True,
    all_turns: bool = False,
) -> list[Row]:
    """Return the rows of ``raw`` as rows of ``kind``, with unique ids; see :class:`Normaliser`."""
    rows = Normaliser(raw, kind, columns or {}, chat=chat, all_turns=all_turns).rows(raw)
    ids = UniqueIds().unique(row.id for row in rows)
    return [row if row.id == unique else replace(row, id=unique) for row, unique in zip(rows, ids, strict=True)]


class UniqueIds:
    """Numbers repeated ids, because items of two runs are matched by id.

    Ids seen are kept as 64-bit hashes, which for a million rows take 0.1 GB less than the ids.

    >>> UniqueIds().unique(["a", "b", "a", "a"])
    ['a', 'b', 'a#2', 'a#3']
    """

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._counts: dict[str, int] = {}

    def unique(self, ids: Iterable[str]) -> list[str]:
        """Return the ids, a repeated one with its number appended."""
        return [self._unique(name) for name in ids]

    def _unique(self, name: str) -> str:
        key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
        if key not in self._seen:
            self._seen.add(key)
            return name
        count = self._counts[name] = self._counts.get(name, 1) + 1
        return f"{name}#{count}"


class Normaliser:
    """Converts source rows to rows of one kind and marks the unusable ones.

    A pair serves every kind: its chosen answer as a completion, its prompt as a prompt, its two answers as two unpaired rows.

    Args:
        first: the first rows of the source; the first of them decides the shape.
        columns: alignkit column -> source column.
        chat: whether the tokenizer has a chat template; without one, instruction rows become Alpaca's plain text.
        all_turns: make completions of all assistant turns, instead of the last one.

    Raises:
        DataError: a column is missing or of the wrong type; the message names file and line.
    """

    def __init__(
        self, first: RawRows, kind: RowKind, columns: Mapping[str, str], *, chat: bool = True, all_turns: bool = False
    ) -> None:
        self.kind, self.chat, self.all_turns = kind, chat, all_turns
        self.theirs = _checked_columns(first, columns)
        self.shape = _recognise(_renamed(first.rows[0], self.theirs), kind, first)

    def rows(self, raw: RawRows) -> list[Row]:
        """Return the converted rows (two for a pair used unpaired), whose positions are those in ``raw``."""
        rows: list[Row] = []
        for position, values in enumerate(raw.rows):
            cells = RowReader(_renamed(values, self.theirs), raw.where(position), self.chat)
            row = _about(cells, self.shape, position, self.shape.read(cells))
            if self.all_turns and self.kind == "completion":
                row = _from_first_answer(row)
            rows.extend(_for_kind(row, self.kind, cells))
        return rows


def _checked_columns(raw: RawRows, columns: Mapping[str, str]) -> dict[str, str]:
    """Return source column -> alignkit column; raises :class:`DataError` if ``data.columns`` names an unknown one."""
    known = {name for row in raw.rows for name in row} if columns else set()
    for ours, theirs in columns.items():
        if ours not in _OURS:
            raise DataError(
                f'data.columns: unknown column "{ours}"{suggest(ours, [*_OURS])} (known: {", ".join(_OURS)})'
            )
        if theirs not in known:
            names = sorted(known)
            raise DataError(
                f'data.columns maps {ours} to "{theirs}", which {raw.source} does not have{suggest(theirs, names)} '
                f"(it has {', '.join(names)})"
            )
    return {theirs: ours for ours, theirs in columns.items()}


def _renamed(values: Mapping[str, Any], theirs: Mapping[str, str]) -> dict[str, Any]:
    taken = set(theirs.values())
    renamed = {name: value for name, value in values.items() if name not in theirs and name not in taken}
    renamed |= {ours: values[name] for name, ours in theirs.items() if name in values}
    if "conversations" in renamed and "messages" not in renamed:
        renamed["messages"] = renamed.pop("conversations")
    return renamed


def _recognise(first: Mapping[str, Any], kind: RowKind, raw: RawRows) -> Shape:
    present = {name for name, value in first.items() if value is not None}
    for shape in SHAPES:
        if shape.serves(kind, present):
            return shape
    has = ", ".join(first) or "no columns"
    wanted = [name for shape in SHAPES for name in shape.needs]
    odd = next((name for name in first if name not in _OURS and suggest(name, wanted)), None)
    has += "" if odd is None else f" ({odd}{suggest(odd, wanted)})"
    pairs = ", or pair the answers of one prompt with data.pairs" if {"label", "rating"} & present else ""
    raise DataError(
        f"{raw.where(0)}: {kind} rows need {_NEEDS[kind]}; this row has {has}; map names with data.columns{pairs}"
    )


def _about(cells: RowReader, shape: Shape, position: int, parts: Parts) -> Row:
    prompt, answers = as_conversations(*parts)
    # Ids must not depend on the tokenizer, so that models with and without a chat template hold out the same rows.
    identity = (prompt, answers) if cells.chat else as_conversations(*shape.read(replace(cells, chat=True)))
    used = {*shape.needs, *shape.optional, *_ABOUT, "tools", UNUSABLE_COLUMN}
    return Row(
        position=position,
        id=cells.name("id") or text_digest(identity[0], *identity[1]),
        prompt=prompt,
        answers=answers,
        cluster=cells.name("cluster") or text_digest(identity[0]),
        category=cells.name("category"),
        fields={k: v for k, v in cells.values.items() if k not in used and isinstance(v, (str, int, float, bool))},
        unusable=cells.values.get(UNUSABLE_COLUMN),
        place=cells.place,
        tools=cells.tools(),
    )


def _from_first_answer(row: Row) -> Row:
    """Move the assistant turns of the prompt, and what follows the first of them, into the completion.

    A first turn stays in the prompt, which may not be empty.
    """
    if isinstance(row.prompt, str) or len(row.answers) != 1 or isinstance(row.answers[0], str):
        return row
    turns = (*row.prompt, *row.answers[0])
    first = next((i for i, turn in enumerate(turns) if i and turn["role"] == "assistant"), 0)
    return replace(row, prompt=turns[:first], answers=(turns[first:],)) if first else row


def _for_kind(row: Row, kind: RowKind, cells: RowReader) -> list[Row]:
    """Return the row with the answers its kind has, or two rows for a pair used unpaired."""
    if kind == "prompt":
        return [replace(row, answers=(), unusable=EMPTY_PROMPT if is_blank(row.prompt) else None)]
    if not row.answers:
        return [replace(row, unusable=NO_ANSWER)]
    if kind == "preference":
        blank = EMPTY_COMPLETION if any(map(is_blank, row.answers)) else None
        reason = row.unusable or blank or (SAME_ANSWERS if row.answers[0] == row.answers[1] else None)
        return [row if reason is None else replace(row, unusable=reason)]
    rows = [
        replace(row, answers=(answer,), unusable=EMPTY_COMPLETION if is_blank(answer) else None)
        for answer in row.answers
    ]
    if kind == "completion":
        return rows[:1]
    if len(rows) == 1:
        return [replace(rows[0], fields={**row.fields, "label": read_label(cells.get("label"), cells.place)})]
    return [
        replace(one, id=f"{row.id}/{name}", fields={**row.fields, "label": name == "chosen"})
        for one, name in zip(rows, _PAIR, strict=True)
    ]
