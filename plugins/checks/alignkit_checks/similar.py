"""Near-duplicate detection: MinHash over word trigrams with banding (Broder 1997; Indyk and Motwani 1998)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

_HASHES = 64
_BANDS = 16
_WORD = re.compile(r"\w+")
_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype=np.uint64)

Runs = NDArray[np.uint64]
"""Sorted hashes of a text's distinct word trigrams."""


class Sketches:
    """MinHash sketches of texts, which find similar texts without comparing all pairs."""

    def __init__(self) -> None:
        draw = np.random.default_rng(0)
        self._a = draw.integers(1, 1 << 63, _HASHES, dtype=np.uint64) | np.uint64(1)
        self._b = draw.integers(0, 1 << 63, _HASHES, dtype=np.uint64)
        self._words: dict[str, int] = {}
        self._runs: list[Runs] = []
        self._buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)

    def runs(self, text: str) -> Runs:
        """Return the hashes of a text's word trigrams (of all its words if it has fewer than three)."""
        number = self._words
        words = _WORD.findall(text.casefold())
        ids = np.array([number.setdefault(word, len(number) + 1) for word in words], dtype=np.uint64)
        width = min(len(ids), len(_MIX))
        if not width:
            return ids
        with np.errstate(over="ignore"):  # a multiplicative hash wraps
            mixed = sum((ids[i : len(ids) - width + i + 1] + np.uint64(i)) * _MIX[i] for i in range(width))
            spread = np.asarray(mixed, dtype=np.uint64)
            spread = (spread ^ (spread >> np.uint64(29))) * _MIX[1]
        return np.unique(spread)

    def add(self, runs: Runs) -> None:
        """Add a text by its trigrams; its number is the count of those added before."""
        number = len(self._runs)
        self._runs.append(runs)
        for key in self._keys(runs):
            self._buckets[key].append(number)

    def like(self, runs: Runs, least: float) -> Iterator[tuple[int, float]]:
        """Yield (number, Jaccard similarity) of the texts at least ``least`` similar to these trigrams."""
        for number in dict.fromkeys(n for key in self._keys(runs) for n in self._buckets.get(key, ())):
            other = self._runs[number]
            shared = len(np.intersect1d(runs, other, assume_unique=True))
            overlap = shared / max(len(runs) + len(other) - shared, 1)
            if overlap >= least:
                yield number, overlap

    def most_like(self, runs: Runs, least: float) -> tuple[int, float] | None:
        """Return (number, similarity) of the most similar text; None if no similarity reaches ``least``."""
        return max(self.like(runs, least), key=lambda found: found[1], default=None)

    def _keys(self, runs: Runs) -> Sequence[tuple[int, bytes]]:
        if not len(runs):
            return []
        with np.errstate(over="ignore"):
            mixed: NDArray[np.uint64] = runs[:, None] * self._a + self._b
        least = mixed.min(0).reshape(_BANDS, -1)
        return [(band, row.tobytes()) for band, row in enumerate(least)]
