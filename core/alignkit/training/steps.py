"""The prepared batch of every optimizer step on one rank: a pure function of seed and step.

The batch that ``align_prepare_batch`` returns serves one step, or, for a method that makes several passes over a rollout,
``reuse.epochs * reuse.minibatches`` steps; it is then kept here and in checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from alignkit.contract import Batch, Example
from alignkit.errors import CheckpointError
from alignkit.onpolicy.rollouts import ModelRollouts, RolloutParts, buffer_state, restored_buffer
from alignkit.scoring.critic import critic_of
from alignkit.scoring.in_step import in_step
from alignkit.system.distributed import each_rank

if TYPE_CHECKING:
    import torch

    from alignkit.training.parts import EngineParts


class Steps:
    """The batches of all optimizer steps, for one rank."""

    def __init__(self, parts: EngineParts, rank: int, world_size: int) -> None:
        self.parts, self.rank, self.world_size = parts, rank, world_size
        self.method = parts.session.method
        self.reuse = self.method.reuse
        self.buffer: Batch | None = None
        """The rollout that several steps share."""
        self._ahead: dict[int, Batch] = {}
        self.spent = {"sampled": 0, "scored": 0}
        """Tokens generated, and tokens scored without gradient."""
        self.total = 0
        """Optimizer steps of the whole training, known when it begins."""
        self.drawn = 0
        """Rows taken beyond those of the rollouts (``Rollouts.further``)."""

    @property
    def _one_batch_a_step(self) -> bool:
        return self.parts.rollouts is None and self.reuse.steps == 1

    @property
    def per_epoch(self) -> int:
        """Optimizer steps of one pass over the training rows; a rollout is never cut short."""
        whole = self.parts.rollouts is not None
        return self.parts.order.per_epoch(self.parts.rows_per_step, self.reuse, whole=whole)

    def batch(self, step: int, progress: float) -> Batch:
        """Return the prepared batch of an optimizer step (from 0); steps must be asked for in order.

        Raises ``CheckpointError`` for a step of a rollout that the checkpoint should have held.
        """
        if self._one_batch_a_step:
            return self.prepare(self._ahead.pop(step, Batch(())) or self.rows_of_step(step), step, progress)
        rollout, inner = divmod(step, self.reuse.steps)
        if inner == 0:
            self.buffer = self.prepare(self.rows_of_step(step), rollout, progress)
        if self.buffer is None:
            raise CheckpointError(f"the checkpoint of step {step} lacks the rollout that this step trains on")
        return self._minibatch(self.buffer, rollout, *divmod(inner, self.reuse.minibatches))

    def _minibatch(self, buffer: Batch, rollout: int, epoch: int, minibatch: int) -> Batch:
        """Return this rank's rows of a minibatch, which has the same rows for any number of ranks (a rank may have none)."""
        counts = np.array(each_rank(len(buffer)), int)[:, 0]
        before = np.arange(self.world_size) < self.rank
        # The rows were dealt out one by one, so a row comes after those of the ranks before this one and of the rounds before.
        mine = {int(np.minimum(counts, i + before).sum()): i for i in range(len(buffer))}
        order = np.random.default_rng([self.parts.seed, rollout, epoch]).permutation(counts.sum())
        return buffer.rows([mine[i] for i in order[minibatch :: self.reuse.minibatches].tolist() if i in mine])

    def read_ahead(self, step: int) -> None:
        """Read a step's rows before they are asked for, while a GPU computes; what fails then fails when they are."""
        if self._one_batch_a_step and step < self.total:
            with suppress(Exception):
                self._ahead = {step: self.rows_of_step(step)}

    def rows_of_step(self, step: int) -> Batch:
        """Return this rank's rows of a step (of a rollout: of all its steps) as the data has them."""
        parts = self.parts
        if self._one_batch_a_step:
            rows = parts.rows_of_step(step, self.total)
        else:
            rows = self._rollout(step // self.reuse.steps)
        return self.rows("train", parts.train, rows[self.rank :: self.world_size])

    def _rollout(self, number: int) -> list[int]:
        size = self.parts.rows_per_step * self.reuse.minibatches
        return self.parts.order.rollout(size, number, self.total // self.reuse.steps, self.drawn)

    def _further(self, number: int, count: int, mine: Sequence[int]) -> Batch:
        """Return those at positions ``mine`` of the ``count`` rows that follow a rollout's; the next rollout begins after them."""
        rows = self._rollout(number + 1)
        self.drawn += count
        return self.rows("train", self.parts.train, [rows[i] for i in mine])

    def rows(self, split: str, examples: Sequence[Example], rows: Sequence[int]) -> Batch:
        """Return rows of a split with their reference log-probabilities, where the method has a reference."""
        batch = Batch([examples[i] for i in rows])
        references = self.parts.references.get(split)
        return batch if references is None else batch.with_column("reference", [references[i] for i in rows])

    def prepare(self, batch: Batch, number: int, progress: float, *, training: bool = True) -> Batch:
        """Let the method prepare rows (``align_prepare_batch``); ``number`` seeds what is sampled for them."""
        parts, rollouts = self.parts, None
        if parts.rollouts is not None or self.method.whole_step:
            place = self.rank, self.world_size
            draw = partial(self._further, number)
            scoring: Any = self.method.settings, None, (), None, {}, parts.tokens_per_micro_batch, parts.seed
            used = parts.rollouts or RolloutParts(*scoring)
            rollouts = ModelRollouts(used, parts.policy, number, training, *place, draw, spent=self.spent)
        with in_step(parts.policy, self.filler):
            return parts.session.prepare_batch(parts.policy, batch, progress, rollouts)

    @property
    def filler(self) -> Example:
        """A row to score where this rank has none and others do."""
        example = self.parts.train[0]
        return example if example.completions else replace(example, completions=(list(example.prompt[-1:]),))

    def zero_loss(self) -> torch.Tensor:
        """Return a loss of zero that every trained weight takes part in, for a rank that has no rows left."""
        scores = self.parts.policy.score([self.filler], values=critic_of(self.parts.model) is not None)
        total = scores.logps.sum() * 0.0
        return total if scores.values is None else total + scores.values.sum() * 0.0

    # ------------------------------------------------------------------ in a checkpoint

    def state(self, step: int) -> dict[str, Any]:
        """Return what the steps from ``step`` on need, as plain values and tensors."""
        kept = None if self.buffer is None or step % self.reuse.steps == 0 else buffer_state(self.buffer)
        return {"method": self.method.state(), "buffer": kept, "spent": dict(self.spent), "drawn": self.drawn}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore a checkpoint's state."""
        self.method.load_state(state.get("method", {}))
        buffer = state.get("buffer")
        self.buffer = None if buffer is None else restored_buffer(buffer, self.parts.train)
        self.spent.update(state.get("spent", {}))
        self.drawn = state.get("drawn", 0)
