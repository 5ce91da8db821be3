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
from mlx.utils import tree_unflatten

from alignkit_mlx.arrays import Weights, flat, from_torch, mlx_lm

_PEFT = "base_model.model."
_COPY = ".modules_to_save.default."


@dataclass
class Converted:
    """A model of mlx-lm and its trained weights."""

    model: Any
    weights: Weights
    classifier: bool
    """Whether it is a reward model: its output layer, ``score``, is not part of mlx-lm's class."""
    vocabulary: int
    pad: int | None


def convert(loaded: LoadedModel) -> Converted:
    """Move the weights of a torch model into an mlx-lm model, tensor by tensor; raises ``ModelError`` for what MLX lacks."""
    torch_model: Any = loaded.model
    name = type(torch_model.get_base_model() if loaded.is_adapter else torch_model).__name__
    model = _empty(torch_model.config, name)
    trained = [own for own, parameter in torch_model.named_parameters() if parameter.requires_grad]
    arrays = _take(torch_model.state_dict(keep_vars=True))
    names = {id(array): own for own, array in arrays.items()}
    head = {own: arrays.pop(own) for own in list(arrays) if own.startswith("score.")} if loaded.classifier else {}
    if loaded.classifier:
        if "score.weight" not in head:
            raise _refused("the reward model has no output layer named score")
        model.pop("lm_head", None)
        model.score = nn.Linear(*reversed(head["score.weight"].shape), bias="score.bias" in head)
    try:
        found = (model.sanitize(dict(arrays)) if hasattr(model, "sanitize") else arrays) | head
        model.load_weights(list(found.items()), strict=True)
    except Exception as error:  # of whatever kind, as mlx-lm does not check
        raise _refused(f"mlx-lm cannot take the weights of {name} ({first_line(error)})") from error
    places = {names[id(array)]: path for path, array in found.items() if id(array) in names}
    adapters = _put_adapters(torch_model, model, places) if loaded.is_adapter else {}
    paths = {own: adapters.get(own, places.get(_plain(own))) for own in trained}
    if missing := [own for own, path in paths.items() if path is None]:
        raise _refused(f"mlx-lm renames, stacks or lacks {_plain(missing[0])} of {name}, which is trained")
    config = torch_model.config.get_text_config()
    copies = [_plain(own).rpartition(".")[0] for own in trained if _COPY in own]
    if getattr(config, "tie_word_embeddings", False) and any(
        own.endswith(("embed_tokens", "lm_head", "wte")) for own in copies
    ):
        raise _refused("model.lora.modules_to_save names one of two tied matrices, which mlx-lm has only once")
    weights = Weights(model, {own: path for own, path in paths.items() if path is not None})
    return Converted(model, weights, loaded.classifier, config.vocab_size, config.pad_token_id)


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


def _put_adapters(torch_model: Any, model: nn.Module, places: Mapping[str, str]) -> dict[str, str]:
    """Put peft's adapters into the model, and return the paths of their weights by torch's names."""
    from mlx_lm.tuner.dora import DoRALinear
    from mlx_lm.tuner.lora import LoRALinear
    from peft.tuners.lora import Linear
    from peft.tuners.tuners_utils import BaseTunerLayer

    modules, made, paths = dict(model.named_modules()), dict[str, Any](), dict[str, str]()
    for name, layer in torch_model.named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        plain, (adapter,) = name.removeprefix(_PEFT), layer.active_adapters
        path = places.get(f"{plain}.weight", "").rpartition(".")[0]
        base = modules.get(path)
        kinds = {type(variant).__name__ for variant in getattr(layer, "lora_variant", {}).values()}
        simple = type(layer) is Linear and not layer.fan_in_fan_out and not any(layer.lora_bias.values())
        if not simple or layer.merged or not isinstance(base, nn.Linear) or kinds - {"DoraLinearVariant"}:
            raise _refused(f"the adapter of {plain} is not a LoRA of a linear layer that mlx-lm has as well")
        dora = adapter in layer.lora_magnitude_vector
        dropout = getattr(layer.lora_dropout[adapter], "p", 0.0)
        if dora and dropout:
            raise _refused("model.lora.dora with dropout is computed differently by mlx-lm")
        rank, scale = layer.lora_A[adapter].weight.shape[0], layer.scaling[adapter]
        made[path] = (DoRALinear if dora else LoRALinear).from_base(base, r=rank, dropout=dropout, scale=scale)
        own = {"lora_A": "lora_a", "lora_B": "lora_b"} | ({"lora_magnitude_vector": "m"} if dora else {})
        for theirs, key in own.items():
            tensor = getattr(layer, theirs)[adapter].weight
            made[path][key] = from_torch(tensor if key == "m" else tensor.T)
            paths[f"{name}.{theirs}.{adapter}.weight"] = f"{path}.{key}"
    model.update_modules(tree_unflatten(list(made.items())))
    return paths


def cast_frozen(parts: Converted) -> None:
    """Store the weights that are not trained in bfloat16."""
    trained = set(parts.weights.paths.values())
    frozen = {path: array for path, array in flat(parts.model.parameters()).items() if path not in trained}
    cast = [(path, one.astype(mx.bfloat16)) for path, one in frozen.items() if one.dtype == mx.float32]
    parts.model.update(tree_unflatten(cast))


def quantize(parts: Converted, bits: int) -> None:
    """Quantize the linear layers of the layers of a model, as bitsandbytes does: not the embeddings, nor the output layer."""
    trained = {path.rpartition(".")[0] for path in parts.weights.paths.values()}

    def options(path: str, layer: Any) -> dict[str, int] | bool:
        if not isinstance(layer, nn.Linear) or path in trained or ".layers." not in f".{path}":
            return False
        width = layer.weight.shape[1]
        group = next((size for size in (64, 32) if width % size == 0), None)
        if group is None:
            raise ModelError(f"model.quantization: {path} has {width} inputs, and MLX quantizes groups of 32 or 64")
        return {"group_size": group, "bits": bits}

    nn.quantize(parts.model, class_predicate=options)
