"""The stage that evaluates and compares the runs of earlier stages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignkit import Stage, StageContext
from alignkit.config import EvalConfig, Words
from alignkit.errors import ConfigError
from alignkit.models.paths import is_classifier
from alignkit.rundir.directory import RunDir
from alignkit.runs.evaluation import open_suites
from alignkit.system.files import parse_json, write_json
from pydantic import BaseModel, ConfigDict, Field

from alignkit_eval.comparison.compare import compare
from alignkit_eval.comparison.result import Comparison
from alignkit_eval.evaluation.evaluate import evaluate
from alignkit_eval.pipelines.inputs import named_files
from alignkit_eval.report import comparison_report
from alignkit_eval.report.tracked import track_comparison

MESSAGES = "messages.json"


class EvaluateSettings(BaseModel):
    """What is evaluated, with which suites, and compared with what."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)

    eval: Words | None = Field(description="training stages to evaluate; all: every one that trained a language model")
    baseline: str | None = Field(None, description="stage that the others are compared with")
    suites: Words = Field(
        [], description="suites to evaluate all of them with (default: what they were evaluated with)"
    )
    settings: dict[str, dict[str, Any]] = Field({}, description="settings by suite")


class EvaluateStage(Stage[EvaluateSettings]):
    """Results of suites in the runs' directories, and their comparison in the stage's own."""

    name = "eval"
    settings_type = EvaluateSettings
    inputs = {"eval": ("train",), "baseline": ("train",)}

    def __init__(self, settings: EvaluateSettings, context: StageContext) -> None:
        super().__init__(settings, context)
        base, named = settings.baseline, settings.eval
        if base is not None and named not in (["all"], None) and base not in named:
            raise ConfigError(f"{context.place}: baseline {base} of stage {context.name} is not evaluated")

    def check(self) -> None:
        """Open the suites."""
        open_suites(EvalConfig(suites=self.settings.suites, settings=self.settings.settings))

    def identity(self) -> Any:
        """Return the settings as written, and the content of files that the settings of suites name."""
        files = named_files(self.settings.settings, self.context.directory.parent)
        return [dict(self.context.values), files] if files else dict(self.context.values)

    def run(self, directory: Path) -> None:
        """Evaluate the runs; what there is to say about it is kept for :meth:`finished`."""
        messages: list[str] = []
        if self.settings.suites:
            sets = [
                f"eval.settings.{suite}.{key}={json.dumps(value)}"
                for suite, values in self.settings.settings.items()
                for key, value in values.items()
            ]
            evaluate(self._runs(), self.settings.suites, sets=sets, say=messages.append)
        write_json(directory / MESSAGES, messages)

    def finished(self, say: Callable[[str], None]) -> Comparison:
        """Compare the runs, and write the comparison and its report."""
        directory = self.context.directory
        if (messages := directory / MESSAGES).is_file():
            for message in parse_json(messages.read_bytes()):
                say(str(message))
        runs, baseline = self._runs(), self.settings.baseline
        if len(runs) == 1:
            comparison = compare(runs, "start")
        else:
            base = None if baseline is None else directory.parent / baseline
            comparison = compare(runs, base, names={run: run.name for run in runs})
        comparison_report(comparison, directory / "report.html")
        write_json(directory / "comparison.json", comparison.to_json())
        for failure in track_comparison(directory, runs, {"stage": dict(self.context.values)}, comparison):
            say(f"warning: {failure}")
        return comparison

    def _runs(self) -> list[Path]:
        """Return the runs to evaluate: those of the stages named, else all finished ones that trained a language model."""
        named = self.settings.eval if self.settings.eval not in (["all"], None) else []
        root = self.context.directory.parent
        trained = [name for name, stage in self.context.earlier.items() if stage.name == "train"]
        runs = [root / name for name in named or []] or language_models([root / name for name in trained])
        if not runs:
            raise ConfigError(f"{self.context.place}: stage {self.context.name} has no stage to evaluate")
        return runs


def language_models(runs: list[Path]) -> list[Path]:
    """Return the finished runs that trained a language model, not a reward model."""
    return [run for run in runs if RunDir(run).status == "finished" and not is_classifier(str(run / "model"))]
