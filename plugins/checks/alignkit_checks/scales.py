"""Preferences read the wrong way round: columns whose names or values say the opposite of what they are read as."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from alignkit import CheckConfig, Hit, Row
from alignkit.config import DataConfig
from alignkit.data.shapes import MARGIN, RATINGS, SCALE
from alignkit.errors import ConfigError

_RANKS = frozenset("rank ranks ranking rankings position positions place places placement".split())
_LOWER = frozenset("loss losses perplexity ppl nll error errors cost costs penalty distance toxicity harm".split())
_HIGHER = frozenset("score scores reward rewards stars grade grades likes votes upvotes quality".split())
_GOOD = frozenset("chosen preferred better best good winner winning accepted positive liked upvoted".split())
_BAD = frozenset(
    "rejected unpreferred dispreferred worse worst bad loser losing negative disliked downvoted toxic unsafe "
    "harmful spam flagged".split()
)
_NOT = frozenset("not non no less least".split())

_OPPOSITE: Mapping[str, tuple[frozenset[str], frozenset[str], str]] = {
    **dict.fromkeys(
        ("ratings", "rating"),
        (_RANKS | _LOWER, _HIGHER, "where the lowest is the best: set data.columns.{other}: {column} instead"),
    ),
    **dict.fromkeys(
        ("ranks", "rank"),
        (_HIGHER, _RANKS | _LOWER, "where the highest is the best: set data.columns.{other}: {column} instead"),
    ),
    "chosen": (_BAD, _GOOD, "of rejected answers: exchange data.columns.chosen and data.columns.rejected"),
    "rejected": (_GOOD, _BAD, "of chosen answers: exchange data.columns.chosen and data.columns.rejected"),
    "label": (_BAD, _GOOD, "that is true for bad answers, and label is true for good ones: invert it in the data"),
}
"""Name -> words of columns that say the opposite, words that take it back, and what such a column is and what to do."""

_OTHER = {"ratings": "ranks", "ranks": "ratings", "rating": "rank", "rank": "rating"}
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")


def refuse_inverted(data: DataConfig) -> None:
    """Raise :class:`ConfigError` for a column whose name says the opposite of what ``data.columns`` reads it as."""
    if data.check.enabled and (problem := inverted(data)):
        raise ConfigError(f"{problem} (or, if the name misleads, set data.check.enabled: false)")


def inverted(data: DataConfig) -> str | None:
    """Return what is wrong with such a column, and what to do; None if there is none."""
    parts = {f"data.sources[{k}]": part.columns for k, part in enumerate(data.sources)}
    for place, columns in {"data": data.columns, **parts}.items():
        for name, column in columns.items():
            opposite, back, about = _OPPOSITE.get(name, (frozenset(), frozenset(), ""))
            words = {word.lower() for word in _WORD.findall(column)}
            if words & opposite and not words & (back | _NOT):
                what = about.format(other=_OTHER.get(name), column=column).replace("data.", f"{place}.")
                return f'{place}.columns.{name}: "{column}" is the name of a column {what}'
    return None


def doubtful_scales(rows: Sequence[Row], _held_out: Sequence[Row], _limits: CheckConfig) -> Iterator[Hit]:
    """Rated answers all of whose ratings look like ranks, or ranks that look like ratings."""
    rated = [i for i, row in enumerate(rows) if MARGIN in row.fields or RATINGS in row.fields or SCALE in row.fields]
    found = {i: about for i in rated if (about := rows[i].fields.get(SCALE))}
    ranks = [about.startswith("the ranks") for about in found.values()]
    if not found or (len(found) < len(rated) and not all(ranks)):
        return
    is_best = "the lowest rank is the best; if the highest is, set data.columns.ratings (rating in separate rows)"
    if not all(ranks):
        is_best = "the highest rating is the best; if 1 is, set data.columns.ranks (rank in separate rows)"
    for i, about in found.items():
        yield Hit(i, f"{about}: {is_best} to this column")
