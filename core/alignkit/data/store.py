"""Tokenised rows in flat arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from alignkit.types import Example, RowKind

SEGMENTS: Mapping[RowKind, int] = {"preference": 3, "completion": 2, "unpaired": 2, "prompt": 1}
"""Parts of a row of each kind: its prompt, and its completions."""


class About(NamedTuple):
    """What is known of a row besides its tokens."""

    id: str
    cluster: str
    category: str
    fields: Mapping[str, Any]


class TokenisedRows(Sequence[Example]):
    """Rows of one kind as token ids, kept in flat arrays; an :class:`Example` is made when asked for.

    Args:
        kind: what one row is.
        tokens: ``[T]`` int32, the rows one after another, each its prompt and then its completions.
        offsets: ``[rows * SEGMENTS[kind] + 1]`` int64, where each of these begins, and the end.
        about: ids, clusters, categories and other fields of the rows.
    """

    def __init__(
        self, kind: RowKind, tokens: NDArray[np.int32], offsets: NDArray[np.int64], about: Sequence[About]
    ) -> None:
        if len(offsets) != len(about) * SEGMENTS[kind] + 1 or int(offsets[-1]) != len(tokens):
            raise ValueError(f"{len(about)} {kind} rows do not fit {len(offsets)} offsets and {len(tokens)} tokens")
        self.kind: RowKind = kind
        self.tokens = tokens
        self.offsets = offsets
        self.about = about

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.about)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> TokenisedRows: ...
    def __getitem__(self, index: int | slice) -> Example | TokenisedRows:
        """Return one row (its ``index`` is its position here), or the rows of a slice."""
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        position = range(len(self))[index]
        parts = SEGMENTS[self.kind]
        ends = self.offsets[position * parts : (position + 1) * parts + 1].tolist()
        prompt, *completions = (self.tokens[a:b].tolist() for a, b in pairwise(ends))
        return Example(prompt=prompt, completions=tuple(completions), index=position, **self.about[position]._asdict())

    def select(self, indices: Sequence[int]) -> TokenisedRows:
        """Return the rows at ``indices``, in that order."""
        parts = SEGMENTS[self.kind]
        chosen = np.asarray(indices, dtype=np.int64)
        lengths = np.diff(self.offsets).reshape(-1, parts)[chosen]
        begins = self.offsets[:-1].reshape(-1, parts)[chosen, 0]
        offsets = np.concatenate([[0], np.cumsum(lengths.ravel())])
        sizes = lengths.sum(1)
        # Position of every token: where its row begins in the source, plus how far into the row it stands.
        within = np.arange(offsets[-1]) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        tokens = self.tokens[np.repeat(begins, sizes) + within]
        return TokenisedRows(self.kind, tokens, offsets.astype(np.int64), [self.about[i] for i in indices])

    def segment_lengths(self) -> NDArray[np.int64]:
        """Return the tokens of every part, ``[rows, SEGMENTS[kind]]``: the prompt's, then each completion's."""
        return np.diff(self.offsets).reshape(-1, SEGMENTS[self.kind])

    def lengths(self) -> NDArray[np.int64]:
        """Return the tokens of every row, prompt shared by its completions, ``[rows]``."""
        total: NDArray[np.int64] = self.segment_lengths().sum(1)
        return total

    @property
    def clusters(self) -> int:
        """The number of different clusters."""
        return len({about.cluster for about in self.about})

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over kind, row ids, token ids and their borders."""
        content = hashlib.sha256(self.kind.encode())
        for about in self.about:
            content.update(about.id.encode() + b"\0")
        content.update(np.ascontiguousarray(self.offsets, dtype="<i8").tobytes())
        content.update(np.ascontiguousarray(self.tokens, dtype="<i4").tobytes())
        return content.hexdigest()
