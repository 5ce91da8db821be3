"""Blind A/B rating by people: a page of answer pairs in random order, its ratings as CSV, and what they say.

Which answer is whose stands in a key beside the page, never in it.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from alignkit import Estimate
from alignkit.errors import DataError
from alignkit.system.files import digest, write_json, write_text

from alignkit_eval.comparison.paired import effect, judge
from alignkit_eval.comparison.verdict import p_text
from alignkit_eval.statistics import clustered_proportion

PAGE, KEY, RATINGS = "rate.html", "rate.key.json", "ratings.csv"
CHOICES = ("a", "b", "tie", "skip")


@dataclass(frozen=True)
class Ratings:
    """What people preferred: ``win_rate`` of the second model over the first, ties counted half."""

    names: tuple[str, str]
    rated: int
    skipped: int
    identical: int
    """Prompts both gave the same answer to: nobody was asked about those."""
    wins: int
    losses: int
    ties: int
    win_rate: Estimate
    p: float | None
    """Of a cluster sign-flip test against a win rate of one half; None where there is one cluster."""

    def sentence(self) -> str:
        """Say it in words."""
        first, second = self.names
        interval = "" if self.win_rate.low is None else f" [{self.win_rate.low:.3f}, {self.win_rate.high:.3f}]"
        p = "" if self.p is None else f", p {p_text(self.p)}"
        same = f"; they gave the same answer to {self.identical} more prompts" if self.identical else ""
        return (
            f"{second} was preferred to {first} in {self.win_rate.value:.3f}{interval} of {self.rated} ratings, ties half"
            f" ({self.wins} wins, {self.ties} ties, {self.losses} losses, {self.skipped} skipped{p}){same}"
        )


class _Key(NamedTuple):
    """Which answer is whose: the models' names, the page's digest, and by pair its cluster and which model is A."""

    names: tuple[str, str]
    page: str
    identical: int
    pairs: Mapping[str, tuple[str, int]]


def write_rating_page(
    first: Sequence[Mapping[str, Any]],
    second: Sequence[Mapping[str, Any]],
    names: tuple[str, str],
    directory: Path,
    seed: int = 0,
) -> Path:
    """Write the page and its key and return the page's path.

    Args:
        first, second: items of the generate suite of two models: ``id``, ``cluster``, ``prompt``, ``answer``.
        names: what the models are called.
        directory: where the page goes.
        seed: of the order and the sides.

    Raises:
        DataError: the models answered no common prompt differently, or ``directory`` holds ratings of another page.
    """
    theirs = {item["id"]: item for item in second}
    both = [(item, theirs[item["id"]]) for item in first if item["id"] in theirs]
    if not both:
        raise DataError(f"{names[0]} and {names[1]} were asked no common prompt")
    differing = [(a, b) for a, b in both if a["answer"] != b["answer"]]
    if not differing:
        raise DataError(f"{names[0]} and {names[1]} gave the same answers to the {len(both)} prompts both were asked")
    draw = random.Random(seed)
    draw.shuffle(differing)
    key, shown = [], []
    for number, (one, other) in enumerate(differing, start=1):
        swapped = draw.random() < 0.5
        a, b = (other, one) if swapped else (one, other)
        key.append({"pair": number, "id": one["id"], "cluster": one["cluster"], "a": int(swapped)})
        shown.append({"pair": number, "prompt": one["prompt"], "a": a["answer"], "b": b["answer"]})
    page = digest(shown)[:16]
    _keep_ratings(directory, page)
    identical = len(both) - len(differing)
    write_json(directory / KEY, {"names": list(names), "page": page, "identical": identical, "pairs": key})
    write_text(directory / PAGE, _render(shown, page))
    return directory / PAGE


def rating_result(directory: Path, ratings: Path | None = None) -> Ratings:
    """Return what people preferred.

    Args:
        directory: where the page's key is.
        ratings: the CSV; default: ``ratings.csv`` in ``directory``.

    Raises:
        DataError: there is no key or no rating, or the CSV cannot be used (with file and line).
    """
    path = ratings or directory / RATINGS
    key = _read_key(directory / KEY)
    chosen = _read(path, key)
    rated = [pair for pair, choice in chosen.items() if choice != "skip"]
    if not rated:
        raise DataError(f"{path} holds no rating" + (" but skipped ones" if chosen else ""))
    credits = [_credit(chosen[pair], key.pairs[pair][1]) for pair in rated]
    clusters = [key.pairs[pair][0] for pair in rated]
    return Ratings(
        names=key.names,
        rated=len(credits),
        skipped=len(chosen) - len(rated),
        identical=key.identical,
        wins=credits.count(1.0),
        losses=credits.count(0.0),
        ties=credits.count(0.5),
        win_rate=clustered_proportion(credits, clusters),
        p=judge(effect([[credit - 0.5 for credit in credits]]), clusters).p,
    )


def _credit(choice: str, model_a: int) -> float:
    """Return what a choice gives the second model; ``model_a`` is 0 where A is the first model's answer, 1 the second's."""
    return 0.5 if choice == "tie" else float((choice == "a") == (model_a == 1))


def _keep_ratings(directory: Path, page: str) -> None:
    """Raise ``DataError`` where ratings of another page would lose their key."""
    if (directory / RATINGS).is_file() and (directory / KEY).is_file() and _read_key(directory / KEY).page != page:
        raise DataError(f"{directory} holds ratings of another page: write this one elsewhere with --output")


def _read_key(path: Path) -> _Key:
    if not path.is_file():
        raise DataError(f"{path.parent} holds no rating page: it has no {path.name}")
    try:
        key = json.loads(path.read_bytes())
        first, second = key["names"]
        pairs = {str(pair["pair"]): (str(pair["cluster"]), int(pair["a"])) for pair in key["pairs"]}
        return _Key((str(first), str(second)), str(key["page"]), int(key["identical"]), pairs)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no key of a rating page: {error}") from error


def _read(path: Path, key: _Key) -> dict[str, str]:
    """Return the choices by pair, empty ones left out; a pair rated twice keeps its last rating."""
    rows = _rows(path)
    _, header = next(rows, (1, []))
    if header[:2] != ["pair", "choice"]:
        raise DataError(f"{path}:1: the first line must be: pair,choice")
    found: dict[str, str] = {}
    for line, row in rows:
        pair, choice, page = (*row, "", "", "")[:3]
        if pair not in key.pairs:
            raise DataError(f"{path}:{line}: there is no pair {pair!r}")
        if choice and choice not in CHOICES:
            raise DataError(f"{path}:{line}: {choice!r} is none of {', '.join(CHOICES)}")
        if page and page != key.page:
            raise DataError(f"{path}:{line}: this rating was made in another page than the one its key is of")
        if choice:
            found[pair] = choice
    return found


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield line numbers and cells, in lower case and without spaces around them; empty lines are left out."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text: save it as CSV (UTF-8)") from error
    # Spreadsheets of much of the world write semicolons.
    first = text.partition("\n")[0]
    reader = csv.reader(text.replace("\r\n", "\n").split("\n"), delimiter=";" if ";" in first else ",")
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num, [cell.strip().lower() for cell in row]
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: {error}") from error


def _render(pairs: Sequence[Mapping[str, Any]], page: str) -> str:
    from alignkit_eval.report.render import render_template

    return render_template("rate.html.j2", "rate.js", pairs=pairs, page=page)
