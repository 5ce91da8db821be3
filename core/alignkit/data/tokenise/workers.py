"""Work on many pieces in several processes, the results in the order of the pieces."""

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
from typing import Any, TypeVar

from alignkit.errors import RunFailedError

Piece = TypeVar("Piece")
Result = TypeVar("Result")

_work: Callable[[Any], Any]


def cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(work: Callable[[Piece], Result], pieces: Iterator[Piece], processes: int) -> Iterator[Result]:
    """Yield ``work(piece)`` of every piece, in order, done by so many processes.

    Only a few pieces are in flight at a time, so that a fast reader does not fill the memory. Where the processes are forked
    (Linux), ``work`` is not copied; elsewhere it is pickled once for each.

    Raises:
        RunFailedError: a process was killed. What ``work`` raises is raised here.
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
            "a process that tokenises was killed (out of memory?): set data.workers to fewer, or to 1"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start(work: Callable[[Any], Any]) -> None:
    """Make a process ready, and let it end with its parent, however that ends: it would keep the parent's locks otherwise."""
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the parent ends us
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _do(piece: Any) -> Any:
    return _work(piece)
