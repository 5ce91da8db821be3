"""Blind A/B rating by people: a page of answer pairs in random order, its ratings as CSV, and what they say.

Which answer is whose stands in a key beside the page, never in it.
"""

from __future__ import annotations

import csv
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit import Estimate
from alignkit.errors import DataError
from alignkit.rundir import write_json, write_text

from alignkit_eval.paired import effect, judge
from alignkit_eval.statistics import clustered_proportion

PAGE, KEY, RATINGS = "rate.html", "rate.key.json", "ratings.csv"
CHOICES = ("left", "right", "tie", "skip")


@dataclass(frozen=True)
class Ratings:
    """What people preferred: ``win_rate`` of the second model over the first, ties counted half."""

    names: tuple[str, str]
    rated: int
    skipped: int
    wins: int
    losses: int
    ties: int
    win_rate: Estimate
    p: float | None
    """Of a cluster sign-flip test against a win rate of one half."""

    def sentence(self) -> str:
        """Say it in words."""
        first, second = self.names
        interval = "" if self.win_rate.low is None else f" [{self.win_rate.low:.3f}, {self.win_rate.high:.3f}]"
        p = "" if self.p is None else f", p {self.p:.3f}"
        return (
            f"{second} was preferred to {first} in {self.win_rate.value:.3f}{interval} of {self.rated} ratings, ties half"
            f" ({self.wins} wins, {self.ties} ties, {self.losses} losses, {self.skipped} skipped{p})"
        )


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
        DataError: the models answered no common prompt differently.
    """
    theirs = {item["id"]: item for item in second}
    both = [(item, theirs[item["id"]]) for item in first if item["id"] in theirs]
    differing = [(a, b) for a, b in both if a["answer"] != b["answer"]]
    if not differing:
        raise DataError(f"{names[0]} and {names[1]} gave the same answers to the {len(both)} prompts both were asked")
    draw = random.Random(seed)
    draw.shuffle(differing)
    key, shown = [], []
    for number, (a, b) in enumerate(differing, start=1):
        swapped = draw.random() < 0.5
        left, right = (b, a) if swapped else (a, b)
        key.append({"pair": number, "id": a["id"], "cluster": a["cluster"], "left": int(swapped)})
        shown.append({"pair": number, "prompt": a["prompt"], "left": left["answer"], "right": right["answer"]})
    write_json(directory / KEY, {"names": list(names), "pairs": key})
    write_text(directory / PAGE, _render(shown, _digest(shown)))
    return directory / PAGE


def rating_result(directory: Path, ratings: Path | None = None) -> Ratings:
    """Return what the ratings in ``ratings.csv`` say; raises ``DataError`` naming file and line where it cannot be read."""
    key_path = directory / KEY
    if not key_path.is_file():
        raise DataError(f"{directory} holds no rating page: it has no {KEY}")
    key = json.loads(key_path.read_bytes())
    pairs = {int(pair["pair"]): pair for pair in key["pairs"]}
    credits: list[float] = []
    clusters: list[str] = []
    skipped = 0
    for pair, choice in _read(ratings or directory / RATINGS, pairs):
        if choice == "skip":
            skipped += 1
            continue
        left_is = int(pairs[pair]["left"])  # 0: the first model stands on the left, 1: the second
        credits.append(0.5 if choice == "tie" else float((choice == "left") == (left_is == 1)))
        clusters.append(str(pairs[pair]["cluster"]))
    if not credits:
        raise DataError(f"{ratings or directory / RATINGS} holds no rating but skipped ones")
    test = judge(effect([[credit - 0.5 for credit in credits]]), clusters)
    return Ratings(
        names=(key["names"][0], key["names"][1]),
        rated=len(credits),
        skipped=skipped,
        wins=credits.count(1.0),
        losses=credits.count(0.0),
        ties=credits.count(0.5),
        win_rate=clustered_proportion(credits, clusters),
        p=test.p,
    )


def _read(path: Path, known: Mapping[int, Any]) -> list[tuple[int, str]]:
    """Return pair numbers and choices; a pair rated twice keeps its last rating."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    rows = list(csv.reader(text.splitlines()))
    if not rows or [cell.strip().lower() for cell in rows[0][:2]] != ["pair", "choice"]:
        raise DataError(f"{path}:1: the first line must be: pair,choice")
    found: dict[int, str] = {}
    for line, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        number, choice = (row[0].strip(), row[1].strip().lower()) if len(row) > 1 else (row[0].strip(), "")
        if not number.isdigit() or int(number) not in known:
            raise DataError(f"{path}:{line}: there is no pair {number!r}")
        if choice and choice not in CHOICES:
            raise DataError(f"{path}:{line}: {choice!r} is none of {', '.join(CHOICES)}")
        if choice:
            found[int(number)] = choice
    return list(found.items())


def _digest(pairs: Sequence[Mapping[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:16]


def _render(pairs: Sequence[Mapping[str, Any]], fingerprint: str) -> str:
    from alignkit_eval.report.render import render_template

    return render_template("rate.html.j2", "rate.js", pairs=pairs, fingerprint=fingerprint)
