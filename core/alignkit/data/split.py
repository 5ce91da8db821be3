"""Which rows are held out: whole clusters, chosen by hash."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from alignkit.data.rows import Row, digest
from alignkit.errors import ConfigError, DataError


def held_out_positions(rows: Sequence[Row], share: float, source: str) -> frozenset[int]:
    """Return the source positions of the rows held out, about ``share`` of them.

    Rows of one cluster, and rows with one prompt, stay together, so nothing leaks. Groups are taken in the order of the hash
    of their smallest cluster name until the share is reached: at least one group is held out and one is left. Unusable rows
    take part, so that the split is the same whatever the rows are used for.

    Raises:
        ConfigError: ``share`` is no share.
        DataError: all rows belong to one group.
    """
    if not 0 <= share < 1:
        raise ConfigError(f"data.eval_split is {share}, expected the name of a split or a share from 0 up to 1")
    if share == 0:
        return frozenset()
    groups = _groups(rows)
    sizes = Counter(groups)
    if len(sizes) < 2:
        raise DataError(
            f"{source}: all rows share one prompt or cluster, so none can be held out; set data.eval_source"
        )
    order = sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).digest())
    held: set[str] = set()
    taken = 0
    for name in order[:-1]:
        if held and taken >= share * len(rows):
            break
        held.add(name)
        taken += sizes[name]
    return frozenset(row.position for row, group in zip(rows, groups, strict=True) if group in held)


def _groups(rows: Sequence[Row]) -> list[str]:
    """Return each row's group: clusters that share a prompt are one, named by the smallest of their names."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = name = parent[parent[name]]
        return name

    by_prompt: dict[str, str] = {}
    for row in rows:
        first = by_prompt.setdefault(digest(row.prompt), row.cluster)
        low, high = sorted((root(row.cluster), root(first)))
        parent[high] = low
    return [root(row.cluster) for row in rows]
