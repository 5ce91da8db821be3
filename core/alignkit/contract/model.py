"""Part of models: LoadedModel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class LoadedModel:
    """A policy ready to train, its tokenizer, and the fingerprint of the weights it starts from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    path: str
    """Where the weights came from: a directory or a hub id."""
    fingerprint: str
    """sha256 over the start weights (a fresh adapter left out: it changes nothing until it is trained)."""
    is_adapter: bool
    classifier: bool = False
    """Whether it is a reward model: a sequence classifier with one output."""
    own_dropout: dict[str, float] = field(default_factory=dict)
    """The configuration's dropouts where they were switched off for training; the saved model keeps them."""

    @contextmanager
    def as_saved(self) -> Iterator[None]:
        """Give the model its own dropouts back for the block."""
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
        return sum(p.numel() for p in self.model.parameters())

    @property
    def trainable(self) -> int:
        """Number of parameters that are trained."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)
