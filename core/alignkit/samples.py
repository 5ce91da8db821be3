"""Sample answers: what the model says to a few prompts before and after training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

_BATCH = 16
"""Prompts answered at once."""


def generate_samples(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    seed: int = 0,
) -> list[str]:
    """Answer prompts greedily and return the answers' text, without special tokens.

    Training is not disturbed: random state, each module's training mode and the gradients stay as they were.

    Args:
        model: an unwrapped ``transformers`` or peft model.
        tokenizer: decodes the answers.
        prompts: token ids of each prompt, beginning-of-sequence token included; at least one each.
        max_new_tokens: longest answer.
        seed: for a generation that draws random numbers in spite of being greedy.
    """
    answers: list[str] = []
    with _undisturbed(model, seed):
        for first in range(0, len(prompts), _BATCH):
            tokens = _generate(model, tokenizer, prompts[first : first + _BATCH], max_new_tokens)
            answers.extend(tokenizer.decode(answer, skip_special_tokens=True) for answer in tokens)
    return answers


def _generate(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> list[list[int]]:
    """Return the new tokens of each prompt, up to and without the first end token."""
    import torch

    width = max(map(len, prompts))
    ends = _end_tokens(model, tokenizer)
    pad = next((t for t in (tokenizer.pad_token_id, *sorted(ends)) if t is not None), 0)
    device = next(model.parameters()).device
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)  # (B, T), padded left
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    with torch.no_grad():
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            pad_token_id=pad,
            # A checkpoint's own sampling settings would only raise a warning here.
            temperature=None,
            top_p=None,
            top_k=None,
        )
    return [_until(answer, ends) for answer in output[:, width:].tolist()]


def _end_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    configured = model.generation_config.eos_token_id
    several = configured if isinstance(configured, list) else [configured]
    return {token for token in (*several, tokenizer.eos_token_id) if token is not None}


def _until(tokens: list[int], ends: set[int]) -> list[int]:
    stop = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:stop]


@contextmanager
def _undisturbed(model: torch.nn.Module, seed: int) -> Iterator[None]:
    """Switch dropout off and seed torch for the block; restore modes and random state after it."""
    import torch

    modes = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
