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
        if grad or sharers() == 1 or not examples or wanted.get("distributions"):
            return self._policy.score(examples, grad=grad, **wanted)

        def work(which: list[int]) -> Iterator[tuple[Any, ...]]:
            own = [examples[i] for i in which]
            return by_row(self._policy.score(own, grad=False, **wanted), own)

        rows = shared("scores", [example.tokens for example in examples], work)
        return joined(rows, next(self.model.parameters()).device)


_NO_ROW = np.empty(0, np.int64), *(np.empty(0, np.float32),) * 4


def by_row(scores: Scores, examples: Sequence[Example]) -> Iterator[tuple[Any, ...]]:
    """Yield for each row its lengths, log-probabilities, values, entropy and prompt's log-probabilities, as arrays."""

    def split(flat: torch.Tensor | None, counts: Sequence[int]) -> list[Any]:
        if flat is None:
            return [None] * scores.rows
        return np.split((flat.float() if flat.is_floating_point() else flat).cpu().numpy(), np.cumsum(counts)[:-1])

    lengths = split(scores.lengths, [len(example.completions) for example in examples])
    tokens = [int(row.sum()) for row in lengths]
    prompts = torch.bincount(scores.prompt_row.cpu(), minlength=scores.rows).tolist()
    per_token = (split(flat, tokens) for flat in (scores.logps, scores.values, scores.entropy))
    yield from zip(lengths, *per_token, split(scores.prompt_logps, prompts), strict=True)


def joined(rows: Sequence[tuple[Any, ...]], device: torch.device) -> Scores:
    """Return the scores of rows from their parts."""

    def join(column: Sequence[Any]) -> Any:
        return None if column[-1] is None else torch.from_numpy(np.concatenate(column)).to(device)

    lengths, logps, values, entropy, prompts = map(join, zip(_NO_ROW, *rows, strict=True))
    prompt_row = torch.repeat_interleave(torch.tensor([len(row[-1]) for row in rows], dtype=torch.long, device=device))
    return Scores(logps, torch.repeat_interleave(lengths), lengths, prompts, prompt_row, len(rows), values, entropy)
