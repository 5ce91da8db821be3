"""Blind A/B rating by humans: a page of answer pairs in random order, ratings as CSV, and the win rate.

Which model gave which answer is stored in a separate key file, not in the page.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from alignkit import Estimate, text_digest
from alignkit.errors import DataError
from alignkit.system.files import digest, write_json, write_text

from alignkit_eval.comparison.paired import judge
from alignkit_eval.comparison.verdict import p_text
from alignkit_eval.headline import with_interval
from alignkit_eval.report.render import render_template
from alignkit_eval.statistics import clustered_proportion, effect

PAGE, KEY, RATINGS = "rate.html", "rate.key.json", "ratings.csv"
CHOICES = ("a", "b", "tie", "skip")


@dataclass(frozen=True)
class Ratings:
    """The result of a rating: ``win_rate`` of the second model over the first, ties counting one half."""

    names: tuple[str, str]
    rated: int
    skipped: int
    identical: int
    """Number of prompts with the same answer from both models, which are not rated."""
    wins: int
    losses: int
    ties: int
    win_rate: Estimate
    p: float | None
    """p-value of a cluster sign-flip test against a win rate of 0.5; None with a single cluster."""

    def sentence(self) -> str:
        """Return the result as a sentence."""
        first, second = self.names
        p = "" if self.p is None else f", p {p_text(self.p)}"
        same = f"; both gave the same answer to {self.identical} more prompts" if self.identical else ""
        return (
            f"win rate of {second} over {first}: {with_interval(self.win_rate)} in {self.rated} ratings"
            f" ({self.wins} wins, {self.ties} ties counting one half, {self.losses} losses, {self.skipped} skipped{p}){same}"
        )


class _Pair(NamedTuple):
    """A pair of a page: its prompt's id and cluster, the index of model A, and a hash of both answers ("": not known)."""

    id: str
    cluster: str
    a: int
    texts: str


class _Key(NamedTuple):
    """The key of a page: the models' names, the page's hash, and the pairs by their numbers."""

    names: tuple[str, str]
    page: str
    identical: int
    pairs: Mapping[str, _Pair]


class RatedItem(NamedTuple):
    """The second model's credit on a prompt (1, 0, a tie 0.5), and a hash of the first and the second answer ("": not known)."""

    credit: float
    texts: str


def write_rating_page(
    first: Sequence[Mapping[str, Any]],
    second: Sequence[Mapping[str, Any]],
    names: tuple[str, str],
    directory: Path,
    seed: int = 0,
) -> Path:
    """Write the rating page and its key, and return the page's path.

    Args:
        first, second: items of the generate suite of two models: ``id``, ``cluster``, ``prompt``, ``answer``.
        seed: seed of the order of pairs and the sides of answers.

    Raises:
        DataError: no common prompt has different answers, or ``directory`` has ratings of another page.
    """
    by_id = {item["id"]: item for item in second}
    common = [(item, by_id[item["id"]]) for item in first if item["id"] in by_id]
    if not common:
        raise DataError(f"{names[0]} and {names[1]} have no common prompt")
    differing = [(a, b) for a, b in common if a["answer"] != b["answer"]]
    if not differing:
        raise DataError(f"{names[0]} and {names[1]} gave the same answers to all {len(common)} common prompts")
    rng = random.Random(seed)
    rng.shuffle(differing)
    key, shown = [], []
    for number, (one, other) in enumerate(differing, start=1):
        swapped = rng.random() < 0.5  # whether the second model's answer is A
        a, b = (other, one) if swapped else (one, other)
        texts = text_digest(one["answer"], other["answer"])
        key.append({"pair": number, "id": one["id"], "cluster": one["cluster"], "a": int(swapped), "texts": texts})
        shown.append({"pair": number, "prompt": one["prompt"], "a": a["answer"], "b": b["answer"]})
    page = digest(shown)[:16]
    path = directory / KEY
    if (directory / RATINGS).is_file() and path.is_file() and _read_key(path).page != page:
        raise DataError(f"{directory} has ratings of another page: choose another directory with --output")
    identical = len(common) - len(differing)
    write_json(path, {"names": list(names), "page": page, "identical": identical, "pairs": key})
    write_text(directory / PAGE, render_template("rate.html.j2", "rate.js", pairs=shown, page=page))
    return directory / PAGE


def rating_result(directory: Path, ratings: Path | None = None) -> Ratings:
    """Return the result of a rating.

    Args:
        directory: directory of the page's key.
        ratings: the CSV file (default: ``ratings.csv`` in ``directory``).

    Raises:
        DataError: there is no key or no rating, or the CSV is invalid (with file and line).
    """
    path = ratings or directory / RATINGS
    key = _read_key(directory / KEY)
    choices = _read(path, key)
    rated = [pair for pair, choice in choices.items() if choice != "skip"]
    if not rated:
        raise DataError(f"{path} has no ratings" + (" (only skipped pairs)" if choices else ""))
    credits = [_credit(choices[pair], key.pairs[pair].a) for pair in rated]
    clusters = [key.pairs[pair].cluster for pair in rated]
    return Ratings(
        names=key.names,
        rated=len(credits),
        skipped=len(choices) - len(rated),
        identical=key.identical,
        wins=credits.count(1.0),
        losses=credits.count(0.0),
        ties=credits.count(0.5),
        win_rate=clustered_proportion(credits, clusters),
        p=judge(effect([[credit - 0.5 for credit in credits]]), clusters).p,
    )


def rated_items(ratings: Path) -> tuple[tuple[str, str], dict[str, RatedItem]]:
    """Return the names of the two models of a rating page, and the rated prompts by id; raises as :func:`rating_result`."""
    key = _read_key(ratings.parent / KEY)
    found = {
        key.pairs[pair].id: RatedItem(_credit(choice, key.pairs[pair].a), key.pairs[pair].texts)
        for pair, choice in _read(ratings, key).items()
        if choice != "skip"
    }
    return key.names, found


def _credit(choice: str, model_a: int) -> float:
    """Return the second model's credit for a choice: 1, 0 or 0.5; ``model_a``: the index of the model whose answer is A."""
    return 0.5 if choice == "tie" else float((choice == "a") == (model_a == 1))


def _read_key(path: Path) -> _Key:
    if not path.is_file():
        raise DataError(f"{path.parent} has no rating page: {path.name} is missing")
    try:
        key = json.loads(path.read_bytes())
        first, second = key["names"]
        pairs = {
            str(pair["pair"]): _Pair(str(pair["id"]), str(pair["cluster"]), int(pair["a"]), str(pair.get("texts", "")))
            for pair in key["pairs"]
        }
        return _Key((str(first), str(second)), str(key["page"]), int(key["identical"]), pairs)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a valid key of a rating page: {error}") from error


def _read(path: Path, key: _Key) -> dict[str, str]:
    """Return pair -> choice, without empty choices; the last rating of a pair counts."""
    rows = _rows(path)
    _, header = next(rows, (1, []))
    if header[:2] != ["pair", "choice"]:
        raise DataError(f"{path}:1: the first line must be: pair,choice")
    found: dict[str, str] = {}
    for line, row in rows:
        pair, choice, page = (*row, "", "", "")[:3]
        if pair not in key.pairs:
            raise DataError(f"{path}:{line}: unknown pair {pair!r}")
        if choice and choice not in CHOICES:
            raise DataError(f"{path}:{line}: {choice!r} is not one of {', '.join(CHOICES)}")
        if page and page != key.page:
            raise DataError(f"{path}:{line}: this rating belongs to another page than the key")
        if choice:
            found[pair] = choice
    return found


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and cells of every line that is not empty, stripped and in lower case."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: save it as CSV (UTF-8)") from error
    # In many locales spreadsheets separate cells by semicolons.
    first = text.partition("\n")[0]
    reader = csv.reader(text.replace("\r\n", "\n").split("\n"), delimiter=";" if ";" in first else ",")
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num, [cell.strip().lower() for cell in row]
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: {error}") from error
