"""One run from configuration to record: prepare, evaluate, train, save, evaluate, report."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit import settings
from alignkit.arguments import training_arguments
from alignkit.checkpoints import last_checkpoint, step_of
from alignkit.config import RunConfig
from alignkit.console import Console, comparison_table
from alignkit.distributed import from_first, rank, release, wait_for_all
from alignkit.errors import AlignError, CheckpointError, InterruptedRun
from alignkit.evaluation import run_suites
from alignkit.prepare import Prepared, open_plugins, prepare, references, trainer_parts
from alignkit.quiet import quiet_libraries
from alignkit.rundir import MetricsLog, RunDir, environment, read_evaluation, write_evaluation, write_jsonl, write_text
from alignkit.types import SuiteResult

if TYPE_CHECKING:
    from transformers import Trainer

Results = dict[str, SuiteResult]


class Execution:
    """Carries one run out. Only the first process writes and speaks; the others train along."""

    def __init__(self, config: RunConfig) -> None:
        self.session, self.suites = open_plugins(config)
        self.arguments, self.shape = training_arguments(config, Path("unused"))
        self.config = config
        self.console = Console(quiet=rank() != 0)
        self.first = rank() == 0
        self.started = time.time()

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

    def _prepare(self) -> Prepared:
        prepared = prepare(self.config, self.session, self.suites, self.arguments.device)
        loaded, data = prepared.loaded, prepared.data
        share = loaded.trainable / max(loaded.parameters, 1)
        self.console.info(
            f"{self.session.method.name} on {self.config.model.name}: {loaded.parameters:,} parameters, "
            f"{share:.1%} trained; scorer {prepared.scorer.backend}"
        )
        for line in [*data.report.lines(), *prepared.scorer.notes]:
            self.console.info(line)
        return prepared

    def _carry_out(self, prepared: Prepared, directory: RunDir, checkpoint: Path | None) -> Path:
        """Evaluate, train, save, evaluate; whatever ends the run is in its record."""
        try:
            self._write_start(prepared, directory, checkpoint)
            before, samples = self._before(prepared, directory)
            trainer = self._train(prepared, directory, checkpoint)
            self._after(prepared, directory, trainer, before, samples)
        except BaseException as error:
            status = "interrupted" if isinstance(error, (InterruptedRun, KeyboardInterrupt)) else "failed"
            self._finish(directory, status, error=str(error) or type(error).__name__)
            if isinstance(error, KeyboardInterrupt):
                raise InterruptedRun(
                    f"interrupted before a checkpoint could be saved; start again with: align resume {directory.path}"
                ) from error
            raise
        return directory.path

    def _write_start(self, prepared: Prepared, directory: RunDir, checkpoint: Path | None) -> None:
        """Write what the run is made of before it begins, so that a killed one can be understood and resumed."""
        if not self.first:
            return
        MetricsLog(directory.metrics).cut_back(step_of(checkpoint) if checkpoint else -1)
        if directory.record.is_file() and directory.status is not None:
            directory.update_record(status="running")
        else:
            directory.update_record(**self._description(prepared))
        if checkpoint:
            self.console.info(f"going on from {checkpoint.name}")
        self.session.run_started(directory.path)

    def _description(self, prepared: Prepared) -> dict[str, Any]:
        method, loaded = self.session.method, prepared.loaded
        return {
            "status": "running",
            "method": method.name,
            "paper": method.paper,
            "conventions": method.conventions(),
            "config": self.config.model_dump(mode="json"),
            "seed": self.config.run.seed,
            "model": {
                "name": self.config.model.name,
                "path": loaded.path,
                "hash": loaded.fingerprint,
                "parameters": loaded.parameters,
                "trainable": loaded.trainable,
                "adapter": loaded.is_adapter,
                "scorer": prepared.scorer.backend,
            },
            "data": prepared.data.report.to_dict(),
            "started": self.started,
            "environment": environment(),
        }

    def _before(self, prepared: Prepared, directory: RunDir) -> tuple[Results, list[dict[str, Any]]]:
        """Evaluate the start model, or read what was found before an interruption."""
        if not self.first:
            return {}, []
        kept = directory.evaluation / "before"
        results: Results = {}
        if self.config.eval.before:
            missing = {name: suite for name, suite in self.suites.items() if not (kept / f"{name}.json").is_file()}
            results = {name: read_evaluation(kept, name) for name in self.suites if name not in missing}
            results |= self._evaluate(prepared, missing, "start model", None)
            for name in missing.keys() & results.keys():
                write_evaluation(kept, results[name], target="start model")
            directory.update_record(evaluation={"before": _metrics(results)})
        return results, self._sample(prepared)

    def _evaluate(self, prepared: Prepared, suites: Any, target: str, start: Results | None) -> Results:
        prepared.policy.model = prepared.loaded.model
        return run_suites(
            suites,
            target=target,
            policy=prepared.policy,
            tokenizer=prepared.loaded.tokenizer,
            examples=prepared.data.held_out,
            start=start,
            skipped=self.console.warn,
        )

    def _sample(self, prepared: Prepared) -> list[dict[str, Any]]:
        """Answer a few held-out prompts, spread over the data."""
        from alignkit.samples import generate_samples

        rows, wanted = prepared.data.eval, self.config.eval.samples
        if not wanted or not len(rows):
            return []
        chosen = [rows[i * len(rows) // wanted] for i in range(min(wanted, len(rows)))]
        loaded, tokenizer = prepared.loaded, prepared.loaded.tokenizer
        answers = generate_samples(
            loaded.model, tokenizer, [e.prompt for e in chosen], self.config.eval.sample_tokens, self.config.run.seed
        )
        prompts = [tokenizer.decode(e.prompt, skip_special_tokens=True) for e in chosen]
        return [
            {"id": example.id, "prompt": prompt, "answer": answer}
            for example, prompt, answer in zip(chosen, prompts, answers, strict=True)
        ]

    def _train(self, prepared: Prepared, directory: RunDir, checkpoint: Path | None) -> Trainer:
        from transformers.trainer_callback import PrinterCallback

        from alignkit.callbacks import CheckpointSaved, RecordMetrics, ShowProgress
        from alignkit.interrupts import StopOnSignal
        from alignkit.trainer import AlignTrainer

        with self.console.progress(len(prepared.data.train), description="reference") as bar:
            logps, cached = references(prepared, self.arguments, _Counter(bar.update))
        if logps:
            self.console.info(f"reference log-probabilities {'from the cache' if cached else 'computed'}")
        stop = StopOnSignal()
        log = MetricsLog(directory.metrics)
        callbacks = [
            RecordMetrics(partial(self._record, log)),
            CheckpointSaved(directory.checkpoints, self.session.checkpoint_saved),
            ShowProgress(self.console),
            stop,
        ]
        parts = trainer_parts(prepared, self.arguments, self.shape, logps, callbacks)
        external = self.session.build_trainer(parts)
        trainer = external or AlignTrainer(parts)
        trainer.pop_callback(PrinterCallback)
        if self.first and external is not None:
            directory.update_record(engine="external")
        with stop:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if stop.received is not None and trainer.state.global_step < trainer.state.max_steps:
            raise InterruptedRun(
                f"stopped at step {trainer.state.global_step}, checkpoint saved; go on with: align resume {directory.path}",
                stop.received,
            )
        return trainer

    def _record(self, log: MetricsLog, record: dict[str, Any]) -> None:
        log.append(record)
        self.session.log(record)

    def _after(
        self,
        prepared: Prepared,
        directory: RunDir,
        trainer: Trainer,
        before: Results,
        samples: list[dict[str, Any]],
    ) -> None:
        """Save the model whole, evaluate it, and write and show what came out."""
        self._save(prepared, directory, trainer)
        release(trainer)
        if not self.first:
            return
        after = self._evaluate(prepared, self.suites, "trained model", before)
        for result in after.values():
            directory.write_evaluation(result, target=str(directory.path))
        answers = {sample["id"]: sample["answer"] for sample in self._sample(prepared)}
        pairs = [
            {"id": s["id"], "prompt": s["prompt"], "before": s["answer"], "after": answers[s["id"]]} for s in samples
        ]
        write_jsonl(directory.samples, pairs)
        record = self._finish(
            directory,
            "finished",
            steps=trainer.state.global_step,
            evaluation={"before": _metrics(before), "after": _metrics(after)},
            train=_closing_numbers(directory.metrics),
            error=None,
        )
        self._present(directory, record, before, after, pairs)

    def _save(self, prepared: Prepared, directory: RunDir, trainer: Trainer) -> None:
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

    def _present(
        self, directory: RunDir, record: dict[str, Any], before: Results, after: Results, samples: list[dict[str, Any]]
    ) -> None:
        from alignkit.card import model_card

        write_text(directory.model / "README.md", model_card(record))
        if self.config.run.plots:
            from alignkit.plots import draw

            draw(directory.path)
        self.console.table(comparison_table(before, after))
        for sample in samples[:2]:
            for part in ("prompt", "before", "after"):
                self.console.info(f"{part:>7}: {_short(sample[part])}")
        self.console.info(f"run: {directory.path}    model: {directory.model}")

    def _finish(self, directory: RunDir, status: str, **changes: Any) -> dict[str, Any]:
        if not self.first:
            return {}
        seconds = directory.read_record().get("seconds", 0.0) + time.time() - self.started
        record = directory.update_record(status=status, ended=time.time(), seconds=seconds, **changes)
        self.session.run_finished(record, directory.path)
        return record


class _Counter:
    """Turns batches of finished rows into a running total for a progress bar."""

    def __init__(self, update: Any) -> None:
        self.update, self.done = update, 0

    def __call__(self, rows: int) -> None:
        self.done += rows
        self.update(self.done)


def _short(text: str, width: int = 160) -> str:
    """Return a text on one line, cut to a width a terminal shows."""
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 3]}..."


def _metrics(results: Results) -> dict[str, Any]:
    return {name: dict(result.metrics) for name, result in results.items()}


def _closing_numbers(path: Path) -> dict[str, Any]:
    """Return the closing numbers of the training loss: last value, tokens, and mean speed over the logging steps."""
    import json

    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    records = [record for record in map(json.loads, lines) if "loss" in record]
    if not records:
        return {"loss": None, "tokens": 0, "tokens_per_second": None}
    speeds = [record["tokens_per_second"] for record in records if record.get("tokens_per_second")]
    return {
        "loss": records[-1]["loss"],
        "tokens": records[-1].get("tokens"),
        "tokens_per_second": sum(speeds) / len(speeds) if speeds else None,
    }


def _refuse_changed(directory: RunDir, prepared: Prepared) -> None:
    """Refuse to go on where start model or data are no longer what the run began with (its reference would change)."""
    record = directory.read_record()
    now = {"model": prepared.loaded.fingerprint, "data": prepared.data.report.to_dict().get("hash")}
    for what, value in now.items():
        began = record.get(what, {}).get("hash")
        if began is not None and began != value:
            raise CheckpointError(
                f"the {what} of {directory.path} has changed since the run began (hash {str(began)[:12]}, now "
                f"{str(value)[:12]}): put it back, or start a new run"
            )
