"""What is wrong with a scheduler, its settings or the place is said before anything is carried out."""

from __future__ import annotations

from pathlib import Path

import pytest
from alignkit.__main__ import main

SWEEP = ["sweep", "--method", "orpo", "--over", "lambda=0", "--name", "s"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--scheduler rya", 'unknown scheduler "rya", did you mean "ray"?'),
        ("--address auto", "scheduler local has no setting address (it has jobs, gpus_per_cell, cpus_per_cell)"),
        ("--scheduler ray --scheduler-set retris=1", 'scheduler ray has no setting retris, did you mean "retries"?'),
        ("--scheduler ray --scheduler-set retries=-1", "retries must be at least 0, not -1"),
        ("--scheduler ray --scheduler-set resources=[1]", "resources must be a mapping, not [1]"),
        ("--scheduler ray --scheduler-set retries", "--scheduler-set retries: write KEY=VALUE"),
        ("--jobs 2 --scheduler-set jobs=3", "--scheduler-set jobs=3: jobs is set twice"),
        ("--gpus-per-cell 1.5", "gpus_per_cell must be a whole number, or less than 1"),
        ("--scheduler slurm --gpus-per-cell 0.5", "jobs of Slurm do not share an accelerator"),
        ("--scheduler slurm --scheduler-set minutes=soon", 'minutes must be a whole number, not "soon"'),
    ],
)
def test_wrong_options(
    options: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*SWEEP, *options.split()]) == 2
    assert expected in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--scheduler ray --address 127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1"),
        ("--scheduler ray --address nowhere", "no Ray cluster answers at nowhere"),
        ("--scheduler slurm", "sbatch is not on PATH"),
        ("--gpus-per-cell 64", "gpus_per_cell is 64, and"),
    ],
)
def test_places_where_it_cannot_be_used(
    options: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([*SWEEP, *options.split()]) == 2
    assert expected in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
