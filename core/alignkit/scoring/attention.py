"""Attention over a packed row by kernels of plugins, registered with transformers as implementations of attention."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch

from alignkit.contract import AttentionKernel, AttentionLayer, registry
from alignkit.errors import ModelError, PluginError, first_line
from alignkit.scoring.masks import CHUNKED
from alignkit.scoring.plan import Plan

NAMES = {"sdpa": "alignkit_packed", "eager": "alignkit_packed_eager"}
"""The model's own implementation, which runs without a plan -> name of packed attention in transformers' registry."""

OWN = {"sdpa": "sdpa", "eager": "eager", "flex": "flex_attention", "flash": "flash_attention_2"}
"""Value of ``model.attention`` -> transformers' implementation of the model's own attention."""

PLAN_ARGUMENT = "alignkit_plan"
"""Keyword argument that carries the plan through the backbone to its attention layers."""


def register() -> None:
    """Register :func:`packed_attention` with transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask, sdpa_mask

    for name, mask in zip(NAMES.values(), (sdpa_mask, eager_mask), strict=True):
        if name not in AttentionInterface():
            AttentionInterface.register(name, packed_attention)
        AttentionMaskInterface.register(name, mask)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute attention as transformers calls it: query ``[1, H, T, D]``, key and value ``[1, K, T, D]`` -> ``[1, T, H, D]``.

    If ``kwargs`` has a plan, the first of its kernels that computes the layer does so, and the mask is ignored. Raises
    ``NotImplementedError`` for what kernels do not compute (dropout, sinks, position biases), ``ModelError`` if none can.
    """
    plan: Plan | None = kwargs.pop(PLAN_ARGUMENT, None)
    if plan is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward as own

        if module.config._attn_implementation == NAMES["eager"]:  # type: ignore[union-attr]
            own = sys.modules[type(module).__module__].eager_attention_forward
        kwargs |= {"dropout": dropout, "scaling": scaling, "sliding_window": sliding_window, "softcap": softcap}
        return own(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]
    for name in ("s_aux", "position_bias", "head_mask"):
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"packed attention does not support {name}")
    if dropout:
        raise NotImplementedError("packed attention does not support dropout: switch off the model's attention dropout")
    # Under autocast, rotary embeddings return float32 queries and keys while the values have low precision.
    query, key = _by_position(module, query, plan).to(value.dtype), key.to(value.dtype)
    shape = value.device.type, value.dtype, query.shape[1], key.shape[1], query.shape[3]
    layer = AttentionLayer(*shape, scaling, sliding_window, _chunk(module), softcap)
    kernel: AttentionKernel = plan.layout.once(layer, lambda: first_able(plan.kernels, layer))
    return kernel.attend(query, key, value, plan.layout, layer).transpose(1, 2).contiguous(), None


def usable_kernels(attention: str, device: str) -> dict[str, AttentionKernel]:
    """Return the kernels that run on a device and that ``model.attention`` allows, by name, in the order they are tried.

    A kernel that cannot be loaded is left out, or raises :class:`PluginError` if it is the one that ``attention`` names.
    """
    if attention not in ("auto", *OWN):
        return {attention: registry.load(registry.find("align.attention", attention))}
    found: dict[str, AttentionKernel] = {}
    for name, entry in registry.usable("align.attention").items():
        with suppress(PluginError):  # of a package that this run need not use; `align plugins` shows the reason
            found[name] = registry.load(entry)
    fitting = (item for item in found.items() if attention in ("auto", item[0], item[1].family))
    on_device = (item for item in fitting if not item[1].devices or device in item[1].devices)
    return dict(sorted(on_device, key=lambda item: item[1].order))


def set_attention(model: Any, implementation: str) -> None:
    """Make a model use one of transformers' implementations of attention; raises :class:`ModelError` if it cannot."""
    if model.config._attn_implementation == implementation:
        return
    try:
        if implementation == OWN["flex"] and model.device.type == "cpu":
            raise ValueError("FlexAttention has no backward on the CPU")
        model.set_attn_implementation(implementation)
        if model.config._attn_implementation != implementation:
            raise ValueError("its attention cannot be exchanged")
    except (ImportError, ValueError) as error:
        reason = f"cannot use {implementation}: {first_line(error)}"
        raise ModelError(f"{type(model).__name__} {reason}: choose model.attention: auto") from error


def first_able(kernels: Mapping[str, AttentionKernel], layer: AttentionLayer) -> AttentionKernel:
    """Return the first kernel that can compute a layer; raises :class:`ModelError` with the reasons if none can."""
    reasons = []
    for name, kernel in kernels.items():
        supported = not kernel.devices or layer.device in kernel.devices
        reason = kernel.refusal(layer) if supported else f"does not run on {layer.device}"
        if reason is None:
            return kernel
        reasons.append(f"{name} {reason}")
    raise ModelError("; ".join(reasons))


def _chunk(module: Any) -> int | None:
    """Return the chunk of positions to which a layer's attention is restricted, as Llama 4's is."""
    config = getattr(module, "config", None)
    kinds = getattr(config, "layer_types", None)
    return config.attention_chunk_size if kinds and kinds[module.layer_idx] == CHUNKED else None  # type: ignore[union-attr]


def _by_position(module: Any, query: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Return queries scaled by position, where the model has scaled them by index in the row (some layers of Llama 4)."""
    if not getattr(module, "attn_temperature_tuning", False) or module.use_rope:
        return query
    position, index = plan.position_ids[0], torch.arange(query.shape[2], device=query.device)
    scale, own = (((p + 1.0) / module.floor_scale).floor().log1p() * module.attn_scale + 1.0 for p in (position, index))
    return query.mul((scale / own)[:, None])
