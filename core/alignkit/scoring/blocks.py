"""Attention over a packed row, cut into dense blocks: no mask, no padding, no work that is thrown away.

A prompt and its first completion are one causal sequence. Every further completion attends to itself (causal) and to the
prompt (dense, all of them in one block); the two parts are merged by their log-sum-exps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from alignkit.scoring.plan import Segment

_WINDOW_ROWS = 256
"""Queries in one block under a sliding window: enough for full matrix products, few enough to skip what is out of sight."""


class Block(NamedTuple):
    """Queries ``[q0, q1)`` attend to keys ``[k0, k1)`` of the packed row."""

    q0: int
    q1: int
    k0: int
    k1: int
    causal: bool
    """Query i sees keys up to i (the ranges are the same)."""
    offset: int | None = None
    """Under a window that cuts this block: position of the first query less that of the first key. None: no mask."""
    merge: bool = False
    """The queries have already attended to something else."""


@lru_cache(maxsize=64)
def blocks(segments: tuple[Segment, ...], window: int | None) -> tuple[Block, ...]:
    """Return the blocks of a packed row; ``window`` is how many tokens back a query sees, itself included."""
    return tuple(block for segment in segments for block in _segment_blocks(segment, window))


def _segment_blocks(segment: Segment, window: int | None) -> Iterator[Block]:
    start, prompt, completions = segment
    trunk = start + prompt
    ends = [trunk + (completions[0] if completions else 0)]
    for length in completions[1:]:
        ends.append(ends[-1] + length)
    yield from _causal(start, ends[0], window)
    for begin, end in pairwise(ends):
        yield from _causal(begin, end, window)
    if window is None or prompt + max(completions, default=0) <= window:
        if len(ends) > 1:
            yield Block(ends[0], ends[-1], start, trunk, causal=False, merge=True)
    else:
        yield from _windowed_prompt(start, trunk, ends, window)


def _causal(begin: int, end: int, window: int | None) -> Iterator[Block]:
    """Attention of a stretch to itself."""
    if window is None or end - begin <= window:
        yield Block(begin, end, begin, end, causal=True)
        return
    for q0 in range(begin, end, _WINDOW_ROWS):
        q1, k0 = min(q0 + _WINDOW_ROWS, end), max(begin, q0 - window + 1)
        yield Block(q0, q1, k0, q1, causal=False, offset=q0 - k0)


def _windowed_prompt(start: int, trunk: int, ends: Sequence[int], window: int) -> Iterator[Block]:
    """Attention of further completions to what their window still shows of the prompt."""
    for begin, end in pairwise(ends):
        seen = min(end, begin + window - 1)  # later queries no longer see the prompt's last token
        for q0 in range(begin, seen, _WINDOW_ROWS):
            q1, k0 = min(q0 + _WINDOW_ROWS, seen), max(start, trunk + (q0 - begin) - window + 1)
            yield Block(q0, q1, k0, trunk, causal=False, offset=trunk - k0 + q0 - begin, merge=True)
