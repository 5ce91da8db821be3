"""``make accept``: every claim of this release at full size, as a table and ``accept/accept.json``.

A check gets its own work directory, returns its measurements, and fails by raising ``AssertionError``. One that needs a package
which is not part of the development environment (vLLM, Liger's kernels) says so where that is missing.
``python -m tests.accept NAME ...`` runs only the named checks.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.accept import (
    attention,
    clusters,
    components,
    engines,
    estimates,
    faults,
    judges,
    liger,
    memory,
    notebooks,
    page_commands,
    pages,
    precision,
    races,
    ranks,
    serving,
    strategies,
    trackers,
    training,
    vllm,
)
from tests.accept.commands import OUTPUT

CHECKS: list[Callable[[Path], dict[str, Any]]] = [
    training.demo_run,
    components.closed_forms,
    components.parity,
    attention.compiled_attention,
    precision.precision,
    liger.liger,
    engines.engines,
    components.invariance,
    components.other_examples,
    components.bad_input,
    faults.cases,
    faults.malformed_input,
    faults.bit_flips,
    faults.kill_campaign,
    training.kill_and_resume,
    training.kill_and_resume_ppo,
    strategies.strategies,
    memory.memory_limit,
    ranks.kill_a_rank,
    ranks.kill_a_rank_sharded,
    components.statistics,
    judges.judges,
    components.harness,
    pages.pages,
    page_commands.page_commands,
    training.demo_sweep,
    races.null_races,
    races.demo_race,
    clusters.ray_sweep,
    clusters.ray_race,
    vllm.vllm,
    trackers.trackers,
    serving.serving,
    notebooks.notebooks,
    notebooks.retrieval,
    serving.exports,
    components.onpolicy,
    training.ppo,
    training.rlhf,
    estimates.dry_run_memory,
    components.bench,
    components.data,
    components.data_bench,
    components.clean_clone,
]


def main(names: list[str]) -> int:
    """Run the named checks, or all; return 1 if one failed, 2 if a name is unknown."""
    known = [check.__name__ for check in CHECKS]
    if unknown := [name for name in names if name not in known]:
        print(f"unknown checks: {', '.join(unknown)}; the checks are {', '.join(known)}", file=sys.stderr)
        return 2
    shutil.rmtree(OUTPUT / "work", ignore_errors=True)
    results = []
    for check in CHECKS:
        if names and check.__name__ not in names:
            continue
        work = OUTPUT / "work" / check.__name__
        work.mkdir(parents=True)
        started = time.monotonic()
        try:
            seen, passed = check(work), True
        except AssertionError as error:
            seen, passed = {"failed": str(error)}, False
        seconds = round(time.monotonic() - started, 1)
        claim = (check.__doc__ or "").strip()
        results.append({"check": check.__name__, "claim": claim, "passed": passed, "seen": seen, "seconds": seconds})
        word = "skip" if "skipped" in seen else "pass" if passed else "FAIL"
        print(f"{word}  {check.__name__:<16} {seconds:>8.1f} s  {seen}", flush=True)
    (OUTPUT / "accept.json").write_text(json.dumps(results, indent=2) + "\n")
    failed = sum(not row["passed"] for row in results)
    skipped = sum("skipped" in row["seen"] for row in results)
    print(f"{len(results) - failed - skipped} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    # Where this runs under nohup or in the background of a script, SIGINT is ignored, and commands would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))
