"""Diversity of text: repetition within a completion, distinct n-grams over completions."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence


def ngrams(tokens: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    """Return the n-grams of a sequence, in order.

    >>> ngrams("abcb", 2)
    [('a', 'b'), ('b', 'c'), ('c', 'b')]
    """
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def repetition(tokens: Sequence[Hashable], n: int = 3) -> float:
    """Return the share of a completion's n-grams that are repeated: seq-rep-n (Welleck et al. 2020, arXiv:1908.04319).

    It is 0 for fewer than n tokens.

    >>> repetition("abcabc", 3)  # abc, bca, cab, abc
    0.25
    """
    found = ngrams(tokens, n)
    return 1 - len(set(found)) / len(found) if found else 0.0


def distinct(completions: Iterable[Sequence[Hashable]], n: int) -> float:
    """Return the number of distinct n-grams over that of all n-grams: distinct-n (Li et al. 2016, arXiv:1510.03055).

    >>> distinct(["ab", "ac"], 1)
    0.75
    """
    found = [gram for completion in completions for gram in ngrams(completion, n)]
    return len(set(found)) / len(found) if found else 0.0
