"""The table of a race: who left when, why, and what was saved."""

from __future__ import annotations

from alignkit_eval.comparison.looks import Departure, Look, Race
from alignkit_eval.comparison.verdict import p_text
from alignkit_eval.headline import TITLES, signed
from alignkit_eval.report.parts import SortableTable, TableCell, amount_cell

_TITLES = {metric: title for (_, metric), title in TITLES.items()}


def race_table(race: Race) -> SortableTable:
    """Return a row for each arm that was stopped and each deciding metric."""
    columns = (
        *("arm", "stopped at", "worse than", "metric", "difference", "95 % interval"),
        *("p", "level", "tokens saved", "CPU s saved"),
    )
    rows = []
    for look, gone in race.departures:
        saved = [None, None] if gone.arm in race.revived else [gone.saved_tokens, gone.saved_cpu_seconds]
        for number, fall in enumerate(gone.shortfalls):
            interval = "-" if fall.low is None or fall.high is None else f"{signed(fall.low)} .. {signed(fall.high)}"
            rows.append(
                [
                    TableCell(gone.arm),
                    TableCell(f"{look.rung:.0%}", look.rung),
                    TableCell(gone.than),
                    TableCell(_TITLES.get(fall.metric, fall.metric)),
                    TableCell(signed(fall.diff), fall.diff),
                    TableCell(interval, fall.low),
                    TableCell(p_text(gone.p), gone.p),
                    TableCell(f"{look.level:.4f}", look.level),
                    *(amount_cell(None if number else amount) for amount in saved),
                ]
            )
    spent = ", ".join(f"{look.level:.4f} at {look.rung:.0%}" for look in race.looks)
    note = (
        f"Arms stopped at planned looks. An arm that is at no look truly worse than another is stopped with probability at most "
        f"{race.alpha:g}, spent as {spent or 'planned'}; p is corrected for arms and opponents and compared with the level; intervals are "
        "not corrected. What was saved is an estimate from the arm's training so far."
    )
    return SortableTable("Race", columns, rows, note)


def race_sentence(race: Race) -> str:
    """Return the result of a race in one sentence."""
    if not race.stopped:
        return f"No arm of {len(race.arms)} was stopped in {len(race.looks)} looks."
    tokens, share, cpu = race.saved()
    saved = "" if tokens is None else f", which saved about {tokens:,.0f} training tokens"
    saved += "" if not saved or share is None else f" ({share:.0%} of the whole grid's)"
    saved += "" if not saved or cpu is None else f" and {cpu:,.0f} CPU seconds of training"
    revived = f" ({len(race.revived)} revived)" if race.revived else ""
    return f"{len(race.stopped)} of {len(race.arms)} arms were stopped early{revived}{saved}."


def departure_line(look: Look, gone: Departure) -> str:
    """Return why an arm was stopped, in one line."""
    falls = []
    for fall in gone.shortfalls:
        interval = "" if fall.low is None or fall.high is None else f" [{signed(fall.low)}, {signed(fall.high)}]"
        falls.append(f"{_TITLES.get(fall.metric, fall.metric)} {signed(fall.diff)}{interval}")
    p = f"p {p_text(gone.p)}, level {look.level:.3f}"
    return f"{gone.arm} is stopped: worse than {gone.than} ({'; '.join(falls)}; {p})"
