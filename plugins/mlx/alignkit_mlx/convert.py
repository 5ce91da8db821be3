"""An mlx-lm model with the weights of a model that torch has loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import torch
from alignkit.contract import LoadedModel
from alignkit.errors import ModelError, first_line

from alignkit_mlx.arrays import Weight, from_torch, mlx_lm

_PEFT = "base_model.model."
_COPY = ".modules_to_save.default."


@dataclass
class Converted:
    """A model of mlx-lm and its trained weights."""

    model: Any
    weights: list[Weight]
    score: nn.Module | None
    """The output layer of a reward model, which mlx-lm's class does not have."""
    dropout: bool
    vocabulary: int
    pad: int | None


def convert(loaded: LoadedModel) -> Converted:
    """Move the weights of a torch model into an mlx-lm model, tensor by tensor; raises ``ModelError`` for what MLX lacks."""
    torch_model: Any = loaded.model
    name = type(torch_model.get_base_model() if loaded.is_adapter else torch_model).__name__
    model = _empty(torch_model.config, name)
    trained = [own for own, parameter in torch_model.named_parameters() if parameter.requires_grad]
    tensors = torch_model.state_dict(keep_vars=True)
    arrays = _take(tensors)
    score = _head(arrays) if loaded.classifier else None
    if score is not None:
        model.pop("lm_head", None)
    names = {id(array): own for own, array in arrays.items()}
    try:
        found = model.sanitize(dict(arrays)) if hasattr(model, "sanitize") else arrays
        model.load_weights(list(found.items()), strict=True)
    except Exception as error:  # of whatever kind, as mlx-lm does not check
        raise _refused(f"mlx-lm cannot take the weights of {name} ({first_line(error)})") from error
    places = {names[id(array)]: path for path, array in found.items() if id(array) in names}
    weights = list(_adapters(torch_model, model, places)) if loaded.is_adapter else []
    adapted = {weight.name for weight in weights}
    for own in trained:
        if own in adapted:
            continue
        path = places.get(_plain(own))
        if score is not None and _plain(own).startswith("score."):
            weights.append(Weight(own, score, own.rpartition(".")[2]))
        elif path is None:
            raise _refused(f"mlx-lm renames, stacks or lacks {_plain(own)} of {name}, which is trained")
        else:
            weights.append(Weight(own, _module(model, path.rpartition(".")[0]), path.rpartition(".")[2]))
    copies = [own for own in trained if _COPY in own]
    if getattr(torch_model.config.get_text_config(), "tie_word_embeddings", False) and any(
        _module_name(own).endswith(("embed_tokens", "lm_head", "wte")) for own in copies
    ):
        raise _refused("model.lora.modules_to_save names one of two tied matrices, which mlx-lm has only once")
    config = torch_model.config.get_text_config()
    dropout = any(getattr(layer, "_p_1", 1) < 1 for layer in model.modules() if isinstance(layer, nn.Dropout))
    return Converted(model, weights, score, dropout, config.vocab_size, config.pad_token_id)


def _refused(why: str) -> ModelError:
    return ModelError(f"{why}: set run.engine: torch")


def _empty(config: Any, name: str) -> Any:
    """Return mlx-lm's model of a configuration, whose weights are not made yet."""
    settings = config.to_dict()
    ropes = settings.get("rope_parameters") or {}
    nested = {kind: value for kind, value in ropes.items() if isinstance(value, dict)}
    rope = nested.get("full_attention", {}) if nested else ropes
    local = nested.get("sliding_attention", {}).get("rope_theta")
    # mlx-lm reads them by the names of transformers before 5.
    settings |= {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
    settings |= {"rope_local_base_freq": local} if local is not None else {}
    if rope.get("rope_type", "default") != "default":
        settings["rope_scaling"] = rope | {"type": rope["rope_type"]}
    try:
        model_class, arguments = mlx_lm().utils._get_classes(settings)
        return model_class(arguments.from_dict(settings))
    except Exception as error:  # of whatever kind, as mlx-lm does not check
        raise _refused(f"mlx-lm has no model for {name} ({settings.get('model_type')}: {first_line(error)})") from error


def _take(tensors: Mapping[str, torch.Tensor]) -> dict[str, mx.array]:
    """Return arrays by the names of the model without adapter, and free each tensor; of tied weights, as in a file, the first."""
    copied = {_plain(name) for name in tensors if _COPY in name}
    taken: set[int] = set()
    arrays: dict[str, mx.array] = {}
    for name, tensor in tensors.items():
        plain = _plain(name)
        if ".lora_" in name or (plain in copied and _COPY not in name) or id(tensor) in taken:
            continue
        taken.add(id(tensor))
        arrays[plain] = from_torch(tensor)
        if isinstance(tensor, torch.nn.Parameter):
            tensor.data = tensor.data.new_zeros(()).expand(tensor.shape)
    return arrays


def _plain(name: str) -> str:
    """Return the name of a weight in the model without adapter."""
    name = name.removeprefix(_PEFT).replace(".base_layer.", ".")
    return name.replace(_COPY, ".").replace(".original_module.", ".")


def _module_name(name: str) -> str:
    return _plain(name).rpartition(".")[0]


def _head(arrays: dict[str, mx.array]) -> nn.Module:
    """Return the output layer of a reward model, and take its weights out of ``arrays``."""
    own = {name.removeprefix("score."): arrays.pop(name) for name in list(arrays) if name.startswith("score.")}
    if "weight" not in own:
        raise _refused("the reward model has no output layer named score")
    layer = nn.Linear(own["weight"].shape[1], own["weight"].shape[0], bias="bias" in own)
    layer.load_weights(list(own.items()))
    return layer


def _module(model: nn.Module, path: str) -> Any:
    found: Any = model
    for part in path.split("."):
        found = found[int(part)] if isinstance(found, list) else found[part]
    return found


def _adapters(torch_model: Any, model: nn.Module, places: Mapping[str, str]) -> Any:
    """Put peft's adapters into the model, and yield the places of their weights."""
    from mlx_lm.tuner.dora import DoRALinear
    from mlx_lm.tuner.lora import LoRALinear
    from peft.tuners.lora import Linear
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in torch_model.named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        plain, (adapter,) = name.removeprefix(_PEFT), layer.active_adapters
        path = places.get(f"{plain}.weight", "").rpartition(".")[0]
        base = _module(model, path) if path else None
        dora = "lora_magnitude_vector" in dict(layer.named_children()) and adapter in layer.lora_magnitude_vector
        kinds = {type(variant).__name__ for variant in getattr(layer, "lora_variant", {}).values()}
        simple = type(layer) is Linear and not layer.fan_in_fan_out and not any(layer.lora_bias.values())
        if not simple or layer.merged or not isinstance(base, nn.Linear) or kinds - {"DoraLinearVariant"}:
            raise _refused(f"the adapter of {plain} is not a LoRA of a linear layer that mlx-lm has as well")
        dropout = getattr(layer.lora_dropout[adapter], "p", 0.0)
        if dora and dropout:
            raise _refused("model.lora.dora with dropout is computed differently by mlx-lm")
        first, second = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        kind = DoRALinear if dora else LoRALinear
        made = kind.from_base(base, r=first.shape[0], dropout=dropout, scale=layer.scaling[adapter])
        own = [Weight(f"{name}.lora_A.{adapter}.weight", made, "lora_a", True)]
        own += [Weight(f"{name}.lora_B.{adapter}.weight", made, "lora_b", True)]
        tensors = [first, second]
        if dora:
            own += [Weight(f"{name}.lora_magnitude_vector.{adapter}.weight", made, "m")]
            tensors += [layer.lora_magnitude_vector[adapter].weight]
        for weight, tensor in zip(own, tensors, strict=True):
            made[weight.key] = weight.written(tensor)
        parent, _, last = path.rpartition(".")
        holder = _module(model, parent) if parent else model
        holder[int(last) if isinstance(holder, list) else last] = made
        yield from (weight for weight, tensor in zip(own, tensors, strict=True) if tensor.requires_grad)


def cast_frozen(parts: Converted) -> None:
    """Store the weights that are not trained in bfloat16."""
    trained = {(id(weight.module), weight.key) for weight in parts.weights}
    for module in [*parts.model.modules(), *([] if parts.score is None else [parts.score])]:
        for key, value in list(module.items()):
            if isinstance(value, mx.array) and value.dtype == mx.float32 and (id(module), key) not in trained:
                module[key] = value.astype(mx.bfloat16)
                mx.eval(module[key])


def quantize(model: Any, weights: list[Weight], bits: int) -> None:
    """Quantize the linear layers of the layers of a model, as bitsandbytes does: not the embeddings, nor the output layer."""
    trained = {id(weight.module) for weight in weights}
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Linear) or isinstance(layer, nn.QuantizedLinear) or id(layer) in trained:
            continue
        if ".layers." not in f".{name}":
            continue
        width = layer.weight.shape[1]
        group = next((size for size in (64, 32) if width % size == 0), None)
        if group is None:
            raise ModelError(f"model.quantization: {name} has {width} inputs, and MLX quantizes groups of 32 or 64")
        parent, _, last = name.rpartition(".")
        made = nn.QuantizedLinear.from_linear(layer, group_size=group, bits=bits)
        mx.eval(made.parameters())
        _module(model, parent)[last] = made
