"""Batches of rows under a token budget; columns and counts stay with their rows."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from alignkit.contract.batch import COUNTS, Batch, Example, by_length, token_batches
from hypothesis import example, given, settings
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


@st.composite
def examples(draw: st.DrawFn, index: int) -> Example:
    """Draw a row of 0 to 3 completions, scored whole or by a mask."""
    lengths = draw(st.lists(st.integers(1, 9), max_size=3))
    masks = [draw(st.none() | st.lists(st.booleans(), min_size=n, max_size=n).filter(any)) for n in lengths]
    prompt = [7] * draw(st.integers(1, 12))
    return Example(f"row-{index}", prompt, tuple([9] * n for n in lengths), index=index, masks=tuple(masks))


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Draw a batch with columns and counts of its own, every value of which names its row."""
    rows = [draw(examples(i)) for i in range(draw(st.integers(0, 12)))]
    scored = [sum(e.scored_tokens(i) for i in range(len(e.completions))) for e in rows]
    flat = torch.tensor([float(i) for i, count in enumerate(scored) for _ in range(count)])
    answers = torch.tensor([10.0 * i for i, e in enumerate(rows) for _ in e.completions])
    batch = Batch(rows, row_counts={"weight": [draw(st.integers(0, 5)) for _ in rows]})
    batch = batch.with_column("name", [e.id for e in rows]).with_shared(kl_coef=0.3)
    return batch.with_tokens(reference=flat).with_answers(reward=answers) if rows else batch


def plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, torch.Tensor) else value


@given(batches(), st.integers(1, 8), st.integers(1, 60))
@settings(deadline=None)
def test_a_cut_keeps_rows_columns_counts_and_what_is_shared(batch: Batch, max_rows: int, max_tokens: int) -> None:
    cuts = list(batch.cut(max_rows, max_tokens))
    rows = [example for cut in cuts for example in cut.examples]
    assert rows == batch.examples, "every row is in one micro-batch, in the order of the step"
    for cut in cuts:
        assert 1 <= len(cut) <= max_rows
        assert len(cut) == 1 or sum(e.tokens for e in cut.examples) <= max_tokens
        assert cut.shared == batch.shared
        assert cut.columns.keys() == batch.columns.keys()
        assert cut.row_counts.keys() == batch.row_counts.keys()
        for of_cut, of_batch in ((cut.columns, batch.columns), (cut.row_counts, batch.row_counts)):
            for name, values in of_cut.items():
                expected = [plain(of_batch[name][e.index]) for e in cut.examples]
                assert [plain(value) for value in values] == expected, name
    counts = {name: sum(cut.counts[name] for cut in cuts) for name in (*COUNTS, "weight")}
    assert counts == batch.counts, "what a loss is divided by is the same however the step is cut"


@given(batches(), st.integers(1, 8), st.integers(1, 60))
@settings(deadline=None)
def test_flat_values_of_a_cut_are_those_of_its_rows(batch: Batch, max_rows: int, max_tokens: int) -> None:
    """``tokens`` and ``answers`` flatten the columns of the cut's own rows, in their order."""
    for cut in batch.cut(max_rows, max_tokens):
        tokens = [e.index for e in cut.examples for i in range(len(e.completions)) for _ in range(e.scored_tokens(i))]
        answers = [10.0 * e.index for e in cut.examples for _ in e.completions]
        assert cut.tokens("reference", torch.zeros(0)).tolist() == tokens
        assert cut.answers("reward", torch.zeros(0)).tolist() == answers
        assert (len(tokens), len(answers)) == (cut.counts["completion_tokens"], cut.counts["completions"])


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
