"""The life of a run through the installed command: train, kill, resume, stop, repeat."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from tests.helpers.forked import At
from tests.helpers.runs import ALIGN, align, installed_align, records, saved_weights, short_options

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run the interrupted ones are compared with, of twelve steps."""
    where = tmp_path_factory.mktemp("whole")
    done = align("run", "--method", "orpo", "--name", "whole", *short_options(12), cwd=where)
    assert done.returncode == 0, done.stderr
    return where / "runs" / "whole"


def test_not_one_warning_line(tmp_path: Path) -> None:
    done = installed_align("run", "--method", "dpo", "--set", "model.lora.r=4", *short_options(), cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout == ""
    assert "arning" not in done.stderr
    assert "it/s" not in done.stderr


@pytest.mark.parametrize("step", [3, 8])
def test_killed_run_resumes_to_the_same_weights(whole: Path, tmp_path: Path, step: int) -> None:
    run = tmp_path / "runs" / "killed"
    at = At("open runs/killed/metrics.jsonl", step + 1)
    assert align("run", "--method", "orpo", "--name", "killed", *short_options(12), cwd=tmp_path, at=at).killed
    assert json.loads((run / "run.json").read_text())["status"] == "running"
    done = align("resume", run, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert saved_weights(run) == saved_weights(whole)
    assert [r["step"] for r in records(run) if "loss" in r] == list(range(1, 13))
    assert json.loads((run / "run.json").read_text())["status"] == "finished"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_signal_saves_a_checkpoint_and_says_how_to_go_on(
    whole: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    run = tmp_path / "runs" / "stopped run"
    at = At("open runs/stopped run/metrics.jsonl", 4, number)
    stopped = align("run", "--method", "orpo", "--name", "stopped run", *short_options(12), cwd=tmp_path, at=at)
    assert stopped.returncode == code, stopped.stderr
    assert f"align resume 'runs/{run.name}'" in stopped.stderr
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
    done = align("run", "--method", "orpo", "--name", "stopped run", "--resume", *short_options(12), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert saved_weights(run) == saved_weights(whole)


def test_run_yaml_repeats_the_run_under_the_next_name(whole: Path) -> None:
    done = align("run", whole / "run.yaml", cwd=whole.parents[1])
    assert done.returncode == 0, done.stderr
    again = whole.with_name("whole-2")
    assert saved_weights(again) == saved_weights(whole)
    stable = {"loss", "step", "loss/nll", "rewards/margins", "learning_rate"}
    strip = lambda run: [{k: v for k, v in r.items() if k in stable} for r in records(run)]
    assert strip(again) == strip(whole)


def test_help_and_listing_import_nothing_heavy(tmp_path: Path) -> None:
    probe = (
        "import sys\nfrom alignkit.__main__ import main\ncode = main({!r})\n"
        "heavy = {{'torch', 'transformers', 'datasets', 'trl', 'peft', 'alignkit_orpo', 'alignkit_eval.cli.evaluate'}} & set(sys.modules)\n"
        "sys.exit(code or (repr(heavy) if heavy else 0))"
    )
    for arguments in (["--help"], ["methods"], ["suites", "--json"], ["run", "--help"]):
        done = subprocess.run(
            [str(ALIGN.with_name("python")), "-c", probe.format(arguments)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
        )
        assert done.returncode == 0, (arguments, done.stderr)
