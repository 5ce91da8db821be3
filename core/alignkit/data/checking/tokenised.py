"""The rules of data checks on tokenised rows: rejected conversations, truncation, border merges, end tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from alignkit.config import DataConfig
from alignkit.contract.rows import Row
from alignkit.data.table.report import SUMS
from alignkit.data.tokenise.render import Rendered, render
from alignkit.data.tokenise.rules import Encoder, TokenRow, TokenRules
from alignkit.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH = 1024

Tokenised: TypeAlias = TokenRow | str | None
"""The tokens of a row, the reason why the chat template rejects it, or None if it is unusable already."""


class CheckedRows(NamedTuple):
    """Rows tokenised as in training."""

    rows: Sequence[Tokenised]

    @property
    def tokens(self) -> NDArray[np.int64]:
        """Tokens of prompt and longest answer before truncation, for the rows that have tokens."""
        found = [
            len(row.parts[0]) + row.prompt_lost + max((len(part) for part in row.parts[1:]), default=0)
            for row in self.rows
            if isinstance(row, TokenRow) and row.parts
        ]
        return np.array(found, dtype=np.int64)

    def counts(self) -> dict[str, int]:
        """Return the counts a run would report."""
        usable = [row for row in self.rows if isinstance(row, TokenRow) and row.unusable is None]
        counts = {"truncated_prompts": sum(row.prompt_lost > 0 for row in usable)}
        counts |= {name: sum(getattr(row, name) for row in usable) for name in SUMS}
        counts["tokens_lost_to_max_length"] = sum(row.prompt_lost + row.completion_lost for row in usable)
        return counts


def tokenize_for_check(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, config: DataConfig, *, all_turns: bool = False
) -> CheckedRows:
    """Render and tokenise rows as in training; a row the chat template rejects does not affect the others."""
    encoder = Encoder(tokenizer, TokenRules(config.max_length, config.append_eos))
    found: list[Tokenised] = [None] * len(rows)
    for begin in range(0, len(rows), _BATCH):
        rendered: dict[int, Rendered] = {}
        for i in range(begin, min(begin + _BATCH, len(rows))):
            if rows[i].unusable is not None:
                continue
            try:
                rendered[i] = render(rows[i], tokenizer, rows[i].place, all_turns=all_turns)
            except DataError as error:
                found[i] = str(error).removeprefix(rows[i].place).lstrip(": ")
        for i, row in zip(rendered, encoder.encode(list(rendered.values())), strict=True):
            found[i] = row
    return CheckedRows(found)


def refused(row: Tokenised) -> str | None:
    """Conversations the chat template rejects."""
    return row if isinstance(row, str) else None


def _of_tokens(problem: Callable[[TokenRow], str | None]) -> Callable[[Tokenised], str | None]:
    return lambda row: problem(row) if isinstance(row, TokenRow) else None


@_of_tokens
def lost(row: TokenRow) -> str | None:
    """Rows that tokenisation makes unusable."""
    return row.unusable


@_of_tokens
def truncated(row: TokenRow) -> str | None:
    """Rows longer than ``max_length``, with the tokens each loses."""
    if not row.parts or not (row.prompt_lost or row.completion_lost):
        return None
    return (
        f"the prompt loses {row.prompt_lost:,} of {row.prompt_tokens:,} tokens, "
        f"the answers {row.completion_lost:,} of {sum(map(len, row.parts[1:])) + row.completion_lost:,}"
    )


@_of_tokens
def merged(row: TokenRow) -> str | None:
    """Answers whose first token straddles the prompt boundary."""
    text = f"{row.border_merges} answers share their first token with the prompt: end the prompt without a space"
    return text if row.border_merges else None


@_of_tokens
def endless(row: TokenRow) -> str | None:
    """Answers without an end token, from which a model cannot learn to stop."""
    return f"{row.eos_missing} answers have no end token, and none is added" if row.eos_missing else None


@_of_tokens
def begun_twice(row: TokenRow) -> str | None:
    """Prompts with two BOS tokens, as when both the chat template and the text contain one."""
    return "the prompt begins with two BOS tokens" if row.double_bos else None


TOKEN_RULES = (
    ("template", "conversations the chat template rejects", refused, True),
    ("lost", "rows without a trainable token", lost, True),
    ("truncated", "rows truncated to data.max_length", truncated, False),
    ("border", "answers whose first token straddles the prompt boundary", merged, False),
    ("no-end", "answers without an end token", endless, False),
    ("double-bos", "prompts with two BOS tokens", begun_twice, False),
)
"""Name, title, rule, and whether ``--fix`` removes the rows."""
