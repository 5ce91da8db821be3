"""Acceptance check of sweeps on a real Ray cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.accept.commands import ALIGN, ROOT, command, environment, settings

CELLS = ("lambda=0-seed=0", "lambda=1-seed=0")
SWEEP = ["sweep", "--method", "orpo", "--over", "lambda=0,1"]
SWEEP += settings(train__max_steps=24, train__logging_steps=1, train__save_strategy="steps", train__save_steps=4)
SWEEP += settings(data__eval_limit=40, eval__before="false")


def ray_sweep(work: Path) -> dict[str, Any]:
    """A Ray node killed in a sweep, and the command killed: nothing lost, no process left, the weights those of local."""
    command(ALIGN, *SWEEP, "--name", "local", cwd=work)
    expected = _weights(work / "runs/local")
    with _cluster() as (cluster, address):
        on_ray = ["--scheduler", "ray", "--address", address]
        _begin(work, "killed", on_ray).kill()
        left = _ended()
        command(ALIGN, "sweep", "--resume", "runs/killed", *on_ray, cwd=work)
        assert _weights(work / "runs/killed") == expected, "after the command was killed, the weights differ"
        sweep = _begin(work, "node", on_ray)
        assert cluster.stdin is not None
        assert cluster.stdout is not None
        cluster.stdin.write("lose\n")
        cluster.stdin.flush()
        cluster.stdout.readline()
        _, said = sweep.communicate()
        assert sweep.returncode == 0, said
        assert "resumed elsewhere" in said, said
        assert _weights(work / "runs/node") == expected, "after a node was lost, the weights differ"
        interrupted = _begin(work, "interrupted", on_ray)
        interrupted.send_signal(signal.SIGINT)
        _, said = interrupted.communicate()
        assert interrupted.returncode == 130, said
        command(ALIGN, "sweep", "--resume", "runs/interrupted", cwd=work)  # with the local scheduler
        assert _weights(work / "runs/interrupted") == expected, "after Ctrl-C, the weights differ"
    return {"cells": len(CELLS), "seconds until the tasks of a killed command ended": round(left, 1)}


@contextmanager
def _cluster() -> Iterator[tuple[subprocess.Popen[str], str]]:
    python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    variables = {**environment(), "PYTHONPATH": python_path, "RAY_USAGE_STATS_ENABLED": "0"}
    arguments = [sys.executable, "-m", "tests.helpers.ray_nodes"]
    with subprocess.Popen(
        arguments, cwd=ROOT, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as cluster:
        assert cluster.stdout is not None
        yield cluster, cluster.stdout.readline().strip()


def _begin(work: Path, name: str, options: list[str]) -> subprocess.Popen[str]:
    """Start a sweep and return it in the middle of its cells, after their first checkpoints."""
    words = [str(ALIGN), *SWEEP, "--name", name, *options]
    sweep = subprocess.Popen(
        words, cwd=work, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    logs = [work / "runs" / name / cell / "metrics.jsonl" for cell in CELLS]
    while not all(log.is_file() and len(log.read_text().splitlines()) > 6 for log in logs):
        assert sweep.poll() is None, sweep.communicate()[1]
        time.sleep(0.1)
    return sweep


def _ended() -> float:
    """Wait until no worker of Ray carries out a cell, and return the seconds it took."""
    began = time.monotonic()
    while any(b"ray::lambda" in line for line in _command_lines()):
        assert time.monotonic() - began < 60, "tasks of a killed command still run"
        time.sleep(0.2)
    return time.monotonic() - began


def _command_lines() -> Iterator[bytes]:
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            yield (process / "cmdline").read_bytes()


def _weights(sweep: Path) -> dict[str, bytes]:
    stored = {cell["name"]: cell["status"] for cell in json.loads((sweep / "sweep.json").read_text())["cells"]}
    assert stored == dict.fromkeys(CELLS, "finished"), stored
    return {name: next((sweep / name / "model").glob("*model.safetensors")).read_bytes() for name in CELLS}
