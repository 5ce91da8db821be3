"""Acceptance checks of sweeps and races on a real Ray cluster."""

from __future__ import annotations

import hashlib
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

RACERS = {
    "good": "learning_rate: 1e-3",
    "same": "learning_rate: 1e-3, weight_decay: 1e-9",
    "broken": "learning_rate: 0.3",
}
FINALISTS = ("good-seed=0", "same-seed=0")
RACE = ["sweep", "--method", "orpo", "--over", "config=good.yaml,same.yaml,broken.yaml", "--race"]
RACE += ["--race-set", "rungs=[0.25,0.75]", "--race-set", "objective=perplexity"]
RACE += settings(train__logging_steps=1, train__save_strategy="steps", train__save_steps=1, data__eval_limit=80)
RACE += settings(eval__suites="perplexity", eval__settings__perplexity__text="null", eval__before="false")


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


def ray_race(work: Path) -> dict[str, Any]:
    """A race of three arms with two rungs on Ray, with a lost node and Ctrl-C in it: looks, verdict and weights of local."""
    for name, train in RACERS.items():
        (work / f"{name}.yaml").write_text(f"train: {{max_steps: 40, {train}}}\n")
    command(ALIGN, *RACE, "--name", "local", cwd=work)
    expected = _decided(work / "runs/local")
    assert [len(look["stopped"]) for look in expected["looks"]] == [1, 0], expected
    with _cluster() as (cluster, address):
        on_ray = ["--scheduler", "ray", "--address", address]
        command(ALIGN, *RACE, "--name", "whole", *on_ray, cwd=work)
        assert _decided(work / "runs/whole") == expected, "on Ray, the race ends otherwise"
        race = _started(work, [*RACE, "--name", "stopped", *on_ray], dict.fromkeys(FINALISTS, 14))
        race.send_signal(signal.SIGINT)  # between the first look and the second
        _, said = race.communicate()
        assert race.returncode == 130, said
        left = _ended()
        assert len(json.loads((work / "runs/stopped/sweep.json").read_text())["race"]["looks"]) == 1
        assert cluster.stdin is not None
        assert cluster.stdout is not None
        lines = {
            name: len((work / "runs/stopped" / name / "metrics.jsonl").read_text().splitlines()) for name in FINALISTS
        }
        further = {name: count + 2 for name, count in lines.items()}
        again = _started(work, ["sweep", "--resume", "runs/stopped", *on_ray], further)
        cluster.stdin.write("lose\n")
        cluster.stdin.flush()
        cluster.stdout.readline()
        _, said = again.communicate()
        assert again.returncode == 0, said
        assert "resumed elsewhere" in said, said
        assert _decided(work / "runs/stopped") == expected, "after Ctrl-C and a lost node, the race ends otherwise"
    return {"arms": len(RACERS), "stopped": 1, "seconds until the tasks ended": round(left, 1)}


def _decided(race: Path) -> dict[str, Any]:
    """Return what a race decided, and the weights of the arms that were trained to their end."""
    stored = json.loads((race / "sweep.json").read_text())
    looks = stored["race"]["looks"]
    for look in looks:
        for gone in look["stopped"]:
            del gone["saved_cpu_seconds"]  # measured
    files = sorted(race.glob("*/model/*model.safetensors"))
    weights = {file.parent.parent.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    return {"looks": looks, "verdict": stored["comparison"]["verdict"], "weights": weights}


def _started(work: Path, words: list[str], lines: dict[str, int]) -> subprocess.Popen[str]:
    """Start or resume the race ``stopped``, and return it when the logs of cells have so many lines."""
    started = subprocess.Popen(
        [str(ALIGN), *words], cwd=work, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    logs = {work / "runs/stopped" / name / "metrics.jsonl": count for name, count in lines.items()}
    while any(not log.is_file() or len(log.read_text().splitlines()) < count for log, count in logs.items()):
        assert started.poll() is None, started.communicate()[1]
        time.sleep(0.05)
    return started


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
    while any(b"ray::" in line and b"-seed=" in line for line in _command_lines()):
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
