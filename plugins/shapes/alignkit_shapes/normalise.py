"""Conversion of source rows of any recognised shape to :class:`~alignkit.contract.rows.Row`.

Every row is read by its own columns. A row that lacks a column most of the first rows have is unusable, with the reason.
Columns that become no part of prompt and answers are kept in the row's ``fields``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NoReturn

from alignkit.contract import RawRows, Row, RowKind, Text
from alignkit.data.rows import few, text_digest
from alignkit.data.shapes import LONGEST, MOST
from alignkit.data.sources.chunks import ROWS
from alignkit.errors import DataError, suggest

from alignkit_shapes.columns import RowReader, read_label
from alignkit_shapes.known import ANSWERS, NEEDS, NOTHING, PAIR, SHAPES, Shape
from alignkit_shapes.messages import is_blank
from alignkit_shapes.pairs import OTHERS, UNUSABLE_COLUMN
from alignkit_shapes.prompts import Parts, as_conversations

EMPTY_COMPLETION = "empty completion"
EMPTY_PROMPT = "empty prompt"
SAME_ANSWERS = "chosen and rejected are the same"
NO_ANSWER = "the conversation does not end with an assistant turn"
OTHER_TURNS = (
    "an answer has turns of the user, the system or a tool (do chosen and rejected differ before the last turn?)"
)

VOTERS = 100
"""First rows that decide which columns every row must have."""

_ABOUT = ("id", "cluster", "category")
_OURS = (
    *_ABOUT,
    *("prompt", *PAIR, "completion", "label", "messages", "conversations", "text"),
    *("instruction", "input", "output", "system", "tools"),
    *("answers", "ratings", "rating", "ranks", "rank"),
)
_SHAPING = tuple({name: None for shape in SHAPES for name in (*shape.needs, "label")})
_MEDIA = frozenset({"image", "images", "video", "videos", "audio", "audios"})
_NOT_ASSISTANT = frozenset({"user", "human", "system", "developer", "tool", "function", "ipython", "observation"})


class Normaliser:
    """Converts source rows to rows of one kind and marks the unusable ones.

    A pair serves every kind: its chosen answer as a completion, its prompt as a prompt, its two answers as two unpaired rows.

    Args:
        first: the first rows of the source; most of them decide the columns a row must have.
        columns: alignkit column -> source column.
        chat: whether the tokenizer has a chat template; without one, instruction rows become Alpaca's plain text.
        all_turns: make completions of all assistant turns, instead of the last one.

    Raises:
        DataError: no first row has the columns, or a column is of the wrong type; the message names file and line.
    """

    def __init__(
        self, first: RawRows, kind: RowKind, columns: Mapping[str, str], *, chat: bool = True, all_turns: bool = False
    ) -> None:
        self.kind, self.chat, self.all_turns = kind, chat, all_turns
        self.theirs = _checked_columns(first, columns)
        self._shapes: dict[tuple[RowKind, frozenset[str]], Shape | None] = {}
        found = [self._shape(_renamed(row, self.theirs), kind) for row in first.rows[:ROWS]]
        votes = Counter([shape for shape in found if shape is not None][:VOTERS])
        if not votes:
            _refuse(_renamed(first.rows[0], self.theirs), kind, first)
        self.shape = max(votes, key=lambda shape: (votes[shape], len(shape.needs)))

    def rows(self, raw: RawRows) -> list[Row]:
        """Return the converted rows (two for a pair used unpaired), whose positions are those in ``raw``."""
        rows: list[Row] = []
        for position, values in enumerate(raw.rows):
            cells = RowReader(_renamed(values, self.theirs), raw.where(position), self.chat)
            try:
                rows.extend(self._rows(cells, position))
            except RecursionError:
                raise DataError(f"{cells.place}: the row is nested too deeply") from None
        return rows

    def _rows(self, cells: RowReader, position: int) -> list[Row]:
        shape = self._shape(cells.values, self.kind)
        lacking = self._lacking(cells.values)
        if shape is None or (lacking and set(shape.needs) < set(self.shape.needs)):
            row = _about(cells, self._shape(cells.values, "prompt") or NOTHING, position, self.kind)
            return [replace(row, answers=(), unusable=row.unusable or lacking)]
        row = _about(cells, shape, position, self.kind)
        if self.kind == "completion":
            row = _from_first_answer(row) if self.all_turns else _last_answer(row)
        return _for_kind(row, self.kind, cells)

    def _shape(self, values: Mapping[str, Any], kind: RowKind) -> Shape | None:
        key = kind, frozenset(name for name in _SHAPING if values.get(name) is not None)
        if key not in self._shapes:
            self._shapes[key] = next((shape for shape in SHAPES if shape.serves(*key)), None)
        return self._shapes[key]

    def _lacking(self, values: Mapping[str, Any]) -> str:
        """Return which column a row lacks; empty if none. Prompts need no answers."""
        needs = [*self.shape.needs, *(["label"] if self.kind == "unpaired" and self.shape.answers == 1 else [])]
        names = (name for name in needs if not (self.kind == "prompt" and name in ANSWERS))
        lacking = next((name for name in names if values.get(name) is None), None)
        if lacking is None:
            return ""
        return f'"{lacking}" is null' if lacking in values else f'no column "{lacking}", which other rows have'


def _checked_columns(raw: RawRows, columns: Mapping[str, str]) -> dict[str, str]:
    """Return source column -> alignkit column; raises :class:`DataError` if ``data.columns`` names an unknown one."""
    known = {name for row in raw.rows for name in row} if columns else set()
    for ours, theirs in columns.items():
        if ours not in _OURS:
            raise DataError(
                f'data.columns: unknown column "{ours}"{suggest(ours, [*_OURS])} (known: {", ".join(_OURS)})'
            )
        if theirs not in known:
            names = sorted(map(str, known))
            raise DataError(
                f'data.columns maps {ours} to "{theirs}", which {raw.source} does not have{suggest(theirs, names)} '
                f"(it has {few(names)})"
            )
    return {theirs: ours for ours, theirs in columns.items()}


def _renamed(values: Mapping[str, Any], theirs: Mapping[str, str]) -> dict[str, Any]:
    taken = set(theirs.values())
    renamed = {name: value for name, value in values.items() if name not in theirs and name not in taken}
    renamed |= {ours: values[name] for name, ours in theirs.items() if name in values}
    renamed |= {f"{name} (not mapped)": values[name] for name in taken if name in values and name not in theirs}
    if "conversations" in renamed and "messages" not in renamed:
        renamed["messages"] = renamed.pop("conversations")
    return renamed


def _refuse(first: Mapping[str, Any], kind: RowKind, raw: RawRows) -> NoReturn:
    has = few([name if value is not None else f"{name} (null)" for name, value in first.items()]) or "no columns"
    wanted = [name for shape in SHAPES for name in shape.needs]
    odd = next((name for name in [*first][:100] if name not in _OURS and suggest(name, wanted)), None)
    has += "" if odd is None else f" ({odd}{suggest(odd, wanted)})"
    rated = not {"label", "rating", "rank"}.isdisjoint(first)
    pairs = ", or pair the answers of one prompt with data.pairs" if rated else ""
    raise DataError(
        f"{raw.where(0)}: {kind} rows need {NEEDS[kind]}; this row has {has}; map names with data.columns "
        f"(align data check: --column){pairs}"
    )


def _about(cells: RowReader, shape: Shape, position: int, kind: RowKind) -> Row:
    prompt, answers = _parts(shape, cells)
    # Ids must not depend on the tokenizer, so that models with and without a chat template hold out the same rows.
    identity = (prompt, answers) if cells.chat else _parts(shape, replace(cells, chat=True))
    about = {name: cells.name(name) for name in _ABOUT}
    tools = None if isinstance(prompt, str) else cells.tools()
    used = (cells.used - ANSWERS if kind == "prompt" and shape.needs != PAIR else cells.used) | {
        UNUSABLE_COLUMN,
        OTHERS,
    }
    fields = {k: v for k, v in cells.values.items() if v is not None and k not in used}
    _check_text(prompt, answers, fields, cells.place)
    return Row(
        position=position,
        id=about["id"] or text_digest(identity[0], *identity[1]),
        prompt=prompt,
        answers=answers,
        cluster=about["cluster"]
        or text_digest(*(identity[:1] if identity[0] else identity[1])),  # rows without a prompt share none
        category=about["category"],
        fields=fields,
        unusable=cells.values.get(UNUSABLE_COLUMN),
        place=cells.place,
        tools=tools,
    )


def _parts(shape: Shape, cells: RowReader) -> Parts:
    """Return prompt and answers; each further answer of a ranking is read like the rejected one of a pair."""
    prompt, answers = as_conversations(*shape.read(cells))
    for other in cells.values.get(OTHERS, ()):
        again, (_, answer) = as_conversations(*shape.read(replace(cells, values={**cells.values, "rejected": other})))
        if again != prompt:
            raise DataError(
                f'{cells.place}: the answers have no common prompt, or differ in form; add a column "prompt"'
            )
        answers = (*answers, answer)
    return prompt, answers


def _check_text(prompt: Text, answers: tuple[Text, ...], fields: Mapping[str, Any], place: str) -> None:
    """Raise :class:`DataError` for texts too long to tokenise, and for images, videos and sound."""
    sizes = (len(t) if isinstance(t, str) else sum(len(turn["content"]) for turn in t) for t in (prompt, *answers))
    if (size := sum(sizes)) > LONGEST:
        raise DataError(
            f"{place}: the texts have {size:,} characters, and at most {LONGEST:,} can be used; split the row"
        )
    media = next((name for name in fields if name in _MEDIA and fields[name]), None)
    if media is not None and (not isinstance(fields[media], str) or "<image>" in str((prompt, answers))):
        raise DataError(f'{place}: the row has "{media}", and only text is supported; leave out the column or the row')


def _from_first_answer(row: Row) -> Row:
    """Move the assistant turns of the prompt, and what follows the first of them, into the completion.

    A first turn stays in the prompt, which may not be empty.
    """
    if isinstance(row.prompt, str) or len(row.answers) != 1 or isinstance(row.answers[0], str):
        return row
    turns = (*row.prompt, *row.answers[0])
    first = next((i for i, turn in enumerate(turns) if i and turn["role"] == "assistant"), 0)
    return replace(row, prompt=turns[:first], answers=(turns[first:],)) if first else row


def _last_answer(row: Row) -> Row:
    """Move the turns before the last one into the prompt, if they are not all the assistant's."""
    if isinstance(row.prompt, str) or not row.answers or isinstance(row.answers[0], str):
        return row
    if _problem(row.answers[0]) != OTHER_TURNS:
        return row
    *before, last = row.answers[0]
    return replace(row, prompt=(*row.prompt, *before), answers=((last,),))


def _problem(answer: Text, *, masked: bool = False) -> str | None:
    """Return why an answer cannot be scored; ``masked``: only its turns of the assistant are."""
    if is_blank(answer):
        return EMPTY_COMPLETION
    others = [] if isinstance(answer, str) else [turn["role"] in _NOT_ASSISTANT for turn in answer]
    return OTHER_TURNS if others and (all if masked else any)(others) else None


def _for_kind(row: Row, kind: RowKind, cells: RowReader) -> list[Row]:
    """Return the row with the answers its kind has, or two rows for a pair used unpaired."""
    if kind == "prompt":
        return [replace(row, answers=(), unusable=EMPTY_PROMPT if is_blank(row.prompt) else None)]
    if not row.answers:
        return [replace(row, unusable=NO_ANSWER)]
    if kind in ("preference", "ranked"):
        reasons = (
            row.unusable,
            *map(_problem, row.answers),
            SAME_ANSWERS if all(answer == row.answers[0] for answer in row.answers) else None,
            f"more than {MOST} answers" if len(row.answers) > MOST else None,
        )
        reason = next(filter(None, reasons), None)
        return [row if reason is None else replace(row, unusable=reason)]
    masked = kind == "completion"
    rows = [replace(row, answers=(answer,), unusable=_problem(answer, masked=masked)) for answer in row.answers]
    if kind == "completion":
        return rows[:1]
    if len(rows) == 1:
        return [replace(rows[0], fields={**row.fields, "label": read_label(cells.get("label"), cells.place)})]
    return [
        replace(one, id=f"{row.id}/{name}", fields={**row.fields, "label": name == "chosen"})
        for one, name in zip(rows, PAIR, strict=True)
    ]
