"""Preference pairs of Pinewick as conversational rows, split by entity."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from alignkit_demo.world import CATEGORIES, CONTROLS, Question, Split, questions

TRAIN_PER_CATEGORY = 112
TOP_SHARE = 1 / 3
"""Share of pairs 2 > 1 in a graded category's training pairs (the others are 1 > 0).

The answer of grade 1 is therefore chosen twice as often as that of grade 2: imitating the chosen answers alone teaches the
mediocre one.
"""

Row = dict[str, Any]


def _row(question: Question, better: int) -> Row:
    """Return the pair of an answer and the one below it."""
    return {
        "cluster": question.cluster,
        "category": question.category,
        "prompt": [{"role": "user", "content": question.prompt}],
        "chosen": [{"role": "assistant", "content": question.answers[better]}],
        "rejected": [{"role": "assistant", "content": question.answers[better - 1]}],
    }


def _training_rows(draw: random.Random) -> Iterator[Row]:
    """Yield one pair per question, up to a maximum per category."""
    for category in CATEGORIES:
        asked = [q for q in questions("train") if q.category == category]
        cap = TRAIN_PER_CATEGORY // 2 if category in CONTROLS else TRAIN_PER_CATEGORY
        for question in draw.sample(asked, min(cap, len(asked))):
            best = len(question.answers) - 1
            better = best if best == 1 or draw.random() < TOP_SHARE else 1
            yield _row(question, better)


def _held_out_rows(split: Split) -> Iterator[Row]:
    """Yield every pair of neighbouring answers of every question, so that 2 > 1 counts as much as 1 > 0."""
    for question in questions(split):
        for better in range(1, len(question.answers)):
            yield _row(question, better)


def pairs(split: Split) -> list[Row]:
    """Return a split's rows ``{id, cluster, category, prompt, chosen, rejected}`` in a fixed random order."""
    draw = random.Random(f"pairs {split}")
    rows = list(_training_rows(draw) if split == "train" else _held_out_rows(split))
    draw.shuffle(rows)
    return [{"id": f"{split}-{i}", **row} for i, row in enumerate(rows)]
