"""The pages of reports: the sections of runs, comparisons, sweeps and pipelines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignkit.errors import ConfigError
from alignkit.rundir.directory import RunDir
from alignkit.system.files import write_text

from alignkit_eval.comparison.result import Arm, Comparison
from alignkit_eval.report import tables
from alignkit_eval.report.explorers import Scored, disagreements, generation_cards
from alignkit_eval.report.figures import comparison_pictures, training_curves
from alignkit_eval.report.parts import Page, Section
from alignkit_eval.report.render import render
from alignkit_eval.report.repeating import repeat, subtitle
from alignkit_eval.report.texts import Said, answers_before, answers_of


def run_report(run: Path) -> Path:
    """Write ``report.html`` of a finished run and return its path.

    Raises:
        ConfigError: ``run`` is not a run directory, or a result in it cannot be read.
        DataError: its samples cannot be read.
    """
    from alignkit_eval.comparison.compare import compare

    directory = RunDir.open(run)
    record = directory.read_record()
    name = run.resolve().name
    try:
        comparison = compare([run], "start")
        verdict, notes = comparison.verdict, comparison.notes
    except ConfigError as error:  # not evaluated before training, or not at all
        comparison, verdict, notes = None, f"This run cannot be compared with its start model: {error}.", ()
    sections: list[Section] = [tables.before_and_after(record)]
    if comparison is not None:
        sections.append(tables.contrasts(comparison))
    sections += training_curves(run)
    sections += generation_cards(("start", answers_before(run)), [(name, answers_of(run))])
    sections += disagreements(
        Scored("start", directory.evaluation / "before", run), [Scored(name, directory.evaluation, run)]
    )
    sections += [tables.times([(name, record)]), *repeat([(name, run)])]
    return _write(directory.report, Page(f"Run {name}", subtitle(record), verdict, notes, sections))


def comparison_report(comparison: Comparison, path: Path) -> Path:
    """Write a comparison as one page and return its path.

    Raises:
        ConfigError, DataError: a result of one of its runs cannot be read.
    """
    names = ", ".join(arm.name for arm in comparison.arms)
    page = Page("Comparison", names, comparison.verdict, comparison.notes, list(_compared(comparison)))
    return _write(path, page)


def sweep_report(directory: Path, comparison: Comparison | None) -> Path:
    """Write ``report.html`` of a sweep and return its path.

    Raises:
        ConfigError: ``directory`` has no readable sweep.json, or a result of one of its runs cannot be read.
    """
    stored = _manifest(directory)
    sections: list[Section] = [tables.cells(stored["cells"])]
    if comparison is not None:
        sections = [*_compared(comparison), *sections]
    verdict = "No cells were compared." if comparison is None else comparison.verdict
    notes = [*stored.get("notes", ()), *(comparison.notes if comparison is not None else ())]
    failed = sum(cell["status"] == "failed" for cell in stored["cells"])
    counts = f"{len(stored['cells'])} cells" + (f", {failed} failed" if failed else "")
    return _write(
        directory / "report.html", Page(f"Sweep {directory.resolve().name}", counts, verdict, notes, sections)
    )


def pipeline_report(
    directory: Path, stages: Sequence[Any], runs: Sequence[Path], comparison: Comparison | None
) -> Path:
    """Write ``report.html`` of a pipeline and return its path: its stages, their results, and their comparison.

    Raises:
        ConfigError: a result of one of its runs cannot be read.
    """
    sections: list[Section] = [tables.stages([vars(stage) for stage in stages])]
    for run in runs:
        found = tables.before_and_after(RunDir(run).read_record())
        sections.append(replace(found, title=f"{run.name}: before and after training"))
    if comparison is not None:
        sections = [*_compared(comparison), *sections]
    verdict = "No stages were compared." if comparison is None else comparison.verdict
    notes = () if comparison is None else comparison.notes
    title = f"Pipeline {directory.resolve().name}"
    names = " -> ".join(stage.name for stage in stages)
    return _write(directory / "report.html", Page(title, names, verdict, notes, sections))


def _manifest(directory: Path) -> Mapping[str, Any]:
    path = directory / "sweep.json"
    try:
        stored = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(stored, dict) or "cells" not in stored:
        raise ConfigError(f"{path} is not the manifest of a sweep: it has no key 'cells'")
    return stored


def _compared(comparison: Comparison) -> Iterator[Section]:
    base = comparison.arm(comparison.baseline)
    others = [arm for arm in comparison.arms if arm is not base]
    yield tables.arms(comparison)
    yield tables.contrasts(comparison)
    yield from comparison_pictures(comparison)
    yield tables.costs(comparison)
    several = any(len(arm.runs) > 1 for arm in comparison.arms)
    note = "The first seed of each arm is shown." if several else ""
    yield from generation_cards(
        (base.name, _answers_of_arm(base)), [(arm.name, _answers_of_arm(arm)) for arm in others], note
    )
    yield from disagreements(_scored(base), [_scored(arm) for arm in others], note)
    records = [(run.name, RunDir(run).read_record()) for arm in comparison.arms for run in arm.runs]
    known = [(name, record) for name, record in records if record]
    if known:
        yield tables.times(known)
    yield from repeat([(arm.name, arm.runs[0]) for arm in comparison.arms], comparison.settings)


def _is_start(arm: Arm) -> bool:
    """Return whether an arm is the start model of a run, with its results in that run's eval/before."""
    path = arm.runs[0]
    return path.name == "before" and (path.parent.parent / "run.json").is_file()


def _answers_of_arm(arm: Arm) -> Said:
    path = arm.runs[0]
    return answers_before(path.parent.parent) if _is_start(arm) else answers_of(path)


def _scored(arm: Arm) -> Scored:
    path = arm.runs[0]
    if _is_start(arm):
        return Scored(arm.name, path, path.parent.parent)
    return Scored(arm.name, path / "eval", path if (path / "run.json").is_file() else None)


def _write(path: Path, page: Page) -> Path:
    write_text(path, render(page))
    return path
