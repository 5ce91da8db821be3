"""Where the time of a step goes: ``python -m bench.gpu.profile --device cuda --only orpo mixed 0.5b-32k --sides ours``.

For each cell and side: the time of a step, the share of it in which the device computes, and the operations that take longest, as
``torch.profiler`` measures them over some steps after the warm-up. The profiler itself slows a step: compare shares, not times.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.cells import BenchCell, select
from bench.gpu.grid import grid
from bench.gpu.sides import NAMES, build_side, missing

STEPS = 2


def profile(cell: BenchCell, side: str, parts: int, warm_up: int = 2) -> dict[str, Any]:
    """Return the seconds of a step and, for each operation, its seconds, calls and share of all operations."""
    import torch
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    from bench.clock import measure

    built = build_side(side, cell, warm_up + STEPS, parts).side
    for k in range(warm_up):
        built.step(k)
        built.model.zero_grad()
    cuda = cell.device == "cuda"
    times = []
    with profiler(activities=[ProfilerActivity.CUDA] if cuda else [ProfilerActivity.CPU]) as found:
        for k in range(warm_up, warm_up + STEPS):
            times.append(measure(built.step, k, cell.device).total)
            built.model.zero_grad()
    wanted = DeviceType.CUDA if cuda else DeviceType.CPU
    rows = [row for row in found.key_averages() if row.device_type == wanted]
    spent = {row.key: (row.self_device_time_total if cuda else row.self_cpu_time_total) / 1e6 / STEPS for row in rows}
    calls = {row.key: row.count / STEPS for row in rows}
    total = sum(spent.values())
    if cuda:
        torch.cuda.empty_cache()
    return {
        "cell": cell.name,
        "side": side,
        "seconds": sum(times) / STEPS,
        "busy": total / (sum(times) / STEPS),
        "operations": [
            {"name": name, "seconds": spent[name], "calls": calls[name], "share": spent[name] / max(total, 1e-12)}
            for name in sorted(spent, key=lambda name: -spent[name])
        ],
    }


def report(found: dict[str, Any], most: int) -> str:
    """Return a profile as text: the ``most`` longest operations."""
    title = f"{found['cell']} {found['side']}: {found['seconds']:.3f} s a step, {found['busy']:.0%} of it in operations"
    rows = (
        f"  {row['share']:6.1%} {1e3 * row['seconds']:9.2f} ms {row['calls']:7.0f} x  {row['name'][:110]}"
        for row in found["operations"][:most]
    )
    return "\n".join([title, *rows])


def main(words: Sequence[str] | None = None) -> int:
    """Print the profiles and write them to JSON; return 2 for wrong usage."""
    parser = argparse.ArgumentParser(prog="bench.gpu.profile", description="where the time of a step goes")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models")
    parser.add_argument("--only", nargs="*", default=[], help="filters of cells, e.g. orpo mixed 0.5b-32k")
    parser.add_argument("--sides", nargs="*", choices=NAMES, default=["ours"])
    parser.add_argument("--parts", type=int, default=1, help="micro-batches of a step")
    parser.add_argument("--most", type=int, default=25, help="operations shown")
    parser.add_argument("--output", type=Path, default=Path("profile.json"), help="JSON file to write")
    options = parser.parse_args(words)
    try:
        cells = select(list(grid(options.device, tiny=options.tiny)), options.only)
    except ValueError as error:
        print(f"bench: error: {error}", file=sys.stderr)
        return 2
    profiles = []
    for cell in cells:
        for side in options.sides:
            if reason := missing(side, options.device):
                print(f"{cell.name} {side}: not measured: {reason}")
                continue
            profiles.append(profile(cell, side, options.parts))
            print(report(profiles[-1], options.most), flush=True)
            options.output.write_text(json.dumps(profiles, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    from bench.process import prepare

    prepare(1)
    sys.exit(main())
