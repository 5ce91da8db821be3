"""Stages of a pipeline that a scheduler carries out in another process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from alignkit.errors import RunFailedError
from alignkit_eval.pipelines.pipeline import run_pipeline

SETS = ["train.max_steps=1", "data.eval_limit=10", "eval.samples=0", "run.plots=false"]
STAGES = """
eval: {suites: prefs}
stages:
  - method: sft
  - {name: eval, eval: sft, suites: prefs}
  - export: sft
  - {name: broken, method: sft, from: sft, train: {learning_rate: 1.0e12}}
"""


def test_stages_are_carried_out_elsewhere_and_a_failed_one_is_named(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(STAGES)
    with pytest.raises(RunFailedError, match="finite") as caught:
        run_pipeline(
            file, output=str(tmp_path), sets=[*SETS, "train.max_steps=2"], scheduler="local", options={"jobs": 2}
        )
    assert caught.value.__notes__ == ["in stage broken"]
    stages = json.loads((tmp_path / "p" / "pipeline.json").read_text())["stages"]
    assert [stage["status"] for stage in stages] == ["finished", "finished", "finished", "failed"]
    assert all(stage["cpu_seconds"] > 0 for stage in stages)
    assert (tmp_path / "p/eval/comparison.json").is_file()
    assert (tmp_path / "p/export/model.safetensors").is_file()
