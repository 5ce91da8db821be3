"""Evaluation suites during training."""

from __future__ import annotations

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


def evaluate_during(
    config: RunConfig,
    watched: str | None,
    evaluate: Callable[[Sequence[str]], Mapping[str, float]],
    write: Callable[[dict[str, Any]], None],
) -> list[EvaluateDuring]:
    """Return the callback for the suites of ``eval.during``, if there are any; for the arguments see the class."""
    return [EvaluateDuring(config.eval.during, evaluate, write, watched)] if config.eval.during else []
