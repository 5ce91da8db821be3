"""The recognised shapes of rows: their columns, and how prompt and answers are read from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from functools import partial

from alignkit.contract import Message, RowKind, Text
from alignkit.errors import DataError

from alignkit_shapes.columns import RowReader
from alignkit_shapes.messages import as_turn
from alignkit_shapes.prompts import Parts, instruction_prompt, split_pair

PAIR = ("chosen", "rejected")
ANSWERS = frozenset({*PAIR, "completion", "output", "label"})
"""Columns that hold answers, or judge them."""


_ASKING = ("question", "query", "input", "problem", "user_prompt", "prompt_text")
"""Usual names of prompts. A pair that has one, and no prompt, would be trained on without what it was asked."""


def _pair(cells: RowReader) -> Parts:
    prompt, chosen, rejected = map(cells.text, ("prompt", *PAIR))
    if not isinstance(prompt, str):
        made = split_pair(_after(prompt, chosen), _after(prompt, rejected))
    elif any(not isinstance(answer, str) and answer[0]["role"] in ("user", "system") for answer in (chosen, rejected)):
        # Whole conversations, which repeat the prompt.
        made = split_pair(chosen, rejected)
        if not any(prompt.strip() == turn["content"].strip() for turn in as_turn("user", made[0])):
            cells.used.discard("prompt")
    else:
        made = prompt, (chosen, rejected)
    return _with_system(cells, made[0]), made[1]


def _after(prompt: tuple[Message, ...], answer: Text) -> tuple[Message, ...]:
    """Return prompt and answer as one conversation; the answer may be the whole of it already."""
    turns = as_turn("assistant", answer)
    return turns if turns[: len(prompt)] == prompt else (*prompt, *turns)


def _implicit_pair(cells: RowReader) -> Parts:
    chosen, rejected = cells.text("chosen"), cells.text("rejected")
    prompt, answers = split_pair(chosen, rejected)
    shared = " ".join(turn["content"] for turn in as_turn("user", prompt))
    for name in _ASKING:
        asked = cells.values.get(name)
        if isinstance(asked, str) and asked.strip() and asked.strip() not in shared:
            raise DataError(
                f'{cells.place}: the row has "{name}" and no "prompt", and its answers do not begin with it; name it with '
                f"data.columns.prompt: {name} (align data check: --column prompt={name}), or leave the column out"
            )
    # Plain text that both answers begin with is not a user turn.
    return _with_system(replace(cells, chat=False), prompt), answers


def _conversation(cells: RowReader) -> Parts:
    return _answered(_messages(cells))


def _answered(messages: tuple[Message, ...]) -> Parts:
    """Return the last turn as the answer, if it is the assistant's."""
    answered = messages[-1]["role"] == "assistant" and len(messages) > 1
    return (messages[:-1], (messages[-1:],)) if answered else (messages, ())


def _text(cells: RowReader) -> Parts:
    text = cells.text("text")
    return ("", (text,)) if isinstance(text, str) else _answered(as_turn("user", _with_system(cells, text)))


def _columns(prompt: Callable[[RowReader], Text], answers: tuple[str, ...], cells: RowReader) -> Parts:
    return prompt(cells), tuple(map(cells.text, answers))


def _prompt(cells: RowReader) -> Text:
    return _with_system(cells, cells.text("prompt"))


def _messages(cells: RowReader) -> tuple[Message, ...]:
    return as_turn("user", _with_system(cells, cells.messages("messages")))


def _instruction(cells: RowReader) -> Text:
    given = cells.plain("input", "")
    return _with_system(cells, instruction_prompt(cells.plain("instruction"), given, chat=cells.chat))


def _with_system(cells: RowReader, prompt: Text) -> Text:
    """Return the prompt with the ``system`` column: a system turn, or for a model without chat template text before it.

    Raises:
        DataError: the conversation has another system turn.
    """
    system = cells.plain("system", "")
    if not system.strip():
        return prompt
    if isinstance(prompt, str) and not cells.chat:
        return f"{system}\n\n{prompt}"
    turns = as_turn("user", prompt)
    if not turns or turns[0]["role"] != "system":
        return ({"role": "system", "content": system}, *turns)
    if turns[0]["content"].strip() != system.strip():
        raise DataError(f'{cells.place}: "system" differs from the system turn of the conversation; keep one of them')
    return turns


@dataclass(frozen=True)
class Shape:
    """A shape of rows: the columns it needs, and how prompt and answers are read from them and optional ones."""

    needs: tuple[str, ...]
    read: Callable[[RowReader], Parts]
    answers: int

    def serves(self, kind: RowKind, present: Set[str]) -> bool:
        """Return whether rows with the columns ``present`` have this shape and can serve as rows of ``kind``."""
        if not present >= set(self.needs):
            return False
        if kind == "unpaired":
            return self.answers == 2 or (self.answers == 1 and "label" in present)
        if kind == "prompt":
            return self.needs != ("text",)  # bare text has no prompt
        return self.answers >= (2 if kind in ("preference", "ranked") else 1)


# The first shape is taken whose columns are present and which has enough answers.
SHAPES = (
    Shape(("prompt", *PAIR), _pair, 2),
    Shape(("messages", *PAIR), partial(_columns, _messages, PAIR), 2),
    Shape(("instruction", *PAIR), partial(_columns, _instruction, PAIR), 2),
    Shape(PAIR, _implicit_pair, 2),
    Shape(("prompt", "completion"), partial(_columns, _prompt, ("completion",)), 1),
    Shape(("instruction", "output"), partial(_columns, _instruction, ("output",)), 1),
    Shape(("messages",), _conversation, 1),
    Shape(("prompt",), partial(_columns, _prompt, ()), 0),
    Shape(("text",), _text, 1),
    Shape(("instruction",), partial(_columns, _instruction, ()), 0),
)
NOTHING = Shape((), lambda _: ("", ()), 0)
"""The shape of rows without any of these columns."""

NEEDS: Mapping[RowKind, str] = {
    "preference": "prompt, chosen and rejected",
    "completion": "prompt and completion (or messages, instruction and output, text, chosen and rejected)",
    "unpaired": "prompt, completion and label (or prompt, chosen and rejected)",
    "prompt": "prompt (or messages, instruction, chosen and rejected)",
    "ranked": "prompt, answers and ratings or ranks (or chosen and rejected, maybe a list)",
}
