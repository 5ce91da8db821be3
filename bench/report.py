"""Results as a table and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from bench.cells import BenchCell
from bench.clock import Seconds, Times
from bench.parity import TOLERANCE, Parity

MIB = 2**20


@dataclass(frozen=True)
class Result:
    """The result of one cell and one kind of work: a training step, or DPO's reference log-probabilities of its rows."""

    cell: BenchCell
    work: str
    parity: Parity
    times: Times | None = None
    memory: tuple[int, int] | None = None
    """Peak bytes, ours and theirs."""

    @property
    def speed(self) -> dict[str, Any] | None:
        """The speed-up over TRL, and the target."""
        if self.times is None:
            return None
        target = self.cell.speed_target if self.work == "step" else None
        return _verdict(self.times.ratio, target, met=target is None or self.times.ratio >= target)

    @property
    def share(self) -> dict[str, Any] | None:
        """Our memory as a share of TRL's, and the target."""
        if self.memory is None:
            return None
        ours, theirs = self.memory
        ratio = ours / max(theirs, 1)
        target = self.cell.memory_target if self.work == "step" else None
        return _verdict(ratio, target, met=target is None or ratio <= target)

    def rows(self) -> list[dict[str, Any]]:
        """Return one JSON object per ratio, with its measurements; sides that disagree have no ratio."""
        about = {
            "name": self.cell.name,
            "work": self.work,
            "cell": self.cell.to_json(),
            "parity": {**asdict(self.parity), "tolerance": TOLERANCE, "agrees": self.parity.agrees},
        }
        if not self.parity.agrees:
            return [about | {"quantity": "parity", "ratio": None, "target": TOLERANCE, "met": False}]
        rows = []
        if self.times is not None and self.speed is not None:
            seconds = {"ours": _seconds(self.times.ours), "trl": _seconds(self.times.theirs)}
            rows.append(
                about | {"quantity": "speed", "seconds": seconds, "user_ratio": self.times.user_ratio} | self.speed
            )
        if self.memory is not None and self.share is not None:
            peaks = {"ours": self.memory[0], "trl": self.memory[1]}
            rows.append(about | {"quantity": "memory", "bytes": peaks} | self.share)
        return rows


def _seconds(samples: Sequence[Seconds]) -> list[dict[str, float]]:
    return [sample._asdict() for sample in samples]


def _verdict(ratio: float, target: float | None, *, met: bool) -> dict[str, Any]:
    return {"ratio": ratio, "target": target, "met": met if target is not None else None}


COLUMNS = (
    f"{'method':<6} {'workload':<8} {'model':<5} {'tuning':<18} {'work':<9}",
    f"{'TRL s':>8} {'ours s':>8} {'faster':>7} {'target':>7} {'user':>6}",
    f"{'TRL MiB':>8} {'ours MiB':>8} {'share':>6} {'target':>7}",
)
HEADER = "  ".join(COLUMNS)


def line(result: Result) -> str:
    """Return a result as a table line."""
    cell = result.cell
    tuning = f"{cell.tuning}{' checkpointing' if cell.checkpointing else ''}"
    start = f"{cell.method:<6} {cell.workload.name:<8} {cell.shape.name:<5} {tuning:<18} {result.work:<9}"
    if not result.parity.agrees:
        return f"{start}  not measured: the sides disagree ({differences(result.parity)})"
    return "  ".join((start, _speed(result), _memory(result)))


def differences(parity: Parity) -> str:
    """Return the relative differences as text."""
    return ", ".join(f"{name} {value:.1e}" for name, value in asdict(parity).items())


def _speed(result: Result) -> str:
    if result.times is None or result.speed is None:
        return f"{'-':>8} {'-':>8} {'-':>7} {'-':>7} {'-':>6}"
    theirs, ours = (median(s.total for s in side) for side in (result.times.theirs, result.times.ours))
    user = "-" if result.cell.device == "cuda" else f"{result.times.user_ratio:.2f}x"
    return f"{theirs:8.3f} {ours:8.3f} {result.speed['ratio']:6.2f}x {_target(result.speed, '>='):>7} {user:>6}"


def _memory(result: Result) -> str:
    if result.memory is None or result.share is None:
        return f"{'-':>8} {'-':>8} {'-':>6} {'-':>7}"
    ours, theirs = result.memory
    return f"{theirs / MIB:8.0f} {ours / MIB:8.0f} {result.share['ratio']:6.2f} {_target(result.share, '<='):>7}"


def _target(verdict: dict[str, Any], sign: str) -> str:
    """Return the target of a ratio, with an exclamation mark if it was missed."""
    if verdict["target"] is None:
        return "-"
    return f"{'' if verdict['met'] else '!'}{sign}{verdict['target']:g}"


def table(results: Sequence[Result]) -> str:
    """Return all results as a table."""
    return "\n".join([HEADER, "-" * len(HEADER), *map(line, results)])


def missed(results: Sequence[Result]) -> list[str]:
    """Return a line for every missed target and every cell whose sides disagree."""
    found = []
    for result in results:
        if not result.parity.agrees:
            found.append(f"{result.cell.name}: disagrees with TRL ({differences(result.parity)})")
        for quantity, verdict in (("speed", result.speed), ("memory", result.share)):
            if verdict is not None and verdict["met"] is False:
                found.append(f"{result.cell.name}: {quantity} {verdict['ratio']:.2f}, target {verdict['target']:g}")
    return found
