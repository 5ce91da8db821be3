"""The measurement in pieces: parity first, then cell by cell, each turn written when it is done."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.cells import BenchCell
from bench.gpu import parity, worker
from bench.gpu.grid import parity_cells
from bench.gpu.sides import missing, names
from bench.gpu.summary import line, summary


class OutOfTimeError(Exception):
    """The time of this piece is used up."""


@dataclass
class Workers:
    """A process for every side, started when it is needed, and again after it died or took too long."""

    limit: float
    """Seconds for one turn."""
    pools: dict[str, ProcessPoolExecutor] = field(default_factory=dict)

    def __call__(self, side: str, work: Callable[..., Any], *arguments: Any) -> Any:
        """Return ``work(*arguments)``, run in the process of ``side``."""
        if side not in self.pools:
            self.pools[side] = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        try:
            return self.pools[side].submit(work, *arguments).result(self.limit)
        except (BrokenProcessPool, TimeoutError):
            self.stop(side)
            raise

    def stop(self, side: str) -> None:
        """End the process of a side."""
        pool = self.pools.pop(side)
        for process in list((pool._processes or {}).values()):
            process.kill()
        pool.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        """End all processes."""
        for side in list(self.pools):
            self.stop(side)


@dataclass
class Piece:
    """One run of the measurement; what ``record`` already has is not measured again."""

    cells: list[BenchCell]
    sides: list[str]
    output: Path
    record: dict[str, Any]
    run: Callable[..., Any]
    """``run(side, work, *arguments)``, in the process of a side."""
    rounds: int
    repeats: int
    warm_up: int
    tiny: bool = False
    minutes: float | None = None
    began: float = field(default_factory=time.monotonic)
    longest: dict[str, float] = field(default_factory=dict)
    """Seconds of the longest unit of each kind."""
    changed: set[str] = field(default_factory=set)
    """Cells measured in this piece."""

    def __call__(self) -> bool:
        """Measure until all is done or the time is used up; return whether all is done."""
        try:
            for kind, make in self._work():
                self._spend(kind, make)
        except OutOfTimeError:
            return False
        self.record["complete"] = True
        self._write()
        return True

    def _spend(self, kind: str, make: Callable[[], None]) -> None:
        """Do one unit of work, unless the longest one of its kind so far would not fit into the time left."""
        now = time.monotonic()
        used = now - self.began + self.longest.get(kind, 0.0)
        if self.minutes is not None and self.longest and used > self.minutes * 60:
            raise OutOfTimeError
        make()
        self.longest[kind] = max(self.longest.get(kind, 0.0), time.monotonic() - now)
        self._write()

    def _work(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """Yield what is left to do: its kind, and the function that does it."""
        if "peak" not in self.record:
            yield "rate", self._rate
        for small in parity_cells(self.cells, tiny=self.tiny):
            todo = [one for one in self._checks(small) if not self._has("parity", self._parity_key(*one))]
            if todo:
                yield "parity", lambda small=small, todo=todo: self._parity(small, todo)  # type: ignore[misc]
        for cell in self.cells:
            for number in range(self.rounds):
                for side in self._measured(cell):
                    if not self._has("turns", (cell.name, side, number)):
                        yield "turn", lambda cell=cell, side=side, number=number: self._turn(cell, side, number)  # type: ignore[misc]
            self._report(cell)

    def _measured(self, cell: BenchCell) -> list[str]:
        return [side for side in names(cell.method) if side in self.sides]

    # ------------------------------------------------------------------ parity

    def _checks(self, small: BenchCell) -> list[tuple[str, BenchCell]]:
        """Return what is compared with TRL's defaults in float32: alignkit in float32, and every side as it is measured."""
        here = [side for side in self._measured(small) if missing(side, small.device) is None]
        float32 = [("ours", parity.exact(small))] if "ours" in here else []
        return float32 + [(side, small) for side in here]

    def _parity_key(self, side: str, cell: BenchCell) -> tuple[str, ...]:
        return cell.method, cell.tuning, side, "bfloat16" if cell.bf16 else "float32"

    def _parity(self, small: BenchCell, todo: list[tuple[str, BenchCell]]) -> None:
        def gradient(side: str, cell: BenchCell) -> dict[str, Any]:
            found: dict[str, Any] = self.run(side, worker.gradient, cell, side)
            return found

        truth, failure = None, None
        try:
            truth = parity.standard(small, gradient)
        except Exception as error:
            failure = error
        for side, cell in todo:
            method, tuning, _, precision = key = self._parity_key(side, cell)
            about = {"method": method, "tuning": tuning, "side": side, "precision": precision}
            try:
                if truth is None:
                    raise RuntimeError(f"TRL's defaults in float32 failed: {_reason(failure)}")
                found = parity.compare(side, cell, gradient, truth)
            except Exception as error:
                found = about | {"agrees": False, "reason": _reason(error)}
            self.record["parity"].append(found)
            print(f"parity {' '.join(key)}: {_verdict(found)}", flush=True)

    def _disagrees(self, cell: BenchCell, side: str) -> bool:
        mine = [
            p
            for p in self.record["parity"]
            if (p["method"], p["tuning"], p["side"]) == (cell.method, cell.tuning, side)
        ]
        return not all(one["agrees"] for one in mine)

    # ------------------------------------------------------------------ time and memory

    def _rate(self) -> None:
        device = self.cells[0].device
        self.record["peak"] = {"measured": self.run("ours", worker.peak_rate, device)}

    def _turn(self, cell: BenchCell, side: str, number: int) -> None:
        turn = worker.Turn(cell, side, self.repeats, self.warm_up)
        if reason := missing(side, cell.device):
            found = {"status": "not measured", "reason": reason}
        elif self._disagrees(cell, side):
            found = {
                "status": "not measured",
                "reason": "loss or gradient is not that of TRL's defaults in float32: see parity",
            }
        else:
            try:
                found = self.run(side, worker.measure, turn)
            except Exception as error:
                found = {"status": "failed", "reason": _reason(error)}
        about = {"cell": cell.name, "side": side, "round": number, "values": cell.to_json()}
        self.record["turns"].append(about | found)
        self.changed.add(cell.name)

    def _report(self, cell: BenchCell) -> None:
        """Summarise a cell whose turns are all done, unless that was done before."""
        turns = [turn for turn in self.record["turns"] if turn["cell"] == cell.name]
        others = [one for one in self.record["summary"] if one["cell"] != cell.name]
        if len(others) < len(self.record["summary"]) and cell.name not in self.changed:
            return
        found = summary(cell, turns, self.record, self.warm_up, self.repeats)
        self.record["summary"] = [*others, found]
        print(*(line(row) for row in found["sides"]), sep="\n", flush=True)

    # ------------------------------------------------------------------ the record

    def _has(self, part: str, key: tuple[Any, ...]) -> bool:
        keys = {
            "parity": ("method", "tuning", "side", "precision"),
            "turns": ("cell", "side", "round"),
        }
        return any(tuple(one[name] for name in keys[part]) == key for one in self.record[part])

    def _write(self) -> None:
        from alignkit.system.files import atomic_path

        with atomic_path(self.output) as temporary:
            temporary.write_text(json.dumps(self.record, indent=1) + "\n", encoding="utf-8")


def _verdict(found: dict[str, Any]) -> str:
    if "reason" in found:
        return f"FAILED ({found['reason']})"
    verdict = "agrees" if found["agrees"] else "DISAGREES"
    return f"{verdict} (loss {found['loss']:.1e}, gradient {found['gradient']:.1e})"


def _reason(error: Exception | None) -> str:
    if isinstance(error, TimeoutError):
        return "it took longer than a turn may"
    return f"{type(error).__name__}: {str(error).strip()[-500:]}"
