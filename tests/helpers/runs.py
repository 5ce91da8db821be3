"""Short real runs on the embedded demo, from Python and through the installed ``align``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from alignkit import Run, RunConfig, run

from tests.helpers.forked import At, Ended, run_forked

ALIGN = Path(sys.executable).with_name("align")
SHORT = {
    "max_steps": 4,
    "logging_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "per_device_train_batch_size": 4,
}
COMPLETIONS: dict[str, Any] = {"perplexity": {"text": None}}
"""Perplexity of the few held-out completions, not of the demo's text as in its preset, which takes longer than the training."""


def short_run(output: Path, name: str, method: str | dict[str, Any] = "orpo", **sections: dict[str, Any]) -> Run:
    """Train on the demo for a few steps and evaluate on a few rows, without plots, which take longer than that."""
    train, evaluation = SHORT | sections.pop("train", {}), {"samples": 1, **sections.pop("eval", {})}
    evaluation.setdefault("settings", COMPLETIONS)
    if train["save_strategy"] != "steps" and "stop_on" not in train:
        train.pop("save_steps")
    if evaluation["samples"]:
        evaluation = {"sample_tokens": 8, **evaluation}
    config = RunConfig.model_validate(
        {
            "method": method,
            "train": train,
            "data": {"limit": 120, "eval_limit": 30} | sections.pop("data", {}),
            "eval": evaluation,
            "run": {"output": str(output), "name": name, "plots": False} | sections.pop("run", {}),
            **sections,
        }
    )
    finished = run(config)
    assert finished is not None
    return finished


def align(
    *arguments: str | Path, cwd: Path, input: str | None = None, at: At | None = None, **environment: str
) -> Ended:
    """Run a command as the installed one does, in a fork, and return it with its output; send it a signal at a moment."""
    return run_forked(arguments, cwd, input=input, variables=environment, at=at)


def installed_align(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the installed command in a process of its own: for what is imported, and what imports say."""
    return subprocess.run(
        [str(ALIGN), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )


def short_options(steps: int = 4) -> list[str]:
    """Options that make a run on the demo short."""
    sets = {
        "train.max_steps": steps,
        "train.logging_steps": 1,
        "train.save_strategy": "steps",
        "train.save_steps": 2,
        "train.per_device_train_batch_size": 4,
        "data.limit": 120,
        "data.eval_limit": 30,
        "eval.settings.perplexity.text": "null",
        "eval.samples": 0,
        "run.plots": "false",
    }
    return [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]


def records(directory: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl."""
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def saved_weights(directory: Path) -> bytes:
    """Return the saved weights' bytes."""
    return next((directory / "model").glob("*model.safetensors")).read_bytes()
