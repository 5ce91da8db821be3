"""The pages of an atlas: the map of pairs with all numbers (HTML), and the index of papers (Markdown)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from alignkit import Estimate
from alignkit.settings.yaml_files import write

from alignkit_eval.atlas.cosines import Cosines
from alignkit_eval.atlas.objectives import Objective
from alignkit_eval.comparison.result import Comparison
from alignkit_eval.headline import with_interval
from alignkit_eval.report import tables
from alignkit_eval.report.parts import EmbeddedFigure, Fact, Facts, Figures, Page, Section, SortableTable, TableCell
from alignkit_eval.report.plots import embed
from alignkit_eval.report.render import write_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = (
    ("prefs", "accuracy_sum", "accuracy (sum)"),
    ("prefs", "accuracy_mean", "accuracy (mean)"),
    ("perplexity", "perplexity", "perplexity"),
    ("kl", "kl", "KL per token"),
    ("generate", "quality", "quality"),
)
"""Metrics of the table and the index, where they were measured."""

Outcomes = Mapping[tuple[str, str], str]

_LEVELS = {"worse": 0, "undecided": 1, "equivalent": 2, "better": 3}
_COLOURS = ("#D55E00", "#EEEEEE", "#A9B4C0", "#0072B2")
_SIGNS = ("\N{MINUS SIGN}", "", "=", "+")


def verdict(outcomes: Outcomes, models: Outcomes, margin: float) -> str:
    """Return what the atlas shows of the objectives, and of the trained models with their seeds fixed."""
    return (
        f"Of {len(outcomes):,} pairs of objectives, {_counted(outcomes, margin)} in accuracy by sum and by mean. "
        f"As to the models that were trained here, their seeds fixed, {_counted(models, margin)}. "
        "Tests are corrected over all pairs."
    )


def _counted(outcomes: Outcomes, margin: float) -> str:
    counts = Counter(outcomes.values())
    return (
        f"{counts['better'] + counts['worse']:,} differ significantly, {counts['equivalent']:,} are equivalent within "
        f"{margin:g}, and {counts['undecided']:,} are undecided"
    )


def write_atlas_page(
    path: Path,
    objectives: Sequence[Objective],
    comparison: Comparison,
    outcomes: tuple[Outcomes, Outcomes],
    cosines: Cosines,
    margin: float,
) -> Path:
    """Write the atlas as one page and return its path; ``outcomes`` are those of the objectives and of the trained models."""
    names = [objective.name for objective in objectives]
    sections: list[Section] = [
        _table(objectives, comparison),
        Figures("Which objective is better", [_map(names, outcomes[0], margin)]),
        Figures("Which of the trained models are better, their seeds fixed", [_map(names, outcomes[1], margin)]),
        Figures(f"Cosine of the gradients at the start model, {cosines.rows} pairs", [_cosines(names, cosines)]),
        tables.costs(comparison),
        Facts("Papers and settings", [_fact(objective) for objective in objectives]),
    ]
    seeds = max(len(arm.seeds) for arm in comparison.arms)
    title = f"{len(objectives)} objectives, {seeds} seed{'s' if seeds > 1 else ''}"
    return write_page(path, Page("Atlas of objectives", title, verdict(*outcomes, margin), comparison.notes, sections))


def index(objectives: Sequence[Objective], comparison: Comparison) -> str:
    """Return the index of papers as Markdown: claim, equation, setting, and results of each objective."""
    lines = ["# Papers", ""]
    for objective in objectives:
        lines += [f"## {objective.name}", "", f"{objective.claim}", "", f"{_link(objective)}", ""]
        lines += ["```yaml", write({"method": dict(objective.method)}).strip(), "```", ""]
        lines += ["| metric | after training |", "|---|---|"]
        lines += [f"| {title} | {with_interval(value)} |" for title, value in _results(comparison, objective.name)]
        lines.append("")
    return "\n".join(lines)


def _link(objective: Objective) -> str:
    return objective.paper + (f", equation {objective.equation}" if objective.equation else "")


def _results(comparison: Comparison, name: str) -> list[tuple[str, Estimate]]:
    metrics = comparison.arm(name).metrics
    return [(title, metrics[suite][key]) for suite, key, title in COLUMNS if key in metrics.get(suite, {})]


def _table(objectives: Sequence[Objective], comparison: Comparison) -> SortableTable:
    titles = list(dict.fromkeys(title for o in objectives for title, _ in _results(comparison, o.name)))
    rows = []
    for objective in objectives:
        found = dict(_results(comparison, objective.name))
        cells = [TableCell(with_interval(found.get(t)), found[t].value if t in found else None) for t in titles]
        rows.append((TableCell(objective.name), *cells, TableCell(comparison.letters.get(objective.name, ""))))
    note = "Means over seeds with 95 % intervals; objectives that share a letter cannot be told apart by the deciding metrics."
    return SortableTable("Objectives", ("objective", *titles, "letters"), rows, note)


def _map(names: Sequence[str], outcomes: Outcomes, margin: float) -> EmbeddedFigure:
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    opposite = {"better": "worse", "worse": "better"}
    values = np.full((len(names), len(names)), np.nan)
    for (arm, base), outcome in outcomes.items():
        i, j = names.index(arm), names.index(base)
        values[i, j], values[j, i] = _LEVELS[outcome], _LEVELS[opposite.get(outcome, outcome)]
    figure, axes = _grid(names)
    axes.imshow(values, cmap=ListedColormap(_COLOURS), vmin=-0.5, vmax=3.5)
    for (i, j), level in np.ndenumerate(values):
        if not np.isnan(level):
            axes.text(j, i, _SIGNS[int(level)], ha="center", va="center", fontsize=8)
    words = {level: word for word, level in _LEVELS.items()} | {2: f"equivalent within {margin:g}"}
    patches = [Patch(color=colour, label=f"{words[k]} {_SIGNS[k]}") for k, colour in enumerate(_COLOURS)]
    figure.legend(
        handles=patches, title="the row's objective is", loc="outside lower center", ncols=4, frameon=False, fontsize=8
    )
    counts = Counter(outcomes.values())
    return embed(f"Map of all pairs: {', '.join(f'{count} {word}' for word, count in counts.items())}", figure)


def _cosines(names: Sequence[str], cosines: Cosines) -> EmbeddedFigure:
    figure, axes = _grid(names)
    image = axes.imshow(cosines.values, cmap="RdBu", vmin=-1, vmax=1)
    figure.colorbar(image, shrink=0.6).ax.tick_params(labelsize=8)
    return embed("Cosine between the gradients of any two objectives", figure)


def _grid(names: Sequence[str]) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    size = max(6.5, 2.5 + 0.22 * len(names))
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.spines[:].set_visible(False)
    return figure, axes


def _fact(objective: Objective) -> Fact:
    values = [("claim", objective.claim), ("paper", _link(objective))]
    return Fact(objective.name, values, write({"method": dict(objective.method)}))
