"""Reward models: sequence classifiers with one output, based on causal language models or encoders.

The engine trains and the harness evaluates them like any policy: :class:`ClassifierPolicy` returns the reward of a completion
in place of its log-probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from alignkit.config import RunConfig
from alignkit.contract import Example, LoadedModel, RunPolicy, Scores
from alignkit.contract.registry import open_engine, provided
from alignkit.errors import DataError
from alignkit.system.sharded import gather_in_forward

if TYPE_CHECKING:
    import torch

    from alignkit.scoring.in_step import Meeting
    from alignkit.scoring.policy import ModelPolicy


class ClassifierPolicy:
    """A sequence classifier as a :class:`~alignkit.contract.types.Policy`: the score of a completion is its reward.

    The stock forward chooses the position of the output (the last token that is not padding in a causal model, the first
    in an encoder), so that a saved model gives the same rewards wherever it is loaded.
    """

    classifier = True
    precision: Mapping[str, str] = {}

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.meeting: Meeting | None = None

    def score(
        self, examples: Sequence[Example], *, grad: bool = True, temperature: float = 1.0, **wanted: Any
    ) -> Scores:
        """Return the reward of every completion in place of log-probabilities, ``[S]``."""
        import torch

        from alignkit.scoring.evaluating import evaluating
        from alignkit.scoring.masks import unread_masks
        from alignkit.scoring.padding import pad_rows

        if any(wanted.values()):
            raise NotImplementedError("a reward model returns rewards only: no scores of tokens")
        rows = [[*example.prompt, *completion] for example in examples for completion in example.completions]
        if not rows:
            raise DataError("the batch has no rows to score")
        wrapped: Any = self.model
        model: Any = getattr(wrapped, "module", wrapped)  # inside DDP's or DeepSpeed's wrapper
        ids, mask = pad_rows(rows, model.config.get_text_config().pad_token_id, next(model.parameters()).device)
        if self.meeting is not None:
            self.meeting.forward(gradient=grad and torch.is_grad_enabled(), values=False, reference=False)
        padded = len({len(row) for row in rows}) > 1
        with unread_masks(padded), nullcontext() if grad else evaluating(model):
            logits = (wrapped if grad else model)(input_ids=ids, attention_mask=mask).logits
        rewards = logits[:, 0].float()
        count = len(rows)
        return Scores(
            logps=rewards,
            sequence=torch.arange(count, device=rewards.device),
            lengths=torch.ones(count, dtype=torch.long, device=rewards.device),
            prompt_logps=rewards.new_zeros(0),
            prompt_row=torch.zeros(0, dtype=torch.long, device=rewards.device),
            rows=len(examples),
        )


def policy_of(loaded: LoadedModel, config: RunConfig, device: torch.device) -> RunPolicy:
    """Return the policy that scores with a model, on ``device`` or in the engine of ``run.engine``, and set its precision."""
    return open_engine(config).policy(loaded, config, device)


def torch_policy(loaded: LoadedModel, config: RunConfig, device: torch.device) -> ModelPolicy | ClassifierPolicy:
    """Move a model to ``device``, set its precision, and return the policy that scores with it."""
    from alignkit.scoring.attention import OWN, set_attention
    from alignkit.scoring.backends import innermost, install_forward
    from alignkit.scoring.policy import ModelPolicy
    from alignkit.scoring.scorer import install

    if config.model.quantization is None:
        loaded.model.to(device)
    gather_in_forward(loaded.model)
    base = innermost(loaded.model)
    set_precision = provided("align.models", "precision") or (lambda model, config: {})
    set_precision(base, None)  # the probe compares without further rounding
    policy: ModelPolicy | ClassifierPolicy
    if loaded.classifier:
        install_forward(base)
        if config.model.attention in OWN:
            set_attention(loaded.model, OWN[config.model.attention])
        policy = ClassifierPolicy(loaded.model)
    else:
        own = config.model
        policy = ModelPolicy(loaded.model, install(loaded.model, own.scorer, device=device, attention=own.attention))
    policy.precision = set_precision(base, config)
    return policy
