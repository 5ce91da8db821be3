"""What the campaign damages: tiny models, data, finished and unfinished runs, a sweep, a pipeline and evaluations."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from tests.accept.campaign.processes import Align
from tests.accept.models import make_adapter, make_models

TRAIN = {"max_steps": 4, "save_steps": 2, "save_strategy": "steps", "logging_steps": 1}
TRAIN |= {"per_device_train_batch_size": 4, "learning_rate": 1e-2}
PLACES = ("Rome", "Oslo", "Lima", "Cairo", "Quito", "Delhi", "Paris", "Tokyo")


class Base:
    """The prepared directory; its files are copied before they are damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.models = path / "models"
        self.model = self.models / "tiny"
        self.adapter = path / "adapter"
        self.data = path / "pairs.jsonl"
        self.held_out = path / "held-out.jsonl"
        self.config = path / "config.yaml"
        self.pipeline = path / "stages.yaml"
        self.runs = path / "runs"

    def options(self) -> list[str]:
        """Return the options of a short run."""
        return ["--model", str(self.model), "--data", str(self.data), "--eval-data", str(self.held_out), *short()]

    def prepare_models(self) -> None:
        """Write models and data; no command is run."""
        make_models(self.models)
        make_adapter(self.adapter, self.model)
        write_rows(self.data, pairs(24))
        write_rows(self.held_out, pairs(8, first=100))
        train = {**TRAIN, "max_steps": 2}
        suites = {"suites": ["prefs", "perplexity"], "samples": 0}
        data = {"source": str(self.data), "eval_source": str(self.held_out), "columns": {"prompt": "prompt"}}
        config = {"method": {"name": "dpo", "beta": 0.1}, "model": {"name": str(self.model)}, "data": data}
        config |= {"train": train, "eval": suites, "run": {"seed": 1, "name": "x", "plots": False}}
        self.config.write_text(yaml.safe_dump(config, sort_keys=False))
        first = {"name": "start", "method": "sft", "model": str(self.model), "data": data, "train": train}
        second = {"name": "tuned", "method": "dpo", "from": "start", "data": data, "train": train}
        evaluation = {"name": "eval", "eval": "all", "suites": ["prefs"]}
        for stage in (first, second):
            stage |= {"eval": suites, "run": {"plots": False}}
        stages = [first, second, evaluation, {"name": "out", "export": "tuned"}]
        self.pipeline.write_text(yaml.safe_dump({"name": "staged", "stages": stages}, sort_keys=False))

    def prepare_runs(self, align: Align, *, small: bool = False) -> None:
        """Run the commands whose results are damaged later; ``small``: without the sweep and the pipeline."""
        lora = ["--set", "model.lora.r=4", "--set", "model.lora.target_modules=[q_proj, v_proj]"]
        longer = ["--set", "train.max_steps=6", "--set", "train.save_total_limit=9"]
        for name, more in {"a": [], "b": ["--set", "beta=0.3"], "lora": lora, "long": longer}.items():
            self._run(align, "run", "--method", "dpo", *self.options(), *more, "--name", name)
        self._run(align, "eval", str(self.model), str(self.models / "tiny2"), "--data", str(self.held_out))
        interrupt(shutil.copytree(self.runs / "a", self.runs / "half"))
        interrupt(self.runs / "long", step=4)
        if not small:
            over = ["--over", "beta=0.1,0.5", "--name", "grid"]
            self._run(align, "sweep", "--method", "dpo", *self.options(), *over)
            self._run(align, "pipeline", str(self.pipeline))

    def _run(self, align: Align, *arguments: str) -> None:
        ended = align(*arguments, cwd=self.path, ALIGN_CACHE=str(self.path / "cache"))
        assert ended.code == 0, ended


def short() -> list[str]:
    """Return the settings of a short run without plots and samples."""
    values: dict[str, Any] = {f"train.{key}": value for key, value in TRAIN.items()}
    values |= {"run.plots": "false", "eval.samples": 0}
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


def pairs(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Return preference rows with different prompts."""
    return [
        {
            "prompt": f"Where does number {i} live? ",
            "chosen": f"It lives in {PLACES[i % len(PLACES)]}.",
            "rejected": f"I do not know {PLACES[(i + 3) % len(PLACES)]}, sorry.",
        }
        for i in range(first, first + count)
    ]


def dialogues(count: int) -> list[dict[str, Any]]:
    """Return the same rows as messages."""
    user = lambda text: [{"role": "user", "content": text}]
    said = lambda text: [{"role": "assistant", "content": text}]
    return [
        {"prompt": user(row["prompt"].strip()), "chosen": said(row["chosen"]), "rejected": said(row["rejected"])}
        for row in pairs(count)
    ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def interrupt(run: Path, step: int = 2) -> None:
    """Make a finished run look as if it had been killed after the checkpoint of a step."""
    record = json.loads((run / "run.json").read_text())
    kept = {key: value for key, value in record.items() if key not in ("steps", "train", "finished", "checksum")}
    (run / "run.json").write_text(json.dumps({**kept, "status": "running"}))
    later = [path for path in (run / "checkpoints").iterdir() if int(path.name.rpartition("-")[2]) > step]
    for path in (run / "model", *later):
        shutil.rmtree(path)
    for path in [*(run / "eval").glob("*.json*"), run / "samples.jsonl"]:
        path.unlink(missing_ok=True)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] <= step))
