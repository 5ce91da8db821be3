"""The best model of a run by a held-out loss or a suite's metric, and early stopping."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from alignkit import RunConfig
from alignkit.errors import ConfigError, suggest
from alignkit.system.together import from_first
from alignkit.training.checkpoints import step_of
from transformers import Trainer, TrainerCallback, TrainingArguments

Evaluated = tuple[Mapping[str, float], Mapping[str, bool]]
"""Metrics by ``SUITE/METRIC``, and whether a higher one is better, where that is known."""


class Best(NamedTuple):
    """The best evaluation of a sequence, and how many came after it without a better one."""

    step: int
    value: float
    waited: int


def best_of(values: Sequence[tuple[int, float]], *, greater: bool, threshold: float = 0.0) -> Best | None:
    """Return the best of ``(step, value)`` pairs; a gain of at most ``threshold`` still counts as waiting.

    >>> best_of([(1, 0.5), (2, 0.7), (3, 0.6), (4, 0.7)], greater=True)
    Best(step=2, value=0.7, waited=2)
    """
    best: Best | None = None
    for step, value in values:
        gain = 0.0 if best is None else (value - best.value if greater else best.value - value)
        waited = 0 if best is None or gain > threshold else best.waited + 1
        best = Best(step, value, waited) if best is None or gain > 0 else best._replace(waited=waited)
    return best


class WatchBest(TrainerCallback):
    """Gives Trainer the metric by which it keeps the best model, and stops training after ``patience`` evaluations without a better one.

    Everything follows from the evaluations in Trainer's state, so that a resumed run stops where the whole one would.

    Args:
        metric: ``SUITE/METRIC``, or a held-out metric such as ``eval_loss``.
        evaluate: evaluates the suite now, on every process; None: the metric is a held-out one.
        open_direction: whether the suite says if a higher metric is better.
        patience: evaluations without a better one after which training stops; None: never.
        write: called with the record of an evaluation of the suite.
    """

    def __init__(
        self,
        metric: str,
        evaluate: Callable[[], Evaluated] | None,
        write: Callable[[dict[str, Any]], None],
        *,
        open_direction: bool,
        patience: int | None,
        threshold: float,
    ) -> None:
        self.metric, self.evaluate, self.write = metric, evaluate, write
        self.open_direction, self.patience, self.threshold = open_direction, patience, threshold
        self.key = f"eval_{metric.removeprefix('eval_')}"
        """Name in Trainer's evaluations."""
        self.best: Best | None = None
        self.stopped: str | None = None
        """Why training was stopped early."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.evaluate is not None:  # a metric that does not exist is refused before the first step
            self._evaluated(args)
        self._look(args, state, control)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        if self.evaluate is not None:
            values = self._evaluated(args)
            metrics.update({f"eval_{name}": value for name, value in values.items()})
            state.log_history.append({"step": state.global_step, self.key: metrics[self.key]})
            if state.is_world_process_zero:
                self.write({"step": state.global_step, "epoch": state.epoch, **values})
        elif self.key not in metrics:
            raise _unknown(self.key, metrics)
        self._look(args, state, control)

    def require(self, losses: Mapping[str, float]) -> None:
        """Raise ``ConfigError`` unless the metric is among a held-out loss and its metrics."""
        if self.key not in (known := {f"eval_{name}": value for name, value in losses.items()}):
            raise _unknown(self.key, known)

    def for_record(self, trainer: Trainer) -> dict[str, Any]:
        """Return what run.json says of the best model: ``best``, and ``stopped`` if training was stopped early."""
        if self.best is None:
            return {}
        saved = trainer.args.load_best_model_at_end and step_of(Path(trainer.state.best_model_checkpoint or ""))
        best: dict[str, Any] = {"metric": self.metric, "value": self.best.value, "step": self.best.step}
        best["saved"] = saved == self.best.step
        return {"best": best, "stopped": self.stopped}

    def _evaluated(self, args: Any) -> Mapping[str, float]:
        """Evaluate the suite; raise ``ConfigError`` if it lacks the metric or its direction."""
        assert self.evaluate is not None
        values, directions = from_first(self.evaluate())  # the decisions of all processes are the same
        if self.metric not in values:
            raise _unknown(self.metric, values)
        if self.open_direction:
            if self.metric not in directions:
                raise ConfigError(
                    f"suite {self.metric.partition('/')[0]} does not say whether a higher {self.metric} is better: "
                    "set train.greater_is_better to true or false"
                )
            args.greater_is_better = directions[self.metric]
        return values

    def _look(self, args: Any, state: Any, control: Any) -> None:
        """Find the best evaluation so far, and stop if it is too long ago."""
        values = [(r["step"], r[self.key]) for r in state.log_history if self.key in r and r["step"] > 0]
        self.best = best_of(values, greater=args.greater_is_better, threshold=self.threshold)
        if self.best is not None and self.patience is not None and self.best.waited >= self.patience:
            times = f"{self.best.waited} evaluation{'s' * (self.best.waited != 1)}"
            self.stopped = f"no better {self.metric} in {times}: best {self.best.value:.6g} at step {self.best.step}"
            control.should_training_stop = control.should_log = True


def _unknown(metric: str, known: Mapping[str, float]) -> ConfigError:
    names = ", ".join(known) or "none"
    return ConfigError(
        f"train.stop_on, train.metric_for_best_model: no evaluation gives {metric}{suggest(metric, list(known))} "
        f"(there are {names})"
    )


def watch_best(
    config: RunConfig,
    arguments: TrainingArguments,
    evaluate: Callable[[], Evaluated] | None,
    write: Callable[[dict[str, Any]], None],
) -> list[WatchBest]:
    """Return the callback for the metric that chooses the best model, if there is one; for the arguments see the class."""
    train, metric = config.train, arguments.metric_for_best_model
    if metric is None:
        return []
    return [
        WatchBest(
            metric.removeprefix("eval_") if evaluate else metric,
            evaluate,
            write,
            open_direction=evaluate is not None and "greater_is_better" not in train.arguments,
            patience=train.early_stopping_patience or (None if train.stop_on is None else 1),
            threshold=train.early_stopping_threshold,
        )
    ]
