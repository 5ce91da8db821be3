"""The argument of ``align_build_trainer``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments

    from alignkit.config import RunConfig
    from alignkit.contract.batch import Example
    from alignkit.contract.rows import Row
    from alignkit.contract.types import Policy


class TrainerParts(Protocol):
    """A run's model, data and settings, for a method that builds its own trainer."""

    @property
    def config(self) -> RunConfig:
        """The run's configuration."""

    @property
    def model(self) -> PreTrainedModel:
        """The model to train, its adapter included."""

    def start_model(self) -> PreTrainedModel:
        """Return a second model with the weights the run starts with, before training: a trainer's reference model."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""

    @property
    def policy(self) -> Policy:
        """The model behind alignkit's scorer."""

    @property
    def train(self) -> Sequence[Example]:
        """The tokenised training rows."""

    @property
    def eval(self) -> Sequence[Example]:
        """The tokenised held-out rows."""

    @property
    def arguments(self) -> TrainingArguments:
        """The run's training arguments."""

    @property
    def callbacks(self) -> Sequence[TrainerCallback]:
        """The run's callbacks: logging, checkpoints, signals."""

    @property
    def max_length(self) -> int:
        """Maximum tokens of a row: ``data.max_length``, or the model's positions if they are fewer."""

    @property
    def rows_per_step(self) -> int:
        """Number of rows of an optimizer step over all ranks."""

    @property
    def rows_per_micro_batch(self) -> int:
        """Maximum rows of a micro-batch."""

    @property
    def tokens_per_micro_batch(self) -> int:
        """Maximum tokens of a micro-batch."""

    @property
    def seed(self) -> int:
        """The run's seed."""

    @property
    def references(self) -> Mapping[str, Sequence[Any]]:
        """Reference log-probabilities by split (``train``, ``eval``), one array per row."""

    def rows(self, split: str) -> Sequence[Row]:
        """Return the rows of a split as text or messages: ``rows("train")[i]`` is ``train[i]``."""

    def rows_of_epoch(self, epoch: int) -> list[int]:
        """Return the indices of an epoch's training rows, in the order of alignkit's engine."""

    def rows_of_step(self, step: int, total: int) -> list[int]:
        """Return the indices of the training rows of optimizer step ``step`` (from 0) of ``total``, over all ranks."""

    def staged(self, trainer: type[Trainer]) -> type[Trainer]:
        """Return the trainer class with atomic checkpoints, which ``align resume`` needs."""

    def memory_gb(self) -> float:
        """Return the peak memory of this process in GiB."""
