"""Pre-training of the demo's base model: a Llama of about 0.9 M parameters, about two minutes on one CPU core."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from alignkit_demo.tokenizer import MAX_LENGTH

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

WINDOW = 64
"""Tokens per training window; every row of the demo is shorter."""
WINDOWS_PER_STEP = 8
"""Kept small: at this model size, many small steps learn facts faster than few large ones."""
PEAK_LEARNING_RATE = 5e-3
WARMUP_STEPS = 50
FLAT_SHARE = 0.3
"""Share of the steps before the learning rate starts to fall."""


@contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """Run the block with one thread and from a seed; restore the number of threads and the random state afterwards.

    Sums depend on the number of threads, so only a single thread always gives the same weights on a machine.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return the base model with new weights (fp32)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=MAX_LENGTH,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def windows(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> torch.Tensor:
    """Return the token ids of the concatenated texts, each with BOS and EOS, as ``[windows, WINDOW + 1]``."""
    import torch

    joined = [t for ids in tokenizer(list(texts)).input_ids for t in (*ids, tokenizer.eos_token_id)]
    stride = WINDOW + 1
    return torch.tensor(joined[: len(joined) // stride * stride]).view(-1, stride)


def learning_rate(step: int, steps: int) -> float:
    """Return the learning rate of a step: linear warm-up, flat, then linear to 2 %."""
    decay = min(1.0, max(0.02, 1 - (step / steps - FLAT_SHARE) / (1 - FLAT_SHARE)))
    return PEAK_LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS) * decay


def pretrain(model: LlamaForCausalLM, data: torch.Tensor, steps: int, log_every: int = 100) -> float:
    """Train ``model`` in place on random windows of ``data`` ``[windows, WINDOW + 1]``; return the last step's loss."""
    import logging

    import torch
    from torch.nn.functional import cross_entropy

    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    order = torch.randperm(len(data))
    loss = torch.tensor(float("nan"))
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        at = torch.arange(step * WINDOWS_PER_STEP, (step + 1) * WINDOWS_PER_STEP) % len(order)
        batch = data[order[at]]
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % log_every == 0:
            logging.getLogger(__name__).info("pre-training step %d of %d: loss %.3f", step + 1, steps, loss.item())
    model.eval()
    return loss.item()
