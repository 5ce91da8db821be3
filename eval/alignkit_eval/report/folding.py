"""Which sections of a page are unfolded when it is opened, so that it is at most a few screens tall.

Heights are estimates in CSS pixels for a window 1,280 px wide, from the style sheet; a test measures whole pages in a browser.
"""

from __future__ import annotations

import math
import re

from alignkit_eval.report.parts import Figures, Generations, Items, Page, Section, SortableTable

TALLEST = 3300
"""Estimated height up to which sections are unfolded: real pages stay below 4,000 px."""

SENTENCES, NOTES = 8, 4
"""Sentences of a verdict, and notes, that are not folded."""

_HEADING, _FOLDED, _LINE, _ROW, _LETTERS = 75, 48, 24, 34, 130


def unfolded(page: Page) -> list[bool]:
    """Return for every section whether it is unfolded: the first one, and in their order all that fit below it."""
    texts = [page.subtitle, "".join(f"{section.title:<30}" for section in page.sections)]
    texts += [*sentences(page.verdict)[:SENTENCES], *page.notes[:NOTES]]
    height = 250.0 + _LINE * sum(1.2 * _lines(len(text)) for text in texts) + _FOLDED * len(page.sections)
    found: list[bool] = []
    for section in page.sections:
        own = _height(section)
        found.append(not found or height + own <= TALLEST)
        height += own * found[-1]
    return found


def sentences(text: str) -> list[str]:
    """Return the sentences of a verdict.

    >>> sentences("a is better than b (p 0.03). No arm is better than every other one.")
    ['a is better than b (p 0.03).', 'No arm is better than every other one.']
    """
    return re.split(r"(?<=\.)\s+", text)


def _lines(letters: int) -> int:
    return math.ceil(letters / _LETTERS)


def _height(section: Section) -> float:
    note = _LINE * _lines(len(getattr(section, "note", "")))
    if isinstance(section, SortableTable):
        wraps = [max((_lines(3 * len(cell.text)) for cell in row), default=1) for row in section.rows]
        return _HEADING + note + _ROW + sum(_ROW + _LINE * (lines - 1) for lines in wraps)
    if isinstance(section, Figures):
        columns = min(2, len(section.figures))
        ratios = [figure.ratio for figure in section.figures]
        rows = [max(ratios[i : i + columns]) for i in range(0, len(ratios), columns)]
        return _HEADING + sum(1120 / columns * ratio + 36 for ratio in rows)
    if isinstance(section, Generations):
        texts = [
            len(row.prompt) + len(row.right) + max(sum(len(w.text) for w in a.words) for a in row.answers)
            for row in section.rows
        ]
        return _HEADING + note + _ROW + sum(150 + _LINE * _lines(letters) for letters in texts)
    if isinstance(section, Items):
        lists = section.groups
        return _HEADING + note + _ROW + 40 * (len(lists[0].rows) if len(lists) == 1 else len(lists))
    return _HEADING + 40 * len(section.facts)
