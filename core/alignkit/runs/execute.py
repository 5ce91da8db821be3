"""One run from configuration to record: prepare, evaluate, train, save, evaluate, report."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit import settings
from alignkit.config import RunConfig
from alignkit.contract.suites import Suite, SuiteResult
from alignkit.data.checking.before_training import check_before_training
from alignkit.data.order.mixing import describe_mix
from alignkit.display.console import Console
from alignkit.errors import AlignError, CheckpointError, InterruptedRun
from alignkit.rundir.directory import RunDir
from alignkit.rundir.evaluations import read_evaluation, write_evaluation
from alignkit.rundir.metrics import MetricsLog
from alignkit.runs.evaluation import run_suites
from alignkit.runs.parts import trainer_parts
from alignkit.runs.prepare import PreparedRun, open_plugins, prepare, subject
from alignkit.runs.record import description, training_numbers
from alignkit.runs.references import order_of, references
from alignkit.runs.summary import pair_samples, present, sample_answers
from alignkit.settings.training_arguments import training_arguments
from alignkit.system.distributed import from_first, rank, wait_for_all
from alignkit.system.files import write_jsonl, write_text
from alignkit.system.quiet import quiet_libraries
from alignkit.system.stopwatch import Stopwatch
from alignkit.training.checkpoints import last_checkpoint, step_of
from alignkit.training.trainer import release

if TYPE_CHECKING:
    from transformers import Trainer

Results = dict[str, SuiteResult]


class Execution:
    """Carries one run out. Only the first process writes and speaks; the others train along."""

    def __init__(self, config: RunConfig, *, quiet: bool = False) -> None:
        self.session, self.suites = open_plugins(config)
        self.arguments, self.shape = training_arguments(config, Path("unused"))
        self.config = config
        self.console = Console(quiet=quiet or rank() != 0)
        self.first = rank() == 0
        self.started = time.time()
        self.clock = Stopwatch()
        self.reference_tokens = 0
        self.said: set[str] = set()

    @property
    def reported(self) -> dict[str, Suite[Any]]:
        """The suites run before and after training."""
        return {name: self.suites[name] for name in self.config.eval.suites}

    # ------------------------------------------------------------------ entrances

    def start(self) -> Path:
        """Make the run directory and carry the run out; a run that never began to train leaves no directory behind."""
        section = self.config.run
        made = None
        if self.first:
            made = RunDir.create(section.output, section.name, method=self.session.method.name).path
        directory = RunDir(from_first(made) or "")
        self.config.run.name = directory.path.name
        with self._in(directory):
            try:
                write_text(directory.config, settings.dump(self.config)) if self.first else None
                prepared = self._prepare()
            except (AlignError, KeyboardInterrupt):
                if self.first:
                    shutil.rmtree(directory.path, ignore_errors=True)
                raise
            return self._carry_out(prepared, directory, None)

    def resume(self, directory: RunDir) -> Path:
        """Go on in an existing run directory, from its last whole checkpoint or (where there is none) from the start."""
        checkpoint = last_checkpoint(directory.checkpoints)
        with self._in(directory):
            prepared = self._prepare()
            _refuse_changed(directory, prepared)
            return self._carry_out(prepared, directory, checkpoint)

    @contextmanager
    def _in(self, directory: RunDir) -> Iterator[None]:
        """Hold the directory's lock, and send everybody's log lines to its train.log."""
        self.arguments.output_dir = str(directory.checkpoints)
        with directory.lock() if self.first else nullcontext():
            if self.first:
                self.console.log_to(directory.log)
                handler = logging.FileHandler(directory.log, delay=True)
                handler.setFormatter(
                    logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%d %H:%M:%S")
                )
                quiet_libraries(handler)
            try:
                yield
            finally:
                self.console.log_to(None)
                quiet_libraries()

    # ------------------------------------------------------------------ stages

    def _prepare(self) -> PreparedRun:
        with self.clock.stage("prepare"):
            prepared = prepare(self.config, self.session, self.suites, self.arguments.device)
            findings = check_before_training(prepared.data, self.config.data.check)
        loaded, data = prepared.loaded, prepared.data
        share = loaded.trainable / max(loaded.parameters, 1)
        self.console.info(
            f"{self.session.method.name} on {self.config.model.name}: {loaded.parameters:,} parameters, "
            f"{share:.1%} trained; scorer {prepared.scoring.backend if prepared.scoring else 'classifier'}"
        )
        for line in [*data.report.lines(), *findings, *(prepared.scoring.notes if prepared.scoring else ())]:
            self.console.info(line)
        return prepared

    def _carry_out(self, prepared: PreparedRun, directory: RunDir, checkpoint: Path | None) -> Path:
        """Evaluate, train, save, evaluate; whatever ends the run is in its record."""
        try:
            self._write_start(prepared, directory, checkpoint)
            before, samples = self._before(prepared, directory)
            trainer = self._train(prepared, directory, checkpoint, before)
            shown = self._after(prepared, directory, trainer, before, samples)
        except BaseException as error:
            status = "interrupted" if isinstance(error, (InterruptedRun, KeyboardInterrupt)) else "failed"
            self._finish(directory, status, error=str(error) or type(error).__name__)
            if isinstance(error, KeyboardInterrupt):
                raise InterruptedRun(
                    f"interrupted before a checkpoint could be saved; start again with: align resume {directory.path}"
                ) from error
            raise
        if shown is not None:  # outside: the run is finished, whatever happens to its plots
            shown()
        return directory.path

    def _write_start(self, prepared: PreparedRun, directory: RunDir, checkpoint: Path | None) -> None:
        """Write what the run is made of before it begins, so that a killed one can be understood and resumed."""
        if not self.first:
            return
        MetricsLog(directory.metrics).cut_back(step_of(checkpoint) if checkpoint else -1)
        if directory.record.is_file() and directory.status is not None:
            directory.update_record(status="running")
        else:
            directory.update_record(**description(prepared, self.started))
        if checkpoint:
            self.console.info(f"going on from {checkpoint.name}")
        self.session.run_started(directory.path)

    def _before(self, prepared: PreparedRun, directory: RunDir) -> tuple[Results, list[dict[str, Any]]]:
        """Evaluate the start model, or read what was found before an interruption."""
        if not self.first:
            return {}, []
        kept = directory.evaluation / "before"
        results: Results = {}
        if self.config.eval.before:
            missing = {name: suite for name, suite in self.reported.items() if not (kept / f"{name}.json").is_file()}
            results = {name: read_evaluation(kept, name) for name in self.reported if name not in missing}
            with self.clock.stage("evaluate before"):
                results |= self._evaluate(prepared, missing, "start model")
            for name in missing.keys() & results.keys():
                write_evaluation(kept, results[name], target="start model")
            directory.update_record(evaluation={"before": _metrics(results)})
        with self.clock.stage("present"):
            return results, sample_answers(prepared)

    def _evaluate(
        self, prepared: PreparedRun, suites: Mapping[str, Suite[Any]], name: str, start: Results | None = None
    ) -> Results:
        """Evaluate the model as it is now: the start model itself, or (with its results) against it."""
        prepared.policy.model = prepared.loaded.model
        return run_suites(
            suites, subject(prepared, name, trained=start is not None), start=start, skipped=self._skipped
        )

    def _train(self, prepared: PreparedRun, directory: RunDir, checkpoint: Path | None, before: Results) -> Trainer:
        from transformers.trainer_callback import PrinterCallback

        from alignkit.training.callbacks import CheckpointSaved, EvaluateDuring, RecordMetrics, ShowProgress
        from alignkit.training.signals import StopOnSignal
        from alignkit.training.trainer import AlignTrainer

        with (
            self.clock.stage("reference"),
            self.console.progress(len(prepared.data.train), description="reference") as bar,
        ):
            logps, cached = references(prepared, self.arguments, _Counter(bar.update))
        self.reference_tokens = sum(int(prepared.split(name).lengths().sum()) for name in logps)
        if logps:
            self.console.info(f"reference log-probabilities {'from the cache' if cached else 'computed'}")
        stop = StopOnSignal()
        record = partial(self._record, MetricsLog(directory.metrics))
        callbacks = [
            RecordMetrics(record),
            EvaluateDuring(self.config.eval.during, partial(self._evaluate_now, prepared, before), record),
            CheckpointSaved(directory.checkpoints, self.session.checkpoint_saved),
            ShowProgress(self.console),
            stop,
        ]
        order = order_of(prepared, logps)
        for line in describe_mix(self.config.data, order):
            self.console.info(f"mix: {line}")
        parts = trainer_parts(prepared, self.arguments, self.shape, logps, callbacks, order)
        external = self.session.build_trainer(parts)
        trainer = external or AlignTrainer(parts)
        trainer.pop_callback(PrinterCallback)
        if self.first and external is not None:
            directory.update_record(engine="external")
        with stop, self.clock.stage("train"):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if stop.received is not None and trainer.state.global_step < trainer.state.max_steps:
            raise InterruptedRun(
                f"stopped at step {trainer.state.global_step}, checkpoint saved; go on with: align resume {directory.path}",
                stop.received,
            )
        return trainer

    def _skipped(self, message: str) -> None:
        if message not in self.said:
            self.said.add(message)
            self.console.warn(message)

    def _evaluate_now(self, prepared: PreparedRun, before: Results, names: Sequence[str]) -> dict[str, float]:
        """Evaluate in the middle of training, which must not notice: neither random numbers nor the mode change."""
        import torch

        model = prepared.loaded.model
        training = model.training
        with self.clock.stage("evaluate during"), torch.random.fork_rng():
            results = self._evaluate(prepared, {name: self.suites[name] for name in names}, "in training", before)
        model.train(training)
        return {f"{suite}/{name}": e.value for suite, r in results.items() for name, e in r.metrics.items()}

    def _record(self, log: MetricsLog, record: dict[str, Any]) -> None:
        log.append(record)
        self.session.log(record)

    def _after(
        self,
        prepared: PreparedRun,
        directory: RunDir,
        trainer: Trainer,
        before: Results,
        samples: list[dict[str, Any]],
    ) -> Callable[[], None] | None:
        """Save the model whole, evaluate it and write what came out; return what shows it (first process alone)."""
        with self.clock.stage("save"):
            self._save(prepared, directory, trainer)
        release(trainer)
        if not self.first:
            return None
        with self.clock.stage("evaluate after"):
            after = self._evaluate(prepared, self.reported, "trained model", before)
            for result in after.values():
                directory.write_evaluation(result, target=str(directory.path))
        with self.clock.stage("present"):
            pairs = pair_samples(samples, sample_answers(prepared))
            write_jsonl(directory.samples, pairs)
        timings = self._timings(directory)
        record = self._finish(
            directory,
            "finished",
            steps=trainer.state.global_step,
            evaluation={"before": _metrics(before), "after": _metrics(after)},
            train=training_numbers(
                directory.metrics,
                prepared,
                self.reference_tokens,
                sum(trainer.steps.spent.values()) if hasattr(trainer, "steps") else 0,
                timings["train"]["seconds"],
            ),
            error=None,
        )
        return partial(present, self.console, directory, record, before, after, pairs)

    def _save(self, prepared: PreparedRun, directory: RunDir, trainer: Trainer) -> None:
        """Write model/ under a temporary name and rename it: it is there whole or not at all."""
        staged = directory.path / ".model.partial"
        if self.first:
            shutil.rmtree(staged, ignore_errors=True)
        wait_for_all()
        with prepared.loaded.as_saved():
            trainer.save_model(str(staged))
        if self.first:
            (staged / "training_args.bin").unlink(missing_ok=True)  # a pickle, and run.yaml says it all
            prepared.loaded.tokenizer.save_pretrained(staged)
            shutil.rmtree(directory.model, ignore_errors=True)
            staged.rename(directory.model)
        wait_for_all()

    def _finish(self, directory: RunDir, status: str, **changes: Any) -> dict[str, Any]:
        if not self.first:
            return {}
        seconds = directory.read_record().get("seconds", 0.0) + time.time() - self.started
        record = directory.update_record(
            status=status, ended=time.time(), seconds=seconds, timings=self._timings(directory), **changes
        )
        self.session.run_finished(record, directory.path)
        return record

    def _timings(self, directory: RunDir) -> dict[str, dict[str, float]]:
        return self.clock.added_to(directory.read_record().get("timings", {}))


class _Counter:
    """Turns batches of finished rows into a running total for a progress bar."""

    def __init__(self, update: Any) -> None:
        self.update, self.done = update, 0

    def __call__(self, rows: int) -> None:
        self.done += rows
        self.update(self.done)


def _metrics(results: Results) -> dict[str, Any]:
    return {name: dict(result.metrics) for name, result in results.items()}


def _refuse_changed(directory: RunDir, prepared: PreparedRun) -> None:
    """Refuse to go on where start model or data are no longer what the run began with (its reference would change)."""
    record = directory.read_record()
    now = {"model": prepared.loaded.fingerprint, "data": prepared.data.report.fingerprint}
    for what, value in now.items():
        began = record.get(what, {}).get("hash")
        if began is not None and began != value:
            raise CheckpointError(
                f"the {what} of {directory.path} has changed since the run began (hash {str(began)[:12]}, now "
                f"{str(value)[:12]}): put it back, or start a new run"
            )
