"""The rows of a run that need most memory: those of its longest micro-batch, and of its longest batch of held-out rows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from alignkit.contract import Example, by_length
from alignkit.onpolicy.samplers import with_longest_answers
from alignkit.settings.strategies import processes_of

if TYPE_CHECKING:
    from alignkit.data.table.tokenised_rows import TokenisedRows

    from alignkit_eval.report.planned import DryRun


def micro_batch(dry: DryRun) -> tuple[list[Example], list[Example]]:
    """Return the longest rows that one process may train on in an optimizer step, and those of its first micro-batch.

    Rows of prompts have as many answers as are sampled, of the greatest length.
    """
    shape, method, rows = dry.plan.shape, dry.plan.session.method, dry.data.train
    count = -(-shape.rows // processes_of(dry.plan.config))
    longest = np.argsort(-rows.lengths(), kind="stable")[:count]
    examples = [rows[int(i)] for i in longest]
    if "reward" in method.needs:
        examples = with_longest_answers(examples, method.settings)
    cuts = by_length(examples, shape.tokens_per_micro_batch, max_rows=shape.rows_per_micro_batch)
    return examples, [examples[i] for i in next(iter(cuts), [])]


def scored_batch(dry: DryRun) -> list[Example]:
    """Return the rows of the largest batch that is scored without gradient: by a suite, or for a method's reference."""
    plan, needs = dry.plan, dry.plan.session.method.needs
    sizes = [int(getattr(suite.settings, "tokens_per_batch", 0)) for suite in plan.suites.values()]
    batches = [_fitting(dry.data.eval, max(sizes))] if max(sizes, default=0) and len(dry.data.eval) else []
    if "reference" in needs and "reward" not in needs:
        batches.append(_fitting(dry.data.train, plan.shape.tokens_per_micro_batch))
    found = max(batches, key=lambda rows: sum(row.tokens for row in rows), default=[])
    return [example for example in found if example.completions]


def cache_bytes(dry: DryRun) -> int:
    """Return the bytes of keys, values and logits while the answers of an on-policy method are sampled."""
    settings, config = dry.plan.session.method.settings, dry.loaded.model.config.get_text_config()
    if "reward" not in dry.plan.session.method.needs or getattr(settings, "sampler", "model") != "model":
        return 0
    rows, _ = micro_batch(dry)
    answers = min(settings.samples_per_batch, len(rows) * settings.reuse.minibatches * getattr(settings, "group", 1))
    length = max((len(example.prompt) for example in rows), default=0) + settings.max_new_tokens
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = int(dry.loaded.model.dtype.itemsize)
    return int(answers * (2 * length * config.num_hidden_layers * heads * size * width + 3 * config.vocab_size * 4))


def joined(examples: list[Example], most: int = 16) -> list[Example]:
    """Return at most ``most`` rows with as many tokens in prompts and completions, for a layout without padding.

    The memory of a packed batch depends on its tokens alone, and the time to trace it on its rows.
    """
    if len({len(example.completions) for example in examples}) != 1 or len(examples) <= most:
        return examples
    groups = [examples[i::most] for i in range(most)]
    return [_one_row(group) for group in groups]


def _one_row(group: list[Example]) -> Example:
    count = range(len(group[0].completions))
    scored = [sum(example.scored_tokens(k) for example in group) for k in count]
    completions = [[token for example in group for token in example.completions[k]] for k in count]
    masks = tuple([i < n for i in range(len(tokens))] for n, tokens in zip(scored, completions, strict=True))
    prompt = [token for example in group for token in example.prompt]
    return replace(group[0], prompt=prompt, completions=tuple(completions), masks=masks)


def _fitting(rows: TokenisedRows, max_tokens: int) -> list[Example]:
    """Return the longest rows within a budget of tokens, and at least one."""
    lengths = rows.lengths()
    order = np.argsort(-lengths, kind="stable")
    count = int(np.searchsorted(np.cumsum(lengths[order]), max_tokens, side="right"))
    return [rows[int(i)] for i in order[: max(count, 1)]]
