"""The distributions of scored tokens over the vocabulary, computed in chunks when they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from alignkit.scoring.head import CHUNK, LogitTransform, is_sharded_head


class HeadDistributions:
    """What an output layer predicts from ``N`` hidden states; see :class:`~alignkit.contract.types.Distributions`."""

    def __init__(self, states: Tensor, logits: Callable[[Tensor], Tensor], size: int = CHUNK) -> None:
        self._states, self._logits, self._size = states, logits, size

    @classmethod
    def of(cls, head: nn.Module, hidden: Tensor, transform: LogitTransform) -> HeadDistributions:
        """Return ``softmax(transform(head(hidden)))`` of states ``[N, H]``; without gradient, by the weights the head has now."""
        # A sharded head communicates in every call: make one call, so that all ranks make the same number.
        size, live = (len(hidden), True) if is_sharded_head(head) else (CHUNK, torch.is_grad_enabled())
        kept = {} if live else {name: p.detach() for name, p in head.named_parameters() if p.requires_grad}
        return cls(hidden, lambda states: transform(functional_call(head, kept, (states,))), size)

    def map(self, function: Callable[..., Any], *others: Any) -> Any:
        """Return ``function(logps [n, V], *others)`` of every chunk, joined; the backward computes a chunk once more."""

        def apply(part: slice) -> Any:
            given = (other.part(part).detach() if hasattr(other, "part") else other[part] for other in others)
            return function(self.part(part), *given)

        count, size = max(len(self._states), 1), max(self._size, 1)
        found = [checkpoint(apply, slice(i, i + size), use_reentrant=False) for i in range(0, count, size)]
        return tuple(map(torch.cat, zip(*found, strict=True))) if isinstance(found[0], tuple) else torch.cat(found)

    def part(self, tokens: slice) -> Tensor:
        """Return the log-probabilities of a slice of the tokens, ``[n, V]``."""
        logits = self._logits(self._states[tokens])
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def entropy(logps: Tensor) -> Tensor:
    """Return the entropy in nats, ``[n]``, of distributions given by their log-probabilities, ``[n, V]``."""
    return -(logps.exp() * logps).sum(-1)
