"""Rows of a benchmark that a suite reads from its own source, and their tokens for a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from alignkit import Example, Omission
from alignkit.config import Reading
from alignkit.contract import Row
from alignkit.data.sources.chunks import Source
from alignkit.data.sources.open import HELD_OUT_SPLITS, open_source
from alignkit.data.tokenise.render import render
from alignkit.data.tokenise.rules import Encoder, TokenRules
from alignkit.errors import DataError
from alignkit_shapes.messages import as_turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENDLESS = 1 << 30
"""Maximum length of rows that are not cut."""


class Located(NamedTuple):
    """A row as its source has it, and where."""

    values: Mapping[str, Any]
    place: str


def open_benchmark(source: str, setting: str) -> Source:
    """Open a file, directory, URL or hub id; raises ``DataError`` that names the ``setting`` where there is no such source."""
    try:
        return open_source(source, None, Reading(), default_splits=HELD_OUT_SPLITS)
    except DataError as error:
        raise DataError(f"{setting}: {error}") from error


def read_benchmark(source: Source) -> list[Located]:
    """Return the rows of a source; raises ``DataError`` with file and line for one that cannot be read."""
    raw = source.read()
    return [Located(values, raw.where(i)) for i, values in enumerate(raw.rows)]


def tokenised(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, limit: int | None, *, append_eos: bool = True
) -> tuple[list[Example], list[Omission]]:
    """Return rows as the model reads them, truncated to ``limit`` tokens as in training, and what was cut or left out.

    Plain text is a conversation where the tokenizer has a chat template. Without one, a space is put between prompt and
    completion where neither has white space there.
    """
    shaped = [_conversation(row) if tokenizer.chat_template else _text(row) for row in rows]
    rendered = [render(row, tokenizer, row.place) for row in shaped]
    encoded = Encoder(tokenizer, TokenRules(limit or ENDLESS, append_eos=append_eos)).encode(rendered)
    examples, lost, why = [], [], ""
    for row, found in zip(rows, encoded, strict=True):
        if found.unusable is not None or not found.parts:
            lost.append(row.place)
            why = why or found.unusable or "empty prompt"
            continue
        prompt, *completions = found.parts
        examples.append(
            Example(row.id, prompt, tuple(completions), row.position, row.cluster, row.category, fields=row.fields)
        )
    where = f"to fit {limit:,} tokens" if limit else ""
    cut = [(row.place, found) for row, found in zip(rows, encoded, strict=True) if found.parts]
    prompts = [place for place, found in cut if found.prompt_lost]
    short = [place for place, found in cut if found.truncated_completions]
    omissions = [
        Omission("rows", len(lost), len(rows), f"left out: {why}", "".join(lost[:1])),
        Omission("prompts", len(prompts), len(rows), f"cut on the left {where}", "".join(prompts[:1])),
        Omission("rows", len(short), len(rows), f"with completions cut on the right {where}", "".join(short[:1])),
    ]
    return examples, [omission for omission in omissions if omission.n]


def _conversation(row: Row) -> Row:
    return replace(
        row,
        prompt=as_turn("user", row.prompt),
        answers=tuple(as_turn("assistant", answer) for answer in row.answers),
    )


def _text(row: Row) -> Row:
    """Return a row of plain text whose answers are apart from the prompt; a conversation is unchanged."""
    prompt = row.prompt
    if not isinstance(prompt, str) or not all(isinstance(answer, str) for answer in row.answers):
        return _conversation(row)
    apart = prompt[-1:].isspace()
    return replace(row, answers=tuple(a if apart or str(a)[:1].isspace() else f" {a}" for a in row.answers))
