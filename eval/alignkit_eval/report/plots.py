"""Plots of reports: training curves, metrics against the swept setting, and accuracy against perplexity."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from alignkit import Estimate
from alignkit.rundir.metrics import MetricsLog
from alignkit.system.files import atomic_path

from alignkit_eval.comparison.result import Arm, Comparison
from alignkit_eval.headline import TITLES, with_interval
from alignkit_eval.report.curves import COLOURS, figures, log_axes, scale_of
from alignkit_eval.report.parts import EmbeddedFigure, Figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class ComparisonPlot(NamedTuple):
    """A plot with its file name and its alternative text."""

    name: str
    alt: str
    figure: Figure


def draw(directory: Path, comparison: Comparison) -> None:
    """Write every plot that the comparison has data for to ``plots/`` of the sweep."""
    for plot in _plots(comparison):
        for kind in ("png", "svg"):
            with atomic_path(directory / "plots" / f"{plot.name}.{kind}") as temporary:
                plot.figure.savefig(temporary, format=kind, dpi=150)


def training_curves(run: Path) -> Iterator[Figures]:
    """Yield the plots of a run's metrics.jsonl."""
    drawn = [embed(f"{plot.title} during training, in {plot.unit}", figure) for plot, figure in figures(run)]
    if drawn:
        yield Figures("Training", drawn)


def comparison_figures(comparison: Comparison) -> Iterator[Figures]:
    """Yield plots of each metric by arm, accuracy against perplexity, and log-probabilities, as far as there is data."""
    import matplotlib as mpl

    # A dollar sign in an arm's name is not the beginning of a formula.
    with mpl.rc_context({"text.parse_math": False}):
        drawn = [embed(plot.alt, plot.figure) for plot in _plots(comparison)]
    if drawn:
        yield Figures("Plots", drawn)


def embed(alt: str, figure: Figure) -> EmbeddedFigure:
    """Embed a figure as SVG in a ``data:`` URL, which can neither run scripts nor clash with ids of the page."""
    import matplotlib as mpl

    stream = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "alignkit"}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    wide, high = figure.get_size_inches()
    source = "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode()
    return EmbeddedFigure(alt, source, float(high / wide))


def _plots(comparison: Comparison) -> Iterator[ComparisonPlot]:
    arms = comparison.arms
    for (suite, metric), title in TITLES.items():
        if all(metric in arm.metrics.get(suite, {}) for arm in arms):
            values = "; ".join(f"{arm.name}: {with_interval(arm.metrics[suite][metric])}" for arm in arms)
            alt = f"{title} by arm, with 95 % intervals. {values}"
            yield ComparisonPlot(metric, alt, _against_setting(arms, suite, metric, title))
    if all(
        "accuracy_sum" in a.metrics.get("prefs", {}) and "perplexity" in a.metrics.get("perplexity", {}) for a in arms
    ):
        alt = "Accuracy against perplexity of each arm, with the values of the table of arms"
        yield ComparisonPlot("frontier", alt, _accuracy_and_perplexity(arms))
    if any((run / "metrics.jsonl").is_file() for arm in arms for run in arm.runs):
        alt = "Log-probability per token of chosen and rejected completions during training, by arm"
        yield ComparisonPlot("logps", alt, _during_training(arms))


def _against_setting(arms: Sequence[Arm], suite: str, metric: str, title: str) -> Figure:
    """Return a metric with 95 % intervals, against the swept number if there is exactly one, else by arm."""
    figure, axes = _figure()
    key = _numeric_key(arms)
    xs, labels = axis_positions(arms, key)
    series = _series(arms, key)
    for (label, members), colour in zip(series.items(), cycle(COLOURS), strict=False):
        members.sort(key=lambda i: xs[i])
        estimates = [arms[i].metrics[suite][metric] for i in members]
        axes.errorbar(
            [xs[i] for i in members],
            [estimate.value for estimate in estimates],
            yerr=_bars(estimates),
            label=label,
            color=colour,
            marker="o",
            markersize=5,
            capsize=3,
            linewidth=1.6 if key and len(members) > 1 else 0,
            elinewidth=1.2,
        )
    _scale(axes.set_yscale, [e.value for arm in arms for e in [arm.metrics[suite][metric]]], arms, metric)
    if key:
        axes.set_xlabel(key)
        if "none" not in labels.values():
            _scale(axes.set_xscale, xs, arms, key)
        else:
            axes.set_xticks([*labels], [*labels.values()])
    else:
        axes.set_xticks([*labels], [*labels.values()], rotation=20, ha="right")
    _finish(axes, f"{title}, with 95 % intervals", title)
    if key and len(series) > 1:
        axes.legend(frameon=False, fontsize=9)
    return figure


def _during_training(arms: Sequence[Arm]) -> Figure:
    """Return the log-probability per token of chosen and rejected completions during training, averaged over seeds."""
    figure, axes = _figure(wide=True)
    for arm, colour in zip(arms, cycle(COLOURS), strict=False):
        for key, style, label in (("logps/chosen", "-", arm.name), ("logps/rejected", "--", None)):
            if curve := _curve(arm, key):
                axes.plot(list(curve), list(curve.values()), color=colour, linestyle=style, linewidth=1.5, label=label)
    _finish(axes, "Training batches: chosen solid, rejected dashed", "log-probability per token (nats)")
    axes.set_xlabel("optimizer step")
    if axes.get_legend_handles_labels()[0]:
        _legend_beside(axes)
    return figure


def _accuracy_and_perplexity(arms: Sequence[Arm]) -> Figure:
    """Return accuracy against perplexity: up and left is better."""
    figure, axes = _figure(wide=True)
    for arm, colour in zip(arms, cycle(COLOURS), strict=False):
        x, y = arm.metrics["perplexity"]["perplexity"], arm.metrics["prefs"]["accuracy_sum"]
        axes.errorbar(
            [x.value], [y.value], xerr=_bars([x]), yerr=_bars([y]), label=arm.name, color=colour, marker="o", capsize=2
        )
    _scale(axes.set_xscale, [arm.metrics["perplexity"]["perplexity"].value for arm in arms], arms, "perplexity")
    _finish(axes, "Preference accuracy against perplexity", TITLES["prefs", "accuracy_sum"])
    axes.set_xlabel(TITLES["perplexity", "perplexity"])
    _legend_beside(axes)
    return figure


def _scale(set_scale: Callable[..., None], values: Sequence[float], arms: Sequence[Arm], name: str) -> None:
    """Make an axis logarithmic where its values span many powers of ten, or the first arm's configuration asks for it."""
    # A swept setting is asked for by its key or the last part of it: method.lambda, lambda.
    wanted = {word for run in arms[0].runs for word in log_axes(run)}
    if (scale := scale_of(values, asked=name in wanted or name.rpartition(".")[2] in wanted))["value"] != "linear":
        set_scale(**scale)


def _numeric_key(arms: Sequence[Arm]) -> str | None:
    """Return the only swept setting with several numbers; None if there is none or more than one."""
    keys = {key for arm in arms for key, value in arm.settings.items() if _is_number(value)}
    numbers = {key: {arm.settings[key] for arm in arms if _is_number(arm.settings.get(key))} for key in keys}
    several = [key for key in keys if len(numbers[key]) > 1]
    return several[0] if len(several) == 1 else None


def axis_positions(arms: Sequence[Arm], key: str | None) -> tuple[list[float], dict[float, str]]:
    """Return the position of each arm on the x axis, the swept number itself, and the label of each position."""
    if key is None:
        return [float(i) for i in range(len(arms))], {float(i): arm.name for i, arm in enumerate(arms)}
    values = [float(arm.settings[key]) if _is_number(arm.settings.get(key)) else None for arm in arms]
    ticks = sorted({value for value in values if value is not None})
    beyond = ticks[-1] + 0.15 * (ticks[-1] - ticks[0])  # an arm without a number
    labels = {tick: f"{tick:g}" for tick in ticks} | ({beyond: "none"} if None in values else {})
    return [beyond if value is None else value for value in values], labels


def _series(arms: Sequence[Arm], key: str | None) -> dict[str, list[int]]:
    """Return the arms of each line: those that differ only in ``key``."""
    series: dict[str, list[int]] = {}
    for i, arm in enumerate(arms):
        rest = {name: value for name, value in arm.settings.items() if name != key}
        label = " ".join([str(rest.pop("method", "")), *(f"{name}={value}" for name, value in rest.items())]).strip()
        series.setdefault(label or arm.name, []).append(i)
    return series


def _curve(arm: Arm, key: str) -> dict[int, float]:
    """Return the mean over the arm's runs of a metric by step, for the steps that all runs logged."""
    by_step: dict[int, list[float]] = {}
    for run in arm.runs:
        for record in MetricsLog(run / "metrics.jsonl").read():
            if record.get(key) is not None:
                by_step.setdefault(int(record["step"]), []).append(float(record[key]))
    return {step: sum(values) / len(values) for step, values in by_step.items() if len(values) == len(arm.runs)}


def _bars(estimates: Sequence[Estimate]) -> list[list[float]]:
    below = [0.0 if e.low is None else e.value - e.low for e in estimates]
    above = [0.0 if e.high is None else e.high - e.value for e in estimates]
    return [below, above]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _figure(*, wide: bool = False) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5 if wide else 6.5, 4), layout="constrained")
    return figure, figure.add_subplot()


def _finish(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, loc="left", fontsize=12)
    axes.set_ylabel(unit)
    axes.grid(visible=True, color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend_beside(axes: Axes) -> None:
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
