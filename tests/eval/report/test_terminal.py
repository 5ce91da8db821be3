"""Tables of a comparison: the terminal and the page show the same texts."""

from __future__ import annotations

import html
import io
import re
from pathlib import Path

import pytest
from alignkit import Estimate
from alignkit_eval.comparison.result import Arm, Comparison, ContrastResult, Cost
from alignkit_eval.report import tables
from alignkit_eval.report.parts import Page, SortableTable, TableCell
from alignkit_eval.report.render import render
from alignkit_eval.report.terminal import terminal_table
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

numbers = st.floats(-1e7, 1e7)
p_values = st.none() | st.floats(0, 1)


def estimates() -> st.SearchStrategy[Estimate]:
    return st.builds(Estimate, numbers, st.just(None), st.just(None)) | st.builds(Estimate, numbers, numbers, numbers)


def arm(name: str, estimate: Estimate, cost: Cost) -> Arm:
    metrics = {"prefs": {"accuracy_sum": estimate}, "perplexity": {"perplexity": estimate}}
    return Arm(name, (Path(name),), (0, 1), {"method": "dpo"}, cost, metrics)


@st.composite
def comparisons(draw: st.DrawFn) -> Comparison:
    amount = st.none() | st.floats(0, 1e15)
    arms = tuple(
        arm(name, draw(estimates()), Cost(*(draw(amount) for _ in range(4)))) for name in ("base", "[bold]x[/]")
    )
    contrasts = tuple(
        ContrastResult(
            arm=arms[1].name,
            suite="prefs",
            metric=metric,
            diff=draw(numbers),
            low=draw(st.none() | numbers),
            high=draw(st.none() | numbers),
            p=0.5,
            p_holm=draw(p_values),
            n=draw(st.integers(1, 10_000)),
            clusters=7,
            seeds=2,
            detectable=draw(st.none() | numbers),
            higher_is_better=draw(st.booleans()),
            test="t",
        )
        for metric in ("accuracy_sum", "accuracy_mean")
    )
    return Comparison("base", arms, contrasts, "verdict", None)


def on_terminal(table: SortableTable, hidden: set[str], width: int = 250, *, stacked: bool = False) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None).print(terminal_table(table, hidden, stacked=stacked))
    return stream.getvalue()


@given(comparisons())
def test_the_terminal_and_the_page_show_the_same_texts(comparison: Comparison) -> None:
    for table, hidden in (
        (tables.arms(comparison), {"seeds"}),
        (tables.contrasts(comparison), {"items in clusters", "verdict"}),
        (tables.costs(comparison), set[str]()),
    ):
        page = html.unescape(render(Page("title", "", "verdict", [], [table])))
        shown = on_terminal(table, hidden)
        for text in (table.title, table.note):
            assert text in page
            assert text in " ".join(shown.split())
        head, rows = (part.rstrip().splitlines() for part in re.split(r" *─+ *\n", shown))
        for row, line in zip(table.rows, rows, strict=True):
            assert row[0].text in shown
            for name, cell in zip(table.columns[1:], row[1:], strict=True):
                assert cell.text in page
                assert (f" {cell.text} " in f" {line} ") or name in hidden
        assert not any(name in head[-1] for name in hidden)


def test_names_are_shown_once_and_intervals_below_their_values() -> None:
    rows = [
        (TableCell("a"), TableCell("first"), TableCell("0.500 [0.400, 0.600]", 0.5)),
        (TableCell("a"), TableCell("second"), TableCell("0.700", 0.7)),
        (TableCell("b"), TableCell("first"), TableCell("-")),
    ]
    table = SortableTable("t", ("arm", "metric", "value"), rows)
    assert [line.split() for line in on_terminal(table, set(), stacked=True).splitlines()[4:8]] == [
        ["a", "first", "0.500"],
        ["[0.400,", "0.600]"],
        ["second", "0.700"],
        ["b", "first", "-"],
    ]


@pytest.mark.parametrize(("columns", "long"), [(5, False), (6, True)])
def test_many_metrics_are_shown_one_to_a_row(columns: int, long: bool) -> None:
    names = [f"m{i}" for i in range(columns)]
    row = [TableCell("a"), *(TableCell(f"0.{i}00", i / 10) for i in range(columns - 1)), TableCell("-")]
    table = SortableTable("t", ("arm", *names), [row])
    lines = [line.split() for line in on_terminal(table, set()).splitlines()]
    assert (["arm", "metric", "value"] in lines) == long
    assert (["a", "m0", "0.000"] in lines) == long
    assert not any(names[-1] in line for line in lines) or not long, "what was not measured has no row"


def test_better_rows_are_green_and_worse_ones_red() -> None:
    rows = [(TableCell(str(better)), TableCell("1", 1.0, better)) for better in (True, False, None)]
    made = terminal_table(SortableTable("t", ("arm", "difference"), rows))
    assert [row.style for row in made.rows] == ["green", "red", None]
