"""The prepared batch of every optimizer step: a pure function of the seed and the step, for one process.

What ``align_prepare_batch`` returns serves one step, or, where the method reuses it (a rollout that several passes are
made over), ``reuse.epochs * reuse.minibatches`` of them; it is then kept here, and in checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from alignkit.contract.batch import Batch, Example
from alignkit.errors import CheckpointError
from alignkit.onpolicy.rollouts import ModelRollouts, buffer_state, restored_buffer
from alignkit.scoring.critic import critic_of

if TYPE_CHECKING:
    import torch

    from alignkit.training.parts import EngineParts


class Steps:
    """Makes this process's batch of every optimizer step."""

    def __init__(self, parts: EngineParts, rank: int, world_size: int) -> None:
        self.parts, self.rank, self.world_size = parts, rank, world_size
        self.method = parts.session.method
        self.reuse = self.method.reuse
        self.buffer: Batch | None = None
        self.spent = {"sampled": 0, "scored": 0}
        self.total = 0
        """Optimizer steps of the whole training, known when it begins."""

    @property
    def per_epoch(self) -> int:
        """Optimizer steps of a pass over the training rows; a rollout is never cut short."""
        parts = self.parts
        return parts.order.per_epoch(parts.rows_per_step, self.reuse, whole=parts.rollouts is not None)

    def batch(self, step: int, progress: float) -> Batch:
        """Return the batch of an optimizer step; steps are asked for in their order."""
        parts, reuse = self.parts, self.reuse
        if parts.rollouts is None and reuse.steps == 1:
            return self.prepare(self.rows_of_step(step), step, progress)
        number, inner = divmod(step, reuse.steps)
        if inner == 0:
            self.buffer = self.prepare(self.rows_of_step(step), number, progress)
        if self.buffer is None:
            raise CheckpointError(f"the checkpoint of step {step} lacks the rollout that training goes on with")
        epoch, minibatch = divmod(inner, reuse.minibatches)
        order = np.random.default_rng([parts.seed, number, epoch]).permutation(len(self.buffer))
        return self.buffer.rows([int(i) for i in order[minibatch :: reuse.minibatches]])

    def rows_of_step(self, step: int) -> Batch:
        """Return this process's rows of the step (of a rollout: of all its steps) as they stand in the data."""
        parts, reuse = self.parts, self.reuse
        if parts.rollouts is None and reuse.steps == 1:
            rows = parts.order.step(parts.rows_per_step, step, self.total)
        else:
            size = parts.rows_per_step * reuse.minibatches
            rows = parts.order.rollout(size, step // reuse.steps, self.total // reuse.steps)
        return self.rows("train", parts.train, rows[self.rank :: self.world_size])

    def prepare(self, batch: Batch, number: int, progress: float, *, training: bool = True) -> Batch:
        """Let the method prepare rows; ``number`` decides what is sampled for them."""
        parts = self.parts
        rollouts = None
        if parts.rollouts is not None:
            rollouts = ModelRollouts(
                parts.rollouts, parts.policy, number, training, self.rank, self.world_size, spent=self.spent
            )
        return parts.session.prepare_batch(parts.policy, batch, progress, rollouts)

    def rows(self, split: str, examples: Sequence[Example], rows: Sequence[int]) -> Batch:
        """Return rows as they are, with their reference log-probabilities."""
        batch = Batch([examples[i] for i in rows])
        references = self.parts.references.get(split)
        return batch if references is None else batch.with_column("reference", [references[i] for i in rows])

    def zero_loss(self) -> torch.Tensor:
        """Return a loss of zero that every trained weight takes part in: for a process that has no rows left."""
        example = self.parts.train[0]
        if not example.completions:
            example = replace(example, completions=(list(example.prompt[-1:]),))
        scores = self.parts.policy.score([example], values=critic_of(self.parts.model) is not None)
        total = scores.logps.sum() * 0.0
        return total if scores.values is None else total + scores.values.sum() * 0.0

    # ------------------------------------------------------------------ in a checkpoint

    def state(self, step: int) -> dict[str, Any]:
        """Return what the steps after ``step`` need, as plain values and tensors."""
        unfinished = self.buffer is not None and step % self.reuse.steps
        return {
            "method": self.method.state(),
            "buffer": buffer_state(self.buffer) if unfinished and self.buffer is not None else None,
            "spent": dict(self.spent),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's state."""
        self.method.load_state(state.get("method", {}))
        buffer = state.get("buffer")
        self.buffer = None if buffer is None else restored_buffer(buffer, self.parts.train)
        self.spent.update(state.get("spent", {}))
