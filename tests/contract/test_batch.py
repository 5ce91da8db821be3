"""Batches of rows under a token budget."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from alignkit.contract.batch import Batch, Example, by_length, token_batches
from hypothesis import example, given
from hypothesis import strategies as st

lengths = st.lists(st.integers(1, 9), max_size=30)
budgets = st.integers(1, 25)
most_rows = st.one_of(st.just(math.inf), st.integers(1, 6))


def rows_of(tokens: list[int]) -> list[Example]:
    """Return rows that cost the given numbers of tokens."""
    return [Example(f"row-{i}", [0], ([0] * (count - 1),)) for i, count in enumerate(tokens)]


def cost(batch: list[int], tokens: list[int], padded: bool) -> int:
    counts = [tokens[i] for i in batch]
    return len(counts) * max(counts) if padded else sum(counts)


@given(lengths, budgets, most_rows, st.booleans())
@example([1, 9], 9, math.inf, True)
@example([9, 1], 17, math.inf, True)
def test_token_batches_partition_the_rows_within_the_limits(
    tokens: list[int], budget: int, rows: float, padded: bool
) -> None:
    batches = list(token_batches(tokens, budget, max_rows=rows, padded=padded))
    assert [i for batch in batches for i in batch] == list(range(len(tokens)))
    for batch in batches:
        assert len(batch) <= rows
        assert len(batch) == 1 or cost(batch, tokens, padded) <= budget
    for batch, after in pairwise(batches):
        larger = [*batch, after[0]]
        assert len(larger) > rows or cost(larger, tokens, padded) > budget, "a batch ends only where it is full"


@given(lengths, budgets, most_rows, st.booleans())
def test_by_length_puts_the_longest_rows_first(tokens: list[int], budget: int, rows: float, padded: bool) -> None:
    batches = list(by_length(rows_of(tokens), budget, max_rows=rows, padded=padded))
    order = [i for batch in batches for i in batch]
    assert order == sorted(range(len(tokens)), key=lambda i: (-tokens[i], i)), "ties keep their order"
    in_order = token_batches([tokens[i] for i in order], budget, max_rows=rows, padded=padded)
    assert [len(batch) for batch in batches] == [len(batch) for batch in in_order]


@given(lengths, budgets, st.integers(1, 6))
def test_a_cut_keeps_rows_columns_counts_and_what_is_shared(tokens: list[int], budget: int, rows: int) -> None:
    numbers = list(range(len(tokens)))
    columns: dict[str, Any] = {"number": numbers}
    batch = Batch(rows_of(tokens), columns, {"mean": 0.5}, {"own": [2 * i for i in numbers]})
    cuts = list(batch.cut(rows, budget))
    assert [example for cut in cuts for example in cut.examples] == batch.examples
    assert [number for cut in cuts for number in cut.columns["number"]] == numbers
    assert all(cut.shared == {"mean": 0.5} for cut in cuts)
    if cuts:
        assert {name: sum(cut.counts[name] for cut in cuts) for name in batch.counts} == batch.counts


@pytest.mark.parametrize(
    ("max_rows", "max_tokens", "sizes"),
    [
        (8, 10, [2, 1, 1, 2]),  # 3 + 4, then 12 alone, 5, 6 + 4
        (1, 10, [1, 1, 1, 1, 1, 1]),
        (8, 34, [6]),
        (8, 33, [5, 1]),
        (2, 34, [2, 2, 2]),
    ],
)
def test_cuts_of_a_batch(max_rows: int, max_tokens: int, sizes: list[int]) -> None:
    batch = Batch(rows_of([3, 4, 12, 5, 6, 4]))
    assert [len(cut) for cut in batch.cut(max_rows, max_tokens)] == sizes
