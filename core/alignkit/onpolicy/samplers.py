"""Samplers of on-policy methods, and the metrics they log."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from alignkit.contract import Batch, Example, Metric
from alignkit.contract.guard import loading
from alignkit.contract.registry import find, load
from alignkit.errors import ConfigError
from alignkit.models.generate import GeneratedAnswer, generate
from alignkit.onpolicy.settings import OnPolicySettings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


Sampler: TypeAlias = Callable[[Sequence[Sequence[int]], Sequence[int] | None], list[GeneratedAnswer]]
"""Generates one answer per prompt with the policy's current weights, given the prompts and a seed for each (0 to 2**63 - 1; None:
greedy answers)."""


def model_sampler(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, settings: OnPolicySettings, stop: Collection[int]
) -> Sampler:
    """Return a sampler that generates with the trained model itself (``model.generate`` with its key-value cache)."""
    options = settings.model_dump(include={"max_new_tokens", "temperature", "top_p", "top_k"})
    options |= {"stop": stop, "batch_size": settings.samples_per_batch}
    greedy = options | {"temperature": 0.0}
    return lambda prompts, seeds: generate(
        model, tokenizer, prompts, **greedy if seeds is None else options | {"seed": seeds}
    )


def make_sampler(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, settings: OnPolicySettings, path: str
) -> Sampler:
    """Return the sampler named in the settings."""
    stop = stop_tokens(tokenizer, settings.stop)
    if settings.sampler == "model":
        return model_sampler(model, tokenizer, settings, stop)
    make: Callable[..., Sampler] = load(entry := find("align.samplers", settings.sampler))
    with loading(f"{entry} cannot be set up"):
        return make(model, tokenizer, settings, stop, path)


def check_sampler(settings: OnPolicySettings) -> None:
    """Raise :class:`ConfigError` if the sampler named in the settings cannot be used here."""
    if settings.sampler == "model":
        return
    plugin = load(entry := find("align.samplers", settings.sampler))
    own = (getattr(settings, entry.name),) if hasattr(plugin, "settings_type") else ()
    if reason := plugin.unavailable(*own):
        raise ConfigError(f"method.sampler: {settings.sampler} {reason}, or use sampler model")


def stop_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> set[int]:
    """Return the tokens of ``texts``; raises :class:`ConfigError` for a text that is not one token."""
    tokens = {text: tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts}
    for text, ids in tokens.items():
        if len(ids) != 1:
            message = f"method.stop: {text!r} is {len(ids)} tokens in this tokenizer; a stop text must be one token"
            raise ConfigError(message)
    return {ids[0] for ids in tokens.values()}


def with_longest_answers(prompts: Sequence[Example], settings: OnPolicySettings) -> list[Example]:
    """Return rows with as many answers as are sampled for each, of the greatest length, to measure what they need."""
    answers = getattr(settings, "group", 1)
    given = (([row.prompt[-1]] * settings.max_new_tokens,) * answers for row in prompts)
    return [replace(row, completions=found, masks=None) for row, found in zip(prompts, given, strict=True)]


def rollout_metrics(batch: Batch, like: torch.Tensor) -> dict[str, Metric]:
    """Return the metrics that every on-policy method logs, each a mean over answers.

    They are ``reward`` (the weighted sum), ``reward/NAME`` of each reward (over the answers that it judged), ``length`` in
    tokens, ``ended`` (share of answers with an end token), ``kl`` if the batch has that column, and the numbers of the
    whole rollout (``batch.shared``).
    """
    names = [name for name in batch.columns if name in ("reward", "ended", "kl") or name.startswith("reward/")]
    totals = {name: float(sum(v for row in batch.columns[name] for v in row if not math.isnan(v))) for name in names}
    counts = batch.counts
    totals["length"] = float(counts["completion_tokens"])
    totals |= {name: float(value) * counts["completions"] for name, value in batch.shared.items()}
    per = {f"reward/{name.partition('/')[2]}": name for name in batch.row_counts if name.startswith("judged/")}
    return {
        name: Metric(like.new_full((), total), per.get(name, "completions"))
        for name, total in totals.items()
        if counts[per.get(name, "completions")]
    }
