"""How the weights of a model are sharded over the processes as it is loaded (FSDP2, by transformers)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from alignkit.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel
    from transformers.distributed import DistributedConfig


def sharding(auto: Any, config: PreTrainedConfig, shards: int, trusted: bool) -> DistributedConfig:
    """Return what makes ``from_pretrained`` shard a model: every process reads and keeps its slice of each tensor only.

    One group a decoder layer, which is whole on a device only while it runs; the rest of the model is another group.
    ``auto`` is the class that loads ``config``. Raises :class:`ConfigError` if this transformers cannot shard.
    """
    import torch

    try:
        from transformers.distributed import DistributedConfig
    except ImportError:
        raise ConfigError("run.strategy fsdp needs transformers 5.23 or newer: pip install -U transformers") from None
    with torch.device("meta"):
        model = auto.from_config(config, trust_remote_code=trusted)
    layers = {re.sub(r"\.\d+(?=\.|$)", ".*", name) for name, module in model.named_modules() if is_layer(model, module)}
    if not layers:
        raise ConfigError(f"run.strategy fsdp: transformers does not say what the layers of {type(model).__name__} are")
    return DistributedConfig(fsdp_size=shards, fsdp_plan=dict.fromkeys(layers, "free_full_weight"))


def is_layer(model: PreTrainedModel, module: Any) -> bool:
    """Whether a module is a layer of ``model``, by what transformers says of its architecture."""
    return type(module).__name__ in (getattr(model, "_no_split_modules", None) or ())


def run_hooks(model: Any) -> None:
    """Let the forward of a sharded model with an adapter go through the base model's hooks, which make its layers whole.

    peft calls the base model's ``forward`` directly.
    """
    model.base_model.forward = model.get_base_model().__call__
