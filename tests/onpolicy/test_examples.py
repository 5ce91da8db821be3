"""The pipeline of on-policy methods in examples/, a stage of which learns from a teacher."""

from __future__ import annotations

from pathlib import Path

from alignkit_eval.pipelines.pipeline import run_pipeline

from tests.helpers.runs import records

EXAMPLE = Path(__file__).parents[2] / "examples" / "onpolicy.yaml"
QUICK = ["train.max_steps=2", "train.logging_steps=1", "data.eval_limit=8", "eval.samples=0", "run.plots=false"]
QUICK += ["train.per_device_train_batch_size=2", "eval.suites=[]", "data.limit=24", "train.save_strategy=no"]


def test_its_distill_stage_learns_from_the_teacher_on_answers_and_on_the_data(tmp_path: Path) -> None:
    """From the adapter of its first stage; of two steps, one is on answers of the policy."""
    run_pipeline(EXAMPLE, only=["sft", "distill"], output=str(tmp_path), sets=QUICK)
    steps = [record for record in records(tmp_path / "onpolicy" / "distill") if "loss" in record]
    assert [record["on_policy"] for record in steps] == [0.0, 1.0]
    assert all(record["loss"] == record["loss/divergence"] > 0 for record in steps)
