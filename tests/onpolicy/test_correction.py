"""Importance sampling between sampler and policy: none for the model itself, exactly the ratio for another sampler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit.contract import Batch
from alignkit.errors import ConfigError, RunFailedError
from alignkit.onpolicy.samplers import model_sampler
from alignkit_grpo import GRPO, GRPOSettings
from alignkit_onpolicy import correction_weights
from alignkit_ppo import PPO, PPOSettings

from tests.helpers.engine import Words, build_trainer, configuration, random_prompts, tiny_llama, weights
from tests.helpers.onpolicy import GRPO as GRPO_NAMED
from tests.helpers.onpolicy import PPO as PPO_NAMED
from tests.helpers.onpolicy import TRAIN, rollouts
from tests.helpers.vllm_server import serving
from tests.plugins.test_vllm import given

METHODS: list[Any] = [(GRPO, GRPOSettings, {"num_generations": 3}), (PPO, PPOSettings, {})]


@pytest.mark.parametrize("method", [GRPO_NAMED | {"epochs": 2}, PPO_NAMED])
@pytest.mark.parametrize("correction", ["tis", "icepop"])
def test_the_model_s_own_answers_need_none(tmp_path: Path, method: dict[str, Any], correction: str) -> None:
    """Bit for bit, whatever the bounds."""
    found = []
    for name, options in {"none": {}, correction: {"correction": correction, "correction_cap": 0.6}}.items():
        trainer, seen = build_trainer(configuration(method | options, **TRAIN), tmp_path / name, random_prompts(20))
        trainer.train()
        found.append(weights(trainer.model))
        assert "sampler_kl" not in seen.logs[0]
    assert torch.equal(*found)


def apart(settings: Any, method: Any, by: float) -> tuple[Batch, torch.Tensor]:
    """Return a prepared rollout of a sampler whose log-probabilities are ``by`` higher, and the gradient of the policy loss."""
    model = tiny_llama()
    made = rollouts(model, settings)
    if "value_head" in method.needs:
        from alignkit.scoring.critic import add_critic

        add_critic(model, "shared")
    plain = model_sampler(model, Words(), settings, ())  # type: ignore[arg-type]

    def sampler(prompts: Any, seeds: Any) -> Any:
        answers = plain(prompts, seeds)
        return [
            answer._replace(logps=logps(model, prompt, answer)) for prompt, answer in zip(prompts, answers, strict=True)
        ]

    def logps(model: Any, prompt: list[int], answer: Any) -> list[float]:
        ids = torch.tensor([*prompt, *answer.completion])
        with torch.no_grad():
            found = model(input_ids=ids[None]).logits[0, len(prompt) - 1 : -1] / settings.temperature
        return (found.log_softmax(-1).gather(1, ids[len(prompt) :, None])[:, 0] + by).tolist()

    made.parts.sampler = sampler
    batch = method(settings).align_prepare_batch(Batch(random_prompts(6)), made)
    output = method(settings).align_compute_loss(made.policy, batch)
    output.terms[0].sum.backward()
    return batch, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize(("method", "kind", "values"), METHODS, ids=["grpo", "ppo"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_sampler_s_own_probabilities_are_kept(method: Any, kind: Any, values: Any, temperature: float) -> None:
    settings = kind(**values, max_new_tokens=6, temperature=temperature)
    by = torch.log(torch.tensor(1.25)).item()
    _, plain = apart(settings, method, 0.0)
    equal, gradient = apart(settings.model_copy(update={"correction": "tis"}), method, 0.0)
    torch.testing.assert_close(
        torch.cat([*equal.columns["correction"]]), torch.ones(sum(map(len, equal.columns["logps"])))
    )
    assert plain.norm() > 1e-2
    torch.testing.assert_close(gradient, plain, rtol=1e-3, atol=1e-5)
    batch, gradient = apart(settings.model_copy(update={"correction": "tis"}), method, by)
    torch.testing.assert_close(gradient, 0.8 * plain, rtol=1e-3, atol=1e-5)
    expected = 0.8 - 1 - torch.log(torch.tensor(0.8))
    torch.testing.assert_close(torch.cat([*batch.columns["sampler_kl"]]).mean(), expected, rtol=1e-4, atol=1e-6)
    update = {"correction": "icepop", "correction_low": 0.9}
    _, gradient = apart(settings.model_copy(update=update), method, by)
    assert gradient.norm() == 0, "outside the bounds nothing is learned"


def test_weights_by_hand() -> None:
    ratios = torch.tensor([0.1, 0.5, 1.0, 2.0, 5.0, 9.0])
    tis = correction_weights(ratios.log(), kind="tis", low=0.5, high=2.0)
    torch.testing.assert_close(tis, torch.tensor([0.1, 0.5, 1.0, 2.0, 2.0, 2.0]))
    icepop = correction_weights(ratios.log(), kind="icepop", low=0.4, high=6.0)
    torch.testing.assert_close(icepop, torch.tensor([0.0, 0.5, 1.0, 2.0, 5.0, 0.0]))


def test_a_sampler_without_log_probabilities_is_refused() -> None:
    settings = GRPOSettings(num_generations=2, correction="tis", max_new_tokens=4)
    made = rollouts(tiny_llama(), settings)
    made.parts.settings = settings.model_copy(update={"sampler": "theirs"})
    method = GRPO(settings.model_copy(update={"sampler": "theirs"}))
    with pytest.raises(RunFailedError, match="sampler theirs does not return the log-probabilities"):
        method.align_prepare_batch(Batch(random_prompts(3)), made)


def test_vllm_s_log_probabilities_are_kept() -> None:
    from alignkit_vllm.sampler import VLLMSampler

    prompts = [list(example.prompt) for example in random_prompts(4)]
    model = tiny_llama()
    with serving(tiny_llama(seed=9)) as served:
        sampler = VLLMSampler(model, Words(), given(served), {5}, "the/model")  # type: ignore[arg-type]
        served.apart = 0.25
        answers = sampler(prompts, [1, 2, 3, 4])
        tempered = VLLMSampler(model, Words(), given(served, temperature=0.5), set(), "m")  # type: ignore[arg-type]
        assert all(answer.logps is None for answer in tempered(prompts, [1, 2, 3, 4])), "they are before temperature"
        greedy = sampler(prompts, None)
        assert greedy == sampler(prompts, None)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([*prompt, *answer.completion])
        with torch.no_grad():
            logps = model(input_ids=ids[None]).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        own = logps.gather(1, ids[len(prompt) :, None])[:, 0]
        assert answer.logps is not None
        torch.testing.assert_close(torch.tensor(answer.logps), own + 0.25, atol=1e-4, rtol=1e-4)


def test_a_server_cannot_correct_tempered_samples() -> None:
    with serving(tiny_llama()) as served:
        values = given(served, temperature=0.5).model_copy(update={"correction": "tis"})
        from alignkit_vllm.sampler import VLLMSampler

        with pytest.raises(ConfigError, match="before temperature, top_p and top_k: set temperature=1"):
            VLLMSampler(tiny_llama(), Words(), values, set(), "m")  # type: ignore[arg-type]
