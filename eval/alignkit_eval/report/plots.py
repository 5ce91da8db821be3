"""Plots of a sweep: metrics against the swept setting, log-probabilities during training, accuracy against perplexity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit import Estimate
from alignkit.display.headline import TITLES
from alignkit.display.plots import COLOURS
from alignkit.rundir.metrics import MetricsLog
from alignkit.system.files import atomic_path

from alignkit_eval.comparison.result import Arm, Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")


def draw(directory: Path, comparison: Comparison) -> list[Path]:
    """Write every plot that the comparison has data for to ``plots/`` of the sweep; return their paths."""
    pictures: dict[str, Figure] = {}
    for (suite, metric), title in TITLES.items():
        if all(metric in arm.metrics.get(suite, {}) for arm in comparison.arms):
            pictures[metric] = against_setting(comparison.arms, suite, metric, title)
    pictures["logps"] = during_training(comparison.arms)
    frontier = accuracy_and_perplexity(comparison.arms)
    if frontier is not None:
        pictures["frontier"] = frontier
    return [path for name, figure in pictures.items() for path in _save(figure, directory / "plots" / name)]


def against_setting(arms: Sequence[Arm], suite: str, metric: str, title: str) -> Figure:
    """Return a metric with 95 % intervals, against the swept number if there is exactly one, else by arm."""
    figure, axes = _figure()
    key = numeric_key(arms)
    estimates = [arm.metrics[suite][metric] for arm in arms]
    series = _series(arms, key)
    ticks = sorted({_number(arm, key) for arm in arms if key in arm.settings}) if key else []
    # Swept values are rarely evenly spaced (0, .1, 1), so they are plotted at equal distances.
    place: Callable[[int], float] = (
        (lambda i: float(ticks.index(_number(arms[i], key))) if key in arms[i].settings else len(ticks))
        if key
        else float
    )
    for colour, (label, members) in zip(_colours(len(series)), series.items(), strict=True):
        xs = [place(i) for i in members]
        ys = [estimates[i].value for i in members]
        axes.errorbar(
            xs,
            ys,
            yerr=_bars([estimates[i] for i in members]),
            label=label,
            color=colour,
            marker="o",
            markersize=5,
            capsize=3,
            linewidth=1.6 if key and len(members) > 1 else 0,
            elinewidth=1.2,
        )
    if key:
        rest = [arm.name for arm in arms if key not in arm.settings]
        axes.set_xticks(range(len(ticks) + bool(rest)), [f"{tick:g}" for tick in ticks] + (["none"] if rest else []))
        axes.set_xlabel(key)
    else:
        axes.set_xticks(range(len(arms)), [arm.name for arm in arms], rotation=20, ha="right")
    _finish(axes, f"{title}, with 95 % intervals", title)
    if key and len(series) > 1:
        axes.legend(frameon=False, fontsize=9)
    return figure


def during_training(arms: Sequence[Arm]) -> Figure:
    """Return the log-probability per token of chosen and rejected completions during training, averaged over seeds."""
    figure, axes = _figure(wide=True)
    for colour, arm in zip(_colours(len(arms)), arms, strict=True):
        for key, style in (("logps/chosen", "-"), ("logps/rejected", "--")):
            steps, values = _curve(arm, key)
            if steps:
                label = arm.name if style == "-" else None
                axes.plot(steps, values, color=colour, linestyle=style, linewidth=1.5, label=label)
    _finish(axes, "Training batches: chosen solid, rejected dashed", "log-probability per token (nats)")
    axes.set_xlabel("optimizer step")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def accuracy_and_perplexity(arms: Sequence[Arm]) -> Figure | None:
    """Return accuracy against perplexity (up and left is better); None if an arm lacks one of them."""
    points = []
    for arm in arms:
        accuracy = arm.metrics.get("prefs", {}).get("accuracy_sum")
        perplexity = arm.metrics.get("perplexity", {}).get("perplexity")
        if accuracy is None or perplexity is None:
            return None
        points.append((arm, perplexity, accuracy))
    figure, axes = _figure(wide=True)
    for colour, (arm, x, y) in zip(_colours(len(arms)), points, strict=True):
        axes.errorbar(
            [x.value], [y.value], xerr=_bars([x]), yerr=_bars([y]), label=arm.name, color=colour, marker="o", capsize=2
        )
    _finish(axes, "Preference accuracy against perplexity", TITLES["prefs", "accuracy_sum"])
    axes.set_xlabel(TITLES["perplexity", "perplexity"])
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def numeric_key(arms: Sequence[Arm]) -> str | None:
    """Return the only swept setting with several numbers; None if there is none or more than one."""
    keys = {key for arm in arms for key, value in arm.settings.items() if _is_number(value)}
    several = [key for key in keys if len({arm.settings[key] for arm in arms if key in arm.settings}) > 1]
    return several[0] if len(several) == 1 else None


def _series(arms: Sequence[Arm], key: str | None) -> dict[str, list[int]]:
    """Return the arms of each line: those that differ only in ``key``."""
    series: dict[str, list[int]] = {}
    for i, arm in enumerate(arms):
        rest = {name: value for name, value in arm.settings.items() if name != key}
        label = " ".join([str(rest.pop("method", "")), *(f"{name}={value}" for name, value in rest.items())]).strip()
        series.setdefault(label or arm.name, []).append(i)
    for members in series.values():
        if key:
            members.sort(key=lambda i: _number(arms[i], key) if key in arms[i].settings else 0.0)
    return series


def _curve(arm: Arm, key: str) -> tuple[list[int], list[float]]:
    by_step: dict[int, list[float]] = {}
    for run in arm.runs:
        for record in MetricsLog(run / "metrics.jsonl").read():
            if record.get(key) is not None:
                by_step.setdefault(int(record["step"]), []).append(float(record[key]))
    whole = {step: values for step, values in by_step.items() if len(values) == len(arm.runs)}
    return list(whole), [sum(values) / len(values) for values in whole.values()]


def _bars(estimates: Sequence[Estimate]) -> list[list[float]]:
    below = [0.0 if e.low is None else e.value - e.low for e in estimates]
    above = [0.0 if e.high is None else e.high - e.value for e in estimates]
    return [below, above]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(arm: Arm, key: str | None) -> float:
    settings: Mapping[str, Any] = arm.settings
    return float(settings[key or ""])


def _colours(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def _figure(*, wide: bool = False) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5 if wide else 6.5, 4), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _finish(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, loc="left", fontsize=12)
    axes.set_ylabel(unit)
    axes.grid(visible=True, color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path) -> list[Path]:
    paths = []
    for kind in FORMATS:
        target = path.with_name(f"{path.name}.{kind}")
        with atomic_path(target) as temporary:
            figure.savefig(temporary, format=kind, dpi=150)
        paths.append(target)
    return paths
