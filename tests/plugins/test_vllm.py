"""The sampler vllm: a server that follows the policy, what a server or package lacks, settings of samplers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit import OnPolicySettings, settings
from alignkit.config import RunConfig
from alignkit.contract import registry
from alignkit.errors import ConfigError, RunFailedError
from alignkit.models.generate import generate
from alignkit.runs.prepare import plan_run
from alignkit_vllm import transfer
from alignkit_vllm.engine import own_device
from alignkit_vllm.sampler import VLLMSampler
from alignkit_vllm.weights import checkpoint_weights

from tests.helpers.engine import Words, random_prompts
from tests.helpers.engine import tiny_llama as llama
from tests.helpers.onpolicy import lora
from tests.helpers.vllm_server import Served, serving

PROMPTS = [list(example.prompt) for example in random_prompts(5)]
SEEDS = [2**62 + i for i in range(5)]


def tiny_llama(seed: int = 0) -> Any:
    return llama(seed, initializer_range=0.5)  # sharp enough to tell two models apart


def given(served: Served, **values: Any) -> OnPolicySettings:
    own = {"url": served.url, **values.pop("vllm", {})}
    values = {"sampler": "vllm", "max_new_tokens": 8, "vllm": own, **values}
    return OnPolicySettings.with_sections(values)(**values)


def opened(model: torch.nn.Module, served: Served, **values: Any) -> VLLMSampler:
    return VLLMSampler(model, Words(), given(served, **values), {5}, "the/model")  # type: ignore[arg-type]


def greedy(model: Any) -> Any:
    return generate(model, Words(), PROMPTS, max_new_tokens=8, stop={5})  # type: ignore[arg-type]


def disturb(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_server_follows_the_policy(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PART", 4096)  # several files an update
    model = lora(tiny_llama()) if kind == "lora" else tiny_llama()
    with serving(tiny_llama(seed=9)) as served:
        values = {"temperature": 1e-9, "vllm": {"folder": str(tmp_path)}}
        sampler = opened(model, served, **values)
        before = greedy(model)
        assert sampler(PROMPTS, SEEDS) == before
        disturb(model)
        assert greedy(model) != before
        assert sampler(PROMPTS, SEEDS) == greedy(model)
        assert len(served.files) > 3
        assert not any(tmp_path.iterdir()), "nothing is left of the weights"
        steps = [path for path in served.calls if path != "v1/completions"]
        assert steps[-3:] == ["update_weights", "finish_weight_update", "reset_prefix_cache"]


def test_every_prompt_has_its_own_seed() -> None:
    with serving(tiny_llama()) as served:
        sampler = opened(tiny_llama(), served)
        answers = sampler(PROMPTS, SEEDS)
        assert sampler(PROMPTS[::-1], SEEDS[::-1]) == answers[::-1]
        assert sampler(PROMPTS, [seed + 100 for seed in SEEDS]) != answers
        assert sampler([], []) == []


@pytest.mark.parametrize(
    ("served", "message"),
    [
        ({"version": (200, {"version": "0.8.5"})}, r"needs vLLM 0.32 or later, not 0.8.5: upgrade vLLM there"),
        (
            {"version": (404, "not found")},
            r"is not a vLLM server: start one with VLLM_SERVER_DEV_MODE=1 vllm serve the/mod",
        ),
        ({"version": (200, "<html>")}, r"is not a vLLM server"),
        ({"version": (401, "who")}, r"asks for a key: set VLLM_API_KEY"),
        ({"v1__models": (200, {"data": [{"id": "other"}]})}, r"is not a vLLM server"),
        (
            {"get_world_size": (404, "{}")},
            r"takes no weights \(it is not in development mode\): start one with VLLM_SER",
        ),
        (
            {"init_weight_transfer_engine": (500, "no config")},
            r"was not started for this weight transfer: start it with VL",
        ),
        (
            {"update_weights": (500, "size mismatch")},
            r"refused update_weights \(status 500\): size mismatch; it must serve the",
        ),
        (
            {"finish_weight_update": (200, {})},
            r"does not compute the policy's probabilities .*: the server serves another",
        ),
    ],
)
def test_a_server_that_cannot_be_used_is_one_sentence(served: dict[str, Any], message: str) -> None:
    with serving(tiny_llama(seed=9), **served) as found, pytest.raises(ConfigError, match=message):
        opened(tiny_llama(), found)


def test_no_server_and_a_server_that_ends() -> None:
    with serving(tiny_llama()) as served:
        sampler = opened(tiny_llama(), served)
        served.changes["v1/completions"] = (503, "busy")
        with pytest.raises(RunFailedError, match=r"refused v1/completions \(status 503\): busy"):
            sampler(PROMPTS, SEEDS)
    with pytest.raises(RunFailedError, match="does not answer any more"):
        sampler(PROMPTS, SEEDS)
    with pytest.raises(ConfigError, match=r"no server answers at http://127\.0\.0\.1.*, or use sampler model"):
        opened(tiny_llama(), served)


def test_an_answer_is_not_cut_at_the_server_s_length() -> None:
    with serving(tiny_llama()) as served:
        sampler = opened(tiny_llama(), served, max_new_tokens=60)
        with pytest.raises(ConfigError, match=r"vLLM takes 64 tokens, fewer than the .*: raise --max-model-len"):
            sampler(PROMPTS, SEEDS)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["sampler=vllm", "vllm.urll=http://x"], 'unknown key method.vllm.urll, did you mean "url"'),
        (["sampler=vllm", "vllm.url=localhost:80"], "method.vllm.url: must be http://HOST:PORT, not localhost:80"),
        (["sampler=vllm", "vllm.url=http://x", "vllm.memory=0.5"], "memory has no effect beside url"),
        (["sampler=vllm", "vllm.timeout=5"], "timeout has no effect without url"),
        (["sampler=vllm", "vllm.memory=2"], "--set vllm.memory=2: method.vllm.memory must be at most 1, not 2"),
        (["sampler=vllm", "vllm=5"], "method.vllm must be a mapping of keys ("),
        (["vllm.url=http://x"], "method.vllm has no effect without method.sampler: vllm"),
        (["vlm.url=http://x"], 'unknown section vlm, did you mean "vllm"?'),
        (["sampler=vlm"], 'unknown sampler "vlm"'),
    ],
)
def test_wrong_settings(sets: list[str], message: str) -> None:
    with pytest.raises((ConfigError, registry.PluginError)) as refused:
        settings.resolve(method="grpo", sets=["reward=length", *sets])
    assert message in str(refused.value)


def test_the_section_of_a_sampler_is_in_the_configuration() -> None:
    config = settings.resolve(method="ppo", sets=["reward=length", "sampler=vllm", "vllm.url=http://x:1/v1/"]).config
    assert config.method.settings["vllm"]["url"] == "http://x:1"
    assert config.method.settings["vllm"]["memory"] == 0.3
    plain = settings.resolve(method="ppo", sets=["reward=length"]).config
    assert "vllm" not in plain.method.settings
    assert settings.check_config(RunConfig.model_validate(config.model_dump())).method == config.method


def test_a_run_with_vllm_needs_it_for_training_alone() -> None:
    sets = ["reward=length", "sampler=vllm"]
    config = settings.resolve(method="ppo", sets=sets).config  # as an evaluation reads it
    with pytest.raises(
        ConfigError, match=r"method\.sampler: vllm needs vLLM, which is not installed: pip install vllm, set"
    ):
        plan_run(config)
    plan_run(settings.resolve(method="ppo", sets=[*sets, "vllm.url=http://x:1"]).config)


def test_vllm_gets_the_names_of_a_checkpoint(tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "moe_intermediate_size": 8, "head_dim": 8}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "num_experts": 3}
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, **layers, num_experts_per_tok=2))
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    sent = dict(checkpoint_weights(Qwen3MoeForCausalLM.from_pretrained(tmp_path)))
    assert sent.keys() == saved.keys() != dict(model.named_parameters()).keys()
    assert all(torch.equal(saved[name], weight) for name, weight in sent.items())


def test_an_engine_sees_its_process_s_device() -> None:
    assert [own_device("4,5,6", rank) for rank in range(3)] == ["4", "5", "6"]
    assert own_device(None, 3) == "3"
