"""Runs, comparisons, sweeps and evaluations as HTML in a notebook: a heading, a table or two, plots; every text is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

from alignkit import Run

from alignkit_eval.comparison.result import Comparison
from alignkit_eval.evaluation.evaluate import Evaluation
from alignkit_eval.headline import Metrics, headline, with_interval
from alignkit_eval.report.parts import Figures, SortableTable, TableCell

_STYLE = "border-collapse:collapse;margin:.5em 0;font-variant-numeric:tabular-nums"
_FIGURE = "max-width:100%;background:#fff;border-radius:4px;margin:4px 8px 4px 0"


def shown(result: Run | Comparison | Evaluation) -> str:
    """Return a result as HTML, for its ``_repr_html_``."""
    if isinstance(result, Comparison):
        return comparison_html(result)
    return evaluation_html(result) if isinstance(result, Evaluation) else run_html(result)


def run_html(run: Run) -> str:
    """Return a run as HTML: what it is, its main metrics before and after training, and its curves."""
    from alignkit_eval.report.plots import training_curves
    from alignkit_eval.report.tables import before_and_after

    record = run.record
    told = [record.get("method", "run"), record.get("status", "not begun")]
    told += [f"{record['steps']:,} steps"] if record.get("steps") else []
    found = record.get("evaluation", {})
    table = before_and_after(record)
    main = replace(table, rows=table.rows[: len(headline(found.get("before", {}), found.get("after", {})))])
    parts = [_table(main)] if main.rows else []
    return _block(
        str(run.directory),
        ", ".join(map(str, told)),
        [*parts, *(_figures(figures, 440) for figures in training_curves(run.directory))],
    )


def comparison_html(comparison: Comparison) -> str:
    """Return a comparison as HTML: the verdict, the differences and their forest plot."""
    from alignkit_eval.report.forest import forest
    from alignkit_eval.report.tables import arms, contrasts

    parts = [
        *(_figures(figures, 720) for figures in forest(comparison)),
        _table(contrasts(comparison)),
        _table(arms(comparison)),
    ]
    notes = "".join(f"<li>{escape(note)}</li>" for note in comparison.notes)
    return _block("Comparison", comparison.verdict, [*parts, f"<ul>{notes}</ul>" if notes else ""])


def sweep_html(directory: Path, cells: Sequence[Any], comparison: Comparison | None) -> str:
    """Return a sweep as HTML: its cells, and their comparison."""
    settings = list(dict.fromkeys(name for cell in cells for name in cell.settings))
    texts = [
        [cell.name, *(cell.settings.get(name, "-") for name in settings), cell.seed, cell.status, cell.error or ""]
        for cell in cells
    ]
    rows = [[TableCell(str(text)) for text in row] for row in texts]
    table = SortableTable("Cells", ("cell", *settings, "seed", "status", "error"), rows)
    parts = [_table(table)] + ([comparison_html(comparison)] if comparison is not None else [])
    return _block(str(directory), f"sweep of {len(cells)} cells", parts)


def evaluation_html(evaluation: Evaluation) -> str:
    """Return an evaluation as HTML: the metrics of every suite with their intervals."""
    found: Metrics = {name: result.metrics for name, result in evaluation.results.items()}
    rows = [
        [TableCell(line.title), TableCell(with_interval(line.after)), TableCell(line.suite)]
        for line in headline({}, found)
    ]
    notes = [f"<div>{escape(line)}</div>" for line in [*evaluation.lines(), *evaluation.skipped]]
    table = SortableTable("Metrics", ("metric", "value", "suite"), rows, "With 95 % intervals.")
    return _block(evaluation.target, "evaluation", [_table(table), *notes])


def _block(title: str, words: str, parts: Iterable[str]) -> str:
    return f"<div><strong>{escape(title)}</strong>: {escape(words)}{''.join(parts)}</div>"


def _table(table: SortableTable) -> str:
    head = "".join(_cell("th", name, text) for name, text in zip(table.columns, table.is_text, strict=True))
    body = "".join(_row(row, table.is_text) for row in table.rows)
    note = f"<div style='opacity:.75;font-size:90%'>{escape(table.note)}</div>" if table.note else ""
    return f"<table style='{_STYLE}'><caption style='text-align:left'>{escape(table.title)}</caption><tr>{head}</tr>{body}</table>{note}"


def _row(row: Sequence[TableCell], texts: Sequence[bool]) -> str:
    cells = (_cell("td", cell.text, text) for cell, text in zip(row, texts, strict=True))
    return f"<tr>{''.join(cells)}</tr>"


def _cell(tag: str, text: Any, is_text: bool) -> str:
    return f"<{tag} style='text-align:{'left' if is_text else 'right'};padding:2px 8px'>{escape(str(text))}</{tag}>"


def _figures(figures: Figures, width: int) -> str:
    style = f"width:{width}px;{_FIGURE}"
    shown = (f"<img src='{one.source}' alt='{escape(one.alt)}' style='{style}'>" for one in figures.figures)
    return f"<div>{''.join(shown)}</div>"
