"""Text generation with the model itself."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from alignkit.errors import ConfigError, RunFailedError
from alignkit.models.positions import position_limit
from alignkit.system.sharded import most_of_all
from alignkit.system.together import shared, sharers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


COLDEST = 1e-4
"""Lowest temperature that is sampled with: below it logits overflow, and the answer is the greedy one."""


class GeneratedAnswer(NamedTuple):
    """Generated answer: its tokens without the end token, and the end token (None: it was cut off at the length limit)."""

    tokens: list[int]
    end: int | None
    logps: Sequence[float] | None = None
    """The sampler's own log-probability of every token, the end token included, after temperature (None: the model's)."""

    @property
    def ended(self) -> bool:
        return self.end is not None

    @property
    def completion(self) -> list[int]:
        return self.tokens if self.end is None else [*self.tokens, self.end]


def generate(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    stop: Collection[int] = (),
    seed: int | Sequence[int] = 0,
    batch_size: int = 16,
) -> list[GeneratedAnswer]:
    """Generate one answer per prompt, in the order of the prompts.

    An answer depends on the model, its prompt and its seed, not on what else is generated (up to rounding of the logits).
    Training is not affected: random state, training mode and gradients are unchanged afterwards.

    Args:
        model: an unwrapped ``transformers`` or peft model.
        tokenizer: provides the end and padding tokens.
        prompts: token ids of each prompt, beginning-of-sequence token included; none may be empty.
        max_new_tokens: maximum length of an answer, in tokens.
        temperature: divisor of the logits; 0 decodes greedily.
        top_p: nucleus sampling: sample from the most likely tokens with this total probability (arXiv:1904.09751).
        top_k: sample from this many most likely tokens; 0 for all.
        stop: tokens that end an answer, in addition to the model's end tokens.
        seed: seed of each answer (0 to 2**63 - 1), or one number from which they are derived.
        batch_size: prompts per batch. Inside ``together``, the batches are shared out among processes.

    Raises:
        RunFailedError: the logits contain NaN.
        ConfigError: the model has too few positions for a prompt and its answer.
    """
    import torch

    from alignkit.models.seeded import answer_seeds
    from alignkit.scoring.evaluating import cast_once, undisturbed
    from alignkit.scoring.padding import pad_rows

    generator: Any = model
    _require_positions(model, max(map(len, prompts), default=0), max_new_tokens)
    ends = end_tokens(model, tokenizer) | set(stop)
    pad = next((token for token in (tokenizer.pad_token_id, *sorted(ends)) if token is not None), 0)
    options = {
        "max_new_tokens": max_new_tokens,
        "do_sample": False,  # with Gumbel noise the most likely token is a sample
        # None overrides the checkpoint's settings, which cause a warning when decoding greedily.
        **dict.fromkeys(("temperature", "top_p", "top_k")),
        "num_beams": 1,
        "use_cache": True,
        "pad_token_id": pad,
        "eos_token_id": sorted(ends) or None,
    }
    rows = list(zip(prompts, answer_seeds([seed], len(prompts)) if isinstance(seed, int) else seed, strict=True))
    batches = [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]
    asked = len(batches)
    if sharers() == 1:  # a process of a sharded model generates along with the others
        batches += [rows[:1] or [([pad], 0)]] * (most_of_all(asked, model) - asked)

    def answer(number: int) -> list[GeneratedAnswer]:
        own_prompts, own_seeds = zip(*batches[number], strict=True)
        ids, mask = pad_rows(own_prompts, pad, next(model.parameters()).device, left=True)
        seeds, width = torch.tensor(own_seeds, device=ids.device), ids.shape[1]
        processors = [_refuse_nan, *_sampling(temperature, top_p, top_k, seeds, width)]
        output = generator.generate(input_ids=ids, attention_mask=mask, logits_processor=processors, **options)
        return [cut_at_end(tokens, ends) for tokens in output[:, width:].tolist()]

    sizes = [sum(len(prompt) for prompt, _ in batch) for batch in batches]
    with undisturbed(model), cast_once():
        shared_answers = shared("answers", sizes, lambda which: list(map(answer, which)))
    return [answer for batch in shared_answers[:asked] for answer in batch]


def _require_positions(model: torch.nn.Module, prompt: int, answer: int) -> None:
    limit = position_limit(model)
    if limit is not None and prompt + answer > limit:
        raise ConfigError(
            f"the model has {limit:,} positions, too few for a prompt of {prompt:,} tokens and an answer of "
            f"{answer:,} (max_new_tokens): shorten one of them"
        )


def _sampling(temperature: float, top_p: float, top_k: int, seeds: torch.Tensor, prompt: int) -> list[Any]:
    """Return the processors of the logits, ``[rows, vocabulary]``, by which the most likely token is a sample; none: greedy.

    ``seeds [rows]`` are those of the answers, which begin at position ``prompt``.
    """
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    from alignkit.models.seeded import noisy

    if temperature < COLDEST:
        return []
    warpers: list[Any] = [TemperatureLogitsWarper(temperature)]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    return [*warpers, lambda tokens, logits: noisy(logits, seeds, tokens.shape[1] - prompt)]


def _refuse_nan(_tokens: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Raise on NaN, from which sampling would pick arbitrary tokens."""
    if bool(logits.isnan().any()):
        raise RunFailedError("the model's logits are NaN: it cannot generate")
    return logits


def end_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the tokens that end an answer, by the model's generation settings and the tokenizer."""
    configured = model.generation_config.eos_token_id
    several = configured if isinstance(configured, list) else [configured]
    return {token for token in (*several, tokenizer.eos_token_id) if token is not None}


def cut_at_end(tokens: list[int], ends: Collection[int], logps: Sequence[float] | None = None) -> GeneratedAnswer:
    """Return generated tokens, with their log-probabilities, up to the first end token."""
    stop = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    end = tokens[stop] if stop < len(tokens) else None
    return GeneratedAnswer(tokens[:stop], end, None if logps is None else logps[: stop + 1])
