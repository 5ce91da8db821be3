"""Fingerprints of models, and switching dropout off."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from alignkit.errors import ModelError
from alignkit.system.code import code_beside
from alignkit.system.files import digest
from alignkit.system.sharded import reshard, unsharded_class, whole

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def require_fit(path: str, missing: Collection[str], unused: Collection[str]) -> None:
    """Raise :class:`ModelError` unless the tensors of a model or adapter are those its configuration describes."""
    problems = {"are missing or have another shape": missing, "belong to nothing in the model": unused}
    found = [f"{len(names)} tensors {what} (first: {min(names)})" for what, names in problems.items() if names]
    if found:
        raise ModelError(f"the weights of {path} do not fit its configuration: {', '.join(found)}")


def dropouts(model: PreTrainedModel) -> list[tuple[object, str]]:
    """Return owner and attribute of every dropout above 0, except in adapters (``model.lora.dropout`` is a separate setting).

    The probability may be in ``nn.Dropout.p``, in a float attribute that a module's forward reads, or in the model's
    configuration.
    """
    import torch

    owners = [module for name, module in model.named_modules() if "lora_dropout" not in name]
    return [
        (owner, key)
        for owner in [*owners, model.config.get_text_config()]
        for key, value in vars(owner).items()
        if isinstance(value, float) and value > 0 and ("drop" in key or isinstance(owner, torch.nn.Dropout))
    ]


def switch_off_dropout(model: PreTrainedModel) -> dict[str, float]:
    """Set every dropout of the model to 0; return the previous values of the configuration by key."""
    found, config = dropouts(model), model.config.get_text_config()
    before = {key: getattr(owner, key) for owner, key in found if owner is config}
    for owner, key in found:
        setattr(owner, key, 0.0)
    return before


_NOT_COMPUTED = {
    *("architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "use_cache"),
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "init_lora_weights", "peft_version", "revision"),
}
"""Keys of model and adapter configurations that do not change what is computed (dtypes are the tensors' own)."""


def fingerprint(model: torch.nn.Module) -> str:
    """Return the SHA-256 of everything that decides what the policy computes.

    That is its configuration (of the model, generation and adapters), the code of its class unless that is a library's, and
    names, dtypes, shapes and bytes of its parameters and buffers. Every process of a sharded model must call this.
    """
    import torch

    from alignkit.scoring.critic import is_critics

    reshard(model)
    content = hashlib.sha256(digest(_configuration(model)).encode())
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        if is_critics(name):
            continue  # not part of the policy
        full = whole(tensor)
        content.update(f"{name} {full.dtype} {tuple(full.shape)}\n".encode())
        flat = full.to("cpu").contiguous().reshape(-1)
        content.update(flat.view(torch.uint8).numpy().data)
    return content.hexdigest()


def _configuration(model: Any) -> dict[str, Any]:
    adapters = getattr(model, "peft_config", {})
    inner = model.get_base_model() if adapters else model
    generation = getattr(inner, "generation_config", None)
    own = unsharded_class(inner)
    return {
        "class": own.__name__,
        "code": code_beside(own),
        "config": _computed(inner.config.to_diff_dict()),
        "generation": None if generation is None else _computed(generation.to_diff_dict()),
        "adapters": _computed({name: adapter.to_dict() for name, adapter in adapters.items()}),
    }


def _computed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            str(key): _computed(entry)
            for key, entry in value.items()
            if not (key in _NOT_COMPUTED or str(key).startswith("_"))
        }
    return sorted(map(str, value)) if isinstance(value, set) else value
