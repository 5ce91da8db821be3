"""The rows of a run that need most memory: those of its longest micro-batch, and of its longest batch of held-out rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from alignkit.contract import Example, by_length
from alignkit.onpolicy.samplers import with_longest_answers
from alignkit.settings.strategies import processes_of

if TYPE_CHECKING:
    from alignkit.data.table.tokenised_rows import TokenisedRows

    from alignkit_eval.report.planned import DryRun


class Largest(NamedTuple):
    """The rows that need most memory."""

    step: list[Example]
    """The longest that one process may train on in an optimizer step."""
    micro_batch: list[Example]
    """Those of its first micro-batch."""
    scored: list[Example]
    """Those of the largest batch that is scored without gradient."""


def largest(dry: DryRun) -> Largest:
    """Return the largest batches of a run; rows of prompts have as many answers as are sampled, of the greatest length."""
    return Largest(*_trained(dry), _scored(dry))


def _trained(dry: DryRun) -> tuple[list[Example], list[Example]]:
    shape, method, rows = dry.plan.shape, dry.plan.session.method, dry.data.train
    count = -(-shape.rows // processes_of(dry.plan.config))
    longest = np.argsort(-rows.lengths(), kind="stable")[:count]
    examples = [rows[int(i)] for i in longest]
    if "reward" in method.needs:
        examples = with_longest_answers(examples, method.settings)
    cuts = by_length(examples, shape.tokens_per_micro_batch, max_rows=shape.rows_per_micro_batch)
    return examples, [examples[i] for i in next(iter(cuts), [])]


def _scored(dry: DryRun) -> list[Example]:
    """Return the rows that a suite, or a method for its reference, scores at once."""
    plan, needs = dry.plan, dry.plan.session.method.needs
    sizes = [int(getattr(suite.settings, "tokens_per_batch", 0)) for suite in plan.suites.values()]
    batches = [_fitting(dry.data.eval, max(sizes))] if max(sizes, default=0) and len(dry.data.eval) else []
    if "reference" in needs and "reward" not in needs:
        batches.append(_fitting(dry.data.train, plan.shape.tokens_per_micro_batch))
    found = max(batches, key=lambda rows: sum(row.tokens for row in rows), default=[])
    return [example for example in found if example.completions]


def cache_bytes(dry: DryRun, rows: list[Example]) -> int:
    """Return the bytes of keys, values and logits while an on-policy method samples answers to the prompts of ``rows``."""
    settings, config = dry.plan.session.method.settings, dry.loaded.model.config.get_text_config()
    if "reward" not in dry.plan.session.method.needs or getattr(settings, "sampler", "model") != "model":
        return 0
    answers = min(settings.samples_per_batch, len(rows) * settings.reuse.minibatches * getattr(settings, "group", 1))
    length = max((len(example.prompt) for example in rows), default=0) + settings.max_new_tokens
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = int(dry.loaded.model.dtype.itemsize)
    return int(answers * (2 * length * config.num_hidden_layers * heads * size * width + 3 * config.vocab_size * 4))


def _fitting(rows: TokenisedRows, max_tokens: int) -> list[Example]:
    """Return the longest rows within a budget of tokens, and at least one."""
    lengths = rows.lengths()
    order = np.argsort(-lengths, kind="stable")
    count = int(np.searchsorted(np.cumsum(lengths[order]), max_tokens, side="right"))
    return [rows[int(i)] for i in order[: max(count, 1)]]
