"""Runs to compare, and copies of them with a changed file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.runs import short_run


@pytest.fixture(scope="session")
def grid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """ORPO with two lambdas and two seeds, on a few held-out pairs."""
    output = tmp_path_factory.mktemp("runs")
    runs = {}
    for strength in (0.0, 5.0):
        for seed in (0, 1):
            name = f"l{strength:g}-s{seed}"
            method = {"name": "orpo", "lambda": strength}
            quick = {"samples": 0, "settings": {"perplexity": {"text": None}}}
            sections: dict[str, Any] = {"train": {"max_steps": 12, "save_strategy": "no"}, "data": {"eval_limit": 80}}
            runs[name] = short_run(output, name, method, run={"seed": seed}, eval=quick, **sections).directory
    return runs


@pytest.fixture
def edited(grid: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """Make a copy of a run with one of its files changed."""

    def copy(run: str, file: str, change: Callable[[Any], Any], name: str = "edited") -> Path:
        target = shutil.copytree(grid[run], tmp_path / name)
        path = target / file
        if file.endswith(".jsonl"):
            rows = change([json.loads(line) for line in path.read_text().splitlines()])
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            path.write_text(json.dumps(change(json.loads(path.read_text()))))
        return target

    return copy
