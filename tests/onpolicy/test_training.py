"""PPO and GRPO in training: identities of the first step, learning, resume in the middle of a rollout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit.errors import CheckpointError
from alignkit.scoring.critic import FILE, is_critics
from alignkit.training.checkpoints import last_checkpoint
from transformers import LlamaForCausalLM

from tests.helpers.engine import (
    StopAt,
    build_trainer,
    configuration,
    random_prompts,
    tiny_llama,
    weights,
)
from tests.helpers.onpolicy import GRPO, PPO, TRAIN, constant, lora


@pytest.mark.parametrize("method", [PPO, PPO | {"critic": "separate"}, GRPO, GRPO | {"beta": 0.1, "epochs": 2}])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_first_minibatch_is_on_policy(device: str, tmp_path: Path, method: dict[str, Any], kind: str) -> None:
    model = lora(tiny_llama()) if kind == "lora" else tiny_llama()
    config = configuration(method, **TRAIN)
    trainer, seen = build_trainer(config, tmp_path, random_prompts(40), model=model, device=device)
    trainer.train()
    first = seen.logs[0]
    assert first["clip_fraction"] == 0.0
    assert abs(first["approx_kl"]) < 1e-6
    assert abs(first.get("kl", 0.0)) < 1e-5
    assert {"reward", "reward/r0", "length", "ended", "entropy"} <= first.keys()
    assert first["length"] <= 8
    assert any(record["approx_kl"] > 1e-6 for record in seen.logs if "approx_kl" in record) or method["name"] == "grpo"


@pytest.mark.parametrize(
    "method",
    [GRPO, GRPO | {"baseline": "leave_one_out", "scale": "none"}, PPO | {"gamma": 1.0, "lambda": 1.0}],
    ids=["grpo", "rloo", "ppo"],
)
def test_a_constant_reward_teaches_nothing(tmp_path: Path, method: dict[str, Any]) -> None:
    trainer, _ = build_trainer(
        configuration(method | {"kl_coef": 0.0}, **TRAIN), tmp_path, random_prompts(20), rewards=[constant]
    )
    batch = trainer.steps.batch(0, 0.0)
    assert max(float(row.abs().max()) for row in batch.columns["advantages"]) < 1e-6


@pytest.mark.parametrize("method", [PPO | {"epochs": 1}, GRPO], ids=["ppo", "grpo"])
def test_the_reward_is_learned(tmp_path: Path, method: dict[str, Any]) -> None:
    train = TRAIN | {"max_steps": 40, "per_device_train_batch_size": 16, "learning_rate": 5e-3}
    trainer, seen = build_trainer(configuration(method, **train), tmp_path, random_prompts(100))
    trainer.train()
    rewards = [record["reward"] for record in seen.logs if "reward" in record]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.15
    found = trainer.evaluate(random_prompts(10, seed=5))
    assert found["eval_reward"] > rewards[0]


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        (PPO | {"kl_target": 0.1, "kl_horizon": 20}, "full"),
        (PPO | {"critic": "separate"}, "lora"),
        (GRPO | {"epochs": 2, "minibatches": 2, "beta": 0.05}, "full"),
    ],
    ids=["adaptive", "separate critic", "grpo"],
)
@pytest.mark.parametrize("stop", [3, 4])
def test_resume_inside_a_rollout_equals_uninterrupted(
    tmp_path: Path, method: dict[str, Any], kind: str, stop: int
) -> None:
    def make(output: Path, *callbacks: Any) -> Any:
        model = lora(tiny_llama()) if kind == "lora" else tiny_llama()
        return build_trainer(
            configuration(method, **TRAIN), output, random_prompts(40), model=model, callbacks=callbacks
        )

    whole, seen_whole = make(tmp_path / "whole")
    whole.train()
    first, seen_first = make(tmp_path / "cut", StopAt(stop))
    first.train()
    torch.rand(3)
    second, seen_second = make(tmp_path / "cut")
    second.train(resume_from_checkpoint=str(last_checkpoint(tmp_path / "cut")))
    assert torch.equal(weights(second.model), weights(whole.model))
    assert second.parts.session.method.state() == whole.parts.session.method.state()
    mine = [r["reward"] for r in seen_first.logs + seen_second.logs if "reward" in r]
    assert mine == [r["reward"] for r in seen_whole.logs if "reward" in r]


def test_a_lost_rollout_is_said(tmp_path: Path) -> None:
    make = lambda *callbacks: build_trainer(
        configuration(PPO, **TRAIN), tmp_path, random_prompts(40), callbacks=callbacks
    )
    make(StopAt(3))[0].train()
    state = tmp_path / "checkpoint-3" / "engine_0.pt"
    kept = torch.load(state, weights_only=True)
    torch.save(kept | {"buffer": None}, state)
    with pytest.raises(CheckpointError, match="lacks the rollout"):
        make()[0].train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_saved_model_is_a_stock_one(tmp_path: Path, kind: str) -> None:
    model = lora(tiny_llama()) if kind == "lora" else tiny_llama()
    method = PPO | {"critic": "separate"}
    trainer, _ = build_trainer(configuration(method, **TRAIN), tmp_path / "run", random_prompts(40), model=model)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    assert (tmp_path / "model" / FILE).is_file()
    if kind == "full":
        loaded, info = LlamaForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
        assert not info["unexpected_keys"]
        assert not info["missing_keys"]
    else:
        from peft import PeftModel
        from safetensors.torch import load_file

        assert not [n for n in load_file(tmp_path / "model" / "adapter_model.safetensors") if is_critics(n)]
        loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path / "model")
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, trainer.model(input_ids=ids).logits)
