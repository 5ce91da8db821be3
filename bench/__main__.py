"""``python -m bench``: measure, print a table, write JSON. The package's docstring describes the measurements."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cells import BenchCell, grid, select
from bench.gpu.sides import NAMES as SIDES
from bench.process import prepare

if TYPE_CHECKING:
    from bench.evaluation import Shared
    from bench.scoring import ScoringResult


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="bench", description="compare alignkit's training steps with TRL's")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: the comparison of bench.gpu")
    parser.add_argument("--only", nargs="*", default=[], help="filters, e.g. --only orpo short,long 32k full")
    parser.add_argument("--quick", action="store_true", help="one repetition (and one round)")
    parser.add_argument("--repeats", type=int, default=3, help="measured steps per side")
    parser.add_argument("--threads", type=int, default=1, help="threads of the timed process")
    parser.add_argument("--checkpointing", action="store_true", help="also measure with gradient checkpointing")
    parser.add_argument("--bf16", action="store_true", help="also measure under bf16 autocast")
    parser.add_argument("--scoring", action="store_true", help="measure only evaluation, against lm-eval's HFLM")
    parser.add_argument("--data", action="store_true", help="measure only data preparation, against TRL's")
    parser.add_argument("--evaluation", action="store_true", help="measure only evaluation by several processes")
    parser.add_argument("--processes", type=int, default=2, help="processes for data preparation and evaluation")
    parser.add_argument("--no-memory", action="store_true", help="measure only time")
    parser.add_argument("--output", type=Path, default=Path("bench.json"), help="JSON file to write")
    _add_gpu_options(parser.add_argument_group("the comparison on a GPU (--device cuda)"))
    options = parser.parse_args(words)
    if options.quick:
        options.repeats = options.rounds = options.warm_up = 1
    if min(options.repeats, options.threads, options.rounds) < 1 or options.warm_up < 0:
        parser.error("--repeats, --threads and --rounds must be at least 1")
    if options.turn_limit <= 0 or (options.minutes is not None and options.minutes <= 0):
        parser.error("--minutes and --turn-limit must be above 0")
    options.cells = []
    if options.scoring or options.data or options.evaluation:
        return options
    if options.device == "cuda" or options.tiny:
        if options.checkpointing or options.bf16:
            parser.error("--checkpointing and --bf16 are options of the comparison on a CPU")
        return options
    try:
        options.cells = select(list(grid(checkpointing=options.checkpointing, bf16=options.bf16)), options.only)
    except ValueError as error:
        parser.error(str(error))
    if not options.cells:
        parser.error(f"no cell matches {' '.join(options.only)}")
    return options


def _add_gpu_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--tiny", action="store_true", help="the same comparison with tiny models, also on a CPU")
    group.add_argument("--sides", nargs="*", choices=SIDES, help="measure only these")
    group.add_argument("--rounds", type=int, default=2, help="turns of every side at a cell")
    group.add_argument("--warm-up", type=int, default=2, help="steps before the timed ones in a turn")
    group.add_argument("--minutes", type=float, help="stop before this time is over; --resume continues")
    group.add_argument("--turn-limit", type=float, default=600, help="seconds after which a side's turn is given up")
    group.add_argument("--resume", action="store_true", help="keep what --output already has")
    group.add_argument("--retry", action="store_true", help="with --resume: measure again what failed or was missing")


def main(words: Sequence[str] | None = None) -> int:
    """Run the benchmark. Return 1 if the sides disagree anywhere; missed targets are only reported."""
    options = arguments(words)
    prepare(options.threads)
    if not options.cells and not (options.scoring or options.data or options.evaluation):
        from bench.gpu.command import run

        # One device: with more of them, Trainer would think of several processes' worth of rows.
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
        return run(options)
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device is available", file=sys.stderr)
        return 2
    from bench.report import HEADER, Result, line, missed
    from bench.work import compare

    results: list[Result] = []
    if options.cells:
        print(HEADER, "-" * len(HEADER), sep="\n", flush=True)
    for cell in options.cells:
        for result in compare(cell, options.repeats, memory=not options.no_memory):
            results.append(result)
            print(line(result), flush=True)
        _write(options.output, options.cells, results, options)
    everything = not (options.only or options.scoring or options.data or options.evaluation)
    scored = _score(options) if options.scoring or everything else []
    prepared = _prepare(options) if options.data else {}
    evaluated = _evaluate(options) if options.evaluation or everything else []
    _write(options.output, options.cells, results, options, scored, prepared, evaluated)
    slow = [f"{s.choices.name}: scoring" for s in scored if not s.met] + prepared.get("missed", [])
    slow += ["evaluation by several processes" for found in evaluated if not found.met]
    for sentence in missed(results) + slow:
        print(f"missed: {sentence}")
    print(f"written to {options.output}")
    agreed = all(result.parity.agrees for result in results) and all(s.times is not None for s in scored)
    agreed = agreed and all(found["agrees"] for found in prepared.get("speed", []))
    return 0 if agreed and all(found.agrees for found in evaluated) else 1


def _score(options: argparse.Namespace) -> list[ScoringResult]:
    """Measure scoring against lm-eval's."""
    from bench.scoring import CHOICES, HEADER, compare

    print(HEADER, "-" * len(HEADER), sep="\n", flush=True)
    found = []
    for choices in CHOICES:
        found.append(compare(choices, options.repeats, options.device))
        print(found[-1].line(), flush=True)
    return found


def _evaluate(options: argparse.Namespace) -> list[Shared]:
    """Measure evaluation by several processes against one."""
    from bench.evaluation import HEADER, compare

    print(HEADER, "-" * len(HEADER), sep="\n", flush=True)
    found = compare(options.processes, options.repeats)
    print(found.line(), flush=True)
    return [found]


def _prepare(options: argparse.Namespace) -> dict[str, Any]:
    """Measure data preparation against TRL's, and the memory for a million pairs."""
    from bench.data import HEADER, WORKLOADS, compare, million

    print(HEADER, "-" * len(HEADER), sep="\n", flush=True)
    found, missed = [], []
    for rows in WORKLOADS:
        for processes in sorted({1, options.processes}):
            found.append(compare(rows, processes, options.repeats))
            print(found[-1].line(), flush=True)
            missed += [] if found[-1].met else [f"{rows.name} rows, {processes} processes: preparation"]
    record: dict[str, Any] = {"speed": [one.row() for one in found]}
    if not options.no_memory:
        memory = record["memory"] = million(options.processes)
        for name in ("tokenised", "cached"):
            part = memory[name]
            print(
                f"a million pairs, {name}: {part['bytes'] / 1e9:.2f} GB above the libraries, {part['rows_per_second']:,.0f} rows/s"
            )
        missed += [] if memory["met"] else ["a million pairs: memory"]
    return {**record, "missed": missed}


def _write(
    path: Path,
    cells: Sequence[BenchCell],
    results: Sequence[Any],
    options: argparse.Namespace,
    scored: Sequence[ScoringResult] = (),
    prepared: dict[str, Any] | None = None,
    evaluated: Sequence[Shared] = (),
) -> None:
    """Write the results so far, atomically."""
    from alignkit.system.files import atomic_path

    record = {
        "environment": environment(options.device),
        "settings": {"repeats": options.repeats, "threads": options.threads, "device": options.device},
        "complete": len({result.cell.name for result in results}) == len(cells),
        "rows": [row for result in results for row in result.rows()],
        "scoring": [found.row() for found in scored],
        "data": prepared or {},
        "evaluation": [found.row() for found in evaluated],
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def environment(device: str) -> dict[str, str]:
    """Return the versions and the hardware of the measurements."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    def found(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    packages = ("alignkit", "torch", "transformers", "trl", "peft", "accelerate")
    cpu = next(
        (row.split(":")[1].strip() for row in _lines(Path("/proc/cpuinfo")) if row.startswith("model name")),
        platform.processor(),
    )
    hardware = torch.cuda.get_device_name() if device == "cuda" else cpu
    return {name: found(name) for name in packages} | {"python": platform.python_version(), "hardware": hardware}


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


if __name__ == "__main__":
    sys.exit(main())
