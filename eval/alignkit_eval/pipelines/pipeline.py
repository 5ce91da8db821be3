"""Execution of pipelines: run, keep, resume and redo stages, and report on all of them."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from alignkit import Scheduler, Task, settings
from alignkit.errors import AlignError, ConfigError, InterruptedRun, RunFailedError, shortened
from alignkit.rundir.directory import RunDir, child_of
from alignkit.system.files import digest, is_leftover, require_writable, write_json
from alignkit.system.lock import directory_lock
from alignkit.system.manifest import sealed

from alignkit_eval.comparison.compare import compare
from alignkit_eval.comparison.result import Comparison
from alignkit_eval.pipelines.inputs import inputs_digest
from alignkit_eval.pipelines.planned import check_stages, merging_of
from alignkit_eval.pipelines.stages import Pipeline, Stage, as_list, read_pipeline, substituted
from alignkit_eval.pipelines.work import evaluate_stage, export_stage, messages_of, train_stage
from alignkit_eval.records import read_records
from alignkit_eval.report import comparison_report, pipeline_report
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
    if start is not None:
        pipeline.stage(start, "--from")
    with one_visible_device(visible_devices()):
        check_stages(pipeline, directory, sets, lambda stage: False)
    if chosen is not None:
        make_ready(chosen)
    require_writable(directory, directory=True)
    directory.mkdir(parents=True, exist_ok=True)
    with directory_lock(directory / ".lock"):
        runner = PipelineRunner(pipeline, directory, skipped, list(sets), say, chosen)
        if start is not None:
            runner.redo(start)
        return runner.run()


class PipelineRunner:
    """One execution of a pipeline."""

    def __init__(
        self,
        pipeline: Pipeline,
        directory: Path,
        skipped: set[str],
        sets: list[str],
        say: Callable[[str], None],
        scheduler: Scheduler[Any] | None = None,
    ) -> None:
        self.pipeline, self.directory, self.skipped, self.sets, self.say = pipeline, directory, skipped, sets, say
        self.scheduler = scheduler
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
            self.records[name] = StageRecord(name, self.records[name].kind)

    def run(self) -> PipelineRun:
        ended = {name for name, record in self.records.items() if record.status == "finished"} | self.skipped
        with one_visible_device(visible_devices()):
            check_stages(self.pipeline, self.directory, self.sets, lambda stage: stage.name not in ended)
        for number, stage in enumerate(self.pipeline.stages, start=1):
            head = f"[{number}/{len(self.pipeline.stages)}] {stage.name}"
            record = self.records[stage.name]
            if stage.name in self.skipped:
                if record.status != "finished":
                    record.status = "skipped"
                self.say(f"{head}: skipped")
                continue
            self._require(stage)
            identity = self._identity(stage)
            if record.status != "finished":
                self.say(f"{head}: {stage.kind}")
                self._run_stage(stage, record, identity)
                continue
            if record.identity != identity:
                raise ConfigError(
                    f"{stage.place}: stage {stage.name} was run with another configuration, "
                    "data or start model; "
                    f"redo it and all later stages with --from {stage.name}"
                )
            self.say(f"{head}: already finished")
            if stage.kind == "eval":
                self.comparison = self._compare(stage)
        self._write()
        stages = list(self.records.values())
        pipeline_report(self.directory, stages, self._trained(), self.comparison)
        return PipelineRun(self.directory, stages, self.comparison)

    # ------------------------------------------------------------------ one stage

    def _run_stage(self, stage: Stage, record: StageRecord, identity: str) -> None:
        record.status, record.identity, record.error = "running", identity, None
        self._write()
        began, cpu, self._spent = time.time(), time.process_time(), 0.0
        try:
            {"train": self._train, "eval": self._evaluate, "export": self._export}[stage.kind](stage)
            record.status = "finished"
        except (InterruptedRun, KeyboardInterrupt) as error:
            record.status, record.error = "interrupted", str(error) or None
            raise InterruptedRun(
                f"the pipeline was interrupted in stage {stage.name}; resume with: align pipeline {self.pipeline.file}",
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

    def _train(self, stage: Stage) -> None:
        config = self.pipeline.config(stage, self.directory, self.sets)
        self._do(stage, partial(train_stage, config, self.directory / stage.name))

    def _evaluate(self, stage: Stage) -> None:
        directory = self.directory / stage.name
        suites = as_list(stage.values.get("suites", []))
        if suites:
            given = substituted(stage.values.get("settings", {}), self.directory)
            sets = [
                f"eval.settings.{suite}.{key}={json.dumps(value)}"
                for suite, values in given.items()
                for key, value in values.items()
            ]
            self._do(stage, partial(evaluate_stage, self._evaluated(stage), suites, sets, directory))
            for message in messages_of(directory):
                self.say(message)
        self.comparison = self._compare(stage)
        write_json(directory / "comparison.json", self.comparison.to_json())

    def _compare(self, stage: Stage) -> Comparison:
        runs = self._evaluated(stage)
        if not runs:
            raise ConfigError(f"{stage.place}: stage {stage.name} has no stage to evaluate")
        baseline = stage.values.get("baseline")
        if len(runs) == 1:
            comparison = compare(runs, "start")
        else:
            names = {run: run.name for run in runs}
            comparison = compare(runs, None if baseline is None else self.directory / str(baseline), names=names)
        comparison_report(comparison, self.directory / stage.name / "report.html")
        return comparison

    def _export(self, stage: Stage) -> None:
        names = [*as_list(stage.values["export"]), *as_list(stage.values.get("merge", []))]
        models = [self.directory / name for name in names]
        self._do(stage, partial(export_stage, models, self.directory / stage.name, merging_of(stage)))

    def _do(self, stage: Stage, work: Callable[[], None]) -> None:
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

    def _evaluated(self, stage: Stage) -> list[Path]:
        """Return the runs to evaluate: those of the stages named, else all finished ones that trained a language model."""
        named = as_list(stage.values["eval"]) if stage.values["eval"] != "all" else []
        return [self.directory / name for name in named] or self._trained()

    def _trained(self) -> list[Path]:
        from alignkit.models.paths import is_classifier

        runs = [self.directory / s.name for s in self.pipeline.stages if s.kind == "train"]
        return [run for run in runs if RunDir(run).status == "finished" and not is_classifier(str(run / "model"))]

    def _require(self, stage: Stage) -> None:
        usable = ("finished", "skipped") if stage.kind == "eval" else ("finished",)
        for need in stage.needs:
            if (status := self.records[need].status) not in usable:
                raise ConfigError(f"{stage.place}: stage {stage.name} uses {need}, which is {status}")

    def _identity(self, stage: Stage) -> str:
        """Return a hash of a stage's configuration and input files; a finished stage with the same hash is kept."""
        values: Any = dict(stage.values)
        if stage.kind == "train":
            config = self.pipeline.config(stage, self.directory, self.sets)
            config.run.output = config.run.name = "."
            inputs = inputs_digest(config, self.directory)
            values = inputs + settings.dump(config).replace(
                str(self.directory), "."
            )  # independent of the pipeline's location
        return digest(values)[:16]

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
