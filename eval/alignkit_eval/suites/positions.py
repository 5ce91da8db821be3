"""The positions a model has, and rows cut to them.

Past them, learned positions fail with an index error, and rotary ones give numbers the model was never trained for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from alignkit import Example, Omission
from alignkit.data.tokenise.rules import truncate

_LIMITS = ("max_position_embeddings", "n_positions", "n_ctx")
_EXTENDED = ("linear", "dynamic", "yarn")
"""Kinds of rotary scaling whose factor extends ``max_position_embeddings`` where the latter was not raised with it."""


def position_limit(model: Any) -> int | None:
    """Return the most tokens that fit into the model's positions, or None where its configuration sets no limit.

    ALiBi and state-space models have none. Rotary positions that are scaled extend to the original length times the factor.
    """
    config = getattr(model, "config", None)
    if config is None:
        return None
    config = config.get_text_config()
    limit = next((n for name in _LIMITS if isinstance(n := getattr(config, name, None), int) and n > 0), None)
    if limit is None or getattr(config, "alibi", False):
        return None
    for rope in _rotary(getattr(config, "rope_parameters", None)):
        if rope.get("rope_type") in _EXTENDED:
            original = rope.get("original_max_position_embeddings") or limit
            limit = max(limit, int(original * float(rope.get("factor") or 1)))
    return limit - _skipped(model, limit)


def _rotary(parameters: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the rotary parameters, of every kind of layer where they differ."""
    if isinstance(parameters, Mapping):
        yield parameters
        yield from (values for values in parameters.values() if isinstance(values, Mapping))


def _skipped(model: Any, limit: int) -> int:
    """Return the number of learned positions in front of the first token: models like RoBERTa begin after the padding id."""
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None and module.num_embeddings == limit:
            return int(padding) + 1
    return 0


def fitted(model: Any, examples: Sequence[Example], reserved: int = 0) -> tuple[Sequence[Example], list[Omission]]:
    """Return the rows cut to the model's positions, and what was cut or left out.

    As in ``data.max_length``, the prompt is cut on the left first, then the completions on the right; a row of which nothing
    is left to score is left out. ``reserved`` positions are kept free, for tokens that are generated.
    """
    limit = position_limit(model)
    if limit is None or all(_longest(example) + reserved <= limit for example in examples):
        return examples, []
    kept: list[Example] = []
    prompts = completions = 0
    lost = []
    for example in examples:
        cut = truncate([*example.prompt], tuple([*c] for c in example.completions), limit - reserved)
        prompts += cut.cut_prompts
        completions += cut.cut_completions
        masks = example.masks and tuple(
            None if mask is None else mask[: len(c)] for mask, c in zip(example.masks, cut.completions, strict=True)
        )
        short = replace(example, prompt=cut.prompt, completions=cut.completions, masks=masks)
        scored = [short.scored_tokens(i) for i in range(len(short.completions))]
        same = len(scored) == 2 and cut.completions[0] == cut.completions[1] and cut.cut_completions
        if all(scored) and not same:
            kept.append(short)
        else:
            lost.append(example.id)
    where = f"to fit the model's {limit} positions" + (f" with {reserved} new tokens" if reserved else "")
    found = [
        Omission("prompts", prompts, len(examples), f"cut on the left {where}"),
        Omission("completions", completions, sum(len(e.completions) for e in examples), f"cut on the right {where}"),
        Omission("rows", len(lost), len(examples), f"left out: nothing to score is left {where}", "".join(lost[:1])),
    ]
    return kept, [omission for omission in found if omission.n]


def _longest(example: Example) -> int:
    return len(example.prompt) + max(map(len, example.completions), default=0)
