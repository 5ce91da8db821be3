"""One cell's turns as numbers: step time, pairs and useful tokens a second, MFU, memory, and ratios beside those expected."""

from __future__ import annotations

from statistics import median
from typing import Any

from bench.cells import BenchCell
from bench.cost_model import PEAK, rows_of, side_cost, useful

DATA_SHEETS = {"H100": PEAK, "H200": PEAK, "GH200": PEAK, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}
"""bfloat16 operations per second without sparsity, from the makers' data sheets, by a word of the device's name."""

GIB = 2**30


def peak_of(record: dict[str, Any]) -> tuple[float, str]:
    """Return the operations per second that MFU refers to, and where the number is from."""
    words = record["environment"]["hardware"].replace("-", " ").split()
    for name, rate in DATA_SHEETS.items():
        if name in words:
            return rate, "data sheet"
    return record["peak"]["measured"], "a matrix product, measured"


def summary(
    cell: BenchCell, turns: list[dict[str, Any]], record: dict[str, Any], warm_up: int, repeats: int
) -> dict[str, Any]:
    """Return the numbers of every side of a cell."""
    steps = warm_up + repeats
    rows = rows_of(cell, range(warm_up, steps), steps)
    rate, source = peak_of(record)
    sides = []
    ours = _rounds(turns, "ours")
    for side in dict.fromkeys(turn["side"] for turn in turns):
        mine = [turn for turn in turns if turn["side"] == side]
        row = {"cell": cell.name, "side": side, "status": mine[0]["status"]} | _about(mine)
        if rounds := _rounds(turns, side):
            row |= _rates(cell, side, rows, [turn["seconds"] for turn in rounds.values()], rate)
            row["memory"] = _memory(list(rounds.values()))
        if side != "ours" and rounds and ours:
            both = sorted(rounds.keys() & ours.keys())
            row["times_ours"] = median(median(rounds[k]["seconds"]) / median(ours[k]["seconds"]) for k in both)
            row["expected"] = _expected(side, cell, rows)
            mine_memory, our_memory = row["memory"], _memory(list(ours.values()))
            if mine_memory and our_memory:
                row["our_share_of_memory"] = _total(our_memory) / max(_total(mine_memory), 1)
        sides.append(row)
    return {"cell": cell.name, "peak": rate, "peak_from": source, "sides": sides}


def _rounds(turns: list[dict[str, Any]], side: str) -> dict[int, dict[str, Any]]:
    return {turn["round"]: turn for turn in turns if turn["side"] == side and turn["status"] == "measured"}


def _about(turns: list[dict[str, Any]]) -> dict[str, Any]:
    kept = ("about", "reason", "micro_batches", "out_of_memory_with")
    return {key: turns[-1][key] for key in kept if key in turns[-1]}


def _rates(cell: BenchCell, side: str, rows: Any, seconds: list[list[float]], rate: float) -> dict[str, float]:
    """Return medians over all timed steps; each is divided by what its own rows need."""
    tokens = [sum(row.prompt + sum(row.completions) for row in step) for step in rows]
    least = [useful(cell, step).operations for step in rows]
    done = [side_cost(side, cell, step).operations for step in rows]
    found = [
        (s, len(step) / s, t / s, u / s / rate, o / s / rate)
        for one in seconds
        for s, step, t, u, o in zip(one, rows, tokens, least, done, strict=True)
    ]
    names = ("seconds", "rows_per_second", "useful_tokens_per_second", "mfu", "hfu")
    return {name: median(column) for name, column in zip(names, zip(*found, strict=True), strict=True)}


def _memory(turns: list[dict[str, Any]]) -> dict[str, int] | None:
    found = [turn["memory"] for turn in turns if turn["memory"]]
    return {key: max(one[key] for one in found) for key in ("resident", "step")} if found else None


def _total(memory: dict[str, int]) -> int:
    return memory["resident"] + memory["step"]


def _expected(side: str, cell: BenchCell, rows: Any) -> float:
    """Return the ratio to alignkit's time that the cost model expects."""
    return median(side_cost(side, cell, step).seconds / side_cost("ours", cell, step).seconds for step in rows)


HEADER = f"{'cell':<40} {'side':<15} {'s/step':>8} {'rows/s':>8} {'tokens/s':>10} {'MFU':>6} {'GiB':>6} {'x ours':>7} {'exp.':>6}"


def line(row: dict[str, Any]) -> str:
    """Return one side's row of the table."""
    start = f"{row['cell']:<40} {row['side']:<15}"
    if "seconds" not in row:
        tried = row.get("out_of_memory_with")
        why = row.get("reason") or (f"with {tried[-1]} micro-batches" if tried else "")
        return f"{start} {row['status']}: {why}"
    memory = "-" if row["memory"] is None else f"{_total(row['memory']) / GIB:.2f}"
    ratio, expected = (f"{row[key]:.2f}" if key in row else "-" for key in ("times_ours", "expected"))
    rates = (
        f"{row['seconds']:8.3f} {row['rows_per_second']:8.2f} {row['useful_tokens_per_second']:10.0f} {row['mfu']:6.1%}"
    )
    return f"{start} {rates} {memory:>6} {ratio:>7} {expected:>6}"
