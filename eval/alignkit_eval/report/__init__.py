"""Self-contained HTML reports of runs, comparisons, sweeps, pipelines and data checks: no network, all values escaped."""

from __future__ import annotations

from alignkit_eval.report.card import write_card
from alignkit_eval.report.curves import draw as draw_curves
from alignkit_eval.report.data_page import data_report
from alignkit_eval.report.pages import comparison_report, pipeline_report, run_report, sweep_report

__all__ = [
    "comparison_report",
    "data_report",
    "draw_curves",
    "pipeline_report",
    "run_report",
    "sweep_report",
    "write_card",
]
