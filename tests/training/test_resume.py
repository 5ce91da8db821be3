"""Resume equals the uninterrupted run bit for bit, and only from checkpoints that are whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit.errors import CheckpointError
from alignkit.training.checkpoints import MANIFEST, STAGE, fault, last_checkpoint, read_engine_state

from tests.helpers.engine import StopAt, build_trainer, configuration, random_pairs, tiny_llama, weights

SETTINGS: dict[str, Any] = {
    "optim": "adamw_torch",
    "lr_scheduler_type": "cosine",
    "max_steps": 9,
    "logging_steps": 2,
    "tokens_per_micro_batch": 200,
}


def lora(model: torch.nn.Module) -> torch.nn.Module:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["orpo", "dpo"])
@pytest.mark.parametrize("stop", [2, 3, 5], ids=["mid-epoch", "epoch-end", "second-epoch"])
@pytest.mark.parametrize("kind", ["full", "lora", "dropout"])
def test_resume_equals_uninterrupted(tmp_path: Path, method: str, stop: int, kind: str) -> None:
    def model() -> torch.nn.Module:
        made: torch.nn.Module = tiny_llama(attention_dropout=0.1 if kind == "dropout" else 0.0)
        return lora(made) if kind == "lora" else made

    pairs, held_out = random_pairs(24), random_pairs(6, seed=1)
    evaluated = {**SETTINGS, "eval_strategy": "steps", "eval_steps": 2}
    whole, seen_whole = build_trainer(configuration(method, **SETTINGS), tmp_path / "whole", pairs, model=model())
    whole.train()
    first, seen_first = build_trainer(
        configuration(method, **evaluated),
        tmp_path / "cut",
        pairs,
        model=model(),
        held_out=held_out,
        callbacks=[StopAt(stop)],
    )
    first.train()
    second, seen_second = build_trainer(
        configuration(method, **evaluated), tmp_path / "cut", pairs, model=model(), held_out=held_out
    )
    second.train(resume_from_checkpoint=str(last_checkpoint(tmp_path / "cut")))
    assert torch.equal(weights(second.model), weights(whole.model))
    resumed = [r for r in seen_first.logs + seen_second.logs if "loss" in r]
    straight = [r for r in seen_whole.logs if "loss" in r]
    assert [r["step"] for r in resumed] == [r["step"] for r in straight]
    for a, b in zip(resumed, straight, strict=True):
        for key in ("loss", "tokens", "rewards/margins", "learning_rate"):
            assert a[key] == pytest.approx(b[key], rel=1e-12), key


def saved(tmp_path: Path, **train: Any) -> Path:
    settings = {**SETTINGS, "max_steps": 4, "save_strategy": "steps", "save_steps": 1} | train
    trainer, _ = build_trainer(configuration("orpo", **settings), tmp_path, random_pairs(24))
    trainer.train()
    return tmp_path


def test_checkpoints_are_whole_and_rotated(tmp_path: Path) -> None:
    directory = saved(tmp_path, save_total_limit=2)
    assert sorted(p.name for p in directory.iterdir()) == ["checkpoint-3", "checkpoint-4"]
    assert all(fault(p) is None for p in directory.iterdir())
    assert last_checkpoint(directory) == directory / "checkpoint-4"


@pytest.mark.parametrize("damage", ["truncated", "missing", "no manifest", "broken manifest"])
def test_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: str) -> None:
    directory = saved(tmp_path)
    newest = directory / "checkpoint-4"
    match damage:
        case "truncated":
            (newest / "model.safetensors").write_bytes((newest / "model.safetensors").read_bytes()[:100])
        case "missing":
            (newest / "optimizer.pt").unlink()
        case "no manifest":
            (newest / MANIFEST).unlink()
        case _:
            (newest / MANIFEST).write_text("{")
    assert last_checkpoint(directory) == directory / "checkpoint-3"


def test_no_checkpoint_is_none_and_only_broken_ones_an_error(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    (tmp_path / STAGE / "checkpoint-7").mkdir(parents=True)
    assert last_checkpoint(tmp_path) is None
    (tmp_path / "checkpoint-5").mkdir()
    with pytest.raises(CheckpointError, match=r"checkpoint-5: it has no readable manifest.json"):
        last_checkpoint(tmp_path)


def test_best_model_survives_the_staging(tmp_path: Path) -> None:
    """Held-out loss rises at this learning rate, so the best checkpoint is an early one: it is kept, and loaded at the end."""
    settings = {
        **SETTINGS,
        "learning_rate": 0.3,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_steps": 6,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
        "greater_is_better": True,  # any direction will do: the first evaluation is the best of a falling loss
    }
    trainer, seen = build_trainer(
        configuration("orpo", **settings), tmp_path, random_pairs(24), held_out=random_pairs(8)
    )
    trainer.train()
    losses = [record["eval_loss"] for record in seen.logs if "eval_loss" in record]
    best = tmp_path / f"checkpoint-{1 + losses.index(max(losses))}"
    assert Path(trainer.state.best_model_checkpoint) == best
    assert fault(best) is None
    assert trainer.evaluate()["eval_loss"] == pytest.approx(max(losses), rel=1e-6)


def test_a_run_resumes_with_as_many_processes_as_saved_it(tmp_path: Path) -> None:
    trainer, _ = build_trainer(configuration("orpo", **SETTINGS), tmp_path, random_pairs(8), callbacks=[StopAt(1)])
    trainer.train()
    checkpoint = last_checkpoint(tmp_path)
    assert checkpoint is not None
    assert read_engine_state(checkpoint, rank=0)["tokens_seen"] == trainer.numbers.tokens > 0
    again, _ = build_trainer(configuration("orpo", **SETTINGS), tmp_path, random_pairs(8))
    (checkpoint / "engine_1.pt").write_bytes((checkpoint / "engine_0.pt").read_bytes())  # its answers would be lost
    with pytest.raises(CheckpointError, match=r"was saved by 2 processes: a run resumes with as many, not 1"):
        again.train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / "engine_1.pt").unlink()
    (checkpoint / "engine_0.pt").unlink()
    with pytest.raises(CheckpointError, match=r"was saved by 0 processes: "):
        again.train(resume_from_checkpoint=str(checkpoint))
