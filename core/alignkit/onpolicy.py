"""What methods that train on the model's own answers share: their settings, the samplers, and the metrics they log."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from pydantic import Field, field_validator

from alignkit.config import Words
from alignkit.errors import ConfigError
from alignkit.rewards import RewardSpecs
from alignkit.types import Batch, Metric, Reuse, Settings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from alignkit.samples import Answer


class OnPolicySettings(Settings):
    """Settings of every on-policy method: rewards, sampling, and how often a rollout is used.

    A rollout holds ``minibatches`` optimizer steps' worth of prompts and is passed over ``epochs`` times.
    """

    rewards: RewardSpecs = Field(
        default_factory=list,
        alias="reward",
        description="reward or rewards to maximise: a name (align rewards), a reward model's path, package.module:function, "
        "or {name, weight, ...its settings}",
    )
    max_new_tokens: int = Field(64, ge=1, description="longest answer, in tokens")
    temperature: float = Field(
        1.0, gt=0, description="divides the logits, when sampling and when scoring what was sampled"
    )
    top_p: float = Field(1.0, gt=0, le=1, description="sample from the likeliest tokens with this much probability")
    top_k: int = Field(0, ge=0, description="sample from this many likeliest tokens (0: all)")
    stop: Words = Field(default_factory=list, description="further texts that end an answer; each must be one token")
    sampler: Literal["model", "vllm"] = Field(
        "model", description="who generates: the model itself, or vLLM (needs a GPU)"
    )
    samples_per_batch: int = Field(128, ge=1, description="answers generated at once")
    epochs: int = Field(1, ge=1, description="passes over a rollout")
    minibatches: int = Field(1, ge=1, description="optimizer steps a pass over a rollout takes")
    missing_end_penalty: float = Field(0.0, ge=0, description="taken off the reward of an answer that was cut off")

    @field_validator("sampler")
    @classmethod
    def _sampler_is_there(cls, value: str) -> str:
        if value == "vllm" and importlib.util.find_spec("vllm") is None:
            raise ValueError("sampler vllm needs vLLM, which is not installed: pip install vllm, or take sampler model")
        return value

    @property
    def reuse(self) -> Reuse:
        """How often a rollout serves."""
        return Reuse(self.epochs, self.minibatches)


class Sampler(Protocol):
    """Who generates answers with the weights as they are now."""

    def __call__(self, prompts: Sequence[Sequence[int]], seed: int) -> list[Answer]:
        """Answer every prompt once, in their order."""
        ...


class ModelSampler:
    """Generates with the model that is trained, by ``model.generate`` with its cache."""

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        settings: OnPolicySettings,
        stop: Collection[int],
    ) -> None:
        self.model, self.tokenizer, self.settings, self.stop = model, tokenizer, settings, stop

    def __call__(self, prompts: Sequence[Sequence[int]], seed: int) -> list[Answer]:
        """Answer every prompt once, in their order."""
        from alignkit.samples import generate

        settings = self.settings
        return generate(
            self.model,
            self.tokenizer,
            prompts,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            stop=self.stop,
            seed=seed,
            batch_size=settings.samples_per_batch,
        )


def make_sampler(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, settings: OnPolicySettings, path: str
) -> Sampler:
    """Return the sampler the settings ask for; raises :class:`ConfigError` where it cannot be had."""
    stop = stop_tokens(tokenizer, settings.stop)
    if settings.sampler == "model":
        return ModelSampler(model, tokenizer, settings, stop)
    from alignkit.vllm_sampler import VLLMSampler

    return VLLMSampler(model, tokenizer, settings, stop, path)


def stop_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> set[int]:
    """Return the tokens of ``texts``; raises :class:`ConfigError` for a text that is not one token."""
    found = set()
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise ConfigError(f"method.stop: {text!r} is {len(ids)} tokens of this tokenizer, and has to be one")
        found.add(ids[0])
    return found


def rollout_metrics(batch: Batch, like: torch.Tensor) -> dict[str, Metric]:
    """Return what every on-policy method logs of a rollout's answers, each a mean over answers.

    ``reward`` (the weighted sum), ``reward/NAME`` of each, ``length`` in tokens, ``ended``: the share the model ended
    itself, and ``kl`` where the method gave the answers such a column; numbers of the whole rollout (``batch.shared``) too.
    """
    names = [name for name in batch.columns if name in ("reward", "ended", "kl") or name.startswith("reward/")]
    totals = {name: float(sum(sum(row) for row in batch.columns[name])) for name in names}
    counts = batch.counts
    totals["length"] = float(counts["completion_tokens"])
    totals |= {name: float(value) * counts["completions"] for name, value in batch.shared.items()}
    return {name: Metric(like.new_tensor(total), "completions") for name, total in totals.items()}
