"""The data of an optimizer step: tokenised rows, batches of them, and per-token log-probabilities.

Nothing here imports torch, so that listing and configuration stay light.

Shapes: ``G`` rows of data, ``S`` completions (sequences), ``N`` scored completion tokens, ``M`` scored prompt tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Example:
    """One tokenised row: a prompt and its completions (preference rows: chosen first, rejected second).

    The prompt has at least one token (what comes first cannot be scored); every completion has at least one.
    ``masks``, where given, has one entry a completion: True for the tokens that are scored (None: all of them).
    """

    id: str
    prompt: Sequence[int]
    completions: tuple[Sequence[int], ...]
    index: int = -1
    cluster: str = ""
    category: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    masks: tuple[Sequence[bool] | None, ...] | None = None

    def narrow(self, *which: int) -> Example:
        """Return the row with only the completions at positions ``which``."""
        masks = None if self.masks is None else tuple(self.masks[i] for i in which)
        return replace(self, completions=tuple(self.completions[i] for i in which), masks=masks)

    @property
    def tokens(self) -> int:
        """Tokens the row costs when its prompt is shared by its completions."""
        return len(self.prompt) + sum(map(len, self.completions))

    def scored_tokens(self, completion: int) -> int:
        """Return how many tokens of one completion are scored."""
        mask = self.masks[completion] if self.masks else None
        return len(self.completions[completion]) if mask is None else sum(mask)


COUNTS: Mapping[str, Callable[[Example], int]] = {
    "rows": lambda e: 1,
    "tokens": lambda e: e.scored_tokens(0) if e.completions else 0,
    "full_tokens": lambda e: len(e.prompt) - 1 + (e.scored_tokens(0) if e.completions else 0),
    "completions": lambda e: len(e.completions),
    "completion_tokens": lambda e: sum(e.scored_tokens(i) for i in range(len(e.completions))),
}
"""The counts a loss term or metric can be divided by, each a function of the batch alone: ``rows`` (pairs for preference
data), ``tokens`` of the first completion, ``full_tokens`` of prompt and first completion less the first token (nothing
predicts it), ``completions``, and ``completion_tokens`` of all completions. A method adds its own in
``align_prepare_batch`` through :attr:`Batch.counts`."""


@dataclass(frozen=True)
class Batch:
    """The rows of one optimizer step on this rank, or of one micro-batch cut from it.

    ``columns`` are per-row values cut along with the rows (references, advantages, rows scored without gradient);
    ``shared`` belongs to the whole step and is the same in every cut; ``counts`` are the method's own, per row, summed
    by the engine like the standard ones.
    """

    examples: Sequence[Example]
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    shared: Mapping[str, Any] = field(default_factory=dict)
    row_counts: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.examples)

    def narrow(self, *which: int) -> Batch:
        """Return the batch with only the completions at positions ``which`` of every row."""
        return replace(self, examples=[e.narrow(*which) for e in self.examples])

    def with_column(self, name: str, values: Sequence[Any]) -> Batch:
        """Return the batch with one more per-row column."""
        return replace(self, columns={**self.columns, name: values})

    def with_tokens(self, **values: torch.Tensor) -> Batch:
        """Return the batch with more columns of one number a scored token, each given flat, ``[N]``."""
        lengths = [sum(e.scored_tokens(i) for i in range(len(e.completions))) for e in self.examples]
        columns = {name: split_flat(flat.detach().cpu(), lengths) for name, flat in values.items()}
        return replace(self, columns={**self.columns, **columns})

    def with_answers(self, **values: torch.Tensor) -> Batch:
        """Return the batch with more columns of one number a completion, each given flat, ``[S]``."""
        sizes = [len(example.completions) for example in self.examples]
        columns = {name: [part.tolist() for part in split_flat(flat.cpu(), sizes)] for name, flat in values.items()}
        return replace(self, columns={**self.columns, **columns})

    def with_shared(self, **values: float) -> Batch:
        """Return the batch with more numbers that belong to all of it."""
        return replace(self, shared={**self.shared, **values})

    def answers(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """Return a column of one number a completion flat, ``[S]``, on the device of ``like``."""
        return like.new_tensor([value for row in self.columns[name] for value in row])

    def tokens(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """Return a column of one number a scored token flat, ``[N]``, on the device of ``like``."""
        import numpy as np

        return like.new_tensor(np.concatenate([np.asarray(row) for row in self.columns[name]]))

    def reference(self, scores: Scores) -> Scores:
        """Return the reference's log-probabilities of the same completions, on the device of ``scores``."""
        if "reference" not in self.columns:
            raise KeyError('no reference in this batch: declare needs = frozenset({"reference"}) on the method')
        logps = self.tokens("reference", scores.logps)
        return replace(scores, logps=logps, prompt_logps=logps.new_zeros(0), prompt_row=scores.prompt_row[:0])

    @property
    def counts(self) -> dict[str, int]:
        """Every count of this batch, standard and the method's own."""
        own = {name: sum(values) for name, values in self.row_counts.items()}
        return {name: sum(map(count, self.examples)) for name, count in COUNTS.items()} | own

    def rows(self, which: Sequence[int]) -> Batch:
        """Return the batch made of the rows at positions ``which``, columns and counts along with them."""
        return replace(
            self,
            examples=[self.examples[i] for i in which],
            columns={name: [values[i] for i in which] for name, values in self.columns.items()},
            row_counts={name: [values[i] for i in which] for name, values in self.row_counts.items()},
        )

    def cut(self, max_rows: int, max_tokens: int) -> Iterator[Batch]:
        """Cut into micro-batches of at most ``max_rows`` rows and ``max_tokens`` tokens (one over-long row stands alone)."""
        for which in token_batches([example.tokens for example in self.examples], max_tokens, max_rows=max_rows):
            yield self.rows(which)


def split_flat(flat: torch.Tensor, sizes: Sequence[int]) -> list[torch.Tensor]:
    """Return pieces of the given sizes, one after another, of a flat tensor."""
    ends = list(accumulate(sizes))
    return [flat[end - size : end] for end, size in zip(ends, sizes, strict=True)]


@dataclass(frozen=True)
class Scores:
    """Per-token log-probabilities of completions (and, where asked for, of prompts), in the order of the rows.

    ``logps [N]`` float32, ``sequence [N]`` the completion each token belongs to, ``lengths [S]`` scored tokens of each
    completion, ``prompt_logps [M]`` (the first prompt token has none), ``prompt_row [M]`` the row of each. Where asked for:
    ``values [N]`` of the states in which the tokens were chosen, and the ``entropy [N]`` of what they were chosen from.
    """

    logps: torch.Tensor
    sequence: torch.Tensor
    lengths: torch.Tensor
    prompt_logps: torch.Tensor
    prompt_row: torch.Tensor
    rows: int
    values: torch.Tensor | None = None
    entropy: torch.Tensor | None = None

    def sums(self) -> torch.Tensor:
        """Return the summed log-probability of each completion, ``[S]``."""
        return self.logps.new_zeros(len(self.lengths)).index_add(0, self.sequence, self.logps)

    def means(self) -> torch.Tensor:
        """Return the mean log-probability per scored token of each completion, ``[S]``."""
        return self.sums() / self.lengths

    def prompt_sums(self) -> torch.Tensor:
        """Return the summed log-probability of each row's prompt, ``[G]``."""
        return self.prompt_logps.new_zeros(self.rows).index_add(0, self.prompt_row, self.prompt_logps)

    def split(self, values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Split per-completion values ``[S]`` into one tensor ``[G]`` a position: ``chosen, rejected = s.split(s.sums())``."""
        return values.view(self.rows, -1).unbind(1)


def token_batches(
    tokens: Sequence[int], max_tokens: int, *, max_rows: float = math.inf, padded: bool = False
) -> Iterator[list[int]]:
    """Cut rows, in their order, into batches under a token budget and yield the positions of each batch.

    Args:
        tokens: tokens of each row.
        max_tokens: most tokens in a batch; a longer row is a batch of its own.
        max_rows: most rows in a batch.
        padded: count every row of a batch as long as its longest one.
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
    """Yield the positions of rows in batches under a token budget, the longest rows first (see :func:`token_batches`).

    Rows of a batch then have similar lengths, and a batch that does not fit into memory fails at once.
    """
    tokens = [example.tokens for example in examples]
    order = sorted(range(len(tokens)), key=tokens.__getitem__, reverse=True)
    for batch in token_batches([tokens[i] for i in order], max_tokens, max_rows=max_rows, padded=padded):
        yield [order[i] for i in batch]
