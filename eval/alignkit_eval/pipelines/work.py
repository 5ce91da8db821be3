"""The work of each kind of stage, as functions that another process or machine can carry out."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from alignkit import RunConfig
from alignkit.rundir.directory import RunDir
from alignkit.system.files import parse_json, write_json

from alignkit_eval.evaluation.evaluate import evaluate
from alignkit_eval.export import export
from alignkit_eval.merging import Merging
from alignkit_eval.report import run_report
from alignkit_eval.scheduling.work import train

MESSAGES = "messages.json"


def train_stage(config: RunConfig, directory: Path) -> None:
    """Train a stage in ``directory``, or resume it; a finished one is kept."""
    run = RunDir(directory)
    resumable = run.record.is_file() and any(run.checkpoints.glob("checkpoint-*"))
    train(config, directory if resumable or run.status == "finished" else None, quiet=False)
    if config.run.plots:
        run_report(run.path)


def evaluate_stage(runs: Sequence[Path], suites: Sequence[str], sets: Sequence[str], directory: Path) -> None:
    """Evaluate the runs of other stages; what there is to say about it is kept in the stage's directory."""
    messages: list[str] = []
    evaluate(list(runs), suites, sets=sets, say=messages.append)
    directory.mkdir(exist_ok=True)
    write_json(directory / MESSAGES, messages)


def messages_of(directory: Path) -> list[str]:
    """Return what :func:`evaluate_stage` had to say."""
    return [str(message) for message in parse_json((directory / MESSAGES).read_bytes())]


def export_stage(models: Sequence[Path], directory: Path, merging: Merging) -> None:
    """Export the model of a stage, or of several combined, in place of what an unfinished attempt left."""
    shutil.rmtree(directory, ignore_errors=True)
    export(list(models), directory, merging)
