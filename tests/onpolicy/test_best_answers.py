"""Methods that learn from the best of several sampled answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit.contract import Batch
from alignkit.errors import ConfigError
from alignkit.settings import resolve
from alignkit.training.checkpoints import last_checkpoint
from alignkit_online_dpo import OnlineDPO, OnlineDPOSettings
from alignkit_onpolicy import best_and_worst
from alignkit_raft import RAFT, RAFTSettings

from tests.helpers.engine import StopAt, build_trainer, configuration, random_prompts, tiny_llama, weights
from tests.helpers.onpolicy import SAMPLING, TRAIN, constant, rollouts

METHODS: dict[str, dict[str, Any]] = {
    "raft": {"name": "raft", **SAMPLING, "num_generations": 3},
    "online-dpo": {"name": "online-dpo", **SAMPLING, "num_generations": 3, "beta": 0.1},
}


def test_best_and_worst() -> None:
    batch = Batch(random_prompts(3), {"reward": [[1.0, 3.0, 2.0], [2.0, 0.5, 2.0], [1.0, 1.0, 1.0]]})
    assert best_and_worst(batch) == [(1, 0), (0, 1), (0, 0)]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_raft_imitates_the_best_answer(temperature: float) -> None:
    """By hand: the mean over tokens of minus the log-probability of each prompt's best answer, with its gradient."""
    settings = RAFTSettings(num_generations=3, max_new_tokens=5, temperature=temperature)
    model = tiny_llama()
    made = rollouts(model, settings)
    batch = RAFT(settings).align_prepare_batch(Batch(random_prompts(4)), made)
    output = RAFT(settings).align_compute_loss(made.policy, batch)
    (term,) = output.terms
    loss = term.sum / batch.counts[term.per]
    total, tokens, best = torch.zeros(()), 0, 0.0
    for example, rewards in zip(batch.examples, batch.columns["reward"], strict=True):
        answer = example.completions[rewards.index(max(rewards))]
        logits = model(input_ids=torch.tensor([[*example.prompt, *answer]])).logits[0, len(example.prompt) - 1 : -1]
        logps = (logits / temperature).log_softmax(-1).gather(1, torch.tensor(answer)[:, None])
        total, tokens, best = total - logps.sum(), tokens + len(answer), best + max(rewards)
    torch.testing.assert_close(loss, total / tokens, atol=1e-5, rtol=1e-5)
    assert float(output.metrics["reward_best"].sum) == pytest.approx(best)
    assert float(output.metrics["reward"].sum) == pytest.approx(sum(sum(r) for r in batch.columns["reward"]))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_online_dpo_is_dpo_on_the_best_and_the_worst(temperature: float) -> None:
    """By hand, after the policy has moved: prompts whose answers have equal rewards are no pairs."""
    given = {"num_generations": 3, "max_new_tokens": 5, "temperature": temperature, "beta": 0.4}
    settings: Any = OnlineDPOSettings.with_sections(given)(**given)
    model = tiny_llama()
    start = tiny_llama()
    made = rollouts(model, settings, lambda answers: [a.answer_ids[0] * (a.prompt_ids[0] % 2) for a in answers])
    batch = OnlineDPO(settings).align_prepare_batch(Batch(random_prompts(8)), made)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    output = OnlineDPO(settings).align_compute_loss(made.policy, batch)
    (term,) = output.terms

    def logp(scored: Any, example: Any, which: int) -> torch.Tensor:
        answer = example.completions[which]
        logits = scored(input_ids=torch.tensor([[*example.prompt, *answer]])).logits[0, len(example.prompt) - 1 : -1]
        return (logits / temperature).log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum()

    losses = []
    for example, rewards in zip(batch.examples, batch.columns["reward"], strict=True):
        best, worst = rewards.index(max(rewards)), rewards.index(min(rewards))
        if best != worst:
            h = [logp(model, example, k) - logp(start, example, k) for k in (best, worst)]
            losses.append(-torch.nn.functional.logsigmoid(0.4 * (h[0] - h[1])))
    assert 1 < len(losses) < 8
    torch.testing.assert_close(term.sum / batch.counts[term.per], torch.stack(losses).mean(), atol=1e-4, rtol=1e-4)
    assert batch.counts[term.per] == len(losses)
    assert float(output.metrics["groups_alike"].sum) == 8 - len(losses)


def test_a_micro_batch_without_pairs_has_no_gradient() -> None:
    settings: Any = OnlineDPOSettings.with_sections({})(max_new_tokens=3)
    made = rollouts(tiny_llama(), settings, constant)
    batch = OnlineDPO(settings).align_prepare_batch(Batch(random_prompts(3)), made)
    output = OnlineDPO(settings).align_compute_loss(made.policy, batch)
    assert [(float(term.sum), batch.counts[term.per]) for term in output.terms] == [(0.0, 0)]
    assert float(output.metrics["groups_alike"].sum) == 3
    assert "rewards/margins" not in output.metrics, "there is nothing to average"


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["loss=aot"], "compares all pairs of a step, which online-dpo cannot do"),
        (["loss=sigmodi"], "sigmoid"),
        (["num_generations=1"], "num_generations"),
    ],
)
def test_a_loss_that_cannot_be_used(sets: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(method="online-dpo", model="m", data="d", sets=["reward=length", *sets])


def test_several_losses_and_a_sampler_s_section() -> None:
    sets = ["reward=length", "loss={sigmoid: 0.8, nll: 0.2}", "sampler=vllm", "vllm.memory=0.5"]
    found = resolve(method="online-dpo", model="m", data="d", sets=sets).config.method.settings
    assert found["vllm"]["memory"] == 0.5
    assert found["loss"] == {"sigmoid": 0.8, "nll": 0.2}
    assert found["num_generations"] == 2


@pytest.mark.parametrize("name", METHODS)
def test_resume_inside_a_rollout_equals_uninterrupted(tmp_path: Path, name: str) -> None:
    method = METHODS[name] | {"epochs": 2, "minibatches": 2}

    def make(output: Path, *callbacks: Any) -> Any:
        config = configuration(method, **TRAIN | {"max_steps": 6})
        return build_trainer(config, output, random_prompts(40), callbacks=callbacks)[0]

    whole = make(tmp_path / "whole")
    whole.train()
    make(tmp_path / "cut", StopAt(3)).train()
    torch.rand(3)
    second = make(tmp_path / "cut")
    second.train(resume_from_checkpoint=str(last_checkpoint(tmp_path / "cut")))
    assert torch.equal(weights(second.model), weights(whole.model))


@pytest.mark.parametrize("name", METHODS)
def test_the_reward_is_learned(tmp_path: Path, name: str) -> None:
    train = TRAIN | {"max_steps": 30, "per_device_train_batch_size": 16, "learning_rate": 5e-3}
    trainer, seen = build_trainer(configuration(METHODS[name], **train), tmp_path, random_prompts(100))
    trainer.train()
    rewards = [record["reward"] for record in seen.logs if "reward" in record]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.1
    found = trainer.evaluate(random_prompts(10, seed=5))
    assert found["eval_reward"] > rewards[0]
