"""Browsable sections of a report: answers side by side, and pairs on which two models disagree."""

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
"""Maximum answers, and maximum pairs of two models, on a page."""


class Scored(NamedTuple):
    """A model's name, the directory of its evaluations, and the run with its held-out rows (None: unknown)."""

    name: str
    evaluations: Path
    run: Path | None


def generation_cards(
    first: tuple[str, Said], others: Sequence[tuple[str, Said]], note: str = ""
) -> Iterator[Generations]:
    """Yield the answers of the models to prompts the first and at least one other answered, as differences to the first."""
    name, base = first
    rows: list[Generation] = []
    for key, (prompt, answer) in base.answers.items():
        found = [(other, answers.to(key, prompt, base.content)) for other, answers in others]
        compared = [AnswerDiff(other, diff_words(answer, text)) for other, text in found if text is not None]
        if compared and len(rows) < MOST:
            rows.append(Generation(key, prompt, [AnswerDiff(name, diff_words(answer, answer)), *compared]))
    if rows:
        models = f": {name} and {others[0][0]}" if len(others) == 1 else ""
        yield Generations(f"Answers{models}", f"Differences from {name} are marked. {note}".strip(), rows)


def disagreements(first: Scored, others: Sequence[Scored], note: str = "") -> Iterator[Items]:
    """Yield the pairs that the first model ranks correctly and another does not, or vice versa."""
    before = _preferences(first)
    if before is None:
        return
    groups = []
    texts: Mapping[str, PairTexts] | None = None
    for other in others:
        after = _preferences(other)
        if after is None:
            continue
        differing = _differing(before, after)
        if differing and texts is None:  # read once, and only if needed
            run = next((model.run for model in (first, *others) if model.run is not None), None)
            texts = {} if run is None else held_out_pairs(run, before.provenance.get("content"))
        rows = [_item(one, another, (texts or {}).get(str(one["id"]))) for one, another in differing[:MOST]]
        groups.append(Disagreement((first.name, other.name), rows, len(differing)))
    if any(group.total for group in groups):
        names = others[0].name if len(others) == 1 else "the others"
        yield Items(f"Pairs on which {first.name} and {names} disagree", note, groups)


def _preferences(model: Scored) -> SuiteResult | None:
    if not (model.evaluations / "prefs.json").is_file():
        return None
    return read_evaluation(model.evaluations, "prefs")


def _differing(before: SuiteResult, after: SuiteResult) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Return the items with different credit, largest change of the margin first."""
    by_id = {item["id"]: item for item in after.items}
    pairs = [(item, by_id[item["id"]]) for item in before.items if item["id"] in by_id]
    differing = [(one, other) for one, other in pairs if one["credit_sum"] != other["credit_sum"]]
    return sorted(differing, key=lambda pair: _rank(_margin(pair[1]) - _margin(pair[0])))


def _rank(change: float) -> float:
    """Return a sort key: large changes first, non-finite ones last."""
    return -abs(change) if math.isfinite(change) else math.inf


def _margin(item: Mapping[str, Any]) -> float:
    chosen, rejected = item["chosen_sum"], item["rejected_sum"]
    return math.nan if chosen is None or rejected is None else chosen - rejected


def _item(one: Mapping[str, Any], other: Mapping[str, Any], texts: PairTexts | None) -> Item:
    return Item(
        id=str(one["id"]),
        cluster=str(one["cluster"]),
        category=str(one.get("category", "")),
        before=_credit(one["credit_sum"]),
        after=_credit(other["credit_sum"]),
        margin_before=_margin(one),
        margin_after=_margin(other),
        texts=texts,
    )


def _credit(credit: float) -> str:
    return {1.0: "right", 0.5: "tie", 0.0: "wrong"}.get(credit, str(credit))
