"""Evaluation suites during training, and planned pauses for an evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alignkit import RunConfig
from transformers import TrainerCallback


class EvaluateDuring(TrainerCallback):
    """Run suites during training, on every process, and log their metrics as one record a step.

    Args:
        every: suite -> steps between its evaluations. The last step is left to the evaluation after training.
        evaluate: evaluates the suites of these names now and returns ``{"SUITE/METRIC": value}``.
        write: called with the record.
        watched: the suite that chooses the best model; it is left to an evaluation at the same step.
    """

    def __init__(
        self,
        every: Mapping[str, int],
        evaluate: Callable[[Sequence[str]], Mapping[str, float]],
        write: Callable[[dict[str, Any]], None],
        watched: str | None = None,
    ) -> None:
        self.every, self.evaluate, self.write, self.watched = every, evaluate, write, watched

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        due = [name for name, steps in self.every.items() if state.global_step % steps == 0]
        due = [name for name in due if not (name == self.watched and control.should_evaluate)]
        if due and state.global_step < state.max_steps:
            values = self.evaluate(due)
            if state.is_world_process_zero:
                self.write({"step": state.global_step, "epoch": state.epoch, **values})


class PauseAt(TrainerCallback):
    """Save and stop at shares of the training steps, each once; the schedules stay those of the whole run.

    ``done``: the last step at which the run has paused before.
    """

    def __init__(self, shares: Sequence[float], done: int) -> None:
        self.shares, self.done = shares, done
        self.paused: dict[str, int] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Pause at once where a checkpoint of that step was saved and its evaluation was not."""
        self.on_step_end(args, state, control)
        control.should_save = False  # the random state is not restored yet

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step, steps = state.global_step, state.max_steps
        if self.done < step < steps and step in {math.ceil(share * steps - 1e-9) for share in self.shares}:
            self.paused = {"step": step, "steps": steps}
            control.should_save = control.should_training_stop = True

    def for_record(self, trainer: Any) -> dict[str, Any]:
        """Return the pause for run.json; None once the run has ended."""
        return {"paused": self.paused}


def evaluate_during(
    config: RunConfig,
    watched: str | None,
    evaluate: Callable[[Sequence[str]], Mapping[str, float]],
    write: Callable[[dict[str, Any]], None],
    paused: int,
) -> list[TrainerCallback]:
    """Return the callbacks for ``eval.during`` and ``run.pause_at``, where they are set.

    ``paused`` is the step of the run's last pause; for the other arguments see :class:`EvaluateDuring`.
    """
    during = [EvaluateDuring(config.eval.during, evaluate, write, watched)] if config.eval.during else []
    return [*during, *([PauseAt(config.run.pause_at, paused)] if config.run.pause_at or paused else [])]
