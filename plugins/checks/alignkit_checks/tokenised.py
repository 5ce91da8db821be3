"""The rules of data checks on tokenised rows: rejected conversations, truncation, border merges, end tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from alignkit.contract import DataRule, Hit, Row
from alignkit.data.table.report import SUMS
from alignkit.data.tokenise.render import Rendered, render
from alignkit.data.tokenise.rules import Encoder, TokenRow, TokenRules
from alignkit.errors import DataError, SourceError
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH = 1024

Tokenised: TypeAlias = TokenRow | str | None
"""The tokens of a row, the reason why the chat template rejects it, or None if it is unusable already."""


class CheckedRows(NamedTuple):
    """Rows tokenised as in training."""

    rows: Sequence[Tokenised]
    limit: str
    """What the rows are truncated to."""

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
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, rules: TokenRules, *, all_turns: bool = False
) -> CheckedRows:
    """Render and tokenise rows as in training; a row the chat template rejects does not affect the others."""
    encoder = Encoder(tokenizer, rules)
    found: list[Tokenised] = [None] * len(rows)
    for begin in range(0, len(rows), _BATCH):
        rendered: dict[int, Rendered] = {}
        for i in range(begin, min(begin + _BATCH, len(rows))):
            if rows[i].unusable is not None:
                continue
            try:
                rendered[i] = render(rows[i], tokenizer, rows[i].place, all_turns=all_turns)
            except SourceError:  # a template that does not end
                raise
            except DataError as error:
                found[i] = str(error).removeprefix(rows[i].place).lstrip(": ")
        for i, row in zip(rendered, encoder.encode(list(rendered.values())), strict=True):
            found[i] = row
    return CheckedRows(found, rules.limit)


def _truncated(row: Tokenised) -> str | None:
    if not isinstance(row, TokenRow) or not row.parts or not (row.prompt_lost or row.completion_lost):
        return None
    return (
        f"the prompt loses {row.prompt_lost:,} of {row.prompt_tokens:,} tokens, "
        f"the answers {row.completion_lost:,} of {sum(map(len, row.parts[1:])) + row.completion_lost:,}"
    )


def _counted(name: str, about: str) -> Callable[[Tokenised], str | None]:
    """Return the rule that finds the rows whose count ``name`` is not zero."""
    return lambda row: about.format(count) if (count := getattr(row, name, 0)) else None


_STRADDLES = "{} answers share their first token with the prompt: end the prompt without a space"
_BEGINS = "{} answers begin with a BOS token, which is removed"
_NO_END = "{} answers have no end token, and none is added"

TOKEN_RULES: tuple[tuple[str, str, Callable[[Tokenised], str | None], bool], ...] = (
    ("template", "conversations the chat template rejects", lambda row: row if isinstance(row, str) else None, True),
    ("lost", "rows without a trainable token", lambda row: getattr(row, "unusable", None), True),
    ("truncated", "rows truncated to {limit}", _truncated, False),
    ("border", "answers whose first token straddles the prompt boundary", _counted("border_merges", _STRADDLES), False),
    # A model cannot learn to stop from these answers.
    ("no-end", "answers without an end token", _counted("eos_missing", _NO_END), False),
    ("answer-bos", "answers that begin with a BOS token", _counted("bos_removed", _BEGINS), False),
    # As when both the chat template and the text contain one.
    (
        "double-bos",
        "prompts with two BOS tokens",
        _counted("double_bos", "the prompt begins with two BOS tokens"),
        False,
    ),
)
"""Name, title, rule, and whether ``--fix`` removes the rows."""


def token_rules(seen: CheckedRows) -> list[DataRule]:
    """Return the rules on tokens as rules of the rows that ``seen`` was tokenised from."""

    def of(problem: Callable[[Tokenised], str | None]) -> Callable[..., Iterator[Hit]]:
        return lambda *_: (Hit(i, about) for i, row in enumerate(seen.rows) if (about := problem(row)) is not None)

    return [
        DataRule(name, title.format(limit=seen.limit), of(problem), drops)
        for name, title, problem, drops in TOKEN_RULES
    ]
