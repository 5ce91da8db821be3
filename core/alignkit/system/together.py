"""Work that all processes of a run do together: evaluation runs the same code on each, and what the model does is shared out.

Everything is exchanged by :func:`gathered`, errors too: a process that fails meets the others at their next exchange,
wherever that is, and its error is raised there, so that none of them waits for it.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from alignkit.errors import AlignError, RunFailedError, described
from alignkit.system.distributed import patient_group, rank, world_size

T = TypeVar("T")


@dataclass
class _Block:
    """A call of :func:`together`, and what ended it on every process."""

    failed: BaseException | None = None


_block: ContextVar[_Block | None] = ContextVar("block", default=None)


def together(what: str, act: Callable[[], T]) -> T:
    """Return ``act()``, which every process calls; what is raised on one of them is raised on all.

    Inside, :func:`shared` shares items out.
    """
    if world_size() == 1:
        return act()
    before = _block.set(_Block())
    try:
        try:
            result = act()
        except (Exception, SystemExit) as error:
            gathered(what, None, error)
            raise
        gathered(what, None)
        return result
    finally:
        _block.reset(before)


def gathered(place: str, value: T, error: BaseException | None = None) -> list[T]:
    """Return every process's value, in the order of their ranks; each process must call this at the same ``place`` of the program.

    Raises the error of the first process that has one, and :class:`~alignkit.errors.RunFailedError` if a process is at
    another place or has ended.
    """
    if world_size() == 1:
        return [value]
    import torch.distributed as dist

    block = _block.get() or _Block()
    found: list[Any] = [None] * world_size()
    if block.failed is None:
        try:
            dist.all_gather_object(found, (place, value, error and _sendable(error)), group=patient_group())
        except RuntimeError as lost:
            block.failed = RunFailedError("another process of the run has ended")
            block.failed.__cause__ = lost
        else:
            at, failure = next(((i, sent) for i, (_, _, sent) in enumerate(found) if sent is not None), (0, None))
            differs = next((i for i, (at_place, *_) in enumerate(found) if at_place != found[0][0]), 0)
            if failure is None and differs:
                failure = RunFailedError(f"process 0 is at {found[0][0]} and process {differs} at {found[differs][0]}")
            block.failed = error if error is not None and at == rank() else failure
            if block.failed is not None:
                block.failed.origin = getattr(block.failed, "origin", at)  # type: ignore[union-attr]  # the process that prints it
    if block.failed is not None:
        raise block.failed
    return [sent for _, sent, _ in found]


def _sendable(error: BaseException) -> BaseException:
    """Return an error that another process can read: alignkit's own, or its description."""
    with suppress(Exception):
        if isinstance(error, AlignError) and pickle.loads(pickle.dumps(error)):
            return error
    return RunFailedError(str(error) if isinstance(error, AlignError) else described(error))


def from_first(value: T) -> T:
    """Return the first process's value on every process."""
    return gathered("a value of the first process", value)[0]


def first_does(what: str, act: Callable[[], T]) -> T:
    """Return the first process's ``act()`` on every process; the others do not call it."""
    return together(what, lambda: from_first(act() if rank() == 0 else None))  # type: ignore[return-value]


def sharers() -> int:
    """Return the number of processes among which :func:`shared` shares items out here."""
    return 1 if _block.get() is None else world_size()


def shared(what: str, sizes: Sequence[int], work: Callable[[list[int]], Iterable[T]]) -> list[T]:
    """Return ``work``'s result for every item, in their order; inside :func:`together`, each process does its share.

    ``work`` is given positions of items, equally many on every process, because all of them take part in each forward of a
    sharded model. ``what`` names it, and ``sizes`` are those of the items, such as their tokens.
    """
    if sharers() == 1 or not sizes:
        return list(work(list(range(len(sizes)))))
    shares = dealt(sizes, world_size())
    before = _block.set(None)
    try:
        own = list(work(shares[rank()]))
    finally:
        _block.reset(before)
    found = gathered(f"{what} of {len(sizes)} items, size {sum(sizes)}", own)
    results = {i: v for share, values in zip(shares, found, strict=True) for i, v in zip(share, values, strict=True)}
    return [results[i] for i in range(len(sizes))]


def dealt(sizes: Sequence[int], processes: int) -> list[list[int]]:
    """Return the items of each process: equally many, of about the same total size, the smallest one several times if need be.

    >>> dealt([5, 1, 4, 3, 2], 2)
    [[0, 4, 1], [2, 3, 1]]
    """
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    order += order[-1:] * (-len(order) % processes)
    rounds = [order[i : i + processes] for i in range(0, len(order), processes)]
    return [list(share) for share in zip(*(r[::-1] if k % 2 else r for k, r in enumerate(rounds)), strict=True)]


def shared_limit(sizes: Sequence[int], limit: int) -> int:
    """Return the total size of items that :func:`shared` can be given at once so that no share is larger than ``limit``."""
    longest = max(sizes, default=0)
    return max(limit, sharers() * (limit - longest) + longest)
