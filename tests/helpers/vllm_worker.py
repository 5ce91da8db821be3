"""Compares the sampler vllm with the model itself: ``vllm_worker.py MODEL URL`` (an engine of its own without URL)."""

from __future__ import annotations

import sys
from typing import Any

import torch
from alignkit import OnPolicySettings
from alignkit.models.generate import generate
from alignkit_vllm.sampler import VLLMSampler

PROMPTS = [[5, 6, 7], [8, 9, 10, 11], [100, 90, 80], [3], [5, 6, 7, 8]]
SEEDS = [2**62 + i for i in range(len(PROMPTS))]


def main(path: str, url: str) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    own: dict[str, Any] = {"url": url} if url else {"memory": 0.2, "max_length": 64, "sleep": False}
    values = {"sampler": "vllm", "max_new_tokens": 12, "top_k": 1, "vllm": own}
    settings = OnPolicySettings.with_sections(values)(**values)
    tokenizer = AutoTokenizer.from_pretrained(path)
    base: Any = AutoModelForCausalLM.from_pretrained(path)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    sampler = VLLMSampler(model, tokenizer, settings, set(), path)
    compared = 0
    for change in ("nothing", "adapter", "adapter and norms"):
        if change != "nothing":
            for parameter in model.parameters():
                parameter.requires_grad_(parameter.requires_grad or "norms" in change)
            optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
            ids = torch.tensor([[9, 8, 7, 6, 5]])
            for _ in range(2):
                model(input_ids=ids, labels=ids).loss.backward()
                optimizer.step()
        expected = generate(model, tokenizer, PROMPTS, max_new_tokens=12)
        assert [answer._replace(logps=None) for answer in sampler(PROMPTS, SEEDS)] == expected, change
        compared += len(expected)
        # The weights of the start are not trained yet, so that its samples differ.
        check_samples(sampler, model, settings, logps=not url, different=change == "nothing")
    print(f"compared {compared}")


def check_samples(sampler: VLLMSampler, model: torch.nn.Module, settings: Any, *, logps: bool, different: bool) -> None:
    """Check that samples follow from prompt and seed, and the log-probabilities that come with them."""
    sampler.settings = settings.model_copy(update={"top_k": 0})
    answers = sampler(PROMPTS, SEEDS)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = torch.tensor([*prompt, *answer.completion])
        with torch.no_grad():
            expected = model(input_ids=ids[None]).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        own = torch.tensor(answer.logps) if answer.logps else expected.new_empty(0)
        assert not logps or len(own) == len(answer.completion), "an engine returns its log-probabilities"
        assert torch.allclose(own, expected.gather(1, ids[len(prompt) :, None])[: len(own), 0], atol=1e-3)
    assert sampler(PROMPTS[::-1], SEEDS[::-1]) == answers[::-1], "an answer follows from its prompt and seed"
    assert not different or sampler(PROMPTS, [seed + 9 for seed in SEEDS]) != answers
    sampler.settings = settings


if __name__ == "__main__":
    main(*sys.argv[1:])
