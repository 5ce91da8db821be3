"""Pairs made by hand, for doctests and tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from alignkit import Answers, Pairs, Scores


def pairs(
    chosen: Sequence[float],
    rejected: Sequence[float],
    reference: tuple[Sequence[float], Sequence[float]] | None = None,
    lengths: tuple[Sequence[int], Sequence[int]] | None = None,
    dtype: torch.dtype = torch.float32,
    of_tokens: Sequence[float] | None = None,
) -> Pairs:
    """Return pairs with these log-probabilities; default: reference 0 (they are log-ratios then), one token an answer.

    ``of_tokens``: of the only token of every answer, chosen and rejected in turn.
    """
    given = zip(
        (chosen, rejected),
        reference or ([0.0] * len(chosen),) * 2,
        lengths or ([1] * len(chosen),) * 2,
        strict=True,
    )
    one, other = (Answers(*(torch.tensor(values, dtype=dtype) for values in side)) for side in given)
    if of_tokens is None:
        return Pairs(one, other)
    logps = torch.stack([one.logps, other.logps], 1).flatten()
    answers, nothing = torch.arange(len(logps)), logps[:0]
    tokens = Scores(logps, answers, torch.ones_like(answers), nothing, answers[:0], len(chosen))
    return Pairs(one, other, tokens, of_tokens=torch.tensor(of_tokens, dtype=dtype))
