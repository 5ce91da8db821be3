"""Rollouts: sampling, scores, end tokens, the reference, the critic, the buffer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit import OnPolicySettings
from alignkit.contract.batch import Batch
from alignkit.errors import ConfigError
from alignkit.onpolicy.rollouts import buffer_state, restored_buffer, whiten
from alignkit.onpolicy.samplers import model_sampler, stop_tokens
from alignkit.scoring.critic import add_critic, critic_of
from alignkit.scoring.reference import StartWeights

from tests.helpers.engine import (
    Words,
    random_prompts,
    tiny_llama,
    weights,
)
from tests.helpers.onpolicy import constant, lora, rollouts


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
    assert torch.equal(scores.values, torch.zeros_like(scores.logps)), "a new critic returns 0"


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
    sampler = model_sampler(model, Words(), settings, ())  # type: ignore[arg-type]
    assert len({len(prompt) for prompt in prompts}) > 1
    assert sampler(prompts, range(6)) == [answer for i in range(6) for answer in sampler(prompts[i : i + 1], [i])]


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
    assert torch.equal(weights(model), moved), "the policy is restored"
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
    with pytest.raises(ConfigError, match="must be one token"):
        stop_tokens(tokenizer, ["Mia eats"])


@pytest.mark.parametrize("critic", ["shared", "separate"])
@pytest.mark.parametrize("options", [None, {}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}])
def test_what_vllm_gets_is_the_merged_policy(options: dict[str, Any] | None, critic: Any) -> None:
    from alignkit_vllm.weights import merged_weights

    model = tiny_llama() if options is None else lora(tiny_llama(), **options)
    add_critic(model, critic)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.normal_()
    before = weights(model)
    found = dict(merged_weights(model))
    assert torch.equal(weights(model), before), "the policy is unchanged"
    plain = tiny_llama()
    assert found.keys() == plain.state_dict().keys()
    plain.load_state_dict(found)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        torch.testing.assert_close(plain(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-4, rtol=1e-4)
