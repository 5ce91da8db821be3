"""Sweeps: train a grid of settings and seeds, compare the cells, and plot the results; resumable after a kill."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alignkit import Scheduler, settings
from alignkit.config import RunSection
from alignkit.errors import ConfigError, RunFailedError
from alignkit.rundir.directory import RunDir, child_of, default_run_name
from alignkit.runs.api import plan
from alignkit.settings import yaml_files
from alignkit.settings.layers import Layer
from alignkit.settings.messages import validate
from alignkit.system.files import is_leftover
from alignkit.system.lock import directory_lock
from alignkit.system.quiet import quieted

from alignkit_eval.comparison.arms import START
from alignkit_eval.comparison.compare import compare
from alignkit_eval.comparison.looks import Race, RaceSettings
from alignkit_eval.comparison.result import Comparison
from alignkit_eval.report import sweep_report
from alignkit_eval.report.notebook import sweep_html
from alignkit_eval.report.planned import require_loadable
from alignkit_eval.report.plots import draw
from alignkit_eval.report.tracked import track_comparison
from alignkit_eval.scheduling.choice import make_ready, open_scheduler
from alignkit_eval.scheduling.devices import one_visible_device, visible_devices
from alignkit_eval.sweeps.earlier import set_aside, trained_otherwise
from alignkit_eval.sweeps.grid import SweepCell, SweepSpec, cells
from alignkit_eval.sweeps.manifest import CellRecord, Manifest, codes_in, extended, read_spec, write_spec
from alignkit_eval.sweeps.measured import require_measured
from alignkit_eval.sweeps.race import arms_of
from alignkit_eval.sweeps.race import race as run_race
from alignkit_eval.sweeps.training import train_cells


@dataclass(frozen=True, repr=False)
class Sweep:
    """A completed sweep: its directory, its cells, and their comparison (None if they cannot be compared)."""

    directory: Path
    cells: tuple[CellRecord, ...]
    comparison: Comparison | None
    notes: tuple[str, ...] = ()
    race: Race | None = None
    untracked: tuple[str, ...] = ()
    """What the trackers did not record of the comparison."""

    def __repr__(self) -> str:
        count = Counter(cell.status for cell in self.cells)
        return f"Sweep {self.directory}: {', '.join(f'{number} {status}' for status, number in count.items())}"

    def _repr_html_(self) -> str:
        return sweep_html(self.directory, self.cells, self.comparison)

    def to_pandas(self) -> Any:
        """Return the cells as a ``pandas.DataFrame``: name, settings, seed, status, and the metrics after training."""
        import pandas

        return pandas.DataFrame([_as_row(cell) for cell in self.cells])

    @property
    def failed(self) -> tuple[CellRecord, ...]:
        """The cells that failed."""
        return tuple(cell for cell in self.cells if cell.status == "failed")


def _as_row(cell: CellRecord) -> dict[str, Any]:
    after = RunDir(Path(cell.run)).read_record().get("evaluation", {}).get("after", {})
    metrics = {f"{suite}/{name}": e["value"] for suite, found in after.items() for name, e in found.items()}
    return {"name": cell.name, **cell.settings, "seed": cell.seed, "status": cell.status, **metrics}


@quieted()
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
    race: Mapping[str, Any] | None = None,
    jobs: int | None = None,
    scheduler: str = "local",
    options: Mapping[str, Any] | None = None,
    output: Path | str = "runs",
    name: str | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> Sweep:
    """Train every combination of settings and seeds, and compare them.

    An interrupted sweep of the same name is resumed: finished cells are kept, interrupted ones resumed, failed ones
    retried. Further values and seeds are added to it, unless it is a race. A failed cell does not stop the others; see :attr:`Sweep.failed`.

    Args:
        over: key -> values; a bare key is a setting of the method, a dotted one a key of a section; ``method`` sweeps
            methods, ``config`` sweeps files that override the base.
        method, config, model, data, eval_data, sets: the base configuration, as for ``align run``.
        seeds: seeds to train every combination with.
        race: settings of a race (:class:`~alignkit_eval.comparison.looks.RaceSettings`) that stops arms early, over those of
            the section ``race`` of ``config``; None: every cell is trained to its end.
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
        race=None if race is None else race_settings(race, config).model_dump(),
    )
    directory = child_of(Path(output), name or default_run_name("sweep"))
    return _run(spec, directory, open_scheduler(scheduler, _with_jobs(options, jobs)), say)


@quieted()
def resume(
    directory: Path,
    *,
    revive: Sequence[str] = (),
    jobs: int | None = None,
    scheduler: str = "local",
    options: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> Sweep:
    """Resume the sweep in ``directory``, with any scheduler; raises ``ConfigError`` if there is none.

    ``revive`` names arms that a race stopped, to be trained to the weights they would have had.
    """
    spec = read_spec(directory)
    if revive and spec.race is None:
        raise ConfigError(f"--revive: {directory} is not a race, no arm was stopped")
    return _run(spec, directory, open_scheduler(scheduler, _with_jobs(options, jobs)), say, revive)


def _with_jobs(options: Mapping[str, Any] | None, jobs: int | None) -> dict[str, Any]:
    return dict(options or {}) | ({} if jobs is None else {"jobs": jobs})


def race_settings(given: Mapping[str, Any], config: Path | str | None) -> RaceSettings:
    """Return the settings of a race: those given, over the section ``race`` of a configuration file.

    Raises ``ConfigError`` for a section that is not a mapping.
    """
    layer = Layer() if config is None else yaml_files.read(Path(config))
    for key, value in given.items():
        layer.put(("race", key), value, f"--race-set {key}={value}")
    values = layer.get("race") or {}
    if not isinstance(values, dict):
        raise ConfigError(f"{layer.place(('race',))}: race must be a mapping of keys to values")
    return validate(RaceSettings, values, layer, ("race",))


def _run(
    spec: SweepSpec,
    directory: Path,
    scheduler: Scheduler[Any],
    say: Callable[[str], None],
    revive: Sequence[str] = (),
) -> Sweep:
    """Train the unfinished cells, then compare, plot and report."""
    spec, more = extended(directory, spec)
    planned, notes = cells(spec, directory)  # validates every cell before anything is written
    distinct = {settings.dump(c.config.model_copy(update={"run": RunSection()})): c.config for c in planned}
    stored = directory / "sweep.yaml"
    with one_visible_device(visible_devices()):
        for config in distinct.values():
            plan(config)  # with its plugins and functions, and the consent to their code
            require_measured(config, (spec.race or {}).get("objective", ()), stored if stored.is_file() else None)
        require_loadable([cell.config for cell in planned if not (cell.directory / "run.json").is_file()])
    make_ready(scheduler)
    if directory.is_dir() and not stored.is_file() and not all(map(is_leftover, directory.iterdir())):
        raise ConfigError(f"{directory} exists and is not a sweep directory: choose another name with --name")
    directory.mkdir(parents=True, exist_ok=True)
    with directory_lock(directory / ".lock"):
        otherwise = trained_otherwise(planned, codes_in(directory))
        if otherwise and spec.race is not None:
            raise ConfigError(
                f"{directory} is a race whose arms were trained otherwise: since then {next(iter(otherwise))}; choose another --name"
            )
        write_spec(directory, spec)
        notes += set_aside(directory, otherwise)
        manifest = Manifest(directory, planned, notes, racing=spec.race is not None)
        manifest.write()
        for note in [*more, *notes]:
            say(f"note: {note}")
        if spec.race is None:
            train_cells(planned, manifest, scheduler, say)
        else:
            run_race(planned, RaceSettings.model_validate(spec.race), revive, manifest, scheduler, say)
        comparison = _compare(planned, manifest)
        manifest.comparison = None if comparison is None else comparison.to_json()
        manifest.write()
        if comparison is not None:
            draw(directory, comparison)
        sweep_report(directory, list(manifest.entries.values()), manifest.notes, comparison, manifest.race)
        runs = [cell.directory for cell in planned if (cell.directory / "run.json").is_file()]
        lost = track_comparison(directory, runs, {"sweep": asdict(spec)}, comparison, manifest.notes, manifest.race)
    entries, said = tuple(manifest.entries.values()), tuple(manifest.notes)
    return Sweep(directory, entries, comparison, said, manifest.race, tuple(lost))


def failure(sweep: Sweep) -> RunFailedError | None:
    """Return the error for a sweep with failed cells, or whose comparison a tracker did not record; else None."""
    if not sweep.failed:
        return RunFailedError(f"{'; '.join(sweep.untracked)}; the sweep itself is whole") if sweep.untracked else None
    errors = "; ".join(f"{cell.name}: {cell.error}" for cell in sweep.failed)
    return RunFailedError(f"{len(sweep.failed)} of {len(sweep.cells)} cells failed: {errors}")


def _compare(planned: Sequence[SweepCell], manifest: Manifest) -> Comparison | None:
    """Compare the finished cells with the first that has a swept value of 0, else with the first."""
    done = [cell for cell in planned if manifest.entries[cell.name].status == "finished"]
    if not done:
        return None
    zero = [cell for cell in done if any(v == 0 and v is not False for v in cell.settings.values())]
    baseline: Path | str = (zero or done)[0].directory
    if manifest.race is not None and len(arms_of(done)) == 1:
        manifest.notes.append("one arm was left: it is compared with its start model")
        baseline = START
    objective = (manifest.race.objective or None) if manifest.race is not None else None
    try:
        return compare([cell.directory for cell in done], baseline, objective=objective)
    except ConfigError as error:
        manifest.notes.append(f"the cells are not compared: {error}")
        return None
