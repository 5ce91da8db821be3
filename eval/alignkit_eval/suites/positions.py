"""Rows cut to the positions of another model than they were tokenised for, or with positions kept free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from alignkit import Example, Omission
from alignkit.data.tokenise.rules import truncate
from alignkit.models.positions import position_limit


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
