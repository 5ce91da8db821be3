"""Racing sweeps: all arms train to a rung, are compared on the same held-out items, and those that are worse stop there.

Which arms stop, and with what error, is decided by :mod:`alignkit_eval.comparison.racing`. Every arm trains with the schedule of its
whole length and pauses at the rungs, so that a stopped one can be continued to the weights it would have had.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alignkit import Scheduler
from alignkit.errors import ConfigError, suggest
from alignkit.rundir.directory import RunDir
from alignkit.rundir.metrics import MetricsLog

from alignkit_eval.comparison.arms import Group, RunResult, results_in
from alignkit_eval.comparison.items import common_contrasts, common_suites, item_values, shared_items
from alignkit_eval.comparison.looks import Departure, Look, Race, RaceSettings
from alignkit_eval.comparison.racing import Measured, levels, smallest_p, stops
from alignkit_eval.comparison.result import total
from alignkit_eval.comparison.rules import Rules
from alignkit_eval.report.race import departure_line
from alignkit_eval.sweeps.grid import SweepCell
from alignkit_eval.sweeps.manifest import Manifest
from alignkit_eval.sweeps.training import train_cells


def arms_of(planned: Sequence[SweepCell]) -> dict[str, list[SweepCell]]:
    """Return the cells of every arm, those that differ in the seed alone, by the arm's name."""
    arms: dict[str, list[SweepCell]] = {}
    names: dict[str, str] = {}
    for cell in planned:
        name = names.setdefault(repr(cell.settings), re.sub(r"-?seed=\d+(?=(-\d+)?$)", "", cell.name))
        arms.setdefault(name, []).append(cell)
    return arms


def race(
    planned: Sequence[SweepCell],
    settings: RaceSettings,
    revive: Sequence[str],
    manifest: Manifest,
    scheduler: Scheduler[Any],
    say: Callable[[str], None],
) -> None:
    """Carry out a race, or continue it: looks that were made stand. ``revive``: stopped arms to train to their end.

    Raises:
        ConfigError: an arm to revive was not stopped, or a deciding metric is unknown.
        InterruptedRun: it was interrupted; resuming the sweep continues.
    """
    arms = arms_of(planned)
    if len(arms) < 2:
        raise ConfigError("--race: there is only one arm; sweep over at least two values")
    found = _begun(settings, revive, manifest, list(arms))
    failed: set[str] = set()

    def train(names: Sequence[str], until: float) -> None:
        cells = [cell for name in names for cell in arms[name] if cell.name not in failed]
        train_cells(cells, manifest, scheduler, say, until)
        failed.update(cell.name for cell in cells if manifest.entries[cell.name].status == "failed")

    spent = levels(settings.rungs, settings.alpha, settings.spending)
    for number, (rung, level) in enumerate(zip(settings.rungs, spent, strict=True)):
        if number < len(found.looks):
            continue
        active = [name for name in arms if name not in found.stopped]
        if len(active) < 2:
            break
        train(active, rung)
        found.looks.append(
            look := _look({name: arms[name] for name in active}, len(arms), rung, level, settings, manifest)
        )
        manifest.write()
        for line in _said(look):
            say(line)
    train([name for name in arms if name not in found.stopped or name in found.revived], 1.0)
    manifest.settle({cell.name for name in found.stopped for cell in arms[name]})
    found.spent_tokens = total([_spent(cell)[0] for cells in arms.values() for cell in cells])
    manifest.notes += _notes(found, arms)


def _begun(settings: RaceSettings, revive: Sequence[str], manifest: Manifest, arms: list[str]) -> Race:
    """Return the race as far as it has gone, with the arms to revive; refuses another plan than that of its first look."""
    plan: Any = (settings.rungs, settings.alpha, settings.spending, settings.objective, arms)
    found = manifest.race if manifest.race and manifest.race.looks else Race(*plan)
    if plan != (found.rungs, found.alpha, found.spending, found.objective, found.arms):
        raise ConfigError(
            f"{manifest.directory / 'sweep.yaml'}: the race was changed after its first look, so that its error would no longer hold: "
            "put it back, or start another sweep with --name"
        )
    manifest.race = found
    for name in revive:
        if name not in found.stopped:
            known = ", ".join(sorted(found.stopped)) or "none"
            raise ConfigError(f"--revive {name}: no such arm was stopped{suggest(name, arms)} (stopped: {known})")
    found.revived = list(dict.fromkeys([*found.revived, *revive]))
    return found


def _look(
    arms: Mapping[str, Sequence[SweepCell]],
    planned: int,
    rung: float,
    level: float,
    settings: RaceSettings,
    manifest: Manifest,
) -> Look:
    """Compare the arms at a rung."""
    notes: list[str] = []
    groups = []
    for name, cells in arms.items():
        runs = [_result(cell, rung) for cell in cells]
        if None in runs:
            cell = cells[runs.index(None)]
            notes.append(
                f"{name} is not compared: its cell {cell.name} has status {manifest.entries[cell.name].status}"
            )
        else:
            groups.append(Group(name, {}, tuple(run for run in runs if run is not None)))
    names = tuple(group.name for group in groups)
    if len(groups) < 2:
        return Look(rung, level, names, notes=(*notes, "fewer than two arms can be compared"))
    try:
        config = next(iter(arms.values()))[0].config.model_dump()
        rules = Rules(tuple(settings.objective) or None).over(Rules.recorded(config))
        measured = _measured(groups, rules, notes, manifest)
    except _CompareError as error:
        return Look(rung, level, names, notes=(*notes, f"no arm is stopped: {error}"))
    corrected = level / (len(arms) * (planned - 1))
    seeds, clusters = len(groups[0].runs), min(len(set(one.clusters)) for one in measured)
    if smallest_p(seeds, clusters) > corrected:
        notes.append(
            f"no result could stop an arm: with one seed and {clusters} clusters of items p is at least "
            f"{smallest_p(seeds, clusters):.2g}, and {corrected:.2g} is needed: use two or more seeds, or fewer arms"
        )
    gone = [
        Departure(names[stop.arm], names[stop.than], stop.shortfalls, stop.p, *_saved(arms[names[stop.arm]]))
        for stop in stops(measured, level, planned, len(arms))
    ]
    return Look(rung, level, names, tuple(gone), tuple(dict.fromkeys(notes)))


class _CompareError(Exception):
    """The arms have no common items."""


def _measured(groups: Sequence[Group], rules: Rules, notes: list[str], manifest: Manifest) -> list[Measured]:
    """Return the deciding metrics of the arms on their common items."""
    found: list[Measured] = []
    try:
        suites = {
            name: [c for c in common_contrasts(name, groups, notes) if c.numerator]  # means and ratios of items
            for name in common_suites(groups, notes)
        }
        for suite, contrasts in rules.applied(suites).items():
            items = shared_items(suite, groups)
            for contrast in (contrast for contrast in contrasts if contrast.verdict):
                values = [item_values(group, suite, contrast, items) for group in groups]
                effects = [value.effect for value in values]
                better = contrast.higher_is_better
                found.append(Measured(contrast.metric, better, effects, values[0].clusters, contrast.log))
    except ConfigError as error:
        raise _CompareError(str(error)) from error
    if not found:
        known = sorted({contrast.metric for contrasts in suites.values() for contrast in contrasts})
        missing = next((name for name in rules.objective or () if name.rpartition("/")[2] not in known), None)
        wanted = "no metric decides" if missing is None else f"there is no metric {missing}{suggest(missing, known)}"
        raise ConfigError(
            f"race.objective: {wanted} (there are {', '.join(known) or 'none'}): set race.objective in "
            f"{manifest.directory / 'sweep.yaml'} and resume the sweep"
        )
    return found


def _result(cell: SweepCell, rung: float) -> RunResult | None:
    """Return the results of a cell at a rung, or of its end where that came before; None if it has none."""
    run = RunDir(cell.directory)
    record = run.read_record()
    steps = (record.get("paused") or record).get("steps")
    if steps is None:
        return None
    kept = run.evaluation / f"step-{math.ceil(rung * steps - 1e-9)}"
    if not kept.is_dir() and record.get("status") != "finished":
        return None
    results = results_in(kept if kept.is_dir() else run.evaluation)
    return RunResult(cell.directory, cell.seed, record.get("method"), {}, results) if results else None


def _spent(cell: SweepCell) -> tuple[float | None, float | None, float]:
    """Return the training tokens and CPU seconds of a cell so far, and the share of its steps that it has trained."""
    run = RunDir(cell.directory)
    record = run.read_record()
    train = record.get("train", {})
    tokens = [train.get("tokens"), train.get("rollout_tokens", 0)]
    amount = None if None in tokens else float(sum(tokens))
    paused = record.get("paused")
    if amount is not None and paused:  # up to the last logging step, which came before the pause
        logged = max((line["step"] for line in MetricsLog(run.metrics).read() if line.get("tokens")), default=0)
        amount = amount * paused["step"] / logged if logged else None
    share = paused["step"] / paused["steps"] if paused else 1.0
    return amount, record.get("timings", {}).get("train", {}).get("cpu_seconds"), share


def _saved(cells: Sequence[SweepCell]) -> tuple[float | None, float | None]:
    """Return the tokens and CPU seconds that the rest of an arm's training would take, at the rate so far."""
    spent = [_spent(cell) for cell in cells]
    rests = [(tokens, cpu, 1 / share - 1) for tokens, cpu, share in spent]
    return (
        total([None if tokens is None else tokens * rest for tokens, _, rest in rests]),
        total([None if cpu is None else cpu * rest for _, cpu, rest in rests]),
    )


def _said(look: Look) -> list[str]:
    """Return what a look found, for the terminal."""
    head = f"look at {look.rung:.0%} of training"
    lines = [f"{head}: {note}" for note in look.notes]
    lines += [f"{head}: {departure_line(look, gone)}" for gone in look.stopped]
    return lines or [f"{head}: no arm is stopped"]


def _notes(found: Race, arms: Mapping[str, Sequence[SweepCell]]) -> list[str]:
    """Return what a reader of the comparison must know of the race."""
    notes = [f"race, {look.rung:.0%}: {note}" for look in found.looks for note in look.notes]
    steps = {name: (record.get("paused") or record).get("steps") for name, record in _records(arms).items()}
    if len({count for count in steps.values() if count}) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in steps.items() if count)
        notes.append(
            f"the arms train for different numbers of steps ({listed}): they were compared at equal shares of their own training"
        )
    if found.stopped:
        notes.append(
            f"{len(found.stopped)} of {len(arms)} arms were stopped at planned looks on these held-out items; the intervals of the final "
            "comparison do not count that its arms were chosen so"
        )
    if any(len(cells) == 1 for cells in arms.values()):
        notes.append("the race had one seed: what it decided is about these trained models, not about other seeds")
    if found.revived:
        notes.append(f"trained to the end after they were stopped: {', '.join(found.revived)}")
    return notes


def _records(arms: Mapping[str, Sequence[SweepCell]]) -> dict[str, Mapping[str, Any]]:
    return {name: RunDir(cells[0].directory).read_record() for name, cells in arms.items()}
