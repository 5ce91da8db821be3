"""Acceptance check of trackers: what each keeps in its local store equals the files of the run, for every kind of method."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from alignkit.contract import registry

from tests.accept.commands import ALIGN, command, settings
from tests.helpers import trackers as kept_by
from tests.helpers.trackers import Kept, assert_same, expected, replayed

METHODS: Mapping[str, list[str]] = {
    "trl-dpo": [],
    "ppo": settings(reward="length", max_new_tokens=6),
    "grpo": settings(reward="length", max_new_tokens=6),
    "reward": [],
}
SHORT = settings(
    train__max_steps=4,
    train__logging_steps=1,
    data__limit=64,
    data__eval_limit=16,
    eval__samples=2,
    run__project="tried",
)


def trackers(work: Path) -> dict[str, Any]:
    """TensorBoard, W&B offline, MLflow on sqlite, trackio and aim keep what run.json and metrics.jsonl hold, in runs, resumes and sweeps."""
    names = ["tensorboard", "wandb", "mlflow", "trackio", "aim"]
    there = [name for name in names if importlib.util.find_spec(name)]
    if not there:
        return {"skipped": f"none of {', '.join(names)} is installed: pip install 'alignkit[trackers]'"}
    stores = {
        "WANDB_MODE": "offline",
        "MLFLOW_TRACKING_URI": f"sqlite:///{work}/mlflow.db",
        "TRACKIO_DIR": str(work / "trackio"),
        "AIM_REPO": str(work / "aim"),
    }
    (work / "aim").mkdir()
    os.environ.update(stores)
    seen: dict[str, Any] = {"missing": [name for name in names if name not in there]}
    report = settings(train__report_to=",".join(there))
    during = [*settings(eval__during__prefs=2), "--name", "named"]
    command(ALIGN, "run", "--method", "orpo", *SHORT, *report, *during, *_models(there), cwd=work)
    run = work / "runs" / "named"
    for name in there:
        seen[name] = _compared(name, run, "tried", work)
        again = work / "again" / name
        again.mkdir(parents=True)
        _own_stores(again)
        tracker = registry.load(registry.find("align.services", name))
        copied = replayed(run, again, tracker, 2)
        seen[f"{name}, resumed"] = _compared(name, copied, "tried", again)
        os.environ.update(stores)
    folders = {}
    for method, more in METHODS.items():
        command(
            ALIGN,
            "run",
            "--method",
            method,
            *SHORT,
            *more,
            *settings(train__report_to=there[0]),
            "--name",
            method,
            cwd=work,
        )
        folders[method] = work / "runs" / method
    if "tensorboard" in there:
        for folder in folders.values():
            assert_same(kept_by.read_tensorboard(folder / "tensorboard"), expected(folder))
        seen["methods"] = [*folders]
    seen["comparison"] = _sweep(work, there)
    if "wandb" in there:
        swept = settings(train__report_to="wandb", eval__suites="prefs")
        command(
            ALIGN, "sweep", "--method", "orpo", "--over", "lambda=0,0.1", "--name", "lambdas", *SHORT, *swept, cwd=work
        )
        files = sorted((work / "runs" / "lambdas").glob("*/wandb/offline-run-*/run-*.wandb"))
        found = [kept_by.read_wandb(file) for file in files]
        assert len(found) == 2, files
        assert {kept.group for kept in found} == {"lambdas"}, found
        seen["sweep"] = sorted(str(kept.name) for kept in found)
    return seen


def _sweep(work: Path, there: list[str]) -> dict[str, list[str]]:
    """Every tracker keeps the comparison of a sweep as sweep.json has it, once, also when the sweep is resumed."""
    words = ["--method", "orpo", "--over", "lambda=0,0.5", "--name", "compared", *SHORT]
    words += settings(train__report_to=",".join(there), eval__suites="prefs", run__project="compared")
    command(ALIGN, "sweep", *words, cwd=work)
    command(ALIGN, "sweep", "--resume", "runs/compared", cwd=work)
    sweep, name = work / "runs" / "compared", "compared-comparison"
    stored = json.loads((sweep / "sweep.json").read_text())["comparison"]
    read: dict[str, Callable[[], Kept]] = {
        "tensorboard": lambda: kept_by.read_tensorboard(sweep / "tensorboard"),
        "wandb": lambda: kept_by.read_wandb(*sweep.glob("wandb/offline-run-*/run-*.wandb")),
        "mlflow": lambda: kept_by.read_mlflow(os.environ["MLFLOW_TRACKING_URI"], "compared", name),
        "trackio": lambda: kept_by.read_trackio("compared", name),
        "aim": lambda: kept_by.read_aim(Path(os.environ["AIM_REPO"]), name),
    }
    found = {tracker: read[tracker]() for tracker in there}
    for tracker, kept in found.items():
        assert kept.tables["verdict"][0] == {"kind": "verdict", "text": stored["verdict"]}, tracker
        differences = [(row["metric"], row["difference"], row["p"]) for row in kept.tables["differences"]]
        assert differences == [(c["metric"], c["diff"], c["p_holm"]) for c in stored["contrasts"]], tracker
        metrics = [metric for arm in stored["arms"] for suite in arm["metrics"].values() for metric in suite]
        assert [row["metric"] for row in kept.tables["arms"]] == metrics, tracker
        assert kept.config["sweep"]["over"] == {"lambda": ["0", "0.5"]}, tracker
        assert kept.plots == {path.stem for path in (sweep / "plots").glob("*.png")}, tracker
        if tracker != "tensorboard":  # whose runs are folders
            assert (kept.name, kept.project) == (name, "compared"), tracker
    return {tracker: [*kept.tables] for tracker, kept in found.items()}


def _models(there: list[str]) -> list[str]:
    return settings(tracker__model="true") if {*there} & {"wandb", "mlflow", "trackio"} else []


def _own_stores(place: Path) -> None:
    (place / "aim").mkdir()
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{place}/mlflow.db"
    os.environ["AIM_REPO"] = str(place / "aim")


def _compared(name: str, run: Path, project: str, work: Path) -> str:
    """Compare what a tracker has kept of a run with the run's files; return what was found."""
    wanted = expected(run)
    read: dict[str, Callable[[], Kept]] = {
        "tensorboard": lambda: kept_by.read_tensorboard(run / "tensorboard"),
        "wandb": lambda: kept_by.read_wandb_parts(run),
        "mlflow": lambda: kept_by.read_mlflow(os.environ["MLFLOW_TRACKING_URI"], project),
        "trackio": lambda: kept_by.read_trackio(
            project, json.loads((run / "trackers.json").read_text())["trackio"]["id"]
        ),
        "aim": lambda: kept_by.read_aim(Path(os.environ["AIM_REPO"])),
    }
    kept = read[name]()
    assert_same(kept, wanted)
    if name != "tensorboard":  # whose runs are folders
        assert (kept.name, kept.project) == (wanted.name, project), kept
    if name in ("wandb", "mlflow"):
        assert kept.model == wanted.model, kept.model
    return f"{len(kept.scalars)} metrics, {len(kept.plots)} plots, {len(kept.tables)} tables"
