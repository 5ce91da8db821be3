"""Several answers to one prompt, brought to pairs.

Rows with several rejected answers (best of n, as in RewardBench 2) become one pair with every one of them. They share the
prompt, and therefore its cluster and its side of a split, and carry the row's name as the field ``group``: the ``prefs``
suite counts a group as right where the chosen answer beats every rejected one.

Rated answers, in lists (``answers``, ``ratings``) or in rows of their own (``completion`` with ``rating`` or ``label``), become
the best with the worst, or every two that are rated differently; the difference of their ratings is kept as ``margin``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, Literal, NamedTuple, TypeAlias, TypeGuard

from alignkit.contract.rows import RawRows
from alignkit.data.rows import describe_value, digest
from alignkit.data.shapes.columns import read_label
from alignkit.data.sources.chunks import Source
from alignkit.errors import DataError

GROUP = "group"
MARGIN = "margin"
UNUSABLE_COLUMN = "\0unusable"
"""Column that says why a row cannot be used; no file's column has this name by accident."""

NO_PARTNER = "no two answers to its prompt that are rated differently"

Pairing: TypeAlias = Literal["best_worst", "all"]


class _Answer(NamedTuple):
    value: Any
    rating: float
    row: Mapping[str, Any]
    place: str


def expand_alternatives(
    raw: RawRows, columns: Mapping[str, str], pairs: Pairing | None = None, start: int = 0
) -> RawRows:
    """Return ``raw`` with a row for every pair its answers make; rows of one pair stay as they are.

    Args:
        raw: the rows as they stand in the source; ``rejected`` (and ``chosen``) may be lists of texts or conversations, or
            ``answers`` and ``ratings`` lists of one length.
        columns: names of ours -> names of theirs.
        pairs: which pairs rated answers make (default: the best with the worst).
        start: how many rows of the source come before: rows without an id are named by their number.
    """
    names = {name: columns.get(name, name) for name in ("chosen", "rejected", "answers", "ratings", "id")}
    rated = any(row.get(names["answers"]) is not None and row.get(names["ratings"]) is not None for row in raw.rows)
    if not rated and not any(_several(row.get(names["rejected"])) for row in raw.rows):
        return raw
    rows: list[Mapping[str, Any]] = []
    origin: list[int] = []
    for position, row in enumerate(raw.rows):
        name = str(row.get(names["id"]) or start + position)
        made = list(
            _of_ratings(row, names, name, pairs or "best_worst", raw.where(position))
            if row.get(names["answers"]) is not None and row.get(names["ratings"]) is not None
            else _of_rejected(row, names, name)
        )
        rows += made
        origin += [position] * len(made)
    return RawRows(rows, lambda i: raw.where(origin[i]), raw.source)


def _of_rejected(row: Mapping[str, Any], names: Mapping[str, str], name: str) -> Iterator[Mapping[str, Any]]:
    chosen, rejected = names["chosen"], names["rejected"]
    answers, best = row.get(rejected), row.get(chosen)
    alternatives: list[Any] = answers if _several(answers) else [answers]
    own = {**row, chosen: best[0] if _several(best) and len(best) == 1 else best}
    for number, answer in enumerate(alternatives):
        about = {GROUP: name, names["id"]: f"{name}/{number}"} if len(alternatives) > 1 else {}
        yield {**own, rejected: answer, **about}


def _of_ratings(
    row: Mapping[str, Any], names: Mapping[str, str], name: str, pairs: Pairing, place: str
) -> Iterator[Mapping[str, Any]]:
    answers, ratings = row[names["answers"]], row[names["ratings"]]
    if not isinstance(answers, list) or not isinstance(ratings, list) or len(answers) != len(ratings):
        found = f"{describe_value(answers)} and {describe_value(ratings)}"
        if isinstance(answers, list) and isinstance(ratings, list):
            found = f"{len(answers)} and {len(ratings)} long"
        raise DataError(f'{place}: "answers" and "ratings" are {found}, expected two lists of one length')
    rest = {key: value for key, value in row.items() if key not in (names["answers"], names["ratings"])}
    rated = [
        _Answer(answer, _number(rating, place), rest, place) for answer, rating in zip(answers, ratings, strict=True)
    ]
    made = list(_pairs(rated, pairs))
    for number, (better, worse) in enumerate(made):
        own = {names["id"]: f"{name}/{number}"} if len(made) > 1 else {}
        yield {
            **rest,
            **own,
            names["chosen"]: better.value,
            names["rejected"]: worse.value,
            MARGIN: better.rating - worse.rating,
        }
    if not made:
        answer = answers[0] if answers else ""
        yield {**rest, names["chosen"]: answer, names["rejected"]: answer, UNUSABLE_COLUMN: NO_PARTNER}


def paired(source: Source, columns: Mapping[str, str], pairs: Pairing) -> Source:
    """Return the pairs that the rows of one prompt make, each a completion with a ``rating`` or a ``label``.

    The source is read whole, because the rows of a prompt may stand anywhere in it.

    Raises:
        DataError: when read: a row has neither rating nor label, or one that is no number.
    """

    def chunks() -> Iterator[Any]:
        raw = source.read()
        rows, places = _grouped(raw, columns, pairs)
        yield from Source.of(RawRows(rows, places.__getitem__, source.name)).chunks()

    return Source(source.name, source.root, chunks, lambda: f"{source.digest()} {pairs}")


def _grouped(raw: RawRows, columns: Mapping[str, str], pairs: Pairing) -> tuple[list[Mapping[str, Any]], list[str]]:
    names = {name: columns.get(name, name) for name in ("prompt", "completion", "rating", "label", "id")}
    groups: dict[str, list[_Answer]] = {}
    for position, row in enumerate(raw.rows):
        place = raw.where(position)
        if row.get(names["prompt"]) is None or row.get(names["completion"]) is None:
            has = ", ".join(row) or "no columns"
            raise DataError(
                f"{place}: pairs are made of rows with prompt, completion and rating or label; this row has {has}"
            )
        score = row.get(names["rating"])
        if score is None:
            label = row.get(names["label"])
            if label is None:
                raise DataError(f'{place}: no "rating" and no "label" in this row, so it cannot be paired')
            score = float(read_label(label, place))
        answer = _Answer(row[names["completion"]], _number(score, place), row, place)
        groups.setdefault(digest(row[names["prompt"]]), []).append(answer)
    rows: list[Mapping[str, Any]] = []
    places: list[str] = []
    left_out = {names[name] for name in ("completion", "rating", "label", "id")}
    for answers in groups.values():
        made = list(_pairs(answers, pairs))
        used = {id(answer) for pair in made for answer in pair}
        for better, worse in made:
            own = {key: value for key, value in better.row.items() if key not in left_out}
            rows.append({**own, "chosen": better.value, "rejected": worse.value, MARGIN: better.rating - worse.rating})
            places.append(better.place)
        if not used:  # a prompt without a pair is said, not lost
            own = {key: value for key, value in answers[0].row.items() if key not in left_out}
            rows.append({**own, "chosen": answers[0].value, "rejected": answers[0].value, UNUSABLE_COLUMN: NO_PARTNER})
            places.append(answers[0].place)
    return rows, places


def left_over(columns: Mapping[str, str], *, paired: bool = False) -> dict[str, str]:
    """Return the column names that still stand in rows once their answers are pairs; ``paired``: rows with one another."""
    spent = {"answers", "ratings", *(("completion", "rating", "label") if paired else ())}
    return {ours: theirs for ours, theirs in columns.items() if ours not in spent}


def _pairs(answers: Sequence[_Answer], pairs: Pairing) -> Iterator[tuple[_Answer, _Answer]]:
    """Yield (better, worse): the best and the worst, or every two that are rated differently."""
    if not answers:
        return
    if pairs == "best_worst":
        best = max(answers, key=lambda answer: answer.rating)
        worst = min(answers, key=lambda answer: answer.rating)
        if best.rating > worst.rating:
            yield best, worst
        return
    for one, other in combinations(answers, 2):
        if one.rating != other.rating:
            yield (one, other) if one.rating > other.rating else (other, one)


def _number(value: Any, place: str) -> float:
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        number = None
    if number is None or number - number != 0:
        raise DataError(f"{place}: a rating is {value!r}, expected a number")
    return number


def _several(value: Any) -> TypeGuard[list[Any]]:
    """Whether a cell holds several answers: texts, or conversations, rather than the messages of one."""
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(part, str) for part in value) or all(
        isinstance(part, list) and part and isinstance(part[0], Mapping) for part in value
    )
