"""The tables and the page of a leaderboard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from alignkit_eval.headline import TITLES, with_interval
from alignkit_eval.leaderboard.board import COSTS, Board, Entry, Leaderboard
from alignkit_eval.report.parts import Figures, Page, Section, SortableTable, TableCell, amount_cell
from alignkit_eval.report.plots import embed
from alignkit_eval.report.render import write_page


def board_table(board: Board) -> SortableTable:
    """Return the arms of a board."""
    title = TITLES.get((board.suite, board.metric), board.metric)
    columns = ("arm", "seeds", title, "group", *COSTS.values())
    rows = [
        [
            TableCell(entry.name),
            TableCell(", ".join(map(str, entry.seeds)), float(len(entry.seeds))),
            TableCell(with_interval(entry.value), entry.value.value),
            TableCell(entry.letters),
            *(_cost_cell(entry, cost) for cost in COSTS),
        ]
        for entry in board.entries
    ]
    note = (
        f"{board.items:,} items in {board.clusters:,} clusters of suite {board.suite}; "
        f"{'higher' if board.higher_is_better else 'lower'} is better. Arms that share a letter cannot be told apart (paired, Holm over "
        "all pairs). A star: no other arm is as good and as cheap by this cost. Costs are those of training, means over seeds, "
        "with the runs that trained the start model."
    )
    return SortableTable(f"Also: {board.reason}" if board.reason else f"By {title}", columns, rows, note)


def _cost_cell(entry: Entry, cost: str) -> TableCell:
    cell = amount_cell(entry.cost[cost])
    return cell._replace(text=f"{cell.text} *") if cost in entry.front else cell


def apart_table(found: Leaderboard) -> SortableTable:
    """Return the runs that are on no board, and why."""
    rows = [[TableCell(str(apart.path)), TableCell(apart.reason)] for apart in found.apart]
    return SortableTable("Not ranked", ("run", "reason"), rows)


def sentence(found: Leaderboard) -> str:
    """Return which arm is best on the first board, and from how many others it cannot be told apart."""
    board = found.boards[0]
    sign = -1.0 if board.higher_is_better else 1.0
    best = min(board.entries, key=lambda entry: sign * entry.value.value)
    alike = [entry for entry in board.entries if entry is not best and _letters(entry) & _letters(best)]
    title = TITLES.get((board.suite, board.metric), board.metric)
    text = f"{best.name} has the best {title} of {len(board.entries)} arms ({with_interval(best.value)})"
    if len(board.entries) == 1:
        return f"{best.name} is the only arm ({title} {with_interval(best.value)})."
    if not alike:
        return f"{text}; it differs significantly from every other one."
    return f"{text}; {len(alike)} other{'s' * (len(alike) > 1)} cannot be told apart from it."


def _letters(entry: Entry) -> set[str]:
    """Return the letters of an arm; groups have names of several letters where there are more than 26."""
    return set(entry.letters.split()) if " " in entry.letters else set(entry.letters)


def write_leaderboard(found: Leaderboard, path: Path) -> Path:
    """Write the leaderboard as one page and return its path."""
    sections: list[Section] = [*(board_table(board) for board in found.boards), *_figures(found)]
    if found.apart:
        sections.append(apart_table(found))
    arms = sum(len(board.entries) for board in found.boards)
    notes = (
        ["The best of many arms looks better than it is: compare it on items that did not choose it."]
        if arms > 2
        else []
    )
    page = Page(f"Leaderboard of {found.directory.resolve().name}", f"{arms} arms", sentence(found), notes, sections)
    return write_page(path, page)


def _figures(found: Leaderboard) -> Iterator[Figures]:
    """Yield quality against each cost on the first board, with the front as a line."""
    from matplotlib.figure import Figure

    board = found.boards[0]
    title = TITLES.get((board.suite, board.metric), board.metric)
    drawn = []
    for cost, name in COSTS.items():
        points = [(price, e.value.value, e) for e in board.entries if (price := e.cost[cost]) is not None]
        if len(points) < 2:
            continue
        figure = Figure(figsize=(5.5, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.scatter([x for x, _, _ in points], [y for _, y, _ in points], color="#888888")
        front = sorted((x, y) for x, y, e in points if cost in e.front)
        axes.plot(*zip(*front, strict=True), marker="o", color="#1f6f8b")
        axes.set_xlabel(name)
        axes.set_ylabel(title)
        on = "; ".join(e.name for _, _, e in points if cost in e.front)
        drawn.append(embed(f"{title} against {name}, with the front: {on}", figure))
    if drawn:
        yield Figures("Quality against cost", drawn)
