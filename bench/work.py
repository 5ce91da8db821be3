"""The measurement of one cell: parity, time and memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from bench.cells import BenchCell
from bench.clock import take_turns
from bench.memory import peak
from bench.parity import check
from bench.report import Result
from bench.sides import Ours, Theirs

WARM_UP = 3
"""Warm-up steps in reduced precision, in which kernels are compiled and selected; in float32 the parity check warms up."""


def compare(cell: BenchCell, repeats: int, *, memory: bool = True) -> Iterator[Result]:
    """Yield the result of the training step and, for DPO, of the reference log-probabilities.

    If the sides disagree, nothing is measured, and the only result has the differences.
    """
    works = ("step", "reference") if cell.method == "dpo" else ("step",)
    exact = replace(cell, bf16=False)
    ours, theirs = Ours(exact, repeats), Theirs(exact, repeats)
    parity = check(ours, theirs)
    if not parity.agrees:
        yield Result(cell, "step", parity)
        return
    if cell != exact:
        ours, theirs = Ours(cell, repeats), Theirs(cell, repeats)
        for side in (ours, theirs):
            for _ in range(WARM_UP):
                side.step(0)

    def reset() -> None:
        ours.model.zero_grad()
        theirs.model.zero_grad()

    for work in works:
        mine, other = (ours.step, theirs.step) if work == "step" else (ours.reference, theirs.reference)
        times = take_turns(mine, other, reset, repeats, cell.device)
        reset()
        peaks = _peaks(cell, work) if memory else None
        yield Result(cell, work, parity, times, peaks)


def _peaks(cell: BenchCell, work: str) -> tuple[int, int] | None:
    ours, theirs = peak(cell, "ours", work), peak(cell, "trl", work)
    return None if ours is None or theirs is None else (ours, theirs)
