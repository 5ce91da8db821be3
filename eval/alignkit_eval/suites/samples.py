"""What several samples of one prompt show: how much they differ, and whether one of k passes a check."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from alignkit import Contrast, Estimate
from alignkit.models.seeded import answer_seeds

from alignkit_eval.statistics import clustered_proportion
from alignkit_eval.suites.diversity import distinct

DIVERSITY = ("self_bleu", "samples_distinct_1", "samples_distinct_2", "samples_different")
"""Metrics of how much the samples of a prompt differ."""


def sample_seeds(seed: int, prompts: int, samples: int) -> list[int]:
    """Return a seed for each sample of each prompt, prompt by prompt; those of fewer samples are the first of them.

    >>> sample_seeds(1, 2, 2)[::2] == sample_seeds(1, 2, 1), len(set(sample_seeds(1, 2, 2)))
    (True, 4)
    """
    by_sample = [answer_seeds([seed, number] if number else [seed], prompts) for number in range(samples)]
    return [seeds[prompt] for prompt in range(prompts) for seeds in by_sample]


def pass_at(n: int, correct: int, k: int) -> float:
    r"""Return the probability that one of k of a prompt's samples, drawn without replacement from n, is correct.

        pass@k = 1 - C(n - c, k) / C(n, k)

    It is unbiased for the probability that one of k new samples is correct.

    Source: Chen et al. 2021, arXiv:2107.03374, equation 1.

    >>> pass_at(5, 2, 1), pass_at(5, 2, 3), pass_at(5, 0, 5), pass_at(5, 3, 3)
    (0.4, 0.9, 0.0, 1.0)
    """
    return 1 - math.comb(n - correct, k) / math.comb(n, k)


def self_bleu(texts: Sequence[str]) -> float:
    """Return the mean BLEU of each text with the others as references, from 0 (nothing shared) to 1 (all the same).

    Sentence BLEU of sacrebleu, with its exponential smoothing and, for short texts, only the orders they have.

    Source: Zhu et al. 2018, arXiv:1802.01886, section 2.3.3.
    """
    scores = [_bleu().sentence_score(text, [*texts[:i], *texts[i + 1 :]]).score for i, text in enumerate(texts)]
    return min(1.0, math.fsum(scores) / len(scores) / 100)


@cache
def _bleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(effective_order=True)


def add_to_samples(
    items: Sequence[dict[str, Any]], tokens: Sequence[Sequence[int]], samples: int, ks: Sequence[int], passing: float
) -> None:
    """Add to each sample what all samples of its prompt show together; ``items`` has them one after another.

    A key has the prompt's value on each of its samples, so that the mean over items is that over prompts. ``pass@k`` is by the
    checker, ``pass@k/NAME`` by a reward; None where fewer than k samples of the prompt were judged.
    """
    names = [name for name in items[0] if name == "quality" or name.startswith("reward/")] if items else []
    for first in range(0, len(items), samples):
        group, ids = items[first : first + samples], tokens[first : first + samples]
        texts = [item["answer"] for item in group]
        found: dict[str, float | None] = {
            "self_bleu": self_bleu(texts),
            "samples_distinct_1": distinct(ids, 1),
            "samples_distinct_2": distinct(ids, 2),
            "samples_different": len(set(texts)) / samples,
        }
        for name in names:
            judged = [item[name] for item in group if item[name] is not None]
            passed = sum(value >= passing for value in judged)
            for k in ks:
                found[_key(k, name)] = pass_at(len(judged), passed, k) if k <= len(judged) else None
        for item in group:
            item.update(found)


def measured_samples(items: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Estimate], list[Contrast]]:
    """Return the metrics of several samples, with contrasts of those that every prompt has."""
    metrics, contrasts = {}, []
    for name in (key for key in items[0] if key in DIVERSITY or key.startswith("pass@")):
        known = [item for item in items if item[name] is not None]
        if known:
            metrics[name] = clustered_proportion([item[name] for item in known], [item["cluster"] for item in known])
        if len(known) == len(items):
            contrasts.append(Contrast(name, name, higher_is_better=name != "self_bleu", bounds=(0, 1)))
    return metrics, contrasts


def _key(k: int, name: str) -> str:
    return f"pass@{k}" if name == "quality" else f"pass@{k}/{name.removeprefix('reward/')}"
