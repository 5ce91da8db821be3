"""A mistake in a late stage of a pipeline is found before the first stage trains."""

from __future__ import annotations

from pathlib import Path

import pytest
from alignkit.errors import AlignError
from alignkit_eval.pipelines.pipeline import run_pipeline

FIRST = """
name: x
run: {plots: false}
train: {max_steps: 1}
data: {limit: 40, eval_limit: 8}
eval: {samples: 0, suites: []}
stages:
  - {name: a, method: sft, model: {lora: {r: 2}}}
"""
MISTAKES = {
    "{name: z, export: a, weights: abc}": r":9: stages\.1\.weights must be a number, not \"abc\"",
    "{name: z, export: a, weights: [0.5]}": r":9: stage z: the weights sum to 0\.5, not to 1",
    "{name: z, export: a, weights: [.nan]}": r":9: stages\.1\.weights\.0 must be a finite number",
    "{name: z, export: a, merge: 3}": r":9: stages\.1\.merge must be a list, not 3",
    "{name: e, eval: a, suites: {prefs: 1}}": r":9: stages\.1\.suites must be a list",
    "{name: e, eval: 5}": r":9: stages\.1\.eval must be a list, not 5",
    "{name: e, eval: a, suites: nosuch}": r"unknown suite \"nosuch\"",
    "{name: e, eval: a, suites: prefs, settings: {prefs: {nokey: 1}}}": r"unknown key eval\.settings\.prefs\.nokey",
    "{name: e, eval: a, baseline: 7}": r":9: stages\.1\.baseline must be text, not 7",
    "{name: b, method: dpo, from: [a]}": r":9: stages\.1\.from must be text",
    "{name: b, method: dpo, from: a, data: nofile.jsonl}": r"nofile\.jsonl does not exist",
    "{name: b, method: dpo, from: a, model: {lora: {r: 4}}}": r":9: stage b has model\.lora, and a trains an adapter already",
    "{name: b, method: dpo, from: a, train: {optim: galore_adamw}}": r"install `galore_torch`",
    "{name: b, method: dpo, from: a, eval: {suites: [nosuch]}}": r"unknown suite \"nosuch\"",
    "{name: b, method: grpo, reward: nosuch}": r":9: .* no key reward",
    "{name: b, method: {name: grpo, reward: nosuch}}": r"unknown reward \"nosuch\"",
    "{name: e, eval: a, suites: prefs}\n  - {name: b, method: dpo, from: e}": r":10: from of stage b names e, an eval stage",
}


@pytest.mark.parametrize("stage", MISTAKES)
def test_a_mistake_in_a_later_stage_is_found_before_the_first_one_trains(tmp_path: Path, stage: str) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(f"{FIRST}  - {stage}\n")
    with pytest.raises(AlignError, match=MISTAKES[stage]):
        run_pipeline(file, output=str(tmp_path / "runs"))
    assert not (tmp_path / "runs" / "x" / "a").exists()
