"""The model a run trains, with its tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class LoadedModel:
    """A model ready to train, its tokenizer, and the fingerprint of its start weights."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    path: str
    """Source of the weights: a directory or a hub id."""
    fingerprint: str
    """SHA-256 of the start weights, without a fresh adapter (which has no effect until it is trained)."""
    is_adapter: bool
    """Whether a peft adapter is trained."""
    classifier: bool = False
    """Whether it is a reward model: a sequence classifier with one output."""
    own_dropout: dict[str, float] = field(default_factory=dict)
    """Dropout settings of the model's configuration that are 0 in training; the saved model has these values."""

    @contextmanager
    def as_saved(self) -> Iterator[None]:
        """Restore the model's own dropout settings inside the ``with`` block, for saving."""
        config = self.model.config.get_text_config()
        for name, value in self.own_dropout.items():
            setattr(config, name, value)
        try:
            yield
        finally:
            for name in self.own_dropout:
                setattr(config, name, 0.0)

    @property
    def parameters(self) -> int:
        """Number of parameters, adapter included."""
        return sum(getattr(p, "ds_numel", p.numel()) for p in self.model.parameters())

    @property
    def trainable(self) -> int:
        """Number of trainable parameters."""
        return sum(getattr(p, "ds_numel", p.numel()) for p in self.model.parameters() if p.requires_grad)
