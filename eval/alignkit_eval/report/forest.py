"""Forest plots: the paired differences of arms from the baseline, with their intervals and margins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from alignkit_eval.comparison.result import Comparison, ContrastResult
from alignkit_eval.headline import TITLES, signed
from alignkit_eval.report.curves import COLOURS
from alignkit_eval.report.parts import Figures
from alignkit_eval.report.plots import embed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_METHOD, _MODELS = COLOURS[0], COLOURS[1]


def forest(comparison: Comparison) -> Iterator[Figures]:
    """Yield the plot of the paired differences: of the objective and the guards, or of all metrics where there are none."""
    import matplotlib as mpl

    if not (shown := _shown(comparison)):
        return
    # A dollar sign in an arm's name is not the beginning of a formula.
    with mpl.rc_context({"text.parse_math": False}):
        figure = embed(description(comparison), _figure(comparison, shown))
    yield Figures(f"Paired differences from {comparison.baseline}", [figure])


def description(comparison: Comparison) -> str:
    """Return the numbers of the plot as text."""
    alt = "; ".join(_described(c) for c in _shown(comparison))
    return f"Differences from {comparison.baseline}, with 95 % intervals. {alt}"


def picture(comparison: Comparison, *, dark: bool = False) -> str:
    """Return the plot as an SVG file of its own, for a light or a dark page."""
    import io

    import matplotlib as mpl

    ink = "#e6edf3" if dark else "#1f2328"
    keys = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    style: Any = dict.fromkeys(keys, ink) | {
        "svg.fonttype": "none",
        "svg.hashsalt": "alignkit",
        "text.parse_math": False,
    }
    stream = io.StringIO()
    with mpl.rc_context(style):
        figure = _figure(comparison, _shown(comparison))
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def _shown(comparison: Comparison) -> list[ContrastResult]:
    ruled = [c for c in comparison.contrasts if c.deciding or c.guard]
    return sorted(ruled, key=lambda c: not c.deciding) or list(comparison.contrasts)


def _described(c: ContrastResult) -> str:
    ends = "" if c.low is None or c.high is None else f" [{signed(c.low)}, {signed(c.high)}]"
    return f"{c.arm}, {_title(c)}: {signed(c.diff)}{ends}, {c.outcome}"


def _title(c: ContrastResult) -> str:
    return TITLES.get((c.suite, c.metric), c.metric)


def _figure(comparison: Comparison, shown: Sequence[ContrastResult]) -> Figure:
    """Return a panel for each metric, with a row for each arm."""
    from matplotlib.figure import Figure

    panels: dict[tuple[str, str], list[ContrastResult]] = {}
    for c in shown:
        panels.setdefault((c.suite, c.metric), []).append(c)
    rows = max(map(len, panels.values()))
    wide = min(3, len(panels))
    deep = -(-len(panels) // wide)
    figure = Figure(figsize=(3.2 * wide + 1.5, deep * (1.3 + 0.32 * rows)), layout="constrained")
    every = figure.subplots(deep, wide, squeeze=False).ravel()
    for axes in every[len(panels) :]:
        axes.set_visible(False)
    for i, (axes, contrasts) in enumerate(zip(every, panels.values(), strict=False)):
        _panel(axes, comparison, contrasts, named=i % wide == 0)
    handles, labels = every[0].get_legend_handles_labels()
    by_label = dict(zip(labels, handles, strict=True))
    figure.legend(by_label.values(), by_label.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _panel(axes: Axes, comparison: Comparison, contrasts: Sequence[ContrastResult], *, named: bool) -> None:
    first = contrasts[0]
    for y, c in enumerate(contrasts):
        # With several seeds: about the method, and below it about the trained models alone; with one, about these.
        for answer, offset in ((c, -0.14 if c.models else 0.0), (c.models, 0.14)):
            if answer is None:
                continue
            of_method = c.models is not None and answer is c
            low, high = (answer.diff if end is None else end for end in (answer.low, answer.high))
            axes.errorbar(
                [answer.diff],
                [y + offset],
                xerr=[[max(0.0, answer.diff - low)], [max(0.0, high - answer.diff)]],
                fmt="o" if of_method else "s",
                markersize=5,
                capsize=3,
                color=_METHOD if of_method else _MODELS,
                label="the method (seeds and items as samples)" if of_method else "these trained models (seeds fixed)",
            )
    axes.axvline(0, color="#777777", linewidth=1)
    if first.margin is not None:
        axes.axvspan(*_margin(comparison, first), color="#009E73", alpha=0.15, label="within the margin")
    role = "objective" if first.deciding else "guard" if first.guard else ""
    better = "higher" if first.higher_is_better else "lower"
    axes.set_title(f"{_title(first)}{f' ({role})' if role else ''}", loc="left", fontsize=10)
    axes.set_xlabel(f"difference, {better} is better", fontsize=9)
    axes.set_yticks(range(len(contrasts)), [c.arm for c in contrasts] if named else [])
    axes.set_ylim(len(contrasts) - 0.5, -0.5)
    axes.tick_params(labelsize=9)
    axes.locator_params(axis="x", nbins=5)
    axes.grid(visible=True, axis="x", color="#888888", alpha=0.3, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _margin(comparison: Comparison, c: ContrastResult) -> tuple[float, float]:
    """Return the differences that count as none, in the metric's unit."""
    margin = c.margin or 0.0
    if not c.log:
        return -margin, margin
    level = comparison.arm(comparison.baseline).metrics[c.suite][c.metric].value
    return level / (1 + margin) - level, level * margin
