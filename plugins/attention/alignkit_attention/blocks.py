"""A packed row cut into dense blocks without padding or wasted work.

A prompt and its first completion are one causal sequence. Every other completion attends to itself (causal) and to the
prompt (dense, all completions in one block); kernels merge the two parts by their log-sum-exps (arXiv:2205.14135, section
3.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from alignkit.contract import Segment

WINDOW_ROWS = 256
"""Queries per block under a sliding window: enough for efficient matrix products, few enough to skip distant keys."""


class Block(NamedTuple):
    """Queries ``[q0, q1)`` attend to keys ``[k0, k1)`` of the packed row."""

    q0: int
    q1: int
    k0: int
    k1: int
    causal: bool
    """Query i attends to keys up to i (the two ranges are equal)."""
    offset: int | None = None
    """Position of the first query minus that of the first key if a window cuts this block; None: no mask."""
    merge: bool = False
    """Whether the queries have an output already, from an earlier block."""


def blocks(
    segments: Sequence[Segment], window: int | None = None, chunk: int | None = None, rows: int = WINDOW_ROWS
) -> tuple[Block, ...]:
    """Return the blocks of a packed row; ``window`` counts the tokens a query attends to, itself included."""
    return tuple(block for segment in segments for block in _segment_blocks(segment, window, chunk, rows))


def _segment_blocks(segment: Segment, window: int | None, chunk: int | None, rows: int) -> Iterator[Block]:
    start, prompt, completions = segment
    trunk = start + prompt
    ends = list(accumulate(completions or (0,), initial=trunk))[1:]
    if chunk is not None and prompt + max(completions, default=0) > chunk:
        yield from _chunked(start, trunk, ends, chunk)
        return
    yield from _causal(start, ends[0], window, rows)
    for begin, end in pairwise(ends):
        yield from _causal(begin, end, window, rows)
    if window is None or prompt + max(completions, default=0) <= window:
        if len(ends) > 1:
            yield Block(ends[0], ends[-1], start, trunk, causal=False, merge=True)
    else:
        yield from _windowed_prompt(start, trunk, ends, window, rows)


def _causal(begin: int, end: int, window: int | None, rows: int) -> Iterator[Block]:
    """Yield the blocks of causal attention within ``[begin, end)``."""
    if window is None or end - begin <= window:
        yield Block(begin, end, begin, end, causal=True)
        return
    for q0 in range(begin, end, rows):
        q1, k0 = min(q0 + rows, end), max(begin, q0 - window + 1)
        yield Block(q0, q1, k0, q1, causal=False, offset=q0 - k0)


def _windowed_prompt(start: int, trunk: int, ends: Sequence[int], window: int, rows: int) -> Iterator[Block]:
    """Yield the blocks of the other completions' attention to the part of the prompt inside their window."""
    for begin, end in pairwise(ends):
        reach = min(end, begin + window - 1)  # later queries do not reach the prompt's last token
        for q0 in range(begin, reach, rows):
            q1, k0 = min(q0 + rows, reach), max(start, trunk + (q0 - begin) - window + 1)
            yield Block(q0, q1, k0, trunk, causal=False, offset=trunk - k0 + q0 - begin, merge=True)


def _chunked(start: int, trunk: int, ends: Sequence[int], chunk: int) -> Iterator[Block]:
    """Yield the blocks of attention within chunks of positions; a chunk may hold the prompt's end and what follows."""
    prompt = trunk - start
    for begin, end, position in [(start, ends[0], 0), *((a, b, prompt) for a, b in pairwise(ends))]:
        first = begin + chunk - position % chunk  # where the next chunk begins
        for a, b in pairwise([begin, *range(first, end, chunk), end]):
            yield Block(a, b, a, b, causal=True)
    if tail := prompt % chunk:
        for begin, end in pairwise(ends):
            yield Block(begin, min(end, begin + chunk - tail), trunk - tail, trunk, causal=False, merge=True)
