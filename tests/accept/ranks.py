"""Acceptance checks of several processes: one of them killed, the command stopped or killed."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.accept.commands import ALIGN, command, settings
from tests.accept.training import KILLS, STEPS, last_step
from tests.helpers.processes import alive, until, workers


def kill_a_rank(work: Path) -> dict[str, Any]:
    """kill -9 of one of two processes at ten random moments: its rank is named, no process is left, and no weight differs.

    After every third kill the next part of the run is ended by SIGINT, SIGHUP or SIGKILL to the command itself.
    """
    return _kill(work, "ddp")


def kill_a_rank_sharded(work: Path) -> dict[str, Any]:
    """The same with sharded weights: their checkpoints hold a file of each process."""
    return _kill(work, "fsdp")


def _kill(work: Path, strategy: str) -> dict[str, Any]:
    options = ["--method", "orpo", "--processes", "2", "--strategy", strategy]
    options += settings(train__max_steps=STEPS, train__save_strategy="steps", train__save_steps=3)
    options += settings(train__logging_steps=1, eval__suites="[]", eval__samples=0, run__plots="false")
    command(ALIGN, "run", *options, "--name", "whole", cwd=work)
    run, draw = work / "runs/killed", random.Random(0)
    arguments = ["run", *options, "--name", "killed"]
    found: dict[str, Any] = {"killed": [], "stopped": []}
    commanded = [signal.SIGINT, signal.SIGHUP, signal.SIGKILL]
    parts = KILLS + len(commanded) + 1
    for kill in range(parts - 1):
        before = _lines(run)
        launcher = _start(*arguments, cwd=work)
        target = STEPS * (kill + 1) // parts
        # A new line too: the part before this one may have trained past the target already.
        until(lambda target=target, before=before: last_step(run) >= target and _lines(run) != before, launcher)
        time.sleep(draw.random() * 0.3)
        ranks = workers(launcher.pid)
        assert ranks, f"the run ended before kill {kill + 1}: {(work / 'err').read_text()}"
        rank = None if kill % 4 == 3 and commanded else draw.choice(sorted(ranks))
        number = commanded.pop(0) if rank is None else signal.SIGKILL
        os.kill(launcher.pid if rank is None else ranks[rank], number)
        _check_end(launcher.wait(), (work / "err").read_text(), run, rank, number, list(ranks.values()))
        found["stopped" if rank is None else "killed"].append(
            [last_step(run), rank if rank is not None else number.name]
        )
        arguments = ["resume", str(run)]
    command(ALIGN, *arguments, cwd=work)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "loss" in r] == list(range(1, STEPS + 1)), "a step is missing or duplicated"
    weights = [(work / "runs" / name / "model/model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1], "the weights differ"
    return found


def _start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """Start the installed command, its stderr in ``cwd/err``. It hears SIGHUP, also where this runs under nohup."""
    with (cwd / "err").open("w") as err:
        return subprocess.Popen(
            [str(ALIGN), *arguments],
            cwd=cwd,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.DEVNULL,
            stderr=err,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )


def _lines(run: Path) -> bytes:
    """Return the lines of metrics.jsonl."""
    return (run / "metrics.jsonl").read_bytes() if (run / "metrics.jsonl").is_file() else b""


def _check_end(code: int, said: str, run: Path, rank: int | None, number: int, ranks: list[int]) -> None:
    """Check the exit code, the only sentence, the record, and that no process is left."""
    errors = re.findall(r"^(?:Error|Interrupted): .*", said, re.M)
    if rank is None and number == signal.SIGKILL:
        assert (code, errors) == (-number, []), f"{code}: {said}"
    else:
        words, expected = (f"Interrupted: stopped at step {last_step(run)}", 128 + number)
        if rank is not None:
            words, expected = f"Error: rank {rank} was killed by SIGKILL", 1
        assert code == expected, f"exit code {code}: {said}"
        assert len(errors) == 1, said
        assert errors[0].startswith(words), said
    patience = time.monotonic() + 120  # the processes of a killed command save a checkpoint first
    while any(map(alive, ranks)):
        assert time.monotonic() < patience, "a process is left"
        time.sleep(0.1)
    status = json.loads((run / "run.json").read_text())["status"]
    assert status == ("interrupted" if rank is None else "failed"), status
