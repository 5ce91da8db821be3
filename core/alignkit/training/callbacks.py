"""Callbacks of the training loop: metrics file, plugins, signals, the end."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback

from alignkit.system.distributed import each_rank
from alignkit.system.signals import handled


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


class StopOnSignal(TrainerCallback):
    """Ask the trainer to save and stop after a signal; a second signal interrupts at once."""

    def __init__(self) -> None:
        self.received: int | None = None

    def listening(self) -> AbstractContextManager[None]:
        """Receive signals in the block."""
        return handled((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop if any rank received a signal."""
        # All ranks stop at the same step, whichever of them the signal reached.
        self.received = int(max(each_rank(self.received or 0))[0]) or None
        if self.received is not None and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True
