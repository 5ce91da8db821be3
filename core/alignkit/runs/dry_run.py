"""The plan of a run, without training: configuration resolved, data tokenised, the model built without weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alignkit.config import RunConfig
from alignkit.contract import LoadedModel
from alignkit.contract.registry import provided
from alignkit.display.console import Console
from alignkit.errors import ConfigError
from alignkit.rundir.directory import child_of
from alignkit.runs.prepare import RunPlan, load_parts, plan_run

if TYPE_CHECKING:
    from alignkit.data.load import Data


@dataclass(frozen=True)
class DryRun:
    """All of a run that can be known without weights; the report ``dry-run`` describes it."""

    plan: RunPlan
    loaded: LoadedModel
    """The model on the meta device: its modules and the sizes of their parameters."""
    data: Data
    findings: list[str]
    """A line for each finding of the data check."""


def plan_without_weights(config: RunConfig, *, rewards: bool = True) -> DryRun:
    """Plan a run and check its data, without weights."""
    plan = plan_run(config, rewards=rewards)
    loaded, data = load_parts(config, plan.session, meta=True)
    check = provided("align.checks", "data")
    return DryRun(plan, loaded, data, check(data, config.data.check) if check else [])


def show_dry_run(config: RunConfig) -> None:
    """Print what ``config`` comes to, as the report ``dry-run`` describes it."""
    from rich.table import Table

    describe = provided("align.reports", "dry-run")
    if describe is None:
        raise ConfigError("--dry-run: no installed package describes a run (entry-point group align.reports)")
    console = Console()
    if config.run.name is not None:
        child_of(Path(config.run.output), config.run.name)
    dry = plan_without_weights(config)
    for line in [*dry.data.report.lines(), *dry.findings]:
        console.info(line)
    table = Table(title="dry run: nothing is trained", title_justify="left", show_header=False)
    for name, value in describe(dry).items():
        table.add_row(name, value)
    console.table(table)
