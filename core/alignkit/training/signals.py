"""Ctrl-C, SIGTERM and SIGHUP: in training, save a checkpoint after the current step and stop; else, stop at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any

from transformers import TrainerCallback

from alignkit.system.distributed import each_rank


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, raised in the main thread as Ctrl-C is."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


def _terminate(number: int, _frame: FrameType | None) -> None:
    raise Terminated(number)


@contextmanager
def handled(numbers: Iterable[int], handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Handle signals in the block; SIGHUP only where it is not ignored (``nohup``). Outside the main thread, none are."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # elsewhere Python does not allow it
        for number in numbers:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def terminable() -> AbstractContextManager[None]:
    """Let SIGTERM and SIGHUP raise :class:`Terminated` in the block, so that it can clean up."""
    return handled((signal.SIGTERM, signal.SIGHUP), _terminate)


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
