"""The end of a run: what its stages gave is written, then shown."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignkit.contract import LoadedModel
from alignkit.contract.registry import provided
from alignkit.rundir.directory import RunDir
from alignkit.rundir.evaluations import write_evaluation
from alignkit.runs.evaluator import Results
from alignkit.runs.record import callbacks_record
from alignkit.runs.recorder import RunRecorder
from alignkit.system.files import write_jsonl
from alignkit.system.manifest import manifest

if TYPE_CHECKING:
    from transformers import Trainer


@dataclass(frozen=True)
class RunResults:
    """What the stages of a run gave."""

    trainer: Trainer
    loaded: LoadedModel
    before: Results
    after: Results
    samples: list[dict[str, Any]]
    reference_tokens: int
    """Tokens scored by the start model."""
    processes: Mapping[str, Any]
    """The processes of the run, with the peak of memory of each."""

    @property
    def paused(self) -> Mapping[str, int] | None:
        """The step at which the run paused and its number of steps; None: it ended."""
        paused: Mapping[str, int] | None = callbacks_record(self.trainer).get("paused")
        return paused

    def write(self, recorder: RunRecorder) -> dict[str, Any]:
        """Write the results into the run's directory, and return the record."""
        directory, trainer, paused = recorder.directory, self.trainer, self.paused
        kept = directory.evaluation / f"step-{paused['step']}" if paused else directory.evaluation
        for result in self.after.values():
            write_evaluation(kept, result, target=str(directory.path))
        ended = {"train": self._numbers(recorder), "error": None, **callbacks_record(trainer)}
        if paused:
            return recorder.finish("paused", **ended)
        write_jsonl(directory.samples, self.samples)
        record = recorder.update(
            steps=trainer.state.global_step,
            evaluation={"before": metrics_of(self.before), "after": metrics_of(self.after)},
            files=_files(directory),
            processes=self.processes,
            **ended,
        )
        recorder.write_documents(record)
        return recorder.finish("finished")

    def _numbers(self, recorder: RunRecorder) -> Mapping[str, Any]:
        """Return loss, speed and cost of training, as an installed package measures them."""
        measure = provided("align.reports", "numbers") or (lambda *_: {})
        steps = getattr(self.trainer, "steps", None)
        rollout_tokens = sum(steps.spent.values()) if steps else 0
        seconds = recorder.timings()["train"]["seconds"]
        found: Mapping[str, Any] = measure(
            recorder.directory.metrics, self.loaded, self.reference_tokens, rollout_tokens, seconds
        )
        return found

    def show(self, recorder: RunRecorder, record: Mapping[str, Any]) -> None:
        """Print how the run ended, and tell the plugins."""
        console, directory = recorder.console, recorder.directory
        if self.paused:
            so_far = "paused at step {step} of {steps}".format_map(self.paused)
            console.info(f"{so_far}; continue with: align resume {shlex.quote(str(directory.path))}")
        else:
            if summary := provided("align.reports", "summary"):
                summary(console, self.before, self.after, self.samples)
            console.info(f"run: {directory.path}    model: {directory.model}")
        recorder.finished(record)


def metrics_of(results: Results) -> dict[str, Any]:
    """Return the metrics of every suite, as run.json has them."""
    return {name: dict(result.metrics) for name, result in results.items()}


def _files(directory: RunDir) -> dict[str, Any]:
    """Return the manifest of the saved model, without its card, which people edit."""
    return {name: about for name, about in manifest(directory.model).items() if name != "README.md"}
