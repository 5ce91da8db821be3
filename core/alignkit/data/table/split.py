"""The held-out split: whole clusters, chosen by hash."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from alignkit.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pyarrow as pa

Words: TypeAlias = "Sequence[str] | pa.ChunkedArray"


def held_out(
    clusters: Words, prompts: Words, share: float, source: str, fold: tuple[int, int] | None = None
) -> NDArray[np.bool_]:
    """Return the mask of held-out rows, about ``share`` of all, ``[rows]``.

    Rows with the same cluster or the same prompt form a group that is never divided, so nothing leaks. Groups are taken in
    the order of the hash of their smallest cluster name until the share is reached; at least one group is held out and one
    is left. Unusable rows take part, so that the split does not depend on the row kind.

    With ``fold``, ``(k, folds)``, fold ``k`` (from 0) is held out instead of a share; every group is in exactly one fold.

    Raises:
        ConfigError: ``share`` is not in [0, 1).
        DataError: all rows belong to one group, or there are fewer groups than folds.
    """
    if not 0 <= share < 1:
        raise ConfigError(f"data.eval_split is {share}, expected a split name or a share of at least 0 and below 1")
    if share == 0 and fold is None:
        return np.zeros(len(clusters), dtype=np.bool_)
    names, group = _groups(clusters, prompts)
    sizes = np.bincount(group, minlength=len(names))
    if len(clusters) == 1:
        raise DataError(f"{source} has only one row, so none can be held out; set data.eval_source")
    if len(names) < 2:
        raise DataError(
            f"{source}: all rows share one prompt or cluster, so none can be held out; set data.eval_source"
        )
    hashes = [hashlib.sha256(str(name).encode()).digest()[:8] for name in names]
    order = np.argsort(np.array(hashes, dtype="S8").view(">u8"), kind="stable")
    before = np.cumsum(sizes[order]) - sizes[order]  # rows in earlier groups
    held = np.zeros(len(names), dtype=np.bool_)
    if fold is None:
        held[order[before < share * len(clusters)]] = True
        held[order[0]], held[order[-1]] = True, False
    else:
        number, folds = fold
        if len(names) < folds:
            raise DataError(
                f"{source}: {len(names)} groups of rows (clusters, prompts) cannot be split into {folds} folds"
            )
        # A group goes to the fold its middle falls in; if that leaves a fold empty, groups are assigned in turn.
        middle = (before + sizes[order] / 2) / len(clusters)
        which = np.minimum((middle * folds).astype(np.int64), folds - 1)
        if len(set(which.tolist())) < folds:
            which = np.arange(len(names)) % folds
        held[order[which == number]] = True
    return np.asarray(held[group], np.bool_)


def first_positions(positions: Sequence[NDArray[np.int64]], limit: int | None) -> list[NDArray[np.int64]]:
    """Return the first ``limit`` positions over all sources, taken in turn."""
    if limit is None or sum(map(len, positions)) <= limit:
        return list(positions)
    order = sorted((at, source) for source, found in enumerate(positions) for at in range(min(len(found), limit)))
    taken = [sum(source == k for _, source in order[:limit]) for k in range(len(positions))]
    return [found[:count] for found, count in zip(positions, taken, strict=True)]


def _groups(clusters: Words, prompts: Words) -> tuple[pa.Array, NDArray[np.int64]]:
    """Return group names and the group of every row: clusters that share a prompt are one, named by the smallest of them."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    names, cluster = codes(clusters)
    _, prompt = codes(prompts)
    first = np.full(prompt.max(initial=-1) + 1, -1, dtype=np.int64)
    first[prompt[::-1]] = cluster[::-1]  # the cluster of a prompt's first row
    links = np.ones(len(cluster), dtype=np.int8)
    edges = coo_matrix((links, (cluster, first[prompt])), shape=(len(names), len(names)))
    count, component = connected_components(edges, directed=False)
    smallest = np.full(count, len(names), dtype=np.int64)
    np.minimum.at(smallest, component, np.arange(len(names)))
    return names.take(smallest), component[cluster].astype(np.int64)


def codes(values: Words) -> tuple[pa.Array, NDArray[np.int64]]:
    """Return the distinct values, sorted, and the index of every row's value."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not isinstance(values, pa.ChunkedArray):
        values = pa.chunked_array([pa.array(values, pa.large_string())])
    encoded = values.combine_chunks().dictionary_encode()
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return encoded.dictionary.take(order), rank[encoded.indices.to_numpy()]
