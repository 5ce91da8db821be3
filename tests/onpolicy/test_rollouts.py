"""Rollouts, PPO and GRPO: advantages by hand, the first step's identities, and resume in the middle of a rollout."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit import OnPolicySettings
from alignkit.contract.batch import Batch
from alignkit.contract.rewards import Answered
from alignkit.errors import CheckpointError, ConfigError
from alignkit.onpolicy.rollouts import ModelRollouts, buffer_state, restored_buffer, whiten
from alignkit.onpolicy.samplers import ModelSampler, stop_tokens
from alignkit.scoring.critic import FILE, add_critic, critic_of, is_critics
from alignkit.scoring.policy import ModelPolicy
from alignkit.scoring.reference import StartWeights
from alignkit.training.checkpoints import last_checkpoint
from alignkit_grpo import group_advantages
from alignkit_grpo.losses import kl_k3
from alignkit_ppo import clipped_policy_loss, explained_variance, gae
from transformers import LlamaForCausalLM

from tests.helpers.engine import (
    StopAt,
    Words,
    build_trainer,
    configuration,
    random_prompts,
    rollout_parts,
    tiny_llama,
    weights,
)

SAMPLING: dict[str, Any] = {"reward": "length", "max_new_tokens": 8}
PPO: dict[str, Any] = {"name": "ppo", **SAMPLING, "epochs": 2, "minibatches": 2}
GRPO: dict[str, Any] = {"name": "grpo", **SAMPLING, "group": 3}
TRAIN: dict[str, Any] = {"optim": "adamw_torch", "max_steps": 8, "logging_steps": 1, "tokens_per_micro_batch": 120}
TRAIN |= {"per_device_train_batch_size": 4, "learning_rate": 3e-3}


def lora(model: torch.nn.Module) -> torch.nn.Module:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))  # type: ignore[arg-type]


def rollouts(model: torch.nn.Module, settings: OnPolicySettings, *rewards: Any, number: int = 0) -> ModelRollouts:
    policy = ModelPolicy(model)
    policy.start = StartWeights(model)
    return ModelRollouts(rollout_parts(settings, model, 0, rewards), policy, number)


def constant(answers: Sequence[Answered]) -> list[float]:
    return [0.7] * len(answers)


# ------------------------------------------------------------------------------------------------ mathematics


def plain_gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Equation 16 as it stands: a sum over later errors, no recursion."""
    following = [*values[1:], 0.0]
    errors = [r + gamma * n - v for r, n, v in zip(rewards, following, values, strict=True)]
    return [sum((gamma * lam) ** k * error for k, error in enumerate(errors[t:])) for t in range(len(errors))]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (1.0, 0.0), (0.97, 0.9), (0.0, 0.5)])
def test_advantages_equal_the_definition(gamma: float, lam: float) -> None:
    draw = random.Random(0)
    lengths = [1, 7, 3, 12, 1]
    answers = [[(draw.gauss(0, 1), draw.gauss(0, 1)) for _ in range(n)] for n in lengths]
    flat = [pair for answer in answers for pair in answer]
    found = gae(
        torch.tensor([r for r, _ in flat]),
        torch.tensor([v for _, v in flat]),
        torch.tensor(lengths),
        gamma=gamma,
        lam=lam,
    )
    expected = [a for answer in answers for a in plain_gae([r for r, _ in answer], [v for _, v in answer], gamma, lam)]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=1e-5)
    # Alone, without the padding its neighbours bring, an answer's advantages are the same.
    alone = gae(
        torch.tensor([r for r, _ in answers[2]]),
        torch.tensor([v for _, v in answers[2]]),
        torch.tensor([3]),
        gamma=gamma,
        lam=lam,
    )
    torch.testing.assert_close(alone, found[8:11])


def test_clipping_binds_on_one_side_only() -> None:
    log_ratios = torch.tensor([0.5, -0.5, 0.5, -0.5], requires_grad=True)
    clipped_policy_loss(log_ratios, torch.tensor([1.0, 1.0, -1.0, -1.0]), clip=0.2).sum().backward()
    assert log_ratios.grad is not None
    assert log_ratios.grad[0] == 0, "already likelier than clip allows, and good: no further"
    assert log_ratios.grad[3] == 0, "already less likely, and bad"
    assert log_ratios.grad[1] < 0 < log_ratios.grad[2], "on the wrong side: pulled back"


def test_leave_one_out_is_the_mean_of_the_others() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.5], [2.0, 2.0, 2.0]])
    found = group_advantages(rewards, baseline="leave_one_out", scale="none")
    expected = torch.tensor([[1 - 0.25, 0 - 0.75, 0.5 - 0.5], [0, 0, 0]])
    torch.testing.assert_close(found, expected)
    scaled = group_advantages(rewards, baseline="mean", scale="group")
    torch.testing.assert_close(scaled[0], (rewards[0] - 0.5) / (0.5 + 1e-4))
    assert torch.equal(scaled[1], torch.zeros(3)), "all alike: nothing to learn"


def test_k3_is_positive_and_right_on_average() -> None:
    torch.manual_seed(0)
    p, q = torch.randn(6).log_softmax(0), torch.randn(6).log_softmax(0)
    assert bool((kl_k3(p, q) >= 0).all())
    torch.testing.assert_close((p.exp() * kl_k3(p, q)).sum(), (p.exp() * (p - q)).sum())


def test_explained_variance() -> None:
    returns = torch.tensor([0.0, 1.0, 2.0])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(torch.zeros(3), returns) == 0.0
    assert explained_variance(torch.zeros(3), torch.ones(3)) == 0.0


# ------------------------------------------------------------------------------------------------ rollouts


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_rollout_scores_are_the_model_s_own(temperature: float, kind: str) -> None:
    model = lora(tiny_llama()) if kind == "lora" else tiny_llama()
    add_critic(model, "shared")
    made = rollouts(model, OnPolicySettings(max_new_tokens=8, temperature=temperature))
    batch = made.sample(Batch(random_prompts(6)), 2)
    scores = made.score(batch, values=True, entropy=True)
    expected, spread = [], []
    for example in batch.examples:
        for completion in example.completions:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[*example.prompt, *completion]])).logits[0] / temperature
            logps = logits.log_softmax(-1)[len(example.prompt) - 1 : -1]
            expected.append(logps.gather(1, torch.tensor(completion)[:, None]).squeeze(1))
            spread.append(-(logps.exp() * logps).sum(-1))
    torch.testing.assert_close(scores.logps, torch.cat(expected), atol=1e-4, rtol=1e-4)
    assert scores.entropy is not None
    assert scores.values is not None
    torch.testing.assert_close(scores.entropy, torch.cat(spread), atol=1e-4, rtol=1e-4)
    assert torch.equal(scores.values, torch.zeros_like(scores.logps)), "a new critic values nothing"


def test_what_is_sampled_follows_from_seed_and_rollout_alone() -> None:
    model, settings = tiny_llama(), OnPolicySettings(max_new_tokens=8)
    prompts = Batch(random_prompts(5))
    first = rollouts(model, settings).sample(prompts, 2)
    torch.rand(7)
    assert rollouts(model, settings).sample(prompts, 2) == first
    assert rollouts(model, settings, number=1).sample(prompts, 2) != first


def test_padding_changes_no_answer() -> None:
    model, settings = tiny_llama(), OnPolicySettings(max_new_tokens=8, top_k=1)
    prompts = [list(example.prompt) for example in random_prompts(6)]
    sampler = ModelSampler(model, Words(), settings, ())  # type: ignore[arg-type]
    assert len({len(prompt) for prompt in prompts}) > 1
    assert sampler(prompts, 0) == [answer for prompt in prompts for answer in sampler([prompt], 0)]


def test_an_answer_s_end_counts_and_its_absence_costs() -> None:
    model, settings = tiny_llama(), OnPolicySettings(max_new_tokens=4, missing_end_penalty=2.0)
    with torch.no_grad():
        model.lm_head.weight[2] += 0.5  # let some answers end
    batch = rollouts(model, settings, constant).sample(Batch(random_prompts(40)))
    ended = [row[0] for row in batch.columns["ended"]]
    assert 0 < sum(ended) < 40
    for example, end, reward in zip(batch.examples, ended, batch.columns["reward"], strict=True):
        assert (example.completions[0][-1] == 2) == bool(end)
        assert reward == [pytest.approx(0.7 if end else -1.3)]


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_reference_is_the_start(kind: str) -> None:
    model = lora(tiny_llama()) if kind == "lora" else tiny_llama()
    made = rollouts(model, OnPolicySettings(max_new_tokens=6))
    batch = made.sample(Batch(random_prompts(4)))
    before = made.score(batch)
    trained = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    moved = weights(model)
    assert torch.equal(made.score(batch, reference=True).logps, before.logps)
    assert torch.equal(weights(model), moved), "and the policy is put back"
    assert not torch.allclose(made.score(batch).logps, before.logps)
    if kind == "lora":
        with model.disable_adapter():  # type: ignore[operator]
            torch.testing.assert_close(made.score(batch).logps, before.logps)


def test_the_critic_has_no_reference() -> None:
    model = tiny_llama()
    add_critic(model, "shared")
    critic = critic_of(model)
    assert critic is not None
    start = StartWeights(model)
    critic.head.bias.data.fill_(3.0)
    with start.in_place():
        assert critic.head.bias.item() == 3.0


def test_whitened_over_tokens() -> None:
    made = rollouts(tiny_llama(), OnPolicySettings())
    values = torch.randn(50) * 3 + 2
    white = whiten(values, made)
    assert white.mean().abs() < 1e-5
    assert (white.std(unbiased=False) - 1).abs() < 1e-4
    torch.testing.assert_close(whiten(values, made, shift_mean=False).mean(), values.mean())


def test_a_buffer_survives_its_checkpoint(tmp_path: Path) -> None:
    prompts = random_prompts(5)
    made = rollouts(tiny_llama(), OnPolicySettings(max_new_tokens=6))
    batch = made.sample(Batch(prompts), 2)
    batch = batch.with_tokens(logps=made.score(batch).logps).with_shared(kl_coef=0.1)
    torch.save(buffer_state(batch), tmp_path / "b.pt")
    again = restored_buffer(torch.load(tmp_path / "b.pt", weights_only=True), prompts)
    assert again.examples == batch.examples
    assert again.columns.keys() == batch.columns.keys()
    assert all(torch.equal(a, b) for a, b in zip(again.columns["logps"], batch.columns["logps"], strict=True))
    assert again.shared == batch.shared


def test_stop_tokens(tmp_path: Path) -> None:
    from alignkit.config import ModelConfig
    from alignkit.models.load import build_model

    tokenizer = build_model(ModelConfig()).tokenizer
    assert stop_tokens(tokenizer, [" ."]) == {tokenizer("Mia .", add_special_tokens=False)["input_ids"][-1]}
    with pytest.raises(ConfigError, match="has to be one"):
        stop_tokens(tokenizer, ["Mia eats"])


def test_vllm_is_asked_for_where_it_is_missing() -> None:
    with pytest.raises(ConfigError, match="sampler vllm needs vLLM, which is not installed"):
        configuration(PPO | {"sampler": "vllm"})


def test_what_vllm_gets_is_the_merged_policy() -> None:
    from alignkit.onpolicy.vllm import merged_weights

    model = lora(tiny_llama())
    add_critic(model, "shared")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    before = weights(model)
    found = dict(merged_weights(model))
    assert torch.equal(weights(model), before), "and is left as it was"
    plain = tiny_llama()
    assert found.keys() == plain.state_dict().keys()
    plain.load_state_dict(found)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        torch.testing.assert_close(plain(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-4, rtol=1e-4)


# ------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("method", [PPO, PPO | {"critic": "separate"}, GRPO, GRPO | {"beta": 0.1, "epochs": 2}])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_first_minibatch_is_on_policy(tmp_path: Path, method: dict[str, Any], kind: str) -> None:
    model = lora(tiny_llama()) if kind == "lora" else tiny_llama()
    trainer, seen = build_trainer(configuration(method, **TRAIN), tmp_path, random_prompts(40), model=model)
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
