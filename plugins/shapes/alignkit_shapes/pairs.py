"""Preference pairs and rankings made from several answers to one prompt.

A row with several rejected answers (best of n, as in RewardBench 2) becomes one pair per rejected answer. These pairs share
the prompt, and therefore the cluster and the side of a split. Their field ``group`` names the row: the ``prefs`` suite
counts a group as correct if the chosen answer beats every rejected one.

Rated answers, in lists (``answers``, ``ratings``) or in separate rows (``completion`` with ``rating`` or ``label``), become a
pair of the best and the worst, or every pair with different ratings; the difference of the ratings is the field ``margin``.
Ranks (``ranks``, ``rank``: 1 is the best) are read where there are no ratings, as their negatives.

A ranking is a pair of the best two answers, with the others in a column of their own and all ratings in the field ``ratings``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from operator import attrgetter
from typing import Any, Literal, NamedTuple, TypeAlias, TypeGuard

from alignkit.contract import Located, RawRows
from alignkit.data.rows import describe_value
from alignkit.data.shapes import GROUP, MARGIN, RATINGS, SCALE
from alignkit.data.sources.chunks import Source
from alignkit.errors import DataError
from alignkit.system.files import digest

from alignkit_shapes.columns import read_label

LISTS = ("answers", RATINGS)
_SCALES = ("rating", "label", "rank")
OTHERS = "\0others"
"""Column with a ranking's answers after the second one."""
UNUSABLE_COLUMN = "\0unusable"
"""Column with the reason why a row cannot be used; the name does not occur in files by accident."""

NO_PARTNER = "no two answers to the prompt have different ratings"

Pairing: TypeAlias = Literal["best_worst", "all", "ranked"]


class _Answer(NamedTuple):
    value: Any
    rating: float
    row: Mapping[str, Any] = {}
    place: str = ""


def expand_alternatives(
    raw: RawRows, columns: Mapping[str, str], pairs: Pairing | None = None, start: int = 0
) -> tuple[RawRows, Sequence[int]]:
    """Return ``raw`` with one row per pair (or ranking); rows that already are one pair are unchanged; and of which row each is.

    Args:
        raw: source rows; ``rejected`` (and ``chosen``) may be lists of texts or conversations, or ``answers`` and
            ``ratings`` lists of equal length.
        columns: alignkit column -> source column.
        pairs: which pairs to make of rated answers (default: best and worst), or rankings of all of them.
        start: number of source rows before ``raw``; a row without an id is identified by its number.
    """
    names = _names(("chosen", "rejected", "answers", "ratings", "ranks", "id"), columns)

    def scale(row: Mapping[str, Any]) -> str | None:
        known = () if row.get(names["answers"]) is None else ("ratings", "ranks")
        return next((name for name in known if row.get(names[name]) is not None), None)

    if not any(scale(row) or _several(row.get(names["rejected"])) for row in raw.rows):
        return raw, range(len(raw.rows))
    rows: list[Mapping[str, Any]] = []
    origin: list[int] = []
    for position, row in enumerate(raw.rows):
        given = row.get(names["id"])
        row_id = str(start + position if given in (None, "") else given)
        made = list(
            _of_ratings(row, names, row_id, pairs or "best_worst", raw.where(position), by)
            if (by := scale(row))
            else _of_rejected(row, names, row_id, pairs, start + position)
        )
        rows += made
        origin += [position] * len(made)
    return RawRows(rows, lambda i: raw.where(origin[i]), raw.source), origin


def _of_rejected(
    row: Mapping[str, Any], names: Mapping[str, str], row_id: str, pairs: Pairing | None, number: int
) -> Iterator[Mapping[str, Any]]:
    chosen, rejected = names["chosen"], names["rejected"]
    answers, best = row.get(rejected), row.get(chosen)
    alternatives: list[Any] = answers if _several(answers) else [answers]
    own = {**row, chosen: best[0] if _several(best) and len(best) == 1 else best}
    if pairs == "ranked" and len(alternatives) > 1:
        yield {**own, rejected: alternatives[0], OTHERS: alternatives[1:], RATINGS: [1.0] + [0.0] * len(alternatives)}
        return
    # Ids may repeat, and other sources have the same numbers: neither alone tells the row from all others.
    group = f"{number}-{digest(row)[:16]}" if len(alternatives) > 1 else ""
    for which, answer in enumerate(alternatives):
        yield {**own, rejected: answer} | ({GROUP: group, names["id"]: f"{row_id}/{which}"} if group else {})


def _of_ratings(
    row: Mapping[str, Any], names: Mapping[str, str], row_id: str, pairs: Pairing, place: str, by: str
) -> Iterator[Mapping[str, Any]]:
    answers, ratings = row[names["answers"]], row[names[by]]
    lists = isinstance(answers, list) and isinstance(ratings, list)
    if not lists or len(answers) != len(ratings):
        types = f"{describe_value(answers)} and {describe_value(ratings)}"
        found = f"{len(answers)} and {len(ratings)} long" if lists else types
        raise DataError(f'{place}: "answers" and "{by}" are {found}, expected two lists of equal length')
    rest = {key: value for key, value in row.items() if key not in (names["answers"], names[by])}
    rated = [_Answer(answer, _number(rating, place, by[:-1])) for answer, rating in zip(answers, ratings, strict=True)]
    chosen, rejected = names["chosen"], names["rejected"]
    rest |= {} if (doubt := _doubt([answer.rating for answer in rated], by)) is None else {SCALE: doubt}
    made = list(_pairs(rated, pairs))
    if made and pairs == "ranked":
        best, second, *others = sorted(rated, key=attrgetter("rating"), reverse=True)
        ranked = {OTHERS: [answer.value for answer in others], RATINGS: [a.rating for a in (best, second, *others)]}
        yield {**rest, chosen: best.value, rejected: second.value, **ranked}
        return
    for number, (better, worse) in enumerate(made):
        own = {names["id"]: f"{row_id}/{number}"} if len(made) > 1 and rest.get(names["id"]) is not None else {}
        yield {**rest, **own, chosen: better.value, rejected: worse.value, MARGIN: better.rating - worse.rating}
    if not made:  # it is kept, so that it is counted
        yield {**rest, **dict.fromkeys((chosen, rejected), (answers or [""])[0]), UNUSABLE_COLUMN: NO_PARTNER}


def _doubt(ratings: Sequence[float], by: str) -> str | None:
    """Return how ratings look like ranks, or ranks (which are negated) like ratings; None if they do not."""
    count, shown = len(ratings), ", ".join(f"{abs(rating):g}" for rating in ratings[:8])
    if by == "ratings" and sorted(ratings) in (list(range(1, count + 1)), list(range(count)) if count > 2 else []):
        return f"the ratings are {shown}, as ranks would be"
    whole = all(rating == int(rating) <= 0 for rating in ratings)
    if by == "ranks" and whole and -min(ratings, default=0) > count > len(set(ratings)):
        return f"the ranks are {shown}, as ratings would be"
    return None


def _names(wanted: Iterable[str], columns: Mapping[str, str]) -> dict[str, str]:
    """Return the source columns of alignkit's; ratings that ``columns`` reads as ranks are not read as ratings as well."""
    taken = set(columns.values()) & {*_SCALES, RATINGS, "ranks"}
    return {name: columns.get(name, f"\0{name}" if name in taken else name) for name in wanted}


def grouped(source: Source, columns: Mapping[str, str]) -> Source:
    """Return a source with one row per prompt (with system text and tools), its answers and their ratings in lists; ``source`` has a row per answer.

    The source is read into memory, because the rows of a prompt need not be consecutive.

    Raises:
        DataError: while reading: a row has neither rating nor label, or its rating is not a number.
    """
    rows, digest = lambda: _grouped(source.read(), columns), lambda: f"{source.digest()} grouped"
    return Source(source.name, source.root, rows, digest)


def is_rated_answer(row: Mapping[str, Any], columns: Mapping[str, str]) -> bool:
    """Return whether a row is one rated or labelled answer, to be paired with the other answers to its prompt."""
    names = _names(("completion", *_SCALES, "answers"), columns)
    present = {name for name, column in names.items() if row.get(column) is not None}
    return "completion" in present and "answers" not in present and not present.isdisjoint(_SCALES)


def _grouped(raw: RawRows, columns: Mapping[str, str]) -> Iterator[Located]:
    names = _names(("prompt", "system", "tools", "completion", *_SCALES, "id", *LISTS), columns)
    groups: dict[tuple[str, str], list[_Answer]] = {}
    for position, row in enumerate(raw.rows):
        place = raw.where(position)
        by = next((name for name in _SCALES if row.get(names[name]) is not None), "rating")
        lacking = next((name for name in ("prompt", "completion", by) if row.get(names[name]) is None), None)
        if lacking is not None:
            yield {**row, UNUSABLE_COLUMN: f'data.pairs: "{lacking}" is missing or null'}, place
            continue
        score = float(read_label(row[names[by]], place)) if by == "label" else _number(row[names[by]], place, by)
        answer = _Answer(row[names["completion"]], score, row, place)
        asked = [row.get(names[column]) for column in ("prompt", "system", "tools")]
        groups.setdefault((digest(asked), by), []).append(answer)
    dropped = {names[name] for name in ("completion", *_SCALES, "id")}
    for answers in groups.values():
        best = max(answers, key=attrgetter("rating"))
        rest = {key: entry for key, entry in best.row.items() if key not in dropped}
        lists = zip(*((answer.value, answer.rating) for answer in answers), strict=True)
        yield rest | dict(zip((names[name] for name in LISTS), map(list, lists), strict=True)), best.place


def left_over(columns: Mapping[str, str], *, paired: bool = False) -> dict[str, str]:
    """Return the entries of ``columns`` that rows still have after pairing; ``paired``: by :func:`grouped`."""
    consumed = {*LISTS, "ranks", *(("completion", *_SCALES) if paired else ())}
    return {ours: theirs for ours, theirs in columns.items() if ours not in consumed}


def as_listed(row: Mapping[str, Any], columns: Mapping[str, str]) -> Mapping[str, Any]:
    """Return a ranking with its answers and their ratings in two lists, as it can be read again; any other row as it was."""
    row = {key: value for key, value in row.items() if key not in (UNUSABLE_COLUMN, SCALE)}
    if OTHERS not in row:
        return row
    chosen, rejected, answers, ratings = (columns.get(name, name) for name in ("chosen", "rejected", *LISTS))
    rest = {key: value for key, value in row.items() if key not in (chosen, rejected, OTHERS, RATINGS)}
    return {**rest, answers: [row[chosen], row[rejected], *row[OTHERS]], ratings: row[RATINGS]}


def _pairs(answers: Sequence[_Answer], pairs: Pairing) -> Iterator[tuple[_Answer, _Answer]]:
    """Yield (better, worse): the best and the worst, or every two with different ratings."""
    candidates: Iterable[tuple[_Answer, _Answer]] = combinations(answers, 2)
    if pairs == "best_worst" and answers:
        rating = attrgetter("rating")
        candidates = [(max(answers, key=rating), min(answers, key=rating))]
    for one, other in candidates:
        if one.rating != other.rating:
            yield (one, other) if one.rating > other.rating else (other, one)


def _number(value: Any, place: str, name: str) -> float:
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        number = None
    if number is None or number - number != 0:
        raise DataError(f"{place}: the {name} is {value!r}, expected a number")
    return -number if name == "rank" else number  # the lowest rank is the best


def _several(value: Any) -> TypeGuard[list[Any]]:
    """Return whether a cell is a list of texts or of conversations, rather than the messages of one conversation."""
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(part, str) for part in value) or all(
        isinstance(part, list) and part and isinstance(part[0], Mapping) for part in value
    )
