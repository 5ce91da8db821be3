"""One run from its configuration to its record: plan, prepare, evaluate, train, save, evaluate, report.

:func:`start` and :func:`resume` are the entrances, :func:`_carry_out` the order of the stages. Every process of a
distributed run comes through here and evaluates; only the first one writes and prints (:class:`RunRecorder`).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit import settings
from alignkit.config import RunConfig
from alignkit.contract.registry import provided
from alignkit.errors import InterruptedRun
from alignkit.rundir.directory import RunDir
from alignkit.rundir.evaluations import read_evaluation, write_evaluation
from alignkit.runs.evaluator import Results, RunEvaluator, directions_of, values_of
from alignkit.runs.parts import engine_parts
from alignkit.runs.prepare import PreparedRun, RunPlan, load_start_policy, plan_run, prepare
from alignkit.runs.record import callbacks_record, description, refuse_changed
from alignkit.runs.recorder import RunRecorder
from alignkit.runs.references import References, order_by_margin, references, scored_splits
from alignkit.runs.results import RunResults, metrics_of
from alignkit.runs.saving import release, save_model
from alignkit.system.environment import forget_peak_memory, peak_memory_gb
from alignkit.system.files import write_text
from alignkit.system.together import first_does, gathered, together
from alignkit.training.checkpoints import last_checkpoint

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback

    from alignkit.data.table.tokenised_rows import TokenisedRows


def start(config: RunConfig, *, quiet: bool = False) -> Path:
    """Create the run directory and carry the run out; a run that fails before training leaves no directory behind."""
    plan = plan_run(config)
    where, method = config.run, plan.session.method.name
    made = first_does("making the run directory", lambda: RunDir.create(where.output, where.name, method=method))
    directory = RunDir(made.path)
    config.run.name = directory.path.name
    recorder = RunRecorder(directory, plan.session, quiet=quiet)
    with recorder.open():
        try:
            if recorder.first:
                _write_config(directory, config)
            run = _prepare(plan, recorder)
        except BaseException:
            recorder.discard()
            raise
        return _carry_out(plan, run, recorder, checkpoint=None)


def _write_config(directory: RunDir, config: RunConfig) -> None:
    """Write run.yaml, under the line of an installed package by which editors check it."""
    head = provided("align.reports", "schema") or (lambda method: "")
    write_text(directory.config, head(config.method.name) + settings.dump(config))


def accepted_changes(directory: RunDir, config: RunConfig, *, accept: bool) -> list[dict[str, Any]]:
    """Return what ``config`` changes of a run that is resumed, as an installed package allows it."""
    check = provided("align.checks", "resume")
    return check(directory, config, accept=accept) if check else []


def resume(config: RunConfig, directory: RunDir, *, change: bool = False, quiet: bool = False) -> Path:
    """Resume a run in its directory, from its last whole checkpoint or, where there is none, from the start.

    ``change``: accept a configuration that differs from the run's record.
    """
    plan = plan_run(config)
    changes = first_does("comparing the settings", lambda: accepted_changes(directory, config, accept=change))
    checkpoint = last_checkpoint(directory.checkpoints)
    recorder = RunRecorder(directory, plan.session, quiet=quiet)
    with recorder.open():
        run = _prepare(plan, recorder)
        refuse_changed(directory, {"model": run.loaded.fingerprint, "data": run.data.report.fingerprint})
        if recorder.first and changes:
            _write_config(directory, config)
        return _carry_out(plan, run, recorder, checkpoint, changes)


def _carry_out(
    plan: RunPlan,
    run: PreparedRun,
    recorder: RunRecorder,
    checkpoint: Path | None,
    changes: Sequence[dict[str, Any]] = (),
) -> Path:
    """Carry out the stages of a prepared run; whatever ends it is in its record."""
    directory, config = recorder.directory, plan.config
    evaluator = RunEvaluator(
        suites=plan.suites,
        loaded=run.loaded,
        policy=run.policy,
        config=config,
        held_out=run.data.held_out,
        start_policy=lambda: load_start_policy(config, plan.session, run.loaded),
        warn=recorder.warn_once,
    )
    sample = partial(provided("align.reports", "samples") or (lambda *_: []), run.loaded, run.data.eval, config.eval)
    method = plan.session.method
    about = description(config, method, run.loaded, run.scorer, run.data.report, recorder.started)
    about["precision"] = run.policy.precision
    with recorder.outcome():
        together("the run's record", lambda: recorder.begin(about, checkpoint, changes))
        again = bool(changes)  # to be comparable with the results after training
        before = _evaluate_start(evaluator, config.eval.suites, recorder, again) if config.eval.before else {}
        with recorder.stage("present"):
            samples = together("the samples", sample)
        splits = scored_splits(config, method.needs, plan.arguments, run.data)
        logps = _score_reference(plan, run, splits, recorder)
        evaluate = partial(evaluator.during_training, start=before)
        changed = [change["key"] for change in changes]
        trainer = _train(plan, run, logps, recorder, checkpoint, changed, evaluate)
        peaks = gathered("the peak of memory", round(getattr(run.policy, "memory_gb", peak_memory_gb)(), 3))
        release(trainer)
        with recorder.stage("evaluate after"):
            after = evaluator.trained_model(config.eval.suites, before)
        results = RunResults(
            trainer=trainer,
            loaded=run.loaded,
            before=before,
            after=after,
            samples=samples,
            reference_tokens=sum(int(rows.lengths().sum()) for rows in splits.values()),
            processes=about["processes"] | {"peak_memory_gb": peaks},
        )
        if not results.paused:
            with recorder.stage("present"):
                results = replace(results, samples=together("the samples", partial(sample, samples)))
        record = first_does("writing the run's results", partial(results.write, recorder))
    first_does("the end of the run", partial(results.show, recorder, record))
    return directory.path


def _prepare(plan: RunPlan, recorder: RunRecorder) -> PreparedRun:
    """Load model and data, check the data, and print what there is."""
    plan.arguments.output_dir = str(recorder.directory.checkpoints)
    forget_peak_memory()

    def checked() -> tuple[PreparedRun, list[str]]:
        run = prepare(plan)
        notes = run.notes
        if recorder.first and (check_saving := provided("align.checks", "saving")):
            steps = len(run.data.train) // plan.shape.rows
            notes += check_saving(run.loaded, plan.arguments, steps, recorder.directory.path)
        if check_data := provided("align.checks", "data"):
            notes = [*check_data(run.data, plan.config.data.check), *notes]
        return run, notes

    with recorder.stage("prepare"):
        run, notes = together("model and data", checked)
    recorder.console.info(
        f"{plan.session.method.name} on {plan.config.model.name}: {run.loaded.parameters:,} parameters, "
        f"{run.loaded.trainable / max(run.loaded.parameters, 1):.1%} trained; scorer {run.scorer}"
        + "".join(f"; {what} {dtype}" for what, dtype in run.policy.precision.items())
    )
    for line in [*run.data.report.lines(), *notes]:
        recorder.console.info(line)
    return run


def _evaluate_start(evaluator: RunEvaluator, names: list[str], recorder: RunRecorder, again: bool) -> Results:
    """Evaluate the start model with every suite that has no result from before an interruption, or all of them ``again``."""
    kept = recorder.directory.evaluation / "before"
    have = [name for name in names if not again and (kept / f"{name}.json").is_file()]
    results = first_does("the results of the start model", lambda: {name: read_evaluation(kept, name) for name in have})
    with recorder.stage("evaluate before"):
        found = evaluator.start_model(name for name in names if name not in results)

    def write() -> None:
        for result in found.values():
            write_evaluation(kept, result, target="start model")

    first_does("writing the results of the start model", write)
    results |= found
    recorder.update(evaluation={"before": metrics_of(results)})
    return results


def _score_reference(
    plan: RunPlan, run: PreparedRun, splits: Mapping[str, TokenisedRows], recorder: RunRecorder
) -> References:
    """Score the rows by the start model where the method or the order of the rows needs it."""
    rows = sum(map(len, splits.values()))
    show = provided("align.reports", "progress")
    bars = show(recorder.console, rows, description="reference") if show and rows else nullcontext()
    with recorder.stage("reference"), bars as bar:
        done = 0

        def tick(rows: int) -> None:
            nonlocal done
            done += rows
            if bar is not None:
                bar.update(done)

        logps, cached = references(splits, run.policy, run.loaded.fingerprint, plan.config, plan.arguments, tick)
    if logps:
        recorder.console.info(f"reference log-probabilities {'from the cache' if cached else 'computed'}")
    return logps


def _train(
    plan: RunPlan,
    run: PreparedRun,
    logps: References,
    recorder: RunRecorder,
    checkpoint: Path | None,
    changed: Sequence[str],
    evaluate: Any,
) -> Trainer:
    """Train from the start or a checkpoint; raises :class:`InterruptedRun` after a signal, with a checkpoint saved."""
    from alignkit.training.callbacks import AtEnd, StopOnSignal

    directory, stop = recorder.directory, StopOnSignal()
    trainer = _build_trainer(plan, run, logps, recorder, evaluate, stop)

    def save() -> None:
        cut_short = stop.received or callbacks_record(trainer).get("paused")
        if trainer.state.global_step >= trainer.state.max_steps or not cut_short:
            recorder.require_directory()
            with recorder.stage("save"):
                save_model(trainer, run.loaded, directory.model)

    trainer.callback_handler.callbacks.insert(0, AtEnd(save))  # before the trackers', which may fail
    with stop.listening(), recorder.stage("train"):
        more = {"changed": changed} if changed else {}
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None, **more)
    if stop.received is not None and trainer.state.global_step < trainer.state.max_steps:
        raise InterruptedRun(
            f"stopped at step {trainer.state.global_step}, checkpoint saved; "
            f"resume with: align resume {shlex.quote(str(directory.path))}",
            stop.received,
        )
    if why := callbacks_record(trainer).get("stopped"):
        recorder.console.info(f"stopped early at step {trainer.state.global_step}: {why}")
    return trainer


def _build_trainer(
    plan: RunPlan, run: PreparedRun, logps: References, recorder: RunRecorder, evaluate: Any, stop: TrainerCallback
) -> Trainer:
    """Return the trainer of the method, else of the engine, with the callbacks of core and of installed packages."""
    from transformers.trainer_callback import PrinterCallback

    from alignkit.training.callbacks import CheckpointSaved, RecordMetrics
    from alignkit.training.held_out import held_out_loss

    def evaluate_now(names: Any) -> Results:
        with recorder.stage("evaluate during"):
            found: Results = evaluate(names)
            return found

    def evaluate_watched() -> tuple[Mapping[str, float], Mapping[str, bool]]:
        found = evaluate_now([plan.watched])
        return values_of(found), directions_of(found)

    def callbacks_of(name: str, *arguments: Any) -> list[Any]:
        make = provided("align.callbacks", name)
        return [*make(*arguments)] if make else []

    directory, watched = recorder.directory, evaluate_watched if plan.watched else None
    best = callbacks_of("best", plan.config, plan.arguments, watched, recorder.log)
    order = order_by_margin(plan.config, run.data.train, run.order, logps)
    for line in order.described(plan.config.data.names):
        recorder.console.info(f"mix: {line}")
    done = (directory.read_record().get("paused") or {"step": 0})["step"]
    callbacks = [
        RecordMetrics(recorder.log),
        *callbacks_of("during", plan.config, plan.watched, lambda s: values_of(evaluate_now(s)), recorder.log, done),
        *best,
        CheckpointSaved(directory.checkpoints, plan.session.checkpoint_saved),
        *callbacks_of("progress", recorder.console),
        stop,
    ]
    parts = engine_parts(plan, run, logps, order, callbacks)
    external = plan.session.build_trainer(parts)
    trainer: Trainer = external or plan.engine.trainer(parts)
    trainer.pop_callback(PrinterCallback)
    if external is not None:
        recorder.update(engine="external")
    elif measure := provided("align.callbacks", "memory"):
        trainer.add_callback(measure(trainer, recorder.update, recorder.console))
    if external is None and best and plan.watched is None and (row := parts.eval[:1]):  # does the metric exist?
        best[0].require(held_out_loss(trainer.steps, trainer.model, row, 0.0, trainer.compute_loss_context_manager))
    return trainer
