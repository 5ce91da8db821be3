"""The data of an optimizer step: tokenised rows, batches of them, and per-token log-probabilities.

Shapes: ``G`` rows, ``S`` completions (sequences) of all rows, ``N`` scored completion tokens, ``M`` scored prompt tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from alignkit.system.device import on_device

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Example:
    """One tokenised row: a prompt and its completions (preference rows: chosen, then rejected).

    Prompt and completions have at least one token each; the first prompt token cannot be scored. ``masks``, if given, has
    one entry per completion: True for its scored tokens (None: all are scored).
    """

    id: str
    prompt: Sequence[int]
    completions: tuple[Sequence[int], ...]
    index: int = -1
    """Position of the row in its data set."""
    cluster: str = ""
    """Name shared by dependent rows, for splits and standard errors."""
    category: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Other columns of the row."""
    masks: tuple[Sequence[bool] | None, ...] | None = None

    def narrow(self, *which: int) -> Example:
        """Return the row with only the completions at positions ``which``."""
        masks = None if self.masks is None else tuple(self.masks[i] for i in which)
        return replace(self, completions=tuple(self.completions[i] for i in which), masks=masks)

    @property
    def tokens(self) -> int:
        """Number of tokens of the prompt and all completions."""
        return len(self.prompt) + sum(map(len, self.completions))

    def scored_tokens(self, completion: int) -> int:
        """Return the number of scored tokens of one completion."""
        mask = self.masks[completion] if self.masks else None
        return len(self.completions[completion]) if mask is None else sum(mask)


COUNTS: Mapping[str, Callable[[Example], int]] = {
    "rows": lambda e: 1,
    "tokens": lambda e: e.scored_tokens(0) if e.completions else 0,
    "full_tokens": lambda e: len(e.prompt) - 1 + (e.scored_tokens(0) if e.completions else 0),
    "completions": lambda e: len(e.completions),
    "completion_tokens": lambda e: sum(e.scored_tokens(i) for i in range(len(e.completions))),
}
"""The counts a loss term or metric can be divided by, as functions of a row: ``rows`` (pairs, for preference data), ``tokens``
(scored tokens of the first completion), ``full_tokens`` (these and the prompt's, except its first, which nothing predicts),
``completions``, ``completion_tokens`` (scored tokens of all completions). A method can add counts by
:attr:`Batch.row_counts` in ``align_prepare_batch``."""


@dataclass(frozen=True)
class Batch:
    """The rows of one optimizer step on this rank, or of one of its micro-batches.

    ``columns`` are values per row, divided along with the rows (reference log-probabilities, advantages); ``shared`` are
    values of the whole step, the same in every micro-batch; ``row_counts`` are the method's own counts per row, which the
    engine sums like :data:`COUNTS`.
    """

    examples: Sequence[Example]
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    shared: Mapping[str, Any] = field(default_factory=dict)
    row_counts: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.examples)

    def narrow(self, *which: int) -> Batch:
        """Return the batch with only the completions at positions ``which`` of every row."""
        return replace(self, examples=[e.narrow(*which) for e in self.examples])

    def with_column(self, name: str, values: Sequence[Any]) -> Batch:
        """Return the batch with one more column, one value per row."""
        return replace(self, columns={**self.columns, name: values})

    def with_tokens(self, **values: torch.Tensor) -> Batch:
        """Return the batch with more columns of one number per scored token, each given as ``[N]``."""
        lengths = [COUNTS["completion_tokens"](example) for example in self.examples]
        columns = {name: flat.detach().cpu().split_with_sizes(lengths) for name, flat in values.items()}
        return replace(self, columns={**self.columns, **columns})

    def with_answers(self, **values: torch.Tensor) -> Batch:
        """Return the batch with more columns of one number per completion, each given as ``[S]``."""
        sizes = [len(e.completions) for e in self.examples]
        columns = {
            name: [part.tolist() for part in flat.cpu().split_with_sizes(sizes)] for name, flat in values.items()
        }
        return replace(self, columns={**self.columns, **columns})

    def with_shared(self, **values: float) -> Batch:
        """Return the batch with more numbers of the whole step."""
        return replace(self, shared={**self.shared, **values})

    def answers(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """Return a column of one number per completion, ``[S]``, with dtype and device of ``like``."""
        return on_device([value for row in self.columns[name] for value in row], like.device, like.dtype)

    def tokens(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """Return a column of one number per scored token, ``[N]``, with dtype and device of ``like``."""
        import numpy as np

        return on_device(np.concatenate([np.asarray(row) for row in self.columns[name]]), like.device, like.dtype)

    def reference(self, scores: Scores) -> Scores:
        """Return the reference log-probabilities of the same completions, ``[N]``, with dtype and device of ``scores``."""
        if "reference" not in self.columns:
            raise KeyError(
                'this batch has no reference log-probabilities: the method must set needs = frozenset({"reference"})'
            )
        logps = self.tokens("reference", scores.logps)
        return replace(scores, logps=logps, prompt_logps=logps.new_zeros(0), prompt_row=scores.prompt_row[:0])

    @property
    def counts(self) -> dict[str, int]:
        """The counts of this batch: those of :data:`COUNTS` and the method's own."""
        counts = {name: sum(map(count, self.examples)) for name, count in COUNTS.items()}
        return counts | {name: sum(values) for name, values in self.row_counts.items()}

    def rows(self, which: Sequence[int]) -> Batch:
        """Return the batch of the rows at positions ``which``, with their columns and counts."""
        return replace(
            self,
            examples=[self.examples[i] for i in which],
            columns={name: [values[i] for i in which] for name, values in self.columns.items()},
            row_counts={name: [values[i] for i in which] for name, values in self.row_counts.items()},
        )

    def cut(self, max_rows: int, max_tokens: int) -> Iterator[Batch]:
        """Return micro-batches of at most ``max_rows`` rows and ``max_tokens`` tokens; a longer row is a batch of its own."""
        return map(self.rows, token_batches([e.tokens for e in self.examples], max_tokens, max_rows=max_rows))


@dataclass(frozen=True)
class Scores:
    """Per-token log-probabilities of completions, and on request of prompts, in the order of the rows."""

    logps: torch.Tensor
    """Log-probability of each scored token, ``[N]``, float32."""
    sequence: torch.Tensor
    """Index of the completion of each scored token, ``[N]``."""
    lengths: torch.Tensor
    """Number of scored tokens of each completion, ``[S]``."""
    prompt_logps: torch.Tensor
    """Log-probability of each prompt token but the first of each prompt, ``[M]``; empty unless requested."""
    prompt_row: torch.Tensor
    """Index of the row of each prompt token, ``[M]``."""
    rows: int
    """Number of rows, ``G``."""
    values: torch.Tensor | None = None
    """On request: the critic's value of the state before each scored token, ``[N]``."""
    entropy: torch.Tensor | None = None
    """On request: entropy in nats of the distribution of each scored token, ``[N]``."""
    distributions: Any = None
    """On request: the result of a function of the distributions over the vocabulary."""

    def sums(self) -> torch.Tensor:
        """Return the log-probability of each completion, ``[S]``."""
        return self.logps.new_zeros(len(self.lengths)).index_add(0, self.sequence, self.logps)

    def means(self) -> torch.Tensor:
        """Return the mean log-probability per scored token of each completion, ``[S]``."""
        return self.sums() / self.lengths

    def prompt_sums(self) -> torch.Tensor:
        """Return the log-probability of each row's prompt, ``[G]``."""
        return self.prompt_logps.new_zeros(self.rows).index_add(0, self.prompt_row, self.prompt_logps)

    def split(self, values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Split values per completion, ``[S]``, by position in the row: ``chosen, rejected = s.split(s.sums())``, ``[G]`` each."""
        return values.view(self.rows, -1).unbind(1)


def token_batches(
    tokens: Sequence[int], max_tokens: int, *, max_rows: float = math.inf, padded: bool = False
) -> Iterator[list[int]]:
    """Yield the positions of rows in batches within a token budget, in the order of the rows.

    Args:
        tokens: number of tokens of each row.
        max_tokens: maximum tokens of a batch; a longer row is a batch of its own.
        max_rows: maximum rows of a batch.
        padded: count every row of a batch with the length of its longest row.
    """
    batch: list[int] = []
    total = longest = 0
    for i, count in enumerate(tokens):
        size = (len(batch) + 1) * max(longest, count) if padded else total + count
        if batch and (len(batch) >= max_rows or size > max_tokens):
            yield batch
            batch, total, longest = [], 0, 0
        batch.append(i)
        total, longest = total + count, max(longest, count)
    if batch:
        yield batch


def by_length(
    examples: Sequence[Example], max_tokens: int, *, max_rows: float = math.inf, padded: bool = False
) -> Iterator[list[int]]:
    """Yield the positions of rows in batches within a token budget, longest rows first; see :func:`token_batches`.

    The rows of a batch then have similar lengths, and a batch that does not fit into memory fails at once.
    """
    tokens = [example.tokens for example in examples]
    order = sorted(range(len(tokens)), key=tokens.__getitem__, reverse=True)
    for batch in token_batches([tokens[i] for i in order], max_tokens, max_rows=max_rows, padded=padded):
        yield [order[i] for i in batch]
