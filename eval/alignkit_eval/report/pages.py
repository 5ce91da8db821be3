"""The pages of reports: the sections of runs, comparisons, sweeps and pipelines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignkit.errors import ConfigError
from alignkit.rundir.directory import RunDir

from alignkit_eval.comparison.compare import compare
from alignkit_eval.comparison.looks import Race
from alignkit_eval.comparison.result import Arm, Comparison
from alignkit_eval.report import tables
from alignkit_eval.report.explorers import best_and_worst, disagreements, generation_cards
from alignkit_eval.report.forest import forest
from alignkit_eval.report.parts import Page, Section
from alignkit_eval.report.plots import comparison_figures, training_curves
from alignkit_eval.report.race import race_sentence, race_table
from alignkit_eval.report.render import write_page
from alignkit_eval.report.reproduction import reproduction, subtitle
from alignkit_eval.report.texts import HeldOutTexts, ReportedModel


def run_report(run: Path) -> Path:
    """Write ``report.html`` of a finished run and return its path.

    Raises:
        ConfigError: ``run`` is not a run directory, or a result in it cannot be read.
        DataError: its samples cannot be read.
    """
    directory = RunDir.open(run)
    record = directory.read_record()
    name = run.resolve().name
    sections: list[Section] = [tables.before_and_after(record)]
    try:
        comparison = compare([run], "start")
        verdict, notes = comparison.verdict, comparison.notes
        sections = [*forest(comparison), *sections, tables.contrasts(comparison)]
    except ConfigError as error:  # not evaluated before training, or not at all
        verdict, notes = f"This run cannot be compared with its start model: {error}.", ()
    start = ReportedModel("start", directory.evaluation / "before", run)
    trained = ReportedModel(name, directory.evaluation, run)
    texts = HeldOutTexts(run)
    weights = reward_weights(record)
    rewarded = () if weights is None else best_and_worst(trained, texts, weights)
    sections += [
        *training_curves(run),
        *rewarded,
        *generation_cards(start, [trained], texts),
        *disagreements(start, [trained], texts),
        tables.times([(name, record)]),
        *reproduction([(name, run)]),
    ]
    return write_page(directory.report, Page(f"Run {name}", subtitle(record), verdict, notes, sections))


def comparison_report(comparison: Comparison, path: Path) -> Path:
    """Write a comparison as one page and return its path.

    Raises:
        ConfigError, DataError: a result of one of its runs cannot be read.
    """
    names = ", ".join(arm.name for arm in comparison.arms)
    page = Page("Comparison", names, comparison.verdict, comparison.notes, list(_compared(comparison)))
    return write_page(path, page)


def sweep_report(
    directory: Path,
    cells: Sequence[Any],
    notes: Sequence[str],
    comparison: Comparison | None,
    race: Race | None = None,
) -> Path:
    """Write ``report.html`` of a sweep with the records of its cells, and return its path.

    Raises:
        ConfigError: a result of one of its runs cannot be read.
    """
    table = tables.outcomes("Cells", {"cell": "name", "status": "status"}, cells)
    failed = sum(cell.status == "failed" for cell in cells)
    counts = f"{len(cells)} cells" + (f", {failed} failed" if failed else "")
    verdict = "No cells were compared."
    if comparison is not None:
        verdict, notes = comparison.verdict, [*notes, *comparison.notes]
    sections = [*_compared(comparison), table]
    if race is not None:
        verdict = f"{race_sentence(race)} {verdict}"
        sections.insert(0, race_table(race))
    return write_page(
        directory / "report.html", Page(f"Sweep {directory.resolve().name}", counts, verdict, notes, sections)
    )


def pipeline_report(
    directory: Path, stages: Sequence[Any], runs: Sequence[Path], comparison: Comparison | None
) -> Path:
    """Write ``report.html`` of a pipeline and return its path: its stages, their results, and their comparison.

    Raises:
        ConfigError: a result of one of its runs cannot be read.
    """
    columns = {"stage": "name", "kind": "kind", "status": "status", "results": "shown"}
    sections = [*_compared(comparison), tables.outcomes("Stages", columns, stages)]
    for run in runs:
        found = tables.before_and_after(RunDir(run).read_record())
        sections.append(replace(found, title=f"{run.name}: before and after training"))
    verdict = "No stages were compared." if comparison is None else comparison.verdict
    notes = () if comparison is None else comparison.notes
    title = f"Pipeline {directory.resolve().name}"
    names = " -> ".join(stage.name for stage in stages)
    return write_page(directory / "report.html", Page(title, names, verdict, notes, sections))


def reward_weights(record: Mapping[str, Any]) -> dict[str, float] | None:
    """Return the weights of a run's rewards by name; None if it was not trained on answers of its own."""
    rewards = record.get("config", {}).get("method", {}).get("reward")
    if not rewards and not record.get("train", {}).get("rollout_tokens"):
        return None
    named = [reward for reward in (rewards if isinstance(rewards, list) else []) if isinstance(reward, dict)]
    return {str(reward.get("name")): float(reward.get("weight", 1.0)) for reward in named}


def _compared(comparison: Comparison | None) -> Iterator[Section]:
    if comparison is None:
        return
    base = comparison.arm(comparison.baseline)
    others = [arm for arm in comparison.arms if arm is not base]
    yield from forest(comparison)
    yield tables.contrasts(comparison)
    if trained := tables.of_models(comparison):
        yield trained
    yield tables.arms(comparison)
    yield from comparison_figures(comparison)
    yield tables.costs(comparison)
    several = any(len(arm.runs) > 1 for arm in comparison.arms)
    note = "The first seed of each arm is shown." if several else ""
    first, *models = (_model(arm) for arm in (base, *others))
    texts = HeldOutTexts(next((model.run for model in (first, *models) if model.run is not None), None))
    yield from generation_cards(first, models, texts, note)
    yield from disagreements(first, models, texts, note)
    records = [(run.name, RunDir(run).read_record()) for arm in comparison.arms for run in arm.runs]
    known = [(name, record) for name, record in records if record]
    if known:
        yield tables.times(known)
    yield from reproduction([(arm.name, arm.runs[0]) for arm in comparison.arms], comparison.settings)


def _model(arm: Arm) -> ReportedModel:
    """Return an arm's first model; the start model of a run has its results in that run's eval/before."""
    path = arm.runs[0]
    if path.name == "before" and (path.parent.parent / "run.json").is_file():
        return ReportedModel(arm.name, path, path.parent.parent)
    return ReportedModel(arm.name, path / "eval", path if (path / "run.json").is_file() else None)
