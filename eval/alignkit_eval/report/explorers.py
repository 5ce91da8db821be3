"""What a reader looks through: answers side by side, and the pairs on which two models disagree."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from alignkit import SuiteResult
from alignkit.rundir.evaluations import read_evaluation

from alignkit_eval.report.diff import diff_words
from alignkit_eval.report.parts import AnswerDiff, Disagreement, Generation, Generations, Item, Items
from alignkit_eval.report.texts import PairTexts, Said, held_out_pairs

MOST = 200
"""Answers, and pairs of two models, a page shows at most: beyond that nobody reads on, and the page grows."""


class Scored(NamedTuple):
    """A model under its name, where its evaluations are, and the run that knows its held-out rows (None: none does)."""

    name: str
    evaluations: Path
    run: Path | None


def generation_cards(
    first: tuple[str, Said], others: Sequence[tuple[str, Said]], note: str = ""
) -> Iterator[Generations]:
    """Yield what several models said to the prompts the first one and any other were asked, each against the first."""
    name, said = first
    rows: list[Generation] = []
    for key, (prompt, answer) in said.answers.items():
        found = [(other, there.to(key, prompt, said.content)) for other, there in others]
        theirs = [AnswerDiff(other, diff_words(answer, text)) for other, text in found if text is not None]
        if theirs and len(rows) < MOST:
            rows.append(Generation(key, prompt, [AnswerDiff(name, diff_words(answer, answer)), *theirs]))
    if rows:
        named = f": {name} and {others[0][0]}" if len(others) == 1 else ""
        yield Generations(f"Answers{named}", f"Marked is what differs from {name}. {note}".strip(), rows)


def disagreements(first: Scored, others: Sequence[Scored], note: str = "") -> Iterator[Items]:
    """Yield the pairs that the first model ranks right and another wrong, or the other way about."""
    before = _preferences(first)
    if before is None:
        return
    groups = []
    texts: Mapping[str, PairTexts] | None = None
    for other in others:
        after = _preferences(other)
        if after is None:
            continue
        moved = _moved(before, after)
        if moved and texts is None:  # read once, and only where there is something to show
            run = next((model.run for model in (first, *others) if model.run is not None), None)
            texts = {} if run is None else held_out_pairs(run, before.provenance.get("content"))
        rows = [_item(mine, theirs, (texts or {}).get(str(mine["id"]))) for mine, theirs in moved[:MOST]]
        groups.append(Disagreement((first.name, other.name), rows, len(moved)))
    if any(group.total for group in groups):
        yield Items(f"Pairs on which {first.name} and {_named(others)} disagree", note, groups)


def _named(others: Sequence[Scored]) -> str:
    return others[0].name if len(others) == 1 else "the others"


def _preferences(model: Scored) -> SuiteResult | None:
    if not (model.evaluations / "prefs.json").is_file():
        return None
    return read_evaluation(model.evaluations, "prefs")


def _moved(before: SuiteResult, after: SuiteResult) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Return the items with another credit, those whose margin moved farthest first."""
    theirs = {item["id"]: item for item in after.items}
    pairs = [(item, theirs[item["id"]]) for item in before.items if item["id"] in theirs]
    odd = [(mine, other) for mine, other in pairs if mine["credit_sum"] != other["credit_sum"]]
    return sorted(odd, key=lambda pair: _distance(_margin(pair[0]), _margin(pair[1])))


def _distance(before: float, after: float) -> float:
    """Sort key: far before near, and what is no number last."""
    return -abs(after - before) if math.isfinite(after - before) else math.inf


def _margin(item: Mapping[str, Any]) -> float:
    chosen, rejected = item["chosen_sum"], item["rejected_sum"]
    return math.nan if chosen is None or rejected is None else chosen - rejected


def _item(mine: Mapping[str, Any], theirs: Mapping[str, Any], texts: PairTexts | None) -> Item:
    return Item(
        id=str(mine["id"]),
        cluster=str(mine["cluster"]),
        category=str(mine.get("category", "")),
        before=_credit(mine["credit_sum"]),
        after=_credit(theirs["credit_sum"]),
        margin_before=_margin(mine),
        margin_after=_margin(theirs),
        texts=texts,
    )


def _credit(credit: float) -> str:
    return {1.0: "right", 0.5: "tie", 0.0: "wrong"}.get(credit, str(credit))
