"""Processes of a sharded model in step: each takes part in every forward pass, whatever rows it has itself.

Processes score different rows, cut into different numbers of batches. A sharded model gathers its weights from all of them in
every forward pass, so a process without a batch of its own runs a row of no meaning along with the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from alignkit.contract import Example
from alignkit.system.distributed import each_rank
from alignkit.system.sharded import is_sharded

LEAVE, _PLAIN, _GRADIENT, EXCHANGE = 0, 1, 5, 6
"""What a process is about to do. Between 1 and 5: passes without gradient, with values (+ 1), by the start weights (+ 2)."""


class Meeting:
    """The forward passes of a block of code that all processes run; see :func:`in_step`."""

    def __init__(self, policy: Any, filler: Example) -> None:
        self.policy, self.filler = policy, filler

    def forward(self, *, gradient: bool, values: bool, reference: bool) -> None:
        """Announce a forward pass; returns when all processes make one of this kind, each with rows of its own or a filler."""
        self.wait(_GRADIENT if gradient else _PLAIN + values + 2 * reference)

    def wait(self, mine: int) -> None:
        """Take part in the others' forward passes until all processes are about to do this."""
        while True:
            first = min((int(kind) for (kind,) in each_rank(mine) if kind), default=LEAVE)
            if first == mine:
                return
            if first >= _GRADIENT:
                raise RuntimeError("a process of a sharded run trains or samples where others have ended their step")
            self.policy.meeting = None
            values, reference = bool((first - _PLAIN) & 1), bool((first - _PLAIN) & 2)
            self.policy.score([self.filler], grad=False, values=values, reference=reference)
            self.policy.meeting = self


@contextmanager
def in_step(policy: Any, filler: Example) -> Iterator[None]:
    """Keep the policy's forward passes inside the ``with`` block in step over all processes, each of which runs it.

    ``filler`` is a row that can be scored. Nothing happens where the model is not sharded, or inside another such block.
    """
    if not is_sharded(policy.model) or policy.meeting is not None:
        yield
        return
    policy.meeting = Meeting(policy, filler)
    try:
        yield
        policy.meeting.wait(LEAVE)
    finally:
        policy.meeting = None
