"""The heap of glibc under the blocks that a computation makes and frees, without their contents.

torch aligns its memory to 64 bytes. For that glibc looks for :data:`AROUND` bytes more than a block has, and frees what is left
before and behind the block. A small object that then lies in such a remainder keeps the block's hole apart from its neighbours,
and the hole cannot take a block of the size that left it. So the heap grows to more than was ever alive at the same time.
"""

from __future__ import annotations

import bisect
import random

LARGE = 32 << 20
"""Blocks from this size on are always given back to the system when they are freed (DEFAULT_MMAP_THRESHOLD_MAX of glibc)."""

SMALL = 4096
"""Blocks of less are not counted."""

HEADER, AROUND = 16, 112
"""Bytes of a block besides its contents, and bytes that a hole for it has besides."""

KEPT_APART = 0.08
"""Share of the blocks that an object behind them keeps apart from the next.

Chosen so that the heap grows as in two measured runs: 0.06 (an adapter on 100 M parameters, checkpointing, bfloat16), 0.08 (30 M
parameters trained, checkpointing, autocast to bfloat16).
"""


class Heap:
    """The addresses of blocks, and the peak of what the process holds for them."""

    def __init__(self) -> None:
        self.peak = 0
        """Greatest size of the heap and the blocks outside it, in bytes."""
        self._top = self._mapped = 0
        self._holes: list[tuple[int, int]] = []
        """Address and size of each hole, by address."""
        self._blocks: dict[int, tuple[int, int]] = {}
        self._draw = random.Random(0)

    def allocate(self, key: int, size: int) -> None:
        """Place a block, in the smallest hole that takes it or at the end of the heap."""
        if size >= LARGE:
            self._mapped += size
        elif size >= SMALL:
            self._place(key, size)
        self.peak = max(self.peak, self._top + self._mapped)

    def free(self, key: int, size: int) -> None:
        """Free a block: its hole is merged with the holes beside it."""
        if size >= LARGE:
            self._mapped -= size
        elif size >= SMALL:
            hole = self._blocks.pop(key)
            at = bisect.bisect(self._holes, hole)
            if at < len(self._holes) and sum(hole) == self._holes[at][0]:
                hole = hole[0], hole[1] + self._holes.pop(at)[1]
            if at and sum(self._holes[at - 1]) == hole[0]:
                at -= 1
                before = self._holes.pop(at)
                hole = before[0], before[1] + hole[1]
            self._holes.insert(at, hole)

    def _place(self, key: int, size: int) -> None:
        apart = self._draw.random() < KEPT_APART
        taken = size + (AROUND if apart else HEADER)
        fitting = ((room, at) for at, (_, room) in enumerate(self._holes) if room >= size + AROUND)
        room, at = min(fitting, default=(0, -1))
        if at >= 0:
            address, _ = self._holes.pop(at)
            if room > taken:
                self._holes.insert(at, (address + taken, room - taken))
        else:
            address = self._holes.pop()[0] if self._holes and sum(self._holes[-1]) == self._top else self._top
            self._top = max(self._top, address + taken)
        self._blocks[key] = address, size + HEADER
