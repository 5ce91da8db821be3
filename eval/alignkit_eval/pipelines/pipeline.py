"""Execution of pipelines: run, keep, resume and redo stages, and report on all of them."""

from __future__ import annotations

import gc
import shlex
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from alignkit import Scheduler, Stage, Task
from alignkit.errors import AlignError, ConfigError, InterruptedRun, RunFailedError, shortened
from alignkit.rundir.directory import child_of
from alignkit.system.files import digest, is_leftover, require_writable, write_json
from alignkit.system.lock import directory_lock
from alignkit.system.manifest import sealed

from alignkit_eval.comparison.result import Comparison
from alignkit_eval.pipelines.evaluate import language_models
from alignkit_eval.pipelines.inputs import named_files
from alignkit_eval.pipelines.stages import ListedStage, Pipeline, read_pipeline
from alignkit_eval.pipelines.work import carry_out_stage, check_stage, forget, results_of
from alignkit_eval.records import read_records
from alignkit_eval.report import pipeline_report
from alignkit_eval.scheduling.carry import carry_out_all
from alignkit_eval.scheduling.choice import make_ready, open_scheduler
from alignkit_eval.scheduling.devices import one_visible_device, visible_devices

RECORD = "pipeline.json"


@dataclass
class StageRecord:
    """The record of a stage; ``status`` is waiting, running, finished, failed, interrupted or skipped."""

    name: str
    kind: str
    status: str = "waiting"
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    identity: str | None = None
    error: str | None = None
    results: dict[str, Any] = field(default_factory=dict)
    """What the report shows of the stage, by name."""

    @property
    def shown(self) -> str:
        return ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self.results.items()
        )


@dataclass
class PipelineRun:
    """A completed pipeline: its directory, its stages, and the comparison of its last eval stage."""

    directory: Path
    stages: list[StageRecord]
    comparison: Comparison | None = None


def run_pipeline(
    file: Path,
    *,
    start: str | None = None,
    skip: Sequence[str] = (),
    only: Sequence[str] = (),
    sets: Sequence[str] = (),
    output: str | None = None,
    name: str | None = None,
    scheduler: str | None = None,
    options: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> PipelineRun:
    """Run a pipeline: keep finished stages, resume an interrupted one, and run the others.

    Args:
        file: the pipeline's YAML file.
        start: redo this stage and all later ones; their earlier directories are renamed, never deleted.
        skip: stages to skip.
        only: the stages to run (default: all); what they use must be finished.
        sets: ``section.key=value`` texts for every training stage.
        output, name: override the file's.
        scheduler, options: what carries out each stage, and its settings; by default this process does.
        say: called with progress messages.

    Raises:
        ConfigError: the file is invalid (found before anything trains), or a finished stage's configuration has changed.
        InterruptedRun: the pipeline was interrupted; the same command resumes it.
        AlignError: a stage failed with this error.
    """
    chosen = None if scheduler is None else open_scheduler(scheduler, options or {})
    pipeline = read_pipeline(file)
    for given in sets:
        if "." not in given.partition("=")[0]:
            raise ConfigError(
                f"--set {shortened(given, 60)}: write a pipeline's settings with their section: train.max_steps=10"
            )
    directory = child_of(Path(output or pipeline.output), name or pipeline.name)
    skipped = {pipeline.stage(word, "--skip").name for word in skip}
    chosen_stages = {pipeline.stage(word, "--stages").name for word in only} or {s.name for s in pipeline.stages}
    if start is not None and pipeline.stage(start, "--from").name not in chosen_stages - skipped:
        raise ConfigError(f"--from {start}: the stage is left out by --stages or --skip")
    stages = pipeline.open(directory, sets)
    if chosen is not None:
        make_ready(chosen)
    require_writable(directory, directory=True)
    directory.mkdir(parents=True, exist_ok=True)
    with directory_lock(directory / ".lock"):
        runner = PipelineRunner(pipeline, stages, directory, skipped, chosen_stages - skipped, say, chosen)
        if start is not None:
            runner.redo(start)
        return runner.run()


class PipelineRunner:
    """One execution of a pipeline."""

    def __init__(
        self,
        pipeline: Pipeline,
        stages: Mapping[str, Stage[Any]],
        directory: Path,
        skipped: set[str],
        chosen: set[str],
        say: Callable[[str], None],
        scheduler: Scheduler[Any] | None = None,
    ) -> None:
        self.pipeline, self.stages, self.directory, self.say = pipeline, stages, directory, say
        self.skipped, self.chosen, self.scheduler = skipped, chosen, scheduler
        self._spent = 0.0
        """CPU seconds that the scheduler's process spent on the stage."""
        self.records = self._read()
        self.comparison: Comparison | None = None

    def redo(self, start: str) -> None:
        """Rename the directories of ``start`` and later stages, and reset their records."""
        names = [stage.name for stage in self.pipeline.stages]
        for name in names[names.index(start) :]:
            path = self.directory / name
            if path.exists():
                number = next(n for n in range(1, 10_000) if not path.with_name(f"{name}.old-{n}").exists())
                path.rename(path.with_name(f"{name}.old-{number}"))
                self.say(f"{path} was renamed to {name}.old-{number}")
            forget(path)
            self.records[name] = StageRecord(name, self.records[name].kind)

    def run(self) -> PipelineRun:
        coming = [
            s for s in self.pipeline.stages if s.name in self.chosen and self.records[s.name].status != "finished"
        ]
        for stage in coming:
            self._require(stage, {other.name for other in coming})
        with one_visible_device(visible_devices()):
            for stage in coming:
                check_stage(stage, self.stages[stage.name])
        for number, stage in enumerate(self.pipeline.stages, start=1):
            head = f"[{number}/{len(self.pipeline.stages)}] {stage.name}"
            record = self.records[stage.name]
            if stage.name in self.skipped and record.status != "finished":
                record.status = "skipped"
            if stage.name in self.skipped:
                self.say(f"{head}: skipped")
            elif stage.name in self.chosen:
                self._keep_or_run(head, stage, record)
            if record.status == "finished":
                self._show(stage, record)
        self._write()
        records = list(self.records.values())
        trained = [self.directory / s.name for s in self.pipeline.stages if s.kind == "train"]
        pipeline_report(self.directory, records, language_models(trained), self.comparison)
        return PipelineRun(self.directory, records, self.comparison)

    def _keep_or_run(self, head: str, stage: ListedStage, record: StageRecord) -> None:
        self._require(stage)
        identity = self._identity(stage)
        if record.status != "finished":
            self.say(f"{head}: {stage.kind}")
            self._run_stage(stage, record, identity)
        elif record.identity == identity:
            self.say(f"{head}: already finished")
        else:
            raise ConfigError(
                f"{stage.place}: stage {stage.name} was run with another configuration, "
                "data, function or start model; "
                f"redo it and all later stages with --from {stage.name}"
            )

    # ------------------------------------------------------------------ one stage

    def _run_stage(self, stage: ListedStage, record: StageRecord, identity: str) -> None:
        if record.identity != identity:
            forget(self.directory / stage.name)  # what an attempt with other settings left
        record.status, record.identity, record.error = "running", identity, None
        self._write()
        began, cpu, self._spent = time.time(), time.process_time(), 0.0
        try:
            self._do(stage, partial(carry_out_stage, stage, self.stages[stage.name], self.directory / stage.name))
            record.status = "finished"
        except (InterruptedRun, KeyboardInterrupt) as error:
            record.status, record.error = "interrupted", str(error) or None
            raise InterruptedRun(
                f"the pipeline was interrupted in stage {stage.name}; resume with: align pipeline {shlex.quote(str(self.pipeline.file))}",
                error.exit_code - 128 if isinstance(error, InterruptedRun) else 2,
            ) from error
        except AlignError as error:
            record.status, record.error = "failed", str(error)
            error.add_note(f"in stage {stage.name}")
            raise
        finally:
            record.seconds += time.time() - began
            record.cpu_seconds += max(time.process_time() - cpu, self._spent)
            self._write()
            gc.collect()  # free the stage's model before the next one is loaded

    def _show(self, stage: ListedStage, record: StageRecord) -> None:
        """Keep what the report shows of a finished stage."""
        found = results_of(stage, self.stages[stage.name], self.say)
        if isinstance(found, Comparison):
            self.comparison = found
        elif isinstance(found, Mapping):
            record.results = dict(found)
            self.say(f"{stage.name}: {record.shown}")

    def _do(self, stage: ListedStage, work: Callable[[], None]) -> None:
        """Do a stage's work, here or with the scheduler; raises the error that ended it."""
        if self.scheduler is None:
            work()
            return
        make_ready(self.scheduler)
        task = Task(stage.name, work, (self.directory / stage.name).absolute())
        for outcome in list(carry_out_all(self.scheduler, [task], started=lambda name: None, say=self.say)):
            self._spent = outcome.cpu_seconds
            message = str(outcome.error)
            if outcome.status == "interrupted":
                raise InterruptedRun(message, outcome.exit_code - 128)
            if outcome.status == "failed":
                raise ConfigError(message) if outcome.exit_code == ConfigError.exit_code else RunFailedError(message)

    # ------------------------------------------------------------------ stages and records

    def _require(self, stage: ListedStage, coming: Collection[str] = ()) -> None:
        """Raise :class:`ConfigError` if a stage that this one uses is neither finished nor ``coming``."""
        for need in stage.needs:
            status = "skipped" if need in self.skipped else self.records[need].status
            if need in coming or self.records[need].status == "finished" or need in stage.optional:
                continue
            advice = "" if need in self.chosen else ": add it to --stages" * (need not in self.skipped)
            raise ConfigError(f"{stage.place}: stage {stage.name} uses {need}, which is {status}{advice}")

    def _identity(self, stage: ListedStage) -> str:
        """Return a hash of a stage's configuration and input files; a finished stage with the same hash is kept."""
        found = self.stages[stage.name].identity()
        if found is None:
            own = {key: value for key, value in stage.values.items() if key not in stage.plugin.inputs}
            found = [dict(stage.values), named_files(own, self.directory)]
        return digest(found)[:16]

    def _read(self) -> dict[str, StageRecord]:
        path = self.directory / RECORD
        kept = {record.name: record for record in read_records(path, "stages", StageRecord)}
        if not path.is_file() and not all(map(is_leftover, self.directory.iterdir())):
            raise ConfigError(
                f"{self.directory} exists and is not a pipeline directory: choose another name with --name"
            )
        stages = self.pipeline.stages
        return {stage.name: kept.get(stage.name) or StageRecord(stage.name, stage.kind) for stage in stages}

    def _write(self) -> None:
        stages = [vars(record) for record in self.records.values()]
        comparison = None if self.comparison is None else self.comparison.to_json()
        write_json(self.directory / RECORD, sealed({"stages": stages, "comparison": comparison}))
