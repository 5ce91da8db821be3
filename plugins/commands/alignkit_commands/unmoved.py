"""A run whose loss and margins do not move says so once, after a tenth of its steps: its learning rate is probably too low."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from transformers import TrainerCallback

WATCHED = {"loss": 0.005, "rewards/margins": 0.01}
"""Logged metrics, and the change of each from which on a run counts as learning: of the loss as a share of its first values.

DPO's loss starts at ln 2; half a percent less is an implicit reward margin of 0.007."""

LEAST = 8
"""Logged values below which a trend cannot be told from chance."""

LEVEL = 0.1
"""A trend with a larger p-value counts as none."""


class SayUnmoved(TrainerCallback):
    """Warn once if no watched metric has moved in the first tenth of the steps after warm-up.

    It looks later where fewer than :data:`LEAST` values are logged by then, and never after half of the run. All follows from
    Trainer's log, so that a resumed run says what the whole one says. On-policy runs, whose loss measures nothing, are left out.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self.warn = warn
        self.looked = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.looked = self._due(args, state)  # a checkpoint from later in the run

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.looked or not self._due(args, state):
            return
        self.looked = True
        found = {name: _values(state.log_history, name) for name in WATCHED}
        found = {name: values for name, values in found.items() if len(values) >= LEAST}
        off_policy = not _values(state.log_history, "reward")
        if off_policy and state.is_world_process_zero and not any(moved(*item) for item in found.items()):
            seen = " and ".join(f"{name} ({values[0]:.4g}, now {values[-1]:.4g})" for name, values in found.items())
            self.warn(
                f"after {state.global_step} of {state.max_steps} steps there is no change beyond chance in {seen}: "
                f"train.learning_rate {args.learning_rate:g} may be too low"
            )

    @staticmethod
    def _due(args: Any, state: Any) -> bool:
        first = args.get_warmup_steps(state.max_steps) + state.max_steps / 10
        logged = len(_values(state.log_history, "loss")) >= LEAST
        return bool(first <= state.global_step <= state.max_steps / 2 and logged)


def moved(name: str, values: Sequence[float]) -> bool:
    """Return whether a metric has a trend (Kendall's rank correlation with time) and changed by as much as :data:`WATCHED` says."""
    from scipy.stats import kendalltau

    third = max(len(values) // 3, 1)
    first, last = median(values[:third]), median(values[-third:])
    size = abs(last - first) / (abs(first) or 1.0) if name == "loss" else abs(last - first)
    return bool(size >= WATCHED[name] and kendalltau(range(len(values)), values).pvalue <= LEVEL)


def _values(history: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [record[name] for record in history if name in record]
