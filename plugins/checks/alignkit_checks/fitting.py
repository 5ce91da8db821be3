"""Weights that do not belong to the model's configuration, where ZeRO-3 shards the model.

transformers looks only for missing weights then: others are left out in silence, and a wrong shape is found by one process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alignkit.config import ModelConfig
from alignkit.models.paths import adapter_parts, is_classifier, resolve_path
from alignkit.models.weights import require_fit

if TYPE_CHECKING:
    from transformers import TrainingArguments


def require_fitting(config: ModelConfig, arguments: TrainingArguments) -> None:
    """Load the model on the meta device, without ZeRO-3; raises :class:`ModelError` for weights that do not fit.

    What cannot be loaded so is left to the loading itself.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.integrations import is_deepspeed_zero3_enabled
    from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

    if not is_deepspeed_zero3_enabled():
        return
    path, _ = adapter_parts(resolve_path(config.name), config, weights=False)
    auto: Any = AutoModelForSequenceClassification if is_classifier(path) else AutoModelForCausalLM
    unset_hf_deepspeed_config()
    try:
        own = AutoConfig.from_pretrained(path, revision=config.revision)
        if auto is AutoModelForCausalLM and "CausalLM" not in str(own.architectures):
            return  # an encoder, whose own head a reward model does not have
        options = {"device_map": "meta", "output_loading_info": True, "ignore_mismatched_sizes": True}
        _, found = auto.from_pretrained(path, revision=config.revision, config=own, **options)
    except Exception:  # whatever it is, loading finds it and says so
        return
    finally:
        set_hf_deepspeed_config(arguments.hf_deepspeed_config)
    require_fit(path, [name for name, *_ in found["mismatched_keys"]], found["unexpected_keys"])
