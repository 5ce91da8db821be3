"""The cells of a sweep, carried out by a scheduler."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import Any

from alignkit import Outcome, Scheduler, Task
from alignkit.errors import InterruptedRun
from alignkit.rundir.directory import RunDir

from alignkit_eval.headline import headline, number
from alignkit_eval.scheduling.carry import carry_out_all
from alignkit_eval.scheduling.work import progress, train_cell
from alignkit_eval.sweeps.grid import SweepCell
from alignkit_eval.sweeps.manifest import Manifest


def train_cells(
    wanted: Sequence[SweepCell],
    manifest: Manifest,
    scheduler: Scheduler[Any],
    say: Callable[[str], None],
    until: float = 1.0,
) -> None:
    """Train cells up to a share of their steps; a failed one does not stop the others.

    Raises:
        InterruptedRun: it was interrupted; resuming the sweep continues.
    """
    unfinished = [cell for cell in wanted if progress(cell.directory) < until]
    there = "finished" if until == 1 else f"at {until:.0%} of training"
    if done := len(wanted) - len(unfinished):
        say(f"{done} of {len(wanted)} cells are already {there}")
    tasks = [
        Task(cell.name, partial(train_cell, cell.config, cell.directory, until), cell.directory.absolute())
        for cell in unfinished
    ]
    exit_code = 0
    try:
        with closing(carry_out_all(scheduler, tasks, started=manifest.started, say=say)) as outcomes:
            for outcome in outcomes:
                manifest.ended(outcome)
                if outcome.status == "waiting":
                    continue
                done += outcome.status != "interrupted"
                exit_code = max(exit_code, outcome.exit_code if outcome.status == "interrupted" else 0)
                say(f"[{done}/{len(wanted)}] {_ended(outcome, manifest)}")
    except KeyboardInterrupt as error:
        exit_code = 128 + getattr(error, "number", 2)
    if exit_code:
        finished = sum(entry.status == "finished" for entry in manifest.entries.values())
        raise InterruptedRun(
            f"the sweep was interrupted with {finished} of {len(manifest.entries)} cells finished; "
            f"resume with: align sweep --resume {shlex.quote(str(manifest.directory))}",
            exit_code - 128,
        )


def _ended(outcome: Outcome, manifest: Manifest) -> str:
    run, status = RunDir(manifest.directory / outcome.name), manifest.entries[outcome.name].status
    if status == "paused":
        so_far = "at step {step} of {steps}".format_map(run.read_record()["paused"])
        return f"{outcome.name}: paused {so_far} in {outcome.seconds:.1f} s"
    return f"{outcome.name}: {status} in {outcome.seconds:.1f} s; {outcome.error or _headline(run)}"


def _headline(run: RunDir) -> str:
    after = run.read_record().get("evaluation", {}).get("after", {})
    return ", ".join(f"{line.title} {number(line.after.value)}" for line in headline({}, after)[:4] if line.after)
