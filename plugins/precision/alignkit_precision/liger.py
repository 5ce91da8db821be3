"""Liger's fused kernels in the layers (``train.use_liger_kernel``): norms, rotary embeddings and gated products.

Each replaces several passes over the hidden states by one Triton kernel (arXiv:2410.10989). The output layer keeps alignkit's
chunks: Liger's fused cross entropy gives a mean loss where methods need the log-probability of every token.
"""

from __future__ import annotations

from typing import Any

import torch
from alignkit import RunConfig
from alignkit.errors import ConfigError

from alignkit_precision.compiled import asks_for

_HEAD = ("cross_entropy", "fused_linear_cross_entropy")


def wants_liger(config: RunConfig) -> bool:
    """Whether a run's layers use Liger's kernels."""
    return asks_for(config, "use_liger_kernel")


def refuse_without_liger(config: RunConfig) -> None:
    """Raise :class:`ConfigError` where Liger's kernels cannot run, and for settings of them that do not exist here."""
    from transformers.utils import is_liger_kernel_available

    given = config.train.arguments
    if config.run.strategy in ("fsdp", "zero2", "zero3") or given.get("deepspeed"):
        raise ConfigError("train.use_liger_kernel is tested with one process and ddp alone: set run.strategy to ddp")
    if given.get("use_cpu") or not torch.cuda.is_available():
        raise ConfigError("train.use_liger_kernel needs a GPU, for which its kernels are written: remove it")
    if not is_liger_kernel_available():
        raise ConfigError(
            "train.use_liger_kernel needs the package liger-kernel: pip install 'alignkit[liger]', or remove it"
        )
    for name in _HEAD:
        if (given.get("liger_kernel_config") or {}).get(name):
            raise ConfigError(
                f"train.liger_kernel_config.{name} is for a model's own loss; the output layer is computed in chunks: remove it"
            )


def use_liger(model: Any, config: RunConfig) -> None:
    """Exchange the kernels of an innermost model; raises :class:`ConfigError` for an architecture that Liger has none for."""
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    from transformers.integrations.liger import apply_liger_kernel

    kind = model.config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise ConfigError(f"train.use_liger_kernel: liger-kernel has no kernels for {kind} models: remove it")
    apply_liger_kernel(model, (config.train.arguments.get("liger_kernel_config") or {}) | dict.fromkeys(_HEAD, False))
