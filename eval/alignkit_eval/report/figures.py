"""Figures of a report, as SVG embedded in the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from alignkit.display.headline import TITLES, with_interval

from alignkit_eval.comparison.result import Comparison
from alignkit_eval.report.parts import Figure, Figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


def training_curves(run: Path) -> Iterator[Figures]:
    """Yield the plots of a run's metrics.jsonl."""
    from alignkit.display.plots import figures

    drawn = [picture(f"{plot.title} during training, in {plot.unit}", figure) for plot, figure in figures(run)]
    if drawn:
        yield Figures("Training", drawn)


def comparison_pictures(comparison: Comparison) -> Iterator[Figures]:
    """Yield plots of each metric by arm, accuracy against perplexity, and log-probabilities, as far as there is data."""
    import matplotlib as mpl

    # A dollar sign in an arm's name is not the beginning of a formula.
    with mpl.rc_context({"text.parse_math": False}):
        drawn = list(_drawn(comparison))
    if drawn:
        yield Figures("Plots", drawn)


def _drawn(comparison: Comparison) -> Iterator[Figure]:
    from alignkit_eval.report.plots import accuracy_and_perplexity, against_setting, during_training

    arms = comparison.arms
    for (suite, metric), title in TITLES.items():
        if all(metric in arm.metrics.get(suite, {}) for arm in arms):
            values = "; ".join(f"{arm.name}: {with_interval(arm.metrics[suite][metric])}" for arm in arms)
            yield picture(f"{title} by arm, with 95 % intervals. {values}", against_setting(arms, suite, metric, title))
    frontier = accuracy_and_perplexity(arms)
    if frontier is not None:
        yield picture("Accuracy against perplexity of each arm, with the values of the table of arms", frontier)
    if any((run / "metrics.jsonl").is_file() for arm in arms for run in arm.runs):
        alt = "Log-probability per token of chosen and rejected completions during training, by arm"
        yield picture(alt, during_training(arms))


def picture(alt: str, drawing: Drawing) -> Figure:
    """Return a drawing as a figure: SVG in a ``data:`` URL, which can neither run scripts nor clash with ids of the page."""
    import matplotlib as mpl

    stream = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "alignkit"}):
        drawing.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return Figure(alt, "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode())
