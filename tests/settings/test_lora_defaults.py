"""The defaults of a method where LoRA is set."""

from __future__ import annotations

from pathlib import Path

import pytest
from alignkit.contract.registry import entries, load_method
from alignkit.settings.resolve import resolve

BUILT_IN = [entry.name for entry in entries("align.methods") if entry.built_in]
NEEDED = {
    "distill": ["teacher=demo"],
    "grpo": ["reward=length"],
    "ppo": ["reward=length"],
    "trl-grpo": ["reward=length"],
    "trl-rloo": ["reward=length"],
}


def rate(tmp_path: Path, method: str, *sets: str) -> float:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    sets = (*NEEDED.get(method, []), *sets)
    found: float = resolve(method=method, data=str(rows), sets=sets).config.train.model_dump()["learning_rate"]
    return found


@pytest.mark.parametrize("method", BUILT_IN)
def test_lora_learns_ten_times_as_fast_by_default(tmp_path: Path, method: str) -> None:
    assert rate(tmp_path, method, "model.lora.r=8") == pytest.approx(10 * rate(tmp_path, method))
    assert load_method(method)[1].lora_defaults


def test_a_given_rate_and_the_demos_override_it(tmp_path: Path) -> None:
    assert rate(tmp_path, "dpo", "model.lora.r=8", "train.learning_rate=3e-6") == 3e-6
    assert rate(tmp_path, "dpo", "model.lora=null") == 1e-6
    demo = resolve(method="dpo", sets=["model.lora.r=8"]).config.train.model_dump()
    assert demo["learning_rate"] == 1e-3
