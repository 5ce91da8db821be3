"""The teacher: a model, or a file with its log-probabilities."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from alignkit import Example, LoadedModel, Policy, RunConfig, build_model, policy_of
from alignkit.errors import ConfigError, ModelError
from torch import Tensor

from alignkit_distill.divergence import coarsened, within
from alignkit_distill.settings import DistillSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

DEMO = "demo"
"""Name of the teacher that comes with this package, for the embedded demo."""


class Teacher:
    """A frozen language model whose distributions a student learns."""

    def __init__(self, settings: DistillSettings, config: RunConfig) -> None:
        dtype = config.model.dtype if settings.teacher_dtype == "auto" else settings.teacher_dtype
        if dtype == "auto" and config.model.lora is not None:
            dtype = "checkpoint"  # as the base model of the student
        own = {"name": teacher_path(settings), "revision": None, "tokenizer": None, "lora": None, "quantization": None}
        model = config.model.model_copy(update={**own, "dtype": dtype, "dropout": False, "resize_embeddings": False})
        self.config = config.model_copy(update={"model": model})
        self.name = settings.teacher
        self._policies: dict[torch.device, Policy] = {}

    @cached_property
    def loaded(self) -> LoadedModel:
        """The model; raises :class:`ModelError` if there is none or it is a reward model."""
        loaded = self.built()
        loaded.model.requires_grad_(False)
        return loaded

    def built(self, *, meta: bool = False) -> LoadedModel:
        """Load the model; ``meta``: without weights."""
        try:
            loaded = build_model(self.config.model, meta=meta)
        except ModelError as error:
            raise ModelError(f"method.teacher: {error}") from error
        if loaded.classifier:
            raise ModelError(f"method.teacher: {self.name} is a reward model, and a teacher must be a language model")
        return loaded

    def policy(self, device: torch.device) -> Policy:
        """Return the teacher as a policy on ``device``."""
        if device not in self._policies:
            policy = policy_of(self.loaded, self.config, device)
            policy.model.eval()
            self._policies = {device: policy}
        return self._policies[device]

    def require_same_tokens(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise :class:`ConfigError` if the student's tokenizer has other tokens than the teacher's."""
        own, other = tokenizer.get_vocab(), self.loaded.tokenizer.get_vocab()
        if own == other:
            return
        token = min(
            own.keys() ^ other.keys() or {t for t in own if own[t] != other[t]}, key=lambda t: (own.get(t, -1), t)
        )
        ids = [f"id {ids[token]}" if token in ids else "no id" for ids in (own, other)]
        raise ConfigError(
            f"method.teacher: {self.name} has another vocabulary than the student: the token {token!r} has {ids[0]} in the "
            f"student and {ids[1]} in the teacher; distillation compares the probabilities of the same tokens, so use a "
            "teacher with the student's tokenizer, or train on the teacher's answers with --method sft"
        )

    def width(self, student: torch.nn.Module) -> int:
        """Return the number of tokens that both models have."""
        return min(vocabulary(student), vocabulary(self.loaded.model))

    def most_likely(
        self, examples: Sequence[Example], device: torch.device, settings: DistillSettings, width: int
    ) -> tuple[Tensor, Tensor]:
        """Return the most likely tokens ``[N, k]`` of the first ``width``, and their and the rest's log-probabilities ``[N, k + 1]``."""

        def top(logps: Tensor) -> tuple[Tensor, Tensor]:
            logps = within(logps, width)
            ids = logps.topk(min(settings.teacher_top_k, width - 1), dim=1).indices
            return ids, coarsened(logps, ids)

        policy = self.policy(device)
        scores = policy.score(
            examples, grad=False, temperature=settings.temperature, distributions=lambda found: found.map(top)
        )
        ids, logps = scores.distributions
        return ids, logps


def vocabulary(model: Any) -> int:
    """Return the number of tokens a model predicts, inside a data-parallel wrapper or not."""
    return int(getattr(model, "module", model).config.get_text_config().vocab_size)


def teacher_path(settings: DistillSettings) -> str:
    """Return the path or name of the teacher's model."""
    assert settings.teacher is not None
    return str(Path(__file__).parent / "demo_teacher") if settings.teacher == DEMO else settings.teacher
