"""Compilation of the trunk for training (``train.torch_compile``), layer by layer.

The layers of a model share their code, so each kind of layer is compiled once, for rows of any length (dynamic shapes).
Attention over a packed row runs between the compiled parts, the head after them. Passes without gradient (evaluation, reference
log-probabilities, generation) run uncompiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from alignkit import RunConfig
from alignkit.contract import registry
from alignkit.errors import ConfigError

_KEYS = ("torch_compile", "torch_compile_backend", "torch_compile_mode")


def asks_for(config: RunConfig, *keys: str) -> bool:
    """Whether any of these keys of ``train`` is set; a method that brings its own trainer leaves them to it."""
    asked = any(config.train.arguments.get(key) for key in keys)
    return asked and not hasattr(registry.load_method(config.method.name)[1], "align_build_trainer")


def wants_compiled(config: RunConfig) -> bool:
    """Whether a run compiles the trunk."""
    return asks_for(config, *_KEYS)


def refuse_uncompilable(config: RunConfig) -> None:
    """Raise :class:`ConfigError` for what cannot be combined with compilation."""
    if config.run.strategy in ("fsdp", "zero2") or config.train.arguments.get("deepspeed"):
        raise ConfigError("train.torch_compile cannot be combined with fsdp or DeepSpeed: use run.strategy ddp")
    if config.model.quantization is not None:
        raise ConfigError("train.torch_compile cannot be combined with model.quantization: remove one of them")


def compile_layers(model: Any, config: RunConfig) -> str:
    """Let the layers of an innermost model run compiled in passes with gradient, and return the compiler's name.

    Modules and their names stay as they are, so that a saved model does not tell. Raises :class:`ConfigError` if the model does
    not say what its layers are.
    """
    from alignkit.scoring.attention import NAMES
    from transformers import AttentionInterface
    from transformers.modeling_layers import GradientCheckpointingLayer

    given = config.train.arguments
    backend, mode = given.get("torch_compile_backend") or "inductor", given.get("torch_compile_mode")
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ConfigError(
            f"train.torch_compile: transformers does not say what the layers of {type(model).__name__} are"
        )
    if given.get("gradient_checkpointing") or given.get("activation_checkpointing"):
        # A layer's forward is what is run again in the backward pass: compile what is inside.
        layers = [part for layer in layers for part in layer.children()]
    attention = AttentionInterface()
    for name in NAMES.values():
        if name in attention and not hasattr(attention[name], "_torchdynamo_disable"):
            AttentionInterface.register(name, torch.compiler.disable(attention[name]))  # type: ignore[no-untyped-call]
    for layer in layers:
        plain = layer._call_impl
        compiled = torch.compile(plain, dynamic=True, backend=backend, mode=mode)
        layer._compiled_call_impl = _with_gradient(compiled, plain)
    return str(backend)


def _with_gradient(compiled: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return compiled(*args, **kwargs) if torch.is_grad_enabled() else plain(*args, **kwargs)

    return call
