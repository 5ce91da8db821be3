"""The policy's weights as a checkpoint has them: whole, adapters merged in, critics left out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import torch
from alignkit.scoring.critic import is_critics
from alignkit.system.sharded import reshard, whole


def checkpoint_weights(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the policy's weights under the names that ``save_pretrained`` writes, which vLLM loads.

    Inside transformers some models have other ones, such as the experts of a layer in one tensor. Every process of a sharded
    model must iterate over all of them.
    """
    from transformers.core_model_loading import revert_weight_conversion

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    for _, layer in groupby(merged_weights(model), key=lambda named: _layer(named[0])):
        yield from revert_weight_conversion(base, dict(layer)).items()


def _layer(name: str) -> str:
    """Return ``model.layers.3`` of a weight of that layer, an empty text for others.

    >>> _layer("model.layers.3.mlp.experts.7.weight"), _layer("model.norm.weight")
    ('model.layers.3', '')
    """
    found = re.match(r".*?\.\d+(?=\.)", name)
    return found.group() if found else ""


def merged_weights(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the policy's weights under the base model's names, adapters merged in, critics left out.

    Every layer is merged into a copy of its weights: merging in place and unmerging would change the frozen weights by
    rounding errors in every rollout. One layer at a time is whole and merged.
    """
    from peft import PeftModel, get_base_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    reshard(model)
    adapted: dict[str, tuple[Any, str]] = {}
    if not isinstance(model, PeftModel):
        weights = model.state_dict()
    else:
        weights = get_base_model_state_dict(model)
        for path, module in model.get_base_model().named_modules():
            if isinstance(module, BaseTunerLayer) and not is_critics(path):
                named = module.get_base_layer().named_parameters()
                adapted |= {f"{path}.{name}": (module, name) for name, _ in named}
            elif isinstance(module, ModulesToSaveWrapper):
                trained = module.modules_to_save[module.active_adapters[0]].state_dict()
                weights |= {f"{path}.{name}": weight for name, weight in trained.items()}
    layer, merged = None, dict[str, torch.Tensor]()
    for name, weight in weights.items():
        if is_critics(name):
            continue
        if name in adapted:
            owner, own = adapted[name]
            if owner is not layer:
                layer, merged = owner, _merged(owner)
            weight = merged[own]
        yield name, whole(weight)


def _merged(layer: Any) -> dict[str, torch.Tensor]:
    """Return an adapted layer's weights, whole and with its adapters merged in; the layer is unchanged."""
    base = layer.get_base_layer()
    kept = [(module, dict(module._parameters)) for module in base.modules()]
    for module, parameters in kept:
        for name, parameter in parameters.items():
            if parameter is not None:
                module._parameters[name] = torch.nn.Parameter(whole(parameter).clone(), requires_grad=False)
    try:
        layer.merge()
        return {name: parameter.data for name, parameter in base.named_parameters()}
    finally:
        for module, parameters in kept:
            module._parameters.update(parameters)
        layer.merged_adapters.clear()
