"""``--processes``: one command starts, records, stops and resumes a run of two workers, and speaks once."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from random import randrange

import pytest
import yaml
from alignkit.__main__ import main
from alignkit_cluster.nodes import slurm_nodes

from tests.helpers.forked import python
from tests.helpers.processes import alive, start, until, workers
from tests.helpers.runs import align, records, short_options

QUICK = ["--method", "orpo", *short_options(), "--set", "eval.before=false", "--set", "eval.suites=prefs"]
JOB = """
method: orpo
data: {eval_limit: 30}
train: {max_steps: 4, logging_steps: 1, save_strategy: steps, save_steps: 2}
eval: {before: false, samples: 0, suites: [prefs]}
run: {name: pair}
"""
SRUN = """#!/bin/bash
# Start the command on every node of the job, all of them this machine.
shift
for ((node = 0; node < SLURM_NNODES; node++)); do SLURM_NODEID=$node "$@" & started+=($!); done
code=0
for process in "${started[@]}"; do wait "$process" || code=$?; done
exit $code
"""


def free_job() -> str:
    """Return the number of a Slurm job whose port is free."""
    while True:
        nodes = slurm_nodes({"SLURM_NNODES": "2", "SLURM_NODEID": "0", "SLURM_JOB_ID": (job := str(randrange(10**6)))})
        assert nodes is not None
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", int(nodes.rendezvous.rpartition(":")[2])))
            return job


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a run of two nodes, started by the script of ``align slurm``, and what it printed."""
    folder = tmp_path_factory.mktemp("nodes")
    (folder / "job.yaml").write_text(JOB)
    (folder / "bin").mkdir()
    (folder / "bin/srun").write_text(SRUN)
    (folder / "bin/align").write_text(f'#!/bin/sh\nexec {python()} -P -m alignkit "$@"\n')
    for program in ("srun", "align"):
        (folder / "bin" / program).chmod(0o755)
    options = ["--nodes", "2", "--gpus", "0", "--processes", "1", "--time", "1:00:00"]
    script = align("slurm", "job.yaml", *options, cwd=folder)
    assert script.returncode == 0, script.stderr
    (folder / "job.sh").write_text(script.stdout)
    subprocess.run(["bash", "-n", "job.sh"], cwd=folder, check=True)
    variables = {"SLURM_NNODES": "2", "SLURM_JOB_ID": free_job(), "SLURM_JOB_NODELIST": "localhost"}
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "job.sh"],
        cwd=folder,
        env={**os.environ, **variables, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / "runs/pair", done.stdout + done.stderr


WORDS = "2 processes on 2 nodes, strategy ddp, devices 2 x cpu"


def test_two_nodes_speak_once(nodes: tuple[Path, str]) -> None:
    _, said = nodes
    assert said.count("901,760 parameters") == said.count("report: ") == said.count(f"{WORDS}\n") == 1
    assert sorted(re.findall(r"^node (\d) of 2, meeting at localhost:\d+$", said, re.M)) == ["0", "1"]
    assert not re.search("warn|error|OMP_|Traceback", said, re.IGNORECASE)


def test_the_processes_are_recorded(nodes: tuple[Path, str]) -> None:
    run, _ = nodes
    made = yaml.safe_load((run / "run.yaml").read_text())["run"]
    assert (made["processes"], made["nodes"], made["strategy"]) == (1, 2, "ddp")
    record = json.loads((run / "run.json").read_text())
    about = record["processes"]
    peaks = about.pop("peak_memory_gb")
    assert about == {"world_size": 2, "nodes": 2, "strategy": "ddp", "devices": ["cpu", "cpu"]}
    assert len(peaks) == 2
    assert records(run)[-1]["memory_gb"] == pytest.approx(max(peaks), rel=0.02)
    train = record["train"]
    assert train["tokens_per_second_per_device"] == pytest.approx(train["tokens_per_second"] / 2)


def test_the_processes_are_shown(nodes: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = nodes
    assert main(["status", str(run)]) == 0
    assert re.search(rf"{WORDS}, [\d,]+ tokens/s per device", capsys.readouterr().out)
    assert f"| processes | {WORDS} |" in (run / "model/README.md").read_text()
    page = (run / "report.html").read_text()
    assert re.search(rf"{WORDS}, [\d,]+ tokens/s, [\d,]+ tokens/s per device, peak memory by rank", page)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_is_stopped_resumed_and_killed(tmp_path: Path) -> None:
    """SIGTERM to the launcher saves and stops; SIGKILL of a worker ends the resumed run and is named; no process is left."""
    run = tmp_path / "runs/pair"
    steps = ["--set", "train.max_steps=60", "--set", "train.save_steps=5"]
    launcher = start("run", *QUICK, *steps, "--processes", "2", "--name", "pair", cwd=tmp_path)
    until((run / "checkpoints/checkpoint-5").is_dir, launcher)
    ranks = workers(launcher.pid)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait() == 143
    said = (tmp_path / "err").read_text()
    (step,) = re.findall(
        r"^Interrupted: stopped at step (\d+), checkpoint saved; resume with: align resume ", said, re.M
    )
    assert (run / f"checkpoints/checkpoint-{step}").is_dir()
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
    assert sorted(ranks) == [0, 1]
    assert not any(map(alive, ranks.values()))

    launcher = start("resume", run, cwd=tmp_path)  # as many processes as run.yaml says
    later = int(step) // 5 * 5 + 5
    until((run / f"checkpoints/checkpoint-{later}").is_dir, launcher)
    ranks = workers(launcher.pid)
    os.kill(ranks[1], signal.SIGKILL)
    assert launcher.wait() == 1
    (said,) = re.findall(r"^Error: (.*)\n", (tmp_path / "err").read_text(), re.M)
    assert said.startswith("rank 1 was killed by SIGKILL (often because the machine is out of memory); resume with: ")
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["error"]) == ("failed", said)
    assert not any(map(alive, ranks.values()))


BOTH = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (
            "--strategy ddp",
            {},
            "Error: run.strategy: ddp needs several processes: add --processes N, or use strategy auto",
        ),
        (
            "--strategy zero2 --processes 2",
            {},
            "Error: the strategy zero2 needs a package that is not installed: pip in",
        ),
        (
            "--strategy zero3 --processes 2",
            {},
            "Error: the strategy zero3 needs a package that is not installed: pip in",
        ),
        (
            "--set train.deepspeed=none.json",
            {},
            "Error: train.deepspeed is not a DeepSpeed configuration: No such file",
        ),
        (
            "--processes 2 --strategy ddp --set train.fsdp=true",
            {},
            "Error: run.strategy is ddp, but the train section asks for fsdp: set one of them",
        ),
        (
            "--set train.fsdp=true",
            {},
            "Error: run.strategy: fsdp needs several processes: add --processes N, or use strat",
        ),
        ("--strategy zero", {}, "Error: --strategy: run.strategy must be one of auto, ddp, fsdp, zero2 or zero3"),
        ("--processes many", {}, "Error: Invalid value for '--processes': 'many' is not a valid "),
        ("--set run.processes=0", {}, "Error: --set run.processes=0: run.processes must be at least 1 or auto, not 0"),
        ("--node-rank 1", {}, "Error: --node-rank and --rendezvous are for several nodes: add --nodes N"),
        (
            "--nodes 2 --node-rank 0",
            {},
            "Error: 2 nodes need --node-rank I (0 to 1) and --rendezvous HOST:PORT on every",
        ),
        (
            "--nodes 2 --node-rank 2 --rendezvous a:1",
            {},
            "Error: --node-rank is 2, but 2 nodes are numbered from 0 to 1",
        ),
        ("--nodes 2 --node-rank 1 --rendezvous a", {}, "Error: --rendezvous is a: write HOST:PORT, e.g. node1:29400"),
        (
            "",
            {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"},
            "Error: accelerate launch --cpu starts one process, whatever --num_processes says: use align run --processes N",
        ),
        (
            "",
            {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "1"},
            "Error: srun started 4 copies of this command on 1 node: use srun --ntasks-per-node=1, and --processes N for",
        ),
        (
            "",
            {"ACCELERATE_USE_FSDP": "true"},
            "Error: accelerate launch asks for --use_fsdp (its command line or its configuration file), which the",
        ),
        ("--strategy fsdp --processes 2", {"ACCELERATE_USE_DEEPSPEED": "true"}, "launch asks for --use_deepspeed (its"),
        ("--processes 3", BOTH, "Error: --processes is 3, but the launcher of this process started 2"),
    ],
)
def test_what_cannot_be_started_is_refused(
    arguments: str,
    environment: dict[str, str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "deepspeed", None)  # not installed
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["run", "--method", "orpo", *arguments.split()]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", ["sweep --over lambda=0,1", "pipeline x.yaml", "data check demo", "export runs/a"])
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_command_of_one_process_is_refused_once_under_a_launcher(
    command: str, rank: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (BOTH | {"RANK": rank}).items():
        monkeypatch.setenv(name, value)
    assert main(command.split()) == 2
    name = command.split()[0]
    words = f"Error: align {name} runs in one process, and a launcher started 2: call it without the launcher\n"
    assert capsys.readouterr().err.count(words) == (rank == "0")


def test_python_does_not_train_in_one_process_what_was_asked_for_in_two() -> None:
    from alignkit import RunConfig, run
    from alignkit.errors import ConfigError

    with pytest.raises(ConfigError, match="ask for 2 processes, but this is one"):
        run(RunConfig(method="orpo", run={"processes": 2}))


def test_a_dry_run_counts_the_rows_of_all_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = ["--set", "train.per_device_train_batch_size=1"]
    assert main(["run", "--method", "orpo", "--dry-run", "--processes", "4", "--set", "run.nodes=2", *sizes]) == 0
    said = capsys.readouterr().err
    assert re.search(r"processes\W+8 on 2 nodes", said)
    assert re.search(r"strategy\W+ddp", said)
    assert re.search(r"step\W+8 rows", said)
