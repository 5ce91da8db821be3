"""``align compare``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from alignkit.errors import ConfigError

if TYPE_CHECKING:
    from alignkit.display.console import Console

    from alignkit_eval.comparison.result import Comparison


NOT_SHOWN = 3
"""Exit code where a requirement is not shown."""


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN...", type=click.Path(path_type=Path))
@click.option(
    "--baseline",
    metavar="RUN",
    help="Run to compare the others with (default: the first), or start for their common start model.",
)
@click.option(
    "--html",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the comparison to an HTML page.",
)
@click.option(
    "--all-pairs", is_flag=True, help="Also compare any two arms, and give letters to groups that cannot be told apart."
)
@click.option(
    "--objective",
    metavar="METRIC,...",
    help="Metrics that decide which arm is better (default: the runs' compare.objective, else accuracy by sum and by mean).",
)
@click.option(
    "--guards",
    metavar="METRIC,...",
    help="Metrics that must not be worse for a winner, or none (default: compare.guards, else perplexity, kl and quality).",
)
@click.option(
    "--margin",
    "margins",
    metavar="METRIC=M",
    multiple=True,
    help="Difference that counts as none, e.g. accuracy_sum=0.01 (default: compare.margins, else 0.03 of accuracies "
    "and quality, 5 % of perplexity, 0.05 of kl).",
)
@click.option(
    "--require",
    "requirements",
    metavar="CONDITION",
    multiple=True,
    help='Exit with 3 unless shown for every arm against the baseline: "accuracy_sum>=-0.01" (the 95 % interval lies there).',
)
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
def compare(
    runs: tuple[Path, ...],
    baseline: str | None,
    html: Path | None,
    all_pairs: bool,
    objective: str | None,
    guards: str | None,
    margins: tuple[str, ...],
    requirements: tuple[str, ...],
    as_json: bool,
) -> None:
    """Compare runs on the same held-out items. Runs that differ only in their seed are one arm; a sweep means all of its runs."""
    from alignkit.display.console import Console
    from alignkit.system.files import require_writable

    from alignkit_eval.comparison.compare import compare as make
    from alignkit_eval.comparison.require import Requirement

    if html is not None:
        require_writable(html)
    conditions = [Requirement.parse(text) for text in requirements]
    comparison = make(
        runs,
        baseline,
        margins=dict(map(_margin, margins)),
        objective=None if objective is None else _names("--objective", objective),
        guards=None if guards is None else [] if guards == "none" else _names("--guards", guards),
    )
    unmet = [line for condition in conditions for line in condition.unmet(comparison)]
    if html is not None:
        from alignkit_eval.report import comparison_report

        click.echo(f"report: {comparison_report(comparison, html)}", err=True)
    if as_json:
        click.echo(json.dumps(comparison.to_json(), indent=2, ensure_ascii=False))
    else:
        show(comparison, Console(stream=sys.stdout), all_pairs=all_pairs)
    for line in unmet:
        click.echo(line, err=True)
    if unmet:
        sys.exit(NOT_SHOWN)


def _names(option: str, text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ConfigError(
            f'{option} "{text}": write names of metrics separated by commas, e.g. accuracy_sum,perplexity'
        )
    return names


def _margin(text: str) -> tuple[str, float]:
    metric, equals, value = text.partition("=")
    try:
        if not equals:
            raise ValueError(text)
        return metric.strip(), float(value)
    except ValueError as error:
        raise ConfigError(f"--margin {text}: write METRIC=NUMBER, e.g. accuracy_sum=0.01") from error


def show(comparison: Comparison, console: Console | None = None, *, all_pairs: bool = False) -> None:
    """Print a comparison, by default to stderr: verdict, arms, contrasts, costs and notes."""
    from alignkit.display.console import Console

    from alignkit_eval.report import tables
    from alignkit_eval.report.terminal import terminal_table

    console = console or Console()
    console.info(comparison.verdict)
    console.table(terminal_table(tables.arms(comparison), {"seeds"}, stacked=True))
    console.table(terminal_table(tables.contrasts(comparison), {"items in clusters", "verdict"}))
    if models := tables.of_models(comparison):
        console.table(terminal_table(models, {"difference", "detectable", "verdict"}))
    if all_pairs:
        console.table(terminal_table(tables.pairs(comparison)))
        for arm, letters in comparison.letters.items():
            console.info(f"{letters}: {arm}")
        console.info("arms that share a letter cannot be told apart by all deciding metrics")
    if any(arm.cost.tokens is not None for arm in comparison.arms):
        console.table(terminal_table(tables.costs(comparison)))
    for note in comparison.notes:
        console.info(f"note: {note}")
