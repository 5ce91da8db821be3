"""Installation of the scorer: the fastest backend that agrees with plain forwards."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import nn

from alignkit.errors import ConfigError, ModelError, suggest
from alignkit.scoring.attention import OWN, set_attention, usable_kernels
from alignkit.scoring.backends import innermost, install_forward, text_config
from alignkit.scoring.plan import Backend, Scorer

BACKENDS: tuple[Backend, ...] = get_args(Backend)
"""All backends, fastest first."""

_STATE = "_alignkit_scorer"


def install(
    model: nn.Module,
    backend: Backend | Literal["auto"] = "auto",
    *,
    device: torch.device | str | None = None,
    attention: str = "auto",
) -> Scorer:
    """Give ``model`` (plain, or with a peft adapter) a forward that scores plans, and return its scorer.

    Call this once dtype and dropout are final, before the model is wrapped for data parallelism. A second call returns the
    installed scorer unless it names another backend or attention.

    Args:
        model: a causal language model.
        backend: ``auto`` chooses the first backend that agrees with plain forwards on a small probe; a named backend is
            probed as well.
        device: device the model will train on (default: its current one), whose kernels are tried.
        attention: ``model.attention``.

    Raises:
        ModelError: the model cannot be scored (encoder-decoder, prompt learning), or a named backend disagrees.
        ConfigError: the backend is unknown, or the attention excludes it.
    """
    from alignkit.scoring.probe import choose

    if backend != "auto" and backend not in BACKENDS:
        raise ConfigError(f"unknown scoring backend {backend!r}{suggest(backend, list(BACKENDS))}")
    base = innermost(model)
    present, used = base.__dict__.get(_STATE, (None, ""))
    if present is not None and backend in ("auto", present.backend) and attention in ("auto", used):
        return present  # type: ignore[no-any-return]
    _refuse(model, base)
    target = torch.device(device or base.device)
    kernels = usable_kernels(attention, target.type)
    allowed = BACKENDS[1:] if attention == "eager" else BACKENDS if attention in ("auto", *OWN) else BACKENDS[:1]
    candidates = tuple(name for name in allowed if backend in ("auto", name))
    if not candidates:
        raise ConfigError(f"model.attention: {attention} excludes model.scorer: {backend}: set one of them to auto")
    if attention in OWN and not kernels:
        set_attention(base, OWN[attention])
    install_forward(base)
    scorer = choose(base, candidates, target, kernels, OWN.get(attention))
    base.__dict__[_STATE] = scorer, attention
    return scorer


def _refuse(model: nn.Module, base: Any) -> None:
    """Raise :class:`ModelError` for models whose sequences cannot be scored as prompt and completion."""
    config, name = getattr(base, "config", None), type(base).__name__
    if config is None or not hasattr(base, "get_output_embeddings"):
        raise ModelError(f"{name} is not a transformers causal language model")
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{name} is an encoder-decoder model: only causal language models can be scored")
    if text_config(base).vocab_size is None:
        raise ModelError(f"{name} has no vocabulary size in its configuration")
    for label, adapter in (getattr(model, "peft_config", None) or {}).items():
        if getattr(adapter, "is_prompt_learning", False):
            kind = getattr(adapter.peft_type, "value", adapter.peft_type)
            raise ModelError(f"adapter {label!r} is of type {kind}, which adds virtual tokens to prompts: use LoRA")
