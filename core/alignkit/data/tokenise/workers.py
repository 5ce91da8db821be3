"""An ordered map over worker processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from os import _exit  # the function itself: os._exit is another one while a plugin runs
from typing import Any, TypeVar

from alignkit.errors import RunFailedError

Piece = TypeVar("Piece")
Result = TypeVar("Result")

_work: Callable[[Any], Any]


def cores() -> int:
    """Return the number of processors available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(work: Callable[[Piece], Result], pieces: Iterator[Piece], processes: int) -> Iterator[Result]:
    """Yield ``work(piece)`` for every piece, in order, computed by worker processes.

    Only a few pieces are in flight at a time, so that a fast reader does not fill the memory. Forked processes (Linux) share
    ``work``; elsewhere it is pickled once per process.

    Raises:
        RunFailedError: a process was killed. Exceptions of ``work`` are raised unchanged.
    """
    waiting: deque[Future[Result]] = deque()
    pool = ProcessPoolExecutor(processes, initializer=_start, initargs=(work,))
    try:
        for piece in pieces:
            waiting.append(pool.submit(_do, piece))
            if len(waiting) > 2 * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise RunFailedError(
            "a tokenisation process was killed (out of memory?): set data.workers to a smaller number, or to 1"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start(work: Callable[[Any], Any]) -> None:
    """Initialise a worker process, which exits with its parent: otherwise it would keep the parent's locks."""
    global _work
    _work = work
    # Ctrl-C reaches all processes of a terminal; the parent ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    _exit(1)


def _do(piece: Any) -> Any:
    return _work(piece)
