"""The model of both sides, with the same weights from the same seed."""

from __future__ import annotations

from typing import Any

import torch

from bench.cells import BenchCell


def build(cell: BenchCell, attention: str = "sdpa") -> Any:
    """Return a randomly initialised Llama on the cell's device, from the cell's seed, in float32 unless it is frozen."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape, work = cell.shape, cell.workload
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=work.prompt[1] + work.completion[1],
        tie_word_embeddings=shape.tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation=attention,
    )
    torch.manual_seed(cell.seed)
    frozen = cell.frozen_bf16 and cell.tuning == "lora"
    with torch.device(cell.device):  # made where it is used: numbers of billions of weights take minutes on a CPU
        model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16 if frozen else torch.float32)
    return model.train()


def adapter() -> Any:
    """Return a LoRA configuration of rank 16 for every linear layer except the head."""
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the trainable parameters by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def move(model: torch.nn.Module, *, scale: float, seed: int = 1) -> None:
    """Add noise of ``scale`` standard deviations to every trainable parameter (``scale / 10`` for parameters that are 0).

    With start weights there is little to compare: DPO's loss is ln 2 for any reference, and half of an adapter has no
    gradient. The same seed gives equal models the same noise.
    """
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(trainable(model).items()):
            spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
            noise = torch.randn(parameter.shape, generator=draw) * (spread or 0.1) * scale
            parameter.add_(noise.to(parameter.device))
