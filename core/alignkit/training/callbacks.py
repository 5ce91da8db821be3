"""Callbacks of the training loop: metrics file, plugins, the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback


class RecordMetrics(TrainerCallback):
    """Pass every log record to ``write``, step and epoch first, on the first process only; the last step is always logged."""

    def __init__(self, write: Callable[[dict[str, Any]], None]) -> None:
        self.write = write

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and "train_runtime" not in logs:  # not Trainer's closing summary
            head = {"step": state.global_step, "epoch": logs.get("epoch", state.epoch)}
            self.write(head | {name: value for name, value in logs.items() if name != "epoch"})


class AtEnd(TrainerCallback):
    """Do something once training has ended."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.act = act

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.act()


class CheckpointSaved(TrainerCallback):
    """Tell the plugins of every complete checkpoint."""

    def __init__(self, directory: Path, tell: Callable[[int, Path], None]) -> None:
        self.directory, self.tell = directory, tell

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.tell(state.global_step, self.directory / f"checkpoint-{state.global_step}")
