"""Ctrl-C, SIGTERM and SIGHUP, handled in a block. (In training, a checkpoint is saved: ``training.callbacks``.)"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any


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
