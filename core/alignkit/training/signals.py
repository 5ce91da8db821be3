"""Ctrl-C and SIGTERM: finish the current step, save a checkpoint, and stop."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch.distributed as dist
from transformers import TrainerCallback

from alignkit.training.metrics import over_ranks


class StopOnSignal(TrainerCallback):
    """Ask the trainer to save and stop after a signal; a second signal interrupts at once. A context manager."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python does not allow it
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop if any rank received a signal."""
        # All ranks stop at the same step, whichever of them the signal reached.
        self.received = over_ranks(self.received or 0, args.device, dist.ReduceOp.MAX) or None
        if self.received is not None and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True
