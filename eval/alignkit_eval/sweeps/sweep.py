"""Sweeps: train a grid of settings and seeds, compare the cells, and plot the results; resumable after a kill."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from alignkit import Outcome, Scheduler, Task, settings
from alignkit.config import RunSection
from alignkit.errors import ConfigError, InterruptedRun, RunFailedError
from alignkit.rundir.directory import RunDir, child_of, default_run_name
from alignkit.runs.api import plan
from alignkit.system.files import is_leftover
from alignkit.system.lock import directory_lock

from alignkit_eval.comparison.compare import compare
from alignkit_eval.comparison.result import Comparison
from alignkit_eval.headline import headline, number
from alignkit_eval.report import sweep_report
from alignkit_eval.report.plots import draw
from alignkit_eval.scheduling.carry import carry_out_all
from alignkit_eval.scheduling.choice import make_ready, open_scheduler
from alignkit_eval.scheduling.devices import one_visible_device, visible_devices
from alignkit_eval.scheduling.work import train_cell
from alignkit_eval.sweeps.grid import SweepCell, SweepSpec, cells
from alignkit_eval.sweeps.manifest import CellRecord, Manifest, read_spec, write_spec


@dataclass(frozen=True)
class Sweep:
    """A completed sweep: its directory, its cells, and their comparison (None if they cannot be compared)."""

    directory: Path
    cells: tuple[CellRecord, ...]
    comparison: Comparison | None
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> tuple[CellRecord, ...]:
        """The cells that failed."""
        return tuple(cell for cell in self.cells if cell.status == "failed")


def sweep(
    over: Mapping[str, Sequence[Any]],
    *,
    method: str | None = None,
    config: Path | str | None = None,
    model: str | None = None,
    data: str | None = None,
    eval_data: str | None = None,
    sets: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    jobs: int | None = None,
    scheduler: str = "local",
    options: Mapping[str, Any] | None = None,
    output: Path | str = "runs",
    name: str | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> Sweep:
    """Train every combination of settings and seeds, and compare them.

    An interrupted sweep of the same name is resumed: finished cells are kept, interrupted ones resumed, failed ones
    retried. A failed cell does not stop the others; see :attr:`Sweep.failed`.

    Args:
        over: key -> values; a bare key is a setting of the method, a dotted one a key of a section; ``method`` sweeps
            methods, ``config`` sweeps files that override the base.
        method, config, model, data, eval_data, sets: the base configuration, as for ``align run``.
        seeds: seeds to train every combination with.
        jobs: most cells at a time; by default as many as the scheduler has room for, on a machine without accelerators one.
        scheduler: what carries out the cells: an installed plugin of ``align.schedulers``.
        options: settings of the scheduler.
        output: parent of the sweep's directory.
        name: name of the sweep's directory.
        say: called with progress messages.

    Raises:
        ConfigError: a key, value or name cannot be used; nothing was trained.
        InterruptedRun: the sweep was interrupted; the same call resumes it.
    """
    spec = SweepSpec(
        over={key: [v if isinstance(v, str) else json.dumps(v) for v in values] for key, values in over.items()},
        seeds=list(seeds),
        file=None if config is None else str(config),
        method=method,
        model=model,
        data=data,
        eval_data=eval_data,
        sets=list(sets),
    )
    directory = child_of(Path(output), name or default_run_name("sweep"))
    return _run(spec, directory, open_scheduler(scheduler, _with_jobs(options, jobs)), say)


def resume(
    directory: Path,
    *,
    jobs: int | None = None,
    scheduler: str = "local",
    options: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> Sweep:
    """Resume the sweep in ``directory``, with any scheduler; raises ``ConfigError`` if there is none."""
    return _run(read_spec(directory), directory, open_scheduler(scheduler, _with_jobs(options, jobs)), say)


def _with_jobs(options: Mapping[str, Any] | None, jobs: int | None) -> dict[str, Any]:
    return dict(options or {}) | ({} if jobs is None else {"jobs": jobs})


def _run(spec: SweepSpec, directory: Path, scheduler: Scheduler[Any], say: Callable[[str], None]) -> Sweep:
    """Train the unfinished cells, then compare, plot and report."""
    planned, notes = cells(spec, directory)  # validates every cell before anything is written
    distinct = {settings.dump(c.config.model_copy(update={"run": RunSection()})): c.config for c in planned}
    with one_visible_device(visible_devices()):
        for config in distinct.values():
            plan(config)  # with its plugins and functions, and the consent to their code
    make_ready(scheduler)
    if (
        directory.is_dir()
        and not (directory / "sweep.yaml").is_file()
        and not all(map(is_leftover, directory.iterdir()))
    ):
        raise ConfigError(f"{directory} exists and is not a sweep directory: choose another name with --name")
    directory.mkdir(parents=True, exist_ok=True)
    with directory_lock(directory / ".lock"):
        write_spec(directory, spec)
        manifest = Manifest(directory, planned, notes)
        manifest.write()
        for note in notes:
            say(f"note: {note}")
        _train(planned, manifest, scheduler, say)
        comparison = _compare(planned, manifest)
        manifest.comparison = None if comparison is None else comparison.to_json()
        manifest.write()
        if comparison is not None:
            draw(directory, comparison)
        sweep_report(directory, list(manifest.entries.values()), manifest.notes, comparison)
    return Sweep(directory, tuple(manifest.entries.values()), comparison, tuple(manifest.notes))


def failure(sweep: Sweep) -> RunFailedError | None:
    """Return the error for a sweep with failed cells; None if all finished."""
    if not sweep.failed:
        return None
    errors = "; ".join(f"{cell.name}: {cell.error}" for cell in sweep.failed)
    return RunFailedError(f"{len(sweep.failed)} of {len(sweep.cells)} cells failed: {errors}")


def _train(
    planned: Sequence[SweepCell], manifest: Manifest, scheduler: Scheduler[Any], say: Callable[[str], None]
) -> None:
    unfinished = [cell for cell in planned if manifest.entries[cell.name].status != "finished"]
    if done := len(planned) - len(unfinished):
        say(f"{done} of {len(planned)} cells are already finished")
    tasks = [
        Task(cell.name, partial(train_cell, cell.config, cell.directory), cell.directory.absolute())
        for cell in unfinished
    ]
    exit_code = 0
    try:
        with closing(carry_out_all(scheduler, tasks, started=manifest.started, say=say)) as outcomes:
            for outcome in outcomes:
                manifest.ended(outcome)
                if outcome.status == "waiting":
                    continue
                done += outcome.status != "interrupted"
                exit_code = max(exit_code, outcome.exit_code if outcome.status == "interrupted" else 0)
                say(f"[{done}/{len(planned)}] {_ended(outcome, manifest.directory)}")
    except KeyboardInterrupt as error:
        exit_code = 128 + getattr(error, "number", 2)
    if exit_code:
        finished = sum(entry.status == "finished" for entry in manifest.entries.values())
        raise InterruptedRun(
            f"the sweep was interrupted with {finished} of {len(planned)} cells finished; "
            f"resume with: align sweep --resume {manifest.directory}",
            exit_code - 128,
        )


def _ended(outcome: Outcome, directory: Path) -> str:
    result = outcome.error or _headline(RunDir(directory / outcome.name))
    return f"{outcome.name}: {outcome.status} in {outcome.seconds:.1f} s; {result}"


def _headline(run: RunDir) -> str:
    after = run.read_record().get("evaluation", {}).get("after", {})
    return ", ".join(f"{line.title} {number(line.after.value)}" for line in headline({}, after)[:4] if line.after)


def _compare(planned: Sequence[SweepCell], manifest: Manifest) -> Comparison | None:
    """Compare the finished cells with the first that has a swept value of 0, else with the first."""
    done = [cell for cell in planned if manifest.entries[cell.name].status == "finished"]
    if not done:
        return None
    zero = [cell for cell in done if any(v == 0 and v is not False for v in cell.settings.values())]
    try:
        return compare([cell.directory for cell in done], (zero or done)[0].directory)
    except ConfigError as error:
        manifest.notes.append(f"the cells are not compared: {error}")
        return None
