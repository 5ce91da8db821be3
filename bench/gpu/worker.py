"""What one side's process does: run a cell's steps, or return the gradient of a small one.

Each side has a process of its own, because a side changes libraries (Liger replaces functions of transformers) and because an
error of CUDA ends the process. A model lives for one turn only, so that a side always has the whole device.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any

from bench.cells import BenchCell


@dataclass(frozen=True)
class Turn:
    """One side's turn at a cell.

    ``warm_up`` steps are run before ``repeats`` steps are timed; all of them have rows of their own.
    """

    cell: BenchCell
    side: str
    repeats: int = 3
    warm_up: int = 2


def measure(turn: Turn) -> dict[str, Any]:
    """Return seconds of every step and peak memory, or that memory ran out, even with one row in a micro-batch."""
    _prepare()
    failed: list[int] = []
    parts = 1
    while True:
        found = _attempt(turn, parts)
        _release()
        if found is not None:
            return {"status": "measured", "micro_batches": parts, "out_of_memory_with": failed, **found}
        failed.append(parts)
        if parts >= turn.cell.rows:
            return {"status": "out of memory", "out_of_memory_with": failed}
        parts = min(parts * 2, turn.cell.rows)


def _attempt(turn: Turn, parts: int) -> dict[str, Any] | None:
    """Measure with steps in ``parts`` micro-batches; None: memory ran out."""
    import torch

    try:
        return _steps(turn, parts)
    except torch.OutOfMemoryError:
        return None  # the caller frees what is left, because the traceback holds it here


def _steps(turn: Turn, parts: int) -> dict[str, Any]:
    from bench.clock import measure as clock
    from bench.gpu.sides import build_side
    from bench.memory import above_resident, kernel_counts

    cell = turn.cell
    before = _allocated(cell.device)
    built = build_side(turn.side, cell, turn.warm_up + turn.repeats, parts)
    side = built.side
    for k in range(turn.warm_up):
        side.step(k)
        side.model.zero_grad()
    resident = _allocated(cell.device)
    seconds, peaks = [], []
    for k in range(turn.warm_up, turn.warm_up + turn.repeats):
        gc.collect()
        timed: list[float] = []
        if cell.device == "cpu" and not kernel_counts():
            timed.append(clock(side.step, k, cell.device).total)
        else:
            step = _timed(side, k, cell.device, timed)
            peaks.append(above_resident(step, cell.device))
        seconds += timed
        side.model.zero_grad()
    memory = None if not peaks else {"resident": resident - before, "step": max(peaks)}
    return {"seconds": seconds, "memory": memory, "about": built.about}


def _timed(side: Any, number: int, device: str, seconds: list[float]) -> Any:
    from bench.clock import measure as clock

    return lambda: seconds.append(clock(side.step, number, device).total)


def gradient(cell: BenchCell, side: str) -> dict[str, Any]:
    """Return loss and gradient of a cell's first step, as arrays, from weights that depend on their names alone."""
    _prepare()
    try:
        return _gradient(cell, side)
    finally:
        _release()


def _gradient(cell: BenchCell, side: str) -> dict[str, Any]:
    import numpy as np

    from bench.gpu.sides import build_side
    from bench.models import trainable

    built = build_side(side, cell, 1, 1)
    _start(built.side.model)
    loss = built.side.step(0)
    found = [p.grad for _, p in sorted(trainable(built.side.model).items())]
    flat = [g.detach().float().flatten().cpu().numpy() for g in found if g is not None]
    return {"loss": float(loss), "gradient": np.concatenate(flat), "about": built.about}


def peak_rate(device: str) -> float:
    """Return the floating-point operations per second of a large matrix product in bfloat16."""
    _prepare()
    import torch

    from bench.clock import measure as clock

    size = 8192 if device == "cuda" else 512
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    times = [clock(lambda _: a @ b, 0, device).total for _ in range(10)]
    return 2.0 * size**3 / max(min(times), 1e-9)


def _start(model: Any) -> None:
    """Give every trained weight a value of its own, the same on every side: adapters start at random, half of them at 0."""
    import torch

    from bench.models import trainable

    with torch.no_grad():
        for number, (name, parameter) in enumerate(sorted(trainable(model).items())):
            draw = torch.Generator().manual_seed(number)
            noise = torch.randn(parameter.shape, generator=draw).to(parameter.device, parameter.dtype)
            if "lora_" in name:
                parameter.copy_(noise * 0.05)
            else:
                parameter.add_(noise * 0.006)


def _prepare() -> None:
    from bench.process import prepare

    prepare(1)


def _allocated(device: str) -> int:
    import torch

    return int(torch.cuda.memory_allocated()) if device == "cuda" else 0


def _release() -> None:
    """Give the memory of the models that are gone back to the device, for the other sides."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
