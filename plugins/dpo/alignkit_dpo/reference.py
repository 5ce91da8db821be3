"""A reference that follows the policy in training (TR-DPO)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from alignkit import Batch, Rollouts


class MovingReference:
    """The reference, moved a share of the way to the policy after every so many optimizer steps.

    reference = (1 - share) reference + share policy, of every trained weight

    With LoRA the adapter's weights are moved. A checkpoint has the reference's weights, those of each process.
    """

    def __init__(self, every: int, share: float) -> None:
        self.every, self.share = every, share
        self.steps = self.moves = 0
        self.weights: list[torch.Tensor] = []
        self._restored: list[torch.Tensor] = []

    def score(self, batch: Batch, rollouts: Rollouts) -> Batch:
        """Return the rows of the next step, or held-out rows, with the log-probabilities by the reference as it is by now."""
        self._follow(rollouts.reference_weights())
        self.steps += rollouts.training
        return batch.with_tokens(reference=rollouts.score(batch, reference=True).logps)

    def _follow(self, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.weights = [kept for _, kept in pairs]
        for kept, saved in zip(self.weights, self._restored, strict=bool(self._restored)):
            kept.copy_(saved)
        self._restored = []
        if self.steps // self.every > self.moves:
            self.moves += 1
            for policy, kept in pairs:
                kept.mul_(1 - self.share).add_(policy, alpha=self.share)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        weights = self._restored or (self.weights if self.moves else [])
        return {"reference/steps": self.steps, "reference/moves": self.moves, "reference/weights": weights}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore a checkpoint's state; the weights before they are used next."""
        self.steps, self.moves = (int(state.get(f"reference/{name}", 0)) for name in ("steps", "moves"))
        self._restored = state.get("reference/weights", [])
