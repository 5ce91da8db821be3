"""Texts that are nearly the same: MinHash over runs of words, compared in bands (Broder 1997; Indyk and Motwani 1998)."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

_HASHES = 64
_BANDS = 16
_RUN = 3
_PRIME = (1 << 61) - 1
_WORD = re.compile(r"\w+")


def shingles(text: str) -> set[int]:
    """Return hashes of every run of three words, of fewer where there are fewer."""
    words = _WORD.findall(text.casefold())
    runs = {" ".join(words[i : i + _RUN]) for i in range(max(len(words) - _RUN + 1, 1))} if words else set()
    return {int.from_bytes(hashlib.blake2b(run.encode(), digest_size=7).digest()) for run in runs}


class Sketches:
    """Sketches of texts, in which nearly equal ones are found without comparing each with each."""

    def __init__(self) -> None:
        draw = np.random.default_rng(0)
        self._a = draw.integers(1, _PRIME, _HASHES, dtype=np.uint64)
        self._b = draw.integers(0, _PRIME, _HASHES, dtype=np.uint64)
        self._sets: list[set[int]] = []
        self._buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)

    def add(self, text: str) -> int:
        """Add a text and return its number."""
        found = shingles(text)
        number = len(self._sets)
        self._sets.append(found)
        for key in self._keys(found):
            self._buckets[key].append(number)
        return number

    def like(self, text: str, least: float) -> Iterator[tuple[int, float]]:
        """Yield numbers of texts whose sets of runs overlap by ``least`` (Jaccard) or more, and by how much."""
        found = shingles(text)
        seen: set[int] = set()
        for key in self._keys(found):
            for number in self._buckets.get(key, ()):
                if number in seen:
                    continue
                seen.add(number)
                other = self._sets[number]
                overlap = len(found & other) / max(len(found | other), 1)
                if overlap >= least:
                    yield number, overlap

    def _keys(self, found: set[int]) -> Sequence[tuple[int, bytes]]:
        if not found:
            return []
        values = np.fromiter(found, dtype=np.uint64, count=len(found))
        with np.errstate(over="ignore"):  # a multiplicative hash wraps
            mixed: NDArray[np.uint64] = values[:, None] * self._a + self._b
        least = mixed.min(0).reshape(_BANDS, -1)
        return [(band, row.tobytes()) for band, row in enumerate(least)]
