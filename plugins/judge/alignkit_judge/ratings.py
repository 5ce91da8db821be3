"""Human ratings of a target's answers, from the rating page of ``align eval --rate``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from alignkit import Target, text_digest
from alignkit.errors import ConfigError, DataError
from alignkit.system.files import digest
from alignkit_eval.rating import rated_items

from alignkit_judge.settings import JudgeSuiteSettings


class Human(NamedTuple):
    """The target's credit by people, for each item (None: not rated)."""

    credits: Sequence[float | None] = ()
    digest: str = ""
    """Of all ratings; empty where none are named."""
    sentence: str = ""


def rated(settings: JudgeSuiteSettings, target: Target, items: Sequence[Mapping[str, Any]]) -> Human:
    """Return the human ratings of the items.

    Raises:
        ConfigError: the ratings are of other models or other answers, or there are no items among them.
        DataError: they cannot be read.
    """
    if settings.ratings is None:
        return Human()
    path = Path(settings.ratings).expanduser()
    try:
        names, found = rated_items(path)
    except DataError as error:
        raise DataError(f"judge.ratings: {error}") from error
    at = _position(path, names, target.name, settings.baseline)
    seen = digest([names, found])
    if not items:
        return Human(digest=seen)
    credits: list[float | None] = []
    for item in items:
        one = found.get(item["id"])
        pair = (item["answer"], item["baseline"]) if at == 0 else (item["baseline"], item["answer"])
        if one is not None and one.texts and one.texts != text_digest(*pair):
            raise ConfigError(
                f"eval.settings.judge.ratings: {path} rates other answers to {item['id']} than these: compare the same models "
                "with the same max_new_tokens"
            )
        credits.append(None if one is None else one.credit if at == 1 else 1 - one.credit)
    known = [i for i, credit in enumerate(credits) if credit is not None]
    if not known:
        raise ConfigError(f"eval.settings.judge.ratings: {path} rates none of the {len(items)} prompts judged")
    decided = [i for i in known if credits[i] != 0.5]
    agree = sum(items[i]["win"] == credits[i] for i in decided)
    of = f"; the judge agrees with {agree} of the {len(decided)} that name a winner" if decided else ""
    return Human(credits, seen, f"{len(known)} of {len(items)} items are rated by people{of}")


def _position(path: Path, names: tuple[str, str], target: str, baseline: str) -> int:
    """Return which of the rated models the target is."""
    other = Path(baseline).name
    at = next((i for i in (0, 1) if _same(names[i], target) and _same(names[1 - i], other)), None)
    if at is None:
        raise ConfigError(
            f"eval.settings.judge.ratings: {path} rates {names[0]} and {names[1]}, not {target} against {baseline}"
        )
    return at


def _same(name: str, other: str) -> bool:
    return name.rpartition("/")[2] == other.rpartition("/")[2]
