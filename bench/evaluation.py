"""Evaluation of the demo's start model, suites prefs and perplexity: the time of several processes as a share of one's.

Both are measured in one launch, in turns: while one process evaluates alone, the others wait. What is loaded and tokenised once
is not timed, and nothing is taken from the cache. Wall time is what counts, and needs a core a process; the CPU time of the
process with the most shows the same on a busy machine.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

SUITES = ("prefs", "perplexity")
SETS: tuple[str, ...] = ()
"""Further settings of the evaluation, as of ``--set``."""
TARGET = 0.6
"""Target share of one process's time, for two processes."""
TOLERANCE = 1e-6
HEADER = f"{'evaluation':<24} {'one, s':>9} {'all, s':>9} {'share':>7} {'of CPU time':>12}"


@dataclass(frozen=True)
class Shared:
    """Wall and CPU time in seconds of each repetition, and the largest difference of a metric."""

    processes: int
    one: list[tuple[float, float]]
    all: list[tuple[float, float]]
    difference: float

    @property
    def share(self) -> float:
        """The median over repetitions of the wall time of all processes / that of one."""
        return median(b[0] / a[0] for a, b in zip(self.one, self.all, strict=True))

    @property
    def cpu_share(self) -> float:
        """The same of CPU time, of the process with the most."""
        return median(b[1] / a[1] for a, b in zip(self.one, self.all, strict=True))

    @property
    def agrees(self) -> bool:
        return self.difference <= TOLERANCE

    @property
    def met(self) -> bool:
        return self.processes != 2 or self.share <= TARGET

    def line(self) -> str:
        """Return the row of the table."""
        name = f"{'+'.join(SUITES)}, {self.processes} ranks"
        one, both = (median(wall for wall, _ in times) for times in (self.one, self.all))
        return f"{name:<24} {one:>9.2f} {both:>9.2f} {self.share:>7.2f} {self.cpu_share:>12.2f}"

    def row(self) -> dict[str, Any]:
        """Return the JSON object."""
        about = {"name": "evaluation", "quantity": "wall time", "ratio": self.share, "target": TARGET, "met": self.met}
        return about | vars(self) | {"cpu_ratio": self.cpu_share, "agrees": self.agrees}


def compare(processes: int, repeats: int) -> Shared:
    """Measure in ``processes`` processes of one thread each."""
    import torch.multiprocessing as mp

    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_process, (processes, repeats, folder, SETS), nprocs=processes, start_method="spawn")
        return Shared(processes, **json.loads(Path(folder, "found.json").read_text()))


def _process(rank: int, processes: int, repeats: int, folder: str, sets: Sequence[str]) -> None:
    os.environ |= {"RANK": str(rank), "OMP_NUM_THREADS": "1"}
    import torch
    import torch.distributed as dist
    from alignkit.runs.evaluation import open_suites, run_suites
    from alignkit.system.quiet import quiet_libraries
    from alignkit_eval.evaluation.targets import find_target, open_target

    quiet_libraries()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=processes)
    source = find_target("demo", sets=[f"eval.suites={','.join(SUITES)}", "eval.during={}", *sets])
    subject, _ = open_target(source)
    suites = open_suites(source.config.eval)

    def evaluate(count: int) -> tuple[tuple[float, float], dict[str, float]]:
        """Evaluate with the first ``count`` processes."""
        dist.barrier()
        with _fresh_cache(), _world(count):
            started = time.perf_counter(), time.process_time()
            results = run_suites(suites, subject) if rank < count else {}
            mine = time.perf_counter() - started[0], time.process_time() - started[1]
        times: list[Any] = [None] * processes
        dist.all_gather_object(times, mine)
        return (max(wall for wall, _ in times), max(cpu for _, cpu in times)), {
            f"{s}/{m}": e.value for s, result in results.items() for m, e in result.metrics.items()
        }

    evaluate(processes)
    times: dict[int, list[tuple[float, float]]] = {1: [], processes: []}
    metrics: dict[int, dict[str, float]] = {}
    for _ in range(repeats):
        for count in times:
            found, metrics[count] = evaluate(count)
            times[count].append(found)
    if rank == 0:
        difference = max(abs(metrics[1][name] - metrics[processes][name]) for name in metrics[1])
        record = {"one": times[1], "all": times[processes], "difference": difference}
        Path(folder, "found.json").write_text(json.dumps(record))
    dist.destroy_process_group()


@contextmanager
def _fresh_cache() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ALIGN_CACHE"] = folder
        yield


@contextmanager
def _world(count: int) -> Iterator[None]:
    """Let the commands see ``count`` processes."""
    os.environ["WORLD_SIZE"] = str(count)
    yield
    del os.environ["WORLD_SIZE"]
