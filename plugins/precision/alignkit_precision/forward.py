"""Autocast inside the model's own forward, so that every caller gets products of the same type; ``model.head``."""

from __future__ import annotations

import os
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from alignkit import RunConfig
from alignkit.errors import ConfigError
from alignkit.scoring.head import install_head
from alignkit.system.sharded import is_sharded
from torch.nn import Linear

from alignkit_precision.casts import share_casts
from alignkit_precision.compiled import compile_layers, wants_compiled
from alignkit_precision.exchange import Context, put_back
from alignkit_precision.liger import use_liger, wants_liger

_HALF = (torch.bfloat16, torch.float16)

_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
_KERNELS = 128
"""Kernels of half precision that oneDNN and ideep keep on a CPU: one for each product of each number of tokens, 0.5 MB each.

The passes of a micro-batch use a few dozen. By default 1,024 are kept, most of them of batches that do not come again.
"""


def set_precision(model: Any, config: RunConfig | None) -> dict[str, str]:
    """Let an innermost model make its products as ``config`` says (None: in the type of its weights), and return the types.

    Where the weights have two types (a frozen base of bfloat16, an adapter of float32), products are made in the narrower
    one unless ``config`` names another.

    Returns:
        The types of ``trained`` and ``frozen`` weights, if there are any, and of ``products``, whose kernels
        the ``layers`` use and what they are ``compiled`` by, where that is not PyTorch's.
    """
    given = config.train.arguments if config else {}
    types = {p.dtype: None for p in model.parameters() if p.is_floating_point()}
    half = next((dtype for dtype in _HALF if dtype in types), None)
    dtype = torch.bfloat16 if given.get("bf16") else torch.float16 if given.get("fp16") else half
    model.__dict__.pop("forward_context", None)
    put_back(model)
    if dtype is not None and model.device.type == "cpu":
        for name in _CACHES:  # read at the first product
            os.environ.setdefault(name, str(_KERNELS))
    # A sharded weight is whole during a layer only: its cast is not kept.
    kept = not is_sharded(model)
    cast = partial(torch.autocast, model.device.type, dtype, cache_enabled=kept)
    mixed = dtype is not None and set(types) != {dtype}
    fused = {}
    if config and wants_liger(config):  # before casts are spared, while passes without autocast are possible
        plain: list[tuple[Context, bool]] = [(nullcontext, half is None)] if len(types) < 2 else []
        use_liger(model, config, [*plain, *([(cast, False)] if mixed else [])])
        fused = {"layers": "liger"}
    if dtype is not None and mixed:
        model.__dict__["forward_context"] = cast
        if config is not None:
            _spare_casts(model, dtype, config)
    found: dict[str, set[str]] = {}
    for p in model.parameters():
        found.setdefault("trained" if p.requires_grad else "frozen", set()).add(_name(p.dtype))
    products = dtype or next(iter(types), torch.float32)
    names = {kind: " and ".join(sorted(found[kind])) for kind in sorted(found, reverse=True)}
    apart = " (head float32)" if _exact_head(model, config) and products in _HALF else ""
    compiled = {"compiled": compile_layers(model, config)} if config and wants_compiled(config) else {}
    return names | {"products": _name(products) + apart} | fused | compiled


def _spare_casts(model: Any, dtype: torch.dtype, config: RunConfig) -> None:
    """Leave out the casts that autocast would repeat in every forward pass, without a change of its results.

    Autocast keeps the casts of trained weights only. So frozen weights of linear layers, if ``model.dtype`` is auto, are stored
    as they are multiplied; adapters take their input as it is: peft would cast it to the type of their weights, and autocast back.
    Layers that multiply the same states share their cast (:mod:`alignkit_precision.casts`).
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = False
    if is_sharded(model):
        return
    share_casts(model)
    if config.model.dtype != "auto":
        return
    elsewhere = {id(p) for m in model.modules() if not isinstance(m, Linear) for p in m.parameters(recurse=False)}
    if config.model.head == "exact" and (head := model.get_output_embeddings()) is not None:
        elsewhere |= {id(p) for p in head.parameters()}
    for module in model.modules():
        for p in module.parameters(recurse=False) if type(module) is Linear else ():
            if not p.requires_grad and p.dtype == torch.float32 and id(p) not in elsewhere:
                p.data = p.data.to(dtype)


def _exact_head(model: Any, config: RunConfig | None) -> bool:
    """Let the output layer make its products as ``model.head`` says, and return whether they are exact.

    Raises :class:`ConfigError` for an output layer that cannot.
    """
    exact = config is not None and config.model.head == "exact"
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if not (head is not None and install_head(head, exact=exact)) and exact:
        kind = "no output layer" if head is None else f"an output layer of type {type(head).__name__}"
        raise ConfigError(
            f"model.head: exact cannot be used with {type(model).__name__}, which has {kind}: set model.head=fast"
        )
    return exact


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
