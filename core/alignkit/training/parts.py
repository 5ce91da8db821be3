"""The parts of a run that the engine's trainer is built from."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from transformers import Trainer, TrainerCallback, TrainingArguments

from alignkit.config import RunConfig
from alignkit.contract import Batch, Example, Row, RunPolicy, by_length
from alignkit.data.order import RowOrder
from alignkit.models.positions import position_limit
from alignkit.system.environment import peak_memory_gb
from alignkit.system.sharded import is_sharded
from alignkit.training.checkpoints import WholeCheckpoints
from alignkit.training.session import Session
from alignkit.training.sharded import ShardedState

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from alignkit.onpolicy.rollouts import RolloutParts


@dataclass
class EngineParts:
    """The run's parts; a :class:`~alignkit.contract.trainer_parts.TrainerParts`."""

    session: Session
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    policy: RunPolicy
    train: Sequence[Example]
    eval: Sequence[Example]
    arguments: TrainingArguments
    rows_per_step: int
    """Rows of one optimizer step over all ranks."""
    rows_per_micro_batch: int
    tokens_per_micro_batch: int
    seed: int
    references: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Reference log-probabilities by split (``train``, ``eval``), one array a row."""
    rollouts: RolloutParts | None = None
    """Sampler and rewards of on-policy methods."""
    callbacks: Sequence[TrainerCallback] = ()
    row_order: RowOrder | None = None
    """Order of the training rows; None: a permutation an epoch."""
    source_rows: Mapping[str, Callable[[], Sequence[Row]]] = field(default_factory=dict)
    """Rows of ``train`` and ``eval`` as text or messages, read when asked for."""
    load_start: Callable[[], RunPolicy] | None = None
    """Loads the start model once more."""

    def start_model(self) -> PreTrainedModel:
        if is_sharded(self.model) and self.load_start is not None:  # it cannot be copied
            start: PreTrainedModel = self.load_start().model
            return start
        return copy.deepcopy(self.model)

    def rows(self, split: str) -> Sequence[Row]:
        return self.source_rows[split]()

    @cached_property
    def order(self) -> RowOrder:
        return self.row_order or RowOrder(len(self.train), self.seed)

    @property
    def config(self) -> RunConfig:
        return self.session.config

    @property
    def max_length(self) -> int:
        limit, longest = position_limit(self.model), self.config.data.max_length
        return longest if limit is None else min(limit, longest)

    def cut(self, batch: Batch) -> list[Batch]:
        """Cut a step into micro-batches, longest rows first: similar lengths together, peak memory at the first one."""
        batches = by_length(batch.examples, self.tokens_per_micro_batch, max_rows=self.rows_per_micro_batch)
        return [batch.rows(which) for which in batches]

    def rows_of_epoch(self, epoch: int) -> list[int]:
        return self.order.taken(self.rows_per_step, epoch)

    def rows_of_step(self, step: int, total: int) -> list[int]:
        return self.order.step(self.rows_per_step, step, total)

    def staged(self, trainer: type[Trainer]) -> type[Trainer]:
        return type(trainer.__name__, (WholeCheckpoints, ShardedState, trainer), {})

    def memory_gb(self) -> float:
        return peak_memory_gb()
