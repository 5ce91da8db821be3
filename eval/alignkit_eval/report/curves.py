"""Training curves: plots/*.png drawn from metrics.jsonl."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.rundir.directory import RunDir
from alignkit.rundir.metrics import MetricsLog
from alignkit.system.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

Records = Sequence[Mapping[str, Any]]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""The palette of Okabe and Ito (2008), which people with any kind of colour vision can tell apart."""

DECADES = 3
"""A curve of positive values that spans more powers of ten than this has a logarithmic axis."""

_MARKED = 40
"""Up to this number of points, each point is marked."""

_RAISED = str.maketrans("-\u22120123456789", "\u207b\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")

_SMOOTHED = 80
"""Above this number of points, a running mean is drawn over the points."""


@dataclass(frozen=True)
class Plot:
    """One plot: the metrics it shows, in the order of the palette.

    ``curves`` maps a key of metrics.jsonl to its label in the legend; a key ending in ``/*`` stands for every key with
    that prefix.
    """

    name: str
    title: str
    unit: str
    curves: Mapping[str, str]
    limits: tuple[float | None, float | None] = (None, None)
    smooth: bool = True


PLOTS = (
    Plot("loss", "Loss and its terms", "loss", {"loss": "loss", "loss/*": ""}),
    Plot(
        "rewards",
        "Implicit rewards",
        "reward",
        {"rewards/chosen": "chosen", "rewards/rejected": "rejected", "rewards/margins": "margin"},
    ),
    Plot("reward", "Reward of sampled completions", "reward", {"reward": "total", "reward/*": ""}),
    Plot("kl", "KL divergence of sampled completions from the start model", "KL (nats)", {"kl": "KL"}),
    Plot("entropy", "Entropy of the sampling distribution", "nats per token", {"entropy": "entropy"}, (0.0, None)),
    Plot("accuracy", "Preference accuracy", "share of pairs", {"rewards/accuracies": "accuracy"}, (0.0, 1.0)),
    Plot(
        "logps",
        "Log-probability of completions",
        "log-probability (nats)",
        {"logps/chosen": "chosen", "logps/rejected": "rejected"},
    ),
    Plot(
        "evaluation",
        "Held-out preference accuracy during training",
        "share of pairs",
        {"prefs/accuracy_sum": "by sum", "prefs/accuracy_mean": "by mean"},
        (0.0, 1.0),
        smooth=False,
    ),
    Plot("log_odds", "Log odds ratio, chosen over rejected", "nats", {"log_odds_chosen": "log odds ratio"}),
    Plot(
        "learning_rate", "Learning rate", "learning rate", {"learning_rate": "learning rate"}, (0.0, None), smooth=False
    ),
    Plot("grad_norm", "Gradient norm before clipping", "L2 norm", {"grad_norm": "gradient norm"}, (0.0, None)),
)


def draw(run_directory: Path | str) -> list[Path]:
    """Draw every plot that metrics.jsonl has data for into ``plots/`` of the run directory and return the paths.

    Values on held-out data (``eval_KEY``) are dashed, in the colour of ``KEY``.
    """
    directory = Path(run_directory)
    paths = []
    for plot, figure in figures(directory):
        path = directory / "plots" / f"{plot.name}.png"
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=150)
        paths.append(path)
    return paths


def figures(run_directory: Path) -> Iterator[tuple[Plot, Figure]]:
    """Yield every plot that metrics.jsonl has data for, with its figure."""
    records, wanted = MetricsLog(run_directory / "metrics.jsonl").read(), log_axes(run_directory)
    for plot in PLOTS:
        if curves := _curves(plot, records):
            yield plot, _draw(plot, curves, log=plot.name in wanted)


def log_axes(run_directory: Path) -> set[str]:
    """Return the plots and swept settings for which the run's configuration asks for a logarithmic axis."""
    config = RunDir(run_directory).read_record().get("config") or {}
    return {*(config.get("run", {}).get("log_axes") or [])}


def scale_of(values: Iterable[float], *, asked: bool = False) -> dict[str, Any]:
    """Return the arguments of ``Axes.set_yscale``: logarithmic where asked, or for positive values over many powers of ten.

    With zeros or negative values, an axis that is asked for is linear around zero, below the smallest magnitude.

    >>> scale_of([1e-5, 2.0])["value"], scale_of([1.0, 5.0])["value"], scale_of([0.0, 1e5])["value"]
    ('log', 'linear', 'linear')
    >>> scale_of([0.0, 0.1, 10.0], asked=True)
    {'value': 'symlog', 'linthresh': 0.1}
    """
    found = [value for value in values if math.isfinite(value)]
    sizes = [abs(value) for value in found if value]
    positive = len(sizes) == len(found) and min(found, default=-1) > 0
    if sizes and positive and (asked or max(sizes) > min(sizes) * 10**DECADES):
        return {"value": "log"}
    return {"value": "symlog", "linthresh": min(sizes)} if asked and sizes else {"value": "linear"}


@dataclass(frozen=True)
class Curve:
    """Values of one metric over the optimizer steps, on training or held-out data."""

    label: str
    steps: list[float]
    values: list[float]
    colour: str
    held_out: bool


def _curves(plot: Plot, records: Records) -> list[Curve]:
    curves = []
    for i, (key, label) in enumerate(_expand(plot.curves, records).items()):
        colour = COLOURS[i % len(COLOURS)]
        for prefix, name, held_out in (("", label, False), ("eval_", f"{label}, held out", True)):
            points = [(r["step"], r[prefix + key]) for r in records if "step" in r and r.get(prefix + key) is not None]
            if points:
                curves.append(Curve(name, [s for s, _ in points], [v for _, v in points], colour, held_out))
    return curves


def _expand(wanted: Mapping[str, str], records: Records) -> dict[str, str]:
    """Replace ``loss/*`` by the keys that match it, labelled by their own names."""
    present = list(dict.fromkeys(key.removeprefix("eval_") for record in records for key in record))
    expanded: dict[str, str] = {}
    for key, label in wanted.items():
        if key.endswith("/*"):
            prefix = key.removesuffix("*")
            names = [name.removeprefix(prefix) for name in present if name.startswith(prefix)]
            expanded |= {prefix + name: name.replace("_", " ") for name in names}
        else:
            expanded[key] = label
    return expanded


def _draw(plot: Plot, curves: Sequence[Curve], *, log: bool = False) -> Figure:
    # The object-oriented interface, not pyplot: no global state, no display, safe beside a user's own figures.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for curve in curves:
        _draw_curve(axes, curve, smooth=plot.smooth)
    axes.set_title(plot.title, loc="left", fontsize=12)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(plot.unit)
    scale = scale_of([value for curve in curves for value in curve.values], asked=log)
    if scale["value"] == "linear" or plot.limits[1] is not None:  # a share of pairs
        axes.set_ylim(*plot.limits)
        axes.yaxis.set_major_formatter(plain_numbers())
    else:
        axes.set_yscale(**scale)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(visible=True, color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=9)
    return figure


def plain_numbers() -> ScalarFormatter:
    """Return a formatter of ticks whose common power of ten is written ×10⁻⁴, beyond a thousandth and a hundred thousand.

    All is plain text: matplotlib reads each tick of a formula with a parser, which takes longer than drawing the plot.
    """
    from matplotlib.ticker import ScalarFormatter

    class Plain(ScalarFormatter):
        def get_offset(self) -> str:
            return re.sub("(1?)e([-\u2212]?[0-9]+)", _power_of_ten, super().get_offset())

    formatter = Plain(useMathText=False)
    formatter.set_powerlimits((-3, 5))
    return formatter


def _power_of_ten(found: re.Match[str]) -> str:
    return "\u00d710" + found[2].translate(_RAISED)


def _draw_curve(axes: Axes, curve: Curve, *, smooth: bool) -> None:
    count = len(curve.steps)
    marker = "o" if count <= _MARKED or curve.held_out else None
    # Not clipped: a value on the border of the axes (an accuracy of 1) is drawn whole.
    style: dict[str, Any] = {"color": curve.colour, "linestyle": "--" if curve.held_out else "-", "clip_on": False}
    if curve.held_out:
        style["markerfacecolor"] = "white"
    if count <= _SMOOTHED or curve.held_out or not smooth:
        axes.plot(curve.steps, curve.values, label=curve.label, marker=marker, markersize=3.5, linewidth=1.6, **style)
        return
    reach = count // 40
    axes.plot(curve.steps, curve.values, alpha=0.25, linewidth=0.8, **style)
    steps, means = curve.steps[reach : count - reach], running_mean(curve.values, reach)
    axes.plot(steps, means, label=curve.label, linewidth=1.8, **style)


def running_mean(values: Sequence[float], reach: int) -> list[float]:
    """Return the mean of each value and its ``reach`` neighbours on both sides.

    The window is centred, so that a trend is not shifted along the steps. The first and last ``reach`` values are left
    out: a mean over fewer neighbours would be noisier than the rest of the line.

    >>> running_mean([1.0, 3.0, 8.0, 10.0], 1)
    [4.0, 7.0]
    """
    width = 2 * reach + 1
    return [sum(values[i : i + width]) / width for i in range(len(values) - width + 1)]
