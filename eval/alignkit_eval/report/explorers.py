"""Browsable sections of a report: answers side by side, and pairs on which two models disagree."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

from alignkit import SuiteResult
from alignkit.models.paths import is_classifier

from alignkit_eval.headline import number
from alignkit_eval.report.parts import AnswerDiff, Disagreement, Generation, Generations, Item, Items, Word
from alignkit_eval.report.texts import HeldOutTexts, PairTexts, ReportedModel

EXTREMES = 20
"""Best and worst answers on a page."""

MAX_ROWS = 200
"""Maximum answers, and maximum pairs of two models, on a page."""


def generation_cards(
    first: ReportedModel, others: Sequence[ReportedModel], texts: HeldOutTexts, note: str = ""
) -> Iterator[Generations]:
    """Yield the answers of the models to prompts the first and at least one other answered, as differences to the first."""
    base = first.answers()
    answers = [(other.name, other.answers()) for other in others]
    rows: list[Generation] = []
    for key, (prompt, answer) in base.by_id.items():
        found = [(name, theirs.to(key, prompt, base.content)) for name, theirs in answers]
        compared = [AnswerDiff(name, diff_words(answer, text)) for name, text in found if text is not None]
        if compared and len(rows) < MAX_ROWS:
            answers_to = [AnswerDiff(first.name, diff_words(answer, answer)), *compared]
            rows.append(Generation(key, prompt, answers_to, texts.right(key, prompt)))
    if rows:
        models = f": {first.name} and {others[0].name}" if len(others) == 1 else ""
        yield Generations(f"Answers{models}", f"Differences from {first.name} are marked. {note}".strip(), rows)


def best_and_worst(model: ReportedModel, texts: HeldOutTexts, weights: Mapping[str, float]) -> Iterator[Generations]:
    """Yield the answers of a model with the highest and the lowest rewards, where its answers were rewarded."""
    result = model.result("generate")
    if result is None:
        return
    named = {str(item["id"]): _rewards(item) for item in result.items}
    totals = {key: sum(weights.get(name, 1.0) * value for name, value in of.items()) for key, of in named.items()}
    rows = sorted((i for i in result.items if named[str(i["id"])]), key=lambda item: -totals[str(item["id"])])
    cards = []
    for item in rows:
        key, prompt, answer = (str(item[name]) for name in ("id", "prompt", "answer"))
        score = ", ".join(f"{name} {number(value)}" for name, value in named[key].items())
        cards.append(Generation(key, prompt, [AnswerDiff(model.name, diff_words(answer, answer))], score=score))
    few = min(EXTREMES, len(cards) // 2)
    total = "weighted sum of rewards" if any(len(found) > 1 for found in named.values()) else "reward"
    for title, found in (("Best", cards[:few]), ("Worst", cards[::-1][:few])):
        found = [card._replace(right=texts.right(card.id, card.prompt)) for card in found]
        if found:
            note = f"{len(found)} of {len(cards)} held-out prompts, ordered by the {total} of the answer."
            yield Generations(f"{title} answers of {model.name}", note, found)


def _rewards(item: Mapping[str, Any]) -> dict[str, float]:
    """Return the rewards of an answer, or its quality by the checker, as far as it was judged."""
    found = {key.removeprefix("reward/"): value for key, value in item.items() if key.startswith("reward/")}
    found = found or {"quality": item.get("quality")}
    return {key: float(value) for key, value in found.items() if value is not None}


def diff_words(before: str, after: str) -> list[Word]:
    """Return the pieces of both texts as ``same``, ``gone`` (only in ``before``) or ``new`` (only in ``after``).

    >>> diff_words("the cat sat", "the dog sat")
    [Word(change='same', text='the '), Word(change='gone', text='cat '), Word(change='new', text='dog '), Word(change='same', text='sat')]
    """
    a, b = (re.findall(r"\S+\s*|\s+", text) for text in (before, after))
    pieces: list[Word] = []
    for tag, i, j, k, m in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if tag == "equal":
            pieces.append(Word("same", "".join(a[i:j])))
        else:
            pieces += [Word("gone", "".join(a[i:j])), Word("new", "".join(b[k:m]))]
    return [piece for piece in pieces if piece.text]


def disagreements(
    first: ReportedModel, others: Sequence[ReportedModel], texts: HeldOutTexts, note: str = ""
) -> Iterator[Items]:
    """Yield the pairs that the first model ranks correctly and another does not, or vice versa."""
    before = first.result("prefs")
    if before is None:
        return
    results = [(other.name, other.result("prefs")) for other in others]
    differing = [(name, _differing(before, after)) for name, after in results if after is not None]
    if not any(pairs for _, pairs in differing):
        return
    by_id = texts.pairs(before.provenance.get("content"))
    groups = [
        Disagreement((first.name, name), [_item(*pair, by_id) for pair in pairs[:MAX_ROWS]], len(pairs))
        for name, pairs in differing
    ]
    names = others[0].name if len(others) == 1 else "the others"
    rewarded = any(m.run is not None and is_classifier(str(m.run / "model")) for m in (first, *others))
    unit = "reward" if rewarded else "nats"
    yield Items(f"Pairs on which {first.name} and {names} disagree", note, groups, unit)


def _differing(before: SuiteResult, after: SuiteResult) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Return the items with different credit, largest change of the margin first, non-finite ones last."""
    by_id = {item["id"]: item for item in after.items}
    pairs = [(item, by_id[item["id"]]) for item in before.items if item["id"] in by_id]
    differing = [(one, other) for one, other in pairs if one["credit_sum"] != other["credit_sum"]]

    def order(pair: tuple[Mapping[str, Any], Mapping[str, Any]]) -> float:
        change = _margin(pair[1]) - _margin(pair[0])
        return -abs(change) if math.isfinite(change) else math.inf

    return sorted(differing, key=order)


def _margin(item: Mapping[str, Any]) -> float:
    chosen, rejected = item["chosen_sum"], item["rejected_sum"]
    return math.nan if chosen is None or rejected is None else chosen - rejected


def _item(one: Mapping[str, Any], other: Mapping[str, Any], texts: Mapping[str, PairTexts]) -> Item:
    return Item(
        id=str(one["id"]),
        cluster=str(one["cluster"]),
        category=str(one.get("category", "")),
        before=_credit(one["credit_sum"]),
        after=_credit(other["credit_sum"]),
        margin_before=_margin(one),
        margin_after=_margin(other),
        texts=texts.get(str(one["id"])),
    )


def _credit(credit: float) -> str:
    return {1.0: "right", 0.5: "tie", 0.0: "wrong"}.get(credit, str(credit))
