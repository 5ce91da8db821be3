"""Tiny models of many architectures, random rows, and a scorer by plain forwards to compare with."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers as hf
from alignkit.contract.batch import Example

V = 96
_SMALL: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,  # far from uniform, so that a wrong mask is noticed
}
_GEMMA = _SMALL | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 7}
_GPT = {"vocab_size": V, "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

# Name -> (configuration, the backend that must be selected for it).
ARCHITECTURES: dict[str, tuple[Callable[[], Any], str]] = {
    "llama": (lambda: hf.LlamaConfig(**_SMALL), "packed"),
    "llama-tied-bias": (lambda: hf.LlamaConfig(**_SMALL, tie_word_embeddings=True, attention_bias=True), "packed"),
    "qwen2": (lambda: hf.Qwen2Config(**_SMALL), "packed"),
    "qwen2-window": (
        lambda: hf.Qwen2Config(**_SMALL, use_sliding_window=True, sliding_window=7, max_window_layers=1),
        "packed",
    ),
    "mistral-window": (lambda: hf.MistralConfig(**_SMALL, sliding_window=7), "packed"),
    "mistral-long-window": (lambda: hf.MistralConfig(**_SMALL, sliding_window=4096), "packed"),
    "gemma2": (lambda: hf.Gemma2Config(**_GEMMA, final_logit_softcapping=3.0), "rows"),
    "gemma3": (lambda: hf.Gemma3TextConfig(**_GEMMA), "packed"),
    "cohere2": (lambda: hf.Cohere2Config(**_SMALL, sliding_window=7), "packed"),
    "granite": (lambda: hf.GraniteConfig(**_SMALL, logits_scaling=3.0), "packed"),
    "gpt2": (
        lambda: hf.GPT2Config(**_GPT, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
        "packed",
    ),
    "phi-head-bias": (lambda: hf.PhiConfig(**_SMALL, partial_rotary_factor=0.5), "packed"),
    "opt": (
        lambda: hf.OPTConfig(
            vocab_size=V, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, dropout=0.0,
            max_position_embeddings=128, word_embed_proj_dim=32, init_std=0.3, pad_token_id=0,
        ),
        "packed",
    ),
    "falcon": (lambda: hf.FalconConfig(**_GPT, hidden_size=32, num_hidden_layers=2, num_attention_heads=4), "rows"),
    "bloom": (lambda: hf.BloomConfig(**_GPT, hidden_size=32, n_layer=2, n_head=4), "padded"),
    "mixtral": (lambda: hf.MixtralConfig(**_SMALL, num_local_experts=4), "packed"),
    "gpt-oss": (lambda: hf.GptOssConfig(**_GEMMA, num_local_experts=4, num_experts_per_tok=2), "rows"),
    "mamba": (lambda: hf.MambaConfig(**_GPT, hidden_size=32, num_hidden_layers=2, state_size=4), "padded"),
}  # fmt: skip


TOLERANCE = {"cpu": 2e-5, "cuda": 1e-4}
"""Nats by which kernels in float32 may differ."""


def build(name: str = "llama", seed: int = 0, device: str = "cpu", **changes: Any) -> Any:
    """Return a tiny random model, the same on every device; ``changes`` overrides keys of its configuration."""
    torch.manual_seed(seed)
    config = ARCHITECTURES[name][0]()
    for key, value in changes.items():
        setattr(config, key, value)
    model = hf.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # biases start at zero, where ignoring them would not be noticed
        if parameter.dim() == 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return model.to(device)


def rows(count: int = 4, completions: int = 2, seed: int = 0, masked: bool = False, most: int = 20) -> list[Example]:
    """Return random rows; ``masked`` leaves about a third of the completion tokens unscored."""
    draw = random.Random(seed)

    def tokens(low: int, high: int) -> list[int]:
        return [draw.randrange(3, V) for _ in range(draw.randint(low, high))]

    examples = []
    for i in range(count):
        answers = tuple(tokens(1, most) for _ in range(completions))
        masks = tuple([True] + [draw.random() < 0.7 for _ in a[1:]] for a in answers) if masked else None
        examples.append(Example(str(i), tokens(1, most), answers, index=i, masks=masks))
    return examples


def plain_scores(model: Any, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities by one unpadded forward per completion: completion tokens ``[N]``, prompt tokens ``[M]``."""
    completions, prompts = [], []
    for example in examples:
        for k, completion in enumerate(example.completions):
            ids = torch.tensor([[*example.prompt, *completion]], device=model.device)
            logps = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1).gather(1, ids[0, 1:, None]).squeeze(1)
            mask = example.masks[k] if example.masks else None
            answer = logps[len(example.prompt) - 1 :]
            completions.append(answer if mask is None else answer[torch.tensor(mask, device=ids.device)])
            if k == 0:
                prompts.append(logps[: len(example.prompt) - 1])
    return torch.cat(completions), torch.cat(prompts)


def weigh(values: torch.Tensor, seed: int = 1) -> torch.Tensor:
    """Return a loss in which every token has a different weight, so that swapped gradients are noticed."""
    weights = torch.rand(len(values), generator=torch.Generator().manual_seed(seed)) - 0.3
    return (values * weights.to(values.device)).sum()


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the gradients and clear them."""
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def assert_same_gradients(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tol: float = 1e-4) -> None:
    """Compare gradients, relative to the largest entry of all."""
    assert got.keys() == expected.keys()
    assert expected
    scale = max(float(g.abs().max()) for g in expected.values())
    assert scale > 0
    for name, want in expected.items():
        assert float((got[name] - want).abs().max()) <= tol * scale, name
