"""The policy that several processes evaluate with: each scores its share of the rows, and all get every score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from alignkit.contract import Example, Policy, Scores
from alignkit.system.distributed import world_size
from alignkit.system.together import shared, sharers


def share(policy: Policy) -> Policy:
    """Return the policy that a run of several processes evaluates with: ``policy`` itself in a single one."""
    return policy if world_size() == 1 else SharedPolicy(policy)


class SharedPolicy:
    """A policy whose calls without gradient are shared out among processes that make the same calls."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.classifier = getattr(policy, "classifier", False)

    @property
    def model(self) -> torch.nn.Module:
        return self._policy.model

    def score(self, examples: Sequence[Example], *, grad: bool = True, **wanted: Any) -> Scores:
        """Score every completion of ``examples``; see :class:`~alignkit.contract.types.Policy`."""
        if grad or sharers() == 1 or not examples:
            return self._policy.score(examples, grad=grad, **wanted)

        def work(which: list[int]) -> Iterator[tuple[Any, ...]]:
            scores = self._policy.score([examples[i] for i in which], grad=False, **wanted)
            return _rows(scores, [len(examples[i].completions) for i in which])

        rows = shared("scores", [example.tokens for example in examples], work)
        return _joined(rows, next(self.model.parameters()).device)


def _rows(scores: Scores, completions: list[int]) -> Iterator[tuple[Any, ...]]:
    """Yield for each row, of so many completions, its lengths, log-probabilities, values, entropy and prompt's, as arrays."""

    def split(flat: torch.Tensor | None, counts: Sequence[int]) -> list[Any]:
        if flat is None:
            return [None] * scores.rows
        return np.split((flat.float() if flat.is_floating_point() else flat).cpu().numpy(), np.cumsum(counts)[:-1])

    lengths = split(scores.lengths, completions)
    tokens = [int(row.sum()) for row in lengths]
    prompts = torch.bincount(scores.prompt_row.cpu(), minlength=scores.rows).tolist()
    per_token = (split(flat, tokens) for flat in (scores.logps, scores.values, scores.entropy))
    yield from zip(lengths, *per_token, split(scores.prompt_logps, prompts), strict=True)


def _joined(rows: Sequence[tuple[Any, ...]], device: torch.device) -> Scores:
    """Return the scores of rows from their parts."""

    def join(column: Sequence[Any]) -> Any:
        return None if column[0] is None else torch.from_numpy(np.concatenate(column)).to(device)

    lengths, logps, values, entropy, prompts = map(join, zip(*rows, strict=True))
    prompt_row = torch.repeat_interleave(torch.tensor([len(row[-1]) for row in rows], device=device))
    return Scores(logps, torch.repeat_interleave(lengths), lengths, prompts, prompt_row, len(rows), values, entropy)
