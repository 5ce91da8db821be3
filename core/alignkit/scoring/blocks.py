"""Attention over a packed row, cut into dense blocks without masks, padding or wasted work.

A prompt and its first completion are one causal sequence. Every other completion attends to itself (causal) and to the
prompt (dense, all completions in one block); the two parts are merged by their log-sum-exps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

from alignkit.scoring.plan import Segment

_WINDOW_ROWS = 256
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


@lru_cache(maxsize=64)
def blocks(segments: tuple[Segment, ...], window: int | None) -> tuple[Block, ...]:
    """Return the blocks of a packed row; ``window`` is the number of tokens a query attends to, itself included."""
    return tuple(block for segment in segments for block in _segment_blocks(segment, window))


def _segment_blocks(segment: Segment, window: int | None) -> Iterator[Block]:
    start, prompt, completions = segment
    trunk = start + prompt
    ends = list(accumulate(completions or (0,), initial=trunk))[1:]
    yield from _causal(start, ends[0], window)
    for begin, end in pairwise(ends):
        yield from _causal(begin, end, window)
    if window is None or prompt + max(completions, default=0) <= window:
        if len(ends) > 1:
            yield Block(ends[0], ends[-1], start, trunk, causal=False, merge=True)
    else:
        yield from _windowed_prompt(start, trunk, ends, window)


def _causal(begin: int, end: int, window: int | None) -> Iterator[Block]:
    """Yield the blocks of causal attention within ``[begin, end)``."""
    if window is None or end - begin <= window:
        yield Block(begin, end, begin, end, causal=True)
        return
    for q0 in range(begin, end, _WINDOW_ROWS):
        q1, k0 = min(q0 + _WINDOW_ROWS, end), max(begin, q0 - window + 1)
        yield Block(q0, q1, k0, q1, causal=False, offset=q0 - k0)


def _windowed_prompt(start: int, trunk: int, ends: Sequence[int], window: int) -> Iterator[Block]:
    """Yield the blocks of the other completions' attention to the part of the prompt inside their window."""
    for begin, end in pairwise(ends):
        reach = min(end, begin + window - 1)  # later queries do not reach the prompt's last token
        for q0 in range(begin, reach, _WINDOW_ROWS):
            q1, k0 = min(q0 + _WINDOW_ROWS, reach), max(start, trunk + (q0 - begin) - window + 1)
            yield Block(q0, q1, k0, trunk, causal=False, offset=trunk - k0 + q0 - begin, merge=True)
